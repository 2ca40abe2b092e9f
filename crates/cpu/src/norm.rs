//! Layer, root-mean-square and batch normalisation, forward and backward.
//!
//! y = x̂·w + b with x̂ = (x - mean)·rstd and rstd = 1/√(variance + eps); RMS normalisation takes
//! mean = 0. With h = g·w the gradients are dx = rstd·(h - avg(h) - x̂·avg(h·x̂)), dw = Σ g·x̂,
//! db = Σ g, where avg runs over what was normalised together and Σ over everything else (the
//! middle term falls away for RMS). Variances are biased and computed around the mean, in a second
//! pass. Sums over rows go through blocks that depend on the shape alone.
//! Statistics come out in f32 (f64 for f64 input). 16-bit floats are computed in f32: a few rows at
//! a time are widened, handled in L1 and rounded once (by batch norm, whole arrays).

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use std::ops::Range;

use entrenar_base::{Array, DType, Element, Error, Result, Shape};

use crate::alloc::Scratch;
use crate::cast::{changed, widened, written};
use crate::gemm::{ask_to_read, ask_to_write};
use crate::kit::{self, LANES, Real, multiversion, with_float, with_real};
use crate::team::{self, Shared};

/// Estimated nanoseconds per element of one kernel.
const ELEMENT_NS: f64 = 0.4;
/// Elements whose rows are handled together while they lie in L1, and at least one row.
const TILE: usize = 1024;
/// Bytes of the next tile that are asked for while one is normalised.
const ASKED: usize = 4096;
/// Most blocks of rows that weight gradients are summed in.
const BLOCKS: usize = 64;

/// Output, mean and reciprocal deviation.
pub type Normalised = (Array, Array, Array);
/// Gradients of input, weight and bias; those not asked for are absent.
pub type NormGradients = (Option<Array>, Option<Array>, Option<Array>);

