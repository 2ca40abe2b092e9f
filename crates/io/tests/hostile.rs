//! Files that lie: every one is an error that says where, none a crash or a large allocation.

use std::fs;

use entrenar_base::{Array, DType, ErrorKind};
use entrenar_io::safetensors::to_bytes;
use entrenar_io::{SafeTensors, Weights, inspect};
use proptest::prelude::*;

/// A file with this header and so many zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The message with which `bytes` are refused, the same from memory and from a mapped file.
fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    let mapped = SafeTensors::open(&path).unwrap_err();
    assert!(inspect(&path).is_err());
    assert_eq!(mapped.path(), Some(path.as_path()));
    let message = SafeTensors::from_bytes(bytes, "x").unwrap_err().to_string();
    let prefix = format!("{}: ", path.display());
    assert_eq!(
        mapped.to_string().strip_prefix(&prefix),
        message.strip_prefix("x: ")
    );
    message
}

fn tensor(dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

#[test]
fn headers_that_lie() {
    let f32s = |shape: &str, from, to| tensor("F32", shape, from, to);
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "at least 8 expected"),
        (vec![1, 2, 3], "3 bytes, at least 8 expected"),
        (vec![2, 0, 0, 0, 0, 0, 0, 0], "ends after 0 of them"),
        (
            u64::MAX.to_le_bytes().to_vec(),
            "header would be 18446744073709551615 bytes",
        ),
        (100_000_001u64.to_le_bytes().to_vec(), "at most 100000000"),
        (
            100_000_000u64.to_le_bytes().to_vec(),
            "the file ends after 0",
        ),
        (file("", 0), "does not start with `{`"),
        (file(" {}", 0), "does not start with `{`"),
        (file("[]", 0), "does not start with `{`"),
        (file("{", 0), "header: EOF"),
        (file("{} x", 0), "header: trailing"),
        (file("{}", 3), "3 bytes after the last tensor"),
        (file(r#"{"a":1}"#, 0), "tensor `a`"),
        (file(r#"{"a":{}}"#, 0), "tensor `a`: missing field"),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[2]", 0, 4)), 4),
            "tensor `a`: shape [2] of F32 needs 8 bytes, its offsets give 4",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[1]", 0, 4)), 3),
            "tensor `a`: the file ends inside it",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[1]", 4, 8)), 8),
            "tensor `a`: 4 bytes between it and the header",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[1]", 4, 0)), 8),
            "tensor `a`: its data ends (0) before",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[-1]", 0, 4)), 4),
            "tensor `a`: invalid value",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[1.5]", 0, 4)), 4),
            "tensor `a`: invalid type",
        ),
        (
            file(
                &format!(r#"{{"a":{}}}"#, f32s("[99999999999999999999]", 0, 4)),
                4,
            ),
            "tensor `a`",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, f32s("[1]", 0, u64::MAX)), 4),
            "tensor `a`",
        ),
        (
            file(
                &format!(r#"{{"a":{}}}"#, f32s("[4611686018427387904]", 0, 0)),
                0,
            ),
            "tensor `a`: shape [4611686018427387904] of F32 does not fit",
        ),
        (
            file(
                &format!(r#"{{"a":{}}}"#, f32s("[4294967296,4294967296]", 0, 0)),
                0,
            ),
            "does not fit in memory",
        ),
        (
            file(
                &format!(r#"{{"a":{}}}"#, f32s("[0,4294967296,4294967296]", 0, 0)),
                0,
            ),
            "does not fit in memory",
        ),
        (
            file(&two(f32s("[2]", 0, 8), f32s("[2]", 4, 12)), 12),
            "tensor `b`: its data starts at 4 and overlaps tensor `a`",
        ),
        (
            file(&two(f32s("[2]", 0, 8), f32s("[2]", 0, 8)), 8),
            "overlaps tensor `a`",
        ),
        (
            file(&two(f32s("[1]", 0, 4), f32s("[1]", 8, 12)), 12),
            "tensor `b`: 4 bytes between it and tensor `a`",
        ),
        (
            file(
                &two(f32s("[1]", 0, 4), f32s("[1]", 4, 8)).replace("\"b\"", "\"a\""),
                8,
            ),
            "the name `a` appears twice",
        ),
        (
            file(
                &two(f32s("[1]", 0, 4), f32s("[1]", 0, 4)).replace("\"b\"", "\"a\""),
                4,
            ),
            "the name `a` appears twice",
        ),
        (
            file(
                &two(f32s("[1]", 0, 4), f32s("[0]", 4, 4)).replace("\"b\"", "\"\\u0061\""),
                4,
            ),
            "the name `a` appears twice",
        ),
        (file(r#"{"__metadata__":{"k":1}}"#, 0), "expected a string"),
        (
            file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0),
            "the name `k` appears twice",
        ),
        (
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
            "appears twice",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, tensor("F4", "[3]", 0, 2)), 2),
            "does not fill whole bytes",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, tensor("BOOL", "[3]", 0, 2)), 2),
            "needs 3 bytes",
        ),
        (
            file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0),
            "header: ",
        ),
        (
            file(&format!("{{\"a\":{{\"x\":{}", "[".repeat(100_000)), 0),
            "header: ",
        ),
        ([file("{\"a", 0), vec![]].concat(), "header: EOF"),
        (
            [&[4, 0, 0, 0, 0, 0, 0, 0][..], b"{\"\xff\""].concat(),
            "the header is not text",
        ),
    ];
    for (bytes, want) in cases {
        let got = refused(&bytes);
        assert!(got.contains(want), "expected {want:?} in {got:?}");
    }
}

