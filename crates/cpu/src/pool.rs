//! Max and average pooling over one to three spatial dimensions, plain and adaptive.
//!
//! Inputs are `[N, C, *]`; a plane is one image's channel. Padding adds
//! minus infinities for the maximum and zeros for the average. Sizes follow PyTorch:
//! ⌊(in + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ + 1, with ⌈·⌉ in `ceil_mode` unless the
//! last window would start in the padding after the input. An adaptive window i of `out` covers
//! ⌊i·in/out⌋ .. ⌈(i + 1)·in/out⌉. Indices are flat positions within a plane. Among equal maxima
//! the first counts; a NaN wins over every number.

use entrenar_base::{Array, DType, Error, Result, Shape};

use crate::kit::{self, Real, multiversion, with_real};
use crate::team::{self, Shared};

/// Estimated nanoseconds per window element.
const ELEMENT_NS: f64 = 0.8;

/// How a pooling window moves; one entry per spatial dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolGeometry {
    /// Window size.
    pub kernel: Vec<usize>,
    /// Steps between windows.
    pub stride: Vec<usize>,
    /// Padding on both sides, at most half the window.
    pub padding: Vec<usize>,
    /// Steps inside a window (1 for averages).
    pub dilation: Vec<usize>,
    /// Whether a window may hang over the end of the padded input.
    pub ceil_mode: bool,
}

impl PoolGeometry {
    /// Windows of `kernel` side by side: stride = kernel, no padding, no dilation.
    pub fn tiled(kernel: &[usize]) -> Self {
        PoolGeometry {
            kernel: kernel.to_vec(),
            stride: kernel.to_vec(),
            padding: vec![0; kernel.len()],
            dilation: vec![1; kernel.len()],
            ceil_mode: false,
        }
    }
}

/// One window along one dimension.
#[derive(Clone, Copy)]
struct Window {
    /// First element inside the input, how many, and the step between them.
    start: usize,
    count: usize,
    step: usize,
    /// Elements including padding (for averages that count it).
    padded: usize,
}

/// The windows of every output index along three dimensions (missing ones in front have size 1).
struct Windows {
    input: [usize; 3],
    axes: [Vec<Window>; 3],
    planes: usize,
    output_shape: Shape,
}

impl Windows {
    fn outputs(&self) -> usize {
        self.axes.iter().map(Vec::len).product()
    }

    fn plane(&self) -> usize {
        self.input.iter().product()
    }

    /// Estimated nanoseconds per plane.
    fn cost(&self) -> f64 {
        let per_axis = |a: &Vec<Window>| a.iter().map(|w| w.count).sum::<usize>() as f64;
        self.axes.iter().map(per_axis).product::<f64>() * ELEMENT_NS
    }

    /// Windows from functions of (dimension, input size): how many, and which.
    #[track_caller]
    fn new(
        op: &str,
        x: &[usize],
        dims: usize,
        axis: impl Fn(usize, usize) -> Option<Vec<Window>>,
    ) -> Result<Windows> {
        if !(1..=3).contains(&dims) || x.len() != dims + 2 {
            return Err(Error::shape(
                op,
                format!("an input [N, C, *] with {dims} (at most 3) spatial dimensions"),
                Shape::from(x),
            ));
        }
        let lead = 2;
        let whole = || {
            vec![Window {
                start: 0,
                count: 1,
                step: 1,
                padded: 1,
            }]
        };
        let mut windows = Windows {
            input: [1; 3],
            axes: [whole(), whole(), whole()],
            planes: x[..lead].iter().product(),
            output_shape: Shape::from(&x[..lead]),
        };
        for d in 0..dims {
            let size = x[lead + d];
            let line = axis(d, size).ok_or_else(|| {
                Error::shape(
                    op,
                    "windows that fit inside the padded input",
                    format!("input {} in spatial dimension {d}", Shape::from(x)),
                )
            })?;
            windows.output_shape.push(line.len());
            windows.input[3 - dims + d] = size;
            windows.axes[3 - dims + d] = line;
        }
        windows.output_shape.checked_numel()?;
        Ok(windows)
    }

