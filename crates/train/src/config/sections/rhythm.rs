//! `evaluate` and `checkpoint`: what happens every so many steps or epochs.
//!
//! Without any of these keys a run of epochs does it after every epoch, a run of steps ten times; `check.rs` writes that
//! default into the resolved config.

use super::super::describe::{Field, Kind, Rule, Section};
use serde::{Deserialize, Serialize};

const EVERY: Rule = Rule::AtMostOne(&["every_steps", "every_epochs", "times_per_epoch"]);

pub(super) static EVALUATE: Section = Section {
    doc: "How often to measure on the validation data.",
    fields: &[
        Field::optional(
            "every_steps",
            Kind::Integer(1, i64::MAX),
            "100",
            "Updates between evaluations (default: ten in a run of max_steps).",
        )
        .also_known_as(&["eval_interval", "eval_steps", "interval"]),
        Field::optional("every_epochs", Kind::Integer(1, i64::MAX), "1", "Epochs between evaluations (default in a run of epochs: 1)."),
        Field::optional("times_per_epoch", Kind::Integer(1, i64::MAX), "4", "Evaluations in each epoch.")
            .also_known_as(&["evals_per_epoch"]),
        Field::optional("max_batches", Kind::Integer(1, i64::MAX), "50", "Batches of one evaluation, the same sample each time; all when absent. The last evaluation sees all in any case.")
            .also_known_as(&["eval_iters", "limit_val_batches"]),
    ],
    rules: &[EVERY],
    reserved: &[],
};

pub(super) static CHECKPOINT: Section = Section {
    doc: "How often to save the state from which a run can resume.",
    fields: &[
        Field::optional(
            "every_steps",
            Kind::Integer(1, i64::MAX),
            "500",
            "Updates between checkpoints (default: ten in a run of max_steps).",
        )
        .also_known_as(&["save_steps", "interval"]),
        Field::optional(
            "every_epochs",
            Kind::Integer(1, i64::MAX),
            "1",
            "Epochs between checkpoints (default in a run of epochs: 1).",
        ),
        Field::optional(
            "times_per_epoch",
            Kind::Integer(1, i64::MAX),
            "1",
            "Checkpoints in each epoch.",
        )
        .also_known_as(&["saves_per_epoch"]),
        Field::with_default(
            "keep",
            Kind::Integer(1, i64::MAX),
            "3",
            "Newest checkpoints that are kept; the best one is kept besides.",
        )
        .also_known_as(&["save_total_limit", "keep_last"]),
    ],
    rules: &[EVERY],
    reserved: &[],
};

/// `evaluate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Updates between evaluations; exactly one of this and the next two is set. Read through [`Evaluate::every`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Epochs between evaluations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_epochs: Option<u64>,
    /// Evaluations in each epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times_per_epoch: Option<u64>,
    /// Batches of one evaluation; `None` means the whole split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batches: Option<u64>,
}

/// `checkpoint`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Updates between checkpoints; exactly one of this and the next two is set. Read through [`Checkpoint::every`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Epochs between checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_epochs: Option<u64>,
    /// Checkpoints in each epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times_per_epoch: Option<u64>,
    /// Newest checkpoints that are kept.
    pub keep: usize,
}

/// A rhythm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// Every so many updates.
    Steps(u64),
    /// Every so many epochs.
    Epochs(u64),
    /// So many times in each epoch.
    PerEpoch(u64),
}

fn every(steps: Option<u64>, epochs: Option<u64>, times: Option<u64>) -> Every {
    match (steps, epochs, times) {
        (Some(steps), ..) => Every::Steps(steps),
        (None, None, Some(times)) => Every::PerEpoch(times),
        (None, epochs, _) => Every::Epochs(epochs.unwrap_or(1)),
    }
}

impl Evaluate {
    /// How often.
    pub fn every(&self) -> Every {
        every(self.every_steps, self.every_epochs, self.times_per_epoch)
    }
}

impl Checkpoint {
    /// How often.
    pub fn every(&self) -> Every {
        every(self.every_steps, self.every_epochs, self.times_per_epoch)
    }
}
