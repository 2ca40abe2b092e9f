//! Runs from configs, and what can be done with the models that come of them.

use std::path::Path;

use entrenar_base::{Error, ErrorKind, Result};
use entrenar_cpu::team;
use entrenar_train::config::{self, Loaded, Task};
use entrenar_train::run::{ProgressStyle, RunPlace, read_metrics};
use entrenar_train::trainer::{
    Ended, Prediction, RunOptions, RunOutcome, TrainedModel, run_config,
};
use entrenar_zoo::Sampling;

const TEXT: &str = "
task: language-model
model: {architecture: gpt, layers: 1, heads: 2, width: 16, context: 8}
data: {path: text.txt, tokenizer: byte, validation: 0.1}
train: {max_steps: 80, batch_size: 8, threads: 1}
optimizer: {name: adam, learning_rate: 0.01}
generate: {prompt: ab, max_new_tokens: 6, temperature: 0, every_steps: 10}
";

const TABLE: &str = "
task: classification
model: {architecture: mlp, hidden: 8, activation: silu}
data: {path: table.csv, format: csv, columns: {target: kind}, validation: 0.25, normalize: standard, shuffle: false}
train:
  epochs: 200
  batch_size: 8
  clip_value: 0.5
  nan_policy: skip
  early_stopping: {metric: accuracy, patience: 6}
optimizer: {name: adamw, learning_rate: 0.02, decay_parameters: all}
";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.txt"), "abcd".repeat(200)).unwrap();
    let mut table = String::from("a,b,kind\n");
    for i in 0..60 {
        let (a, b) = (f64::from(i * 7 % 11) - 5.0, f64::from(i * 5 % 13) - 6.0);
        let kind = if a + b > 0.0 { "\"up, or so\"" } else { "down" };
        table += &format!("{a},{b},{kind}\n");
    }
    std::fs::write(folder.path().join("table.csv"), table).unwrap();
    folder
}

fn load(folder: &Path, text: &str, sets: &[&str]) -> Loaded {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
    config::parse(text.as_bytes(), "run.yaml", folder, &sets).unwrap()
}

fn run(folder: &Path, text: &str, sets: &[&str], resume: bool) -> Result<RunOutcome> {
    run_config(
        &load(folder, text, sets),
        RunOptions {
            place: RunPlace::At(folder.join("run")),
            resume,
            progress: ProgressStyle::Quiet,
            signals: None,
        },
    )
}

#[test]
fn a_language_model_learns_a_pattern() {
    let folder = folder();
    let threads = team::threads();
    let outcome = run(folder.path(), TEXT, &[], false).unwrap();
    assert_eq!(
        team::threads(),
        threads,
        "the number of threads is put back"
    );
    assert_eq!(outcome.sample.as_deref(), Some("abcdabcd"));
    assert_eq!(
        (outcome.training.ended, outcome.training.step),
        (Ended::Finished, 80)
    );

    // The run directory, its model and its checkpoints are all models.
    let directory = outcome.directory;
    let checkpoint = directory.join("checkpoints/step-80");
    for path in [&directory, &directory.join("model"), &checkpoint] {
        let model = TrainedModel::open(path).unwrap();
        assert_eq!(model.task(), Task::LanguageModel);
        let mut text = Vec::new();
        let greedy = Sampling {
            max_new_tokens: 100,
            temperature: 0.0,
            ..Sampling::default()
        };
        model
            .generate("cd", &greedy, |bytes| {
                text.extend_from_slice(bytes);
                text.len() < 5
            })
            .unwrap();
        assert_eq!(text, b"abcda");
        // A batch says what each prompt would alone.
        let mut texts = [b"cd".to_vec(), b"bcdab".to_vec()];
        let few = Sampling {
            max_new_tokens: 6,
            ..greedy.clone()
        };
        model
            .generate_batch(&["cd", "bcdab"], &[0, 1], &few, |row, bytes| {
                texts[row].extend_from_slice(bytes);
                true
            })
            .unwrap();
        assert_eq!(texts, [b"cdabcdab".to_vec(), b"bcdabcdabcd".to_vec()]);
        let message = model
            .generate_batch(&["a", ""], &[0, 1], &few, |_, _| true)
            .unwrap_err()
            .to_string();
        assert_eq!(message, "prompt 2 is empty: give at least one character");
        let data = folder.path().join("text.txt");
        let evaluation = model.evaluate(data.to_str().unwrap()).unwrap();
        assert_eq!(evaluation.targets, 799);
        assert!(
            evaluation.metric("perplexity").unwrap() < 1.5,
            "{evaluation:?}"
        );
        let message = model
            .generate("", &greedy, |_| true)
            .unwrap_err()
            .to_string();
        assert_eq!(message, "the prompt is empty: give at least one character");
    }
}

