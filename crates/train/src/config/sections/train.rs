//! `train`: length of the run, batches, clipping, stopping.

use super::super::describe::{
    Choice, Field, Kind, NOT_NEGATIVE, POSITIVE, Reserved, Rule, Section, When, Yaml,
};
use super::{CLASSIFICATION, LANGUAGE_MODEL, MASKED_LM, REGRESSION, SEQUENCE_CLASSIFICATION, SFT};
use serde::{Deserialize, Serialize};

const NAN_POLICIES: &[Choice] = &[
    Choice::new(
        "stop",
        "End the run with an error that names the first bad parameter.",
    ),
    Choice::new(
        "skip",
        "Leave out the update, at most max_skipped_steps times.",
    ),
];

const METRICS: &[Choice] = &[
    Choice::new("loss", "The training objective."),
    Choice::for_tasks(
        "accuracy",
        &[CLASSIFICATION, MASKED_LM, SEQUENCE_CLASSIFICATION],
        "Share of right answers.",
    ),
    Choice::for_tasks(
        "perplexity",
        &[LANGUAGE_MODEL, SFT, MASKED_LM],
        "exp(loss).",
    ),
];

const MODES: &[Choice] = &[
    Choice::new("min", "Lower is better."),
    Choice::new("max", "Higher is better."),
];

const LANGUAGE: &[When] = &[When {
    key: "task",
    values: &[LANGUAGE_MODEL, SFT],
}];

pub(super) static SECTION: Section = Section {
    doc: "Length of the run, batches, clipping, stopping.",
    fields: &[
        Field::optional(
            "max_steps",
            Kind::Integer(1, i64::MAX),
            "1000",
            "Number of updates; or give epochs.",
        )
        .also_known_as(&["steps", "max_iters", "iterations", "num_steps"]),
        Field::optional(
            "epochs",
            Kind::Integer(1, i64::MAX),
            "10",
            "Passes over the training data; or give max_steps.",
        )
        .also_known_as(&["max_epochs", "num_epochs", "num_train_epochs", "epoch"]),
        Field::with_default_by(
            "batch_size",
            Kind::Integer(1, 10_000_000),
            Yaml::By {
                key: "task",
                cases: &[
                    (LANGUAGE_MODEL, "16"),
                    (SFT, "1"),
                    (SEQUENCE_CLASSIFICATION, "16"),
                    (CLASSIFICATION, "64"),
                    (REGRESSION, "64"),
                ],
                otherwise: Some("16"),
            },
            "Rows of one micro-batch.",
        )
        .also_known_as(&["micro_batch_size", "bs", "per_device_train_batch_size"])
        .reserved(&[Reserved {
            name: "auto",
            why: "is not supported by this version: give a number",
        }]),
        Field::with_default(
            "gradient_accumulation_steps",
            Kind::Integer(1, 1_000_000),
            "1",
            "Micro-batches per update; the loss is normalised over all of them.",
        )
        .also_known_as(&[
            "accumulation_steps",
            "grad_accumulation",
            "accumulate_grad_batches",
        ]),
        Field::optional(
            "max_grad_norm",
            Kind::Number(POSITIVE),
            "1.0",
            "Scale gradients down to this global norm.",
        )
        .also_known_as(&[
            "grad_clip",
            "gradient_clip",
            "gradient_clipping",
            "clip_grad_norm",
            "clip_norm",
            "gradient_clip_val",
        ]),
        Field::optional(
            "clip_value",
            Kind::Number(POSITIVE),
            "0.5",
            "Clamp each gradient element to ± this value.",
        )
        .also_known_as(&["clip_grad_value"]),
        Field::optional_section("early_stopping", &EARLY_STOPPING),
        Field::with_default(
            "nan_policy",
            Kind::Choice(NAN_POLICIES),
            "stop",
            "What to do when a loss or gradient is NaN or infinite.",
        ),
        Field::with_default(
            "max_skipped_steps",
            Kind::Integer(1, i64::MAX),
            "10",
            "Updates that may be skipped in the whole run.",
        )
        .when(&[When {
            key: "nan_policy",
            values: &["skip"],
        }]),
        Field::with_default(
            "log_every_steps",
            Kind::Integer(1, i64::MAX),
            "10",
            "Updates between lines of metrics.",
        )
        .also_known_as(&["log_interval", "logging_steps", "log_every"]),
        Field::with_default(
            "gradient_checkpointing",
            Kind::Boolean,
            "false",
            "Recompute each layer's activations in the backward pass instead of keeping them.",
        )
        .when(LANGUAGE),
        Field::optional(
            "neftune_noise_alpha",
            Kind::Number(POSITIVE),
            "5.0",
            "Noise on the embeddings while training (NEFTune).",
        )
        .when(LANGUAGE)
        .also_known_as(&["neftune", "neftune_alpha"]),
        Field::optional(
            "threads",
            Kind::Integer(1, 4_096),
            "2",
            "CPU threads; all cores when absent. The result does not depend on it.",
        )
        .also_known_as(&["num_threads", "workers", "num_workers"]),
        Field::with_default(
            "strict",
            Kind::Boolean,
            "false",
            "The same bits on every processor; slow on those without fused multiply-add (x86 before 2013).",
        )
        .also_known_as(&["deterministic"]),
    ],
    rules: &[Rule::ExactlyOne(&["max_steps", "epochs"])],
    reserved: &[],
};

