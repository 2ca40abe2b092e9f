//! What the kernels of this crate share: the float trait they are generic over, reductions with
//! a fixed order, widening of 16-bit floats, scratch memory, small products.
//!
//! Every sum here runs over a fixed number of lanes that are combined as a fixed tree, so its bits
//! depend on the length alone, never on the instruction set or the number of threads. Loops are
//! written so that the compiler vectorises them, once per instruction set ([`crate::simd`]).

use std::borrow::Cow;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use entrenar_base::{Array, DType, Error, Result};

use crate::alloc::Scratch;
use crate::gemm::{GemmFloat, Operand};
use crate::product::Compute;

/// Partial sums that run side by side: two AVX-512 registers of f32.
pub(crate) const LANES: usize = 32;

/// f32 or f64 with the arithmetic that kernels need.
pub(crate) trait Real:
    GemmFloat
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// Not a number.
    const NAN: Self;
    /// The exponential. For f32 a branch-free form that vectorises: below 2 units in the last
    /// place, results under 2^-125 become 0.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// Fused multiply and add: `self * a + b`.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// True for NaN.
    fn is_nan(self) -> bool;
    /// From a 64-bit float.
    #[inline(always)]
    fn of(x: f64) -> Self {
        Self::from_f64(x)
    }
}

impl Real for f32 {
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    const NAN: f32 = f32::NAN;
    #[inline(always)]
    fn exp(self) -> f32 {
        exp_f32(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }
}

impl Real for f64 {
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    const NAN: f64 = f64::NAN;
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }
}

/// As [`crate::simd::math::exp`], but results below 2^-125 are 0: masked and far-away scores would
/// otherwise cost a slow denormal each.
///
/// exp(x) = 2^n · e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2; e^r by a polynomial of degree 6
/// (coefficients of Cephes' `expf`), ln 2 subtracted in two parts (Cody and Waite).
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves the integer in the low bits
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Selects, not `min`/`max`: those would turn a NaN into a number.
    let c = if x > 89.0 { 89.0 } else { x };
    let c = if c < -87.0 { -87.0 } else { c };
    let shifted = c.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, c));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // Half of 2^n, then doubled: n = 128 (x just under 88.73) would not fit in one factor.
    let half = f32::from_bits(shifted.to_bits().wrapping_add(126).wrapping_shl(23));
    let y = y * half * 2.0;
    if x < -86.643 { 0.0 } else { y } // -125 · ln 2: nothing above was denormal
}

/// Several [`crate::simd::multiversion!`] functions at once. What their bodies call must be
/// `#[inline(always)]`; a closure in them would be compiled for the baseline.
macro_rules! multiversion {
    ($($(#[$meta:meta])* fn $name:ident<$T:ident: $bound:path>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $crate::simd::multiversion! {
            $(#[$meta])*
            fn $name<$T: $bound>($($argument: $type),*) $(-> $result)? $body
        }
    )*};
}
pub(crate) use multiversion;

/// Adds the lanes as a balanced tree.
#[inline(always)]
pub(crate) fn add_lanes<T: Real>(lanes: [T; LANES]) -> T {
    folded(lanes, |a, b| a + b)
}

/// The lanes as a tree: one after the other, they would take longer than a short row. Every level has
/// a known size, so that the lanes stay in registers: loads from where they were just stored wait for
/// all earlier stores.
#[inline(always)]
fn folded<T: Real>(lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    #[inline(always)]
    fn half<T: Real, const WIDE: usize, const HALF: usize>(
        x: [T; WIDE],
        f: &impl Fn(T, T) -> T,
    ) -> [T; HALF] {
        let mut y = [T::ZERO; HALF];
        for i in 0..HALF {
            y[i] = f(x[i], x[i + HALF]);
        }
        y
    }
    let x = half::<T, LANES, 16>(lanes, &f);
    let x = half::<T, 16, 8>(x, &f);
    let x = half::<T, 8, 4>(x, &f);
    let x = half::<T, 4, 2>(x, &f);
    half::<T, 2, 1>(x, &f)[0]
}

/// The elements after the last whole group of lanes, filled up.
#[inline(always)]
#[allow(clippy::manual_memcpy, reason = "a copy of unknown size is a call")]
pub(crate) fn padded<T: Real>(tail: &[T], pad: T) -> [T; LANES] {
    let mut lanes = [pad; LANES];
    for l in 0..tail.len().min(LANES) {
        lanes[l] = tail[l];
    }
    lanes
}

/// Σ x.
#[inline(always)]
pub(crate) fn sum<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for c in chunks {
        for l in 0..LANES {
            lanes[l] += c[l];
        }
    }
    if !tail.is_empty() {
        let tail = padded(tail, T::ZERO);
        for l in 0..LANES {
            lanes[l] += tail[l];
        }
    }
    add_lanes(lanes)
}

