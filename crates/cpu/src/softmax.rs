//! Softmax and log-softmax along one dimension, forward and backward.
//!
//! softmax(x)ᵢ = exp(xᵢ - m) / Σⱼ exp(xⱼ - m) with m = max x; log_softmax(x)ᵢ = xᵢ - lse(x) with
//! lse = m + ln Σⱼ exp(xⱼ - m). Gradients for cotangent g: y·(g - Σ g·y) and g - exp(y)·Σ g.
//! A row is handled where it lies when the dimension is the last; otherwise neighbouring columns
//! go side by side. f16 and bf16 are computed in f32 and rounded once.

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use entrenar_base::{Array, Error, Result};

use crate::kit::{self, Real, multiversion, with_real};
use crate::team::{self, Shared};

/// Estimated nanoseconds per element: one pass with an exponential and two cheap ones.
const ELEMENT_NS: f64 = 0.5;
/// Columns handled side by side when the dimension is not the last.
const COLUMNS: usize = 64;

#[derive(Clone, Copy)]
enum Kind {
    Softmax,
    LogSoftmax,
}

multiversion! {
    /// Rows of `n` elements.
    fn softmax_rows<T: Real>(x: &[T], y: &mut [T], n: usize) {
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            let m = kit::max(x);
            y.copy_from_slice(x);
            let sum = kit::exp_shifted_sum(y, m);
            kit::scale(y, T::ONE / sum);
        }
    }

    fn log_softmax_rows<T: Real>(x: &[T], y: &mut [T], n: usize) {
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            let m = kit::max(x);
            let lse = kit::sum_exp_shifted(x, m).ln();
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - m) - lse;
            }
        }
    }

    fn softmax_backward_rows<T: Real>(y: &[T], g: &[T], dx: &mut [T], n: usize) {
        let rows = y.chunks_exact(n).zip(g.chunks_exact(n));
        for ((y, g), dx) in rows.zip(dx.chunks_exact_mut(n)) {
            let total = kit::dot(y, g);
            for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                *dx = y * (g - total);
            }
        }
    }

    fn log_softmax_backward_rows<T: Real>(y: &[T], g: &[T], dx: &mut [T], n: usize) {
        let rows = y.chunks_exact(n).zip(g.chunks_exact(n));
        for ((y, g), dx) in rows.zip(dx.chunks_exact_mut(n)) {
            let total = kit::sum(g);
            for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                *dx = g - y.exp() * total;
            }
        }
    }

    /// A dense block of `w <= COLUMNS` columns, `n` rows.
    fn softmax_columns<T: Real>(x: &[T], y: &mut [T], n: usize, w: usize, log: bool) {
        let mut m = [T::NEG_INFINITY; COLUMNS];
        for i in 0..n {
            for (m, &v) in m.iter_mut().zip(&x[i * w..(i + 1) * w]) {
                *m = if v > *m { v } else { *m };
            }
        }
        let mut s = [T::ZERO; COLUMNS];
        for i in 0..n {
            let (x, y) = (&x[i * w..(i + 1) * w], &mut y[i * w..(i + 1) * w]);
            for c in 0..w {
                let e = (x[c] - m[c]).exp();
                s[c] += e;
                y[c] = if log { x[c] - m[c] } else { e };
            }
        }
        for s in &mut s[..w] {
            *s = if log { s.ln() } else { T::ONE / *s };
        }
        for i in 0..n {
            for (y, &s) in y[i * w..(i + 1) * w].iter_mut().zip(&s) {
                *y = if log { *y - s } else { *y * s };
            }
        }
    }

    fn softmax_backward_columns<T: Real>(
        y: &[T], g: &[T], dx: &mut [T], n: usize, w: usize, log: bool,
    ) {
        let mut s = [T::ZERO; COLUMNS];
        for i in 0..n {
            let at = i * w..(i + 1) * w;
            for ((s, &y), &g) in s.iter_mut().zip(&y[at.clone()]).zip(&g[at]) {
                *s += if log { g } else { g * y };
            }
        }
        for i in 0..n {
            let at = i * w..(i + 1) * w;
            let (y, g, dx) = (&y[at.clone()], &g[at.clone()], &mut dx[at]);
            for c in 0..w {
                dx[c] = if log { g[c] - y[c].exp() * s[c] } else { y[c] * (g[c] - s[c]) };
            }
        }
    }
}

/// Splits `[outer, n, inner]` into blocks of columns; `body` gets the range of
/// elements from the block's first to its last, and its width.
fn column_blocks(
    (outer, n, inner): (usize, usize, usize),
    body: impl Fn(std::ops::Range<usize>, usize) + Sync,
) {
    let per_outer = inner.div_ceil(COLUMNS);
    let cost = (n * COLUMNS.min(inner)) as f64 * ELEMENT_NS * 2.0;
    team::split(outer * per_outer, cost, |blocks| {
        for block in blocks {
            let (o, first) = (block / per_outer, block % per_outer * COLUMNS);
            let width = COLUMNS.min(inner - first);
            let start = o * n * inner + first;
            body(start..start + (n - 1) * inner + width, width);
        }
    });
}

