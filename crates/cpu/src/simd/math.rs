//! Elementary functions as straight-line code that vectorises.
//!
//! Every function is branch-free (`if` on computed values only), so a loop over a slice inside
//! `super::multiversion` becomes SIMD code with the same bits per element at every width.
//!
//! Two families. The hot ones (`exp`, `log`, `tanh`, `sigmoid`, `erf`) compute in f32. The others
//! compute in f64 and round once, which costs half the width and gives about 0.5 ULP. Largest
//! errors measured over all exponents by the tests of
//! `pointwise::kernels`, in units in the last place of f32:
//!
//! | exp  | log  | tanh | sigmoid | erf  | the f64 family |
//! |------|------|------|---------|------|----------------|
//! | 0.97 | 0.76 | 1.20 | 2.16    | 1.04 | 0.51           |
//!
//! Polynomials: `oracles/fit_math.py`. Reductions: Cody and Waite, *Software Manual for the
//! Elementary Functions*, 1980; Muller et al., *Handbook of Floating-Point Arithmetic*.

#![allow(
    clippy::excessive_precision,
    reason = "coefficients as the fit printed them"
)]

/// Adding and subtracting it rounds an f32 below 2^22 to an integer.
const ROUND32: f32 = 12_582_912.0;
/// The same for f64 below 2^51.
const ROUND64: f64 = 6_755_399_441_055_744.0;

/// `2^n` for an integer in -126..=127; any bits for others.
#[inline(always)]
fn power32(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// `2^n` for an integer in -1022..=1023.
#[inline(always)]
fn power64(n: i64) -> f64 {
    f64::from_bits(((n + 1023) << 52) as u64)
}

/// `x` limited to a range; NaN stays NaN.
#[inline(always)]
fn clamp32(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

#[inline(always)]
fn clamp64(x: f64, low: f64, high: f64) -> f64 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// Horner's rule in type `$T`, lowest power first.
macro_rules! poly {
    ($T:ident, $x:expr, $last:expr) => { $last };
    ($T:ident, $x:expr, $first:expr, $($rest:expr),+) => {
        $T::mul_add(poly!($T, $x, $($rest),+), $x, $first)
    };
}

// ---- f32 ------------------------------------------------------------------------------------

/// e^x.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375; // 10 bits: n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = clamp32(x, -104.0, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND32);
    let n = shifted - ROUND32;
    let k = (shifted.to_bits() as i32).wrapping_sub(ROUND32.to_bits() as i32);
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let p = poly!(
        f32,
        r,
        0.500_000_001_3,
        0.166_666_666_8,
        0.041_666_465_01,
        0.008_333_310_934,
        0.001_393_364_103,
        0.000_198_909_808_7
    );
    let y = (r * r).mul_add(p, r) + 1.0;
    // In two steps, because 2^k alone leaves the range at both ends. A NaN makes k arbitrary, and
    // stays what it is whatever it is multiplied by.
    let half = k >> 1;
    y * power32(half) * power32(k.wrapping_sub(half))
}

/// Natural logarithm.
#[inline(always)]
pub fn log(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    // Mantissa in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) moves the cut there.
    let bits = (scaled.to_bits() as i32).wrapping_sub(0x3f35_04f3);
    let e = (bits >> 23) as f32 - if tiny { 23.0 } else { 0.0 };
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3) as u32);
    let f = m - 1.0;
    let p = poly!(
        f32,
        f,
        0.333_333_311_8,
        -0.249_999_969_6,
        0.200_007_157_5,
        -0.166_678_023_2,
        0.142_490_576_5,
        -0.124_256_873_3,
        0.116_854_199_2,
        -0.114_797_338_5,
        0.069_716_114_71
    );
    let f2 = f * f;
    let tail = (f * f2).mul_add(p, e * LN2_LOW);
    let y = f2.mul_add(-0.5, tail) + f;
    let y = e.mul_add(LN2_HIGH, y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // Written so that NaN takes it too.
    if x >= 0.0 { y } else { f32::NAN }
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let u = x * x;
    let p = poly!(
        f32,
        u,
        -0.333_333_289_4,
        0.133_327_697_4,
        -0.053_850_909_58,
        0.020_997_179,
        -0.006_096_714_166
    );
    let small = (x * u).mul_add(p, x);
    let large = 1.0 - 2.0 / (exp(2.0 * clamp32(a, 0.0, 10.0)) + 1.0);
    (if a < 0.625 { small } else { large }).copysign(x)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // With the exponent kept negative neither end overflows.
    let e = exp(-x.abs());
    let top = if x < 0.0 { e } else { 1.0 };
    top / (1.0 + e)
}

