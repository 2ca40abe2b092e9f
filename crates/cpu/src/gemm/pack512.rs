//! Packing with AVX-512: runs of majors are copied, runs of steps are turned in registers, sixteen
//! by sixteen.

use std::arch::x86_64::*;

use super::Kind;
use super::pack::{AHEAD, Block, Packer, Side, TOGETHER};

/// Instructions of [`crate::simd::Level::Avx512`]; a macro because attributes take no constants.
macro_rules! avx512 {
    // SAFETY: what the caller promises; this line only matches the declaration.
    ($(#[$meta:meta])* unsafe fn $($rest:tt)*) => {
        $(#[$meta])*
        /// # Safety
        /// The processor has the features; pointers span all that is read or written.
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn $($rest)*
    };
}

/// Sixteen elements of a source as f32. Masked-out ones are not read and become zero.
pub(super) trait Load {
    const BYTES: usize;
    /// # Safety
    /// Elements of the mask are readable; the caller is compiled for AVX-512.
    unsafe fn load(at: *const u8, mask: u16) -> __m512;
}

pub(super) struct F32;
impl Load for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(at: *const u8, mask: u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask, at.cast()) }
    }
}

pub(super) struct Bf16;
impl Load for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(at: *const u8, mask: u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }
}

pub(super) struct F16;
impl Load for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(at: *const u8, mask: u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())) }
    }
}

/// Values of `L` rounded to bf16, to nearest with ties to even, as f32. NaN becomes quiet.
struct Rounded<L>(std::marker::PhantomData<L>);
impl<L: Load> Load for Rounded<L> {
    const BYTES: usize = L::BYTES;
    #[inline(always)]
    unsafe fn load(at: *const u8, mask: u16) -> __m512 {
        // The instruction for it flushes subnormal numbers, so that levels would differ.
        // SAFETY: the caller's promise.
        unsafe {
            let x = L::load(at, mask);
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let kept = _mm512_mask_mov_epi32(up, nan, quiet);
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(kept, high))
        }
    }
}

/// The lowest `n` bits, at most 16.
#[inline(always)]
pub(super) fn mask16(n: usize) -> u16 {
    if n >= 16 { 0xffff } else { (1 << n) - 1 }
}

avx512! {
    /// Majors that lie side by side.
    ///
    /// # Safety
    /// As [`Packer`].
    unsafe fn copy<L: Load>(b: &Block<f32>) {
        let whole = b.majors / 32 * 32;
        // SAFETY: the contract of `Packer`: what is stored beyond a sliver's height is within the
        // slack or overwritten by the next step.
        unsafe {
            let rest = if b.height == 32 { whole } else { 0 };
            for first in (0..rest).step_by(32 * TOGETHER) {
                let slivers = TOGETHER.min((rest - first) / 32);
                for p in 0..b.depth {
                    let row = b.at(first, p);
                    let ahead = b.at(first, p + AHEAD);
                    for s in 0..slivers {
                        let at = s * 32 * L::BYTES;
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at).cast());
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at + 16 * L::BYTES).cast());
                        let out = b.sliver_at(first + 32 * s).add(p * 32);
                        _mm512_storeu_ps(out, L::load(row.add(at), 0xffff));
                        _mm512_storeu_ps(out.add(16), L::load(row.add(at + 16 * L::BYTES), 0xffff));
                    }
                }
            }
            for first in (rest..b.majors).step_by(b.height) {
                let (here, height) = b.sliver(first);
                let to = b.sliver_at(first);
                for p in 0..b.depth {
                    let row = b.at(first, p);
                    for v in (0..height).step_by(16) {
                        let some = mask16(here.saturating_sub(v));
                        let x = L::load(row.wrapping_add(v * L::BYTES), some);
                        _mm512_storeu_ps(to.add(p * height + v), x);
                    }
                }
            }
        }
    }
}

/// Runs of steps, loaded as sixteen units of 32 bits, and what becomes of a unit of sixteen majors.
pub(super) trait Run {
    type P;
    const BYTES: usize;
    /// Steps in sixteen units.
    const STEPS: usize;
    /// # Safety
    /// The first `live` steps are readable; the caller is compiled for AVX-512.
    unsafe fn load(at: *const u8, live: usize) -> __m512i;
    /// Stores unit `unit` of a run whose first step is number `p` of `depth`.
    ///
    /// # Safety
    /// As [`Packer`]; the caller is compiled for AVX-512.
    unsafe fn store(
        x: __m512i,
        unit: usize,
        p: usize,
        depth: usize,
        height: usize,
        to: *mut Self::P,
    );
}

