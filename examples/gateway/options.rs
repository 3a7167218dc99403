//! The command line.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use smbdirect::rdma::ProviderKind;

use crate::allow::Network;
use crate::args::Arguments;
use crate::units;

/// Printed by `--help`. The numbers are those of [`Options::default`].
pub(crate) const HELP: &str = "\
Gives an SMB server on TCP (Samba, for example) RDMA: accepts SMB Direct and forwards every
connection to the server. READ and WRITE data of sessions that are neither signed nor
encrypted goes by RDMA between the clients' memory and the gateway.

Usage: gateway --backend HOST[:PORT] [OPTIONS]

  --backend HOST[:PORT]  the SMB server (port 445 unless given)
  --listen ADDR[:PORT]   listen here; any number of times. Without PORT it is that of the
                         address's device: 445 on InfiniBand and RoCE, 5445 on iWARP; then
                         0.0.0.0 stands for all IPv4 addresses of RDMA devices. Without
                         --listen: on all addresses of all RDMA devices
  --provider P           verbs (default): RDMA devices; iwarp: the software RNIC, over TCP. It is
                         used only if you say so: it is slower than SMB over TCP
  --allow CIDR           only clients in this network (192.0.2.0/24, 2001:db8::/32, or one
                         address) may connect; any number of times. Default: everybody
  --max-connections N    connections at a time (default 256)
  --max-per-client N     connections of one client address at a time (default 32)
  --max-memory-per-client SIZE
                         memory for the data of READ and WRITE requests of one connection
                         (default 64MiB). Requests beyond it wait
  --threads N            threads for RDMA, over which connections are spread (default 1)
  --backend-timeout SECS time for connecting to the server, and for an answer when it owes one
                         and says nothing at all (default 60)
  --drain SECS           on SIGTERM and SIGINT: time for what is under way (default 10). A second
                         signal ends at once
  --stats SECS           print totals that often
  --json                 print connections and totals as JSON, one object per line
  --port-file FILE       write the first port there once clients can connect
  --help                 print this

Memory per connection: data as --max-memory-per-client says, in buffers of powers of two, of which
64 MiB are kept for reuse while the connection lives; 2 MiB of receive buffers when it is busy; and
up to 4 MiB of messages in each of the four queues, and of those that wait for memory. Threads per
connection: three.";

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) backend: String,
    pub(crate) listen: Vec<Place>,
    pub(crate) provider: ProviderKind,
    pub(crate) allow: Vec<Network>,
    pub(crate) max_connections: usize,
    pub(crate) max_per_client: usize,
    pub(crate) max_memory: u64,
    pub(crate) threads: usize,
    pub(crate) backend_timeout: Duration,
    pub(crate) drain: Duration,
    pub(crate) stats: Option<Duration>,
    pub(crate) json: bool,
    pub(crate) port_file: Option<PathBuf>,
}

/// An address to listen on; without a port it is the usual one of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    pub(crate) port: Option<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backend: String::new(),
            listen: Vec::new(),
            provider: ProviderKind::Verbs,
            allow: Vec::new(),
            max_connections: 256,
            max_per_client: 32,
            max_memory: 64 << 20,
            threads: 1,
            backend_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            stats: None,
            json: false,
            port_file: None,
        }
    }
}

impl Options {
    /// The options of this process; `None` if help is wanted.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(crate) fn of_this_process() -> Result<Option<Self>, String> {
        let mut args = Arguments::of_this_process();
        let mut options = Self::default();
        while let Some(name) = args.option()? {
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                "--backend" => options.backend = backend(&args.text()?)?,
                "--listen" => options.listen.push(place(&args.text()?)?),
                "--provider" => {
                    options.provider = match args.text()?.as_str() {
                        "verbs" => ProviderKind::Verbs,
                        "iwarp" => ProviderKind::Iwarp,
                        other => return Err(format!("--provider {other}: verbs or iwarp")),
                    }
                }
                "--allow" => options.allow.push(args.value()?),
                "--max-connections" => options.max_connections = args.at_least_one()?,
                "--max-per-client" => options.max_per_client = args.at_least_one()?,
                "--max-memory-per-client" => {
                    options.max_memory = args.parsed(units::parse)? as u64;
                }
                "--threads" => options.threads = args.at_least_one()?,
                "--backend-timeout" => options.backend_timeout = args.seconds(1)?,
                "--drain" => options.drain = args.seconds(0)?,
                "--stats" => options.stats = Some(args.seconds(1)?),
                "--json" => options.json = true,
                "--port-file" => options.port_file = Some(args.text()?.into()),
                name => return Err(format!("{name} is unknown; --help lists the options")),
            }
        }
        if options.backend.is_empty() {
            return Err("--backend HOST[:PORT] says which SMB server to forward to".into());
        }
        Ok(Some(options))
    }
}

/// `HOST:PORT`; port 445 unless the text has one. An IPv6 address stands in brackets or alone.
fn backend(text: &str) -> Result<String, String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{text}]:445"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, "445"),
    };
    let bracketed = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let right_host = match bracketed {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        // Whether a name means something is asked when it is connected to.
        None => !host.is_empty() && !host.contains(['/', '\\', ':', '[', ']', ' ']),
    };
    if !right_host || !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(format!(
            "--backend {text}: HOST or HOST:PORT, IPv6 as [ADDRESS]:PORT; neither a URL nor a share"
        ));
    }
    Ok(format!("{host}:{port}"))
}

fn place(text: &str) -> Result<Place, String> {
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        return Ok(Place {
            address,
            port: None,
        });
    }
    let socket: SocketAddr = text
        .parse()
        .map_err(|_| format!("--listen {text}: ADDRESS or ADDRESS:PORT, IPv6 as [ADDRESS]:PORT"))?;
    Ok(Place {
        address: socket.ip(),
        port: Some(socket.port()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_have_port_445_unless_given() {
        let port = |host| backend(host).expect("a backend");
        assert_eq!(port("nas"), "nas:445");
        assert_eq!(port("nas:1445"), "nas:1445");
        assert_eq!(port("192.0.2.1"), "192.0.2.1:445");
        assert_eq!(port("2001:db8::1"), "[2001:db8::1]:445");
        assert_eq!(port("[2001:db8::1]"), "[2001:db8::1]:445");
        assert_eq!(port("[2001:db8::1]:1445"), "[2001:db8::1]:1445");
    }

    #[test]
    fn what_names_no_host_is_no_backend() {
        for text in [
            "",
            ":445",
            "nas:",
            "nas:0",
            "nas:99999",
            "nas:smb",
            "//nas/share",
            r"\\nas\share",
            "smb://nas",
            "[nas]:445",
            "[2001:db8::1",
            "2001:db8::1]:445",
        ] {
            let error = backend(text).expect_err(text);
            assert!(error.starts_with("--backend "), "{error}");
        }
    }

    #[test]
    fn places_have_a_port_or_none() {
        let parse = |text| place(text).map(|place| (place.address.to_string(), place.port));
        assert_eq!(parse("192.0.2.1"), Ok(("192.0.2.1".into(), None)));
        assert_eq!(parse("192.0.2.1:0"), Ok(("192.0.2.1".into(), Some(0))));
        assert_eq!(parse("::1"), Ok(("::1".into(), None)));
        assert_eq!(parse("[::1]:445"), Ok(("::1".into(), Some(445))));
        assert!(parse("nas").is_err() && parse("192.0.2.1:x").is_err());
    }
}
