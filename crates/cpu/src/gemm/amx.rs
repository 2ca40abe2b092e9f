//! bf16 products on Intel's tile registers: the engine [`Tiles`] and its kernels around
//! [`amx::multiply`], which says how sums round. They run on from block to block. `pack_tiles` packs
//! left operands.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::Kind;
use super::engine::Engine;
use super::pack::{self, Packer, Side};
use super::tile::{Call, Kernel, Kernels};
use crate::simd::amx::{self, SIDE, STEPS, Session, Work};

/// bf16 on tile registers: only where [`amx::available`].
#[derive(Clone, Copy)]
pub(crate) struct Tiles;

/// Units of a tile of packed values.
const TILE: usize = SIDE * SIDE;

impl Engine for Tiles {
    type P = i32;
    type S = f32;
    const GROUP: usize = 2;
    const CARRIES: bool = true;
    const DEPTH: usize = STEPS;
    const ROWS: usize = SIDE;
    // A slice of the right operand that stays in L1 while the tiles of the left one pass.
    const BLOCK: usize = 512;
    // These processors have 2 MiB of L2 per core.
    const LEFT: usize = 1 << 20;
    const LEFT_ROWS: usize = 1024;
    const PARTS: usize = 2;
    const RATE: f64 = 250.0;

    fn kernels() -> &'static Kernels<i32, f32> {
        static KERNELS: Kernels<i32, f32> = Kernels {
            lanes: SIDE,
            table: &TABLE,
        };
        &KERNELS
    }
    fn packer(side: Side, kind: Kind, major: isize, step: isize, _: bool) -> Packer<i32> {
        match side {
            Side::Left => super::pack_tiles::left(kind, major, step),
            Side::Right => pack::to_pairs(kind, major, step),
        }
    }
    fn as_it_lies(kind: Kind, _: bool) -> bool {
        kind == Kind::Bf16
    }
    type Session = Session;
    fn enter() -> Session {
        Session::new()
    }
}

/// Kernels of up to 2 tiles of rows by their number of rows; they ask the call for the exact one.
static TABLE: [[[Kernel<i32, f32>; 2]; 2]; 2 * SIDE] = {
    let low = [
        [run::<1, 1, false> as Kernel<i32, f32>, run::<1, 1, true>],
        [run::<1, 2, false>, run::<1, 2, true>],
    ];
    let high = [
        [run::<2, 1, false> as Kernel<i32, f32>, run::<2, 1, true>],
        [run::<2, 2, false>, run::<2, 2, true>],
    ];
    let mut table = [low; 2 * SIDE];
    let mut rows = SIDE;
    while rows < 2 * SIDE {
        table[rows] = high;
        rows += 1;
    }
    table
};

/// Sums of one call, in rows of whole kernels.
#[repr(C, align(64))]
struct Buffer([MaybeUninit<f32>; 4 * TILE]);

/// # Safety
/// As [`Kernel`], with a [`Session`] on this thread. Operands are whole in steps, and
/// the left one in rows.
#[target_feature(enable = "avx512f")]
unsafe fn run<const MT: usize, const NT: usize, const PACKED: bool>(call: &Call<i32, f32>) {
    const WIDTH: usize = 2 * SIDE;
    let (a_row, a_step) = if PACKED {
        (64, (MT * TILE * 4) as isize)
    } else {
        (call.a_row, SIDE as isize * call.a_step)
    };
    let whole = call.roomy || (call.rows == MT * SIDE && call.columns == NT * SIDE);
    let as_they_are = whole && call.from.is_null() && call.alpha == 1.0;
    let mut buffer = MaybeUninit::<Buffer>::uninit();
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    let (to, width) = if as_they_are {
        (call.to, call.to_width)
    } else {
        (buffer, WIDTH)
    };
    let work = Work {
        carry: call.carry,
        carry_row: 4 * WIDTH,
        to,
        to_row: 4 * width,
        ahead: call.ahead,
        ahead_step: (SIDE / 2) as isize * call.ahead_step,
        a: call.a.cast(),
        a_row,
        a_step,
        b: call.b.cast(),
        b_row: call.b_step,
        b_step: SIDE as isize * call.b_step,
        steps: call.depth / SIDE,
    };
    // SAFETY: the contract of `Kernel`; the buffer holds all sums.
    unsafe { amx::multiply::<MT, NT>(&work) };
    if as_they_are {
        return;
    }
    let mut masks = [0; NT];
    for (v, mask) in masks.iter_mut().enumerate() {
        let live = call.columns.saturating_sub(v * SIDE).min(SIDE);
        *mask = ((1u32 << live) - 1) as __mmask16;
    }
    let alpha = _mm512_set1_ps(call.alpha);
    for r in 0..call.rows {
        for (v, &mask) in masks.iter().enumerate() {
            let column = v * SIDE;
            // SAFETY: the buffer was filled; masked lanes are neither read nor written, the others
            // are the caller's.
            unsafe {
                let sum = _mm512_load_ps(buffer.add(r * WIDTH + column));
                let mut sum = _mm512_mul_ps(sum, alpha);
                if !call.from.is_null() {
                    let from = call.from.wrapping_add(r * call.from_width + column);
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, from), sum);
                }
                let to = call.to.wrapping_add(r * call.to_width + column);
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}
