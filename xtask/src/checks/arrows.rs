//! Dependencies between members point down only.
//!
//! [`FLOORS`] is the table of ARCHITECTURE.md: who stands where, and who may be
//! used from the same floor or is barred although it stands lower. A member
//! that the table does not list is a finding, so that a new crate is placed
//! before it is used. Dev-dependencies follow the same rule but may also use a
//! side crate (a replay suite in a test is no part of what users build).

use super::Finding;
use crate::project::{Arrow, ArrowKind, File, Package, Project};

/// Where a member stands.
struct Floor {
    folder: &'static str,
    level: u8,
    knows: Knows,
}

/// What a member may depend on.
enum Knows {
    /// Every lower floor.
    Below,
    /// These folders only.
    Only(&'static [&'static str]),
}

/// Tools beside the building: they may use any floor, no floor may use them.
const SIDE: u8 = u8::MAX;

const FLOORS: &[Floor] = &[
    Floor {
        folder: "base",
        level: 0,
        knows: Knows::Below,
    },
    Floor {
        folder: "cpu",
        level: 1,
        knows: Knows::Below,
    },
    Floor {
        folder: "cuda",
        level: 1,
        knows: Knows::Below,
    },
    Floor {
        folder: "core",
        level: 2,
        knows: Knows::Below,
    },
    // A derive macro writes paths, it links nothing of ours.
    Floor {
        folder: "macros",
        level: 3,
        knows: Knows::Only(&[]),
    },
    Floor {
        folder: "nn",
        level: 3,
        knows: Knows::Only(&["base", "cpu", "cuda", "core", "macros"]),
    },
    Floor {
        folder: "io",
        level: 3,
        knows: Knows::Only(&["base", "cpu"]),
    },
    Floor {
        folder: "zoo",
        level: 4,
        knows: Knows::Below,
    },
    Floor {
        folder: "tune",
        level: 4,
        knows: Knows::Below,
    },
    Floor {
        folder: "train",
        level: 5,
        knows: Knows::Below,
    },
    Floor {
        folder: "entrenar",
        level: 6,
        knows: Knows::Below,
    },
    Floor {
        folder: "bench",
        level: SIDE,
        knows: Knows::Below,
    },
    Floor {
        folder: "conformance",
        level: SIDE,
        knows: Knows::Below,
    },
    Floor {
        folder: "py",
        level: SIDE,
        knows: Knows::Below,
    },
    Floor {
        folder: "xtask",
        level: SIDE,
        knows: Knows::Below,
    },
];

/// Reports arrows that do not point down, members without a floor and names
/// that do not follow the folder.
pub fn check(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &project.packages {
        let folder = folder(&package.manifest);
        let Some(from) = FLOORS.iter().find(|floor| floor.folder == folder) else {
            let message = format!("`{folder}` has no floor: place it in the table of arrows.rs");
            findings.push(Finding::new(&package.manifest, 1, message));
            continue;
        };
        let expected = package_name(folder);
        if package.name != expected {
            let message = format!(
                "folder `{folder}` holds `{}`, expected `{expected}`",
                package.name
            );
            findings.push(Finding::new(&package.manifest, 1, message));
        }
        for arrow in &package.arrows {
            if let Some(message) = objection(from, arrow) {
                let line = line_of(&project.files, package, arrow);
                findings.push(Finding::new(&package.manifest, line, message));
            }
        }
    }
    findings
}

/// Why an arrow is not allowed, if it is not.
fn objection(from: &Floor, arrow: &Arrow) -> Option<String> {
    let Some(to) = FLOORS
        .iter()
        .find(|floor| package_name(floor.folder) == arrow.to)
    else {
        return Some(format!(
            "`{}` points at `{}`, which has no floor",
            from.folder, arrow.to
        ));
    };
    // Tests may use neighbours: adapters are tested on the models of the zoo.
    let beside = to.level == SIDE || to.level == from.level;
    if arrow.kind == ArrowKind::Dev && beside && from.folder != to.folder {
        return None;
    }
    let allowed = match from.knows {
        Knows::Only(list) => list.contains(&to.folder),
        Knows::Below => to.level < from.level,
    };
    (!allowed).then(|| {
        format!(
            "`{}` must not know `{}`: dependencies point down only",
            from.folder, to.folder
        )
    })
}

/// The folder that a manifest stands in.
fn folder(manifest: &str) -> &str {
    manifest.rsplit('/').nth(1).unwrap_or(manifest)
}

