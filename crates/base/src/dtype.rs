//! Element types and the traits that tie Rust types to them.
//!
//! [`DType`] is the run-time tag; [`Element`] is implemented by exactly the Rust types that an
//! array can hold. A `bool` array stores one byte per element, 0 or 1.

use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer (indices).
    I64,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// IEEE single precision, the default.
    #[default]
    F32,
    /// IEEE double precision.
    F64,
}

impl DType {
    /// Every dtype, in promotion order.
    pub const ALL: [DType; 9] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::I32,
        DType::I64,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::F32 => 4,
            DType::I64 | DType::F64 => 8,
        }
    }

    /// True for f16, bf16, f32 and f64: the types that carry gradients.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// True for u8, i8, i32 and i64 (not bool).
    pub const fn is_int(self) -> bool {
        matches!(self, DType::U8 | DType::I8 | DType::I32 | DType::I64)
    }

    /// The name PyTorch users know without its prefix: `f32`, `bf16`, …
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    /// The dtype that holds values of both (PyTorch's lattice for tensors of equal rank).
    ///
    /// f16 with bf16 gives f32; an integer with a float gives the float; u8 with i8 gives i32
    /// (PyTorch has a 16-bit integer between them).
    #[inline]
    pub fn promote(self, other: DType) -> DType {
        use DType::*;
        match (self, other) {
            (a, b) if a == b => a,
            (F16, BF16) | (BF16, F16) => F32,
            (U8, I8) | (I8, U8) => I32,
            (a, b) => a.max(b),
        }
    }

    /// The type sums and products of this dtype accumulate in: f32 for the 16-bit floats,
    /// i64 for integers and bool, itself otherwise.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F16 | DType::BF16 | DType::F32 => DType::F32,
            DType::F64 => DType::F64,
            _ => DType::I64,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        DType::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| {
                Error::argument(
                    "dtype",
                    "one of bool u8 i8 i32 i64 f16 bf16 f32 f64",
                    format!("`{s}`"),
                )
            })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that an array can hold. Sealed: exactly the nine of [`DType`].
pub trait Element:
    sealed::Sealed + Copy + Default + PartialEq + PartialOrd + fmt::Debug + Send + Sync + 'static
{
    /// The run-time tag of this type.
    const DTYPE: DType;
    /// Nearest value (saturating for integers, round-to-nearest-even for 16-bit floats).
    fn from_f64(x: f64) -> Self;
    /// Widened to f64 (i64 may round).
    fn to_f64(self) -> f64;
    /// Converted like `as`: floats truncate towards zero.
    fn from_i64(x: i64) -> Self;
    /// Converted like `as`: floats truncate towards zero.
    fn to_i64(self) -> i64;
}

/// The two float types kernels compute in.
pub trait Float: Element {
    /// Additive identity.
    const ZERO: Self;
    /// Multiplicative identity.
    const ONE: Self;
}

impl Float for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
}
impl Float for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
}

macro_rules! number {
    ($($t:ty => $tag:ident),*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$tag;
            #[inline(always)]
            fn from_f64(x: f64) -> Self { x as $t }
            #[inline(always)]
            fn to_f64(self) -> f64 { self as f64 }
            #[inline(always)]
            fn from_i64(x: i64) -> Self { x as $t }
            #[inline(always)]
            fn to_i64(self) -> i64 { self as i64 }
        }
    )*};
}
number!(u8 => U8, i8 => I8, i32 => I32, i64 => I64, f32 => F32, f64 => F64);

/// `x` as an f32 that rounds to a 16-bit float as `x` itself does. What an f32 cannot hold goes to
/// the neighbour whose last bit is odd ("round to odd"): a number beside the middle of two 16-bit
/// floats thus never lands on that middle, where the second rounding would look for the even one.
#[inline(always)]
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let rest = x.abs() - near.abs() as f64;
    if rest == 0.0 || !x.is_finite() {
        return near;
    }
    let cut = near.to_bits() - u32::from(rest < 0.0);
    f32::from_bits(cut | 1)
}

/// `x` as an f64 that rounds to a 16-bit float as `x` itself does: what does not fit is told by one
/// bit.
#[inline(always)]
fn sticky(x: i64) -> f64 {
    const BELOW: u64 = 0x7ff;
    let size = x.unsigned_abs();
    if size <= 1 << f64::MANTISSA_DIGITS {
        return x as f64;
    }
    let rest = u64::from(size & BELOW != 0) * (BELOW + 1);
    let near = ((size & !BELOW) | rest) as f64;
    if x < 0 { -near } else { near }
}

macro_rules! half_number {
    ($($t:ty => $tag:ident),*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$tag;
            #[inline(always)]
            fn from_f64(x: f64) -> Self { <$t>::from_f32(to_odd(x)) }
            #[inline(always)]
            fn to_f64(self) -> f64 { self.to_f64() }
            #[inline(always)]
            fn from_i64(x: i64) -> Self { <Self as Element>::from_f64(sticky(x)) }
            #[inline(always)]
            fn to_i64(self) -> i64 { self.to_f64() as i64 }
        }
    )*};
}
half_number!(f16 => F16, bf16 => BF16);

impl sealed::Sealed for bool {}
impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn from_f64(x: f64) -> Self {
        x != 0.0
    }
    fn to_f64(self) -> f64 {
        self as u8 as f64
    }
    fn from_i64(x: i64) -> Self {
        x != 0
    }
    fn to_i64(self) -> i64 {
        self as i64
    }
}

