//! `cargo xtask guest`: runs commands in QEMU guests with soft-RoCE and soft-iWARP devices.
//!
//! - [`session`]: one guest from start to end: its directory, environment, result.
//! - [`machine`]: QEMU's command line.
//! - [`messages`]: what in the kernel's messages fails a run.
//! - [`pair`]: two guests joined by a link; [`monitor`]: QEMU's monitor, which cuts that link.

mod machine;
mod messages;
pub(crate) mod monitor;
pub(crate) mod pair;
pub(crate) mod session;

use std::env;

use crate::cli::{Arguments, Outcome, unknown};
use crate::error::{Error, Result};
use crate::process::shell_line;
use session::{Device, Ended, Options, Report};

pub(crate) const HELP: &str = "
Usage: cargo xtask guest [OPTIONS] -- COMMAND...
       cargo xtask guest --pair [OPTIONS] [--host SCRIPT] -- COMMAND_A COMMAND_B

Runs COMMAND in a Linux guest (QEMU, software emulation, no root needed) and leaves with its exit
status. A single COMMAND word is a line for bash. The guest sees the host's root file system: read
it, and write on it without effect outside. /tmp and /run are fresh. The working directory is the
caller's. The kernel is built on first use (see `cargo xtask kernel --help`).

Options
  --device rxe|siw    soft-RoCE or soft-iWARP devices: rxe0 and rxe1 (siw0 and siw1) on the two ends
                      of a cable, with the addresses $LOCAL (10.0.1.1, fd00:1::1) and $REMOTE
                      (10.0.1.2, fd00:1::2). Traffic between them really crosses the cable,
                      v0 <-> v1: for tcpdump, tc netem, ip -s link
  --timeout SECONDS   for the whole run, default 300
  --memory MIB        default 2048 (each guest of a pair: 1024)
  --cpus N            default 2 (each guest of a pair: 1)
  --env NAME=VALUE    sets a variable for COMMAND; may be repeated
  --pair              two guests with one device each on a link between them (eth0): A is 10.0.1.1,
                      B is 10.0.1.2
  --host SCRIPT       with --pair: bash commands run on the host meanwhile, with `link a|b on|off`,
                      `kill_guest a|b`, `flag NAME`, `wait_flag NAME [SECONDS]`

Environment of COMMAND
  SMBDIRECT_GUEST     1
  GUEST               guest; in a pair a or b
  DEVICE, PORT        rxe and 445, or siw and 5445
  LOCAL, LOCAL6, LOCAL_DEVICE, LOCAL_LINK, and the same with REMOTE
                      address, IPv6 address, RDMA device, network interface
  REPO, TARGET, BIN   the repository; cargo's build directory; the programs that `cargo xtask test`
                      builds for the guest (on PATH)
  OUT                 a directory whose files stay on the host
  SHARED              in a pair: a directory that both guests and the host see

Status
  COMMAND's own; 124 if the time was over, 125 if the guest died, 126 if the kernel warned or oopsed
  although COMMAND succeeded. Console, kernel messages and output are kept below target/guest/ (the
  newest 20 runs).";

/// The command line, parsed.
struct Request {
    options: Options,
    pair: bool,
    host_script: Option<String>,
    commands: Vec<String>,
}

pub(crate) fn run(arguments: Arguments) -> Result<Outcome> {
    let request = parse(arguments)?;
    if request.pair {
        return pair::run(
            &request.options,
            &request.commands,
            request.host_script.as_deref(),
            true,
        );
    }
    let line = match request.commands.as_slice() {
        [line] => line.clone(),
        words => shell_line(words),
    };
    let report = session::run(&request.options, &line)?;
    explain(&report);
    Ok(Outcome::Status(report.status()))
}

