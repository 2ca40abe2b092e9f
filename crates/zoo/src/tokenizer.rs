//! [`Tokenizer`]: text to tokens and back, from the files of a model directory.
//!
//! The encoding itself is the `tokenizers` crate's, which also made the files. What is decided
//! here: which files are read (`tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`), which
//! tokens are special (`tokenizer_config.json`, then `special_tokens_map.json`), and where the
//! chat template is. A padding token is never invented: where a directory names none, there is
//! none. Neighbour: [`crate::chat`] renders conversations.

use std::path::{Path, PathBuf};

use entrenar_core::{Error, Result};
use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A special token: its text and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// How it is written in a template.
    pub text: String,
    /// Its number.
    pub id: u32,
}

/// Text to tokens and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    directory: PathBuf,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    pad: Option<SpecialToken>,
    unk: Option<SpecialToken>,
    mask: Option<SpecialToken>,
    chat_template: Option<String>,
    config: Map<String, Value>,
    /// The contents of `tokenizer.json` where there is no such file.
    json: Option<Value>,
    /// A chat template that is not that of the directory.
    own_template: Option<String>,
}

/// The files that describe a tokenizer; those present are copied with a model.
pub const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

impl Tokenizer {
    /// The tokenizer of a model directory.
    ///
    /// # Errors
    /// When there are no tokenizer files, or one is damaged.
    pub fn open(directory: impl AsRef<Path>) -> Result<Tokenizer> {
        let directory = directory.as_ref();
        let inner = read_inner(directory)?;
        let config = read_object(&directory.join("tokenizer_config.json"))?.unwrap_or_default();
        let map = read_object(&directory.join("special_tokens_map.json"))?.unwrap_or_default();
        let template = chat_template(directory, &config)?;
        Tokenizer::of(inner, config, &map, directory, template)
    }

