//! What every pointwise operation means for one number: the plain definitions.
//!
//! The f64 ones are the reference for the vector kernels in [`crate::pointwise`] and serve the f64
//! compute type; the i64 ones serve integers. Booleans are 0 and 1.

use crate::pointwise::{Binary, Unary};

#[inline(always)]
fn flag(b: bool) -> f64 {
    f64::from(u8::from(b))
}

/// `u` of one number, accurate to f64.
///
/// ```
/// use entrenar_cpu::pointwise::{Unary, scalar_f64};
/// assert_eq!(scalar_f64(Unary::Square, 3.0), 9.0);
/// assert_eq!(scalar_f64(Unary::Round, 2.5), 2.0);
/// ```
pub fn scalar_f64(u: Unary, x: f64) -> f64 {
    match u {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign => flag(x > 0.0) - flag(x < 0.0),
        Unary::Exp => x.exp(),
        Unary::Exp2 => x.exp2(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log => x.ln(),
        Unary::Log2 => x.log2(),
        Unary::Log10 => x.log10(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Square => x * x,
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Tanh => x.tanh(),
        // The standard library's versions lose digits for large and small arguments.
        Unary::Asinh => libm::asinh(x),
        // (libm's returns numbers for some arguments below its domain.)
        Unary::Acosh if x < 1.0 => f64::NAN,
        Unary::Acosh => libm::acosh(x),
        Unary::Atanh => libm::atanh(x),
        Unary::Sigmoid => {
            let e = (-x.abs()).exp();
            (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
        }
        Unary::Softplus => (if x < 0.0 { 0.0 } else { x }) + (-x.abs()).exp().ln_1p(),
        Unary::Relu if x <= 0.0 => 0.0,
        Unary::Relu => x,
        Unary::GeluTanh => {
            let root = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
            x * scalar_f64(Unary::Sigmoid, 2.0 * root * (x + 0.044_715 * (x * x * x)))
        }
        Unary::Erf => libm::erf(x),
        Unary::Erfc => libm::erfc(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Trunc => x.trunc(),
        Unary::IsNan => flag(x.is_nan()),
        Unary::IsInf => flag(x.is_infinite()),
        Unary::IsFinite => flag(x.is_finite()),
        Unary::Not => flag(x == 0.0),
    }
}

/// `b` of two numbers, accurate to f64.
pub fn scalar_f64_2(b: Binary, x: f64, y: f64) -> f64 {
    match b {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Pow => x.powf(y),
        Binary::Max => {
            if x > y || x.is_nan() {
                x
            } else {
                y
            }
        }
        Binary::Min => {
            if x < y || x.is_nan() {
                x
            } else {
                y
            }
        }
        Binary::Atan2 => x.atan2(y),
        Binary::Fmod => x % y,
        Binary::Remainder => {
            let r = x % y;
            if r != 0.0 && (r < 0.0) != (y < 0.0) {
                r + y
            } else {
                r
            }
        }
        Binary::Copysign => x.copysign(y),
        Binary::Eq => flag(x == y),
        Binary::Ne => flag(x != y),
        Binary::Lt => flag(x < y),
        Binary::Le => flag(x <= y),
        Binary::Gt => flag(x > y),
        Binary::Ge => flag(x >= y),
        Binary::And => flag(x != 0.0 && y != 0.0),
        Binary::Or => flag(x != 0.0 || y != 0.0),
        Binary::Xor => flag((x != 0.0) != (y != 0.0)),
    }
}

/// `u` of an integer. Arithmetic wraps; functions without an integer meaning go through f64 and
/// truncate.
pub fn scalar_i64(u: Unary, x: i64) -> i64 {
    match u {
        Unary::Neg => x.wrapping_neg(),
        Unary::Abs => x.wrapping_abs(),
        Unary::Sign => x.signum(),
        Unary::Relu => x.max(0),
        Unary::Square => x.wrapping_mul(x),
        Unary::Floor | Unary::Ceil | Unary::Round | Unary::Trunc => x,
        Unary::IsNan | Unary::IsInf => 0,
        Unary::IsFinite => 1,
        Unary::Not => i64::from(x == 0),
        _ => scalar_f64(u, x as f64) as i64,
    }
}

/// `b` of two integers. Arithmetic wraps, as in PyTorch. Division truncates towards zero; a zero
/// divisor gives 0 (PyTorch raises: no integer operation of ours can stop the process). A negative
/// exponent gives 0 except for the bases 1 and -1.
pub fn scalar_i64_2(b: Binary, x: i64, y: i64) -> i64 {
    match b {
        Binary::Add => x.wrapping_add(y),
        Binary::Sub => x.wrapping_sub(y),
        Binary::Mul => x.wrapping_mul(y),
        Binary::Div if y == 0 => 0,
        Binary::Div => x.wrapping_div(y),
        Binary::Pow => power(x, y),
        Binary::Max => x.max(y),
        Binary::Min => x.min(y),
        Binary::Atan2 => (x as f64).atan2(y as f64) as i64,
        Binary::Fmod | Binary::Remainder if y == 0 => 0,
        Binary::Fmod => x.wrapping_rem(y),
        Binary::Remainder => {
            let r = x.wrapping_rem(y);
            if r != 0 && (r < 0) != (y < 0) {
                r.wrapping_add(y)
            } else {
                r
            }
        }
        Binary::Copysign => {
            let a = x.wrapping_abs();
            if y < 0 { a.wrapping_neg() } else { a }
        }
        Binary::Eq => i64::from(x == y),
        Binary::Ne => i64::from(x != y),
        Binary::Lt => i64::from(x < y),
        Binary::Le => i64::from(x <= y),
        Binary::Gt => i64::from(x > y),
        Binary::Ge => i64::from(x >= y),
        Binary::And => i64::from(x != 0 && y != 0),
        Binary::Or => i64::from(x != 0 || y != 0),
        Binary::Xor => i64::from((x != 0) != (y != 0)),
    }
}

/// x^y by squaring, wrapping.
fn power(x: i64, y: i64) -> i64 {
    if y < 0 {
        return match x {
            1 => 1,
            -1 if y % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut base, mut left) = (1i64, x, y as u64);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        left >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_never_trap_and_follow_pytorch() {
        for &b in Binary::ALL {
            for x in [i64::MIN, -7, -1, 0, 1, 5, i64::MAX] {
                for y in [i64::MIN, -3, -1, 0, 1, 3, i64::MAX] {
                    let _ = scalar_i64_2(b, x, y);
                }
            }
        }
        assert_eq!(scalar_i64_2(Binary::Remainder, -5, 3), 1);
        assert_eq!(scalar_i64_2(Binary::Remainder, 5, -3), -1);
        assert_eq!(scalar_i64_2(Binary::Fmod, -5, 3), -2);
        assert_eq!(scalar_i64_2(Binary::Pow, 3, 40), -6289078614652622815);
        assert_eq!(scalar_i64_2(Binary::Pow, -1, -3), -1);
        assert_eq!(scalar_i64_2(Binary::Pow, 2, -1), 0);
        assert_eq!(scalar_i64(Unary::Abs, i64::MIN), i64::MIN);
    }

    #[test]
    fn nan_rules_follow_pytorch() {
        assert_eq!(scalar_f64(Unary::Sign, f64::NAN), 0.0);
        for b in [Binary::Max, Binary::Min] {
            assert!(scalar_f64_2(b, f64::NAN, 1.0).is_nan());
            assert!(scalar_f64_2(b, 1.0, f64::NAN).is_nan());
        }
        assert_eq!(scalar_f64(Unary::Not, f64::NAN), 0.0);
        assert_eq!(scalar_f64_2(Binary::And, f64::NAN, 1.0), 1.0);
        assert_eq!(
            scalar_f64_2(Binary::Remainder, 5.0, f64::NEG_INFINITY),
            f64::NEG_INFINITY
        );
    }

    /// Values from mpmath with 40 digits.
    #[test]
    #[allow(
        clippy::excessive_precision,
        reason = "reference values as mpmath printed them"
    )]
    fn error_functions_are_accurate_to_f64() {
        for (x, want) in [
            (1e-10, 1.1283791670955126e-10),
            (0.5, 0.520499877813046537683),
            (1.7, 0.98379045859077456134),
        ] {
            assert!((scalar_f64(Unary::Erf, x) / want - 1.0f64).abs() < 1e-15);
        }
        for (x, want) in [
            (3.0, 2.20904969985854413728e-5),
            (9.0, 4.137031746513810238e-37),
        ] {
            assert!((scalar_f64(Unary::Erfc, x) / want - 1.0f64).abs() < 1e-14);
        }
    }
}
