//! What a running fit carries: state, files, progress, clocks.
//!
//! Neighbours: `fit.rs` drives it, `state.rs` is the part that a checkpoint keeps.

use std::path::PathBuf;
use std::sync::Once;
use std::time::Instant;

use entrenar_base::Result;
use entrenar_io::Store;
use entrenar_nn::optim::Optimizer;
use entrenar_nn::{NamedArrays, Parameters};

use super::callback::Moment;
use super::evaluate::Evaluation;
use super::fit::Trainer;
use super::settings::{Settings, Unit};
use super::state::State;
use crate::config::TINY_LEARNING_RATE;
use crate::data::Split;
use crate::run::{
    Best, MetricsWriter, Number, Progress, ProgressConfig, ProgressStyle, Record, StepReport,
    Throughput, number_text, read_metrics,
};

/// Between two lines of metrics there may be no time at all: a speed must stay a number.
const LEAST_SECONDS: f64 = 1e-9;

pub(super) struct Session {
    pub state: State,
    pub total: u64,
    /// Steps that were done when it began.
    pub steps_before: u64,
    pub store: Option<Store>,
    pub metrics: Option<MetricsWriter>,
    pub progress: Progress,
    /// Epochs done, with the present one as a fraction.
    pub epoch: f64,
    /// The loss of the last step.
    pub loss: f64,
    /// Seconds of training, evaluations apart, since the last line of training metrics.
    pub window_seconds: f64,
    /// Rows and targets of that time.
    window_work: (u64, u64),
    /// The weights of the best evaluation, where there is no store to keep them.
    pub best_weights: Option<NamedArrays>,
    /// The last line of training metrics.
    pub train: Option<Record>,
    /// The last evaluation of the whole split, and its step.
    pub validation: Option<(u64, Evaluation)>,
    /// Whether the metrics have the line of the test already.
    pub tested: bool,
    unit: Unit,
    seconds_before: f64,
    begun: Instant,
}

impl Session {
    /// Opens the files and takes up the newest complete checkpoint, if there is one.
    pub fn begin<M: Parameters>(trainer: &mut Trainer<'_, M>, total: u64) -> Result<Self> {
        let settings = &trainer.settings;
        let (metric, mode) = settings.best_by.clone();
        let mut state = State::new(Best::new(metric, mode), settings.seed, total);
        let mut store = None;
        let mut notes = std::mem::take(&mut trainer.notes);
        let mut resumed = None;
        if let Some(directory) = trainer.directory {
            let opened = Store::new(directory.checkpoints())?;
            let found = opened.latest_intact()?;
            for skipped in found.skipped {
                notes.push(format!(
                    "warning: {} is passed over: {}",
                    skipped.path.display(),
                    skipped.reason
                ));
            }
            if let Some(checkpoint) = found.checkpoint {
                let stored = State::load(&checkpoint, trainer.model, &mut *trainer.optimizer)?;
                for (index, callback) in trainer.callbacks.iter_mut().enumerate() {
                    let key = format!("{index}:{}", callback.name());
                    if let Some(saved) = stored.callbacks.get(&key) {
                        callback.load_state(saved)?;
                    }
                }
                let same_best = stored.best.metric() == state.best.metric();
                let fresh_best = std::mem::replace(&mut state, stored);
                if !same_best {
                    state.best = fresh_best.best;
                }
                state.schedule.total_steps = total;
                trainer.training.seek(state.loader)?;
                resumed = Some(state.step);
                notes.push(format!("continuing from step {} of {total}", state.step));
                // A kill may have come between the checkpoint and this mark.
                if let Some(best) = state.best.step()
                    && opened.best()? != Some(best)
                    && opened.open(best).is_ok()
                {
                    opened.set_best(best)?;
                }
            }
            store = Some(opened);
        }
        let (mut metrics, mut train, mut tested) = (None, None, false);
        if let Some(directory) = trainer.directory {
            let file = directory.metrics_file();
            metrics = Some(MetricsWriter::open(&file, resumed)?);
            for record in read_metrics(&file)? {
                tested |= record.split == Split::Test && record.step == state.step;
                if record.split == Split::Train {
                    train = Some(record);
                }
            }
        }
        let mut progress = Progress::new(ProgressConfig {
            start_step: state.step,
            style: settings.progress,
            ..ProgressConfig::new(total)
        });
        notes.extend(warnings(trainer));
        for note in &notes {
            progress.note(note);
        }
        Ok(Self {
            epoch: trainer.training.epochs_done(),
            loss: f64::NAN,
            window_seconds: 0.0,
            window_work: (0, 0),
            best_weights: None,
            train,
            validation: None,
            tested,
            unit: trainer.settings.unit,
            seconds_before: state.seconds,
            begun: Instant::now(),
            steps_before: state.step,
            state,
            total,
            store,
            metrics,
            progress,
        })
    }

