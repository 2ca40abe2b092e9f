//! Every way to get a config wrong, with the exact message it brings. The files are `config/broken/*.yaml`; a file's
//! `# --set a.b=value` lines are overrides, and its messages stand in `config/broken/*.expected`.
//!
//! After a deliberate change of messages: `ENTRENAR_BLESS=1 cargo test -p entrenar-train --test config_broken`, then
//! read the difference.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/broken")
}

fn messages(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let sets: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# --set "))
        .map(str::to_owned)
        .collect();
    let name = path.file_name().unwrap().to_str().unwrap();
    match entrenar_train::config::parse(&bytes, name, Path::new("/folder"), &sets) {
        Ok(_) => panic!("{name} is accepted"),
        Err(error) => {
            let mut out = error.to_string();
            let _ = writeln!(out);
            out
        }
    }
}

#[test]
fn each_broken_config_has_its_exact_message() {
    let bless = std::env::var_os("ENTRENAR_BLESS").is_some();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    assert!(paths.len() >= 30, "{} broken configs", paths.len());
    let mut wrong = String::new();
    for path in paths {
        let expected_path = path.with_extension("expected");
        let came = messages(&path);
        if bless {
            std::fs::write(&expected_path, &came).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if came != expected {
            let _ = writeln!(
                wrong,
                "{}\nexpected:\n{expected}came:\n{came}",
                path.display()
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_config_that_cannot_be_read_says_so() {
    let error = entrenar_train::config::load(Path::new("no/such/file.yaml"), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("no/such/file.yaml: cannot read the config: "),
        "{error}"
    );
    let error = entrenar_train::config::load(&folder(), &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot read the config: "), "{error}");
    let endless = Path::new("/dev/zero");
    if endless.exists() {
        let error = entrenar_train::config::load(endless, &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/dev/zero:1:1: expected a config of at most 1048576 bytes"),
            "{error}"
        );
    }
}
