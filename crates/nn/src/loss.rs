//! Losses as values: the settings of a loss in a struct, applied by one method.
//!
//! The same losses are methods of `Tensor` (`cross_entropy`, `mse_loss`, …); these structs are for
//! code that is given a loss. Formulas and conventions are documented there.

use entrenar_core::ops::cross_entropy::CrossEntropy;
pub use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Result, Tensor};

/// A scalar (or, without reduction, one number per element) from a prediction and its target.
pub trait Loss: Send + Sync {
    /// The loss of `input` against `target`.
    ///
    /// # Errors
    /// When the shapes do not fit, or a target is impossible.
    fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor>;
}

impl<F> Loss for F
where
    F: Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync,
{
    fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor> {
        self(input, target)
    }
}

/// Softmax cross-entropy of logits `[N, C, …]` with class indices `[N, …]` or class probabilities
/// `[N, C, …]` (`torch.nn.CrossEntropyLoss`).
///
/// ```
/// use entrenar_nn::loss::{CrossEntropyLoss, Loss};
/// use entrenar_core::Tensor;
/// let logits = Tensor::from_vec(vec![0.0f64, 0.0], [1, 2])?;
/// let loss = CrossEntropyLoss::default().forward(&logits, &Tensor::from_vec(vec![1i64], [1])?)?;
/// assert!((loss.item::<f64>()? - 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct CrossEntropyLoss(pub CrossEntropy);

impl Loss for CrossEntropyLoss {
    fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor> {
        input.cross_entropy(target, &self.0)
    }
}

/// Sigmoid cross-entropy of logits with targets in [0, 1] (`torch.nn.BCEWithLogitsLoss`).
#[derive(Clone, Debug, Default)]
pub struct BCEWithLogitsLoss {
    /// Multiplies each element's loss; broadcasts.
    pub weight: Option<Tensor>,
    /// Multiplies the loss of positive targets; broadcasts.
    pub pos_weight: Option<Tensor>,
    /// How elements are combined.
    pub reduction: Reduction,
}

impl Loss for BCEWithLogitsLoss {
    fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor> {
        let (weight, positive) = (self.weight.as_ref(), self.pos_weight.as_ref());
        input.binary_cross_entropy_with_logits(target, weight, positive, self.reduction)
    }
}

macro_rules! of_difference {
    ($($(#[$doc:meta])* $name:ident, $method:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name {
            /// How elements are combined.
            pub reduction: Reduction,
        }

        impl Loss for $name {
            fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor> {
                input.$method(target, self.reduction)
            }
        }
    )*};
}

of_difference! {
    /// (input − target)² (`torch.nn.MSELoss`).
    MSELoss, mse_loss;
    /// |input − target| (`torch.nn.L1Loss`).
    L1Loss, l1_loss;
}

/// Quadratic below δ, linear above (`torch.nn.HuberLoss`).
#[derive(Clone, Copy, Debug)]
pub struct HuberLoss {
    /// Where the parabola ends.
    pub delta: f64,
    /// How elements are combined.
    pub reduction: Reduction,
}

impl Default for HuberLoss {
    fn default() -> Self {
        HuberLoss {
            delta: 1.0,
            reduction: Reduction::default(),
        }
    }
}

impl Loss for HuberLoss {
    fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor> {
        input.huber_loss(target, self.delta, self.reduction)
    }
}
