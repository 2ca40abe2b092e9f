//! One vector per text: [`Pooling`] over the encoder's vectors, and [`TokenRows`], a padded batch.
//!
//! Reimers and Gurevych, "Sentence-BERT" (2019). Directories of sentence-transformers say in
//! `modules.json` and `1_Pooling/config.json` which pooling a model was trained with; both the old
//! form (a flag per mode) and the new one (`pooling_mode`) are read.

use std::path::Path;

use entrenar_core::{Array, Error, Result, Tensor};
use entrenar_nn::Ctx;
use serde_json::{Map, Value};

use super::{Bert, BertInput};
use crate::Tokenizer;

/// How the vectors of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingMode {
    /// The first token's.
    Cls,
    /// The mean over the tokens that are no padding.
    Mean,
    /// Their sum divided by the square root of their number.
    MeanSqrtLength,
}

/// How a text's vector is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// How the vectors of a sequence become one.
    pub mode: PoolingMode,
    /// Whether the result has length 1.
    pub normalize: bool,
    /// Most tokens of a text, special tokens included, where a directory names fewer than the model
    /// has positions.
    pub longest: Option<usize>,
}

impl Default for Pooling {
    /// The mean, with length 1.
    fn default() -> Pooling {
        Pooling {
            mode: PoolingMode::Mean,
            normalize: true,
            longest: None,
        }
    }
}

impl Pooling {
    /// What a directory of sentence-transformers says; `None` where there is no `modules.json`.
    ///
    /// # Errors
    /// When a file is damaged, or asks for a mode or a module that is not built.
    pub fn open(directory: impl AsRef<Path>) -> Result<Option<Pooling>> {
        let directory = directory.as_ref();
        let path = directory.join("modules.json");
        if !path.is_file() {
            return Ok(None);
        }
        let Value::Array(modules) = read_json(&path)? else {
            return Err(Error::format(&path, "expected a list of modules"));
        };
        let mut pooling = None;
        let mut normalize = false;
        for module in &modules {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => {
                    let folder = Path::new(text("path"));
                    let plain = |part| matches!(part, std::path::Component::Normal(_));
                    if !folder.components().all(plain) {
                        let shown = folder.display();
                        return Err(Error::format(
                            &path,
                            format!("expected a folder of this directory, got `{shown}`"),
                        ));
                    }
                    let file = directory.join(folder).join("config.json");
                    let Value::Object(config) = read_json(&file)? else {
                        return Err(Error::format(&file, "expected a JSON object"));
                    };
                    pooling = Some(mode(&config).map_err(|e| Error::format(&file, e))?);
                }
                "Normalize" => normalize = true,
                other => {
                    return Err(Error::format(
                        &path,
                        format!("expected Transformer, Pooling and Normalize, got `{other}`"),
                    ));
                }
            }
        }
        match pooling {
            Some(mode) => Ok(Some(Pooling {
                mode,
                normalize,
                longest: longest(directory)?,
            })),
            None => Err(Error::format(&path, "it names no Pooling module")),
        }
    }
}

/// `max_seq_length` of `sentence_bert_config.json`, else the tokenizer's `model_max_length`.
fn longest(directory: &Path) -> Result<Option<usize>> {
    for (file, key) in [
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ] {
        let path = directory.join(file);
        if path.is_file()
            && let Some(n) = read_json(&path)?.get(key).and_then(Value::as_u64)
        {
            // Tokenizers without a limit are saved with 10^30, which is no u64.
            return Ok(usize::try_from(n).ok());
        }
    }
    Ok(None)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, format!("no JSON: {e}")))
}

/// The one mode of a pooling config.
fn mode(config: &Map<String, Value>) -> Result<PoolingMode, String> {
    let names: Vec<String> = match config.get("pooling_mode") {
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(|n| n.as_str())
            .map(str::to_string)
            .collect(),
        _ => config
            .iter()
            .filter(|(_, flag)| **flag == Value::Bool(true))
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .map(|key| {
                key.trim_end_matches("_tokens")
                    .trim_end_matches("_token")
                    .to_string()
            })
            .collect(),
    };
    match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cls"] => Ok(PoolingMode::Cls),
        ["mean"] => Ok(PoolingMode::Mean),
        ["mean_sqrt_len"] | ["mean_sqrt_len_tokens"] => Ok(PoolingMode::MeanSqrtLength),
        _ => Err(format!(
            "expected one of the pooling modes cls, mean and mean_sqrt_len, got {}",
            if names.is_empty() {
                "none".into()
            } else {
                names.join(" and ")
            }
        )),
    }
}

