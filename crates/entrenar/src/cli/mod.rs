//! The command line: what every subcommand shares. Each subcommand is a file: its `Args` (what clap parses) and
//! `run` (what it does).
//!
//! Standard output carries results only; warnings and progress go to standard error. A reader that closes the pipe
//! early (`entrenar schema | head`) is not an error.

mod chat;
mod completions;
mod eval;
mod generate;
mod init;
mod inspect;
mod inspect_data;
mod merge_adapter;
mod outcome;
mod predict;
mod quantize;
mod schema;
mod train;

pub(crate) use outcome::{Failure, json, print, print_bytes};

use clap::{Parser, Subcommand};
use entrenar::DType;
use entrenar::io::hub;
use entrenar::train::trainer::open_text_model;
use entrenar::tune::lora::{self, AdapterReport};
use entrenar::tune::quant;
use entrenar::zoo::TextModel;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Trains neural networks from one YAML file.
#[derive(Debug, Parser)]
#[command(
    name = "entrenar",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that may stand before or after the subcommand.
#[derive(Debug, clap::Args)]
struct Global {
    /// Print results and errors only
    #[arg(long, short, global = true, help_heading = "Output")]
    quiet: bool,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    MergeAdapter(merge_adapter::Args),
    Quantize(quantize::Args),
    Inspect(inspect::Args),
    InspectData(inspect_data::Args),
    Init(init::Args),
    Schema(schema::Args),
    Completions(completions::Args),
}

/// How a subcommand should speak.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Results and errors only: no warnings, no progress.
    pub quiet: bool,
    /// Results as JSON.
    pub json: bool,
}

impl Output {
    /// A line on standard error, unless quiet.
    pub fn note(self, message: &str) {
        if !self.quiet {
            outcome::tell(message);
        }
    }

    /// A warning on standard error, unless quiet.
    pub fn warn(self, message: &str) {
        if !self.quiet {
            outcome::say(&paint("33", "warning:"), message);
        }
    }

    /// What is odd about a model's directory.
    fn warn_of(self, model: &TextModel) {
        for warning in model.warnings() {
            self.warn(warning);
        }
    }
}

/// A number format of weights that are written.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Numbers {
    F32,
    Bf16,
    F16,
}

impl Numbers {
    pub fn dtype(self) -> DType {
        match self {
            Numbers::F32 => DType::F32,
            Numbers::Bf16 => DType::BF16,
            Numbers::F16 => DType::F16,
        }
    }
}

/// A path as data names it: patterns are text.
pub(crate) fn text(path: &Path) -> Result<String, Failure> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::Usage(format!("--data: the path is not UTF-8: {}", path.display())))
}

/// The directory of a model: the path itself, or for `ORG/NAME` where nothing is there, the hub's model of this name.
pub(crate) fn at_hand(model: &Path) -> Result<PathBuf, Failure> {
    match model.to_str() {
        Some(id) if model.is_relative() && !model.exists() && id.split('/').count() == 2 => {
            Ok(hub::resolve(id, None)?)
        }
        _ => Ok(model.to_owned()),
    }
}

/// A published model with its tokenizer, in f32 (weights in 4 bits stay so), and an adapter on it. It
/// is merged where it changes nothing but the time: into weights in floats, and not into an embedding
/// that the output layer shares.
pub(crate) fn text_model(
    model: &Path,
    adapter: Option<&Path>,
    output: Output,
) -> Result<TextModel, Failure> {
    let mut opened = open_text_model(&at_hand(model)?, Some(DType::F32))?;
    output.warn_of(&opened);
    if let Some(adapter) = adapter {
        let report = apply(&mut opened, adapter)?;
        if report.warnings.is_empty() && quant::report(&mut opened.model)?.layers.is_empty() {
            lora::merge(&mut opened.model)?;
        }
    }
    Ok(opened)
}

/// Puts an adapter on a model, and its chat template.
pub(crate) fn apply(opened: &mut TextModel, adapter: &Path) -> Result<AdapterReport, Failure> {
    let (_, report) = lora::load_adapter(&mut opened.model, adapter)?;
    // A template that the adapter was trained with goes before the base's.
    let template = adapter.join("chat_template.jinja");
    if let Ok(text) = std::fs::read_to_string(template) {
        opened.tokenizer = opened.tokenizer.clone().with_chat_template(text);
    }
    Ok(report)
}

/// Whether standard error takes colours: a terminal, and NO_COLOR (no-color.org) unset or empty.
pub(crate) fn color() -> bool {
    std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The text in a terminal colour (an SGR code), where colours are wanted.
fn paint(code: &str, text: &str) -> String {
    if color() {
        format!("\u{1b}[1;{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    outcome::install_panic_hook();
    entrenar::cpu::alloc::keep_heap();
    let outcome = std::panic::catch_unwind(|| -> Result<(), Failure> {
        let cli = Cli::try_parse()?;
        environment()?;
        run(&cli)
    });
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        // The hook has printed what happened.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Refuses values of our environment variables that the library would pass over.
fn environment() -> Result<(), Failure> {
    let number = |text: &str| text.trim().parse::<usize>().is_ok_and(|n| n > 0);
    type Accepts = fn(&str) -> bool;
    let level: Accepts = |text| matches!(text, "baseline" | "avx2" | "avx512");
    for (name, accepts, expected) in [
        ("ENTRENAR_SIMD", level, "baseline, avx2 or avx512"),
        ("ENTRENAR_THREADS", number, "a whole number of at least 1"),
    ] {
        if let Some(value) = std::env::var_os(name)
            && !value.to_str().is_some_and(accepts)
        {
            return Err(Failure::Usage(format!(
                "the environment variable {name}: expected {expected}, got {value:?}"
            )));
        }
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let output = Output {
        quiet: cli.global.quiet,
        json: cli.global.json,
    };
    hub::set_progress(!output.quiet);
    match &cli.command {
        Command::Train(args) => train::run(args, output),
        Command::Eval(args) => eval::run(args, output),
        Command::Predict(args) => predict::run(args, output),
        Command::Generate(args) => generate::run(args, output),
        Command::Chat(args) => chat::run(args, output),
        Command::MergeAdapter(args) => merge_adapter::run(args, output),
        Command::Quantize(args) => quantize::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::InspectData(args) => inspect_data::run(args, output),
        Command::Init(args) => init::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Completions(args) => completions::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_is_documented() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            for inner in command.get_subcommands() {
                assert!(inner.get_about().is_some(), "{}", inner.get_name());
                check(inner);
            }
        }
        check(&Cli::command());
    }
}
