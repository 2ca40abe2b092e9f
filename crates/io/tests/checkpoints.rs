//! The store from outside: what is kept, what is refused, which damage is named.
//!
//! Interruptions and full disks are tested inside the crate (`src/store/crash.rs`).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use entrenar_base::{Array, DType, ErrorKind};
use entrenar_io::{Checkpoint, SafeTensors, Store, inspect};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn save(store: &Store, step: u64) -> Checkpoint {
    store
        .save(step, |writer| {
            writer.tensors(
                "model.safetensors",
                &[
                    ("layer.weight", Array::full([4, 2], step as f32)),
                    ("layer.bias", Array::full([4], 0.5f64)),
                    ("flag", Array::scalar(true)),
                    ("empty", Array::zeros([0, 3], DType::BF16)),
                ],
            )?;
            writer.tensors("optimizer.safetensors", &[("m", Array::full([2], 1i32))])?;
            writer.json("state.json", &HashMap::from([("step", step)]))?;
            writer.bytes("rng.bin", &[1, 2, 3])
        })
        .unwrap()
}

/// Format version 1 stays readable.
#[test]
fn the_first_format_is_read() {
    let store = Store::at(fixture("checkpoint-v1"));
    assert_eq!(store.best().unwrap(), Some(12));
    let found = store.latest_intact().unwrap();
    assert_eq!(found.skipped, []);
    let checkpoint = found.checkpoint.unwrap();
    assert_eq!(checkpoint.step(), 12);
    assert_eq!(checkpoint.manifest().producer, "entrenar 0.1.0");
    let report = checkpoint.verify();
    assert!(report.is_intact(), "{report}");
    assert_eq!((report.files, report.tensors), (4, 12));
    let model = checkpoint.tensors("model.safetensors").unwrap();
    assert_eq!(model.metadata()["format"], "pt");
    assert_eq!(
        model.tensor("layer.bf16").unwrap().to_f64_vec(),
        [-7.0, -4.0, -1.0, 2.0, 5.0, 8.0]
    );
    let moments = checkpoint.tensors("optimizer.safetensors").unwrap();
    assert_eq!(
        moments.tensor("layer.f32.m").unwrap().to_f64_vec(),
        [0.125; 6]
    );
    let state: BTreeMap<String, u64> = checkpoint.json("state.json").unwrap();
    assert_eq!(
        state,
        BTreeMap::from([("epoch".into(), 3), ("sample".into(), 40)])
    );
    assert_eq!(
        checkpoint.bytes("notes.txt").unwrap(),
        b"format version 1\n"
    );
}

#[test]
fn a_later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path()).unwrap();
    save(&store, 1);
    save(&store, 2);
    let path = dir.path().join("step-2/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("\"format_version\": 1", "\"format_version\": 2"),
    )
    .unwrap();
    for e in [
        store.open(2).unwrap_err(),
        store.latest().unwrap_err(),
        inspect(dir.path().join("step-2")).unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Format);
        let message = e.to_string();
        assert!(
            message.contains("format version 2 is newer than this program, which reads version 1"),
            "{message}"
        );
    }
    assert_eq!(store.open(1).unwrap().step(), 1);
}

#[test]
fn what_is_saved_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("run/checkpoints")).unwrap();
    assert!(store.latest().unwrap().checkpoint.is_none());
    assert_eq!(store.best().unwrap(), None);
    for step in [9, 10, 100] {
        save(&store, step);
    }
    assert_eq!(store.steps().unwrap(), [9, 10, 100]);
    let checkpoint = store.latest().unwrap().checkpoint.unwrap();
    assert_eq!(checkpoint.step(), 100);
    assert_eq!(
        checkpoint.files().collect::<Vec<_>>(),
        [
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
            "rng.bin"
        ]
    );
    assert!(checkpoint.contains("rng.bin") && !checkpoint.contains("manifest.json"));
    assert_eq!(checkpoint.bytes("rng.bin").unwrap(), [1, 2, 3]);
    let e = checkpoint.bytes("other").unwrap_err().to_string();
    assert!(e.contains("state.json") && e.contains("`other`"), "{e}");
    let e = checkpoint.tensors("rng.bin").unwrap_err().to_string();
    assert!(e.contains("rng.bin: was not saved as a safetensors"), "{e}");
    let e = checkpoint.json::<Vec<u8>>("state.json").unwrap_err();
    assert!(e.to_string().contains("state.json: invalid type"), "{e}");
    let e = store.open(11).unwrap_err().to_string();
    assert!(e.contains("step-11: manifest.json: No such file"), "{e}");
}

