//! What a stage is, what it may ask of the machine, and how it runs commands.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::failure;
use crate::error::{Context, Error, Result};
use crate::examples::verbs_buildable;
use crate::kernel::{self, Kernel};
use crate::process::{self, End, shell_line};
use crate::{apt, paths};

type Run = Box<dyn Fn(&Machine, &Job) -> Result<Verdict>>;

/// One line of progress.
pub(super) struct Stage {
    pub(super) name: String,
    /// What a person would call it when it is not run.
    pub(super) group: &'static str,
    pub(super) needs: Vec<Need>,
    pub(super) limit: Duration,
    /// Whether its output appears as it comes, or only if it fails.
    pub(super) visible: bool,
    /// Whether it runs also when other stages were asked for.
    pub(super) always: bool,
    pub(super) run: Run,
}

impl Stage {
    pub(super) fn new(
        name: &str,
        group: &'static str,
        limit: Duration,
        run: impl Fn(&Machine, &Job) -> Result<Verdict> + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            group,
            needs: Vec::new(),
            limit,
            visible: false,
            always: false,
            run: Box::new(run),
        }
    }

    pub(super) fn needs(mut self, needs: impl IntoIterator<Item = Need>) -> Self {
        self.needs.extend(needs);
        self
    }

    pub(super) fn visible(mut self) -> Self {
        self.visible = true;
        self
    }

    pub(super) fn always(mut self) -> Self {
        self.always = true;
        self
    }
}

/// How a stage ended that did not fail as a whole.
#[derive(Debug)]
pub(super) enum Verdict {
    Passed,
    /// A stage of several tests.
    Counted {
        passed: usize,
        failed: usize,
        /// The last lines of those that failed, at the first attempt too.
        ends: String,
    },
    NotRun(String),
}

/// What a stage cannot do without.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// Debian packages.
    Packages(apt::Group),
    /// A program on the path.
    Program(&'static str),
    /// What the feature `verbs` is built with.
    Verbs,
    /// A nightly toolchain of Rust.
    Nightly,
}

impl Need {
    /// What is missing, if anything.
    pub(super) fn missing(self) -> Option<String> {
        match self {
            Self::Packages(group) => {
                let missing = apt::missing(&[group]);
                (!missing.is_empty()).then(|| format!("packages: {}", missing.join(" ")))
            }
            Self::Program(name) => paths::program(name)
                .is_none()
                .then(|| format!("no {name} on the path")),
            Self::Verbs => (!verbs_buildable()).then(|| "no cmake or no libclang".to_owned()),
            Self::Nightly => {
                let mut probe = Command::new("cargo");
                let works = process::output(probe.args(["+nightly", "--version"])).is_some();
                (!works)
                    .then(|| "no nightly toolchain (rustup toolchain install nightly)".to_owned())
            }
        }
    }
}

/// What stages share.
pub(super) struct Machine {
    /// Whether everything has to run.
    pub(super) strict: bool,
    kernel: Mutex<Option<JoinHandle<Result<Kernel>>>>,
    binaries: OnceCell<()>,
}

impl Machine {
    pub(super) fn new(strict: bool) -> Self {
        Self {
            strict,
            kernel: Mutex::new(None),
            binaries: OnceCell::new(),
        }
    }

    /// Cargo's words for every feature that can be built here.
    pub(super) fn all_features(&self) -> &'static [&'static str] {
        match verbs_buildable() {
            true => &["--all-features"],
            false => &[
                "--features",
                "smbdirect/iwarp,smbdirect/tokio,smbdirect/testing",
            ],
        }
    }

    /// Starts the guest's kernel in the background, if it has to be built.
    pub(super) fn start_kernel(&self) {
        if matches!(kernel::cached(), Ok(None)) && apt::missing(&[apt::Group::Guest]).is_empty() {
            let mut slot = self
                .kernel
                .lock()
                .unwrap_or_else(|poison| poison.into_inner());
            slot.get_or_insert_with(|| std::thread::spawn(kernel::provide));
        }
    }

    /// Waits for the kernel.
    pub(super) fn kernel(&self) -> Result<Kernel> {
        let building = self
            .kernel
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        match building {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(Error::new("the kernel build panicked"))),
            None => kernel::provide(),
        }
    }

    /// Does `prepare` once, for the first stage that runs programs in the guest.
    pub(super) fn binaries(&self, prepare: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.binaries.get().is_none() {
            prepare()?;
            // Set once: this is the only place, and it is not shared between threads.
            let _ = self.binaries.set(());
        }
        Ok(())
    }
}

