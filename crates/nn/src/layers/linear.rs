//! [`Linear`]: y = x Wᵀ + b.

use entrenar_core::ops::linear::{self, LinearOptions};
use entrenar_core::{Result, Tensor};

use super::Activation;
use crate::{Ctx, Init, Module, Parameter};

/// y = x Wᵀ + b over the last dimension: `[…, in]` → `[…, out]` (`torch.nn.Linear`).
///
/// Weight and bias start uniform in ±1/√in.
///
/// ```
/// use entrenar_nn::{Ctx, Init, Linear, Module};
/// use entrenar_core::{DType, Tensor};
/// let layer = Linear::new(3, 2, &mut Init::new(0))?;
/// let y = layer.forward(&Tensor::ones([5, 3], DType::F32), &mut Ctx::eval())?;
/// assert_eq!(y.dims(), [5, 2]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
}

/// The name of [`Linear`] in Keras.
pub type Dense = Linear;

impl Linear {
    /// A layer with bias.
    ///
    /// # Errors
    /// When the size overflows.
    #[track_caller]
    pub fn new(inputs: usize, outputs: usize, init: &mut Init) -> Result<Linear> {
        let weight = init.default_weight([outputs, inputs])?;
        let bias = init.default_bias(&weight)?;
        Linear::from_tensors(weight, Some(bias))
    }

    /// A layer without bias. Errors as [`Linear::new`].
    #[track_caller]
    pub fn without_bias(inputs: usize, outputs: usize, init: &mut Init) -> Result<Linear> {
        Linear::from_tensors(init.default_weight([outputs, inputs])?, None)
    }

    pub(super) fn maybe_bias(
        inputs: usize,
        outputs: usize,
        bias: bool,
        init: &mut Init,
    ) -> Result<Linear> {
        if bias {
            Linear::new(inputs, outputs, init)
        } else {
            Linear::without_bias(inputs, outputs, init)
        }
    }

    /// A layer with these initial values: weight `[out, in]`, bias `[out]`.
    ///
    /// # Errors
    /// When the dtypes are not floats.
    #[track_caller]
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Result<Linear> {
        Ok(Linear {
            weight: Parameter::new(weight)?,
            bias: bias.map(Parameter::new).transpose()?,
        })
    }

    /// act(x Wᵀ + b), in one pass where the two are one operation.
    ///
    /// # Errors
    /// When the input does not end in `in` features.
    #[track_caller]
    pub fn activated(&self, x: &Tensor, activation: &Activation) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Parameter::tensor);
        let fused = match activation {
            Activation::Relu => linear::Activation::Relu,
            Activation::Gelu => linear::Activation::Gelu,
            Activation::GeluTanh => linear::Activation::GeluTanh,
            Activation::Silu => linear::Activation::Silu,
            other => {
                return other.apply(&x.linear(&self.weight.tensor(), bias.as_ref())?);
            }
        };
        let options = LinearOptions {
            activation: fused,
            ..Default::default()
        };
        x.linear_with(&self.weight.tensor(), bias.as_ref(), &options)
    }

    /// x Wᵀ + b + residual, in one pass.
    ///
    /// # Errors
    /// When the input does not end in `in` features or the residual has another shape than the
    /// result.
    #[track_caller]
    pub fn onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let options = LinearOptions {
            residual: Some(residual.clone()),
            ..Default::default()
        };
        let bias = self.bias.as_ref().map(Parameter::tensor);
        x.linear_with(&self.weight.tensor(), bias.as_ref(), &options)
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Parameter::tensor);
        x.linear(&self.weight.tensor(), bias.as_ref())
    }
}
