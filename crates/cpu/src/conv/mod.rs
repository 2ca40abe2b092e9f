//! Convolution over one to three spatial dimensions, and its two gradients.
//!
//! y[n, o, p] = Σ_{c, t} w[o, c, t] · x[n, c, p·stride + t·dilation - padding], where c runs over
//! the channels of o's group and positions outside x count as zero. (A cross-correlation, as
//! everywhere in this field.) Each pass is a product of matrices: patches of the input are laid
//! out as columns (`patches.rs`), a tile of output positions at a time; 1×1 kernels skip that.
//! Groups of one input channel need no products of matrices (`depthwise.rs`).
//! Tiles, blocks of channels and the partial sums of the weight gradient depend on the shape alone.
//! A transposed convolution is [`conv_input_grad`].

mod depthwise;
mod patches;
mod plan;

use entrenar_base::{Array, DType, Error, Result, Shape};

use crate::alloc::Scratch;
use crate::kit::{self, Matrix, Real, gemm, with_real};
use crate::product::Compute;
use crate::team::{self, Shared};
use depthwise::Depthwise;
pub use plan::ConvGeometry;
use plan::Plan;

/// Elements of patches held at once: half a typical second-level cache.
const TILE_ELEMENTS: usize = 96 << 10;
/// Positions per tile when the input itself serves as patches.
const DIRECT_POSITIONS: usize = 4096;
/// With fewer (image, group) pairs than this, input channels are split as well.
const ENOUGH_ITEMS: usize = 8;
/// Input channels per block when they are split.
const CHANNEL_BLOCK: usize = 32;
/// Most partial sums of the weight gradient, and the elements they may take together.
const PARTIALS: usize = 16;
const PARTIAL_ELEMENTS: usize = 1 << 24;

/// Whether operands are rounded to bf16 before they are multiplied.
fn rounds<T: Real>(compute: Compute) -> bool {
    compute == Compute::Bf16 && T::DTYPE == DType::F32
}

/// Estimated nanoseconds of a product.
fn product_ns(m: usize, n: usize, k: usize) -> f64 {
    m as f64 * n as f64 * k as f64 * 0.025
}

impl Plan {
    /// Output lines per tile.
    fn tile_lines(&self, channels: usize) -> usize {
        let line = self.output[2].max(1);
        let fitting = if self.is_direct() {
            DIRECT_POSITIONS / line
        } else {
            TILE_ELEMENTS / (channels * self.kernel_volume() * line).max(1)
        };
        fitting.clamp(1, self.lines().max(1))
    }

    /// Blocks that the input channels of a group are split into, and channels per block.
    fn channel_blocks(&self) -> (usize, usize) {
        if self.batch * self.groups >= ENOUGH_ITEMS || self.group_in == 0 {
            return (1, self.group_in);
        }
        let blocks = self.group_in.div_ceil(CHANNEL_BLOCK);
        (blocks, CHANNEL_BLOCK.min(self.group_in))
    }
}

