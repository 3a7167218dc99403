//! `cargo xtask test`: every check of the project, stage by stage.
//!
//! - [`stage`]: what a stage is and what it may ask of the machine.
//! - [`table`]: the stages. Add yours there.
//! - [`scripts`]: tests inside the guest, found by their place in the tree; [`pairs`]: those of two guests.
//! - [`interop`]: `cargo xtask interop`, the long form of some of them.

pub(crate) mod interop;
mod pairs;
mod scripts;
mod stage;
mod table;

use std::env;
use std::io::Write;
use std::time::Instant;

use crate::cli::{Arguments, Outcome, unknown};
use crate::error::{Error, Result};
use crate::{apt, process};
use stage::{Job, Machine, Stage, Verdict};

pub(crate) const HELP: &str = "
Usage: cargo xtask test [--all] [--list] [STAGE...]

Runs every stage, or those named (a group's name stands for all of its stages; --list shows both).
As root on Debian it first installs the packages that are missing; else it runs what the machine has
the tools for, prints the line for apt, and ends with `passed; not run: ...`. With --all, or CI set
in the environment, a stage that cannot run is a failure. Each stage has a time limit; its output is
kept below target/xtask/.

Took 25 minutes on a new machine with two cores, the guest's kernel included.";

pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    let mut strict = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    let (mut list, mut names) = (false, Vec::new());
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--all" => strict = true,
            "--list" => list = true,
            _ if word.starts_with('-') => return Err(unknown(&word)),
            _ => names.push(word),
        }
    }
    let stages = select(table::stages()?, &names)?;
    if list {
        for stage in &stages {
            let minutes = stage.limit.as_secs().div_ceil(60);
            println!("{:10} {:24} at most {minutes} min", stage.group, stage.name);
        }
        return Ok(Outcome::Success);
    }
    let summary = run_all(&stages, &Machine::new(strict));
    Ok(summary.report(strict))
}

fn select(stages: Vec<Stage>, names: &[String]) -> Result<Vec<Stage>> {
    let known = |name: &String| stages.iter().any(|s| s.name == *name || s.group == name);
    if let Some(name) = names.iter().find(|&name| !known(name)) {
        return Err(Error::usage(format!(
            "there is no stage '{name}' (--list shows them)"
        )));
    }
    let chosen = |stage: &Stage| {
        let named = |name: &String| stage.name == *name || stage.group == name;
        // Packages and the kernel come along with what needs them.
        names.is_empty() || names.iter().any(named) || stage.always
    };
    Ok(stages.into_iter().filter(chosen).collect())
}

fn run_all(stages: &[Stage], machine: &Machine) -> Summary {
    let mut summary = Summary::default();
    let total = stages.len();
    let width = total.to_string().len();
    for (index, stage) in stages.iter().enumerate() {
        let label = format!("[{:>width$}/{total}] {} ...", index + 1, stage.name);
        print!("{label}{}", if stage.visible { "\n" } else { "" });
        // Progress only: a terminal that is gone is no reason to stop.
        let _ = std::io::stdout().flush();
        let started = Instant::now();
        let job = Job::new(index + 1, stage);
        let verdict = match stage.needs.iter().find_map(|need| need.missing()) {
            Some(missing) => Ok(Verdict::NotRun(missing)),
            None => job.and_then(|job| (stage.run)(machine, &job)),
        };
        let label = if stage.visible { label } else { String::new() };
        let seconds = started.elapsed().as_secs_f64();
        match &verdict {
            Ok(Verdict::Passed) => println!("{label} ok ({seconds:.1} s)"),
            Ok(Verdict::Counted {
                passed, failed: 0, ..
            }) => {
                println!("{label} ok ({passed} tests, {seconds:.1} s)");
            }
            Ok(Verdict::Counted { passed, failed, .. }) => {
                println!(
                    "{label} FAILED ({failed} of {} tests, {seconds:.1} s)",
                    passed + failed
                );
            }
            Ok(Verdict::NotRun(reason)) => println!("{label} not run: {reason}"),
            // The error is told at the end; of a stage whose output was to be seen nothing is new in it now.
            Err(_) if stage.visible => println!("{label} FAILED ({seconds:.1} s)"),
            Err(error) => println!("{label} FAILED ({seconds:.1} s)\n{error}"),
        }
        summary.add(stage, &verdict);
    }
    summary
}

/// What came of all stages.
#[derive(Default)]
struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
    failures: Vec<String>,
    /// How they ended. Told once more at the end: where only the end of a log is kept, it is there.
    ends: String,
    /// The groups of stages that could not run, each once.
    not_run: Vec<String>,
}

