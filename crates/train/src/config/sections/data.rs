//! `data`: where examples come from and how they are divided.

use super::super::describe::{ANY, Choice, FRACTION, Field, Kind, POSITIVE, Section, When, Yaml};
use super::{CLASSIFICATION, LANGUAGE_MODEL, MASKED_LM, REGRESSION, SEQUENCE_CLASSIFICATION, SFT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const TEXT: &[When] = &[When {
    key: "task",
    values: &[LANGUAGE_MODEL],
}];
const CONVERSATIONS: &[When] = &[When {
    key: "task",
    values: &[SFT],
}];
const TOKENS: &[When] = &[When {
    key: "task",
    values: &[LANGUAGE_MODEL, SFT, MASKED_LM, SEQUENCE_CLASSIFICATION],
}];
const ROWS: &[When] = &[When {
    key: "task",
    values: &[SFT, MASKED_LM, SEQUENCE_CLASSIFICATION],
}];
const HIDDEN: &[When] = &[When {
    key: "task",
    values: &[MASKED_LM],
}];
const EXAMPLES: &[When] = &[When {
    key: "task",
    values: &[CLASSIFICATION, REGRESSION],
}];
const CSV: &[When] = &[
    When {
        key: "task",
        values: &[CLASSIFICATION, REGRESSION],
    },
    When {
        key: "format",
        values: &["csv"],
    },
];

const TESTED: &[When] = &[
    When {
        key: "task",
        values: &[
            LANGUAGE_MODEL,
            MASKED_LM,
            SEQUENCE_CLASSIFICATION,
            CLASSIFICATION,
            REGRESSION,
        ],
    },
    When {
        key: "format",
        values: &["text", "csv", "auto"],
    },
];

const FORMATS: &[Choice] = &[
    Choice::for_tasks(
        "auto",
        &[SFT, SEQUENCE_CLASSIFICATION],
        "What the names of the columns say (sft), or the ending of the file: .csv, .tsv or .jsonl.",
    ),
    Choice::for_tasks(
        "messages",
        &[SFT],
        "Rows with `messages`: a list of role and content (OpenAI, ChatML).",
    ),
    Choice::for_tasks(
        "prompt-completion",
        &[SFT],
        "Rows with `prompt` and `completion`.",
    ),
    Choice::for_tasks(
        "alpaca",
        &[SFT],
        "Rows with `instruction`, perhaps `input`, and `output`.",
    ),
    Choice::for_tasks(
        "sharegpt",
        &[SFT],
        "Rows with `conversations`: a list of from and value.",
    ),
    Choice::for_tasks(
        "text",
        &[LANGUAGE_MODEL, SFT, MASKED_LM],
        "UTF-8 text files; for a published model also rows with `text`.",
    ),
    Choice::for_tasks(
        "csv",
        &[CLASSIFICATION, REGRESSION],
        "Tables with a header line.",
    ),
    Choice::for_tasks(
        "idx",
        &[CLASSIFICATION],
        "A directory in MNIST's format, gzipped or not: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-… for the test.",
    ),
];

const TOKENIZERS: &[Choice] = &[
    Choice::new("char", "One token per character that occurs in the files."),
    Choice::new("byte", "One token per byte of UTF-8: 256 tokens, any text."),
    Choice::new(
        "model",
        "The published model's own; the only choice with model.base.",
    ),
];

const OVERLONG: &[Choice] = &[
    Choice::new("drop", "Leave the row out; how many is told."),
    Choice::new("truncate", "Cut its end off; how many is told."),
    Choice::new("error", "A mistake, reported with its row."),
];

const NO_TARGET: &[Choice] = &[
    Choice::new("error", "A mistake, reported with its row."),
    Choice::new("drop", "Leave the row out; how many is told."),
];

const ON_EOS: &[Choice] = &[
    Choice::new("turn", "What ends each turn that is trained on."),
    Choice::new("last", "Only what ends the last turn."),
    Choice::new("all", "What ends any turn, the user's too."),
    Choice::new("none", "None."),
];

const NORMALIZATIONS: &[Choice] = &[
    Choice::new("none", "Values as they are (pixels scaled to 0…1)."),
    Choice::new(
        "standard",
        "Mean 0 and deviation 1, measured on the training split: per feature, or over all pixels.",
    ),
];

const COLUMN_TYPES: &[Choice] = &[
    Choice::new("number", "A number."),
    Choice::new(
        "category",
        "One of a set of names, collected from the training files.",
    ),
    Choice::new("boolean", "true or false, yes or no, 1 or 0."),
];

const MISSING: &[Choice] = &[
    Choice::new("error", "A mistake, reported with its row."),
    Choice::new("mean", "The mean of the column over the training split."),
];

const SPLIT: Kind = Kind::Either(&[Kind::Number(FRACTION), Kind::Paths]);

pub(super) static SECTION: Section = Section {
    doc: "Where examples come from and how they are divided.",
    fields: &[
        Field::required(
            "path",
            Kind::Paths,
            Yaml::By { key: "task", cases: &[(LANGUAGE_MODEL, "input.txt"), (SFT, "train.jsonl"), (MASKED_LM, "input.txt"), (SEQUENCE_CLASSIFICATION, "train.csv")], otherwise: Some("data.csv") },
            "File, directory (idx) or glob such as src/**/*.rs, or a list of them; relative to this file.",
        )
        .also_known_as(&["paths", "file", "files", "train", "data_path"]),
        Field::with_default_by(
            "format",
            Kind::Choice(FORMATS),
            Yaml::By {
                key: "task",
                cases: &[(LANGUAGE_MODEL, "text"), (SFT, "auto"), (MASKED_LM, "text"), (SEQUENCE_CLASSIFICATION, "auto"), (REGRESSION, "csv")],
                otherwise: None,
            },
            "How to read the files.",
        ),
        Field::with_default("tokenizer", Kind::Choice(TOKENIZERS), "char", "How text becomes tokens; `model` where model.base is given.").when(TEXT),
        Field::optional(
            "sequence_length",
            Kind::Integer(2, 10_000_000),
            "2048",
            "Longest row in tokens, for model.base; its context, at most 2048, when absent.",
        )
        .when(TOKENS)
        .also_known_as(&["sequence_len", "max_length", "max_seq_length", "cutoff_len", "context"]),
        Field::with_default(
            "mask_probability",
            Kind::Number(FRACTION),
            "0.15",
            "Share of the tokens that are hidden and to be found; 80 % of them behind the mask token, 10 % behind any other.",
        )
        .when(HIDDEN)
        .also_known_as(&["mlm_probability"]),
        Field::with_default(
            "packing",
            Kind::Boolean,
            "false",
            "Several short rows in one of sequence_length, none of which sees another.",
        )
        .when(CONVERSATIONS)
        .also_known_as(&["sample_packing", "pack"]),
        Field::with_default(
            "train_on_inputs",
            Kind::Boolean,
            "false",
            "Learn what the user says too, not only the answers.",
        )
        .when(CONVERSATIONS)
        .also_known_as(&["train_on_prompt", "completion_only_loss", "assistant_only_loss"]),
        Field::with_default("train_on_eos", Kind::Choice(ON_EOS), "turn", "Which ends of turns are learned.")
            .when(CONVERSATIONS),
        Field::with_default(
            "roles_to_train",
            Kind::List { item: &Kind::Text, fewest: 1, most: 16 },
            "[assistant]",
            "Whose messages are learned.",
        )
        .when(CONVERSATIONS),
        Field::optional(
            "chat_template",
            Kind::Text,
            "chatml",
            "A template in place of the model's own: chatml, llama3, or Jinja.",
        )
        .when(CONVERSATIONS),
        Field::optional(
            "eos_token",
            Kind::Text,
            "</s>",
            "The token that ends a completion or a document, where it is not the tokenizer's own.",
        )
        .when(CONVERSATIONS),
        Field::with_default("overlong", Kind::Choice(OVERLONG), "drop", "What is done with rows longer than sequence_length.")
            .when(CONVERSATIONS)
            .also_known_as(&["excess_length_strategy", "truncation"]),
        Field::with_default(
            "no_target",
            Kind::Choice(NO_TARGET),
            "error",
            "What is done with rows in which nothing is learned, such as those with an empty answer.",
        )
        .when(CONVERSATIONS),
        Field::with_default(
            "fields",
            Kind::Table(&Kind::Text),
            "{}",
            "Names of columns where they are others: {prompt: question, completion: answer}, {text: review, label: stars}.",
        )
        .when(ROWS)
        .also_known_as(&["field", "column_mapping", "message_property_mappings"]),
        Field::required(
            "columns",
            Kind::Section(&COLUMNS),
            Yaml::Always("{}"),
            "The columns of the table.",
        )
        .when(CSV),
        Field::optional(
            "validation",
            SPLIT,
            "0.1",
            "Share of the data held out for validation (the end of a text, random rows otherwise), or paths of its own.",
        )
        .also_known_as(&["val", "validation_split", "val_split", "valid"])
        .in_starter(),
        Field::optional(
            "test",
            SPLIT,
            "0.1",
            "Share held out for one test after training, or paths of its own (idx brings its own: the t10k files).",
        )
        .when(TESTED)
        .also_known_as(&["test_split"]),
        Field::with_default(
            "normalize",
            Kind::Either(&[Kind::Choice(NORMALIZATIONS), Kind::Section(&MEAN_STD)]),
            "none",
            "Scaling of numeric inputs: a name, or mean and std of your own.",
        )
        .when(EXAMPLES)
        .also_known_as(&["normalise", "normalization", "standardize"]),
        Field::with_default("shuffle", Kind::Boolean, "true", "A new seeded order of the training examples each epoch."),
    ],
    rules: &[],
    reserved: &[],
};

static COLUMNS: Section = Section {
    doc: "The columns of the table.",
    fields: &[
        Field::optional(
            "features",
            Kind::List { item: &Kind::Text, fewest: 1, most: usize::MAX },
            "[a, b]",
            "Input columns; every column but the target when absent.",
        )
        .also_known_as(&["inputs", "input", "x"]),
        Field::required("target", Kind::Text, Yaml::Always("label"), "The column to predict.").also_known_as(&["label", "labels", "y", "output"]),
        Field::with_default(
            "types",
            Kind::Table(&Kind::Choice(COLUMN_TYPES)),
            "{}",
            "Type of each column; others are number, and the target of a classification is category.",
        )
        .also_known_as(&["dtypes", "type"]),
        Field::with_default(
            "missing",
            Kind::Choice(MISSING),
            "error",
            "What an empty cell (or NA, NaN, null) of a number column means.",
        )
        .also_known_as(&["na", "nan", "impute", "fill_missing"]),
    ],
    rules: &[],
    reserved: &[],
};

static MEAN_STD: Section = Section {
    doc: "(x − mean) / std, for each feature or with one number for all.",
    fields: &[
        Field::required(
            "mean",
            Kind::OneOrMore(&Kind::Number(ANY)),
            Yaml::Always("0.1307"),
            "Subtracted; one number or one per feature.",
        ),
        Field::required(
            "std",
            Kind::OneOrMore(&Kind::Number(POSITIVE)),
            Yaml::Always("0.3081"),
            "Divided by; one number or one per feature.",
        ),
    ],
    rules: &[],
    reserved: &[],
};

/// `data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Files, directories or globs; absolute. A name that exists is meant literally even if it looks like a glob.
    pub path: Vec<String>,
    /// How to read them.
    pub format: Format,
    /// How text becomes tokens; `Some` exactly for language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerKind>,
    /// Longest row in tokens, for a published model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<usize>,
    /// Share of the tokens that are hidden; `Some` exactly for [`Task::MaskedLm`](super::Task::MaskedLm).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_probability: Option<f64>,
    /// Several rows in one; `Some` exactly for [`Task::Sft`](super::Task::Sft), as the next five.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<bool>,
    /// Learn prompts too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_on_inputs: Option<bool>,
    /// Which ends of turns are learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_on_eos: Option<TrainOnEos>,
    /// Whose messages are learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles_to_train: Option<Vec<String>>,
    /// What is done with rows that are too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
    /// What is done with rows in which nothing is learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_target: Option<NoTarget>,
    /// Names of columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<String, String>>,
    /// The token that ends a completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// A template in place of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The columns of a table; `Some` exactly for [`Format::Csv`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Held out for validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Split>,
    /// Held out for one test after training; never set for [`Format::Idx`], which brings its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Split>,
    /// Scaling of numeric inputs; `None` for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,
    /// A new seeded order each epoch.
    pub shuffle: bool,
}

