//! Elementwise arithmetic and comparison of two tensors, and the operators `+ - * /`.
//!
//! Operands are promoted and broadcast first, by ops of their own.

use std::sync::LazyLock;

use entrenar_base::{Array, DType, Error, Result};
use entrenar_cpu::pointwise::Binary;

use crate::Tensor;
use crate::apply::apply1;
use crate::expr::{OutputType, Pointwise, x};
use crate::op::OpRef;
use crate::registry::{Entry, Gen, Sample};

/// Promotes and broadcasts two operands.
#[track_caller]
pub(crate) fn paired(a: &Tensor, b: &Tensor, op: &str) -> Result<(Tensor, Tensor)> {
    let dtype = a.dtype().promote(b.dtype());
    let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
    if a.shape() == b.shape() {
        return Ok((a, b));
    }
    let shape = a.shape().broadcast(b.shape(), op)?;
    Ok((a.broadcast_to(shape.clone())?, b.broadcast_to(shape)?))
}

/// A constant of this tensor's shape and dtype: one element with zero strides.
fn like(t: &Tensor, value: f64) -> Result<Tensor> {
    Ok(Tensor::from(
        Array::full_as((), value, t.dtype()).broadcast_to(t.shape())?,
    ))
}

macro_rules! binary {
    ($( $(#[$doc:meta])* $method:ident, $name:literal, $op:ident, $out:expr, $float:expr; )*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// When the shapes do not broadcast.
                #[track_caller]
                pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                    static OP: LazyLock<OpRef> = LazyLock::new(|| {
                        let expr = x(0).binary(Binary::$op, &x(1));
                        OpRef::always(Pointwise::new($name, 2, $out, expr))
                    });
                    let (dtype, shape) = (self.dtype(), self.shape());
                    if dtype == other.dtype()
                        && shape == other.shape()
                        && !($float && !dtype.is_float())
                    {
                        return apply1(&OP, &[self, other]);
                    }
                    let (a, b) = paired(self, other, $name)?;
                    if $float && !a.dtype().is_float() {
                        let (a, b) = (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?);
                        return apply1(&OP, &[&a, &b]);
                    }
                    apply1(&OP, &[&a, &b])
                }
            )*
        }
    };
}

const LIKE: OutputType = OutputType::Like(0);

binary! {
    /// Elementwise sum.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![1.0f32, 2.0], [2, 1])?;
    /// let b = Tensor::from_vec(vec![10.0f32, 20.0], [2])?;
    /// assert_eq!(a.add(&b)?.to_vec::<f32>()?, [11.0, 21.0, 12.0, 22.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    add, "add", Add, LIKE, false;
    /// Elementwise difference.
    sub, "sub", Sub, LIKE, false;
    /// Elementwise product.
    mul, "mul", Mul, LIKE, false;
    /// Elementwise quotient; integers are divided as f32.
    div, "div", Div, LIKE, true;
    /// Elementwise power. The gradient is 0 where the exponent is 0, and towards the exponent
    /// where the base is 0 and the exponent is not negative.
    pow, "pow", Pow, LIKE, false;
    /// Elementwise larger value; ties share the gradient, NaN wins.
    maximum, "maximum", Max, LIKE, false;
    /// Elementwise smaller value; ties share the gradient, NaN wins.
    minimum, "minimum", Min, LIKE, false;
    /// The angle of (other, self) in (-π, π].
    atan2, "atan2", Atan2, LIKE, true;
    /// The remainder of truncated division (the sign of self), C's `fmod`.
    fmod, "fmod", Fmod, LIKE, false;
    /// The remainder of floored division (the sign of other), Python's `%`.
    remainder, "remainder", Remainder, LIKE, false;
    /// The magnitude of self with the sign of other.
    copysign, "copysign", Copysign, LIKE, true;
    /// Elementwise equality, as bool.
    eq, "eq", Eq, OutputType::Bool, false;
    /// Elementwise inequality, as bool.
    ne, "ne", Ne, OutputType::Bool, false;
    /// Elementwise `self < other`, as bool.
    lt, "lt", Lt, OutputType::Bool, false;
    /// Elementwise `self <= other`, as bool.
    le, "le", Le, OutputType::Bool, false;
    /// Elementwise `self > other`, as bool.
    gt, "gt", Gt, OutputType::Bool, false;
    /// Elementwise `self >= other`, as bool.
    ge, "ge", Ge, OutputType::Bool, false;
    /// True where both are non-zero.
    logical_and, "logical_and", And, OutputType::Bool, false;
    /// True where either is non-zero.
    logical_or, "logical_or", Or, OutputType::Bool, false;
    /// True where exactly one is non-zero.
    logical_xor, "logical_xor", Xor, OutputType::Bool, false;
}

macro_rules! scalar {
    ($( $(#[$doc:meta])* $method:ident => $binary:ident; )*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// When the tensor is an integer and the number is not.
                #[track_caller]
                pub fn $method(&self, value: f64) -> Result<Tensor> {
                    if !self.dtype().is_float() && value.fract() != 0.0 {
                        return Err(Error::dtype(
                            stringify!($method),
                            "a float tensor for a fractional number",
                            format!("{} and {value}", self.dtype()),
                        ));
                    }
                    self.$binary(&like(self, value)?)
                }
            )*
        }
    };
}

