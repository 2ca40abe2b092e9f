//! What all optimizers share: the list of parameters with their settings and states, and its
//! checks. A state is made at the parameter's first update and saved by the parameter's name.

use std::collections::{HashMap, HashSet};
use std::sync::MutexGuard;

use entrenar_base::memory::Tag;
use entrenar_base::{Array, DType, Element, Error, ErrorKind, Result};

use super::ParamGroups;
use crate::parameter::ParameterState;
use crate::state::shorten;
use crate::{NamedArrays, NamedParameters, Parameter};

/// Arrays that an optimizer keeps for one parameter.
pub(super) trait State: Sized {
    /// The state before the first update.
    fn fresh(parameter: &Parameter) -> Self;
    /// Names and values for a checkpoint.
    fn save(&self) -> Vec<(&'static str, Array)>;
    /// The names that [`State::save`] may give.
    const NAMES: &'static [&'static str];
    /// Shape and dtype that a saved value other than `step` must have; `None`: there is no such value
    /// for this parameter. As written here: the parameter's own.
    fn expected(key: &str, parameter: &Parameter) -> Option<(Vec<usize>, DType)> {
        let _ = key;
        Some((parameter.shape().to_vec(), parameter.dtype()))
    }
    /// From saved values, all of which are as [`State::expected`] says, except scalars
    /// (rank 0, i64); says which name is missing.
    fn restore(values: &mut HashMap<&str, Array>) -> Result<Self, &'static str>;
}

/// One parameter of an optimizer.
pub(super) struct Slot<S> {
    pub name: String,
    pub parameter: Parameter,
    pub learning_rate_scale: f64,
    pub weight_decay: Option<f64>,
    pub state: Option<S>,
}

pub(super) struct Slots<S>(Vec<Slot<S>>);

/// A parameter that is being updated: its value locked, its gradient taken as it is now.
pub(super) struct Update<'a, S> {
    pub value: MutexGuard<'a, ParameterState>,
    pub gradient: Array,
    pub state: &'a mut S,
    pub learning_rate: f64,
    pub weight_decay: f64,
}

/// Zeros like the parameter, filed under optimizer memory.
pub(super) fn zeros_like(parameter: &Parameter) -> Array {
    let zeros = Array::zeros(parameter.shape(), parameter.dtype());
    zeros.retag(Tag::Optimizer);
    zeros
}

/// A state array for writing; after a copy on write it is optimizer memory again.
pub(super) fn writable<T: Element>(array: &mut Array) -> Result<&mut [T]> {
    array.make_mut::<T>()?;
    array.retag(Tag::Optimizer);
    array.make_mut::<T>()
}

