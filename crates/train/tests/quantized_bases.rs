//! Models with linear layers in 4 bits: directories of transformers and bitsandbytes
//! (`oracles/bitsandbytes_directory.py`) give the same logits, written again they are the same, and
//! damaged ones are refused.

use std::path::{Path, PathBuf};

use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Array, DType, Tensor};
use entrenar_io::{SafeTensors, write_safetensors};
use entrenar_nn::Ctx;
use entrenar_train::trainer::{
    open_quantized, open_text_model, save_quantized, stored_quantization,
};
use entrenar_tune::quant::{self, Code, QuantConfig};
use entrenar_zoo::{LanguageModel, LmInput, TextModel};

const CASES: [(&str, Code, bool, usize); 2] = [
    ("llama-nf4", Code::Nf4, true, 14),
    ("gpt2-fp4", Code::Fp4, false, 4),
];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/bitsandbytes/{name}"))
}

fn golden(name: &str, key: &str) -> Array {
    let file = SafeTensors::open(folder(name).join("golden.safetensors")).unwrap();
    file.tensor(key).unwrap()
}

fn logits(text: &TextModel, tokens: &Tensor) -> Array {
    let (model, cx) = (text.model.as_causal(), &mut Ctx::eval());
    let x = model.features(tokens, LmInput::default(), cx).unwrap();
    model.logits(&x, cx).unwrap().array().clone()
}

/// The largest difference over the largest value.
fn distance(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let far = |m: f64, (x, y): (&f64, &f64)| m.max((x - y).abs() / scale);
    a.iter().zip(&b).fold(0.0, far)
}

/// A copy of a golden directory whose weights `change` went over.
fn copy(name: &str, change: impl FnOnce(&mut Vec<(String, Array)>)) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder(name).join(file), place.path().join(file)).unwrap();
    }
    let file = SafeTensors::open(folder(name).join("model.safetensors")).unwrap();
    let mut tensors: Vec<(String, Array)> = file.tensors().unwrap();
    change(&mut tensors);
    let path = place.path().join("model.safetensors");
    write_safetensors(path, &tensors, &Default::default()).unwrap();
    place
}

/// Where `ENTRENAR_KEEP` names a directory, what was written is kept there with its logits, for
/// `oracles/bitsandbytes_directory.py --check`.
fn keep(written: &Path, name: &str, tokens: &Tensor, logits: &Array) {
    let Some(place) = std::env::var_os("ENTRENAR_KEEP") else {
        return;
    };
    let kept = Path::new(&place).join(name);
    std::fs::create_dir_all(&kept).unwrap();
    for entry in std::fs::read_dir(written).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
    }
    let both = [
        ("tokens".to_string(), tokens.array().clone()),
        ("logits".to_string(), logits.clone()),
    ];
    write_safetensors(kept.join("logits.safetensors"), &both, &Default::default()).unwrap();
}

#[test]
fn logits_are_those_of_transformers_and_bitsandbytes() {
    for (name, kind, double, layers) in CASES {
        let stored = stored_quantization(&folder(name)).unwrap().unwrap();
        assert_eq!((stored.kind, stored.double), (kind, double));
        let mut text = open_text_model(&folder(name), Some(DType::F32)).unwrap();
        let report = quant::report(&mut text.model).unwrap();
        assert_eq!(report.layers.len(), layers, "{name}");
        let tokens = Tensor::from(golden(name, "tokens"));
        let off = distance(&logits(&text, &tokens), &golden(name, "logits"));
        assert!(off < 2e-6, "{name}: logits differ by {off}");
        let (inputs, targets) = (
            tokens.narrow(1, 0, 11).unwrap(),
            tokens.narrow(1, 1, 11).unwrap(),
        );
        let loss = text.model.as_causal().loss(
            &inputs,
            &targets,
            Reduction::Mean,
            LmInput::default(),
            &mut Ctx::eval(),
        );
        let (got, want) = (loss.unwrap(), golden(name, "loss").to_f64_vec()[0]);
        let got = f64::from(got.item::<f32>().unwrap());
        assert!((got / want - 1.0).abs() < 1e-5, "{name}: {got}, not {want}");

        // Made ordinary again, the layers hold what the codes mean.
        quant::dequantize(&mut text.model).unwrap();
        let off = distance(&logits(&text, &tokens), &golden(name, "logits"));
        assert!(off < 2e-6, "{name}: in floats the logits differ by {off}");
        let place = tempfile::tempdir().unwrap();
        let plain = place.path().join("plain");
        text.model.save_with(&plain, &text.tokenizer).unwrap();
        assert_eq!(stored_quantization(&plain).unwrap(), None);
        LanguageModel::open(&plain, None).unwrap();
    }
}

