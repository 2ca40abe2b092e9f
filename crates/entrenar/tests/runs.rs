//! Whole runs through the binary: the three tasks, kills, signals, threads, exit statuses.

#[path = "support/images.rs"]
mod images;
#[path = "support/runs.rs"]
mod left;
mod support;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use images::write_images;
use left::metrics;
use serde_json::Value;
use support::{entrenar, fails, stderr, stdout, succeeds};

/// A character-level GPT with dropout, accumulation, clipping, evaluations and checkpoints.
const TEXT: &str = "
task: language-model
seed: 3
model: {architecture: gpt, layers: 2, heads: 2, width: 32, context: 16, dropout: 0.1}
data: {path: text.txt, tokenizer: char, validation: 0.1}
train: {max_steps: 60, batch_size: 4, gradient_accumulation_steps: 3, max_grad_norm: 1.0, log_every_steps: 4}
optimizer: {name: adamw, learning_rate: 0.003}
schedule: {name: cosine, warmup_steps: 5}
evaluate: {every_steps: 10, max_batches: 3}
checkpoint: {every_steps: 7, keep: 2}
generate: {prompt: \"the \", max_new_tokens: 20}
";

/// Small images with batch norm: buffers, epochs, early stopping that does not strike.
const IMAGES: &str = "
task: classification
seed: 4
model: {architecture: cnn, channels: [6, 8], batch_norm: true, hidden: 16, dropout: 0.2}
data: {path: images, format: idx, validation: 0.2, normalize: standard}
train:
  epochs: 6
  batch_size: 16
  log_every_steps: 3
  early_stopping: {metric: accuracy, patience: 50}
optimizer: {name: sgd, learning_rate: 0.05, momentum: 0.9, nesterov: true}
evaluate: {every_steps: 5}
checkpoint: {every_steps: 4, keep: 1}
";

/// A table with a numeric target.
const TABLE: &str = "
task: regression
seed: 5
model: {architecture: mlp, hidden: [16], activation: tanh}
data:
  path: table.csv
  columns: {target: y}
  validation: 0.2
  test: 0.1
  normalize: standard
train: {epochs: 40, batch_size: 8}
optimizer: {name: adam, learning_rate: 0.02}
";

/// A folder with the three configs and data for them.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, config) in [("text", TEXT), ("images", IMAGES), ("table", TABLE)] {
        std::fs::write(path(&format!("{name}.yaml")), config).unwrap();
    }
    let words = [
        "the", "cat", "and", "a", "dog", "ran", "to", "sea", "so", "it", "is",
    ];
    let text: Vec<&str> = (0..900)
        .map(|i| words[(i * i + i / 7) % words.len()])
        .collect();
    std::fs::write(path("text.txt"), text.join(" ")).unwrap();
    write_images(&path("images"), 160, 40);
    let mut table = String::from("a,b,y\n");
    for i in 0..120 {
        let (a, b) = (f64::from(i % 13) - 6.0, f64::from(i % 7) / 3.0);
        table += &format!("{a},{b},{}\n", 3.0 * a - b * b + 20.0);
    }
    std::fs::write(path("table.csv"), table).unwrap();
    folder
}

fn train(folder: &Path, name: &str, run: &str, more: &[&str]) -> String {
    let (config, directory) = (folder.join(format!("{name}.yaml")), folder.join(run));
    let mut args = vec!["train", config.to_str().unwrap(), "--quiet", "--run-dir"];
    args.push(directory.to_str().unwrap());
    args.extend(more);
    succeeds(&args)
}

