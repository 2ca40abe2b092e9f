//! What `inspect` says of each kind of path, as text and as JSON.

use std::fs;

use entrenar_base::Array;
use entrenar_io::inspect::Kind;
use entrenar_io::safetensors::with_checksums;
use entrenar_io::{Store, inspect, write_safetensors};

fn save(store: &Store, step: u64) {
    store
        .save(step, |writer| {
            writer.tensors("model.safetensors", &[("w", Array::full([3, 5], 1.0f32))])?;
            writer.tensors("optimizer.safetensors", &[("w.m", Array::full([15], 0f32))])?;
            writer.json("state.json", &step)
        })
        .unwrap();
}

/// A run directory with steps 10 and 20 and a final model.
fn run() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("checkpoints")).unwrap();
    save(&store, 10);
    save(&store, 20);
    store.set_best(10).unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    let metadata = [("format".to_string(), "pt".to_string())].into();
    write_safetensors(
        model.join("model.safetensors"),
        &[
            ("encoder.weight", Array::full([1000, 2], 1.0f32)),
            ("step", Array::scalar(3i64)),
        ],
        &metadata,
    )
    .unwrap();
    dir
}

#[test]
fn a_table_for_people() {
    let dir = run();
    let path = dir.path().join("model/model.safetensors");
    let found = inspect(&path).unwrap();
    assert_eq!(found.kind, Kind::Safetensors);
    let text = found.verify().unwrap().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("model.safetensors: safetensors file"));
    assert_eq!(
        lines[1..],
        [
            "  model.safetensors: 8.0 KiB, 2 tensors",
            "    format = pt",
            "name            dtype  shape               bytes  model.safetensors",
            "step            I64    []                      8",
            "encoder.weight  F32    [1000, 2]           8,000",
            "2,001 parameters, 7.8 KiB in tensors",
            &format!(
                "intact: 1 file, 2 tensors, {} bytes compared",
                fs::metadata(&path).unwrap().len()
            ),
            "  no checksums: structure and values only",
        ]
    );
}

#[test]
fn a_model_directory() {
    let dir = run();
    let found = inspect(dir.path().join("model")).unwrap();
    assert_eq!(found.kind, Kind::ModelDirectory);
    assert_eq!((found.parameters, found.tensor_bytes), (2001, 8008));
    assert_eq!(found.tensors[1].file, "model.safetensors");
}

#[test]
fn a_checkpoint_counts_its_model_only() {
    let dir = run();
    let path = dir.path().join("checkpoints/step-20");
    let found = inspect(&path).unwrap();
    assert_eq!((found.kind, found.step), (Kind::Checkpoint, Some(20)));
    assert_eq!((found.parameters, found.tensors.len()), (15, 2));
    assert_eq!(found.files.len(), 3);
    let verified = found.verify().unwrap().verification.unwrap();
    assert!(verified.checksums && verified.report.is_intact());
    assert_eq!((verified.report.files, verified.report.tensors), (3, 2));
}

#[test]
fn a_run_lists_its_checkpoints() {
    let dir = run();
    let store = Store::new(dir.path().join("checkpoints")).unwrap();
    save(&store, 30);
    fs::remove_file(store.path_of(30).join("state.json")).unwrap();
    let found = inspect(dir.path()).unwrap();
    assert_eq!(found.kind, Kind::RunDirectory);
    assert_eq!(found.parameters, 2001);
    let rows = &found.checkpoints;
    assert_eq!(
        rows.iter().map(|r| r.step).collect::<Vec<_>>(),
        [10, 20, 30]
    );
    assert_eq!(
        rows.iter().map(|r| r.best).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert!(rows[2].problem.as_ref().unwrap().contains("state.json"));
    let text = found.to_string();
    assert!(
        text.contains("checkpoint step 10: ") && text.contains(" (best)"),
        "{text}"
    );
    assert!(text.contains("checkpoint step 30: not usable: "), "{text}");
    let report = found.verify().unwrap().verification.unwrap().report;
    assert_eq!(report.damage.len(), 1);
    assert_eq!(report.damage[0].file, "checkpoints/step-30");
}

/// Damage is named through every door.
#[test]
fn the_damaged_tensor_is_named() {
    let dir = run();
    let place = dir.path().join("checkpoints/step-20/model.safetensors");
    let mut bytes = fs::read(&place).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&place, &bytes).unwrap();
    for (path, file) in [
        (place.clone(), "model.safetensors"),
        (dir.path().join("checkpoints/step-20"), "model.safetensors"),
        (
            dir.path().to_path_buf(),
            "checkpoints/step-20/model.safetensors",
        ),
    ] {
        let found = inspect(&path).unwrap().verify().unwrap();
        let text = found.to_string();
        let verification = found.verification.unwrap();
        let damage = &verification.report.damage[..];
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert_eq!(damage[0].file, file);
        assert_eq!(damage[0].tensor.as_deref(), Some("w"));
        assert!(
            text.contains(&format!("{file}: tensor `w` is damaged: checksum")),
            "{text}"
        );
    }
}

