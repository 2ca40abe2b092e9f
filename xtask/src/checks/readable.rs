//! Every Rust file can be read as Rust.
//!
//! The checks that look for words skip a file whose tokens they cannot read;
//! this one makes sure that skipping is never silent.

use super::Finding;
use crate::project::Project;
use crate::tokens::tokens;

/// Reports Rust files with unbalanced brackets or unfinished literals.
pub fn check(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in project.files.iter().filter(|file| file.is_rust()) {
        if let Err(error) = tokens(&file.text) {
            findings.push(Finding::new(&file.path, error.line, "not readable as Rust"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::lines;

    #[test]
    fn broken_source_is_reported() {
        assert_eq!(lines(check, "a.rs", "// a\nfn f() { (] }\n"), [2]);
        assert!(lines(check, "a.rs", "// a\nfn f() {}\n").is_empty());
        assert!(lines(check, "a.txt", "(]").is_empty());
    }
}