multiversion! {
    /// Normalises rows of `n`; `w` and `b` hold `n` elements each, or none.
    fn norm_rows<T: Real>(
        x: &[T], y: &mut [T], n: usize, w: &[T], b: &[T], eps: T, centered: bool,
        means: &mut [T], rstds: &mut [T],
    ) {
        for row in 0..means.len() {
            let at = row * n..(row + 1) * n;
            (means[row], rstds[row]) = norm_row(&x[at.clone()], &mut y[at], w, b, eps, centered);
        }
    }

    /// a + b.
    fn add<T: Real>(a: &[T], b: &[T], sum: &mut [T]) {
        let n = sum.len();
        let (a, b) = (&a[..n], &b[..n]);
        for i in 0..n {
            sum[i] = a[i] + b[i];
        }
    }

    /// Input gradient of rows of `n`; `w` holds `n` elements.
    fn norm_backward_rows<T: Real>(
        g: &[T], x: &[T], means: &[T], rstds: &[T], w: &[T], dx: &mut [T], n: usize, centered: bool,
    ) {
        let count = T::of(n as f64);
        let w = &w[..n];
        for row in 0..means.len() {
            let (mean, rstd) = (means[row], rstds[row]);
            let (g, x) = (&g[row * n..(row + 1) * n], &x[row * n..(row + 1) * n]);
            let dx = &mut dx[row * n..(row + 1) * n];
            let (mut sum_h, mut sum_hx) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            let (gc, gt) = g.as_chunks::<LANES>();
            let (xc, xt) = x.as_chunks::<LANES>();
            let (wc, wt) = w.as_chunks::<LANES>();
            for c in 0..gc.len() {
                let (g, x, w) = (&gc[c], &xc[c], &wc[c]);
                for l in 0..LANES {
                    let h = g[l] * w[l];
                    sum_h[l] += h;
                    sum_hx[l] = h.mul_add((x[l] - mean) * rstd, sum_hx[l]);
                }
            }
            if !gt.is_empty() {
                let (g, x) = (kit::padded(gt, T::ZERO), kit::padded(xt, mean));
                let w = kit::padded(wt, T::ZERO);
                for l in 0..LANES {
                    let h = g[l] * w[l];
                    sum_h[l] += h;
                    sum_hx[l] = h.mul_add((x[l] - mean) * rstd, sum_hx[l]);
                }
            }
            let first = if centered { kit::add_lanes(sum_h) / count } else { T::ZERO };
            let second = kit::add_lanes(sum_hx) / count;
            for i in 0..n {
                let normal = (x[i] - mean) * rstd;
                dx[i] = rstd * (g[i] * w[i] - first - normal * second);
            }
        }
    }

    /// Adds the weight and bias gradients of rows of `n` to `dw` and `db`.
    fn norm_weight_rows<T: Real>(
        g: &[T], x: &[T], means: &[T], rstds: &[T], dw: &mut [T], db: &mut [T], n: usize,
    ) {
        for row in 0..means.len() {
            let (mean, rstd) = (means[row], rstds[row]);
            let (g, x) = (&g[row * n..(row + 1) * n], &x[row * n..(row + 1) * n]);
            for i in 0..dw.len().min(n) {
                dw[i] = g[i].mul_add((x[i] - mean) * rstd, dw[i]);
            }
            for i in 0..db.len().min(n) {
                db[i] += g[i];
            }
        }
    }

    /// Σ (x - center)^power over the channels from `first` on, one per entry of `out`.
    /// Shape of `x`: [batch, channels, s].
    fn channel_sums<T: Real>(
        x: &[T], channels: usize, s: usize, first: usize, center: &[f64], square: bool,
        out: &mut [f64],
    ) {
        for image in x.chunks_exact(channels * s) {
            let part = &image[first * s..(first + out.len()) * s];
            for ((out, plane), &c) in out.iter_mut().zip(part.chunks_exact(s)).zip(center) {
                let c = T::of(c);
                if s < LANES {
                    let mut total = T::ZERO;
                    for &v in plane {
                        let d = v - c;
                        total += if square { d * d } else { d };
                    }
                    *out += total.to_f64();
                } else if square {
                    *out += kit::sum_squares(plane, c).to_f64();
                } else {
                    *out += kit::sum(plane).to_f64() - c.to_f64() * s as f64;
                }
            }
        }
    }

    /// Σ g and Σ g·x̂ per channel, as [`channel_sums`]; where `relu`, over what it let through.
    fn channel_gradient_sums<T: Real>(
        g: &[T], x: &[T], channels: usize, s: usize, first: usize, means: &[T], rstds: &[T],
        relu: bool, scales: &[T], shifts: &[T], sum_g: &mut [f64], sum_gx: &mut [f64],
    ) {
        for (g, x) in g.chunks_exact(channels * s).zip(x.chunks_exact(channels * s)) {
            for i in 0..sum_g.len() {
                let at = (first + i) * s..(first + i + 1) * s;
                let (g, x) = (&g[at.clone()], &x[at]);
                let (mean, rstd, scale, shift) = (means[i], rstds[i], scales[i], shifts[i]);
                let (mut a, mut b) = ([T::ZERO; LANES], [T::ZERO; LANES]);
                let (gc, gt) = g.as_chunks::<LANES>();
                let (xc, xt) = x.as_chunks::<LANES>();
                for c in 0..gc.len() {
                    let (g, x) = (&gc[c], &xc[c]);
                    for l in 0..LANES {
                        let d = x[l] - mean;
                        let g = passed(g[l], d, relu, scale, shift);
                        a[l] += g;
                        b[l] = g.mul_add(d * rstd, b[l]);
                    }
                }
                if !gt.is_empty() {
                    let (g, x) = (kit::padded(gt, T::ZERO), kit::padded(xt, mean));
                    for l in 0..LANES {
                        let d = x[l] - mean;
                        let g = passed(g[l], d, relu, scale, shift);
                        a[l] += g;
                        b[l] = g.mul_add(d * rstd, b[l]);
                    }
                }
                sum_g[i] += kit::add_lanes(a).to_f64();
                sum_gx[i] += kit::add_lanes(b).to_f64();
            }
        }
    }

    /// y = (x - mean)·a + b with one a and b, then max(y, 0) where `relu`.
    fn affine<T: Real>(x: &[T], y: &mut [T], mean: T, a: T, b: T, relu: bool) {
        let x = &x[..y.len()];
        for i in 0..y.len() {
            let h = (x[i] - mean).mul_add(a, b);
            y[i] = if relu & (h <= T::ZERO) { T::ZERO } else { h };
        }
    }

    /// dx = a·(g - first - (x - mean)·rstd·second).
    fn batch_backward<T: Real>(
        g: &[T], x: &[T], dx: &mut [T], mean: T, rstd: T, a: T, first: T, second: T, relu: bool,
        shift: T,
    ) {
        let n = dx.len();
        let (g, x) = (&g[..n], &x[..n]);
        for i in 0..n {
            let d = x[i] - mean;
            let g = passed(g[i], d, relu, a, shift);
            dx[i] = a * (g - first - d * rstd * second);
        }
    }
}

/// Normalises one row; returns its mean (0 where it is not subtracted) and reciprocal deviation. `w`
/// and `b` hold as many elements, or none.
#[inline(always)]
fn norm_row<T: Real>(x: &[T], y: &mut [T], w: &[T], b: &[T], eps: T, centered: bool) -> (T, T) {
    let n = y.len();
    let x = &x[..n];
    let count = T::of(n as f64);
    // Index loops: iterator adaptors may stay calls, which cost as much as a short row.
    let mean = if centered {
        kit::sum(x) / count
    } else {
        T::ZERO
    };
    let rstd = T::ONE / (kit::sum_squares(x, mean) / count + eps).sqrt();
    if w.is_empty() {
        for i in 0..n {
            y[i] = (x[i] - mean) * rstd;
        }
    } else if b.is_empty() {
        let w = &w[..n];
        for i in 0..n {
            y[i] = (x[i] - mean) * rstd * w[i];
        }
    } else {
        let (w, b) = (&w[..n], &b[..n]);
        for i in 0..n {
            y[i] = ((x[i] - mean) * rstd).mul_add(w[i], b[i]);
        }
    }
    (mean, rstd)
}

