//! Tokens of an example, and which of them are learned.
//!
//! Documents and completions end with the EOS; a BOS stands in front where the tokenizer puts one,
//! and never twice. A prompt and its completion are encoded as one text, so that tokens are those
//! of the running text; a token that lies across the border belongs to the completion.
//! Neighbours: `formats` and `turns` say what is learned, `samples` keeps the result.

use std::ops::Range;

use entrenar_base::{Error, Result};
use entrenar_zoo::{ChatTemplate, Tokenizer};

use super::config::{SftConfig, SftFormat, TrainOnEos};
use super::formats::{Example, detect, understand};
use super::rows::{Content, Place};
use super::{templates, turns};

/// Tokens of a row.
#[derive(Debug, PartialEq)]
pub(super) struct Encoded {
    pub tokens: Vec<u32>,
    pub trained: Vec<bool>,
    /// Whether it is a document, which may be cut into several samples.
    pub document: bool,
}

/// What encoding needs; shared by threads.
pub(super) struct Encoder<'a> {
    config: &'a SftConfig,
    tokenizer: &'a Tokenizer,
    template: Option<ChatTemplate>,
    eos: Option<u32>,
}

impl<'a> Encoder<'a> {
    pub fn new(config: &'a SftConfig, tokenizer: &'a Tokenizer) -> Result<Self> {
        let eos = match &config.eos_token {
            Some(text) => Some(tokenizer.id(text).ok_or_else(|| {
                Error::config(format!("eos_token: the tokenizer has no token {text:?}"))
            })?),
            None => tokenizer.eos().map(|token| token.id),
        };
        Ok(Self {
            config,
            tokenizer,
            template: templates::compiled(config, tokenizer)?,
            eos,
        })
    }

    /// The format of the rows that follow in a file, from its first row.
    pub fn format(&self, place: &Place, content: &Content) -> Result<SftFormat> {
        match (self.config.format, content) {
            (SftFormat::Auto | SftFormat::Text, Content::Document(_)) => Ok(SftFormat::Text),
            (format, Content::Document(_)) => Err(place.fault(format!(
                "expected rows of format {} (.jsonl, .json or .parquet), got a text file",
                format.name()
            ))),
            (SftFormat::Auto, Content::Row(row)) => detect(row, &self.config.fields, place),
            (format, _) => Ok(format),
        }
    }

    /// The tokens of a row.
    pub fn encode(&self, place: &Place, content: &Content, format: SftFormat) -> Result<Encoded> {
        let example = match content {
            Content::Document(text) => Example::Document(text.clone()),
            Content::Row(row) => understand(row, format, &self.config.fields, place)?,
        };
        match example {
            Example::Document(text) => self.document(&text, place),
            Example::Pair(prompt, completion) => self.pair(&prompt, &completion, place),
            Example::Chat {
                messages,
                tools,
                first,
            } => {
                let Some(template) = &self.template else {
                    return Err(place.fault(
                        "a conversation needs a chat template, and the model has none: set \
                         `chat_template` to chatml, llama3 or a Jinja text",
                    ));
                };
                let chat = turns::render(template, &messages, tools.as_ref(), first, self.config)
                    .map_err(|e| place.fault(e.to_string()))?;
                // The template writes special tokens itself, a BOS too.
                let (tokens, trained) = self.masked(&chat.text, false, &chat.learned, place)?;
                Ok(Encoded {
                    tokens,
                    trained,
                    document: false,
                })
            }
        }
    }

    fn document(&self, text: &str, place: &Place) -> Result<Encoded> {
        let mut encoded = Encoded {
            tokens: Vec::new(),
            trained: Vec::new(),
            document: true,
        };
        if text.trim().is_empty() {
            return Ok(encoded);
        }
        let ids = self.tokenizer.encode(text, true);
        encoded.tokens = ids.map_err(|e| place.fault(e.to_string()))?;
        if self.doubled(&encoded.tokens) {
            encoded.tokens.remove(0);
        }
        encoded.trained = vec![true; encoded.tokens.len()];
        self.end(&mut encoded, place)?;
        Ok(encoded)
    }

    fn pair(&self, prompt: &str, completion: &str, place: &Place) -> Result<Encoded> {
        let text = format!("{prompt}{completion}");
        let learned = match self.config.train_on_inputs {
            true => 0..text.len(),
            false => prompt.len()..text.len(),
        };
        let (tokens, trained) = self.masked(&text, true, &[learned], place)?;
        let mut encoded = Encoded {
            tokens,
            trained,
            document: false,
        };
        // An empty answer would teach the model to say nothing.
        if !completion.is_empty() || self.config.train_on_inputs {
            self.end(&mut encoded, place)?;
        }
        Ok(encoded)
    }

    /// Tokens of a text; those that stand for a byte of `learned` are learned.
    fn masked(
        &self,
        text: &str,
        special: bool,
        learned: &[Range<usize>],
        place: &Place,
    ) -> Result<(Vec<u32>, Vec<bool>)> {
        let mut pieces = self
            .tokenizer
            .encode_with_offsets(text, special)
            .map_err(|e| place.fault(e.to_string()))?;
        let ids: Vec<u32> = pieces.iter().take(2).map(|(id, _)| *id).collect();
        if special && self.doubled(&ids) {
            pieces.remove(0);
        }
        let meets = |bytes: &Range<usize>| {
            let shares = |l: &Range<usize>| l.start.max(bytes.start) < l.end.min(bytes.end);
            learned.iter().any(shares)
        };
        Ok(pieces.iter().map(|(id, bytes)| (*id, meets(bytes))).unzip())
    }

    /// Whether the text had the BOS that the tokenizer put in front.
    fn doubled(&self, tokens: &[u32]) -> bool {
        let bos = self.tokenizer.bos().map(|token| token.id);
        bos.is_some_and(|bos| tokens.starts_with(&[bos, bos]))
    }

    /// Ends a document or completion with the EOS, unless it is there.
    fn end(&self, encoded: &mut Encoded, place: &Place) -> Result<()> {
        let learned = self.config.train_on_eos != TrainOnEos::None;
        let Some(eos) = self.eos else {
            if !learned {
                return Ok(());
            }
            return Err(place.fault(
                "the tokenizer names no EOS token, which ends every document and completion: set \
                 `eos_token`, or `train_on_eos: none` to go without",
            ));
        };
        if encoded.tokens.last() == Some(&eos) {
            if let Some(mark) = encoded.trained.last_mut() {
                *mark = learned;
            }
        } else {
            encoded.tokens.push(eos);
            encoded.trained.push(learned);
        }
        Ok(())
    }
}
