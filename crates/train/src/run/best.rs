//! Which evaluation was the best, and when to stop waiting for a better one.
//!
//! Plain values that a checkpoint stores and a resumed run takes up again;
//! nothing here reads a clock or a file. Neighbour: the training loop feeds
//! them after each evaluation.

use serde::{Deserialize, Serialize};

/// Which direction is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Less is better, as for a loss.
    Min,
    /// More is better, as for accuracy.
    Max,
}

impl Mode {
    /// Whether `value` is better than `than` by more than `margin`. NaN is never better.
    pub fn better(self, value: f64, than: f64, margin: f64) -> bool {
        match self {
            Self::Min => value < than - margin,
            Self::Max => value > than + margin,
        }
    }
}

/// The best value of a metric so far and the step it was reached at.
///
/// # Examples
///
/// ```
/// use entrenar_train::run::{Best, Mode};
///
/// let mut best = Best::new("loss", Mode::Min);
/// assert!(best.update(100, 2.5));
/// assert!(!best.update(200, 2.5)); // ties keep the first
/// assert!(best.update(300, 2.4));
/// assert_eq!((best.step(), best.value()), (Some(300), Some(2.4)));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    metric: String,
    mode: Mode,
    reached: Option<Reached>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Reached {
    step: u64,
    value: f64,
}

impl Best {
    /// Nothing seen yet.
    pub fn new(metric: impl Into<String>, mode: Mode) -> Self {
        Self {
            metric: metric.into(),
            mode,
            reached: None,
        }
    }

    /// Takes a value; whether it is the best so far. Values that are not finite never are.
    pub fn update(&mut self, step: u64, value: f64) -> bool {
        // An infinite best would not survive JSON, and is no result worth keeping.
        let better = value.is_finite()
            && self
                .reached
                .is_none_or(|reached| self.mode.better(value, reached.value, 0.0));
        if better {
            self.reached = Some(Reached { step, value });
        }
        better
    }

    /// The metric's name.
    pub fn metric(&self) -> &str {
        &self.metric
    }

    /// The step of the best value.
    pub fn step(&self) -> Option<u64> {
        self.reached.map(|reached| reached.step)
    }

    /// The best value.
    pub fn value(&self) -> Option<f64> {
        self.reached.map(|reached| reached.value)
    }
}

/// What early stopping says to an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better than before by more than `min_delta`.
    Improved,
    /// Not better; this many evaluations in a row now.
    Waiting(u64),
    /// Not better for `patience` evaluations: stop.
    Stop,
}

/// Stops a run whose metric has not improved for `patience` evaluations.
///
/// As in Keras: an evaluation counts as an improvement when it beats the best one by more than
/// `min_delta`; the run stops at the `patience`-th evaluation in a row that does not (a patience of
/// 0 counts as 1). NaN is no improvement.
///
/// # Examples
///
/// ```
/// use entrenar_train::run::{EarlyStopping, Mode, Verdict};
///
/// let mut stopping = EarlyStopping::new("loss", Mode::Min, 2, 0.01);
/// assert_eq!(stopping.update(1.0), Verdict::Improved);
/// assert_eq!(stopping.update(0.995), Verdict::Waiting(1)); // less than min_delta
/// assert_eq!(stopping.update(0.9), Verdict::Improved);
/// assert_eq!(stopping.update(1.0), Verdict::Waiting(1));
/// assert_eq!(stopping.update(f64::NAN), Verdict::Stop);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    metric: String,
    mode: Mode,
    patience: u64,
    min_delta: f64,
    best: Option<f64>,
    waited: u64,
}

impl EarlyStopping {
    /// A fresh state. The sign of `min_delta` does not matter.
    pub fn new(metric: impl Into<String>, mode: Mode, patience: u64, min_delta: f64) -> Self {
        Self {
            metric: metric.into(),
            mode,
            patience,
            min_delta: min_delta.abs(),
            best: None,
            waited: 0,
        }
    }

    /// Takes the metric of an evaluation.
    pub fn update(&mut self, value: f64) -> Verdict {
        let improved = value.is_finite()
            && self
                .best
                .is_none_or(|best| self.mode.better(value, best, self.min_delta));
        if improved {
            self.best = Some(value);
            self.waited = 0;
            return Verdict::Improved;
        }
        self.waited += 1;
        if self.waited >= self.patience.max(1) {
            Verdict::Stop
        } else {
            Verdict::Waiting(self.waited)
        }
    }

    /// Goes on where `stored` stood, if it watched the same metric; patience and `min_delta` stay its
    /// own.
    pub fn take_up(&mut self, stored: &Self) {
        if self.metric == stored.metric && self.mode == stored.mode {
            self.best = stored.best;
            self.waited = stored.waited;
        }
    }

    /// The metric's name.
    pub fn metric(&self) -> &str {
        &self.metric
    }

    /// The best value that counted as an improvement.
    pub fn best(&self) -> Option<f64> {
        self.best
    }

    /// Evaluations in a row without improvement, and how many are allowed.
    pub fn waited(&self) -> (u64, u64) {
        (self.waited, self.patience.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let value = prop_oneof![8 => -2.0f64..2.0, 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)];
        proptest::collection::vec(value, 0..30)
    }

    proptest! {
        #[test]
        fn storing_in_the_middle_changes_nothing(values in values(), cut in 0usize..30, maximum: bool) {
            let mode = if maximum { Mode::Max } else { Mode::Min };
            let mut straight = (Best::new("m", mode), EarlyStopping::new("m", mode, 3, 0.1));
            let mut stored = straight.clone();
            for (step, &value) in values.iter().enumerate() {
                if step == cut {
                    stored = (
                        serde_json::from_str(&serde_json::to_string(&stored.0).unwrap()).unwrap(),
                        serde_json::from_str(&serde_json::to_string(&stored.1).unwrap()).unwrap(),
                    );
                }
                prop_assert_eq!(straight.0.update(step as u64, value), stored.0.update(step as u64, value));
                prop_assert_eq!(straight.1.update(value), stored.1.update(value));
            }
            prop_assert_eq!(straight, stored);
        }

        #[test]
        fn best_is_the_first_extreme(values in values()) {
            let mut best = Best::new("m", Mode::Max);
            for (step, &value) in values.iter().enumerate() {
                best.update(step as u64, value);
            }
            let expected = values.iter().copied().filter(|value| value.is_finite()).max_by(f64::total_cmp);
            prop_assert_eq!(best.value(), expected);
            if let Some(expected) = expected {
                prop_assert_eq!(best.step(), values.iter().position(|&value| value == expected).map(|at| at as u64));
            }
        }
    }

    #[test]
    fn a_state_is_taken_up_by_the_same_metric_only() {
        let mut stored = EarlyStopping::new("loss", Mode::Min, 9, 0.0);
        stored.update(1.0);
        stored.update(1.0);
        let mut same = EarlyStopping::new("loss", Mode::Min, 3, 0.0);
        same.take_up(&stored);
        assert_eq!((same.best(), same.waited()), (Some(1.0), (1, 3)));
        let mut other = EarlyStopping::new("accuracy", Mode::Max, 3, 0.0);
        other.take_up(&stored);
        assert_eq!((other.best(), other.waited()), (None, (0, 3)));
    }

    #[test]
    fn patience_zero_stops_at_the_first_failure() {
        let mut stopping = EarlyStopping::new("accuracy", Mode::Max, 0, 0.0);
        assert_eq!(stopping.update(0.5), Verdict::Improved);
        assert_eq!(stopping.update(0.5), Verdict::Stop);
    }
}