#[test]
fn what_was_read_is_written_the_same() {
    for (name, ..) in CASES {
        let mut text = open_text_model(&folder(name), None).unwrap();
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("again");
        save_quantized(&mut text, &out).unwrap();
        let theirs = SafeTensors::open(folder(name).join("model.safetensors")).unwrap();
        let ours = SafeTensors::open(out.join("model.safetensors")).unwrap();
        let names = |file: &SafeTensors| {
            let mut all: Vec<String> = file.names().map(str::to_string).collect();
            all.sort();
            all
        };
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for key in names(&theirs) {
            let (a, b) = (ours.tensor(&key).unwrap(), theirs.tensor(&key).unwrap());
            if key.contains("quant_state") {
                // The same object; Python writes spaces into it.
                let read = |a: &Array| -> serde_json::Value {
                    serde_json::from_slice(&a.to_vec::<u8>().unwrap()).unwrap()
                };
                assert_eq!(read(&a), read(&b), "{name}: {key}");
                continue;
            }
            assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{key}");
            assert_eq!(a.to_f64_vec(), b.to_f64_vec(), "{name}: {key}");
        }
        let tokens = Tensor::from(golden(name, "tokens"));
        let again = open_text_model(&out, None).unwrap();
        assert_eq!(
            logits(&again, &tokens).to_f64_vec(),
            logits(&text, &tokens).to_f64_vec()
        );
        let refused = save_quantized(&mut text, &out).unwrap_err().to_string();
        assert!(refused.contains("expected a new or empty"), "{refused}");
    }
}

#[test]
fn a_model_quantized_here_is_the_same_after_writing_and_reading() {
    let place = tempfile::tempdir().unwrap();
    let plain = place.path().join("plain");
    let mut text = open_text_model(&folder("llama-nf4"), None).unwrap();
    quant::dequantize(&mut text.model).unwrap();
    text.model.save_with(&plain, &text.tokenizer).unwrap();
    let tokens = Tensor::from(golden("llama-nf4", "tokens"));
    for (kind, double, skip) in [
        (Code::Nf4, true, vec![]),
        (Code::Fp4, false, vec!["down_proj".to_string()]),
        (Code::Symmetric, false, vec![]),
    ] {
        let config = QuantConfig {
            kind,
            double,
            ..QuantConfig::default()
        };
        let mut made = open_quantized(&plain, Some(DType::F32), Some(&config), &skip).unwrap();
        let report = quant::report(&mut made.model).unwrap();
        assert_eq!(report.layers.len(), if skip.is_empty() { 14 } else { 12 });
        let out = place.path().join(kind.name());
        save_quantized(&mut made, &out).unwrap();
        let stored = stored_quantization(&out).unwrap().unwrap();
        assert_eq!((stored.kind, stored.double), (kind, double));
        let read = open_text_model(&out, Some(DType::F32)).unwrap();
        assert_eq!(
            logits(&read, &tokens).to_f64_vec(),
            logits(&made, &tokens).to_f64_vec()
        );
        keep(&out, kind.name(), &tokens, &logits(&read, &tokens));
        let text = std::fs::read_to_string(out.join("config.json")).unwrap();
        let named = text.contains("model.layers.1.mlp.down_proj") && text.contains("lm_head");
        assert_eq!(named, !skip.is_empty());
    }
    let refused = save_quantized(&mut text, &place.path().join("x")).unwrap_err();
    assert!(refused.to_string().contains("no linear layer"), "{refused}");
}

#[test]
fn what_is_damaged_is_named() {
    let opened = |place: &Path| match open_text_model(place, None) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    };
    let layer = "model.layers.0.self_attn.q_proj.weight";
    let without = |part: &str| {
        let name = format!("{layer}{part}");
        copy("llama-nf4", |tensors| tensors.retain(|(n, _)| *n != name))
    };
    for part in [".absmax", ".quant_map", ".nested_absmax", ""] {
        let place = without(part);
        let message = opened(place.path());
        let directory = place.path().display().to_string();
        assert_eq!(message.matches(&directory).count(), 1, "{message}");
        assert!(
            message.contains(&format!("{layer}{part} is missing")),
            "{message}"
        );
    }
    let message = opened(without(".quant_state.bitsandbytes__nf4").path());
    assert!(message.contains("got bytes alone"), "{message}");
    let short = copy("llama-nf4", |tensors| {
        for (name, array) in tensors {
            if name == layer {
                *array = array.slice(0, 0, 100, 1).unwrap();
            }
        }
    });
    let message = opened(short.path());
    assert!(message.contains(layer), "{message}");

    // Weights in 8 bits, and a reader that knows floats only.
    let other = copy("llama-nf4", |_| ());
    let config = other.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let eight = text
        .replace("\"load_in_4bit\": true", "\"load_in_4bit\": false")
        .replace("\"load_in_8bit\": false", "\"load_in_8bit\": true");
    std::fs::write(&config, eight).unwrap();
    let message = opened(other.path());
    assert!(
        message.contains("`load_in_4bit`: expected true, got false"),
        "{message}"
    );
    let message = match LanguageModel::open(folder("llama-nf4"), None) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    };
    assert!(
        message.contains("expected weights in floats, got quantized ones"),
        "{message}"
    );
}
