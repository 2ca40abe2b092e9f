//! `entrenar merge-adapter`: a model with an adapter as an ordinary model.

use super::{Failure, Output, apply};
use entrenar::DType;
use entrenar::train::trainer::open_text_model;
use entrenar::tune::{lora, quant};
use std::path::PathBuf;

/// Write a model with an adapter's changes added to its weights
///
/// All weights are written in f32, those that the model holds in 4 bits too.
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
    let mut merged = open_text_model(&args.model, Some(DType::F32))?;
    for warning in apply(&mut merged, &args.adapter)?.warnings {
        output.warn(&warning);
    }
    lora::merge(&mut merged.model)?;
    quant::dequantize(&mut merged.model)?;
    merged.model.save_with(&args.out, &merged.tokenizer)?;
    output.note(&format!("wrote {}", args.out.display()));
    Ok(())
}
