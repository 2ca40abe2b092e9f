//! Vector kernels of the three compute types: one loop per operation over equal slices.
//!
//! f32 has SIMD code for everything but `atan2`, `fmod` and `remainder`; f64 and i64 have it for
//! arithmetic and comparisons and go through [`crate::scalar`] for the rest.

use super::{Binary, Unary};
use crate::scalar::{scalar_f64, scalar_f64_2, scalar_i64, scalar_i64_2};
use crate::simd::{math, multiversion};
use entrenar_base::Element;

/// A compute type of the interpreter.
pub(crate) trait Lane: Element {
    /// The value of a program constant.
    fn constant(value: f64) -> Self;
    /// `out[i] = op(x[i])`; equal lengths.
    fn unary(op: Unary, x: &[Self], out: &mut [Self]);
    /// `out[i] = op(x[i], y[i])`; equal lengths.
    fn binary(op: Binary, x: &[Self], y: &[Self], out: &mut [Self]);
    /// `out[i] = if c[i] != 0 { x[i] } else { y[i] }`; equal lengths.
    fn select(c: &[Self], x: &[Self], y: &[Self], out: &mut [Self]);
}

/// A scalar function as a type, so that each gets its own vectorised loop.
trait Map1<T> {
    fn map(x: T) -> T;
}
trait Map2<T> {
    fn map(x: T, y: T) -> T;
}

/// One loop, compiled per instruction set (the macro takes concrete types only).
macro_rules! loops {
    ($T:ty, $map1:ident, $map2:ident, $select:ident) => {
        multiversion! {
            fn $map1<F: Map1<$T>>(x: &[$T], out: &mut [$T]) {
                let n = out.len();
                let x = &x[..n];
                for i in 0..n {
                    out[i] = F::map(x[i]);
                }
            }
        }
        multiversion! {
            fn $map2<F: Map2<$T>>(x: &[$T], y: &[$T], out: &mut [$T]) {
                let n = out.len();
                let (x, y) = (&x[..n], &y[..n]);
                for i in 0..n {
                    out[i] = F::map(x[i], y[i]);
                }
            }
        }
        multiversion! {
            fn $select(c: &[$T], x: &[$T], y: &[$T], out: &mut [$T]) {
                let n = out.len();
                let (c, x, y) = (&c[..n], &x[..n], &y[..n]);
                for i in 0..n {
                    out[i] = if c[i] != <$T>::default() { x[i] } else { y[i] };
                }
            }
        }
    };
}
loops!(f32, map1_f32, map2_f32, select_f32);
loops!(f64, map1_f64, map2_f64, select_f64);
loops!(i64, map1_i64, map2_i64, select_i64);

/// Binds a closure-like expression to a local type implementing `Map1` and runs it.
macro_rules! run1 {
    ($T:ty, $map1:ident, $x:expr, $out:expr, |$a:ident| $body:expr) => {{
        struct F;
        impl Map1<$T> for F {
            #[inline(always)]
            fn map($a: $T) -> $T {
                $body
            }
        }
        $map1::<F>($x, $out)
    }};
}
macro_rules! run2 {
    ($T:ty, $map2:ident, $x:expr, $y:expr, $out:expr, |$a:ident, $b:ident| $body:expr) => {{
        struct F;
        impl Map2<$T> for F {
            #[inline(always)]
            fn map($a: $T, $b: $T) -> $T {
                $body
            }
        }
        $map2::<F>($x, $y, $out)
    }};
}

/// A plain loop for functions without vector code.
fn plain1<T: Copy>(x: &[T], out: &mut [T], f: impl Fn(T) -> T) {
    out.iter_mut().zip(x).for_each(|(o, &x)| *o = f(x));
}
fn plain2<T: Copy>(x: &[T], y: &[T], out: &mut [T], f: impl Fn(T, T) -> T) {
    for ((o, &x), &y) in out.iter_mut().zip(x).zip(y) {
        *o = f(x, y);
    }
}

