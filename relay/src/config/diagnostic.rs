//! What is wrong with a configuration: one finding with its place, and a list of them. Owns how
//! they look to people and to programs; finds nothing itself. Floor 1.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
};

use serde::Serialize;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is used, but probably not what was meant.
    Warning,
}

/// One finding: where, what is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How grave it is.
    pub severity: Severity,
    /// The file as it was named on the command line or in the file that names it.
    pub file: String,
    /// Line, from 1; none where the whole file is meant.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// Path of the key, such as `upstream[1].handoff`; empty for the whole file.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Diagnostic {
    /// An error about a whole file or directory.
    pub fn of_file(file: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_string(),
            line: None,
            column: None,
            key: String::new(),
            message: message.into(),
        }
    }

    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    /// `FILE:LINE:COLUMN: KEY: MESSAGE`, with `warning: ` before the message of a warning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        f.write_str(": ")?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that was found, in the order of the files: at least one is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// How many are errors.
    pub fn errors(&self) -> usize {
        self.0.iter().filter(|found| found.is_error()).count()
    }
}

impl fmt::Display for Diagnostics {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, found) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            found.fmt(f)?;
        }
        Ok(())
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(found: Diagnostic) -> Self {
        Self(vec![found])
    }
}

/// A place in a file that something can be said about.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    /// Line and column, both from 1.
    pub(super) at: Option<(usize, usize)>,
    pub(super) key: String,
}

impl Place {
    /// A whole file.
    pub(super) fn of_file(file: &str) -> Self {
        Self { file: file.into(), at: None, key: String::new() }
    }

    /// `FILE:LINE`, to be named in a message about another place.
    pub(super) fn short(&self) -> String {
        match self.at {
            Some((line, _)) => format!("{}:{line}", self.file),
            None => self.file.to_string(),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Collects findings while files are read.
#[derive(Debug, Default)]
pub(super) struct Report {
    found: RefCell<Vec<Diagnostic>>,
    errors: Cell<usize>,
}

impl Report {
    /// Adds an error.
    pub(super) fn error(&self, place: &Place, message: impl Into<String>) {
        self.errors.set(self.errors.get() + 1);
        self.add(Severity::Error, place, message.into());
    }

    /// Adds a warning.
    pub(super) fn warn(&self, place: &Place, message: impl Into<String>) {
        self.add(Severity::Warning, place, message.into());
    }

    /// How many errors there are by now.
    pub(super) fn errors(&self) -> usize {
        self.errors.get()
    }

    fn add(&self, severity: Severity, place: &Place, message: String) {
        self.found.borrow_mut().push(Diagnostic {
            severity,
            file: place.file.to_string(),
            line: place.at.map(|at| at.0),
            column: place.at.map(|at| at.1),
            key: place.key.clone(),
            message,
        });
    }

    /// The warnings if there is no error; otherwise everything. Sorted by place, `main` first.
    pub(super) fn finish(self, main: &str) -> Result<Vec<Diagnostic>, Diagnostics> {
        let mut found = self.found.into_inner();
        found.sort_by(|a, b| {
            let key = |x: &Diagnostic| (x.file != main, x.line, x.column);
            key(a).cmp(&key(b)).then_with(|| a.file.cmp(&b.file))
        });
        if self.errors.get() > 0 { Err(Diagnostics(found)) } else { Ok(found) }
    }
}
