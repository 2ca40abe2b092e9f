//! Microkernels: a tile of sums in registers, one multiply-add per element and step.
//!
//! A kernel exists for every tile height up to `mr` and one or two vectors of columns, so that the
//! edges of a matrix need no copies and no wasted rows. Each comes in two forms: `a` packed (a step
//! is one run of values), or read where it lies.
//!
//! The body is written once, in a macro over a module of vector operations; `super::engine` says
//! which kernels multiply what.

use std::marker::PhantomData;

use super::engine::GemmFloat;
use crate::simd::{Level, fused, level};

/// One call of a kernel: `to = from + alpha · (carry + a·b)` over `depth` steps, each sum in ascending
/// order from `carry`, which is zero but for engines that carry sums; `from` may be null for zeros.
pub(crate) struct Call<P, S> {
    /// Steps: units of `P`, each of which may hold several elements of the inner dimension.
    pub depth: usize,
    pub alpha: S,
    pub a: *const P,
    /// Bytes from row to row and from step to step of `a`; not used when it is packed.
    pub a_row: isize,
    pub a_step: isize,
    pub b: *const P,
    /// Bytes from step to step of `b`.
    pub b_step: isize,
    /// The row that sums begin with, in whole vectors, for engines that ask for one: added to
    /// `a·b` of every row.
    pub base: *const S,
    /// The sums of the blocks before, for engines that go on with them: a tile in rows of the
    /// widest kernel. Null in the first block.
    pub carry: *const S,
    pub from: *const S,
    pub from_width: usize,
    pub to: *mut S,
    pub to_width: usize,
    /// Whether `to` has room for a whole tile.
    pub roomy: bool,
    /// Memory that later calls read: one address is asked for per step, these bytes apart.
    pub ahead: *const u8,
    pub ahead_step: isize,
    /// Rows and columns that `from` and `to` have; `b` always has whole vectors.
    pub rows: usize,
    pub columns: usize,
}

/// # Safety
/// All elements that the call describes are readable (`a`, `b`, `from`, `carry`) or exclusively ours
/// (`to`, a whole tile where `roomy`; `from` and `carry` may be the same place), on a processor that has the kernel's instructions.
pub(crate) type Kernel<P, S> = unsafe fn(call: &Call<P, S>);

/// Kernels by (rows - 1, vectors - 1, a is packed).
pub(crate) type Table<P, S> = [[[Kernel<P, S>; 2]; 2]];

/// The kernels of one instruction set.
pub(crate) struct Kernels<P: 'static, S: 'static> {
    /// Columns per vector.
    pub lanes: usize,
    pub table: &'static Table<P, S>,
}

impl<P, S> Kernels<P, S> {
    /// Rows of the highest tile.
    pub fn rows(&self) -> usize {
        self.table.len()
    }

    /// Columns of the widest tile.
    pub fn columns(&self) -> usize {
        2 * self.lanes
    }

    pub fn get(&self, rows: usize, vectors: usize, packed: bool) -> Kernel<P, S> {
        self.table[rows - 1][vectors - 1][usize::from(packed)]
    }
}

