//! Learning rates over time, as pure functions of the step.
//!
//! Step 0 is the first optimizer step. A schedule holds no state, so resuming needs none either.
//! Names and formulas are those of `torch.optim.lr_scheduler`.

/// The learning rate of each step.
pub trait Schedule: Send + Sync {
    /// The learning rate of step `step`, counted from 0.
    fn lr_at(&self, step: u64) -> f64;
}

impl<S: Schedule + ?Sized> Schedule for Box<S> {
    fn lr_at(&self, step: u64) -> f64 {
        (**self).lr_at(step)
    }
}

/// Always the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConstantLR {
    /// The learning rate.
    pub learning_rate: f64,
}

impl Schedule for ConstantLR {
    fn lr_at(&self, _: u64) -> f64 {
        self.learning_rate
    }
}

/// Times γ after every `step_size` steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLR {
    /// The first learning rate.
    pub learning_rate: f64,
    /// Steps between two reductions; 0 never reduces.
    pub step_size: u64,
    /// γ.
    pub gamma: f64,
}

impl Schedule for StepLR {
    fn lr_at(&self, step: u64) -> f64 {
        let times = step.checked_div(self.step_size).unwrap_or(0);
        self.learning_rate * power(self.gamma, times)
    }
}

/// Times γ at each milestone.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiStepLR {
    /// The first learning rate.
    pub learning_rate: f64,
    /// Steps from which the rate is reduced once more; any order, repeats count.
    pub milestones: Vec<u64>,
    /// γ.
    pub gamma: f64,
}

impl Schedule for MultiStepLR {
    fn lr_at(&self, step: u64) -> f64 {
        let times = self.milestones.iter().filter(|&&m| step >= m).count();
        self.learning_rate * power(self.gamma, times as u64)
    }
}

fn power(gamma: f64, times: u64) -> f64 {
    gamma.powi(times.min(i32::MAX as u64) as i32)
}

/// Half a cosine from the first to the last rate (Loshchilov, Hutter, "SGDR", 2017):
/// min + (lr − min) (1 + cos(π t / T)) / 2, and min from step T on.
///
/// ```
/// use entrenar_nn::schedule::{CosineAnnealingLR, Schedule};
/// let cosine = CosineAnnealingLR { learning_rate: 1.0, t_max: 10, eta_min: 0.2 };
/// assert_eq!(cosine.lr_at(0), 1.0);
/// assert!((cosine.lr_at(5) - 0.6).abs() < 1e-12);
/// assert_eq!(cosine.lr_at(99), 0.2); // PyTorch's would rise again
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineAnnealingLR {
    /// The first learning rate.
    pub learning_rate: f64,
    /// T: the step at which the last rate is reached.
    pub t_max: u64,
    /// The last learning rate.
    pub eta_min: f64,
}

impl Schedule for CosineAnnealingLR {
    fn lr_at(&self, step: u64) -> f64 {
        if step >= self.t_max {
            return self.eta_min;
        }
        let angle = std::f64::consts::PI * step as f64 / self.t_max as f64;
        self.eta_min + (self.learning_rate - self.eta_min) * (1.0 + angle.cos()) / 2.0
    }
}

/// A straight line from the first to the last rate over `total_steps`, then the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearLR {
    /// The first learning rate.
    pub learning_rate: f64,
    /// The step at which the last rate is reached.
    pub total_steps: u64,
    /// The last learning rate.
    pub end: f64,
}

impl Schedule for LinearLR {
    fn lr_at(&self, step: u64) -> f64 {
        if step >= self.total_steps {
            return self.end;
        }
        let way = step as f64 / self.total_steps as f64;
        self.learning_rate + (self.end - self.learning_rate) * way
    }
}

/// A linear rise before another schedule, which then starts at its own step 0.
///
/// Step s of the warm-up has (s + 1) / (steps + 1) of the rate that follows: no step is wasted on a
/// rate of 0, and the first step after the warm-up has the full rate.
///
/// ```
/// use entrenar_nn::schedule::{ConstantLR, Schedule, WarmUp};
/// let schedule = WarmUp::new(3, ConstantLR { learning_rate: 0.4 });
/// let rates: Vec<f64> = (0..5).map(|s| schedule.lr_at(s)).collect();
/// assert_eq!(rates, [0.1, 0.2, 0.4 * 3.0 / 4.0, 0.4, 0.4]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct WarmUp<S> {
    steps: u64,
    then: S,
}

impl<S: Schedule> WarmUp<S> {
    /// `steps` steps of warm-up, then `then`.
    pub fn new(steps: u64, then: S) -> WarmUp<S> {
        WarmUp { steps, then }
    }
}

impl<S: Schedule> Schedule for WarmUp<S> {
    fn lr_at(&self, step: u64) -> f64 {
        if step >= self.steps {
            return self.then.lr_at(step - self.steps);
        }
        self.then.lr_at(0) * ((step + 1) as f64 / (self.steps + 1) as f64)
    }
}
