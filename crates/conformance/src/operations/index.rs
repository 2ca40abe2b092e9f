//! Reading and writing by index.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;

use super::{Operation, one};
use crate::call::Call;
use crate::suite::Value;

pub(super) const OPERATIONS: &[Operation] = &[
    one!("gather", "dim index sparse_grad", |c| c
        .input()?
        .gather(c.dim("dim")?, &index(c, "index")?)),
    one!("take_along_dim", "indices dim", |c| {
        let (x, index) = (c.input()?, index(c, "indices")?);
        match c.int("dim")? {
            Some(dim) => x.take_along_dim(&index, dim),
            // Without a dimension both are read as vectors.
            None => x
                .reshape([x.numel()])?
                .take_along_dim(&index.reshape([index.numel()])?, 0),
        }
    }),
    one!("index_select", "dim index", |c| c
        .input()?
        .index_select(c.dim("dim")?, &index(c, "index")?)),
    one!("index_add", "dim index source alpha", |c| c
        .input()?
        .index_add(
            c.dim("dim")?,
            &index(c, "index")?,
            &c.tensor("source")?.mul_scalar(c.real_or("alpha", 1.0)?)?
        )),
    one!("scatter", "dim index src", |c| {
        let index = index(c, "index")?;
        let src = match c.value("src") {
            Some(Value::Tensor(_)) => c.tensor("src")?.clone(),
            _ => c.operand("src")?.broadcast_to(index.shape())?,
        };
        c.input()?.scatter(c.dim("dim")?, &index, &src)
    }),
    one!("scatter_add", "dim index src", |c| c.input()?.scatter_add(
        c.dim("dim")?,
        &index(c, "index")?,
        c.tensor("src")?
    )),
    one!("nn.functional.embedding", "other", |c| embedding(c)),
    one!("nn.functional.one_hot", "num_classes", |c| c
        .input()?
        .one_hot(c.count("num_classes")?)),
];

/// PyTorch's own tests record the weight first, its documentation names the indices first.
fn embedding(c: &Call<'_>) -> Result<Tensor> {
    if c.input()?.dtype().is_float() {
        return c.input()?.embedding(&index(c, "other")?);
    }
    c.tensor("other")?.embedding(&index(c, "input")?)
}

/// An index of any integer dtype as i64.
fn index(c: &Call<'_>, name: &str) -> Result<Tensor> {
    c.tensor(name)?.to_dtype(DType::I64)
}