/// The table of a function, or of a type's `run`, that is generic over (rows, vectors, packed).
macro_rules! table {
    (type $Kernel:ty, $($rows:literal)+) => {
        &[$([
            [<$Kernel>::run::<$rows, 1, false>, <$Kernel>::run::<$rows, 1, true>],
            [<$Kernel>::run::<$rows, 2, false>, <$Kernel>::run::<$rows, 2, true>],
        ]),+]
    };
    // Of engines that read nothing in place.
    (packed $kernel:ident, $($rows:literal)+) => {
        &[$([[$kernel::<$rows, 1, true>; 2], [$kernel::<$rows, 2, true>; 2]]),+]
    };
    ($kernel:ident, $($rows:literal)+) => {
        &[$([
            [$kernel::<$rows, 1, false>, $kernel::<$rows, 1, true>],
            [$kernel::<$rows, 2, false>, $kernel::<$rows, 2, true>],
        ]),+]
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

    use super::{Call, Kernels};

    /// A kernel from the module `$ops` of vector operations.
    macro_rules! kernel {
        ($name:ident, $ops:ident, $P:ty, $S:ty, $features:literal) => {
            kernel!($name, $ops, $P, $S, $features, false);
        };
        ($name:ident, $ops:ident, $P:ty, $S:ty, $features:literal, $based:literal) => {
            /// # Safety
            /// As [`super::Kernel`].
            #[target_feature(enable = $features)]
            unsafe fn $name<const MR: usize, const NV: usize, const PACKED: bool>(
                call: &Call<$P, $S>,
            ) {
                const LANES: usize = $ops::LANES;
                let size = size_of::<$P>();
                let row = call.a_row;
                let step = if PACKED {
                    (MR * size) as isize
                } else {
                    call.a_step
                };
                // Three rows share a base, so that few registers address all of them.
                let base = call.a.cast::<u8>();
                let mut a: [*const u8; 4] =
                    std::array::from_fn(|q| base.wrapping_offset(3 * q as isize * row));
                let mut b = call.b.cast::<u8>();
                let mut ahead = call.ahead;
                // SAFETY: the contract of `Kernel`; pointers one step past the end are not read.
                unsafe {
                    let mut start = [$ops::zero(); NV];
                    if $based {
                        for v in 0..NV {
                            start[v] = $ops::load_some(call.base.add(v * LANES), LANES);
                        }
                    }
                    let mut sums = [start; MR];
                    for _ in 0..call.depth {
                        let mut right = [$ops::zero(); NV];
                        for v in 0..NV {
                            right[v] = $ops::load(b.add(v * LANES * size).cast());
                        }
                        for r in 0..MR {
                            let at = if PACKED {
                                a[0].add(r * size)
                            } else {
                                a[r / 3].wrapping_offset((r % 3) as isize * row)
                            };
                            let left = $ops::splat(at.cast());
                            for v in 0..NV {
                                sums[r][v] = $ops::multiply_add(left, right[v], sums[r][v]);
                            }
                        }
                        // Harmless wherever it points.
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                        for v in 0..NV {
                            let next = b.wrapping_offset(8 * call.b_step);
                            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(v * 64).cast());
                        }
                        ahead = ahead.wrapping_offset(call.ahead_step);
                        for q in 0..if PACKED { 1 } else { MR.div_ceil(3) } {
                            a[q] = a[q].wrapping_offset(step);
                        }
                        b = b.wrapping_offset(call.b_step);
                    }
                    let mut live = [0; NV];
                    for v in 0..NV {
                        live[v] = call.columns.saturating_sub(v * LANES).min(LANES);
                    }
                    for r in 0..MR {
                        for v in 0..NV {
                            let mut sum = $ops::scale(sums[r][v], call.alpha);
                            if !call.from.is_null() {
                                let from = call.from.wrapping_add(r * call.from_width + v * LANES);
                                sum = $ops::add($ops::load_some(from, live[v]), sum);
                            }
                            let to = call.to.wrapping_add(r * call.to_width + v * LANES);
                            $ops::store_some(to, sum, live[v]);
                        }
                    }
                }
            }
        };
    }

    /// Vector operations on `$lanes` values of `$S`; the last vector of a row may be partial.
    macro_rules! ops512 {
        ($module:ident, $P:ty, $S:ty, $V:ty, $Mask:ty, $lanes:literal, $zero:ident, $load:expr,
         $splat:expr, $multiply_add:expr, $scale:expr, $add:ident, $load_some:ident,
         $store_some:ident) => {
            /// Every function is compiled into a kernel, whose caller promises the instructions.
            mod $module {
                use std::arch::x86_64::*;
                pub const LANES: usize = $lanes;

                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn zero() -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $zero() }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn load(at: *const $P) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $load(at) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn splat(at: *const $P) -> $V {
                    // SAFETY: the kernel's contract. Operands read in place may be unaligned.
                    unsafe { $splat(at.read_unaligned()) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn multiply_add(a: $V, b: $V, sum: $V) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $multiply_add(a, b, sum) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn scale(x: $V, factor: $S) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $scale(x, factor) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn add(x: $V, y: $V) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $add(x, y) }
                }
                #[inline(always)]
                fn mask(n: usize) -> $Mask {
                    ((1u32 << n) - 1) as $Mask
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn load_some(at: *const $S, n: usize) -> $V {
                    // SAFETY: the kernel's contract; masked lanes are not read.
                    unsafe { $load_some(mask(n), at) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn store_some(at: *mut $S, x: $V, n: usize) {
                    // SAFETY: the kernel's contract; masked lanes are not written.
                    unsafe { $store_some(at, mask(n), x) }
                }
            }
        };
    }

    ops512!(
        f32x16,
        f32,
        f32,
        __m512,
        __mmask16,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        |x, factor| _mm512_mul_ps(x, _mm512_set1_ps(factor)),
        _mm512_add_ps,
        _mm512_maskz_loadu_ps,
        _mm512_mask_storeu_ps
    );
    ops512!(
        f64x8,
        f64,
        f64,
        __m512d,
        __mmask8,
        8,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_set1_pd,
        _mm512_fmadd_pd,
        |x, factor| _mm512_mul_pd(x, _mm512_set1_pd(factor)),
        _mm512_add_pd,
        _mm512_maskz_loadu_pd,
        _mm512_mask_storeu_pd
    );
    ops512!(
        pairs16,
        i32,
        f32,
        __m512,
        __mmask16,
        16,
        _mm512_setzero_ps,
        |at: *const i32| _mm512_loadu_ps(at.cast()),
        |pair: i32| _mm512_set1_ps(f32::from_bits(pair as u32)),
        |a: __m512, b: __m512, sum| _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512, __m512bh>(a),
            std::mem::transmute::<__m512, __m512bh>(b)
        ),
        |x, factor| _mm512_mul_ps(x, _mm512_set1_ps(factor)),
        _mm512_add_ps,
        _mm512_maskz_loadu_ps,
        _mm512_mask_storeu_ps
    );

    ops512!(
        words16,
        i32,
        i32,
        __m512i,
        __mmask16,
        16,
        _mm512_setzero_si512,
        |at: *const i32| _mm512_loadu_si512(at.cast()),
        _mm512_set1_epi32,
        |a: __m512i, b: __m512i, sum| _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)),
        |x, factor| _mm512_mullo_epi32(x, _mm512_set1_epi32(factor)),
        _mm512_add_epi32,
        _mm512_maskz_loadu_epi32,
        _mm512_mask_storeu_epi32
    );
    ops512!(
        quads16,
        i32,
        i32,
        __m512i,
        __mmask16,
        16,
        _mm512_setzero_si512,
        |at: *const i32| _mm512_loadu_si512(at.cast()),
        _mm512_set1_epi32,
        |a: __m512i, b: __m512i, sum| _mm512_dpbusd_epi32(sum, a, b),
        |x, factor| _mm512_mullo_epi32(x, _mm512_set1_epi32(factor)),
        _mm512_add_epi32,
        _mm512_maskz_loadu_epi32,
        _mm512_mask_storeu_epi32
    );

    macro_rules! ops256 {
        ($module:ident, $T:ty, $V:ty, $lanes:literal, $zero:ident, $load:ident, $splat:ident,
         $multiply_add:expr, $multiply:ident, $add:ident, $store:ident) => {
            /// Every function is compiled into a kernel, whose caller promises the instructions.
            mod $module {
                use std::arch::x86_64::*;
                pub const LANES: usize = $lanes;

                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn zero() -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $zero() }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn load(at: *const $T) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $load(at.cast()) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn splat(at: *const $T) -> $V {
                    // SAFETY: the kernel's contract. Operands read in place may be unaligned.
                    unsafe { $splat(at.read_unaligned()) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn multiply_add(a: $V, b: $V, sum: $V) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $multiply_add(a, b, sum) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn scale(x: $V, factor: $T) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $multiply(x, $splat(factor)) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn add(x: $V, y: $V) -> $V {
                    // SAFETY: the kernel's contract.
                    unsafe { $add(x, y) }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn load_some(at: *const $T, n: usize) -> $V {
                    if n == LANES {
                        // SAFETY: the kernel's contract: `n` elements are readable.
                        return unsafe { $load(at.cast()) };
                    }
                    let mut all = [<$T>::default(); LANES];
                    // SAFETY: as above.
                    unsafe {
                        part(at, all.as_mut_ptr(), n);
                        $load(all.as_ptr().cast())
                    }
                }
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(always)]
                pub unsafe fn store_some(at: *mut $T, x: $V, n: usize) {
                    if n == LANES {
                        // SAFETY: the kernel's contract: `n` elements are ours.
                        return unsafe { $store(at.cast(), x) };
                    }
                    let mut all = [<$T>::default(); LANES];
                    // SAFETY: as above.
                    unsafe {
                        $store(all.as_mut_ptr().cast(), x);
                        part(all.as_ptr(), at, n);
                    }
                }
                /// Masked stores are slow on many processors without AVX-512.
                ///
                /// # Safety
                /// The processor has the features; pointers span all that is read or written.
                #[inline(never)]
                unsafe fn part(from: *const $T, to: *mut $T, n: usize) {
                    for i in 0..n {
                        // SAFETY: `n` elements on both sides, by the callers above.
                        unsafe { *to.add(i) = *from.add(i) };
                    }
                }
            }
        };
    }

    ops256!(
        f32x8,
        f32,
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_mul_ps,
        _mm256_add_ps,
        _mm256_storeu_ps
    );
    ops256!(
        f64x4,
        f64,
        __m256d,
        4,
        _mm256_setzero_pd,
        _mm256_loadu_pd,
        _mm256_set1_pd,
        _mm256_fmadd_pd,
        _mm256_mul_pd,
        _mm256_add_pd,
        _mm256_storeu_pd
    );

    ops256!(
        words8,
        i32,
        __m256i,
        8,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_set1_epi32,
        |a: __m256i, b: __m256i, sum| _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)),
        _mm256_mullo_epi32,
        _mm256_add_epi32,
        _mm256_storeu_si256
    );

    kernel!(avx512_f32, f32x16, f32, f32, "avx512f");
    kernel!(avx512_f64, f64x8, f64, f64, "avx512f");
    kernel!(avx512_pairs, pairs16, i32, f32, "avx512f,avx512bf16");
    kernel!(avx2_f32, f32x8, f32, f32, "avx2,fma");
    kernel!(avx2_f64, f64x4, f64, f64, "avx2,fma");
    kernel!(avx512_words, words16, i32, i32, "avx512f,avx512bw");
    kernel!(avx512_quads, quads16, i32, i32, "avx512f,avx512vnni", true);
    kernel!(avx2_words, words8, i32, i32, "avx2");

    pub static AVX512_F32: Kernels<f32, f32> = Kernels {
        lanes: 16,
        table: table!(avx512_f32, 1 2 3 4 5 6 7 8 9 10 11 12),
    };
    pub static AVX512_F64: Kernels<f64, f64> = Kernels {
        lanes: 8,
        table: table!(avx512_f64, 1 2 3 4 5 6 7 8 9 10 11 12),
    };
    /// bf16 pairs: two steps of the inner dimension at once.
    pub static AVX512_PAIRS: Kernels<i32, f32> = Kernels {
        lanes: 16,
        table: table!(avx512_pairs, 1 2 3 4 5 6 7 8 9 10 11 12),
    };
    /// i8 in quads: four steps of the inner dimension at once.
    pub static AVX512_QUADS: Kernels<i32, i32> = Kernels {
        lanes: 16,
        table: table!(packed avx512_quads, 1 2 3 4 5 6 7 8 9 10 11 12),
    };
    /// i8 widened to pairs of i16.
    pub static AVX512_WORDS: Kernels<i32, i32> = Kernels {
        lanes: 16,
        table: table!(packed avx512_words, 1 2 3 4 5 6 7 8 9 10 11 12),
    };
    pub static AVX2_WORDS: Kernels<i32, i32> = Kernels {
        lanes: 8,
        table: table!(packed avx2_words, 1 2 3 4 5 6),
    };
    pub static AVX2_F32: Kernels<f32, f32> = Kernels {
        lanes: 8,
        table: table!(avx2_f32, 1 2 3 4 5 6),
    };
    pub static AVX2_F64: Kernels<f64, f64> = Kernels {
        lanes: 4,
        table: table!(avx2_f64, 1 2 3 4 5 6),
    };
}