/// Token rows of different lengths as one batch.
///
/// ```
/// let rows = entrenar_zoo::TokenRows::new(&[vec![5, 6, 7], vec![8]], 0)?;
/// assert_eq!(rows.tokens.array().to_vec::<i64>()?, [5, 6, 7, 8, 0, 0]);
/// assert_eq!(rows.mask.array().to_vec::<bool>()?, [true, true, true, true, false, false]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone)]
pub struct TokenRows {
    /// i64 `[rows, longest]`, filled with the padding token.
    pub tokens: Tensor,
    /// bool `[rows, longest]`, false for padding.
    pub mask: Tensor,
}

impl TokenRows {
    /// Pads rows to the longest (of at least one token).
    ///
    /// # Errors
    /// When the size overflows.
    pub fn new<R: AsRef<[u32]>>(rows: &[R], padding: u32) -> Result<TokenRows> {
        let lengths = rows.iter().map(|row| row.as_ref().len());
        let shape = [rows.len(), lengths.max().unwrap_or(0).max(1)];
        let tokens = Array::try_build(shape, |out: &mut [i64]| {
            out.fill(padding.into());
            for (out, row) in out.chunks_exact_mut(shape[1]).zip(rows) {
                out.iter_mut()
                    .zip(row.as_ref())
                    .for_each(|(o, t)| *o = i64::from(*t));
            }
            Ok(())
        })?;
        let mask = Array::try_build(shape, |out: &mut [bool]| {
            for (out, row) in out.chunks_exact_mut(shape[1]).zip(rows) {
                out[..row.as_ref().len()].fill(true);
            }
            Ok(())
        })?;
        Ok(TokenRows {
            tokens: tokens.into(),
            mask: mask.into(),
        })
    }
}

impl Bert {
    /// One vector per sequence, `[batch, hidden]`, of tokens `[batch, time]`.
    ///
    /// # Errors
    /// As [`Bert::features`].
    pub fn sentence(
        &self,
        tokens: &Tensor,
        input: BertInput<'_>,
        pooling: Pooling,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let x = self.features(tokens, input, cx)?;
        let pooled = match pooling.mode {
            PoolingMode::Cls => x.select(1, 0)?,
            mode => {
                let weight = match input.mask {
                    Some(mask) => mask.to_dtype(x.dtype())?,
                    None => Tensor::ones(tokens.shape().clone(), x.dtype()),
                };
                let weight = weight.unsqueeze(-1)?;
                let sum = x.mul(&weight)?.sum_dim(&[1], false)?;
                // A row of padding alone gives zeros, not NaN.
                let count = weight.sum_dim(&[1], false)?.clamp(Some(1e-9), None)?;
                match mode {
                    PoolingMode::MeanSqrtLength => sum.div(&count.sqrt()?)?,
                    _ => sum.div(&count)?,
                }
            }
        };
        if pooling.normalize {
            pooled.normalize(2.0, 1, 1e-12)
        } else {
            Ok(pooled)
        }
    }

    /// [`Bert::sentence`] by the mean, of length 1.
    ///
    /// # Errors
    /// As [`Bert::features`].
    pub fn embed(&self, tokens: &Tensor, input: BertInput<'_>, cx: &mut Ctx) -> Result<Tensor> {
        self.sentence(tokens, input, Pooling::default(), cx)
    }

    /// One vector per text, `[texts, hidden]`. Texts longer than `pooling.longest`, or than the model
    /// has positions, are cut before the special token that ends them.
    ///
    /// # Errors
    /// When a text cannot be encoded or gives a token beyond the vocabulary.
    pub fn embed_texts<S: AsRef<str>>(
        &self,
        tokenizer: &Tokenizer,
        texts: &[S],
        pooling: Pooling,
    ) -> Result<Tensor> {
        let positions = self.config().max_position_embeddings;
        let longest = pooling.longest.unwrap_or(positions).min(positions);
        let rows = texts
            .iter()
            .map(|text| Ok(tokenizer.encode_at_most(text.as_ref(), longest)?.0))
            .collect::<Result<Vec<_>>>()?;
        let padding = tokenizer.pad().map_or(0, |pad| pad.id);
        let rows = TokenRows::new(&rows, padding)?;
        let input = BertInput {
            mask: Some(&rows.mask),
            ..Default::default()
        };
        self.sentence(&rows.tokens, input, pooling, &mut Ctx::eval())
    }
}