/// Starts a run in the background.
fn spawn(folder: &Path, name: &str, run: &str, threads: Option<&str>) -> Child {
    let mut command = entrenar();
    command
        .arg("train")
        .arg(folder.join(format!("{name}.yaml")));
    command
        .arg("--run-dir")
        .arg(folder.join(run))
        .arg("--resume");
    if let Some(threads) = threads {
        command.env("ENTRENAR_THREADS", threads);
    }
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Everything about a run that does not depend on the clock.
fn results(run: &Path) -> (Vec<String>, Vec<u8>, String, Vec<u8>) {
    let best = run.join("checkpoints/best");
    let newest = entrenar::io::Store::at(run.join("checkpoints"))
        .latest_intact()
        .unwrap();
    (
        metrics(run),
        std::fs::read(run.join("model/model.safetensors")).unwrap(),
        std::fs::read_to_string(best).unwrap(),
        newest
            .checkpoint
            .unwrap()
            .bytes("optimizer.safetensors")
            .unwrap(),
    )
}

fn last(run: &Path, split: &str) -> Value {
    let mut lines = metrics(run)
        .into_iter()
        .map(|line| serde_json::from_str::<Value>(&line).unwrap());
    lines.rfind(|line| line["split"] == split).unwrap()
}

#[test]
fn a_language_model_trains_evaluates_and_writes() {
    let folder = folder();
    let sample = train(folder.path(), "text", "run", &[]);
    assert!(
        sample.starts_with("the ") && sample.chars().count() == 4 + 20 + 1,
        "{sample:?}"
    );
    let run = folder.path().join("run");
    let validation = last(&run, "validation");
    let loss = validation["loss"].as_f64().unwrap();
    assert!(
        loss < 2.0,
        "a model that learnt nothing has ln(17) = 2.8: {validation}"
    );
    assert!((validation["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-3);
    for name in [
        "config.yaml",
        "metrics.jsonl",
        "loss.svg",
        "checkpoints/best",
    ] {
        assert!(run.join(name).is_file(), "{name}");
    }
    for name in ["config.json", "model.safetensors", "preprocess.json"] {
        assert!(run.join("model").join(name).is_file(), "{name}");
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // The end of the text is what it was validated on.
    let text = std::fs::read_to_string(folder.path().join("text.txt")).unwrap();
    let split = (text.len() as f64 * 0.9) as usize;
    std::fs::write(folder.path().join("end.txt"), &text[split..]).unwrap();
    let json = succeeds(&[
        "eval",
        "--json",
        "--model",
        &path("run"),
        "--data",
        &path("end.txt"),
    ]);
    let measured: Value = serde_json::from_str(&json).unwrap();
    let difference = measured["loss"].as_f64().unwrap() - loss;
    assert!(difference.abs() < 1e-5, "{measured} and {validation}");

    let generate = |more: &[&str]| {
        let model = path("run");
        let args = [
            "generate",
            "--model",
            &model,
            "--prompt",
            "the cat",
            "--max-new-tokens",
            "9",
        ];
        succeeds(&[&args[..], more].concat())
    };
    let greedy = generate(&["--greedy"]);
    assert!(
        greedy.starts_with("the cat") && greedy.len() == 17 && greedy.ends_with('\n'),
        "{greedy:?}"
    );
    assert_eq!(generate(&["--greedy"]), greedy);
    assert_eq!(generate(&["--seed", "5"]), generate(&["--seed", "5"]));
    assert_eq!(generate(&["--top-k", "1", "--temperature", "2"]), greedy);
    let json: Value = serde_json::from_str(&generate(&["--greedy", "--json"])).unwrap();
    assert_eq!(json["text"], greedy[..16]);

    let message = fails(&["generate", "--model", &path("run"), "--prompt", "Ω"], 2);
    assert!(
        message.contains("'Ω'") || message.contains("\"Ω\""),
        "{message}"
    );
    let message = fails(
        &[
            "predict",
            "--model",
            &path("run"),
            "--data",
            "x",
            "--out",
            "y.csv",
        ],
        2,
    );
    assert!(
        message.contains("a language model has no answer per row"),
        "{message}"
    );
}

#[test]
fn images_are_classified() {
    let folder = folder();
    let json = train(folder.path(), "images", "run", &["--json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["status"], "finished");
    assert!(
        report["test"]["accuracy"].as_f64().unwrap() > 0.9,
        "{report}"
    );
    assert_eq!(report["test"]["targets"], 40);
    let run = folder.path().join("run");
    assert_eq!(last(&run, "test")["step"], report["step"]);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (model, data) = (path("run/model"), path("images"));
    let text = succeeds(&["eval", "--model", &model, "--data", &data]);
    let accuracy = report["test"]["accuracy"].as_f64().unwrap();
    assert!(
        text.contains(&format!("accuracy {accuracy:.6}\n")),
        "{text}"
    );
    assert!(text.ends_with("targets 40\n"), "{text}");

    // Images without labels can be predicted, not evaluated.
    let bare = path("images/t10k-images-idx3-ubyte");
    let out = path("out.jsonl");
    succeeds(&[
        "predict", "--quiet", "--model", &model, "--data", &bare, "--out", &out,
    ]);
    let lines = std::fs::read_to_string(&out).unwrap();
    assert_eq!(lines.lines().count(), 40);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    let sum: f64 = first["probabilities"]
        .as_object()
        .unwrap()
        .values()
        .map(|p| p.as_f64().unwrap())
        .sum();
    assert!((sum - 1.0).abs() < 1e-5, "{first}");
    assert!(fails(&["eval", "--model", &model, "--data", &bare], 1).contains("labels"));
}

#[test]
fn tables_are_predicted_on_their_own_scale() {
    let folder = folder();
    train(folder.path(), "table", "run", &[]);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (model, data, out) = (path("run"), path("table.csv"), path("out.csv"));
    let output = entrenar()
        .args(["predict", "--model", &model, "--data", &data, "--out", &out])
        .output()
        .unwrap();
    assert!(
        stderr(&output).ends_with(&format!("120 predictions in {out}\n")),
        "{output:?}"
    );
    let predictions = std::fs::read_to_string(&out).unwrap();
    let table = std::fs::read_to_string(&data).unwrap();
    let mut lines = predictions.lines();
    assert_eq!(lines.next(), Some("row,prediction"));
    let (mut squares, mut rows) = (0.0, 0);
    for (line, truth) in lines.zip(table.lines().skip(1)) {
        let (row, value) = line.split_once(',').unwrap();
        rows += 1;
        assert_eq!(row, rows.to_string());
        let truth: f64 = truth.rsplit(',').next().unwrap().parse().unwrap();
        squares += (value.parse::<f64>().unwrap() - truth).powi(2);
    }
    assert_eq!(rows, 120);
    let rmse = (squares / 120.0).sqrt();
    assert!(rmse < 1.5, "the target's deviation is 11: {rmse}");
    let json = succeeds(&["eval", "--json", "--model", &model, "--data", &data]);
    let measured: Value = serde_json::from_str(&json).unwrap();
    assert!(
        (measured["rmse"].as_f64().unwrap() - rmse).abs() < 1e-3,
        "{measured}"
    );
    assert!(
        fails(
            &[
                "predict",
                "--model",
                &model,
                "--data",
                &data,
                "--out",
                "x.parquet"
            ],
            2
        )
        .contains("expected a name that ends in .csv or .jsonl")
    );
}

/// A number in [0, 1) that no two runs of this test share.
fn random_share() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    f64::from(now.subsec_micros() % 997) / 997.0
}

/// Killed without warning again and again, a run ends as if nothing had happened.
#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let folder = folder();
    for name in ["text", "images", "table"] {
        let begun = Instant::now();
        train(folder.path(), name, &format!("{name}-whole"), &[]);
        let whole = begun.elapsed();
        let expected = results(&folder.path().join(format!("{name}-whole")));
        let killed = format!("{name}-killed");
        let (mut kills, mut share) = (0, 0.7);
        loop {
            let mut child = spawn(folder.path(), name, &killed, None);
            // Not the same moment every time, nor for every run of this test.
            let jitter = random_share();
            std::thread::sleep(whole.mul_f64(share * (0.4 + 0.6 * jitter)));
            if child.try_wait().unwrap().is_some() {
                assert!(child.wait().unwrap().success());
                if kills > 0 {
                    break;
                }
                // Sooner done than the run whose time was taken: again, with less time.
                std::fs::remove_dir_all(folder.path().join(&killed)).unwrap();
                share *= 0.6;
                continue;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            // Progress is certain in the end: it has more and more time.
            share += 0.1;
        }
        let found = results(&folder.path().join(&killed));
        assert_eq!(found.0, expected.0, "{name}: metrics after {kills} kills");
        assert!(
            found == expected,
            "{name}: weights, best or optimizer after {kills} kills"
        );
    }
}

#[cfg(unix)]
#[test]
fn signals_save_and_end_cleanly() {
    let folder = folder();
    train(folder.path(), "text", "whole", &[]);
    for signal in ["TERM", "INT"] {
        let run = folder.path().join(signal);
        let child = spawn(folder.path(), "text", signal, None);
        let begun = Instant::now();
        // After the first line of metrics it listens for certain.
        while !std::fs::read_to_string(run.join("metrics.jsonl"))
            .is_ok_and(|text| text.contains('\n'))
        {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "the run does not begin"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = format!("kill -{signal} {}", child.id());
        std::process::Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let newest = entrenar::io::Store::at(run.join("checkpoints"))
            .latest_intact()
            .unwrap();
        let step = newest.checkpoint.unwrap().step();
        if step < 60 {
            let line = format!(
                "SIG{signal}: stopped after step {step} of 60 and saved it; continue with --run-dir"
            );
            assert!(told.contains(&line), "{told}");
            assert_eq!(stdout(&output), "", "no sample of an unfinished model");
            assert!(!run.join("model").exists());
            // The checkpoint is a model too.
            let (model, prompt) = (run.join(format!("checkpoints/step-{step}")), "the");
            succeeds(&[
                "generate",
                "--model",
                model.to_str().unwrap(),
                "--prompt",
                prompt,
            ]);
        }
        train(folder.path(), "text", signal, &["--resume"]);
        assert!(
            results(&run) == results(&folder.path().join("whole")),
            "SIG{signal}"
        );
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let folder = folder();
    let wide = [
        "model.width=64",
        "model.context=64",
        "train.batch_size=8",
        "train.max_steps=6",
    ];
    let wide: Vec<&str> = wide.iter().flat_map(|set| ["--set", set]).collect();
    for name in ["text", "images"] {
        let mut found = Vec::new();
        for threads in ["1", "2"] {
            let run = folder.path().join(format!("{name}-{threads}"));
            let mut command = entrenar();
            command
                .env("ENTRENAR_THREADS", threads)
                .arg("train")
                .arg("--quiet");
            command
                .arg(folder.path().join(format!("{name}.yaml")))
                .arg("--run-dir")
                .arg(&run);
            if name == "text" {
                command.args(&wide);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            found.push(results(&run));
        }
        assert!(
            found[0] == found[1],
            "{name} differs between 1 and 2 threads"
        );
    }
}

/// In strict mode no number depends on the processor: the plain path computes what the others do.
#[test]
fn strict_runs_are_the_same_on_every_instruction_set() {
    let folder = folder();
    for (name, steps) in [("text", "8"), ("images", "8"), ("table", "20")] {
        let mut weights = Vec::new();
        for level in ["baseline", "avx2", "avx512"] {
            let run = folder.path().join(format!("{name}-{level}"));
            let output = entrenar()
                .env("ENTRENAR_SIMD", level)
                .arg("train")
                .arg(folder.path().join(format!("{name}.yaml")))
                .args(["--quiet", "--set", "train.strict=true", "--run-dir"])
                .arg(&run)
                .args(["--set", &format!("train.max_steps={steps}")])
                .args(["--set", "train.epochs=null"])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            weights.push((
                metrics(&run),
                std::fs::read(run.join("model/model.safetensors")).unwrap(),
            ));
        }
        assert!(weights[0] == weights[1], "{name}: baseline and avx2 differ");
        assert!(weights[1] == weights[2], "{name}: avx2 and avx512 differ");
    }
}

#[test]
fn run_directories_are_guarded() {
    let folder = folder();
    let config = folder
        .path()
        .join("table.yaml")
        .to_str()
        .unwrap()
        .to_string();
    let run = folder.path().join("run").to_str().unwrap().to_string();
    train(folder.path(), "table", "run", &["--set", "train.epochs=1"]);
    let message = fails(&["train", &config, "--run-dir", &run], 2);
    assert!(
        message.contains("expected an empty run directory; --resume continues"),
        "{message}"
    );
    // Another model cannot take up the checkpoints; a longer run can.
    let resume = [
        "train",
        &config,
        "--run-dir",
        &run,
        "--resume",
        "--quiet",
        "--set",
    ];
    let message = fails(&[&resume[..], &["model.hidden=[9]"]].concat(), 2);
    assert!(
        message.contains("the run was begun with model.hidden [16], now it is [9]"),
        "{message}"
    );
    let message = fails(&[&resume[..], &["seed=6"]].concat(), 2);
    assert!(
        message.contains("begun with seed 5, now it is 6"),
        "{message}"
    );
    succeeds(&[&resume[..], &["train.epochs=3"]].concat());
    assert_eq!(last(Path::new(&run), "validation")["epoch"], 3.0);
    // Other data of the same name are noticed.
    let table = std::fs::read_to_string(folder.path().join("table.csv")).unwrap();
    std::fs::write(folder.path().join("table.csv"), table + "5,5,500\n").unwrap();
    let message = fails(&[&resume[..], &["train.epochs=4"]].concat(), 2);
    assert!(
        message.contains("the data have changed since the run was begun"),
        "{message}"
    );
    // Without --run-dir, runs are numbered.
    let output = entrenar()
        .args(["train", &config, "--quiet", "--set", "train.epochs=1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(folder.path().join("runs/table-1/model").is_dir());
}

#[test]
fn failures_while_running_are_status_1_and_say_where() {
    let folder = folder();
    let config = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let run = config("run");
    let start = |name: &str, set: &str| {
        vec![
            "train".into(),
            config(name),
            "--run-dir".into(),
            run.clone(),
            "--quiet".into(),
            "--set".into(),
            set.into(),
        ]
    };
    let told = |args: Vec<String>, status| {
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), status)
    };
    let message = told(start("table.yaml", "data.path=absent.csv"), 1);
    assert!(
        message.contains("--set data.path: ") && message.contains("absent.csv: no such file"),
        "{message}"
    );
    let message = told(start("text.yaml", "generate.prompt=Ω"), 2);
    assert!(
        message.contains("--set generate.prompt: ") && !message.contains(": generate.prompt: "),
        "{message}"
    );
    assert!(
        !Path::new(&run).exists(),
        "nothing is written before the data are sound"
    );

    let message = told(start("table.yaml", "model.hidden=[1000000, 1000000]"), 2);
    assert!(
        message.contains("table.yaml:4:8: model: expected a model that fits in memory ("),
        "{message}"
    );
    assert!(
        !Path::new(&run).exists(),
        "nothing is written for a model that cannot be"
    );

    // A learning rate that explodes: the NaN policy names the parameter.
    let message = told(
        start(
            "table.yaml",
            "optimizer={name: sgd, learning_rate: 1.0e+30}",
        ),
        1,
    );
    assert!(
        message.contains("`layers.0.") && message.contains("finite"),
        "{message}"
    );
    assert!(message.starts_with("error: step "), "{message}");

    let message = fails(&["eval", "--model", &config("nothing"), "--data", "x"], 1);
    assert!(message.contains("cannot open the model"), "{message}");
    let message = fails(
        &["eval", "--model", "m", "--data", "x", "--adapter", "a"],
        1,
    );
    assert!(message.contains("cannot open the model"), "{message}");
}

#[test]
fn inspect_shows_and_verifies() {
    let folder = folder();
    train(folder.path(), "table", "run", &["--set", "train.epochs=2"]);
    let run = folder.path().join("run");
    let text = succeeds(&["inspect", run.to_str().unwrap()]);
    assert!(
        text.contains("layers.0.weight") && text.contains("run directory"),
        "{text}"
    );
    let newest = entrenar::io::Store::at(run.join("checkpoints"))
        .latest_intact()
        .unwrap();
    let checkpoint = newest.checkpoint.unwrap().path().to_path_buf();
    let path = checkpoint.to_str().unwrap();
    let json: Value =
        serde_json::from_str(&succeeds(&["inspect", path, "--json", "--verify"])).unwrap();
    assert_eq!(json["verification"]["checksums"], true);
    let file = checkpoint.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let output = entrenar()
        .args(["inspect", path, "--verify"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("layers.1.weight"),
        "{}",
        stderr(&output)
    );
    assert!(
        stdout(&output).contains("layers.1.weight"),
        "the table is printed all the same"
    );
    assert!(fails(&["inspect", "no-such-file"], 1).contains("no-such-file"));

    // The final model has no manifest: its file vouches for itself.
    let model = run.join("model");
    let path = model.to_str().unwrap();
    assert!(succeeds(&["inspect", path, "--verify"]).contains("intact: 1 file"));
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let output = entrenar().args(["inspect", path, "--verify"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("tensor `layers.1.weight` is damaged"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn models_that_do_not_belong_together_are_refused() {
    let folder = folder();
    train(folder.path(), "table", "run", &["--set", "train.epochs=1"]);
    let model = folder.path().join("run/model");
    let file = model.join("config.json");
    let good = std::fs::read_to_string(&file).unwrap();
    let data = folder
        .path()
        .join("table.csv")
        .to_str()
        .unwrap()
        .to_string();
    let check = |config: &str, part: &str| {
        std::fs::write(&file, config).unwrap();
        let message = fails(
            &["eval", "--model", model.to_str().unwrap(), "--data", &data],
            1,
        );
        assert!(message.contains(part), "{config}: {message}");
    };
    let mlp = |sizes: &str| format!(r#"{{"architecture": "mlp", "version": 1, "sizes": {sizes}}}"#);
    check(
        &mlp("[1000000000, 1000000000]"),
        "the architecture needs at least 1000000000000000000 numbers",
    );
    check(&mlp("[2, 8, 1]"), "layers.0.weight");
    std::fs::write(&file, good).unwrap();
    let preprocess = model.join("preprocess.json");
    let text = std::fs::read_to_string(&preprocess).unwrap();
    std::fs::write(
        &preprocess,
        text.replace("\"format_version\": 1", "\"format_version\": 9"),
    )
    .unwrap();
    let message = fails(
        &["eval", "--model", model.to_str().unwrap(), "--data", &data],
        1,
    );
    assert!(
        message.contains("expected format version 1, got 9"),
        "{message}"
    );
}

#[test]
fn a_debug_build_says_so_once() {
    let folder = folder();
    let output = entrenar()
        .arg("train")
        .arg(folder.path().join("table.yaml"))
        .args([
            "--set",
            "train.epochs=1",
            "--set",
            "optimizer.learning_rate=1.0e-9",
        ])
        .args(["--set", "data.validation=null", "--run-dir"])
        .arg(folder.path().join("run"))
        .output()
        .unwrap();
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    let count = |part: &str| {
        told.lines()
            .filter(|line| line.starts_with("warning: ") && line.contains(part))
            .count()
    };
    assert_eq!(
        count("debug build"),
        usize::from(cfg!(debug_assertions)),
        "{told}"
    );
    assert_eq!(
        (count("learning_rate"), count("no validation data")),
        (1, 1),
        "{told}"
    );
}

/// The configs that ship find their data and train; two steps are enough here.
#[test]
fn shipped_configs_with_shipped_data_run() {
    let folder = tempfile::tempdir().unwrap();
    for (name, length) in [
        ("gpt", "train.max_steps=2"),
        ("digits", "train.epochs=1"),
        ("iris", "train.epochs=1"),
    ] {
        let run = folder.path().join(name);
        let config = example(&format!("{name}.yaml"));
        let mut args = vec!["train", &config, "--quiet", "--set", length, "--run-dir"];
        args.push(run.to_str().unwrap());
        let fast = [
            "--set",
            "schedule.warmup_steps=1",
            "--set",
            "generate.max_new_tokens=5",
        ];
        let limited = [
            "--set",
            "train.batch_size=2",
            "--set",
            "data.validation=0.001",
        ];
        if name == "gpt" {
            args.extend(fast);
            args.extend(limited);
        }
        succeeds(&args);
        assert!(run.join("model/model.safetensors").is_file(), "{name}");
    }
}

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}
