//! [`RMSNorm`].

use entrenar_core::{Result, Shape, Tensor};

use crate::{Ctx, Init, Module, Parameter};

/// x / √(mean(x²) + ε) · weight over the last dimensions (`torch.nn.RMSNorm`; Zhang, Sennrich
/// 2019).
///
/// ```
/// use entrenar_nn::{Ctx, Init, Module, RMSNorm};
/// use entrenar_core::Tensor;
/// let norm = RMSNorm::new([2], 1e-6, &Init::new(0))?;
/// let y = norm.forward(&Tensor::from_vec(vec![1.0f32, -1.0], [2])?, &mut Ctx::eval())?;
/// assert!((y.to_vec::<f32>()?[0] - 1.0).abs() < 1e-5);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct RMSNorm {
    /// Of the normalised shape, starting at 1.
    pub weight: Parameter,
    eps: f64,
}

impl RMSNorm {
    /// Over the last dimensions, which have this shape.
    ///
    /// # Errors
    /// When the size overflows.
    #[track_caller]
    pub fn new(shape: impl Into<Shape>, eps: f64, init: &Init) -> Result<RMSNorm> {
        RMSNorm::from_tensor(init.ones(shape)?, eps)
    }

    /// A norm with this initial weight, which has the normalised shape.
    ///
    /// # Errors
    /// When the dtype is not a float.
    #[track_caller]
    pub fn from_tensor(weight: Tensor, eps: f64) -> Result<RMSNorm> {
        Ok(RMSNorm {
            weight: Parameter::new(weight)?,
            eps,
        })
    }

    /// The norm of `x + residual`, and that sum, in one pass over memory: for blocks that normalise
    /// what a shortcut was added to. The bits are those of one after the other.
    ///
    /// # Errors
    /// When the shapes do not broadcast, or the sum does not end with the normalised shape.
    #[track_caller]
    pub fn of_sum(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        let weight = self.weight.tensor();
        super::ends_with("RMSNorm", x, weight.shape())?;
        x.add_rms_norm(residual, weight.rank(), Some(&weight), self.eps)
    }
}

impl Module for RMSNorm {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        let weight = self.weight.tensor();
        super::ends_with("RMSNorm", x, weight.shape())?;
        x.rms_norm(weight.rank(), Some(&weight), self.eps)
    }
}