/// The convolution of `x` `[N, C, *]` with `w` `[O, C / groups, *]`, plus `bias` `[O]`: `[N, O, *]`.
/// f32 operands are multiplied in the precision `compute_in`; the result has their dtype.
///
/// # Errors
/// When shapes, dtypes or geometry do not fit, or the kernel is larger than the padded input.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::conv::{ConvGeometry, conv};
/// use entrenar_cpu::product::Compute;
/// let x = Array::from_vec(vec![1.0f32, 2.0, 4.0], [1, 1, 3])?;
/// let w = Array::from_vec(vec![1.0f32, 1.0], [1, 1, 2])?;
/// let y = conv(&x, &w, None, &ConvGeometry::plain(1), Compute::F32)?;
/// assert_eq!(y.to_vec::<f32>()?, [3.0, 6.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn conv(
    x: &Array,
    w: &Array,
    bias: Option<&Array>,
    geometry: &ConvGeometry,
    compute_in: Compute,
) -> Result<Array> {
    const OP: &str = "conv";
    kit::same_dtype(OP, x, w)?;
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let plan = Plan::new(OP, x.dims(), w.dims(), geometry)?;
    let outputs = plan.groups * plan.group_out;
    if let Some(b) = bias
        && b.dims() != [outputs]
    {
        return Err(Error::shape(
            OP,
            format!("a bias of shape [{outputs}]"),
            b.shape(),
        ));
    }
    let (dense_x, dense_w) = (kit::dense(x, compute)?, kit::dense(w, compute)?);
    let bias = bias.map(|b| kit::dense(b, compute)).transpose()?;
    let out = with_real!(compute, T => {
        let (x, w) = (dense_x.as_slice::<T>()?, dense_w.as_slice::<T>()?);
        let bias = bias.as_ref().map(Array::as_slice::<T>).transpose()?;
        Array::build(plan.output_shape(), |y: &mut [T]| {
            let (positions, k) = (plan.positions(), plan.group_in * plan.kernel_volume());
            if positions == 0 {
                return;
            }
            if let Some(direct) = Depthwise::of(&plan, rounds::<T>(compute_in)) {
                return direct.forward(x, w, bias, y);
            }
            let (line, lines) = (plan.output[2], plan.lines());
            let per_tile = plan.tile_lines(plan.group_in);
            let tiles = lines.div_ceil(per_tile);
            let y = Shared::new(y);
            let cost = product_ns(plan.group_out + 20, per_tile * line, k);
            team::split(plan.batch * plan.groups * tiles, cost, |items| {
                for item in items {
                    let (pair, tile) = (item / tiles, item % tiles);
                    let group = pair % plan.groups;
                    let tile = tile * per_tile..((tile + 1) * per_tile).min(lines);
                    let (first, count) = (tile.start * line, tile.len() * line);
                    let x = &x[pair * plan.group_input()..(pair + 1) * plan.group_input()];
                    let w = Matrix::rows(&w[group * plan.group_out * k..(group + 1) * plan.group_out * k], k);
                    let place = pair * plan.group_out * positions;
                    let sizes = (plan.group_out, count, k);
                    // Sums start from the bias.
                    let begin = |rows: &mut [T], width: usize| {
                        for (o, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
                            row.fill(bias.map_or(0.0, |b| b[group * plan.group_out + o]));
                        }
                    };
                    let multiply = |patches: Matrix<'_, T>| {
                        if tiles == 1 {
                            // SAFETY: this (image, group) is computed by this item alone.
                            let y = unsafe { y.slice(place..place + plan.group_out * positions) };
                            if bias.is_some() {
                                begin(y, positions);
                            }
                            gemm(compute_in, y, positions, sizes, 1.0, w, patches, bias.is_some());
                            return;
                        }
                        // Tiles interleave in memory: only whole rows of one may be borrowed.
                        kit::with_scratch(plan.group_out * count, |block: &mut [T]| {
                            if bias.is_some() {
                                begin(block, count);
                            }
                            gemm(compute_in, block, count, sizes, 1.0, w, patches, bias.is_some());
                            for (o, row) in block.chunks_exact(count).enumerate() {
                                let at = place + o * positions + first;
                                // SAFETY: tiles cover disjoint positions.
                                unsafe { y.slice(at..at + count) }.copy_from_slice(row);
                            }
                        });
                    };
                    if plan.is_direct() {
                        multiply(Matrix { offset: first.min(x.len()), ..Matrix::rows(x, positions) });
                    } else {
                        kit::with_scratch(k * count, |columns: &mut [T]| {
                            patches::gather(&plan, x, plan.group_in, tile, columns);
                            multiply(Matrix::rows(columns, count));
                        });
                    }
                }
            });
        })
    });
    kit::cast(&out, x.dtype())
}

