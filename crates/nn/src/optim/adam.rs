//! [`Adam`] and [`AdamW`].
//!
//! Kingma, Ba, "Adam: a method for stochastic optimization" (2015); Loshchilov, Hutter,
//! "Decoupled weight decay regularization" (2019). With gradient g at update t:
//! m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! p ← p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
//! Adam adds λ p to g first; AdamW multiplies p by 1 − lr λ instead.

use std::collections::HashMap;

use entrenar_base::memory::Tag;
use entrenar_base::{Array, Result};
use entrenar_cpu::optim::{AdamStep, Real, Slot, adam_step};

use super::slots::{Slots, State, Update, batches, check, writable, zeros_like};
use super::{Optimizer, ParamGroups};
use crate::{NamedArrays, NamedParameters, Parameter};

struct Moments {
    /// Updates so far; each parameter counts its own, since one may lack a gradient at times.
    step: u64,
    exp_avg: Array,
    exp_avg_sq: Array,
}

impl State for Moments {
    const NAMES: &'static [&'static str] = &["step", "exp_avg", "exp_avg_sq"];

    fn fresh(parameter: &Parameter) -> Moments {
        Moments {
            step: 0,
            exp_avg: zeros_like(parameter),
            exp_avg_sq: zeros_like(parameter),
        }
    }

    fn save(&self) -> Vec<(&'static str, Array)> {
        vec![
            ("step", Array::scalar(self.step as i64)),
            ("exp_avg", self.exp_avg.clone()),
            ("exp_avg_sq", self.exp_avg_sq.clone()),
        ]
    }

    fn restore(values: &mut HashMap<&str, Array>) -> Result<Moments, &'static str> {
        let mut take = |key: &'static str| values.remove(key).ok_or(key);
        let step = take("step")?;
        let moments = Moments {
            step: step
                .item::<i64>()
                .ok()
                .and_then(|s| s.try_into().ok())
                .ok_or("step")?,
            exp_avg: take("exp_avg")?,
            exp_avg_sq: take("exp_avg_sq")?,
        };
        moments.exp_avg.retag(Tag::Optimizer);
        moments.exp_avg_sq.retag(Tag::Optimizer);
        Ok(moments)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Settings {
    learning_rate: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    decoupled: bool,
}

impl Settings {
    fn name(&self) -> &'static str {
        if self.decoupled { "AdamW" } else { "Adam" }
    }
}

/// Sets what [`Adam`] or [`AdamW`] starts with.
#[derive(Clone, Debug)]
pub struct AdamBuilder<O> {
    settings: Settings,
    optimizer: std::marker::PhantomData<O>,
}

impl<O: From<Inner>> AdamBuilder<O> {
    fn new(decoupled: bool, weight_decay: f64) -> Self {
        AdamBuilder {
            settings: Settings {
                learning_rate: 1e-3,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay,
                decoupled,
            },
            optimizer: std::marker::PhantomData,
        }
    }

    /// The learning rate; 0.001 by default.
    #[must_use]
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.settings.learning_rate = learning_rate;
        self
    }

    /// β₁ and β₂; 0.9 and 0.999 by default.
    #[must_use]
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        self.settings.betas = [beta1, beta2];
        self
    }

    /// ε; 1e-8 by default.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.settings.eps = eps;
        self
    }

    /// λ; 0 for Adam and 0.01 for AdamW by default.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.settings.weight_decay = weight_decay;
        self
    }

    /// The optimizer for these parameters: `&model`, a list of parameters, or groups.
    ///
    /// # Errors
    /// When a setting is out of range, or a parameter occurs twice or is neither f32 nor f64.
    #[track_caller]
    pub fn build(self, parameters: impl Into<ParamGroups>) -> Result<O> {
        let (s, name) = (self.settings, self.settings.name());
        check(name, "learning rate", s.learning_rate, 0.0..=f64::MAX)?;
        check(name, "eps", s.eps, 0.0..=f64::MAX)?;
        check(name, "weight decay", s.weight_decay, 0.0..=f64::MAX)?;
        // One itself would divide by zero at the first update.
        let below_one = 0.0..=1.0 - f64::EPSILON / 2.0;
        check(name, "first beta", s.betas[0], below_one.clone())?;
        check(name, "second beta", s.betas[1], below_one)?;
        Ok(O::from(Inner {
            settings: s,
            slots: Slots::new(name, parameters.into())?,
        }))
    }
}

/// What [`Adam`] and [`AdamW`] have in common; opaque.
pub struct Inner {
    settings: Settings,
    slots: Slots<Moments>,
}

