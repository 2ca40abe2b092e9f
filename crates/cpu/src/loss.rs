//! Cross-entropy from logits, alone and fused with the linear layer before it.
//!
//! With p = softmax(logits of a row), y its target, w class weights (1 without) and ε the label
//! smoothing over C classes, the loss of the row is PyTorch's
//! `(1 - ε)·w[y]·(-ln p[y]) + ε/C · Σ_c w[c]·(-ln p[c])`,
//! and 0 when y is `ignore_index`. Forward saves one log-sum-exp per row; backward rebuilds the
//! softmax from it. Reductions (mean, sum) are the caller's: a row's cotangent is `row_grad`.
//! The fused form goes through tiles of rows and classes and never holds all logits.

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use entrenar_base::{Array, DType, Error, Result};

use crate::alloc::Scratch;
use crate::kit::{self, Matrix, Real, gemm, multiversion, with_real};
use crate::product::Compute;
use crate::team::{self, Shared};

/// Estimated nanoseconds per logit.
const ELEMENT_NS: f64 = 0.5;
/// Classes per tile of the fused loss.
const CLASS_TILE: usize = 1024;
/// Most rows per tile of the fused loss.
const ROW_TILE: usize = 256;
/// Most logits that the fused backward pass holds at once.
const HELD_LOGITS: usize = 1 << 23;

/// What an entry of the targets says.
#[derive(Clone, Copy)]
enum Target {
    Class(usize),
    Ignored,
}

/// Checks targets against `0..classes` and `ignore_index`.
#[track_caller]
fn targets_of(
    op: &str,
    targets: &Array,
    rows: usize,
    classes: usize,
    ignore: i64,
) -> Result<Vec<Target>> {
    if targets.rank() != 1 || targets.numel() != rows {
        return Err(Error::shape(
            op,
            format!("targets of shape [{rows}]"),
            targets.shape(),
        ));
    }
    let ids = kit::integers(op, targets)?;
    ids.iter()
        .enumerate()
        .map(|(at, &t)| match t {
            t if t == ignore => Ok(Target::Ignored),
            t if (t as u64) < classes as u64 => Ok(Target::Class(t as usize)),
            t => Err(Error::index(
                op,
                format!("targets in 0..{classes} or {ignore} (ignored)"),
                format!("{t} at position [{at}]"),
            )),
        })
        .collect()
}

multiversion! {
    /// Log-sum-exp of a row.
    fn row_lse<T: Real>(x: &[T]) -> T {
        let m = kit::max(x);
        m + kit::sum_exp_shifted(x, m).ln()
    }

    /// Σ_c w[c]·x[c], or Σ_c x[c] without weights.
    fn weighted_sum<T: Real>(x: &[T], w: &[T]) -> T {
        if w.is_empty() { kit::sum(x) } else { kit::dot(x, w) }
    }

    /// d = a·exp(x - lse) - b·w, with ones for empty w.
    fn row_gradient<T: Real>(x: &[T], lse: T, a: T, b: T, w: &[T], d: &mut [T]) {
        if w.is_empty() {
            for (d, &x) in d.iter_mut().zip(x) {
                *d = a * (x - lse).exp() - b;
            }
        } else {
            for ((d, &x), &w) in d.iter_mut().zip(x).zip(w) {
                *d = a * (x - lse).exp() - b * w;
            }
        }
    }

    /// x = a·exp(x - lse) in place.
    fn probabilities<T: Real>(x: &mut [T], lse: T, a: T) {
        for x in x {
            *x = a * (*x - lse).exp();
        }
    }

    /// Folds a tile's row into a running maximum and sum of exponentials.
    fn fold_lse<T: Real>(x: &[T], m: &mut [T], s: &mut [T]) {
        let top = kit::max(x);
        let (old, sum) = (m[0], s[0]);
        let new = if top > old { top } else { old };
        if new == T::NEG_INFINITY {
            // Nothing but minus infinities so far, or NaN: the latter must stay visible.
            for v in x {
                s[0] = if v.is_nan() { T::NAN } else { s[0] };
            }
            return;
        }
        let before = if old == T::NEG_INFINITY { sum } else { sum * (old - new).exp() };
        s[0] = before + kit::sum_exp_shifted(x, new);
        m[0] = new;
    }
}

