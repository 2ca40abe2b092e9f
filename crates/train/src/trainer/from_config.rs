//! A whole run from a config: data, model, training, and what is left in the run directory.
//!
//! Promises: everything that can be wrong is found before the first step; a resumed run must have
//! been begun with the same model and data; whatever this changes in the process (the number of
//! threads, strictness) is put back. Neighbours: `recipe.rs` translates the config, `fit.rs` trains,
//! `trained.rs` writes the model directory.

use std::path::{Path, PathBuf};

use entrenar_base::{Error, Result};
use entrenar_cpu::{simd, team};
use entrenar_nn::optim::Optimizer;
use entrenar_nn::schedule::Schedule;
use entrenar_nn::{Init, Parameters};
use serde_json::Value;

use super::fit::{Ended, Outcome, Trainer};
use super::model::{architecture, check_memory};
use super::objective::{MixedPrecision, Objective};
use super::recipe;
use super::settings::total_steps;
use super::trained::TrainedModel;
use super::tuned;
use crate::config::{self, Config, Loaded, Precision};
use crate::data::{
    Loader, LoaderConfig, OpenedData, Order, PREPROCESS_FILE, Parts, Preprocessing, open_data,
};
use crate::run::{ProgressStyle, RunDirectory, RunPlace, Signals};

/// Where and how a run from a config happens.
pub struct RunOptions<'a> {
    /// Where to write.
    pub place: RunPlace,
    /// Whether to continue a run that is there.
    pub resume: bool,
    /// How progress is shown.
    pub progress: ProgressStyle,
    /// Who may ask to stop; the state is saved then.
    pub signals: Option<&'a Signals>,
}

/// What came of a run from a config.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// The run directory.
    pub directory: PathBuf,
    /// What came of the training.
    pub training: Outcome,
    /// The directory of the final model; `None` after an interruption.
    pub model: Option<PathBuf>,
    /// Text that the final model wrote, where the config wants one.
    pub sample: Option<String>,
}

/// Trains as a checked config says.
///
/// The warnings of the config are the caller's to print.
///
/// # Errors
///
/// What is wrong with data and run directory (kind `Config` where the config has to change), and
/// what training reports.
pub fn run_config(loaded: &Loaded, options: RunOptions<'_>) -> Result<RunOutcome> {
    let config = &loaded.config;
    let _process = Process::set(config.train.threads, config.train.strict);
    if let config::Model::Pretrained(model) = &config.model {
        return match config.task {
            config::Task::SequenceClassification => tuned::run_classifier(loaded, model, options),
            config::Task::MaskedLm => tuned::run_masked(loaded, model, options),
            _ => tuned::run(loaded, model, options),
        };
    }
    let data = open_data(config).map_err(|error| placed(loaded, "data.path", error))?;
    if let (Some(generate), Preprocessing::Text(text)) = (&config.generate, &data.preprocessing) {
        text.tokenizer
            .encode(&generate.prompt)
            .map_err(|error| Error::config(placed(loaded, "generate.prompt", error).to_string()))?;
    }
    let architecture = architecture(&config.model, &data.preprocessing)?;
    check_memory(&architecture, &config.optimizer)
        .map_err(|error| placed(loaded, "model", error))?;
    let directory = RunDirectory::open(&options.place, options.resume)?;
    if options.resume {
        check_same_run(&directory, config)?;
        check_same_data(&directory, &data)?;
    }
    write_config(&directory, config)?;

    let model = architecture.build(&mut Init::new(config.seed))?;
    let trained = TrainedModel::new(model, data.preprocessing.clone());
    let job = Job {
        model: trained.model(),
        objective: trained.objective(),
        optimizer: recipe::optimizer(&config.optimizer, trained.model())?,
        files: trained.description()?,
        sample: config.generate.as_ref().map(|generate| -> Box<Sample<'_>> {
            Box::new(|| trained.sample(generate, config.seed))
        }),
        notes: Vec::new(),
    };
    let training = train(config, (&data.parts, data.order), job, &directory, &options)?;
    let mut outcome = RunOutcome {
        directory: directory.path().to_path_buf(),
        training,
        model: None,
        sample: None,
    };
    if !matches!(outcome.training.ended, Ended::Interrupted(_)) {
        trained.save(&directory.model())?;
        outcome.model = Some(directory.model());
        if let Some(generate) = &config.generate {
            outcome.sample = Some(trained.sample(generate, config.seed)?);
        }
    }
    Ok(outcome)
}