/// The gradient that a relu of d·scale + shift lets through, all of it without one.
#[inline(always)]
fn passed<T: Real>(g: T, d: T, relu: bool, scale: T, shift: T) -> T {
    if relu & (d.mul_add(scale, shift) <= T::ZERO) {
        T::ZERO
    } else {
        g
    }
}

/// An optional parameter of `n` elements as a dense vector of `dtype`.
#[track_caller]
fn parameter(
    op: &str,
    what: &str,
    value: Option<&Array>,
    n: usize,
    dtype: DType,
) -> Result<Option<Array>> {
    let Some(value) = value else { return Ok(None) };
    if value.numel() != n {
        return Err(Error::shape(
            op,
            format!("a {what} of {n} elements"),
            value.shape(),
        ));
    }
    kit::compute_dtype(op, value.dtype())?;
    Ok(Some(kit::dense(value, dtype)?))
}

/// Rows of `n` elements in `x`; `n` is a product of trailing dimensions.
#[track_caller]
fn row_count(op: &str, x: &Array, n: usize) -> Result<usize> {
    let mut product = 1usize;
    let mut sizes = x.dims().iter().rev();
    loop {
        if product == n {
            // Sizes of 1 in front change nothing; what is left counts the rows.
            return Ok(sizes.product());
        }
        match sizes.next() {
            Some(&d) => product *= d,
            None => {
                return Err(Error::shape(
                    op,
                    format!("trailing dimensions of {n} elements together"),
                    x.shape(),
                ));
            }
        }
    }
}

/// The elements of a parameter, none of an absent one.
fn elements<T: Real>(parameter: Option<&Array>) -> Result<&[T]> {
    parameter.map_or(Ok(&[]), Array::as_slice)
}

/// Rows of `n` elements that are handled together.
fn rows_per_tile(n: usize) -> usize {
    (TILE / n.max(1)).max(1)
}

/// The tiles of `rows`: the rows of each, and their elements.
fn tiles(rows: Range<usize>, n: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let step = rows_per_tile(n);
    rows.clone().step_by(step).map(move |first| {
        let last = rows.end.min(first + step);
        (first..last, first * n..last * n)
    })
}

/// Rooms for tiles of rows of `n` in the compute type; empty where the rows have that type.
fn rooms<S: Element, T: Real, const COUNT: usize>(n: usize) -> [Scratch<T>; COUNT] {
    let alike = S::DTYPE == T::DTYPE;
    std::array::from_fn(|_| Scratch::new(if alike { 0 } else { n.max(TILE) }))
}

/// Asks for what follows tiles of a sum. Four streams are more than the processor foresees; what is
/// done in L1 hides the wait.
fn ask_for_next<S>(a: &[S], b: &[S], sum: &mut [S], y: &mut [S]) {
    let bytes = size_of_val(a).min(ASKED);
    ask_to_read(a.as_ptr_range().end.cast(), bytes);
    ask_to_read(b.as_ptr_range().end.cast(), bytes);
    ask_to_write(sum.as_mut_ptr_range().end.cast(), 1, 0, bytes);
    ask_to_write(y.as_mut_ptr_range().end.cast(), 1, 0, bytes);
}

