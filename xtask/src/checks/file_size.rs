//! No Rust file is longer than [`LIMIT`] lines.
//!
//! A file that has outgrown it holds more than one idea: split it. Tables and
//! kernels that read better in one piece are named in [`EXCEPTIONS`].

use super::Finding;
use crate::project::Project;

/// The most lines that a Rust file may have.
const LIMIT: usize = 1_200;

/// Tables and kernels that may be longer, by path.
const EXCEPTIONS: &[&str] = &[];

/// Reports files over the limit, and exceptions that have become needless.
pub fn check(project: &Project) -> Vec<Finding> {
    check_with(project, EXCEPTIONS)
}

fn check_with(project: &Project, exceptions: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in project.files.iter().filter(|file| file.is_rust()) {
        let lines = file.text.lines().count();
        let excepted = exceptions.contains(&file.path.as_str());
        if lines > LIMIT && !excepted {
            let message = format!("{lines} lines, at most {LIMIT} allowed");
            findings.push(Finding::new(&file.path, LIMIT + 1, message));
        } else if lines <= LIMIT && excepted {
            let message = format!("{lines} lines: the exception in file_size.rs is needless");
            findings.push(Finding::new(&file.path, 1, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::lines;

    #[test]
    fn the_limit_is_the_last_allowed_line() {
        assert!(lines(check, "a.rs", &"//\n".repeat(LIMIT)).is_empty());
        assert_eq!(lines(check, "a.rs", &"//\n".repeat(LIMIT + 1)), [LIMIT + 1]);
    }

    #[test]
    fn other_files_may_be_long() {
        assert!(lines(check, "table.csv", &"1\n".repeat(LIMIT + 1)).is_empty());
    }

    #[test]
    fn exceptions_are_by_name_and_must_be_needed() {
        let long = "//\n".repeat(LIMIT + 1);
        let project = Project::of(&[("table.rs", &long), ("short.rs", "//\n")]);
        assert!(check_with(&project, &["table.rs"]).is_empty());
        assert_eq!(check_with(&project, &["table.rs", "short.rs"]).len(), 1);
    }
}