/// Σ a·b.
#[inline(always)]
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (ca, ta) = a.as_chunks::<LANES>();
    let (cb, tb) = b.as_chunks::<LANES>();
    for c in 0..ca.len().min(cb.len()) {
        for l in 0..LANES {
            lanes[l] = ca[c][l].mul_add(cb[c][l], lanes[l]);
        }
    }
    if !ta.is_empty() {
        let (ta, tb) = (padded(ta, T::ZERO), padded(tb, T::ZERO));
        for l in 0..LANES {
            lanes[l] = ta[l].mul_add(tb[l], lanes[l]);
        }
    }
    add_lanes(lanes)
}

/// Σ (x - center)².
#[inline(always)]
pub(crate) fn sum_squares<T: Real>(x: &[T], center: T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for c in chunks {
        for l in 0..LANES {
            let d = c[l] - center;
            lanes[l] = d.mul_add(d, lanes[l]);
        }
    }
    if !tail.is_empty() {
        let mut squares = [T::ZERO; LANES];
        for l in 0..tail.len() {
            squares[l] = tail[l] - center;
        }
        for l in 0..LANES {
            lanes[l] = squares[l].mul_add(squares[l], lanes[l]);
        }
    }
    add_lanes(lanes)
}

/// The largest element, NaN left out; minus infinity for none.
#[inline(always)]
pub(crate) fn max<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for c in chunks {
        for l in 0..LANES {
            lanes[l] = if c[l] > lanes[l] { c[l] } else { lanes[l] };
        }
    }
    if !tail.is_empty() {
        let tail = padded(tail, T::NEG_INFINITY);
        for l in 0..LANES {
            lanes[l] = if tail[l] > lanes[l] {
                tail[l]
            } else {
                lanes[l]
            };
        }
    }
    folded(lanes, |a, b| if b > a { b } else { a })
}

/// `x[i] = exp(x[i] - shift)`; returns the sum of the results.
#[inline(always)]
pub(crate) fn exp_shifted_sum<T: Real>(x: &mut [T], shift: T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for c in chunks {
        // An index loop: iterator adaptors may stay calls, compiled for the baseline.
        for l in 0..LANES {
            let v = (c[l] - shift).exp();
            c[l] = v;
            lanes[l] += v;
        }
    }
    if !tail.is_empty() {
        for l in 0..tail.len() {
            tail[l] = (tail[l] - shift).exp();
        }
        let tail = padded(tail, T::ZERO);
        for l in 0..LANES {
            lanes[l] += tail[l];
        }
    }
    add_lanes(lanes)
}

/// Σ exp(x - shift), nothing written.
#[inline(always)]
pub(crate) fn sum_exp_shifted<T: Real>(x: &[T], shift: T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for c in chunks {
        for l in 0..LANES {
            lanes[l] += (c[l] - shift).exp();
        }
    }
    if !tail.is_empty() {
        let mut powers = [T::ZERO; LANES];
        for l in 0..tail.len() {
            powers[l] = (tail[l] - shift).exp();
        }
        for l in 0..LANES {
            lanes[l] += powers[l];
        }
    }
    add_lanes(lanes)
}

/// `x[i] *= factor`.
#[inline(always)]
pub(crate) fn scale<T: Real>(x: &mut [T], factor: T) {
    for v in x {
        *v *= factor;
    }
}

/// `y[i] += x[i]`.
#[inline(always)]
pub(crate) fn add_into<T: Real>(y: &mut [T], x: &[T]) {
    let x = &x[..y.len()];
    for i in 0..y.len() {
        y[i] += x[i];
    }
}

crate::simd::multiversion! {
    /// [`add_into`] compiled for the processor: for callers that are not.
    pub(crate) fn add_slices<T: Real>(y: &mut [T], x: &[T]) {
        add_into(y, x);
    }
}

/// The dtype that kernels compute a float dtype in: f64 for f64, else f32.
///
/// # Errors
/// When the dtype is no float.
#[track_caller]
pub(crate) fn compute_dtype(op: &str, dtype: DType) -> Result<DType> {
    match dtype {
        DType::F64 => Ok(DType::F64),
        d if d.is_float() => Ok(DType::F32),
        d => Err(Error::dtype(op, "a float dtype", d)),
    }
}

