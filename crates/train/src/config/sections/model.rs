//! `model`: architecture and sizes.

use super::super::describe::{BELOW_ONE, Choice, Field, Kind, Section, When, Yaml};
use super::{CLASSIFICATION, LANGUAGE_MODEL, MASKED_LM, REGRESSION, SEQUENCE_CLASSIFICATION, SFT};
use serde::{Deserialize, Serialize};

const GPT: &[When] = &[When {
    key: "architecture",
    values: &["gpt"],
}];
const MLP: &[When] = &[When {
    key: "architecture",
    values: &["mlp"],
}];
const CNN: &[When] = &[When {
    key: "architecture",
    values: &["cnn"],
}];
const PRETRAINED: &[When] = &[When {
    key: "architecture",
    values: &["pretrained"],
}];
const OUR_OWN: &[When] = &[When {
    key: "architecture",
    values: &["gpt", "mlp", "cnn"],
}];
const MLP_OR_CNN: &[When] = &[When {
    key: "architecture",
    values: &["mlp", "cnn"],
}];

const ARCHITECTURES: &[Choice] = &[
    Choice::for_tasks("gpt", &[LANGUAGE_MODEL], "A decoder-only transformer."),
    Choice::for_tasks(
        "mlp",
        &[CLASSIFICATION, REGRESSION],
        "Fully connected layers.",
    ),
    Choice::for_tasks(
        "cnn",
        &[CLASSIFICATION],
        "Convolution blocks, each halving the image, then a hidden layer.",
    ),
    Choice::for_tasks(
        "pretrained",
        &[LANGUAGE_MODEL, SFT, MASKED_LM, SEQUENCE_CLASSIFICATION],
        "A published model: what `base` says.",
    ),
];

const ACTIVATIONS: &[Choice] = &[
    Choice::new("relu", "max(0, x)."),
    Choice::new("gelu", "x Φ(x)."),
    Choice::new("silu", "x sigmoid(x)."),
    Choice::new("tanh", "Hyperbolic tangent."),
];

