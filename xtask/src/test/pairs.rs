//! Tests of two guests with a link between them: `xtask/guest/pairs/*.sh`.
//!
//! A script has the header of those for one guest (see [`super::scripts`]). It is run three times at once: in both
//! guests, with $GUEST `a` and `b`, and on the host beside them, where $GUEST is `host` and what
//! `cargo xtask guest --pair` offers a script of the host is there. Each script gets guests of its own.

use super::scripts::{self, OVERHEAD, Script, scripts, utf8};
use super::stage::{Job, Machine, Need, Stage, Verdict};
use crate::apt::Group;
use crate::cli::Outcome;
use crate::error::Result;
use crate::guest::pair;
use crate::guest::session::{Device, Options};
use crate::paths;
use crate::process::shell_line;

/// One stage per device that has scripts.
pub(super) fn stages() -> Result<Vec<Stage>> {
    let all = scripts(&paths::guest_file("pairs"))?;
    let mut stages = Vec::new();
    for device in Device::ALL {
        let chosen = |script: &&Script| script.devices.contains(&Some(device));
        let chosen: Vec<Script> = all.iter().filter(chosen).cloned().collect();
        if chosen.is_empty() {
            continue;
        }
        let limit = OVERHEAD + chosen.iter().map(|script| 2 * script.timeout).sum();
        let name = format!("pair {}", device.name());
        let stage = Stage::new(&name, "guest", limit, move |machine, job| {
            run(machine, job, device, &chosen)
        });
        let needs = [Need::Verbs, Need::Packages(Group::Guest)];
        stages.push(stage.needs(needs).visible());
    }
    Ok(stages)
}

fn run(machine: &Machine, job: &Job, device: Device, scripts: &[Script]) -> Result<Verdict> {
    machine.kernel()?;
    machine.binaries(|| scripts::provide_binaries(machine, job))?;
    let (mut passed, mut failed, mut ends) = (0, 0, String::new());
    for script in scripts {
        // As for one guest: what fails is done once more.
        let outcome = match attempt(job, device, script)? {
            true => true,
            false => {
                ends += &format!("--- {}: FAILED\n", told(script, device));
                println!("--- once more");
                let second = attempt(job, device, script)?;
                let how = if second { "passed" } else { "failed" };
                ends += &format!("{how} at the second attempt: {}\n", told(script, device));
                second
            }
        };
        match outcome {
            true => passed += 1,
            false => failed += 1,
        }
    }
    Ok(Verdict::Counted {
        passed,
        failed,
        ends,
    })
}

fn told(script: &Script, device: Device) -> String {
    format!("{} on {}", script.name(), device.name())
}

/// Whether it passes, in two guests of its own.
fn attempt(job: &Job, device: Device, script: &Script) -> Result<bool> {
    let path = utf8(&script.path)?;
    println!("\n--- {}", told(script, device));
    let options = Options {
        device: Some(device),
        timeout: script.timeout.min(job.left()),
        ..pair::options()
    };
    let command = shell_line(&[
        "bash".to_owned(),
        "-c".to_owned(),
        format!(". \"$REPO/xtask/guest/flags.sh\"; . {path}"),
    ]);
    let commands = [command.clone(), command];
    let outcome = pair::run(&options, &commands, Some(&format!(". {path}")), false)?;
    Ok(matches!(outcome, Outcome::Status(0)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_s_scripts_are_sound() {
        assert_eq!(super::stages().unwrap().len(), 2);
    }
}
