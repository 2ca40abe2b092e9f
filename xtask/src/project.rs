//! What the checks look at: the workspace's packages and its tracked files.
//!
//! Packages come from `cargo metadata --no-deps`, files from `git ls-files`,
//! so build outputs and ignored files never count. Checks read only this
//! structure: their tests make one by hand (`Project::of`).

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tree as the checks see it.
#[derive(Debug, Default)]
pub struct Project {
    /// Workspace members.
    pub packages: Vec<Package>,
    /// Tracked text files; binary files are left out.
    pub files: Vec<File>,
}

/// A workspace member and its arrows to other members.
#[derive(Debug)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Manifest, relative to the root.
    pub manifest: String,
    /// Dependencies on other members.
    pub arrows: Vec<Arrow>,
    /// Names of the dependencies from a registry, of any kind.
    pub registry: Vec<String>,
}

/// One dependency of a member on a member.
#[derive(Debug)]
pub struct Arrow {
    /// The package pointed at.
    pub to: String,
    /// Which table of the manifest it stands in.
    pub kind: ArrowKind,
}

/// The table of the manifest that a dependency stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrowKind {
    /// `[dependencies]` or `[build-dependencies]`: part of what is built.
    Build,
    /// `[dev-dependencies]`: tests, examples and benches only.
    Dev,
}

/// A tracked text file.
#[derive(Debug)]
pub struct File {
    /// Path relative to the root, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl File {
    /// Whether the file is Rust source.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The folder under `crates/`, or the first folder elsewhere (`xtask`).
    pub fn home(&self) -> &str {
        let path = self.path.strip_prefix("crates/").unwrap_or(&self.path);
        path.split('/').next().unwrap_or(path)
    }
}

impl Project {
    /// Reads the workspace that this program belongs to.
    pub fn load() -> Result<Project, String> {
        let root = root();
        let metadata = output(
            root,
            "cargo",
            &["metadata", "--no-deps", "--format-version", "1"],
        )?;
        let packages = packages(&metadata, root)?;
        let listed = output(root, "git", &["ls-files", "-z"])?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            // A tracked file that was deleted but not yet committed is not there.
            let Ok(bytes) = std::fs::read(root.join(path)) else {
                continue;
            };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File {
                    path: path.to_string(),
                    text,
                });
            }
        }
        Ok(Project { packages, files })
    }

    /// A project of these files and no packages, for the tests of checks.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Project {
        let files = files
            .iter()
            .map(|(path, text)| File {
                path: path.to_string(),
                text: text.to_string(),
            })
            .collect();
        Project {
            packages: Vec::new(),
            files,
        }
    }
}

/// The workspace's folder.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Runs a program in `root` and gives back what it printed.
fn output(root: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{program} {}: {}",
            arguments.join(" "),
            message.trim()
        ));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{program} printed something not UTF-8"))
}

/// Reads the output of `cargo metadata`.
fn packages(metadata: &str, root: &Path) -> Result<Vec<Package>, String> {
    let metadata: Value = serde_json::from_str(metadata)
        .map_err(|error| format!("cargo metadata is not JSON: {error}"))?;
    let list = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata has no packages")?;
    let text = |value: &Value| value.as_str().map(str::to_string);
    let mut packages = Vec::new();
    for package in list {
        let name = text(&package["name"]).ok_or("a package has no name")?;
        let manifest = text(&package["manifest_path"]).ok_or("a package has no manifest")?;
        let manifest = PathBuf::from(manifest);
        let manifest = manifest
            .strip_prefix(root)
            .unwrap_or(&manifest)
            .display()
            .to_string();
        let mut arrows = Vec::new();
        let mut registry = Vec::new();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = text(&dependency["name"]).ok_or("a dependency has no name")?;
            // Only members are path dependencies here.
            if dependency["path"].is_null() {
                registry.push(to);
                continue;
            }
            let kind = match dependency["kind"].as_str() {
                Some("dev") => ArrowKind::Dev,
                _ => ArrowKind::Build,
            };
            arrows.push(Arrow { to, kind });
        }
        packages.push(Package {
            name,
            manifest,
            arrows,
            registry,
        });
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_gives_arrows_between_members() {
        let metadata = r#"{"packages": [{"name": "upper", "manifest_path": "/r/crates/upper/Cargo.toml",
            "dependencies": [
                {"name": "lower", "kind": null, "path": "/r/crates/lower"},
                {"name": "helper", "kind": "dev", "path": "/r/crates/helper"},
                {"name": "serde", "kind": null}
            ]}]}"#;
        let packages = packages(metadata, Path::new("/r")).unwrap();
        assert_eq!(packages[0].registry, ["serde"]);
        assert_eq!(packages.len(), 1);
        assert_eq!(packages[0].manifest, "crates/upper/Cargo.toml");
        let arrows: Vec<_> = packages[0]
            .arrows
            .iter()
            .map(|a| (a.to.as_str(), a.kind))
            .collect();
        assert_eq!(
            arrows,
            [("lower", ArrowKind::Build), ("helper", ArrowKind::Dev)]
        );
    }

    #[test]
    fn metadata_of_another_shape_is_refused() {
        assert!(packages("{}", Path::new("/r")).is_err());
        assert!(packages("nothing", Path::new("/r")).is_err());
    }

    #[test]
    fn a_failing_program_is_an_error_with_its_message() {
        let message = output(Path::new("."), "git", &["no-such-verb"]).unwrap_err();
        assert!(message.contains("no-such-verb"), "{message}");
        assert!(output(Path::new("."), "no-such-program-here", &[]).is_err());
    }

    #[test]
    fn this_workspace_loads() {
        // An unpacked archive has no list of tracked files.
        if !root().join(".git").exists() {
            println!("skipped: not a git checkout");
            return;
        }
        let project = Project::load().unwrap();
        assert!(
            project
                .packages
                .iter()
                .any(|package| package.name == "xtask")
        );
        assert!(
            project
                .packages
                .iter()
                .any(|package| package.name == "entrenar-base")
        );
    }

    #[test]
    fn a_file_knows_its_crate() {
        let project = Project::of(&[("crates/base/src/lib.rs", ""), ("xtask/src/main.rs", "")]);
        assert_eq!(project.files[0].home(), "base");
        assert_eq!(project.files[1].home(), "xtask");
    }
}
