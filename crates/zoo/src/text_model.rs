//! [`TextModel`]: a published language model with its tokenizer, ready to continue a text or to
//! answer in a conversation.
//!
//! Where generation ends is what the directory says: `eos_token_id` of `generation_config.json`,
//! else of `config.json`, else the tokenizer's EOS.

use std::path::{Path, PathBuf};

use entrenar_core::ops::loss::Reduction;
use entrenar_core::{DType, Error, Result, Tensor, no_grad};
use entrenar_nn::Ctx;
use serde_json::{Map, Value, json};

use crate::build::Exchange;
use crate::pretrained::{LanguageModel, read_config};
use crate::{ChatTemplate, LmInput, Sampling, Tokenizer, generate_batch};

/// A language model and its tokenizer.
pub struct TextModel {
    /// The model.
    pub model: LanguageModel,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    eos: Vec<u32>,
    warnings: Vec<String>,
}

impl TextModel {
    /// Whether a directory holds a published language model (and not one that a run of ours made,
    /// which has another `config.json`).
    pub fn is_in(directory: &Path) -> bool {
        read_config(directory).is_ok_and(|c| c.contains_key("model_type"))
    }

    /// Opens a directory; floats are cast to `dtype` where one is named.
    ///
    /// # Errors
    /// When a file is missing or damaged, the weights do not fit the config, or the tokenizer has
    /// tokens that the model has no embedding for.
    pub fn open(directory: impl AsRef<Path>, dtype: Option<DType>) -> Result<TextModel> {
        let directory = directory.as_ref();
        TextModel::with(directory, LanguageModel::open(directory, dtype)?)
    }

    /// [`TextModel::open`] by [`LanguageModel::open_exchanging`].
    ///
    /// # Errors
    /// As there.
    pub fn open_exchanging<'a>(
        directory: impl AsRef<Path>,
        dtype: Option<DType>,
        exchange: &'a mut Exchange<'a>,
    ) -> Result<TextModel> {
        let directory = directory.as_ref();
        let model = LanguageModel::open_exchanging(directory, dtype, exchange)?;
        TextModel::with(directory, model)
    }

    fn with(directory: &Path, model: LanguageModel) -> Result<TextModel> {
        let tokenizer = Tokenizer::open(directory)?;
        let rows = model.as_causal().head().shape()[0];
        if tokenizer.vocabulary() > rows {
            return Err(Error::format(
                directory,
                format!(
                    "the tokenizer has {} tokens, the model embeddings for {rows}",
                    tokenizer.vocabulary()
                ),
            ));
        }
        let files = described(directory, model.config())?;
        Ok(TextModel {
            eos: ends(&files, &tokenizer)?,
            warnings: beyond(&files, rows),
            model,
            tokenizer,
        })
    }

    /// A model and the tokenizer that goes with it; texts end with the tokenizer's EOS, if it has one.
    pub fn of(model: LanguageModel, tokenizer: Tokenizer) -> TextModel {
        TextModel {
            eos: tokenizer.eos().map(|token| token.id).into_iter().collect(),
            warnings: Vec::new(),
            model,
            tokenizer,
        }
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// What is odd about the directory, for the caller to print: names of tokens that the model has not.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Continues `prompt`, handing over text as it comes; `on_text` returns whether to go on.
    ///
    /// # Errors
    /// When the prompt has no token (and the tokenizer adds none), is as long as the context, or
    /// sampling is refused.
    pub fn generate(
        &self,
        prompt: &str,
        sampling: &Sampling,
        on_text: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        let tokens = self.tokenizer.encode(prompt, true)?;
        self.continue_tokens(&tokens, sampling, on_text)
    }

    /// Continues tokens; see [`TextModel::generate`].
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    pub fn continue_tokens(
        &self,
        tokens: &[u32],
        sampling: &Sampling,
        mut on_text: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        self.continue_batch(&[tokens], &[sampling.seed], sampling, |_, text| {
            on_text(text)
        })
    }

    /// Continues several prompts in one batch, each with its own seed (`sampling.seed` is not used);
    /// `on_text` is given the number of the prompt and new text, and ends this text with `false`.
    /// Each text is what [`TextModel::generate`] makes of the prompt alone with this seed.
    ///
    /// # Errors
    /// As [`TextModel::generate`], naming the prompt.
    pub fn generate_batch(
        &self,
        prompts: &[&str],
        seeds: &[u64],
        sampling: &Sampling,
        on_text: impl FnMut(usize, &str) -> bool,
    ) -> Result<()> {
        let encode = |prompt: &&str| self.tokenizer.encode(prompt, true);
        let tokens = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        self.continue_batch(&tokens, seeds, sampling, on_text)
    }

    fn continue_batch(
        &self,
        prompts: &[&[u32]],
        seeds: &[u64],
        sampling: &Sampling,
        mut on_text: impl FnMut(usize, &str) -> bool,
    ) -> Result<()> {
        let model = self.model.as_causal();
        let mut streams = Vec::with_capacity(prompts.len());
        for (i, tokens) in prompts.iter().enumerate() {
            let of = match prompts.len() {
                1 => String::new(),
                _ => format!(" in prompt {}", i + 1),
            };
            if tokens.is_empty() {
                let want = "at least one token to continue";
                return Err(Error::argument("generate", want, format!("none{of}")));
            }
            if tokens.len() >= model.context() {
                return Err(Error::argument(
                    "generate",
                    format!("a prompt below the model's context of {}", model.context()),
                    format!("{} tokens{of}", tokens.len()),
                ));
            }
            let mut stream = self.tokenizer.stream(true);
            // Text of the first new token depends on what stands before it.
            for &token in *tokens {
                stream.push(token)?;
            }
            stream.finish()?;
            streams.push((stream, true));
        }
        let mut sampling = sampling.clone();
        sampling.stop.extend(&self.eos);
        let mut fault = None;
        generate_batch(model, prompts, seeds, &sampling, &mut |row, token| {
            let (stream, go_on) = &mut streams[row];
            match stream.push(token) {
                Ok(text) => *go_on = text.is_empty() || on_text(row, &text),
                Err(e) => fault = Some(e),
            }
            *go_on && fault.is_none()
        })?;
        if let Some(e) = fault {
            return Err(e);
        }
        for (row, (mut stream, go_on)) in streams.into_iter().enumerate() {
            let rest = stream.finish()?;
            if go_on && !rest.is_empty() {
                on_text(row, &rest);
            }
        }
        Ok(())
    }

    /// The mean loss of a text's tokens in nats, each given those before it in its window, and
    /// their number. Windows as long as the context (or `longest`) follow one another.
    ///
    /// # Errors
    /// When the text has fewer than two tokens.
    pub fn evaluate(&self, text: &str, longest: Option<usize>) -> Result<(f64, usize)> {
        let tokens = self.tokenizer.encode(text, true)?;
        let model = self.model.as_causal();
        let window = longest.unwrap_or(2048).min(model.context()).max(1);
        let targets = tokens.len().saturating_sub(1);
        if targets == 0 {
            return Err(Error::argument(
                "evaluate",
                "a text of at least two tokens",
                format!("{} tokens", tokens.len()),
            ));
        }
        let row = |part: &[u32]| {
            let part: Vec<i64> = part.iter().map(|&t| i64::from(t)).collect();
            let length = part.len();
            Tensor::from_vec(part, [1, length])
        };
        let mut sum = 0.0;
        for start in (0..targets).step_by(window) {
            let end = (start + window).min(targets);
            let (x, y) = (row(&tokens[start..end])?, row(&tokens[start + 1..end + 1])?);
            let cx = &mut Ctx::eval();
            let loss = no_grad(|| model.loss(&x, &y, Reduction::Sum, LmInput::default(), cx))?;
            sum += f64::from(loss.item::<f32>()?);
        }
        Ok((sum / targets as f64, targets))
    }

    /// The tokenizer's chat template with its special tokens.
    ///
    /// # Errors
    /// When the directory has none, or it is not valid.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let Some(template) = self.tokenizer.chat_template() else {
            return Err(Error::config(
                "the model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)",
            ));
        };
        ChatTemplate::new(template, special_tokens(&self.tokenizer))
    }

    /// The tokens of a conversation with what begins the assistant's answer.
    ///
    /// # Errors
    /// When there is no template, or it refuses the conversation.
    pub fn encode_chat(&self, template: &ChatTemplate, messages: &Value) -> Result<Vec<u32>> {
        let text = template.render(messages, None, true)?.text;
        // The template writes the special tokens itself.
        self.tokenizer.encode(&text, false)
    }
}

