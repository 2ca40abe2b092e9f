//! `conformance`: the command line of the replay.
//!
//! Exit status: 0 nothing failed, 1 something failed, 2 the suite could not be read.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use entrenar_conformance::{Report, Suite, replay};

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
    },
}

fn main() -> ExitCode {
    let Command::Opinfo { directory, only } = Arguments::parse().command;
    let suite = match Suite::load(&directory) {
        Ok(suite) => suite,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::default();
    for case in &suite.cases {
        if only.is_empty() || only.contains(&case.op) {
            report.add(case, &replay(case));
        }
    }
    print!("{report}");
    ExitCode::from(u8::from(report.cases().failed > 0))
}