/// x·sigmoid(2u) with u = √(2/π)·(x + 0.044715·x³). Errors stay below 16 units in the last place,
/// or below 2^-36 where the value is that small.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    const TWICE_ROOT: f32 =
        (2.0 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;
    let square = x * x;
    let twice = x * square.mul_add(TWICE_ROOT * 0.044_715, TWICE_ROOT);
    x * sigmoid(twice)
}

/// Error function.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = clamp32(x.abs(), 0.0, 4.0);
    let u = a * a;
    let p = poly!(
        f32,
        u,
        0.128_379_165_8,
        -0.376_126_266_7,
        0.112_835_947_2,
        -0.026_854_212_01,
        0.005_189_087_423,
        -0.000_801_686_428_7,
        7.875_875_063e-5
    );
    let small = a.mul_add(p, a);
    let q = poly!(
        f32,
        a,
        1.128_792_814,
        0.634_617_255_2,
        0.107_022_514_5,
        -0.024_332_305_55,
        0.003_835_511_331,
        -0.000_331_685_447_3,
        -1.584_388_446e-6,
        3.236_754_584e-6,
        -2.166_180_444e-7
    );
    let large = 1.0 - exp(-a * q);
    (if a < 1.0 { small } else { large }).copysign(x)
}

// ---- f64 cores, accurate to about 1e-12: enough to round once to f32 ------------------------

/// (n, e^r - 1) with x = n·ln 2 + r, for |x| <= 700.
#[inline(always)]
fn exp_parts(x: f64) -> (i64, f64) {
    let x = clamp64(x, -700.0, 700.0);
    let shifted = x.mul_add(std::f64::consts::LOG2_E, ROUND64);
    let n = shifted - ROUND64;
    let k = (shifted.to_bits() as i64).wrapping_sub(ROUND64.to_bits() as i64);
    let r = n.mul_add(-std::f64::consts::LN_2, x);
    let p = poly!(
        f64,
        r,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5_040.0,
        1.0 / 40_320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0
    );
    (k.clamp(-1022, 1023), r * p)
}

#[inline(always)]
fn exp64(x: f64) -> f64 {
    let (n, m) = exp_parts(x);
    power64(n) * (1.0 + m)
}

#[inline(always)]
fn expm1_64(x: f64) -> f64 {
    let (n, m) = exp_parts(x);
    let scale = power64(n);
    scale.mul_add(m, scale - 1.0)
}

/// For normal numbers, zero, infinity and NaN (a widened f32 is never subnormal).
#[inline(always)]
fn log64(x: f64) -> f64 {
    let bits = (x.to_bits() as i64).wrapping_sub(0x3fe6_a09e_667f_3bcd);
    // The exponent converted through the mantissa of a large number: a vector conversion from
    // 64-bit integers exists only with AVX-512.
    let e = f64::from_bits(((bits >> 52) + ROUND64.to_bits() as i64) as u64) - ROUND64;
    let m =
        f64::from_bits((bits & 0x000f_ffff_ffff_ffff).wrapping_add(0x3fe6_a09e_667f_3bcd) as u64);
    let s = (m - 1.0) / (m + 1.0);
    let u = s * s;
    let p = poly!(
        f64,
        u,
        1.0,
        1.0 / 3.0,
        1.0 / 5.0,
        1.0 / 7.0,
        1.0 / 9.0,
        1.0 / 11.0,
        1.0 / 13.0,
        1.0 / 15.0
    );
    let y = e.mul_add(std::f64::consts::LN_2, 2.0 * s * p);
    let y = if x == f64::INFINITY { x } else { y };
    let y = if x == 0.0 { f64::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f64::NAN }
}

#[inline(always)]
fn log1p_64(x: f64) -> f64 {
    let small = x * (x * (1.0f64 / 3.0)).mul_add(x, (-0.5f64).mul_add(x, 1.0));
    if x.abs() < 1e-5 {
        small
    } else {
        log64(1.0 + x)
    }
}

