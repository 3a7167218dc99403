//! Two guests joined by a link that the host can cut and restore, each of which the host can kill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use super::explain;
use super::machine::Link;
use super::session::{Device, Ended, Guest, Options, new_run};
use crate::cli::Outcome;
use crate::error::{Context, Error, Result};
use crate::{kernel, process};

/// What a host script can call. The guests have `flag` and `wait_flag` from `xtask/guest/flags.sh`.
const PRELUDE: &str = r#"
. "$REPO/xtask/guest/flags.sh"
link() { # a|b on|off
    local socket=MONITOR_${1^^}
    "$XTASK" monitor "${!socket}" "set_link n0 $2" >/dev/null
}
kill_guest() { # a|b
    local pid=PID_${1^^}
    kill -KILL "${!pid}"
    touch "$SHARED/killed-$1"
}
"#;

/// What the guests of a pair have, unless something else is asked for: both must fit.
pub(crate) fn options() -> Options {
    Options {
        memory_mib: 1024,
        cpus: 1,
        ..Options::default()
    }
}

/// Runs one command per guest, and the host's script beside them. With `record`, what crosses the link is in
/// `link.pcap`.
pub(crate) fn run(
    options: &Options,
    commands: &[String],
    script: Option<&str>,
    record: bool,
) -> Result<Outcome> {
    let kernel = kernel::provide()?;
    let directory = new_run(&format!(
        "pair-{}",
        options.device.map_or("plain", Device::name)
    ))?;
    let shared = directory.join("shared");
    fs::create_dir(&shared).context(shared.display())?;
    let sockets = Sockets::new()?;

    let mut guests = Vec::new();
    for ((role, other, mac), command) in [("a", "b", 1), ("b", "a", 2)].into_iter().zip(commands) {
        let link = Link {
            sockets: [sockets.link(role), sockets.link(other)],
            mac,
            monitor: sockets.monitor(role),
            shared: shared.clone(),
            capture: (record && role == "a").then(|| directory.join("link.pcap")),
        };
        let files = directory.join(role);
        guests.push(Guest::start(
            &kernel,
            options,
            role,
            &files,
            command,
            Some(link),
        )?);
    }
    let host = script
        .map(|script| start_host(script, &shared, &sockets, &guests))
        .transpose()?;
    for guest in &mut guests {
        if !guest.wait_ready()
            && !shared.join("killed-a").exists()
            && !shared.join("killed-b").exists()
        {
            return Err(Error::new(format!(
                "a guest did not boot: {}",
                directory.display()
            )));
        }
    }
    let mut status = 0;
    if let Some(mut host) = host {
        let deadline = Instant::now() + options.timeout;
        let end = match process::wait_until(&mut host, deadline)? {
            process::End::Exited(end) if end.success() => None,
            process::End::Exited(end) => Some(end.to_string()),
            process::End::TimedOut => Some("did not end".to_owned()),
        };
        if let Some(end) = end {
            eprintln!("the host's script: {end}");
            status = 1;
            // They would wait for the host in vain.
            guests.iter_mut().for_each(Guest::kill);
        }
    }
    for guest in guests {
        let report = guest.finish()?;
        // Death by the host's hand is part of the play.
        let killed = shared.join(format!("killed-{}", report.name)).exists();
        if killed && report.ended == Ended::Died {
            continue;
        }
        explain(&report);
        status = if status == 0 { report.status() } else { status };
    }
    Ok(Outcome::Status(status))
}

fn start_host(script: &str, shared: &Path, sockets: &Sockets, guests: &[Guest]) -> Result<Child> {
    let xtask = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("{PRELUDE}{script}")])
        .env("GUEST", "host")
        .env("REPO", crate::paths::root())
        .env("XTASK", xtask)
        .env("SHARED", shared);
    for (guest, (role, upper)) in guests.iter().zip([("a", "A"), ("b", "B")]) {
        command
            .env(format!("PID_{upper}"), guest.pid().to_string())
            .env(format!("MONITOR_{upper}"), sockets.monitor(role));
    }
    command.spawn().context("cannot run bash")
}

/// A short-named directory for sockets, whose paths may not be long.
struct Sockets(PathBuf);

impl Sockets {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("smbdirect-{}", std::process::id()));
        fs::create_dir(&path).context(path.display())?;
        Ok(Self(path))
    }

    fn link(&self, role: &str) -> PathBuf {
        self.0.join(format!("link-{role}"))
    }

    fn monitor(&self, role: &str) -> PathBuf {
        self.0.join(format!("monitor-{role}"))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
