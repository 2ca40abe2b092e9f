//! `schedule`: learning rate over time. Every schedule may begin with a linear warm-up.

use super::super::describe::{
    BELOW_ONE, Choice, Field, Kind, NOT_NEGATIVE, Rule, SHARE, Section, When, Yaml,
};
use serde::{Deserialize, Serialize};

const STEP: &[When] = &[When {
    key: "name",
    values: &["step"],
}];
const DECAYING: &[When] = &[When {
    key: "name",
    values: &["cosine", "linear"],
}];

const NAMES: &[Choice] = &[
    Choice::new("constant", "The same learning rate."),
    Choice::new(
        "cosine",
        "Half a cosine down to min_learning_rate at the end of the run.",
    ),
    Choice::new(
        "linear",
        "A straight line down to min_learning_rate at the end of the run.",
    ),
    Choice::new("step", "Times gamma after every step_size updates."),
];

pub(super) static SECTION: Section = Section {
    doc: "Learning rate over time.",
    fields: &[
        Field::with_default(
            "name",
            Kind::Choice(NAMES),
            "constant",
            "The shape of the curve.",
        )
        .also_known_as(&["type"]),
        Field::optional(
            "warmup_steps",
            Kind::Integer(0, i64::MAX),
            "100",
            "Updates in which the learning rate rises linearly from 0; counted within the run.",
        )
        .also_known_as(&["warmup", "warmup_iters"]),
        Field::optional(
            "warmup_ratio",
            Kind::Number(BELOW_ONE),
            "0.05",
            "The same as a share of the run.",
        ),
        Field::with_default(
            "min_learning_rate",
            Kind::Number(NOT_NEGATIVE),
            "0.0",
            "Where the decay ends.",
        )
        .when(DECAYING)
        .also_known_as(&["min_lr", "eta_min"]),
        Field::required(
            "step_size",
            Kind::Integer(1, i64::MAX),
            Yaml::Always("1000"),
            "Updates between two reductions.",
        )
        .when(STEP),
        Field::with_default(
            "gamma",
            Kind::Number(SHARE),
            "0.1",
            "Factor of each reduction.",
        )
        .when(STEP),
    ],
    rules: &[Rule::AtMostOne(&["warmup_steps", "warmup_ratio"])],
    reserved: &[],
};

/// `schedule`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same learning rate.
    Constant {
        /// Warm-up in updates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
    },
    /// Half a cosine.
    Cosine {
        /// Warm-up in updates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
        /// Where the decay ends.
        min_learning_rate: f64,
    },
    /// A straight line.
    Linear {
        /// Warm-up in updates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
        /// Where the decay ends.
        min_learning_rate: f64,
    },
    /// Times `gamma` every `step_size` updates.
    Step {
        /// Warm-up in updates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_steps: Option<u64>,
        /// Warm-up as a share of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup_ratio: Option<f64>,
        /// Updates between two reductions.
        step_size: u64,
        /// Factor of each reduction.
        gamma: f64,
    },
}

impl Schedule {
    /// Updates of warm-up in a run of `total_steps` updates; a ratio is rounded up.
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        let (Schedule::Constant {
            warmup_steps,
            warmup_ratio,
        }
        | Schedule::Cosine {
            warmup_steps,
            warmup_ratio,
            ..
        }
        | Schedule::Linear {
            warmup_steps,
            warmup_ratio,
            ..
        }
        | Schedule::Step {
            warmup_steps,
            warmup_ratio,
            ..
        }) = self;
        match (warmup_steps, warmup_ratio) {
            (Some(steps), _) => *steps,
            (None, Some(ratio)) => (ratio * total_steps as f64).ceil() as u64,
            (None, None) => 0,
        }
    }
}
