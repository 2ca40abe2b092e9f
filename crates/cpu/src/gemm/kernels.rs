//! Microkernels: `mr × nr` outputs in registers, one fused multiply-add per element and step.

use std::ops::{Add, Mul};

use entrenar_base::Float;

use super::{KC, Operand};
use crate::simd::{Level, fused, level, multiversion};

/// Elements of the largest tile.
pub(super) const LARGEST: usize = 12 * 32;

/// `c[mr, nr] (+)= alpha · sliver a · sliver b` over `depth` steps; rows of `c` are `width` apart.
pub(crate) type Kernel<T> =
    unsafe fn(depth: usize, alpha: T, a: *const T, b: *const T, c: *mut T, width: usize, add: bool);

/// A kernel and its shape.
pub(crate) struct Tile<T> {
    pub mr: usize,
    pub nr: usize,
    pub kernel: Kernel<T>,
}

/// The two types with microkernels.
pub(crate) trait GemmFloat: Float + Add<Output = Self> + Mul<Output = Self> {
    /// The kernel for the level in use.
    #[doc(hidden)]
    fn tile() -> Tile<Self>
    where
        Self: Sized;

    /// `self · y + sum`, rounded once.
    fn fused(self, y: Self, sum: Self) -> Self;

    /// The product without packing, in the same order of sums.
    ///
    /// # Safety
    /// As [`super::gemm`].
    unsafe fn unpacked(
        sizes: (usize, usize, usize),
        alpha: Self,
        a: Operand<Self>,
        b: Operand<Self>,
        c: *mut Self,
        width: usize,
        accumulate: bool,
    );
}

macro_rules! x86_kernel {
    ($name:ident, $T:ty, $features:literal, $mr:literal, $vectors:literal, $lanes:literal,
     $zero:ident, $load:ident, $splat:ident, $fma:ident, $mul:ident, $add:ident, $store:ident) => {
        /// # Safety
        /// As [`Kernel`], on a processor with these features.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name(
            depth: usize,
            alpha: $T,
            mut a: *const $T,
            mut b: *const $T,
            c: *mut $T,
            width: usize,
            add: bool,
        ) {
            use std::arch::x86_64::*;
            // SAFETY: slivers hold `depth` steps of `mr` and `nr` elements and the output tile is
            // ours, by the contract of `multiply`.
            unsafe {
                let mut sums = [[$zero(); $vectors]; $mr];
                for _ in 0..depth {
                    let mut right = [$zero(); $vectors];
                    for v in 0..$vectors {
                        right[v] = $load(b.add(v * $lanes));
                    }
                    for r in 0..$mr {
                        let left = $splat(*a.add(r));
                        for v in 0..$vectors {
                            sums[r][v] = $fma(left, right[v], sums[r][v]);
                        }
                    }
                    a = a.add($mr);
                    b = b.add($vectors * $lanes);
                }
                let scale = $splat(alpha);
                for r in 0..$mr {
                    for v in 0..$vectors {
                        let to = c.add(r * width + v * $lanes);
                        let value = $mul(sums[r][v], scale);
                        $store(to, if add { $add($load(to), value) } else { value });
                    }
                }
            }
        }
    };
}

x86_kernel!(
    avx512_f32,
    f32,
    "avx512f",
    12,
    2,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);
x86_kernel!(
    avx512_f64,
    f64,
    "avx512f",
    12,
    2,
    8,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_mul_pd,
    _mm512_add_pd,
    _mm512_storeu_pd
);
x86_kernel!(
    avx2_f32,
    f32,
    "avx2,fma",
    6,
    2,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_mul_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);
x86_kernel!(
    avx2_f64,
    f64,
    "avx2,fma",
    6,
    2,
    4,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_mul_pd,
    _mm256_add_pd,
    _mm256_storeu_pd
);

/// A step of a sum: fused where the instruction set has it, so that every path on one level
/// rounds alike.
#[inline(always)]
fn step<T: GemmFloat, const FUSED: bool>(x: T, y: T, sum: T) -> T {
    if FUSED { x.fused(y, sum) } else { x * y + sum }
}

