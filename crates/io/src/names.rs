//! Names from files: which may become a path, and how they are shown.

use std::fmt;

/// Why `name` cannot be a file of its directory, or `None` when it can.
///
/// Names come from manifests and indexes that somebody else may have written: a separator, `..` or
/// a drive would leave the directory.
pub(crate) fn not_a_plain_file_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name == "." || name == ".." {
        Some("it names a directory")
    } else if name.contains(['/', '\\']) {
        Some("it contains a path separator")
    } else if name.contains(':') {
        Some("it contains a colon")
    } else if name.chars().any(char::is_control) {
        Some("it contains a control character")
    } else {
        None
    }
}

/// Shows text from a file with control characters escaped, so that it cannot drive a terminal.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` keeps widths working; the copy is made only where something must be escaped.
        if self.0.chars().any(char::is_control) {
            let mut out = String::with_capacity(self.0.len() + 8);
            for c in self.0.chars() {
                if c.is_control() {
                    out.extend(c.escape_default());
                } else {
                    out.push(c);
                }
            }
            f.pad(&out)
        } else {
            f.pad(self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for good in ["a", "model-00001-of-00002.safetensors", "..a", ".hidden"] {
            assert_eq!(not_a_plain_file_name(good), None, "{good}");
        }
        for bad in [
            "", ".", "..", "../a", "/a", "a/b", "a\\b", "C:a", "a\0b", "a\nb",
        ] {
            assert!(not_a_plain_file_name(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(format!("{}", Printable("a\u{1b}[31mb")), "a\\u{1b}[31mb");
        assert_eq!(format!("[{:<4}]", Printable("é")), "[é   ]");
    }
}
