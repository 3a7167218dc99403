//! One guest from start to end: the directory it shares with the host, its environment, its result.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::machine::{self, Link, Machine};
use super::messages::complaints;
use crate::error::{Context, Error, Result};
use crate::kernel::{self, Kernel};
use crate::paths;
use crate::process::{self, Tee, quote};

/// A guest that has not said it is ready by then has met the emulator's boot failure. Boots take 2
/// to 10 seconds on an idle host.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
const BOOT_ATTEMPTS: u32 = 3;
/// Runs whose directories are kept.
const KEPT_RUNS: usize = 20;
/// The name of a guest that is not one of a pair.
pub(super) const SINGLE: &str = "guest";
const TICK: Duration = Duration::from_millis(20);

/// The kind of RDMA device in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Soft-RoCE.
    Rxe,
    /// Soft-iWARP.
    Siw,
}

impl Device {
    pub(crate) const ALL: [Self; 2] = [Self::Rxe, Self::Siw];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rxe => "rxe",
            Self::Siw => "siw",
        }
    }

    /// The port of SMB Direct on this kind of device.
    fn port(self) -> u16 {
        match self {
            Self::Rxe => 445,
            Self::Siw => 5445,
        }
    }
}

impl FromStr for Device {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|device| device.name() == name)
            .ok_or(())
    }
}

/// How to run a guest.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) device: Option<Device>,
    pub(crate) timeout: Duration,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) workdir: Option<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    /// Whether the command's output appears as it comes; it is always in the run's `output.log`.
    pub(crate) echo: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: None,
            timeout: Duration::from_secs(300),
            memory_mib: 2048,
            cpus: 2,
            workdir: None,
            environment: Vec::new(),
            echo: true,
        }
    }
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(u8),
    TimedOut,
    Died,
}

/// What came of a run.
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) ended: Ended,
    /// Lines of the kernel's messages that fail the run.
    pub(crate) complaints: Vec<String>,
    pub(crate) took: Duration,
    /// Boots before the one that succeeded.
    pub(crate) failed_boots: u32,
    pub(crate) directory: PathBuf,
}

impl Report {
    /// The status to leave with.
    pub(crate) fn status(&self) -> u8 {
        match self.ended {
            Ended::Exited(0) if !self.complaints.is_empty() => 126,
            Ended::Exited(status) => status,
            Ended::TimedOut => 124,
            Ended::Died => 125,
        }
    }

    /// Prints the ends of the console and of the kernel's messages, and where all of it is.
    pub(crate) fn show_logs(&self) {
        for (file, lines) in [("console.log", 30), ("dmesg.txt", 40), ("qemu.log", 10)] {
            let path = self.directory.join(file);
            if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0) {
                eprintln!("--- {file}, last lines\n{}", process::tail(&path, lines));
            }
        }
        eprintln!("--- all of it: {}", self.directory.display());
    }
}

/// Boots a guest, runs `command` (a line for bash) in it and waits for its end.
pub(crate) fn run(options: &Options, command: &str) -> Result<Report> {
    let kernel = kernel::provide()?;
    let directory = new_run(options.device.map_or("plain", Device::name))?;
    for attempt in 1.. {
        let mut guest = Guest::start(&kernel, options, SINGLE, &directory, command, None)?;
        if guest.wait_ready() {
            let report = guest.finish()?;
            return Ok(Report {
                failed_boots: attempt - 1,
                ..report
            });
        }
        guest.kill();
        let kept = directory.join(format!("console-boot-{attempt}.log"));
        let _ = fs::rename(directory.join("console.log"), &kept);
        eprintln!(
            "guest: boot {attempt} of {BOOT_ATTEMPTS} failed; its console: {}",
            kept.display()
        );
        if attempt == BOOT_ATTEMPTS {
            break;
        }
    }
    Err(Error::new(format!(
        "the guest did not boot in {BOOT_ATTEMPTS} attempts; its console is in {}:\n{}",
        directory.display(),
        process::tail(
            &directory.join(format!("console-boot-{BOOT_ATTEMPTS}.log")),
            20
        )
    )))
}

/// A running guest. Dropping it kills it.
pub(crate) struct Guest {
    name: String,
    qemu: Child,
    output: Option<Tee>,
    directory: PathBuf,
    started: Instant,
    deadline: Instant,
}

