//! Gradient checking: derivatives against central differences and against each other, in f64.
//!
//! Two kinds of check. The *adjoint identity* ⟨u, J v⟩ = ⟨Jᵀ u, v⟩ needs no step size and catches
//! most transposition mistakes to rounding. *Central differences* along one random direction,
//! with Richardson extrapolation, tie both to the function itself. Applied to the gradient
//! function instead of the function they check second order, and once more third order.

use entrenar_base::{Array, DType, Error, Philox, Result};

use super::functional::{jvp, vjp};
use crate::Tensor;

/// Settings of [`check_gradient`].
///
/// ```
/// # use entrenar_core::autograd::GradCheck;
/// let g = GradCheck { order: 1, ..Default::default() };
/// assert_eq!(g.tolerance, 1e-6);
/// ```
#[derive(Clone, Debug)]
pub struct GradCheck {
    /// Highest derivative order to check, 1 to 3.
    pub order: u8,
    /// Allowed difference relative to the size of the numbers compared.
    pub tolerance: f64,
    /// Step of the central differences.
    pub step: f64,
    /// Seed of directions and cotangents.
    pub seed: u64,
}

impl Default for GradCheck {
    fn default() -> Self {
        GradCheck {
            order: 2,
            tolerance: 1e-6,
            step: 1e-3,
            seed: 0,
        }
    }
}

type Function<'a> = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a;

/// Checks forward and reverse derivatives of `f` at `inputs` (f64; other dtypes are constants).
///
/// # Errors
/// The first disagreement, with order, mode and both numbers; or whatever `f` returns.
///
/// ```
/// use entrenar_core::{Tensor, autograd::{check_gradient, GradCheck}};
/// let x = Tensor::from_vec(vec![0.3f64, -1.2, 2.0], [3])?;
/// check_gradient(|t| Ok(vec![t[0].mul(&t[0].sin()?)?]), &[&x], &GradCheck::default())?;
/// // A wrong derivative is found:
/// let wrong = |t: &[Tensor]| Ok(vec![t[0].detach().mul(&t[0])?]); // x² with half its gradient
/// assert!(check_gradient(wrong, &[&x], &GradCheck::default()).is_err());
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn check_gradient(
    f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[&Tensor],
    settings: &GradCheck,
) -> Result<()> {
    let inputs: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
    check_order(&f, &inputs, settings, 1)
}

fn is_real(t: &Tensor) -> bool {
    t.dtype() == DType::F64
}

fn random_like(t: &Tensor, seed: u64, stream: u64) -> Result<Tensor> {
    Tensor::randn_from(t.shape(), DType::F64, &Philox::new(seed, stream))
}

fn dot(a: &[Tensor], b: &[Tensor]) -> Result<(f64, f64)> {
    let (mut sum, mut size) = (0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        for (p, q) in x.to_vec::<f64>()?.iter().zip(y.to_vec::<f64>()?) {
            sum += p * q;
            size += (p * q).abs();
        }
    }
    Ok((sum, size))
}

fn moved(inputs: &[Tensor], directions: &[Tensor], step: f64) -> Result<Vec<Tensor>> {
    let mut directions = directions.iter();
    inputs
        .iter()
        .map(|t| {
            if !is_real(t) {
                return Ok(t.clone());
            }
            let d = directions.next().expect("one direction per f64 input");
            let values: Vec<f64> = t
                .to_vec::<f64>()?
                .iter()
                .zip(d.to_vec::<f64>()?)
                .map(|(x, v)| x + step * v)
                .collect();
            Ok(Tensor::from(Array::from_vec(values, t.shape())?))
        })
        .collect()
}

/// The f64 outputs of `f`: others have no derivative.
fn real_outputs(f: &Function<'_>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    Ok(f(inputs)?.into_iter().filter(is_real).collect())
}