/// The array in `dtype`; one that has it already is shared, whatever its layout.
pub(crate) fn cast(x: &Array, dtype: DType) -> Result<Array> {
    if x.dtype() == dtype {
        Ok(x.clone())
    } else {
        crate::cast::cast(x, dtype)
    }
}

/// The array in `dtype`, row-major without gaps.
pub(crate) fn dense(x: &Array, dtype: DType) -> Result<Array> {
    crate::cast::cast(x, dtype)
}

/// The array row-major without gaps.
pub(crate) fn contiguous(x: &Array) -> Result<Array> {
    crate::copy::contiguous(x)
}

/// Checks that two operands share a dtype.
#[track_caller]
pub(crate) fn same_dtype(op: &str, a: &Array, b: &Array) -> Result<()> {
    if a.dtype() == b.dtype() {
        Ok(())
    } else {
        Err(Error::dtype(
            op,
            format!("both operands of dtype {}", a.dtype()),
            b.dtype(),
        ))
    }
}

/// Checks a dimension number; a scalar counts as rank 1.
#[track_caller]
pub(crate) fn check_dim(op: &str, x: &Array, dim: usize) -> Result<()> {
    if dim < x.rank().max(1) {
        Ok(())
    } else {
        Err(Error::index(
            op,
            format!("a dimension of shape {}", x.shape()),
            dim,
        ))
    }
}

/// Sizes before, at and after `dim`; a scalar counts as `[1]`.
pub(crate) fn around(dims: &[usize], dim: usize) -> (usize, usize, usize) {
    if dims.is_empty() {
        return (1, 1, 1);
    }
    (
        dims[..dim].iter().product(),
        dims[dim],
        dims[dim + 1..].iter().product(),
    )
}

/// The elements as i64, row-major; borrowed when they already lie so.
///
/// # Errors
/// When the dtype is no integer, or there is no memory for a copy.
#[track_caller]
pub(crate) fn integers<'a>(op: &str, index: &'a Array) -> Result<Cow<'a, [i64]>> {
    if !index.dtype().is_int() {
        return Err(Error::dtype(
            op,
            "an integer index (i64, i32, i8 or u8)",
            index.dtype(),
        ));
    }
    if index.dtype() == DType::I64 && index.is_contiguous() {
        return Ok(Cow::Borrowed(index.as_slice::<i64>()?));
    }
    // An index may be a broadcast view of any size: running out of memory is no reason to abort.
    let mut all = Vec::new();
    let reserved = all.try_reserve_exact(index.numel());
    reserved.map_err(|_| Error::memory(op, index.numel() * size_of::<i64>()))?;
    match index.dtype() {
        DType::I64 => all.extend(index.view::<i64>()?.iter()),
        DType::I32 => all.extend(index.view::<i32>()?.iter().map(i64::from)),
        DType::I8 => all.extend(index.view::<i8>()?.iter().map(i64::from)),
        _ => all.extend(index.view::<u8>()?.iter().map(i64::from)),
    }
    Ok(Cow::Owned(all))
}

