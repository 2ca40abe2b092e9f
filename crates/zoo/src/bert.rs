//! [`Bert`]: the encoder of BERT with its heads for masked words and for classes.
//!
//! Devlin et al., "BERT" (2018): learned positions and token types, post-norm blocks, erf GELU.
//! Field names are those of transformers' `BertForMaskedLM` and `BertForSequenceClassification`;
//! files of the first release, which say `gamma` and `beta`, are read too.

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::{Array, DType, Error, Result, Tensor};
use entrenar_nn::{
    Ctx, Dropout, Embedding, LayerNorm, Linear, Module, Parameter, Projection, Projections,
};
use serde_json::{Map, Value, json};

use crate::build::{Builder, Start};
use crate::keys::Keys;

/// What is built on the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BertHead {
    /// Logits of every position's word (`BertForMaskedLM`).
    MaskedLm,
    /// Logits of the sequence's class (`BertForSequenceClassification`).
    Classes(usize),
    /// Nothing (`BertModel`).
    None,
}

/// Sizes and settings of a [`Bert`], under their names in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Size of a position's vector.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Inner size of the feed-forward part.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// Dropout of embeddings and block outputs.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention weights.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the classes; as `hidden_dropout_prob` where the file has none.
    pub classifier_dropout: f64,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The padding token, whose vector is not trained.
    pub pad_token_id: Option<u64>,
    /// What is built on the encoder.
    pub head: BertHead,
    /// Every key of the file, for those who write it again.
    pub raw: Map<String, Value>,
}

impl BertConfig {
    /// Reads the object of a `config.json`; its `architectures` says which head there is.
    ///
    /// # Errors
    /// When a value has the wrong type or an impossible size, or the file asks for something that
    /// is not built.
    pub fn from_json(map: &Map<String, Value>) -> Result<BertConfig> {
        let keys = Keys(map);
        keys.one_of("model_type", &["bert"])?;
        keys.one_of("hidden_act", &["gelu"])?;
        keys.one_of("position_embedding_type", &["absolute"])?;
        let hidden_dropout = keys.probability("hidden_dropout_prob", 0.1)?;
        let named = keys.get("architectures").and_then(|a| a.get(0)?.as_str());
        let head = match named {
            Some("BertForMaskedLM" | "BertForPreTraining") => BertHead::MaskedLm,
            Some("BertForSequenceClassification") => BertHead::Classes(classes(&keys)?),
            Some("BertModel") | None => BertHead::None,
            Some(other) => {
                return Err(Error::config(format!(
                    "config.json: `architectures`: expected BertForMaskedLM, BertForSequenceClassification or BertModel, got {other}"
                )));
            }
        };
        let config = BertConfig {
            vocab_size: keys.size("vocab_size", 30522)?,
            hidden_size: keys.size("hidden_size", 768)?,
            num_hidden_layers: keys.size("num_hidden_layers", 12)?,
            num_attention_heads: keys.size("num_attention_heads", 12)?,
            intermediate_size: keys.size("intermediate_size", 3072)?,
            max_position_embeddings: keys.size("max_position_embeddings", 512)?,
            type_vocab_size: keys.size("type_vocab_size", 2)?,
            hidden_dropout_prob: hidden_dropout,
            attention_probs_dropout_prob: keys.probability("attention_probs_dropout_prob", 0.1)?,
            classifier_dropout: keys.probability("classifier_dropout", hidden_dropout)?,
            layer_norm_eps: keys.number("layer_norm_eps", 1e-12)?,
            initializer_range: keys.number("initializer_range", 0.02)?,
            // 0 where the file says nothing; null means none.
            pad_token_id: map.get("pad_token_id").map_or(Some(0), Value::as_u64),
            head,
            raw: map.clone(),
        };
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            return Err(Error::config(format!(
                "config.json: `num_attention_heads`: expected a divisor of hidden_size {}, got {}",
                config.hidden_size, config.num_attention_heads
            )));
        }
        Ok(config)
    }

    /// The object of `config.json`.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let architecture = match self.head {
            BertHead::MaskedLm => "BertForMaskedLM",
            BertHead::Classes(_) => "BertForSequenceClassification",
            BertHead::None => "BertModel",
        };
        let ours = json!({
            "architectures": [architecture],
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "classifier_dropout": self.classifier_dropout,
            "layer_norm_eps": self.layer_norm_eps,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
        });
        if let Value::Object(ours) = ours {
            map.extend(ours);
        }
        if let BertHead::Classes(count) = self.head
            && classes(&Keys(&map)).ok() != Some(count)
        {
            let label = |i: usize| (i.to_string(), Value::from(format!("LABEL_{i}")));
            let labels: Map<String, Value> = (0..count).map(label).collect();
            let back = labels.iter().map(|(i, l)| {
                let number: usize = i.parse().unwrap_or(0);
                (
                    l.as_str().unwrap_or_default().to_string(),
                    Value::from(number),
                )
            });
            map.insert("label2id".into(), Value::Object(back.collect()));
            map.insert("id2label".into(), Value::Object(labels));
            map.remove("num_labels");
        }
        map
    }
}