#[test]
fn names_cannot_drive_a_terminal() {
    let header = format!(r#"{{"\u001b[2J":{}}}"#, tensor("F32", "[1]", 0, 8));
    let message = refused(&file(&header, 8));
    assert!(message.contains("tensor `\\u{1b}[2J`"), "{message}");
    let header = format!(r#"{{"\u001b[2J":{}}}"#, tensor("\\u001b", "[1]", 0, 8));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, file(&header, 8)).unwrap();
    let shown = inspect(&path).unwrap().to_string();
    assert!(
        !shown.contains('\u{1b}') && shown.contains("\\u{1b}[2J"),
        "{shown}"
    );
}

#[test]
fn a_dtype_of_the_future_is_listed() {
    let header = format!(
        r#"{{"a":{},"b":{},"c":{}}}"#,
        tensor("F3_E1M1", "[8]", 0, 3),
        tensor("U8", "[1]", 3, 4),
        tensor("I16", "[1]", 4, 6)
    );
    let file = SafeTensors::from_bytes(file(&header, 6), "x").unwrap();
    assert_eq!(file.info("a").unwrap().dtype.to_string(), "F3_E1M1");
    assert_eq!(file.info("a").unwrap().dtype.bits(), None);
    assert_eq!(file.tensor("b").unwrap().item::<u8>().unwrap(), 0);
    let e = file.tensor("a").unwrap_err().to_string();
    assert!(
        e.starts_with("x: tensor `a` has dtype F3_E1M1, which"),
        "{e}"
    );
    // Listed like any other; an error only when asked for.
    let info = file.info("c").unwrap();
    assert_eq!((info.dtype.to_string().as_str(), info.bytes), ("I16", 2));
    let e = file.tensor("c").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DType);
    assert!(
        e.to_string()
            .starts_with("x: tensor `c` has dtype I16, which"),
        "{e}"
    );
}

#[test]
fn a_bool_of_two_names_the_tensor() {
    let mut bytes = to_bytes(&[("flag", Array::scalar(true))], &Default::default()).unwrap();
    *bytes.last_mut().unwrap() = 2;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, &bytes).unwrap();
    for file in [
        SafeTensors::open(&path).unwrap(),
        SafeTensors::read(&path).unwrap(),
    ] {
        let e = file.tensor("flag").unwrap_err().to_string();
        assert!(e.contains("x.safetensors: tensor `flag`: "), "{e}");
    }
    let report = inspect(&path)
        .unwrap()
        .verify()
        .unwrap()
        .verification
        .unwrap()
        .report;
    assert_eq!(report.damage[0].tensor.as_deref(), Some("flag"));
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let e = SafeTensors::open(dir.path()).unwrap_err().to_string();
    assert!(
        e.contains("a directory, expected a safetensors file"),
        "{e}"
    );
    let e = SafeTensors::open(dir.path().join("no"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("no: cannot open: No such file"), "{e}");
    let e = inspect(dir.path()).unwrap_err().to_string();
    assert!(e.contains("nothing to inspect"), "{e}");
    let e = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("expected one of model.safetensors, "), "{e}");
}

