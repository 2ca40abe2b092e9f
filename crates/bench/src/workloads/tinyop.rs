//! `relu(a·b + c).sum()` on 16 values, forward and backward: pure dispatch cost.

use entrenar_base::DType;
use entrenar_core::Tensor;
use serde_json::json;

use super::{Case, Work};

/// Repetitions in one call.
const INNER: usize = 1000;

pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "tinyop_16_fwd_bwd".into(),
        precision: "f32",
        inner: INNER,
        reps: 10,
        build: Box::new(|| {
            let leaf = |seed| Tensor::randn([16], DType::F32, seed)?.requires_grad();
            let (a, b, c) = (leaf(1)?, leaf(2)?, leaf(3)?);
            Ok(Work {
                step: Box::new(move || {
                    for _ in 0..INNER {
                        a.mul(&b)?.add(&c)?.relu()?.sum()?.backward()?;
                        a.zero_grad();
                        b.zero_grad();
                        c.zero_grad();
                    }
                    Ok(())
                }),
                operations: None,
                fields: json!({}),
            })
        }),
    }]
}