/// Runs a block with `$T` bound to f32 or f64, the two dtypes that kernels compute in.
macro_rules! with_real {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            entrenar_base::DType::F64 => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use with_real;

/// Runs a block with `$S` bound to the type of a float dtype and `$T` to that it is computed in.
macro_rules! with_float {
    ($dtype:expr, $S:ident, $T:ident => $body:expr) => {
        match $dtype {
            entrenar_base::DType::F64 => {
                type $S = f64;
                type $T = f64;
                $body
            }
            entrenar_base::DType::F16 => {
                type $S = entrenar_base::f16;
                type $T = f32;
                $body
            }
            entrenar_base::DType::BF16 => {
                type $S = entrenar_base::bf16;
                type $T = f32;
                $body
            }
            _ => {
                type $S = f32;
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use with_float;

/// Calls `f` with `len` elements of temporary memory of arbitrary content.
pub(crate) fn with_scratch<T: Real, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    f(&mut Scratch::<T>::new(len))
}

/// A matrix inside a slice: element (i, j) lies at `offset + i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Position of element (0, 0).
    pub offset: usize,
    /// Step from row to row.
    pub row: isize,
    /// Step from column to column.
    pub column: isize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major with `width` elements per row, from the slice's start.
    pub(crate) fn rows(data: &'a [T], width: usize) -> Self {
        Matrix {
            data,
            offset: 0,
            row: width as isize,
            column: 1,
        }
    }

    /// Rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Matrix {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    /// True when an `m × n` matrix of these steps stays inside the slice.
    fn fits(&self, m: usize, n: usize) -> bool {
        if m == 0 || n == 0 {
            return true;
        }
        let (mut low, mut high) = (self.offset as isize, self.offset as isize);
        for reach in [(m as isize - 1) * self.row, (n as isize - 1) * self.column] {
            if reach < 0 {
                low += reach;
            } else {
                high += reach;
            }
        }
        low >= 0 && (high as usize) < self.data.len()
    }
}

/// `out[m, n] = alpha · a[m, k] · b[k, n]`, plus what `out` held when `accumulate`. `out` is
/// row-major with rows `width` apart. f32 operands are multiplied in `compute`; f64 ignores it. Runs
/// on the calling thread; its bits depend on the sizes and steps alone.
///
/// # Panics
/// When a matrix leaves its slice: a mistake of the calling kernel.
#[allow(clippy::too_many_arguments, reason = "the arguments of every gemm")]
pub(crate) fn gemm<T: Real>(
    compute: Compute,
    out: &mut [T],
    width: usize,
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= width && (m - 1) * width + n <= out.len(), "out");
    if k == 0 {
        if !accumulate {
            for row in out.chunks_mut(width).take(m) {
                row[..n].fill(T::ZERO);
            }
        }
        return;
    }
    assert!(a.fits(m, k) && b.fits(k, n), "operands");
    // SAFETY: all three matrices lie inside their slices (checked above); `out` is exclusively
    // borrowed, so it overlaps neither operand.
    unsafe {
        let operand = |x: &Matrix<'_, T>| Operand {
            data: x.data.as_ptr().add(x.offset),
            row: x.row,
            column: x.column,
        };
        crate::gemm::gemm(
            compute,
            (m, n, k),
            alpha,
            operand(&a),
            operand(&b),
            out.as_mut_ptr(),
            width,
            accumulate,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_truth_everywhere() {
        let mut worst = 0.0f64;
        let mut x = -86.6f32;
        while x < 88.7 {
            let (got, want) = (f64::from(Real::exp(x)), f64::from(x).exp());
            let ulp = f64::from(f32::EPSILON) * want;
            worst = worst.max((got - want).abs() / ulp);
            x += 0.000_917;
        }
        assert!(worst < 1.0, "{worst} epsilons");
        let e = |x: f32| Real::exp(x);
        assert_eq!((e(0.0), e(f32::NEG_INFINITY), e(-200.0)), (1.0, 0.0, 0.0));
        assert_eq!((e(f32::INFINITY), e(100.0)), (f32::INFINITY, f32::INFINITY));
        assert!(e(f32::NAN).is_nan());
    }

    #[test]
    fn lane_sums_equal_plain_sums() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f64> = (0..n).map(|i| f64::from(i) * 0.5 - 3.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f64>());
            assert_eq!(dot(&x, &x), x.iter().map(|v| v * v).sum::<f64>());
            assert_eq!(
                sum_squares(&x, 1.0),
                x.iter().map(|v| (v - 1.0).powi(2)).sum::<f64>()
            );
            let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(max(&x), top);
        }
        assert_eq!(max(&[f32::NAN, 2.0, f32::NAN]), 2.0);
    }

    #[test]
    fn gemm_handles_strides_and_accumulation() {
        let a = [1.0f64, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
        let b = [1.0f64, 0.0, 2.0, 1.0, 0.0, 3.0]; // [3, 2]
        let mut out = [10.0f64; 6]; // [2, 2] in rows of 3
        let sizes = (2, 2, 3);
        let (ma, mb) = (Matrix::rows(&a, 3), Matrix::rows(&b, 2));
        gemm(Compute::F32, &mut out, 3, sizes, 2.0, ma, mb, true);
        assert_eq!(out, [20.0, 32.0, 10.0, 38.0, 56.0, 10.0]);
        let mut flipped = [0.0f64; 4]; // bᵀ · aᵀ
        gemm(
            Compute::F32,
            &mut flipped,
            2,
            sizes,
            1.0,
            mb.transposed(),
            ma.transposed(),
            false,
        );
        assert_eq!(flipped, [5.0, 14.0, 11.0, 23.0]);
        let empty: [f64; 0] = [];
        let none = Matrix::rows(&empty, 0);
        gemm(
            Compute::F32,
            &mut flipped,
            2,
            (2, 2, 0),
            1.0,
            none,
            none,
            false,
        );
        assert_eq!(flipped, [0.0; 4]);
    }

    #[test]
    fn scratch_calls_nest() {
        with_scratch(10, |a: &mut [f32]| {
            a.fill(1.0);
            with_scratch(1000, |b: &mut [f64]| b.fill(2.0));
            assert_eq!(a, [1.0; 10]);
        });
    }
}