static EARLY_STOPPING: Section = Section {
    doc: "Stop when validation no longer improves.",
    fields: &[
        Field::with_default(
            "metric",
            Kind::Choice(METRICS),
            "loss",
            "The validation metric watched; also decides which weights are best.",
        )
        .also_known_as(&["monitor"]),
        Field::with_default_by(
            "mode",
            Kind::Choice(MODES),
            Yaml::By {
                key: "metric",
                cases: &[("accuracy", "max")],
                otherwise: Some("min"),
            },
            "Which direction is better.",
        ),
        Field::with_default(
            "patience",
            Kind::Integer(1, i64::MAX),
            "5",
            "Evaluations without improvement before stopping.",
        ),
        Field::with_default(
            "min_delta",
            Kind::Number(NOT_NEGATIVE),
            "0.0",
            "Smallest change that counts as an improvement.",
        ),
    ],
    rules: &[],
    reserved: &[],
};

/// `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Updates; exactly one of this and `epochs` is set. Read through [`Train::length`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Passes over the training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Rows of one micro-batch.
    pub batch_size: usize,
    /// Micro-batches per update.
    pub gradient_accumulation_steps: usize,
    /// Global norm to clip to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Element-wise bound to clip to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f64>,
    /// Stop when validation no longer improves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// What to do on NaN or infinity.
    pub nan_policy: NanPolicy,
    /// Updates that may be skipped; `Some` exactly for [`NanPolicy::Skip`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_skipped_steps: Option<u64>,
    /// Updates between lines of metrics.
    pub log_every_steps: u64,
    /// Recompute activations in the backward pass; `Some` exactly for language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_checkpointing: Option<bool>,
    /// Noise on the embeddings while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neftune_noise_alpha: Option<f64>,
    /// CPU threads; `None` means all cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Whether the result may not depend on the processor's instruction set.
    pub strict: bool,
}

impl Train {
    /// How long to train.
    pub fn length(&self) -> Length {
        match (self.max_steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(1)),
        }
    }
}

/// Length of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// A number of updates.
    Steps(u64),
    /// Passes over the training data.
    Epochs(u64),
}

/// `train.nan_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NanPolicy {
    /// End the run with an error.
    Stop,
    /// Leave the update out.
    Skip,
}

/// `train.early_stopping`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// The validation metric watched.
    pub metric: Metric,
    /// Which direction is better.
    pub mode: Mode,
    /// Evaluations without improvement before stopping.
    pub patience: u64,
    /// Smallest change that counts.
    pub min_delta: f64,
}

/// A validation metric; [`Metric::name`] is its key in `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The training objective.
    Loss,
    /// Share of right answers.
    Accuracy,
    /// exp(loss).
    Perplexity,
}

impl Metric {
    /// The name as written in configs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::Accuracy => "accuracy",
            Metric::Perplexity => "perplexity",
        }
    }
}

/// Which direction of a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Lower is better.
    Min,
    /// Higher is better.
    Max,
}
