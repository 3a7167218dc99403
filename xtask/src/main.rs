//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask guest`.
//!
//! Needs nothing but Rust: what a command needs besides (QEMU, a C compiler, ...) is looked for
//! when it runs, and its absence is said with the remedy.

mod apt;
mod cli;
mod demo;
mod error;
mod examples;
mod guest;
mod kernel;
mod paths;
mod process;
mod samba;
mod test;

use std::process::ExitCode;

use cli::{Arguments, Outcome};
use error::Error;

/// A command of `cargo xtask`.
struct Command {
    name: &'static str,
    summary: &'static str,
    help: &'static str,
    run: fn(Arguments) -> error::Result<Outcome>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "demo",
        summary: "echo over SMB Direct between two processes on this machine",
        help: demo::HELP,
        run: demo::run,
    },
    Command {
        name: "test",
        summary: "run every check of the project, stage by stage",
        help: test::HELP,
        run: test::run,
    },
    Command {
        name: "interop",
        summary: "run against other implementations at length, and print a table",
        help: test::interop::HELP,
        run: test::interop::run,
    },
    Command {
        name: "guest",
        summary: "run a command in a QEMU guest with RDMA devices",
        help: guest::HELP,
        run: guest::run,
    },
    Command {
        name: "kernel",
        summary: "build the guest's kernel now, if it is not in the cache",
        help: kernel::HELP,
        run: kernel::run,
    },
    Command {
        name: "samba",
        summary: "unpack Debian's Samba for the guest, if it is not in the cache",
        help: samba::HELP,
        run: samba::run,
    },
    Command {
        name: "monitor",
        summary: "send a command to the monitor of a running guest of a pair",
        help: guest::monitor::HELP,
        run: guest::monitor::run,
    },
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return usage(&name);
    };
    let arguments = Arguments::new(words);
    if arguments.wants_help() {
        println!("{}", command.help.trim());
        return ExitCode::SUCCESS;
    }
    match (command.run)(arguments) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("cargo xtask {name}: {error}");
            ExitCode::from(error.status())
        }
    }
}

fn usage(name: &str) -> ExitCode {
    println!("Usage: cargo xtask COMMAND [OPTIONS]      (cargo xtask COMMAND --help tells more)\n");
    for command in COMMANDS {
        println!("  {:9} {}", command.name, command.summary);
    }
    if name.is_empty() || ["help", "--help", "-h"].contains(&name) {
        return ExitCode::SUCCESS;
    }
    let error = Error::usage(format!("there is no command '{name}'"));
    eprintln!("\ncargo xtask: {error}");
    ExitCode::from(error.status())
}
