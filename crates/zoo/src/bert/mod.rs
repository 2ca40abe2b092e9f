//! [`Bert`]: the encoder of BERT with its heads for masked words and for classes.
//!
//! Devlin et al., "BERT" (2018): learned positions and token types, post-norm blocks, erf GELU.
//! Field names are those of transformers' `BertForMaskedLM` and `BertForSequenceClassification`;
//! files of the first release, which say `gamma` and `beta`, are read too. `config.rs` reads
//! `config.json`, `layers.rs` holds the parts, `names.rs` knows older names, `sentence.rs` makes one
//! vector of a text.

mod config;
mod layers;
mod names;
mod sentence;

use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_nn::{Ctx, Dropout, Linear, Lookup, Module, Projection, Projections};

pub use config::{BertConfig, BertHead};
pub use layers::{
    BertAttention, BertEmbeddings, BertEncoder, BertIntermediate, BertLayer, BertModel, BertOutput,
    BertPooler, BertPredictions, BertSelfAttention, BertTransform, BertWords,
};
pub(crate) use names::modern_names;
pub use sentence::{Pooling, PoolingMode, TokenRows};

use crate::build::Builder;

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
                // Published encoders come with and without one.
                pooler: (c.head != BertHead::MaskedLm
                    && (c.head != BertHead::None || b.has("pooler.dense.weight")))
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

    /// The words' logits `[chosen, vocabulary]` of those positions whose target, i64
    /// `[batch, time]`, is not -100, and their targets `[chosen]`. The head, which costs most, does
    /// not look at the others.
    ///
    /// # Errors
    /// As [`Bert::features`]; when the targets have another shape or the model has no head for words.
    pub fn hidden_words(
        &self,
        tokens: &Tensor,
        targets: &Tensor,
        input: BertInput<'_>,
        cx: &mut Ctx,
    ) -> Result<(Tensor, Tensor)> {
        let Some(cls) = &self.cls else {
            return Err(Error::argument(
                "bert",
                "a model with a head for words (BertForMaskedLM)",
                "one without",
            ));
        };
        if targets.shape() != tokens.shape() {
            return Err(Error::shape("bert", tokens.shape(), targets.shape()));
        }
        let targets = targets.to_vec::<i64>()?;
        let chosen = targets.iter().zip(0i64..).filter(|(t, _)| **t != -100);
        let (words, places): (Vec<i64>, Vec<i64>) = chosen.map(|(t, at)| (*t, at)).unzip();
        let count = words.len();
        let places = Tensor::from_vec(places, [count])?;
        let x = self.features(tokens, input, cx)?;
        let x = x.flatten(0, 1)?.index_select(0, &places)?;
        let logits = cx.scope("cls.predictions", |cx| {
            cls.predictions
                .forward(&x, &self.bert.embeddings.word_embeddings.weight, cx)
        })?;
        Ok((logits, Tensor::from_vec(words, [count])?))
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

    fn visit_lookups(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Lookup) -> Result<()>,
    ) -> Result<()> {
        let tables = &mut self.bert.embeddings;
        for (name, table) in [
            ("word_embeddings", &mut tables.word_embeddings),
            ("position_embeddings", &mut tables.position_embeddings),
            ("token_type_embeddings", &mut tables.token_type_embeddings),
        ] {
            visit(&format!("bert.embeddings.{name}"), table)?;
        }
        Ok(())
    }
}

impl Module for Bert {
    fn forward(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        self.forward_with(tokens, BertInput::default(), cx)
    }
}