    /// Seconds since the run began, over all its resumptions.
    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.begun.elapsed().as_secs_f64()
    }

    /// What callbacks are told.
    pub fn moment<'a>(&self, model: &'a dyn Parameters) -> Moment<'a> {
        Moment {
            step: self.state.step,
            total_steps: self.total,
            epoch: self.epoch,
            learning_rate: self.state.schedule.learning_rate,
            loss: self.loss,
            model,
        }
    }

    /// A line of metrics of this moment. An f32 is what a loss is computed in.
    pub fn record(&self, split: Split, loss: f64) -> Record {
        let mut record = Record::new(self.state.step, self.epoch, split, loss as f32);
        // Milliseconds are enough, and short.
        record.seconds = Some((self.seconds() * 1e3).round() / 1e3);
        record
    }

    /// The line of an evaluation.
    pub fn evaluation_record(&self, split: Split, evaluation: &Evaluation) -> Record {
        let mut record = self.record(split, evaluation.loss);
        record.metrics = numbers(&evaluation.metrics);
        record
    }

    /// Counts a step's work.
    pub fn work(&mut self, rows: u64, targets: u64) {
        self.window_work.0 += rows;
        self.window_work.1 += targets;
    }

    fn throughput(&self) -> Throughput {
        let per_second = |work: u64| {
            let speed = work as f64 / self.window_seconds.max(LEAST_SECONDS);
            (speed * 10.0).round() / 10.0
        };
        match self.unit {
            Unit::Samples => Throughput::SamplesPerSecond(per_second(self.window_work.0)),
            Unit::Tokens => Throughput::TokensPerSecond(per_second(self.window_work.1)),
        }
    }

    /// The speed since the last line of training metrics; the next window begins.
    pub fn take_throughput(&mut self) -> Throughput {
        let throughput = self.throughput();
        self.window_seconds = 0.0;
        self.window_work = (0, 0);
        throughput
    }

    /// Shows a step.
    pub fn report_step(&mut self) {
        let report = StepReport {
            step: self.state.step,
            loss: self.loss,
            lr: self.state.schedule.learning_rate,
            throughput: self.throughput(),
        };
        self.progress.step(&report);
    }

    /// Shows an evaluation, of the whole split or of `limit` batches.
    pub fn note_evaluation(&mut self, record: &Record, limit: Option<u64>, best: bool) {
        let mut text = format!(
            "step {}  validation loss {}",
            record.step,
            number_text(record.loss.value())
        );
        for (name, value) in &record.metrics {
            text.push_str(&format!("  {name} {}", number_text(value.value())));
        }
        if let Some(batches) = limit {
            text.push_str(&format!("  in {batches} batches"));
        }
        if best {
            text.push_str("  (best)");
        }
        self.progress.note(&text);
    }

    /// The newest checkpoint's directory.
    pub fn newest_checkpoint(&self) -> Result<Option<PathBuf>> {
        let Some(store) = &self.store else {
            return Ok(None);
        };
        let found = store.latest()?;
        Ok(found
            .checkpoint
            .map(|checkpoint| checkpoint.path().to_path_buf()))
    }

    /// Saves the state of this step, marks the best, drops old checkpoints.
    pub fn save<M: Parameters>(
        &mut self,
        model: &M,
        optimizer: &dyn Optimizer,
        files: &[(String, Vec<u8>)],
        settings: &Settings,
    ) -> Result<()> {
        self.state.seconds = self.seconds();
        let Some(store) = &self.store else {
            return Ok(());
        };
        if let Some(metrics) = &self.metrics {
            // A checkpoint must never be newer than the metrics that it continues.
            metrics.sync()?;
        }
        self.state.save(store, model, optimizer, files)?;
        if let Some(best) = self.state.best.step()
            && store.best()? != Some(best)
            && store.open(best).is_ok()
        {
            store.set_best(best)?;
        }
        store.prune(settings.keep_checkpoints, &[])?;
        Ok(())
    }
}

/// Metrics for a record: an f32 has the digits that they are good for.
pub(super) fn numbers(metrics: &[(String, f64)]) -> Vec<(String, Number)> {
    let number = |value: f64| Number::F32(value as f32);
    metrics
        .iter()
        .map(|(name, value)| (name.clone(), number(*value)))
        .collect()
}

/// What is odd about a run.
fn warnings<M: Parameters>(trainer: &Trainer<'_, M>) -> Vec<String> {
    static DEBUG_BUILD: Once = Once::new();
    let mut out = Vec::new();
    if cfg!(debug_assertions) && trainer.settings.progress != ProgressStyle::Quiet {
        DEBUG_BUILD.call_once(|| {
            out.push("warning: this is a debug build, many times slower than `--release`".into());
        });
    }
    if trainer.warn {
        let learning_rate = trainer.optimizer.learning_rate();
        if learning_rate < TINY_LEARNING_RATE {
            out.push(format!(
                "warning: a learning rate of {learning_rate:?} will hardly change the model"
            ));
        }
        if !trainer.has_validation() {
            out.push("warning: no validation data: overfitting will not show".to_string());
        }
    }
    out
}
