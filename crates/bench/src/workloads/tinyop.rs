//! `relu(a·b + c).sum()` on 16 values, forward and backward: pure dispatch cost.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use serde_json::json;

use crate::timing::{Effort, report, time};

pub fn run() -> Result<()> {
    let leaf = |seed| Tensor::randn([16], DType::F32, seed)?.requires_grad();
    let (a, b, c) = (leaf(1)?, leaf(2)?, leaf(3)?);
    let inner = 1000;
    let t = time(Effort::reps(10), inner, || {
        for _ in 0..inner {
            a.mul(&b)?.add(&c)?.relu()?.sum()?.backward()?;
            a.zero_grad();
            b.zero_grad();
            c.zero_grad();
        }
        Ok(())
    })?;
    report("tinyop_16_fwd_bwd", &t, json!({}));
    Ok(())
}
