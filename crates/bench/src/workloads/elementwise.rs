//! Maps, reductions and a transpose over 4 Mi floats: how near memory speed the kernels run.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use serde_json::json;

use super::{Case, Work};

/// One result of the two operands, both of 4 Mi elements.
type Function = fn(&Tensor, &Tensor) -> Result<Tensor>;

const FUNCTIONS: &[(&str, Function)] = &[
    ("add", |x, y| x.add(y)),
    ("gelu_tanh", |x, _| x.gelu_tanh()),
    ("exp", |x, _| x.exp()),
    ("softmax_4096x1024", |x, _| {
        x.reshape([4096, 1024])?.softmax(-1)
    }),
    ("layernorm_4096x1024", |x, _| {
        x.reshape([4096, 1024])?.layer_norm(1, None, None, 1e-5)
    }),
    ("sum", |x, _| x.sum()),
    ("transpose_2048", |x, _| {
        x.reshape([2048, 2048])?.t()?.contiguous()
    }),
];

pub fn cases() -> Vec<Case> {
    FUNCTIONS.iter().map(|(name, f)| case(name, *f)).collect()
}

fn case(name: &str, f: Function) -> Case {
    Case {
        name: format!("ew_{name}"),
        precision: "f32",
        inner: 1,
        reps: 20,
        build: Box::new(move || {
            let n = 1usize << 22;
            let x = Tensor::randn([n], DType::F32, 1)?;
            let y = Tensor::randn([n], DType::F32, 2)?;
            Ok(Work {
                step: Box::new(move || {
                    std::hint::black_box(f(&x, &y)?);
                    Ok(())
                }),
                operations: None,
                fields: json!({ "elems": n }),
            })
        }),
    }
}
