//! [`Trainer`]: model, objective, optimizer and data, run to their end.
//!
//! The order within a step is fixed, because resuming depends on it: update, line of training
//! metrics, evaluation, checkpoint, and only then a look at signals. A checkpoint therefore always
//! contains the decisions of its own step, and `metrics.jsonl` cut back to that step continues as if
//! nothing had happened. Neighbours: `update.rs` makes a step, `evaluate.rs` measures, `state.rs`
//! saves, `session.rs` is what a running fit carries.

use std::time::Instant;

use entrenar_base::{Error, ErrorKind, Result};
use entrenar_nn::optim::Optimizer;
use entrenar_nn::{NamedArrays, Parameters};

use super::callback::{Callback, Control, Moment, metric_of};
use super::evaluate::{Evaluation, Running, evaluate};
use super::objective::Objective;
use super::session::{Session, numbers};
use super::settings::{NanPolicy, Settings, due, in_steps, total_steps};
use super::state::load_weights;
use super::update::{Bad, Cells, non_finite_parameter, update};
use crate::data::{Batch, Loader, Split};
use crate::run::{Record, RunDirectory};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All its steps are done.
    Finished,
    /// A callback stopped it, for this reason.
    Early(String),
    /// Somebody asked it to stop, by this signal; its state is saved, it can be resumed.
    Interrupted(String),
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// Optimizer steps done, over all resumptions.
    pub step: u64,
    /// Of these, the steps of the run that this one continued.
    pub steps_before: u64,
    /// Optimizer steps planned.
    pub total_steps: u64,
    /// The step and value of the best evaluation, by [`Settings::best_by`].
    pub best: Option<(u64, f64)>,
    /// The step whose weights the model has now.
    pub weights_step: u64,
    /// The last line of training metrics.
    pub train: Option<Record>,
    /// The weights that the model has now, measured over the whole validation split. Not after an
    /// interruption.
    pub validation: Option<Evaluation>,
    /// The same over the test split.
    pub test: Option<Evaluation>,
    /// Steps left out because of a NaN.
    pub skipped_steps: u64,
    /// Seconds since the run began, over all resumptions.
    pub seconds: f64,
}

/// Runs a model to the end of its training.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use entrenar_base::{Array, Result};
/// use entrenar_nn::optim::Sgd;
/// use entrenar_nn::{Init, Linear};
/// use entrenar_train::config::Length;
/// use entrenar_train::data::{Batch, Dataset, Loader, LoaderConfig};
/// use entrenar_train::trainer::{MeanSquaredError, Settings, Trainer};
///
/// /// y = 3x + 1
/// struct Line;
/// impl Dataset for Line {
///     fn len(&self) -> usize { 32 }
///     fn batch(&self, indices: &[usize]) -> Result<Batch> {
///         let rows = indices.len();
///         let x: Vec<f32> = indices.iter().map(|&i| i as f32 / 32.0).collect();
///         let y: Vec<f32> = x.iter().map(|x| 3.0 * x + 1.0).collect();
///         Ok(Batch::new(Array::from_vec(x, [rows, 1])?, Array::from_vec(y, [rows])?, rows))
///     }
/// }
///
/// let model = Linear::new(1, 1, &mut Init::new(0))?;
/// let optimizer = Sgd::new(&model, 0.3)?;
/// let training = Loader::new(Arc::new(Line), LoaderConfig::training(8, 0))?;
/// let validation = Loader::new(Arc::new(Line), LoaderConfig::evaluation(8))?;
/// let settings = Settings { length: Length::Epochs(60), ..Settings::default() };
/// let outcome = Trainer::new(&model, MeanSquaredError, optimizer, training)
///     .validation(validation)
///     .settings(settings)
///     .fit()?;
/// assert!(outcome.validation.unwrap().loss < 1e-3);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct Trainer<'a, M> {
    pub(super) model: &'a M,
    objective: Box<dyn Objective<M> + 'a>,
    pub(super) optimizer: Box<dyn Optimizer + 'a>,
    schedule: Option<Box<dyn Fn(u64) -> f64 + 'a>>,
    pub(super) training: Loader,
    validation: Option<Loader>,
    test: Option<Loader>,
    pub(super) settings: Settings,
    pub(super) callbacks: Vec<Box<dyn Callback + 'a>>,
    pub(super) directory: Option<&'a RunDirectory>,
    pub(super) checkpoint_files: Vec<(String, Vec<u8>)>,
    stop: Option<Box<dyn Fn() -> Option<String> + 'a>>,
    sample: Option<Sampler<'a>>,
    /// Whether odd settings are told; a config's warnings were told with their places.
    pub(super) warn: bool,
    /// What else to tell before the first step.
    pub(super) notes: Vec<String>,
}

