//! `entrenar merge-adapter`: a model with an adapter as an ordinary model.

use super::{Failure, Output, text_model};
use std::path::PathBuf;

/// Write a model with an adapter's changes added to its weights
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a model directory as published on a hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The adapter, as PEFT writes it
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The directory to write, which must not hold anything
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the directory whole or not at all.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let merged = text_model(&args.model, Some(&args.adapter))?;
    merged.model.save_with(&args.out, &merged.tokenizer)?;
    output.note(&format!("wrote {}", args.out.display()));
    Ok(())
}