/// `bos_token` and the others as a template's variables.
pub fn special_tokens(tokenizer: &Tokenizer) -> Map<String, Value> {
    let tokens = [
        ("bos_token", tokenizer.bos()),
        ("eos_token", tokenizer.eos()),
        ("pad_token", tokenizer.pad()),
        ("unk_token", tokenizer.unk()),
    ];
    let named = tokens
        .into_iter()
        .filter_map(|(name, token)| Some((name, token?)));
    named
        .map(|(name, token)| (name.to_string(), json!(token.text)))
        .collect()
}

/// The files that name tokens, in the order in which they count.
fn described(
    directory: &Path,
    config: Map<String, Value>,
) -> Result<Vec<(PathBuf, Map<String, Value>)>> {
    let mut files = Vec::new();
    let path = directory.join("generation_config.json");
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => files.push((path, map)),
            Ok(_) => return Err(Error::format(&path, "expected a JSON object")),
            Err(e) => return Err(Error::format(&path, format!("no JSON: {e}"))),
        }
    }
    files.push((directory.join("config.json"), config));
    Ok(files)
}

fn ends(files: &[(PathBuf, Map<String, Value>)], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    for (path, map) in files {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids: Option<Vec<u32>> = match map.get("eos_token_id").unwrap_or(&Value::Null) {
            Value::Null => continue,
            Value::Array(all) => all.iter().map(one).collect(),
            other => one(other).map(|id| vec![id]),
        };
        return ids.ok_or_else(|| {
            let (what, value) = ("a token number or a list of them", &map["eos_token_id"]);
            Error::format(
                path,
                format!("`eos_token_id`: expected {what}, got {value}"),
            )
        });
    }
    Ok(tokenizer.eos().map(|t| t.id).into_iter().collect())
}

/// Tokens that are named and that a model of `rows` tokens has not. No error: configs of small models made from
/// others' defaults have them, and such a token is only never met.
fn beyond(files: &[(PathBuf, Map<String, Value>)], rows: usize) -> Vec<String> {
    let mut out = Vec::new();
    for (path, map) in files {
        for (key, effect) in [
            ("bos_token_id", ""),
            ("eos_token_id", "; no text ends with it"),
        ] {
            let ids = match map.get(key) {
                Some(Value::Array(all)) => all.as_slice(),
                Some(one) => std::slice::from_ref(one),
                None => &[],
            };
            let outside = |id: &&Value| id.as_i64().is_some_and(|n| n < 0 || n >= rows as i64);
            if let Some(id) = ids.iter().find(outside) {
                let path = path.display();
                out.push(format!(
                    "{path}: `{key}`: {id} is no token of the model, which has {rows}{effect}"
                ));
            }
        }
    }
    out
}
