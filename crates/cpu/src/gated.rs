//! Gated linear units: one half of a layer's output opens and closes the other.
//!
//! silu(h)·u with silu(h) = h·σ(h) (Shazeer, "GLU variants improve transformer", 2020). One pass
//! makes the value, one more both gradients; 16-bit numbers are widened and rounded tile by tile.

use entrenar_base::{Array, Error, Result};

use crate::alloc::Scratch;
use crate::cast::{widened, written};
use crate::copy::contiguous;
use crate::kit::{self, multiversion, with_float};
use crate::linear::Smooth;
use crate::team::{self, Shared};

/// Estimated nanoseconds per element.
const ELEMENT_NS: f64 = 0.6;
/// Elements that are widened at once.
const TILE: usize = 1024;

multiversion! {
    fn value<T: Smooth>(h: &[T], u: &[T], out: &mut [T]) {
        let n = out.len();
        let (h, u) = (&h[..n], &u[..n]);
        for i in 0..n {
            out[i] = h[i] * h[i].sigmoid() * u[i];
        }
    }

    /// With s = σ(h): dh = g·u·s·(1 + h·(1 - s)), du = g·h·s.
    fn slopes<T: Smooth>(g: &[T], h: &[T], u: &[T], dh: &mut [T], du: &mut [T]) {
        let n = dh.len();
        let (g, h, u, du) = (&g[..n], &h[..n], &u[..n], &mut du[..n]);
        for i in 0..n {
            let s = h[i].sigmoid();
            dh[i] = g[i] * u[i] * (s * h[i].mul_add(T::of(1.0) - s, T::of(1.0)));
            du[i] = g[i] * (h[i] * s);
        }
    }
}

/// silu(gate)·up, elementwise, rounded once.
///
/// # Errors
/// When shapes or dtypes differ, or the dtype is no float.
///
/// ```
/// use entrenar_base::Array;
/// let gate = Array::from_vec(vec![0.0f64, 100.0], [2])?;
/// let up = Array::from_vec(vec![5.0f64, 2.0], [2])?;
/// let y = entrenar_cpu::gated::silu_mul(&gate, &up)?;
/// assert_eq!(y.to_vec::<f64>()?, [0.0, 200.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn silu_mul(gate: &Array, up: &Array) -> Result<Array> {
    const OP: &str = "silu_mul";
    check(OP, gate, &[up])?;
    let (gate, up) = (contiguous(gate)?, contiguous(up)?);
    with_float!(gate.dtype(), S, T => {
        let (h, u) = (gate.as_slice::<S>()?, up.as_slice::<S>()?);
        Ok(Array::build(gate.shape(), |out: &mut [S]| {
            team::split_mut(out, h.len(), ELEMENT_NS, |range, out| {
                let mut room = Scratch::<T>::new(3 * TILE);
                let (a, rest) = room.split_at_mut(TILE);
                let (b, c) = rest.split_at_mut(TILE);
                for (tile, out) in range.step_by(TILE).zip(out.chunks_mut(TILE)) {
                    let at = tile..tile + out.len();
                    let (h, u) = (widened(&h[at.clone()], a), widened(&u[at], b));
                    written(out, c, |out| value(h, u, out));
                }
            });
        }))
    })
}

/// Gradients of [`silu_mul`] with respect to the gate and what it gates, those that `needs` names,
/// given that of its result.
///
/// # Errors
/// As [`silu_mul`].
#[track_caller]
pub fn silu_mul_backward(
    grad: &Array,
    gate: &Array,
    up: &Array,
    needs: [bool; 2],
) -> Result<[Option<Array>; 2]> {
    const OP: &str = "silu_mul_backward";
    check(OP, gate, &[up, grad])?;
    let [grad, gate, up] = [contiguous(grad)?, contiguous(gate)?, contiguous(up)?];
    let (dh, du) = with_float!(gate.dtype(), S, T => {
        let (g, h, u) = (grad.as_slice::<S>()?, gate.as_slice::<S>()?, up.as_slice::<S>()?);
        let run = |dh: &Shared<'_, S>, du: &Shared<'_, S>| {
            team::split(h.len().div_ceil(TILE), 2.0 * TILE as f64 * ELEMENT_NS, |tiles| {
                let mut room = Scratch::<T>::new(5 * TILE);
                let (a, rest) = room.split_at_mut(TILE);
                let (b, rest) = rest.split_at_mut(TILE);
                let (c, rest) = rest.split_at_mut(TILE);
                let (d, e) = rest.split_at_mut(TILE);
                for tile in tiles {
                    let at = tile * TILE..h.len().min((tile + 1) * TILE);
                    let g = widened(&g[at.clone()], a);
                    let (h, u) = (widened(&h[at.clone()], b), widened(&u[at.clone()], c));
                    // SAFETY: tiles are disjoint.
                    let (dh, du) = unsafe { (dh.slice(at.clone()), du.slice(at)) };
                    written(dh, d, |dh| written(du, e, |du| slopes(g, h, u, dh, du)));
                }
            });
        };
        let mut du = None;
        let dh = Array::build(gate.shape(), |dh: &mut [S]| {
            du = Some(Array::build(gate.shape(), |du: &mut [S]| {
                run(&Shared::new(dh), &Shared::new(du));
            }));
        });
        (Some(dh), du)
    });
    Ok([dh.filter(|_| needs[0]), du.filter(|_| needs[1])])
}