/// Columns per vector of the portable kernel.
const LANES: usize = 8;

/// The kernel for every other instruction set: plain code.
struct Portable<T, F>(PhantomData<(T, F)>);

impl<T: GemmFloat, F: Round> Portable<T, F> {
    /// # Safety
    /// As [`Kernel`].
    unsafe fn run<const MR: usize, const NV: usize, const PACKED: bool>(call: &Call<T, T>) {
        let size = size_of::<T>() as isize;
        let (row, step) = if PACKED {
            (size, MR as isize * size)
        } else {
            (call.a_row, call.a_step)
        };
        let mut sums = [[[T::ZERO; LANES]; NV]; MR];
        let (mut a, mut b) = (call.a.cast::<u8>(), call.b.cast::<u8>());
        // SAFETY: the contract of `Kernel`; pointers one step past the end are not read.
        unsafe {
            for _ in 0..call.depth {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = *a.wrapping_offset(r as isize * row).cast::<T>();
                    for (v, sums) in sums.iter_mut().enumerate() {
                        let right = &*b.cast::<[T; LANES]>().wrapping_add(v);
                        for (sum, &right) in sums.iter_mut().zip(right) {
                            *sum = F::step(left, right, *sum);
                        }
                    }
                }
                a = a.wrapping_offset(step);
                b = b.wrapping_offset(call.b_step);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (s, &sum) in sums.as_flattened()[..call.columns].iter().enumerate() {
                    let mut sum = sum * call.alpha;
                    if !call.from.is_null() {
                        sum = *call.from.add(r * call.from_width + s) + sum;
                    }
                    *call.to.add(r * call.to_width + s) = sum;
                }
            }
        }
    }
}

