//! Optimizers: they hold the cells of the parameters, and states by parameter name on disk.
//!
//! One step is one dispatch to the thread team over all parameters; the factor of gradient
//! clipping or averaging is folded into it. Parameters without a gradient are passed over, as in
//! PyTorch. `clip.rs` has norms and clipping, `slots.rs` what all optimizers share.

mod adam;
mod adam8;
mod adam_builder;
mod clip;
mod sgd;
mod slots;

pub use adam::{Adam, AdamW};
pub use adam_builder::{AdamBuilder, BuiltByAdam};
pub use adam8::AdamW8bit;
pub use clip::{clip_factor, clip_grad_norm, clip_grad_value, grad_norm, non_finite_gradient};
pub use sgd::{Sgd, SgdBuilder};

/// The name of [`Sgd`] in PyTorch.
pub type SGD = Sgd;

use entrenar_base::{Array, Result};

use crate::{NamedArrays, NamedParameters, Parameter, Parameters};

/// What every optimizer can do.
pub trait Optimizer: Send {
    /// Updates every parameter that has a gradient.
    ///
    /// # Errors
    /// When a parameter's dtype has no update kernel.
    fn step(&mut self) -> Result<()> {
        self.step_scaled(1.0)
    }

    /// [`Optimizer::step`] with every gradient times `gradient_scale`, without a pass of its own:
    /// the factor of [`clip_factor`], one over the micro-batches, or both.
    ///
    /// # Errors
    /// As [`Optimizer::step`].
    fn step_scaled(&mut self, gradient_scale: f64) -> Result<()>;

    /// Forgets the gradients of its parameters.
    fn zero_grad(&self) {
        for (_, parameter) in self.parameters() {
            parameter.zero_grad();
        }
    }

    /// Its parameters, group after group.
    fn parameters(&self) -> NamedParameters;

    /// The learning rate; groups multiply it by their own scale.
    fn learning_rate(&self) -> f64;

    /// Changes the learning rate; a schedule calls it before each step.
    fn set_learning_rate(&mut self, learning_rate: f64);

    /// Its moments by parameter name, such as `fc.weight.exp_avg`: what a checkpoint saves.
    fn state(&self) -> NamedArrays;

    /// Restores [`Optimizer::state`]; parameters that it does not name start afresh.
    ///
    /// # Errors
    /// One error that lists all unknown names and wrong shapes; nothing is loaded then.
    fn load_state(&mut self, state: &[(String, Array)]) -> Result<()>;
}

/// Parameters with settings of their own.
///
/// ```
/// use entrenar_nn::optim::{AdamW, ParamGroup};
/// use entrenar_nn::{Init, Linear, Parameters};
/// let model = Linear::new(2, 2, &mut Init::new(0))?;
/// let (matrices, rest) = model.named_parameters().into_iter().partition(|(_, p)| p.shape().rank() >= 2);
/// let optimizer = AdamW::builder()
///     .learning_rate(1e-3)
///     .weight_decay(0.1)
///     .build(vec![ParamGroup::new(matrices), ParamGroup::new(rest).weight_decay(0.0)])?;
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// The parameters with the names under which their state is saved.
    pub parameters: NamedParameters,
    /// Multiplies the optimizer's learning rate.
    pub learning_rate_scale: f64,
    /// Replaces the optimizer's weight decay.
    pub weight_decay: Option<f64>,
}

impl ParamGroup {
    /// A group with the optimizer's own settings.
    pub fn new(parameters: NamedParameters) -> ParamGroup {
        ParamGroup {
            parameters,
            learning_rate_scale: 1.0,
            weight_decay: None,
        }
    }

    /// With the learning rate times `scale`.
    #[must_use]
    pub fn learning_rate_scale(mut self, scale: f64) -> ParamGroup {
        self.learning_rate_scale = scale;
        self
    }

    /// With its own weight decay.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> ParamGroup {
        self.weight_decay = Some(weight_decay);
        self
    }
}

/// What an optimizer is made for: a model, a list of parameters, or groups.
pub struct ParamGroups(pub Vec<ParamGroup>);

impl<M: Parameters + ?Sized> From<&M> for ParamGroups {
    fn from(model: &M) -> ParamGroups {
        model.named_parameters().into()
    }
}

impl From<NamedParameters> for ParamGroups {
    fn from(parameters: NamedParameters) -> ParamGroups {
        ParamGroups(vec![ParamGroup::new(parameters)])
    }
}

/// Named by their position.
impl From<Vec<Parameter>> for ParamGroups {
    fn from(parameters: Vec<Parameter>) -> ParamGroups {
        let named = parameters.into_iter().enumerate();
        named
            .map(|(i, p)| (i.to_string(), p))
            .collect::<NamedParameters>()
            .into()
    }
}

impl From<Vec<ParamGroup>> for ParamGroups {
    fn from(groups: Vec<ParamGroup>) -> ParamGroups {
        ParamGroups(groups)
    }
}

impl From<ParamGroup> for ParamGroups {
    fn from(group: ParamGroup) -> ParamGroups {
        ParamGroups(vec![group])
    }
}