/// Makes a text every so many steps.
struct Sampler<'a> {
    every_steps: u64,
    make: Box<dyn Fn(u64) -> Result<String> + 'a>,
}

impl<'a, M: Parameters> Trainer<'a, M> {
    /// One epoch over `training` with the default [`Settings`].
    pub fn new(
        model: &'a M,
        objective: impl Objective<M> + 'a,
        optimizer: impl Optimizer + 'a,
        training: Loader,
    ) -> Self {
        Self::of(model, Box::new(objective), Box::new(optimizer), training)
    }

    /// [`Trainer::new`] of parts whose types are not known.
    pub(super) fn of(
        model: &'a M,
        objective: Box<dyn Objective<M> + 'a>,
        optimizer: Box<dyn Optimizer + 'a>,
        training: Loader,
    ) -> Self {
        Self {
            model,
            objective,
            optimizer,
            schedule: None,
            training,
            validation: None,
            test: None,
            settings: Settings::default(),
            callbacks: Vec::new(),
            directory: None,
            checkpoint_files: Vec::new(),
            stop: None,
            sample: None,
            warn: true,
            notes: Vec::new(),
        }
    }

    /// Evaluates on this during the run.
    #[must_use]
    pub fn validation(mut self, loader: Loader) -> Self {
        self.validation = Some(loader);
        self
    }

    /// Measures on this once, at the end.
    #[must_use]
    pub fn test(mut self, loader: Loader) -> Self {
        self.test = Some(loader);
        self
    }

    /// Goes by these settings.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Takes the learning rate of a step from this function of the steps done before it.
    #[must_use]
    pub fn schedule(mut self, learning_rate: impl Fn(u64) -> f64 + 'a) -> Self {
        self.schedule = Some(Box::new(learning_rate));
        self
    }