/// The gradient of [`conv`] with respect to its input, of shape `x_shape`: `grad` `[N, O, *]`,
/// `w` `[O, C / groups, *]`. Also the transposed convolution of `grad` with `w`.
///
/// # Errors
/// When shapes, dtypes or geometry do not fit.
#[track_caller]
pub fn conv_input_grad(
    grad: &Array,
    w: &Array,
    x_shape: &[usize],
    geometry: &ConvGeometry,
    compute_in: Compute,
) -> Result<Array> {
    const OP: &str = "conv_input_grad";
    kit::same_dtype(OP, grad, w)?;
    let compute = kit::compute_dtype(OP, grad.dtype())?;
    let plan = Plan::new(OP, x_shape, w.dims(), geometry)?;
    check_gradient(OP, &plan, grad)?;
    Shape::from(x_shape).checked_numel()?;
    let (dense_g, dense_w) = (kit::dense(grad, compute)?, kit::dense(w, compute)?);
    let out = with_real!(compute, T => {
        let (g, w) = (dense_g.as_slice::<T>()?, dense_w.as_slice::<T>()?);
        Array::build(x_shape, |dx: &mut [T]| {
            if dx.is_empty() {
                return;
            }
            // The direct way multiplies zeros around the gradient, which an infinite weight would show.
            let finite = w.iter().all(|w| w.is_finite());
            if finite && let Some(direct) = Depthwise::of(&plan, rounds::<T>(compute_in)) {
                return direct.input_grad(g, w, dx);
            }
            let (positions, volume) = (plan.positions(), plan.kernel_volume());
            let k = plan.group_in * volume;
            let (line, lines) = (plan.output[2], plan.lines());
            let (blocks, block_channels) = plan.channel_blocks();
            let per_tile = plan.tile_lines(block_channels);
            let plane = plan.input_plane();
            let dx = Shared::new(dx);
            let cost = product_ns(plan.group_out + 20, positions, block_channels * volume);
            team::split(plan.batch * plan.groups * blocks, cost, |items| {
                for item in items {
                    let (pair, block) = (item / blocks, item % blocks);
                    let group = pair % plan.groups;
                    let first_channel = block * block_channels;
                    let channels = block_channels.min(plan.group_in - first_channel);
                    let at = (pair * plan.group_in + first_channel) * plane;
                    // SAFETY: items cover disjoint planes.
                    let dx = unsafe { dx.slice(at..at + channels * plane) };
                    let g = &g[pair * plan.group_out * positions..(pair + 1) * plan.group_out * positions];
                    let weights = Matrix {
                        offset: first_channel * volume,
                        ..Matrix::rows(&w[group * plan.group_out * k..(group + 1) * plan.group_out * k], k)
                    };
                    let rows = channels * volume;
                    if plan.is_direct() {
                        let sizes = (rows, positions, plan.group_out);
                        let g = Matrix::rows(g, positions);
                        gemm(compute_in, dx, positions, sizes, 1.0, weights.transposed(), g, false);
                        continue;
                    }
                    dx.fill(0.0);
                    for start in (0..lines).step_by(per_tile) {
                        let tile = start..(start + per_tile).min(lines);
                        let count = tile.len() * line;
                        if count == 0 {
                            continue;
                        }
                        kit::with_scratch(rows * count, |columns: &mut [T]| {
                            let g = Matrix { offset: start * line, ..Matrix::rows(g, positions) };
                            let sizes = (rows, count, plan.group_out);
                            gemm(compute_in, columns, count, sizes, 1.0, weights.transposed(), g, false);
                            patches::add_back(&plan, columns, channels, tile, dx);
                        });
                    }
                }
            });
        })
    });
    kit::cast(&out, grad.dtype())
}

