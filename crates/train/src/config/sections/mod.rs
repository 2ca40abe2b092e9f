//! The sections of a config, one file each: the description of the keys, then the struct the trainer reads.
//!
//! [`ROOT`] is the whole config. A new key is one line in a description and one field in the struct beside it; the
//! test `every_described_key_reaches_its_struct` fails when one of the two is forgotten.

mod data;
mod generate;
mod model;
mod optimizer;
mod rhythm;
mod schedule;
mod train;
mod tuning;

pub use data::{
    ColumnType, Columns, Data, Format, MeanStd, Missing, NoTarget, Normalize, NormalizeName,
    Overlong, Split, TokenizerKind, TrainOnEos,
};
pub use generate::Generate;
pub use model::{Activation, Cnn, Gpt, Mlp, Model, Pretrained};
pub use optimizer::{DecayParameters, Optimizer};
pub use rhythm::{Checkpoint, Evaluate, Every};
pub use schedule::Schedule;
pub use train::{EarlyStopping, Length, Metric, Mode, NanPolicy, Train};
pub use tuning::{
    Adapter, AdapterInit, AdapterTargets, AdapterType, AllLinear, Quantization, QuantizationType,
};

use super::describe::{Choice, Field, Kind, Reserved, Section, Yaml};
use serde::{Deserialize, Serialize};

/// Task names, as [`super::describe::When::values`] and [`Choice::tasks`] use them.
pub(crate) const LANGUAGE_MODEL: &str = "language-model";
pub(crate) const SFT: &str = "sft";
pub(crate) const MASKED_LM: &str = "masked-lm";
pub(crate) const SEQUENCE_CLASSIFICATION: &str = "sequence-classification";
pub(crate) const CLASSIFICATION: &str = "classification";
pub(crate) const REGRESSION: &str = "regression";

const NOT_YET: &str = "is not supported by this version";

/// The tasks that train language models.
const LANGUAGE: &[super::describe::When] = &[super::describe::When {
    key: "task",
    values: &[LANGUAGE_MODEL, SFT],
}];

/// The whole config.
pub static ROOT: Section = Section {
    doc: "An entrenar training run.",
    fields: &[
        Field::required(
            "task",
            Kind::Choice(TASKS),
            Yaml::Always(LANGUAGE_MODEL),
            "What is trained; decides which other keys apply.",
        )
        .reserved(&[
            Reserved { name: "table", why: NOT_YET },
            Reserved { name: "distill", why: NOT_YET },
            Reserved { name: "preference", why: NOT_YET },
        ]),
        Field::with_default(
            "seed",
            Kind::Integer(0, i64::MAX),
            "0",
            "Seed of initialisation, shuffling, splits and dropout: the same seed gives the same bits.",
        )
        .also_known_as(&["random_seed", "random_state"]),
        Field::with_default("device", Kind::Choice(DEVICES), "auto", "Where to compute.")
            .reserved(&[Reserved { name: "cuda", why: NOT_YET }, Reserved { name: "gpu", why: NOT_YET }]),
        Field::with_default("precision", Kind::Choice(PRECISIONS), "f32", "Number format of the computation.")
            .also_known_as(&["dtype"])
            .reserved(&[
                Reserved { name: "fp16", why: NOT_YET },
                Reserved { name: "f16", why: NOT_YET },
            ]),
        Field::section("model", &model::SECTION),
        Field::optional_section("adapter", &tuning::ADAPTER)
            .when(LANGUAGE)
            .also_known_as(&["lora", "peft"]),
        Field::optional_section("quantization", &tuning::QUANTIZATION)
            .when(LANGUAGE)
            .also_known_as(&["quantize", "bnb", "quantization_config"]),
        Field::section("data", &data::SECTION).also_known_as(&["dataset", "datasets"]),
        Field::section("train", &train::SECTION).also_known_as(&["training", "trainer"]),
        Field::section("optimizer", &optimizer::SECTION).also_known_as(&["optimiser", "optim"]),
        Field::section("schedule", &schedule::SECTION).also_known_as(&["lr_scheduler", "scheduler"]),
        Field::section("evaluate", &rhythm::EVALUATE).also_known_as(&["eval", "evaluation", "validation"]),
        Field::section("checkpoint", &rhythm::CHECKPOINT).also_known_as(&["checkpoints", "save"]),
        Field::optional_section("generate", &generate::SECTION)
            .when(LANGUAGE)
            .also_known_as(&["sample", "generation"])
            .in_starter(),
    ],
    rules: &[],
    reserved: &[
        Reserved { name: "export", why: NOT_YET },
    ],
};

/// The tasks of this version.
pub(crate) const TASKS: &[Choice] = &[
    Choice::new(
        LANGUAGE_MODEL,
        "Predict the next character, byte or token of text.",
    ),
    Choice::new(
        SFT,
        "Teach a published language model to answer: supervised fine-tuning.",
    ),
    Choice::new(
        MASKED_LM,
        "Teach a published encoder (BERT) to find hidden words of raw text.",
    ),
    Choice::new(
        SEQUENCE_CLASSIFICATION,
        "Tell which class a text belongs to, with a published encoder (BERT).",
    ),
    Choice::new(
        CLASSIFICATION,
        "Tell which class an image or a table row belongs to.",
    ),
    Choice::new(REGRESSION, "Predict a number from a table row."),
];

const DEVICES: &[Choice] = &[
    Choice::new("auto", "The best device there is: the CPU in this version."),
    Choice::new("cpu", "The CPU."),
];

const PRECISIONS: &[Choice] = &[
    Choice::new("f32", "32-bit floating point."),
    Choice::new(
        "bf16",
        "bfloat16 for products, their results and a frozen base; what is trained is kept in f32.",
    ),
];

/// A checked config with every default filled in. Made by [`super::load`] and [`super::parse`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is trained.
    pub task: Task,
    /// Seed of everything random.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// Number format of the computation.
    pub precision: Precision,
    /// Architecture and sizes.
    pub model: Model,
    /// Low-rank adapters, trained in place of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// How the frozen weights under an adapter are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Where the examples come from.
    pub data: Data,
    /// Length of the run, batches, clipping, stopping.
    pub train: Train,
    /// The update rule.
    pub optimizer: Optimizer,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// How often to evaluate.
    pub evaluate: Evaluate,
    /// How often to save.
    pub checkpoint: Checkpoint,
    /// Sample to print during and after a language-model run; `None` prints none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<Generate>,
}

/// `task`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Predict the next character, byte or token.
    LanguageModel,
    /// Supervised fine-tuning.
    Sft,
    /// Find hidden words.
    MaskedLm,
    /// Predict the class of a text.
    SequenceClassification,
    /// Predict a class.
    Classification,
    /// Predict a number.
    Regression,
}

/// `device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The best device there is.
    Auto,
    /// The CPU.
    Cpu,
}

/// `precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// bfloat16 for what is computed with; what is trained is kept in f32.
    Bf16,
}
