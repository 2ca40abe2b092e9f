//! Activation checkpointing: forget what the backward pass needs, recompute it when asked.
//!
//! A region is a wrapper level, not an opaque op: its function records ordinary nodes with
//! ordinary edges, so parameters that the function merely captures get their gradients. Only the
//! saved slots differ: they name (region, index). The first access replays the function once and
//! fills all slots in order; a replay that saves other things than the first run is an error.
//!
//! The function must be pure: same inputs, same operations. Randomness has to come from keys that
//! are fixed outside of it (`nn` derives them before the call).

use std::sync::{Arc, Mutex};

use entrenar_base::{Array, Error, Result};

use super::enable_grad;
use super::graph::{Deferred, Slot, drop_flat, lock};
use crate::Tensor;
use crate::apply::{How, expanded, peeled, run};
use crate::autocast::{autocast, is_autocast};
use crate::op::{Aval, Few, OpRef, Rule};
use crate::tensor::Level;

type Function = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync;

/// Decides by op name and result which results stay in memory; the others are recomputed.
pub type CheckpointPolicy = Arc<dyn Fn(&str, &[Aval]) -> bool + Send + Sync>;

/// The state of one checkpointed call.
pub(crate) struct Region {
    function: Arc<Function>,
    inputs: Vec<Tensor>,
    policy: Option<CheckpointPolicy>,
    /// True for the second run, whose only purpose is to produce the slots.
    replay: bool,
    /// Whether products of the first run were in bf16; the replay's must be too.
    autocast: bool,
    state: Mutex<State>,
}

/// A chain of checkpoints may be as long as memory allows: each region holds the tensors of the
/// one before it, in its inputs or in what its function captured.
impl Drop for Region {
    fn drop(&mut self) {
        let nothing: Arc<Function> = Arc::new(|_| Ok(Vec::new()));
        let held = (
            std::mem::take(&mut self.inputs),
            std::mem::replace(&mut self.function, nothing),
            self.policy.take(),
        );
        drop_flat(std::iter::once(Deferred::Other(Box::new(held))));
    }
}

#[derive(Default)]
struct State {
    slots: Vec<Option<Tensor>>,
    avals: Vec<Aval>,
    /// Results kept by the policy, in order of execution.
    kept: Vec<Vec<Array>>,
    next_kept: usize,
    filled: bool,
}

impl Region {
    /// Called by the recording of a node for each value it saves.
    pub(crate) fn save(self: &Arc<Region>, value: &Tensor) -> Slot {
        let mut state = lock(&self.state);
        state.avals.push(value.aval());
        if self.replay {
            state.slots.push(Some(value.clone()));
            return Slot::Value(value.clone());
        }
        state.slots.push(None);
        Slot::Region(self.clone(), state.slots.len() - 1)
    }

    /// The value of slot `index`, replaying the function on first access.
    pub(crate) fn fetch(&self, index: usize, retain: bool) -> Result<Tensor> {
        if !lock(&self.state).filled {
            self.fill()?;
        }
        let mut state = lock(&self.state);
        let slot = &mut state.slots[index];
        let value = if retain { slot.clone() } else { slot.take() };
        value.ok_or_else(|| {
            Error::autodiff(
                "checkpoint",
                "a saved value of this region was already freed; pass retain_graph",
            )
        })
    }

    fn fill(&self) -> Result<()> {
        let (expected, kept) = {
            let state = lock(&self.state);
            (state.avals.clone(), state.kept.clone())
        };
        let again = Arc::new(Region {
            function: self.function.clone(),
            inputs: self.inputs.clone(),
            policy: self.policy.clone(),
            replay: true,
            autocast: self.autocast,
            state: Mutex::new(State {
                kept,
                ..State::default()
            }),
        });
        // The first run recorded, so the replay must too, whatever surrounds this backward pass.
        let outputs = enable_grad(|| autocast(self.autocast, || enter(&again)))?;
        drop(outputs);
        let mut found = lock(&again.state);
        if found.avals != expected {
            let at = found.avals.iter().zip(&expected).position(|(a, b)| a != b);
            return Err(Error::autodiff(
                "checkpoint",
                format!(
                    "the replayed function saved {} values and the first run {}{}: a checkpointed function must do the same work every time",
                    found.avals.len(),
                    expected.len(),
                    at.map(|i| format!(
                        " (value {i} is {:?} instead of {:?})",
                        found.avals[i], expected[i]
                    ))
                    .unwrap_or_default()
                ),
            ));
        }
        let mut state = lock(&self.state);
        state.slots = std::mem::take(&mut found.slots);
        state.filled = true;
        Ok(())
    }

