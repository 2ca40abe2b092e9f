//! Models in 4 bits through the binary: directories of bitsandbytes (`oracles/bitsandbytes_directory.py`)
//! are evaluated, continued, trained on and merged; models quantized here are such directories.

#[path = "quantized/number_formats.rs"]
mod number_formats;
mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use entrenar::io::SafeTensors;
use serde_json::Value;
use support::{entrenar, fails, stderr, stdout, succeeds};

const TEXT: &str = "the quick brown fox jumps over the lazy dog.";

const CONFIG: &str = "
task: sft
seed: 3
model: {base: BASE}
adapter: {rank: 4, alpha: 16}
data: {path: rows.jsonl, validation: 0.2, sequence_length: 32}
train: {max_steps: 20, batch_size: 4}
optimizer: {learning_rate: 0.01}
";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../train/tests/data/bitsandbytes/{name}"))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A folder with rows and a text.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = String::new();
    for i in 0..40u8 {
        let letter = |n: u8| char::from(b'a' + n % 26);
        let (a, b) = (letter(i), letter(i + 1));
        let row = serde_json::json!({"prompt": format!("{a} then "), "completion": b.to_string()});
        writeln!(rows, "{row}").unwrap();
    }
    std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    std::fs::write(folder.path().join("text.txt"), TEXT).unwrap();
    folder
}

fn loss(model: &str, more: &[&str], data: &str) -> f64 {
    let mut args = vec!["eval", "--json", "--model", model, "--data", data];
    args.extend(more);
    let report: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    report["loss"].as_f64().unwrap()
}

/// Trains on `base` into `run` and gives what was said on standard error.
fn train(folder: &Path, base: &str, run: &str, sets: &[&str]) -> String {
    let config = folder.join(format!("{run}.yaml"));
    std::fs::write(&config, CONFIG.replace("BASE", base)).unwrap();
    let mut command = entrenar();
    command.arg("train").arg(&config);
    command.arg("--run-dir").arg(folder.join(run));
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output) + &stdout(&output)
}