scalar! {
    /// Adds a number.
    add_scalar => add;
    /// Subtracts a number.
    sub_scalar => sub;
    /// Multiplies by a number.
    mul_scalar => mul;
    /// Divides by a number.
    div_scalar => div;
    /// Raises to a constant power.
    pow_scalar => pow;
    /// The larger of each element and a number.
    maximum_scalar => maximum;
    /// The smaller of each element and a number.
    minimum_scalar => minimum;
    /// Compares with a number.
    eq_scalar => eq;
    /// Compares with a number.
    lt_scalar => lt;
    /// Compares with a number.
    gt_scalar => gt;
    /// Compares with a number.
    ge_scalar => ge;
    /// Compares with a number.
    le_scalar => le;
}

macro_rules! operator {
    ($trait:ident, $method:ident, $scalar:ident) => {
        impl std::ops::$trait<&Tensor> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: &Tensor) -> Tensor {
                Tensor::$method(self, other).unwrap_or_else(|e| panic!("{e}"))
            }
        }
        impl std::ops::$trait<Tensor> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: Tensor) -> Tensor {
                std::ops::$trait::$method(&self, &other)
            }
        }
        impl std::ops::$trait<&Tensor> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: &Tensor) -> Tensor {
                std::ops::$trait::$method(&self, other)
            }
        }
        impl std::ops::$trait<Tensor> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: Tensor) -> Tensor {
                std::ops::$trait::$method(self, &other)
            }
        }
        impl std::ops::$trait<f64> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, value: f64) -> Tensor {
                self.$scalar(value).unwrap_or_else(|e| panic!("{e}"))
            }
        }
        impl std::ops::$trait<f64> for Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, value: f64) -> Tensor {
                std::ops::$trait::$method(&self, value)
            }
        }
    };
}
operator!(Add, add, add_scalar);
operator!(Sub, sub, sub_scalar);
operator!(Mul, mul, mul_scalar);
operator!(Div, div, div_scalar);

impl std::ops::Neg for &Tensor {
    type Output = Tensor;
    #[track_caller]
    fn neg(self) -> Tensor {
        Tensor::neg(self).unwrap_or_else(|e| panic!("{e}"))
    }
}

fn pair(g: &mut Gen, a: (f64, f64), b: (f64, f64)) -> Vec<Tensor> {
    let (sa, sb) = g.broadcast_pair();
    vec![g.tensor(sa, a.0, a.1), g.tensor(sb, b.0, b.1)]
}

/// Two operands whose elements never tie: one lies on a grid, the other between its points.
fn pair_without_ties(g: &mut Gen) -> Vec<Tensor> {
    let (sa, sb) = g.broadcast_pair();
    let a = g.tensor_distinct(sa);
    let b = g.tensor_distinct(sb);
    let b = Tensor::from(
        Array::from_vec(
            b.to_vec::<f64>()
                .expect("f64")
                .iter()
                .map(|v| (v * 10.0).floor() / 10.0 + 0.075)
                .collect(),
            b.shape(),
        )
        .expect("counted"),
    );
    vec![a, b]
}

macro_rules! entry {
    ($name:literal, |$g:ident| $inputs:expr, $method:ident, $order:expr) => {
        Entry {
            name: $name,
            kind: if $order == 0 { "zero" } else { "pointwise" },
            sample: |$g| Ok(Sample::one($inputs, |t| t[0].$method(&t[1])).order($order)),
        }
    };
}

pub(crate) const ENTRIES: &[Entry] = &[
    entry!("add", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), add, 3),
    entry!("sub", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), sub, 3),
    entry!("mul", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), mul, 3),
    entry!("div", |g| pair(g, (-2.0, 2.0), (0.5, 2.0)), div, 3),
    entry!("pow", |g| pair(g, (0.5, 2.0), (-2.0, 2.0)), pow, 3),
    entry!("maximum", |g| pair_without_ties(g), maximum, 3),
    entry!("minimum", |g| pair_without_ties(g), minimum, 3),
    entry!("atan2", |g| pair(g, (0.5, 2.0), (-2.0, 2.0)), atan2, 3),
    entry!("fmod", |g| pair(g, (2.2, 2.6), (0.9, 1.0)), fmod, 3),
    entry!(
        "remainder",
        |g| pair(g, (-2.9, -2.1), (0.98, 1.0)),
        remainder,
        3
    ),
    entry!(
        "copysign",
        |g| pair(g, (0.5, 2.0), (-2.0, -0.5)),
        copysign,
        3
    ),
    entry!("eq", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), eq, 0),
    entry!("ne", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), ne, 0),
    entry!("lt", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), lt, 0),
    entry!("le", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), le, 0),
    entry!("gt", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), gt, 0),
    entry!("ge", |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)), ge, 0),
    entry!(
        "logical_and",
        |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)),
        logical_and,
        0
    ),
    entry!(
        "logical_or",
        |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)),
        logical_or,
        0
    ),
    entry!(
        "logical_xor",
        |g| pair(g, (-2.0, 2.0), (-2.0, 2.0)),
        logical_xor,
        0
    ),
];
