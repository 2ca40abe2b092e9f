//! Cross-entropy from logits, alone and fused with the linear layer before it.
//!
//! With p = softmax(logits of a row), y its target, w class weights (1 without) and ε the label
//! smoothing over C classes, the loss of the row is PyTorch's
//! `(1 - ε)·w[y]·(-ln p[y]) + ε/C · Σ_c w[c]·(-ln p[c])`,
//! and 0 when y is `ignore_index`. Forward saves one log-sum-exp per row; backward rebuilds the
//! softmax from it. Reductions (mean, sum) are the caller's: a row's cotangent is `row_grad`.
//! The fused form goes through chunks of rows, never holds all logits, and gives the gradients along
//! with the losses.

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use entrenar_base::{Array, DType, Error, Result};

use crate::copy::concat;
use crate::kit::{self, Real, multiversion, with_real};
use crate::matmul::{matmul, matmul_acc};
use crate::product::{Compute, Options, product, product_acc};
use crate::team::{self, Shared};

/// Estimated nanoseconds per logit.
const ELEMENT_NS: f64 = 0.5;
/// Most logits that the fused loss holds at once, as long as that is 16 rows of them.
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

    /// x = a·softmax(x) in place; returns the log-sum-exp.
    fn lse_and_slopes<T: Real>(x: &mut [T], a: T) -> T {
        let m = kit::max(x);
        let sum = kit::exp_shifted_sum(x, m);
        kit::scale(x, a / sum);
        m + sum.ln()
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

/// Rows whose logits are held at once, from the shape alone: equal shares.
fn chunk_rows(rows: usize, classes: usize, held: usize) -> usize {
    let most = (held / classes.max(1)).max(16);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// How much the loss of each row weighs in what gradients are taken of.
#[derive(Clone, Copy, Debug)]
pub enum RowWeights<'a> {
    /// 1 each: the sum of the losses.
    Sum,
    /// 1 over the number of rows that are not ignored: their mean.
    Mean,
    /// Values `[N]`, of any float dtype.
    Each(&'a Array),
}

/// The gradients that [`linear_cross_entropy`] gives along with the losses.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// With respect to x and to w.
    pub needs: [bool; 2],
    /// Weights of the rows.
    pub weights: RowWeights<'a>,
}

/// What [`linear_cross_entropy`] returns.
#[derive(Clone, Debug)]
pub struct LinearLoss {
    /// The loss of each row, `[N]`, in f32 (f64 for f64): it is not rounded to a 16-bit dtype.
    pub loss: Array,
    /// The gradient with respect to x, `[N, D]` in its dtype, if wanted.
    pub dx: Option<Array>,
    /// The gradient with respect to w, `[C, D]` in its dtype, if wanted.
    pub dw: Option<Array>,
}

/// [`cross_entropy`] of `x · wᵀ` and the gradients of the losses' weighted sum, without holding all
/// logits: x `[N, D]`, w `[C, D]`.
///
/// Logits exist for some rows at a time, in f32 (f64 for f64). While they do, they become the
/// gradient with respect to themselves, so that gradients cost one product each and the logits are
/// never computed twice (as in Hsu and others, "Liger Kernel", 2024). Operands of products are
/// rounded as `compute_in` says.
///
/// # Errors
/// When shapes do not fit or a target is neither a class nor `ignore_index`.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_cpu::loss::{RowWeights, Wanted, linear_cross_entropy};
/// use entrenar_cpu::product::Compute;
/// let x = Array::from_vec(vec![1.0f64, 0.0], [1, 2])?;
/// let w = Array::zeros([2, 2], DType::F64);
/// let targets = Array::from_vec(vec![1i64], [1])?;
/// let wanted = Wanted { needs: [false, true], weights: RowWeights::Mean };
/// let found = linear_cross_entropy(&x, &w, &targets, -100, Compute::F32, Some(&wanted))?;
/// assert_eq!(found.loss.to_vec::<f64>()?, [2f64.ln()]);
/// assert_eq!(found.dw.unwrap().to_vec::<f64>()?, [0.5, 0.0, -0.5, 0.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn linear_cross_entropy(
    x: &Array,
    w: &Array,
    targets: &Array,
    ignore_index: i64,
    compute_in: Compute,
    wanted: Option<&Wanted<'_>>,
) -> Result<LinearLoss> {
    in_chunks(
        (x, w, targets),
        ignore_index,
        compute_in,
        wanted,
        HELD_LOGITS,
    )
}

