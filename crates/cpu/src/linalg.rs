//! Dense linear algebra on batches of matrices `[.., M, N]` in f32 and f64.
//!
//! Cholesky factors, triangular systems, triangles of matrices; QR and symmetric eigenvalues in
//! `linalg/orthogonal.rs`. Each matrix is worked on by one thread with plain loops in a fixed order.

mod orthogonal;

use entrenar_base::{Array, Element, Error, Result, dispatch};

use crate::kit::{self, Real, with_real};
use crate::team;
pub use orthogonal::{eigh, qr};

/// Sizes of a batch of matrices: how many, rows, columns.
#[track_caller]
fn matrices(op: &str, a: &Array) -> Result<(usize, usize, usize)> {
    match a.dims() {
        [batch @ .., m, n] => Ok((batch.iter().product(), *m, *n)),
        _ => Err(Error::shape(op, "matrices [.., M, N]", a.shape())),
    }
}

/// The factor L (lower) with A = L·Lᵀ, or U = Lᵀ when `upper`, of symmetric positive definite
/// matrices `[.., N, N]`. Only the chosen triangle of `a` is read.
///
/// # Errors
/// When the matrices are not square, the dtype is no float, or one is not positive definite (the
/// message names batch entry and leading minor).
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![4.0f64, 2.0, 2.0, 5.0], [2, 2])?;
/// let l = entrenar_cpu::linalg::cholesky(&a, false)?;
/// assert_eq!(l.to_vec::<f64>()?, [2.0, 0.0, 1.0, 2.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn cholesky(a: &Array, upper: bool) -> Result<Array> {
    const OP: &str = "cholesky";
    let (batch, m, n) = matrices(OP, a)?;
    if m != n {
        return Err(Error::shape(OP, "square matrices", a.shape()));
    }
    let compute = kit::compute_dtype(OP, a.dtype())?;
    // The upper factor is the transpose of the lower factor of the transpose.
    let source = if upper {
        a.transpose(-2, -1)?
    } else {
        a.clone()
    };
    let source = kit::dense(&source, compute)?;
    let factor = with_real!(compute, T => {
        let a = source.as_slice::<T>()?;
        let mut failures = vec![0usize; batch];
        let failed = team::Shared::new(&mut failures);
        let out = Array::build(source.shape(), |out: &mut [T]| {
            if n == 0 {
                return;
            }
            team::split_mut(out, batch, (n * n * n) as f64 * 0.4, |range, out| {
                // SAFETY: ranges of the batch are disjoint.
                let failed = unsafe { failed.slice(range.clone()) };
                for ((b, l), failed) in range.zip(out.chunks_exact_mut(n * n)).zip(failed) {
                    *failed = factorize(&a[b * n * n..(b + 1) * n * n], l, n);
                }
            });
        });
        if let Some(b) = failures.iter().position(|&f| f > 0) {
            return Err(Error::argument(
                OP,
                "positive definite matrices",
                format!(
                    "batch entry {b} whose leading minor of order {} is not positive definite",
                    failures[b]
                ),
            ));
        }
        out
    });
    let factor = if upper {
        factor.transpose(-2, -1)?.deep_copy()
    } else {
        factor
    };
    kit::cast(&factor, a.dtype())
}

/// Writes the lower factor; returns 0, or the order of the first minor that is not positive.
fn factorize<T: Real>(a: &[T], l: &mut [T], n: usize) -> usize {
    l.fill(T::ZERO);
    for i in 0..n {
        for j in 0..=i {
            let (before, row) = l.split_at_mut(i * n);
            let row_j = if j == i {
                &row[..j]
            } else {
                &before[j * n..j * n + j]
            };
            let rest = a[i * n + j] - kit::dot(&row[..j], row_j);
            row[j] = if i == j {
                if rest <= T::ZERO || rest.is_nan() {
                    return i + 1;
                }
                rest.sqrt()
            } else {
                rest / before[j * n + j]
            };
        }
    }
    0
}