/// Number of classes: entries of `id2label`, else `num_labels`, else 2.
fn classes(keys: &Keys<'_>) -> Result<usize> {
    match keys.get("id2label").and_then(Value::as_object) {
        Some(labels) if !labels.is_empty() => Ok(labels.len()),
        _ => keys.size("num_labels", 2),
    }
}

/// Words, positions and token types, added and normalised.
#[derive(Module)]
pub struct BertEmbeddings {
    /// Token embedding.
    pub word_embeddings: Embedding,
    /// Position embedding.
    pub position_embeddings: Embedding,
    /// Token type embedding.
    pub token_type_embeddings: Embedding,
    /// Over the sum.
    #[module(rename = "LayerNorm")]
    pub layer_norm: LayerNorm,
    dropout: Dropout,
    #[module(skip)]
    padding: Option<u64>,
}

/// Queries, keys and values.
#[derive(Module)]
pub struct BertSelfAttention {
    /// `[hidden, hidden]`.
    pub query: Projection,
    /// `[hidden, hidden]`.
    pub key: Projection,
    /// `[hidden, hidden]`.
    pub value: Projection,
    heads: usize,
    dropout: f64,
}

/// A linear layer, added to the block's input and normalised.
#[derive(Module)]
pub struct BertOutput {
    /// Into the residual stream.
    pub dense: Projection,
    /// Over the sum.
    #[module(rename = "LayerNorm")]
    pub layer_norm: LayerNorm,
    dropout: Dropout,
}

/// Attention and its output layer.
#[derive(Module)]
pub struct BertAttention {
    /// Queries, keys and values.
    #[module(rename = "self")]
    pub self_: BertSelfAttention,
    /// The output layer.
    pub output: BertOutput,
}

/// The widening layer of the feed-forward part.
#[derive(Module)]
pub struct BertIntermediate {
    /// `[intermediate, hidden]`.
    pub dense: Projection,
}

/// One block.
#[derive(Module)]
pub struct BertLayer {
    /// Attention.
    pub attention: BertAttention,
    /// The widening layer of the feed-forward part.
    pub intermediate: BertIntermediate,
    /// The narrowing one.
    pub output: BertOutput,
}

/// The blocks.
#[derive(Module)]
pub struct BertEncoder {
    /// The blocks.
    pub layer: Vec<BertLayer>,
}

/// tanh of a linear layer of the first position's vector.
#[derive(Module)]
pub struct BertPooler {
    /// `[hidden, hidden]`.
    pub dense: Linear,
}

/// The encoder.
#[derive(Module)]
pub struct BertModel {
    /// Words, positions and token types.
    pub embeddings: BertEmbeddings,
    /// The blocks.
    pub encoder: BertEncoder,
    /// Absent where nothing uses it (masked words).
    pub pooler: Option<BertPooler>,
}

