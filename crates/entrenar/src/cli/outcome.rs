//! How a subcommand ends: results on standard output, one message on standard error, an exit status.

use entrenar::train::config::ConfigError;
use entrenar::{Error, ErrorKind};
use std::io::{self, Write};
use std::process::ExitCode;

/// Why a subcommand did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Wrong arguments or config: status 2.
    Usage(String),
    /// The command was right and the work failed: status 1.
    Run(String),
    /// Mistakes in a config, one per line, each with its place: status 2.
    Config(ConfigError),
    /// clap's own errors, and its answers to `--help` and `--version`.
    Arguments(clap::Error),
    /// The reader of standard output went away: status 0, as for other tools in a pipeline.
    ClosedPipe,
}

impl Failure {
    /// Prints the message and gives the exit status.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::Usage(message) => {
                say(&super::paint("31", "error:"), &message);
                ExitCode::from(2)
            }
            Failure::Run(message) => {
                say(&super::paint("31", "error:"), &message);
                ExitCode::from(1)
            }
            Failure::Config(error) => {
                // No prefix: terminals and editors make `file:line:column` at the start of a line clickable.
                let _ = writeln!(io::stderr(), "{error}");
                ExitCode::from(2)
            }
            Failure::Arguments(error) => {
                let status = u8::try_from(error.exit_code()).unwrap_or(2);
                match error.print() {
                    Err(io) if status == 0 && io.kind() != io::ErrorKind::BrokenPipe => {
                        ExitCode::from(1)
                    }
                    _ => ExitCode::from(status),
                }
            }
            Failure::ClosedPipe => ExitCode::SUCCESS,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Config(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error.kind() {
            ErrorKind::Config => Failure::Usage(error.to_string()),
            _ => Failure::Run(error.to_string()),
        }
    }
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Failure {
        Failure::Arguments(error)
    }
}

/// Writes a result to standard output as it is.
///
/// `print!` would panic when the reader has gone; here that ends the command quietly, and a full disk is an error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// [`print`] for a part of a text, which may end within a character.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
        Err(error) => Err(Failure::Run(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// A value as JSON text with a line end.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::Run(format!("cannot write the result as JSON: {error}")))
}

/// A line on standard error; where even that is closed there is nobody to tell.
pub(super) fn say(head: &str, message: &str) {
    tell(&format!("{head} {message}"));
}

/// [`say`] without a head.
pub(super) fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// A panic is a defect of ours: says so in one line instead of showing a trace. With RUST_BACKTRACE set, the trace
/// comes as usual.
pub(super) fn install_panic_hook() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info
            .location()
            .map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
        say(
            &super::paint("31", "error:"),
            &panic_message(message, &place),
        );
    }));
}

fn panic_message(message: &str, place: &str) -> String {
    let first = message.lines().next().unwrap_or("");
    format!(
        "this is a defect of entrenar, please report it: {first} ({place}, version {}; RUST_BACKTRACE=1 shows the trace)",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::panic_message;

    #[test]
    fn a_panic_is_one_line() {
        let text = panic_message("index out of bounds\nmore", "src/a.rs:3");
        assert!(text.starts_with(
            "this is a defect of entrenar, please report it: index out of bounds (src/a.rs:3, "
        ));
        assert_eq!(text.lines().count(), 1);
    }
}