    /// A tokenizer from the contents of `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// When they are no tokenizer.
    ///
    /// ```
    /// use entrenar_zoo::{Tokenizer, as_gpt2::tokenizer_of_characters};
    /// let json = tokenizer_of_characters(&['\n', 'a', 'b']);
    /// let tokenizer = Tokenizer::from_json(&json, Default::default())?;
    /// assert_eq!(tokenizer.encode("ab\na", true)?, [1, 2, 0, 1]);
    /// assert_eq!(tokenizer.decode(&[2, 0], false)?, "b\n");
    /// assert!(tokenizer.encode("c", true).is_err());
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    pub fn from_json(json: &Value, config: Map<String, Value>) -> Result<Tokenizer> {
        let place = Path::new("tokenizer.json");
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string())
            .map_err(|e| Error::format(place, e.to_string()))?;
        let map = Map::new();
        let mut tokenizer = Tokenizer::of(inner, config, &map, Path::new(""), None)?;
        tokenizer.json = Some(json.clone());
        Ok(tokenizer)
    }

    fn of(
        mut inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
        map: &Map<String, Value>,
        directory: &Path,
        chat_template: Option<String>,
    ) -> Result<Tokenizer> {
        // Truncation and padding are decided by the data, not by what the file was saved with.
        inner.with_padding(None);
        let none: std::result::Result<_, _> = inner.with_truncation(None);
        none.map_err(|e| Error::format(directory, e.to_string()))?;
        add_tokens(&mut inner, &config)
            .map_err(|e| Error::format(directory.join("tokenizer_config.json"), e))?;
        let special = |name: &str| -> Result<Option<SpecialToken>> {
            for (file, object) in [
                ("tokenizer_config.json", &config),
                ("special_tokens_map.json", map),
            ] {
                let text = token_text(name, object.get(name))
                    .map_err(|e| Error::format(directory.join(file), e))?;
                if let Some(text) = text {
                    let id = inner.token_to_id(&text);
                    return Ok(id.map(|id| SpecialToken { text, id }));
                }
            }
            Ok(None)
        };
        Ok(Tokenizer {
            bos: special("bos_token")?,
            eos: special("eos_token")?,
            pad: special("pad_token")?,
            unk: special("unk_token")?,
            mask: special("mask_token")?,
            chat_template,
            inner,
            directory: directory.to_path_buf(),
            config,
            json: None,
            own_template: None,
        })
    }

    /// Whether a directory has tokenizer files.
    pub fn is_in(directory: &Path) -> bool {
        let has = |name: &str| directory.join(name).is_file();
        has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))
    }

    /// The tokens of a text, with the special tokens that the tokenizer adds on its own (a BOS in
    /// front, for some models) when `special`.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special);
        Ok(encoding.map_err(|e| self.fault(&e))?.get_ids().to_vec())
    }

    /// The tokens of a text with the special tokens around it, at most `most` of them, and whether
    /// something was cut: the text's end, never the special tokens.
    ///
    /// # Errors
    /// When the text cannot be encoded, or `most` leaves no room beside the special tokens.
    pub fn encode_at_most(&self, text: &str, most: usize) -> Result<(Vec<u32>, bool)> {
        let whole = self.encode(text, true)?;
        if whole.len() <= most {
            return Ok((whole, false));
        }
        let plain = self.inner.encode_fast(text, false);
        let mut plain = plain.map_err(|e| self.fault(&e))?;
        let around = whole.len().saturating_sub(plain.len());
        let room = most
            .checked_sub(around)
            .filter(|room| *room > 0)
            .ok_or_else(|| {
                Error::argument(
                    "encode",
                    format!("room for more than {around} special tokens"),
                    format!("a limit of {most}"),
                )
            })?;
        plain.truncate(room, 0, tokenizers::TruncationDirection::Right);
        let cut = self.inner.post_process(plain, None, true);
        Ok((cut.map_err(|e| self.fault(&e))?.get_ids().to_vec(), true))
    }

    /// The tokens of a text, each with the bytes of the text that it stands for.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        special: bool,
    ) -> Result<Vec<(u32, std::ops::Range<usize>)>> {
        let encoding = self
            .inner
            .encode(text, special)
            .map_err(|e| self.fault(&e))?;
        let ids = encoding.get_ids().iter().copied();
        let ranges = encoding.get_offsets().iter().map(|&(a, b)| a..b);
        Ok(ids.zip(ranges).collect())
    }

    /// The text of tokens, without special tokens when `plain`.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn decode(&self, tokens: &[u32], plain: bool) -> Result<String> {
        self.inner.decode(tokens, plain).map_err(|e| self.fault(&e))
    }

    /// Decodes one token at a time; text comes as soon as it is whole characters.
    pub fn stream(&self, plain: bool) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            tokens: Vec::new(),
            plain,
            done: 0,
            start: 0,
        }
    }

    fn fault(&self, e: &tokenizers::Error) -> Error {
        Error::format(&self.directory, format!("tokenizer: {e}"))
    }

    /// The number of a token by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of one token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token is special: one that no ordinary text becomes, such as an EOS.
    pub fn is_special(&self, id: u32) -> bool {
        let vocabulary = self.inner.get_added_vocabulary();
        let token = vocabulary.get_added_tokens_decoder().get(&id);
        token.is_some_and(|token| token.special)
    }

    /// One more than the highest token number, added tokens included.
    pub fn vocabulary(&self) -> usize {
        let vocabulary = self.inner.get_vocab(true);
        vocabulary.values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Begins a text.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// Ends a text.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// Fills a batch. `None` when the directory names none: it is never silently the EOS.
    pub fn pad(&self) -> Option<&SpecialToken> {
        self.pad.as_ref()
    }

    /// Stands for what the vocabulary lacks.
    pub fn unk(&self) -> Option<&SpecialToken> {
        self.unk.as_ref()
    }

    /// Stands for a hidden word.
    pub fn mask(&self) -> Option<&SpecialToken> {
        self.mask.as_ref()
    }

    /// The Jinja text of the chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The object of `tokenizer_config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The tokenizer with another chat template, a Jinja text, which is written beside its files.
    #[must_use]
    pub fn with_chat_template(mut self, template: impl Into<String>) -> Tokenizer {
        let template = template.into();
        self.own_template = Some(template.clone());
        self.chat_template = Some(template);
        self
    }

    /// Copies the tokenizer's files to a model directory, or writes those of one that was made here.
    ///
    /// # Errors
    /// When a file cannot be copied or written.
    pub fn copy_to(&self, directory: &Path) -> Result<()> {
        if let Some(template) = &self.own_template {
            let path = directory.join("chat_template.jinja");
            std::fs::write(&path, template).map_err(|e| Error::io(&path, "write", e))?;
        }
        if let Some(json) = &self.json {
            let config = Value::Object(self.config.clone());
            for (name, value) in [("tokenizer.json", json), ("tokenizer_config.json", &config)] {
                let path = directory.join(name);
                std::fs::write(&path, format!("{value:#}\n"))
                    .map_err(|e| Error::io(&path, "write", e))?;
            }
            return Ok(());
        }
        for name in FILES {
            let from = self.directory.join(name);
            let replaced = self.own_template.is_some() && name == "chat_template.jinja";
            if from.is_file() && !replaced {
                std::fs::copy(&from, directory.join(name))
                    .map_err(|e| Error::io(&from, "copy", e))?;
            }
        }
        Ok(())
    }
}