/// Solves op(A)·X = B (`left`) or X·op(A) = B for X, with A triangular `[.., N, N]`, op(A) = A or
/// its transpose, and B `[.., N, K]` (`[.., K, N]` from the right). Batch sizes are equal.
///
/// Only the triangle named by `upper` is read; `unit` takes its diagonal as ones. A zero on the
/// diagonal gives infinities or NaN, as in PyTorch.
///
/// # Errors
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn triangular_solve(
    a: &Array,
    b: &Array,
    left: bool,
    upper: bool,
    transpose: bool,
    unit: bool,
) -> Result<Array> {
    const OP: &str = "triangular_solve";
    kit::same_dtype(OP, a, b)?;
    let compute = kit::compute_dtype(OP, a.dtype())?;
    let (batch, m, n) = matrices(OP, a)?;
    let (_, rows, columns) = matrices(OP, b)?;
    let meets = if left { rows } else { columns };
    let rank = a.rank();
    if m != n || meets != n || b.rank() != rank || a.dims()[..rank - 2] != b.dims()[..rank - 2] {
        return Err(Error::shape(
            OP,
            "square triangular matrices and right-hand sides of the same batch and size",
            format!("{} and {}", a.shape(), b.shape()),
        ));
    }
    if !left {
        // X·op(A) = B is op(A)ᵀ·Xᵀ = Bᵀ.
        let x = triangular_solve(a, &b.transpose(-2, -1)?, true, upper, !transpose, unit)?;
        return Ok(x.transpose(-2, -1)?.deep_copy());
    }
    // A transposed view turns the transposed problem into a plain one of the other triangle.
    let (a, upper) = if transpose {
        (a.transpose(-2, -1)?, !upper)
    } else {
        (a.clone(), upper)
    };
    let (dense_a, dense_b) = (kit::dense(&a, compute)?, kit::dense(b, compute)?);
    let k = columns;
    let out = with_real!(compute, T => {
        let (a, b) = (dense_a.as_slice::<T>()?, dense_b.as_slice::<T>()?);
        Array::build(dense_b.shape(), |x: &mut [T]| {
            if x.is_empty() {
                return;
            }
            team::split_mut(x, batch, (n * n * k) as f64 * 0.5, |range, x| {
                for (at, x) in range.zip(x.chunks_exact_mut(n * k)) {
                    x.copy_from_slice(&b[at * n * k..(at + 1) * n * k]);
                    substitute(&a[at * n * n..(at + 1) * n * n], x, n, k, upper, unit);
                }
            });
        })
    });
    kit::cast(&out, b.dtype())
}

/// Solves A·X = B in place, row by row: `x` is `[n, k]`.
fn substitute<T: Real>(a: &[T], x: &mut [T], n: usize, k: usize, upper: bool, unit: bool) {
    for step in 0..n {
        let i = if upper { n - 1 - step } else { step };
        let known = if upper { i + 1..n } else { 0..i };
        for j in known {
            let factor = a[i * n + j];
            let (low, high) = x.split_at_mut(i.max(j) * k);
            let (from, to) = if j < i {
                (&low[j * k..(j + 1) * k], &mut high[..k])
            } else {
                (&high[..k], &mut low[i * k..(i + 1) * k])
            };
            for (t, &f) in to.iter_mut().zip(from) {
                *t -= factor * f;
            }
        }
        if !unit {
            let pivot = a[i * n + i];
            for t in &mut x[i * k..(i + 1) * k] {
                *t /= pivot;
            }
        }
    }
}

/// Matrices `[.., M, N]` with zeros outside a triangle: entries (i, j) stay where
/// j - i <= diagonal (lower) or j - i >= diagonal (`upper`). Any dtype.
///
/// # Errors
/// When the rank is below 2.
///
/// ```
/// use entrenar_base::{Array, DType};
/// let ones = Array::full([2, 3], 1i64);
/// let upper = entrenar_cpu::linalg::triangle(&ones, 0, true)?;
/// assert_eq!(upper.to_vec::<i64>()?, [1, 1, 1, 0, 1, 1]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn triangle(x: &Array, diagonal: i64, upper: bool) -> Result<Array> {
    let op = if upper { "triu" } else { "tril" };
    let (_, m, n) = matrices(op, x)?;
    let x = kit::contiguous(x)?;
    dispatch!(x.dtype(), T => {
        let values = x.as_slice::<T>()?;
        Ok(Array::build(x.shape(), |out: &mut [T]| {
            if out.is_empty() {
                return;
            }
            let rows = out.len() / n;
            team::split_mut(out, rows, n as f64 * 0.3, |range, out| {
                for (row, out) in range.zip(out.chunks_exact_mut(n)) {
                    // First column with j - i >= diagonal (upper), > diagonal (lower).
                    let offset = if upper { diagonal } else { diagonal.saturating_add(1) };
                    let border = ((row % m) as i64).saturating_add(offset).clamp(0, n as i64) as usize;
                    let source = &values[row * n..(row + 1) * n];
                    let kept = if upper { border..n } else { 0..border };
                    out.fill(T::from_i64(0));
                    out[kept.clone()].copy_from_slice(&source[kept]);
                }
            });
        }))
    })
}

/// The lower triangle up to `diagonal`: [`triangle`] with `upper` = false.
///
/// # Errors
/// When the rank is below 2.
#[track_caller]
pub fn tril(x: &Array, diagonal: i64) -> Result<Array> {
    triangle(x, diagonal, false)
}

/// The upper triangle from `diagonal` on: [`triangle`] with `upper` = true.
///
/// # Errors
/// When the rank is below 2.
#[track_caller]
pub fn triu(x: &Array, diagonal: i64) -> Result<Array> {
    triangle(x, diagonal, true)
}