/// A step per unit.
struct Steps<L>(std::marker::PhantomData<L>);
impl<L: Load> Run for Steps<L> {
    type P = f32;
    const BYTES: usize = L::BYTES;
    const STEPS: usize = 16;
    #[inline(always)]
    unsafe fn load(at: *const u8, live: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castps_si512(L::load(at, mask16(live))) }
    }
    #[inline(always)]
    unsafe fn store(x: __m512i, unit: usize, p: usize, _: usize, height: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add((p + unit) * height).cast(), x) }
    }
}

/// The lowest `n` bits, at most 32.
#[inline(always)]
fn mask32(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}

/// Two bf16 steps per unit, widened after they are turned: half the shuffles.
struct WidenedPairs;
impl Run for WidenedPairs {
    type P = f32;
    const BYTES: usize = 2;
    const STEPS: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8, live: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_epi16(mask32(live), at.cast()) }
    }
    #[inline(always)]
    unsafe fn store(x: __m512i, unit: usize, p: usize, depth: usize, height: usize, to: *mut f32) {
        let step = p + 2 * unit;
        // SAFETY: the caller's promise; the second step is stored where it exists.
        unsafe {
            _mm512_storeu_si512(to.add(step * height).cast(), _mm512_slli_epi32::<16>(x));
            if step + 1 < depth {
                let high = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                _mm512_storeu_si512(to.add((step + 1) * height).cast(), high);
            }
        }
    }
}

/// Two bf16 steps per unit, kept.
pub(super) struct Pairs<L>(std::marker::PhantomData<L>);

/// # Safety
/// The processor has the features; pointers span all that is read or written.
#[inline(always)]
unsafe fn store_pair(x: __m512i, unit: usize, p: usize, height: usize, to: *mut i32) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(to.add((p / 2 + unit) * height).cast(), x) }
}

impl Run for Pairs<Bf16> {
    type P = i32;
    const BYTES: usize = 2;
    const STEPS: usize = 32;
    #[inline(always)]
    unsafe fn load(at: *const u8, live: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_epi16(mask32(live), at.cast()) }
    }
    #[inline(always)]
    unsafe fn store(x: __m512i, unit: usize, p: usize, _: usize, height: usize, to: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { store_pair(x, unit, p, height, to) }
    }
}

/// Rounds 2 × 16 values to bf16; `low` fills the lower half.
///
/// # Safety
/// The processor has the features; pointers span all that is read or written.
#[inline(always)]
unsafe fn narrow(low: __m512, high: __m512) -> __m512i {
    // SAFETY: callers are compiled for AVX-512 BF16; both types are 512 bits without structure.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

macro_rules! rounded_pairs {
    ($L:ty) => {
        impl Run for Pairs<$L> {
            type P = i32;
            const BYTES: usize = <$L>::BYTES;
            const STEPS: usize = 32;
            #[inline(always)]
            unsafe fn load(at: *const u8, live: usize) -> __m512i {
                // SAFETY: the caller's promise.
                unsafe {
                    let low = <$L>::load(at, mask16(live));
                    let rest = at.wrapping_add(16 * <$L>::BYTES);
                    narrow(low, <$L>::load(rest, mask16(live.saturating_sub(16))))
                }
            }
            #[inline(always)]
            unsafe fn store(
                x: __m512i,
                unit: usize,
                p: usize,
                _: usize,
                height: usize,
                to: *mut i32,
            ) {
                // SAFETY: the caller's promise.
                unsafe { store_pair(x, unit, p, height, to) }
            }
        }
    };
}
rounded_pairs!(F32);
rounded_pairs!(F16);

/// The sign bit of every byte, if operands are packed with it turned over (see `super::bytes`).
fn sign_bits<const TURNED: bool>() -> i32 {
    if TURNED {
        0x8080_8080_u32.cast_signed()
    } else {
        0
    }
}

/// Four i8 steps per unit.
struct Quads<const TURNED: bool>;
impl<const TURNED: bool> Run for Quads<TURNED> {
    type P = i32;
    const BYTES: usize = 1;
    const STEPS: usize = 64;
    #[inline(always)]
    unsafe fn load(at: *const u8, live: usize) -> __m512i {
        let mask = if live >= 64 {
            u64::MAX
        } else {
            (1 << live) - 1
        };
        // SAFETY: the caller's promise.
        unsafe {
            let x = _mm512_maskz_loadu_epi8(mask, at.cast());
            _mm512_xor_si512(x, _mm512_set1_epi32(sign_bits::<TURNED>()))
        }
    }
    #[inline(always)]
    unsafe fn store(x: __m512i, unit: usize, p: usize, _: usize, height: usize, to: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add((p / 4 + unit) * height).cast(), x) }
    }
}