/// i8 widened to pairs of i16, in plain code.
struct Words;

impl Words {
    /// # Safety
    /// As [`Kernel`]; `a` is packed.
    unsafe fn run<const MR: usize, const NV: usize, const PACKED: bool>(call: &Call<i32, i32>) {
        // (even step, odd step)
        let split = |unit: i32| (i32::from(unit as i16), unit >> 16);
        let mut sums = [[[0i32; LANES]; NV]; MR];
        let (mut a, mut b) = (call.a, call.b.cast::<u8>());
        // SAFETY: the contract of `Kernel`; pointers one step past the end are not read.
        unsafe {
            for _ in 0..call.depth {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = split(*a.wrapping_add(r));
                    for (v, sums) in sums.iter_mut().enumerate() {
                        let right = &*b.cast::<[i32; LANES]>().wrapping_add(v);
                        for (sum, &right) in sums.iter_mut().zip(right) {
                            let right = split(right);
                            let both = left.0 * right.0 + left.1 * right.1;
                            *sum = sum.wrapping_add(both);
                        }
                    }
                }
                a = a.wrapping_add(MR);
                b = b.wrapping_offset(call.b_step);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (s, &sum) in sums.as_flattened()[..call.columns].iter().enumerate() {
                    let mut sum = sum.wrapping_mul(call.alpha);
                    if !call.from.is_null() {
                        sum = sum.wrapping_add(*call.from.add(r * call.from_width + s));
                    }
                    *call.to.add(r * call.to_width + s) = sum;
                }
            }
        }
    }
}