impl Summary {
    fn add(&mut self, stage: &Stage, verdict: &Result<Verdict>) {
        match verdict {
            Ok(Verdict::Passed) => self.passed += 1,
            Ok(Verdict::Counted {
                passed,
                failed,
                ends,
            }) => {
                self.passed += passed;
                self.failed += failed;
                match failed {
                    0 if ends.is_empty() => {}
                    0 => self.tell("failed once", stage, ends),
                    _ => self.fail(stage, ends),
                }
            }
            Ok(Verdict::NotRun(_)) => {
                self.skipped += 1;
                if !self.not_run.iter().any(|group| group == stage.group) {
                    self.not_run.push(stage.group.to_owned());
                }
            }
            Err(error) => {
                self.failed += 1;
                self.fail(stage, &error.to_string());
            }
        }
    }

    fn fail(&mut self, stage: &Stage, end: &str) {
        self.failures.push(stage.name.clone());
        self.tell("failed", stage, end);
    }

    fn tell(&mut self, what: &str, stage: &Stage, end: &str) {
        self.ends += &format!("\n{what}: {}\n{}\n", stage.name, end.trim_end());
    }

    /// Prints the closing lines; in a strict run, what was not run has failed.
    fn report(mut self, strict: bool) -> Outcome {
        if strict {
            self.failed += self.skipped;
            self.skipped = 0;
        }
        println!("{}", self.ends);
        self.advise();
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        println!("{}", self.verdict(strict));
        match self.failed {
            0 => Outcome::Success,
            _ => Outcome::Status(1),
        }
    }

    fn verdict(&self, strict: bool) -> String {
        let not_run = match self.not_run.is_empty() {
            true => String::new(),
            false => format!("; not run: {}", self.not_run.join(", ")),
        };
        if !self.failures.is_empty() {
            format!("FAILED: {}{not_run}", self.failures.join(", "))
        } else if strict && !self.not_run.is_empty() {
            format!("FAILED{not_run}")
        } else {
            format!("passed{not_run}")
        }
    }

    /// What a person can do so that all stages run.
    fn advise(&self) {
        let missing = apt::missing(&apt::Group::ALL);
        if self.not_run.is_empty() || missing.is_empty() {
            return;
        }
        if !apt::available() {
            println!("The stages that were not run need Debian 12 or 13.");
            return;
        }
        println!(
            "To run everything, install as root:\n  {}",
            apt::install_line(&missing)
        );
        if let Some(cost) = apt::cost(&missing) {
            println!("  {cost}");
        }
        println!(
            "  The installation takes a minute or two; the guest's kernel is then built once: 6 to \
             12 minutes, 153 MB of download, 2.2 GB of disk meanwhile."
        );
    }
}

/// The end of a failed command's output, as an error.
fn failure(what: &str, job: &Job) -> Error {
    let log = job.log();
    let lines = process::tail(log, 60) + "\n";
    Error::new(format!(
        "{lines}{what}; all of its output: {}",
        log.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stage(name: &str, group: &'static str) -> Stage {
        Stage::new(name, group, Duration::from_secs(1), |_, _| {
            Ok(Verdict::Passed)
        })
    }

    fn summary(verdicts: Vec<(Stage, Result<Verdict>)>) -> Summary {
        let mut summary = Summary::default();
        for (stage, verdict) in verdicts {
            summary.add(&stage, &verdict);
        }
        summary
    }

    #[test]
    fn stages_are_chosen_by_name_and_group() {
        let all = || {
            vec![
                stage("clippy", "rust"),
                stage("rxe", "guest"),
                stage("siw", "guest"),
            ]
        };
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            let chosen = select(all(), &words).unwrap();
            chosen
                .into_iter()
                .map(|stage| stage.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&["guest"]), ["rxe", "siw"]);
        assert_eq!(names(&["clippy", "siw"]), ["clippy", "siw"]);
        assert_eq!(names(&[]).len(), 3);
        let wrong = select(all(), &["nothing".to_owned()]).err().unwrap();
        assert_eq!(wrong.status(), 2);
    }

    #[test]
    fn what_was_not_run_is_told_by_group() {
        let not_run = || Ok(Verdict::NotRun("no QEMU".to_owned()));
        let summary = summary(vec![
            (stage("tests", "rust"), Ok(Verdict::Passed)),
            (stage("rxe", "guest"), not_run()),
            (stage("siw", "guest"), not_run()),
        ]);
        assert_eq!(summary.verdict(false), "passed; not run: guest");
        assert_eq!(summary.verdict(true), "FAILED; not run: guest");
        assert!(matches!(summary.report(true), Outcome::Status(1)));
    }

    #[test]
    fn failures_are_named() {
        let summary = summary(vec![
            (stage("clippy", "rust"), Err(Error::new("x"))),
            (
                stage("rxe", "guest"),
                Ok(Verdict::Counted {
                    passed: 3,
                    failed: 1,
                    ends: "--- echo on rxe: FAILED\n".to_owned(),
                }),
            ),
        ]);
        assert_eq!(summary.verdict(false), "FAILED: clippy, rxe");
        assert_eq!((summary.passed, summary.failed), (3, 2));
        let ends = "\nfailed: clippy\nx\n\nfailed: rxe\n--- echo on rxe: FAILED\n";
        assert_eq!(summary.ends, ends);
    }
}
