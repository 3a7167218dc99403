//! Command lines: `--name value` or `--name=value`, by hand, so that the examples need no further
//! crates.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

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
  --json             print JSON instead of text
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
            "--reactors" => self.reactors = args.value()?,
            "--json" => self.json = true,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What the command line says, or the status to end with: 0 after the help, 2 for what is not understood.
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
    words: std::env::Args,
    name: String,
    attached: Option<String>,
}

impl Arguments {
    pub(crate) fn of_this_process() -> Self {
        let mut words = std::env::args();
        words.next();
        Self {
            words,
            name: String::new(),
            attached: None,
        }
    }

    /// The next option's name.
    pub(crate) fn option(&mut self) -> Result<Option<String>, String> {
        if self.attached.is_some() {
            return Err(format!("{} takes no value", self.name));
        }
        let Some(word) = self.words.next() else {
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
        let value = self.attached.take().or_else(|| self.words.next());
        value.ok_or_else(|| format!("{} needs a value", self.name))
    }

    /// The value of the option, parsed.
    pub(crate) fn value<T: FromStr<Err: Display>>(&mut self) -> Result<T, String> {
        let text = self.text()?;
        text.parse()
            .map_err(|error| format!("{} {text}: {error}", self.name))
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
