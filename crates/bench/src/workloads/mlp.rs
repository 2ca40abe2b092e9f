//! Small perceptrons with Adam: where dispatch and the optimizer's one pass decide.

use entrenar_base::{DType, Result};
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Tensor, autocast};
use entrenar_nn::optim::{Adam, Optimizer};
use entrenar_nn::{Ctx, Init, Module};
use entrenar_zoo::{Mlp, MlpConfig};
use serde_json::json;

use super::{Case, Work};
use crate::cli::Precision;

/// The loss of the outputs.
type Loss = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

pub fn mnist() -> Vec<Case> {
    [Precision::F32, Precision::Bf16]
        .map(|precision| classifier(&[784, 256, 128, 10], 64, precision))
        .into()
}

pub fn xor() -> Vec<Case> {
    vec![Case {
        name: "xor_mlp_b32_adam".into(),
        precision: "f32",
        inner: 200,
        reps: 10,
        build: Box::new(|| {
            let x = Tensor::randn([32, 2], DType::F32, 1)?;
            let t = Tensor::rand([32, 1], DType::F32, 2)?;
            let loss: Loss = Box::new(move |y| {
                y.binary_cross_entropy_with_logits(&t, None, None, Reduction::Mean)
            });
            steps(&[2, 8, 1], 1e-2, 200, Precision::F32, x, loss)
        }),
    }]
}

/// Cross-entropy training of a perceptron with ReLU on `batch` random rows.
pub fn classifier(sizes: &[usize], batch: usize, precision: Precision) -> Case {
    let list: Vec<String> = sizes.iter().map(usize::to_string).collect();
    // Calls of some milliseconds, as the PyTorch script's 50 steps of the 784-256-128-10 one.
    let weights: usize = sizes.windows(2).map(|w| w[0] * w[1]).sum();
    let inner = (50 * 235_000 * 64 / (weights * batch).max(1)).clamp(1, 200);
    let inner = if (sizes, batch) == (&[784, 256, 128, 10], 64) {
        50
    } else {
        inner
    };
    let sizes = sizes.to_vec();
    Case {
        name: format!("mlp_{}_b{batch}_adam", list.join("_")),
        precision: precision.name(),
        inner,
        reps: 10,
        build: Box::new(move || {
            let x = Tensor::randn([batch, sizes[0]], DType::F32, 1)?;
            let t = super::classes(batch, sizes[sizes.len() - 1], 2)?;
            let loss: Loss = Box::new(move |y| y.cross_entropy(&t, &CrossEntropy::default()));
            steps(&sizes, 1e-3, inner, precision, x, loss)
        }),
    }
}

/// `inner` steps a call.
fn steps(
    sizes: &[usize],
    rate: f64,
    inner: usize,
    precision: Precision,
    x: Tensor,
    loss: Loss,
) -> Result<Work> {
    let config = MlpConfig {
        sizes: sizes.to_vec(),
        ..Default::default()
    };
    let model = Mlp::new(config, &mut Init::new(0))?;
    let mut optimizer = Adam::new(&model, rate)?;
    let mut step = 0;
    Ok(Work {
        step: Box::new(move || {
            for _ in 0..inner {
                let mut cx = Ctx::train(0, step);
                step += 1;
                let value = || loss(&model.forward(&x, &mut cx)?);
                autocast(precision == Precision::Bf16, value)?.backward()?;
                optimizer.step()?;
                optimizer.zero_grad();
            }
            Ok(())
        }),
        operations: None,
        fields: json!({}),
    })
}
