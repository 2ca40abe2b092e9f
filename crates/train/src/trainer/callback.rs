//! Callbacks: code of others that a run calls at its turning points.
//!
//! A [`Callback`] looks, may ask to stop, and may keep a state that is saved with every checkpoint,
//! so that a resumed run goes on as if it had never stopped. Here are the usual ones:
//! [`EarlyStopping`], [`ModelCheckpoint`], [`LearningRateMonitor`] and [`History`]. Pass `&mut
//! callback` to look into it after the run. Neighbour: `fit.rs` calls them.

use std::path::PathBuf;

use entrenar_base::{Error, Result};
use entrenar_io::safetensors::with_checksums;
use entrenar_io::write_safetensors;
use entrenar_nn::Parameters;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::state::metadata;
use crate::run::{Best, EarlyStopping as Patience, Mode, Record, Verdict};

/// Where a run stands when it calls.
pub struct Moment<'a> {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps of the whole run.
    pub total_steps: u64,
    /// Epochs done, with the present one as a fraction.
    pub epoch: f64,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// The training loss of the last step.
    pub loss: f64,
    /// The model.
    pub model: &'a dyn Parameters,
}

/// What a callback wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// End the run after this step, for this reason.
    Stop(String),
}

/// Code that a run calls at its turning points.
///
/// # Examples
///
/// ```
/// use entrenar_base::Result;
/// use entrenar_train::trainer::{Callback, Control, Moment};
///
/// /// Ends a run as soon as the training loss is good enough.
/// struct GoodEnough(f64);
///
/// impl Callback for GoodEnough {
///     fn name(&self) -> &str {
///         "good enough"
///     }
///
///     fn on_step(&mut self, moment: &Moment<'_>) -> Result<Control> {
///         Ok(if moment.loss <= self.0 { Control::Stop("good enough".into()) } else { Control::Continue })
///     }
/// }
/// ```
pub trait Callback: Send {
    /// What its state is called in a checkpoint.
    fn name(&self) -> &str;

    /// Before the first step, after the state was restored.
    ///
    /// # Errors
    ///
    /// An error ends the run; so do those of the other methods.
    fn on_begin(&mut self, _moment: &Moment<'_>) -> Result<()> {
        Ok(())
    }

    /// After each optimizer step.
    ///
    /// # Errors
    ///
    /// As [`Callback::on_begin`].
    fn on_step(&mut self, _moment: &Moment<'_>) -> Result<Control> {
        Ok(Control::Continue)
    }

    /// After each evaluation. With a limited evaluation, `record` covers the same batches each time:
    /// its numbers can be compared.
    ///
    /// # Errors
    ///
    /// As [`Callback::on_begin`].
    fn on_evaluation(&mut self, _moment: &Moment<'_>, _record: &Record) -> Result<Control> {
        Ok(Control::Continue)
    }

    /// For each line of metrics, of any split.
    ///
    /// # Errors
    ///
    /// As [`Callback::on_begin`].
    fn on_record(&mut self, _moment: &Moment<'_>, _record: &Record) -> Result<()> {
        Ok(())
    }

    /// After the last step, before the best weights are taken.
    ///
    /// # Errors
    ///
    /// As [`Callback::on_begin`].
    fn on_end(&mut self, _moment: &Moment<'_>) -> Result<()> {
        Ok(())
    }

