//! [`Projection`]: a linear layer that can be exchanged for an adapted one, and [`Projections`]:
//! the models that have such layers.
//!
//! Fine-tuning methods (low-rank adapters, quantized bases) replace linear layers of a finished
//! model by layers of their own. They need to find each by name and to take it out and put
//! another in; they stand above this crate, which knows only the seam.

use std::any::Any;

use entrenar_core::{Result, Tensor};

use super::Linear;
use crate::{Ctx, Module, Parameter, Parameters, Visitor};

/// y = x W + b with the weight stored `[in, out]`: `Conv1D` of GPT-2's checkpoints.
#[derive(Clone, Debug, Module)]
pub struct TransposedLinear {
    /// `[in, out]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
}

impl Module for TransposedLinear {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Parameter::tensor);
        x.linear(&self.weight.tensor().t()?, bias.as_ref())
    }
}

/// A layer that stands where a linear one was.
pub trait AdaptedLayer: Module {
    /// For those who put it there.
    fn as_any(&self) -> &dyn Any;
    /// For those who put it there.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// Gives up the layer; what can take its place again is returned.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
    /// (inputs, outputs).
    fn sizes(&self) -> (usize, usize);
}

/// A linear layer, or what stands in its place.
pub enum Projection {
    /// Weight `[out, in]`.
    Linear(Linear),
    /// Weight `[in, out]`.
    Transposed(TransposedLinear),
    /// Another layer of the same sizes.
    Adapted(Box<dyn AdaptedLayer>),
}

impl Projection {
    /// (inputs, outputs).
    pub fn sizes(&self) -> (usize, usize) {
        match self {
            Projection::Linear(l) => (l.weight.shape()[1], l.weight.shape()[0]),
            Projection::Transposed(l) => (l.weight.shape()[0], l.weight.shape()[1]),
            Projection::Adapted(l) => l.sizes(),
        }
    }

    /// The weight as `[out, in]` and the parameter that holds it; `None` for an adapted layer.
    ///
    /// # Errors
    /// When the weight is no matrix.
    pub fn matrix(&self) -> Result<Option<(Tensor, &Parameter)>> {
        Ok(match self {
            Projection::Linear(l) => Some((l.weight.tensor(), &l.weight)),
            Projection::Transposed(l) => Some((l.weight.tensor().t()?, &l.weight)),
            Projection::Adapted(_) => None,
        })
    }

    /// The bias, `[out]`; `None` where there is none, and for an adapted layer.
    pub fn bias(&self) -> Option<&Parameter> {
        match self {
            Projection::Linear(l) => l.bias.as_ref(),
            Projection::Transposed(l) => l.bias.as_ref(),
            Projection::Adapted(_) => None,
        }
    }

    /// Exchanges the layer for what `change` makes of it. When `change` fails, the layer is gone
    /// and the model must not be used.
    ///
    /// # Errors
    /// What `change` reports.
    pub fn replace(&mut self, change: impl FnOnce(Projection) -> Result<Projection>) -> Result<()> {
        let held = std::mem::replace(self, Projection::Adapted(Box::new(Nothing)));
        *self = change(held)?;
        Ok(())
    }
}

impl From<Linear> for Projection {
    fn from(layer: Linear) -> Projection {
        Projection::Linear(layer)
    }
}

impl Parameters for Projection {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        match self {
            Projection::Linear(l) => l.visit(visitor),
            Projection::Transposed(l) => l.visit(visitor),
            Projection::Adapted(l) => l.visit(visitor),
        }
    }
}

impl Module for Projection {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        match self {
            Projection::Linear(l) => l.forward(x, cx),
            Projection::Transposed(l) => l.forward(x, cx),
            Projection::Adapted(l) => l.forward(x, cx),
        }
    }
}

/// Stands in a projection while its layer is being exchanged.
struct Nothing;

impl Parameters for Nothing {
    fn visit(&self, _: &mut Visitor<'_>) {}
}

impl Module for Nothing {
    fn forward(&self, _: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        Err(entrenar_core::Error::other(
            "this layer was lost when an adapter could not be put in its place",
        ))
    }
}

impl AdaptedLayer for Nothing {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
    fn sizes(&self) -> (usize, usize) {
        (0, 0)
    }
}

/// A model whose linear layers can be exchanged.
pub trait Projections: Parameters {
    /// Calls `visit` with the path of each projection and the projection, in field order.
    ///
    /// # Errors
    /// The first that `visit` reports.
    fn visit_projections(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>,
    ) -> Result<()>;
}
