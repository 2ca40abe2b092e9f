//! Packing with AVX2: runs of majors are copied, runs of steps are turned in registers, eight by
//! eight.

use std::arch::x86_64::*;

use super::Kind;
use super::pack::{AHEAD, Block, Packer, TOGETHER};
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
/// Columns of a whole right sliver.
const WIDE: usize = 2 * LANES;

/// Eight elements of a source as f32.
trait Load {
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

struct F32;
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

struct Bf16;
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

struct F16;
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

/// Values of `L` rounded to bf16, to nearest with ties to even, as f32. NaN becomes quiet.
struct Rounded<L>(std::marker::PhantomData<L>);
impl<L: Load> Load for Rounded<L> {
    const BYTES: usize = L::BYTES;
    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { rounded(L::load(at)) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const u8, n: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { rounded(L::load_some(at, n)) }
    }
}

/// What [`Rounded`] does.
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
            let whole = if b.height == WIDE {
                b.majors / WIDE * WIDE
            } else {
                0
            };
            for first in (0..whole).step_by(WIDE * TOGETHER) {
                let slivers = TOGETHER.min((whole - first) / WIDE);
                for p in 0..b.depth {
                    let row = b.at(first, p);
                    let ahead = b.at(first, p + AHEAD);
                    for s in 0..slivers {
                        let at = s * WIDE * bytes;
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(at).cast());
                        let out = b.sliver_at(first + s * WIDE).add(p * WIDE);
                        _mm256_storeu_ps(out, L::load(row.add(at)));
                        _mm256_storeu_ps(out.add(LANES), L::load(row.add(at + LANES * bytes)));
                    }
                }
            }
            for first in (whole..b.majors).step_by(b.height) {
                let (here, height) = b.sliver(first);
                let to = b.sliver_at(first);
                for p in 0..b.depth {
                    let row = b.at(first, p);
                    for v in (0..height).step_by(LANES) {
                        debug_assert!(here > v, "slivers are filled up to a register at most");
                        let at = row.add(v * bytes);
                        let x = if here - v < LANES {
                            L::load_some(at, here - v)
                        } else {
                            L::load(at)
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
        for first in (0..b.majors).step_by(b.height) {
            let (here, height) = b.sliver(first);
            // Else the last group of a step would run over the next step, which is already there.
            debug_assert!(height <= LANES || height.is_multiple_of(LANES));
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
        (true, _, Kind::F32, true) => copy::<Rounded<F32>>,
        (true, _, Kind::Bf16, _) => copy::<Bf16>,
        (true, _, Kind::F16, false) => copy::<F16>,
        (true, _, Kind::F16, true) => copy::<Rounded<F16>>,
        (_, true, Kind::F32, false) => turned::<F32>,
        (_, true, Kind::F32, true) => turned::<Rounded<F32>>,
        (_, true, Kind::Bf16, _) => turned::<Bf16>,
        (_, true, Kind::F16, false) => turned::<F16>,
        (_, true, Kind::F16, true) => turned::<Rounded<F16>>,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::pack::{SLACK, plain_f32};
    use crate::simd::{Level, available};

    /// What nobody packed.
    const UNTOUCHED: u32 = 0x7fc1_2345;

    /// Bits of every sort: subnormals, infinities, NaN, and in f32 many ties between two bf16.
    fn source(kind: Kind, elements: usize) -> Vec<u16> {
        let any = |i: usize| ((i as u32).wrapping_mul(0x9e37_79b9) >> 16) as u16;
        let mut words: Vec<u16> = (0..elements * kind.bytes() / 2).map(any).collect();
        if kind == Kind::F32 {
            // The lower half of a little-endian number comes first.
            words.iter_mut().step_by(6).for_each(|low| *low = 0x8000);
        }
        words
    }

    /// Packs `majors` by `depth` elements and returns the bits of the whole destination.
    fn packed(packer: Packer<f32>, kind: Kind, b: &Block<f32>, source: &[u16]) -> Vec<u32> {
        let rows = b.majors.next_multiple_of(b.align);
        let mut to = vec![f32::from_bits(UNTOUCHED); rows * b.depth + SLACK];
        assert_eq!(source.len() * 2, b.majors * b.depth * kind.bytes());
        let block = Block {
            from: source.as_ptr().cast(),
            to: to.as_mut_ptr(),
            ..*b
        };
        // SAFETY: the source has all majors and steps, the destination room for them and the slack.
        unsafe { packer(&block) };
        to.iter().map(|x| x.to_bits()).collect()
    }

    /// Every kind, direction, height and remainder packs the bits of the plain function, from memory
    /// that ends with the last element; slivers of whole registers leave alone what follows them.
    #[test]
    fn slivers_are_those_of_the_plain_function() {
        if available() < Level::Avx2 {
            return;
        }
        let kinds = [
            (Kind::F32, false),
            (Kind::F32, true),
            (Kind::Bf16, false),
            (Kind::F16, false),
            (Kind::F16, true),
        ];
        let left = (1..=6).map(|height| (height, height, 1));
        let right = (1..=33).chain([83]).map(|majors| (majors, WIDE, LANES));
        for (majors, height, align) in left.chain(right) {
            for depth in (1..=17).chain([33]) {
                for (kind, round) in kinds {
                    let source = source(kind, majors * depth);
                    for (major, step) in [(1, majors), (depth, 1)] {
                        let size = kind.bytes() as isize;
                        let (major, step) = (major as isize, step as isize);
                        let b = Block {
                            from: std::ptr::null(),
                            major: major * size,
                            step: step * size,
                            majors,
                            depth,
                            height,
                            align,
                            to: std::ptr::null_mut(),
                            next: height * depth,
                        };
                        let fast = to_f32(kind, major, step, round).expect("unit steps");
                        let got = packed(fast, kind, &b, &source);
                        let want = packed(plain_f32(kind, round), kind, &b, &source);
                        let case = format!("{kind:?} {round} {b:?}");
                        for first in (0..majors).step_by(height) {
                            let (here, width) = b.sliver(first);
                            for p in 0..depth {
                                let at = first * depth + p * width;
                                assert_eq!(got[at..at + here], want[at..at + here], "{case}");
                            }
                        }
                        if align == LANES {
                            let end = majors.next_multiple_of(align) * depth;
                            assert!(got[end..].iter().all(|&x| x == UNTOUCHED), "{case}");
                        }
                    }
                }
            }
        }
    }
}
