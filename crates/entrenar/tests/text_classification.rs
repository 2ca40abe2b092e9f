//! Classifiers of texts through the binary: training on a random encoder, evaluation, labels, vectors.

#[path = "support/encoders.rs"]
mod encoders;
mod support;

use std::fmt::Write;
use std::path::Path;

use encoders::write_encoder;
use serde_json::{Value, json};
use support::{fails, succeeds};

const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "fine", "great", "bad", "poor", "awful", "the",
    "film",
];

const CONFIG: &str = "
task: sequence-classification
seed: 1
model: {base: base}
data: {path: reviews.csv, fields: {text: review, label: opinion}, validation: 0.25, sequence_length: 12}
train: {epochs: 8, batch_size: 8, early_stopping: {metric: accuracy, patience: 20}}
optimizer: {learning_rate: 0.003}
";

/// A random encoder of a few words, with its tokenizer, and labelled texts.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    let sizes = json!({
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 16, "architectures": ["BertModel"],
    });
    write_encoder(&base, &WORDS, 4, sizes);
    let mut rows = String::from("review,opinion\n");
    for i in 0..80 {
        let (word, opinion) = match i % 2 {
            0 => (WORDS[4 + i / 2 % 3], "positive"),
            _ => (WORDS[7 + i / 2 % 3], "negative"),
        };
        let text = match i % 3 {
            0 => format!("the film {word}"),
            1 => format!("{word} film"),
            _ => format!("the {word} film the film"),
        };
        writeln!(rows, "{text},{opinion}").unwrap();
    }
    std::fs::write(folder.path().join("reviews.csv"), rows).unwrap();
    std::fs::write(folder.path().join("run.yaml"), CONFIG).unwrap();
    folder
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_classifier_is_trained_measured_and_used() {
    let folder = folder();
    let at = |name: &str| path(folder.path(), name);
    let (config, run) = (at("run.yaml"), at("run"));
    let report = succeeds(&["train", &config, "--quiet", "--json", "--run-dir", &run]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["validation"]["accuracy"], 1.0, "{report}");

    let model = at("run/model");
    let config: Value =
        serde_json::from_slice(&std::fs::read(at("run/model/config.json")).unwrap()).unwrap();
    assert_eq!(
        config["id2label"],
        json!({"0": "negative", "1": "positive"})
    );
    // The columns are those of the run; a model that stands alone takes text and label.
    let rows = "the great film,positive\nawful film,negative\n";
    std::fs::write(at("new.csv"), format!("review,opinion\n{rows}")).unwrap();
    std::fs::write(at("plain.csv"), format!("text,label\n{rows}")).unwrap();
    let alone = at("alone");
    std::fs::create_dir(&alone).unwrap();
    for file in std::fs::read_dir(&model).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), Path::new(&alone).join(file.file_name())).unwrap();
    }
    let mut measures = Vec::new();
    for (model, data) in [
        (&model, "new.csv"),
        (&run, "new.csv"),
        (&alone, "plain.csv"),
    ] {
        measures.push(succeeds(&["eval", "--model", model, "--data", &at(data)]));
    }
    assert!(measures[0].contains("accuracy 1.000000"), "{measures:?}");
    assert!(measures.iter().all(|m| *m == measures[0]), "{measures:?}");
    let message = fails(&["eval", "--model", &alone, "--data", &at("new.csv")], 1);
    assert!(message.contains("no column \"text\" among"), "{message}");

    std::fs::write(at("new.txt"), "poor film\nfine the film\n").unwrap();
    let out = at("labels.csv");
    succeeds(&[
        "predict",
        "--model",
        &model,
        "--data",
        &at("new.txt"),
        "--out",
        &out,
        "--quiet",
    ]);
    let labels = std::fs::read_to_string(&out).unwrap();
    let labels: Vec<&str> = labels.lines().collect();
    assert_eq!(
        labels[0],
        "row,prediction,probability,probability of negative,probability of positive"
    );
    assert!(
        labels[1].starts_with("1,negative,") && labels[2].starts_with("2,positive,"),
        "{labels:?}"
    );

    // A table's header is no text.
    let from_table = at("from-table.csv");
    let args = [
        "predict",
        "--model",
        &model,
        "--data",
        &at("new.csv"),
        "--out",
        &from_table,
    ];
    succeeds(&[&args[..], &["--quiet"]].concat());
    let rows = std::fs::read_to_string(&from_table).unwrap();
    let rows: Vec<&str> = rows.lines().skip(1).collect();
    assert!(
        rows.len() == 2 && rows[0].starts_with("1,positive,") && rows[1].starts_with("2,negative,"),
        "{rows:?}"
    );

    // Without a classifier, the same command gives vectors of length 1.
    let out = at("vectors.jsonl");
    succeeds(&[
        "predict",
        "--model",
        &at("base"),
        "--data",
        &at("new.txt"),
        "--out",
        &out,
        "--quiet",
    ]);
    let vectors = std::fs::read_to_string(&out).unwrap();
    assert_eq!(vectors.lines().count(), 2);
    for line in vectors.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers: Vec<f64> = row["embedding"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect();
        let length: f64 = numbers.iter().map(|x| x * x).sum();
        assert!(numbers.len() == 16 && (length - 1.0).abs() < 1e-5, "{row}");
    }
}

#[test]
fn what_cannot_be_classified_is_told() {
    let folder = folder();
    let at = |name: &str| path(folder.path(), name);
    let (config, run) = (at("run.yaml"), at("never"));
    let told = |set: &str, status: i32| {
        let args = ["train", &config, "--quiet", "--run-dir", &run, "--set", set];
        let message = fails(&args, status);
        assert!(!Path::new(&run).exists());
        message
    };
    let message = told("data.fields={text: reviw, label: opinion}", 1);
    assert!(
        message.contains("reviw") && message.contains("review"),
        "{message}"
    );
    let message = told("data.fields={words: review}", 2);
    assert!(
        message.contains("expected text or label, got `words`"),
        "{message}"
    );
    let message = told("data.sequence_length=17", 2);
    assert!(
        message.contains("at most the model's context of 16, got 17"),
        "{message}"
    );
    let elsewhere = format!("data.path={}", at("nothing.csv"));
    let output = support::entrenar()
        .args([
            "train",
            &config,
            "--dry-run",
            "--quiet",
            "--set",
            &elsewhere,
        ])
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        support::stderr(&output)
    );
    assert!(support::stderr(&output).contains("nothing.csv"));
    let message = told("adapter={}", 2);
    assert!(
        message.contains("adapter: this key needs task"),
        "{message}"
    );
    std::fs::write(at("bad.jsonl"), "{\"text\": 3}\n").unwrap();
    let message = fails(
        &[
            "predict",
            "--model",
            &at("base"),
            "--data",
            &at("bad.jsonl"),
            "--out",
            &at("o.csv"),
        ],
        1,
    );
    assert!(
        message.contains("line 1: expected an object with the text `text`"),
        "{message}"
    );
    assert!(!Path::new(&at("o.csv")).exists());
}