/// The norm of `x`, or of its sum with `residual`.
#[track_caller]
fn norm_forward(
    op: &str,
    x: &Array,
    residual: Option<&Array>,
    n: usize,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
    centered: bool,
) -> Result<AddNorm> {
    let compute = kit::compute_dtype(op, x.dtype())?;
    let rows = row_count(op, x, n)?;
    let weight = parameter(op, "weight", weight, n, compute)?;
    let bias = parameter(op, "bias", bias, n, compute)?;
    // A bias without a weight follows a weight of ones.
    let weight = weight.or_else(|| bias.as_ref().map(|_| Array::full_as([n], 1.0, compute)));
    let x = kit::contiguous(x)?;
    let residual = residual.map(kit::contiguous).transpose()?;
    let (sum, output, mean, rstd) = with_float!(x.dtype(), S, T => {
        let xs = x.as_slice::<S>()?;
        let residuals = residual.as_ref().map(Array::as_slice::<S>).transpose()?;
        let (w, b) = (elements::<T>(weight.as_ref())?, elements::<T>(bias.as_ref())?);
        let mut mean = Array::zeros([rows], compute);
        let mut rstd = Array::zeros([rows], compute);
        let means = Shared::new(mean.make_mut::<T>()?);
        let rstds = Shared::new(rstd.make_mut::<T>()?);
        let summed = residual.as_ref().map_or(Shape::from(0), |r| r.shape().clone());
        let mut output = None;
        let sum = Array::build(summed, |sum: &mut [S]| {
            let sums = Shared::new(sum);
            output = Some(Array::build(x.shape(), |y: &mut [S]| {
                let ys = Shared::new(y);
                team::split(if n == 0 { 0 } else { rows }, n as f64 * ELEMENT_NS, |range| {
                    let [mut wide, mut other, mut room] = rooms::<S, T, 3>(n);
                    for (rows, at) in tiles(range, n) {
                        // SAFETY: tiles are disjoint.
                        let (y, m, r) = unsafe {
                            (ys.slice(at.clone()), means.slice(rows.clone()), rstds.slice(rows))
                        };
                        let mut x = &xs[at.clone()];
                        if let Some(residuals) = residuals {
                            let residual = &residuals[at.clone()];
                            // SAFETY: as above.
                            let sum = unsafe { sums.slice(at) };
                            let (a, b) = (widened(x, &mut wide), widened(residual, &mut other));
                            written(sum, &mut room, |sum| add(a, b, sum));
                            ask_for_next(x, residual, sum, y);
                            x = sum;
                        }
                        let x = widened(x, &mut wide);
                        written(y, &mut room, |y| norm_rows(x, y, n, w, b, eps as T, centered, m, r));
                    }
                });
            }));
        });
        (sum, output.expect("built with the sum"), mean, rstd)
    });
    let sum = if residual.is_some() { sum } else { x };
    Ok(AddNorm {
        sum,
        output,
        mean,
        rstd,
    })
}

#[track_caller]
fn norm_backward(
    op: &str,
    grad: &Array,
    x: &Array,
    mean: Option<&Array>,
    rstd: &Array,
    weight: Option<&Array>,
    plus: Option<&Array>,
    needs: [bool; 3],
) -> Result<NormGradients> {
    let compute = kit::compute_dtype(op, x.dtype())?;
    kit::same_dtype(op, x, grad)?;
    if grad.shape() != x.shape() {
        return Err(Error::shape(
            op,
            format!("a gradient of shape {}", x.shape()),
            grad.shape(),
        ));
    }
    if let Some(plus) = plus {
        kit::same_dtype(op, x, plus)?;
        if plus.shape() != x.shape() {
            let expected = format!("a gradient of the sum of shape {}", x.shape());
            return Err(Error::shape(op, expected, plus.shape()));
        }
    }
    let rows = rstd.numel();
    let trailing = || x.dims().last().copied().unwrap_or(1);
    let n = x
        .numel()
        .checked_div(rows)
        .unwrap_or_else(|| weight.map_or_else(trailing, Array::numel));
    if rows * n != x.numel() || mean.is_some_and(|m| m.numel() != rows) {
        return Err(Error::shape(
            op,
            format!("statistics of the rows of input {}", x.shape()),
            rstd.shape(),
        ));
    }
    let weight_dtype = weight.map_or(x.dtype(), Array::dtype);
    let weight_shape = weight.map_or(Shape::from([n]), |w| w.shape().clone());
    let w = match parameter(op, "weight", weight, n, compute)? {
        Some(w) => w,
        None => Array::full_as([n], 1.0, compute),
    };
    let (grad, x) = (kit::contiguous(grad)?, kit::contiguous(x)?);
    let plus = plus.map(kit::contiguous).transpose()?;
    let rstd = kit::dense(rstd, compute)?;
    let centered = mean.is_some();
    let mean = match mean {
        Some(m) => kit::dense(m, compute)?,
        None => Array::zeros([rows], compute),
    };
    let [need_x, need_w, need_b] = needs;
    let sums = need_w || need_b;
    // What is summed together depends on the shape alone.
    let per_block = if sums {
        rows.div_ceil(BLOCKS).max(16)
    } else {
        rows_per_tile(n)
    };
    let blocks = if n == 0 { 0 } else { rows.div_ceil(per_block) };
    // A block's dw, then its db; absent when not needed.
    let width = n * (usize::from(sums) + usize::from(need_b));
    let passes = f64::from(u8::from(need_x) + u8::from(sums));
    let cost = (per_block * n) as f64 * passes * ELEMENT_NS;
    with_float!(x.dtype(), S, T => {
        let (gs, xs, w) = (grad.as_slice::<S>()?, x.as_slice::<S>()?, w.as_slice::<T>()?);
        let (means, rstds) = (mean.as_slice::<T>()?, rstd.as_slice::<T>()?);
        let pluses = plus.as_ref().map(Array::as_slice::<S>).transpose()?;
        let mut partial = Scratch::<T>::zeroed(blocks.max(1) * width);
        let dx_shape = if need_x { x.shape().clone() } else { Shape::from(0) };
        let dx = Array::build(dx_shape, |dx: &mut [S]| {
            let (dxs, partials) = (Shared::new(dx), Shared::new(&mut partial));
            team::split(blocks, cost, |range| {
                let [mut a, mut b, mut room] = rooms::<S, T, 3>(n);
                for block in range {
                    // SAFETY: blocks are disjoint.
                    let part = unsafe { partials.slice(block * width..(block + 1) * width) };
                    let (dw, db) = part.split_at_mut(n.min(width));
                    let all = block * per_block..rows.min((block + 1) * per_block);
                    for (rows, at) in tiles(all, n) {
                        let (m, r) = (&means[rows.clone()], &rstds[rows]);
                        let g = widened(&gs[at.clone()], &mut a);
                        let x = widened(&xs[at.clone()], &mut b);
                        if sums {
                            norm_weight_rows(g, x, m, r, dw, db, n);
                        }
                        if !need_x {
                            continue;
                        }
                        // SAFETY: tiles are disjoint.
                        let dx = unsafe { dxs.slice(at.clone()) };
                        written(dx, &mut room, |dx| {
                            norm_backward_rows(g, x, m, r, w, dx, n, centered);
                        });
                        // 16-bit gradients are rounded before they are added.
                        if let Some(pluses) = pluses {
                            let plus = widened(&pluses[at], &mut a);
                            changed(dx, &mut room, |dx| kit::add_slices(dx, plus));
                        }
                    }
                }
            });
        });
        let (total, others) = partial.split_at_mut(width);
        if width > 0 {
            for part in others.chunks_exact(width) {
                kit::add_slices(total, part);
            }
        }
        let finish = |part: &[T]| -> Result<Array> {
            kit::cast(&Array::from_slice(part, &weight_shape)?, weight_dtype)
        };
        Ok((
            need_x.then_some(dx),
            need_w.then(|| finish(&total[..n])).transpose()?,
            need_b.then(|| finish(&total[n..])).transpose()?,
        ))
    })
}