/// Shapes and weights of [`cross_entropy`], checked.
struct Problem {
    compute: DType,
    rows: usize,
    classes: usize,
    targets: Vec<Target>,
    weight: Option<Array>,
    logits: Array,
}

#[track_caller]
fn problem(
    op: &str,
    logits: &Array,
    targets: &Array,
    weight: Option<&Array>,
    ignore_index: i64,
    label_smoothing: f64,
) -> Result<Problem> {
    let compute = kit::compute_dtype(op, logits.dtype())?;
    let [rows, classes] = *logits.dims() else {
        return Err(Error::shape(op, "logits of shape [N, C]", logits.shape()));
    };
    if !(0.0..=1.0).contains(&label_smoothing) {
        return Err(Error::argument(
            op,
            "label_smoothing in 0..=1",
            label_smoothing,
        ));
    }
    let targets = targets_of(op, targets, rows, classes, ignore_index)?;
    let weight = match weight {
        Some(w) if w.dims() != [classes] => {
            return Err(Error::shape(
                op,
                format!("class weights of shape [{classes}]"),
                w.shape(),
            ));
        }
        Some(w) => {
            kit::compute_dtype(op, w.dtype())?;
            Some(kit::dense(w, compute)?)
        }
        None => None,
    };
    let logits = kit::dense(logits, compute)?;
    Ok(Problem {
        compute,
        rows,
        classes,
        targets,
        weight,
        logits,
    })
}

/// The loss of each row, shape `[N]`, and the log-sum-exp of each row's logits.
///
/// Shapes: `logits` `[N, C]`, `targets` `[N]` (integers), `weight` `[C]`. Ignored rows have loss
/// 0. Log-sum-exps come in f32 (f64 for f64).
///
/// # Errors
/// When shapes do not fit or a target is neither a class nor `ignore_index`.
///
/// ```
/// use entrenar_base::{Array, DType};
/// let logits = Array::zeros([2, 4], DType::F64);
/// let targets = Array::from_vec(vec![3i64, -100], [2])?;
/// let (loss, _) = entrenar_cpu::loss::cross_entropy(&logits, &targets, None, -100, 0.0)?;
/// assert!((loss.to_vec::<f64>()?[0] - 4f64.ln()).abs() < 1e-15);
/// assert_eq!(loss.to_vec::<f64>()?[1], 0.0);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn cross_entropy(
    logits: &Array,
    targets: &Array,
    weight: Option<&Array>,
    ignore_index: i64,
    label_smoothing: f64,
) -> Result<(Array, Array)> {
    let p = problem(
        "cross_entropy",
        logits,
        targets,
        weight,
        ignore_index,
        label_smoothing,
    )?;
    let c = p.classes;
    let (loss, lse) = with_real!(p.compute, T => {
        let x = p.logits.as_slice::<T>()?;
        let w = p.weight.as_ref().map_or(Ok(&[][..]), |w| w.as_slice::<T>())?;
        let total = if w.is_empty() { c as T } else { kit::sum(w) };
        let smooth = (label_smoothing / c.max(1) as f64) as T;
        let mut loss = Array::zeros([p.rows], p.compute);
        let losses = Shared::new(loss.make_mut::<T>()?);
        let lse = Array::build([p.rows], |lse: &mut [T]| {
            team::split_mut(lse, p.rows, c as f64 * ELEMENT_NS, |range, lse| {
                // SAFETY: ranges of rows are disjoint.
                let losses = unsafe { losses.slice(range.clone()) };
                for (i, row) in range.enumerate() {
                    let x = &x[row * c..(row + 1) * c];
                    lse[i] = row_lse(x);
                    losses[i] = match p.targets[row] {
                        Target::Ignored => 0.0,
                        Target::Class(y) => {
                            let hard = (1.0 - label_smoothing as T)
                                * w.get(y).copied().unwrap_or(1.0)
                                * (lse[i] - x[y]);
                            if label_smoothing == 0.0 {
                                hard
                            } else {
                                hard + smooth * (lse[i] * total - weighted_sum(x, w))
                            }
                        }
                    };
                }
            });
        });
        (loss, lse)
    });
    Ok((kit::cast(&loss, logits.dtype())?, lse))
}