fn check_order(f: &Function<'_>, inputs: &[Tensor], s: &GradCheck, order: u8) -> Result<()> {
    let real: Vec<Tensor> = inputs.iter().filter(|t| is_real(t)).cloned().collect();
    if real.is_empty() {
        return Ok(());
    }
    // `f` as a function of its f64 inputs alone.
    let of_real = |values: &[Tensor]| {
        let mut values = values.iter();
        let all: Vec<Tensor> = inputs
            .iter()
            .map(|t| {
                if is_real(t) {
                    values.next().expect("counted above").clone()
                } else {
                    t.clone()
                }
            })
            .collect();
        real_outputs(f, &all)
    };
    let base = order as u64 * 1000;
    let directions: Vec<Tensor> = real
        .iter()
        .enumerate()
        .map(|(i, t)| random_like(t, s.seed, base + i as u64))
        .collect::<Result<_>>()?;
    let real_refs: Vec<&Tensor> = real.iter().collect();
    let direction_refs: Vec<&Tensor> = directions.iter().collect();

    let (outputs, pushed) = jvp(of_real, &real_refs, &direction_refs)?;
    let cotangents: Vec<Tensor> = outputs
        .iter()
        .enumerate()
        .map(|(j, t)| random_like(t, s.seed, base + 500 + j as u64))
        .collect::<Result<_>>()?;
    let (_, pullback) = vjp(of_real, &real_refs)?;
    let cotangent_refs: Vec<&Tensor> = cotangents.iter().collect();
    let pulled = pullback.call(&cotangent_refs)?;

    let (forward, size_f) = dot(&cotangents, &pushed)?;
    let (reverse, size_r) = dot(&pulled, &directions)?;
    let scale = size_f.max(size_r).max(1e-3);
    if differs(forward, reverse, s.tolerance * 1e-3 * scale) {
        return Err(mismatch(
            order,
            "forward and reverse mode",
            forward,
            reverse,
            scale,
        ));
    }
    let at = |step: f64| -> Result<f64> {
        let plus = real_outputs(f, &moved(inputs, &directions, step)?)?;
        let minus = real_outputs(f, &moved(inputs, &directions, -step)?)?;
        Ok((dot(&cotangents, &plus)?.0 - dot(&cotangents, &minus)?.0) / (2.0 * step))
    };
    // Richardson: the error of the plain difference is proportional to step².
    let numeric = (4.0 * at(s.step / 2.0)? - at(s.step)?) / 3.0;
    let value_size = dot(&cotangents, &outputs)?.1;
    // Rounding of the function values themselves, magnified by the division.
    let noise = value_size * f64::EPSILON * 16.0 / s.step;
    if differs(forward, numeric, s.tolerance * scale + noise) {
        return Err(mismatch(
            order,
            "the derivative and central differences",
            forward,
            numeric,
            scale,
        ));
    }
    if order < s.order {
        // The gradient as a function of the same inputs; cotangents stay fixed.
        let gradient = |values: &[Tensor]| -> Result<Vec<Tensor>> {
            let refs: Vec<&Tensor> = values.iter().collect();
            let (_, pullback) = vjp(of_real, &refs)?;
            pullback.call(&cotangent_refs)
        };
        check_order(&gradient, &real, s, order + 1)?;
        // And the directional derivative, so that forward mode is nested both ways.
        let tangent = |values: &[Tensor]| -> Result<Vec<Tensor>> {
            let refs: Vec<&Tensor> = values.iter().collect();
            Ok(jvp(of_real, &refs, &direction_refs)?.1)
        };
        check_order(&tangent, &real, s, order + 1)?;
    }
    Ok(())
}

/// True when the numbers are further apart than `room`, or either is NaN.
fn differs(a: f64, b: f64, room: f64) -> bool {
    let distance = (a - b).abs();
    distance.is_nan() || distance > room
}

fn mismatch(order: u8, what: &str, a: f64, b: f64, scale: f64) -> Error {
    Error::autodiff(
        "check_gradient",
        format!(
            "{what} disagree at order {order}: {a:e} and {b:e} (relative {:e})",
            (a - b).abs() / scale
        ),
    )
}