pub(super) static SECTION: Section = Section {
    doc: "Architecture and sizes.",
    fields: &[
        Field::with_default_by(
            "architecture",
            Kind::Choice(ARCHITECTURES),
            Yaml::By {
                key: "task",
                cases: &[
                    (SFT, "pretrained"),
                    (MASKED_LM, "pretrained"),
                    (SEQUENCE_CLASSIFICATION, "pretrained"),
                ],
                otherwise: None,
            },
            "The kind of network; `pretrained` may be left out where `base` is given.",
        )
        .also_known_as(&["name", "type", "arch"]),
        Field::required(
            "base",
            Kind::ModelPath,
            Yaml::Always("path/to/model"),
            "The model directory to start from (config.json, weights and tokenizer), or its id on the Hugging Face hub.",
        )
        .when(PRETRAINED)
        .also_known_as(&["base_model", "model_name_or_path", "pretrained", "path"]),
        Field::with_default(
            "layers",
            Kind::Integer(1, 1_000),
            "4",
            "Transformer blocks.",
        )
        .when(GPT)
        .also_known_as(&["n_layer", "num_layers", "num_hidden_layers", "depth"]),
        Field::with_default(
            "heads",
            Kind::Integer(1, 1_000),
            "4",
            "Attention heads of each block.",
        )
        .when(GPT)
        .also_known_as(&["n_head", "num_heads", "num_attention_heads"]),
        Field::with_default(
            "width",
            Kind::Integer(1, 100_000),
            "128",
            "Size of the residual stream; a multiple of heads.",
        )
        .when(GPT)
        .also_known_as(&["n_embd", "hidden_size", "d_model", "dim", "embedding_size"]),
        Field::with_default(
            "context",
            Kind::Integer(1, 1_000_000),
            "64",
            "Longest text, in tokens, that the model sees at once.",
        )
        .when(GPT)
        .also_known_as(&[
            "block_size",
            "n_positions",
            "sequence_length",
            "seq_len",
            "context_length",
            "max_seq_len",
        ]),
        Field::with_default(
            "bias",
            Kind::Boolean,
            "false",
            "Bias vectors in linear and norm layers.",
        )
        .when(GPT),
        Field::with_default(
            "tie_embeddings",
            Kind::Boolean,
            "true",
            "The output layer reuses the token embedding.",
        )
        .when(GPT)
        .also_known_as(&["tie_word_embeddings", "weight_tying"]),
        Field::with_default(
            "channels",
            Kind::List {
                item: &Kind::Integer(1, 65_536),
                fewest: 1,
                most: 16,
            },
            "[16, 32]",
            "Output channels of each convolution block.",
        )
        .when(CNN)
        .also_known_as(&["filters"]),
        Field::with_default(
            "kernel",
            Kind::Integer(1, 31),
            "3",
            "Side of the convolution kernels; odd.",
        )
        .when(CNN)
        .also_known_as(&["kernel_size"]),
        Field::with_default(
            "batch_norm",
            Kind::Boolean,
            "true",
            "Batch normalisation after each convolution.",
        )
        .when(CNN),
        Field::with_default_by(
            "hidden",
            Kind::OneOrMore(&Kind::Integer(1, 1_000_000)),
            Yaml::By {
                key: "architecture",
                cases: &[("mlp", "[128]"), ("cnn", "[64]")],
                otherwise: None,
            },
            "Sizes of the fully connected hidden layers, one or a list.",
        )
        .when(MLP_OR_CNN)
        .also_known_as(&["sizes", "hidden_layers", "hidden_sizes", "units"]),
        Field::with_default(
            "activation",
            Kind::Choice(ACTIVATIONS),
            "relu",
            "Function between fully connected layers.",
        )
        .when(MLP),
        Field::with_default(
            "dropout",
            Kind::Number(BELOW_ONE),
            "0.0",
            "Share of activations dropped while training.",
        )
        .when(OUR_OWN),
    ],
    rules: &[],
    reserved: &[],
};

/// `model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "kebab-case")]
pub enum Model {
    /// A decoder-only transformer.
    Gpt(Gpt),
    /// Fully connected layers.
    Mlp(Mlp),
    /// Convolution blocks, then fully connected layers.
    Cnn(Cnn),
    /// A published model.
    Pretrained(Pretrained),
}

/// `model` with `architecture: gpt`. The vocabulary size comes from the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpt {
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Size of the residual stream.
    pub width: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Bias vectors in linear and norm layers.
    pub bias: bool,
    /// Output layer shares the token embedding.
    pub tie_embeddings: bool,
    /// Share of activations dropped while training.
    pub dropout: f64,
}

/// `model` with `architecture: mlp`. Input and output sizes come from the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mlp {
    /// Sizes of the hidden layers, input to output.
    pub hidden: Vec<usize>,
    /// Function after each hidden layer.
    pub activation: Activation,
    /// Share of activations dropped after each hidden layer while training.
    pub dropout: f64,
}

/// `model` with `architecture: cnn`. Image size and classes come from the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cnn {
    /// Output channels of each block (convolution, norm, ReLU, 2×2 max pooling).
    pub channels: Vec<usize>,
    /// Side of the kernels; odd, padding keeps the image size.
    pub kernel: usize,
    /// Batch normalisation after each convolution.
    pub batch_norm: bool,
    /// Sizes of the fully connected hidden layers.
    pub hidden: Vec<usize>,
    /// Share of activations dropped before the output layer while training.
    pub dropout: f64,
}

/// `model` with `base`. Sizes and vocabulary come from its directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// An absolute path, or an id on the hub.
    pub base: String,
}

/// `model.activation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(0, x).
    Relu,
    /// x Φ(x), exact.
    Gelu,
    /// x sigmoid(x).
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}