fn parse(mut arguments: Arguments) -> Result<Request> {
    let mut options = Options::default();
    let (mut paired, mut host_script, mut memory, mut cpus) = (false, None, None, None);
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--device" => options.device = Some(arguments.parsed::<Device>(&word)?),
            "--timeout" => options.timeout = arguments.seconds(&word)?,
            "--memory" => memory = Some(arguments.parsed(&word)?),
            "--cpus" => cpus = Some(arguments.parsed(&word)?),
            "--env" => {
                let setting = arguments.value(&word)?;
                let (name, value) = setting.split_once('=').ok_or_else(|| {
                    Error::usage(format!("--env wants NAME=VALUE, not '{setting}'"))
                })?;
                options
                    .environment
                    .push((name.to_owned(), value.to_owned()));
            }
            "--pair" => paired = true,
            "--host" => host_script = Some(arguments.value(&word)?),
            _ if !arguments.separated() => {
                return Err(Error::usage(format!(
                    "'{word}': the guest's command comes after --"
                )));
            }
            _ => return Err(unknown(&word)),
        }
    }
    if paired {
        let usual = pair::options();
        (options.memory_mib, options.cpus) = (usual.memory_mib, usual.cpus);
    } else if host_script.is_some() {
        return Err(Error::usage("--host goes with --pair"));
    }
    options.memory_mib = memory.unwrap_or(options.memory_mib);
    options.cpus = cpus.unwrap_or(options.cpus);
    options.workdir = env::current_dir().ok();
    let commands = arguments.rest();
    match commands.len() {
        2 if paired => {}
        _ if paired => {
            return Err(Error::usage(
                "--pair needs two commands after --, one per guest",
            ));
        }
        0 => {
            return Err(Error::usage(
                "no command: cargo xtask guest [OPTIONS] -- COMMAND...",
            ));
        }
        _ => {}
    }
    Ok(Request {
        options,
        pair: paired,
        host_script,
        commands,
    })
}

/// Shows console and kernel messages of a run that did not go well.
fn explain(report: &Report) {
    let headline = match &report.ended {
        Ended::Exited(0) if report.complaints.is_empty() => return,
        Ended::Exited(0) => "the kernel complained".to_owned(),
        Ended::Exited(status) => format!("the command's exit status is {status}"),
        Ended::TimedOut => format!(
            "stopped after {:.0} s (--timeout)",
            report.took.as_secs_f64()
        ),
        Ended::Died => "the guest died before the command had ended".to_owned(),
    };
    let name = if report.name == session::SINGLE {
        ""
    } else {
        &format!(" {}", report.name)
    };
    eprintln!("\nguest{name}: {headline}");
    for complaint in &report.complaints {
        eprintln!("  {complaint}");
    }
    report.show_logs();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parsed(words: &[&str]) -> Result<Request> {
        parse(Arguments::new(words.iter().map(|&word| word.to_owned())))
    }

    #[test]
    fn options_reach_the_request() {
        let request = parsed(&[
            "--device",
            "siw",
            "--timeout",
            "7",
            "--env",
            "A=b=c",
            "--",
            "true",
            "x",
        ]);
        let request = request.unwrap();
        assert_eq!(request.options.device, Some(Device::Siw));
        assert_eq!(request.options.timeout, Duration::from_secs(7));
        assert_eq!(
            request.options.environment,
            [("A".to_owned(), "b=c".to_owned())]
        );
        assert_eq!(request.commands, ["true", "x"]);
        assert_eq!(request.options.memory_mib, 2048);
    }

    #[test]
    fn mistakes_are_told() {
        let error = |words: &[&str]| parsed(words).err().unwrap().to_string();
        assert!(error(&["--device", "mlx5", "--", "true"]).contains("mlx5"));
        assert!(error(&["true"]).contains("after --"));
        assert!(error(&["--"]).contains("no command"));
        assert!(error(&["--pair", "--", "true"]).contains("two commands"));
        assert!(error(&["--host", "x", "--", "true"]).contains("--pair"));
        assert!(error(&["--fast", "--", "true"]).contains("--fast"));
        let status = |words: &[&str]| parsed(words).err().unwrap().status();
        assert_eq!(
            (status(&["--"]), status(&["--env", "A", "--", "x"])),
            (2, 2)
        );
    }
}