/// Text of tokens as they come.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    plain: bool,
    /// Bytes of the window's text that were given out.
    done: usize,
    /// Where the window begins: a short past is decoded again, since spaces depend on it.
    start: usize,
}

impl TextStream<'_> {
    /// The text that this token completes; empty while a character is unfinished.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let text = self
            .tokenizer
            .decode(&self.tokens[self.start..], self.plain)?;
        if text.ends_with('\u{fffd}') || text.len() <= self.done {
            return Ok(String::new());
        }
        let new = text[self.done..].to_string();
        self.done = text.len();
        // A decoder may strip the first token's space: keep some tokens before the new one.
        if self.tokens.len() - self.start > 32 {
            self.start = self.tokens.len() - 8;
            self.done = self
                .tokenizer
                .decode(&self.tokens[self.start..], self.plain)?
                .len();
        }
        Ok(new)
    }

    /// What is left: an unfinished character, as the replacement character.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        let text = self
            .tokenizer
            .decode(&self.tokens[self.start..], self.plain)?;
        let rest = text.get(self.done..).unwrap_or("").to_string();
        self.done = text.len();
        Ok(rest)
    }
}

fn read_inner(directory: &Path) -> Result<tokenizers::Tokenizer> {
    let json = directory.join("tokenizer.json");
    if json.is_file() {
        return tokenizers::Tokenizer::from_file(&json)
            .map_err(|e| Error::format(&json, e.to_string()));
    }
    let (vocabulary, merges) = (directory.join("vocab.json"), directory.join("merges.txt"));
    if !(vocabulary.is_file() && merges.is_file()) {
        return Err(Error::format(
            directory,
            "expected tokenizer.json, or vocab.json with merges.txt; found neither",
        ));
    }
    let name = |p: &Path| p.to_string_lossy().into_owned();
    let bpe = BPE::from_file(&name(&vocabulary), &name(&merges))
        .build()
        .map_err(|e| Error::format(&vocabulary, e.to_string()))?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    // GPT-2's one special token is an ordinary entry of its vocabulary.
    if inner.token_to_id("<|endoftext|>").is_some() {
        let token = tokenizers::AddedToken::from("<|endoftext|>", true);
        inner
            .add_special_tokens([token])
            .map_err(|e| Error::format(&vocabulary, e.to_string()))?;
    }
    Ok(inner)
}

/// Makes the entries of `added_tokens_decoder` whole tokens where `tokenizer.json` does not say so
/// itself, as transformers does. Those that have another number there, or none that comes next,
/// are left alone: the model was not trained with them.
fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Map<String, Value>,
) -> std::result::Result<(), String> {
    let Some(Value::Object(entries)) = config.get("added_tokens_decoder") else {
        return Ok(());
    };
    let mut entries: Vec<(u32, &Value)> = entries
        .iter()
        .filter_map(|(id, entry)| Some((id.parse().ok()?, entry)))
        .collect();
    entries.sort_by_key(|(id, _)| *id);
    for (id, entry) in entries {
        let known = inner.get_added_vocabulary().get_added_tokens_decoder();
        let text = token_text(&format!("added_tokens_decoder.{id}"), Some(entry))?;
        let Some(text) = text.filter(|_| !known.contains_key(&id)) else {
            continue;
        };
        let next = inner.get_vocab_size(true);
        let place = inner.token_to_id(&text).map_or(next, |id| id as usize);
        if place != id as usize {
            continue;
        }
        let flag = |name: &str| entry.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let token = tokenizers::AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        let added = match special {
            true => inner.add_special_tokens([token]),
            false => inner.add_tokens([token]),
        };
        added.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// A token is written as text or as an object with its text under `content`.
/// The text of a special token: itself, or `content` of an object.
fn token_text(name: &str, value: Option<&Value>) -> std::result::Result<Option<String>, String> {
    let Some(value) = value.filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    match value.as_str().or_else(|| value.get("content")?.as_str()) {
        Some(text) => Ok(Some(text.to_string())),
        None => Err(format!("`{name}`: expected a token's text, got {value}")),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::format(path, format!("no JSON object: {e}"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}

/// `chat_template.jinja`, or `chat_template` of the config: a text, or a list of named ones of
/// which `default` is taken.
fn chat_template(directory: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        return Ok(Some(text));
    }
    Ok(match config.get("chat_template") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(named)) => named
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| t.get("template")?.as_str())
            .map(str::to_string),
        Some(other) => {
            let message = format!("`chat_template`: expected a text, got {other}");
            return Err(Error::format(
                directory.join("tokenizer_config.json"),
                message,
            ));
        }
    })
}
