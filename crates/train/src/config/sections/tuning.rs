//! `adapter` and `quantization`: fine-tuning with few trained numbers, over weights of few bits.

use super::super::describe::{ANY, BELOW_ONE, Choice, Field, Kind, POSITIVE, Section, When, Yaml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const TYPES: &[Choice] = &[Choice::new(
    "lora",
    "A product of two thin matrices beside each weight.",
)];

const INITS: &[Choice] = &[
    Choice::new("default", "A uniform, B zero: the model starts as it was."),
    Choice::new("gaussian", "A normal, B zero."),
    Choice::new(
        "pissa",
        "The weight's principal part; the rest of it is frozen.",
    ),
];

const ALL: &[Choice] = &[Choice::new(
    "all-linear",
    "Every linear layer but the output layer.",
)];

static PATTERN: Section = Section {
    doc: "Layers and embeddings by an expression.",
    fields: &[Field::required(
        "pattern",
        Kind::Text,
        Yaml::Always("'.*\\.(q_proj|v_proj)'"),
        "A regular expression for the whole name of a layer, as in PEFT.",
    )],
    rules: &[],
    reserved: &[],
};

pub(super) static ADAPTER: Section = Section {
    doc: "Low-rank adapters (LoRA), trained in place of the weights of model.base.",
    fields: &[
        Field::with_default("type", Kind::Choice(TYPES), "lora", "The kind of adapter.")
            .also_known_as(&["name", "peft_type"]),
        Field::with_default(
            "rank",
            Kind::Integer(1, 65_536),
            "16",
            "Width of the thin matrices.",
        )
        .also_known_as(&["r", "lora_r", "lora_rank"]),
        Field::with_default(
            "alpha",
            Kind::Number(ANY),
            "32",
            "The product is multiplied by alpha / rank.",
        )
        .also_known_as(&["lora_alpha"]),
        Field::with_default(
            "dropout",
            Kind::Number(BELOW_ONE),
            "0.0",
            "Share of the input that the adapter does not see while training.",
        )
        .also_known_as(&["lora_dropout"]),
        Field::with_default(
            "targets",
            Kind::Either(&[
                Kind::Choice(ALL),
                Kind::List {
                    item: &Kind::Text,
                    fewest: 1,
                    most: 1_000,
                },
                Kind::Section(&PATTERN),
            ]),
            "all-linear",
            "Layers that get adapters: all-linear, a list such as [q_proj, embed_tokens], or {pattern: …}.",
        )
        .also_known_as(&["target_modules", "lora_target_modules", "lora_target"]),
        Field::with_default(
            "rslora",
            Kind::Boolean,
            "false",
            "Multiply by alpha / sqrt(rank) instead.",
        )
        .also_known_as(&["use_rslora", "peft_use_rslora"]),
        Field::with_default(
            "dora",
            Kind::Boolean,
            "false",
            "Also learn the length of each row of the weight.",
        )
        .also_known_as(&["use_dora", "peft_use_dora"]),
        Field::with_default(
            "init",
            Kind::Choice(INITS),
            "default",
            "How the thin matrices begin.",
        )
        .also_known_as(&["init_lora_weights", "peft_init_lora_weights"]),
        Field::optional(
            "lr_ratio",
            Kind::Number(POSITIVE),
            "16.0",
            "Learning rate of B over that of A (LoRA+).",
        )
        .also_known_as(&["loraplus_lr_ratio", "lora_plus_ratio"]),
        Field::with_default(
            "modules_to_save",
            Kind::List {
                item: &Kind::Text,
                fewest: 0,
                most: 1_000,
            },
            "[]",
            "Modules that are trained in full beside the adapters, such as [lm_head].",
        )
        .also_known_as(&["lora_modules_to_save", "additional_target"]),
        Field::with_default(
            "rank_pattern",
            Kind::Table(&Kind::Integer(1, 65_536)),
            "{}",
            "Ranks of layers whose name ends with a key.",
        ),
        Field::with_default(
            "alpha_pattern",
            Kind::Table(&Kind::Number(ANY)),
            "{}",
            "Alphas of layers whose name ends with a key.",
        ),
    ],
    rules: &[],
    reserved: &[],
};

const QUANTIZATIONS: &[Choice] = &[
    Choice::new(
        "nf4",
        "4 bits at the quantiles of a normal distribution (QLoRA).",
    ),
    Choice::new("fp4", "4-bit floating point."),
    Choice::new("int4", "4-bit whole numbers, -7 to 7."),
];

const BNB: &[When] = &[When {
    key: "type",
    values: &["nf4", "fp4"],
}];

pub(super) static QUANTIZATION: Section = Section {
    doc: "Store the frozen weights under an adapter in few bits (QLoRA).",
    fields: &[
        Field::with_default("type", Kind::Choice(QUANTIZATIONS), "nf4", "The code.")
            .also_known_as(&["quant_type", "bnb_4bit_quant_type"]),
        Field::with_default(
            "double",
            Kind::Boolean,
            "true",
            "Quantize the scales of the blocks too.",
        )
        .when(BNB)
        .also_known_as(&["double_quant", "bnb_4bit_use_double_quant"]),
    ],
    rules: &[],
    reserved: &[],
};

/// `adapter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// The kind of adapter.
    pub r#type: AdapterType,
    /// Width of the thin matrices.
    pub rank: usize,
    /// The product is multiplied by this over the rank.
    pub alpha: f64,
    /// Share of the input that the adapter does not see while training.
    pub dropout: f64,
    /// Layers that get adapters.
    pub targets: AdapterTargets,
    /// Multiply by alpha / √rank instead.
    pub rslora: bool,
    /// Also learn the length of each row.
    pub dora: bool,
    /// How the thin matrices begin.
    pub init: AdapterInit,
    /// Learning rate of B over that of A.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_ratio: Option<f64>,
    /// Modules that are trained in full.
    pub modules_to_save: Vec<String>,
    /// Ranks of single layers.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single layers.
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// `adapter.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterType {
    /// A product of two thin matrices.
    Lora,
}

/// `adapter.targets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AdapterTargets {
    /// Ends of the layers' names; `all-linear` among them means what it says.
    Names(Vec<String>),
    /// By an expression.
    Pattern {
        /// For the whole name of a layer.
        pattern: String,
    },
    /// Every linear layer but the output layer.
    All(AllLinear),
}

/// The word for every linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllLinear {
    /// Every one but the output layer.
    AllLinear,
}

/// `adapter.init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterInit {
    /// A uniform, B zero.
    Default,
    /// A normal, B zero.
    Gaussian,
    /// The weight's principal part.
    Pissa,
}

/// `quantization`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// The code.
    pub r#type: QuantizationType,
    /// Quantize the scales too; `Some` exactly for nf4 and fp4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub double: Option<bool>,
}

/// `quantization.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizationType {
    /// The quantiles of a normal distribution.
    Nf4,
    /// 4-bit floating point.
    Fp4,
    /// Whole numbers.
    Int4,
}
