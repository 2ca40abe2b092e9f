//! `unsafe` stays where kernels, storage and foreign interfaces live.

use super::Finding;
use crate::project::{File, Project};
use crate::tokens::tokens;

/// Crates that may use it: storage and memory maps, kernels, GPU calls.
pub const CRATES: &[&str] = &["base", "cpu", "cuda"];

/// Folders of other crates that may: the foreign interface of the Python module.
pub const FOLDERS: &[&str] = &["crates/py/src/ffi/", "crates/py/src/ffi.rs"];

/// Whether this file may hold unsafe code at all.
pub fn allows(file: &File) -> bool {
    (file.path.starts_with("crates/") && CRATES.contains(&file.home()))
        || FOLDERS.iter().any(|folder| file.path.starts_with(folder))
}

/// Reports the word `unsafe` in code elsewhere; comments and strings are not code.
pub fn check(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in project
        .files
        .iter()
        .filter(|file| file.is_rust() && !allows(file))
    {
        let Ok(list) = tokens(&file.text) else {
            continue;
        };
        for token in list.iter().filter(|token| token.text == "unsafe") {
            let message = format!(
                "`unsafe` is for {} and the FFI of py only",
                CRATES.join(", ")
            );
            findings.push(Finding::new(&file.path, token.line, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::lines;

    const CODE: &str = "//! A.\nfn f(p: *const u8) -> u8 {\n    unsafe { *p }\n}\n";

    #[test]
    fn unsafe_is_found_outside_its_crates() {
        for path in [
            "crates/core/src/a.rs",
            "crates/nn/tests/a.rs",
            "xtask/src/a.rs",
            "crates/py/src/lib.rs",
            "base/a.rs",
        ] {
            assert_eq!(lines(check, path, CODE), [3], "{path}");
        }
        assert_eq!(
            lines(
                check,
                "crates/core/src/a.rs",
                "//! A.\n#[unsafe(no_mangle)] fn f() {}\n"
            ),
            [2]
        );
    }

    #[test]
    fn unsafe_is_allowed_in_its_crates() {
        for path in [
            "crates/base/src/a.rs",
            "crates/cpu/src/a.rs",
            "crates/cuda/src/a.rs",
            "crates/py/src/ffi/a.rs",
        ] {
            assert!(lines(check, path, CODE).is_empty(), "{path}");
        }
    }

    #[test]
    fn words_are_not_code() {
        let text = "//! unsafe\n#![forbid(unsafe_code)]\nfn f() -> &'static str { \"unsafe { }\" } // unsafe\n";
        assert!(lines(check, "crates/core/src/a.rs", text).is_empty());
    }
}