/// 0 or 1.
#[inline(always)]
fn flag32(b: bool) -> f32 {
    if b { 1.0 } else { 0.0 }
}
#[inline(always)]
fn flag64(b: bool) -> f64 {
    if b { 1.0 } else { 0.0 }
}

/// Recomputes the elements that the vector reduction of sine and cosine cannot take.
fn redo_large(x: &[f32], out: &mut [f32], f: fn(f64) -> f64) {
    for (o, &x) in out.iter_mut().zip(x) {
        if x.abs() > math::REDUCIBLE {
            *o = f(x as f64) as f32;
        }
    }
}

/// The arithmetic that floats share, as match arms.
macro_rules! float_lane {
    ($T:ident, $map1:ident, $map2:ident, $select:ident, $flag:ident, $unary:expr, $binary:expr) => {
        impl Lane for $T {
            fn constant(value: f64) -> $T {
                value as $T
            }

            fn unary(op: Unary, x: &[$T], out: &mut [$T]) {
                match op {
                    Unary::Neg => run1!($T, $map1, x, out, |a| -a),
                    Unary::Abs => run1!($T, $map1, x, out, |a| a.abs()),
                    Unary::Sign => {
                        run1!($T, $map1, x, out, |a| $flag(a > 0.0) - $flag(a < 0.0))
                    }
                    Unary::Sqrt => run1!($T, $map1, x, out, |a| a.sqrt()),
                    Unary::Rsqrt => run1!($T, $map1, x, out, |a| 1.0 / a.sqrt()),
                    Unary::Recip => run1!($T, $map1, x, out, |a| 1.0 / a),
                    Unary::Square => run1!($T, $map1, x, out, |a| a * a),
                    Unary::Relu => run1!($T, $map1, x, out, |a| if a <= 0.0 { 0.0 } else { a }),
                    Unary::Floor => run1!($T, $map1, x, out, |a| a.floor()),
                    Unary::Ceil => run1!($T, $map1, x, out, |a| a.ceil()),
                    Unary::Round => run1!($T, $map1, x, out, |a| a.round_ties_even()),
                    Unary::Trunc => run1!($T, $map1, x, out, |a| a.trunc()),
                    Unary::IsNan => run1!($T, $map1, x, out, |a| $flag(a.is_nan())),
                    Unary::IsInf => {
                        run1!($T, $map1, x, out, |a| $flag(a.abs() == $T::INFINITY))
                    }
                    Unary::IsFinite => {
                        run1!($T, $map1, x, out, |a| $flag(a.abs() < $T::INFINITY))
                    }
                    Unary::Not => run1!($T, $map1, x, out, |a| $flag(a == 0.0)),
                    _ => $unary(op, x, out),
                }
            }

            fn binary(op: Binary, x: &[$T], y: &[$T], out: &mut [$T]) {
                match op {
                    Binary::Add => run2!($T, $map2, x, y, out, |a, b| a + b),
                    Binary::Sub => run2!($T, $map2, x, y, out, |a, b| a - b),
                    Binary::Mul => run2!($T, $map2, x, y, out, |a, b| a * b),
                    Binary::Div => run2!($T, $map2, x, y, out, |a, b| a / b),
                    // Written with `|` and `&`: short circuits are branches.
                    Binary::Max => run2!($T, $map2, x, y, out, |a, b| {
                        if (a > b) | (a != a) { a } else { b }
                    }),
                    Binary::Min => run2!($T, $map2, x, y, out, |a, b| {
                        if (a < b) | (a != a) { a } else { b }
                    }),
                    Binary::Copysign => run2!($T, $map2, x, y, out, |a, b| a.copysign(b)),
                    Binary::Eq => run2!($T, $map2, x, y, out, |a, b| $flag(a == b)),
                    Binary::Ne => run2!($T, $map2, x, y, out, |a, b| $flag(a != b)),
                    Binary::Lt => run2!($T, $map2, x, y, out, |a, b| $flag(a < b)),
                    Binary::Le => run2!($T, $map2, x, y, out, |a, b| $flag(a <= b)),
                    Binary::Gt => run2!($T, $map2, x, y, out, |a, b| $flag(a > b)),
                    Binary::Ge => run2!($T, $map2, x, y, out, |a, b| $flag(a >= b)),
                    Binary::And => {
                        run2!($T, $map2, x, y, out, |a, b| $flag((a != 0.0) & (b != 0.0)))
                    }
                    Binary::Or => {
                        run2!($T, $map2, x, y, out, |a, b| $flag((a != 0.0) | (b != 0.0)))
                    }
                    Binary::Xor => {
                        run2!($T, $map2, x, y, out, |a, b| $flag((a != 0.0) ^ (b != 0.0)))
                    }
                    _ => $binary(op, x, y, out),
                }
            }

            fn select(c: &[$T], x: &[$T], y: &[$T], out: &mut [$T]) {
                $select(c, x, y, out)
            }
        }
    };
}

