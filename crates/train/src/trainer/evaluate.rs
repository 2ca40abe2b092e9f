//! One evaluation: the model as it is, over a split, batch after batch.
//!
//! Nothing is recorded for a backward pass, nothing is random, no buffer changes. Means are exact
//! over the targets, whatever the batches. Neighbours: `fit.rs` decides when, `objective.rs` what.

use entrenar_base::{Error, Result};
use entrenar_core::no_grad;
use entrenar_nn::Ctx;

use super::objective::{Objective, value_of};
use super::totals::Totals;
use crate::data::{Loader, LoaderState};

/// The outcome of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean loss over all targets.
    pub loss: f64,
    /// Further metrics by name.
    pub metrics: Vec<(String, f64)>,
    /// How many targets it is about.
    pub targets: u64,
}

impl Evaluation {
    /// The value of a metric, `loss` included.
    pub fn metric(&self, name: &str) -> Option<f64> {
        if name == "loss" {
            return Some(self.loss);
        }
        let found = self.metrics.iter().find(|(metric, _)| metric == name);
        found.map(|(_, value)| *value)
    }
}

/// Evaluates a model on all that `loader` gives in an epoch.
///
/// # Errors
///
/// What the data, the model or the loss reports.
pub fn evaluate<M>(
    model: &M,
    objective: &(impl Objective<M> + ?Sized),
    loader: &mut Loader,
) -> Result<Evaluation> {
    let mut run = Running::begin(loader)?;
    run.go_on(model, objective, loader, None)?;
    Ok(run.outcome(objective))
}

/// An evaluation that can pause: a limited one that may turn out to be the last.
pub(super) struct Running {
    totals: Totals,
    batches: u64,
}

impl Running {
    /// Goes to the first batch.
    pub fn begin(loader: &mut Loader) -> Result<Self> {
        loader.seek(LoaderState::default())?;
        Ok(Self {
            totals: Totals::default(),
            batches: 0,
        })
    }

    /// Adds batches until there are `limit` of them, or to the end of the split.
    pub fn go_on<M>(
        &mut self,
        model: &M,
        objective: &(impl Objective<M> + ?Sized),
        loader: &mut Loader,
        limit: Option<u64>,
    ) -> Result<()> {
        let most = loader.batches_per_epoch().min(limit.unwrap_or(u64::MAX));
        while self.batches < most {
            let batch = loader.next_batch()?;
            if batch.target_count() == 0 {
                return Err(Error::config("cannot evaluate on data without targets"));
            }
            let targets = objective.count(&batch);
            let measure = no_grad(|| objective.measure(model, &batch, &mut Ctx::eval()))?;
            let loss = value_of(&measure.loss)?;
            self.totals.add(loss, &measure.sums, targets, batch.rows);
            self.batches += 1;
        }
        Ok(())
    }

    /// How many batches it has seen.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// The means so far.
    pub fn outcome<M>(&self, objective: &(impl Objective<M> + ?Sized)) -> Evaluation {
        let loss = self.totals.loss();
        let mut metrics = self.totals.metrics();
        for (name, value) in objective.derived(loss) {
            metrics.push((name.to_string(), value));
        }
        Evaluation {
            loss,
            metrics,
            targets: self.totals.targets(),
        }
    }
}
