//! Every Rust file opens with a comment that says what it is.

use super::Finding;
use crate::project::Project;

/// Reports Rust files whose first line is not a `//!` or `//` comment with text.
pub fn check(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in project.files.iter().filter(|file| file.is_rust()) {
        let first = file.text.lines().next().unwrap_or("");
        let words = first
            .strip_prefix("//!")
            .or_else(|| first.strip_prefix("//"));
        // `///` documents the first item, not the file.
        if words.is_none_or(|words| words.trim().is_empty() || words.starts_with('/')) {
            let message = "the file does not open with a `//!` or `//` line that says what it is";
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
    fn a_header_is_a_comment_with_words() {
        for good in ["//! Kernels.\n", "// A build script.\nfn main() {}\n"] {
            assert!(lines(check, "a.rs", good).is_empty(), "{good:?}");
        }
        for bad in [
            "",
            "\n//! Late.\n",
            "use x;\n",
            "/// An item.\nfn f() {}\n",
            "//!\n",
            "#![allow(x)]\n",
        ] {
            assert_eq!(lines(check, "a.rs", bad), [1], "{bad:?}");
        }
    }

    #[test]
    fn only_rust_files_need_one() {
        assert!(lines(check, "README.md", "Words.\n").is_empty());
    }
}
