//! Packing with AVX2: runs of majors are copied, runs of steps are turned in registers, eight by
//! eight.

use std::arch::x86_64::*;

use super::Kind;
use super::pack::{Block, Packer};
use crate::simd::turn;

/// Instructions of [`crate::simd::Level::Avx2`]; a macro because attributes take no constants.
macro_rules! avx2 {
    // SAFETY: what the caller promises; this line only matches the declaration.
    ($(#[$meta:meta])* unsafe fn $($rest:tt)*) => {
        $(#[$meta])*
        /// # Safety
        /// The processor has the features; pointers span all that is read or written.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $($rest)*
    };
}

/// Values in a register.
const LANES: usize = 8;
/// Slivers that are filled together where majors lie side by side: longer runs of memory are read.
const TOGETHER: usize = 4;
/// Steps that are asked for before they are needed: the hardware does not foresee long strides.
const AHEAD: usize = 6;

/// Eight elements of a source as f32.
pub(super) trait Load {
    const BYTES: usize;
    /// # Safety
    /// Eight elements are readable; the caller is compiled for AVX2.
    unsafe fn load(at: *const u8) -> __m256;
    /// The first `n` of fewer than eight and at least one; the others have any value.
    ///
    /// # Safety
    /// They are readable; the caller is compiled for AVX2.
    unsafe fn load_some(at: *const u8, n: usize) -> __m256;
}

/// The first `n` of fewer than eight 16-bit elements, at least one, from no memory but theirs.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn some_words(at: *const u8, n: usize) -> __m128i {
    // Two reads that overlap: where they do, both say the same.
    // SAFETY: the caller's promise; casts between integers and registers change no bit.
    unsafe {
        let (low, high, by) = if n >= 4 {
            let low = at.cast::<u64>().read_unaligned();
            let high = at.add(2 * (n - 4)).cast::<u64>().read_unaligned();
            (low, high, n - 4)
        } else if n >= 2 {
            let low = at.cast::<u32>().read_unaligned();
            let high = at.add(2 * (n - 2)).cast::<u32>().read_unaligned();
            (u64::from(low), u64::from(high), n - 2)
        } else {
            (u64::from(at.cast::<u16>().read_unaligned()), 0, 0)
        };
        let all = u128::from(low) | u128::from(high) << (16 * by);
        _mm_set_epi64x((all >> 64) as i64, all as i64)
    }
}

pub(super) struct F32;
impl Load for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const u8, n: usize) -> __m256 {
        // SAFETY: the caller's promise; lanes without the sign bit are not read.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let live = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes);
            _mm256_maskload_ps(at.cast(), live)
        }
    }
}

/// Words of bf16 as f32.
///
/// # Safety
/// The caller is compiled for AVX2.
#[inline(always)]
unsafe fn widened(x: __m128i) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))) }
}

pub(super) struct Bf16;
impl Load for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { widened(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const u8, n: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { widened(some_words(at, n)) }
    }
}

pub(super) struct F16;
impl Load for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const u8, n: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(some_words(at, n)) }
    }
}

/// Rounded to bf16, to nearest with ties to even, as f32. NaN becomes quiet.
///
/// # Safety
/// The caller is compiled for AVX2.
#[inline(always)]
unsafe fn rounded(x: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        _mm256_and_ps(kept, _mm256_castsi256_ps(high))
    }
}

macro_rules! rounded {
    ($name:ident, $L:ty) => {
        pub(super) struct $name;
        impl Load for $name {
            const BYTES: usize = <$L>::BYTES;
            #[inline(always)]
            unsafe fn load(at: *const u8) -> __m256 {
                // SAFETY: the caller's promise.
                unsafe { rounded(<$L>::load(at)) }
            }
            #[inline(always)]
            unsafe fn load_some(at: *const u8, n: usize) -> __m256 {
                // SAFETY: the caller's promise.
                unsafe { rounded(<$L>::load_some(at, n)) }
            }
        }
    };
}
rounded!(RoundedF32, F32);
rounded!(RoundedF16, F16);

avx2! {
    /// Majors that lie side by side.
    ///
    /// # Safety
    /// As [`Packer`].
    unsafe fn copy<L: Load>(b: &Block<f32>) {
        let bytes = L::BYTES;
        // SAFETY: the contract of `Packer`: what is stored beyond a sliver's height is within the
        // slack or overwritten by the next step.
        unsafe {
            let whole = b.majors / b.height * b.height;
            let rest = if b.height == 2 * LANES { whole } else { 0 };
            for first in (0..rest).step_by(2 * LANES * TOGETHER) {
                let slivers = TOGETHER.min((rest - first) / (2 * LANES));
                for p in 0..b.depth {
                    let row = b.at(first, p);
                    let ahead = b.at(first, p + AHEAD);
                    for s in 0..slivers {
                        let at = s * 2 * LANES * bytes;
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at).cast());
                        let out = b.sliver_at(first + 2 * LANES * s).add(p * 2 * LANES);
                        _mm256_storeu_ps(out, L::load(row.add(at)));
                        _mm256_storeu_ps(out.add(LANES), L::load(row.add(at + LANES * bytes)));
                    }
                }
            }
            for first in (rest..b.majors).step_by(b.height) {
                let (here, height) = b.sliver(first);
                let to = b.sliver_at(first);
                for p in 0..b.depth {
                    let row = b.at(first, p);
                    for v in (0..height).step_by(LANES) {
                        let live = here.saturating_sub(v);
                        let at = row.wrapping_add(v * bytes);
                        let x = match live {
                            0 => _mm256_setzero_ps(),
                            1..LANES => L::load_some(at, live),
                            _ => L::load(at),
                        };
                        _mm256_storeu_ps(to.add(p * height + v), x);
                    }
                }
            }
        }
    }
}

