//! Sums, means, extremes, moments, norms and running sums.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;

use super::sorting::pair;
use super::{Operation, many, one};
use crate::call::Call;
use crate::suite::Value;

pub(super) const OPERATIONS: &[Operation] = &[
    one!("sum", "dim keepdim dtype", |c| cast(c)?
        .sum_dim(&c.dims("dim")?, c.flag("keepdim")?)),
    one!("mean", "dim keepdim dtype", |c| cast(c)?
        .mean_dim(&c.dims("dim")?, c.flag("keepdim")?)),
    one!("prod", "dim keepdim dtype", |c| match c.int("dim")? {
        None => cast(c)?.prod(),
        Some(dim) => cast(c)?.prod_dim(dim, c.flag("keepdim")?),
    }),
    one!("amax", "dim keepdim", |c| c
        .input()?
        .amax(&c.dims("dim")?, c.flag("keepdim")?)),
    one!("amin", "dim keepdim", |c| c
        .input()?
        .amin(&c.dims("dim")?, c.flag("keepdim")?)),
    many!("max", "dim keepdim", |c| extreme(
        c,
        Tensor::max,
        Tensor::maximum,
        Tensor::max_dim
    )),
    many!("min", "dim keepdim", |c| extreme(
        c,
        Tensor::min,
        Tensor::minimum,
        Tensor::min_dim
    )),
    one!("argmax", "dim keepdim", |c| c
        .input()?
        .argmax(c.int("dim")?, c.flag("keepdim")?)),
    one!("argmin", "dim keepdim", |c| c
        .input()?
        .argmin(c.int("dim")?, c.flag("keepdim")?)),
    one!("var", "dim unbiased keepdim correction", |c| {
        let (dims, correction) = moments(c)?;
        c.input()?.var(&dims, correction, c.flag("keepdim")?)
    }),
    one!("std", "dim unbiased keepdim correction", |c| {
        let (dims, correction) = moments(c)?;
        c.input()?.std(&dims, correction, c.flag("keepdim")?)
    }),
    one!("logsumexp", "dim keepdim", |c| c
        .input()?
        .logsumexp(&c.dims("dim")?, c.flag("keepdim")?)),
    one!("norm", "p dim keepdim dtype", |c| {
        // The Frobenius norm is the 2-norm of the elements.
        let p = match c.value("p") {
            Some(Value::Text(name)) if name == "fro" => 2.0,
            _ => c.real_or("p", 2.0)?,
        };
        cast(c)?.norm(p, &c.dims("dim")?, c.flag("keepdim")?)
    }),
    one!("linalg.vector_norm", "ord dim keepdim dtype", |c| cast(c)?
        .norm(
            c.real_or("ord", 2.0)?,
            &c.dims("dim")?,
            c.flag("keepdim")?
        )),
    one!("nn.functional.normalize", "p dim eps", |c| c
        .input()?
        .normalize(
            c.real_or("p", 2.0)?,
            c.int_or("dim", 1)?,
            c.real_or("eps", 1e-12)?
        )),
    one!("cumsum", "dim dtype", |c| cast(c)?.cumsum(c.dim("dim")?)),
    one!("cumprod", "dim dtype", |c| cast(c)?.cumprod(c.dim("dim")?)),
];

/// `max` and `min` are three operations: of all elements, of two tensors, along a dimension.
fn extreme(
    c: &Call<'_>,
    all: fn(&Tensor) -> Result<Tensor>,
    of_two: fn(&Tensor, &Tensor) -> Result<Tensor>,
    along: fn(&Tensor, isize, bool) -> Result<(Tensor, Tensor)>,
) -> Result<Vec<Tensor>> {
    let x = c.input()?;
    match c.value("dim") {
        None => Ok(vec![all(x)?]),
        Some(Value::Tensor(_)) => Ok(vec![of_two(x, c.tensor("dim")?)?]),
        Some(_) => pair(along(x, c.dim("dim")?, c.flag("keepdim")?)),
    }
}

/// The input in the dtype that the argument `dtype` names, if there is one.
pub(super) fn cast(c: &Call<'_>) -> Result<Tensor> {
    let x = c.input()?;
    let Some(value) = c.value("dtype") else {
        return Ok(x.clone());
    };
    let dtype = match value {
        Value::DType(name) => match name.as_str() {
            "float64" | "double" => DType::F64,
            "float32" | "float" => DType::F32,
            "float16" | "half" => DType::F16,
            "bfloat16" => DType::BF16,
            "int64" | "long" => DType::I64,
            "int32" | "int" => DType::I32,
            "uint8" => DType::U8,
            "int8" => DType::I8,
            "bool" => DType::Bool,
            _ => return Err(c.unknown("dtype", "a dtype the library has")),
        },
        _ => return Err(c.unknown("dtype", "a dtype")),
    };
    x.to_dtype(dtype)
}

/// Dimensions and correction of a variance. The short form `var(input, unbiased)` puts the
/// boolean where `dim` stands otherwise; a `None` correction means 1.
fn moments(c: &Call<'_>) -> Result<(Vec<isize>, f64)> {
    if let Some(Value::Bool(unbiased)) = c.value("dim") {
        return Ok((Vec::new(), f64::from(u8::from(*unbiased))));
    }
    let unbiased = f64::from(u8::from(c.flag_or("unbiased", true)?));
    Ok((c.dims("dim")?, c.real_or("correction", unbiased)?))
}
