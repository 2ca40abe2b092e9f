//! [`Sequential`]: one layer after another.

use entrenar_core::{Result, Tensor};

use crate::{Ctx, Module, Parameters, Visitor};

/// Layers applied in order (`torch.nn.Sequential`); names are positions: `0.weight`, `2.bias`.
///
/// ```
/// use entrenar_nn::{Activation, Ctx, Init, Linear, Module, Parameters, Sequential};
/// use entrenar_core::{DType, Tensor};
/// let init = &mut Init::new(0);
/// let model = Sequential::new()
///     .add(Linear::new(4, 8, init)?)
///     .add(Activation::Relu)
///     .add(Linear::new(8, 3, init)?);
/// assert_eq!(model.parameter_count(), 4 * 8 + 8 + 8 * 3 + 3);
/// assert_eq!(model.named_parameters()[2].0, "2.weight");
/// let y = model.forward(&Tensor::ones([5, 4], DType::F32), &mut Ctx::eval())?;
/// assert_eq!(y.dims(), [5, 3]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Default)]
pub struct Sequential {
    layers: Vec<(String, Box<dyn Module>)>,
}

impl Sequential {
    /// No layers: the identity.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// With one more layer at the end.
    // The name is Keras's; an operator would not be.
    #[expect(clippy::should_implement_trait, reason = "adds a layer, not a number")]
    #[must_use]
    pub fn add(self, layer: impl Module + 'static) -> Sequential {
        let name = self.layers.len().to_string();
        self.add_named(name, layer)
    }

    /// With one more layer that has a name of its own.
    #[must_use]
    pub fn add_named(
        mut self,
        name: impl Into<String>,
        layer: impl Module + 'static,
    ) -> Sequential {
        self.layers.push((name.into(), Box::new(layer)));
        self
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there are no layers.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

impl Parameters for Sequential {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        for (name, layer) in &self.layers {
            visitor.field(name, layer);
        }
    }
}

impl Module for Sequential {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let mut x = x.clone();
        for (name, layer) in &self.layers {
            x = cx.call(name, layer, &x)?;
        }
        Ok(x)
    }
}