/// A running stage: its time and its log.
pub(super) struct Job {
    deadline: Instant,
    log: PathBuf,
    visible: bool,
}

impl Job {
    pub(super) fn new(number: usize, stage: &Stage) -> Result<Self> {
        let directory = paths::target().join("xtask");
        fs::create_dir_all(&directory).context(directory.display())?;
        let log = directory.join(format!("{number:02}-{}.log", stage.name.replace(' ', "-")));
        fs::write(&log, "").context(log.display())?;
        Ok(Self {
            deadline: Instant::now() + stage.limit,
            log,
            visible: stage.visible,
        })
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// The time that is left.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Cargo, in the repository.
    pub(super) fn cargo<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        // The cargo that runs this program would hand its own settings on.
        let mut command = Command::new("cargo");
        command
            .args(words)
            .current_dir(paths::root())
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        command
    }

    /// Runs a command to its end within the stage's time; its failure is the stage's.
    pub(super) fn run(&self, command: &mut Command) -> Result<()> {
        let mut words = vec![command.get_program().to_string_lossy().into_owned()];
        words.extend(
            command
                .get_args()
                .map(|word| word.to_string_lossy().into_owned()),
        );
        let line = shell_line(&words);
        let log = fs::File::options()
            .append(true)
            .open(&self.log)
            .context(self.log.display())?;
        let errors = log.try_clone().context(self.log.display())?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(format!("cannot run {line}"))?;
        let out = child
            .stdout
            .take()
            .map(|pipe| process::tee(pipe, log, self.visible));
        let err = child
            .stderr
            .take()
            .map(|pipe| process::tee(pipe, errors, self.visible));
        let end = process::wait_until(&mut child, self.deadline)?;
        for tee in [out, err].into_iter().flatten() {
            tee.finish();
        }
        match end {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => Err(failure(&format!("{line}: {status}"), self)),
            End::TimedOut => Err(failure(
                &format!("{line}: stopped, the stage's time was over"),
                self,
            )),
        }
    }

    /// Runs a command and returns what it printed on both outputs.
    pub(super) fn read(&self, command: &mut Command) -> Result<String> {
        let before = fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        self.run(command)?;
        let bytes = fs::read(&self.log).context(self.log.display())?;
        let new = usize::try_from(before)
            .ok()
            .and_then(|before| bytes.get(before..));
        Ok(String::from_utf8_lossy(new.unwrap_or_default()).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, limit: Duration) -> Job {
        let stage = Stage::new(name, "rust", limit, |_, _| Ok(Verdict::Passed));
        Job::new(std::process::id() as usize, &stage).unwrap()
    }

    #[test]
    fn a_stage_that_hangs_ends() {
        let job = job("hanging", Duration::from_millis(50));
        let error = job.run(Command::new("sleep").arg("600")).unwrap_err();
        assert!(error.to_string().contains("time was over"));
        fs::remove_file(job.log()).unwrap();
    }

    #[test]
    fn output_is_read_and_failures_show_it() {
        let job = job("reading", Duration::from_secs(60));
        let text = job
            .read(Command::new("sh").args(["-c", "echo out; echo err >&2"]))
            .unwrap();
        assert!(text.contains("out") && text.contains("err"));
        let error = job
            .run(Command::new("sh").args(["-c", "echo the cause; exit 3"]))
            .unwrap_err();
        assert!(error.to_string().contains("the cause") && error.to_string().contains('3'));
        fs::remove_file(job.log()).unwrap();
    }
}
