//! `entrenar train CONFIG.yaml`: checks the config, then trains; with `--dry-run` only the former.
//!
//! SIGINT and SIGTERM let the step in progress end, save a checkpoint and leave with status 0; a second signal ends the
//! process at once with status 130.

use super::{Failure, Output, json, print};
use entrenar::train::config::{self, Length, Loaded};
use entrenar::train::run::{ProgressStyle, RunPlace, Signals, number_text};
use entrenar::train::trainer::{Ended, Evaluation, RunOptions, RunOutcome, plan, run_config};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Train a model as a config file describes it
///
/// Ctrl-C (SIGINT) and SIGTERM end the run after the step in progress with a checkpoint and status
/// 0; --resume continues it. A second signal ends it at once with status 130.
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
    /// Check the config, print it with every default filled in and (with model.base) what memory and time it will take, and stop
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let loaded = config::load(&args.config, &args.set)?;
    for warning in &loaded.warnings {
        output.warn(&warning.to_string());
    }
    for line in &loaded.mapping {
        output.note(line);
    }
    if args.dry_run {
        show(&loaded, output)?;
        if let Some(plan) = plan(&loaded)? {
            plan.to_string().lines().for_each(|line| output.note(line));
        }
        Ok(())
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

/// Trains as a checked config says, in `args.run_dir` or a new directory under `runs/`. Standard output gets the sample
/// of a language model, or with `--json` one object about the run.
fn start(loaded: &Loaded, args: &Args, output: Output) -> Result<(), Failure> {
    // From here on a signal saves the state instead of ending the process.
    let signals = Signals::install()?;
    let place = match args.run_dir.as_ref().or(loaded.output.as_ref()) {
        Some(directory) => RunPlace::At(directory.clone()),
        None => {
            let name = args.config.file_stem().unwrap_or_default();
            RunPlace::Numbered {
                runs: PathBuf::from("runs"),
                name: name.to_string_lossy().into_owned(),
            }
        }
    };
    let progress = if output.quiet {
        ProgressStyle::Quiet
    } else {
        ProgressStyle::Auto
    };
    let run = run_config(
        loaded,
        RunOptions {
            place,
            resume: args.resume,
            progress,
            signals: Some(&signals),
        },
    )?;
    for line in summary(&run, &loaded.config.train) {
        output.note(&line);
    }
    if output.json {
        return print(&json(&report(&run))?);
    }
    if run.sample.is_some() {
        output.note("sample:");
    }
    match &run.sample {
        Some(sample) if sample.ends_with('\n') => print(sample),
        Some(sample) => print(&format!("{sample}\n")),
        None => Ok(()),
    }
}

/// What to tell about a run that ended, in lines.
fn summary(run: &RunOutcome, config: &config::Train) -> Vec<String> {
    let training = &run.training;
    let directory = run.directory.display();
    let steps = format!("step {} of {}", training.step, training.total_steps);
    let mut lines = Vec::new();
    let nothing_new = training.step == training.steps_before && training.step > 0;
    let length = match config.length() {
        Length::Steps(_) => "train.max_steps",
        Length::Epochs(_) => "train.epochs",
    };
    match &training.ended {
        Ended::Finished if nothing_new => lines.push(format!(
            "all {} steps were done before, nothing was trained; to go on, raise {length} and --resume again",
            training.step
        )),
        Ended::Early(reason) if nothing_new => lines.push(format!(
            "the run had stopped at {steps} before, nothing was trained: {reason}"
        )),
        Ended::Finished => lines.push(format!(
            "finished {} steps in {:.1} s",
            training.step, training.seconds
        )),
        Ended::Early(reason) => lines.push(format!("stopped at {steps}: {reason}")),
        Ended::Interrupted(signal) => lines.push(format!(
            "{signal}: stopped after {steps} and saved it; continue with --run-dir {directory} --resume"
        )),
    }
    let measured = [
        ("validation", &training.validation),
        ("test", &training.test),
    ];
    for (split, evaluation) in measured {
        if let Some(evaluation) = evaluation {
            lines.push(format!("{split}: {}", numbers(evaluation)));
        }
    }
    if let Some(model) = &run.model {
        let kept = if training.weights_step == training.step {
            String::new()
        } else {
            format!(" (the weights of step {})", training.weights_step)
        };
        lines.push(format!("model: {}{kept}", model.display()));
    }
    lines
}

/// `loss 1.5, accuracy 0.9`.
pub(super) fn numbers(evaluation: &Evaluation) -> String {
    let mut text = format!("loss {}", number_text(evaluation.loss));
    for (name, value) in &evaluation.metrics {
        text.push_str(&format!(", {name} {}", number_text(*value)));
    }
    text
}

/// An evaluation as a JSON object.
pub(super) fn fields(evaluation: &Evaluation) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("loss".into(), json!(evaluation.loss));
    for (name, value) in &evaluation.metrics {
        map.insert(name.clone(), json!(value));
    }
    map.insert("targets".into(), json!(evaluation.targets));
    map
}

/// A run as a JSON object.
fn report(run: &RunOutcome) -> Value {
    let training = &run.training;
    let (status, reason) = match &training.ended {
        Ended::Finished => ("finished", None),
        Ended::Early(reason) => ("stopped early", Some(reason)),
        Ended::Interrupted(signal) => ("interrupted", Some(signal)),
    };
    json!({
        "run_directory": run.directory,
        "model": run.model,
        "status": status,
        "reason": reason,
        "step": training.step,
        "steps_before": training.steps_before,
        "total_steps": training.total_steps,
        "best": training.best.map(|(step, value)| json!({"step": step, "value": value})),
        "weights_step": training.weights_step,
        "train": training.train.as_ref().map(|record| json!(record)),
        "validation": training.validation.as_ref().map(fields),
        "test": training.test.as_ref().map(fields),
        "skipped_steps": training.skipped_steps,
        "threads": entrenar::cpu::team::threads(),
        "instructions": format!("{:?}", entrenar::cpu::simd::level()).to_lowercase(),
        "seconds": training.seconds,
        "sample": run.sample,
    })
}