fn functions_f32(op: Unary, x: &[f32], out: &mut [f32]) {
    macro_rules! call {
        ($f:ident) => {
            run1!(f32, map1_f32, x, out, |a| math::$f(a))
        };
    }
    match op {
        Unary::Exp => call!(exp),
        Unary::Exp2 => call!(exp2),
        Unary::Expm1 => call!(expm1),
        Unary::Log => call!(log),
        Unary::Log2 => call!(log2),
        Unary::Log10 => call!(log10),
        Unary::Log1p => call!(log1p),
        Unary::Sin => {
            call!(sin);
            redo_large(x, out, f64::sin);
        }
        Unary::Cos => {
            call!(cos);
            redo_large(x, out, f64::cos);
        }
        Unary::Tan => {
            call!(tan);
            redo_large(x, out, f64::tan);
        }
        Unary::Asin => call!(asin),
        Unary::Acos => call!(acos),
        Unary::Atan => call!(atan),
        Unary::Sinh => call!(sinh),
        Unary::Cosh => call!(cosh),
        Unary::Tanh => call!(tanh),
        Unary::Asinh => call!(asinh),
        Unary::Acosh => call!(acosh),
        Unary::Atanh => call!(atanh),
        Unary::Sigmoid => call!(sigmoid),
        Unary::Softplus => call!(softplus),
        Unary::GeluTanh => call!(gelu_tanh),
        Unary::Erf => call!(erf),
        Unary::Erfc => call!(erfc),
        // The arithmetic was matched before; its plain definition is still right.
        _ => plain1(x, out, |a| scalar_f64(op, a as f64) as f32),
    }
}

fn functions_f32_2(op: Binary, x: &[f32], y: &[f32], out: &mut [f32]) {
    match op {
        Binary::Pow => run2!(f32, map2_f32, x, y, out, |a, b| math::pow(a, b)),
        // Remainders are exact in f64 as in f32; atan2 rounds once.
        _ => plain2(x, y, out, |a, b| {
            scalar_f64_2(op, a as f64, b as f64) as f32
        }),
    }
}

fn functions_f64(op: Unary, x: &[f64], out: &mut [f64]) {
    plain1(x, out, |a| scalar_f64(op, a));
}

fn functions_f64_2(op: Binary, x: &[f64], y: &[f64], out: &mut [f64]) {
    plain2(x, y, out, |a, b| scalar_f64_2(op, a, b));
}

float_lane!(
    f32,
    map1_f32,
    map2_f32,
    select_f32,
    flag32,
    functions_f32,
    functions_f32_2
);
float_lane!(
    f64,
    map1_f64,
    map2_f64,
    select_f64,
    flag64,
    functions_f64,
    functions_f64_2
);

impl Lane for i64 {
    fn constant(value: f64) -> i64 {
        value as i64
    }

