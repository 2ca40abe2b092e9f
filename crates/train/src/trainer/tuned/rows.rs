//! The rows of a fine-tuning run: from the config's `data` to datasets.

use std::path::Path;
use std::sync::Arc;

use entrenar_base::{Error, Result};
use entrenar_zoo::{CausalLm, TextModel};

use super::opening;
use crate::config::{self, Config, Loaded, Model, Task};
use crate::data::sft::{
    Fields, NoTarget, Overlong, SftConfig, SftData, SftFormat, TrainOnEos, inspect,
};
use crate::data::{Parts, find_files, splits};
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
    pub fingerprint: String,
}

/// Reads the rows of a config.
///
/// # Errors
///
/// A file or row that cannot be used, with its place; data in which nothing would be trained.
pub(super) fn open(config: &Config, text: &TextModel) -> Result<Rows> {
    let (settings, note) = settings(config, text.model.as_causal())?;
    // The config made its paths absolute: what they are joined to does not matter.
    let (parts, samples) = SftData::open_parts(
        Path::new(""),
        &config.data.path,
        &splits(&config.data),
        config.seed,
        &settings,
        &text.tokenizer,
    )?;
    let notes = samples.iter().map(|s| format!("data: {}", s.report()));
    let fingerprints = samples.iter().map(|s| format!("{:016x}", s.fingerprint()));
    Ok(Rows {
        parts,
        notes: notes.chain(note).collect(),
        conversations: samples[0].report().conversations,
        fingerprint: fingerprints.collect::<Vec<_>>().join("-"),
    })
}

/// The section `data` in the words of the reader, and what to tell about it.
fn settings(config: &Config, model: &dyn CausalLm) -> Result<(SftConfig, Option<String>)> {
    let (data, context) = (&config.data, model.context());
    let sequence_length = data
        .sequence_length
        .unwrap_or_else(|| context.min(SEQUENCE_LENGTH));
    let longer = sequence_length > context;
    if longer && !model.has_open_context() {
        return Err(Error::config(format!(
            "data.sequence_length: expected at most the model's context of {context}, got {sequence_length}"
        )));
    }
    // transformers computes such positions too; Axolotl warns and goes on.
    let note = longer.then(|| {
        format!(
            "data.sequence_length: {sequence_length} is above the {context} positions of the model, which has to learn the others"
        )
    });
    let defaults = SftConfig::default();
    let settings = SftConfig {
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
            .unwrap_or(defaults.roles_to_train),
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
        no_target: match data.no_target {
            Some(config::NoTarget::Drop) => NoTarget::Drop,
            Some(config::NoTarget::Error) | None => NoTarget::Error,
        },
        fields: fields(config)?,
        eos_token: data.eos_token.clone(),
    };
    Ok((settings, note))
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

/// What `entrenar inspect-data` shows: decoded samples, what is not learned marked, and counts of tokens.
///
/// The rows are read as training would.
///
/// # Errors
///
/// A config without `model.base`, and as training.
pub fn inspect_rows(loaded: &Loaded, how_many: usize, colour: bool) -> Result<String> {
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
    let (settings, _) = settings(config, model.as_causal())?;
    let files = find_files(Path::new(""), &config.data.path)
        .map_err(|error| super::placed(loaded, "data", error))?;
    let samples = SftData::open(&files, &settings, &tokenizer)
        .map_err(|error| super::placed(loaded, "data", error))?;
    let rows = Arc::new(samples).dataset(config.seed)?;
    inspect(&rows, &tokenizer, how_many, colour)
}