    /// Windows of a [`PoolGeometry`].
    #[track_caller]
    fn sliding(op: &str, x: &[usize], g: &PoolGeometry) -> Result<Windows> {
        let dims = g.kernel.len();
        let lengths = [g.stride.len(), g.padding.len(), g.dilation.len()];
        let positive = |v: &[usize]| !v.contains(&0);
        let halves = g.padding.iter().zip(&g.kernel).all(|(&p, &k)| p <= k / 2);
        if lengths != [dims; 3]
            || !positive(&g.kernel)
            || !positive(&g.stride)
            || !positive(&g.dilation)
            || !halves
        {
            return Err(Error::argument(
                op,
                "kernel, stride and dilation of at least 1 and padding of at most half the kernel, \
                 one each per spatial dimension",
                format!("{g:?}"),
            ));
        }
        Self::new(op, x, dims, |d, size| {
            let (kernel, stride, pad, step) =
                (g.kernel[d], g.stride[d], g.padding[d], g.dilation[d]);
            let extent = step.checked_mul(kernel - 1)?.checked_add(1)?;
            let padded = size.checked_add(pad.checked_mul(2)?)?;
            let room = padded.checked_sub(extent)?;
            let mut count = room / stride + 1;
            if g.ceil_mode && room % stride != 0 && count.checked_mul(stride)? < size + pad {
                count += 1;
            }
            let window = |o: usize| {
                let begin = o * stride; // in the padded input
                let skip = pad.saturating_sub(begin).div_ceil(step);
                let start = begin + skip * step - pad;
                let inside = size.saturating_sub(start).div_ceil(step);
                Window {
                    start,
                    count: inside.min(kernel.saturating_sub(skip)),
                    step,
                    padded: (padded.min(begin + kernel)).saturating_sub(begin),
                }
            };
            Some((0..count).map(window).collect())
        })
    }

    /// Adaptive windows for output sizes `out`.
    #[track_caller]
    fn adaptive(op: &str, x: &[usize], out: &[usize]) -> Result<Windows> {
        let windows = Self::new(op, x, out.len(), |d, size| {
            if size == 0 && out[d] > 0 {
                return None;
            }
            size.checked_mul(out[d].checked_add(1)?)?;
            let window = |o: usize| {
                let start = o * size / out[d];
                let count = ((o + 1) * size).div_ceil(out[d]) - start;
                Window {
                    start,
                    count,
                    step: 1,
                    padded: count,
                }
            };
            Some((0..out[d]).map(window).collect())
        })?;
        Ok(windows)
    }

    /// Calls `visit(flat position)` for every element of a window, in order.
    #[inline(always)]
    fn each(&self, window: [Window; 3], mut visit: impl FnMut(usize)) {
        let [_, height, width] = self.input;
        let [wd, wh, ww] = window;
        for d in 0..wd.count {
            let d = wd.start + d * wd.step;
            for h in 0..wh.count {
                let row = (d * height + wh.start + h * wh.step) * width + ww.start;
                for w in 0..ww.count {
                    visit(row + w * ww.step);
                }
            }
        }
    }

    /// Calls `visit(output position, window)` for every output of a plane, in order.
    #[inline(always)]
    fn outputs_of(&self, mut visit: impl FnMut(usize, [Window; 3])) {
        let mut at = 0;
        for &d in &self.axes[0] {
            for &h in &self.axes[1] {
                for &w in &self.axes[2] {
                    visit(at, [d, h, w]);
                    at += 1;
                }
            }
        }
    }

    /// True for 2×2 windows side by side: two input lines make one output line.
    fn is_quarter(&self) -> bool {
        let side_by_side = |axis: &[Window]| {
            axis.iter()
                .enumerate()
                .all(|(o, w)| (w.start, w.count, w.step) == (2 * o, 2, 1))
        };
        let flat = self.input[0] == 1 && self.axes[0].len() == 1; // padding may add outputs
        flat && side_by_side(&self.axes[1]) && side_by_side(&self.axes[2])
    }
}

/// `b` if it beats the best so far: larger, or NaN.
#[inline(always)]
fn beats<T: Real>(b: T, best: T) -> bool {
    b > best || b.is_nan()
}

