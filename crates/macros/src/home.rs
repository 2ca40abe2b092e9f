//! Where the generated code finds `Parameters`: `entrenar-nn` where the package depends on it, else the façade.

use std::path::Path;

use proc_macro2::TokenStream;
use quote::quote;

/// The path of the crate with the traits, seen from the package being compiled.
pub fn path() -> TokenStream {
    let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
    let manifest = std::env::var("CARGO_MANIFEST_DIR")
        .ok()
        .and_then(|dir| std::fs::read_to_string(Path::new(&dir).join("Cargo.toml")).ok())
        .unwrap_or_default();
    if package == "entrenar-nn" || names(&manifest, "entrenar-nn") || !names(&manifest, "entrenar")
    {
        quote!(::entrenar_nn)
    } else {
        quote!(::entrenar::nn)
    }
}

/// Whether a manifest lists the dependency `name`, in any of TOML's three spellings.
fn names(manifest: &str, name: &str) -> bool {
    manifest.lines().any(|line| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            return header
                .trim_end_matches(']')
                .rsplit_once("dependencies.")
                .is_some_and(|(_, last)| last.trim_matches('"') == name);
        }
        let key = line.split(['=', '.']).next().unwrap_or("").trim();
        key.trim_matches('"') == name
    })
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn all_spellings_of_a_dependency_are_seen() {
        for manifest in [
            "[dependencies]\nentrenar = \"0.1\"\n",
            "[dependencies]\n  entrenar.workspace = true\n",
            "[dependencies.entrenar]\nversion = \"0.1\"\n",
            "[target.'cfg(unix)'.dependencies.entrenar]\n",
            "[dev-dependencies]\n\"entrenar\" = { path = \"..\" }\n",
        ] {
            assert!(names(manifest, "entrenar"), "{manifest}");
        }
        for manifest in [
            "",
            "# entrenar = \"0.1\"\n",
            "[dependencies]\nentrenar-nn = \"0.1\"\n",
            "[dependencies]\nserde = \"1\" # entrenar\n",
            "[package]\nname = \"entrenar\"\n",
        ] {
            assert!(!names(manifest, "entrenar"), "{manifest}");
        }
    }
}