#[inline(always)]
fn atan64(x: f64) -> f64 {
    let a = x.abs();
    let inverse = a > 1.0;
    let t = if inverse { 1.0 / a } else { a };
    let p = poly!(
        f64,
        t * t,
        0.999_999_999_998_196_7,
        -0.333_333_332_624_796_96,
        0.199_999_953_403_850_62,
        -0.142_855_923_942_825_27,
        0.111_094_283_443_305_72,
        -0.090_767_988_766_504_77,
        0.076_142_501_990_031_21,
        -0.063_660_922_360_968_27,
        0.050_455_577_528_416_14,
        -0.035_267_720_869_422_44,
        0.019_937_442_836_256_173,
        -0.008_241_899_893_996_813,
        0.002_162_794_422_156_479,
        -0.000_266_601_966_992_674_23
    );
    let y = t * p;
    let y = if inverse {
        std::f64::consts::FRAC_PI_2 - y
    } else {
        y
    };
    y.copysign(x)
}

/// (sin, cos) of x for |x| <= 1e6; larger ones lose accuracy (see [`REDUCIBLE`]).
#[inline(always)]
fn sin_cos64(x: f64) -> (f64, f64) {
    const HALF_PI_LOW: f64 = 6.123_233_995_736_766e-17;
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND64);
    let n = shifted - ROUND64;
    let quadrant = shifted.to_bits();
    let r = n.mul_add(-std::f64::consts::FRAC_PI_2, x);
    let r = n.mul_add(-HALF_PI_LOW, r);
    let u = r * r;
    let s = poly!(
        f64,
        u,
        1.0,
        -1.0 / 6.0,
        1.0 / 120.0,
        -1.0 / 5_040.0,
        1.0 / 362_880.0,
        -1.0 / 39_916_800.0,
        1.0 / 6_227_020_800.0
    ) * r;
    let c = poly!(
        f64,
        u,
        1.0,
        -1.0 / 2.0,
        1.0 / 24.0,
        -1.0 / 720.0,
        1.0 / 40_320.0,
        -1.0 / 3_628_800.0,
        1.0 / 479_001_600.0
    );
    let odd = quadrant & 1 == 1;
    let (sin, cos) = if odd { (c, s) } else { (s, c) };
    (
        if quadrant & 2 == 2 { -sin } else { sin },
        if quadrant.wrapping_add(1) & 2 == 2 {
            -cos
        } else {
            cos
        },
    )
}

/// Two independent standard normal numbers from `u` in (0, 1] and `v` in [0, 1): Box and Muller,
/// "A note on the generation of random normal deviates", 1958.
#[inline(always)]
pub fn box_muller(u: f64, v: f64) -> (f64, f64) {
    let r = (-2.0 * log64(u)).sqrt();
    let (s, c) = sin_cos64(std::f64::consts::TAU * v);
    (r * c, r * s)
}

/// Largest |x| whose sine and cosine the vector code reduces; slices that hold larger ones redo
/// those elements with the standard library.
pub const REDUCIBLE: f32 = 1e6;

// ---- f32 through f64 ------------------------------------------------------------------------

/// 2^x.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    exp64(x as f64 * std::f64::consts::LN_2) as f32
}

/// e^x - 1.
#[inline(always)]
pub fn expm1(x: f32) -> f32 {
    // Tiny x: r * p rounds to x itself, also for -0.
    let y = expm1_64(x as f64) as f32;
    if x == 0.0 { x } else { y }
}

/// Base-2 logarithm.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    (log64(x as f64) * std::f64::consts::LOG2_E) as f32
}

/// Base-10 logarithm.
#[inline(always)]
pub fn log10(x: f32) -> f32 {
    (log64(x as f64) * std::f64::consts::LOG10_E) as f32
}

/// log(1 + x).
#[inline(always)]
pub fn log1p(x: f32) -> f32 {
    log1p_64(x as f64) as f32
}

/// log(1 + e^x) without overflow.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let x = x as f64;
    let tail = log1p_64(exp64(-x.abs()));
    // Not max(x, 0): NaN must come through.
    ((if x < 0.0 { 0.0 } else { x }) + tail) as f32
}

/// Sine, for |x| <= [`REDUCIBLE`].
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    let y = sin_cos64(x as f64).0 as f32;
    if x == 0.0 { x } else { y }
}

/// Cosine, for |x| <= [`REDUCIBLE`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    sin_cos64(x as f64).1 as f32
}

