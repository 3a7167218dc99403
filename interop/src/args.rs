//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::share::Way;

pub(crate) const HELP: &str = "\
Usage: smb-client --provider tcp|verbs|windows|iwarp [OPTIONS] ADDRESS:PORT

Logs in, writes files, lists them, reads them back and compares. `windows` is verbs with memory
windows on soft-RoCE too.

  --share NAME        default share
  --user NAME         default test. Data is placed by a server that only looks at unsigned requests
                      for the user guest, whose session is not signed
  --password WORD     default secret
  --ways LIST         how data travels, of messages,v1,invalidate. Default: all that the connection
                      can
  --sizes LIST        of the files, as 4095, 64KiB, 1MiB+1. Default: 0 to 1MiB+1
  --in-flight N       requests at a time, default 16
  --together N        files at a time in one more scenario, default 8; 0 for none
  --chunk SIZE        bytes per request by RDMA, at most; default 1MiB
  --keep              leave the files there
  --sums FILE         write the files' SHA-256 as sha256sum does, to check them on the server
  --peer NAME         the server's name in the report, default server
  --rows FILE         append a line per scenario: peer, provider, scenario, result, bytes by RDMA,
                      bytes in messages, separated by tabs
";

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Tcp,
    Verbs,
    /// With memory windows on soft-RoCE, which otherwise has none.
    Windows,
    Iwarp,
}

/// The options, with their defaults.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) server: SocketAddr,
    pub(crate) carrier: Carrier,
    pub(crate) share: String,
    pub(crate) user: String,
    pub(crate) password: String,
    /// All that the connection can, if none are given.
    pub(crate) ways: Option<Vec<Way>>,
    pub(crate) sizes: Vec<u64>,
    pub(crate) in_flight: usize,
    pub(crate) together: u64,
    pub(crate) chunk: u32,
    pub(crate) keep: bool,
    pub(crate) sums: Option<PathBuf>,
    pub(crate) peer: String,
    pub(crate) rows: Option<PathBuf>,
}

impl Args {
    /// Nothing if help is asked for.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let (mut server, mut carrier) = (None, None);
        let mut args = Self {
            server: SocketAddr::from(([0, 0, 0, 0], 0)),
            carrier: Carrier::Tcp,
            share: "share".to_owned(),
            user: "test".to_owned(),
            password: "secret".to_owned(),
            ways: None,
            // Around every size at which something changes: pages, credits of 64 KiB, what ksmbd
            // takes in one message (173,910), chunks.
            sizes: vec![0, 1, 4095, 4096, 4097, 65_537, 173_911, (1 << 20) + 1],
            in_flight: 16,
            together: 8,
            chunk: 1 << 20,
            keep: false,
            sums: None,
            peer: "server".to_owned(),
            rows: None,
        };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--help" | "-h" => return Ok(None),
                "--provider" => carrier = Some(self::carrier(&value()?)?),
                "--share" => args.share = value()?,
                "--user" => args.user = value()?,
                "--password" => args.password = value()?,
                "--ways" => args.ways = Some(list(&value()?, way)?),
                "--sizes" => args.sizes = list(&value()?, size)?,
                "--in-flight" => args.in_flight = number(&value()?)?,
                "--together" => args.together = number(&value()?)?,
                "--chunk" => {
                    args.chunk =
                        u32::try_from(size(&value()?)?).map_err(|_| "--chunk is too large")?;
                }
                "--keep" => args.keep = true,
                "--sums" => args.sums = Some(value()?.into()),
                "--peer" => args.peer = value()?,
                "--rows" => args.rows = Some(value()?.into()),
                address => server = Some(number(address)?),
            }
        }
        args.server = server.ok_or("no server (ADDRESS:PORT)")?;
        args.carrier = carrier.ok_or("no --provider")?;
        if args.in_flight == 0 || args.chunk == 0 {
            return Err("--in-flight and --chunk cannot be 0".to_owned());
        }
        Ok(Some(args))
    }
}

fn carrier(word: &str) -> Result<Carrier, String> {
    match word {
        "tcp" => Ok(Carrier::Tcp),
        "verbs" => Ok(Carrier::Verbs),
        "windows" => Ok(Carrier::Windows),
        "iwarp" => Ok(Carrier::Iwarp),
        _ => Err(format!("no provider is called {word}")),
    }
}

fn way(word: &str) -> Result<Way, String> {
    match word {
        "messages" => Ok(Way::Messages),
        "v1" => Ok(Way::Placed { invalidate: false }),
        "invalidate" => Ok(Way::Placed { invalidate: true }),
        _ => Err(format!("no way is called {word}")),
    }
}

/// `4095`, `64KiB`, `1MiB+1`.
fn size(word: &str) -> Result<u64, String> {
    let (main, more) = word.split_once('+').unwrap_or((word, "0"));
    let (digits, unit) = match main.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => main.split_at(at),
        None => (main, ""),
    };
    let shift = match unit {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        _ => return Err(format!("{word}: the units are KiB and MiB")),
    };
    let (value, more): (u64, u64) = (number(digits)?, number(more)?);
    value
        .checked_mul(1 << shift)
        .and_then(|bytes| bytes.checked_add(more))
        .ok_or(format!("{word} is too large"))
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse()
        .map_err(|_| format!("'{word}' is not understood"))
}

fn list<T>(words: &str, parse: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    words.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Args>, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_understood() {
        let args = parsed("--provider iwarp --ways v1,messages --sizes 0,64KiB,1MiB+1 [::1]:5445")
            .unwrap()
            .unwrap();
        assert_eq!(args.carrier, Carrier::Iwarp);
        assert_eq!(
            args.ways,
            Some(vec![Way::Placed { invalidate: false }, Way::Messages])
        );
        assert_eq!(args.sizes, [0, 65_536, 1_048_577]);
        assert_eq!(args.server.port(), 5445);
        assert!(parsed("--help").unwrap().is_none());
    }

    #[test]
    fn mistakes_are_told() {
        for (line, part) in [
            ("--provider tcp", "no server"),
            ("1.2.3.4:445", "no --provider"),
            ("--provider roce 1.2.3.4:445", "roce"),
            ("--provider tcp --sizes 3GiB 1.2.3.4:445", "units"),
            ("--provider tcp --chunk 0 1.2.3.4:445", "cannot be 0"),
            ("--provider tcp nonsense", "nonsense"),
        ] {
            let problem = parsed(line).unwrap_err();
            assert!(problem.contains(part), "{line}: {problem}");
        }
    }
}