/// [`linear_cross_entropy`] with no more than `held` logits at once, as long as that is 16 rows.
#[track_caller]
fn in_chunks(
    (x, w, targets): (&Array, &Array, &Array),
    ignore_index: i64,
    compute_in: Compute,
    wanted: Option<&Wanted<'_>>,
    held: usize,
) -> Result<LinearLoss> {
    const OP: &str = "linear_cross_entropy";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let (n, _, c) = fused_sizes(OP, x, w)?;
    let targets = targets_of(OP, targets, n, c, ignore_index)?;
    let [need_x, need_w] = wanted.map_or([false; 2], |wanted| wanted.needs);
    let weights = match wanted.filter(|_| need_x || need_w) {
        Some(wanted) => Some(row_weights(OP, wanted.weights, &targets, compute)?),
        None => None,
    };
    let times = |a: &Array, b: &Array, output: DType| -> Result<Array> {
        if compute == DType::F64 {
            return matmul(a, b);
        }
        let options = Options {
            compute: compute_in,
            output: Some(output),
            ..Options::default()
        };
        Ok(product(a, b, &options)?.output)
    };
    let wt = w.transpose(0, 1)?;
    let mut loss = Array::zeros([n], compute);
    let (mut dx, mut dw) = (Vec::new(), None);
    let chunk = chunk_rows(n, c, held);
    for start in (0..n).step_by(chunk) {
        let end = n.min(start + chunk);
        let rows = x.slice(0, start, end, 1)?;
        let mut logits = times(&rows, &wt, compute)?;
        with_real!(compute, T => {
            let weights = weights.as_ref().map(Array::as_slice::<T>).transpose()?;
            finish_rows::<T>(
                logits.make_mut::<T>()?,
                c,
                &targets[start..end],
                weights.map(|w| &w[start..end]),
                &mut loss.make_mut::<T>()?[start..end],
            );
        });
        if need_x {
            dx.push(times(&logits, w, x.dtype())?);
        }
        if need_w {
            let slopes = logits.transpose(0, 1)?;
            match &mut dw {
                None => dw = Some(times(&slopes, &rows, compute)?),
                Some(dw) if compute == DType::F64 => matmul_acc(dw, &slopes, &rows)?,
                Some(dw) => product_acc(dw, &slopes, &rows, compute_in)?,
            }
        }
    }
    let dx = match &dx[..] {
        _ if !need_x => None,
        [] => Some(Array::zeros(x.shape(), x.dtype())),
        [one] => Some(one.clone()),
        many => Some(concat(&many.iter().collect::<Vec<_>>(), 0)?),
    };
    let dw = match dw {
        _ if !need_w => None,
        None => Some(Array::zeros(w.shape(), w.dtype())),
        Some(dw) => Some(kit::cast(&dw, w.dtype())?),
    };
    Ok(LinearLoss { loss, dx, dw })
}

/// Weights of rows as an array; whatever an ignored row weighs.
#[track_caller]
fn row_weights(
    op: &str,
    weights: RowWeights<'_>,
    targets: &[Target],
    compute: DType,
) -> Result<Array> {
    let n = targets.len();
    let counted = || targets.iter().filter(|t| matches!(t, Target::Class(_)));
    Ok(match weights {
        RowWeights::Sum => Array::full_as([n], 1.0, compute),
        RowWeights::Mean => {
            // Divided in the dtype of the sum, as the gradient of a division by the count is.
            with_real!(compute, T => Array::full([n], 1.0 / counted().count() as T))
        }
        RowWeights::Each(values) => {
            if values.dims() != [n] {
                let expected = format!("row weights of shape [{n}]");
                return Err(Error::shape(op, expected, values.shape()));
            }
            kit::compute_dtype(op, values.dtype())?;
            kit::dense(values, compute)?
        }
    })
}

/// The losses of rows of logits; with weights the logits become their gradient.
fn finish_rows<T: Real>(
    logits: &mut [T],
    classes: usize,
    targets: &[Target],
    weights: Option<&[T]>,
    losses: &mut [T],
) {
    let losses = Shared::new(losses);
    let cost = classes as f64 * ELEMENT_NS;
    team::split_mut(logits, targets.len(), cost, |range, logits| {
        // SAFETY: ranges of rows are disjoint.
        let losses = unsafe { losses.slice(range.clone()) };
        for (i, row) in range.enumerate() {
            let x = &mut logits[i * classes..(i + 1) * classes];
            losses[i] = match (targets[row], weights) {
                (Target::Ignored, None) => T::ZERO,
                (Target::Ignored, Some(_)) => {
                    x.fill(T::ZERO);
                    T::ZERO
                }
                (Target::Class(y), None) => row_lse(x) - x[y],
                (Target::Class(y), Some(weights)) => {
                    let right = x[y];
                    let lse = lse_and_slopes(x, weights[row]);
                    x[y] -= weights[row];
                    lse - right
                }
            };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::array;

    #[test]
    fn chunks_of_rows_change_nothing_but_the_order_of_a_sum() {
        let (n, d, c) = (37, 5, 40);
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let x = array(&[n, d], dtype, 1);
            let w = array(&[c, d], dtype, 2);
            let targets = (0..n as i64).map(|i| if i % 7 == 3 { -1 } else { i % c as i64 });
            let targets = Array::from_vec(targets.collect(), [n]).unwrap();
            let wanted = Wanted {
                needs: [true; 2],
                weights: RowWeights::Mean,
            };
            let run = |held| {
                in_chunks((&x, &w, &targets), -1, Compute::F32, Some(&wanted), held).unwrap()
            };
            assert_eq!(chunk_rows(n, c, 0), 13);
            assert_eq!(chunk_rows(n, c, HELD_LOGITS), n);
            let (whole, parts) = (run(HELD_LOGITS), run(0));
            let bits = |a: &Array| a.to_f64_vec();
            assert_eq!(bits(&whole.loss), bits(&parts.loss));
            let [a, b] = [&whole, &parts].map(|l| bits(l.dx.as_ref().unwrap()));
            assert_eq!(a, b);
            let [a, b] = [&whole, &parts].map(|l| bits(l.dw.as_ref().unwrap()));
            for (a, b) in a.iter().zip(&b) {
                let unit = if dtype == DType::BF16 { 0.01 } else { 1e-5 };
                assert!((a - b).abs() <= unit * a.abs().max(0.1), "{dtype}: {a} {b}");
            }
        }
    }
}
