//! The binary from outside: exit status, what goes to which stream, and every subcommand that needs no model.

mod support;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use support::{entrenar, fails, stderr, stdout, succeeds};

#[test]
fn help_and_version_succeed() {
    assert!(succeeds(&["--help"]).contains("Usage: entrenar"));
    assert_eq!(
        succeeds(&["--version"]),
        format!("entrenar {}\n", env!("CARGO_PKG_VERSION"))
    );
    for command in [
        "train",
        "eval",
        "predict",
        "generate",
        "inspect",
        "init",
        "schema",
        "completions",
    ] {
        assert!(succeeds(&[command, "--help"]).contains(&format!("Usage: entrenar {command}")));
    }
}

#[test]
fn wrong_usage_is_status_2() {
    fails(&[], 2);
    assert!(
        fails(&["trian"], 2).contains("train"),
        "clap names the near command"
    );
    assert!(fails(&["train"], 2).contains("CONFIG"));
    assert!(
        fails(
            &[
                "generate", "--model", "m", "--prompt", "p", "--greedy", "--top-k", "3"
            ],
            2
        )
        .contains("--greedy")
    );
    assert!(
        fails(
            &[
                "generate",
                "--model",
                "m",
                "--prompt",
                "p",
                "--temperature",
                "0"
            ],
            2
        )
        .contains("above 0")
    );
    assert!(
        fails(
            &[
                "generate", "--model", "m", "--prompt", "p", "--top-p", "1.5"
            ],
            2
        )
        .contains("at most 1")
    );
    assert!(
        fails(
            &[
                "generate",
                "--model",
                "m",
                "--prompt",
                "p",
                "--max-new-tokens",
                "0"
            ],
            2
        )
        .contains("max-new-tokens")
    );
    assert!(
        fails(&["init", "distill"], 2)
            .contains("not supported by this version; allowed: language-model")
    );
    assert!(fails(&["init", "poetry"], 2).contains("unknown task; allowed: language-model"));
    assert!(
        fails(&["init", "regression", "--data", "no-such.csv"], 2)
            .contains("--data: cannot read no-such.csv")
    );
    assert!(fails(&["completions", "cmd"], 2).contains("bash"));
}

#[test]
fn environment_variables_are_checked() {
    for (name, value, expected) in [
        ("ENTRENAR_SIMD", "avx", "baseline, avx2 or avx512"),
        ("ENTRENAR_THREADS", "0", "a whole number of at least 1"),
        ("ENTRENAR_THREADS", "two", "a whole number of at least 1"),
    ] {
        let output = entrenar().arg("schema").env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(
            stderr(&output),
            format!(
                "error: the environment variable {name}: expected {expected}, got \"{value}\"\n"
            )
        );
    }
}

#[test]
fn a_dry_run_prints_the_resolved_config_which_resolves_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("again.yaml");
    for name in [
        "gpt.yaml",
        "shakespeare-char.yaml",
        "mnist-mlp.yaml",
        "mnist-cnn.yaml",
        "digits.yaml",
        "iris.yaml",
    ] {
        let first = succeeds(&["train", &example(name), "--dry-run"]);
        std::fs::write(&file, &first).unwrap();
        assert_eq!(
            succeeds(&["train", file.to_str().unwrap(), "--dry-run"]),
            first,
            "{name}"
        );
    }
    let json = succeeds(&[
        "--json",
        "train",
        &example("iris.yaml"),
        "--dry-run",
        "--set",
        "train.batch_size=5",
    ]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["train"]["batch_size"], 5);
    assert!(!Path::new("runs").exists(), "a dry run writes nothing");
}