impl Inner {
    fn step(&mut self, gradient_scale: f64) -> Result<()> {
        let s = self.settings;
        let mut updates = self.slots.updates(s.learning_rate, s.weight_decay)?;
        for u in &mut updates {
            u.state.step += 1;
        }
        run::<f32>(&mut updates, s, gradient_scale)?;
        run::<f64>(&mut updates, s, gradient_scale)
    }
}

/// One dispatch for all parameters with the same settings and number of updates.
fn run<T: Real>(updates: &mut [Update<'_, Moments>], s: Settings, scale: f64) -> Result<()> {
    let same = |u: &Update<'_, Moments>| {
        (
            u.learning_rate.to_bits(),
            u.weight_decay.to_bits(),
            u.state.step,
        )
    };
    for batch in batches::<T, _, _>(updates, same) {
        let step = AdamStep {
            lr: batch[0].learning_rate,
            beta1: s.betas[0],
            beta2: s.betas[1],
            eps: s.eps,
            weight_decay: batch[0].weight_decay,
            decoupled: s.decoupled,
            step: batch[0].state.step,
            grad_scale: scale,
        };
        let mut slots = batch
            .into_iter()
            .map(|u| {
                Ok(Slot {
                    param: u.value.slice_mut::<T>()?,
                    grad: u.gradient.as_slice::<T>()?,
                    m: writable::<T>(&mut u.state.exp_avg)?,
                    v: writable::<T>(&mut u.state.exp_avg_sq)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        adam_step(&mut slots, step);
    }
    Ok(())
}

macro_rules! adam {
    ($(#[$doc:meta])* $name:ident, $decoupled:literal, $decay:literal) => {
        $(#[$doc])*
        pub struct $name(Inner);

        impl $name {
            /// With this learning rate and PyTorch's defaults for the rest.
            ///
            /// # Errors
            /// As [`AdamBuilder::build`].
            #[track_caller]
            pub fn new(parameters: impl Into<ParamGroups>, learning_rate: f64) -> Result<Self> {
                Self::builder().learning_rate(learning_rate).build(parameters)
            }

            /// All settings by name.
            pub fn builder() -> AdamBuilder<Self> {
                AdamBuilder::new($decoupled, $decay)
            }
        }

        impl From<Inner> for $name {
            fn from(inner: Inner) -> Self {
                $name(inner)
            }
        }

        impl Optimizer for $name {
            fn step_scaled(&mut self, gradient_scale: f64) -> Result<()> {
                self.0.step(gradient_scale)
            }
            fn parameters(&self) -> NamedParameters {
                self.0.slots.parameters()
            }
            fn learning_rate(&self) -> f64 {
                self.0.settings.learning_rate
            }
            fn set_learning_rate(&mut self, learning_rate: f64) {
                self.0.settings.learning_rate = learning_rate;
            }
            fn state(&self) -> NamedArrays {
                self.0.slots.save()
            }
            fn load_state(&mut self, state: &[(String, Array)]) -> Result<()> {
                self.0.slots.load(self.0.settings.name(), state)
            }
        }
    };
}

adam!(
    /// Adam; weight decay is added to the gradient (`torch.optim.Adam`).
    ///
    /// ```
    /// use entrenar_nn::optim::{Adam, Optimizer};
    /// use entrenar_nn::Parameter;
    /// use entrenar_core::Tensor;
    /// let w = Parameter::new(Tensor::scalar(1.0f32))?;
    /// let mut optimizer = Adam::builder().learning_rate(0.1).betas(0.9, 0.99).build(&w)?;
    /// w.tensor().square()?.backward()?;
    /// optimizer.step()?; // the first update is lr · sign(gradient)
    /// assert!((w.value().item::<f32>()? - 0.9).abs() < 1e-6);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    Adam,
    false,
    0.0
);

adam!(
    /// Adam with decoupled weight decay (`torch.optim.AdamW`).
    ///
    /// ```
    /// use entrenar_nn::optim::{AdamW, Optimizer};
    /// use entrenar_nn::{Ctx, Init, Linear, Module};
    /// use entrenar_core::{DType, Tensor};
    /// let model = Linear::new(2, 1, &mut Init::new(0))?;
    /// let mut optimizer = AdamW::new(&model, 1e-2)?;
    /// let loss = model.forward(&Tensor::ones([4, 2], DType::F32), &mut Ctx::eval())?.square()?.mean()?;
    /// loss.backward()?;
    /// optimizer.step()?;
    /// optimizer.zero_grad();
    /// assert_eq!(optimizer.state()[0].0, "weight.step");
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    AdamW,
    true,
    0.01
);
