//! Runs the binary and looks at what it leaves.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The binary, with an environment that does not depend on the tester's.
pub fn entrenar() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_entrenar"));
    command
        .env_remove("RUST_BACKTRACE")
        .env_remove("CLICOLOR_FORCE");
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8 on standard output")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8 on standard error")
}

/// Standard output of a command that succeeds and has nothing else to say.
#[track_caller]
pub fn succeeds(args: &[&str]) -> String {
    let output = entrenar().args(args).output().expect("the binary starts");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{args:?}: {}",
        stderr(&output)
    );
    assert_eq!(stderr(&output), "", "{args:?}");
    stdout(&output)
}

/// The message of a command that fails with `status`.
#[track_caller]
pub fn fails(args: &[&str], status: i32) -> String {
    let output = entrenar().args(args).output().expect("the binary starts");
    assert_eq!(
        output.status.code(),
        Some(status),
        "{args:?}: {}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "", "{args:?}");
    let message = stderr(&output);
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    message
}

pub fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The lines of `metrics.jsonl` without what depends on the clock.
pub fn metrics(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            let fields = value.as_object_mut().unwrap();
            for clock in ["seconds", "tokens_per_second", "samples_per_second"] {
                fields.shift_remove(clock);
            }
            value.to_string()
        })
        .collect()
}

/// IDX files of 8×8 images in three classes that differ by where they are bright.
pub fn write_images(folder: &Path, train: usize, test: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for (prefix, count) in [("train", train), ("t10k", test)] {
        let mut images = vec![0, 0, 8, 3];
        for size in [count, 8, 8] {
            images.extend((size as u32).to_be_bytes());
        }
        let mut labels = vec![0, 0, 8, 1];
        labels.extend((count as u32).to_be_bytes());
        for image in 0..count {
            let class = (image * 7 + image / 3) % 3;
            for row in 0..8 {
                for column in 0..8 {
                    let noise = (image * 31 + row * 17 + column * 13) * (image + 5) % 90;
                    let bright = (row + column) / 5 == class;
                    images.push((noise + if bright { 140 } else { 0 }) as u8);
                }
            }
            labels.push(class as u8);
        }
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).unwrap();
    }
}