#[track_caller]
fn forward(op: &str, x: &Array, dim: usize, kind: Kind) -> Result<Array> {
    kit::check_dim(op, x, dim)?;
    let compute = kit::compute_dtype(op, x.dtype())?;
    let (outer, n, inner) = kit::around(x.dims(), dim);
    let dense = kit::dense(x, compute)?;
    let out = with_real!(compute, T => {
        let x = dense.as_slice::<T>()?;
        Array::build(dense.shape(), |y: &mut [T]| {
            if y.is_empty() {
            } else if inner == 1 {
                team::split_mut(y, outer, n as f64 * ELEMENT_NS, |rows, y| {
                    let x = &x[rows.start * n..rows.end * n];
                    match kind {
                        Kind::Softmax => softmax_rows(x, y, n),
                        Kind::LogSoftmax => log_softmax_rows(x, y, n),
                    }
                });
            } else {
                let y = Shared::new(y);
                column_blocks((outer, n, inner), |at, width| {
                    // A block's extent overlaps its neighbours', so only single rows may be
                    // borrowed mutably: work on a copy of the block.
                    kit::with_scratch(n * width, |block: &mut [T]| {
                        let x = &x[at.clone()];
                        for i in 0..n {
                            block[i * width..][..width].copy_from_slice(&x[i * inner..][..width]);
                        }
                        kit::with_scratch(n * width, |result: &mut [T]| {
                            let log = matches!(kind, Kind::LogSoftmax);
                            softmax_columns(block, result, n, width, log);
                            scatter_rows(&y, result, at.start, inner, width);
                        });
                    });
                });
            }
        })
    });
    kit::cast(&out, x.dtype())
}

/// Writes a dense block of `width` columns back to rows `inner` apart.
fn scatter_rows<T: Real>(
    out: &Shared<'_, T>,
    block: &[T],
    start: usize,
    inner: usize,
    width: usize,
) {
    for (i, row) in block.chunks_exact(width).enumerate() {
        // SAFETY: blocks cover disjoint columns, so no other call writes these elements.
        let target = unsafe { out.slice(start + i * inner..start + i * inner + width) };
        target.copy_from_slice(row);
    }
}

#[track_caller]
fn backward(op: &str, y: &Array, grad: &Array, dim: usize, kind: Kind) -> Result<Array> {
    kit::check_dim(op, y, dim)?;
    kit::same_dtype(op, y, grad)?;
    if y.shape() != grad.shape() {
        return Err(Error::shape(
            op,
            format!("a gradient of shape {}", y.shape()),
            grad.shape(),
        ));
    }
    let compute = kit::compute_dtype(op, y.dtype())?;
    let (outer, n, inner) = kit::around(y.dims(), dim);
    let (dense_y, dense_g) = (kit::dense(y, compute)?, kit::dense(grad, compute)?);
    let out = with_real!(compute, T => {
        let (y, g) = (dense_y.as_slice::<T>()?, dense_g.as_slice::<T>()?);
        Array::build(dense_y.shape(), |dx: &mut [T]| {
            if dx.is_empty() {
            } else if inner == 1 {
                team::split_mut(dx, outer, n as f64 * ELEMENT_NS, |rows, dx| {
                    let at = rows.start * n..rows.end * n;
                    let (y, g) = (&y[at.clone()], &g[at]);
                    match kind {
                        Kind::Softmax => softmax_backward_rows(y, g, dx, n),
                        Kind::LogSoftmax => log_softmax_backward_rows(y, g, dx, n),
                    }
                });
            } else {
                let dx = Shared::new(dx);
                column_blocks((outer, n, inner), |at, width| {
                    kit::with_scratch(3 * n * width, |block: &mut [T]| {
                        let (by, rest) = block.split_at_mut(n * width);
                        let (bg, result) = rest.split_at_mut(n * width);
                        for i in 0..n {
                            let (to, from) = (i * width, at.start + i * inner);
                            by[to..to + width].copy_from_slice(&y[from..from + width]);
                            bg[to..to + width].copy_from_slice(&g[from..from + width]);
                        }
                        let log = matches!(kind, Kind::LogSoftmax);
                        softmax_backward_columns(by, bg, result, n, width, log);
                        scatter_rows(&dx, result, at.start, inner, width);
                    });
                });
            }
        })
    });
    kit::cast(&out, y.dtype())
}

/// Softmax along `dim`: non-negative numbers that add up to 1. Any rank and layout.
///
/// A slice that is minus infinity everywhere gives NaN, as in PyTorch.
///
/// # Errors
/// When `dim` does not exist or the dtype is no float.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![0.0f64, 3f64.ln()], [2])?;
/// let y = entrenar_cpu::softmax::softmax(&x, 0)?.to_vec::<f64>()?;
/// assert!((y[0] - 0.25).abs() < 1e-15 && (y[1] - 0.75).abs() < 1e-15);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn softmax(x: &Array, dim: usize) -> Result<Array> {
    forward("softmax", x, dim, Kind::Softmax)
}

/// The logarithm of [`softmax`], computed without forming it.
///
/// # Errors
/// When `dim` does not exist or the dtype is no float.
#[track_caller]
pub fn log_softmax(x: &Array, dim: usize) -> Result<Array> {
    forward("log_softmax", x, dim, Kind::LogSoftmax)
}

/// The gradient of [`softmax`] from its result `y` and the cotangent `grad` (same shape).
///
/// # Errors
/// When shapes or dtypes differ.
#[track_caller]
pub fn softmax_backward(y: &Array, grad: &Array, dim: usize) -> Result<Array> {
    backward("softmax_backward", y, grad, dim, Kind::Softmax)
}

/// The gradient of [`log_softmax`] from its result `y` and the cotangent `grad` (same shape).
///
/// # Errors
/// When shapes or dtypes differ.
#[track_caller]
pub fn log_softmax_backward(y: &Array, grad: &Array, dim: usize) -> Result<Array> {
    backward("log_softmax_backward", y, grad, dim, Kind::LogSoftmax)
}
