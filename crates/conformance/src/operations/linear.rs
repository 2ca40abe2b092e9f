//! Products, triangular solves and attention.

use entrenar_base::Result;
use entrenar_core::Tensor;
use entrenar_core::ops::attention::AttentionOptions;

use super::{Operation, one};
use crate::call::Call;

pub(super) const OPERATIONS: &[Operation] = &[
    one!("matmul", "other", |c| c.input()?.matmul(c.tensor("other")?)),
    one!("mm", "mat2", |c| c.input()?.matmul(c.tensor("mat2")?)),
    one!("bmm", "mat2", |c| c.input()?.matmul(c.tensor("mat2")?)),
    one!("mv", "vec", |c| c.input()?.matmul(c.tensor("vec")?)),
    one!("dot", "tensor", |c| c.input()?.dot(c.tensor("tensor")?)),
    one!("outer", "vec2", |c| c.input()?.outer(c.tensor("vec2")?)),
    one!("addmm", "mat1 mat2 beta alpha", |c| c.input()?.addmm(
        c.tensor("mat1")?,
        c.tensor("mat2")?,
        c.real_or("beta", 1.0)?,
        c.real_or("alpha", 1.0)?
    )),
    one!("baddbmm", "batch1 batch2 beta alpha", |c| c
        .input()?
        .baddbmm(
            c.tensor("batch1")?,
            c.tensor("batch2")?,
            c.real_or("beta", 1.0)?,
            c.real_or("alpha", 1.0)?
        )),
    one!("nn.functional.linear", "weight bias", |c| c
        .input()?
        .linear(c.tensor("weight")?, c.optional("bias")?)),
    one!("nn.functional.bilinear", "input2 weight bias", |c| c
        .input()?
        .bilinear(
            c.tensor("input2")?,
            c.tensor("weight")?,
            c.optional("bias")?
        )),
    one!("linalg.cholesky", "upper", |c| c
        .input()?
        .cholesky(c.flag("upper")?)),
    one!(
        "linalg.solve_triangular",
        "B upper left unitriangular",
        |c| c.input()?.solve_triangular(
            c.tensor("B")?,
            c.flag("upper")?,
            c.flag_or("left", true)?,
            c.flag("unitriangular")?
        )
    ),
    // Grouped queries need no switch here: heads that differ in number are grouped.
    one!(
        "nn.functional.scaled_dot_product_attention",
        "key value attn_mask dropout_p is_causal scale enable_gqa",
        |c| attention(c)
    ),
];

fn attention(c: &Call<'_>) -> Result<Tensor> {
    let options = AttentionOptions {
        mask: c.optional("attn_mask")?.cloned(),
        causal: c.flag("is_causal")?,
        scale: c.real("scale")?,
        ..Default::default()
    };
    Tensor::scaled_dot_product_attention(c.input()?, c.tensor("key")?, c.tensor("value")?, &options)
}
