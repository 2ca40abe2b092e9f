//! Encoders that learn to find hidden words, through the binary: from raw text to a directory that
//! opens as BERT.

#[path = "support/encoders.rs"]
mod encoders;
mod support;

use std::path::Path;

use encoders::write_encoder;
use entrenar::zoo::Bert;
use serde_json::{Value, json};
use support::{fails, succeeds};

const WORDS: [&str; 17] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j",
    "k", "l",
];

const CONFIG: &str = "
task: masked-lm
seed: 1
model: {base: base}
data: {path: text.txt, validation: 0.2, sequence_length: 19}
train: {epochs: 60, batch_size: 4, gradient_accumulation_steps: 2, early_stopping: {metric: perplexity, patience: 40}}
optimizer: {learning_rate: 0.004}
";

/// A random encoder of a few words, with its tokenizer, and a text in which each word follows from
/// its neighbours: the alphabet, begun anywhere.
fn folder(architecture: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    let sizes = json!({
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 24, "architectures": [architecture], "initializer_range": 0.1,
    });
    write_encoder(&base, &WORDS, 5, sizes);
    let words = (0..960).map(|i| WORDS[5 + i % 12]);
    std::fs::write(
        folder.path().join("text.txt"),
        words.collect::<Vec<_>>().join(" "),
    )
    .unwrap();
    std::fs::write(folder.path().join("run.yaml"), CONFIG).unwrap();
    folder
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn an_encoder_learns_to_find_hidden_words() {
    let folder = folder("BertForMaskedLM");
    let at = |name: &str| path(folder.path(), name);
    let (config, run) = (at("run.yaml"), at("run"));
    let report = succeeds(&["train", &config, "--quiet", "--json", "--run-dir", &run]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let of = |name: &str| report["validation"][name].as_f64().unwrap();
    // A guess among twelve words has the loss ln 12 = 2.5.
    assert!(of("loss") < 0.3 && of("accuracy") > 0.9, "{report}");
    assert!((of("perplexity") / of("loss").exp() - 1.0).abs() < 1e-4);
    let metrics = std::fs::read_to_string(at("run/metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(first["loss"].as_f64().unwrap() > 2.0, "{first}");

    // The directory is one of BERT's.
    let model = Bert::open(at("run/model"), None).unwrap();
    assert!(model.cls.is_some());
    let written: Value =
        serde_json::from_slice(&std::fs::read(at("run/model/config.json")).unwrap()).unwrap();
    assert_eq!(written["architectures"], json!(["BertForMaskedLM"]));

    // An evaluation hides the same words each time.
    std::fs::write(at("new.txt"), "c d e f g h i j k l a b c d e").unwrap();
    let measure = || succeeds(&["eval", "--model", &run, "--data", &at("new.txt")]);
    let measured = measure();
    assert_eq!(measured, measure());
    assert!(
        measured.starts_with("loss 0.") && measured.contains("\nperplexity 1."),
        "{measured}"
    );

    // A run in two parts ends where a whole one does.
    let set = |steps: &str| format!("train={{max_steps: {steps}, batch_size: 4}}");
    let train = |run: &str, steps: &str, more: &[&str]| {
        let set = set(steps);
        let args = ["train", &config, "--quiet", "--run-dir", run, "--set", &set];
        succeeds(&[&args[..], more].concat());
    };
    let (whole, parts) = (at("whole"), at("parts"));
    train(&whole, "30", &[]);
    train(&parts, "17", &[]);
    train(&parts, "30", &["--resume"]);
    let weights = |run: &str| std::fs::read(format!("{run}/checkpoints/step-30/model.safetensors"));
    assert_eq!(weights(&whole).unwrap(), weights(&parts).unwrap());
}

#[test]
fn an_encoder_without_a_head_gets_one() {
    let folder = folder("BertModel");
    let at = |name: &str| path(folder.path(), name);
    std::fs::write(
        at("rows.jsonl"),
        (0..40)
            .map(|i| json!({"words": WORDS[5 + i % 9..8 + i % 9].join(" ")}).to_string() + "\n")
            .collect::<String>(),
    )
    .unwrap();
    let set = format!(
        "data={{path: {}, fields: {{text: words}}, mask_probability: 0.3, validation: 0.2}}",
        at("rows.jsonl")
    );
    let output = support::entrenar()
        .args([
            "train",
            &at("run.yaml"),
            "--run-dir",
            &at("run"),
            "--set",
            &set,
        ])
        .args(["--set", "train={epochs: 1, batch_size: 4}"])
        .output()
        .unwrap();
    let said = support::stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("begin afresh: cls.predictions."), "{said}");
    assert!(
        said.contains("data: 32 rows to train on, 200 tokens in all"),
        "{said}"
    );
    assert!(said.contains("perplexity"), "{said}");
    assert!(Bert::open(at("run/model"), None).unwrap().cls.is_some());
}

#[test]
fn what_cannot_find_hidden_words_is_told() {
    let folder = folder("BertForMaskedLM");
    let at = |name: &str| path(folder.path(), name);
    let (config, run) = (at("run.yaml"), at("never"));
    let told = |set: &str, status: i32| {
        let args = ["train", &config, "--quiet", "--run-dir", &run, "--set", set];
        let message = fails(&args, status);
        assert!(!Path::new(&run).exists());
        message
    };
    std::fs::create_dir(at("causal")).unwrap();
    std::fs::write(at("causal/config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let message = told(&format!("model.base={}", at("causal")), 2);
    assert!(
        message.contains("expected an encoder (`model_type` bert)")
            && message.contains("got `llama`")
            && message.contains("task `language-model`"),
        "{message}"
    );
    let message = told("data.sequence_length=25", 2);
    assert!(
        message.contains("at most the model's context of 24, got 25"),
        "{message}"
    );
    let message = told("data.mask_probability=1.5", 2);
    assert!(message.contains("data.mask_probability"), "{message}");
    let message = told("data.fields={label: x}", 2);
    assert!(message.contains("expected text, got `label`"), "{message}");
    let message = told("model={architecture: gpt}", 2);
    assert!(
        message.contains("`gpt` is for task language-model"),
        "{message}"
    );
    std::fs::write(
        at("base/tokenizer_config.json"),
        "{\"pad_token\": \"[PAD]\"}",
    )
    .unwrap();
    let message = told("seed=2", 2);
    assert!(message.contains("needs a mask token"), "{message}");
}
