//! Fine-tuning of a published model: full, with adapters (LoRA), or with adapters over quantized weights (QLoRA).
//!
//! [`run`] is the whole run from a config. Files: `classifier` and `masked` are the same for encoders (classes, hidden
//! words) and share `encoder`, `model` is the model as the training loop sees it, `opening` makes it from a directory,
//! `rows` makes its data, `plan` says before a run what it will take.

mod classifier;
mod encoder;
mod masked;
mod model;
mod opening;
mod plan;
mod rows;

use entrenar_base::{Error, Result};
use entrenar_nn::Parameters;

pub use classifier::TextClassifier;
pub(super) use classifier::run as run_classifier;
pub(super) use masked::run as run_masked;
pub use plan::{Plan, plan};
pub use rows::inspect_rows;

use super::fit::Ended;
use super::from_config::{
    Job, RunOptions, RunOutcome, Sample, check_same_run, placed, train, write_config,
};
use super::recipe;
use crate::config::{Loaded, Pretrained};
use crate::data::Order;
use crate::run::RunDirectory;
use model::NextTokens;

/// Fine-tunes as a checked config says.
///
/// # Errors
///
/// What is wrong with model, data and run directory, and what training reports.
pub(super) fn run(
    loaded: &Loaded,
    base: &Pretrained,
    options: RunOptions<'_>,
) -> Result<RunOutcome> {
    let config = &loaded.config;
    let directory = opening::find(&base.base)
        .map_err(|error| Error::config(placed(loaded, "model.base", error).to_string()))?;
    let (mut tuned, mut notes) = opening::open(loaded, &directory)?;
    let rows = rows::open(config, &tuned.text).map_err(|error| placed(loaded, "data", error))?;
    notes.extend(rows.notes);
    tuned.conversations = rows.conversations;
    if config.generate.is_some() && tuned.conversations {
        // A sample that cannot be made is told before the first step.
        let template = tuned.text.chat_template();
        template.map_err(|error| placed(loaded, "generate", error))?;
    }
    let fingerprint = format!("{{\"fingerprint\":\"{}\"}}\n", rows.fingerprint);
    let run = RunDirectory::open(&options.place, options.resume)?;
    if options.resume {
        check_same_run(&run, config)?;
        check_same_rows(&run, fingerprint.as_bytes())?;
    }
    write_config(&run, config)?;

    let order = if config.data.shuffle {
        Order::Shuffled
    } else {
        Order::Sequential
    };
    let sample = config
        .generate
        .as_ref()
        .map(|generate| -> Box<Sample<'_>> { Box::new(|| tuned.sample(generate, config.seed)) });
    let job = Job {
        model: &tuned,
        objective: Box::new(NextTokens),
        optimizer: recipe::tuning_optimizer(config, tuned.trainable_parameters())?,
        files: vec![(ROWS_FILE.to_string(), fingerprint.into_bytes())],
        sample,
        notes,
    };
    let training = train(config, (&rows.parts, order), job, &run, &options)?;
    let mut outcome = RunOutcome {
        directory: run.path().to_path_buf(),
        training,
        model: None,
        sample: None,
    };
    if !matches!(outcome.training.ended, Ended::Interrupted(_)) {
        tuned.save(&run.model())?;
        outcome.model = Some(run.model());
        if let Some(generate) = &config.generate {
            outcome.sample = Some(tuned.sample(generate, config.seed)?);
        }
    }
    Ok(outcome)
}

/// What tells the rows of a run, in each of its checkpoints.
const ROWS_FILE: &str = "rows.json";

/// Refuses to continue a run on other rows.
fn check_same_rows(run: &RunDirectory, fingerprint: &[u8]) -> Result<()> {
    let stored = entrenar_io::Store::at(run.checkpoints()).latest()?;
    if let Some(checkpoint) = stored.checkpoint
        && checkpoint.contains(ROWS_FILE)
        && checkpoint.bytes(ROWS_FILE)? != fingerprint
    {
        return Err(Error::config(format!(
            "{}: the rows have changed since the run was begun; it cannot be continued with them",
            checkpoint.path().join(ROWS_FILE).display()
        )));
    }
    Ok(())
}