/// Layer normalisation over the trailing dimensions that hold `groups_of` elements together.
///
/// Returns the output in `x`'s shape and dtype, and mean and 1/√(variance + eps) of each row, of
/// shape `[rows]`. `weight` and `bias` hold `groups_of` elements. (Ba, Kiros, Hinton 2016.)
///
/// # Errors
/// When `groups_of` is no product of trailing dimensions, or a parameter has another size.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1.0f64, 3.0, 2.0, 2.0], [2, 2])?;
/// let (y, mean, _) = entrenar_cpu::norm::layer_norm(&x, 2, None, None, 0.0001)?;
/// assert_eq!(mean.to_vec::<f64>()?, [2.0, 2.0]);
/// assert!((y.to_vec::<f64>()?[1] - 1.0).abs() < 1e-4);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn layer_norm(
    x: &Array,
    groups_of: usize,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
) -> Result<Normalised> {
    let done = norm_forward("layer_norm", x, None, groups_of, weight, bias, eps, true)?;
    Ok((done.output, done.mean, done.rstd))
}

/// Gradients of [`layer_norm`] with respect to input, weight and bias; `needs` says which.
///
/// `mean` and `rstd` are those the forward pass returned. Weight gradients have the weight's shape
/// and dtype (without a weight: one dimension, the input's dtype).
///
/// # Errors
/// When shapes do not fit.
#[track_caller]
pub fn layer_norm_backward(
    grad: &Array,
    x: &Array,
    mean: &Array,
    rstd: &Array,
    weight: Option<&Array>,
    needs: [bool; 3],
) -> Result<NormGradients> {
    norm_backward(
        "layer_norm_backward",
        grad,
        x,
        Some(mean),
        rstd,
        weight,
        None,
        needs,
    )
}

/// Root-mean-square normalisation of rows of `n` trailing elements; returns output and
/// 1/√(mean square + eps), of shape `[rows]`. (Zhang, Sennrich 2019.)
///
/// # Errors
/// When `n` is no product of trailing dimensions, or the weight has another size.
#[track_caller]
pub fn rms_norm(x: &Array, n: usize, weight: Option<&Array>, eps: f64) -> Result<(Array, Array)> {
    let done = norm_forward("rms_norm", x, None, n, weight, None, eps, false)?;
    Ok((done.output, done.rstd))
}

/// Gradients of [`rms_norm`] with respect to input and weight; `needs` says which.
///
/// # Errors
/// When shapes do not fit.
#[track_caller]
pub fn rms_norm_backward(
    grad: &Array,
    x: &Array,
    rstd: &Array,
    weight: Option<&Array>,
    needs: [bool; 2],
) -> Result<(Option<Array>, Option<Array>)> {
    let needs = [needs[0], needs[1], false];
    let (dx, dw, _) = norm_backward(
        "rms_norm_backward",
        grad,
        x,
        None,
        rstd,
        weight,
        None,
        needs,
    )?;
    Ok((dx, dw))
}

