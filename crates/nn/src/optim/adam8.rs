//! [`AdamW8bit`]: AdamW whose moments take a byte each.
//!
//! Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization" (2021).
//! Parameters of fewer than [`LEAST`] numbers, and those in f64, keep moments in their own dtype, as
//! in bitsandbytes. The formula is that of [`super::AdamW`].

use std::collections::HashMap;

use entrenar_base::memory::Tag;
use entrenar_base::{Array, DType, Result};
use entrenar_cpu::optim::{Real, Slot, adam_step};
use entrenar_cpu::optim8::{BLOCK, Moment, Slot8, adam8_step};

use super::adam_builder::{AdamBuilder, AdamSettings, BuiltByAdam, Sealed};
use super::slots::{Slots, State, Update, batches, writable, zeros_like};
use super::{Optimizer, ParamGroups};
use crate::{NamedArrays, NamedParameters, Parameter};

/// Numbers from which a parameter has moments in 8 bits.
pub const LEAST: usize = 4096;

struct Moments {
    step: u64,
    /// Codes, or numbers in the parameter's dtype.
    exp_avg: Array,
    exp_avg_sq: Array,
    /// Scales of both, for codes.
    scales: Option<[Array; 2]>,
}

fn in_bytes(parameter: &Parameter) -> bool {
    parameter.numel() >= LEAST && parameter.dtype() == DType::F32
}

impl State for Moments {
    const NAMES: &'static [&'static str] = &[
        "step",
        "exp_avg",
        "exp_avg_sq",
        "exp_avg_scales",
        "exp_avg_sq_scales",
    ];

    fn fresh(parameter: &Parameter) -> Moments {
        let zeros = |shape: &[usize], dtype| {
            let zeros = Array::zeros(shape, dtype);
            zeros.retag(Tag::Optimizer);
            zeros
        };
        if !in_bytes(parameter) {
            return Moments {
                step: 0,
                exp_avg: zeros_like(parameter),
                exp_avg_sq: zeros_like(parameter),
                scales: None,
            };
        }
        let codes = || zeros(&parameter.shape(), DType::U8);
        let scales = || zeros(&[parameter.numel().div_ceil(BLOCK)], DType::F32);
        Moments {
            step: 0,
            exp_avg: codes(),
            exp_avg_sq: codes(),
            scales: Some([scales(), scales()]),
        }
    }

    fn save(&self) -> Vec<(&'static str, Array)> {
        let mut all = vec![
            ("step", Array::scalar(self.step as i64)),
            ("exp_avg", self.exp_avg.clone()),
            ("exp_avg_sq", self.exp_avg_sq.clone()),
        ];
        if let Some([first, second]) = &self.scales {
            all.push(("exp_avg_scales", first.clone()));
            all.push(("exp_avg_sq_scales", second.clone()));
        }
        all
    }

    fn expected(key: &str, parameter: &Parameter) -> Option<(Vec<usize>, DType)> {
        let scales = key.ends_with("_scales");
        match (in_bytes(parameter), scales) {
            (true, true) => Some((vec![parameter.numel().div_ceil(BLOCK)], DType::F32)),
            (true, false) => Some((parameter.shape().to_vec(), DType::U8)),
            (false, true) => None,
            (false, false) => Some((parameter.shape().to_vec(), parameter.dtype())),
        }
    }

    fn restore(values: &mut HashMap<&str, Array>) -> Result<Moments, &'static str> {
        let mut take = |key: &'static str| {
            let array = values.remove(key).ok_or(key)?;
            array.retag(Tag::Optimizer);
            Ok(array)
        };
        let step = take("step")?.item::<i64>().ok();
        let (exp_avg, exp_avg_sq) = (take("exp_avg")?, take("exp_avg_sq")?);
        let scales = if exp_avg.dtype() == DType::U8 {
            Some([take("exp_avg_scales")?, take("exp_avg_sq_scales")?])
        } else {
            None
        };
        Ok(Moments {
            step: step.and_then(|s| s.try_into().ok()).ok_or("step")?,
            exp_avg,
            exp_avg_sq,
            scales,
        })
    }
}

