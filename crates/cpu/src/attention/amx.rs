//! bf16 operands on Intel's tile registers (`crate::simd::amx`), f32 sums.
//!
//! Operands are pairs as in [`super::tile::Pairs`], filled with zeros to whole tiles: 32 numbers of the
//! inner dimension and 32 rows. A tile wants the rows of a left operand as they are, so scores that are
//! read by columns are turned first.

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use std::arch::x86_64::*;

use entrenar_base::bf16;

use super::pack::{Pack, pair};
use super::tile::{Left, Pairs, Precision, Tile};
use crate::simd::amx::{self, STEPS, Session, Work};
use crate::simd::turn;

pub(super) use crate::simd::amx::SIDE;

/// bf16 operands on tile registers.
pub(super) struct Tiles;

impl Precision for Tiles {
    type Sum = f32;
    type Source = bf16;
    type Operand = i32;
    const GROUP: usize = 2;
    const DEPTH: usize = STEPS;
    const ROWS: usize = 2 * SIDE;
    type Session = Session;
    fn enter() -> Session {
        Session::new()
    }
    fn tile() -> Tile<f32, i32> {
        Tile {
            mr: 2 * SIDE,
            nr: 2 * SIDE,
            kernel,
        }
    }
}

/// # Safety
/// As `product` promises, with a [`Session`] on this thread; `step` is 1, `depth` a multiple of 16.
unsafe fn kernel(
    depth: usize,
    a: *const i32,
    row: usize,
    step: usize,
    b: *const i32,
    next: usize,
    c: *mut f32,
    width: usize,
    add: bool,
) {
    const WORD: usize = size_of::<i32>();
    debug_assert!((step == 1 || depth == 0) && depth.is_multiple_of(SIDE));
    let work = Work {
        carry: if add { c } else { std::ptr::null() },
        carry_row: width * WORD,
        to: c,
        to_row: width * WORD,
        ahead: b.cast(),
        ahead_step: 0,
        a: a.cast(),
        a_row: (row * WORD) as isize,
        a_step: (SIDE * WORD) as isize,
        b: b.cast(),
        b_row: (next * WORD) as isize,
        b_step: (SIDE * next * WORD) as isize,
        steps: depth / SIDE,
    };
    // SAFETY: the caller's promise; the tile is 32 × 32.
    unsafe { amx::multiply::<2, 2>(&work) };
}

impl Pack for Tiles {
    fn as_operands(_: &[bf16]) -> Option<&[i32]> {
        None
    }

    #[inline(always)]
    fn row(from: &[bf16], to: &mut [i32]) {
        let (to, rest) = to.split_at_mut(from.len().div_ceil(2));
        Pairs::row(from, to);
        if !rest.is_empty() {
            rest.fill(pair(bf16::ZERO, bf16::ZERO));
        }
    }

    #[inline(always)]
    fn rows(first: &[bf16], second: &[bf16], to: &mut [i32]) {
        Pairs::rows(first, second, to);
    }

    fn scores_by_rows<'a>(
        scores: &'a [f32],
        width: usize,
        columns: usize,
        room: &'a mut [i32],
    ) -> Left<'a, i32> {
        Pairs::scores_by_rows(scores, width, columns, room)
    }

    fn scores_by_columns<'a>(
        scores: &'a [f32],
        width: usize,
        columns: usize,
        room: &'a mut [i32],
    ) -> Left<'a, i32> {
        let steps = scores.len() / width / 2;
        // SAFETY: a processor with tiles has AVX-512 BF16.
        unsafe { turn_pairs(scores, width, columns, steps, room) };
        Left {
            data: room,
            row: steps,
            step: 1,
        }
    }
}

/// Neighbours of `2 · steps` rows of scores, rounded to bf16, as rows of pairs for each of `columns`.
///
/// # Panics
/// When a slice is too short, or a size no multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn turn_pairs(scores: &[f32], width: usize, columns: usize, steps: usize, room: &mut [i32]) {
    assert!(steps.is_multiple_of(SIDE) && columns.is_multiple_of(SIDE) && columns <= width);
    assert!(scores.len() >= 2 * steps * width);
    assert!(room.len() >= columns * steps);
    let mut pairs = [0i32; SIDE * SIDE];
    for block in (0..steps).step_by(SIDE) {
        for first in (0..columns).step_by(SIDE) {
            // SAFETY: two rows of 16 scores are read for each of 16 pairs; 16 rows of 16 pairs become
            // 16 rows of `room`, `steps` apart: all inside by the assertions.
            unsafe {
                for p in 0..SIDE {
                    let row = scores.as_ptr().add(2 * (block + p) * width + first);
                    let x = turn::pairs(_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(width)));
                    _mm512_storeu_si512(pairs.as_mut_ptr().add(p * SIDE).cast(), x);
                }
                let to = room.as_mut_ptr().add(first * steps + block);
                turn::sixteen::<false>(pairs.as_ptr(), SIDE, to, steps);
            }
        }
    }
}
