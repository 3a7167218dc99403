//! What was found, as text that appears while it is found, or as JSON at the end.

use crate::json::Object;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It is so.
    Fact,
    /// A check went well.
    Pass,
    /// Not as it could be, and not in the way.
    Note,
    /// A check failed.
    Fail,
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Self::Fact => "",
            Self::Pass => "pass",
            Self::Note => "note",
            Self::Fail => "FAIL",
        }
    }
}

/// All that was found.
pub(crate) struct Report {
    json: bool,
    /// Sections that are complete, and the lines of the one that is not.
    sections: Vec<String>,
    title: Option<&'static str>,
    lines: Vec<String>,
    conclusion: Option<(bool, String)>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            sections: Vec::new(),
            title: None,
            lines: Vec::new(),
            conclusion: None,
        }
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, title: &'static str) {
        self.end_section();
        self.title = Some(title);
        if !self.json {
            println!("{title}");
        }
    }

    pub(crate) fn fact(&mut self, name: &str, text: impl AsRef<str>) {
        self.line(Mark::Fact, name, text.as_ref(), None);
    }

    pub(crate) fn pass(&mut self, name: &str, text: impl AsRef<str>) {
        self.line(Mark::Pass, name, text.as_ref(), None);
    }

    /// Something else than a pass, with what can be done about it.
    pub(crate) fn remark(&mut self, mark: Mark, name: &str, text: impl AsRef<str>, remedy: &str) {
        let remedy = Some(remedy).filter(|remedy| !remedy.is_empty());
        self.line(mark, name, text.as_ref(), remedy);
    }

    /// What follows from all of it.
    pub(crate) fn conclude(&mut self, usable: bool, text: impl Into<String>) {
        self.conclusion = Some((usable, text.into()));
    }

    pub(crate) fn finish(mut self) {
        self.end_section();
        let Some((usable, conclusion)) = &self.conclusion else {
            return;
        };
        if self.json {
            let report = Object::new()
                .text("version", env!("CARGO_PKG_VERSION"))
                .value("sections", format_args!("[{}]", self.sections.join(",")))
                .value("usable", usable)
                .text("conclusion", conclusion);
            println!("{}", report.end());
        } else {
            println!("doctor: {conclusion}");
        }
    }

    fn line(&mut self, mark: Mark, name: &str, text: &str, remedy: Option<&str>) {
        if !self.json {
            println!("  {:<4} {name:<14} {text}", mark.word());
            if let Some(remedy) = remedy {
                println!("       {:<14} -> {remedy}", "");
            }
            return;
        }
        let mut line = Object::new().text("name", name).text("text", text);
        if mark != Mark::Fact {
            line = line.text("result", &mark.word().to_lowercase());
        }
        if let Some(remedy) = remedy {
            line = line.text("remedy", remedy);
        }
        self.lines.push(line.end());
    }

    fn end_section(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if let Some(title) = self.title.take() {
            if !self.json {
                println!();
            }
            let section = Object::new()
                .text("title", title)
                .value("lines", format_args!("[{}]", lines.join(",")));
            self.sections.push(section.end());
        }
    }
}