    /// Adds a callback; they are called in this order. `&mut callback` can be looked into afterwards.
    #[must_use]
    pub fn callback(mut self, callback: impl Callback + 'a) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Writes metrics, checkpoints and the loss plot there, and takes up the newest complete
    /// checkpoint that is there already.
    #[must_use]
    pub fn run_directory(mut self, directory: &'a RunDirectory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Puts a file of these bytes into every checkpoint.
    #[must_use]
    pub fn checkpoint_file(mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.checkpoint_files.push((name.into(), bytes.into()));
        self
    }

    /// Asks this after every step whether to save and leave, and why.
    #[must_use]
    pub fn stop_when(mut self, asked: impl Fn() -> Option<String> + 'a) -> Self {
        self.stop = Some(Box::new(asked));
        self
    }

    /// Shows a text made by the model every so many steps.
    #[must_use]
    pub fn sample_every(mut self, steps: u64, make: impl Fn(u64) -> Result<String> + 'a) -> Self {
        self.sample = Some(Sampler {
            every_steps: steps.max(1),
            make: Box::new(make),
        });
        self
    }

    pub(super) fn has_validation(&self) -> bool {
        self.validation.is_some()
    }

    /// Trains to the end, or on to the end after a resumption.
    ///
    /// # Errors
    ///
    /// What data, model, files and callbacks report; a NaN by [`Settings::nan_policy`] (kind
    /// `NonFinite`): the parameters are then those of the step before, and the checkpoints are as
    /// they were.
    pub fn fit(&mut self) -> Result<Outcome> {
        let batches = self.training.batches_per_epoch();
        let total = total_steps(&self.settings, batches);
        self.settings.evaluate_every =
            in_steps(self.settings.evaluate_every, &self.settings, batches);
        self.settings.checkpoint_every =
            in_steps(self.settings.checkpoint_every, &self.settings, batches);
        let cells = Cells {
            parameters: self.model.named_parameters(),
            buffers: self
                .model
                .named_buffers()
                .into_iter()
                .map(|(_, buffer)| buffer)
                .collect(),
        };
        let mut session = Session::begin(self, total)?;
        self.tell(&mut session, |callback, moment| callback.on_begin(moment))?;
        let mut ended = Ended::Finished;
        while session.state.step < total && session.state.stopped.is_none() {
            if let Some(signal) = self.step(&mut session, &cells)? {
                ended = Ended::Interrupted(signal);
                break;
            }
        }
        if let Some(reason) = &session.state.stopped {
            ended = Ended::Early(reason.clone());
        }
        session.progress.finish();
        self.tell(&mut session, |callback, moment| callback.on_end(moment))?;
        self.finish(session, ended)
    }

    /// One optimizer step and what is due after it; the signal that asked to leave, if any.
    fn step(&mut self, session: &mut Session, cells: &Cells) -> Result<Option<String>> {
        let timer = Instant::now();
        let before = (session.state.step, session.state.loader.epoch);
        let learning_rate = match &self.schedule {
            Some(schedule) => schedule(session.state.step),
            None => self.optimizer.learning_rate(),
        };
        self.optimizer.set_learning_rate(learning_rate);
        session.state.schedule.learning_rate = learning_rate;
        let batches = self.gather()?;
        let made = update(
            self.model,
            &*self.objective,
            &mut *self.optimizer,
            cells,
            &self.settings,
            &batches,
            session.state.random.pass,
        )?;
        let state = &mut session.state;
        state.step += 1;
        state.random.pass += batches.len() as u64;
        state.loader = self.training.state();
        let after = (state.step, state.loader.epoch);
        let last = state.step >= session.total;
        session.epoch = self.training.epochs_done();
        session.loss = made.totals.loss();
        if let Some(bad) = made.bad {
            self.bad_step(session, &bad)?;
        } else {
            session.state.window.absorb(&made.totals);
        }
        session.work(made.totals.rows(), made.totals.targets());
        session.window_seconds += timer.elapsed().as_secs_f64();
        session.report_step();

        let mut stop = None;
        self.ask(session, &mut stop, |callback, moment| {
            callback.on_step(moment)
        })?;
        if session
            .state
            .step
            .is_multiple_of(self.settings.log_every_steps.max(1))
            || last
        {
            self.log_training(session, made.grad_norm)?;
        }
        let mut best = false;
        let evaluation_due = due(self.settings.evaluate_every, before, after);
        if self.validation.is_some() && (evaluation_due || last || stop.is_some()) {
            best = self.validate(session, last, &mut stop)?;
        }
        self.show_sample(session)?;
        session.state.stopped = stop;
        let signal = match &self.stop {
            Some(asked) if !last && session.state.stopped.is_none() => asked(),
            _ => None,
        };
        let ends = last || session.state.stopped.is_some() || signal.is_some();
        let checkpoint_due = due(self.settings.checkpoint_every, before, after);
        if checkpoint_due || best || ends {
            self.save(session, cells, best)?;
            if let Some(directory) = self.directory {
                directory.write_plot()?;
            }
        }
        Ok(signal)
    }

    /// The micro-batches of the next step.
    fn gather(&mut self) -> Result<Vec<Batch>> {
        let most = self.settings.gradient_accumulation_steps.max(1);
        let epoch = self.training.state().epoch;
        let mut batches = vec![self.training.next_batch()?];
        while batches.len() < most
            && (self.settings.accumulate_across_epochs || self.training.state().epoch == epoch)
        {
            batches.push(self.training.next_batch()?);
        }
        Ok(batches)
    }

    /// Decides what a step with a NaN means.
    fn bad_step(&self, session: &mut Session, bad: &Bad) -> Result<()> {
        session.state.skipped_steps += 1;
        let (step, skipped) = (session.state.step, session.state.skipped_steps);
        let what = &bad.what;
        let policy = match self.settings.nan_policy {
            NanPolicy::Stop => String::new(),
            NanPolicy::Skip(_) if bad.lasting => " (to skip steps would not mend it)".to_string(),
            NanPolicy::Skip(most) if skipped <= most => {
                session.progress.note(&format!(
                    "step {step} skipped: {what} ({skipped} of {most} allowed)"
                ));
                return Ok(());
            }
            NanPolicy::Skip(most) => format!(" ({most} skipped steps are allowed)"),
        };
        session.progress.finish();
        let kept = match session.newest_checkpoint()? {
            Some(path) => format!("the newest checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".to_string(),
        };
        Err(Error::new(
            ErrorKind::NonFinite,
            format!(
                "step {step}: {what}{policy}; the weights are those of step {}, {kept}",
                step - 1
            ),
        ))
    }

    /// Writes a line of training metrics and begins the next window.
    fn log_training(&mut self, session: &mut Session, grad_norm: f64) -> Result<()> {
        let window = std::mem::take(&mut session.state.window);
        let throughput = session.take_throughput();
        if window.targets() == 0 {
            // Every step of the window was skipped.
            return Ok(());
        }
        let mut record = session.record(Split::Train, window.loss());
        record.metrics = numbers(&window.metrics());
        record
            .metrics
            .push(("grad_norm".to_string(), (grad_norm as f32).into()));
        record.lr = Some(session.state.schedule.learning_rate);
        record.throughput = Some(throughput);
        self.write(session, &record)?;
        session.train = Some(record);
        Ok(())
    }

    /// Evaluates, decides on the best and on stopping, writes the line; whether it is the best.
    fn validate(
        &mut self,
        session: &mut Session,
        last: bool,
        stop: &mut Option<String>,
    ) -> Result<bool> {
        let Some(loader) = &mut self.validation else {
            return Ok(false);
        };
        let mut running = Running::begin(loader)?;
        // Decisions compare the same batches every time, the last time included.
        running.go_on(
            self.model,
            &*self.objective,
            loader,
            self.settings.evaluate_batches,
        )?;
        let mut evaluation = running.outcome(&*self.objective);
        let record = session.evaluation_record(Split::Validation, &evaluation);
        let metric = metric_of(&record, session.state.best.metric())?;
        let best = session.state.best.update(session.state.step, metric);
        self.ask(session, stop, |callback, moment| {
            callback.on_evaluation(moment, &record)
        })?;
        let Some(loader) = &mut self.validation else {
            return Ok(false);
        };
        let mut record = record;
        if last || stop.is_some() {
            running.go_on(self.model, &*self.objective, loader, None)?;
            evaluation = running.outcome(&*self.objective);
            record = session.evaluation_record(Split::Validation, &evaluation);
            session.validation = Some((session.state.step, evaluation));
        }
        let limited = running.batches() < loader.batches_per_epoch();
        let limit = limited.then(|| running.batches());
        self.write(session, &record)?;
        session.note_evaluation(&record, limit, best);
        Ok(best)
    }

    /// Shows what the model writes, where that is wanted now.
    fn show_sample(&self, session: &mut Session) -> Result<()> {
        if let Some(sampler) = &self.sample
            && session.state.step.is_multiple_of(sampler.every_steps)
        {
            let text = (sampler.make)(session.state.step)?;
            session
                .progress
                .note(&format!("sample at step {}:\n{text}", session.state.step));
        }
        Ok(())
    }

    /// Saves a checkpoint and drops old ones.
    fn save(&mut self, session: &mut Session, cells: &Cells, best: bool) -> Result<()> {
        if best && self.settings.restore_best && session.store.is_none() {
            session.best_weights = Some(copied(self.model));
        }
        if session.store.is_none() {
            return Ok(());
        }
        // A checkpoint of broken weights would pass for a good one.
        if let Some(name) = non_finite_parameter(&cells.parameters) {
            return Err(Error::new(
                ErrorKind::NonFinite,
                format!(
                    "after step {} the parameter `{name}` is not finite; no checkpoint was written",
                    session.state.step
                ),
            ));
        }
        let mut states = std::collections::BTreeMap::new();
        for (index, callback) in self.callbacks.iter().enumerate() {
            states.insert(format!("{index}:{}", callback.name()), callback.state()?);
        }
        session.state.callbacks = states;
        session.save(
            self.model,
            &*self.optimizer,
            &self.checkpoint_files,
            &self.settings,
        )
    }

    /// Appends a line to `metrics.jsonl` and tells the callbacks.
    fn write(&mut self, session: &mut Session, record: &Record) -> Result<()> {
        if let Some(metrics) = &mut session.metrics {
            metrics.append(record)?;
        }
        self.tell(session, |callback, moment| {
            callback.on_record(moment, record)
        })
    }

    /// Calls every callback.
    fn tell(
        &mut self,
        session: &mut Session,
        call: impl Fn(&mut dyn Callback, &Moment<'_>) -> Result<()>,
    ) -> Result<()> {
        let moment = session.moment(self.model);
        for callback in &mut self.callbacks {
            call(&mut **callback, &moment)?;
        }
        Ok(())
    }

    /// Calls every callback and keeps the first wish to stop.
    fn ask(
        &mut self,
        session: &mut Session,
        stop: &mut Option<String>,
        call: impl Fn(&mut dyn Callback, &Moment<'_>) -> Result<Control>,
    ) -> Result<()> {
        let moment = session.moment(self.model);
        for callback in &mut self.callbacks {
            if let Control::Stop(reason) = call(&mut **callback, &moment)? {
                stop.get_or_insert(reason);
            }
        }
        Ok(())
    }

    /// Takes the best weights, measures what is kept, draws the plot.
    fn finish(&mut self, mut session: Session, ended: Ended) -> Result<Outcome> {
        let mut weights_step = session.state.step;
        let (mut validation, mut test) = (None, None);
        if !matches!(ended, Ended::Interrupted(_)) {
            if self.settings.restore_best {
                weights_step = self.restore_best(&mut session)?;
            }
            validation = match session.validation.take() {
                Some((step, evaluation)) if step == weights_step => Some(evaluation),
                _ => match &mut self.validation {
                    Some(loader) => Some(evaluate(self.model, &*self.objective, loader)?),
                    None => None,
                },
            };
            if let Some(loader) = &mut self.test {
                let evaluation = evaluate(self.model, &*self.objective, loader)?;
                let record = session.evaluation_record(Split::Test, &evaluation);
                // A run that was killed after this line has it already.
                if !session.tested {
                    self.write(&mut session, &record)?;
                }
                test = Some(evaluation);
            }
        }
        if let Some(metrics) = &session.metrics {
            metrics.sync()?;
        }
        if let Some(directory) = self.directory {
            directory.write_plot()?;
        }
        let best = session.state.best.step().zip(session.state.best.value());
        Ok(Outcome {
            ended,
            step: session.state.step,
            steps_before: session.steps_before,
            total_steps: session.total,
            best,
            weights_step,
            seconds: session.seconds(),
            train: session.train,
            validation,
            test,
            skipped_steps: session.state.skipped_steps,
        })
    }

    /// Loads the weights of the best evaluation; their step.
    fn restore_best(&mut self, session: &mut Session) -> Result<u64> {
        let Some(step) = session.state.best.step() else {
            return Ok(session.state.step);
        };
        if step == session.state.step {
            return Ok(step);
        }
        if let Some(store) = &session.store {
            match store.open(step) {
                Ok(checkpoint) => {
                    load_weights(&checkpoint, self.model)?;
                    return Ok(step);
                }
                Err(error) => session.progress.note(&format!(
                    "warning: the best checkpoint cannot be read, the last weights are kept: {error}"
                )),
            }
        } else if let Some(weights) = &session.best_weights {
            self.model.load_state(weights)?;
            return Ok(step);
        }
        Ok(session.state.step)
    }
}

/// The weights and buffers in memory of their own.
fn copied(model: &impl Parameters) -> NamedArrays {
    let state = model.state().into_iter();
    state
        .map(|(name, array)| (name, array.deep_copy()))
        .collect()
}
