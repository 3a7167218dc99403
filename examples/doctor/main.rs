//! Why is RDMA not used? Looks at this machine and, with a server's name, at the way to that server, step by step,
//! with the remedy for what fails.

use std::process::ExitCode;

use smbdirect::rdma::ProviderKind;

use args::Arguments;
use report::Report;

#[allow(dead_code)] // The options that other examples have in common.
#[path = "../common/args.rs"]
mod args;
mod devices;
mod host;
#[path = "../common/json.rs"]
mod json;
mod remedy;
mod report;
mod server;
#[path = "../common/units.rs"]
mod units;

const HELP: &str = "\
Says whether SMB Direct can be used: on this machine and, if a server is named, with it.

Usage: doctor [SERVER] [OPTIONS]

  SERVER             name or address of an SMB server: connects to it over RDMA and negotiates,
                     one line per step
  --port N           try this port only (default: 445 and 5445, the device's own first)
  --provider P       verbs: an RDMA device; iwarp: the software RNIC (default: verbs if an RDMA
                     device has the address on the way to SERVER, else iwarp)
  --json             print JSON instead of text
  --help             print this

Status: 0; 1 if SERVER is named and SMB Direct cannot be used with it; 2 for a wrong option.";

/// What the command line says.
#[derive(Default)]
struct Options {
    server: Option<String>,
    port: Option<u16>,
    provider: Option<ProviderKind>,
    json: bool,
}

fn main() -> ExitCode {
    let options = match args::or_status("doctor", HELP, options()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    let mut report = Report::new(options.json);
    host::examine(&mut report);
    let found = devices::examine(&mut report);
    let usable = match &options.server {
        Some(server) => server::examine(&mut report, server, options.port, options.provider),
        None => {
            let conclusion = match found {
                0 => {
                    "no RDMA device on this machine: SMB Direct works here through the software iWARP \
                     only, with peers that speak iWARP"
                }
                _ => "SMB Direct can be used here; `doctor SERVER` tries it with a server",
            };
            report.conclude(true, conclusion);
            true
        }
    };
    report.finish();
    if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The options; `None` if help is wanted.
fn options() -> Result<Option<Options>, String> {
    let mut args = Arguments::of_this_process();
    let mut options = Options::default();
    while let Some(word) = args.option()? {
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--json" => options.json = true,
            "--port" => options.port = Some(args.at_least_one()?),
            "--provider" => {
                options.provider = Some(match args.text()?.as_str() {
                    "verbs" => ProviderKind::Verbs,
                    "iwarp" => ProviderKind::Iwarp,
                    other => return Err(format!("--provider {other}: verbs or iwarp")),
                });
            }
            name if name.starts_with('-') => {
                return Err(format!("{name} is unknown; --help lists the options"));
            }
            server if options.server.is_none() => options.server = Some(server.into()),
            more => return Err(format!("{more}: one server at a time")),
        }
    }
    Ok(Some(options))
}