/// The updates of dtype `T` in batches that agree in `key`, each in the order of the slots.
pub(super) fn batches<'u, 'a, T: Element, S, K: PartialEq>(
    updates: &'u mut [Update<'a, S>],
    key: impl Fn(&Update<'a, S>) -> K,
) -> Vec<Vec<&'u mut Update<'a, S>>> {
    let mut batches: Vec<(K, Vec<&'u mut Update<'a, S>>)> = Vec::new();
    for u in updates {
        if u.gradient.dtype() != T::DTYPE {
            continue;
        }
        let k = key(u);
        match batches.iter_mut().find(|(known, _)| *known == k) {
            Some((_, batch)) => batch.push(u),
            None => batches.push((k, vec![u])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// Refuses a setting that no run can want.
#[track_caller]
pub(super) fn check(
    optimizer: &str,
    setting: &str,
    value: f64,
    allowed: std::ops::RangeInclusive<f64>,
) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let expected = match (*allowed.start(), *allowed.end()) {
        (f64::MIN, f64::MAX) => format!("a finite {setting}"),
        (low, f64::MAX) => format!("a finite {setting} of at least {low}"),
        (low, high) => format!("{setting} from {low} to {high}"),
    };
    Err(Error::argument(optimizer, expected, value))
}

impl<S: State> Slots<S> {
    #[track_caller]
    pub fn new(optimizer: &str, groups: ParamGroups) -> Result<Slots<S>> {
        let mut slots = Vec::new();
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for group in groups.0 {
            check(
                optimizer,
                "learning rate scale",
                group.learning_rate_scale,
                0.0..=f64::MAX,
            )?;
            if let Some(decay) = group.weight_decay {
                check(optimizer, "weight decay", decay, 0.0..=f64::MAX)?;
            }
            for (name, parameter) in group.parameters {
                if !ids.insert(parameter.id()) || !names.insert(name.clone()) {
                    return Err(Error::argument(
                        optimizer,
                        "each parameter once, under a name of its own",
                        format!("{name} a second time"),
                    ));
                }
                if !matches!(parameter.dtype(), DType::F32 | DType::F64) {
                    return Err(Error::dtype(
                        optimizer,
                        format!("{name} in f32 or f64"),
                        parameter.dtype(),
                    ));
                }
                slots.push(Slot {
                    name,
                    parameter,
                    learning_rate_scale: group.learning_rate_scale,
                    weight_decay: group.weight_decay,
                    state: None,
                });
            }
        }
        Ok(Slots(slots))
    }

    pub fn parameters(&self) -> NamedParameters {
        self.0
            .iter()
            .map(|s| (s.name.clone(), s.parameter.clone()))
            .collect()
    }

    /// Every parameter with a gradient, locked for its update.
    pub fn updates(&mut self, learning_rate: f64, weight_decay: f64) -> Result<Vec<Update<'_, S>>> {
        let mut updates = Vec::with_capacity(self.0.len());
        for slot in &mut self.0 {
            let Some(gradient) = slot.parameter.grad() else {
                continue;
            };
            let value = slot.parameter.lock();
            if !value.trainable() {
                continue;
            }
            let gradient = gradient.array();
            let gradient = if gradient.is_contiguous() {
                gradient.clone()
            } else {
                entrenar_cpu::copy::contiguous(gradient)?
            };
            updates.push(Update {
                value,
                gradient,
                state: slot.state.get_or_insert_with(|| S::fresh(&slot.parameter)),
                learning_rate: learning_rate * slot.learning_rate_scale,
                weight_decay: slot.weight_decay.unwrap_or(weight_decay),
            });
        }
        Ok(updates)
    }

    pub fn save(&self) -> NamedArrays {
        self.0
            .iter()
            .filter_map(|slot| Some((slot, slot.state.as_ref()?)))
            .flat_map(|(slot, state)| {
                let named = state.save().into_iter();
                named.map(move |(key, array)| (format!("{}.{key}", slot.name), array))
            })
            .collect()
    }

    pub fn load(&mut self, optimizer: &str, state: &[(String, Array)]) -> Result<()> {
        let mut given: HashMap<&str, &Array> = HashMap::new();
        let mut faults = Vec::new();
        for (name, array) in state {
            if given.insert(name, array).is_some() {
                faults.push(format!("{name} is given twice"));
            }
        }
        let mut restored = Vec::with_capacity(self.0.len());
        for slot in &self.0 {
            let mut values = HashMap::new();
            for key in S::NAMES {
                let name = format!("{}.{key}", slot.name);
                let Some(array) = given.remove(name.as_str()) else {
                    continue;
                };
                let (shape, dtype) = (slot.parameter.shape(), slot.parameter.dtype());
                let fits = if *key == "step" {
                    array.rank() == 0 && array.dtype() == DType::I64
                } else {
                    S::expected(key, &slot.parameter)
                        .is_some_and(|(shape, d)| array.dims() == shape && array.dtype() == d)
                };
                if !fits {
                    faults.push(format!(
                        "{name} is {} {}, its parameter {dtype} {shape}",
                        array.dtype(),
                        array.shape()
                    ));
                }
                values.insert(*key, array.clone());
            }
            restored.push(if values.is_empty() {
                None
            } else {
                match S::restore(&mut values) {
                    Ok(state) => Some(state),
                    Err(key) => {
                        faults.push(format!("{}.{key} is missing", slot.name));
                        None
                    }
                }
            });
        }
        let unknown: Vec<&str> = state
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| given.contains_key(name))
            .collect();
        if !unknown.is_empty() {
            faults.push(format!("no parameter for {}", shorten(&unknown)));
        }
        if !faults.is_empty() {
            return Err(Error::new(
                ErrorKind::Argument,
                format!(
                    "[{optimizer}] the saved state does not fit; {}",
                    faults.join("; ")
                ),
            ));
        }
        for (slot, state) in self.0.iter_mut().zip(restored) {
            slot.state = state;
        }
        Ok(())
    }
}