#[test]
fn a_failing_save_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path()).unwrap();
    for bad in ["", "../x", "a/b", "manifest.json", ".tmp-x"] {
        let e = store.save(1, |w| w.bytes(bad, b"")).unwrap_err();
        assert!(e.to_string().contains("a new plain file name"), "{e}");
    }
    let e = store
        .save(1, |w| {
            w.bytes("a", b"")?;
            w.json("a", &1)
        })
        .unwrap_err();
    assert!(e.to_string().contains("has it already"), "{e}");
    let twice = [("x", Array::scalar(1i64)), ("x", Array::scalar(1i64))];
    let e = store
        .save(1, |w| w.tensors("m.safetensors", &twice))
        .unwrap_err();
    assert!(e.to_string().contains("m.safetensors: two tensors"), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Files and directories that are not checkpoints do not count and are not removed.
#[test]
fn foreign_entries_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "step-07",
        "step-x",
        "step-",
        "notes",
        "step-+3",
        "step-1.old",
    ] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::create_dir(dir.path().join(".tmp-step-3-9-9")).unwrap();
    fs::write(dir.path().join(".tmp-step-3-9-9/x"), "x").unwrap();
    fs::write(dir.path().join(".tmp-best-9-9"), "x").unwrap();
    let store = Store::new(dir.path()).unwrap();
    assert_eq!(store.cleaned().len(), 2);
    assert_eq!(store.steps().unwrap(), [] as [u64; 0]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
}

#[test]
fn damaged_ones_are_passed_over_with_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path()).unwrap();
    for step in 1..=6 {
        save(&store, step);
    }
    fs::remove_file(dir.path().join("step-6/manifest.json")).unwrap();
    fs::write(dir.path().join("step-5/manifest.json"), "{").unwrap();
    fs::remove_file(dir.path().join("step-4/rng.bin")).unwrap();
    fs::write(dir.path().join("step-3/rng.bin"), [1, 2]).unwrap();
    // Right length, wrong content: seen by verifying, not by looking.
    fs::write(dir.path().join("step-2/rng.bin"), [1, 2, 4]).unwrap();
    fs::rename(dir.path().join("step-6"), dir.path().join("step-9")).unwrap();

    let found = store.latest().unwrap();
    assert_eq!(found.checkpoint.unwrap().step(), 2);
    let reasons: Vec<(u64, &str)> = found
        .skipped
        .iter()
        .map(|s| (s.step, s.reason.as_str()))
        .collect();
    assert_eq!(reasons.len(), 4);
    for (reason, (step, want)) in reasons.iter().zip([
        (9, "manifest.json: No such file"),
        (5, "damaged manifest: "),
        (4, "file `rng.bin`: No such file"),
        (3, "file `rng.bin`: 2 bytes, the manifest says 3"),
    ]) {
        assert_eq!(reason.0, step);
        assert!(reason.1.contains(want), "{reason:?}");
    }
    let found = store.latest_intact().unwrap();
    assert_eq!(found.checkpoint.unwrap().step(), 1);
    let last = found.skipped.last().unwrap();
    assert!(
        last.reason.contains("rng.bin: damaged: checksum"),
        "{last:?}"
    );

    // A directory renamed to another step is not that step.
    fs::rename(dir.path().join("step-1"), dir.path().join("step-7")).unwrap();
    let e = store.open(7).unwrap_err().to_string();
    assert!(e.contains("the manifest is that of step 1"), "{e}");
}