avx2! {
    /// Steps that lie side by side.
    ///
    /// # Safety
    /// As [`Packer`].
    unsafe fn turned<L: Load>(b: &Block<f32>) {
        let bytes = L::BYTES;
        // A part of a register in the middle of a step would run over the next step.
        debug_assert!(b.height <= LANES || b.height.is_multiple_of(LANES));
        for first in (0..b.majors).step_by(b.height) {
            let (here, height) = b.sliver(first);
            for group in (0..height).step_by(LANES) {
                let mut runs = [b.from; LANES];
                for (r, run) in runs.iter_mut().enumerate() {
                    *run = b.at(first + (group + r).min(here - 1), 0);
                }
                // SAFETY: the contract of `Packer`, as in `copy`.
                unsafe {
                    let to = b.sliver_at(first).add(group);
                    let mut x = [_mm256_setzero_si256(); LANES];
                    let mut p = 0;
                    while p + LANES <= b.depth {
                        for r in 0..LANES {
                            x[r] = _mm256_castps_si256(L::load(runs[r].wrapping_add(p * bytes)));
                        }
                        let x = turn::exchanged(x);
                        for (step, &x) in x.iter().enumerate() {
                            _mm256_storeu_si256(to.add((p + step) * height).cast(), x);
                        }
                        p += LANES;
                    }
                    if p < b.depth {
                        for r in 0..LANES {
                            let some = L::load_some(runs[r].wrapping_add(p * bytes), b.depth - p);
                            x[r] = _mm256_castps_si256(some);
                        }
                        let x = turn::exchanged(x);
                        for (step, &x) in x[..b.depth - p].iter().enumerate() {
                            _mm256_storeu_si256(to.add((p + step) * height).cast(), x);
                        }
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
        (true, _, Kind::F32, true) => copy::<RoundedF32>,
        (true, _, Kind::Bf16, _) => copy::<Bf16>,
        (true, _, Kind::F16, false) => copy::<F16>,
        (true, _, Kind::F16, true) => copy::<RoundedF16>,
        (_, true, Kind::F32, false) => turned::<F32>,
        (_, true, Kind::F32, true) => turned::<RoundedF32>,
        (_, true, Kind::Bf16, _) => turned::<Bf16>,
        (_, true, Kind::F16, false) => turned::<F16>,
        (_, true, Kind::F16, true) => turned::<RoundedF16>,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::pack::{SLACK, plain_f32};
    use crate::simd::{Level, available};

    /// Every kind, direction, height and remainder packs the bits of the plain function, from
    /// memory that ends with the last element.
    #[test]
    fn slivers_are_those_of_the_plain_function() {
        if available() < Level::Avx2 {
            return;
        }
        // Subnormals, infinities, ties and numbers of every size, but no NaN, whose payload may differ.
        let words = |n: usize| -> Vec<u16> {
            let any = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9).rotate_left(15) as u16;
            let number = |w: u16| if w & 0x7c00 == 0x7c00 { w & 0xfc00 } else { w };
            (0..n).map(|i| number(any(i))).collect()
        };
        let kinds = [
            (Kind::F32, false),
            (Kind::F32, true),
            (Kind::Bf16, false),
            (Kind::F16, false),
            (Kind::F16, true),
        ];
        for (kind, round) in kinds {
            for (height, align) in [(16, 8), (6, 1), (5, 1), (1, 1)] {
                for (majors, depth) in [(1, 1), (5, 7), (6, 8), (16, 9), (23, 17), (83, 33)] {
                    let majors = if align == 1 {
                        height.min(majors)
                    } else {
                        majors
                    };
                    for side_by_side in [true, false] {
                        let size = kind.bytes();
                        let source = words(majors * depth * size / 2);
                        let (major, step) = if side_by_side {
                            (1, majors)
                        } else {
                            (depth, 1)
                        };
                        let rows = majors.next_multiple_of(align);
                        let mut packs = [vec![0f32; rows * depth + SLACK], Vec::new()];
                        packs[1] = packs[0].clone();
                        let (major, step) = (major as isize, step as isize);
                        let fast = to_f32(kind, major, step, round).expect("unit steps");
                        for (to, packer) in packs.iter_mut().zip([fast, plain_f32(kind, round)]) {
                            // SAFETY: the source has all majors and steps, the destination has room.
                            unsafe {
                                packer(&Block {
                                    from: source.as_ptr().cast(),
                                    major: major * size as isize,
                                    step: step * size as isize,
                                    majors,
                                    depth,
                                    height,
                                    align,
                                    to: to.as_mut_ptr(),
                                    next: height * depth,
                                });
                            }
                        }
                        for first in (0..majors).step_by(height) {
                            let here = height.min(majors - first);
                            let width = here.next_multiple_of(align);
                            for p in 0..depth {
                                let at = first * depth + p * width;
                                let [got, want] = packs
                                    .each_ref()
                                    .map(|to| to[at..at + here].iter().map(|x| x.to_bits()));
                                assert!(
                                    got.eq(want),
                                    "{kind:?} {round} {height} {majors} {depth} {side_by_side}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
