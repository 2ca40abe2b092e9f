//! Tests: every call of a save fails, kills the process, or is the last before a power cut.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use entrenar_base::{Array, Result};

use super::*;
use crate::faults::{Fault, FaultyDisk, entries};
use crate::power::PowerDisk;

/// A checkpoint whose content is known from `value`.
fn save(store: &Store, step: u64, value: f32) -> Result<Checkpoint> {
    store.save(step, |writer| {
        let weights = [
            ("a", Array::full([300], value)),
            ("b", Array::scalar(value as i64)),
        ];
        writer.tensors("model.safetensors", &weights)?;
        writer.tensors("optimizer.safetensors", &weights[..1])?;
        writer.json("state.json", &value)
    })
}

/// The value of a checkpoint, every byte of it verified.
fn value(checkpoint: &Checkpoint) -> f32 {
    let value: f32 = checkpoint.json("state.json").unwrap();
    let file = checkpoint.tensors("model.safetensors").unwrap();
    assert_eq!(
        file.tensor("a").unwrap().to_vec::<f32>().unwrap(),
        [value; 300]
    );
    assert!(checkpoint.verify().is_intact());
    value
}

fn newest(store: &Store) -> (u64, f32) {
    let found = store.latest().unwrap();
    assert_eq!(found.skipped, [], "half checkpoints are never visible");
    let checkpoint = found.checkpoint.expect("a checkpoint is always there");
    (checkpoint.step(), value(&checkpoint))
}

/// A store with steps 1 and 2 on a real disk.
fn prepared() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("checkpoints");
    let store = Store::new(&dir).unwrap();
    save(&store, 1, 1.0).unwrap();
    save(&store, 2, 2.0).unwrap();
    store.set_best(1).unwrap();
    (root, dir)
}

/// Saves step `step` with a fault at call n, for every n; `after` looks at the result.
fn for_every_call(step: u64, fault: Fault, after: impl Fn(&Path, Option<&str>, Result<()>)) {
    let mut calls = 0;
    for n in 0.. {
        let (_root, dir) = prepared();
        let disk = FaultyDisk::new(n, fault);
        let store = Store::with_disk(&dir, Arc::new(disk.clone())).unwrap();
        let result = save(&store, step, 9.0).map(|_| ());
        drop(store);
        let Some(call) = disk.failed() else {
            result.unwrap();
            break;
        };
        calls += 1;
        after(&dir, Some(call), result);
    }
    // Four files of at least create, write and sync; the directory's own four.
    assert!(calls >= 16, "only {calls} calls");
}

#[test]
fn a_full_disk_at_any_call_leaves_the_earlier_checkpoints() {
    for step in [3, 2] {
        for_every_call(step, Fault::Error, |dir, call, result| {
            // Only the removal of a replaced checkpoint may fail in silence.
            let late = matches!(call, Some("remove_dir_all" | "rename")) && result.is_ok();
            if let Err(e) = &result {
                assert!(e.to_string().contains("No space left"), "{e}");
                assert!(e.to_string().contains("checkpoints"), "{e}");
            } else {
                assert!(late, "{call:?} failed in silence");
            }
            let found = newest(&Store::at(dir));
            match result {
                Ok(()) => assert_eq!(found, (step, 9.0)),
                Err(_) if found.1 == 9.0 => assert_eq!(call, Some("sync_dir")),
                Err(_) => assert_eq!(found, (2, 2.0)),
            }
            let names = entries(dir);
            if !late && found.1 != 9.0 {
                assert_eq!(names, ["best", "step-1", "step-2"]);
            }
            // The run goes on.
            let store = Store::new(dir).unwrap();
            assert_eq!(newest(&store), found);
            save(&store, 4, 4.0).unwrap();
            assert_eq!(newest(&store), (4, 4.0));
            assert!(entries(dir).iter().all(|name| !name.starts_with('.')));
            assert_eq!(value(&store.open(1).unwrap()), 1.0);
        });
    }
}

#[test]
fn a_kill_at_any_call_leaves_whole_checkpoints() {
    for step in [3, 2] {
        for_every_call(step, Fault::Kill, |dir, _, _| {
            let store = Store::new(dir).unwrap();
            let found = newest(&store);
            assert!(found == (2, 2.0) || found == (step, 9.0), "{found:?}");
            assert!(entries(dir).iter().all(|name| !name.starts_with('.')));
            assert_eq!(value(&store.open(1).unwrap()), 1.0);
            assert_eq!(store.best().unwrap(), Some(1));
        });
    }
}

