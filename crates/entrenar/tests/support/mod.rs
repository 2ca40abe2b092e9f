//! Runs the binary and looks at what it says. Neighbour: `runs.rs` looks at what it leaves.

use std::process::{Command, Output};

/// The binary, with an environment that does not depend on the tester's.
pub fn entrenar() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_entrenar"));
    command
        .env_remove("RUST_BACKTRACE")
        .env_remove("CLICOLOR_FORCE")
        .env_remove("ENTRENAR_SIMD")
        .env_remove("ENTRENAR_THREADS");
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
    assert!(
        !message.contains("panicked") && !message.contains("RUST_BACKTRACE"),
        "{args:?}: {message}"
    );
    assert!(
        !message.contains('\u{1b}'),
        "colours outside a terminal: {message}"
    );
    message
}