#[test]
fn a_table_is_classified_until_it_no_longer_improves() {
    let folder = folder();
    let outcome = run(folder.path(), TABLE, &[], false).unwrap();
    let Ended::Early(reason) = &outcome.training.ended else {
        panic!("{:?}", outcome.training);
    };
    assert_eq!(
        reason,
        "validation accuracy has not improved for 6 evaluations"
    );
    assert!(
        outcome
            .training
            .validation
            .unwrap()
            .metric("accuracy")
            .unwrap()
            > 0.8
    );
    let model = TrainedModel::open(&outcome.directory).unwrap();
    let data = folder.path().join("table.csv");
    let data = data.to_str().unwrap();
    let mut predictions = Vec::new();
    model
        .predict(model.read(data, false).unwrap(), |row, prediction| {
            assert_eq!(row, predictions.len());
            predictions.push(prediction);
            Ok(())
        })
        .unwrap();
    assert_eq!(predictions.len(), 60);
    let out = folder.path().join("out.csv");
    assert_eq!(model.predict_file(data, &out).unwrap(), 60);
    let text = std::fs::read_to_string(&out).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("row,prediction,probability,probability of down,\"probability of up, or so\"")
    );
    for (line, prediction) in lines.zip(&predictions) {
        let Prediction::Class {
            class,
            probabilities,
        } = prediction
        else {
            panic!("{prediction:?}");
        };
        let name = ["down", "\"up, or so\""][*class];
        let [down, up] = probabilities.as_slice() else {
            panic!("{prediction:?}");
        };
        let cells = line.split_once(&format!(",{name},")).unwrap().1;
        let cells: Vec<f32> = cells.split(',').map(|cell| cell.parse().unwrap()).collect();
        assert_eq!(cells, [probabilities[*class], *down, *up], "{line}");
        assert!(line.len() < 60, "no digits beyond those of an f32: {line}");
        assert!((down + up - 1.0).abs() < 1e-6 && probabilities[*class] >= 0.5);
    }

    // An error of the reader of predictions ends them, and leaves no file.
    let stop = |row, _| {
        if row == 3 {
            Err(Error::other("enough"))
        } else {
            Ok(())
        }
    };
    let told = model
        .predict(model.read(data, false).unwrap(), stop)
        .unwrap_err();
    assert_eq!(told.to_string(), "enough");
    let absent = folder.path().join("no-folder/out.csv");
    assert_eq!(
        model.predict_file(data, &absent).unwrap_err().kind(),
        ErrorKind::Io
    );
    let broken = folder.path().join("broken.csv");
    std::fs::write(&broken, "a,b\n1,2\nx,3\n").unwrap();
    let out = folder.path().join("never.csv");
    assert!(model.predict_file(broken.to_str().unwrap(), &out).is_err());
    let left = std::fs::read_dir(folder.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains("never")),
        "{left:?}"
    );
    let message = model
        .generate("a", &Sampling::default(), |_| true)
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "expected a language model, this model (mlp) is one of classification"
    );
}

