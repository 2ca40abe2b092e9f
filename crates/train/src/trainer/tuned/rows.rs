//! The rows of a fine-tuning run: from the config's `data` to datasets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Error, Result};
use entrenar_zoo::{TextModel, Tokenizer};

use super::opening;
use crate::config::{self, Config, Loaded, Model, Task};
use crate::data::sft::{
    Fields, Overlong, SftConfig, SftData, SftFormat, SftSamples, TrainOnEos, inspect,
};
use crate::data::{Holdout, Parts, Splits, find_files};
use crate::trainer::trained::open_text_model;

/// The default of `data.sequence_length`, where the model's context is longer.
const SEQUENCE_LENGTH: usize = 2048;

/// Rows to train on.
pub(super) struct Rows {
    pub parts: Parts,
    /// What to tell about them.
    pub notes: Vec<String>,
    /// Whether there are conversations among them.
    pub conversations: bool,
    /// What tells them from other rows.
    pub fingerprint: u64,
}

/// Reads the rows of a config.
///
/// # Errors
///
/// A file or row that cannot be used, with its place; data in which nothing would be trained.
pub(super) fn open(config: &Config, text: &TextModel) -> Result<Rows> {
    let settings = settings(config, text.model.as_causal().context())?;
    let data = &config.data;
    let samples = Arc::new(read(&data.path, &settings, &text.tokenizer)?);
    let mut notes = vec![format!("data: {}", samples.report())];
    let holdout = |split: Option<&config::Split>| match split {
        Some(config::Split::Fraction(fraction)) => Holdout::Fraction(*fraction),
        _ => Holdout::None,
    };
    let splits = Splits {
        validation: holdout(data.validation.as_ref()),
        test: holdout(data.test.as_ref()),
    };
    let conversations = samples.report().conversations;
    let fingerprint = samples.fingerprint();
    let mut parts = samples.parts(&splits, config.seed)?;
    for (split, name, part) in [
        (&data.validation, "validation", &mut parts.validation),
        (&data.test, "test", &mut parts.test),
    ] {
        if let Some(config::Split::Paths(paths)) = split {
            let own = Arc::new(read(paths, &settings, &text.tokenizer)?);
            notes.push(format!("{name}: {}", own.report()));
            *part = Some(Arc::new(own.dataset(config.seed)?));
        }
    }
    Ok(Rows {
        parts,
        notes,
        conversations,
        fingerprint,
    })
}

fn read(paths: &[String], settings: &SftConfig, tokenizer: &Tokenizer) -> Result<SftSamples> {
    let files: Vec<PathBuf> = find_files(Path::new(""), paths)?;
    SftData::open(&files, settings, tokenizer)
}

/// The section `data` in the words of the reader. `context` is the model's.
fn settings(config: &Config, context: usize) -> Result<SftConfig> {
    let data = &config.data;
    let sequence_length = data
        .sequence_length
        .unwrap_or_else(|| context.min(SEQUENCE_LENGTH));
    if sequence_length > context {
        return Err(Error::config(format!(
            "data.sequence_length: expected at most the model's context of {context}, got {sequence_length}"
        )));
    }
    let defaults = SftConfig::default();
    Ok(SftConfig {
        sequence_length,
        format: match data.format {
            config::Format::Messages => SftFormat::Messages,
            config::Format::PromptCompletion => SftFormat::PromptCompletion,
            config::Format::Alpaca => SftFormat::Alpaca,
            config::Format::ShareGpt => SftFormat::ShareGpt,
            config::Format::Text => SftFormat::Text,
            _ => SftFormat::Auto,
        },
        // Documents are one stream: a row that is not full wastes time.
        packing: data.packing.unwrap_or(config.task == Task::LanguageModel),
        train_on_inputs: data.train_on_inputs.unwrap_or(false),
        roles_to_train: data
            .roles_to_train
            .clone()
            .unwrap_or_else(|| defaults.roles_to_train.clone()),
        train_on_eos: match data.train_on_eos {
            Some(config::TrainOnEos::All) => TrainOnEos::All,
            Some(config::TrainOnEos::Last) => TrainOnEos::Last,
            Some(config::TrainOnEos::None) => TrainOnEos::None,
            Some(config::TrainOnEos::Turn) | None => TrainOnEos::Turn,
        },
        chat_template: data.chat_template.clone(),
        overlong: match data.overlong {
            Some(config::Overlong::Truncate) => Overlong::Truncate,
            Some(config::Overlong::Error) => Overlong::Error,
            Some(config::Overlong::Drop) | None => Overlong::Drop,
        },
        fields: fields(config)?,
        eos_token: data.eos_token.clone(),
        ..defaults
    })
}

fn fields(config: &Config) -> Result<Fields> {
    let mut fields = Fields::default();
    for (name, column) in config.data.fields.iter().flatten() {
        let place = match name.as_str() {
            "text" => &mut fields.text,
            "prompt" => &mut fields.prompt,
            "completion" => &mut fields.completion,
            "messages" | "conversations" => &mut fields.messages,
            "role" | "from" => &mut fields.role,
            "content" | "value" => &mut fields.content,
            "instruction" => &mut fields.instruction,
            "input" => &mut fields.input,
            "output" => &mut fields.output,
            "system" => &mut fields.system,
            "tools" => &mut fields.tools,
            _ => {
                return Err(Error::config(format!(
                    "data.fields: expected one of text, prompt, completion, messages, role, content, instruction, \
                     input, output, system, tools, got `{name}`"
                )));
            }
        };
        *place = Some(column.clone());
    }
    Ok(fields)
}

/// What `entrenar inspect-data` shows.
pub struct InspectedRows {
    /// Decoded samples, what is not learned marked, and numbers about all of them.
    pub text: String,
}

/// Reads the rows of a config as training would, and shows some of them.
///
/// # Errors
///
/// A config without `model.base`, and as training.
pub fn inspect_rows(loaded: &Loaded, how_many: usize, colour: bool) -> Result<InspectedRows> {
    let config = &loaded.config;
    let Model::Pretrained(base) = &config.model else {
        return Err(Error::config(
            "expected a config with model.base: other data are shown by training",
        ));
    };
    let directory =
        opening::find(&base.base).map_err(|error| super::placed(loaded, "model.base", error))?;
    let TextModel {
        model, tokenizer, ..
    } = open_text_model(&directory, None)
        .map_err(|error| super::placed(loaded, "model.base", error))?;
    let settings = settings(config, model.as_causal().context())?;
    let samples = Arc::new(
        read(&config.data.path, &settings, &tokenizer)
            .map_err(|error| super::placed(loaded, "data", error))?,
    );
    Ok(InspectedRows {
        text: inspect(&samples.dataset(config.seed)?, &tokenizer, how_many, colour)?,
    })
}
