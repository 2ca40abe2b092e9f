//! How a run goes: length, rhythm, clipping, what to do about NaN. Values only; `fit.rs` acts.

use crate::config::{Every, Length};
use crate::run::{Mode, ProgressStyle};

/// What to do when a loss or a gradient is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NanPolicy {
    /// End the run with an error that names the first bad parameter.
    Stop,
    /// Leave the update out, at most this many times in the whole run.
    Skip(u64),
}

/// The unit of a run's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Rows of batches.
    Samples,
    /// Targets: what a language model predicts.
    Tokens,
}

/// How a run goes.
///
/// # Examples
///
/// ```
/// use entrenar_train::config::{Every, Length};
/// use entrenar_train::trainer::Settings;
///
/// let settings = Settings { length: Length::Epochs(5), max_grad_norm: Some(1.0), ..Settings::default() };
/// assert_eq!(settings.evaluate_every, Every::Epochs(1));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Seed of dropout; the loader has its own.
    pub seed: u64,
    /// When the run ends by itself.
    pub length: Length,
    /// Micro-batches per optimizer step, normalised over the targets of all of them.
    pub gradient_accumulation_steps: usize,
    /// Whether a step may take micro-batches of two epochs. Without it, the last step of an epoch
    /// takes what is left. For data drawn with replacement, whose epochs have no meaning.
    pub accumulate_across_epochs: bool,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: Option<f64>,
    /// Gradient elements are limited to ± this value, before the norm is taken.
    pub clip_value: Option<f64>,
    /// What to do about NaN and infinity.
    pub nan_policy: NanPolicy,
    /// Steps between lines of training metrics.
    pub log_every_steps: u64,
    /// Time between evaluations; there is one after the last step in any case.
    pub evaluate_every: Every,
    /// Batches of one evaluation, the last excepted; `None` for the whole split.
    pub evaluate_batches: Option<u64>,
    /// Time between checkpoints, where there is a run directory.
    pub checkpoint_every: Every,
    /// How many of the newest checkpoints are kept besides the best.
    pub keep_checkpoints: usize,
    /// Which evaluation is the best: a metric and its direction.
    pub best_by: (String, Mode),
    /// Whether the model has the best weights after the run, rather than the last.
    pub restore_best: bool,
    /// The unit of speed.
    pub unit: Unit,
    /// How progress is shown.
    pub progress: ProgressStyle,
}

impl Default for Settings {
    /// One epoch, evaluated and saved after each, lines of metrics every ten steps, nothing shown.
    fn default() -> Self {
        Self {
            seed: 0,
            length: Length::Epochs(1),
            gradient_accumulation_steps: 1,
            accumulate_across_epochs: false,
            max_grad_norm: None,
            clip_value: None,
            nan_policy: NanPolicy::Stop,
            log_every_steps: 10,
            evaluate_every: Every::Epochs(1),
            evaluate_batches: None,
            checkpoint_every: Every::Epochs(1),
            keep_checkpoints: 3,
            best_by: ("loss".to_string(), Mode::Min),
            restore_best: false,
            unit: Unit::Samples,
            progress: ProgressStyle::Quiet,
        }
    }
}

/// Whether a rhythm strikes between `before` and `after`, each (steps, full epochs) done.
pub(super) fn due(every: Every, before: (u64, u64), after: (u64, u64)) -> bool {
    match every {
        Every::Steps(steps) => after.0 / steps.max(1) > before.0 / steps.max(1),
        Every::Epochs(epochs) => after.1 / epochs.max(1) > before.1 / epochs.max(1),
        // Made steps of before the run begins.
        Every::PerEpoch(_) => false,
    }
}

/// A rhythm of parts of an epoch as one of steps.
pub(super) fn in_steps(every: Every, settings: &Settings, batches_per_epoch: u64) -> Every {
    let group = settings.gradient_accumulation_steps.max(1) as u64;
    match every {
        Every::PerEpoch(times) => {
            Every::Steps((batches_per_epoch.div_ceil(group) / times.max(1)).max(1))
        }
        other => other,
    }
}

/// Steps of a whole run.
pub(super) fn total_steps(settings: &Settings, batches_per_epoch: u64) -> u64 {
    let group = settings.gradient_accumulation_steps.max(1) as u64;
    match settings.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) if settings.accumulate_across_epochs => {
            epochs.saturating_mul(batches_per_epoch).div_ceil(group)
        }
        Length::Epochs(epochs) => epochs.saturating_mul(batches_per_epoch.div_ceil(group)),
    }
}

/// Micro-batches of an average step: fewer than are accumulated where an epoch ends with what is left.
pub(super) fn batches_per_step(settings: &Settings, batches_per_epoch: u64) -> f64 {
    let group = settings.gradient_accumulation_steps.max(1) as u64;
    if settings.accumulate_across_epochs {
        return group as f64;
    }
    batches_per_epoch as f64 / batches_per_epoch.div_ceil(group).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rhythms_strike_once_per_period() {
        let strikes = |every| {
            (0..10u64)
                .filter(|&step| due(every, (step, step / 4), (step + 1, (step + 1) / 4)))
                .map(|step| step + 1)
                .collect::<Vec<_>>()
        };
        assert_eq!(strikes(Every::Steps(3)), [3, 6, 9]);
        assert_eq!(strikes(Every::Epochs(1)), [4, 8]);
        assert_eq!(strikes(Every::Epochs(2)), [8]);
        // A step that ends more than one epoch strikes once.
        assert!(due(Every::Epochs(1), (0, 0), (1, 3)));
    }

    #[test]
    fn an_epoch_ends_with_a_short_step_unless_steps_cross_it() {
        let mut settings = Settings {
            length: Length::Epochs(3),
            gradient_accumulation_steps: 4,
            ..Settings::default()
        };
        assert_eq!(total_steps(&settings, 10), 9);
        assert_eq!(batches_per_step(&settings, 10), 10.0 / 3.0);
        // More than an epoch has: all of it is one step.
        assert_eq!(
            (total_steps(&settings, 3), batches_per_step(&settings, 3)),
            (3, 3.0)
        );
        settings.accumulate_across_epochs = true;
        assert_eq!(total_steps(&settings, 10), 8);
        assert_eq!(batches_per_step(&settings, 3), 4.0);
        settings.length = Length::Steps(5);
        assert_eq!(total_steps(&settings, 10), 5);
    }
}
