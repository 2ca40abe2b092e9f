//! [`FeedForward`]: the two linear layers of a transformer block.

use entrenar_core::{Result, Tensor};

use super::{Activation, Dropout, Linear};
use crate::{Ctx, Init, Module};

/// Settings of [`FeedForward`].
#[derive(Clone, Debug)]
pub struct FeedForwardOptions {
    /// Size of the hidden layer; four times the width when absent.
    pub hidden: Option<usize>,
    /// Between the layers.
    pub activation: Activation,
    /// Probability of dropping an output.
    pub dropout: f64,
    /// Whether the layers have biases.
    pub bias: bool,
}

impl Default for FeedForwardOptions {
    fn default() -> Self {
        FeedForwardOptions {
            hidden: None,
            activation: Activation::GeluTanh,
            dropout: 0.0,
            bias: true,
        }
    }
}

/// `[…, width]` → hidden → activation → `[…, width]`, then dropout.
#[derive(Clone, Debug, Module)]
pub struct FeedForward {
    /// `[hidden, width]`.
    pub fc: Linear,
    /// `[width, hidden]`.
    pub proj: Linear,
    activation: Activation,
    dropout: Dropout,
}

impl FeedForward {
    /// For vectors of `width` numbers.
    ///
    /// # Errors
    /// When the size overflows or the dropout is no probability.
    #[track_caller]
    pub fn new(width: usize, options: FeedForwardOptions, init: &mut Init) -> Result<FeedForward> {
        let hidden = options.hidden.unwrap_or(4 * width);
        Ok(FeedForward {
            fc: Linear::maybe_bias(width, hidden, options.bias, init)?,
            proj: Linear::maybe_bias(hidden, width, options.bias, init)?,
            activation: options.activation,
            dropout: Dropout::new(options.dropout)?,
        })
    }
}

impl FeedForward {
    /// [`Module::forward`] added to `residual`, in the last product's pass unless dropout stands
    /// between.
    ///
    /// # Errors
    /// When the input does not end in `width` features or the residual has another shape.
    #[track_caller]
    pub fn onto(&self, x: &Tensor, residual: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        if cx.is_training() && self.dropout.p() > 0.0 {
            return residual.add(&self.forward(x, cx)?);
        }
        let h = cx.scope("fc", |_| self.fc.activated(x, &self.activation))?;
        cx.scope("proj", |_| self.proj.onto(&h, residual))
    }
}

impl Module for FeedForward {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let h = cx.scope("fc", |_| self.fc.activated(x, &self.activation))?;
        let y = cx.call("proj", &self.proj, &h)?;
        self.dropout.forward(&y, cx)
    }
}