/// What comes before the words' logits.
#[derive(Module)]
pub struct BertTransform {
    /// `[hidden, hidden]`.
    pub dense: Linear,
    /// After the activation.
    #[module(rename = "LayerNorm")]
    pub layer_norm: LayerNorm,
}

/// Logits of words; the weight is the token embedding.
#[derive(Module)]
pub struct BertPredictions {
    /// Added to the logits.
    pub bias: Parameter,
    /// What comes before.
    pub transform: BertTransform,
}

/// The head for masked words.
#[derive(Module)]
pub struct BertWords {
    /// Logits of words.
    pub predictions: BertPredictions,
}

/// What a [`Bert`] is given besides the tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct BertInput<'a> {
    /// Type of each token, `[batch, time]`; all 0 if absent.
    pub token_types: Option<&'a Tensor>,
    /// `[batch, time]`, true (or 1) for tokens and false (or 0) for padding.
    pub mask: Option<&'a Tensor>,
}

/// An encoder: tokens `[batch, time]` in; out come the words' logits `[batch, time, vocabulary]`,
/// the classes' logits `[batch, classes]`, or without a head the vectors `[batch, time, hidden]`.
///
/// ```
/// use entrenar_zoo::{Bert, BertConfig, Builder};
/// use entrenar_nn::{Ctx, Init, Module};
/// use entrenar_core::Tensor;
/// let config = serde_json::json!({
///     "architectures": ["BertForSequenceClassification"], "num_labels": 3, "vocab_size": 9,
///     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
///     "max_position_embeddings": 16
/// });
/// let config = BertConfig::from_json(config.as_object().unwrap())?;
/// let model = Bert::new(config, &mut Builder::random(Init::new(0)))?;
/// let tokens = Tensor::from_vec(vec![0i64, 3, 1], [1, 3])?;
/// assert_eq!(model.forward(&tokens, &mut Ctx::eval())?.dims(), [1, 3]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Module)]
pub struct Bert {
    /// The encoder.
    pub bert: BertModel,
    /// Logits of words.
    pub cls: Option<BertWords>,
    /// Logits of classes.
    pub classifier: Option<Linear>,
    dropout: Dropout,
    #[module(skip)]
    config: BertConfig,
}