    /// What a checkpoint keeps of it; null for nothing. JSON has no NaN and no infinity.
    ///
    /// # Errors
    ///
    /// As [`Callback::on_begin`].
    fn state(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Takes up a state that `state` gave.
    ///
    /// # Errors
    ///
    /// A state that is not its own.
    fn load_state(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}

impl<C: Callback + ?Sized> Callback for &mut C {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn on_begin(&mut self, moment: &Moment<'_>) -> Result<()> {
        (**self).on_begin(moment)
    }

    fn on_step(&mut self, moment: &Moment<'_>) -> Result<Control> {
        (**self).on_step(moment)
    }

    fn on_evaluation(&mut self, moment: &Moment<'_>, record: &Record) -> Result<Control> {
        (**self).on_evaluation(moment, record)
    }

    fn on_record(&mut self, moment: &Moment<'_>, record: &Record) -> Result<()> {
        (**self).on_record(moment, record)
    }

    fn on_end(&mut self, moment: &Moment<'_>) -> Result<()> {
        (**self).on_end(moment)
    }

    fn state(&self) -> Result<Value> {
        (**self).state()
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        (**self).load_state(state)
    }
}

/// The value of a metric in a record.
///
/// # Errors
///
/// A record without it; the message names those it has.
pub(super) fn metric_of(record: &Record, name: &str) -> Result<f64> {
    if name == "loss" {
        return Ok(record.loss.value());
    }
    let found = record.metrics.iter().find(|(metric, _)| metric == name);
    found.map(|(_, value)| value.value()).ok_or_else(|| {
        let mut known = vec!["loss"];
        known.extend(record.metrics.iter().map(|(metric, _)| metric.as_str()));
        Error::config(format!(
            "expected a metric of the evaluation ({}), got {name:?}",
            known.join(", ")
        ))
    })
}

fn to_value(name: &str, state: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(state)
        .map_err(|error| Error::other(format!("cannot save the state of {name}: {error}")))
}

fn from_value<T: DeserializeOwned>(name: &str, state: &Value) -> Result<T> {
    T::deserialize(state)
        .map_err(|error| Error::config(format!("cannot restore the state of {name}: {error}")))
}

/// Ends a run whose validation metric has not improved for `patience` evaluations.
#[derive(Clone, Debug)]
pub struct EarlyStopping {
    patience: Patience,
}

impl EarlyStopping {
    /// Watches `metric`; changes up to `min_delta` do not count.
    pub fn new(metric: impl Into<String>, mode: Mode, patience: u64, min_delta: f64) -> Self {
        Self {
            patience: Patience::new(metric, mode, patience, min_delta),
        }
    }

    /// Evaluations in a row without improvement, and how many are allowed.
    pub fn waited(&self) -> (u64, u64) {
        self.patience.waited()
    }
}

impl Callback for EarlyStopping {
    fn name(&self) -> &str {
        "early_stopping"
    }

    fn on_evaluation(&mut self, _moment: &Moment<'_>, record: &Record) -> Result<Control> {
        let value = metric_of(record, self.patience.metric())?;
        Ok(match self.patience.update(value) {
            Verdict::Stop => Control::Stop(format!(
                "validation {} has not improved for {} evaluations",
                self.patience.metric(),
                self.patience.waited().0
            )),
            Verdict::Improved | Verdict::Waiting(_) => Control::Continue,
        })
    }

    fn state(&self) -> Result<Value> {
        to_value("early stopping", &self.patience)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        let stored: Patience = from_value("early stopping", state)?;
        self.patience.take_up(&stored);
        Ok(())
    }
}

/// Writes the weights to a safetensors file whenever a validation metric is the best so far.
#[derive(Clone, Debug)]
pub struct ModelCheckpoint {
    path: PathBuf,
    best: Best,
    only_best: bool,
}

impl ModelCheckpoint {
    /// Writes to `path`, by the validation loss.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            best: Best::new("loss", Mode::Min),
            only_best: true,
        }
    }

    /// By another metric.
    #[must_use]
    pub fn monitor(mut self, metric: impl Into<String>, mode: Mode) -> Self {
        self.best = Best::new(metric, mode);
        self
    }

    /// After every evaluation, better or not.
    #[must_use]
    pub fn every_evaluation(mut self) -> Self {
        self.only_best = false;
        self
    }

    /// The step and the value of the best evaluation so far.
    pub fn best(&self) -> Option<(u64, f64)> {
        self.best.step().zip(self.best.value())
    }
}

impl Callback for ModelCheckpoint {
    fn name(&self) -> &str {
        "model_checkpoint"
    }

    fn on_evaluation(&mut self, moment: &Moment<'_>, record: &Record) -> Result<Control> {
        let value = metric_of(record, self.best.metric())?;
        if self.best.update(moment.step, value) || !self.only_best {
            let state = moment.model.state();
            let metadata = with_checksums(metadata(), &state);
            write_safetensors(&self.path, &state, &metadata)?;
        }
        Ok(Control::Continue)
    }

    fn state(&self) -> Result<Value> {
        to_value("the model checkpoint", &self.best)
    }

    fn load_state(&mut self, state: &Value) -> Result<()> {
        self.best = from_value("the model checkpoint", state)?;
        Ok(())
    }
}

/// Keeps the learning rate of every step.
#[derive(Clone, Debug, Default)]
pub struct LearningRateMonitor {
    rates: Vec<(u64, f64)>,
}

impl LearningRateMonitor {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// (step, learning rate) of each step that it saw.
    pub fn rates(&self) -> &[(u64, f64)] {
        &self.rates
    }
}

impl Callback for LearningRateMonitor {
    fn name(&self) -> &str {
        "learning_rate_monitor"
    }

    fn on_step(&mut self, moment: &Moment<'_>) -> Result<Control> {
        self.rates.push((moment.step, moment.learning_rate));
        Ok(Control::Continue)
    }
}

/// Keeps every line of metrics in memory.
#[derive(Clone, Debug, Default)]
pub struct History {
    records: Vec<Record>,
}

impl History {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The lines, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

impl Callback for History {
    fn name(&self) -> &str {
        "history"
    }

    fn on_record(&mut self, _moment: &Moment<'_>, record: &Record) -> Result<()> {
        self.records.push(record.clone());
        Ok(())
    }
}