#[test]
fn indexes_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("model");
    fs::create_dir(&inside).unwrap();
    let one = to_bytes(&[("a", Array::scalar(1i64))], &Default::default()).unwrap();
    fs::write(dir.path().join("secret.safetensors"), &one).unwrap();
    fs::write(inside.join("s.safetensors"), &one).unwrap();
    let secret = dir.path().join("secret.safetensors");
    let cases = [
        (r#"{"weight_map": {"a": "../secret.safetensors"}}"#.to_string(), "tensor `a`: `../secret.safetensors` is not the name of a file beside the index"),
        (format!(r#"{{"weight_map": {{"a": "{}"}}}}"#, secret.display()), "path separator"),
        (r#"{"weight_map": {"a": "..\\secret.safetensors"}}"#.to_string(), "path separator"),
        (r#"{"weight_map": {"a": ".."}}"#.to_string(), "names a directory"),
        (r#"{"weight_map": {"a": ""}}"#.to_string(), "is empty"),
        (r#"{"weight_map": {"a": "s.safetensors", "b": "gone.safetensors", "c": "gone.safetensors"}}"#.to_string(), "the shard `gone.safetensors` is missing; it holds tensor `b` and 1 more"),
        (r#"{"weight_map": {"a": "s.safetensors", "z": "s.safetensors"}}"#.to_string(), "tensor `z` should be in `s.safetensors`"),
        (r#"{"weight_map": {"a": "s.safetensors", "a": "s.safetensors"}}"#.to_string(), "`a` appears twice"),
        (r#"{"weight_map": {"a": 3}}"#.to_string(), "not an index of weight files"),
        (r#"{}"#.to_string(), "missing field `weight_map`"),
        (String::new(), "not an index of weight files"),
    ];
    let path = inside.join("model.safetensors.index.json");
    for (text, want) in cases {
        fs::write(&path, text).unwrap();
        for opened in [&path, &inside] {
            let e = Weights::open(opened).unwrap_err();
            assert_eq!(e.path(), Some(path.as_path()));
            assert!(e.to_string().contains(want), "expected {want:?} in {e}");
        }
    }
    let good = r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "s.safetensors"}}"#;
    fs::write(&path, good).unwrap();
    let weights = Weights::open(&inside).unwrap();
    assert_eq!(weights.tensor("a").unwrap().item::<i64>().unwrap(), 1);
    assert!(weights.tensor("b").is_err());
}

fn sample() -> Vec<u8> {
    let tensors = [
        ("a", Array::full([2, 2], 1.0f32)),
        ("b.c", Array::full([3], 7i64)),
        ("d", Array::zeros([0], DType::F16)),
        ("e", Array::scalar(true)),
    ];
    let metadata = [("k".to_string(), "v".to_string())].into();
    to_bytes(&tensors, &metadata).unwrap()
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample();
    for length in 0..bytes.len() {
        assert!(
            SafeTensors::from_bytes(&bytes[..length], "x").is_err(),
            "{length}"
        );
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(SafeTensors::from_bytes(longer, "x").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Against the reference reader on broken headers: we accept nothing that it refuses (dtypes
    /// of the future excepted) and see the same tensors where both accept.
    #[test]
    fn never_laxer_than_the_reference(
        changes in prop::collection::vec((8usize..400, any::<u8>()), 1..4),
    ) {
        let mut bytes = sample();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, value) in changes {
            // Mostly digits and quotes: such changes get past the JSON parser.
            let value = if value < 160 { b"0123456789\"{}[],:ab"[value as usize % 19] } else { value };
            bytes[8 + (at % (header - 8))] = value;
        }
        let reference = ::safetensors::SafeTensors::deserialize(&bytes);
        if let Ok(ours) = SafeTensors::from_bytes(bytes.clone(), "x") {
            if ours.infos().all(|(_, i)| i.dtype.bits().is_some()) {
                let reference = reference.unwrap();
                prop_assert_eq!(reference.len(), ours.len());
                for (name, info) in ours.infos() {
                    let view = reference.tensor(name).unwrap();
                    prop_assert_eq!(view.shape(), &info.shape[..]);
                    prop_assert_eq!(view.data(), ours.tensor_bytes(name).unwrap());
                    prop_assert_eq!(view.dtype().to_string(), info.dtype.to_string());
                }
            }
            // Whatever was accepted can be asked for without a panic.
            let names: Vec<String> = ours.names().map(String::from).collect();
            for name in names {
                let _ = ours.tensor(&name);
            }
        }
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        // The length field alone makes this all but certain.
        prop_assert!(SafeTensors::from_bytes(bytes, "x").is_err());
    }
}