/// Makes a text.
pub(super) type Sample<'a> = dyn Fn() -> Result<String> + 'a;

/// What is trained, for what, and by which rule.
pub(super) struct Job<'a, M> {
    pub model: &'a M,
    pub objective: Box<dyn Objective<M> + 'a>,
    pub optimizer: Box<dyn Optimizer + 'a>,
    /// Files of every checkpoint besides weights and state.
    pub files: Vec<(String, Vec<u8>)>,
    /// The text to show now and then.
    pub sample: Option<Box<Sample<'a>>>,
    /// What to tell before the first step.
    pub notes: Vec<String>,
}

/// Trains as the config says on the parts of some data, the training part in that order.
pub(super) fn train<M: Parameters>(
    config: &Config,
    (parts, order): (&Parts, Order),
    job: Job<'_, M>,
    directory: &RunDirectory,
    options: &RunOptions<'_>,
) -> Result<Outcome> {
    let rows = config.train.batch_size;
    let training = Loader::new(
        parts.training.clone(),
        LoaderConfig {
            order,
            ..LoaderConfig::training(rows, config.seed)
        },
    )?;
    let settings = recipe::settings(config, order == Order::Random, options.progress);
    let total = total_steps(&settings, training.batches_per_epoch());
    let schedule = recipe::schedule(&config.schedule, config.optimizer.learning_rate(), total);
    // Frozen weights are stored in the precision; what is trained stays in f32.
    let mixed = config.precision == Precision::Bf16 && config.adapter.is_none();
    let objective = match mixed {
        true => Box::new(MixedPrecision(job.objective)),
        false => job.objective,
    };
    let mut trainer = Trainer::of(job.model, objective, job.optimizer, training)
        .settings(settings)
        .schedule(move |step| schedule.lr_at(step))
        .run_directory(directory);
    trainer.warn = false;
    trainer.notes = job.notes;
    trainer
        .notes
        .extend(recipe::schedule_warning(config, total));
    for (name, bytes) in job.files {
        trainer = trainer.checkpoint_file(name, bytes);
    }
    if let Some(part) = &parts.validation {
        let mut order = LoaderConfig::evaluation(rows);
        if config.evaluate.max_batches.is_some() {
            // The beginning of a split may be unlike the rest of it: files are often sorted. A loader
            // that starts over shuffles alike each time, so every evaluation has the same samples.
            (order.order, order.seed) = (Order::Shuffled, config.seed);
        }
        trainer = trainer.validation(Loader::new(part.clone(), order)?);
    }
    if let Some(part) = &parts.test {
        trainer = trainer.test(Loader::new(part.clone(), LoaderConfig::evaluation(rows))?);
    }
    if let Some(stopping) = recipe::early_stopping(config) {
        trainer = trainer.callback(stopping);
    }
    if let Some(signals) = options.signals {
        trainer = trainer.stop_when(|| {
            let asked = signals.stop_requested();
            asked.then(|| signals.name().unwrap_or("a signal").to_string())
        });
    }
    let every = config.generate.as_ref().and_then(|g| g.every_steps);
    if let (Some(steps), Some(sample)) = (every, job.sample) {
        trainer = trainer.sample_every(steps, move |_| sample());
    }
    trainer.fit()
}

/// Leaves the resolved config in the run directory.
pub(super) fn write_config(directory: &RunDirectory, config: &Config) -> Result<()> {
    let yaml = config
        .to_yaml()
        .map_err(|error| Error::config(format!("cannot write the config: {error}")))?;
    directory.write_config(&yaml)
}

/// What a config sets for the whole process, for as long as this lives.
struct Process {
    threads: usize,
    strict: bool,
}

