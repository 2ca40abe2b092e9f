//! Packing: a strided block becomes slivers that the microkernel reads front to back.

use super::Operand;
use entrenar_base::Float;

/// Packs `rows × depth` of `from` into slivers of `high` rows: sliver s holds, for each step p,
/// its `high` elements side by side; missing rows of the last sliver are zeros.
///
/// # Safety
/// The block lies inside the operand's memory, and `to` holds `rows` rounded up to `high` times
/// `depth` elements.
pub(super) unsafe fn slivers<T: Float>(
    from: Operand<T>,
    rows: usize,
    depth: usize,
    high: usize,
    to: &mut [T],
) {
    for (i, sliver) in (0..rows)
        .step_by(high)
        .zip(to.chunks_exact_mut(high * depth))
    {
        let here = (rows - i).min(high);
        if here < high {
            sliver.fill(T::ZERO);
        }
        // SAFETY: rows `i..i + here` and steps `0..depth` lie inside the block.
        unsafe {
            if from.row == 1 {
                // Each step is a contiguous run.
                for (p, out) in sliver.chunks_exact_mut(high).enumerate() {
                    let run = std::slice::from_raw_parts(from.at(i, p), here);
                    out[..here].copy_from_slice(run);
                }
            } else if from.column == 1 {
                // Each row is a contiguous run: transpose eight steps at a time so that both
                // sides stay in cache lines.
                let mut p = 0;
                while p < depth {
                    let steps = (depth - p).min(8);
                    for r in 0..here {
                        let run = std::slice::from_raw_parts(from.at(i + r, p), steps);
                        for (s, &v) in run.iter().enumerate() {
                            *sliver.get_unchecked_mut((p + s) * high + r) = v;
                        }
                    }
                    p += steps;
                }
            } else {
                for (p, out) in sliver.chunks_exact_mut(high).enumerate() {
                    for (r, o) in out[..here].iter_mut().enumerate() {
                        *o = *from.at(i + r, p);
                    }
                }
            }
        }
    }
}
