//! Softmax and the normalisations.

use entrenar_base::{Error, Result};
use entrenar_core::Tensor;

use super::reduction::cast;
use super::{Operation, one};
use crate::call::Call;

pub(super) const OPERATIONS: &[Operation] = &[
    one!("softmax", "dim dtype", |c| cast(c)?.softmax(c.dim("dim")?)),
    one!("nn.functional.softmin", "dim dtype", |c| cast(c)?
        .neg()?
        .softmax(c.dim("dim")?)),
    one!("log_softmax", "dim dtype", |c| cast(c)?
        .log_softmax(c.dim("dim")?)),
    one!(
        "nn.functional.layer_norm",
        "normalized_shape weight bias eps",
        |c| c.input()?.layer_norm(
            trailing(c)?,
            c.optional("weight")?,
            c.optional("bias")?,
            c.real_or("eps", 1e-5)?
        )
    ),
    one!(
        "nn.functional.rms_norm",
        "normalized_shape weight eps",
        |c| {
            // PyTorch's default is the spacing of the dtype at 1.
            let eps = c.real_or("eps", f64::EPSILON)?;
            c.input()?
                .rms_norm(trailing(c)?, c.optional("weight")?, eps)
        }
    ),
    one!(
        "nn.functional.batch_norm",
        "running_mean running_var weight bias training momentum eps",
        |c| batch_norm(c)
    ),
    one!(
        "nn.functional.group_norm",
        "num_groups weight bias eps",
        |c| {
            c.input()?.group_norm(
                c.count("num_groups")?,
                c.optional("weight")?,
                c.optional("bias")?,
                c.real_or("eps", 1e-5)?,
            )
        }
    ),
    one!(
        "nn.functional.instance_norm",
        "running_mean running_var weight bias use_input_stats momentum eps",
        |c| instance_norm(c)
    ),
    one!(
        "nn.functional.local_response_norm",
        "size alpha beta k",
        |c| {
            c.input()?.local_response_norm(
                c.count("size")?,
                c.real_or("alpha", 1e-4)?,
                c.real_or("beta", 0.75)?,
                c.real_or("k", 1.0)?,
            )
        }
    ),
];

/// How many trailing dimensions `normalized_shape` covers; its sizes must be theirs.
fn trailing(c: &Call<'_>) -> Result<usize> {
    let shape = c.counts("normalized_shape")?;
    let dims = c.input()?.dims();
    if !dims.ends_with(&shape) {
        return Err(Error::shape(
            "normalized_shape",
            format!("a tail of {dims:?}"),
            format!("{shape:?}"),
        ));
    }
    Ok(shape.len())
}

/// The running statistics of training are a side effect that the cases do not record.
fn batch_norm(c: &Call<'_>) -> Result<Tensor> {
    let x = c.input()?;
    let (weight, bias) = (c.optional("weight")?, c.optional("bias")?);
    let eps = c.real_or("eps", 1e-5)?;
    if c.flag("training")? {
        return Ok(x.batch_norm(weight, bias, eps)?.0);
    }
    let (mean, var) = (c.tensor("running_mean")?, c.tensor("running_var")?);
    x.batch_norm_eval(mean, var, weight, bias, eps)
}

fn instance_norm(c: &Call<'_>) -> Result<Tensor> {
    let x = c.input()?;
    let (weight, bias) = (c.optional("weight")?, c.optional("bias")?);
    let eps = c.real_or("eps", 1e-5)?;
    if c.flag_or("use_input_stats", true)? {
        return x.instance_norm(weight, bias, eps);
    }
    let (mean, var) = (c.tensor("running_mean")?, c.tensor("running_var")?);
    x.batch_norm_eval(mean, var, weight, bias, eps)
}