/// The gradient of [`conv`] with respect to its weight, of shape `w_shape`: `grad` `[N, O, *]`,
/// `x` `[N, C, *]`.
///
/// # Errors
/// When shapes, dtypes or geometry do not fit.
#[track_caller]
pub fn conv_weight_grad(
    grad: &Array,
    x: &Array,
    w_shape: &[usize],
    geometry: &ConvGeometry,
    compute_in: Compute,
) -> Result<Array> {
    const OP: &str = "conv_weight_grad";
    kit::same_dtype(OP, grad, x)?;
    let compute = kit::compute_dtype(OP, grad.dtype())?;
    let plan = Plan::new(OP, x.dims(), w_shape, geometry)?;
    check_gradient(OP, &plan, grad)?;
    let size = Shape::from(w_shape).checked_numel()?;
    let (dense_g, dense_x) = (kit::dense(grad, compute)?, kit::dense(x, compute)?);
    let out = with_real!(compute, T => {
        let (g, x) = (dense_g.as_slice::<T>()?, dense_x.as_slice::<T>()?);
        Array::build(w_shape, |dw: &mut [T]| {
            let (positions, volume) = (plan.positions(), plan.kernel_volume());
            if size == 0 || plan.batch == 0 || positions == 0 {
                dw.fill(0.0);
                return;
            }
            if let Some(direct) = Depthwise::of(&plan, rounds::<T>(compute_in)) {
                return direct.weight_grad(g, x, dw);
            }
            let k = plan.group_in * volume;
            let (line, lines) = (plan.output[2], plan.lines());
            let (blocks, block_channels) = plan.channel_blocks();
            let per_tile = plan.tile_lines(block_channels);
            let plane = plan.input_plane();
            // Partial sums: one per part of the batch, each [groups, blocks, group_out, block_k];
            // the last block of channels may fill its place only in part.
            let parts = PARTIALS.min(plan.batch).min((PARTIAL_ELEMENTS / size).max(1));
            let images = plan.batch.div_ceil(parts);
            let parts = plan.batch.div_ceil(images);
            let block_k = block_channels * volume;
            let place = plan.group_out * block_k;
            let mut partial = Scratch::<T>::zeroed(parts * plan.groups * blocks * place);
            let cost = images as f64 * product_ns(plan.group_out + 20, positions, block_k);
            let items = parts * plan.groups * blocks;
            team::split_mut(&mut partial, items, cost, |range, partial| {
                for (item, out) in range.zip(partial.chunks_exact_mut(place)) {
                    let (part, group, block) =
                        (item / blocks / plan.groups, item / blocks % plan.groups, item % blocks);
                    let first_channel = block * block_channels;
                    let channels = block_channels.min(plan.group_in - first_channel);
                    let rows = channels * volume;
                    for image in part * images..((part + 1) * images).min(plan.batch) {
                        let pair = image * plan.groups + group;
                        let at = (pair * plan.group_in + first_channel) * plane;
                        let x = &x[at..at + channels * plane];
                        let g = Matrix::rows(
                            &g[pair * plan.group_out * positions..(pair + 1) * plan.group_out * positions],
                            positions,
                        );
                        if plan.is_direct() {
                            let x = Matrix::rows(x, positions).transposed();
                            gemm(compute_in, out, block_k, (plan.group_out, rows, positions), 1.0, g, x, true);
                            continue;
                        }
                        for start in (0..lines).step_by(per_tile) {
                            let tile = start..(start + per_tile).min(lines);
                            let count = tile.len() * line;
                            kit::with_scratch(rows * count, |columns: &mut [T]| {
                                patches::gather(&plan, x, channels, tile, columns);
                                let columns = Matrix::rows(&*columns, count).transposed();
                                let g = Matrix { offset: start * line, ..g };
                                gemm(compute_in, out, block_k, (plan.group_out, rows, count), 1.0, g, columns, true);
                            });
                        }
                    }
                }
            });
            let output_channels = plan.groups * plan.group_out;
            team::split_mut(dw, output_channels, (parts * k) as f64 * 0.3, |range, dw| {
                for (channel, dw) in range.zip(dw.chunks_exact_mut(k)) {
                    let (group, o) = (channel / plan.group_out, channel % plan.group_out);
                    dw.fill(0.0);
                    for part in 0..parts {
                        for (block, dw) in dw.chunks_mut(block_k).enumerate() {
                            let item = (part * plan.groups + group) * blocks + block;
                            let at = item * place + o * block_k;
                            kit::add_into(dw, &partial[at..at + dw.len()]);
                        }
                    }
                }
            });
        })
    });
    kit::cast(&out, grad.dtype())
}

#[track_caller]
fn check_gradient(op: &str, plan: &Plan, grad: &Array) -> Result<()> {
    let expected = plan.output_shape();
    if grad.shape() == &expected {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("a gradient of shape {expected}"),
        grad.shape(),
    ))
}
