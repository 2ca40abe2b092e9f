//! Maximum, average and adaptive pooling.

use entrenar_base::Result;
use entrenar_core::Tensor;
use entrenar_core::ops::pool::PoolOptions;

use super::{Operation, many, one};
use crate::call::Call;
use crate::suite::Value;

pub(super) const OPERATIONS: &[Operation] = &[
    many!(
        "nn.functional.max_pool1d",
        "kernel_size stride padding dilation ceil_mode return_indices",
        |c| max_pool(c, 1)
    ),
    many!(
        "nn.functional.max_pool2d",
        "kernel_size stride padding dilation ceil_mode return_indices",
        |c| max_pool(c, 2)
    ),
    many!(
        "nn.functional.max_pool3d",
        "kernel_size stride padding dilation ceil_mode return_indices",
        |c| max_pool(c, 3)
    ),
    one!(
        "nn.functional.avg_pool1d",
        "kernel_size stride padding ceil_mode count_include_pad",
        |c| avg_pool(c, 1)
    ),
    one!(
        "nn.functional.avg_pool2d",
        "kernel_size stride padding ceil_mode count_include_pad divisor_override",
        |c| avg_pool(c, 2)
    ),
    one!(
        "nn.functional.avg_pool3d",
        "kernel_size stride padding ceil_mode count_include_pad divisor_override",
        |c| avg_pool(c, 3)
    ),
    one!("nn.functional.adaptive_avg_pool1d", "output_size", |c| {
        adaptive_avg(c, 1)
    }),
    one!("nn.functional.adaptive_avg_pool2d", "output_size", |c| {
        adaptive_avg(c, 2)
    }),
    one!("nn.functional.adaptive_avg_pool3d", "output_size", |c| {
        adaptive_avg(c, 3)
    }),
    many!(
        "nn.functional.adaptive_max_pool1d",
        "output_size return_indices",
        |c| adaptive_max(c, 1)
    ),
    many!(
        "nn.functional.adaptive_max_pool2d",
        "output_size return_indices",
        |c| adaptive_max(c, 2)
    ),
    many!(
        "nn.functional.adaptive_max_pool3d",
        "output_size return_indices",
        |c| adaptive_max(c, 3)
    ),
];

fn options(c: &Call<'_>, rank: usize) -> Result<PoolOptions> {
    let kernel = c.spatial("kernel_size", rank, &[])?;
    Ok(PoolOptions {
        stride: c.spatial("stride", rank, &kernel)?,
        padding: c.spatial("padding", rank, &vec![0; rank])?,
        dilation: c.spatial("dilation", rank, &vec![1; rank])?,
        ceil_mode: c.flag("ceil_mode")?,
        kernel,
    })
}

/// Values with their places; without `return_indices` only the values.
fn with_places(c: &Call<'_>, (values, places): (Tensor, Tensor)) -> Result<Vec<Tensor>> {
    Ok(match c.flag("return_indices")? {
        true => vec![values, places],
        false => vec![values],
    })
}

fn max_pool(c: &Call<'_>, rank: usize) -> Result<Vec<Tensor>> {
    let options = options(c, rank)?;
    with_places(c, c.input()?.max_pool(&options)?)
}

fn avg_pool(c: &Call<'_>, rank: usize) -> Result<Tensor> {
    let options = options(c, rank)?;
    let include = c.flag_or("count_include_pad", true)?;
    let divisor = c.int("divisor_override")?.map(|d| d as i64);
    c.input()?.avg_pool(&options, include, divisor)
}

/// `None` keeps the size; a single number stands for all dimensions.
fn output_size(c: &Call<'_>, rank: usize) -> Result<Vec<usize>> {
    let x = c.input()?;
    let Some(Value::List(list)) = c.value("output_size") else {
        return c.spatial("output_size", rank, &[]);
    };
    let kept = &x.dims()[x.rank() - rank..];
    let sizes: Option<Vec<usize>> = list
        .iter()
        .zip(kept)
        .map(|(v, &kept)| match v {
            Value::None => Some(kept),
            Value::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        })
        .collect();
    match sizes {
        Some(sizes) if list.len() == rank => Ok(sizes),
        _ => Err(c.unknown("output_size", "a size or None per dimension")),
    }
}

fn adaptive_avg(c: &Call<'_>, rank: usize) -> Result<Tensor> {
    c.input()?.adaptive_avg_pool(&output_size(c, rank)?)
}

fn adaptive_max(c: &Call<'_>, rank: usize) -> Result<Vec<Tensor>> {
    let size = output_size(c, rank)?;
    with_places(c, c.input()?.adaptive_max_pool(&size)?)
}