multiversion! {
    /// 2×2 maxima of one plane of lines of `width`, `out` per line.
    fn quarter_plane<T: Real>(width: usize, out: usize, x: &[T], y: &mut [T], index: &mut [i64]) {
        for line in 0..y.len().checked_div(out).unwrap_or(0) {
            let base = 2 * line * width;
            let top = &x[base..base + 2 * out];
            let bottom = &x[base + width..base + width + 2 * out];
            let y = &mut y[line * out..(line + 1) * out];
            let index = &mut index[line * out..(line + 1) * out];
            for o in 0..out {
                let (mut best, mut step) = (top[2 * o], 0);
                let (b, c, d) = (top[2 * o + 1], bottom[2 * o], bottom[2 * o + 1]);
                // Without branches: which of four wins is anybody's guess.
                let wins = (b > best) | b.is_nan();
                (best, step) = if wins { (b, 1) } else { (best, step) };
                let wins = (c > best) | c.is_nan();
                (best, step) = if wins { (c, width) } else { (best, step) };
                let wins = (d > best) | d.is_nan();
                (best, step) = if wins { (d, width + 1) } else { (best, step) };
                y[o] = best;
                index[o] = (base + 2 * o + step) as i64;
            }
        }
    }
}

fn max_with(x: &Array, compute: DType, z: &Windows) -> Result<(Array, Array)> {
    let dense = kit::dense(x, compute)?;
    let (plane, outputs, quarter) = (z.plane(), z.outputs(), z.is_quarter());
    let (y, index) = with_real!(compute, T => {
        let x = dense.as_slice::<T>()?;
        let mut index = Array::zeros(&z.output_shape, DType::I64);
        let indices = Shared::new(index.make_mut::<i64>()?);
        let y = Array::build(&z.output_shape, |y: &mut [T]| {
            if y.is_empty() {
                return;
            }
            team::split_mut(y, z.planes, z.cost(), |planes, y| {
                // SAFETY: ranges of planes are disjoint.
                let index = unsafe { indices.slice(planes.start * outputs..planes.end * outputs) };
                let parts = y.chunks_exact_mut(outputs).zip(index.chunks_exact_mut(outputs));
                for (p, (y, index)) in planes.zip(parts) {
                    let x = &x[p * plane..(p + 1) * plane];
                    if quarter {
                        quarter_plane(z.input[2], z.axes[2].len(), x, y, index);
                        continue;
                    }
                    z.outputs_of(|o, window| {
                        let mut best = T::NEG_INFINITY;
                        let [d, h, w] = window.map(|w| w.start);
                        let mut at = (d * z.input[1] + h) * z.input[2] + w;
                        z.each(window, |i| {
                            if beats(x[i], best) {
                                (best, at) = (x[i], i);
                            }
                        });
                        y[o] = best;
                        index[o] = at as i64;
                    });
                }
            });
        });
        (y, index)
    });
    Ok((kit::cast(&y, x.dtype())?, index))
}

/// The largest element of each window, and its flat position within its plane (i64), as
/// PyTorch's `return_indices`.
///
/// # Errors
/// When the geometry is impossible or a window has no element inside the input.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::pool::{PoolGeometry, max_pool};
/// let x = Array::from_vec(vec![1.0f32, 5.0, 2.0, 3.0], [1, 1, 4])?;
/// let (y, index) = max_pool(&x, &PoolGeometry::tiled(&[2]))?;
/// assert_eq!(y.to_vec::<f32>()?, [5.0, 3.0]);
/// assert_eq!(index.to_vec::<i64>()?, [1, 3]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn max_pool(x: &Array, geometry: &PoolGeometry) -> Result<(Array, Array)> {
    const OP: &str = "max_pool";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let z = Windows::sliding(OP, x.dims(), geometry)?;
    if z.axes.iter().flatten().any(|w| w.count == 0) {
        return Err(Error::argument(
            OP,
            "windows with at least one element inside the input",
            format!("{geometry:?} over {}", x.shape()),
        ));
    }
    max_with(x, compute, &z)
}

/// The largest element of each adaptive window for output sizes `out`, and its position.
///
/// # Errors
/// When the input has fewer dimensions than `out`, or a spatial size of 0.
#[track_caller]
pub fn adaptive_max_pool(x: &Array, out: &[usize]) -> Result<(Array, Array)> {
    const OP: &str = "adaptive_max_pool";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    max_with(x, compute, &Windows::adaptive(OP, x.dims(), out)?)
}

