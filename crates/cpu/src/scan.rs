//! Running sums, products, maxima and minima along one dimension.
//!
//! Every slice is walked in order by one thread, so the bits are those of the plain loop. Integers
//! add up in i64 and wrap; 16-bit floats accumulate in f32 and every result is rounded once.

use entrenar_base::{Array, DType, Element, Error, Result, dispatch};

use crate::kit;
use crate::team::{self, Shared};

/// Estimated nanoseconds per element.
const ELEMENT_NS: f64 = 1.0;

/// Calls `body` for every slice along `dim` of a dense array of sizes `[outer, n, inner]`, on the
/// team: `body(position of the slice's first element)`; its elements lie `inner` apart.
fn slices((outer, n, inner): (usize, usize, usize), body: impl Fn(usize) + Sync) {
    if n == 0 {
        return;
    }
    team::split(outer * inner, n as f64 * ELEMENT_NS, |range| {
        for slice in range {
            body(slice / inner * n * inner + slice % inner);
        }
    });
}

/// Folds along `dim` in the dtype `T`: `out[i] = step(out[i - 1], x[i])`, from the back when
/// `reverse`.
fn fold<T: Element>(
    x: &Array,
    dim: usize,
    reverse: bool,
    step: impl Fn(T, T) -> T + Sync,
) -> Result<Array> {
    let sizes @ (_, n, inner) = kit::around(x.dims(), dim);
    let x = kit::contiguous(x)?;
    let values = x.as_slice::<T>()?;
    Ok(Array::build(x.shape(), |out: &mut [T]| {
        let out = Shared::new(out);
        slices(sizes, |start| {
            let mut total: Option<T> = None;
            for i in 0..n {
                let i = if reverse { n - 1 - i } else { i };
                let at = start + i * inner;
                let next = total.map_or(values[at], |t| step(t, values[at]));
                // SAFETY: slices share no element.
                let place = unsafe { out.slice(at..at + 1) };
                place[0] = next;
                total = Some(next);
            }
        });
    }))
}

#[track_caller]
fn fold_numbers(
    op: &str,
    x: &Array,
    dim: usize,
    reverse: bool,
    float: impl Fn(f64, f64) -> f64 + Sync,
    single: impl Fn(f32, f32) -> f32 + Sync,
    integer: impl Fn(i64, i64) -> i64 + Sync,
) -> Result<Array> {
    kit::check_dim(op, x, dim)?;
    match x.dtype().accumulator() {
        DType::F64 => fold::<f64>(x, dim, reverse, float),
        DType::F32 => {
            let out = fold::<f32>(&kit::cast(x, DType::F32)?, dim, reverse, single)?;
            kit::cast(&out, x.dtype())
        }
        _ => fold::<i64>(&kit::cast(x, DType::I64)?, dim, reverse, integer),
    }
}

/// Running sums along `dim`; from the end towards the start when `reverse` (the gradient of the
/// other direction). Integers and bool give i64.
///
/// # Errors
/// When `dim` does not exist.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1i64, 2, 3], [3])?;
/// assert_eq!(entrenar_cpu::scan::cumsum(&x, 0, false)?.to_vec::<i64>()?, [1, 3, 6]);
/// assert_eq!(entrenar_cpu::scan::cumsum(&x, 0, true)?.to_vec::<i64>()?, [6, 5, 3]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn cumsum(x: &Array, dim: usize, reverse: bool) -> Result<Array> {
    let add = (|a: f64, b: f64| a + b, |a: f32, b: f32| a + b);
    fold_numbers("cumsum", x, dim, reverse, add.0, add.1, i64::wrapping_add)
}

/// Running products along `dim`. Integers and bool give i64.
///
/// # Errors
/// When `dim` does not exist.
#[track_caller]
pub fn cumprod(x: &Array, dim: usize) -> Result<Array> {
    let times = (|a: f64, b: f64| a * b, |a: f32, b: f32| a * b);
    fold_numbers(
        "cumprod",
        x,
        dim,
        false,
        times.0,
        times.1,
        i64::wrapping_mul,
    )
}

/// Running extremes and where they were last met; a NaN stays from where it appears.
#[track_caller]
fn extremes(op: &str, x: &Array, dim: usize, largest: bool) -> Result<(Array, Array)> {
    kit::check_dim(op, x, dim)?;
    if x.dtype() == DType::Bool {
        return Err(Error::dtype(op, "a number dtype", "bool"));
    }
    let sizes @ (_, n, inner) = kit::around(x.dims(), dim);
    let x = kit::contiguous(x)?;
    let mut index = Array::zeros(x.shape(), DType::I64);
    let indices = Shared::new(index.make_mut::<i64>()?);
    let values = dispatch!(x.dtype(), T => {
        let values = x.as_slice::<T>()?;
        Array::build(x.shape(), |out: &mut [T]| {
            let out = Shared::new(out);
            slices(sizes, |start| {
                let (mut best, mut place) = (values[start], 0);
                for i in 0..n {
                    let at = start + i * inner;
                    let v = values[at];
                    // `best` is stuck once it is NaN: only another NaN replaces it, as in PyTorch.
                    #[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
                    let wins = v != v || if largest { v >= best } else { v <= best };
                    if wins {
                        (best, place) = (v, i);
                    }
                    // SAFETY: slices share no element.
                    unsafe {
                        out.slice(at..at + 1)[0] = best;
                        indices.slice(at..at + 1)[0] = place as i64;
                    }
                }
            });
        })
    });
    Ok((values, index))
}

/// Running maxima along `dim` and their indices (the latest among equals), as `torch.cummax`.
///
/// # Errors
/// When `dim` does not exist or the dtype is bool.
#[track_caller]
pub fn cummax(x: &Array, dim: usize) -> Result<(Array, Array)> {
    extremes("cummax", x, dim, true)
}

/// Running minima along `dim` and their indices (the latest among equals), as `torch.cummin`.
///
/// # Errors
/// When `dim` does not exist or the dtype is bool.
#[track_caller]
pub fn cummin(x: &Array, dim: usize) -> Result<(Array, Array)> {
    extremes("cummin", x, dim, false)
}
