//! [`MultiHeadAttention`]: self-attention with one matrix for queries, keys and values.

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::{Error, Result, Tensor};

use super::{Dropout, Linear};
use crate::{Ctx, Init, Module};

/// Settings of [`MultiHeadAttention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiHeadAttentionOptions {
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
    /// Probability of dropping an attention weight and an output.
    pub dropout: f64,
    /// Whether the layers have biases.
    pub bias: bool,
}

impl Default for MultiHeadAttentionOptions {
    fn default() -> Self {
        MultiHeadAttentionOptions {
            causal: false,
            dropout: 0.0,
            bias: true,
        }
    }
}

/// Self-attention over `[batch, time, width]` (Vaswani et al., "Attention is all you need", 2017).
///
/// `qkv` is PyTorch's `in_proj`, `proj` its `out_proj`; both start as linear layers do.
///
/// ```
/// use entrenar_nn::{Ctx, Init, Module, MultiHeadAttention, MultiHeadAttentionOptions};
/// use entrenar_core::{DType, Tensor};
/// let causal = MultiHeadAttentionOptions { causal: true, ..Default::default() };
/// let layer = MultiHeadAttention::new(8, 2, causal, &mut Init::new(0))?;
/// let y = layer.forward(&Tensor::ones([1, 5, 8], DType::F32), &mut Ctx::eval())?;
/// assert_eq!(y.dims(), [1, 5, 8]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct MultiHeadAttention {
    /// `[3 width, width]`: queries, then keys, then values.
    pub qkv: Linear,
    /// `[width, width]`.
    pub proj: Linear,
    heads: usize,
    causal: bool,
    dropout: Dropout,
}

impl MultiHeadAttention {
    /// For vectors of `width` numbers in `heads` heads.
    ///
    /// # Errors
    /// When `heads` does not divide `width`, the size overflows, or the dropout is no probability.
    #[track_caller]
    pub fn new(
        width: usize,
        heads: usize,
        options: MultiHeadAttentionOptions,
        init: &mut Init,
    ) -> Result<MultiHeadAttention> {
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::argument(
                "MultiHeadAttention",
                format!("a number of heads that divides the width {width}"),
                heads,
            ));
        }
        Ok(MultiHeadAttention {
            qkv: Linear::maybe_bias(width, 3 * width, options.bias, init)?,
            proj: Linear::maybe_bias(width, width, options.bias, init)?,
            heads,
            causal: options.causal,
            dropout: Dropout::new(options.dropout)?,
        })
    }

    /// [`Module::forward`] with a mask that broadcasts to `[batch, heads, time, time]`: bool
    /// keeps where true, floats are added to the scores.
    ///
    /// # Errors
    /// When the input is not `[batch, time, width]` or the mask does not broadcast.
    #[track_caller]
    pub fn forward_masked(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let y = self.heads_of(x, mask, cx)?;
        let y = cx.call("proj", &self.proj, &y)?;
        self.dropout.forward(&y, cx)
    }

    /// [`Module::forward`] added to `residual`, in the last product's pass unless dropout stands
    /// between.
    ///
    /// # Errors
    /// When the input is not `[batch, time, width]` or the residual has another shape.
    #[track_caller]
    pub fn onto(&self, x: &Tensor, residual: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        if cx.is_training() && self.dropout.p() > 0.0 {
            return residual.add(&self.forward(x, cx)?);
        }
        let y = self.heads_of(x, None, cx)?;
        cx.scope("proj", |_| self.proj.onto(&y, residual))
    }

    /// What the heads found, side by side: `[batch, time, width]`.
    #[track_caller]
    fn heads_of(&self, x: &Tensor, mask: Option<&Tensor>, cx: &mut Ctx) -> Result<Tensor> {
        if x.rank() != 3 {
            return Err(Error::shape(
                "MultiHeadAttention",
                "an input [batch, time, width]",
                x.shape(),
            ));
        }
        let joint = cx.call("qkv", &self.qkv, x)?;
        let dropout = (cx.is_training() && self.dropout.p() > 0.0).then(|| {
            let (seed, stream) = cx.key();
            (self.dropout.p(), seed, stream)
        });
        let options = AttentionOptions {
            mask: mask.cloned(),
            causal: self.causal,
            dropout,
            ..Default::default()
        };
        joint.packed_attention(self.heads, self.heads, &options)
    }
}

impl Module for MultiHeadAttention {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        self.forward_masked(x, None, cx)
    }
}