impl Guest {
    /// Starts a guest named `name` whose files are in `directory`.
    pub(crate) fn start(
        kernel: &Kernel,
        options: &Options,
        name: &str,
        directory: &Path,
        command: &str,
        link: Option<Link>,
    ) -> Result<Self> {
        fs::create_dir_all(directory).context(directory.display())?;
        for file in ["ready", "status", "dmesg.txt"] {
            let _ = fs::remove_file(directory.join(file));
        }
        let write = |file: &str, text: &str| {
            let path = directory.join(file);
            fs::write(&path, text).context(path.display())
        };
        write("command.sh", &format!("{command}\n"))?;
        write("environment", &environment(options, name, link.is_some()))?;
        let create = |file: &str| {
            let path = directory.join(file);
            fs::File::create(&path).context(path.display())
        };
        let machine = Machine {
            kernel,
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            out: directory,
            link,
        };
        let mut qemu = machine::command(&machine)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(create("qemu.log")?)
            .spawn()
            .context("cannot start QEMU")?;
        let log = create("output.log")?;
        let output = qemu
            .stdout
            .take()
            .map(|pipe| process::tee(pipe, log, options.echo));
        let started = Instant::now();
        Ok(Self {
            name: name.to_owned(),
            qemu,
            output,
            directory: directory.to_owned(),
            started,
            deadline: started + options.timeout,
        })
    }

    /// QEMU's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Waits until the guest has booted; false if it did not.
    pub(crate) fn wait_ready(&mut self) -> bool {
        let limit = self.started + BOOT_LIMIT;
        while !self.directory.join("ready").exists() {
            let exited = !matches!(self.qemu.try_wait(), Ok(None));
            if exited || Instant::now() >= limit {
                // It may have become ready and ended between the two looks.
                return self.directory.join("ready").exists();
            }
            thread::sleep(TICK);
        }
        true
    }

    /// Waits for the guest's end.
    pub(crate) fn finish(mut self) -> Result<Report> {
        let end = process::wait_until(&mut self.qemu, self.deadline)?;
        if let Some(output) = self.output.take() {
            output.finish();
        }
        let status = fs::read_to_string(self.directory.join("status")).unwrap_or_default();
        let ended = match (status.trim().parse(), end) {
            (Ok(status), _) => Ended::Exited(status),
            (Err(_), process::End::TimedOut) => Ended::TimedOut,
            (Err(_), process::End::Exited(_)) => Ended::Died,
        };
        let read = |file: &str| {
            let bytes = fs::read(self.directory.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Ok(Report {
            name: self.name.clone(),
            ended,
            complaints: complaints(&(read("console.log") + "\n" + &read("dmesg.txt"))),
            took: self.started.elapsed(),
            failed_boots: 0,
            directory: self.directory.clone(),
        })
    }

    /// Kills it, as pulling its plug would.
    pub(crate) fn kill(&mut self) {
        process::kill_tree(&mut self.qemu);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(None) = self.qemu.try_wait() {
            self.kill();
        }
    }
}

/// A new directory for a run below `target/guest`, and room made for it.
pub(crate) fn new_run(kind: &str) -> Result<PathBuf> {
    let base = paths::target().join("guest");
    fs::create_dir_all(&base).context(base.display())?;
    prune(&base);
    let seconds = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |elapsed| elapsed.as_secs());
    let mut number = 0;
    loop {
        let directory = base.join(format!(
            "run-{seconds}-{}-{number}-{kind}",
            std::process::id()
        ));
        match fs::create_dir(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error).context(directory.display()),
        }
    }
}

/// Removes all but the newest runs. Names begin with the time, so their order is that of age.
fn prune(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    let mut runs: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("run-"))
        .map(|entry| entry.path())
        .collect();
    runs.sort();
    for run in &runs[..runs.len().saturating_sub(KEPT_RUNS - 1)] {
        let _ = fs::remove_dir_all(run);
    }
}

/// The variables of a guest, as lines of shell.
fn environment(options: &Options, name: &str, pair: bool) -> String {
    let mut text = String::new();
    for (name, value) in variables(options, name, pair) {
        text += &format!("export {name}={}\n", quote(&value));
    }
    text
}

