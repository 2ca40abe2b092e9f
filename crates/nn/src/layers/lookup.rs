//! [`Lookup`]: an embedding that can get an adapter, and [`LookupAdapter`]: what an adapter does.
//!
//! The table stays where it is, since an output layer may be tied to it; an adapter stands beside it
//! and decides what a lookup gives. Neighbour: `projection`, the same seam for linear layers.

use std::any::Any;

use entrenar_core::{Result, Tensor};

use super::Embedding;
use crate::{Ctx, Module, Parameter, Parameters, Visitor};

/// Changes what a table's lookups give.
pub trait LookupAdapter: Parameters + Send + Sync {
    /// The vectors `[.., width]` of `indices` `[..]`, for a table `[count, width]`.
    ///
    /// # Errors
    /// When the indices are no integers below `count`.
    fn look_up(&self, table: &Parameter, indices: &Tensor, cx: &mut Ctx) -> Result<Tensor>;
    /// For those who put it there.
    fn as_any(&self) -> &dyn Any;
    /// For those who put it there.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// Gives up the adapter.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// An [`Embedding`] that can get an adapter. The adapter's parameters are named as if they were its own.
///
/// ```
/// use entrenar_nn::{Ctx, Embedding, Init, Lookup, Module, Parameters};
/// use entrenar_core::Tensor;
/// let table = Lookup::from(Embedding::new(10, 4, &mut Init::new(0))?);
/// let tokens = Tensor::from_vec(vec![3i64, 9], [2])?;
/// assert_eq!(table.forward(&tokens, &mut Ctx::eval())?.dims(), [2, 4]);
/// assert_eq!(table.named_parameters()[0].0, "weight");
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub struct Lookup {
    /// `[count, width]`.
    pub weight: Parameter,
    /// Whether the output layer's weight is this one.
    pub tied: bool,
    /// What changes the lookups.
    pub adapter: Option<Box<dyn LookupAdapter>>,
}

impl From<Embedding> for Lookup {
    fn from(layer: Embedding) -> Lookup {
        Lookup {
            weight: layer.weight,
            tied: false,
            adapter: None,
        }
    }
}

impl Parameters for Lookup {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        visitor.field("weight", &self.weight);
        if let Some(adapter) = &self.adapter {
            adapter.visit(visitor);
        }
    }
}

impl Module for Lookup {
    fn forward(&self, indices: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        match &self.adapter {
            None => self.weight.tensor().embedding(indices),
            Some(adapter) => adapter.look_up(&self.weight, indices, cx),
        }
    }
}
