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

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[f64]) -> Tensor {
        Tensor::from_vec(values.to_vec(), [values.len()]).unwrap()
    }

    #[test]
    fn differences_have_room_and_not_a_number_has_none() {
        assert!(!differs(1.0, 1.5, 0.5) && differs(1.0, 1.5, 0.25));
        assert!(!differs(-1.0, -1.5, 0.5) && differs(1.5, 1.0, 0.25));
        assert!(differs(f64::NAN, 1.0, 9.0) && differs(1.0, f64::NAN, 9.0));
        assert!(differs(f64::INFINITY, f64::INFINITY, 9.0));
        assert!(!differs(2.0, 2.0, 0.0));
    }

    #[test]
    fn products_are_summed_with_and_without_sign() {
        let (a, b) = (
            [list(&[1.0, -2.0]), list(&[3.0])],
            [list(&[4.0, 5.0]), list(&[-6.0])],
        );
        assert_eq!(dot(&a, &b).unwrap(), (-24.0, 32.0));
        assert_eq!(dot(&[], &[]).unwrap(), (0.0, 0.0));
    }

    #[test]
    fn floats_move_along_their_directions_and_integers_stay() {
        let whole = Tensor::from_vec(vec![5i64], [1]).unwrap();
        let inputs = [list(&[1.0, 2.0]), whole, list(&[3.0])];
        let directions = [list(&[10.0, -10.0]), list(&[4.0])];
        let moved = moved(&inputs, &directions, 0.5).unwrap();
        assert_eq!(moved[0].to_vec::<f64>().unwrap(), [6.0, -3.0]);
        assert_eq!(moved[1].to_vec::<i64>().unwrap(), [5]);
        assert_eq!(moved[2].to_vec::<f64>().unwrap(), [5.0]);
        let outputs = real_outputs(&|t: &[Tensor]| Ok(t.to_vec()), &inputs).unwrap();
        assert_eq!(outputs.len(), 2);
    }

    #[test]
    fn directions_differ_by_seed_order_and_place() {
        let x = list(&[0.0; 4]);
        let draw = |seed, stream| {
            random_like(&x, seed, stream)
                .unwrap()
                .to_vec::<f64>()
                .unwrap()
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
        // Every input has a direction of its own: a derivative that swaps them is found.
        let swapped = |t: &[Tensor]| {
            let (a, b) = (&t[0], &t[1]);
            let (fa, fb) = (a.detach(), b.detach());
            // The value of a² + b with the slope of a + ... of the other one.
            let value = fa.square()?.add(&fb)?;
            Ok(vec![
                value
                    .add(&b.sub(&fb)?.mul(&fa.mul_scalar(2.0)?)?)?
                    .add(&a.sub(&fa)?)?,
            ])
        };
        let inputs = [list(&[0.3, 0.8]), list(&[1.1, -0.4])];
        let settings = GradCheck {
            order: 1,
            ..Default::default()
        };
        let refs: Vec<&Tensor> = inputs.iter().collect();
        assert!(check_gradient(swapped, &refs, &settings).is_err());
    }

    /// Large values with a small slope leave room for their rounding, and no more.
    #[test]
    fn rounding_of_large_values_is_not_a_disagreement() {
        let x = list(&[0.3, -0.7, 1.9]);
        let settings = GradCheck {
            order: 1,
            ..Default::default()
        };
        let large = |t: &[Tensor]| Ok(vec![t[0].mul_scalar(1e-3)?.add_scalar(1e6)?]);
        check_gradient(large, &[&x], &settings).unwrap();
        let off = |t: &[Tensor]| {
            let x = t[0].mul_scalar(1e-3)?;
            Ok(vec![x.add(&x.detach().mul_scalar(0.01)?)?.add_scalar(1.0)?])
        };
        let e = check_gradient(off, &[&x], &settings)
            .unwrap_err()
            .to_string();
        assert!(e.contains("central differences"), "{e}");
    }
}
