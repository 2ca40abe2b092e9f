//! [`TransformerBlock`]: attention and feed-forward, each behind a norm and beside a shortcut.

use entrenar_core::{Result, Tensor};

use super::{
    Activation, FeedForward, FeedForwardOptions, LayerNorm, LayerNormOptions, MultiHeadAttention,
    MultiHeadAttentionOptions,
};
use crate::{Ctx, Init, Module};

/// Settings of [`TransformerBlock`].
#[derive(Clone, Debug)]
pub struct TransformerBlockOptions {
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
    /// Probability of dropping an attention weight or an output of either part.
    pub dropout: f64,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
    /// Size of the feed-forward layer; four times the width when absent.
    pub hidden: Option<usize>,
    /// Within the feed-forward part.
    pub activation: Activation,
}

impl Default for TransformerBlockOptions {
    fn default() -> Self {
        TransformerBlockOptions {
            causal: false,
            dropout: 0.0,
            bias: true,
            hidden: None,
            activation: Activation::GeluTanh,
        }
    }
}

/// x + attn(ln1(x)), then x + mlp(ln2(x)): the pre-norm block of GPT-2 (Radford et al. 2019).
///
/// ```
/// use entrenar_nn::{Ctx, Init, Parameters, TransformerBlock, TransformerBlockOptions};
/// use entrenar_core::{DType, Tensor};
/// let options = TransformerBlockOptions { causal: true, ..Default::default() };
/// let block = TransformerBlock::new(8, 2, options, &mut Init::new(0))?;
/// assert_eq!(block.named_parameters()[2].0, "attn.qkv.weight");
/// // Keeps only its input for the backward pass:
/// let y = Ctx::train(0, 0).checkpoint(&block, &Tensor::ones([1, 4, 8], DType::F32))?;
/// assert_eq!(y.dims(), [1, 4, 8]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct TransformerBlock {
    /// Before attention.
    pub ln1: LayerNorm,
    /// Self-attention.
    pub attn: MultiHeadAttention,
    /// Before the feed-forward part.
    pub ln2: LayerNorm,
    /// The feed-forward part.
    pub mlp: FeedForward,
}

impl TransformerBlock {
    /// For vectors of `width` numbers in `heads` heads.
    ///
    /// # Errors
    /// When `heads` does not divide `width`, the size overflows, or the dropout is no probability.
    #[track_caller]
    pub fn new(
        width: usize,
        heads: usize,
        options: TransformerBlockOptions,
        init: &mut Init,
    ) -> Result<TransformerBlock> {
        let norm = LayerNormOptions {
            bias: options.bias,
            ..Default::default()
        };
        let attention = MultiHeadAttentionOptions {
            causal: options.causal,
            dropout: options.dropout,
            bias: options.bias,
        };
        let feed_forward = FeedForwardOptions {
            hidden: options.hidden,
            activation: options.activation,
            dropout: options.dropout,
            bias: options.bias,
        };
        Ok(TransformerBlock {
            ln1: LayerNorm::with_options([width], norm, init)?,
            attn: MultiHeadAttention::new(width, heads, attention, init)?,
            ln2: LayerNorm::with_options([width], norm, init)?,
            mlp: FeedForward::new(width, feed_forward, init)?,
        })
    }
}

impl Module for TransformerBlock {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let h = cx.call("ln1", &self.ln1, x)?;
        let x = cx.scope("attn", |cx| self.attn.onto(&h, x, cx))?;
        let h = cx.call("ln2", &self.ln2, &x)?;
        cx.scope("mlp", |cx| self.mlp.onto(&h, &x, cx))
    }
}
