//! One optimizer step: micro-batches, exact normalisation, clipping, and what is bad about it.
//!
//! The losses of all micro-batches are divided by the targets of all of them, so that 4×B and 1×4B
//! differ by rounding alone. Clipping is folded into the optimizer's pass. When a loss or a gradient
//! is not finite nothing has changed afterwards: parameters, optimizer state and buffers are those
//! of before. Neighbour: `fit.rs` decides what a bad step means.

use entrenar_base::{Error, Result};
use entrenar_nn::optim::{Optimizer, clip_factor, clip_grad_value, grad_norm, non_finite_gradient};
use entrenar_nn::{Buffer, Ctx, NamedParameters};

use super::objective::{Objective, value_of};
use super::settings::Settings;
use super::totals::Totals;
use crate::data::Batch;

/// What a step was like.
pub(super) struct Update {
    /// Losses and metrics of its batches.
    pub totals: Totals,
    /// The global norm of the gradients before clipping to a norm.
    pub grad_norm: f64,
    /// What was not finite; then nothing was updated.
    pub bad: Option<Bad>,
}

/// Why a step was not made.
pub(super) struct Bad {
    /// What is not finite, by name.
    pub what: String,
    /// Whether a parameter is: then every later step will fail too.
    pub lasting: bool,
}

/// The cells that a step touches.
pub(super) struct Cells {
    /// All parameters, frozen ones too.
    pub parameters: NamedParameters,
    /// All buffers.
    pub buffers: Vec<Buffer>,
}

/// Makes one step from `batches`; `pass` numbers the first forward pass of it within the run.
pub(super) fn update<M>(
    model: &M,
    objective: &(impl Objective<M> + ?Sized),
    optimizer: &mut dyn Optimizer,
    cells: &Cells,
    settings: &Settings,
    batches: &[Batch],
    pass: u64,
) -> Result<Update> {
    let counts: Vec<usize> = batches.iter().map(|batch| objective.count(batch)).collect();
    let all: usize = counts.iter().sum();
    if all == 0 {
        return Err(Error::config("cannot train on data without targets"));
    }
    // Batch norm of a later micro-batch sees what an earlier one measured.
    let before: Vec<_> = cells.buffers.iter().map(Buffer::value).collect();
    let mut totals = Totals::default();
    let mut finite = true;
    for (index, (batch, targets)) in batches.iter().zip(&counts).enumerate() {
        let mut cx = Ctx::train(settings.seed, pass + index as u64);
        let measure = objective.measure(model, batch, &mut cx)?;
        let loss = value_of(&measure.loss)?;
        totals.add(loss, &measure.sums, *targets, batch.rows);
        finite &= loss.is_finite();
        measure.loss.mul_scalar(1.0 / all as f64)?.backward()?;
        cx.commit()?;
    }
    let mut norm = grad_norm(cells.parameters.as_slice());
    if !finite || !norm.is_finite() {
        let bad = what_is_bad(&cells.parameters, totals.loss());
        optimizer.zero_grad();
        for (buffer, value) in cells.buffers.iter().zip(&before) {
            buffer.set(value)?;
        }
        return Ok(Update {
            totals,
            grad_norm: norm,
            bad: Some(bad),
        });
    }
    if let Some(most) = settings.clip_value {
        clip_grad_value(cells.parameters.as_slice(), most)?;
        norm = grad_norm(cells.parameters.as_slice());
    }
    let factor = settings
        .max_grad_norm
        .map_or(1.0, |most| clip_factor(norm, most));
    optimizer.step_scaled(factor)?;
    optimizer.zero_grad();
    Ok(Update {
        totals,
        grad_norm: norm,
        bad: None,
    })
}

/// What is wrong, by the name of the first bad parameter in the model's order. A parameter that is
/// itself not finite comes first: it makes everything else so.
fn what_is_bad(parameters: &NamedParameters, loss: f64) -> Bad {
    if let Some(name) = non_finite_parameter(parameters) {
        return Bad {
            what: format!("the loss is {loss}: the parameter `{name}` is not finite"),
            lasting: true,
        };
    }
    let what = match non_finite_gradient(parameters.as_slice()) {
        Some(name) => format!("the loss is {loss} and the gradient of `{name}` is not finite"),
        None => format!("the loss is {loss}; every gradient is finite"),
    };
    Bad {
        what,
        lasting: false,
    }
}

/// The first parameter that holds a NaN or an infinity.
pub(super) fn non_finite_parameter(parameters: &NamedParameters) -> Option<&str> {
    let bad = parameters
        .iter()
        .find(|(_, parameter)| !entrenar_cpu::pointwise::all_finite(&parameter.array()));
    bad.map(|(name, _)| name.as_str())
}
