//! Norms and clipping of gradients, over all parameters together.
//!
//! `clip_grad_norm` changes the gradients, as in PyTorch. A training loop saves that pass:
//! `optimizer.step_scaled(clip_factor(grad_norm(&p), max))`.

use entrenar_base::{Array, Error, Result};
use entrenar_core::Tensor;

use crate::{Parameter, Parameters};

/// The Euclidean norm of all gradients together, summed in f64 and in a fixed order.
///
/// ```
/// use entrenar_nn::Parameter;
/// use entrenar_nn::optim::{clip_grad_norm, grad_norm};
/// use entrenar_core::Tensor;
/// let w = Parameter::new(Tensor::from_vec(vec![3.0f32, 4.0], [2])?)?;
/// w.tensor().square()?.mul_scalar(0.5)?.sum()?.backward()?; // gradient = w
/// assert_eq!(clip_grad_norm(&[w.clone()], 1.0)?, 5.0);
/// assert!((grad_norm(&[w]) - 1.0).abs() < 1e-6);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn grad_norm<P: Parameters + ?Sized>(parameters: &P) -> f64 {
    let gradients: Vec<Tensor> = parameters
        .parameters()
        .iter()
        .filter_map(Parameter::grad)
        .collect();
    let arrays: Vec<&Array> = gradients.iter().map(Tensor::array).collect();
    entrenar_cpu::optim::global_norm(&arrays)
}

/// What gradients of norm `norm` are multiplied by so that their norm is at most `max_norm`:
/// 1 when it already is, and max / (norm + 1e-6) above, as in PyTorch.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    // A norm that is not finite gives NaN or 0 here; the caller sees it in the norm.
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// Scales all gradients so that their norm together is at most `max_norm`; the norm before.
///
/// # Errors
/// When `max_norm` is negative or NaN. A norm that is not finite is no error: it is returned,
/// and the gradients stay as they are.
pub fn clip_grad_norm<P: Parameters + ?Sized>(parameters: &P, max_norm: f64) -> Result<f64> {
    if max_norm.is_nan() || max_norm < 0.0 {
        return Err(Error::argument(
            "clip_grad_norm",
            "a norm of at least 0",
            max_norm,
        ));
    }
    let norm = grad_norm(parameters);
    let factor = clip_factor(norm, max_norm);
    if norm.is_finite() && factor < 1.0 {
        for p in parameters.parameters() {
            if let Some(g) = p.grad() {
                p.set_grad(Some(g.detach().mul_scalar(factor)?))?;
            }
        }
    }
    Ok(norm)
}

/// Limits every element of every gradient to ±`max_value`.
///
/// # Errors
/// When `max_value` is negative or NaN.
pub fn clip_grad_value<P: Parameters + ?Sized>(parameters: &P, max_value: f64) -> Result<()> {
    if max_value.is_nan() || max_value < 0.0 {
        return Err(Error::argument(
            "clip_grad_value",
            "a value of at least 0",
            max_value,
        ));
    }
    for p in parameters.parameters() {
        if let Some(g) = p.grad() {
            p.set_grad(Some(limit(&g, max_value)?))?;
        }
    }
    Ok(())
}

/// The name of the first parameter whose gradient holds a NaN or an infinity.
pub fn non_finite_gradient<P: Parameters + ?Sized>(parameters: &P) -> Option<String> {
    let named = parameters.named_parameters().into_iter();
    named
        .filter(|(_, p)| {
            p.grad()
                .is_some_and(|g| !entrenar_cpu::pointwise::all_finite(g.array()))
        })
        .map(|(name, _)| name)
        .next()
}

fn limit(g: &Tensor, max: f64) -> Result<Tensor> {
    let bound = Tensor::full((), max, g.dtype());
    g.detach().minimum(&bound)?.maximum(&bound.neg()?)
}