/// A sum of two arrays and its norm.
#[derive(Clone, Debug)]
pub struct AddNorm {
    /// The sum, in the dtype of the operands.
    pub sum: Array,
    /// The normalised sum.
    pub output: Array,
    /// The mean of each row, `[rows]`; zeros where it is not subtracted.
    pub mean: Array,
    /// 1/√(variance + eps) of each row, `[rows]`.
    pub rstd: Array,
}

/// `x + residual` and its norm over the trailing dimensions that hold `n` elements together, in one
/// pass: [`layer_norm`] of the sum where `centered`, else [`rms_norm`], to the bit. What is normalised
/// is the sum as it is stored, 16-bit sums rounded.
///
/// # Errors
/// When the operands differ in shape or dtype, and as [`layer_norm`].
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1.0f64, 1.0], [1, 2])?;
/// let residual = Array::from_vec(vec![0.0f64, 2.0], [1, 2])?;
/// let done = entrenar_cpu::norm::add_norm(&x, &residual, 2, None, None, 0.0, true)?;
/// assert_eq!(done.sum.to_vec::<f64>()?, [1.0, 3.0]);
/// assert_eq!(done.output.to_vec::<f64>()?, [-1.0, 1.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn add_norm(
    x: &Array,
    residual: &Array,
    n: usize,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
    centered: bool,
) -> Result<AddNorm> {
    const OP: &str = "add_norm";
    kit::same_dtype(OP, x, residual)?;
    if x.shape() != residual.shape() {
        let expected = format!("a residual of shape {}", x.shape());
        return Err(Error::shape(OP, expected, residual.shape()));
    }
    norm_forward(OP, x, Some(residual), n, weight, bias, eps, centered)
}

/// Gradients of the norm of a sum with respect to the sum (and so to both of its operands), weight
/// and bias; `needs` says which. `plus`, what flows to the sum from elsewhere, is added to its
/// gradient, rounded as one after the other would. `sum`, `mean` (absent where it was not subtracted) and `rstd` are those of [`add_norm`].
///
/// # Errors
/// When shapes do not fit.
#[track_caller]
pub fn add_norm_backward(
    grad: &Array,
    sum: &Array,
    mean: Option<&Array>,
    rstd: &Array,
    weight: Option<&Array>,
    plus: Option<&Array>,
    needs: [bool; 3],
) -> Result<NormGradients> {
    norm_backward(
        "add_norm_backward",
        grad,
        sum,
        mean,
        rstd,
        weight,
        plus,
        needs,
    )
}

/// Batch, channels and elements per channel of `[N, C, *]`.
#[track_caller]
fn batch_sizes(op: &str, x: &Array) -> Result<(usize, usize, usize)> {
    match x.dims() {
        [batch, channels, rest @ ..] => Ok((*batch, *channels, rest.iter().product())),
        _ => Err(Error::shape(op, "an input of shape [N, C, *]", x.shape())),
    }
}

/// Calls `body` for ranges of channels.
fn over_channels((batch, channels, s): (usize, usize, usize), body: impl Fn(Range<usize>) + Sync) {
    team::split(channels, (batch * s) as f64 * ELEMENT_NS, body);
}

/// Batch normalisation with the statistics of this batch, then max(·, 0) where `relu`: `x` is
/// `[N, C, *]`.
///
/// Returns the output, and mean and 1/√(biased variance + eps) of each channel, of shape `[C]`.
/// `weight` and `bias` hold `C` elements. Running statistics are the caller's business.
/// (Ioffe, Szegedy 2015.)
///
/// # Errors
/// When the rank is below 2 or a parameter has another size.
#[track_caller]
pub fn batch_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
    relu: bool,
) -> Result<Normalised> {
    const OP: &str = "batch_norm";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let sizes @ (_, channels, s) = batch_sizes(OP, x)?;
    let weight = parameter(OP, "weight", weight, channels, compute)?;
    let bias = parameter(OP, "bias", bias, channels, compute)?;
    let count = (x.numel() / channels.max(1)) as f64;
    let dense = kit::dense(x, compute)?;
    let (y, mean, rstd) = with_real!(compute, T => {
        let x = dense.as_slice::<T>()?;
        let w = weight.as_ref().map(|w| w.as_slice::<T>()).transpose()?;
        let b = bias.as_ref().map(|b| b.as_slice::<T>()).transpose()?;
        let mut mean = Array::zeros([channels], compute);
        let mut rstd = Array::zeros([channels], compute);
        let means = Shared::new(mean.make_mut::<T>()?);
        let rstds = Shared::new(rstd.make_mut::<T>()?);
        let y = Array::build(dense.shape(), |y: &mut [T]| {
            let y = Shared::new(y);
            over_channels(sizes, |range| {
                // SAFETY: ranges of channels are disjoint.
                let (m, r) = unsafe { (means.slice(range.clone()), rstds.slice(range.clone())) };
                let zeros = vec![0.0; range.len()];
                let (mut sums, mut squares) = (zeros.clone(), zeros.clone());
                if s > 0 {
                    channel_sums(x, channels, s, range.start, &zeros, false, &mut sums);
                    sums.iter_mut().for_each(|v| *v /= count);
                    channel_sums(x, channels, s, range.start, &sums, true, &mut squares);
                } else {
                    sums.fill(f64::NAN);
                }
                for (i, c) in range.clone().enumerate() {
                    m[i] = sums[i] as T;
                    r[i] = (1.0 / (squares[i] / count + eps).sqrt()) as T;
                    let scale = r[i] * w.map_or(1.0, |w| w[c]);
                    for image in 0..sizes.0 {
                        let at = (image * channels + c) * s;
                        // SAFETY: planes of this channel belong to this range alone.
                        let y = unsafe { y.slice(at..at + s) };
                        let shift = b.map_or(0.0, |b| b[c]);
                        affine(&x[at..at + s], y, m[i], scale, shift, relu);
                    }
                }
            });
        });
        (y, mean, rstd)
    });
    Ok((kit::cast(&y, x.dtype())?, mean, rstd))
}