/// AdamW with moments in 8 bits (`bitsandbytes.optim.AdamW8bit`).
///
/// ```
/// use entrenar_nn::optim::{AdamW8bit, Optimizer};
/// use entrenar_nn::{Init, Linear, Parameters};
/// let model = Linear::new(64, 64, &mut Init::new(0))?;
/// let mut optimizer = AdamW8bit::new(&model, 1e-2)?;
/// for p in model.parameters() {
///     p.set_grad(Some(p.value()))?;
/// }
/// optimizer.step()?;
/// let bytes = |name: &str| optimizer.state().into_iter().find(|(n, _)| n == name).unwrap().1.dtype().size();
/// assert_eq!((bytes("weight.exp_avg"), bytes("bias.exp_avg")), (1, 4)); // the bias is small
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub struct AdamW8bit {
    settings: AdamSettings,
    slots: Slots<Moments>,
}

impl AdamW8bit {
    /// With this learning rate and bitsandbytes' defaults for the rest.
    ///
    /// # Errors
    /// As [`AdamBuilder::build`].
    #[track_caller]
    pub fn new(parameters: impl Into<ParamGroups>, learning_rate: f64) -> Result<AdamW8bit> {
        AdamW8bit::builder()
            .learning_rate(learning_rate)
            .build(parameters)
    }

    /// All settings by name.
    pub fn builder() -> AdamBuilder<AdamW8bit> {
        AdamBuilder::new(0.01)
    }
}

impl Sealed for AdamW8bit {}

impl BuiltByAdam for AdamW8bit {
    const NAME: &'static str = "AdamW8bit";

    #[track_caller]
    fn built(settings: AdamSettings, groups: ParamGroups) -> Result<AdamW8bit> {
        let slots = Slots::new(Self::NAME, groups)?;
        Ok(AdamW8bit { settings, slots })
    }
}

/// The parameters with moments in their own dtype.
fn plain<T: Real>(updates: &mut [Update<'_, Moments>], s: AdamSettings, scale: f64) -> Result<()> {
    // Those in bytes have a key of their own and are passed over.
    let same = |u: &Update<'_, Moments>| {
        (
            u.learning_rate.to_bits(),
            u.weight_decay.to_bits(),
            u.state.step,
            u.state.scales.is_some(),
        )
    };
    for batch in batches::<T, _, _>(updates, same) {
        if batch[0].state.scales.is_some() {
            continue;
        }
        let step = s.step(batch[0], batch[0].state.step, scale);
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

impl Optimizer for AdamW8bit {
    fn step_scaled(&mut self, gradient_scale: f64) -> Result<()> {
        let s = self.settings;
        let mut updates = self.slots.updates(s.learning_rate, s.weight_decay)?;
        for u in &mut updates {
            u.state.step += 1;
        }
        plain::<f32>(&mut updates, s, gradient_scale)?;
        plain::<f64>(&mut updates, s, gradient_scale)?;
        for u in &mut updates {
            let step = s.step(u, u.state.step, gradient_scale);
            let state = &mut *u.state;
            let Some([first, second]) = &mut state.scales else {
                continue;
            };
            let slot = Slot8 {
                param: u.value.slice_mut::<f32>()?,
                grad: u.gradient.as_slice::<f32>()?,
                m: Moment {
                    codes: writable::<u8>(&mut state.exp_avg)?,
                    scales: writable::<f32>(first)?,
                },
                v: Moment {
                    codes: writable::<u8>(&mut state.exp_avg_sq)?,
                    scales: writable::<f32>(second)?,
                },
            };
            adam8_step(&mut [slot], step);
        }
        Ok(())
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
        self.slots.load(Self::NAME, state)
    }
}