#[test]
fn a_kill_while_pruning_leaves_whole_checkpoints() {
    for n in 0..12 {
        let (_root, dir) = prepared();
        save(&Store::new(&dir).unwrap(), 3, 3.0).unwrap();
        let disk = FaultyDisk::new(n, Fault::Kill);
        let store = Store::with_disk(&dir, Arc::new(disk)).unwrap();
        let _ = store.prune(1, &[]);
        drop(store);
        let store = Store::new(&dir).unwrap();
        assert_eq!(newest(&store), (3, 3.0));
        for step in store.steps().unwrap() {
            assert_eq!(value(&store.open(step).unwrap()), step as f32, "call {n}");
        }
        assert!(store.steps().unwrap().contains(&1), "the best stays");
        assert!(entries(&dir).iter().all(|name| !name.starts_with('.')));
    }
}

/// Ways to lose what was not synced: nothing of it survives, all of it, or any mixture.
fn choices(seed: u64) -> Box<dyn FnMut(usize) -> usize> {
    match seed {
        0 => Box::new(|_| 0),
        1 => Box::new(|n| n - 1),
        seed => {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Box::new(move |n| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 33) as usize % n
            })
        }
    }
}

#[test]
fn a_power_cut_at_any_call_leaves_the_newest_saved_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let disk = PowerDisk::new(root.path());
    let dir = root.path().join("run/checkpoints");
    let store = Store::with_disk(&dir, Arc::new(disk.clone())).unwrap();
    // After each of these calls have returned, its outcome must survive.
    let mut saved = vec![(disk.calls(), None)];
    save(&store, 1, 1.0).unwrap();
    saved.push((disk.calls(), Some((1, 1.0))));
    save(&store, 2, 2.0).unwrap();
    saved.push((disk.calls(), Some((2, 2.0))));
    store.set_best(2).unwrap();
    saved.push((disk.calls(), Some((2, 2.0))));
    save(&store, 2, 22.0).unwrap();
    saved.push((disk.calls(), Some((2, 22.0))));
    save(&store, 3, 3.0).unwrap();
    saved.push((disk.calls(), Some((3, 3.0))));
    store.prune(1, &[]).unwrap();
    saved.push((disk.calls(), Some((3, 3.0))));

    for pair in saved.windows(2) {
        let [(begin, before), (end, after)] = [pair[0], pair[1]];
        for n in begin..=end {
            let model = disk.after(n);
            for seed in 0..12 {
                let root = tempfile::tempdir().unwrap();
                model.restore(root.path(), &mut choices(seed));
                let dir = root.path().join("run/checkpoints");
                let store = Store::new(&dir).unwrap();
                let found = store.latest_intact().unwrap();
                assert_eq!(found.skipped, [], "call {n}, choices {seed}");
                let found = found.checkpoint.map(|c| (c.step(), value(&c)));
                if n == end {
                    assert_eq!(found, after, "call {n}, choices {seed}");
                } else {
                    assert!(
                        found == before || found == after,
                        "call {n}, choices {seed}: {found:?}"
                    );
                }
                assert!(entries(&dir).iter().all(|name| !name.starts_with('.')));
                if n >= saved[3].0 {
                    assert_eq!(store.best().unwrap(), Some(2));
                }
            }
        }
    }
}

/// The model itself must be able to lose data, or the test above proves nothing.
#[test]
fn without_syncs_a_power_cut_loses_data() {
    let root = tempfile::tempdir().unwrap();
    let disk = PowerDisk::new(root.path());
    let temporary = root.path().join("t");
    let mut file = disk.create(&temporary).unwrap();
    file.write_all(b"data").unwrap();
    disk.rename(&temporary, &root.path().join("f")).unwrap();
    disk.sync_dir(root.path()).unwrap();
    let after = tempfile::tempdir().unwrap();
    disk.after(disk.calls())
        .restore(after.path(), &mut choices(0));
    assert_eq!(fs::read(after.path().join("f")).unwrap(), b"");
}

#[test]
fn a_live_save_is_not_cleaned_away() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path()).unwrap();
    store
        .save(1, |writer| {
            writer.bytes("x", b"1")?;
            let other = Store::new(root.path()).unwrap();
            assert_eq!(other.cleaned(), [] as [PathBuf; 0]);
            writer.bytes("y", b"2")
        })
        .unwrap();
    assert!(store.open(1).unwrap().verify().is_intact());
}