/// Gradients of [`batch_norm`] with respect to input, weight and bias; `needs` says which. `relu` as
/// it was: the sign of what it was applied to is computed again, with the same bits.
///
/// # Errors
/// When shapes do not fit.
#[track_caller]
pub fn batch_norm_backward(
    grad: &Array,
    x: &Array,
    mean: &Array,
    rstd: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    relu: bool,
    needs: [bool; 3],
) -> Result<NormGradients> {
    const OP: &str = "batch_norm_backward";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    kit::same_dtype(OP, x, grad)?;
    let sizes @ (batch, channels, s) = batch_sizes(OP, x)?;
    if grad.shape() != x.shape() {
        return Err(Error::shape(
            OP,
            format!("a gradient of shape {}", x.shape()),
            grad.shape(),
        ));
    }
    if mean.numel() != channels || rstd.numel() != channels {
        return Err(Error::shape(
            OP,
            format!("statistics of {channels} channels"),
            mean.shape(),
        ));
    }
    let weight_dtype = weight.map_or(x.dtype(), Array::dtype);
    let dense_w = parameter(OP, "weight", weight, channels, compute)?;
    let dense_b = parameter(OP, "bias", bias, channels, compute)?;
    let (dense_g, dense_x) = (kit::dense(grad, compute)?, kit::dense(x, compute)?);
    let (mean, rstd) = (kit::dense(mean, compute)?, kit::dense(rstd, compute)?);
    let count = (batch * s) as f64;
    with_real!(compute, T => {
        let (g, x) = (dense_g.as_slice::<T>()?, dense_x.as_slice::<T>()?);
        let (means, rstds) = (mean.as_slice::<T>()?, rstd.as_slice::<T>()?);
        let w = dense_w.as_ref().map(|w| w.as_slice::<T>()).transpose()?;
        let scales: Vec<T> = (0..channels).map(|c| rstds[c] * w.map_or(1.0, |w| w[c])).collect();
        let shifts = match &dense_b {
            Some(b) => b.to_vec::<T>()?,
            None => vec![0.0; channels],
        };
        let (mut sum_g, mut sum_gx) = (vec![0.0f64; channels], vec![0.0f64; channels]);
        let (dw, db) = (Shared::new(&mut sum_gx), Shared::new(&mut sum_g));
        let dx = Array::build(if needs[0] { dense_x.shape().clone() } else { Shape::from(0) }, |dx: &mut [T]| {
            let dx = Shared::new(dx);
            over_channels(sizes, |range| {
                // SAFETY: ranges of channels are disjoint.
                let (sum_g, sum_gx) = unsafe { (db.slice(range.clone()), dw.slice(range.clone())) };
                if s > 0 {
                    channel_gradient_sums(
                        g, x, channels, s, range.start, &means[range.clone()],
                        &rstds[range.clone()], relu, &scales[range.clone()],
                        &shifts[range.clone()], sum_g, sum_gx,
                    );
                }
                if !needs[0] {
                    return;
                }
                for (i, c) in range.enumerate() {
                    let (first, second) = ((sum_g[i] / count) as T, (sum_gx[i] / count) as T);
                    for image in 0..batch {
                        let at = (image * channels + c) * s;
                        let at = at..at + s;
                        // SAFETY: planes of this channel belong to this range alone.
                        let dx = unsafe { dx.slice(at.clone()) };
                        batch_backward(
                            &g[at.clone()], &x[at], dx, means[c], rstds[c], scales[c], first, second,
                            relu, shifts[c],
                        );
                    }
                }
            });
        });
        let finish = |sums: &[f64]| -> Result<Array> {
            kit::cast(&Array::from_slice(sums, [channels])?, weight_dtype)
        };
        Ok((
            needs[0].then(|| kit::cast(&dx, grad.dtype())).transpose()?,
            needs[1].then(|| finish(&sum_gx)).transpose()?,
            needs[2].then(|| finish(&sum_g)).transpose()?,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pointwise::{Binary, Compute, binary};
    use crate::testing::{array, with_threads};

    /// Numbers of a 16-bit dtype that fill their mantissas.
    fn numbers(dims: &[usize], dtype: DType, seed: u16) -> Array {
        let x = array(dims, DType::F64, seed).to_f64_vec();
        let x: Vec<f64> = x.iter().map(|v| (v * 1.7).sin() * 3.0).collect();
        Array::from_vec(x, dims).unwrap().cast(dtype)
    }

    fn rounded_sum(a: &Array, b: &Array) -> Array {
        binary(Binary::Add, Compute::F32, a, b, a.dtype()).unwrap()
    }

    /// Everything that the norms of `x` and of x + r, and their gradients, are made of.
    fn all(x: &Array, r: &Array, g: &Array, n: usize, centered: bool) -> Vec<Array> {
        let (w, b) = (
            numbers(&[n], x.dtype(), 4),
            centered.then(|| numbers(&[n], x.dtype(), 5)),
        );
        let plain = norm_forward("norm", x, None, n, Some(&w), b.as_ref(), 1e-5, centered).unwrap();
        let of_sum = add_norm(x, r, n, Some(&w), b.as_ref(), 1e-5, centered).unwrap();
        let mut arrays = vec![plain.output, plain.mean, plain.rstd];
        let mean = centered.then_some(&of_sum.mean);
        for needs in [[true; 3], [true, false, false], [false, true, false]] {
            for plus in [None, Some(r)] {
                let (dx, dw, db) =
                    add_norm_backward(g, &of_sum.sum, mean, &of_sum.rstd, Some(&w), plus, needs)
                        .unwrap();
                arrays.extend([dx, dw, db].into_iter().flatten());
            }
        }
        arrays.extend([of_sum.sum, of_sum.output, of_sum.mean, of_sum.rstd]);
        arrays
    }

    /// As [`all`], by way of arrays in f32 and with every step rounded by a cast.
    fn all_by_casts(x: &Array, r: &Array, g: &Array, n: usize, centered: bool) -> Vec<Array> {
        let dtype = x.dtype();
        let wide = |x: &Array| kit::cast(x, DType::F32).unwrap();
        let narrow = |x: &Array| kit::cast(x, dtype).unwrap();
        let (w, b) = (
            wide(&numbers(&[n], dtype, 4)),
            centered.then(|| wide(&numbers(&[n], dtype, 5))),
        );
        let norm = |x: &Array| {
            let x = wide(x);
            norm_forward("norm", &x, None, n, Some(&w), b.as_ref(), 1e-5, centered).unwrap()
        };
        let plain = norm(x);
        let mut arrays = vec![narrow(&plain.output), plain.mean, plain.rstd];
        let sum = rounded_sum(x, r);
        let of_sum = norm(&sum);
        let mean = centered.then_some(&of_sum.mean);
        for needs in [[true; 3], [true, false, false], [false, true, false]] {
            for plus in [None, Some(r)] {
                let (dx, dw, db) = norm_backward(
                    "norm",
                    &wide(g),
                    &wide(&sum),
                    mean,
                    &of_sum.rstd,
                    Some(&w),
                    None,
                    needs,
                )
                .unwrap();
                let [dx, dw, db] = [dx, dw, db].map(|d| d.map(|d| narrow(&d)));
                let dx = dx.map(|dx| plus.map_or(dx.clone(), |plus| rounded_sum(&dx, plus)));
                arrays.extend([dx, dw, db].into_iter().flatten());
            }
        }
        arrays.extend([sum, narrow(&of_sum.output), of_sum.mean, of_sum.rstd]);
        arrays
    }

    #[test]
    fn bits_of_16_bit_norms_are_those_of_casts_around_f32() {
        for dtype in [DType::BF16, DType::F16] {
            for (rows, n) in [
                (1, 1),
                (2100, 1),
                (150, 31),
                (67, 576),
                (40, 1000),
                (3, 2500),
            ] {
                for centered in [true, false] {
                    let [x, r, g] = [1, 2, 3].map(|seed| numbers(&[rows, n], dtype, seed));
                    let want = all_by_casts(&x, &r, &g, n, centered);
                    for threads in [1, 2, 5] {
                        let found = with_threads(threads, || all(&x, &r, &g, n, centered));
                        assert_eq!(found.len(), want.len());
                        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
                            let what = format!("{dtype} {rows} {n} {centered} {threads} array {i}");
                            assert_eq!(found.dtype(), want.dtype(), "{what}");
                            assert!(found.as_bytes() == want.as_bytes(), "{what}");
                        }
                    }
                }
            }
        }
    }
}
