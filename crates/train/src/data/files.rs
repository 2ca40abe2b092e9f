//! Finds and reads plain input files.
//!
//! Globs give files in an order that depends on the names alone. Only regular
//! files are read (a pipe or device could be endless), and errors name the
//! file. Neighbours: `text.rs` and `csv_file.rs` read through here; `idx.rs`
//! reads compressed files its own way.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use entrenar_base::{Error, ErrorKind, Result};

use super::report::{shown, unusable};

/// The files that `patterns` name, relative to `directory`.
///
/// A pattern is a path or a glob (`*`, `?`, `[a-z]`, `**`); names that begin
/// with a dot are matched only by patterns that write the dot. Files come in
/// the order of the patterns, sorted by path within each, every file once.
///
/// # Errors
///
/// A pattern that is no glob, matches nothing, or names a directory.
pub fn find_files<S: AsRef<str>>(directory: &Path, patterns: &[S]) -> Result<Vec<PathBuf>> {
    if patterns.is_empty() {
        return Err(Error::config("no data path was given"));
    }
    let mut files: Vec<PathBuf> = Vec::new();
    let mut seen = HashSet::new();
    for pattern in patterns {
        let mut found = find_one(directory, pattern.as_ref())?;
        found.sort();
        files.extend(found.into_iter().filter(|file| seen.insert(file.clone())));
    }
    Ok(files)
}

fn find_one(directory: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let literal = directory.join(pattern);
    // A file whose name holds `[` or `*` is meant literally when it exists.
    if literal.is_file() {
        return Ok(vec![literal]);
    }
    if literal.is_dir() {
        return Err(unusable(
            &literal,
            format!(
                "expected a file or a pattern, got a directory; {} would take the text files in it",
                shown(&format!("{}/**/*.txt", pattern.trim_end_matches('/')))
            ),
        ));
    }
    if literal.exists() {
        return Err(unusable(&literal, "expected a regular file"));
    }
    if !pattern.contains(['*', '?', '[']) {
        return Err(unusable(&literal, "no such file"));
    }
    let wrong = |error: glob::PatternError| {
        Error::config(format!(
            "{} is no file pattern: {} at position {}",
            shown(pattern),
            error.msg,
            error.pos
        ))
    };
    // Looked at alone first, so that the position counts from the pattern's own beginning.
    glob::Pattern::new(pattern).map_err(wrong)?;
    let escaped = if Path::new(pattern).is_absolute() {
        pattern.to_string()
    } else {
        // The directory is no pattern, even if its name looks like one.
        let base = glob::Pattern::escape(&directory.to_string_lossy());
        Path::new(&base)
            .join(pattern)
            .to_string_lossy()
            .into_owned()
    };
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let entries = glob::glob_with(&escaped, options).map_err(wrong)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| {
            let path = error.path().to_path_buf();
            Error::io(path, "cannot look into it", error.into())
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{}: the pattern matches no file", literal.display()),
        ));
    }
    Ok(files)
}

/// The bytes of a regular file.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>> {
    regular_size(file)?;
    fs::read(file).map_err(|error| Error::io(file, "cannot read the file", error))
}

/// The size of a regular file; anything else is refused before it is opened.
pub(super) fn regular_size(file: &Path) -> Result<u64> {
    let metadata = fs::metadata(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => unusable(file, "no such file"),
        _ => Error::io(file, "cannot read the file", error),
    })?;
    if !metadata.is_file() {
        return Err(unusable(file, "expected a regular file"));
    }
    Ok(metadata.len())
}
