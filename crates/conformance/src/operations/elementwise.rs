//! Elementary functions, arithmetic and choices between values.

use entrenar_base::{DType, Error, Result};
use entrenar_core::Tensor;

use super::{Operation, one};
use crate::call::Call;
use crate::suite::Value;

pub(super) const OPERATIONS: &[Operation] = &[
    one!("abs", "", |c| c.input()?.abs()),
    one!("acos", "", |c| c.input()?.acos()),
    one!("acosh", "", |c| c.input()?.acosh()),
    one!("asin", "", |c| c.input()?.asin()),
    one!("asinh", "", |c| c.input()?.asinh()),
    one!("atan", "", |c| c.input()?.atan()),
    one!("atanh", "", |c| c.input()?.atanh()),
    one!("ceil", "", |c| c.input()?.ceil()),
    one!("cos", "", |c| c.input()?.cos()),
    one!("cosh", "", |c| c.input()?.cosh()),
    one!("erf", "", |c| c.input()?.erf()),
    one!("erfc", "", |c| c.input()?.erfc()),
    one!("exp", "", |c| c.input()?.exp()),
    one!("exp2", "", |c| c.input()?.exp2()),
    one!("expm1", "", |c| c.input()?.expm1()),
    one!("floor", "", |c| c.input()?.floor()),
    one!("log", "", |c| c.input()?.log()),
    one!("log10", "", |c| c.input()?.log10()),
    one!("log1p", "", |c| c.input()?.log1p()),
    one!("log2", "", |c| c.input()?.log2()),
    one!("neg", "", |c| c.input()?.neg()),
    one!("reciprocal", "", |c| c.input()?.reciprocal()),
    one!("round", "", |c| c.input()?.round()),
    one!("rsqrt", "", |c| c.input()?.rsqrt()),
    one!("sigmoid", "", |c| c.input()?.sigmoid()),
    one!("sign", "", |c| c.input()?.sign()),
    one!("sin", "", |c| c.input()?.sin()),
    one!("sinh", "", |c| c.input()?.sinh()),
    one!("sqrt", "", |c| c.input()?.sqrt()),
    one!("square", "", |c| c.input()?.square()),
    one!("tan", "", |c| c.input()?.tan()),
    one!("tanh", "", |c| c.input()?.tanh()),
    one!("trunc", "", |c| c.input()?.trunc()),
    one!("add", "other alpha", |c| c.input()?.add(&scaled(c)?)),
    one!("sub", "other alpha", |c| c.input()?.sub(&scaled(c)?)),
    one!("__radd__", "other", |c| c.operand("other")?.add(c.input()?)),
    one!("__rsub__", "other", |c| c.operand("other")?.sub(c.input()?)),
    one!("__rmul__", "other", |c| c.operand("other")?.mul(c.input()?)),
    one!("__rdiv__", "other", |c| c.operand("other")?.div(c.input()?)),
    one!("__rpow__", "other", |c| c.operand("other")?.pow(c.input()?)),
    one!("mul", "other", |c| c.input()?.mul(&c.operand("other")?)),
    one!("div", "other rounding_mode", |c| div(c)),
    one!("true_divide", "other", |c| c
        .input()?
        .div(&c.operand("other")?)),
    one!("pow", "exponent", |c| c
        .input()?
        .pow(&c.operand("exponent")?)),
    one!("atan2", "other", |c| c.input()?.atan2(c.tensor("other")?)),
    one!("fmod", "other", |c| c.input()?.fmod(&c.operand("other")?)),
    one!("remainder", "other", |c| c
        .input()?
        .remainder(&c.operand("other")?)),
    one!("copysign", "other", |c| c
        .input()?
        .copysign(&c.operand("other")?)),
    one!("maximum", "other", |c| c
        .input()?
        .maximum(c.tensor("other")?)),
    one!("minimum", "other", |c| c
        .input()?
        .minimum(c.tensor("other")?)),
    one!("logaddexp", "other", |c| c
        .input()?
        .logaddexp(c.tensor("other")?)),
    one!("clamp", "min max", |c| clamp(c)),
    one!("clamp_min", "min", |c| clamp(c)),
    one!("clamp_max", "max", |c| clamp(c)),
    one!("where", "condition other", |c| Tensor::where_(
        c.tensor("condition")?,
        c.input()?,
        &c.operand("other")?
    )),
    one!("masked_fill", "mask value", |c| masked_fill(c)),
    one!("lerp", "end weight", |c| c
        .input()?
        .lerp(c.tensor("end")?, &c.operand("weight")?)),
    one!("isnan", "", |c| c.input()?.is_nan()),
    one!("isinf", "", |c| c.input()?.is_inf()),
    one!("isfinite", "", |c| c.input()?.is_finite()),
    one!("logical_not", "", |c| c.input()?.logical_not()),
    one!("logical_and", "other", |c| c
        .input()?
        .logical_and(c.tensor("other")?)),
    one!("logical_or", "other", |c| c
        .input()?
        .logical_or(c.tensor("other")?)),
    one!("logical_xor", "other", |c| c
        .input()?
        .logical_xor(c.tensor("other")?)),
    one!("eq", "other", |c| c.input()?.eq(&c.operand("other")?)),
    one!("ne", "other", |c| c.input()?.ne(&c.operand("other")?)),
    one!("lt", "other", |c| c.input()?.lt(&c.operand("other")?)),
    one!("le", "other", |c| c.input()?.le(&c.operand("other")?)),
    one!("gt", "other", |c| c.input()?.gt(&c.operand("other")?)),
    one!("ge", "other", |c| c.input()?.ge(&c.operand("other")?)),
];

/// `alpha · other`.
fn scaled(c: &Call<'_>) -> Result<Tensor> {
    let other = c.operand("other")?;
    match c.real("alpha")? {
        None => Ok(other),
        Some(alpha) => other.mul_scalar(alpha),
    }
}

fn div(c: &Call<'_>) -> Result<Tensor> {
    let quotient = c.input()?.div(&c.operand("other")?)?;
    match c.text("rounding_mode")? {
        None => Ok(quotient),
        Some("trunc") => quotient.trunc(),
        Some("floor") => quotient.floor(),
        Some(_) => Err(c.unknown("rounding_mode", "trunc or floor")),
    }
}

fn clamp(c: &Call<'_>) -> Result<Tensor> {
    let is_tensor = |name| matches!(c.value(name), Some(Value::Tensor(_)));
    if is_tensor("min") || is_tensor("max") {
        let bound = |name| c.value(name).map(|_| c.operand(name)).transpose();
        let (min, max) = (bound("min")?, bound("max")?);
        return c.input()?.clamp_tensor(min.as_ref(), max.as_ref());
    }
    c.input()?.clamp(c.real("min")?, c.real("max")?)
}

/// A tensor value must be differentiable, which `where_` is.
fn masked_fill(c: &Call<'_>) -> Result<Tensor> {
    let (x, mask) = (c.input()?, c.tensor("mask")?);
    if mask.dtype() != DType::Bool {
        return Err(Error::dtype("masked_fill", "a bool mask", mask.dtype()));
    }
    match c.value("value") {
        Some(Value::Tensor(_)) => Tensor::where_(mask, c.tensor("value")?, x),
        _ => x.masked_fill(mask, c.real_or("value", 0.0)?),
    }
}
