//! Sentence vectors equal those of sentence-transformers, from its own directories.
//!
//! `oracles/sentences.py` wrote `tests/data/sentences/`.

use std::path::{Path, PathBuf};

use entrenar_core::Tensor;
use entrenar_io::{Weights, write_safetensors};
use entrenar_nn::{Ctx, Init, Parameters};
use entrenar_zoo::bert::BertHead;
use entrenar_zoo::{Bert, BertInput, Pooling, PoolingMode, TokenRows, Tokenizer};
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/sentences")
        .join(name)
}

/// A copy of a folder's files, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, place.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::create_dir(place.path().join("1_Pooling")).unwrap();
    place
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    for (name, mode, normalize) in [
        ("mean", PoolingMode::Mean, true),
        ("first", PoolingMode::Cls, false),
        // Prefixed keys with gamma and beta, in PyTorch's file, and the pooling config's old form.
        ("old", PoolingMode::Mean, true),
    ] {
        let pooling = Pooling::open(folder(name)).unwrap().unwrap();
        assert_eq!(
            (pooling.mode, pooling.normalize),
            (mode, normalize),
            "{name}"
        );
        assert_eq!(pooling.longest, Some(16));
        let text = std::fs::read_to_string(folder(name).join("golden.json")).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
        let want: Vec<Vec<f64>> = serde_json::from_value(golden["vectors"].clone()).unwrap();
        let model = Bert::open(folder(name), None).unwrap();
        let tokenizer = Tokenizer::open(folder(name)).unwrap();
        let got = model.embed_texts(&tokenizer, &texts, pooling).unwrap();
        assert_eq!(got.dims(), [texts.len(), 8]);
        for (got, want) in got.array().to_f64_vec().iter().zip(want.concat()) {
            assert!((got - want).abs() < 2e-6, "{name}: {got} {want}");
        }
    }
}

#[test]
fn a_text_too_long_loses_its_end_and_keeps_its_frame() {
    let tokenizer = Tokenizer::open(folder("mean")).unwrap();
    let (tokens, cut) = tokenizer.encode_at_most("good film", 4).unwrap();
    assert_eq!((tokens, cut), (vec![2, 4, 6, 3], false));
    let (tokens, cut) = tokenizer.encode_at_most("good film very", 4).unwrap();
    assert_eq!((tokens, cut), (vec![2, 4, 6, 3], true));
    let e = tokenizer.encode_at_most("good film", 2).unwrap_err();
    assert!(e.to_string().contains("more than 2 special tokens"), "{e}");
}

#[test]
fn pooling_configs() {
    let place = copy("mean");
    let config = place.path().join("1_Pooling/config.json");
    let set = |value: Value| std::fs::write(&config, value.to_string()).unwrap();
    set(json!({"pooling_mode_cls_token": false, "pooling_mode_mean_sqrt_len_tokens": true}));
    let pooling = Pooling::open(place.path()).unwrap().unwrap();
    assert_eq!(pooling.mode, PoolingMode::MeanSqrtLength);
    for (wrong, expected) in [
        (
            json!({"pooling_mode": "max"}),
            "mean and mean_sqrt_len, got max",
        ),
        (json!({"pooling_mode": ["cls", "mean"]}), "got cls and mean"),
        (json!({}), "got none"),
        (json!([]), "expected a JSON object"),
    ] {
        set(wrong);
        let e = Pooling::open(place.path()).unwrap_err().to_string();
        assert!(
            e.contains("1_Pooling/config.json") && e.contains(expected),
            "{e}"
        );
    }
    let modules = place.path().join("modules.json");
    for (wrong, expected) in [
        (json!([{"type": "x.Transformer"}]), "no Pooling module"),
        (json!([{"type": "x.Dense"}]), "got `Dense`"),
        (
            json!([{"type": "x.Pooling", "path": "../1_Pooling"}]),
            "a folder of this directory",
        ),
        (json!({}), "expected a list"),
    ] {
        std::fs::write(&modules, wrong.to_string()).unwrap();
        let e = Pooling::open(place.path()).unwrap_err().to_string();
        assert!(e.contains(expected), "{e}");
    }
    std::fs::remove_file(modules).unwrap();
    assert_eq!(Pooling::open(place.path()).unwrap(), None);
}

#[test]
fn the_square_root_of_the_length_divides_the_sum() {
    let model = Bert::open(folder("mean"), None).unwrap();
    let rows = TokenRows::new(&[vec![2, 4, 6, 3], vec![2, 3]], 0).unwrap();
    let input = BertInput {
        mask: Some(&rows.mask),
        ..Default::default()
    };
    let vectors = |mode| {
        let pooling = Pooling {
            mode,
            normalize: false,
            longest: None,
        };
        let cx = &mut Ctx::eval();
        let vectors = model.sentence(&rows.tokens, input, pooling, cx).unwrap();
        vectors.array().to_f64_vec()
    };
    let (root, mean) = (
        vectors(PoolingMode::MeanSqrtLength),
        vectors(PoolingMode::Mean),
    );
    for (i, (root, mean)) in root.iter().zip(mean).enumerate() {
        let length: f64 = if i < 8 { 4.0 } else { 2.0 };
        assert!((root - mean * length.sqrt()).abs() < 1e-5);
    }
}

#[test]
fn encoders_without_a_pooler() {
    let place = copy("mean");
    let mut tensors = Weights::open(folder("mean")).unwrap().tensors().unwrap();
    tensors.retain(|(name, _)| !name.starts_with("pooler."));
    let file = place.path().join("model.safetensors");
    write_safetensors(file, &tensors, &Default::default()).unwrap();
    let model = Bert::open(place.path(), None).unwrap();
    assert!(model.bert.pooler.is_none());
    // A classifier on it begins with both layers afresh, and is whole when it is read again.
    let labels = ["bad", "good", "neither"];
    let (model, fresh) = Bert::open_classifier(place.path(), &labels, None, Init::new(1)).unwrap();
    assert_eq!(
        fresh,
        [
            "bert.pooler.dense.weight",
            "bert.pooler.dense.bias",
            "classifier.weight",
            "classifier.bias"
        ]
    );
    let saved = place.path().join("classifier");
    let tokenizer = Tokenizer::open(place.path()).unwrap();
    model.save_with(&saved, &tokenizer).unwrap();
    let back = Bert::open(&saved, None).unwrap();
    assert_eq!(back.config().head, BertHead::Classes(3));
    assert_eq!(back.config().labels(), labels);
    let weight = |m: &Bert| {
        let found = m
            .named_parameters()
            .into_iter()
            .find(|(n, _)| n == "classifier.weight");
        found.unwrap().1.tensor().array().to_f64_vec()
    };
    assert_eq!(weight(&back), weight(&model));
    let (kept, fresh) = Bert::open_classifier(&saved, &labels, None, Init::new(2)).unwrap();
    assert!(fresh.is_empty());
    assert_eq!(weight(&kept), weight(&model));
    let (other, fresh) = Bert::open_classifier(&saved, &["x", "y"], None, Init::new(2)).unwrap();
    assert_eq!(fresh, ["classifier.weight", "classifier.bias"]);
    let tokens = Tensor::from_vec(vec![2i64, 4, 3], [1, 3]).unwrap();
    let out = other.forward_with(&tokens, BertInput::default(), &mut Ctx::eval());
    assert_eq!(out.unwrap().dims(), [1, 2]);
    for wrong in [&["x"][..], &["x", "x"]] {
        assert!(Bert::open_classifier(&saved, wrong, None, Init::new(2)).is_err());
    }
}
