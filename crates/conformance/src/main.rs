//! `conformance`: the command line of the replay.
//!
//! Exit status: 0 nothing failed, 1 something failed, 2 the suite could not be read.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use entrenar_conformance::tolerances::RULES;
use entrenar_conformance::{Report, Suite, replay};
use entrenar_core::DType;

/// Replays recorded reference cases against entrenar's operations.
#[derive(Parser)]
#[command(name = "conformance", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replays a directory with cases.json and tensors.safetensors.
    ///
    /// Prints passed, failed and not supported per operation for forward, vjp, jvp and second,
    /// and a closing line that counts cases: a case fails when any of its kinds fails, is skipped
    /// when any of them is not supported, and passes when all of them pass.
    Opinfo {
        /// The directory.
        directory: PathBuf,
        /// Replay only operations with one of these exact names.
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// f64 compares with the recorded results. f32 and bf16 round the inputs and compare
        /// with the library's f64 results at the rounded inputs.
        #[arg(long, value_name = "f64|f32|bf16", default_value = "f64")]
        #[arg(value_parser = parse_dtype)]
        dtype: DType,
        /// Print the largest relative error of each row.
        #[arg(long)]
        errors: bool,
    },
}

fn parse_dtype(name: &str) -> Result<DType, String> {
    let known = RULES.iter().find(|rule| rule.dtype.name() == name);
    known
        .map(|rule| rule.dtype)
        .ok_or_else(|| "expected f64, f32 or bf16".to_string())
}

fn main() -> ExitCode {
    let Command::Opinfo {
        directory,
        only,
        dtype,
        errors,
    } = Arguments::parse().command;
    let suite = match Suite::load(&directory) {
        Ok(suite) => suite,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::new(dtype, errors);
    for case in &suite.cases {
        if only.is_empty() || only.contains(&case.op) {
            report.add(case, &replay(case, dtype));
        }
    }
    print!("{report}");
    ExitCode::from(u8::from(report.cases().failed > 0))
}