impl Process {
    fn set(threads: Option<usize>, strict: bool) -> Self {
        let before = Self {
            threads: team::threads(),
            strict: simd::strict(),
        };
        if let Some(threads) = threads {
            team::set_threads(threads);
        }
        simd::set_strict(strict || before.strict);
        before
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        team::set_threads(self.threads);
        simd::set_strict(self.strict);
    }
}

/// An error with the place in the config that led to it.
pub(super) fn placed(loaded: &Loaded, key: &str, error: Error) -> Error {
    error.context(config::place_and_key(&loaded.location(key), key))
}

/// What may not change when a run is continued; other keys may (a longer run, other rhythms).
const FIXED: &[&str] = &[
    "task",
    "seed",
    "precision",
    "model",
    "adapter",
    "quantization",
    "data",
    "train.batch_size",
    "train.gradient_accumulation_steps",
    // It draws other dropout masks.
    "train.gradient_checkpointing",
    "train.strict",
    "optimizer.name",
];

/// Where the data lie may change as long as they are the same.
const MOVABLE: &str = "data.path";

/// Refuses to continue a run that was begun with another config where it may not change.
pub(super) fn check_same_run(directory: &RunDirectory, config: &Config) -> Result<()> {
    let Some(text) = directory.read_config()? else {
        return Ok(());
    };
    let file = directory.config_file();
    let name = file.display().to_string();
    let begun = config::parse(text.as_bytes(), &name, directory.path(), &[])
        .map_err(|error| Error::config(error.to_string()))?;
    let mut changed = Vec::new();
    differences("", &value(&begun.config)?, &value(config)?, &mut changed);
    changed.retain(|(path, ..)| {
        let within = |key: &&str| path == *key || path.starts_with(&format!("{key}."));
        path != MOVABLE && FIXED.iter().any(within)
    });
    if let Some((path, before, now)) = changed.first() {
        return Err(Error::config(format!(
            "{name}: the run was begun with {path} {before}, now it is {now}; it cannot be continued so"
        )));
    }
    Ok(())
}

/// Refuses to continue a run on data that give other inputs.
fn check_same_data(directory: &RunDirectory, data: &OpenedData) -> Result<()> {
    let stored = entrenar_io::Store::at(directory.checkpoints()).latest()?;
    if let Some(checkpoint) = stored.checkpoint
        && checkpoint.contains(PREPROCESS_FILE)
        && checkpoint.bytes(PREPROCESS_FILE)? != data.preprocessing.to_json()?.into_bytes()
    {
        return Err(Error::config(format!(
            "{}: the data have changed since the run was begun; it cannot be continued with them",
            checkpoint.path().join(PREPROCESS_FILE).display()
        )));
    }
    Ok(())
}

fn value(config: &Config) -> Result<Value> {
    serde_json::to_value(config)
        .map_err(|error| Error::config(format!("cannot compare the config: {error}")))
}

/// The keys in which two configs differ, with both values.
fn differences(path: &str, a: &Value, b: &Value, into: &mut Vec<(String, String, String)>) {
    let (Value::Object(left), Value::Object(right)) = (a, b) else {
        if a != b {
            into.push((path.to_string(), a.to_string(), b.to_string()));
        }
        return;
    };
    let absent = Value::Null;
    let mut keys: Vec<&String> = left.keys().collect();
    keys.extend(right.keys().filter(|key| !left.contains_key(*key)));
    for key in keys {
        let place = match path {
            "" => key.clone(),
            _ => format!("{path}.{key}"),
        };
        let (a, b) = (left.get(key), right.get(key));
        differences(&place, a.unwrap_or(&absent), b.unwrap_or(&absent), into);
    }
}

/// The directory that holds a model: `path` itself, or `model/` below it for a run directory.
pub(super) fn model_directory(path: &Path) -> PathBuf {
    let inner = path.join("model");
    if !path.join("config.json").is_file() && inner.join("config.json").is_file() {
        inner
    } else {
        path.to_path_buf()
    }
}
