//! The stages, in the order in which they run. A new check is one more entry here; a test inside
//! the guest is one more script (see [`super::scripts`]) and needs nothing here.

use std::process::Command;
use std::time::Duration;

use super::stage::{Job, Machine, Need, Stage, Verdict};
use super::{pairs, scripts};
use crate::apt::{self, Group};
use crate::error::{Context, Error, Result};
use crate::{examples, paths};

/// All stages that this checkout has.
pub(super) fn stages() -> Result<Vec<Stage>> {
    let mut stages = vec![
        Stage::new("packages", "packages", minutes(15), packages).always(),
        Stage::new("format", "rust", minutes(2), |_, job| {
            cargo(job, &[&["fmt", "--all", "--check"]])
        }),
        Stage::new("clippy", "rust", minutes(15), clippy),
        Stage::new("documentation", "rust", minutes(10), documentation),
        Stage::new("tests", "rust", minutes(25), tests).visible(),
        Stage::new("examples", "rust", minutes(15), |_, job| {
            passed(build_examples(job))
        }),
        Stage::new("smb client", "rust", minutes(20), smb_client).needs([Need::Verbs]),
        Stage::new("linked libraries", "rust", minutes(3), linked_libraries)
            .needs([Need::Program("readelf")]),
        Stage::new("doctor", "rust", minutes(2), doctor),
        Stage::new("demo", "rust", minutes(15), demo).visible(),
        Stage::new("measuring", "rust", minutes(3), measuring),
        Stage::new("captures", "interop", minutes(3), captures)
            .needs([Need::Packages(Group::Interop)]),
        Stage::new("loom", "rust", minutes(15), loom),
        Stage::new("address sanitizer", "nightly", minutes(20), sanitizer).needs([Need::Nightly]),
    ];
    stages.extend(fuzz());
    stages.extend(deny());
    stages.extend(before_guests());
    stages.extend(scripts::stages()?);
    stages.extend(pairs::stages()?);
    Ok(stages)
}

/// What guests cannot do without, and may take longer than what runs in them.
pub(super) fn before_guests() -> [Stage; 2] {
    let kernel = Stage::new("guest kernel", "guest", minutes(55), |machine, _| {
        machine.kernel().map(|_| Verdict::Passed)
    });
    let programs = Stage::new("guest programs", "guest", minutes(25), |machine, job| {
        passed(machine.binaries(|| scripts::provide_binaries(machine, job)))
    });
    [
        kernel.needs([Need::Packages(Group::Guest)]),
        programs.needs([Need::Verbs]),
    ]
}

/// Installs what is missing, and starts the build of the guest's kernel, which takes longest.
fn packages(machine: &Machine, job: &Job) -> Result<Verdict> {
    let missing = apt::missing(&Group::ALL);
    if !missing.is_empty() && apt::may_install() {
        println!("\n{}", apt::install_line(&missing));
        for mut command in apt::install_commands(&missing) {
            job.run(&mut command)?;
        }
    }
    machine.start_kernel();
    Ok(Verdict::Passed)
}

fn clippy(machine: &Machine, job: &Job) -> Result<Verdict> {
    for features in [&[][..], machine.all_features(), &["--no-default-features"]] {
        let mut command = job.cargo(["clippy", "--workspace", "--all-targets"]);
        job.run(command.args(features).args(["--", "-D", "warnings"]))?;
    }
    Ok(Verdict::Passed)
}

fn documentation(machine: &Machine, job: &Job) -> Result<Verdict> {
    let mut command = job.cargo(["doc", "--no-deps", "-p", "smbdirect"]);
    passed(
        job.run(
            command
                .args(machine.all_features())
                .env("RUSTDOCFLAGS", "-D warnings"),
        ),
    )
}

/// Unit tests, the simulated worlds, loopback tests and the documentation's examples; each bench
/// once, without measuring.
fn tests(machine: &Machine, job: &Job) -> Result<Verdict> {
    for words in [
        &["test", "--workspace"][..],
        &["test", "-p", "smbdirect", "--benches"],
    ] {
        let mut command = job.cargo(words);
        job.run(command.args(machine.all_features()))?;
    }
    Ok(Verdict::Passed)
}

