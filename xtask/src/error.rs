//! The error of all commands: a text for the person at the terminal that says what to do.

use std::fmt;

/// What went wrong and, where there is one, the remedy.
#[derive(Debug)]
pub(crate) struct Error {
    text: String,
    /// Whether the words of the command line are at fault.
    usage: bool,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            usage: false,
        }
    }

    /// The error for words of the command line that are not understood.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            usage: true,
        }
    }

    /// The status to leave with: 2 if the words of the command line are at fault, as with the examples.
    pub(crate) fn status(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Says what was being done when an I/O error struck.
pub(crate) trait Context<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::new(format!("{doing}: {error}")))
    }
}