    fn unary(op: Unary, x: &[i64], out: &mut [i64]) {
        macro_rules! vector {
            ($($known:ident),*) => {
                match op {
                    $(Unary::$known => {
                        run1!(i64, map1_i64, x, out, |a| scalar_i64(Unary::$known, a))
                    })*
                    _ => plain1(x, out, |a| scalar_i64(op, a)),
                }
            };
        }
        vector!(Neg, Abs, Sign, Square, Not)
    }

    fn binary(op: Binary, x: &[i64], y: &[i64], out: &mut [i64]) {
        macro_rules! vector {
            ($($known:ident |$a:ident, $b:ident| $body:expr),*) => {
                match op {
                    $(Binary::$known => run2!(i64, map2_i64, x, y, out, |$a, $b| $body),)*
                    _ => plain2(x, y, out, |a, b| scalar_i64_2(op, a, b)),
                }
            };
        }
        vector!(
            Add | a,
            b | a.wrapping_add(b),
            Sub | a,
            b | a.wrapping_sub(b),
            Mul | a,
            b | a.wrapping_mul(b),
            Max | a,
            b | a.max(b),
            Min | a,
            b | a.min(b),
            Eq | a,
            b | i64::from(a == b),
            Ne | a,
            b | i64::from(a != b),
            Lt | a,
            b | i64::from(a < b),
            Le | a,
            b | i64::from(a <= b),
            Gt | a,
            b | i64::from(a > b),
            Ge | a,
            b | i64::from(a >= b),
            And | a,
            b | i64::from((a != 0) & (b != 0)),
            Or | a,
            b | i64::from((a != 0) | (b != 0)),
            Xor | a,
            b | i64::from((a != 0) ^ (b != 0))
        )
    }

