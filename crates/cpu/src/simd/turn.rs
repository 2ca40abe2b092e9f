//! Transposes of small squares of 32-bit words in registers.

use std::arch::x86_64::*;
use std::mem::transmute;

/// Rounds 2 × 16 values to bf16, the first of both side by side, then the second, and so on. Subnormal
/// values become zeros.
///
/// # Safety
/// The caller is compiled for AVX-512 BW and BF16.
#[inline(always)]
pub(crate) unsafe fn pairs(first: __m512, second: __m512) -> __m512i {
    // Word 2 i is word i of the lower half, word 2 i + 1 word i of the upper one.
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut w = 0;
        while w < 32 {
            order[w] = (w / 2 + 16 * (w % 2)) as u16;
            w += 1;
        }
        order
    };
    // SAFETY: the caller's promise; the cast between registers of one size changes no bit.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
        _mm512_permutexvar_epi16(order, both)
    }
}

/// Writes 16 rows of 16 words, `row` apart, as 16 columns of rows `nr` apart; `PAST` the caches where
/// the result is too large to be found there again (then [`fence`] before another thread reads it).
///
/// # Safety
/// All of them lie inside valid memory; the processor has AVX-512. With `PAST`, each row of 16 words
/// is written to a multiple of 64 bytes.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn sixteen<const PAST: bool>(
    from: *const i32,
    row: usize,
    to: *mut i32,
    nr: usize,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut r = [_mm512_setzero_si512(); 16];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_si512(from.add(i * row).cast());
        }
        // Pairs of rows, then fours, within each quarter of the registers.
        let mut s = r;
        for i in (0..16).step_by(2) {
            s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        for i in (0..16).step_by(4) {
            r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
        }
        // r[4 g + c] holds, in quarter q, column 4 q + c of rows 4 g ..: exchange quarters.
        for c in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x88>(r[c], r[4 + c]);
            let high = _mm512_shuffle_i32x4::<0xdd>(r[c], r[4 + c]);
            let low2 = _mm512_shuffle_i32x4::<0x88>(r[8 + c], r[12 + c]);
            let high2 = _mm512_shuffle_i32x4::<0xdd>(r[8 + c], r[12 + c]);
            s[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
            s[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
            s[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
            s[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
        }
        for (p, s) in s.iter().enumerate() {
            if PAST {
                _mm512_stream_si512(to.add(p * nr).cast(), *s);
            } else {
                _mm512_storeu_si512(to.add(p * nr).cast(), *s);
            }
        }
    }
}

/// Rows and columns of 8 × 8 words exchanged.
///
/// # Safety
/// The caller is compiled for AVX2.
#[inline(always)]
pub(crate) unsafe fn exchanged(mut r: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: by the caller's promise.
    unsafe {
        // Pairs of rows, then fours, within each half of the registers.
        let mut s = r;
        for i in (0..8).step_by(2) {
            s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
            s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        }
        for i in (0..8).step_by(4) {
            r[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
            r[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
            r[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
            r[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
        }
        // r[4 g + c] holds, in half h, column 4 h + c of rows 4 g ..: exchange halves.
        for c in 0..4 {
            s[c] = _mm256_permute2x128_si256::<0x20>(r[c], r[4 + c]);
            s[4 + c] = _mm256_permute2x128_si256::<0x31>(r[c], r[4 + c]);
        }
        s
    }
}

/// Writes 8 rows of 8 words, `row` apart, as 8 columns of rows `nr` apart.
///
/// # Safety
/// All of them lie inside valid memory; the processor has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn eight(from: *const i32, row: usize, to: *mut i32, nr: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut r = [_mm256_setzero_si256(); 8];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm256_loadu_si256(from.add(i * row).cast());
        }
        for (c, &column) in exchanged(r).iter().enumerate() {
            _mm256_storeu_si256(to.add(c * nr).cast(), column);
        }
    }
}

/// [`sixteen`] in registers of eight words.
///
/// # Safety
/// As there, on a processor with AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn sixteen_in_eights<const PAST: bool>(
    from: *const i32,
    row: usize,
    to: *mut i32,
    nr: usize,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        for p in (0..16).step_by(8) {
            // Both halves of a line one after the other, so that it leaves the core whole.
            let halves = [0, 8].map(|i| {
                let mut r = [_mm256_setzero_si256(); 8];
                for (k, r) in r.iter_mut().enumerate() {
                    *r = _mm256_loadu_si256(from.add((i + k) * row + p).cast());
                }
                exchanged(r)
            });
            for k in 0..8 {
                let at = to.add((p + k) * nr);
                for (h, half) in halves.iter().enumerate() {
                    if PAST {
                        _mm256_stream_si256(at.add(8 * h).cast(), half[k]);
                    } else {
                        _mm256_storeu_si256(at.add(8 * h).cast(), half[k]);
                    }
                }
            }
        }
    }
}

/// Orders what [`sixteen`] and [`sixteen_in_eights`] wrote past the caches before what follows.
pub(crate) fn fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::Scratch;
    use crate::simd::{Level, available};

    /// `high` rows of 16 words, `row` apart, whose columns `turn` writes `nr` apart.
    fn check(turn: unsafe fn(*const i32, usize, *mut i32, usize), side: usize) {
        let (row, nr) = (side + 3, side + 16);
        let from: Vec<i32> = (0..(side * row) as i32).collect();
        // Scratch memory begins at a multiple of 64 bytes, as lines past the caches must.
        let nr = nr.next_multiple_of(16);
        let mut to = Scratch::<i32>::new(side * nr);
        to.fill(-1);
        // SAFETY: both hold all rows; the level was asked for.
        unsafe { turn(from.as_ptr(), row, to.as_mut_ptr(), nr) };
        fence();
        for (at, &word) in to.iter().enumerate() {
            let (p, i) = (at / nr, at % nr);
            let expected = if i < side { from[i * row + p] } else { -1 };
            assert_eq!(word, expected, "column {p}, word {i}");
        }
    }

    #[test]
    fn squares_are_turned_and_nothing_else_is_written() {
        if available() >= Level::Avx2 {
            check(eight, 8);
            check(sixteen_in_eights::<false>, 16);
            check(sixteen_in_eights::<true>, 16);
        }
        if available() == Level::Avx512 {
            check(sixteen::<false>, 16);
            check(sixteen::<true>, 16);
        }
    }
}
