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
    // The result is sorted whether asked for or not.
    many!("topk", "k dim largest sorted", |c| pair(c.input()?.topk(
        c.count("k")?,
        c.int_or("dim", -1)?,
        c.flag_or("largest", true)?
    ))),
];

fn pair(both: Result<(Tensor, Tensor)>) -> Result<Vec<Tensor>> {
    let (values, indices) = both?;
    Ok(vec![values, indices])
}
