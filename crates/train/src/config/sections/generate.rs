//! `generate`: the sample that a language-model run prints.

use super::super::describe::{Field, Kind, NOT_NEGATIVE, SHARE, Section};
use serde::{Deserialize, Serialize};

pub(super) static SECTION: Section = Section {
    doc: "A sample printed at the end of the run.",
    fields: &[
        Field::with_default(
            "prompt",
            Kind::Text,
            "\"\\n\"",
            "Text that the sample continues.",
        ),
        Field::with_default(
            "max_new_tokens",
            Kind::Integer(1, 10_000_000),
            "200",
            "Length of the sample in tokens.",
        )
        .also_known_as(&["max_tokens", "length"]),
        Field::with_default(
            "temperature",
            Kind::Number(NOT_NEGATIVE),
            "0.8",
            "Divides the logits; 0 always takes the most likely token.",
        ),
        Field::optional(
            "top_k",
            Kind::Integer(1, 10_000_000),
            "20",
            "Draw only from the k most likely tokens.",
        ),
        Field::optional(
            "top_p",
            Kind::Number(SHARE),
            "0.9",
            "Draw only from the most likely tokens that together reach probability p.",
        ),
        Field::optional(
            "every_steps",
            Kind::Integer(1, i64::MAX),
            "500",
            "Also print a sample every so many updates.",
        ),
    ],
    rules: &[],
    reserved: &[],
};

/// `generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Text that the sample continues.
    pub prompt: String,
    /// Length of the sample in tokens.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 means greedy.
    pub temperature: f64,
    /// Draw only from the k most likely tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Draw only from the most likely tokens that reach this probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Updates between samples during the run; `None` prints only the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
}