/// Checks that all arrays have one shape and one float dtype.
#[track_caller]
fn check(op: &str, first: &Array, others: &[&Array]) -> Result<()> {
    for other in others {
        kit::same_dtype(op, first, other)?;
        if other.shape() != first.shape() {
            let expected = format!("arrays of one shape, {}", first.shape());
            return Err(Error::shape(op, expected, other.shape()));
        }
    }
    kit::compute_dtype(op, first.dtype())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, same_at_any_thread_count};
    use entrenar_base::DType;

    /// Against the formulas in f64, at sizes around a tile.
    #[test]
    fn values_and_slopes_are_those_of_the_formulas() {
        for (n, dtype, unit) in [
            (1, DType::F64, 1e-14),
            (TILE + 3, DType::F32, 1e-6),
            (2 * TILE, DType::BF16, 8e-3),
            (77, DType::F16, 1e-3),
        ] {
            let scaled = |seed| {
                let x = array(&[n], dtype, seed).to_f64_vec();
                let x = x.into_iter().map(|v| v / 8.0).collect();
                Array::from_vec::<f64>(x, [n]).unwrap().cast(dtype)
            };
            let [g, h, u] = [scaled(1), scaled(2), scaled(3)];
            let y = silu_mul(&h, &u).unwrap().to_f64_vec();
            let d = silu_mul_backward(&g, &h, &u, [true; 2]).unwrap();
            let [dh, du] = d.map(|d| d.unwrap().to_f64_vec());
            let [g, h, u] = [g, h, u].map(|x| x.to_f64_vec());
            for i in 0..n {
                let s = 1.0 / (1.0 + (-h[i]).exp());
                let slope = s + h[i] * s * (1.0 - s);
                for (found, want) in [
                    (y[i], h[i] * s * u[i]),
                    (dh[i], g[i] * u[i] * slope),
                    (du[i], g[i] * h[i] * s),
                ] {
                    let room = unit * want.abs().max(0.05);
                    assert!((found - want).abs() <= room, "{dtype} {i}: {found} {want}");
                }
            }
        }
    }

    #[test]
    fn threads_views_and_misfits() {
        let x = array(&[70, 90], DType::F32, 1);
        let up = array(&[70, 90], DType::F32, 2);
        same_at_any_thread_count(|| {
            let [dh, du] = silu_mul_backward(&up, &x, &up, [true; 2]).unwrap();
            let y = silu_mul(&x, &up).unwrap();
            crate::copy::concat(&[&y, &dh.unwrap(), &du.unwrap()], 0).unwrap()
        });
        let turned = |a: &Array| a.transpose(0, 1).unwrap();
        let (a, b) = (
            silu_mul(&turned(&x), &turned(&up)).unwrap(),
            silu_mul(&x, &up).unwrap(),
        );
        assert_eq!(turned(&a).to_f64_vec(), b.to_f64_vec());
        let [none, some] = silu_mul_backward(&up, &x, &up, [false, true]).unwrap();
        assert!(none.is_none() && some.is_some());
        assert!(silu_mul(&x, &turned(&up)).is_err());
        assert!(silu_mul(&x, &up.cast(DType::F64)).is_err());
        assert!(silu_mul(&x.cast(DType::I64), &up.cast(DType::I64)).is_err());
    }
}
