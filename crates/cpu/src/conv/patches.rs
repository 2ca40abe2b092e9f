//! Patches of an input as columns of a matrix, and the transpose of that.
//!
//! Row (c, kd, kh, kw), column p of the matrix is what kernel element (kd, kh, kw) of channel c
//! meets at output position p. Columns cover the output lines of one tile.

use std::ops::Range;

use super::plan::Plan;
use crate::kit::Real;

/// Visits the runs of the matrix that meet the input: `line(run, range of the run inside the
/// input, start in the input)`; `run` counts from 0 in storage order, each of `output[2]` columns.
/// The range is empty where the whole run meets padding.
#[inline(always)]
fn runs(
    plan: &Plan,
    channels: usize,
    tile: Range<usize>,
    mut visit: impl FnMut(usize, Range<usize>, usize),
) {
    let [depth, height, width] = plan.input;
    let mut run = 0;
    // The place of output index o in the input, if it is inside.
    let place = |d: usize, o: usize, k: usize| -> Option<usize> {
        (o * plan.stride[d] + k * plan.dilation[d])
            .checked_sub(plan.low[d])
            .filter(|&i| i < plan.input[d])
    };
    for channel in 0..channels {
        for kd in 0..plan.kernel[0] {
            for kh in 0..plan.kernel[1] {
                for kw in 0..plan.kernel[2] {
                    // Outputs o with 0 <= o·stride + shift - low < width.
                    let (shift, stride) = (kw * plan.dilation[2], plan.stride[2]);
                    let first = plan.low[2].saturating_sub(shift).div_ceil(stride);
                    let end = (width + plan.low[2]).saturating_sub(shift).div_ceil(stride);
                    let end = end.min(plan.output[2]);
                    let first = first.min(end);
                    for line in tile.clone() {
                        let d = place(0, line / plan.output[1], kd);
                        let h = place(1, line % plan.output[1], kh);
                        match (d, h) {
                            (Some(d), Some(h)) if first < end => {
                                let row = ((channel * depth + d) * height + h) * width;
                                let start = row + first * stride + shift - plan.low[2];
                                visit(run, first..end, start);
                            }
                            _ => visit(run, 0..0, 0),
                        }
                        run += 1;
                    }
                }
            }
        }
    }
}

/// Fills `columns` from `x` (some channels, dense).
pub(super) fn gather<T: Real>(
    plan: &Plan,
    x: &[T],
    channels: usize,
    tile: Range<usize>,
    columns: &mut [T],
) {
    let width = plan.output[2];
    let stride = plan.stride[2];
    runs(plan, channels, tile, |run, inside, start| {
        let out = &mut columns[run * width..(run + 1) * width];
        out[..inside.start].fill(T::ZERO);
        out[inside.end..].fill(T::ZERO);
        let out = &mut out[inside];
        if stride == 1 {
            out.copy_from_slice(&x[start..start + out.len()]);
        } else {
            for (o, &x) in out.iter_mut().zip(x[start..].iter().step_by(stride)) {
                *o = x;
            }
        }
    });
}

/// Adds `columns` to the places of `x` they came from.
pub(super) fn add_back<T: Real>(
    plan: &Plan,
    columns: &[T],
    channels: usize,
    tile: Range<usize>,
    x: &mut [T],
) {
    let width = plan.output[2];
    let stride = plan.stride[2];
    runs(plan, channels, tile, |run, inside, start| {
        let values = &columns[run * width..(run + 1) * width][inside];
        if stride == 1 {
            for (x, &v) in x[start..start + values.len()].iter_mut().zip(values) {
                *x += v;
            }
        } else if !values.is_empty() {
            for (x, &v) in x[start..].iter_mut().step_by(stride).zip(values) {
                *x += v;
            }
        }
    });
}
