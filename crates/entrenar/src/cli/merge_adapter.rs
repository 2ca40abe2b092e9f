//! `entrenar merge-adapter`: a model with an adapter as an ordinary model.

use super::{Failure, Numbers, Output, apply};
use entrenar::DType;
use entrenar::train::trainer::open_text_model;
use entrenar::tune::{lora, quant};
use std::path::PathBuf;

/// Write a model with an adapter's changes added to its weights
///
/// The sums are computed in f32 and written in the number format of the model's weights; those that it holds in 4
/// bits become floats.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a model directory as published on a hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The adapter, as PEFT writes it
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The number format of the weights [default: each as in the model]
    #[arg(long, value_name = "FORMAT", value_enum)]
    dtype: Option<Numbers>,
    /// The directory to write, which must not hold anything
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the directory whole or not at all.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    // Weights are added to in f32 and rounded once, whatever they are stored in.
    let wide = args.dtype.map(|_| DType::F32);
    let mut merged = open_text_model(&args.model, wide)?;
    output.warn_of(&merged);
    for warning in apply(&mut merged, &args.adapter)?.warnings {
        output.warn(&warning);
    }
    lora::merge(&mut merged.model)?;
    quant::dequantize(&mut merged.model)?;
    let model = match args.dtype {
        Some(wanted) => merged.model.rebuilt(Some(wanted.dtype()), None)?,
        None => merged.model,
    };
    model.save_with(&args.out, &merged.tokenizer)?;
    output.note(&format!("wrote {}", args.out.display()));
    Ok(())
}
