//! Scaled dot-product attention in blocks, forward and backward, with grouped keys and values.
//!
//! out = softmax(scale·q·kᵀ + mask)·v, never holding the scores of all positions at once: blocks
//! of queries meet blocks of keys, and a running maximum and sum rescale what was accumulated
//! (Dao, Fu, Ermon, Rudra, Ré, "FlashAttention", 2022). Forward saves one log-sum-exp per query;
//! backward rebuilds the probabilities from it. Blocks above the causal diagonal are skipped.
//! Block sizes are constants and every (batch, head) is computed alone, so the bits do not depend
//! on the number of threads. Inputs may be strided views, such as slices of one projection
//! `[batch, time, 3, head, channel]`; they are copied only if their last dimension has gaps.

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use entrenar_base::{Array, DType, Error, Result, Shape};

use crate::kit::{self, Matrix, Real, gemm, multiversion, with_real};
use crate::team::{self, Shared};

/// Queries per block.
const QUERIES: usize = 64;
/// Keys per block.
const KEYS: usize = 512;

multiversion! {
    /// Turns a row of scores into exponentials relative to the running maximum `m[0]`, adds their
    /// sum to `s[0]`; returns the factor by which earlier results shrink.
    fn online_row<T: Real>(x: &mut [T], m: &mut T, s: &mut T) -> T {
        let top = kit::max(x);
        let (old, new) = (*m, if top > *m { top } else { *m });
        if new == T::NEG_INFINITY {
            // Everything masked so far. A NaN among the scores stays one; the rest weighs nothing.
            for v in x {
                let weight = if v.is_nan() { T::NAN } else { T::ZERO };
                *v = weight;
                *s += weight;
            }
            return T::ONE;
        }
        let shrink = if old == T::NEG_INFINITY { T::ONE } else { (old - new).exp() };
        *s = *s * shrink + kit::exp_shifted_sum(x, new);
        *m = new;
        shrink
    }

    /// x = exp(x - lse); zeros for a row that was masked everywhere.
    fn rebuild_row<T: Real>(x: &mut [T], lse: T) {
        if lse == T::NEG_INFINITY {
            x.fill(T::ZERO);
            return;
        }
        for x in x {
            *x = (*x - lse).exp();
        }
    }

    /// ds = p·(dp - delta).
    fn score_gradient_row<T: Real>(p: &[T], dp: &mut [T], delta: T) {
        for (dp, &p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - delta);
        }
    }

    fn scale_row<T: Real>(x: &mut [T], factor: T) {
        kit::scale(x, factor);
    }

    fn dot_rows<T: Real>(a: &[T], b: &[T]) -> T {
        kit::dot(a, b)
    }
}

/// Sizes of a problem: q `[batch, heads, queries, width]`, k `[batch, groups, keys, width]`,
/// v `[batch, groups, keys, value_width]`.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    groups: usize,
    queries: usize,
    keys: usize,
    width: usize,
    value_width: usize,
}

#[track_caller]
fn sizes_of(op: &str, q: &Array, k: &Array, v: &Array) -> Result<Sizes> {
    kit::same_dtype(op, q, k)?;
    kit::same_dtype(op, q, v)?;
    if let (&[batch, heads, queries, width], &[kb, groups, keys, kw], &[vb, vg, vs, value_width]) =
        (q.dims(), k.dims(), v.dims())
    {
        let agree = kb == batch && vb == batch && vg == groups && vs == keys && kw == width;
        let grouped = groups > 0 && heads.is_multiple_of(groups) || heads == groups;
        if agree && grouped {
            return Ok(Sizes {
                batch,
                heads,
                groups,
                queries,
                keys,
                width,
                value_width,
            });
        }
    }
    Err(Error::shape(
        op,
        "q [B, H, T, D], k [B, G, S, D] and v [B, G, S, E] with H a multiple of G",
        format!("{}, {} and {}", q.shape(), k.shape(), v.shape()),
    ))
}

/// A rank-4 array whose matrices (last two dimensions) kernels read where they lie.
struct Heads<'a, T> {
    data: &'a [T],
    strides: [isize; 4],
    offset: isize,
}

impl<'a, T: Real> Heads<'a, T> {
    fn new(array: &'a Array) -> Result<Self> {
        let view = array.view::<T>()?;
        let s = view.strides();
        Ok(Heads {
            data: view.data(),
            strides: [s[0], s[1], s[2], s[3]],
            offset: view.offset() as isize,
        })
    }

