//! `entrenar eval`: the loss and metrics of a trained model on all of some data.

use super::train::fields;
use super::{Failure, Output, json, print, refuse_adapter};
use entrenar::train::trainer::TrainedModel;
use std::path::PathBuf;

/// Measure a trained model on data
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The data, in the format that the model was trained on: a file, a quoted pattern, or a directory of IDX files
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

/// Prints one line per metric, or one JSON object.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    refuse_adapter(args.adapter.as_deref())?;
    let model = TrainedModel::open(&args.model)?;
    let evaluation = model.evaluate(&super::text(&args.data)?)?;
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