/// Tangent, for |x| <= [`REDUCIBLE`].
#[inline(always)]
pub fn tan(x: f32) -> f32 {
    let (s, c) = sin_cos64(x as f64);
    let y = (s / c) as f32;
    if x == 0.0 { x } else { y }
}

/// Inverse sine.
#[inline(always)]
pub fn asin(x: f32) -> f32 {
    let x = x as f64;
    atan64(x / ((1.0 - x) * (1.0 + x)).sqrt()) as f32
}

/// Inverse cosine.
#[inline(always)]
pub fn acos(x: f32) -> f32 {
    let x = x as f64;
    (2.0 * atan64(((1.0 - x) / (1.0 + x)).sqrt())) as f32
}

/// Inverse tangent.
#[inline(always)]
pub fn atan(x: f32) -> f32 {
    atan64(x as f64) as f32
}

/// Hyperbolic sine.
#[inline(always)]
pub fn sinh(x: f32) -> f32 {
    let m = expm1_64((x as f64).abs());
    (0.5 * (m + m / (m + 1.0))).copysign(x as f64) as f32
}

/// Hyperbolic cosine.
#[inline(always)]
pub fn cosh(x: f32) -> f32 {
    let e = exp64((x as f64).abs());
    (0.5 * (e + 1.0 / e)) as f32
}

/// Inverse hyperbolic sine.
#[inline(always)]
pub fn asinh(x: f32) -> f32 {
    let a = (x as f64).abs();
    let u = a * a;
    let more = u / (1.0 + (u + 1.0).sqrt());
    let y = log1p_64(a + if a == f64::INFINITY { 0.0 } else { more });
    y.copysign(x as f64) as f32
}

/// Inverse hyperbolic cosine.
#[inline(always)]
pub fn acosh(x: f32) -> f32 {
    let t = x as f64 - 1.0;
    let y = log1p_64(t + (t * (t + 2.0)).sqrt()) as f32;
    // For large negative x the argument of the root is positive again.
    if x < 1.0 { f32::NAN } else { y }
}

/// Inverse hyperbolic tangent.
#[inline(always)]
pub fn atanh(x: f32) -> f32 {
    let a = (x as f64).abs();
    (0.5 * log1p_64(2.0 * a / (1.0 - a))).copysign(x as f64) as f32
}

/// 1 - erf(x), accurate in the tail.
#[inline(always)]
pub fn erfc(x: f32) -> f32 {
    let x = x as f64;
    let a = clamp64(x.abs(), 0.0, 11.0);
    let t = 1.0 / (0.5f64).mul_add(a, 1.0);
    let p = poly!(
        f64,
        t,
        0.282_094_804_988_386_5,
        0.282_094_053_078_807_1,
        0.246_851_413_138_228_2,
        0.176_033_545_824_158_67,
        0.086_506_542_942_661_76,
        -0.024_096_849_016_756_534,
        0.046_961_682_472_803_975,
        -0.464_887_786_837_598_7,
        1.236_520_489_265_594_3,
        -2.788_040_796_356_942,
        4.919_788_204_468_409,
        -6.088_930_884_847_754_5,
        5.182_736_323_705_762,
        -3.003_956_586_564_982_7,
        1.142_561_083_492_918_2,
        -0.258_832_653_746_569_55,
        0.026_597_413_792_098_007
    );
    let y = exp64(-a * a) * t * p;
    let y = if x < 0.0 { 2.0 - y } else { y };
    // The clamp hides an infinite argument rightly; NaN passes through it.
    y as f32
}

/// x^y.
#[inline(always)]
pub fn pow(x: f32, y: f32) -> f32 {
    // The clamp of exp64 is harmless: f32 overflows and vanishes inside ±700 already.
    let magnitude = exp64(y as f64 * log64((x as f64).abs()));
    let integer = y.trunc() == y;
    let half = y * 0.5;
    let odd = integer && half.trunc() != half;
    let negative = x.is_sign_negative();
    let r = magnitude as f32;
    let r = if negative && odd { -r } else { r };
    let r = if x < 0.0 && !integer && x != f32::NEG_INFINITY {
        f32::NAN
    } else {
        r
    };
    let r = if x.is_nan() || y.is_nan() {
        f32::NAN
    } else {
        r
    };
    // These two hold even when the other operand is NaN; |x| = 1 with y = ±inf gives 1 too.
    let one = x == 1.0 || y == 0.0 || (x == -1.0 && y.abs() == f32::INFINITY);
    if one { 1.0 } else { r }
}
