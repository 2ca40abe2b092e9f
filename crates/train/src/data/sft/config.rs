//! [`SftConfig`]: what to make of the rows, under the names that other fine-tuning tools use.
//!
//! Neighbours: `formats` reads rows by [`Fields`], `encode` masks by [`TrainOnEos`] and the roles.

use entrenar_base::{Error, Result};

/// How a row says what to learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SftFormat {
    /// Chosen for each file by the names in its first row.
    #[default]
    Auto,
    /// `text`: a document, all of which is learned (continued pre-training).
    Text,
    /// `prompt` and `completion`: two texts, or two lists of messages.
    PromptCompletion,
    /// `messages`: a list of `role` and `content`, written by the model's chat template.
    Messages,
    /// `instruction`, perhaps `input`, and `output`, with the published Alpaca prompt.
    Alpaca,
    /// `conversations`: a list of `from` (human, gpt, …) and `value`, then as messages.
    ShareGpt,
}

impl SftFormat {
    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::PromptCompletion => "prompt_completion",
            Self::Messages => "messages",
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
        }
    }
}

/// Which ends of turns are learned: the EOS after a completion, or what a chat template writes
/// after a message (such as `<|im_end|>`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainOnEos {
    /// Of every turn, the user's too.
    All,
    /// Of the turns that are learned.
    #[default]
    Turn,
    /// Of the last turn that is learned.
    Last,
    /// None: the model will not learn to stop.
    None,
}

/// What happens to a sample of more than `sequence_length` tokens. Documents of the text format are
/// cut into several samples instead, and nothing of them is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlong {
    /// Its end is cut off; where nothing to learn is left, it is dropped.
    #[default]
    Truncate,
    /// It is left out.
    Drop,
    /// It is an error that names the row.
    Error,
}

/// What happens to a row in which nothing is learned, such as one with an empty answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoTarget {
    /// It is an error that names the row.
    #[default]
    Error,
    /// It is left out.
    Drop,
}

/// The names of columns; `None` is the name in parentheses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// A document (`text`).
    pub text: Option<String>,
    /// What is asked (`prompt`).
    pub prompt: Option<String>,
    /// What is answered (`completion`).
    pub completion: Option<String>,
    /// The list of messages (`messages`; `conversations` in ShareGPT).
    pub messages: Option<String>,
    /// Who speaks, within a message (`role`; `from` in ShareGPT).
    pub role: Option<String>,
    /// What is said, within a message (`content`; `value` in ShareGPT).
    pub content: Option<String>,
    /// Alpaca's task (`instruction`).
    pub instruction: Option<String>,
    /// Alpaca's context, which may be missing or empty (`input`).
    pub input: Option<String>,
    /// Alpaca's answer (`output`).
    pub output: Option<String>,
    /// A system message beside the list of messages (`system`), if any.
    pub system: Option<String>,
    /// Descriptions of tools for the chat template (`tools`), if any.
    pub tools: Option<String>,
}

/// What to make of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SftConfig {
    /// How a row says what to learn.
    pub format: SftFormat,
    /// Most tokens of a sample, and of a packed row; at least 2.
    pub sequence_length: usize,
    /// Whether several samples share a row. Each sees only itself, so losses do not change.
    pub packing: bool,
    /// Whether prompts and all roles are learned too.
    pub train_on_inputs: bool,
    /// The roles whose messages are learned.
    pub roles_to_train: Vec<String>,
    /// Which ends of turns are learned.
    pub train_on_eos: TrainOnEos,
    /// Jinja, or `chatml` or `llama3` by name; instead of the model's own.
    pub chat_template: Option<String>,
    /// What happens to samples that are too long.
    pub overlong: Overlong,
    /// What happens to rows in which nothing is learned.
    pub no_target: NoTarget,
    /// Names of columns.
    pub fields: Fields,
    /// The text of the token that ends a document or a completion, where it is not the
    /// tokenizer's own.
    pub eos_token: Option<String>,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            format: SftFormat::Auto,
            sequence_length: 2048,
            packing: false,
            train_on_inputs: false,
            roles_to_train: vec!["assistant".to_string()],
            train_on_eos: TrainOnEos::Turn,
            chat_template: None,
            overlong: Overlong::Truncate,
            no_target: NoTarget::Error,
            fields: Fields::default(),
            eos_token: None,
        }
    }
}

impl SftConfig {
    pub(super) fn check(&self) -> Result<()> {
        if self.sequence_length < 2 {
            return Err(Error::config(format!(
                "expected a sequence length of at least 2 (a token and the one that follows), got {}",
                self.sequence_length
            )));
        }
        if self.roles_to_train.is_empty() && !self.train_on_inputs {
            return Err(Error::config(
                "expected at least one role to train, got an empty list",
            ));
        }
        Ok(())
    }
}