/// Runs a block with `$T` bound to the Rust type of a run-time [`DType`].
///
/// ```
/// use entrenar_base::{DType, dispatch};
/// let d = DType::I32;
/// let bytes = dispatch!(d, T => size_of::<T>());
/// assert_eq!(bytes, d.size());
/// ```
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Bool => {
                type $T = bool;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::F16 => {
                type $T = $crate::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = $crate::bf16;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_is_a_commutative_lattice() {
        for a in DType::ALL {
            assert_eq!(a.promote(a), a);
            for b in DType::ALL {
                assert_eq!(a.promote(b), b.promote(a), "{a} {b}");
                let joined = a.promote(b);
                assert_eq!(joined.promote(a), joined);
                assert_eq!(joined.promote(b), joined);
            }
        }
        assert_eq!(DType::F16.promote(DType::BF16), DType::F32);
        assert_eq!(DType::I64.promote(DType::F16), DType::F16);
        assert_eq!(DType::Bool.promote(DType::U8), DType::U8);
        assert_eq!(DType::U8.promote(DType::I8), DType::I32);
        assert_eq!(DType::I8.promote(DType::F16), DType::F16);
    }

    #[test]
    fn names_round_trip() {
        for d in DType::ALL {
            assert_eq!(d.name().parse::<DType>().unwrap(), d);
            assert_eq!(dispatch!(d, T => T::DTYPE), d);
            assert_eq!(dispatch!(d, T => size_of::<T>()), d.size());
        }
        assert!("float".parse::<DType>().is_err());
    }

    /// A 16-bit float by its bits.
    trait Half: Element {
        /// Bits of infinity.
        const INFINITY: u16;
        fn of(bits: u16) -> Self;
        fn bits(self) -> u16;
        fn nearest(x: f32) -> Self;
    }

    macro_rules! half {
        ($t:ty) => {
            impl Half for $t {
                const INFINITY: u16 = <$t>::INFINITY.to_bits();
                fn of(bits: u16) -> Self {
                    <$t>::from_bits(bits)
                }
                fn bits(self) -> u16 {
                    self.to_bits()
                }
                fn nearest(x: f32) -> Self {
                    <$t>::from_f32(x)
                }
            }
        };
    }
    half!(f16);
    half!(bf16);

    fn round_trip<T: Half>() {
        for bits in 0..=u16::MAX {
            let back = T::from_f64(T::of(bits).to_f64());
            if bits & 0x7fff > T::INFINITY {
                assert!(back.to_f64().is_nan(), "{bits:#x}");
            } else {
                assert_eq!(back.bits(), bits, "{bits:#x}");
            }
        }
    }

    #[test]
    fn halves_survive_f64() {
        round_trip::<f16>();
        round_trip::<bf16>();
    }

    /// On, just below and just above the middle of every two neighbours, the middle between the
    /// largest number and infinity included. "Just" is the last bit of an f64.
    fn middles<T: Half>() {
        for below in 0..T::INFINITY {
            let above = below + 1;
            let low = T::of(below).to_f64();
            // Beyond the largest number the middle lies where the next one would be.
            let high = match above == T::INFINITY {
                false => T::of(above).to_f64(),
                true => 2.0 * low - T::of(below - 1).to_f64(),
            };
            let middle = (low + high) / 2.0;
            let even = if below % 2 == 0 { below } else { above };
            for (x, expected) in [
                (middle.next_down(), below),
                (middle, even),
                (middle.next_up(), above),
            ] {
                assert_eq!(T::from_f64(x).bits(), expected, "{x:e}");
                assert_eq!(T::from_f64(-x).bits(), expected | 0x8000, "{:e}", -x);
            }
        }
    }

    #[test]
    fn halves_are_the_nearest() {
        middles::<f16>();
        middles::<bf16>();
        for (x, bits) in [(5e-324, 0), (-5e-324, 0x8000)] {
            assert_eq!(
                (
                    <f16 as Element>::from_f64(x).bits(),
                    <bf16 as Element>::from_f64(x).bits()
                ),
                (bits, bits)
            );
        }
        assert_eq!(<bf16 as Element>::from_f64(1e300), bf16::INFINITY);
        assert_eq!(<f16 as Element>::from_f64(-1e300), f16::NEG_INFINITY);
    }

    #[test]
    fn halves_of_large_integers_round_once() {
        // Beside the middle of two bf16, 2^62 and 2^62 + 2^55.
        let middle = (1i64 << 62) + (1 << 54);
        let (low, high) = (0x5e80, 0x5e81);
        for (x, bits) in [(middle - 1, low), (middle, low), (middle + 1, high)] {
            assert_eq!(bf16::from_i64(x).to_bits(), bits, "{x}");
            assert_eq!(bf16::from_i64(-x).to_bits(), bits | 0x8000, "{}", -x);
        }
        for (x, bits) in [(i64::MAX, 0x5f00), (i64::MIN, 0xdf00), (-3, 0xc040), (0, 0)] {
            assert_eq!(bf16::from_i64(x).to_bits(), bits, "{x}");
        }
        assert_eq!(<f16 as Element>::from_i64(1 << 60), f16::INFINITY);
    }

    #[test]
    fn halves_of_f32_agree_with_the_direct_conversion() {
        fn check<T: Half>(x: f32) {
            let (through, direct) = (T::from_f64(x as f64), T::nearest(x));
            if x.is_nan() {
                assert!(through.to_f64().is_nan() && direct.to_f64().is_nan());
            } else {
                assert_eq!(through.bits(), direct.bits(), "{x:e}");
            }
        }
        let rng = crate::Philox::new(7, 0);
        for i in 0..500_000 {
            for bits in rng.block(i) {
                let x = f32::from_bits(bits);
                check::<f16>(x);
                check::<bf16>(x);
                // Where f16 has its range.
                check::<f16>(f32::from_bits(bits % 0x1480_0000 + 0x3300_0000));
            }
        }
    }
}