/// Builds the examples as `demo` and the guest use them.
pub(super) fn build_examples(job: &Job) -> Result<()> {
    job.run(&mut job.cargo(examples::build_words()))
}

/// The package in `interop/`, which is not part of the workspace.
fn smb_client(_: &Machine, job: &Job) -> Result<Verdict> {
    let manifest = examples::smb_client_manifest();
    let mut format = job.cargo(["fmt", "--check", "--manifest-path"]);
    job.run(format.arg(manifest))?;
    let place = examples::smb_client_place();
    let mut clippy = job.cargo(["clippy", "--all-targets"]);
    job.run(clippy.args(&place).args(["--", "-D", "warnings"]))?;
    // With optimisation, as it is built for the guest: its dependencies are then compiled once.
    let mut test = job.cargo(["test", "--release"]);
    job.run(test.args(&place))?;
    passed(build_smb_client(job))
}

/// Builds the SMB client as the guest uses it.
pub(super) fn build_smb_client(job: &Job) -> Result<()> {
    job.run(&mut job.cargo(examples::smb_client_words()))
}

/// The examples start on machines without RDMA libraries: nothing asks the loader for them.
fn linked_libraries(_: &Machine, job: &Job) -> Result<Verdict> {
    for (name, program) in examples::built() {
        let dynamic = job.read(Command::new("readelf").arg("-d").arg(&program))?;
        if let Some(line) = rdma_library(&dynamic) {
            return Err(Error::new(format!(
                "{name} needs an RDMA library to start: {line}"
            )));
        }
        job.run(Command::new(&program).arg("--help"))?;
    }
    Ok(Verdict::Passed)
}

fn rdma_library(dynamic: &str) -> Option<&str> {
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    needed
        .map(str::trim)
        .find(|line| line.contains("libibverbs") || line.contains("librdmacm"))
}

/// What a user learns first: the doctor has nothing against a machine without RDMA, and says that it is one.
fn doctor(_: &Machine, job: &Job) -> Result<Verdict> {
    let program = examples::program("doctor");
    let said = job.read(&mut Command::new(&program))?;
    // With devices it depends on whether one is up.
    let conclusion = match has_devices() {
        true => "doctor: ",
        false => "doctor: no RDMA device on this machine",
    };
    if !said.contains(conclusion) {
        return Err(Error::new(format!("it does not say: {conclusion}")));
    }
    passed(job.run(Command::new(program).arg("--json")))
}

fn has_devices() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|devices| devices.count() > 0)
}

/// The program that compares SMB Direct with TCP runs; its numbers are for a machine that does nothing else.
fn measuring(_: &Machine, job: &Job) -> Result<Verdict> {
    let mut perf = Command::new(examples::program("perf"));
    passed(job.run(perf.args(["--provider", "iwarp", "--quick", "--rounds", "1"])))
}

fn demo(_: &Machine, job: &Job) -> Result<Verdict> {
    let xtask = std::env::current_exe().context("cannot find this program")?;
    passed(job.run(Command::new(xtask).arg("demo").current_dir(paths::root())))
}

/// What the replay tests compare with is still what tshark sees.
fn captures(_: &Machine, job: &Job) -> Result<Verdict> {
    let script = paths::root().join("tests/data/smb2-messages.sh");
    passed(job.run(Command::new("bash").arg(script).arg("--check")))
}

/// The modules that own memory, under AddressSanitizer.
fn sanitizer(_: &Machine, job: &Job) -> Result<Verdict> {
    let target = "x86_64-unknown-linux-gnu";
    let directory = paths::target().join("asan");
    let mut command = job.cargo(["+nightly", "test", "-p", "smbdirect", "--lib"]);
    // A directory of its own: other flags must not throw away what the other stages have built.
    command
        .args(["--features", "testing", "--target", target, "--target-dir"])
        .arg(directory);
    passed(
        job.run(
            command
                .args(["--", "rdma::"])
                .env("RUSTFLAGS", "-Zsanitizer=address"),
        ),
    )
}