avx512! {
    /// i8 majors that lie side by side, four steps made one unit.
    ///
    /// # Safety
    /// As [`Packer`].
    unsafe fn copy_quads<const TURNED: bool>(b: &Block<i32>) {
        // SAFETY: the contract of `Packer`, as in `copy`. Missing steps are read as zeros.
        unsafe {
            let signs = _mm_set1_epi32(sign_bits::<TURNED>());
            for first in (0..b.majors).step_by(TOGETHER * b.height) {
                let end = b.majors.min(first + TOGETHER * b.height);
                for unit in 0..b.depth.div_ceil(4) {
                    let steps = (b.depth - 4 * unit).min(4);
                    for first in (first..end).step_by(b.height) {
                        let (here, height) = b.sliver(first);
                        let to = b.sliver_at(first).add(unit * height);
                        for v in (0..height).step_by(16) {
                            let mut rows = [_mm_setzero_si128(); 4];
                            for s in 0..4 {
                                let live = if s < steps { here.saturating_sub(v) } else { 0 };
                                let at = b.at(first, 4 * unit + s).wrapping_add(v);
                                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_offset(AHEAD as isize * b.step).cast());
                                rows[s] = _mm_maskz_loadu_epi8(mask16(live), at.cast());
                            }
                            let low = [_mm_unpacklo_epi8(rows[0], rows[1]), _mm_unpacklo_epi8(rows[2], rows[3])];
                            let high = [_mm_unpackhi_epi8(rows[0], rows[1]), _mm_unpackhi_epi8(rows[2], rows[3])];
                            let units = [
                                _mm_unpacklo_epi16(low[0], low[1]),
                                _mm_unpackhi_epi16(low[0], low[1]),
                                _mm_unpacklo_epi16(high[0], high[1]),
                                _mm_unpackhi_epi16(high[0], high[1]),
                            ];
                            for q in 0..4 {
                                _mm_storeu_si128(to.add(v + 4 * q).cast(), _mm_xor_si128(units[q], signs));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Rows and columns of 16 × 16 values exchanged.
///
/// # Safety
/// The processor has the features; pointers span all that is read or written.
#[inline(always)]
pub(super) unsafe fn transpose(x: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: callers are compiled for AVX-512.
    unsafe {
        let mut t = x;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        }
        let mut u = t;
        for g in 0..4 {
            u[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
            u[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
            u[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
            u[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
        }
        // Lane l of u[4 g + q] now holds column 4 l + q of rows 4 g .. 4 g + 4.
        for q in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x44>(u[q], u[4 + q]);
            let high = _mm512_shuffle_i32x4::<0xee>(u[q], u[4 + q]);
            let low2 = _mm512_shuffle_i32x4::<0x44>(u[8 + q], u[12 + q]);
            let high2 = _mm512_shuffle_i32x4::<0xee>(u[8 + q], u[12 + q]);
            t[q] = _mm512_shuffle_i32x4::<0x88>(low, low2);
            t[4 + q] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
            t[8 + q] = _mm512_shuffle_i32x4::<0x88>(high, high2);
            t[12 + q] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
        }
        t
    }
}

/// The body of [`turn`] and [`turn_dot`].
///
/// # Safety
/// As [`Packer`]; the caller is compiled for AVX-512.
#[inline(always)]
unsafe fn turn_body<R: Run>(b: &Block<R::P>) {
    for first in (0..b.majors).step_by(b.height) {
        let (here, height) = b.sliver(first);
        for group in (0..height).step_by(16) {
            let mut runs = [b.from; 16];
            for (r, run) in runs.iter_mut().enumerate() {
                *run = b.at(first + (group + r).min(here - 1), 0);
            }
            // SAFETY: the contract of `Packer`: what is stored beyond `height` is within the slack
            // or overwritten by the next unit.
            unsafe { turn_group::<R>(&runs, height, b.depth, b.sliver_at(first).add(group)) };
        }
    }
}

/// Sixteen runs, beginning at `runs`.
///
/// # Safety
/// As [`turn_body`].
#[inline(always)]
unsafe fn turn_group<R: Run>(runs: &[*const u8; 16], height: usize, depth: usize, to: *mut R::P) {
    // SAFETY: the caller's promise.
    unsafe {
        // Loops, not closures: those would be compiled without the instructions.
        let mut x = [_mm512_setzero_si512(); 16];
        let mut p = 0;
        while p + R::STEPS <= depth {
            for r in 0..16 {
                x[r] = R::load(runs[r].wrapping_add(p * R::BYTES), R::STEPS);
            }
            let x = transpose(x);
            for (unit, &x) in x.iter().enumerate() {
                R::store(x, unit, p, depth, height, to);
            }
            p += R::STEPS;
        }
        if p < depth {
            let live = depth - p;
            for r in 0..16 {
                x[r] = R::load(runs[r].wrapping_add(p * R::BYTES), live);
            }
            let x = transpose(x);
            let units = live.div_ceil(R::STEPS / 16);
            for (unit, &x) in x[..units].iter().enumerate() {
                R::store(x, unit, p, depth, height, to);
            }
        }
    }
}

avx512! {
    /// Steps that lie side by side.
    ///
    /// # Safety
    /// As [`Packer`].
    unsafe fn turn<R: Run>(b: &Block<R::P>) {
        // SAFETY: the caller's promise.
        unsafe { turn_body::<R>(b) }
    }
}

/// As [`turn`], with the instruction that rounds.
///
/// # Safety
/// As [`Packer`], on a processor with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn turn_dot<R: Run>(b: &Block<R::P>) {
    // SAFETY: the caller's promise.
    unsafe { turn_body::<R>(b) }
}

/// Sixteen units of two steps, each a run of majors and which of them exist.
///
/// # Safety
/// Elements of the masks are readable; the caller is compiled for AVX-512 BF16.
#[inline(always)]
pub(super) unsafe fn pairs<L: Load>(first: (*const u8, u16), second: (*const u8, u16)) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { crate::simd::turn::pairs(L::load(first.0, first.1), L::load(second.0, second.1)) }
}

/// Majors that lie side by side, two steps made one unit.
///
/// # Safety
/// As [`Packer`], on a processor with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn copy_pairs<L: Load>(b: &Block<i32>) {
    // SAFETY: the contract of `Packer`, as in `copy`. A missing second step is read as zeros.
    unsafe {
        for first in (0..b.majors).step_by(TOGETHER * b.height) {
            let end = b.majors.min(first + TOGETHER * b.height);
            for unit in 0..b.depth.div_ceil(2) {
                for first in (first..end).step_by(b.height) {
                    let (here, height) = b.sliver(first);
                    let second = if 2 * unit + 1 < b.depth { here } else { 0 };
                    let row = b.at(first, 2 * unit);
                    let ahead = b.at(first, 2 * unit + AHEAD);
                    let to = b.sliver_at(first).add(unit * height);
                    for v in (0..height).step_by(16) {
                        let at = v * L::BYTES;
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at).cast());
                        _mm_prefetch::<_MM_HINT_T0>(
                            ahead.wrapping_offset(b.step).wrapping_add(at).cast(),
                        );
                        let next = row.wrapping_offset(b.step).wrapping_add(at);
                        let x = pairs::<L>(
                            (row.wrapping_add(at), mask16(here.saturating_sub(v))),
                            (next, mask16(second.saturating_sub(v))),
                        );
                        _mm512_storeu_si512(to.add(v).cast(), x);
                    }
                }
            }
        }
    }
}

/// The fast function for f32 slivers of a source with unit steps in either direction.
pub(super) fn to_f32(kind: Kind, major: isize, step: isize, round: bool) -> Option<Packer<f32>> {
    Some(match (major == 1, step == 1, kind, round) {
        (true, _, Kind::F32, false) => copy::<F32>,
        (true, _, Kind::F32, true) => copy::<Rounded<F32>>,
        (true, _, Kind::Bf16, _) => copy::<Bf16>,
        (true, _, Kind::F16, false) => copy::<F16>,
        (true, _, Kind::F16, true) => copy::<Rounded<F16>>,
        (_, true, Kind::F32, false) => turn::<Steps<F32>>,
        (_, true, Kind::F32, true) => turn::<Steps<Rounded<F32>>>,
        (_, true, Kind::Bf16, _) => turn::<WidenedPairs>,
        (_, true, Kind::F16, false) => turn::<Steps<F16>>,
        (_, true, Kind::F16, true) => turn::<Steps<Rounded<F16>>>,
        _ => return None,
    })
}

/// The fast function for slivers of bf16 pairs.
pub(super) fn to_pairs(kind: Kind, major: isize, step: isize) -> Option<Packer<i32>> {
    Some(match (major == 1, step == 1, kind) {
        (true, _, Kind::F32) => copy_pairs::<F32>,
        (true, _, Kind::Bf16) => copy_pairs::<Bf16>,
        (true, _, Kind::F16) => copy_pairs::<F16>,
        (_, true, Kind::F32) => turn_dot::<Pairs<F32>>,
        (_, true, Kind::Bf16) => turn_dot::<Pairs<Bf16>>,
        (_, true, Kind::F16) => turn_dot::<Pairs<F16>>,
        _ => return None,
    })
}

/// The fast function for slivers of i8 quads.
pub(super) fn to_quads(side: Side, major: isize, step: isize) -> Option<Packer<i32>> {
    Some(match (major == 1, step == 1, side) {
        (true, _, Side::Left) => copy_quads::<true>,
        (true, _, Side::Right) => copy_quads::<false>,
        (_, true, Side::Left) => turn::<Quads<true>>,
        (_, true, Side::Right) => turn::<Quads<false>>,
        _ => return None,
    })
}