/// A file that vouches for itself: what the metadata say of each tensor.
#[test]
fn a_file_with_checksums_names_its_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let turned = Array::from_vec((0..6).map(f64::from).collect(), [2, 3]).unwrap();
    let tensors = [
        ("a", Array::full([3, 5], 1.0f32)),
        ("b", turned.transpose(0, 1).unwrap()),
    ];
    let metadata = with_checksums([("format".to_string(), "pt".to_string())].into(), &tensors);
    write_safetensors(&path, &tensors, &metadata).unwrap();
    let good = fs::read(&path).unwrap();
    let found = inspect(&path).unwrap().verify().unwrap();
    let text = found.to_string();
    assert!(
        text.contains("format = pt") && !text.contains("crc32c") && !text.contains("no checksums"),
        "{text}"
    );
    let verification = found.verification.unwrap();
    assert!(verification.checksums && verification.report.is_intact());

    let replaced = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes());
        let mut bytes = good.clone();
        bytes[at.unwrap()..][..to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cases = [
        // One bit of the last tensor: f32 data come after those of f64.
        (flipped, Some("a"), "checksum "),
        // The data are the same, their meaning is not.
        (replaced("[3,5]", "[5,3]"), Some("a"), "checksum "),
        (replaced("\"b\":{", "\"c\":{"), Some("c"), "no checksum"),
        (
            replaced("{\\\"a", "[\\\"a"),
            None,
            "checksums in the metadata",
        ),
    ];
    for (bytes, tensor, reason) in cases {
        fs::write(&path, bytes).unwrap();
        let found = inspect(&path).unwrap().verify().unwrap();
        let damage = found.verification.unwrap().report.damage;
        assert_eq!(damage[0].tensor.as_deref(), tensor, "{damage:?}");
        assert!(damage[0].reason.contains(reason), "{damage:?}");
    }
}

#[test]
fn values_that_are_not_finite_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let values = vec![1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let array = Array::from_vec(values, [4]).unwrap();
    let half = array.cast(entrenar_base::DType::BF16);
    write_safetensors(&path, &[("a", array), ("b", half)], &Default::default()).unwrap();
    let found = inspect(&path).unwrap().verify().unwrap();
    let verification = found.verification.as_ref().unwrap();
    assert!(verification.report.is_intact(), "not finite is not damaged");
    let counts: Vec<_> = verification
        .non_finite
        .iter()
        .map(|n| (n.tensor.as_str(), n.nan, n.infinite))
        .collect();
    assert_eq!(counts, [("a", 1, 2), ("b", 1, 2)]);
    assert!(
        found
            .to_string()
            .contains("tensor `a` has 1 NaN and 2 infinite")
    );
}

#[test]
fn json_for_programs() {
    let dir = run();
    let found = inspect(dir.path().join("checkpoints/step-10")).unwrap();
    let json = serde_json::to_value(found.verify().unwrap()).unwrap();
    assert_eq!(json["kind"], "checkpoint");
    assert_eq!(json["step"], 10);
    assert_eq!(json["parameters"], 15);
    assert_eq!(json["tensors"][0]["name"], "w");
    assert_eq!(json["tensors"][0]["dtype"], "F32");
    assert_eq!(json["tensors"][0]["shape"], serde_json::json!([3, 5]));
    assert_eq!(json["verification"]["damage"], serde_json::json!([]));
    assert_eq!(json["verification"]["checksums"], true);
}
