//! Command lines: `--name value` or `--name=value`, by hand, so that the examples need no further
//! crates.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

/// What both examples understand.
pub(crate) struct Common {
    pub(crate) provider: Wanted,
    pub(crate) address: IpAddr,
    pub(crate) port: Option<u16>,
    pub(crate) port_file: Option<PathBuf>,
    pub(crate) crc: Option<bool>,
    pub(crate) soft_roce_windows: bool,
    pub(crate) reactors: usize,
    pub(crate) json: bool,
}

/// What `--provider` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Auto,
    Verbs,
    Iwarp,
    Tcp,
}

/// The part of the help that both examples have.
pub(crate) const COMMON_HELP: &str = "  \
  --provider P       verbs: an RDMA device; iwarp: the software RNIC, works everywhere;
                     tcp: no RDMA; auto (default): verbs if the address belongs to an
                     RDMA device, else iwarp
  --crc on|off       iwarp: ask for a checksum over every packet (default on; used if
                     either side asks)
  --soft-roce-windows
                     verbs: memory windows on soft-RoCE too, invalidated by the peer as on
                     cards; only with peers that you trust (they can crash the kernel)
  --reactors N       spread RDMA connections over N threads (default 1)
  --help             print this";

impl Common {
    pub(crate) fn new() -> Self {
        Self {
            provider: Wanted::Auto,
            address: IpAddr::from([127, 0, 0, 1]),
            port: None,
            port_file: None,
            crc: None,
            soft_roce_windows: false,
            reactors: 1,
            json: false,
        }
    }