    /// Rows from `row` on of the matrix at (batch, head).
    fn matrix(&self, batch: usize, head: usize, row: usize) -> Matrix<'a, T> {
        let [b, h, r, c] = self.strides;
        let at = self.offset + batch as isize * b + head as isize * h + row as isize * r;
        Matrix {
            data: self.data,
            offset: at as usize,
            row: r,
            column: c,
        }
    }
}

/// The array in `dtype`, copied when its last dimension has gaps.
fn readable(x: &Array, dtype: DType) -> Result<Array> {
    let x = kit::cast(x, dtype)?;
    let last = x.rank() - 1;
    if x.dims()[last] <= 1 || x.layout().strides()[last] == 1 {
        Ok(x)
    } else {
        kit::contiguous(&x)
    }
}

/// What the mask adds to scores.
enum Mask<'a, T> {
    None,
    Add(Heads<'a, T>),
    Keep(&'a [bool], [isize; 4], isize),
}

impl<T: Real> Mask<'_, T> {
    /// Applies the mask to the scores of one query against keys from `first` on.
    fn apply(&self, scores: &mut [T], (batch, head, query): (usize, usize, usize), first: usize) {
        let start = |s: &[isize; 4], offset: isize| {
            offset
                + batch as isize * s[0]
                + head as isize * s[1]
                + query as isize * s[2]
                + first as isize * s[3]
        };
        match self {
            Mask::None => {}
            Mask::Add(mask) => {
                let at = start(&mask.strides, mask.offset);
                for (j, s) in scores.iter_mut().enumerate() {
                    *s += mask.data[(at + j as isize * mask.strides[3]) as usize];
                }
            }
            Mask::Keep(keep, strides, offset) => {
                let at = start(strides, *offset);
                for (j, s) in scores.iter_mut().enumerate() {
                    if !keep[(at + j as isize * strides[3]) as usize] {
                        *s = T::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The mask stretched over all scores: bool as it is, floats in the compute dtype.
#[track_caller]
fn broadcast_mask(
    op: &str,
    mask: Option<&Array>,
    z: &Sizes,
    dtype: DType,
) -> Result<Option<Array>> {
    let Some(mask) = mask else { return Ok(None) };
    let scores = Shape::from([z.batch, z.heads, z.queries, z.keys]);
    if mask.dtype() != DType::Bool && !mask.dtype().is_float() {
        return Err(Error::dtype(
            op,
            "a mask of bool (true = attend) or of a float dtype (added)",
            mask.dtype(),
        ));
    }
    let mask = if mask.dtype() == DType::Bool {
        mask.clone()
    } else {
        kit::cast(mask, dtype)?
    };
    let stretched = mask.broadcast_to(&scores).map_err(|_| {
        Error::shape(
            op,
            format!("a mask that broadcasts to {scores}"),
            mask.shape(),
        )
    })?;
    Ok(Some(stretched))
}

fn mask_of<T: Real>(mask: Option<&Array>) -> Result<Mask<'_, T>> {
    Ok(match mask {
        None => Mask::None,
        Some(m) if m.dtype() == DType::Bool => {
            let view = m.view::<bool>()?;
            let s = view.strides();
            Mask::Keep(
                view.data(),
                [s[0], s[1], s[2], s[3]],
                view.offset() as isize,
            )
        }
        Some(m) => Mask::Add(Heads::new(m)?),
    })
}

/// Keys that the queries before `end` may see.
fn visible(z: &Sizes, causal: bool, end: usize) -> usize {
    if causal { end.min(z.keys) } else { z.keys }
}

/// One block of scores: scale·q·kᵀ + mask, minus infinity where causality forbids.
fn score_block<T: Real>(
    scores: &mut [T],
    q: Matrix<'_, T>,
    k: Matrix<'_, T>,
    (rows, width, channels): (usize, usize, usize),
    scale: T,
    mask: &Mask<'_, T>,
    (batch, head, first_query): (usize, usize, usize),
    first_key: usize,
    causal: bool,
) {
    let sizes = (rows, width, channels);
    gemm(scores, width, sizes, scale, q, k.transposed(), false);
    for (i, row) in scores.chunks_exact_mut(width).enumerate() {
        let query = first_query + i;
        mask.apply(row, (batch, head, query), first_key);
        if causal {
            let allowed = (query + 1).saturating_sub(first_key).min(width);
            row[allowed..].fill(T::NEG_INFINITY);
        }
    }
}

/// Attention of queries over keys; returns the output `[B, H, T, E]` in q's dtype and the
/// log-sum-exp of each query's scores `[B, H, T]` in f32 (f64 for f64).
///
/// Shapes: q `[B, H, T, D]`, k `[B, G, S, D]`, v `[B, G, S, E]`, H a multiple of G (head h reads
/// group h / (H / G)). `causal` lets query i see keys 0..=i (aligned at the top left, as PyTorch's
/// `is_causal`). `mask` broadcasts to `[B, H, T, S]`: bool keeps where true, floats are added;
/// both may be combined. A query that sees nothing gets zeros and a log-sum-exp of minus infinity.
///
/// # Errors
/// When shapes or dtypes do not fit.
///
/// ```
/// use entrenar_base::{Array, DType};
/// let q = Array::zeros([1, 1, 2, 4], DType::F32);
/// let v = Array::from_vec(vec![1.0f32, 3.0], [1, 1, 2, 1])?;
/// let (out, _) = entrenar_cpu::attention::attention(&q, &q, &v, 0.5, true, None)?;
/// assert_eq!(out.to_vec::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn attention(
    q: &Array,
    k: &Array,
    v: &Array,
    scale: f64,
    causal: bool,
    mask: Option<&Array>,
) -> Result<(Array, Array)> {
    const OP: &str = "attention";
    let compute = kit::compute_dtype(OP, q.dtype())?;
    let z = sizes_of(OP, q, k, v)?;
    let mask = broadcast_mask(OP, mask, &z, compute)?;
    let (dq, dk, dv) = (
        readable(q, compute)?,
        readable(k, compute)?,
        readable(v, compute)?,
    );
    let (out, lse) = with_real!(compute, T => {
        let mask = mask_of::<T>(mask.as_ref())?;
        let (q, k, v) = (Heads::<T>::new(&dq)?, Heads::<T>::new(&dk)?, Heads::<T>::new(&dv)?);
        let mut lse = Array::zeros([z.batch, z.heads, z.queries], compute);
        let lses = Shared::new(lse.make_mut::<T>()?);
        let shape = [z.batch, z.heads, z.queries, z.value_width];
        let out = Array::build(shape, |out: &mut [T]| {
            let out = Shared::new(out);
            let blocks = z.queries.div_ceil(QUERIES);
            let per_block = QUERIES.min(z.queries) * z.keys * (z.width + z.value_width + 16);
            let cost = per_block as f64 * 0.025;
            team::split(z.batch * z.heads * blocks, cost, |items| {
                for item in items {
                    let (pair, block) = (item / blocks, item % blocks);
                    let rows = block * QUERIES..((block + 1) * QUERIES).min(z.queries);
                    let (first, last) = (pair * z.queries + rows.start, pair * z.queries + rows.end);
                    // SAFETY: items cover disjoint rows of both outputs.
                    let (out, lse) = unsafe {
                        (out.slice(first * z.value_width..last * z.value_width), lses.slice(first..last))
                    };
                    forward_block(&z, &q, &k, &v, &mask, scale as T, causal, pair, rows, out, lse);
                }
            });
        });
        (out, lse)
    });
    Ok((kit::cast(&out, q.dtype())?, lse))
}

/// One block of queries of one (batch, head). `out` is `[rows, value_width]`, `lse` `[rows]`.
fn forward_block<T: Real>(
    z: &Sizes,
    q: &Heads<'_, T>,
    k: &Heads<'_, T>,
    v: &Heads<'_, T>,
    mask: &Mask<'_, T>,
    scale: T,
    causal: bool,
    pair: usize,
    rows: std::ops::Range<usize>,
    out: &mut [T],
    lse: &mut [T],
) {
    let (batch, head) = (pair / z.heads, pair % z.heads);
    let group = head / (z.heads / z.groups);
    let count = rows.len();
    let keys = visible(z, causal, rows.end);
    out.fill(T::ZERO);
    lse.fill(T::NEG_INFINITY); // the running maximum until the end
    kit::with_scratch(count * (KEYS.min(keys) + 1), |scratch: &mut [T]| {
        let (sums, scores) = scratch.split_at_mut(count);
        sums.fill(T::ZERO);
        for first in (0..keys).step_by(KEYS) {
            let width = KEYS.min(keys - first);
            let scores = &mut scores[..count * width];
            score_block(
                scores,
                q.matrix(batch, head, rows.start),
                k.matrix(batch, group, first),
                (count, width, z.width),
                scale,
                mask,
                (batch, head, rows.start),
                first,
                causal,
            );
            for (i, row) in scores.chunks_exact_mut(width).enumerate() {
                let shrink = online_row(row, &mut lse[i], &mut sums[i]);
                if first > 0 && shrink != T::ONE {
                    scale_row(&mut out[i * z.value_width..(i + 1) * z.value_width], shrink);
                }
            }
            let sizes = (count, z.value_width, width);
            let p = Matrix::rows(&*scores, width);
            let values = v.matrix(batch, group, first);
            gemm(out, z.value_width, sizes, T::ONE, p, values, first > 0);
        }
        for i in 0..count {
            let row = &mut out[i * z.value_width..(i + 1) * z.value_width];
            if sums[i] == T::ZERO {
                row.fill(T::ZERO);
            } else {
                scale_row(row, T::ONE / sums[i]);
                lse[i] += sums[i].ln();
            }
        }
    });
}

/// Gradients of [`attention`] with respect to q, k and v, each in its input's shape and dtype.
///
/// `out` and `lse` are those the forward pass returned; `scale`, `causal` and `mask` must be the
/// same. A float mask gets no gradient here.
///
/// # Errors
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn attention_backward(
    grad: &Array,
    q: &Array,
    k: &Array,
    v: &Array,
    out: &Array,
    lse: &Array,
    scale: f64,
    causal: bool,
    mask: Option<&Array>,
) -> Result<(Array, Array, Array)> {
    const OP: &str = "attention_backward";
    let compute = kit::compute_dtype(OP, q.dtype())?;
    let z = sizes_of(OP, q, k, v)?;
    let shape = [z.batch, z.heads, z.queries, z.value_width];
    for (what, a) in [("gradient", grad), ("output", out)] {
        kit::same_dtype(OP, q, a)?;
        if a.dims() != shape {
            return Err(Error::shape(
                OP,
                format!("{what} of shape {shape:?}"),
                a.shape(),
            ));
        }
    }
    if lse.dims() != &shape[..3] {
        return Err(Error::shape(
            OP,
            format!("log-sum-exps of shape {:?}", &shape[..3]),
            lse.shape(),
        ));
    }
    let mask = broadcast_mask(OP, mask, &z, compute)?;
    let read = |a| readable(a, compute);
    let inputs = [read(grad)?, read(q)?, read(k)?, read(v)?, read(out)?];
    let lse = kit::dense(lse, compute)?;
    let (dq, dk, dv) = with_real!(compute, T => {
        let mask = mask_of::<T>(mask.as_ref())?;
        let [grad, q, k, v, out] = &inputs;
        let problem = Backward {
            z,
            grad: Heads::<T>::new(grad)?,
            q: Heads::new(q)?,
            k: Heads::new(k)?,
            v: Heads::new(v)?,
            out: Heads::new(out)?,
            lse: lse.as_slice::<T>()?,
            mask,
            scale: scale as T,
            causal,
        };
        let mut dk = Array::zeros([z.batch, z.groups, z.keys, z.width], compute);
        let mut dv = Array::zeros([z.batch, z.groups, z.keys, z.value_width], compute);
        let dks = Shared::new(dk.make_mut::<T>()?);
        let dvs = Shared::new(dv.make_mut::<T>()?);
        let dq = Array::build([z.batch, z.heads, z.queries, z.width], |dq: &mut [T]| {
            let dqs = Shared::new(dq);
            let share = z.heads / z.groups.max(1);
            let per_group = share * z.queries * z.keys * (3 * z.width + 2 * z.value_width + 32);
            team::split(z.batch * z.groups, per_group as f64 * 0.025, |items| {
                for item in items {
                    let (batch, group) = (item / z.groups, item % z.groups);
                    // SAFETY: items cover disjoint (batch, group) pairs, and the heads of
                    // different groups are disjoint too.
                    let (dk, dv) = unsafe {
                        (
                            dks.slice(item * z.keys * z.width..(item + 1) * z.keys * z.width),
                            dvs.slice(item * z.keys * z.value_width..(item + 1) * z.keys * z.value_width),
                        )
                    };
                    for head in group * share..(group + 1) * share {
                        let at = (batch * z.heads + head) * z.queries * z.width;
                        // SAFETY: as above.
                        let dq = unsafe { dqs.slice(at..at + z.queries * z.width) };
                        problem.head(batch, head, group, dq, dk, dv);
                    }
                }
            });
        });
        (dq, dk, dv)
    });
    Ok((
        kit::cast(&dq, q.dtype())?,
        kit::cast(&dk, k.dtype())?,
        kit::cast(&dv, v.dtype())?,
    ))
}

/// Everything the backward pass reads.
struct Backward<'a, T> {
    z: Sizes,
    grad: Heads<'a, T>,
    q: Heads<'a, T>,
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    out: Heads<'a, T>,
    /// `[batch, heads, queries]`
    lse: &'a [T],
    mask: Mask<'a, T>,
    scale: T,
    causal: bool,
}

impl<T: Real> Backward<'_, T> {
    /// One head: writes `dq` `[queries, width]`, adds to its group's `dk` and `dv`.
    fn head(
        &self,
        batch: usize,
        head: usize,
        group: usize,
        dq: &mut [T],
        dk: &mut [T],
        dv: &mut [T],
    ) {
        let z = &self.z;
        let (d, e) = (z.width, z.value_width);
        dq.fill(T::ZERO);
        for start in (0..z.queries).step_by(QUERIES) {
            let end = (start + QUERIES).min(z.queries);
            let count = end - start;
            let keys = visible(z, self.causal, end);
            let widest = KEYS.min(keys);
            kit::with_scratch(count * (2 * widest + 1), |scratch: &mut [T]| {
                let (deltas, rest) = scratch.split_at_mut(count);
                let (scores, dscores) = rest.split_at_mut(count * widest);
                for (i, delta) in deltas.iter_mut().enumerate() {
                    let (g, o) = (
                        self.grad.matrix(batch, head, start + i),
                        self.out.matrix(batch, head, start + i),
                    );
                    let row = |m: &Matrix<'_, T>| m.offset..m.offset + e;
                    *delta = if e == 0 {
                        T::ZERO
                    } else {
                        dot_rows(&g.data[row(&g)], &o.data[row(&o)])
                    };
                }
                let grad = self.grad.matrix(batch, head, start);
                let q = self.q.matrix(batch, head, start);
                let first_lse = (batch * z.heads + head) * z.queries + start;
                for first in (0..keys).step_by(KEYS) {
                    let width = KEYS.min(keys - first);
                    let scores = &mut scores[..count * width];
                    let dscores = &mut dscores[..count * width];
                    let k = self.k.matrix(batch, group, first);
                    let v = self.v.matrix(batch, group, first);
                    score_block(
                        scores,
                        q,
                        k,
                        (count, width, d),
                        self.scale,
                        &self.mask,
                        (batch, head, start),
                        first,
                        self.causal,
                    );
                    for (i, row) in scores.chunks_exact_mut(width).enumerate() {
                        rebuild_row(row, self.lse[first_lse + i]);
                    }
                    let p = Matrix::rows(&*scores, width);
                    let dv = &mut dv[first * e..(first + width) * e];
                    gemm(dv, e, (width, e, count), T::ONE, p.transposed(), grad, true);
                    let sizes = (count, width, e);
                    gemm(dscores, width, sizes, T::ONE, grad, v.transposed(), false);
                    let rows = scores.chunks_exact(width);
                    for ((p, dp), &delta) in rows.zip(dscores.chunks_exact_mut(width)).zip(&*deltas)
                    {
                        score_gradient_row(p, dp, delta);
                    }
                    let ds = Matrix::rows(&*dscores, width);
                    let dq = &mut dq[start * d..end * d];
                    gemm(dq, d, (count, d, width), self.scale, ds, k, true);
                    let dk = &mut dk[first * d..(first + width) * d];
                    gemm(
                        dk,
                        d,
                        (width, d, count),
                        self.scale,
                        ds.transposed(),
                        q,
                        true,
                    );
                }
            });
        }
    }
}
