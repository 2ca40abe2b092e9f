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

use super::adam_builder::{AdamBuilder, AdamSettings, BuiltByAdam, Sealed};
use super::slots::{Slots, State, Update, batches, writable, zeros_like};
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

/// What [`Adam`] and [`AdamW`] have in common.
struct Inner {
    settings: AdamSettings,
    decoupled: bool,
    slots: Slots<Moments>,
}

impl Inner {
    fn step(&mut self, gradient_scale: f64) -> Result<()> {
        let s = self.settings;
        let mut updates = self.slots.updates(s.learning_rate, s.weight_decay)?;
        for u in &mut updates {
            u.state.step += 1;
        }
        let kind = (s, self.decoupled);
        run::<f32>(&mut updates, kind, gradient_scale)?;
        run::<f64>(&mut updates, kind, gradient_scale)
    }
}

/// One dispatch for all parameters with the same settings and number of updates.
fn run<T: Real>(
    updates: &mut [Update<'_, Moments>],
    (s, decoupled): (AdamSettings, bool),
    scale: f64,
) -> Result<()> {
    let same = |u: &Update<'_, Moments>| {
        (
            u.learning_rate.to_bits(),
            u.weight_decay.to_bits(),
            u.state.step,
        )
    };
    for batch in batches::<T, _, _>(updates, same) {
        let step = AdamStep {
            decoupled,
            ..s.step(batch[0], batch[0].state.step, scale)
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
                AdamBuilder::new($decay)
            }
        }

        impl Sealed for $name {}

        impl BuiltByAdam for $name {
            const NAME: &'static str = stringify!($name);

            #[track_caller]
            fn built(settings: AdamSettings, groups: ParamGroups) -> Result<Self> {
                let slots = Slots::new(Self::NAME, groups)?;
                Ok($name(Inner {
                    settings,
                    decoupled: $decoupled,
                    slots,
                }))
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
                self.0.slots.load(Self::NAME, state)
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