#[test]
fn mistakes_are_found_before_anything_is_written() {
    let folder = folder();
    let told = |text: &str, sets: &[&str]| {
        let error = run(folder.path(), text, sets, false).unwrap_err();
        assert!(!folder.path().join("run").exists());
        (error.kind(), error.to_string())
    };
    let (kind, message) = told(TEXT, &["data.tokenizer=char", "generate.prompt=xyz"]);
    assert_eq!(kind, ErrorKind::Config);
    assert!(
        message.starts_with("--set generate.prompt: character 'x'"),
        "{message}"
    );
    let (_, message) = told(TABLE, &["data.columns={target: nothing}"]);
    assert!(
        message.starts_with("run.yaml:4:14: data.path: ") && message.contains("nothing"),
        "{message}"
    );
}

#[test]
fn a_run_continues_longer_but_not_otherwise() {
    let folder = folder();
    run(folder.path(), TEXT, &["generate=null"], false).unwrap();
    let again = |sets: &[&str]| run(folder.path(), TEXT, sets, true);
    let longer = again(&["train.max_steps=90", "generate=null"]).unwrap();
    assert_eq!((longer.training.step, longer.sample), (90, None));
    for (set, part) in [
        ("train.batch_size=5", "train.batch_size 8, now it is 5"),
        (
            "optimizer={name: adamw}",
            "optimizer.name \"adam\", now it is \"adamw\"",
        ),
        ("data.validation=0.2", "data.validation 0.1, now it is 0.2"),
        ("model.dropout=0.5", "model.dropout 0.0, now it is 0.5"),
    ] {
        let error = again(&[set]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(part), "{error}");
    }
    // The same data elsewhere are the same data.
    std::fs::rename(
        folder.path().join("text.txt"),
        folder.path().join("moved.txt"),
    )
    .unwrap();
    let moved = format!("data.path={}", folder.path().join("moved.txt").display());
    again(&["train.max_steps=91", &moved]).unwrap();
}

#[test]
fn a_run_that_has_not_finished_points_at_its_checkpoints() {
    let folder = folder();
    let outcome = run(folder.path(), TEXT, &[], false).unwrap();
    std::fs::remove_dir_all(outcome.directory.join("model")).unwrap();
    let Err(error) = TrainedModel::open(&outcome.directory) else {
        panic!("there is no model");
    };
    assert!(
        error
            .to_string()
            .contains("each of its checkpoints is a model directory"),
        "{error}"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &place);
        } else {
            std::fs::copy(entry.path(), place).unwrap();
        }
    }
}

/// A run that version 0.1.0 began and a kill ended at step 6 of 12 goes on, today and for ever.
/// `fixtures/run-v1` is never written again.
#[test]
fn a_run_of_format_version_1_goes_on() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run-v1");
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture, &folder.path().join("run"));
    let mut table = String::from("a,kind\n");
    for i in 0..24 {
        table += &format!("{},{}\n", i - 12, if i < 12 { "low" } else { "high" });
    }
    std::fs::write(folder.path().join("table.csv"), table).unwrap();
    let text = std::fs::read_to_string(fixture.join("config.yaml")).unwrap();
    let before = read_metrics(&fixture.join("metrics.jsonl")).unwrap();

    let outcome = run(folder.path(), &text, &[], true).unwrap();
    assert_eq!(
        (outcome.training.ended, outcome.training.step),
        (Ended::Finished, 12)
    );
    let after = read_metrics(&outcome.directory.join("metrics.jsonl")).unwrap();
    assert_eq!(after.len(), before.len());
    for (now, then) in after.iter().zip(&before) {
        assert_eq!((now.step, now.split), (then.step, then.split));
        // Kernels may sum in another order one day: what they learn stays.
        let (now, then) = (now.loss.value(), then.loss.value());
        assert!((now - then).abs() < 1e-4, "{now} was {then}");
    }
}
