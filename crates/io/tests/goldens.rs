//! Files of the reference implementation are read, and ours are the ones it accepts.
//!
//! `tests/fixtures/python.safetensors` is written, and `entrenar*.safetensors` are read, by
//! `oracles/io_goldens.py`; the values stand there too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use entrenar_base::DType;
use entrenar_io::{SafeTensors, Weights, inspect, write_safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The values of `expected()` in the script.
fn check(file: &SafeTensors) {
    type Case = (&'static str, DType, fn(f64) -> f64);
    let cases: [Case; 8] = [
        ("layer.f32", DType::F32, |i| i * 0.5 - 1.0),
        ("layer.f64", DType::F64, |i| i / 7.0),
        ("layer.f16", DType::F16, |i| i * 0.25 - 0.5),
        ("layer.bf16", DType::BF16, |i| i * 3.0 - 7.0),
        ("layer.i64", DType::I64, |i| i * -(2f64.powi(40))),
        ("layer.i32", DType::I32, |i| i * -70000.0),
        ("layer.u8", DType::U8, |i| i * 50.0),
        ("layer.bool", DType::Bool, |i| i % 2.0),
    ];
    for (name, dtype, f) in cases {
        let array = file.tensor(name).unwrap();
        assert_eq!(
            (array.dtype(), array.dims()),
            (dtype, &[2, 3][..]),
            "{name}"
        );
        let want: Vec<f64> = (0..6).map(|i| f(f64::from(i))).collect();
        assert_eq!(array.to_f64_vec(), want, "{name}");
    }
    let scalar = file.tensor("scalar").unwrap();
    assert_eq!((scalar.rank(), scalar.item::<f32>().unwrap()), (0, 2.5));
    assert_eq!(file.tensor("empty").unwrap().dims(), [0, 4]);
    let odd = file.tensor("naïve \"name\"\n").unwrap();
    assert_eq!(odd.to_vec::<f32>().unwrap(), [1.0]);
    assert_eq!(file.metadata()["format"], "pt");
}

#[test]
fn a_file_of_the_reference_writer() {
    let path = fixture("python.safetensors");
    for file in [
        SafeTensors::open(&path).unwrap(),
        SafeTensors::read(&path).unwrap(),
    ] {
        check(&file);
        assert_eq!(file.metadata()["note"], "line one\nline two ü");
        let info = file.info("codes.i8").unwrap();
        assert_eq!((info.dtype.to_string().as_str(), info.bytes), ("I8", 2));
        assert_eq!(file.tensor_bytes("codes.i8").unwrap(), [253, 4]);
        let codes = file.tensor("codes.i8").unwrap();
        assert_eq!(codes.to_vec::<i8>().unwrap(), [-3, 4]);
    }
    assert!(inspect(&path).unwrap().to_string().contains("codes.i8"));
}

#[test]
fn our_files_hold_the_same() {
    for name in ["entrenar.safetensors", "entrenar-one-key.safetensors"] {
        check(&SafeTensors::open(fixture(name)).unwrap());
    }
}

/// The bytes we write today are those the reference reader was shown.
#[test]
fn our_writer_has_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["entrenar.safetensors", "entrenar-one-key.safetensors"] {
        let file = SafeTensors::open(fixture(name)).unwrap();
        let mut tensors = file.tensors().unwrap();
        tensors.reverse();
        let path = dir.path().join(name);
        write_safetensors(&path, &tensors, file.metadata()).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(fixture(name)).unwrap()
        );
    }
}

/// Published models, where they are at hand.
#[test]
fn real_models() {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    if !data.is_dir() {
        println!("skipped: {} is absent", data.display());
        return;
    }
    let model = Weights::open(data.join("stories260k")).unwrap();
    let embedding = model.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.dims(), [512, 64]);
    assert_eq!(
        inspect(data.join("stories260k")).unwrap().parameters,
        260_032
    );
    let numbers = BTreeMap::from([
        ("mnist-cnn/mnist.safetensors", "mnist"),
        ("resnet20-cifar10/resnet20-12fca82f.safetensors", "resnet20"),
    ]);
    for (path, name) in numbers {
        let found = inspect(data.join(path)).unwrap().verify().unwrap();
        let verification = found.verification.unwrap();
        assert!(verification.report.is_intact(), "{name}");
        assert!(!verification.checksums && verification.non_finite.is_empty());
    }
}