    /// Takes the option if it is one of the common ones.
    pub(crate) fn take(&mut self, name: &str, args: &mut Arguments) -> Result<bool, String> {
        match name {
            "--provider" => {
                self.provider = match args.text()?.as_str() {
                    "auto" => Wanted::Auto,
                    "verbs" => Wanted::Verbs,
                    "iwarp" => Wanted::Iwarp,
                    "tcp" => Wanted::Tcp,
                    other => return Err(format!("--provider {other}: verbs, iwarp, tcp or auto")),
                }
            }
            "--address" => self.address = resolve(&args.text()?)?,
            "--port" => self.port = Some(args.value()?),
            "--port-file" => self.port_file = Some(args.text()?.into()),
            "--crc" => {
                self.crc = Some(match args.text()?.as_str() {
                    "on" => true,
                    "off" => false,
                    other => return Err(format!("--crc {other}: on or off")),
                })
            }
            "--soft-roce-windows" => self.soft_roce_windows = true,
            "--reactors" => self.reactors = args.at_least_one()?,
            "--json" => self.json = true,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What the command line says, or the status to end with: 0 after the help, 2 for what is not understood or cannot
/// be meant. All that the words alone can tell belongs into `said`; what fails later has status 1.
pub(crate) fn or_status<T>(
    program: &str,
    help: &str,
    said: Result<Option<T>, String>,
) -> Result<T, ExitCode> {
    match said {
        Ok(Some(options)) => Ok(options),
        Ok(None) => {
            println!("{help}");
            Err(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("{program}: {error}");
            Err(ExitCode::from(2))
        }
    }
}

/// The words of the command line.
pub(crate) struct Arguments {
    words: std::vec::IntoIter<OsString>,
    name: String,
    attached: Option<String>,
}

impl Arguments {
    pub(crate) fn of_this_process() -> Self {
        Self::new(std::env::args_os().skip(1))
    }

    fn new(words: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            words: words.into_iter().collect::<Vec<_>>().into_iter(),
            name: String::new(),
            attached: None,
        }
    }

    /// The next option's name.
    pub(crate) fn option(&mut self) -> Result<Option<String>, String> {
        if self.attached.is_some() {
            return Err(format!("{} takes no value", self.name));
        }
        let Some(word) = self.word()? else {
            return Ok(None);
        };
        match word.split_once('=') {
            Some((name, value)) => {
                self.attached = Some(value.into());
                self.name = name.into();
            }
            None => self.name = word,
        }
        Ok(Some(self.name.clone()))
    }

    /// The value of the option.
    pub(crate) fn text(&mut self) -> Result<String, String> {
        match self.attached.take() {
            Some(value) => Ok(value),
            None => (self.word()?).ok_or_else(|| format!("{} needs a value", self.name)),
        }
    }

    /// The value of the option, parsed.
    pub(crate) fn value<T: FromStr<Err: Display>>(&mut self) -> Result<T, String> {
        let text = self.text()?;
        text.parse()
            .map_err(|error| format!("{} {text}: {error}", self.name))
    }

    /// The value of the option, as `parse` understands it.
    #[allow(dead_code)] // Not every example has such options.
    pub(crate) fn parsed<T>(
        &mut self,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        parse(&self.text()?).map_err(|error| format!("{} {error}", self.name))
    }

    /// The values of the option, between commas.
    #[allow(dead_code)]
    pub(crate) fn list<T>(
        &mut self,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        self.parsed(|text| text.split(',').map(&parse).collect())
    }

    /// The value of the option: a number that is not 0.
    pub(crate) fn at_least_one<T>(&mut self) -> Result<T, String>
    where
        T: FromStr<Err: Display> + Default + PartialEq,
    {
        let number: T = self.value()?;
        match number == T::default() {
            true => Err(format!("{} 0: at least 1", self.name)),
            false => Ok(number),
        }
    }

    /// The value of the option: whole seconds, at most a day.
    #[allow(dead_code)] // Not every example has times.
    pub(crate) fn seconds(&mut self, least: u64) -> Result<Duration, String> {
        let number = self.value::<u64>()?;
        if (least..=86_400).contains(&number) {
            Ok(Duration::from_secs(number))
        } else {
            let name = &self.name;
            Err(format!("{name} {number}: {least} to 86400 seconds"))
        }
    }

    fn word(&mut self) -> Result<Option<String>, String> {
        let word = self.words.next().map(OsString::into_string).transpose();
        word.map_err(|word| format!("{}: not in UTF-8", word.display()))
    }
}

fn resolve(host: &str) -> Result<IpAddr, String> {
    let mut found = (host, 0)
        .to_socket_addrs()
        .map_err(|e| format!("--address {host}: {e}"))?;
    found
        .next()
        .as_ref()
        .map(SocketAddr::ip)
        .ok_or(format!("--address {host}: no such host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Arguments {
        Arguments::new(line.split_whitespace().map(OsString::from))
    }

    /// What the common options of a line come to.
    fn common(line: &str) -> Result<Common, String> {
        let (mut args, mut common) = (arguments(line), Common::new());
        while let Some(name) = args.option()? {
            assert!(common.take(&name, &mut args)?, "{name}");
        }
        Ok(common)
    }

    #[test]
    fn values_follow_or_are_attached() {
        let common = common("--provider tcp --reactors=3 --json --port 0").expect("understood");
        assert_eq!(common.provider, Wanted::Tcp);
        assert_eq!((common.reactors, common.port), (3, Some(0)));
        assert!(common.json);
    }

    #[test]
    fn wrong_values_are_told_with_their_option() {
        for line in [
            "--provider rdma",
            "--crc maybe",
            "--port 65536",
            "--port x",
            "--reactors 0",
            "--reactors=0",
            "--reactors -1",
            "--reactors",
            "--json=yes",
        ] {
            let name = line.split([' ', '=']).next().expect("a name");
            let error = common(line).err().expect(line);
            assert!(error.starts_with(name), "{line}: {error}");
        }
    }

    #[test]
    fn lists_are_taken_apart() {
        let small = |text: &str| match text {
            "1" => Ok(1),
            _ => Err(format!("{text}: 1")),
        };
        let list = |line| {
            let mut args = arguments(line);
            args.option().expect("a name");
            args.list(small)
        };
        assert_eq!(list("--sizes 1,1"), Ok(vec![1, 1]));
        assert_eq!(list("--sizes=1,2"), Err("--sizes 2: 1".into()));
    }

    #[test]
    fn times_have_bounds() {
        let seconds = |line, least| {
            let mut args = arguments(line);
            args.option().expect("a name");
            args.seconds(least)
        };
        assert_eq!(seconds("--drain 0", 0), Ok(Duration::ZERO));
        let error = Err("--timeout 0: 1 to 86400 seconds".to_owned());
        assert_eq!(seconds("--timeout 0", 1), error);
        assert!(seconds("--timeout 18446744073709551615", 1).is_err());
    }

    #[test]
    fn words_that_are_no_text_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let mut args = Arguments::new([OsString::from_vec(vec![b'-', 0xff])]);
        let error = args.option().expect_err("no text");
        assert!(error.ends_with(": not in UTF-8"), "{error}");
    }

    #[test]
    fn wrong_words_end_with_status_2() {
        let status = |said| or_status::<()>("test", "help", said).expect_err("a status");
        let text = |status| format!("{status:?}");
        let wrong = status(Err("wrong".into()));
        assert_eq!(text(wrong), text(ExitCode::from(2)));
        assert_eq!(text(status(Ok(None))), text(ExitCode::SUCCESS));
    }
}
