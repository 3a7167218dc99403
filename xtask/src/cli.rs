//! Command lines: options in any order, then `--` and the rest.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// How a command ended that could do its work.
pub(crate) enum Outcome {
    Success,
    /// The status to leave with, for example that of a command in the guest.
    Status(u8),
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::SUCCESS,
            Outcome::Status(status) => Self::from(status),
        }
    }
}

/// The words after the command's name.
#[derive(Debug)]
pub(crate) struct Arguments {
    options: VecDeque<String>,
    rest: Vec<String>,
    separated: bool,
}

impl Arguments {
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Self {
        let mut options: VecDeque<String> = words.into_iter().collect();
        let separator = options.iter().position(|word| word == "--");
        let rest = separator.map(|at| options.split_off(at));
        let separated = rest.is_some();
        let rest = rest.into_iter().flatten().skip(1).collect();
        Self {
            options,
            rest,
            separated,
        }
    }

    pub(crate) fn wants_help(&self) -> bool {
        self.options
            .iter()
            .any(|word| word == "--help" || word == "-h")
    }

    /// The next word before `--`.
    pub(crate) fn next(&mut self) -> Option<String> {
        self.options.pop_front()
    }

    /// The value of `option`, which is the next word.
    pub(crate) fn value(&mut self, option: &str) -> Result<String> {
        self.next()
            .ok_or_else(|| Error::usage(format!("{option} needs a value")))
    }

    /// The value of `option`, parsed.
    pub(crate) fn parsed<T: FromStr>(&mut self, option: &str) -> Result<T> {
        let value = self.value(option)?;
        value
            .parse()
            .map_err(|_| Error::usage(format!("{option} cannot be '{value}'")))
    }

    /// The value of `option`: a number of seconds.
    pub(crate) fn seconds(&mut self, option: &str) -> Result<Duration> {
        self.parsed(option).map(Duration::from_secs)
    }

    /// The words after `--`.
    pub(crate) fn rest(self) -> Vec<String> {
        self.rest
    }

    /// Whether there was a `--`.
    pub(crate) fn separated(&self) -> bool {
        self.separated
    }
}

/// The error for a word that a command does not know.
pub(crate) fn unknown(option: &str) -> Error {
    Error::usage(format!("'{option}' is not an option (--help lists them)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Arguments {
        Arguments::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn words_after_the_separator_are_not_options() {
        let mut arguments = arguments("--timeout 5 -- ls --help -- x");
        assert!(!arguments.wants_help());
        assert_eq!(arguments.next().as_deref(), Some("--timeout"));
        assert_eq!(
            arguments.seconds("--timeout").ok(),
            Some(Duration::from_secs(5))
        );
        assert_eq!(arguments.next(), None);
        assert!(arguments.separated());
        assert_eq!(arguments.rest(), ["ls", "--help", "--", "x"]);
    }

    #[test]
    fn wrong_words_have_a_status_of_their_own() {
        assert_eq!(unknown("nonsense").status(), 2);
        assert_eq!(
            arguments("x").parsed::<u32>("--cpus").unwrap_err().status(),
            2
        );
        assert_eq!(arguments("").value("--cpus").unwrap_err().status(), 2);
        assert_eq!(Error::new("no QEMU").status(), 1);
    }

    #[test]
    fn values_are_checked() {
        let mut arguments = arguments("many");
        assert!(
            arguments
                .parsed::<u32>("--cpus")
                .unwrap_err()
                .to_string()
                .contains("'many'")
        );
        assert!(
            arguments
                .value("--cpus")
                .unwrap_err()
                .to_string()
                .contains("needs a value")
        );
    }
}