/// The gradient of any max pooling: `grad` is added at `index` (same shape, `[N, C, *]`) within
/// each plane of an input of shape `x_shape` `[N, C, *]`.
///
/// # Errors
/// When the shapes do not belong together or an index leaves its plane.
#[track_caller]
pub fn max_pool_backward(grad: &Array, index: &Array, x_shape: &[usize]) -> Result<Array> {
    const OP: &str = "max_pool_backward";
    let compute = kit::compute_dtype(OP, grad.dtype())?;
    let shape = Shape::from(x_shape);
    let alike = grad.shape() == index.shape()
        && grad.rank() == x_shape.len()
        && (3..=5).contains(&grad.rank())
        && grad.dims()[..2] == x_shape[..2];
    if !alike {
        return Err(Error::shape(
            OP,
            format!("gradient and index of one shape [N, C, *] for an input {shape}"),
            format!("{} and {}", grad.shape(), index.shape()),
        ));
    }
    shape.checked_numel()?;
    let (planes, plane) = (
        x_shape[0] * x_shape[1],
        x_shape[2..].iter().product::<usize>(),
    );
    let outputs: usize = grad.dims()[2..].iter().product();
    let ids = kit::integers(OP, index)?;
    // The largest first: a search that may stop anywhere does not vectorise.
    let largest = ids.iter().fold(0, |m: u64, &i| m.max(i as u64));
    if largest >= plane as u64
        && let Some(at) = ids.iter().position(|&i| i as u64 >= plane as u64)
    {
        return Err(Error::index(
            OP,
            format!("indices in 0..{plane}, the size of a plane"),
            format!("{} at flat position {at}", ids[at]),
        ));
    }
    let dense = kit::dense(grad, compute)?;
    let out = with_real!(compute, T => {
        let g = dense.as_slice::<T>()?;
        Array::build(&shape, |dx: &mut [T]| {
            if dx.is_empty() {
                return;
            }
            let cost = (plane + 2 * outputs) as f64 * 0.5;
            team::split_mut(dx, planes, cost, |range, dx| {
                for (p, dx) in range.zip(dx.chunks_exact_mut(plane)) {
                    dx.fill(0.0);
                    let at = p * outputs..(p + 1) * outputs;
                    for (&i, &g) in ids[at.clone()].iter().zip(&g[at]) {
                        dx[i as usize] += g;
                    }
                }
            });
        })
    });
    kit::cast(&out, grad.dtype())
}

/// What the sum of a window is divided by.
#[derive(Clone, Copy)]
enum Divisor {
    /// Elements inside the input.
    Inside,
    /// Elements inside the padded input.
    Padded,
    /// This number.
    Fixed(f64),
}

impl Divisor {
    fn of(self, window: &[Window; 3]) -> f64 {
        match self {
            Divisor::Inside => window.iter().map(|w| w.count as f64).product(),
            Divisor::Padded => window.iter().map(|w| w.padded as f64).product(),
            Divisor::Fixed(d) => d,
        }
    }
}

#[track_caller]
fn average_windows(
    op: &str,
    x: &[usize],
    g: &PoolGeometry,
    count_include_pad: bool,
    divisor_override: Option<i64>,
) -> Result<(Windows, Divisor)> {
    if g.dilation.iter().any(|&d| d != 1) {
        return Err(Error::argument(op, "dilation 1", format!("{g:?}")));
    }
    if divisor_override == Some(0) {
        return Err(Error::argument(op, "a divisor other than 0", 0));
    }
    let divisor = match divisor_override {
        Some(d) => Divisor::Fixed(d as f64),
        None if count_include_pad => Divisor::Padded,
        None => Divisor::Inside,
    };
    Ok((Windows::sliding(op, x, g)?, divisor))
}

fn average_with(x: &Array, compute: DType, z: &Windows, divisor: Divisor) -> Result<Array> {
    let dense = kit::dense(x, compute)?;
    let (plane, outputs) = (z.plane(), z.outputs());
    let y = with_real!(compute, T => {
        let x = dense.as_slice::<T>()?;
        Array::build(&z.output_shape, |y: &mut [T]| {
            if y.is_empty() {
                return;
            }
            team::split_mut(y, z.planes, z.cost(), |planes, y| {
                for (p, y) in planes.zip(y.chunks_exact_mut(outputs)) {
                    let x = &x[p * plane..(p + 1) * plane];
                    z.outputs_of(|o, window| {
                        let mut total: T = 0.0;
                        z.each(window, |i| total += x[i]);
                        let empty = window.iter().any(|w| w.count == 0);
                        y[o] = if empty { 0.0 } else { total / divisor.of(&window) as T };
                    });
                }
            });
        })
    });
    kit::cast(&y, x.dtype())
}

