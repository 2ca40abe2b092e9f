//! Elementwise functions of one tensor. The expression is the whole definition: kernel, gradient
//! and all higher orders follow from it.

use std::sync::LazyLock;

use entrenar_base::{DType, Result};
use entrenar_cpu::pointwise::Unary;

use crate::Tensor;
use crate::apply::apply1;
use crate::expr::{OutputType, Pointwise, x};
use crate::op::OpRef;
use crate::registry::{Entry, Sample};

macro_rules! unary {
    ($( $(#[$doc:meta])* $method:ident, $op:ident, $out:expr, $float:expr,
        ($low:expr, $high:expr, $avoid:expr), $order:expr; )*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// Never for valid tensors.
                #[track_caller]
                pub fn $method(&self) -> Result<Tensor> {
                    static OP: LazyLock<OpRef> = LazyLock::new(|| {
                        let expr = x(0).unary(Unary::$op);
                        OpRef::always(Pointwise::new(stringify!($method), 1, $out, expr))
                    });
                    if $float && !self.dtype().is_float() {
                        return apply1(&OP, &[&self.to_dtype(DType::F32)?]);
                    }
                    apply1(&OP, &[self])
                }
            )*
        }

        pub(crate) const ENTRIES: &[Entry] = &[
            $( Entry {
                name: stringify!($method),
                kind: if $order == 0 { "zero" } else { "pointwise" },
                sample: |g| {
                    let shape = g.shape(0..=4);
                    let avoid: &[f64] = &$avoid;
                    let x = g.tensor_avoiding(shape, $low, $high, avoid, 0.05);
                    Ok(Sample::one(vec![x], |t| t[0].$method()).order($order))
                },
            }, )*
        ];
    };
}

const LIKE: OutputType = OutputType::Like(0);
const BOOL: OutputType = OutputType::Bool;

unary! {
    /// The negative.
    neg, Neg, LIKE, false, (-2.0, 2.0, []), 3;
    /// The absolute value; its gradient at 0 is 0.
    abs, Abs, LIKE, false, (-2.0, 2.0, [0.0]), 3;
    /// -1, 0 or 1.
    sign, Sign, LIKE, false, (-2.0, 2.0, [0.0]), 1;
    /// The exponential function.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// assert_eq!(Tensor::scalar(0.0f32).exp()?.item::<f32>()?, 1.0);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    exp, Exp, LIKE, true, (-2.0, 2.0, []), 3;
    /// 2 to the power of each element.
    exp2, Exp2, LIKE, true, (-2.0, 2.0, []), 3;
    /// exp(x) - 1, accurate near 0.
    expm1, Expm1, LIKE, true, (-2.0, 2.0, []), 3;
    /// The natural logarithm.
    log, Log, LIKE, true, (0.5, 3.0, []), 3;
    /// The logarithm to base 2.
    log2, Log2, LIKE, true, (0.5, 3.0, []), 3;
    /// The logarithm to base 10.
    log10, Log10, LIKE, true, (0.5, 3.0, []), 3;
    /// log(1 + x), accurate near 0.
    log1p, Log1p, LIKE, true, (-0.5, 2.0, []), 3;
    /// The square root.
    sqrt, Sqrt, LIKE, true, (0.5, 3.0, []), 3;
    /// 1 over the square root.
    rsqrt, Rsqrt, LIKE, true, (0.5, 3.0, []), 3;
    /// 1 over each element.
    reciprocal, Recip, LIKE, true, (0.5, 3.0, []), 3;
    /// The square.
    square, Square, LIKE, false, (-2.0, 2.0, []), 3;
    /// The sine (radians).
    sin, Sin, LIKE, true, (-3.0, 3.0, []), 3;
    /// The cosine (radians).
    cos, Cos, LIKE, true, (-3.0, 3.0, []), 3;
    /// The tangent (radians).
    tan, Tan, LIKE, true, (-1.0, 1.0, []), 3;
    /// The angle in [-π/2, π/2] with this sine.
    asin, Asin, LIKE, true, (-0.8, 0.8, []), 3;
    /// The angle in [0, π] with this cosine.
    acos, Acos, LIKE, true, (-0.8, 0.8, []), 3;
    /// The angle in (-π/2, π/2) with this tangent.
    atan, Atan, LIKE, true, (-2.0, 2.0, []), 3;
    /// The hyperbolic sine.
    sinh, Sinh, LIKE, true, (-2.0, 2.0, []), 3;
    /// The hyperbolic cosine.
    cosh, Cosh, LIKE, true, (-2.0, 2.0, []), 3;
    /// The hyperbolic tangent.
    tanh, Tanh, LIKE, true, (-2.0, 2.0, []), 3;
    /// The inverse hyperbolic sine.
    asinh, Asinh, LIKE, true, (-2.0, 2.0, []), 3;
    /// The inverse hyperbolic cosine.
    acosh, Acosh, LIKE, true, (1.5, 3.0, []), 3;
    /// The inverse hyperbolic tangent.
    atanh, Atanh, LIKE, true, (-0.7, 0.7, []), 3;
    /// 1 / (1 + exp(-x)).
    sigmoid, Sigmoid, LIKE, true, (-3.0, 3.0, []), 3;
    /// The error function 2/√π ∫₀ˣ exp(-t²) dt.
    erf, Erf, LIKE, true, (-2.0, 2.0, []), 3;
    /// 1 - erf(x), accurate for large x.
    erfc, Erfc, LIKE, true, (-2.0, 2.0, []), 3;
    /// The next integer below.
    floor, Floor, LIKE, false, (-2.0, 2.0, [-2.0, -1.0, 0.0, 1.0, 2.0]), 1;
    /// The next integer above.
    ceil, Ceil, LIKE, false, (-2.0, 2.0, [-2.0, -1.0, 0.0, 1.0, 2.0]), 1;
    /// The nearest integer, halves to even.
    round, Round, LIKE, false, (-2.0, 2.0, [-1.5, -0.5, 0.5, 1.5]), 1;
    /// Without the fractional part.
    trunc, Trunc, LIKE, false, (-2.0, 2.0, [-2.0, -1.0, 0.0, 1.0, 2.0]), 1;
    /// True where the element is NaN.
    is_nan, IsNan, BOOL, false, (-2.0, 2.0, []), 0;
    /// True where the element is infinite.
    is_inf, IsInf, BOOL, false, (-2.0, 2.0, []), 0;
    /// True where the element is neither NaN nor infinite.
    is_finite, IsFinite, BOOL, false, (-2.0, 2.0, []), 0;
    /// True where the element is 0.
    logical_not, Not, BOOL, false, (-2.0, 2.0, []), 0;
}
