//! `entrenar quantize`: a model with its linear layers in 4 bits.

use super::{Failure, Numbers, Output};
use entrenar::train::trainer::{open_quantized, save_quantized, stored_quantization};
use entrenar::tune::QuantConfig;
use entrenar::tune::quant;
use std::path::PathBuf;

/// Write a model with its linear layers in 4 bits, as bitsandbytes stores them
///
/// transformers opens the directory, and `model.base` takes it. Embeddings, norms and the output layer stay in floats.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a model directory as published on a hub, or a run of a language model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The code of the 4 bits
    #[arg(long, value_name = "CODE", default_value = "nf4", value_parser = ["nf4", "fp4"])]
    to: String,
    /// Keep the scales of the blocks in 32 bits instead of 8
    #[arg(long)]
    plain_scales: bool,
    /// The number format of what stays in floats [default: each as in the model]
    #[arg(long, value_name = "FORMAT", value_enum)]
    dtype: Option<Numbers>,
    /// The directory to write, which must not hold anything
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the directory whole or not at all.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    if stored_quantization(&args.model)?.is_some() {
        return Err(Failure::Usage(format!(
            "--model: {}: the weights are in 4 bits already",
            args.model.display()
        )));
    }
    let config = QuantConfig {
        kind: QuantConfig::kind_of(&args.to)?,
        double: !args.plain_scales,
        ..QuantConfig::default()
    };
    let dtype = args.dtype.map(Numbers::dtype);
    let mut model = open_quantized(&args.model, dtype, Some(&config), &[])?;
    output.warn_of(&model);
    output.note(&quant::report(&mut model.model)?.to_string());
    save_quantized(&mut model, &args.out)?;
    output.note(&format!("wrote {}", args.out.display()));
    Ok(())
}