/// `data.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// What the names of the columns say.
    Auto,
    /// Rows with `messages`.
    Messages,
    /// Rows with `prompt` and `completion`.
    PromptCompletion,
    /// Rows with `instruction`, `input` and `output`.
    Alpaca,
    /// Rows with `conversations`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// UTF-8 text.
    Text,
    /// Tables with a header line.
    Csv,
    /// MNIST's image and label files.
    Idx,
}

/// `data.tokenizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerKind {
    /// One token per distinct character.
    Char,
    /// One token per byte.
    Byte,
    /// The published model's own.
    Model,
}

/// `data.overlong`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// Leave the row out.
    Drop,
    /// Cut its end off.
    Truncate,
    /// A mistake.
    Error,
}

/// `data.no_target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoTarget {
    /// A mistake.
    Error,
    /// Leave the row out.
    Drop,
}

/// `data.train_on_eos`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOnEos {
    /// What ends each turn that is trained on.
    Turn,
    /// What ends the last turn.
    Last,
    /// What ends any turn.
    All,
    /// None.
    None,
}

/// `data.columns`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// Input columns in order; `None` means every column but the target, in file order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// The column to predict.
    pub target: String,
    /// Declared types, by column name; see [`Columns::feature_type`].
    pub types: BTreeMap<String, ColumnType>,
    /// What an empty cell of a number column means.
    pub missing: Missing,
}

impl Columns {
    /// The type of a feature column: as declared, else a number.
    pub fn feature_type(&self, name: &str) -> ColumnType {
        self.types.get(name).copied().unwrap_or(ColumnType::Number)
    }
}

/// A value of `data.columns.types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnType {
    /// A number.
    Number,
    /// One of a set of names.
    Category,
    /// True or false.
    Boolean,
}

/// `data.columns.missing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// A mistake.
    Error,
    /// The mean over the training split.
    Mean,
}

/// `data.validation` and `data.test`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Split {
    /// A share of the data, between 0 and 1.
    Fraction(f64),
    /// Files of their own; absolute paths or globs.
    Paths(Vec<String>),
}

/// `data.normalize`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Normalize {
    /// A way by name.
    Named(NormalizeName),
    /// Given numbers.
    Fixed(MeanStd),
}

/// A named way to normalize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormalizeName {
    /// Values as they are; pixels scaled to 0…1.
    None,
    /// Measured on the training split.
    Standard,
}

/// `data.normalize` given as numbers; each list holds one number for all features, or one per feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeanStd {
    /// Subtracted.
    pub mean: Vec<f64>,
    /// Divided by; positive.
    pub std: Vec<f64>,
}