/// The gradient of [`cross_entropy`]'s row losses, weighted by `row_grad` `[N]`, with respect to
/// the logits.
///
/// # Errors
/// When shapes do not fit or a target is neither a class nor `ignore_index`.
#[track_caller]
pub fn cross_entropy_backward(
    logits: &Array,
    targets: &Array,
    lse: &Array,
    weight: Option<&Array>,
    ignore_index: i64,
    label_smoothing: f64,
    row_grad: &Array,
) -> Result<Array> {
    const OP: &str = "cross_entropy_backward";
    let p = problem(OP, logits, targets, weight, ignore_index, label_smoothing)?;
    let (lse, row_grad) = per_row(OP, p.rows, p.compute, lse, row_grad)?;
    let c = p.classes;
    let out = with_real!(p.compute, T => {
        let x = p.logits.as_slice::<T>()?;
        let (lse, row_grad) = (lse.as_slice::<T>()?, row_grad.as_slice::<T>()?);
        let w = p.weight.as_ref().map_or(Ok(&[][..]), |w| w.as_slice::<T>())?;
        let total = if w.is_empty() { c as T } else { kit::sum(w) };
        let smooth = (label_smoothing / c.max(1) as f64) as T;
        Array::build([p.rows, c], |d: &mut [T]| {
            if c == 0 {
                return;
            }
            team::split_mut(d, p.rows, c as f64 * ELEMENT_NS, |range, d| {
                for (row, d) in range.zip(d.chunks_exact_mut(c)) {
                    let g = row_grad[row];
                    match p.targets[row] {
                        Target::Ignored => d.fill(0.0),
                        Target::Class(y) => {
                            let hard =
                                (1.0 - label_smoothing as T) * w.get(y).copied().unwrap_or(1.0);
                            let x = &x[row * c..(row + 1) * c];
                            row_gradient(x, lse[row], g * (hard + smooth * total), g * smooth, w, d);
                            d[y] -= g * hard;
                        }
                    }
                }
            });
        })
    });
    kit::cast(&out, logits.dtype())
}

/// Checks and converts the two vectors with one entry per row.
#[track_caller]
fn per_row(
    op: &str,
    rows: usize,
    dtype: DType,
    lse: &Array,
    row_grad: &Array,
) -> Result<(Array, Array)> {
    for (what, a) in [("log-sum-exps", lse), ("row gradients", row_grad)] {
        if a.dims() != [rows] {
            return Err(Error::shape(
                op,
                format!("{what} of shape [{rows}]"),
                a.shape(),
            ));
        }
        kit::compute_dtype(op, a.dtype())?;
    }
    Ok((kit::dense(lse, dtype)?, kit::dense(row_grad, dtype)?))
}

/// Shapes of the fused loss, checked: x `[N, D]`, w `[C, D]`.
#[track_caller]
fn fused_sizes(op: &str, x: &Array, w: &Array) -> Result<(usize, usize, usize)> {
    kit::same_dtype(op, x, w)?;
    match (x.dims(), w.dims()) {
        (&[n, d], &[c, e]) if d == e => Ok((n, d, c)),
        _ => Err(Error::shape(
            op,
            "an input [N, D] and a weight [C, D]",
            format!("{} and {}", x.shape(), w.shape()),
        )),
    }
}

/// Rows per tile, from the shape alone: enough tiles for a few threads, few passes over the
/// weight.
fn row_tile(rows: usize) -> usize {
    rows.div_ceil(8).clamp(16, ROW_TILE)
}

