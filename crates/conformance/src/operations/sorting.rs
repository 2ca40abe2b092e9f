//! Sorting and the largest elements: values with their places.

use entrenar_base::Result;
use entrenar_core::Tensor;

use super::{Operation, many, one};

pub(super) const OPERATIONS: &[Operation] = &[
    // Ours is always stable.
    many!("sort", "dim descending stable", |c| pair(
        c.input()?.sort(c.int_or("dim", -1)?, c.flag("descending")?)
    )),
    one!("argsort", "dim descending stable", |c| c
        .input()?
        .argsort(c.int_or("dim", -1)?, c.flag("descending")?)),
    many!("cummax", "dim", |c| pair(c.input()?.cummax(c.dim("dim")?))),
    many!("cummin", "dim", |c| pair(c.input()?.cummin(c.dim("dim")?))),
    // The result is sorted whether asked for or not.
    many!("topk", "k dim largest sorted", |c| pair(c.input()?.topk(
        c.count("k")?,
        c.int_or("dim", -1)?,
        c.flag_or("largest", true)?
    ))),
];

/// Values and places as two outputs.
pub(super) fn pair(both: Result<(Tensor, Tensor)>) -> Result<Vec<Tensor>> {
    let (values, indices) = both?;
    Ok(vec![values, indices])
}
