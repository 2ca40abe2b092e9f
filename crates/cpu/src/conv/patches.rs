//! Patches of an input as columns of a matrix, and the transpose of that.
//!
//! Row (c, kd, kh, kw), column p of the matrix is what kernel element (kd, kh, kw) of channel c
//! meets at output position p. Columns cover the output lines of one tile.

use std::ops::Range;

use super::plan::Plan;
use crate::kit::{self, Real};

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

/// True when output lines lie like input lines (stride 1, lines of one length): then the lines of
/// one plane that meet the input are one block in `x`, shifted, except for columns at the border.
fn is_shifted(plan: &Plan) -> bool {
    plan.stride[1..] == [1, 1] && plan.output[2] == plan.input[2]
}

/// Visits the blocks of the matrix that [`is_shifted`] geometries consist of:
/// `visit(range of the matrix, border columns at the start and end of each line, start in x)`.
/// `border` columns and blocks with no start (`None`) meet padding. The start may lie outside `x`
/// by no more than the border.
#[inline(always)]
fn blocks(
    plan: &Plan,
    channels: usize,
    tile: Range<usize>,
    mut visit: impl FnMut(Range<usize>, (usize, usize), Option<isize>),
) {
    let [depth, height, width] = plan.input;
    let [_, out_height, _] = plan.output;
    let lines = tile.len();
    let mut row = 0; // of the matrix
    for channel in 0..channels {
        for kd in 0..plan.kernel[0] {
            for kh in 0..plan.kernel[1] {
                for kw in 0..plan.kernel[2] {
                    let shift = (kw * plan.dilation[2]) as isize - plan.low[2] as isize;
                    let border = (
                        ((-shift).max(0) as usize).min(width),
                        (shift.max(0) as usize).min(width),
                    );
                    // Input line of output line 0 of a plane, and the lines that are inside.
                    let first = (kh * plan.dilation[1]) as isize - plan.low[1] as isize;
                    let low = ((-first).max(0) as usize).min(out_height);
                    let high = ((height as isize - first).max(0) as usize).clamp(low, out_height);
                    let mut line = tile.start;
                    while line < tile.end {
                        let (plane, h) = (line / out_height, line % out_height);
                        let end = (line + out_height - h).min(tile.end);
                        let d = (plane * plan.stride[0] + kd * plan.dilation[0])
                            .checked_sub(plan.low[0])
                            .filter(|&d| d < depth);
                        // The three parts of this plane's lines: before, inside, after.
                        let base = line - h;
                        let inside = (base + low).clamp(line, end)..(base + high).clamp(line, end);
                        let at = |l: usize| (row * lines + l - tile.start) * width;
                        match d {
                            Some(d) if !inside.is_empty() => {
                                let from = ((channel * depth + d) * height) as isize
                                    + (inside.start - base) as isize
                                    + first;
                                visit(at(line)..at(inside.start), border, None);
                                let start = from * width as isize + shift;
                                visit(at(inside.start)..at(inside.end), border, Some(start));
                                visit(at(inside.end)..at(end), border, None);
                            }
                            _ => visit(at(line)..at(end), border, None),
                        }
                        line = end;
                    }
                    row += 1;
                }
            }
        }
    }
}

/// Zeros the border columns of a block of whole lines.
#[inline(always)]
fn clear_border<T: Real>(block: &mut [T], width: usize, (left, right): (usize, usize)) {
    if (left, right) != (0, 0) {
        for line in block.chunks_exact_mut(width) {
            line[..left].fill(T::ZERO);
            line[width - right..].fill(T::ZERO);
        }
    }
}

/// The part of `0..len` whose places from `start` on lie inside `0..limit`, and its first place.
#[inline(always)]
fn overlap(start: isize, len: usize, limit: usize) -> (Range<usize>, usize) {
    let low = ((-start).max(0) as usize).min(len);
    let high = ((limit as isize - start).max(0) as usize).clamp(low, len);
    (
        low..high,
        ((start + low as isize).max(0) as usize).min(limit),
    )
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
    if is_shifted(plan) {
        return blocks(plan, channels, tile, |range, border, start| {
            let out = &mut columns[range];
            match start {
                None => out.fill(T::ZERO),
                Some(start) => {
                    let (part, from) = overlap(start, out.len(), x.len());
                    out[part.clone()].copy_from_slice(&x[from..from + part.len()]);
                    clear_border(out, width, border);
                }
            }
        });
    }
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

/// Adds `columns` to the places of `x` they came from. Columns that meet padding are overwritten.
pub(super) fn add_back<T: Real>(
    plan: &Plan,
    columns: &mut [T],
    channels: usize,
    tile: Range<usize>,
    x: &mut [T],
) {
    let width = plan.output[2];
    if is_shifted(plan) {
        return blocks(plan, channels, tile, |range, border, start| {
            if let Some(start) = start {
                let values = &mut columns[range];
                clear_border(values, width, border);
                let (part, from) = overlap(start, values.len(), x.len());
                kit::add_into(&mut x[from..from + part.len()], &values[part]);
            }
        });
    }
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
