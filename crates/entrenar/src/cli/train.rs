//! `entrenar train CONFIG.yaml`: checks the config, then trains; with `--dry-run` only the former.

use super::{Failure, Output, print};
use entrenar::train::config::{self, Loaded};
use std::path::PathBuf;

/// Train a model as a config file describes it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config (YAML); `entrenar init` writes one to start from
    config: PathBuf,
    /// Override one key, such as train.batch_size=32; the value is YAML, relative paths begin at the current directory
    #[arg(long = "set", value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    set: Vec<String>,
    /// Where to write the run (default: runs/<config name>-N)
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Continue from the newest complete checkpoint of the run directory
    #[arg(long)]
    resume: bool,
    /// Check the config, print it with every default filled in, and stop
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let loaded = config::load(&args.config, &args.set)?;
    for warning in &loaded.warnings {
        output.warn(&warning.to_string());
    }
    if args.dry_run {
        show(&loaded, output)
    } else {
        start(&loaded, args, output)
    }
}

fn show(loaded: &Loaded, output: Output) -> Result<(), Failure> {
    let text = if output.json {
        serde_json::to_string_pretty(&loaded.config).map(|text| text + "\n")
    } else {
        loaded.config.to_yaml()
    };
    print(&text.map_err(|error| Failure::Run(format!("cannot write the config: {error}")))?)
}

/// Trains as a checked config says, in `args.run_dir` or a new directory under `runs/`.
fn start(_loaded: &Loaded, args: &Args, _output: Output) -> Result<(), Failure> {
    let what = if args.resume {
        "resuming a run"
    } else {
        "training"
    };
    let place = args
        .run_dir
        .as_ref()
        .map_or_else(String::new, |dir| format!(" into {}", dir.display()));
    Err(Failure::Run(format!(
        "{what}{place} is not built into this version; --dry-run checks the config"
    )))
}
