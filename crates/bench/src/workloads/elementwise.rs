//! Maps, reductions and a transpose over 4 Mi floats: how near memory speed the kernels run.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use serde_json::json;

use crate::timing::{Effort, report, time};

type Case<'a> = (&'a str, Box<dyn Fn() -> Result<Tensor> + 'a>);

pub fn run() -> Result<()> {
    let n = 1usize << 22;
    let x = Tensor::randn([n], DType::F32, 1)?;
    let y = Tensor::randn([n], DType::F32, 2)?;
    let rows = x.reshape([4096, 1024])?;
    let square = x.reshape([2048, 2048])?;
    let cases: Vec<Case<'_>> = vec![
        ("add", Box::new(|| x.add(&y))),
        ("gelu_tanh", Box::new(|| x.gelu_tanh())),
        ("exp", Box::new(|| x.exp())),
        ("softmax_4096x1024", Box::new(|| rows.softmax(-1))),
        (
            "layernorm_4096x1024",
            Box::new(|| rows.layer_norm(1, None, None, 1e-5)),
        ),
        ("sum", Box::new(|| x.sum())),
        ("transpose_2048", Box::new(|| square.t()?.contiguous())),
    ];
    for (name, f) in cases {
        let t = time(Effort::reps(20), 1, || {
            f().map(|r| drop(std::hint::black_box(r)))
        })?;
        report(&format!("ew_{name}"), &t, json!({ "elems": n }));
    }
    Ok(())
}
