//! The parts of BERT under their published names: embeddings, blocks, and what comes before the
//! words' logits.

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_nn::{Ctx, Dropout, LayerNorm, Linear, Lookup, Module, Parameter, Projection};

use super::{BertConfig, BertHead};
use crate::build::{Builder, Start};

/// Words, positions and token types, added and normalised.
#[derive(Module)]
pub struct BertEmbeddings {
    /// Token embedding.
    pub word_embeddings: Lookup,
    /// Position embedding.
    pub position_embeddings: Lookup,
    /// Token type embedding.
    pub token_type_embeddings: Lookup,
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

impl BertOutput {
    pub(super) fn new(c: &BertConfig, inputs: usize, b: &mut Builder) -> Result<BertOutput> {
        Ok(BertOutput {
            dense: b.projection("dense", (inputs, c.hidden_size), true, c.initializer_range)?,
            layer_norm: b.layer_norm("LayerNorm", c.hidden_size, c.layer_norm_eps)?,
            dropout: Dropout::new(c.hidden_dropout_prob)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, residual: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let y = cx.call("dense", &self.dense, x)?;
        let y = cx.call("dropout", &self.dropout, &y)?;
        let (y, _) = cx.scope("LayerNorm", |_| self.layer_norm.of_sum(&y, residual))?;
        Ok(y)
    }
}

impl BertSelfAttention {
    /// `x` `[batch, time, hidden]`; `mask` `[batch, 1, 1, time]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
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
    pub(super) fn new(c: &BertConfig, b: &mut Builder) -> Result<BertLayer> {
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

    pub(super) fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
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

impl BertEmbeddings {
    pub(super) fn new(c: &BertConfig, b: &mut Builder) -> Result<BertEmbeddings> {
        let (hidden, std) = (c.hidden_size, c.initializer_range);
        let words = c.head == BertHead::MaskedLm;
        let mut table = |name: &str, count: usize| {
            let tied = words && name == "word_embeddings";
            b.lookup(name, (count, hidden), std, tied)
        };
        Ok(BertEmbeddings {
            word_embeddings: table("word_embeddings", c.vocab_size)?,
            position_embeddings: table("position_embeddings", c.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", c.type_vocab_size)?,
            layer_norm: b.layer_norm("LayerNorm", hidden, c.layer_norm_eps)?,
            dropout: Dropout::new(c.hidden_dropout_prob)?,
            padding: c.pad_token_id,
        })
    }

    pub(super) fn forward(
        &self,
        tokens: &Tensor,
        types: Option<&Tensor>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
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
    pub(super) fn new(c: &BertConfig, b: &mut Builder) -> Result<BertWords> {
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
    pub(super) fn forward(&self, x: &Tensor, words: &Parameter, cx: &mut Ctx) -> Result<Tensor> {
        let h = cx.scope("transform", |cx| {
            let h = cx.call("dense", &self.transform.dense, x)?.gelu()?;
            cx.call("LayerNorm", &self.transform.layer_norm, &h)
        })?;
        h.linear(&words.tensor(), Some(&self.bias.tensor()))
    }
}
