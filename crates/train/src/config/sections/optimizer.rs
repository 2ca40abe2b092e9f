//! `optimizer`: the update rule. Defaults are PyTorch's.

use super::super::describe::{
    BELOW_ONE, Choice, Field, Kind, NOT_NEGATIVE, POSITIVE, Section, When, Yaml,
};
use serde::{Deserialize, Serialize};

const SGD: &[When] = &[When {
    key: "name",
    values: &["sgd"],
}];
const ADAM: &[When] = &[When {
    key: "name",
    values: &["adam", "adamw", "adamw8bit"],
}];

const NAMES: &[Choice] = &[
    Choice::new("adamw", "Adam with decoupled weight decay."),
    Choice::new("adamw8bit", "AdamW whose moments are kept in 8 bits."),
    Choice::new("adam", "Adam; weight decay is added to the gradient."),
    Choice::new(
        "sgd",
        "Stochastic gradient descent, with momentum if wanted.",
    ),
];

const DECAY: &[Choice] = &[
    Choice::new(
        "matrices",
        "Weights of two or more dimensions; not biases and norms.",
    ),
    Choice::new("all", "Every parameter."),
];

pub(super) static SECTION: Section = Section {
    doc: "The update rule.",
    fields: &[
        Field::with_default("name", Kind::Choice(NAMES), "adamw", "The update rule.")
            .also_known_as(&["type", "optimizer"]),
        Field::with_default(
            "learning_rate",
            Kind::Number(POSITIVE),
            "0.001",
            "Peak learning rate.",
        )
        .also_known_as(&["lr"]),
        Field::with_default_by(
            "weight_decay",
            Kind::Number(NOT_NEGATIVE),
            Yaml::By {
                key: "name",
                cases: &[("adamw", "0.01"), ("adamw8bit", "0.01")],
                otherwise: Some("0.0"),
            },
            "Strength of weight decay.",
        )
        .also_known_as(&["wd", "l2"]),
        Field::with_default(
            "decay_parameters",
            Kind::Choice(DECAY),
            "matrices",
            "Which parameters decay.",
        ),
        Field::with_default(
            "betas",
            Kind::List {
                item: &Kind::Number(BELOW_ONE),
                fewest: 2,
                most: 2,
            },
            "[0.9, 0.999]",
            "Moving averages of the gradient and of its square.",
        )
        .when(ADAM)
        .also_known_as(&["beta1", "beta2"]),
        Field::with_default(
            "eps",
            Kind::Number(POSITIVE),
            "1e-8",
            "Added to the denominator.",
        )
        .when(ADAM)
        .also_known_as(&["epsilon"]),
        Field::with_default(
            "momentum",
            Kind::Number(BELOW_ONE),
            "0.0",
            "Share of the last update that is kept.",
        )
        .when(SGD),
        Field::with_default(
            "nesterov",
            Kind::Boolean,
            "false",
            "Nesterov's momentum; needs momentum above 0.",
        )
        .when(SGD),
    ],
    rules: &[],
    reserved: &[],
};

/// `optimizer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW {
        /// Peak learning rate.
        learning_rate: f64,
        /// Strength of weight decay.
        weight_decay: f64,
        /// Which parameters decay.
        decay_parameters: DecayParameters,
        /// Moving averages of gradient and square.
        betas: [f64; 2],
        /// Added to the denominator.
        eps: f64,
    },
    /// AdamW whose moments are kept in 8 bits.
    #[serde(rename = "adamw8bit")]
    AdamW8bit {
        /// Peak learning rate.
        learning_rate: f64,
        /// Strength of weight decay.
        weight_decay: f64,
        /// Which parameters decay.
        decay_parameters: DecayParameters,
        /// Moving averages of gradient and square.
        betas: [f64; 2],
        /// Added to the denominator.
        eps: f64,
    },
    /// Adam with weight decay added to the gradient.
    Adam {
        /// Peak learning rate.
        learning_rate: f64,
        /// Strength of weight decay.
        weight_decay: f64,
        /// Which parameters decay.
        decay_parameters: DecayParameters,
        /// Moving averages of gradient and square.
        betas: [f64; 2],
        /// Added to the denominator.
        eps: f64,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Peak learning rate.
        learning_rate: f64,
        /// Strength of weight decay.
        weight_decay: f64,
        /// Which parameters decay.
        decay_parameters: DecayParameters,
        /// Share of the last update that is kept.
        momentum: f64,
        /// Nesterov's momentum.
        nesterov: bool,
    },
}

impl Optimizer {
    /// The peak learning rate.
    pub fn learning_rate(&self) -> f64 {
        match *self {
            Optimizer::AdamW { learning_rate, .. }
            | Optimizer::AdamW8bit { learning_rate, .. }
            | Optimizer::Adam { learning_rate, .. }
            | Optimizer::Sgd { learning_rate, .. } => learning_rate,
        }
    }

    /// Strength of weight decay, and which parameters decay.
    pub fn weight_decay(&self) -> (f64, DecayParameters) {
        match *self {
            Optimizer::AdamW {
                weight_decay,
                decay_parameters,
                ..
            }
            | Optimizer::AdamW8bit {
                weight_decay,
                decay_parameters,
                ..
            }
            | Optimizer::Adam {
                weight_decay,
                decay_parameters,
                ..
            }
            | Optimizer::Sgd {
                weight_decay,
                decay_parameters,
                ..
            } => (weight_decay, decay_parameters),
        }
    }
}

/// `optimizer.decay_parameters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecayParameters {
    /// Weights of two or more dimensions.
    Matrices,
    /// Every parameter.
    All,
}
