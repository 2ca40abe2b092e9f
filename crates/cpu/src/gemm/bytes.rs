//! i8 times i8 with sums in i32: exact modulo 2³², hence the same at every level.
//!
//! * [`Words`] widens to pairs of i16: `vpmaddwd` adds two exact products (each at most 2¹⁴, so
//!   their sum fits), on AVX-512 and AVX2; plain code elsewhere.
//! * `Quads` (AVX-512 VNNI) adds four products at once. `vpdpbusd` multiplies unsigned by signed
//!   bytes, so the left operand is packed with its sign bit turned over, which adds 128 to every
//!   value: Σ (a + 128)·b = Σ a·b + 128·Σ b. The sums of a column begin with −128·Σ b, counted once
//!   per sliver and block rather than once per tile. Steps beyond the end are zeros on the right.
//!
//! A sum of absolute products stays below 2³¹ up to an inner size of 131,071, whatever the values.

use super::engine::Engine;
use super::pack::{Block, Packer, Side};
use super::tile::{self, Kernels};
use super::{KC, Kind};
#[cfg(target_arch = "x86_64")]
use super::{pack512, panel::WIDEST};
use crate::simd::multiversion;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// i8 in pairs of i16.
#[derive(Clone, Copy)]
pub(crate) struct Words;

impl Engine for Words {
    type Session = ();
    fn enter() {}
    type P = i32;
    type S = i32;
    const GROUP: usize = 2;
    // As many bytes as a block of f32.
    const BLOCK: usize = 2 * KC;
    const RATE: f64 = 60.0;

    fn kernels() -> &'static Kernels<i32, i32> {
        tile::word_kernels()
    }
    fn packer(_: Side, kind: Kind, _: isize, _: isize, _: bool) -> Packer<i32> {
        debug_assert!(kind == Kind::I8);
        any::<Pair>
    }
    fn as_it_lies(_: Kind, _: bool) -> bool {
        false
    }
}

/// i8 in quads with AVX-512's byte dot product: only where [`has_quads`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Quads;

#[cfg(target_arch = "x86_64")]
impl Engine for Quads {
    type Session = ();
    fn enter() {}
    type P = i32;
    type S = i32;
    const GROUP: usize = 4;
    const BLOCK: usize = 4 * KC;
    const BASED: bool = true;
    const RATE: f64 = 200.0;

    fn kernels() -> &'static Kernels<i32, i32> {
        &tile::x86::AVX512_QUADS
    }
    fn packer(side: Side, kind: Kind, major: isize, step: isize, _: bool) -> Packer<i32> {
        debug_assert!(kind == Kind::I8);
        if let Some(fast) = pack512::to_quads(side, major, step) {
            return fast;
        }
        match side {
            Side::Left => any::<Quad<true>>,
            Side::Right => any::<Quad<false>>,
        }
    }
    fn as_it_lies(_: Kind, _: bool) -> bool {
        false
    }
    unsafe fn base(
        b: *const i32,
        step: isize,
        depth: usize,
        vectors: usize,
        to: &mut [i32; WIDEST],
    ) {
        // SAFETY: the caller's promise.
        unsafe { less_128(b, step, depth, vectors, to) }
    }
}

/// −128·Σ of each column of a packed right operand.
///
/// # Safety
/// As [`Engine::base`], on a processor with AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn less_128(
    b: *const i32,
    step: isize,
    depth: usize,
    vectors: usize,
    to: &mut [i32; WIDEST],
) {
    use std::arch::x86_64::*;
    const LANES: usize = 16;
    let shift = _mm512_set1_epi8(-128); // 128, as an unsigned byte
    for v in 0..vectors.min(WIDEST / LANES) {
        let mut sum = _mm512_setzero_si512();
        let mut at = b.wrapping_add(v * LANES).cast::<u8>();
        for _ in 0..depth {
            // SAFETY: the caller's promise.
            sum = _mm512_dpbusd_epi32(sum, shift, unsafe { _mm512_loadu_si512(at.cast()) });
            at = at.wrapping_offset(step);
        }
        let less = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
        // SAFETY: `to` has `WIDEST` values.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(v * LANES).cast(), less) };
    }
}

/// Whether the processor multiplies bytes in quads, at the level in use.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_quads() -> bool {
    level() == Level::Avx512 && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Steps of a major, as a unit of the packed form has them.
trait Unit {
    const GROUP: usize;
    /// The unit of the first [`Self::GROUP`] bytes.
    fn of(bytes: [u8; 4]) -> i32;
}

/// Two bytes, widened.
struct Pair;
impl Unit for Pair {
    const GROUP: usize = 2;
    #[inline(always)]
    fn of(bytes: [u8; 4]) -> i32 {
        let wide = |b: u8| i32::from(b.cast_signed());
        wide(bytes[1]) << 16 | wide(bytes[0]) & 0xffff
    }
}

/// Four bytes, with the sign bit turned over if need be.
#[cfg(target_arch = "x86_64")]
struct Quad<const TURNED: bool>;
#[cfg(target_arch = "x86_64")]
impl<const TURNED: bool> Unit for Quad<TURNED> {
    const GROUP: usize = 4;
    #[inline(always)]
    fn of(bytes: [u8; 4]) -> i32 {
        let mask = if TURNED { 0x8080_8080 } else { 0 };
        (u32::from_le_bytes(bytes) ^ mask).cast_signed()
    }
}

multiversion! {
    fn each<U: Unit>(b: &Block<i32>) {
        let units = b.depth.div_ceil(U::GROUP);
        for first in (0..b.majors).step_by(b.height) {
            let (here, height) = b.sliver(first);
            let to = b.sliver_at(first);
            for unit in 0..units {
                let step = unit * U::GROUP;
                let steps = U::GROUP.min(b.depth - step);
                // SAFETY: the contract of `Packer`; steps that do not exist are not read.
                unsafe {
                    let out = std::slice::from_raw_parts_mut(to.add(unit * height), height);
                    if b.major == 1 && steps == U::GROUP {
                        for r in 0..here {
                            let mut bytes = [0; 4];
                            for s in 0..U::GROUP {
                                bytes[s] = *b.at(first, step + s).wrapping_add(r);
                            }
                            out[r] = U::of(bytes);
                        }
                    } else {
                        for r in 0..here {
                            let mut bytes = [0; 4];
                            for s in 0..steps {
                                bytes[s] = *b.at(first + r, step + s);
                            }
                            out[r] = U::of(bytes);
                        }
                    }
                    out[here..].fill(0);
                }
            }
        }
    }
}

/// # Safety
/// As [`Packer`].
unsafe fn any<U: Unit>(b: &Block<i32>) {
    each::<U>(b);
}
