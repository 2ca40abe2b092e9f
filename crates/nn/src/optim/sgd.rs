//! [`Sgd`]: stochastic gradient descent with momentum.
//!
//! With gradient g (plus λ p): b ← μ b + (1 − τ) g, where the first update sets b = g;
//! p ← p − lr · b, or with Nesterov's momentum p ← p − lr · (g + μ b). Sutskever et al., "On the
//! importance of initialization and momentum in deep learning" (2013), in PyTorch's form.

use std::collections::HashMap;

use entrenar_base::memory::Tag;
use entrenar_base::{Array, Error, Result};
use entrenar_cpu::optim::{Real, SgdSlot, SgdStep, sgd_step};

use super::slots::{Slots, State, Update, batches, check, writable};
use super::{Optimizer, ParamGroups};
use crate::{NamedArrays, NamedParameters, Parameter};

/// The momentum buffer b, made by the first update with momentum.
struct Momentum {
    buffer: Option<Array>,
    /// The update in progress made the buffer: it takes the gradient whole.
    first: bool,
}

impl State for Momentum {
    const NAMES: &'static [&'static str] = &["momentum_buffer"];

    fn fresh(_: &Parameter) -> Momentum {
        Momentum {
            buffer: None,
            first: false,
        }
    }

    fn save(&self) -> Vec<(&'static str, Array)> {
        let buffer = self.buffer.iter().cloned();
        buffer.map(|b| ("momentum_buffer", b)).collect()
    }

    fn restore(values: &mut HashMap<&str, Array>) -> Result<Momentum, &'static str> {
        let buffer = values.remove("momentum_buffer");
        if let Some(buffer) = &buffer {
            buffer.retag(Tag::Optimizer);
        }
        Ok(Momentum {
            buffer,
            first: false,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Settings {
    learning_rate: f64,
    momentum: f64,
    dampening: f64,
    weight_decay: f64,
    nesterov: bool,
}

/// Sets what [`Sgd`] starts with.
#[derive(Clone, Debug)]
pub struct SgdBuilder(Settings);

impl SgdBuilder {
    /// The learning rate; 0.001 by default.
    #[must_use]
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.0.learning_rate = learning_rate;
        self
    }

    /// μ; 0 by default.
    #[must_use]
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.0.momentum = momentum;
        self
    }

    /// τ; 0 by default.
    #[must_use]
    pub fn dampening(mut self, dampening: f64) -> Self {
        self.0.dampening = dampening;
        self
    }

    /// λ; 0 by default.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.0.weight_decay = weight_decay;
        self
    }

    /// Nesterov's momentum; off by default.
    #[must_use]
    pub fn nesterov(mut self, nesterov: bool) -> Self {
        self.0.nesterov = nesterov;
        self
    }

    /// The optimizer for these parameters: `&model`, a list of parameters, or groups.
    ///
    /// # Errors
    /// When a setting is out of range, Nesterov's momentum lacks momentum or has dampening, or a
    /// parameter occurs twice or is neither f32 nor f64.
    #[track_caller]
    pub fn build(self, parameters: impl Into<ParamGroups>) -> Result<Sgd> {
        let s = self.0;
        check("SGD", "learning rate", s.learning_rate, 0.0..=f64::MAX)?;
        check("SGD", "momentum", s.momentum, 0.0..=f64::MAX)?;
        check("SGD", "weight decay", s.weight_decay, 0.0..=f64::MAX)?;
        check("SGD", "dampening", s.dampening, f64::MIN..=f64::MAX)?;
        if s.nesterov && (s.momentum == 0.0 || s.dampening != 0.0) {
            return Err(Error::argument(
                "SGD",
                "momentum above 0 and no dampening for Nesterov's momentum",
                format!("momentum {} and dampening {}", s.momentum, s.dampening),
            ));
        }
        Ok(Sgd {
            settings: s,
            slots: Slots::new("SGD", parameters.into())?,
        })
    }
}

/// Stochastic gradient descent, with momentum if wanted (`torch.optim.SGD`).
///
/// ```
/// use entrenar_nn::Parameter;
/// use entrenar_nn::optim::{Optimizer, Sgd};
/// use entrenar_core::Tensor;
/// let w = Parameter::new(Tensor::scalar(1.0f64))?;
/// let mut optimizer = Sgd::builder().learning_rate(0.25).momentum(0.5).build(&w)?;
/// for _ in 0..2 {
///     w.tensor().square()?.backward()?; // gradient 2 w
///     optimizer.step()?;
///     optimizer.zero_grad();
/// }
/// // 1 → 0.5 with b = 2, then b = 0.5 · 2 + 1 = 2
/// assert_eq!(w.value().item::<f64>()?, 0.0);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub struct Sgd {
    settings: Settings,
    slots: Slots<Momentum>,
}

impl Sgd {
    /// Plain gradient descent with this learning rate.
    ///
    /// # Errors
    /// As [`SgdBuilder::build`].
    #[track_caller]
    pub fn new(parameters: impl Into<ParamGroups>, learning_rate: f64) -> Result<Sgd> {
        Sgd::builder()
            .learning_rate(learning_rate)
            .build(parameters)
    }

    /// All settings by name.
    pub fn builder() -> SgdBuilder {
        SgdBuilder(Settings {
            learning_rate: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        })
    }
}

/// One dispatch for all parameters with the same settings.
fn run<T: Real>(updates: &mut [Update<'_, Momentum>], s: Settings, scale: f64) -> Result<()> {
    let same = |u: &Update<'_, Momentum>| {
        (
            u.learning_rate.to_bits(),
            u.weight_decay.to_bits(),
            u.state.first,
        )
    };
    for batch in batches::<T, _, _>(updates, same) {
        // Dampening weakens gradient and decay alike; without momentum it has no meaning.
        let kept = if s.momentum == 0.0 || batch[0].state.first {
            1.0
        } else {
            1.0 - s.dampening
        };
        let step = SgdStep {
            lr: batch[0].learning_rate,
            momentum: s.momentum,
            weight_decay: batch[0].weight_decay * kept,
            nesterov: s.nesterov,
            grad_scale: scale * kept,
        };
        let mut slots = batch
            .into_iter()
            .map(|u| {
                let buffer = u.state.buffer.as_mut().filter(|_| s.momentum != 0.0);
                Ok(SgdSlot {
                    param: u.value.slice_mut::<T>()?,
                    grad: u.gradient.as_slice::<T>()?,
                    momentum: buffer.map(writable::<T>).transpose()?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        sgd_step(&mut slots, step);
    }
    Ok(())
}

impl Optimizer for Sgd {
    fn step_scaled(&mut self, gradient_scale: f64) -> Result<()> {
        let s = self.settings;
        let mut updates = self.slots.updates(s.learning_rate, s.weight_decay)?;
        for u in updates.iter_mut().filter(|_| s.momentum != 0.0) {
            u.state.first = u.state.buffer.is_none();
            if u.state.first {
                let buffer = Array::zeros(u.gradient.shape(), u.gradient.dtype());
                buffer.retag(Tag::Optimizer);
                u.state.buffer = Some(buffer);
            }
        }
        run::<f32>(&mut updates, s, gradient_scale)?;
        run::<f64>(&mut updates, s, gradient_scale)
    }

    fn parameters(&self) -> NamedParameters {
        self.slots.parameters()
    }

    fn learning_rate(&self) -> f64 {
        self.settings.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.settings.learning_rate = learning_rate;
    }

    fn state(&self) -> NamedArrays {
        self.slots.save()
    }

    fn load_state(&mut self, state: &[(String, Array)]) -> Result<()> {
        self.slots.load("SGD", state)
    }
}
