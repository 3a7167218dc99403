//! Tests inside the guest: `xtask/guest/tests/*.sh`.
//!
//! A script is run by bash, with the environment that `cargo xtask guest --help` lists, once per
//! device named in its header, several scripts per boot. It passes with status 0. Its header is
//! made of comments at its beginning:
//!
//! ```text
//! # devices: rxe siw      (required; `none`: without a device)
//! # timeout: 300          (seconds, default 120)
//! # long: 900             (the same for the long form, in which $LONG is set; default: as timeout)
//! # form: long            (left out in the short form)
//! # stage: interop        (default: guest)
//! # uses: samba           ($SAMBA is where Samba is unpacked, see `cargo xtask samba --help`)
//! ```
//!
//! What a script appends to `$OUT/rows` is kept for the table of `cargo xtask interop`.

use std::borrow::Cow;
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
pub(super) const OVERHEAD: Duration = Duration::from_secs(600);

/// The header of a test script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Script {
    pub(super) path: PathBuf,
    pub(super) devices: Vec<Option<Device>>,
    pub(super) timeout: Duration,
    long: Option<Duration>,
    only_long: bool,
    stage: &'static str,
    samba: bool,
}

/// How much scripts do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Short,
    /// With $LONG set.
    Long,
}

impl Script {
    /// Without `.sh`, as in the results.
    pub(super) fn name(&self) -> Cow<'_, str> {
        self.path.file_stem().unwrap_or_default().to_string_lossy()
    }

    fn limit(&self, form: Form) -> Duration {
        match form {
            Form::Short => self.timeout,
            Form::Long => self.long.unwrap_or(self.timeout),
        }
    }
}

/// One stage per kind of test and device that has scripts.
pub(super) fn stages() -> Result<Vec<Stage>> {
    let mut scripts = scripts(&paths::guest_file("tests"))?;
    scripts.retain(|script| !script.only_long);
    Ok(stages_of(&scripts, &["guest", "interop"], Form::Short))
}

/// The long form of the scripts about other implementations; only the named ones, if any are.
pub(super) fn long_stages(names: &[String]) -> Result<Vec<Stage>> {
    let mut all = scripts(&paths::guest_file("tests"))?;
    all.retain(|script| script.stage == "interop");
    for wanted in names {
        if !all.iter().any(|script| script.name() == wanted.as_str()) {
            return Err(Error::usage(format!("there is no script '{wanted}'")));
        }
    }
    let wanted = |script: &Script| names.iter().any(|name| script.name() == name.as_str());
    all.retain(|script| names.is_empty() || wanted(script));
    Ok(stages_of(&all, &["interop"], Form::Long))
}

/// The file that collects the scripts' rows.
pub(super) fn rows() -> PathBuf {
    paths::target().join("xtask/rows")
}