/// What threads share without a lock, in every interleaving.
fn loom(_: &Machine, job: &Job) -> Result<Verdict> {
    let mut command = job.cargo(["test", "-p", "smbdirect", "--lib", "--target-dir"]);
    // A directory of its own, as for the sanitizer.
    command.arg(paths::target().join("loom")).arg("loom_tests");
    passed(job.run(command.env("RUSTFLAGS", "--cfg loom")))
}

/// Every fuzz target for some seconds. There is no such stage before there are targets.
fn fuzz() -> Option<Stage> {
    let directory = paths::root().join("fuzz");
    let run = move |machine: &Machine, job: &Job| {
        if let Some(missing) = install_tool(machine, job, "cargo-fuzz")? {
            return Ok(Verdict::NotRun(missing));
        }
        let list = job.read(&mut job.cargo(["+nightly", "fuzz", "list"]))?;
        for target in list.split_whitespace() {
            // What is found new goes to the first directory; the second has the committed seeds.
            let directories = ["corpus", "seeds"].map(|name| format!("fuzz/{name}/{target}"));
            std::fs::create_dir_all(paths::root().join(&directories[0]))
                .context("cannot make a directory for the corpus")?;
            // cargo-fuzz would start libFuzzer without end.
            let words = [
                "+nightly",
                "fuzz",
                "run",
                target,
                &directories[0],
                &directories[1],
                "--",
                "-max_total_time=10",
                "-timeout=10",
            ];
            job.run(&mut job.cargo(words))?;
        }
        Ok(Verdict::Passed)
    };
    let stage = Stage::new("fuzz smoke", "fuzz", minutes(20), run).needs([Need::Nightly]);
    directory.join("Cargo.toml").is_file().then_some(stage)
}

/// Licences, bans and sources of all dependencies.
fn deny() -> Option<Stage> {
    let run = |machine: &Machine, job: &Job| {
        if let Some(missing) = install_tool(machine, job, "cargo-deny")? {
            return Ok(Verdict::NotRun(missing));
        }
        let checks = ["check", "bans", "licenses", "sources"];
        job.run(job.cargo(["deny", "--all-features"]).args(checks))?;
        let mut client = job.cargo(["deny", "--manifest-path"]);
        client.arg(examples::smb_client_manifest());
        passed(job.run(client.args(checks)))
    };
    let stage = Stage::new("deny", "deny", minutes(25), run);
    paths::root().join("deny.toml").is_file().then_some(stage)
}

/// Installs a tool of cargo's in a run in which everything has to run; else tells how to. Without
/// optimisation, which would take longer than what the tool is needed for.
fn install_tool(machine: &Machine, job: &Job, name: &'static str) -> Result<Option<String>> {
    if Need::Program(name).missing().is_none() {
        return Ok(None);
    }
    if !machine.strict {
        return Ok(Some(format!("no {name} (cargo install --locked {name})")));
    }
    job.run(&mut job.cargo(["install", "--locked", "--debug", name]))
        .map(|()| None)
}

fn cargo(job: &Job, commands: &[&[&str]]) -> Result<Verdict> {
    commands
        .iter()
        .try_for_each(|words| job.run(&mut job.cargo(*words)))?;
    Ok(Verdict::Passed)
}

fn passed(result: Result<()>) -> Result<Verdict> {
    result.map(|()| Verdict::Passed)
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rdma_library_is_found_among_the_needed() {
        let dynamic = " 0x01 (NEEDED)  Shared library: [libc.so.6]\n 0x1d (RUNPATH) libibverbs\n";
        assert_eq!(rdma_library(dynamic), None);
        let dynamic = format!("{dynamic} 0x01 (NEEDED)  Shared library: [librdmacm.so.1]\n");
        assert!(rdma_library(&dynamic).is_some());
    }

    #[test]
    fn stage_names_are_unique_and_end_in_time() {
        let stages = stages().unwrap();
        for (index, stage) in stages.iter().enumerate() {
            assert!(
                stages[..index].iter().all(|other| other.name != stage.name),
                "{}",
                stage.name
            );
            assert!(stage.limit < Duration::from_secs(3600 * 2));
        }
    }
}
