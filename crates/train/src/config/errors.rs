//! What is wrong with a config: one [`Problem`] per mistake, printed one per line.

use super::tree::Place;
use std::fmt;

/// One mistake, printed as
/// `file:line:column: key path: what was expected, what was got; did you mean …?; allowed: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `file:line:column`, `file`, or `--set key`.
    pub location: String,
    /// Dotted path of the key; empty for the file as a whole.
    pub path: String,
    /// What was expected and what was got.
    pub message: String,
    /// The key or value probably meant.
    pub suggestion: Option<String>,
    /// The allowed keys or values.
    pub allowed: Vec<String>,
    /// Order of printing: place in the file, then `--set` arguments.
    pub(super) order: (usize, usize, usize),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&place_and_key(&self.location, &self.path))?;
        write!(f, ": {}", self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean `{suggestion}`?")?;
        }
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed.join(", "))?;
        }
        Ok(())
    }
}

/// `location: key`, or the location alone where there is no key or `--set a.b` has named it already.
pub(crate) fn place_and_key(location: &str, key: &str) -> String {
    if key.is_empty() || location.strip_prefix("--set ") == Some(key) {
        return location.to_owned();
    }
    format!("{location}: {key}")
}

/// Every mistake found in a config, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The mistakes; at least one.
    pub problems: Vec<Problem>,
}

/// More mistakes than this are counted, not printed.
const MOST_PRINTED: usize = 50;

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().take(MOST_PRINTED).enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        if self.problems.len() > MOST_PRINTED {
            write!(f, "\nand {} more", self.problems.len() - MOST_PRINTED)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A config that is legal but probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// `file:line:column`, `--set key`, or the file where the key is absent.
    pub location: String,
    /// Dotted path of the key.
    pub path: String,
    /// What is odd and what to do about it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&place_and_key(&self.location, &self.path))?;
        write!(f, ": {}", self.message)
    }
}

/// Names of the places of one config: the file and its `--set` arguments.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// The file as the user wrote it.
    pub file: String,
    /// The key part of each `--set`.
    pub sets: Vec<String>,
}

impl Names {
    /// `file:line:column` or `--set key`.
    pub fn location(&self, place: Place) -> String {
        match place {
            Place::File { line, column } => format!("{}:{line}:{column}", self.file),
            Place::Set(index) => {
                format!("--set {}", self.sets.get(index).map_or("", String::as_str))
            }
        }
    }

    /// Sorting key of a place.
    pub fn order(place: Place) -> (usize, usize, usize) {
        match place {
            Place::File { line, column } => (0, line, column),
            Place::Set(index) => (1, index, 0),
        }
    }
}