/// The kernels of the level in use for i8 widened to pairs of i16.
pub(super) fn word_kernels() -> &'static Kernels<i32, i32> {
    static PLAIN: Kernels<i32, i32> = Kernels {
        lanes: LANES,
        table: table!(type Words, 1 2 3 4),
    };
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &x86::AVX512_WORDS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &x86::AVX2_WORDS,
        _ => &PLAIN,
    }
}

/// How a step of a sum rounds.
pub(crate) trait Round {
    fn step<T: GemmFloat>(x: T, y: T, sum: T) -> T;
}
/// Once.
pub(crate) struct Once;
impl Round for Once {
    #[inline(always)]
    fn step<T: GemmFloat>(x: T, y: T, sum: T) -> T {
        x.fused(y, sum)
    }
}
/// After the product and after the sum, where the instruction set has nothing better.
pub(crate) struct Twice;
impl Round for Twice {
    #[inline(always)]
    fn step<T: GemmFloat>(x: T, y: T, sum: T) -> T {
        x * y + sum
    }
}

macro_rules! portable {
    ($name:ident, $T:ty, $avx512:ident, $avx2:ident) => {
        /// The kernels of the level in use.
        pub(super) fn $name() -> &'static Kernels<$T, $T> {
            static ONCE: Kernels<$T, $T> = Kernels {
                lanes: LANES,
        table: table!(type Portable<$T, Once>, 1 2 3 4),
            };
            static TWICE: Kernels<$T, $T> = Kernels {
                lanes: LANES,
        table: table!(type Portable<$T, Twice>, 1 2 3 4),
            };
            match level() {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => &x86::$avx512,
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => &x86::$avx2,
                _ if fused() => &ONCE,
                _ => &TWICE,
            }
        }
    };
}
portable!(f32_kernels, f32, AVX512_F32, AVX2_F32);
portable!(f64_kernels, f64, AVX512_F64, AVX2_F64);
