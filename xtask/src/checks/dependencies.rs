//! Every shared dependency is used, and ARCHITECTURE.md says why it is here.
//!
//! The list is `[workspace.dependencies]` of the root manifest; a reason is any
//! mention of the crate in backquotes.

use super::Finding;
use crate::project::Project;

const MANIFEST: &str = "Cargo.toml";
const REASONS: &str = "ARCHITECTURE.md";

/// Reports shared dependencies that no member uses or that have no reason.
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
    findings
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
        let mut project = Project::of(&[(MANIFEST, SHARED), (REASONS, reasons)]);
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
}
