//! Two helpers of fused ops: checking inputs before any transform sees them, and gradients from the
//! expansion for the inputs that a backward kernel leaves to it (class weights, float masks).

use smallvec::smallvec;

use entrenar_base::{Array, Result};

use crate::Tensor;
use crate::apply::{apply, handle};
use crate::autograd::vjp;
use crate::op::{Aval, Expand, Few, Op};

/// Applies a fused op after its shape rule, so that misfits are reported by the op itself and not
/// by a broadcast somewhere in its expansion.
///
/// # Errors
/// As [`apply`].
#[track_caller]
pub(crate) fn checked(op: impl Op, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
    let avals: Vec<Aval> = inputs.iter().map(|t| t.aval()).collect();
    op.infer(&avals.iter().collect::<Vec<_>>())?;
    apply(&handle(op), inputs)
}

/// Gradients of all inputs of `op` where `needs` is true, on concrete arrays: exact for every
/// [`Expand`], and as slow as the expansion. `cotangents` holds
/// one entry per visible output.
///
/// # Errors
/// Whatever the ops of the expansion return.
pub(crate) fn gradients(
    op: &dyn Expand,
    inputs: &[&Array],
    cotangents: &[&Array],
    needs: &[bool],
) -> Result<Few<Option<Array>>> {
    let tensors: Vec<Tensor> = inputs.iter().map(|a| Tensor::from((*a).clone())).collect();
    let watched: Vec<&Tensor> = tensors
        .iter()
        .zip(needs)
        .filter(|(_, need)| **need)
        .map(|(t, _)| t)
        .collect();
    let (_, pullback) = vjp(
        |values| {
            let mut values = values.iter();
            let all: Vec<&Tensor> = tensors
                .iter()
                .zip(needs)
                .map(|(t, need)| if *need { values.next().unwrap_or(t) } else { t })
                .collect();
            Ok(op.expand(&all)?.into_vec())
        },
        &watched,
    )?;
    let cotangents: Vec<Tensor> = cotangents
        .iter()
        .map(|a| Tensor::from((*a).clone()))
        .collect();
    let mut found = pullback
        .call(&cotangents.iter().collect::<Vec<_>>())?
        .into_iter();
    let mut gradients: Few<Option<Array>> = smallvec![];
    for need in needs {
        gradients.push(if *need {
            found.next().map(|t| t.array().clone())
        } else {
            None
        });
    }
    Ok(gradients)
}
