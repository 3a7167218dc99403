//! `cargo xtask demo`: servers and clients of the examples, two processes each time, that talk SMB
//! Direct over loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{Arguments, Outcome, unknown};
use crate::error::{Context, Error, Result};
use crate::examples;
use crate::paths;
use crate::process::{self, End, shell_line};

pub(crate) const HELP: &str = "
Usage: cargo xtask demo

Builds the examples (with the feature `verbs` where cmake and libclang are there), starts servers
and clients as processes on this machine, and has them talk SMB Direct over the software iWARP on
loopback: no RDMA device, no root. Prints what was negotiated and measured, and whether both ends
counted the same. Status 0 if every byte came back right. Takes some minutes for the first
build, then less than a minute.";

/// More than a run takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// One act: a server and how the client uses it.
struct Act {
    title: &'static str,
    server: &'static [&'static str],
    client: &'static [&'static str],
}

const ACTS: &[Act] = &[
    Act {
        title: "one connection, one message at a time",
        server: &["echo_server", "--accept", "1"],
        client: &["echo_client", "--in-flight", "1"],
    },
    Act {
        title: "eight connections on two reactors, 64 messages in flight on each",
        server: &["echo_server", "--accept", "8", "--reactors", "2"],
        client: &[
            "echo_client",
            "--connections",
            "8",
            "--in-flight",
            "64",
            "--count",
            "100",
        ],
    },
    Act {
        title: "file content between the client's memory and the server, by RDMA",
        server: &["direct", "serve", "--once"],
        client: &["direct", "client"],
    },
];

pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    if let Some(word) = arguments.next() {
        return Err(unknown(&word));
    }
    build()?;
    let work = Work::new()?;
    for act in ACTS {
        println!("\n=== {}\n", act.title);
        perform(act, &work.0)?;
    }
    println!("\ndemo: all messages came back byte for byte, and both ends counted the same");
    Ok(Outcome::Success)
}

fn build() -> Result<()> {
    let words = examples::build_words();
    println!("cargo {}", shell_line(&words));
    let status = Command::new("cargo")
        .args(&words)
        .current_dir(paths::root())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(
            "the examples did not build; the reason is above",
        )),
    }
}

/// Runs server and client to their ends; both have to end well.
fn perform(act: &Act, work: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let port_file = work.join("port");
    let _ = fs::remove_file(&port_file);
    let place = ["--provider", "iwarp", "--address", "127.0.0.1"];
    let mut server = example(act.server, &port_file);
    server.args(place).args(["--port", "0"]);
    let log = work.join("server.log");
    let output = fs::File::create(&log).context(log.display())?;
    let errors = output.try_clone().context(log.display())?;
    let mut server = Process::start(server.stdout(output).stderr(errors), act.server[0])?;

    let mut client = example(act.client, &port_file);
    let client = Process::start(client.args(place), act.client[0])?.end(deadline);
    // A client that failed may have left the server waiting for it.
    let server = match &client {
        Ok(()) => server.end(deadline),
        Err(_) => server.end(Instant::now() + Duration::from_secs(2)),
    };
    println!("\nThe server's words:");
    for line in process::tail(&log, 40).lines() {
        println!("  {line}");
    }
    client.and(server)
}

/// An example's program and the words that go with it.
fn example(words: &[&str], port_file: &Path) -> Command {
    let mut command = Command::new(examples::program(words[0]));
    command
        .args(&words[1..])
        .arg("--port-file")
        .arg(port_file)
        .stdin(Stdio::null());
    command
}

/// A child that does not outlive this program's interest in it.
struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    fn start(command: &mut Command, name: &'static str) -> Result<Self> {
        let child = command.spawn().context(format!("cannot start {name}"))?;
        Ok(Self { name, child })
    }

    fn end(&mut self, deadline: Instant) -> Result<()> {
        match process::wait_until(&mut self.child, deadline)? {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(Error::new(format!("{} failed: {status}", self.name))),
            End::TimedOut => Err(Error::new(format!("{} did not end in time", self.name))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            process::kill_tree(&mut self.child);
        }
    }
}

/// A directory for the processes' files, removed in the end.
struct Work(PathBuf);

impl Work {
    fn new() -> Result<Self> {
        let path = paths::target().join(format!("xtask/demo-{}", std::process::id()));
        fs::create_dir_all(&path).context(path.display())?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
