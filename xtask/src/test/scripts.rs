//! Tests inside the guest: `xtask/guest/tests/*.sh`.
//!
//! A script is run by bash, with the environment that `cargo xtask guest --help` lists, once per
//! device named in its header, several scripts per boot. It passes with status 0. Its header is
//! made of comments at its beginning:
//!
//! ```text
//! # devices: rxe siw      (required; `none`: without a device)
//! # timeout: 300          (seconds, default 120)
//! # stage: interop        (default: guest)
//! # uses: samba           ($SAMBA is where Samba is unpacked, see `cargo xtask samba --help`)
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::stage::{Job, Machine, Need, Stage, Verdict};
use super::table;
use crate::apt::Group;
use crate::error::{Context, Error, Result};
use crate::guest::session::{self, Device, Ended, Options, Report};
use crate::process::shell_line;
use crate::{examples, paths, samba};

/// Booting, also thrice, and programs that may have to be built first.
const OVERHEAD: Duration = Duration::from_secs(600);

/// The header of a test script.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Script {
    path: PathBuf,
    devices: Vec<Option<Device>>,
    timeout: Duration,
    stage: &'static str,
    samba: bool,
}

/// One stage per kind of test and device that has scripts.
pub(super) fn stages() -> Result<Vec<Stage>> {
    let scripts = scripts(&paths::guest_file("tests"))?;
    let mut stages = Vec::new();
    for group in ["guest", "interop"] {
        for device in [None, Some(Device::Rxe), Some(Device::Siw)] {
            let chosen =
                |script: &&Script| script.stage == group && script.devices.contains(&device);
            let chosen: Vec<Script> = scripts.iter().filter(chosen).cloned().collect();
            if !chosen.is_empty() {
                stages.push(stage(group, device, chosen));
            }
        }
    }
    Ok(stages)
}

fn stage(group: &'static str, device: Option<Device>, scripts: Vec<Script>) -> Stage {
    let name = device.map_or(group.to_owned(), |device| {
        format!("{group} {}", device.name())
    });
    let limit = OVERHEAD + scripts.iter().map(|script| script.timeout).sum();
    let needs = [
        Need::Verbs,
        Need::Packages(Group::Guest),
        Need::Packages(Group::Interop),
    ];
    let count = if group == "guest" { 2 } else { 3 };
    Stage::new(&name, group, limit, move |machine, job| {
        run(machine, job, device, &scripts)
    })
    .needs(needs.into_iter().take(count))
    .visible()
}

fn run(
    machine: &Machine,
    job: &Job,
    device: Option<Device>,
    scripts: &[Script],
) -> Result<Verdict> {
    machine.kernel()?;
    machine.binaries(|| provide_binaries(machine, job))?;
    let mut words = vec!["bash".to_owned(), utf8(&paths::guest_file("run-tests.sh"))?];
    for script in scripts {
        words.push(script.timeout.as_secs().to_string());
        words.push(utf8(&script.path)?);
    }
    let mut options = Options {
        device,
        timeout: job.left(),
        ..Options::default()
    };
    if scripts.iter().any(|script| script.samba) {
        let directory = utf8(&samba::provide()?)?;
        options.environment.push(("SAMBA".to_owned(), directory));
    }
    let report = session::run(&options, &shell_line(&words))?;
    judge(&report, scripts.len())
}

/// Counts the results; a script without one did not come to its turn. The kernel's messages are one
/// test more.
fn judge(report: &Report, scripts: usize) -> Result<Verdict> {
    if report.failed_boots > 0 {
        println!("boots that had to be repeated: {}", report.failed_boots);
    }
    let path = report.directory.join("results");
    let results = fs::read_to_string(&path).unwrap_or_default();
    let passed = passed(&results);
    let mut failed = scripts - passed.min(scripts);
    let ended = matches!(report.ended, Ended::Exited(_));
    if !report.complaints.is_empty() {
        println!(
            "the guest's kernel complained:\n  {}",
            report.complaints.join("\n  ")
        );
        failed += 1;
    }
    if failed > 0 || !ended {
        report.show_logs();
    }
    match ended {
        true => Ok(Verdict::Counted { passed, failed }),
        false => Err(Error::new(format!(
            "the guest did not come to its end: {:?}",
            report.ended
        ))),
    }
}

fn passed(results: &str) -> usize {
    results
        .lines()
        .filter(|line| line.split_whitespace().nth(1) == Some("0"))
        .count()
}

