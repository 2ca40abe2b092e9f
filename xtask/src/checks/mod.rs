//! The checks of `cargo xtask check`: one file each, one list here.
//!
//! A check is a function from the tree to findings. Adding one is a file and a
//! line in [`CHECKS`]; its tests show it failing on a bad example.

mod arrows;
mod dependencies;
mod file_size;
mod headers;
mod machine_paths;
mod readable;
mod safety_notes;
mod unfinished;
mod unsafe_places;

use crate::project::Project;
use std::fmt;

/// A rule over the whole tree.
struct Check {
    name: &'static str,
    run: fn(&Project) -> Vec<Finding>,
}

const CHECKS: &[Check] = &[
    Check {
        name: "arrows",
        run: arrows::check,
    },
    Check {
        name: "dependencies",
        run: dependencies::check,
    },
    Check {
        name: "file-size",
        run: file_size::check,
    },
    Check {
        name: "headers",
        run: headers::check,
    },
    Check {
        name: "machine-paths",
        run: machine_paths::check,
    },
    Check {
        name: "readable",
        run: readable::check,
    },
    Check {
        name: "safety-notes",
        run: safety_notes::check,
    },
    Check {
        name: "unfinished",
        run: unfinished::check,
    },
    Check {
        name: "unsafe-places",
        run: unsafe_places::check,
    },
];

/// Something wrong, and where. Printed as `path:line: [check] message`.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    check: &'static str,
    path: String,
    line: usize,
    message: String,
}

impl Finding {
    /// A finding of the check that [`run`] is running, which puts its name in.
    fn new(path: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding {
            check: "",
            path: path.to_string(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}:{}: [{}] {}",
            self.path, self.line, self.check, self.message
        )
    }
}

/// Runs every check, findings sorted by place.
pub fn run(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in CHECKS {
        for finding in (check.run)(project) {
            findings.push(Finding {
                check: check.name,
                ..finding
            });
        }
    }
    findings.sort_by(|a, b| (&a.path, a.line, a.check).cmp(&(&b.path, b.line, b.check)));
    findings
}

/// The lines that a check complains about in one file: what most tests ask.
#[cfg(test)]
fn lines(check: fn(&Project) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    let findings = check(&Project::of(&[(path, text)]));
    findings.into_iter().map(|finding| finding.line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_named_and_sorted() {
        let project = Project::of(&[
            ("crates/nn/src/b.rs", "fn f() { todo!() }\n"),
            ("crates/nn/src/a.rs", "//! Fine.\nfn f() { dbg!(1); }\n"),
        ]);
        let printed: Vec<String> = run(&project).iter().map(Finding::to_string).collect();
        assert_eq!(printed.len(), 3, "{printed:?}");
        assert!(
            printed[0].starts_with("crates/nn/src/a.rs:2: [unfinished]"),
            "{printed:?}"
        );
        assert!(
            printed[1].starts_with("crates/nn/src/b.rs:1: [headers]"),
            "{printed:?}"
        );
        assert!(
            printed[2].starts_with("crates/nn/src/b.rs:1: [unfinished]"),
            "{printed:?}"
        );
    }

    #[test]
    fn an_empty_tree_is_clean() {
        assert_eq!(run(&Project::default()), []);
    }
}
