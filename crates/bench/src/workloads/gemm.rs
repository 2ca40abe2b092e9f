//! Matrix products of the shapes that training meets.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use serde_json::json;

use crate::timing::{Effort, report, time};

pub fn run() -> Result<()> {
    let shapes = [
        (64, 64, 64),
        (256, 256, 256),
        (1024, 1024, 1024),
        (2048, 2048, 2048),
        (512, 768, 768),
        (512, 3072, 768),
    ];
    for (dtype, name) in [(DType::F32, "float32"), (DType::BF16, "bfloat16")] {
        for (m, n, k) in shapes {
            let a = Tensor::randn([m, k], DType::F32, 1)?.to_dtype(dtype)?;
            let b = Tensor::randn([k, n], DType::F32, 2)?.to_dtype(dtype)?;
            let operations = 2.0 * (m * n * k) as f64;
            let inner = ((2e8 / operations) as usize).max(1);
            let t = time(Effort::reps(10), inner, || {
                for _ in 0..inner {
                    std::hint::black_box(a.matmul(&b)?);
                }
                Ok(())
            })?;
            let gflops = (operations / t.median / 1e8).round() / 10.0;
            report(
                &format!("gemm_{name}_{m}x{n}x{k}"),
                &t,
                json!({ "gflops": gflops }),
            );
        }
    }
    Ok(())
}
