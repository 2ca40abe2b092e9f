//! [`GradientTape`]: the scoped form of reverse mode, over the same machinery.

use std::cell::Cell;

use entrenar_base::{Error, Result};

use super::engine::gradients_at;
use super::graph::{Edge, Leaf};
use crate::Tensor;
use crate::tensor::Level;

/// Records what happens to the tensors it watches, and nothing else.
///
/// Tapes nest: a gradient taken on an inner tape of values that an outer tape watches is itself
/// recorded by the outer one, which gives second derivatives without any flag.
///
/// ```
/// use entrenar_core::{GradientTape, Tensor};
/// let outer = GradientTape::new();
/// let x = outer.variable(&Tensor::scalar(3.0f64))?;
/// let inner = GradientTape::new();
/// let xi = inner.variable(&x)?;
/// let y = xi.mul(&xi)?.mul(&xi)?;
/// let dy = inner.gradient(&y, &[&xi])?[0].clone().unwrap();
/// let d2y = outer.gradient(&dy, &[&x])?[0].clone().unwrap();
/// assert_eq!((dy.item::<f64>()?, d2y.item::<f64>()?), (27.0, 18.0));
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Debug)]
pub struct GradientTape {
    level: Level,
    persistent: bool,
    used: Cell<bool>,
}

impl Default for GradientTape {
    fn default() -> Self {
        Self::new()
    }
}

impl GradientTape {
    /// A tape that answers one [`GradientTape::gradient`] call.
    pub fn new() -> GradientTape {
        GradientTape {
            level: Level::fresh(),
            persistent: false,
            used: Cell::new(false),
        }
    }

    /// Makes the tape answer any number of calls; saved values live as long as the results.
    #[must_use]
    pub fn persistent(mut self) -> GradientTape {
        self.persistent = true;
        self
    }

    /// Watches a value: compute with the returned tensor.
    ///
    /// # Errors
    /// When the dtype is not a float, or the value belongs to a transform opened after this tape.
    #[track_caller]
    pub fn variable(&self, value: &Tensor) -> Result<Tensor> {
        if !value.dtype().is_float() {
            return Err(Error::dtype("variable", "a float tensor", value.dtype()));
        }
        if value.level() >= Some(self.level) {
            return Err(Error::autodiff(
                "variable",
                "this value is already watched here or belongs to a transform opened after this tape",
            ));
        }
        Ok(Tensor::reverse(
            self.level,
            value.clone(),
            Edge::Leaf(Leaf::new(value.aval())),
        ))
    }

    /// The value without what this tape knows of it; other tapes and transforms still follow it.
    ///
    /// An outer tape needs this to differentiate a result that was computed from an inner tape's
    /// variables:
    ///
    /// ```
    /// use entrenar_core::{GradientTape, Tensor};
    /// let outer = GradientTape::new();
    /// let x = outer.variable(&Tensor::scalar(3.0f64))?;
    /// let inner = GradientTape::new();
    /// let xi = inner.variable(&x)?;
    /// let y = xi.mul(&xi)?;
    /// assert!(outer.gradient(&y, &[&x]).is_err());
    /// let dy = outer.gradient(&inner.unwatch(&y), &[&x])?[0].clone().unwrap();
    /// assert_eq!(dy.item::<f64>()?, 6.0);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[must_use]
    pub fn unwatch(&self, value: &Tensor) -> Tensor {
        value.peel(self.level).clone()
    }

    /// Gradients of a scalar with respect to watched (or intermediate) values; `None` where the
    /// scalar does not depend on them.
    ///
    /// # Errors
    /// When `output` is not a scalar, or a non-persistent tape is used twice.
    #[track_caller]
    pub fn gradient(&self, output: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        if output.numel() != 1 {
            return Err(Error::autodiff(
                "gradient",
                format!(
                    "a gradient starts from a scalar, and this output has shape {}; use gradient_with",
                    output.shape()
                ),
            ));
        }
        self.gradient_with(output, &output.detach().ones_like(), inputs)
    }

    /// [`GradientTape::gradient`] from a given gradient of the output.
    ///
    /// # Errors
    /// When its shape or dtype differs from the output's, a non-persistent tape is used twice, or
    /// a value also belongs to a transform opened after this tape: its dependence on what that
    /// transform watches would be lost. [`GradientTape::unwatch`] takes it out of a later tape.
    #[track_caller]
    pub fn gradient_with(
        &self,
        output: &Tensor,
        output_gradient: &Tensor,
        inputs: &[&Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        for t in inputs.iter().chain([&output]) {
            if t.level() > Some(self.level) {
                return Err(Error::autodiff(
                    "gradient",
                    "this value also belongs to a transform opened after this tape (jvp, value_and_grad or another tape): take the gradient outside of it, use a tape made inside of it, or take the value out with unwatch of the later tape",
                ));
            }
        }
        if output_gradient.aval() != output.aval() {
            return Err(Error::shape(
                "gradient",
                format!("{:?}", output.aval()),
                format!("{:?}", output_gradient.aval()),
            ));
        }
        if self.used.replace(true) && !self.persistent {
            return Err(Error::autodiff(
                "gradient",
                "this tape was already used; make it with GradientTape::new().persistent() to ask twice",
            ));
        }
        let inputs: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
        let pair = (output.clone(), output_gradient.clone());
        gradients_at(self.level, &[pair], &inputs, false, self.persistent)
    }
}
