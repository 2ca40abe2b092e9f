//! What is written is what is read: all dtypes, views, empty and rank-0 tensors, any names.

use std::collections::BTreeMap;
use std::fs;

use entrenar_base::{Array, DType, Shape};
use entrenar_io::safetensors::to_bytes;
use entrenar_io::{SafeTensors, Weights, write_safetensors};
use proptest::prelude::*;

fn array() -> impl Strategy<Value = Array> {
    let dims = prop::collection::vec(0usize..4, 0..5);
    (
        prop::sample::select(DType::ALL.to_vec()),
        dims,
        any::<u64>(),
    )
        .prop_map(|(dtype, dims, seed)| {
            let shape = Shape::from(dims);
            let n = shape.numel() * dtype.size();
            let mut x = seed | 1;
            let bytes: Vec<u8> = (0..n)
                .map(|_| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let byte = (x >> 32) as u8;
                    if dtype == DType::Bool { byte & 1 } else { byte }
                })
                .collect();
            Array::from_bytes(&bytes, dtype, shape).unwrap()
        })
}

fn same(a: &Array, b: &Array) -> bool {
    // Bytes, not values: NaNs keep their payload.
    a.dtype() == b.dtype()
        && a.dims() == b.dims()
        && a.deep_copy().as_bytes() == b.deep_copy().as_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_dtype_and_shape(
        tensors in prop::collection::btree_map(".{0,12}", array(), 0..6),
        metadata in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
    ) {
        let tensors: Vec<(String, Array)> = tensors.into_iter().collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(&bytes, &to_bytes(&tensors, &metadata).unwrap());

        // Order of the input changes nothing.
        let reversed: Vec<(String, Array)> = tensors.iter().rev().cloned().collect();
        prop_assert_eq!(&bytes, &to_bytes(&reversed, &metadata).unwrap());

        for file in [
            SafeTensors::open(&path).unwrap(),
            SafeTensors::read(&path).unwrap(),
        ] {
            prop_assert_eq!(file.len(), tensors.len());
            prop_assert_eq!(file.metadata(), &metadata);
            for (name, array) in &tensors {
                let info = file.info(name).unwrap();
                prop_assert_eq!(&info.shape[..], array.dims());
                prop_assert_eq!(info.dtype.array_dtype(), Some(array.dtype()));
                prop_assert!(same(&file.tensor(name).unwrap(), array), "{}", name);
            }
        }

        // The reference reader sees the same.
        let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(reference.len(), tensors.len());
        for (name, array) in &tensors {
            let view = reference.tensor(name).unwrap();
            prop_assert_eq!(view.shape(), array.dims());
            prop_assert_eq!(view.data(), array.as_bytes().unwrap());
        }
    }
}

#[test]
fn views_are_written_as_they_read() {
    let base = Array::from_vec((0..12).map(|i| i as f32).collect(), [3, 4]).unwrap();
    let row = Array::from_vec(vec![1i32, 2], [2]).unwrap();
    let views = vec![
        ("transposed", base.transpose(0, 1).unwrap()),
        ("sliced", base.slice(1, 1, 4, 2).unwrap()),
        ("flipped", base.flip(0)),
        ("stretched", row.broadcast_to(&Shape::from([3, 2])).unwrap()),
        ("offset", base.slice(0, 2, 3, 1).unwrap()),
    ];
    let file =
        SafeTensors::from_bytes(to_bytes(&views, &BTreeMap::new()).unwrap(), "memory").unwrap();
    for (name, view) in &views {
        assert!(same(&file.tensor(name).unwrap(), view), "{name}");
    }
}

#[test]
fn mapped_tensors_share_the_pages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = [
        ("byte", Array::full([3], 1u8)),
        ("f64", Array::full([3], 1.0f64)),
        ("half", Array::zeros([3], DType::F16)),
        ("f32", Array::full([3], 1.0f32)),
    ];
    write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    for (name, _) in &tensors {
        let array = file.tensor(name).unwrap();
        assert!(!array.storage().is_writable(), "{name} was copied");
        let again = file.tensor(name).unwrap();
        assert_eq!(
            array.as_bytes().unwrap().as_ptr(),
            again.as_bytes().unwrap().as_ptr()
        );
    }
    // The array outlives the file handle and the file's name.
    let array = file.tensor("f64").unwrap();
    drop(file);
    fs::remove_file(&path).unwrap();
    assert_eq!(array.to_vec::<f64>().unwrap(), [1.0; 3]);
}

#[test]
fn a_misaligned_file_is_copied() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    assert_ne!(bytes.len() % 4, 0);
    bytes.extend_from_slice(&1.5f32.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, &bytes).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    assert_eq!(file.tensor("a").unwrap().item::<f32>().unwrap(), 1.5);
}

#[test]
fn impossible_names_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let one = || Array::scalar(1.0f32);
    for (tensors, want) in [
        (
            vec![("a", one()), ("a", one())],
            "two tensors are named `a`",
        ),
        (
            vec![("__metadata__", one())],
            "cannot be named `__metadata__`",
        ),
    ] {
        let e = write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap_err();
        assert!(e.to_string().contains(want), "{e}");
        assert!(e.to_string().contains("x.safetensors: "), "{e}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn shards_read_as_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, tensors: &[(&str, Array)]| {
        write_safetensors(dir.path().join(name), tensors, &BTreeMap::new()).unwrap();
    };
    write(
        "model-00001-of-00002.safetensors",
        &[("b", Array::scalar(2i64)), ("a", Array::scalar(1i64))],
    );
    // The second also holds an `a`: the index says which counts.
    write(
        "model-00002-of-00002.safetensors",
        &[("c", Array::scalar(3i64)), ("a", Array::scalar(9i64))],
    );
    let index = r#"{"metadata": {"total_size": 32}, "weight_map": {
        "c": "model-00002-of-00002.safetensors",
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors"}}"#;
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let model = Weights::open(dir.path()).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(model.files().len(), 2);
    let values: Vec<(String, i64)> = model
        .tensors()
        .unwrap()
        .into_iter()
        .map(|(name, a)| (name, a.item().unwrap()))
        .collect();
    assert_eq!(values, [("a".into(), 1), ("b".into(), 2), ("c".into(), 3)]);
    assert_eq!(model.info("c").unwrap().bytes, 8);
    let inspected = entrenar_io::inspect(dir.path()).unwrap();
    assert_eq!(inspected.parameters, 3);
}
