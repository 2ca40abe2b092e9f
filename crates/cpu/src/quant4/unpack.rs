//! From codes to floats: value of the code times the scale of the block.
//!
//! Each value is one f32 product, so every instruction set gives the same bits. Two codes share a
//! byte, the first in its high half.

use super::Code;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// A code's values, alone and in pairs as a byte holds them.
pub(super) struct Table {
    pub values: [f32; 16],
    pairs: Vec<[f32; 2]>,
}

impl Table {
    pub fn of(code: Code) -> &'static Table {
        use std::sync::OnceLock;
        static TABLES: [OnceLock<Table>; 3] = [const { OnceLock::new() }; 3];
        TABLES[code as usize].get_or_init(|| {
            let values = code.values();
            let pairs = (0..256).map(|b| [values[b >> 4], values[b & 15]]).collect();
            Table { values, pairs }
        })
    }

    /// The two values of each byte, times `scale`.
    pub fn unpack(&self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        assert_eq!(out.len(), 2 * bytes.len(), "two numbers in a byte");
        #[cfg(target_arch = "x86_64")]
        match level() {
            // SAFETY: this level is chosen only when the processor has these features; the lengths
            // were compared.
            Level::Avx512 => return unsafe { self.unpack512(bytes, scale, out) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { self.unpack256(bytes, scale, out) },
            Level::Baseline => {}
        }
        self.plain(bytes, scale, out);
    }

    #[inline(always)]
    fn plain(&self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        for (out, &byte) in out.chunks_exact_mut(2).zip(bytes) {
            let [first, second] = self.pairs[usize::from(byte)];
            out[0] = first * scale;
            out[1] = second * scale;
        }
    }

    /// # Safety
    /// The processor has AVX-512 F; `out` is twice as long as `bytes`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn unpack512(&self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        use std::arch::x86_64::*;
        let whole = bytes.len() / 16 * 16;
        // SAFETY: the table has 16 values; reads and writes stay within `whole` bytes and twice as
        // many numbers.
        unsafe {
            let table = _mm512_loadu_ps(self.values.as_ptr());
            let factor = _mm512_set1_ps(scale);
            let half = _mm512_set1_epi32(15);
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high =
                _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            for i in (0..whole).step_by(16) {
                let b = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().add(i).cast()));
                let first = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(b), table);
                let second = _mm512_permutexvar_ps(_mm512_and_epi32(b, half), table);
                let first = _mm512_mul_ps(first, factor);
                let second = _mm512_mul_ps(second, factor);
                let to = out.as_mut_ptr().add(2 * i);
                _mm512_storeu_ps(to, _mm512_permutex2var_ps(first, low, second));
                _mm512_storeu_ps(to.add(16), _mm512_permutex2var_ps(first, high, second));
            }
        }
        self.plain(&bytes[whole..], scale, &mut out[2 * whole..]);
    }

    /// # Safety
    /// The processor has AVX2; `out` is twice as long as `bytes`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn unpack256(&self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        use std::arch::x86_64::*;
        let whole = bytes.len() / 8 * 8;
        // SAFETY: the table has 16 values; reads and writes stay within `whole` bytes and twice as
        // many numbers.
        unsafe {
            let lower = _mm256_loadu_ps(self.values.as_ptr());
            let upper = _mm256_loadu_ps(self.values.as_ptr().add(8));
            let factor = _mm256_set1_ps(scale);
            let half = _mm256_set1_epi32(15);
            // The lookup reads three bits; the fourth chooses the half of the table.
            let look = |index: __m256i| {
                let a = _mm256_permutevar8x32_ps(lower, index);
                let b = _mm256_permutevar8x32_ps(upper, index);
                let choose = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                _mm256_mul_ps(_mm256_blendv_ps(a, b, choose), factor)
            };
            for i in (0..whole).step_by(8) {
                let b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().add(i).cast()));
                let first = look(_mm256_srli_epi32::<4>(b));
                let second = look(_mm256_and_si256(b, half));
                let a = _mm256_unpacklo_ps(first, second);
                let b = _mm256_unpackhi_ps(first, second);
                let to = out.as_mut_ptr().add(2 * i);
                _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
        self.plain(&bytes[whole..], scale, &mut out[2 * whole..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let bytes: Vec<u8> = (0..=255).chain(0..77).collect();
        for code in [Code::Nf4, Code::Fp4, Code::Symmetric] {
            let table = Table::of(code);
            for n in [0, 1, 7, 8, 9, 16, 31, 40, 333] {
                let mut want = vec![0.0; 2 * n];
                table.plain(&bytes[..n], 0.37, &mut want);
                let mut got = vec![0.0; 2 * n];
                table.unpack(&bytes[..n], 0.37, &mut got);
                assert_eq!(got, want);
                #[cfg(target_arch = "x86_64")]
                if crate::simd::available() >= Level::Avx2 {
                    let mut got = vec![0.0; 2 * n];
                    // SAFETY: the processor has AVX2; the lengths fit.
                    unsafe { table.unpack256(&bytes[..n], 0.37, &mut got) };
                    assert_eq!(got, want);
                }
            }
        }
    }
}