/// [`cross_entropy`] of `x · wᵀ` without holding the logits: x `[N, D]`, w `[C, D]`.
///
/// Returns the loss and the log-sum-exp of each row, both in f32 (f64 for f64): the loss is not
/// rounded to a 16-bit dtype. Operands of products are rounded as `compute_in` says.
///
/// # Errors
/// When shapes do not fit or a target is neither a class nor `ignore_index`.
#[track_caller]
pub fn linear_cross_entropy(
    x: &Array,
    w: &Array,
    targets: &Array,
    ignore_index: i64,
    compute_in: Compute,
) -> Result<(Array, Array)> {
    const OP: &str = "linear_cross_entropy";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let (n, d, c) = fused_sizes(OP, x, w)?;
    let targets = targets_of(OP, targets, n, c, ignore_index)?;
    let (x, w) = (kit::dense(x, compute)?, kit::dense(w, compute)?);
    with_real!(compute, T => {
        let (x, w) = (x.as_slice::<T>()?, w.as_slice::<T>()?);
        let mut loss = Array::zeros([n], compute);
        let mut lse = Array::zeros([n], compute);
        let losses = Shared::new(loss.make_mut::<T>()?);
        let lses = Shared::new(lse.make_mut::<T>()?);
        let tile = row_tile(n);
        let cost = (tile * c * (d + 8)) as f64 * 0.02;
        team::split(n.div_ceil(tile), cost, |tiles| {
            for t in tiles {
                let rows = t * tile..((t + 1) * tile).min(n);
                // SAFETY: tiles of rows are disjoint.
                let (loss, lse) = unsafe { (losses.slice(rows.clone()), lses.slice(rows.clone())) };
                let count = rows.len();
                kit::with_scratch(count * CLASS_TILE.min(c) + count, |scratch: &mut [T]| {
                    let (sums, logits) = scratch.split_at_mut(count);
                    sums.fill(0.0);
                    lse.fill(T::NEG_INFINITY); // the running maximum until the end
                    for first in (0..c).step_by(CLASS_TILE) {
                        let width = CLASS_TILE.min(c - first);
                        let logits = &mut logits[..count * width];
                        let a = Matrix::rows(&x[rows.start * d..rows.end * d], d);
                        let b = Matrix::rows(&w[first * d..(first + width) * d], d).transposed();
                        gemm(compute_in, logits, width, (count, width, d), 1.0, a, b, false);
                        for (i, row) in rows.clone().enumerate() {
                            let part = &logits[i * width..(i + 1) * width];
                            fold_lse(part, &mut lse[i..=i], &mut sums[i..=i]);
                            if let Target::Class(y) = targets[row]
                                && (first..first + width).contains(&y)
                            {
                                loss[i] = part[y - first];
                            }
                        }
                    }
                    for (i, row) in rows.clone().enumerate() {
                        lse[i] += sums[i].ln();
                        loss[i] = match targets[row] {
                            Target::Class(_) => lse[i] - loss[i],
                            Target::Ignored => 0.0,
                        };
                    }
                });
            }
        });
        Ok((loss, lse))
    })
}

