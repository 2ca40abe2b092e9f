//! Every dependency is used, ARCHITECTURE.md says why it is here, and its table
//! names nothing else.
//!
//! The list is `[workspace.dependencies]` of the root manifest; a reason is any
//! mention of the crate in backquotes. A member uses what it declares when a
//! line of its sources has the crate's name as the beginning of a path.

use super::Finding;
use crate::project::{Package, Project};

const MANIFEST: &str = "Cargo.toml";
const REASONS: &str = "ARCHITECTURE.md";

/// Where the table of reasons begins; it ends with the section.
const TABLE: &str = "## Dependencies";

/// Reports dependencies that nobody uses or that have no reason, and reasons without a dependency.
pub fn check(project: &Project) -> Vec<Finding> {
    let text = |path: &str| {
        project
            .files
            .iter()
            .find(|file| file.path == path)
            .map_or("", |file| file.text.as_str())
    };
    let reasons = text(REASONS);
    let mut findings = Vec::new();
    for (name, line) in shared(text(MANIFEST)) {
        if project.packages.iter().any(|package| package.name == name) {
            continue;
        }
        if !project
            .packages
            .iter()
            .any(|package| package.registry.iter().any(|used| used == name))
        {
            let message = format!("no member uses `{name}`");
            findings.push(Finding::new(MANIFEST, line, message));
        } else if !reasons.contains(&format!("`{name}`")) {
            let message = format!("{REASONS} does not say why `{name}` is here");
            findings.push(Finding::new(MANIFEST, line, message));
        }
    }
    let known: Vec<&str> = shared(text(MANIFEST)).iter().map(|pair| pair.0).collect();
    for (name, line) in explained(reasons) {
        if !known.contains(&name) {
            let message = format!("the table has `{name}`, which is no dependency");
            findings.push(Finding::new(REASONS, line, message));
        }
    }
    for package in &project.packages {
        let idle = package
            .registry
            .iter()
            .filter(|name| !mentioned(project, package, name));
        findings.extend(idle.map(|name| {
            let message = format!("declares `{name}` and no source of it begins a path with it");
            Finding::new(&package.manifest, 1, message)
        }));
    }
    findings
}

/// Whether a source of the package has a path that begins with the crate.
fn mentioned(project: &Project, package: &Package, name: &str) -> bool {
    let folder = package.manifest.trim_end_matches(MANIFEST);
    let name = name.replace('-', "_");
    let sources = project.files.iter().filter(|file| {
        // A member's folder may hold no other member, so a prefix is enough.
        file.is_rust() && file.path.starts_with(folder)
    });
    sources
        .flat_map(|file| file.text.lines())
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| begins_path(line, &name))
}

/// Whether `name::` stands in the line as the first part of a path.
fn begins_path(line: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| {
        let before = &line[..at];
        // `::name` is a path from the outside, `other::name` is not.
        let before = before.strip_suffix("::").unwrap_or(before);
        line[at + name.len()..].starts_with("::") && !before.ends_with(part_of_name)
    })
}

/// The crates in the first column of the table of reasons, with their lines.
fn explained(reasons: &str) -> Vec<(&str, usize)> {
    let mut inside = false;
    let mut names = Vec::new();
    for (index, line) in reasons.lines().enumerate() {
        if line.starts_with("## ") {
            inside = line.trim() == TABLE;
        } else if inside && let Some(row) = line.strip_prefix('|') {
            let cell = row.split('|').next().unwrap_or_default();
            // Between backquotes: every second part.
            names.extend(cell.split('`').skip(1).step_by(2).map(|n| (n, index + 1)));
        }
    }
    names
}

/// The keys of `[workspace.dependencies]` with their lines.
fn shared(manifest: &str) -> Vec<(&str, usize)> {
    let mut inside = false;
    let mut keys = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim() == "[workspace.dependencies]";
        } else if inside
            && !line.starts_with('#')
            && let Some((key, _)) = line.split_once('=')
        {
            keys.push((key.trim(), index + 1));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Package;

    const SHARED: &str = "[workspace]\nresolver = \"3\"\n[workspace.dependencies]\n# Ours.\n\
                          lower = { path = \"lower\" }\nserde = \"1\"\nrayon = \"1\"\n[profile.dev]\nopt-level = 1\n";

    fn complaints(reasons: &str, used: &[&str]) -> Vec<(usize, String)> {
        let source = "use serde::Serialize;\nlet n = ::rayon::threads();\n";
        let mut project = Project::of(&[
            (MANIFEST, SHARED),
            (REASONS, reasons),
            ("lower/src/lib.rs", source),
        ]);
        project.packages.push(Package {
            name: "lower".into(),
            manifest: "lower/Cargo.toml".into(),
            arrows: Vec::new(),
            registry: used.iter().map(|name| name.to_string()).collect(),
        });
        check(&project)
            .into_iter()
            .map(|finding| (finding.line, finding.message))
            .collect()
    }

    #[test]
    fn used_and_explained_is_clean() {
        assert_eq!(
            complaints("`serde` reads, `rayon` runs.", &["serde", "rayon"]),
            []
        );
    }

    #[test]
    fn unused_and_unexplained_are_found() {
        let unused = (7, "no member uses `rayon`".to_string());
        assert_eq!(
            complaints("`serde` reads, `rayon` runs.", &["serde"]),
            [unused]
        );
        let unexplained = (
            6,
            "ARCHITECTURE.md does not say why `serde` is here".to_string(),
        );
        assert_eq!(
            complaints("serde-like; `rayon` runs.", &["serde", "rayon"]),
            [unexplained]
        );
    }

    #[test]
    fn a_reason_without_a_dependency_is_found() {
        let table = "# A\n| `other` | not this table |\n## Dependencies\n| crate | why |\n|---|---|\n\
                     | `serde`, `plotters` | `words` |\n| `rayon` | runs |\n## More\n| `later` | no |\n";
        let stale = (
            6,
            "the table has `plotters`, which is no dependency".to_string(),
        );
        assert_eq!(complaints(table, &["serde", "rayon"]), [stale]);
    }

    #[test]
    fn what_a_member_declares_and_never_names_is_found() {
        let idle = (
            1,
            "declares `csv` and no source of it begins a path with it".to_string(),
        );
        assert_eq!(
            complaints("`serde` `rayon`", &["serde", "rayon", "csv"]),
            [idle]
        );
    }

    #[test]
    fn a_path_begins_with_the_crate_itself() {
        for line in ["use gemm::x;", "= ::gemm::x()", "(gemm::x", "gemm::gemm("] {
            assert!(begins_path(line, "gemm"), "{line}");
        }
        for line in ["crate::gemm::x", "my_gemm::x", "gemm(x)", "use gemm;", ""] {
            assert!(!begins_path(line, "gemm"), "{line}");
        }
    }
}
