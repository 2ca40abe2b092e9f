//! Wording of data errors: places, shortened values, nearest names.
//!
//! Errors are [`entrenar_base::Error`]s whose message begins with the place
//! (`file:line:column`, as much of it as is known), which editors and
//! terminals turn into a link. Kinds: a file that cannot be read is `Io`, a
//! file with wrong content is `Format`, a request that makes no sense for the
//! data is `Config`. Neighbours: every file of [`crate::data`].

use std::path::Path;

use entrenar_base::{Error, ErrorKind};

/// A fault of the content at a line and column, both counted from 1.
#[track_caller]
pub(super) fn fault_at(file: &Path, (line, column): (u64, u64), message: impl AsRef<str>) -> Error {
    Error::new(
        ErrorKind::Format,
        format!("{}:{line}:{column}: {}", file.display(), message.as_ref()),
    )
}

/// A file or directory that is not there or is of the wrong kind.
#[track_caller]
pub(super) fn unusable(path: &Path, message: impl AsRef<str>) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("{}: {}", path.display(), message.as_ref()),
    )
}

/// Shortens a value for a message and escapes what would break a line.
pub(super) fn shown(value: &str) -> String {
    const MOST: usize = 40;
    let mut text: String = value.chars().take(MOST).collect();
    if value.chars().nth(MOST).is_some() {
        text.push('…');
    }
    format!("{text:?}")
}

/// `"a", "b", "c"`, cut after ten names.
pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    const MOST: usize = 10;
    let shown_names: Vec<String> = names
        .iter()
        .take(MOST)
        .map(|name| shown(name.as_ref()))
        .collect();
    let mut text = shown_names.join(", ");
    if names.len() > MOST {
        text.push_str(&format!(" and {} more", names.len() - MOST));
    }
    text
}

/// The candidate closest to `wanted`, when it is close enough to be a slip.
pub(super) fn nearest<'a>(
    wanted: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    candidates
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// `1 row`, `2 rows`: a count with its noun.
pub(super) fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lead_the_message() {
        let error = fault_at(Path::new("a.csv"), (2, 9), "expected a number");
        assert_eq!(error.to_string(), "a.csv:2:9: expected a number");
        assert_eq!(error.kind(), ErrorKind::Format);
    }

    #[test]
    fn values_are_shortened_and_escaped() {
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
        assert_eq!(shown(&"x".repeat(50)), format!("\"{}…\"", "x".repeat(40)));
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        assert!(listed(&names).ends_with("\"9\" and 2 more"));
        assert_eq!(listed(&names[..2]), "\"0\", \"1\"");
    }

    #[test]
    fn nearest_finds_slips_and_nothing_far() {
        let names = ["sepal_length", "sepal_width", "species"];
        assert_eq!(nearest("sepal_lenght", names), Some("sepal_length"));
        assert_eq!(nearest("Species", names), Some("species"));
        assert_eq!(nearest("qqq", names), None);
    }
}