fn stages_of(scripts: &[Script], groups: &[&'static str], form: Form) -> Vec<Stage> {
    let mut stages = Vec::new();
    for &group in groups {
        for device in [None, Some(Device::Rxe), Some(Device::Siw)] {
            let chosen =
                |script: &&Script| script.stage == group && script.devices.contains(&device);
            let chosen: Vec<Script> = scripts.iter().filter(chosen).cloned().collect();
            if !chosen.is_empty() {
                stages.push(stage(group, device, chosen, form));
            }
        }
    }
    stages
}

fn stage(group: &'static str, device: Option<Device>, scripts: Vec<Script>, form: Form) -> Stage {
    let name = device.map_or(group.to_owned(), |device| {
        format!("{group} {}", device.name())
    });
    let time: Duration = scripts.iter().map(|script| script.limit(form)).sum();
    // What is done once more is a few of them.
    let limit = OVERHEAD + time + time / 2;
    let needs = [
        Need::Verbs,
        Need::Packages(Group::Guest),
        Need::Packages(Group::Interop),
    ];
    let count = if group == "guest" { 2 } else { 3 };
    Stage::new(&name, group, limit, move |machine, job| {
        run(machine, job, device, &scripts, form)
    })
    .needs(needs.into_iter().take(count))
    .visible()
}

/// What fails is done once more, in another guest, and told of if it passes then: soft-RoCE,
/// soft-iWARP and the kernel's own SMB have races that no test of ours can keep out.
fn run(
    machine: &Machine,
    job: &Job,
    device: Option<Device>,
    scripts: &[Script],
    form: Form,
) -> Result<Verdict> {
    machine.kernel()?;
    machine.binaries(|| provide_binaries(machine, job))?;
    let all: Vec<&Script> = scripts.iter().collect();
    let first = attempt(job, device, &all, form)?;
    if first.failed.is_empty() {
        return Ok(Verdict::Counted {
            passed: scripts.len(),
            failed: 0,
            ends: String::new(),
        });
    }
    println!(
        "\n--- once more, in another guest: {}",
        names(&first.failed)
    );
    let second = attempt(job, device, &first.failed, form)?;
    let passed = |script: &&&Script| !second.failed.contains(script);
    let passed: Vec<&Script> = first.failed.iter().filter(passed).copied().collect();
    let mut ends = first.ends + &second.ends;
    if !passed.is_empty() {
        ends += &format!("passed at the second attempt: {}\n", names(&passed));
    }
    Ok(Verdict::Counted {
        passed: scripts.len() - second.failed.len(),
        failed: second.failed.len(),
        ends,
    })
}

fn names(scripts: &[&Script]) -> String {
    let names: Vec<_> = scripts.iter().map(|script| script.name()).collect();
    names.join(", ")
}

/// What came of scripts.
#[derive(Default)]
struct Attempt<'a> {
    failed: Vec<&'a Script>,
    /// Those that did not come to their turn.
    left: Vec<&'a Script>,
    /// The last lines of those that failed, and what the kernel complained of.
    ends: String,
}

/// All scripts, in one guest or, after one that failed and may have spoilt its guest, in further ones.
fn attempt<'a>(
    job: &Job,
    device: Option<Device>,
    scripts: &[&'a Script],
    form: Form,
) -> Result<Attempt<'a>> {
    let mut all = Attempt {
        left: scripts.to_vec(),
        ..Attempt::default()
    };
    while !all.left.is_empty() {
        let one = in_one_guest(job, device, &all.left, form)?;
        all.failed.extend(one.failed);
        all.ends += &one.ends;
        all.left = one.left;
        if !all.left.is_empty() {
            println!("\n--- the others, in another guest: {}", names(&all.left));
        }
    }
    Ok(all)
}

fn in_one_guest<'a>(
    job: &Job,
    device: Option<Device>,
    scripts: &[&'a Script],
    form: Form,
) -> Result<Attempt<'a>> {
    let mut words = vec!["bash".to_owned(), utf8(&paths::guest_file("run-tests.sh"))?];
    for script in scripts {
        words.push(script.limit(form).as_secs().to_string());
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
    if form == Form::Long {
        options
            .environment
            .push(("LONG".to_owned(), "1".to_owned()));
    }
    let report = session::run(&options, &shell_line(&words))?;
    keep_rows(&report)?;
    Ok(judge(&report, scripts))
}

fn keep_rows(report: &Report) -> Result<()> {
    // Most scripts have none.
    let Ok(text) = fs::read_to_string(report.directory.join("rows")) else {
        return Ok(());
    };
    let path = rows();
    let mut all = fs::read_to_string(&path).unwrap_or_default();
    all.push_str(&text);
    fs::write(&path, all).context(path.display())
}