#[test]
fn directories_of_bitsandbytes_are_used_like_any_other() {
    let folder = folder();
    let data = text(&folder.path().join("text.txt"));
    for (name, numbers) in [("llama-nf4", 73_728 + 4_416), ("gpt2-fp4", 49_152 + 7_104)] {
        let model = text(&golden(name));
        let file = SafeTensors::open(golden(name).join("golden.safetensors")).unwrap();
        let want = file.tensor("text_loss").unwrap().to_f64_vec()[0];
        let got = loss(&model, &[], &data);
        assert!((got / want - 1.0).abs() < 1e-5, "{name}: {got}, not {want}");
        let prompt = [
            "--prompt",
            "the quick",
            "--greedy",
            "--max-new-tokens",
            "12",
        ];
        let mut args = vec!["generate", "--model", &model];
        args.extend(prompt);
        let want = file.tensor("greedy").unwrap().to_vec::<u8>().unwrap();
        let want = String::from_utf8(want).unwrap() + "\n";
        assert_eq!(succeeds(&args), want, "{name}");
        let report: Value =
            serde_json::from_str(&succeeds(&["inspect", "--json", &model])).unwrap();
        assert_eq!(report["parameters"], numbers, "{name}");

        // Positions that are computed go on; a table of them ends.
        let long = ["data.sequence_length=65", "train.max_steps=1"];
        if name.starts_with("llama") {
            let said = train(folder.path(), &model, "long", &long);
            let told = "65 is above the 64 positions of the model";
            assert!(said.contains(told), "{said}");
        } else {
            let config = folder.path().join("long.yaml");
            std::fs::write(&config, CONFIG.replace("BASE", &model)).unwrap();
            let set = format!("--set={}", long[0]);
            let refused = fails(&["train", &text(&config), "--quiet", &set], 2);
            let told = "expected at most the model's context of 64, got 65";
            assert!(refused.contains(told), "{refused}");
        }

        // An adapter on it learns; a merged model computes what adapter and base do.
        let said = train(folder.path(), &model, name, &[]);
        assert!(said.contains("quantized: "), "{said}");
        let adapter = text(&folder.path().join(name).join("model"));
        let out = text(&folder.path().join(format!("{name}-merged")));
        let adapted = loss(&model, &["--adapter", &adapter], &data);
        assert!((adapted - got).abs() > 1e-2, "{name}: nothing was learned");
        let mut merge = entrenar();
        merge.args(["merge-adapter", "--model", &model, "--adapter", &adapter]);
        assert!(merge.args(["--out", &out]).status().unwrap().success());
        let merged = loss(&out, &[], &data);
        assert!((merged - adapted).abs() < 1e-4, "{merged}, not {adapted}");
        let config = std::fs::read_to_string(Path::new(&out).join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{config}");
    }
}

#[test]
fn what_is_quantized_here_trains_as_what_is_quantized_on_the_way() {
    let folder = folder();
    let at = |name: &str| text(&folder.path().join(name));
    let (run, plain, four) = (at("first"), at("plain"), at("four"));
    // A plain model, from a quantized one and an adapter.
    let base = text(&golden("llama-nf4"));
    train(folder.path(), &base, "first", &["train.max_steps=2"]);
    let mut merge = entrenar();
    merge.args(["merge-adapter", "--model", &base, "--out", &plain]);
    let adapter = format!("{run}/model");
    assert!(
        merge
            .args(["--adapter", &adapter])
            .status()
            .unwrap()
            .success()
    );

    let mut quantize = entrenar();
    quantize.args(["quantize", "--model", &plain, "--out", &four]);
    let output = quantize.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("quantized: 14 layers, 73728 weights"),
        "{said}"
    );

    let kind = ["quantization.type=nf4", "quantization.double=true"];
    train(folder.path(), &plain, "way", &kind);
    train(folder.path(), &four, "stored", &[]);
    let bytes = |run: &str| std::fs::read(at(run) + "/model/adapter_model.safetensors").unwrap();
    assert!(bytes("way") == bytes("stored"), "the adapters differ");
    // Its own form counts, and it says so.
    let said = train(folder.path(), &four, "other", &["quantization.type=fp4"]);
    assert!(said.contains("the base is in 4 bits already"), "{said}");
    assert!(bytes("other") == bytes("stored"), "the adapters differ");

    let refused = fails(&["quantize", "--model", &four, "--out", &at("again")], 2);
    assert!(refused.contains("in 4 bits already"), "{refused}");
    let refused = fails(&["quantize", "--model", &plain, "--out", &four], 1);
    assert!(refused.contains("a new or empty directory"), "{refused}");
}

#[test]
fn weights_in_4_bits_are_not_trained_in_full() {
    let folder = folder();
    let model = text(&golden("llama-nf4"));
    let config = folder.path().join("full.yaml");
    let full: String = CONFIG
        .replace("BASE", &model)
        .lines()
        .filter(|line| !line.starts_with("adapter"))
        .fold(String::new(), |all, line| all + line + "\n");
    std::fs::write(&config, full).unwrap();
    let config = text(&config);
    let told = |message: &str| {
        assert!(
            message.contains("full.yaml:4:") && message.contains("add the section `adapter`"),
            "{message}"
        );
    };
    told(&fails(&["train", &config, "--quiet"], 2));
    let planned = entrenar()
        .args(["train", &config, "--dry-run"])
        .output()
        .unwrap();
    assert_eq!(planned.status.code(), Some(2));
    told(&stderr(&planned));
    let with = folder.path().join("with.yaml");
    std::fs::write(&with, CONFIG.replace("BASE", &model)).unwrap();
    let planned = entrenar()
        .args(["train", &text(&with), "--dry-run"])
        .output();
    let plan = stderr(&planned.unwrap());
    // 78,144 of the model, of which 73,728 in 4 bits, and 8,192 of the adapter.
    assert!(
        plan.contains("trainable parameters: 8192 of 86336 "),
        "{plan}"
    );
}
