//! Models of the hub's cache, fabricated as `huggingface_hub` lays it out.

use std::fs;
use std::path::{Path, PathBuf};

use entrenar_base::Array;
use entrenar_io::hub::Hub;
use entrenar_io::{Weights, write_safetensors};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with `org/tiny` at `main` and at the pull request 1; returns its snapshot.
fn cached(cache: &Path) -> PathBuf {
    let folder = cache.join("models--org--tiny");
    let snapshot = folder.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(folder.join("refs/refs/pr")).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    fs::write(folder.join("refs/refs/pr/1"), format!("{COMMIT}\n")).unwrap();
    fs::create_dir(folder.join("blobs")).unwrap();
    let blob = folder.join("blobs/abc");
    write_safetensors(&blob, &[("w", Array::scalar(1.5f32))], &Default::default()).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("model.safetensors")).unwrap();
    #[cfg(not(unix))]
    fs::copy(blob, snapshot.join("model.safetensors")).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    snapshot
}

#[test]
fn a_name_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = cached(dir.path());
    let hub = Hub::at(dir.path());
    for revision in [None, Some("main"), Some("refs/pr/1"), Some(COMMIT)] {
        assert_eq!(hub.resolve("org/tiny", revision).unwrap(), snapshot);
    }
    let weights = Weights::open(hub.resolve("org/tiny", None).unwrap()).unwrap();
    assert_eq!(weights.tensor("w").unwrap().item::<f32>().unwrap(), 1.5);
}

#[test]
fn what_exists_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(Hub::at("/nowhere").resolve(path, None).unwrap(), dir.path());
}

#[test]
fn what_cannot_be_found_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = cached(dir.path());
    let hub = Hub::at(dir.path());
    let fails =
        |id: &str, revision: Option<&str>| hub.resolve(id, revision).unwrap_err().to_string();
    let e = fails("org/other", None);
    assert!(e.contains("does not hold revision main"), "{e}");
    assert!(e.contains("hf download org/other --revision main"), "{e}");
    assert!(e.contains(dir.path().to_str().unwrap()), "{e}");
    // How this build could have it.
    let way = match cfg!(feature = "hub") {
        true => "HF_HUB_OFFLINE=1",
        false => "a build with the feature `hub`",
    };
    assert!(e.contains(way), "{e}");
    for path in [
        "./no/such",
        "/no/such",
        "a/b/c",
        "../x",
        "a--b",
        "org/.x",
        "x y",
        "",
    ] {
        let e = fails(path, None);
        assert!(e.contains("no such file or directory"), "{path}: {e}");
    }
    for revision in ["", "../main", "a//b", "a b", "/x", "x/.."] {
        let e = fails("org/tiny", Some(revision));
        assert!(
            e.contains("expected a branch, a tag or a commit"),
            "{revision}: {e}"
        );
    }
    // A ref that leads elsewhere is no ref.
    let refs = dir.path().join("models--org--tiny/refs");
    fs::write(refs.join("evil"), "../../..").unwrap();
    assert!(fails("org/tiny", Some("evil")).contains("does not hold"));
    // Half a download.
    let index = r#"{"weight_map": {"w": "model-00001-of-00001.safetensors"}}"#;
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    assert!(fails("org/tiny", None).contains("is not whole"));
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    let e = fails("org/tiny", None);
    assert!(
        e.contains("model-00001-of-00001.safetensors` is missing"),
        "{e}"
    );
    let e = Hub::from_vars(|_| None)
        .resolve("org/tiny", None)
        .unwrap_err();
    assert!(e.to_string().contains("HF_HUB_CACHE"), "{e}");
}

#[test]
fn where_the_cache_is() {
    let of = |vars: &[(&str, &str)]| {
        let find = |name: &str| {
            let found = vars.iter().find(|(n, _)| *n == name);
            found.map(|(_, v)| v.to_string())
        };
        Hub::from_vars(find).cache().map(Path::to_path_buf)
    };
    let all = [
        ("HF_HUB_CACHE", "/a"),
        ("HF_HOME", "/b"),
        ("XDG_CACHE_HOME", "/c"),
        ("HOME", "/d"),
    ];
    let expected = [
        "/a",
        "/b/hub",
        "/c/huggingface/hub",
        "/d/.cache/huggingface/hub",
    ];
    for (from, path) in expected.iter().enumerate() {
        assert_eq!(of(&all[from..]).as_deref(), Some(Path::new(path)));
    }
    assert_eq!(of(&[]), None);
    assert_eq!(
        of(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/b")]),
        Some("/b/hub".into())
    );
}