/// Builds the examples and all test programs, and links them into `$BIN` by their plain names.
pub(super) fn provide_binaries(machine: &Machine, job: &Job) -> Result<()> {
    let bin = paths::target().join("guest/bin");
    let _ = fs::remove_dir_all(&bin);
    fs::create_dir_all(&bin).context(bin.display())?;
    table::build_examples(job)?;
    for (name, program) in examples::built() {
        link(&program, &bin.join(name))?;
    }
    let mut command = job.cargo(["test", "--no-run", "-p", "smbdirect", "--lib", "--tests"]);
    let text = job.read(command.args(machine.all_features()))?;
    for (name, program) in test_programs(&text) {
        link(&paths::root().join(program), &bin.join(name))?;
    }
    Ok(())
}

fn link(program: &Path, name: &Path) -> Result<()> {
    symlink(program, name).context(name.display())
}

/// The test programs out of cargo's lines `Executable unittests src/lib.rs
/// (target/debug/deps/smbdirect-0123)`, each with its plain name: `unit-tests`, or that of its file
/// below `tests/`.
fn test_programs(text: &str) -> Vec<(String, String)> {
    let programs = text.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("Executable ")?;
        let (source, program) = rest.strip_suffix(')')?.rsplit_once(" (")?;
        let source = Path::new(source.rsplit(' ').next()?);
        let name = match source.file_stem()?.to_str()? {
            "lib" => "unit-tests",
            "main" => source.parent()?.file_name()?.to_str()?,
            stem => stem,
        };
        Some((name.to_owned(), program.to_owned()))
    });
    programs.collect()
}

fn scripts(directory: &Path) -> Result<Vec<Script>> {
    let entries = fs::read_dir(directory).context(directory.display())?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sh"));
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).context(path.display())?;
            parse(path, &text)
        })
        .collect()
}

fn parse(path: PathBuf, text: &str) -> Result<Script> {
    let bad = |what: &str| Error::new(format!("{}: {what}", path.display()));
    let mut script = Script {
        path: path.clone(),
        devices: Vec::new(),
        timeout: Duration::from_secs(120),
        stage: "guest",
        samba: false,
    };
    for line in text.lines().map_while(|line| line.strip_prefix('#')) {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match (key.trim(), value.trim()) {
            ("devices", names) => {
                for name in names.split_whitespace() {
                    script.devices.push(match name {
                        "none" => None,
                        name => Some(
                            name.parse()
                                .map_err(|()| bad("devices are rxe, siw, none"))?,
                        ),
                    });
                }
            }
            ("timeout", seconds) => {
                let seconds = seconds
                    .parse()
                    .map_err(|_| bad("timeout is a number of seconds"))?;
                script.timeout = Duration::from_secs(seconds);
            }
            ("stage", "guest") => script.stage = "guest",
            ("stage", "interop") => script.stage = "interop",
            ("uses", "samba") => script.samba = true,
            ("uses", _) => return Err(bad("only samba can be used")),
            ("stage", _) => return Err(bad("stages are guest and interop")),
            _ => {}
        }
    }
    match script.devices.is_empty() {
        true => Err(bad("its header names no devices (`# devices: rxe siw`)")),
        false => Ok(script),
    }
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::new(format!("{}: a path in UTF-8 is needed", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_understood() {
        let text = "#!/bin/bash\n# devices: rxe none\n# Says: nothing\n# timeout: 30\n\
            # stage: interop\n\n# devices: siw\n";
        let script = parse(PathBuf::from("a.sh"), text).unwrap();
        assert_eq!(script.devices, [Some(Device::Rxe), None]);
        assert_eq!(script.timeout, Duration::from_secs(30));
        assert_eq!(script.stage, "interop");
        for bad in [
            "",
            "# devices: mlx5",
            "# devices: rxe\n# timeout: long",
            "# devices: rxe\n# stage: x",
        ] {
            assert!(parse(PathBuf::from("a.sh"), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_repository_s_scripts_are_sound() {
        scripts(&paths::guest_file("tests")).unwrap();
    }

    #[test]
    fn test_programs_have_plain_names() {
        let text = "   Compiling x\n\
            \x20 Executable unittests src/lib.rs (target/debug/deps/smbdirect-0a)\n\
            \x20 Executable tests/loopback.rs (/t/deps/loopback-1b)\n\
            \x20 Executable tests/world/main.rs (target/debug/deps/world-2c)\n";
        let names: Vec<String> = test_programs(text)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["unit-tests", "loopback", "world"]);
        assert_eq!(test_programs(text)[1].1, "/t/deps/loopback-1b");
    }

    #[test]
    fn results_are_counted() {
        assert_eq!(passed("a 0 3\nb 124 120\nc 0 1\n"), 2);
    }
}