/// The package name that a folder must carry.
fn package_name(folder: &str) -> String {
    match folder {
        "entrenar" | "xtask" => folder.to_string(),
        _ => format!("entrenar-{folder}"),
    }
}

/// The line of the manifest where the dependency is written.
fn line_of(files: &[File], package: &Package, arrow: &Arrow) -> usize {
    let text = files
        .iter()
        .find(|file| file.path == package.manifest)
        .map_or("", |file| &file.text);
    let mut table = "";
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            table = line;
        }
        let names_it = line
            .strip_prefix(&arrow.to)
            .is_some_and(|rest| rest.starts_with([' ', '.', '=']))
            || table.ends_with(&format!(".{}]", arrow.to));
        let in_kind = table.contains("dev-dependencies") == (arrow.kind == ArrowKind::Dev);
        if names_it && in_kind {
            return index + 1;
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A project of one package with arrows, and what the check says of it.
    fn complaints(folder: &str, arrows: &[(&str, ArrowKind)]) -> Vec<String> {
        let arrows = arrows
            .iter()
            .map(|&(to, kind)| Arrow {
                to: to.to_string(),
                kind,
            })
            .collect();
        let package = Package {
            name: package_name(folder),
            manifest: format!("crates/{folder}/Cargo.toml"),
            arrows,
            registry: vec![],
        };
        let project = Project {
            packages: vec![package],
            files: Vec::new(),
        };
        check(&project)
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn arrows_point_down() {
        use ArrowKind::Build;
        assert!(
            complaints("core", &[("entrenar-cpu", Build), ("entrenar-base", Build)]).is_empty()
        );
        assert!(complaints("nn", &[("entrenar-macros", Build)]).is_empty());
        assert!(complaints("bench", &[("entrenar", Build)]).is_empty());
        let wrong = [
            ("base", "entrenar-cpu"),
            ("cpu", "entrenar-cuda"),
            ("cpu", "entrenar-core"),
            ("core", "entrenar-nn"),
            ("nn", "entrenar-io"),
            ("io", "entrenar-core"),
            ("io", "entrenar-nn"),
            ("macros", "entrenar-base"),
            ("zoo", "entrenar-train"),
            ("zoo", "entrenar-tune"),
            ("train", "entrenar"),
            ("entrenar", "entrenar-bench"),
            ("core", "xtask"),
        ];
        for (from, to) in wrong {
            assert_eq!(complaints(from, &[(to, Build)]).len(), 1, "{from} -> {to}");
        }
    }

    #[test]
    fn tests_may_use_neighbours_but_not_point_up() {
        use ArrowKind::{Build, Dev};
        assert!(complaints("core", &[("entrenar-conformance", Dev)]).is_empty());
        assert_eq!(
            complaints("core", &[("entrenar-conformance", Build)]).len(),
            1
        );
        assert_eq!(complaints("core", &[("entrenar-nn", Dev)]).len(), 1);
        assert!(complaints("tune", &[("entrenar-zoo", Dev)]).is_empty());
        assert_eq!(complaints("tune", &[("entrenar-zoo", Build)]).len(), 1);
    }

    #[test]
    fn a_member_needs_a_floor_and_its_name() {
        assert_eq!(complaints("attic", &[]).len(), 1);
        assert_eq!(
            complaints("core", &[("entrenar-attic", ArrowKind::Build)]).len(),
            1
        );
        let package = Package {
            name: "core".into(),
            manifest: "crates/core/Cargo.toml".into(),
            arrows: vec![],
            registry: vec![],
        };
        let project = Project {
            packages: vec![package],
            files: Vec::new(),
        };
        assert_eq!(check(&project).len(), 1);
    }

    #[test]
    fn the_line_of_the_manifest_is_named() {
        let manifest = "[package]\nname = \"entrenar-io\"\n\n[dev-dependencies]\nentrenar-core.workspace = true\n\n\
                        [dependencies]\nentrenar-core = { path = \"../core\" }\n";
        let arrow = Arrow {
            to: "entrenar-core".into(),
            kind: ArrowKind::Build,
        };
        let package = Package {
            name: "entrenar-io".into(),
            manifest: "crates/io/Cargo.toml".into(),
            arrows: vec![arrow],
            registry: vec![],
        };
        let mut project = Project::of(&[("crates/io/Cargo.toml", manifest)]);
        project.packages.push(package);
        let findings = check(&project);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 8);
    }
}
