//! [`AdamBuilder`]: the settings of the optimizers of Adam's family, which differ in how they keep their
//! moments and in how the decay works. Neighbours: `adam`, `adam8`.

use std::marker::PhantomData;

use entrenar_base::Result;
use entrenar_cpu::optim::AdamStep;

use super::ParamGroups;
use super::slots::{Update, check};

/// What all of the family have; opaque.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamSettings {
    pub(super) learning_rate: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
}

impl AdamSettings {
    /// The `step`-th update of a parameter, with decoupled decay.
    pub(super) fn step<S>(&self, u: &Update<'_, S>, step: u64, grad_scale: f64) -> AdamStep {
        AdamStep {
            lr: u.learning_rate,
            beta1: self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay: u.weight_decay,
            decoupled: true,
            step,
            grad_scale,
        }
    }
}

/// Keeps the family to itself.
pub trait Sealed {}

/// An optimizer that [`AdamBuilder`] makes.
pub trait BuiltByAdam: Sealed + Sized {
    /// Its name in messages.
    const NAME: &'static str;

    /// The optimizer for these parameters.
    ///
    /// # Errors
    /// When a parameter occurs twice or is neither f32 nor f64.
    #[track_caller]
    fn built(settings: AdamSettings, groups: ParamGroups) -> Result<Self>;
}

/// Sets what [`super::Adam`], [`super::AdamW`] or [`super::AdamW8bit`] starts with.
#[derive(Clone, Debug)]
pub struct AdamBuilder<O> {
    settings: AdamSettings,
    optimizer: PhantomData<O>,
}

impl<O: BuiltByAdam> AdamBuilder<O> {
    pub(super) fn new(weight_decay: f64) -> Self {
        AdamBuilder {
            settings: AdamSettings {
                learning_rate: 1e-3,
                betas: [0.9, 0.999],
                eps: 1e-8,
                weight_decay,
            },
            optimizer: PhantomData,
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

    /// λ; 0 for Adam and 0.01 for the others by default.
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
        let s = self.settings;
        check(O::NAME, "learning rate", s.learning_rate, 0.0..=f64::MAX)?;
        check(O::NAME, "eps", s.eps, 0.0..=f64::MAX)?;
        check(O::NAME, "weight decay", s.weight_decay, 0.0..=f64::MAX)?;
        // One itself would divide by zero at the first update.
        let below_one = 0.0..=1.0 - f64::EPSILON / 2.0;
        check(O::NAME, "first beta", s.betas[0], below_one.clone())?;
        check(O::NAME, "second beta", s.betas[1], below_one)?;
        O::built(s, parameters.into())
    }
}