/// The first script that fails is its guest's last. What the kernel complained of may be any script's
/// doing: if all have passed, none has.
fn judge<'a>(report: &Report, scripts: &[&'a Script]) -> Attempt<'a> {
    if report.failed_boots > 0 {
        println!("boots that had to be repeated: {}", report.failed_boots);
    }
    let results = fs::read_to_string(report.directory.join("results")).unwrap_or_default();
    let passed = passed(&results);
    let mut ends = fs::read_to_string(report.directory.join("failures")).unwrap_or_default();
    if !report.complaints.is_empty() {
        ends += &format!(
            "the guest's kernel complained:\n  {}\n",
            report.complaints.join("\n  ")
        );
    }
    if !matches!(report.ended, Ended::Exited(_)) {
        ends += &format!("the guest did not come to its end: {:?}\n", report.ended);
    }
    let mut left = scripts.to_vec();
    left.retain(|script| !passed.contains(&script.name().as_ref()));
    let failed = if !left.is_empty() {
        vec![left.remove(0)]
    } else if !ends.is_empty() {
        scripts.to_vec()
    } else {
        Vec::new()
    };
    if !failed.is_empty() {
        print!("{ends}");
        report.show_logs();
    }
    Attempt { failed, left, ends }
}

/// The names of those that passed.
fn passed(results: &str) -> Vec<&str> {
    let words = results.lines().map(str::split_whitespace);
    words
        .filter_map(|mut words| {
            let name = words.next()?;
            (words.next() == Some("0")).then_some(name)
        })
        .collect()
}

/// Builds the examples, the SMB client and all test programs, and links them into `$BIN` by their
/// plain names.
pub(super) fn provide_binaries(machine: &Machine, job: &Job) -> Result<()> {
    let bin = paths::target().join("guest/bin");
    let _ = fs::remove_dir_all(&bin);
    fs::create_dir_all(&bin).context(bin.display())?;
    table::build_examples(job)?;
    for (name, program) in examples::built() {
        link(&program, &bin.join(name))?;
    }
    table::build_smb_client(job)?;
    link(&examples::smb_client(), &bin.join("smb-client"))?;
    let mut command = job.cargo(["test", "--no-run", "-p", "smbdirect", "--lib", "--tests"]);
    let text = job.read(command.args(machine.all_features()))?;
    for (name, program) in test_programs(&text) {
        let mut place = bin.join(&name);
        if place.exists() {
            // An example is called by its name, and has tests of that name.
            place = bin.join(format!("{name}-tests"));
        }
        link(&paths::root().join(program), &place)?;
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

/// The scripts of a directory, in the order of their names.
pub(super) fn scripts(directory: &Path) -> Result<Vec<Script>> {
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
        long: None,
        only_long: false,
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
            ("long", seconds) => {
                let seconds = seconds
                    .parse()
                    .map_err(|_| bad("long is a number of seconds"))?;
                script.long = Some(Duration::from_secs(seconds));
            }
            ("form", "long") => script.only_long = true,
            ("form", _) => return Err(bad("the form is long, or not said")),
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

pub(super) fn utf8(path: &Path) -> Result<String> {
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
        assert_eq!(script.limit(Form::Short), script.limit(Form::Long));
        assert!(!script.only_long);
        let text = "# devices: siw\n# long: 900\n# form: long\n";
        let script = parse(PathBuf::from("a.sh"), text).unwrap();
        assert_eq!(script.limit(Form::Long), Duration::from_secs(900));
        assert!(script.only_long);
        for bad in [
            "",
            "# devices: mlx5",
            "# devices: rxe\n# timeout: long",
            "# devices: rxe\n# stage: x",
            "# devices: rxe\n# form: short",
        ] {
            assert!(parse(PathBuf::from("a.sh"), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_repository_s_scripts_are_sound() {
        stages().unwrap();
        long_stages(&[]).unwrap();
        let wrong = long_stages(&["nothing".to_owned()]).err().unwrap();
        assert_eq!(wrong.status(), 2);
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
        assert_eq!(passed("a 0 3\nb 124 120\nc 0 1\n"), ["a", "c"]);
    }
}