/// The kernel for every other instruction set: plain code.
///
/// # Safety
/// As [`Kernel`].
unsafe fn portable<T: GemmFloat, const FUSED: bool>(
    depth: usize,
    alpha: T,
    a: *const T,
    b: *const T,
    c: *mut T,
    width: usize,
    add: bool,
) {
    let mut sums = [[T::ZERO; 8]; 4];
    // SAFETY: slivers hold `depth` steps of 4 and 8 elements and the output tile is ours.
    unsafe {
        for p in 0..depth {
            let right = std::slice::from_raw_parts(b.add(p * 8), 8);
            for (r, row) in sums.iter_mut().enumerate() {
                let left = *a.add(p * 4 + r);
                for (sum, &y) in row.iter_mut().zip(right) {
                    *sum = step::<T, FUSED>(left, y, *sum);
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (s, &sum) in row.iter().enumerate() {
                let to = c.add(r * width + s);
                let value = sum * alpha;
                *to = if add { *to + value } else { value };
            }
        }
    }
}

/// Columns summed together by [`GemmFloat::unpacked`].
const STRIP: usize = 32;

macro_rules! gemm_float {
    ($T:ty, $unpacked:ident, $avx512:ident, $avx2:ident, $nr512:literal, $nr2:literal) => {
        multiversion! {
            fn $unpacked(
                sizes: (usize, usize, usize),
                alpha: $T,
                a: Operand<$T>,
                b: Operand<$T>,
                c: *mut $T,
                width: usize,
                accumulate: bool
            ) {
                let fused = fused();
                let (m, n, k) = sizes;
                for i in 0..m {
                    for j in (0..n).step_by(STRIP) {
                        let wide = (n - j).min(STRIP);
                        let mut inner = 0;
                        loop {
                            let depth = (k - inner).min(KC);
                            let mut sums = [0.0 as $T; STRIP];
                            for p in inner..inner + depth {
                                // SAFETY: the caller of `unpacked` promised that all elements of
                                // the operands are readable.
                                unsafe {
                                    let left = *a.at(i, p);
                                    if b.column == 1 {
                                        let right = std::slice::from_raw_parts(b.at(p, j), wide);
                                        for (sum, &y) in sums.iter_mut().zip(right) {
                                            *sum = if fused { left.mul_add(y, *sum) } else { left * y + *sum };
                                        }
                                    } else {
                                        for (s, sum) in sums[..wide].iter_mut().enumerate() {
                                            let y = *b.at(p, j + s);
                                            *sum = if fused { left.mul_add(y, *sum) } else { left * y + *sum };
                                        }
                                    }
                                }
                            }
                            for (s, &sum) in sums[..wide].iter().enumerate() {
                                // SAFETY: the output is exclusively ours.
                                unsafe {
                                    let to = c.add(i * width + j + s);
                                    let value = sum * alpha;
                                    *to = if accumulate || inner > 0 { *to + value } else { value };
                                }
                            }
                            inner += depth;
                            if inner >= k {
                                break;
                            }
                        }
                    }
                }
            }
        }

        impl GemmFloat for $T {
            fn tile() -> Tile<$T> {
                #[cfg(target_arch = "x86_64")]
                match level() {
                    Level::Avx512 => return Tile { mr: 12, nr: $nr512, kernel: $avx512 },
                    Level::Avx2 => return Tile { mr: 6, nr: $nr2, kernel: $avx2 },
                    Level::Baseline => {}
                }
                let kernel = if fused() { portable::<$T, true> } else { portable::<$T, false> };
                Tile { mr: 4, nr: 8, kernel }
            }

            #[inline(always)]
            fn fused(self, y: $T, sum: $T) -> $T {
                self.mul_add(y, sum)
            }

            unsafe fn unpacked(
                sizes: (usize, usize, usize),
                alpha: $T,
                a: Operand<$T>,
                b: Operand<$T>,
                c: *mut $T,
                width: usize,
                accumulate: bool,
            ) {
                $unpacked(sizes, alpha, a, b, c, width, accumulate);
            }
        }
    };
}
gemm_float!(f32, unpacked_f32, avx512_f32, avx2_f32, 32, 16);
gemm_float!(f64, unpacked_f64, avx512_f64, avx2_f64, 16, 8);
