//! No tracked file names a folder of one particular machine.
//!
//! A path below somebody's home or work folder breaks for everybody else.
//! `Cargo.lock` is cargo's own and left out.

use super::Finding;
use crate::project::Project;

/// First folders of absolute paths that only exist on one machine. Written
/// without slashes, so that this file does not find itself.
const FOLDERS: &[&str] = &["work", "root", "home", "Users"];

/// Reports absolute paths below one of [`FOLDERS`].
pub fn check(project: &Project) -> Vec<Finding> {
    let needles: Vec<String> = FOLDERS.iter().map(|folder| format!("/{folder}/")).collect();
    let mut findings = Vec::new();
    for file in project
        .files
        .iter()
        .filter(|file| file.path != "Cargo.lock")
    {
        for (index, line) in file.text.lines().enumerate() {
            for needle in &needles {
                if line
                    .match_indices(needle.as_str())
                    .any(|(at, _)| opens_a_path(&line[..at]))
                {
                    let message = format!("a path of one machine: `{needle}…`");
                    findings.push(Finding::new(&file.path, index + 1, message));
                }
            }
        }
    }
    findings
}

/// Whether an absolute path can start after this text: `../work/` and
/// `target/work/` are relative, `"/…`, `=/…` and `file://…` are not.
fn opens_a_path(before: &str) -> bool {
    !before.ends_with(|last: char| last.is_alphanumeric() || "._-~}*)]".contains(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::lines;

    /// An absolute path below `folder`, spelt so that this file stays clean.
    fn below(folder: &str) -> String {
        format!("/{folder}/somebody/data")
    }

    #[test]
    fn absolute_paths_of_a_machine_are_found() {
        for folder in FOLDERS {
            let path = below(folder);
            for text in [
                format!("a\ncd {path}\n"),
                format!("\n\"{path}\""),
                format!("\nX={path}"),
                format!("\nfile://{path}"),
            ] {
                assert_eq!(lines(check, "notes.md", &text), [2], "{text}");
            }
        }
    }

    #[test]
    fn relative_and_system_paths_are_fine() {
        let relative = format!("..{0} target{0} ~{0} {{}}{0}", below("work"));
        assert!(lines(check, "a.rs", &relative).is_empty());
        assert!(lines(check, "a.rs", "/usr/bin/env /etc/ssl /homework/").is_empty());
    }

    #[test]
    fn the_lock_file_is_left_out() {
        assert!(lines(check, "Cargo.lock", &below("home")).is_empty());
    }
}
