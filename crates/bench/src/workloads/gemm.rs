//! Matrix products of the shapes that training meets, and of any other.

use entrenar_base::DType;
use entrenar_core::Tensor;
use serde_json::json;

use super::{Case, Work};
use crate::cli::GemmType;

/// Shapes of the table: rows, columns, inner size.
const SHAPES: [(usize, usize, usize); 6] = [
    (64, 64, 64),
    (256, 256, 256),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (512, 768, 768),
    (512, 3072, 768),
];

pub fn cases() -> Vec<Case> {
    let of = |dtype| SHAPES.iter().map(move |&shape| case(shape, dtype));
    of(GemmType::F32).chain(of(GemmType::Bf16)).collect()
}

/// `[m, k]` times `[k, n]`, repeated to about 0.2 GFLOP a call.
pub fn case((m, n, k): (usize, usize, usize), dtype: GemmType) -> Case {
    let (name, precision) = match dtype {
        GemmType::F32 => ("float32", "f32"),
        GemmType::Bf16 => ("bfloat16", "bf16"),
        GemmType::F16 => ("float16", "f16"),
        GemmType::F64 => ("float64", "f64"),
        GemmType::I8 => ("int8", "i8"),
    };
    let operations = 2.0 * m as f64 * n as f64 * k as f64;
    let inner = ((2e8 / operations) as usize).max(1);
    Case {
        name: format!("gemm_{name}_{m}x{n}x{k}"),
        precision,
        inner,
        reps: 10,
        build: Box::new(move || {
            let bytes = dtype == GemmType::I8;
            let make = |r, c, seed| {
                let x = Tensor::randn([r, c], DType::F32, seed)?;
                let x = if bytes { x.mul_scalar(40.0)? } else { x };
                x.to_dtype(dtype.dtype())
            };
            let (a, b) = (make(m, k, 1)?, make(k, n, 2)?);
            Ok(Work {
                step: Box::new(move || {
                    for _ in 0..inner {
                        let product = if bytes {
                            a.int_matmul(&b)
                        } else {
                            a.matmul(&b)
                        };
                        std::hint::black_box(product?);
                    }
                    Ok(())
                }),
                operations: Some(operations),
                fields: json!({}),
            })
        }),
    }
}