fn variables(options: &Options, name: &str, pair: bool) -> Vec<(String, String)> {
    let target = paths::target();
    let workdir = options.workdir.clone().unwrap_or_else(paths::root);
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut variables = vec![
        ("SMBDIRECT_GUEST", "1".to_owned()),
        ("GUEST", name.to_owned()),
        ("REPO", path(&paths::root())),
        ("TARGET", path(&target)),
        ("BIN", path(&target.join("guest/bin"))),
        ("WORKDIR", path(&workdir)),
        ("OUT", "/out".to_owned()),
        ("SHARED", if pair { "/shared" } else { "" }.to_owned()),
        ("NETWORK", network(options, pair).to_owned()),
        ("DEVICE", options.device.map_or("", Device::name).to_owned()),
    ];
    // In a pair, B sees itself as the local end.
    let (local, remote) = if pair && name == "b" { (2, 1) } else { (1, 2) };
    for (prefix, end) in [("LOCAL", local), ("REMOTE", remote)] {
        let number = if pair { 0 } else { end - 1 };
        let device = options
            .device
            .map_or(String::new(), |d| format!("{}{number}", d.name()));
        let link = if pair {
            "eth0".to_owned()
        } else {
            format!("v{number}")
        };
        let (address, address6, device_name, link_name) = match prefix {
            "LOCAL" => ("LOCAL", "LOCAL6", "LOCAL_DEVICE", "LOCAL_LINK"),
            _ => ("REMOTE", "REMOTE6", "REMOTE_DEVICE", "REMOTE_LINK"),
        };
        variables.push((address, format!("10.0.1.{end}")));
        variables.push((address6, format!("fd00:1::{end}")));
        variables.push((device_name, device));
        variables.push((link_name, link));
    }
    if let Some(device) = options.device {
        variables.push(("PORT", device.port().to_string()));
    }
    let inherited = ["RUST_LOG", "RUST_BACKTRACE"];
    let inherited = inherited
        .iter()
        .filter_map(|&name| Some((name, std::env::var(name).ok()?)));
    variables
        .into_iter()
        .chain(inherited)
        .map(|(name, value)| (name.to_owned(), value))
        .chain(options.environment.iter().cloned())
        .collect()
}

/// The script that sets up the guest's network.
fn network(options: &Options, pair: bool) -> &'static str {
    match (pair, options.device) {
        (true, _) => "pair",
        (false, Some(_)) => "wire",
        (false, None) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(variables: &[(String, String)], name: &str) -> Option<String> {
        variables
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.clone())
    }

    #[test]
    fn both_ends_of_the_wire_are_named() {
        let options = Options {
            device: Some(Device::Siw),
            ..Options::default()
        };
        let single = variables(&options, "guest", false);
        assert_eq!(value(&single, "REMOTE").as_deref(), Some("10.0.1.2"));
        assert_eq!(value(&single, "REMOTE_DEVICE").as_deref(), Some("siw1"));
        assert_eq!(value(&single, "LOCAL_LINK").as_deref(), Some("v0"));
        assert_eq!(value(&single, "PORT").as_deref(), Some("5445"));
        let b = variables(&options, "b", true);
        assert_eq!(value(&b, "LOCAL").as_deref(), Some("10.0.1.2"));
        assert_eq!(value(&b, "REMOTE6").as_deref(), Some("fd00:1::1"));
        assert_eq!(value(&b, "LOCAL_DEVICE").as_deref(), Some("siw0"));
    }

    #[test]
    fn the_status_tells_how_it_ended() {
        let report = |ended, complaints: &[&str]| Report {
            name: String::new(),
            ended,
            complaints: complaints.iter().map(|&line| line.to_owned()).collect(),
            took: Duration::ZERO,
            failed_boots: 0,
            directory: PathBuf::new(),
        };
        assert_eq!(report(Ended::Exited(42), &[]).status(), 42);
        assert_eq!(report(Ended::Exited(0), &["Oops"]).status(), 126);
        assert_eq!(report(Ended::TimedOut, &[]).status(), 124);
        assert_eq!(report(Ended::Died, &["Kernel panic"]).status(), 125);
    }
}
