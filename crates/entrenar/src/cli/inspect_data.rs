//! `entrenar inspect-data CONFIG`: the rows of a fine-tuning run as the model will see them.

use super::{Failure, Output, json, print};
use entrenar::train::config;
use entrenar::train::trainer::inspect_rows;
use std::io::IsTerminal;
use std::path::PathBuf;

/// Show samples of a fine-tuning config with what is not learned marked, and statistics of tokens
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config (YAML) with model.base
    config: PathBuf,
    /// Override one key, as in `entrenar train`
    #[arg(long = "set", value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    set: Vec<String>,
    /// How many samples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    samples: usize,
}

/// Prints the samples, dim where nothing is learned on a terminal and in brackets elsewhere.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let loaded = config::load(&args.config, &args.set)?;
    for line in &loaded.mapping {
        output.note(line);
    }
    let colour = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let rows = inspect_rows(&loaded, args.samples, colour && !output.json)?;
    if output.json {
        return print(&json(&serde_json::json!({"text": rows}))?);
    }
    print(&rows)
}
