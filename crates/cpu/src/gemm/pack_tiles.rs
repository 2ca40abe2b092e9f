//! Packing left operands for tile registers: 16 rows of 32 steps, one row after the other, tile by
//! tile; tiles of further rows follow before those of further steps.
//!
//! Right operands are packed in pairs as for AVX-512 (`pack512`): sixteen pairs of sixteen columns are
//! a tile as they lie.

use std::arch::x86_64::*;

use super::Kind;
use super::pack::{self, Block, Packer};
use super::pack512::{self, Bf16, F16, F32, Load, Pairs, Run};
use crate::simd::amx::{SIDE, STEPS};

/// Units from step to step of a block, whose rows are padded to whole tiles.
fn next(b: &Block<i32>) -> usize {
    b.majors.next_multiple_of(SIDE) * SIDE
}

/// Steps that lie side by side: rows are copied. Steps that do not exist become zeros; so do rows.
///
/// # Safety
/// As [`Packer`], with room for whole tiles, on a processor with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn copy<L: Load>(b: &Block<i32>)
where
    Pairs<L>: Run<P = i32>,
{
    let next = next(b);
    for row in 0..b.majors {
        let mut from = b.at(row, 0);
        let mut to = b.to.wrapping_add(row * SIDE);
        let mut left = b.depth;
        while left > 0 {
            // SAFETY: by the caller's promise.
            unsafe {
                let x = <Pairs<L> as Run>::load(from, left.min(STEPS));
                _mm512_storeu_si512(to.cast(), x);
            }
            from = from.wrapping_add(STEPS * L::BYTES);
            to = to.wrapping_add(next);
            left -= left.min(STEPS);
        }
    }
    clear_rows(b);
}

/// Rows that lie side by side: sixteen pairs of steps of sixteen rows are turned at once.
///
/// # Safety
/// As [`copy`].
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn turn<L: Load>(b: &Block<i32>) {
    let next = next(b);
    for (tile, p) in (0..b.depth).step_by(STEPS).enumerate() {
        for first in (0..b.majors).step_by(SIDE) {
            let live = pack512::mask16(b.majors - first);
            let to = b.to.wrapping_add(tile * next + first * SIDE);
            // SAFETY: by the caller's promise; steps and rows that do not exist are not read.
            unsafe {
                let mut x = [_mm512_setzero_si512(); SIDE];
                for pair in 0..SIDE {
                    let step = p + 2 * pair;
                    let mask = |step| if step < b.depth { live } else { 0 };
                    x[pair] = pack512::pairs::<L>(
                        (b.at(first, step), mask(step)),
                        (b.at(first, step + 1), mask(step + 1)),
                    );
                }
                let x = pack512::transpose(x);
                for r in 0..SIDE {
                    _mm512_storeu_si512(to.add(r * SIDE).cast(), x[r]);
                }
            }
        }
    }
}

/// Anything else: turned into rows of bf16 first.
///
/// # Safety
/// As [`copy`].
unsafe fn any<R: pack::Read<P = f32>>(b: &Block<i32>) {
    let next = next(b);
    for row in 0..b.majors {
        for unit in 0..b.depth.next_multiple_of(STEPS) / 2 {
            let to = unit / SIDE * next + row * SIDE + unit % SIDE;
            // SAFETY: by the caller's promise.
            unsafe { *b.to.add(to) = pack::pair_at::<R>(b, row, 2 * unit) };
        }
    }
    clear_rows(b);
}

/// Zeros in the rows that fill the last tile.
fn clear_rows(b: &Block<i32>) {
    let next = next(b);
    for row in b.majors..b.majors.next_multiple_of(SIDE) {
        for tile in 0..b.depth.div_ceil(STEPS) {
            let at = b.to.wrapping_add(tile * next + row * SIDE);
            // SAFETY: the block has room for whole tiles.
            unsafe { at.write_bytes(0, SIDE) };
        }
    }
}

/// The packing function of left operands; strides in elements.
pub(super) fn left(kind: Kind, major: isize, step: isize) -> Packer<i32> {
    match (step == 1, major == 1, kind) {
        (true, _, Kind::F32) => copy::<F32>,
        (true, _, Kind::Bf16) => copy::<Bf16>,
        (true, _, Kind::F16) => copy::<F16>,
        (_, true, Kind::F32) => turn::<F32>,
        (_, true, Kind::Bf16) => turn::<Bf16>,
        (_, true, Kind::F16) => turn::<F16>,
        (_, _, Kind::F32) => any::<pack::F32>,
        (_, _, Kind::Bf16) => any::<pack::Bf16>,
        (_, _, Kind::F16) => any::<pack::F16>,
        (_, _, Kind::F64 | Kind::I8) => unreachable!("{kind:?} has an engine of its own"),
    }
}
