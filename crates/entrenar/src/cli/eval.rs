//! `entrenar eval`: the loss and metrics of a trained model on all of some data.

use super::train::fields;
use super::{Failure, Output, at_hand, json, print, text_model};
use entrenar::train::trainer::{TextClassifier, TrainedModel, is_text_model};
use std::path::PathBuf;

/// Measure a trained model on data
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run, or a model directory as published on a hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The data, in the format that the model was trained on (text for a published language model): a file, a quoted pattern, or a directory of IDX files
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

/// Prints one line per metric, or one JSON object.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let model = at_hand(&args.model)?;
    let encoder = TextClassifier::is_in(&model);
    if (is_text_model(&model) && !encoder) || args.adapter.is_some() {
        return text(args, output);
    }
    let data = super::text(&args.data)?;
    let evaluation = if encoder {
        TextClassifier::open(&model)?.evaluate(&data)?
    } else {
        TrainedModel::open(&model)?.evaluate(&data)?
    };
    if output.json {
        return print(&json(&fields(&evaluation))?);
    }
    let mut lines = format!("loss {:.6}\n", evaluation.loss);
    for (name, value) in &evaluation.metrics {
        lines.push_str(&format!("{name} {:.6}\n", value));
    }
    lines.push_str(&format!("targets {}\n", evaluation.targets));
    print(&lines)
}

/// The loss of a published language model on a text file.
fn text(args: &Args, output: Output) -> Result<(), Failure> {
    let model = text_model(&args.model, args.adapter.as_deref(), output)?;
    let text = std::fs::read_to_string(&args.data)
        .map_err(|e| Failure::Run(format!("{}: {e}", args.data.display())))?;
    let (loss, targets) = model.evaluate(&text, None)?;
    let perplexity = loss.exp();
    if output.json {
        let values =
            serde_json::json!({"loss": loss, "perplexity": perplexity, "targets": targets});
        return print(&json(&values)?);
    }
    print(&format!(
        "loss {loss:.6}\nperplexity {perplexity:.6}\ntargets {targets}\n"
    ))
}