    /// Results that the policy kept for the op about to run in a replay.
    fn take_kept(&self, keep: bool) -> Option<Vec<Array>> {
        if !self.replay || !keep {
            return None;
        }
        let mut state = lock(&self.state);
        let at = state.next_kept;
        state.next_kept += 1;
        state.kept.get(at).cloned()
    }
}

/// Runs the region's function on its inputs, wrapped at a fresh region level.
fn enter(region: &Arc<Region>) -> Result<Vec<Tensor>> {
    let level = Level::fresh();
    let wrapped: Vec<Tensor> = region
        .inputs
        .iter()
        .map(|t| Tensor::in_region(level, t.clone(), region.clone()))
        .collect();
    let outputs = (region.function)(&wrapped)?;
    Ok(outputs.iter().map(|t| t.peel(level).clone()).collect())
}

/// Applies `op` inside a region: lower levels record as usual, but save into the region.
pub(crate) fn record(
    level: Level,
    region: &Arc<Region>,
    op: &OpRef,
    inputs: &[&Tensor],
    how: How<'_>,
) -> Result<Few<Tensor>> {
    if let Rule::Expand(e) = op.rule()
        && e.backward().is_none()
    {
        return expanded(e, inputs);
    }
    let lower = peeled(level, inputs);
    let keep = match &region.policy {
        None => false,
        Some(policy) => {
            let avals: Vec<Aval> = lower.iter().map(|t| t.aval()).collect();
            let refs: Vec<&Aval> = avals.iter().collect();
            policy(op.name(), &op.infer(&refs)?)
        }
    };
    let given = region.take_kept(keep);
    // An inner region, if the caller is one, owns what its nodes save.
    let inner = How {
        region: Some(how.region.unwrap_or(region)),
        given: given.as_deref(),
        ..how
    };
    let outputs = run(op, &lower, inner)?;
    if keep && !region.replay {
        lock(&region.state)
            .kept
            .push(outputs.iter().map(|t| t.array().clone()).collect());
    }
    Ok(outputs
        .into_iter()
        .map(|t| Tensor::in_region(level, t, region.clone()))
        .collect())
}

/// Runs `function(inputs)` without keeping what its backward pass will need; that is recomputed
/// when the backward pass first asks for it. Memory falls to the inputs, time rises by one
/// forward pass of the region.
///
/// # Errors
/// Whatever `function` returns; later, in the backward pass, when a replay differs from the first
/// run.
///
/// ```
/// use entrenar_core::{Tensor, autograd::checkpoint};
/// let x = Tensor::from_vec(vec![0.5f64, 1.0], [2])?.requires_grad()?;
/// let y = checkpoint(|t| Ok(vec![t[0].exp()?.sin()?]), &[&x])?;
/// y[0].sum()?.backward()?;
/// let plain = x.detach().requires_grad()?;
/// plain.exp()?.sin()?.sum()?.backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f64>()?, plain.grad().unwrap().to_vec::<f64>()?);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn checkpoint(
    function: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    inputs: &[&Tensor],
) -> Result<Vec<Tensor>> {
    checkpoint_with(function, inputs, None)
}

/// [`checkpoint`] with a policy: results for which it answers `true` are kept, and the replay
/// uses them instead of running those ops again (keep the matrix products, recompute the rest).
///
/// # Errors
/// As [`checkpoint`].
pub fn checkpoint_with(
    function: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    inputs: &[&Tensor],
    policy: Option<CheckpointPolicy>,
) -> Result<Vec<Tensor>> {
    enter(&Arc::new(Region {
        function: Arc::new(function),
        inputs: inputs.iter().map(|t| (*t).clone()).collect(),
        policy,
        replay: false,
        autocast: is_autocast(),
        state: Mutex::default(),
    }))
}