/// Gradients of [`linear_cross_entropy`]'s row losses, weighted by `row_grad` `[N]`, with respect
/// to `x` and `w`; `needs` says which.
///
/// # Errors
/// When shapes do not fit or a target is neither a class nor `ignore_index`.
#[track_caller]
pub fn linear_cross_entropy_backward(
    x: &Array,
    w: &Array,
    targets: &Array,
    lse: &Array,
    ignore_index: i64,
    row_grad: &Array,
    compute_in: Compute,
    needs: [bool; 2],
) -> Result<(Option<Array>, Option<Array>)> {
    const OP: &str = "linear_cross_entropy_backward";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let (n, d, c) = fused_sizes(OP, x, w)?;
    let targets = targets_of(OP, targets, n, c, ignore_index)?;
    let (lse, row_grad) = per_row(OP, n, compute, lse, row_grad)?;
    let (dense_x, dense_w) = (kit::dense(x, compute)?, kit::dense(w, compute)?);
    let [need_x, need_w] = needs;
    let (dx, dw) = with_real!(compute, T => {
        let (x, w) = (dense_x.as_slice::<T>()?, dense_w.as_slice::<T>()?);
        let (lse, row_grad) = (lse.as_slice::<T>()?, row_grad.as_slice::<T>()?);
        let mut dx = need_x.then(|| Array::zeros([n, d], compute));
        let mut dw = need_w.then(|| Array::zeros([c, d], compute));
        let mut none: [T; 0] = [];
        let dx_out = match &mut dx {
            Some(a) => a.make_mut::<T>()?,
            None => &mut none[..],
        };
        let mut none: [T; 0] = [];
        let dw_out = Shared::new(match &mut dw {
            Some(a) => a.make_mut::<T>()?,
            None => &mut none[..],
        });
        // Chunks of rows one after the other; inside a chunk, tiles of classes side by side.
        let chunk = (HELD_LOGITS / c.max(1)).clamp(16, 512).min(n.max(1));
        let tiles = c.div_ceil(CLASS_TILE);
        let mut held = Scratch::<T>::new(chunk * c);
        for start in (0..n).step_by(chunk) {
            let rows = start..(start + chunk).min(n);
            let count = rows.len();
            let held_parts = Shared::new(&mut held);
            let a = Matrix::rows(&x[rows.start * d..rows.end * d], d);
            let cost = (count * CLASS_TILE * (2 * d + 8)) as f64 * 0.02;
            // Tile `t` of the chunk's logits gradient lies dense at `t · CLASS_TILE · count`.
            team::split(tiles, cost, |range| {
                for t in range {
                    let classes = t * CLASS_TILE..((t + 1) * CLASS_TILE).min(c);
                    let width = classes.len();
                    let weight = Matrix::rows(&w[classes.start * d..classes.end * d], d);
                    let place = classes.start * count..classes.end * count;
                    // SAFETY: tiles of classes are disjoint, hence these parts.
                    let part = unsafe { held_parts.slice(place) };
                    gemm(compute_in, part, width, (count, width, d), 1.0, a, weight.transposed(), false);
                    for (i, row) in rows.clone().enumerate() {
                        let part = &mut part[i * width..(i + 1) * width];
                        match targets[row] {
                            Target::Ignored => part.fill(0.0),
                            Target::Class(y) => {
                                probabilities(part, lse[row], row_grad[row]);
                                if classes.contains(&y) {
                                    part[y - classes.start] -= row_grad[row];
                                }
                            }
                        }
                    }
                    if need_w {
                        // SAFETY: as above.
                        let dw = unsafe { dw_out.slice(classes.start * d..classes.end * d) };
                        let g = Matrix::rows(&*part, width).transposed();
                        gemm(compute_in, dw, d, (width, d, count), 1.0, g, a, true);
                    }
                }
            });
            if need_x {
                let held = &held;
                let dx = &mut dx_out[rows.start * d..rows.end * d];
                // Blocks of rows of a fixed size, so that products have the same shape for any
                // number of threads.
                const BLOCK: usize = 64;
                let blocks = count.div_ceil(BLOCK);
                let dx = Shared::new(dx);
                team::split(blocks, (BLOCK * c * d) as f64 * 0.02, |range| {
                    for block in range {
                        let r = block * BLOCK..((block + 1) * BLOCK).min(count);
                        // SAFETY: blocks of rows are disjoint.
                        let dx = unsafe { dx.slice(r.start * d..r.end * d) };
                        for first in (0..c).step_by(CLASS_TILE) {
                            let width = CLASS_TILE.min(c - first);
                            let mut g = Matrix::rows(&held[..], width);
                            g.offset = first * count + r.start * width;
                            let weight = Matrix::rows(&w[first * d..(first + width) * d], d);
                            gemm(compute_in, dx, d, (r.len(), d, width), 1.0, g, weight, first > 0);
                        }
                    }
                });
            }
        }
        (dx, dw)
    });
    Ok((
        dx.map(|a| kit::cast(&a, x.dtype())).transpose()?,
        dw.map(|a| kit::cast(&a, w.dtype())).transpose()?,
    ))
}