#[test]
fn pruning_keeps_the_newest_the_protected_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path()).unwrap();
    for step in 1..=8 {
        save(&store, step);
    }
    store.set_best(2).unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("best")).unwrap(),
        "step-2\n"
    );
    fs::write(dir.path().join("step-7/manifest.json"), "").unwrap();
    assert_eq!(store.prune(2, &[3]).unwrap(), [1, 4, 5]);
    assert_eq!(store.steps().unwrap(), [2, 3, 6, 7, 8]);
    assert_eq!(store.prune(0, &[]).unwrap(), [3, 6]);
    assert_eq!(store.steps().unwrap(), [2, 7, 8]);
    let e = store.set_best(3).unwrap_err().to_string();
    assert!(e.contains("step-3"), "{e}");
    assert_eq!(store.best().unwrap(), Some(2));
    for bad in ["", "step-", "7", "step-2 x"] {
        fs::write(dir.path().join("best"), bad).unwrap();
        let e = store.best().unwrap_err().to_string();
        assert!(e.contains("best: expected a name like"), "{e}");
    }
}

/// Where the bytes of each tensor lie in a file.
fn regions(path: &Path) -> Vec<(String, std::ops::Range<usize>)> {
    let file = SafeTensors::open(path).unwrap();
    let total: usize = file.infos().map(|(_, i)| i.bytes).sum();
    let mut at = file.size() - total;
    let names: Vec<String> = file.names().map(String::from).collect();
    names
        .into_iter()
        .map(|name| {
            let begin = at;
            at += file.info(&name).unwrap().bytes;
            (name, begin..at)
        })
        .collect()
}

/// Every byte of every file, one flipped bit each: noticed, and blamed on the right tensor.
#[test]
fn every_flipped_byte_is_noticed_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path()).unwrap();
    let checkpoint = save(&store, 1);
    let path = checkpoint.path().to_path_buf();
    let mut named = BTreeMap::new();
    for file in checkpoint.files().chain(["manifest.json"]) {
        let place = path.join(file);
        let good = fs::read(&place).unwrap();
        let regions = if file.ends_with(".safetensors") {
            regions(&place)
        } else {
            Vec::new()
        };
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            // Replaced, not rewritten: a mapped file must not change.
            fs::remove_file(&place).unwrap();
            fs::write(&place, &bad).unwrap();
            if file == "manifest.json" {
                assert!(Checkpoint::open(&path).is_err(), "manifest byte {at}");
                continue;
            }
            let damage = checkpoint.verify().damage;
            assert_eq!(damage.len(), 1, "{file} byte {at}: {damage:?}");
            assert_eq!(damage[0].file, file);
            let tensor = regions.iter().find(|(_, range)| range.contains(&at));
            let want = tensor.map(|(name, _)| name.clone());
            assert_eq!(damage[0].tensor, want, "{file} byte {at}");
            let e = if file.ends_with(".safetensors") {
                checkpoint.tensors(file).map(|_| ()).unwrap_err()
            } else {
                checkpoint.bytes(file).map(|_| ()).unwrap_err()
            };
            let message = e.to_string();
            assert!(message.contains(file), "{message}");
            if let Some(name) = want {
                assert!(
                    message.contains(&format!("`{name}` is damaged")),
                    "{message}"
                );
                *named.entry(name).or_insert(0) += 1;
            }
            assert!(store.latest_intact().unwrap().checkpoint.is_none());
        }
        fs::remove_file(&place).unwrap();
        fs::write(&place, &good).unwrap();
    }
    // Every byte of every tensor had its turn.
    let want = [
        ("flag", 1),
        ("layer.bias", 32),
        ("layer.weight", 32),
        ("m", 8),
    ];
    assert_eq!(named, want.map(|(name, n)| (name.to_string(), n)).into());
    assert!(checkpoint.verify().is_intact());
}
