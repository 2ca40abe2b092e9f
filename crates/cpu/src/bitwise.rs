//! Bitwise logic of integers and bool: and, or, xor, not.
//!
//! One thread: such arrays are masks and flags, not what a step spends its time on.

use std::ops::{BitAnd, BitOr, BitXor, Not};

use entrenar_base::{Array, DType, Element, Error, Result};

use crate::kit;

/// Which bits of two operands stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bitwise {
    /// Those set in both.
    And,
    /// Those set in either.
    Or,
    /// Those set in exactly one.
    Xor,
}

impl Bitwise {
    fn of<T>(self, a: T, b: T) -> T
    where
        T: BitAnd<Output = T> + BitOr<Output = T> + BitXor<Output = T>,
    {
        match self {
            Bitwise::And => a & b,
            Bitwise::Or => a | b,
            Bitwise::Xor => a ^ b,
        }
    }
}

/// Runs `$body` with `$t` as the element type of an integer or bool dtype.
macro_rules! with_bits {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::I64 => with_bits!(@ i64, $t, $body),
            DType::I32 => with_bits!(@ i32, $t, $body),
            DType::U8 => with_bits!(@ u8, $t, $body),
            DType::I8 => with_bits!(@ i8, $t, $body),
            DType::Bool => with_bits!(@ bool, $t, $body),
            other => Err(Error::dtype($op, "integers or bool", other)),
        }
    };
    (@ $type:ty, $t:ident, $body:expr) => {{
        type $t = $type;
        $body
    }};
}

/// `a op b` of two arrays of one shape and one integer or bool dtype.
///
/// # Errors
/// When shapes or dtypes differ, or the dtype is a float.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::bitwise::{Bitwise, binary};
/// let (a, b) = (Array::from_vec(vec![6i64], [1])?, Array::from_vec(vec![3i64], [1])?);
/// assert_eq!(binary(Bitwise::Xor, &a, &b)?.to_vec::<i64>()?, [5]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn binary(op: Bitwise, a: &Array, b: &Array) -> Result<Array> {
    const OP: &str = "bitwise";
    kit::same_dtype(OP, a, b)?;
    if a.shape() != b.shape() {
        return Err(Error::shape(OP, a.shape(), b.shape()));
    }
    let (a, b) = (kit::contiguous(a)?, kit::contiguous(b)?);
    with_bits!(OP, a.dtype(), T => {
        let (x, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
        Array::try_build(a.shape(), |out: &mut [T]| {
            for (out, (&x, &y)) in out.iter_mut().zip(x.iter().zip(y)) {
                *out = op.of(x, y);
            }
            Ok(())
        })
    })
}

/// Every bit turned over; of bool, the other truth value.
///
/// # Errors
/// When the dtype is a float.
#[track_caller]
pub fn not(x: &Array) -> Result<Array> {
    fn turned<T: Element + Not<Output = T>>(x: &Array) -> Result<Array> {
        let values = x.as_slice::<T>()?;
        Array::try_build(x.shape(), |out: &mut [T]| {
            for (out, &v) in out.iter_mut().zip(values) {
                *out = !v;
            }
            Ok(())
        })
    }
    let x = kit::contiguous(x)?;
    with_bits!("bitwise_not", x.dtype(), T => turned::<T>(&x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_bool_in_any_layout() {
        let a = Array::from_vec(vec![0b1100i32, -1, 7, 0], [2, 2]).unwrap();
        let b = Array::from_vec(vec![0b1010i32, 5, 0, 9], [2, 2]).unwrap();
        let run = |op, a: &Array, b: &Array| binary(op, a, b).unwrap().to_vec::<i32>().unwrap();
        assert_eq!(run(Bitwise::And, &a, &b), [0b1000, 5, 0, 0]);
        assert_eq!(run(Bitwise::Or, &a, &b), [0b1110, -1, 7, 9]);
        assert_eq!(run(Bitwise::Xor, &a, &b), [0b0110, -6, 7, 9]);
        let turned = a.transpose(0, 1).unwrap();
        assert_eq!(run(Bitwise::And, &turned, &b), [8, 5, 0, 0]);
        assert_eq!(
            not(&turned).unwrap().to_vec::<i32>().unwrap(),
            [-13, -8, 0, -1]
        );
        let flags = Array::from_vec(vec![true, false], [2]).unwrap();
        assert_eq!(
            not(&flags).unwrap().to_vec::<bool>().unwrap(),
            [false, true]
        );
        let bytes = Array::from_vec(vec![0u8, 0xF0], [2]).unwrap();
        assert_eq!(not(&bytes).unwrap().to_vec::<u8>().unwrap(), [0xFF, 0x0F]);
    }

    #[test]
    fn floats_and_unequal_operands_are_refused() {
        let (f, i) = (Array::zeros([2], DType::F32), Array::zeros([2], DType::I64));
        assert!(binary(Bitwise::And, &f, &f).is_err() && not(&f).is_err());
        assert!(binary(Bitwise::And, &f, &i).is_err());
        assert!(binary(Bitwise::Or, &i, &Array::zeros([3], DType::I64)).is_err());
    }
}
