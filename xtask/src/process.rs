//! Child processes that end: time limits, whole process trees, output to a log.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Result};

const TICK: Duration = Duration::from_millis(20);

/// How a child with a time limit ended.
pub(crate) enum End {
    Exited(ExitStatus),
    TimedOut,
}

/// Waits for `child` until `deadline`, then kills it and everything it started.
pub(crate) fn wait_until(child: &mut Child, deadline: Instant) -> Result<End> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a process")? {
            return Ok(End::Exited(status));
        }
        if Instant::now() >= deadline {
            kill_tree(child);
            return Ok(End::TimedOut);
        }
        thread::sleep(TICK);
    }
}

/// Kills `child` and all its descendants, and reaps it.
pub(crate) fn kill_tree(child: &mut Child) {
    // The tree is read before the root dies: its orphans would no longer be found.
    let mut pids = descendants(child.id(), &parents());
    pids.push(child.id());
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -KILL {} 2>&-", list.join(" "))])
        .status();
    // A process that is gone already is what is wanted here.
    let _ = child.kill();
    let _ = child.wait();
}

/// What a command prints, without surrounding blanks; `None` if it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Copies what comes out of a pipe to a log and, if `echo` is set, to this program's standard
/// output as it comes.
pub(crate) fn tee(mut pipe: impl Read + Send + 'static, log: fs::File, echo: bool) -> Tee {
    Tee(thread::spawn(move || copy(&mut pipe, log, echo)))
}

/// A running [`tee`].
pub(crate) struct Tee(thread::JoinHandle<io::Result<()>>);

impl Tee {
    /// Waits for the pipe's end.
    pub(crate) fn finish(self) {
        // A log that cannot be written is seen by who reads it.
        let _ = self.0.join();
    }
}

fn copy(pipe: &mut impl Read, mut log: fs::File, echo: bool) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        let n = pipe.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        log.write_all(&buffer[..n])?;
        if echo {
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..n]).and_then(|()| out.flush())?;
        }
    }
}

/// The last `lines` lines of a text file, or why they cannot be shown.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// Words as one line for a POSIX shell, each quoted.
pub(crate) fn shell_line<S: AsRef<str>>(words: &[S]) -> String {
    words
        .iter()
        .map(|word| quote(word.as_ref()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// One word, quoted for a POSIX shell.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Every process' parent, from `/proc`; empty on systems that have none.
fn parents() -> HashMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((
                pid,
                parent(&fs::read_to_string(entry.path().join("stat")).ok()?)?,
            ))
        })
        .collect()
}

/// The parent in a line of `/proc/PID/stat`: the second field after the name, which may itself hold
/// blanks and brackets.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn descendants(root: u32, parents: &HashMap<u32, u32>) -> Vec<u32> {
    let mut found = vec![root];
    let mut index = 0;
    while let Some(&pid) = found.get(index) {
        found.extend(
            parents
                .iter()
                .filter(|&(_, &parent)| parent == pid)
                .map(|(&child, _)| child),
        );
        index += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let line = shell_line(&["printf", "%s|", "a b", "it's", "", "$HOME"]);
        let printed = output(Command::new("sh").args(["-c", &line]));
        assert_eq!(printed.as_deref(), Some("a b|it's||$HOME|"));
    }

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (broken"), None);
    }

    #[test]
    fn descendants_are_found_over_generations() {
        let parents = HashMap::from([(2, 1), (3, 2), (4, 2), (5, 4), (6, 9)]);
        let mut found = descendants(2, &parents);
        found.sort_unstable();
        assert_eq!(found, [3, 4, 5]);
    }

    #[test]
    fn a_tree_is_killed_at_its_deadline() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & sleep 60"])
            .spawn()
            .unwrap();
        let end = wait_until(&mut child, Instant::now()).unwrap();
        assert!(matches!(end, End::TimedOut));
        assert!(child.try_wait().unwrap().is_some());
    }
}
