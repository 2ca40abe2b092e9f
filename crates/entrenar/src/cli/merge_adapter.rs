//! `entrenar merge-adapter`: a model with an adapter as an ordinary model.

use super::{Failure, Numbers, Output, apply};
use entrenar::DType;
use entrenar::cpu::pointwise::all_finite;
use entrenar::nn::Parameters;
use entrenar::train::trainer::open_text_model;
use entrenar::tune::{lora, quant};
use entrenar::zoo::LanguageModel;
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
    check_finite(&model)?;
    model.save_with(&args.out, &merged.tokenizer)?;
    output.note(&format!("wrote {}", args.out.display()));
    Ok(())
}

/// Refuses to write a model that would only compute NaN.
fn check_finite(model: &LanguageModel) -> Result<(), Failure> {
    for (name, parameter) in model.named_parameters() {
        if !all_finite(&parameter.array()) {
            let dtype = parameter.dtype();
            let most = match dtype {
                DType::F16 => ", or it has numbers beyond f16: choose --dtype bf16 or f32",
                _ => "",
            };
            return Err(Failure::Run(format!(
                "merging leaves a NaN or an infinity in {name} ({dtype}): the adapter or the model is damaged{most}"
            )));
        }
    }
    Ok(())
}