#[test]
fn paths_of_set_begin_at_the_current_directory() {
    let folder = tempfile::tempdir().unwrap();
    let output = entrenar()
        .args([
            "train",
            &example("mnist-mlp.yaml"),
            "--dry-run",
            "--set",
            "data.path=images",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let expected = folder.path().canonicalize().unwrap().join("images");
    assert!(
        stdout(&output).contains(&format!("- {}", expected.display())),
        "{}",
        stdout(&output)
    );
}

#[test]
fn config_mistakes_come_all_at_once_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.yaml");
    std::fs::write(
        &file,
        "task: language-model\nmodel: {architecture: gpt, layres: 3}\ntrain: {max_steps: ten}\n",
    )
    .unwrap();
    let name = file.to_str().unwrap();
    let message = fails(&["train", name, "--set", "seed=x"], 2);
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines.len(), 4, "{message}");
    assert_eq!(
        lines[0],
        format!("{name}: data.path: this key is missing: expected a path or a list of paths")
    );
    assert!(lines[1].starts_with(&format!(
        "{name}:2:28: model.layres: unknown key; did you mean `layers`?; allowed: "
    )));
    assert_eq!(
        lines[2],
        format!(
            "{name}:3:20: train.max_steps: expected a whole number of at least 1, got the text `ten`"
        )
    );
    assert_eq!(
        lines[3],
        "--set seed: expected a whole number of at least 0, got the text `x`"
    );
    assert!(
        fails(&["train", "no-such.yaml"], 2).starts_with("no-such.yaml: cannot read the config: ")
    );
}

#[test]
fn warnings_go_to_standard_error_unless_quiet() {
    let config = example("iris.yaml");
    let args = [
        "train",
        &config,
        "--dry-run",
        "--set",
        "data.validation=null",
    ];
    let output = entrenar().args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let warnings = stderr(&output);
    assert!(
        warnings.starts_with("warning: ") && warnings.contains("no validation data"),
        "{warnings}"
    );
    assert_eq!(warnings.lines().count(), 1);
    let quiet: Vec<&str> = args.iter().copied().chain(["--quiet"]).collect();
    assert_eq!(succeeds(&quiet), stdout(&output));
}

#[test]
fn starters_of_every_task_pass_a_dry_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.yaml");
    let table = folder.path().join("a table.csv");
    std::fs::write(&table, "size,colour,\"the price\"\n1.5,red,3\n2,blue,4\n").unwrap();
    let table = table.to_str().unwrap();
    let images = folder.path().to_str().unwrap();
    for args in [
        &["init", "language-model"][..],
        &["init", "classification"],
        &["init", "regression"],
        &["init", "regression", "--data", table],
        &["init", "classification", "--data", table],
        &["init", "classification", "--data", images],
    ] {
        std::fs::write(&file, succeeds(args)).unwrap();
        succeeds(&["train", file.to_str().unwrap(), "--dry-run"]);
    }
    let text = succeeds(&["init", "regression", "--data", table]);
    assert!(text.contains("target: \"the price\""), "{text}");
    assert!(
        text.contains("features: [size, colour]") && text.contains("types: {colour: category}"),
        "{text}"
    );
    assert!(fails(&["init", "language-model", "--data", images], 2).contains("is a directory"));
}

#[test]
fn the_schema_is_json_and_completions_name_the_commands() {
    let schema: serde_json::Value = serde_json::from_str(&succeeds(&["schema"])).unwrap();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(
            succeeds(&["completions", shell]).contains("generate"),
            "{shell}"
        );
    }
}

/// The reader takes one byte and leaves, as `head` does; more than a pipe's buffer is still to come.
#[test]
fn a_closed_pipe_is_not_an_error() {
    for args in [
        &["schema"][..],
        &["completions", "zsh"],
        &["init", "language-model"],
    ] {
        let mut child = entrenar()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdout.take().unwrap();
        let mut byte = [0];
        pipe.read_exact(&mut byte).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{args:?}: {}",
            stderr(&output)
        );
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

/// Writing results to a full disk fails with a message (Linux has a device for that).
#[test]
fn a_full_disk_is_an_error() {
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        println!("skipped: no /dev/full here");
        return;
    };
    let output = entrenar().arg("schema").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("error: cannot write to standard output: "),
        "{}",
        stderr(&output)
    );
}

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}