#[track_caller]
fn average_back(
    op: &str,
    grad: &Array,
    x_shape: &[usize],
    z: &Windows,
    divisor: Divisor,
) -> Result<Array> {
    let compute = kit::compute_dtype(op, grad.dtype())?;
    if grad.shape() != &z.output_shape {
        return Err(Error::shape(
            op,
            format!("a gradient of shape {}", z.output_shape),
            grad.shape(),
        ));
    }
    let shape = Shape::from(x_shape);
    shape.checked_numel()?;
    let dense = kit::dense(grad, compute)?;
    let (plane, outputs) = (z.plane(), z.outputs());
    let dx = with_real!(compute, T => {
        let g = dense.as_slice::<T>()?;
        Array::build(&shape, |dx: &mut [T]| {
            if dx.is_empty() {
                return;
            }
            team::split_mut(dx, z.planes, z.cost(), |planes, dx| {
                dx.fill(0.0);
                for (p, dx) in planes.zip(dx.chunks_exact_mut(plane)) {
                    let g = &g[p * outputs..(p + 1) * outputs];
                    z.outputs_of(|o, window| {
                        let share = g[o] / divisor.of(&window) as T;
                        z.each(window, |i| dx[i] += share);
                    });
                }
            });
        })
    });
    kit::cast(&dx, grad.dtype())
}

/// The average of each window.
///
/// `count_include_pad` divides by the window's size inside the padded input instead of inside the
/// input; `divisor_override` divides by that number instead. A window entirely in the padding
/// gives 0, as in PyTorch.
///
/// # Errors
/// When the geometry is impossible, dilation is not 1 or the divisor is 0.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::pool::{PoolGeometry, avg_pool};
/// let x = Array::from_vec(vec![1.0f32, 5.0, 2.0, 3.0], [1, 1, 4])?;
/// let y = avg_pool(&x, &PoolGeometry::tiled(&[2]), true, None)?;
/// assert_eq!(y.to_vec::<f32>()?, [3.0, 2.5]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn avg_pool(
    x: &Array,
    geometry: &PoolGeometry,
    count_include_pad: bool,
    divisor_override: Option<i64>,
) -> Result<Array> {
    const OP: &str = "avg_pool";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let (z, divisor) =
        average_windows(OP, x.dims(), geometry, count_include_pad, divisor_override)?;
    average_with(x, compute, &z, divisor)
}

/// The gradient of [`avg_pool`] for an input of shape `x_shape`.
///
/// # Errors
/// As [`avg_pool`], and when the gradient has another shape than its output.
#[track_caller]
pub fn avg_pool_backward(
    grad: &Array,
    x_shape: &[usize],
    geometry: &PoolGeometry,
    count_include_pad: bool,
    divisor_override: Option<i64>,
) -> Result<Array> {
    const OP: &str = "avg_pool_backward";
    let (z, divisor) = average_windows(OP, x_shape, geometry, count_include_pad, divisor_override)?;
    average_back(OP, grad, x_shape, &z, divisor)
}

/// The average of each adaptive window for output sizes `out`.
///
/// # Errors
/// When the input is not `[N, C, *]` with as many spatial dimensions as `out`, or one of size 0.
#[track_caller]
pub fn adaptive_avg_pool(x: &Array, out: &[usize]) -> Result<Array> {
    const OP: &str = "adaptive_avg_pool";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let z = Windows::adaptive(OP, x.dims(), out)?;
    average_with(x, compute, &z, Divisor::Inside)
}

/// The gradient of [`adaptive_avg_pool`] for an input of shape `x_shape`; the output sizes are
/// the gradient's.
///
/// # Errors
/// When the shapes do not belong together.
#[track_caller]
pub fn adaptive_avg_pool_backward(grad: &Array, x_shape: &[usize]) -> Result<Array> {
    const OP: &str = "adaptive_avg_pool_backward";
    let out = grad.dims().get(2..).unwrap_or(&[]);
    let z = Windows::adaptive(OP, x_shape, out)?;
    average_back(OP, grad, x_shape, &z, Divisor::Inside)
}