impl BertOutput {
    fn new(c: &BertConfig, inputs: usize, b: &mut Builder) -> Result<BertOutput> {
        Ok(BertOutput {
            dense: b.projection("dense", (inputs, c.hidden_size), true, c.initializer_range)?,
            layer_norm: b.layer_norm("LayerNorm", c.hidden_size, c.layer_norm_eps)?,
            dropout: Dropout::new(c.hidden_dropout_prob)?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let y = cx.call("dense", &self.dense, x)?;
        let y = cx.call("dropout", &self.dropout, &y)?;
        cx.call("LayerNorm", &self.layer_norm, &y.add(residual)?)
    }
}

impl BertSelfAttention {
    /// `x` `[batch, time, hidden]`; `mask` `[batch, 1, 1, time]`.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, cx: &mut Ctx) -> Result<Tensor> {
        let (batch, time, hidden) = (x.dims()[0], x.dims()[1], x.dims()[2]);
        let mut heads = |name: &str, layer: &Projection| {
            cx.call(name, layer, x)?
                .reshape([batch, time, self.heads, hidden / self.heads])?
                .transpose(1, 2)
        };
        let q = heads("query", &self.query)?;
        let (k, v) = (heads("key", &self.key)?, heads("value", &self.value)?);
        let dropout = (cx.is_training() && self.dropout > 0.0).then(|| {
            let (seed, stream) = cx.key();
            (self.dropout, seed, stream)
        });
        let options = AttentionOptions {
            mask: mask.cloned(),
            dropout,
            ..Default::default()
        };
        let y = q.scaled_dot_product_attention(&k, &v, &options)?;
        y.transpose(1, 2)?.reshape([batch, time, hidden])
    }
}

impl BertLayer {
    fn new(c: &BertConfig, b: &mut Builder) -> Result<BertLayer> {
        let (hidden, inner, std) = (c.hidden_size, c.intermediate_size, c.initializer_range);
        Ok(BertLayer {
            attention: b.scope("attention", |b| {
                Ok::<_, Error>(BertAttention {
                    self_: b.scope("self", |b| {
                        Ok::<_, Error>(BertSelfAttention {
                            query: b.projection("query", (hidden, hidden), true, std)?,
                            key: b.projection("key", (hidden, hidden), true, std)?,
                            value: b.projection("value", (hidden, hidden), true, std)?,
                            heads: c.num_attention_heads,
                            dropout: c.attention_probs_dropout_prob,
                        })
                    })?,
                    output: b.scope("output", |b| BertOutput::new(c, hidden, b))?,
                })
            })?,
            intermediate: b.scope("intermediate", |b| {
                let dense = b.projection("dense", (hidden, inner), true, std)?;
                Ok::<_, Error>(BertIntermediate { dense })
            })?,
            output: b.scope("output", |b| BertOutput::new(c, inner, b))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, cx: &mut Ctx) -> Result<Tensor> {
        let x = cx.scope("attention", |cx| {
            let y = cx.scope("self", |cx| self.attention.self_.forward(x, mask, cx))?;
            cx.scope("output", |cx| self.attention.output.forward(&y, x, cx))
        })?;
        let h = cx.scope("intermediate", |cx| {
            cx.call("dense", &self.intermediate.dense, &x)?.gelu()
        })?;
        cx.scope("output", |cx| self.output.forward(&h, &x, cx))
    }
}

impl Bert {
    /// A model whose parameters `builder` makes under the published names.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn new(config: BertConfig, builder: &mut Builder) -> Result<Bert> {
        let (c, b) = (&config, builder);
        let (hidden, std) = (c.hidden_size, c.initializer_range);
        let bert = b.scope("bert", |b| {
            Ok::<_, Error>(BertModel {
                embeddings: b.scope("embeddings", |b| BertEmbeddings::new(c, b))?,
                encoder: b.scope("encoder", |b| {
                    let layer = |i: usize, b: &mut Builder| {
                        b.scope("layer", |b| {
                            b.scope(i.to_string(), |b| BertLayer::new(c, b))
                        })
                    };
                    let layer = (0..c.num_hidden_layers).map(|i| layer(i, b));
                    Ok::<_, Error>(BertEncoder {
                        layer: layer.collect::<Result<_>>()?,
                    })
                })?,
                pooler: (c.head != BertHead::MaskedLm)
                    .then(|| {
                        b.scope("pooler", |b| {
                            let dense = b.linear("dense", (hidden, hidden), true, std)?;
                            Ok::<_, Error>(BertPooler { dense })
                        })
                    })
                    .transpose()?,
            })
        })?;
        let cls = (c.head == BertHead::MaskedLm)
            .then(|| b.scope("cls", |b| BertWords::new(c, b)))
            .transpose()?;
        let classifier = match c.head {
            BertHead::Classes(count) => Some(b.linear("classifier", (hidden, count), true, std)?),
            _ => None,
        };
        Ok(Bert {
            bert,
            cls,
            classifier,
            dropout: Dropout::new(c.classifier_dropout)?,
            config,
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The vectors of the last block, `[batch, time, hidden]`.
    ///
    /// # Errors
    /// When the tokens are not `[batch, time]` integers below the vocabulary, the sequence is too
    /// long, or token types or the mask have another shape.
    pub fn features(&self, tokens: &Tensor, input: BertInput<'_>, cx: &mut Ctx) -> Result<Tensor> {
        let &[batch, time] = tokens.dims() else {
            return Err(Error::shape("bert", "tokens [batch, time]", tokens.shape()));
        };
        let longest = self.config.max_position_embeddings;
        if time > longest {
            return Err(Error::argument(
                "bert",
                format!("at most {longest} tokens"),
                format!("{time} tokens"),
            ));
        }
        for other in [input.token_types, input.mask].into_iter().flatten() {
            if other.shape() != tokens.shape() {
                return Err(Error::shape("bert", tokens.shape(), other.shape()));
            }
        }
        let mask = input
            .mask
            .map(|m| m.to_dtype(DType::Bool)?.reshape([batch, 1, 1, time]))
            .transpose()?;
        cx.scope("bert", |cx| {
            let mut x = cx.scope("embeddings", |cx| {
                self.bert.embeddings.forward(tokens, input.token_types, cx)
            })?;
            for (i, layer) in self.bert.encoder.layer.iter().enumerate() {
                x = cx.scope(&format!("encoder.layer.{i}"), |cx| {
                    layer.forward(&x, mask.as_ref(), cx)
                })?;
            }
            Ok(x)
        })
    }

    /// What the head says of the tokens; see [`Bert`].
    ///
    /// # Errors
    /// As [`Bert::features`].
    pub fn forward_with(
        &self,
        tokens: &Tensor,
        input: BertInput<'_>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let x = self.features(tokens, input, cx)?;
        if let Some(cls) = &self.cls {
            return cx.scope("cls.predictions", |cx| {
                cls.predictions
                    .forward(&x, &self.bert.embeddings.word_embeddings.weight, cx)
            });
        }
        let (Some(classifier), Some(pooler)) = (&self.classifier, &self.bert.pooler) else {
            return Ok(x);
        };
        let first = x.select(1, 0)?;
        let pooled = cx.scope("bert.pooler", |cx| {
            cx.call("dense", &pooler.dense, &first)?.tanh()
        })?;
        let pooled = cx.call("dropout", &self.dropout, &pooled)?;
        cx.call("classifier", classifier, &pooled)
    }

    /// One vector per sequence, `[batch, hidden]`: the mean of its tokens' vectors, of length 1
    /// (Reimers and Gurevych, "Sentence-BERT", 2019).
    ///
    /// # Errors
    /// As [`Bert::features`].
    pub fn embed(&self, tokens: &Tensor, input: BertInput<'_>, cx: &mut Ctx) -> Result<Tensor> {
        let x = self.features(tokens, input, cx)?;
        let mean = match input.mask {
            None => x.mean_dim(&[1], false)?,
            Some(mask) => {
                let weight = mask.to_dtype(x.dtype())?.unsqueeze(-1)?;
                let sum = x.mul(&weight)?.sum_dim(&[1], false)?;
                sum.div(&weight.sum_dim(&[1], false)?.clamp(Some(1e-9), None)?)?
            }
        };
        mean.normalize(2.0, 1, 1e-12)
    }
}

impl BertEmbeddings {
    fn new(c: &BertConfig, b: &mut Builder) -> Result<BertEmbeddings> {
        let (hidden, std) = (c.hidden_size, c.initializer_range);
        let mut table = |name: &str, count: usize| b.embedding(name, count, hidden, std);
        Ok(BertEmbeddings {
            word_embeddings: table("word_embeddings", c.vocab_size)?,
            position_embeddings: table("position_embeddings", c.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", c.type_vocab_size)?,
            layer_norm: b.layer_norm("LayerNorm", hidden, c.layer_norm_eps)?,
            dropout: Dropout::new(c.hidden_dropout_prob)?,
            padding: c.pad_token_id,
        })
    }

    fn forward(&self, tokens: &Tensor, types: Option<&Tensor>, cx: &mut Ctx) -> Result<Tensor> {
        let time = tokens.dims()[1];
        let positions = Tensor::arange(0.0, time as f64, 1.0, DType::I64)?;
        let zeros = Tensor::zeros([time], DType::I64);
        let x = cx.call("word_embeddings", &self.word_embeddings, tokens)?;
        let mut x = cx.noisy_embedding(&x)?;
        if let Some(padding) = self.padding {
            // Looking a padding token up teaches its vector nothing (`padding_idx` of PyTorch).
            let is_padding = tokens.eq_scalar(padding as f64)?.unsqueeze(-1)?;
            x = Tensor::where_(&is_padding, &x.detach(), &x)?;
        }
        let types = types.unwrap_or(&zeros);
        let x = x.add(&cx.call("token_type_embeddings", &self.token_type_embeddings, types)?)?;
        let x = x.add(&cx.call("position_embeddings", &self.position_embeddings, &positions)?)?;
        let x = cx.call("LayerNorm", &self.layer_norm, &x)?;
        cx.call("dropout", &self.dropout, &x)
    }
}

impl BertWords {
    fn new(c: &BertConfig, b: &mut Builder) -> Result<BertWords> {
        let (hidden, std) = (c.hidden_size, c.initializer_range);
        let predictions = b.scope("predictions", |b| {
            Ok::<_, Error>(BertPredictions {
                bias: Parameter::new(b.tensor("bias", [c.vocab_size], Start::Constant(0.0))?)?,
                transform: b.scope("transform", |b| {
                    Ok::<_, Error>(BertTransform {
                        dense: b.linear("dense", (hidden, hidden), true, std)?,
                        layer_norm: b.layer_norm("LayerNorm", hidden, c.layer_norm_eps)?,
                    })
                })?,
            })
        })?;
        Ok(BertWords { predictions })
    }
}

impl BertPredictions {
    fn forward(&self, x: &Tensor, words: &Parameter, cx: &mut Ctx) -> Result<Tensor> {
        let h = cx.scope("transform", |cx| {
            let h = cx.call("dense", &self.transform.dense, x)?.gelu()?;
            cx.call("LayerNorm", &self.transform.layer_norm, &h)
        })?;
        h.linear(&words.tensor(), Some(&self.bias.tensor()))
    }
}

impl Projections for Bert {
    fn visit_projections(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>,
    ) -> Result<()> {
        for (i, layer) in self.bert.encoder.layer.iter_mut().enumerate() {
            let attention = &mut layer.attention;
            for (name, projection) in [
                ("attention.self.query", &mut attention.self_.query),
                ("attention.self.key", &mut attention.self_.key),
                ("attention.self.value", &mut attention.self_.value),
                ("attention.output.dense", &mut attention.output.dense),
                ("intermediate.dense", &mut layer.intermediate.dense),
                ("output.dense", &mut layer.output.dense),
            ] {
                visit(&format!("bert.encoder.layer.{i}.{name}"), projection)?;
            }
        }
        Ok(())
    }
}

impl Module for Bert {
    fn forward(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        self.forward_with(tokens, BertInput::default(), cx)
    }
}

/// Brings the names of older files to ours: `gamma` and `beta` of norms; the encoder alone without
/// its prefix; the tied decoder and the unused parts are dropped.
pub(crate) fn modern_names(arrays: Vec<(String, Array)>, head: BertHead) -> Vec<(String, Array)> {
    let dropped = |name: &str| {
        let pooled = name.starts_with("bert.pooler.") && head == BertHead::MaskedLm;
        let words = name.starts_with("cls.") && head != BertHead::MaskedLm;
        pooled
            || words
            || name.starts_with("cls.seq_relationship.")
            || name.starts_with("cls.predictions.decoder.")
            || name.ends_with("embeddings.position_ids")
    };
    let renamed = |name: String| {
        let name = match name.strip_suffix(".gamma") {
            Some(stem) => format!("{stem}.weight"),
            None => name,
        };
        let name = match name.strip_suffix(".beta") {
            Some(stem) => format!("{stem}.bias"),
            None => name,
        };
        let bare = ["embeddings.", "encoder.", "pooler."];
        if bare.iter().any(|b| name.starts_with(b)) {
            format!("bert.{name}")
        } else {
            name
        }
    };
    arrays
        .into_iter()
        .map(|(name, array)| (renamed(name), array))
        .filter(|(name, _)| !dropped(name))
        .collect()
}