    fn select(c: &[i64], x: &[i64], y: &[i64], out: &mut [i64]) {
        select_i64(c, x, y, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of f32, with the f64 reference.
    fn ulps(got: f32, want: f64) -> f64 {
        if want.is_nan() {
            return if got.is_nan() { 0.0 } else { f64::INFINITY };
        }
        if got as f64 == want || got == want as f32 {
            return 0.0;
        }
        if !got.is_finite() || !(want as f32).is_finite() {
            // Overflow one unit early or late.
            let edge = f32::MAX as f64;
            let near =
                (want.abs() / edge - 1.0).abs() < 1e-6 && got.is_sign_positive() == (want > 0.0);
            return if near { 1.0 } else { f64::INFINITY };
        }
        let e = (want.abs().log2().floor() as i32).clamp(-126, 127);
        (got as f64 - want).abs() / 2f64.powi(e - 23)
    }

    /// All exponents with many mantissas, both signs, and the special numbers.
    fn arguments() -> Vec<f32> {
        let mut out = vec![
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            1.0,
            -1.0,
        ];
        let mut bits = 1u32;
        while bits < 0x7f80_0000 {
            let x = f32::from_bits(bits);
            out.extend([x, -x]);
            bits += 19_001;
        }
        // Denser where functions bend.
        out.extend((-120_000..120_000).map(|i| i as f32 * 1e-3 + 1e-4));
        out.extend((-20_000..20_000).map(|i| i as f32 * 1e-4));
        out
    }

    #[test]
    fn f32_functions_keep_their_promised_accuracy() {
        let x = arguments();
        let mut out = vec![0.0; x.len()];
        for &op in Unary::ALL {
            let limit = match op {
                Unary::Exp | Unary::Log => 1.0,
                Unary::Tanh | Unary::Erf => 1.5,
                Unary::Sigmoid => 2.5,
                Unary::GeluTanh => 16.0,
                Unary::Rsqrt => 1.5,
                _ => 0.51,
            };
            f32::unary(op, &x, &mut out);
            let mut worst = (0.0, 0.0f32, 0.0f32);
            for (&x, &y) in x.iter().zip(&out) {
                let want = scalar_f64(op, x as f64);
                if op == Unary::GeluTanh && (y as f64 - want).abs() < 2f64.powi(-36) {
                    continue; // Far below zero e^x magnifies the rounding of its argument.
                }
                let e = ulps(y, want);
                if e > worst.0 || e.is_nan() {
                    worst = (e, x, y);
                }
            }
            println!("{:>12} {:.3} ULP at {:e}", op.name(), worst.0, worst.1);
            assert!(
                worst.0 <= limit,
                "{}({:e}) = {:e}: {} ULP",
                op.name(),
                worst.1,
                worst.2,
                worst.0
            );
        }
    }

    #[test]
    fn signed_zeros_survive_odd_functions() {
        for op in [
            Unary::Expm1,
            Unary::Log1p,
            Unary::Sin,
            Unary::Tan,
            Unary::Asin,
            Unary::Atan,
            Unary::Sinh,
            Unary::Tanh,
            Unary::Asinh,
            Unary::Atanh,
            Unary::Erf,
            Unary::Neg,
            Unary::Sqrt,
        ] {
            let mut out = [1.0f32; 2];
            f32::unary(op, &[0.0, -0.0], &mut out);
            let want = if op == Unary::Neg {
                [-0.0f32, 0.0]
            } else {
                [0.0, -0.0]
            };
            assert_eq!(
                out.map(f32::to_bits),
                want.map(f32::to_bits),
                "{}",
                op.name()
            );
        }
    }

    #[test]
    fn binary_kernels_agree_with_their_definitions() {
        let special = [
            0.0f32,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -2.0,
            3.0,
            -3.0,
            7.5,
            1e-3,
            1e30,
            -1e30,
            1e-40,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            16_777_217.0,
            2.5,
            -0.3,
        ];
        let (mut x, mut y) = (vec![], vec![]);
        for a in special {
            for b in special {
                x.push(a);
                y.push(b);
            }
        }
        for i in 0..20_000 {
            x.push((i as f32 * 0.37).sin().abs() * 30.0 + 1e-3);
            y.push((i as f32 * 0.11).cos() * 20.0);
        }
        let mut out = vec![0.0; x.len()];
        for &op in Binary::ALL {
            f32::binary(op, &x, &y, &mut out);
            let (x64, y64): (Vec<f64>, Vec<f64>) = x
                .iter()
                .zip(&y)
                .map(|(&a, &b)| (a as f64, b as f64))
                .unzip();
            let mut out64 = vec![0.0; x.len()];
            f64::binary(op, &x64, &y64, &mut out64);
            for i in 0..x.len() {
                let want = scalar_f64_2(op, x64[i], y64[i]);
                let e = ulps(out[i], want);
                assert!(
                    e <= 0.51,
                    "{}({:e}, {:e}) = {:e}, want {want:e}",
                    op.name(),
                    x[i],
                    y[i],
                    out[i]
                );
                assert_eq!(
                    out64[i].to_bits() << 1,
                    want.to_bits() << 1,
                    "{}",
                    op.name()
                );
            }
        }
    }

    #[test]
    fn integer_kernels_agree_with_their_definitions() {
        let values = [i64::MIN, -9, -2, -1, 0, 1, 2, 7, 1 << 40, i64::MAX];
        let (mut x, mut y) = (vec![], vec![]);
        for a in values {
            for b in values {
                x.push(a);
                y.push(b);
            }
        }
        let mut out = vec![0; x.len()];
        for &op in Binary::ALL {
            i64::binary(op, &x, &y, &mut out);
            for i in 0..x.len() {
                assert_eq!(out[i], scalar_i64_2(op, x[i], y[i]), "{}", op.name());
            }
        }
        for &op in Unary::ALL {
            i64::unary(op, &x, &mut out);
            for i in 0..x.len() {
                assert_eq!(out[i], scalar_i64(op, x[i]), "{}", op.name());
            }
        }
        i64::select(&[0, 5, -1], &[1, 2, 3], &[7, 8, 9], &mut out[..3]);
        assert_eq!(out[..3], [7, 2, 3]);
    }
}
