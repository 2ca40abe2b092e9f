//! Files of `torch.save`: what PyTorch wrote is read to the bit, and what is damaged or would run
//! something is refused where it goes wrong.
//!
//! `oracles/pytorch_files.py` wrote `tests/fixtures/pytorch/`.

use std::path::{Path, PathBuf};

use entrenar_base::{Array, DType};
use entrenar_io::inspect::Kind;
use entrenar_io::{PyTorch, SafeTensors, WeightFile, Weights, inspect};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pytorch")
        .join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

/// Data that not every checkout has beside it.
fn shared(path: &str) -> Option<PathBuf> {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    let path = data.join(path);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn assert_same(got: &Array, want: &Array, name: &str) {
    assert_eq!(
        (got.dtype(), got.dims()),
        (want.dtype(), want.dims()),
        "{name}"
    );
    let bits = |a: &Array| a.deep_copy().as_bytes().unwrap().to_vec();
    assert_eq!(bits(got), bits(want), "{name}");
}

/// A value of the twin in the dtype that arrays hold: it was written when they had no signed bytes.
fn held(name: &str, twin: Array) -> Array {
    if name == "i8" {
        twin.cast(DType::I8)
    } else {
        twin
    }
}

fn refused(bytes: &[u8]) -> String {
    PyTorch::from_bytes(bytes, "x").unwrap_err().to_string()
}

#[test]
fn both_forms_and_both_protocols_hold_the_twins_values() {
    let twin = SafeTensors::open(fixture("twin.safetensors")).unwrap();
    for name in ["zip.pt", "protocol4.pt", "legacy.th"] {
        for file in [
            PyTorch::open(fixture(name)).unwrap(),
            PyTorch::read(fixture(name)).unwrap(),
        ] {
            assert_eq!(file.len(), twin.len(), "{name}");
            for (tensor, want) in twin.tensors().unwrap() {
                let got = file.tensor(&tensor).unwrap();
                assert_same(&got, &held(&tensor, want), &tensor);
            }
            let names: Vec<&str> = file.names().collect();
            assert_eq!(names[..3], ["f64", "f32", "f16"], "in the dict's order");
            let i8s = file.info("i8").unwrap();
            assert_eq!((i8s.dtype.to_string().as_str(), i8s.bytes), ("I8", 6));
            assert_eq!(file.tensor("i8").unwrap().dtype(), DType::I8);
            let e = file.tensor("nothing").unwrap_err().to_string();
            assert!(e.contains("no tensor `nothing` among its 16"), "{e}");
        }
    }
}

#[test]
fn views_share_their_storage() {
    for name in ["zip.pt", "legacy.th"] {
        let file = PyTorch::open(fixture(name)).unwrap();
        let whole = file.tensor("shared").unwrap();
        for view in ["transposed", "strided"] {
            let view = file.tensor(view).unwrap();
            assert!(std::ptr::eq(view.storage(), whole.storage()));
        }
    }
    // Of a mapped zip file nothing is copied.
    let file = PyTorch::open(fixture("zip.pt")).unwrap();
    assert!(!file.tensor("f32").unwrap().storage().is_writable());
}

#[test]
fn names_lead_through_containers() {
    let names = |file: &str| {
        let file = PyTorch::open(fixture(file)).unwrap();
        file.names().map(str::to_string).collect::<Vec<_>>()
    };
    // The model of a checkpoint, not its optimizer.
    assert_eq!(names("checkpoint.pt"), ["weight", "bias"]);
    assert_eq!(names("list.pt"), ["0", "1.a"]);
    assert_eq!(names("alone.pt"), ["tensor"]);
}

#[test]
fn directories_with_only_pytorch_files() {
    let twin = SafeTensors::open(fixture("twin.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("zip.pt"), dir.path().join("pytorch_model.bin")).unwrap();
    for directory in [dir.path().to_path_buf(), fixture("sharded")] {
        let weights = Weights::open(&directory).unwrap();
        assert_eq!(weights.len(), twin.len());
        for (name, want) in twin.tensors().unwrap() {
            let got = weights.tensor(&name).unwrap();
            assert_same(&got, &held(&name, want), &name);
        }
        let found = inspect(&directory).unwrap().verify().unwrap();
        assert_eq!(found.kind, Kind::ModelDirectory);
        assert_eq!(found.tensors.len(), twin.len());
        let verification = found.verification.unwrap();
        assert!(verification.report.is_intact() && !verification.checksums);
    }
    assert_eq!(inspect(fixture("legacy.th")).unwrap().kind, Kind::Pytorch);
    let index = fixture("sharded/pytorch_model.bin.index.json");
    assert_eq!(inspect(index).unwrap().kind, Kind::ShardedPytorch);
    // Where both are there, safetensors is read.
    let both = dir.path().join("model.safetensors");
    std::fs::copy(fixture("twin.safetensors"), both).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    assert!(matches!(weights.files(), [WeightFile::SafeTensors(_)]));
}

#[test]
fn an_ending_is_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["zip.pt", "legacy.th"] {
        let path = dir.path().join("weights");
        std::fs::copy(fixture(name), &path).unwrap();
        assert_eq!(Weights::open(&path).unwrap().len(), 16);
    }
}

#[test]
fn a_published_legacy_file_equals_its_safetensors_twin() {
    let folder = "resnet20-cifar10/resnet20-12fca82f";
    let (Some(ours), Some(twin)) = (
        shared(&format!("{folder}.th")),
        shared(&format!("{folder}.safetensors")),
    ) else {
        return;
    };
    let ours = PyTorch::open(ours).unwrap();
    let twin = SafeTensors::open(twin).unwrap();
    assert!(!twin.is_empty());
    for (name, want) in twin.tensors().unwrap() {
        // It was trained on several GPUs, whose wrapper adds to the names.
        let name = format!("module.{name}");
        assert_same(&ours.tensor(&name).unwrap(), &want, &name);
    }
}

/// FNV-1a, 64 bits.
fn fingerprint(bytes: &[u8]) -> String {
    let step = |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

#[test]
fn a_published_zip_file_holds_what_pytorch_reads_in_it() {
    let Some(path) = shared("mnist-cnn/mnist.pt") else {
        return;
    };
    let text = std::fs::read_to_string(fixture("mnist.json")).unwrap();
    let expected: std::collections::BTreeMap<String, (String, Vec<usize>, String)> =
        serde_json::from_str(&text).unwrap();
    let file = PyTorch::open(path).unwrap();
    assert_eq!(file.len(), expected.len());
    for (name, (dtype, shape, print)) in expected {
        let array = file.tensor(&name).unwrap();
        let ours = match array.dtype() {
            DType::F32 => "float32",
            DType::I64 => "int64",
            other => other.name(),
        };
        assert_eq!((ours, array.dims()), (dtype.as_str(), &*shape), "{name}");
        assert_eq!(fingerprint(array.as_bytes().unwrap()), print, "{name}");
    }
}

#[test]
fn nothing_is_run() {
    for name in ["system.pt", "system.th"] {
        let message = refused(&bytes_of(name));
        assert!(message.starts_with("x: pickle, byte "), "{message}");
        assert!(
            message.contains("the name `posix.system` is refused"),
            "{message}"
        );
        // The offset is that of the name in the file.
        let at = message["x: pickle, byte ".len()..]
            .split(':')
            .next()
            .unwrap();
        let bytes = bytes_of(name);
        assert!(bytes[at.parse::<usize>().unwrap()..].starts_with(b"cposix\nsystem\n"));
    }
    let message = refused(&bytes_of("module.pt"));
    assert!(
        message.contains("`torch.nn.modules.linear.Linear`"),
        "{message}"
    );
    assert!(message.contains("save its `state_dict()`"), "{message}");
}

/// The pickle of a small file, as it might have been.
fn legacy_with(object: &[u8]) -> Vec<u8> {
    let start = bytes_of("small.th");
    // Magic number and version; a system of no facts.
    let mut bytes = start[..21].to_vec();
    bytes.extend_from_slice(b"\x80\x02}.");
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b"\x80\x02].");
    bytes
}

#[test]
fn pickles_that_lie() {
    let storage = |class: &str, count: &[u8]| {
        let mut out = b"\x80\x02(X\x07\0\0\0storagectorch\n".to_vec();
        out.extend_from_slice(class.as_bytes());
        out.extend_from_slice(b"\nX\x01\0\0\x000X\x03\0\0\0cpu");
        out.extend_from_slice(count);
        out.extend_from_slice(b"tQ.");
        out
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"\x80\x02R.".to_vec(), "the stack is empty"),
        (b"\x80\x02t.".to_vec(), "no mark"),
        (b"\x80\x02(.".to_vec(), "the stack is empty"),
        (b"\x80\x09.".to_vec(), "protocol 9"),
        (b"\x80\x02h\x05.".to_vec(), "nothing was kept as number 5"),
        (
            b"\x80\x02X\xff\xff\xff\xffab.".to_vec(),
            "4294967295 bytes expected",
        ),
        (
            b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.".to_vec(),
            "bytes expected",
        ),
        (b"\x80\x02I1\n.".to_vec(), "opcode INT (0x49) is refused"),
        (
            b"\x80\x02(ios\nsystem\n.".to_vec(),
            "opcode INST (0x69) is refused",
        ),
        (
            b"\x80\x02)\x81.".to_vec(),
            "opcode NEWOBJ (0x81) is refused",
        ),
        (
            b"\x80\x02\xee.".to_vec(),
            "opcode unknown (0xee) is refused",
        ),
        (b"\x80\x02N)R.".to_vec(), "a function expected, found None"),
        (b"\x80\x02Na.".to_vec(), "the stack is empty"),
        (b"\x80\x02NNa.".to_vec(), "a list expected, found None"),
        (b"\x80\x02}(Nu.".to_vec(), "a key without a value"),
        (b"\x80\x02X\x02\0\0\0\xff\xff.".to_vec(), "not text"),
        (b"\x80\x02cos\nsystem".to_vec(), "a name without an end"),
        (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93.".to_vec(),
            "`os.system` is refused",
        ),
        (b"\x80\x02NQ.".to_vec(), "a storage: a tuple expected"),
        (
            b"\x80\x02ctorch\nFloatStorage\n)R.".to_vec(),
            "this name is no function",
        ),
        (
            b"\x80\x02ctorch\nQInt8Storage\n.".to_vec(),
            "`torch.QInt8Storage` is refused",
        ),
        (
            storage("FloatStorage", b"J\x7f\x7f\x7f\x7f"),
            "storage `0` is not in the file",
        ),
        (
            storage("FloatStorage", b"J\xff\xff\xff\xff"),
            "a storage's length is -1",
        ),
        (
            storage("DoubleStorage", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"),
            "does not fit in memory",
        ),
        (storage("FloatStorage", b"\x8a\x09"), "9 bytes expected"),
    ];
    for (object, expected) in cases {
        let message = refused(&legacy_with(&object));
        assert!(message.contains(expected), "{object:?}: {message}");
    }
    for (bytes, expected) in [
        (Vec::new(), "not a PyTorch file: 0 bytes"),
        (b"\x80\x02K\x01.".to_vec(), "not of `torch.save`"),
        (b"PK\x03\x04".to_vec(), "no end record"),
    ] {
        let message = refused(&bytes);
        assert!(message.contains(expected), "{message}");
    }
    let message = refused(&bytes_of("expanded.pt"));
    assert!(
        message.contains("tensor `wide`: 4000 elements over a storage of 1"),
        "{message}"
    );
    let message = refused(&bytes_of("deflated.pt"));
    assert!(message.contains("is compressed (method 8)"), "{message}");
}

/// Small programs that would fill the memory of a machine without limits.
#[test]
fn pickles_that_explode() {
    // Lists of lists of lists, each twice in the next: 2^60 ways to the innermost.
    let mut object = b"\x80\x02](K\x01ctorch\nFloatStorage\neq\0".to_vec();
    for n in 0..30u8 {
        object.extend_from_slice(&[b']', b'(', b'h', n, b'h', n, b'e', b'q', n + 1]);
    }
    object.push(b'.');
    let message = refused(&legacy_with(&object));
    assert!(message.contains("share each other so often"), "{message}");
    // A list that contains itself.
    let message = refused(&legacy_with(b"\x80\x02]q\0h\0a."));
    assert!(
        message.contains("more than 32 dicts and lists deep"),
        "{message}"
    );
    // Nine million values of a byte each.
    let mut object = b"\x80\x02(".to_vec();
    object.resize(9_000_000, b'N');
    object.extend_from_slice(b"t.");
    let message = refused(&legacy_with(&object));
    assert!(message.contains("more than 8000000 values"), "{message}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in ["small.pt", "small.th"] {
        let whole = bytes_of(name);
        assert_eq!(PyTorch::from_bytes(whole.clone(), name).unwrap().len(), 2);
        for length in 0..whole.len() {
            let message = refused(&whole[..length]);
            assert!(message.starts_with("x: "), "{name}, {length}: {message}");
        }
    }
}

/// Opens what may be a file and reads all of it. Must return, whatever the bytes.
fn survive(bytes: Vec<u8>) {
    if let Ok(file) = PyTorch::from_bytes(bytes, "x") {
        for name in file.names() {
            if let Ok(array) = file.tensor(name) {
                assert!(array.numel() <= file.size());
                let _ = array.to_f64_vec();
            }
        }
    }
}

#[test]
fn every_byte_changed_in_turn() {
    for name in ["small.pt", "small.th"] {
        let whole = bytes_of(name);
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                survive(bytes);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_files_never_crash(
        which in prop::sample::select(vec!["zip.pt", "legacy.th", "protocol4.pt", "checkpoint.pt"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = bytes_of(which);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        survive(bytes);
    }

    #[test]
    fn random_programs_never_crash(program in prop::collection::vec(
        prop::sample::select(b"\x80\x02().}]uesatRbQNKJMXqhcq\x85\x86\x87\x88\x8a\x93\x94\x95\0\x01\x02\n".to_vec()),
        0..200,
    )) {
        let mut object = b"\x80\x02ccollections\nOrderedDict\nq\0ctorch._utils\n_rebuild_tensor_v2\nq\x01".to_vec();
        object.extend(program);
        survive(legacy_with(&object));
    }
}
