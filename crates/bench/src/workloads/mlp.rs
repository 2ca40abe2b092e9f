//! Small perceptrons with Adam: where dispatch and the optimizer's one pass decide.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_nn::optim::{Adam, Optimizer};
use entrenar_nn::{Ctx, Init, Module};
use entrenar_zoo::{Mlp, MlpConfig};
use serde_json::json;

use crate::timing::{Effort, report, time};

/// Steps of one call of the timed function.
fn steps(
    name: &str,
    sizes: &[usize],
    rate: f64,
    inner: usize,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
    x: &Tensor,
) -> Result<()> {
    let config = MlpConfig {
        sizes: sizes.to_vec(),
        ..Default::default()
    };
    let model = Mlp::new(config, &mut Init::new(0))?;
    let mut optimizer = Adam::new(&model, rate)?;
    let mut step = 0;
    let t = time(Effort::reps(10), inner, || {
        for _ in 0..inner {
            let mut cx = Ctx::train(0, step);
            step += 1;
            loss(&model.forward(x, &mut cx)?)?.backward()?;
            optimizer.step()?;
            optimizer.zero_grad();
        }
        Ok(())
    })?;
    report(name, &t, json!({}));
    Ok(())
}

pub fn mnist() -> Result<()> {
    let x = Tensor::randn([64, 784], DType::F32, 1)?;
    let t = super::classes(64, 10, 2)?;
    let loss = |y: &Tensor| y.cross_entropy(&t, &CrossEntropy::default());
    steps(
        "mlp_784_256_128_10_b64_adam",
        &[784, 256, 128, 10],
        1e-3,
        50,
        loss,
        &x,
    )
}

pub fn xor() -> Result<()> {
    let x = Tensor::randn([32, 2], DType::F32, 1)?;
    let t = Tensor::rand([32, 1], DType::F32, 2)?;
    let loss = |y: &Tensor| y.binary_cross_entropy_with_logits(&t, None, None, Reduction::Mean);
    steps("xor_mlp_b32_adam", &[2, 8, 1], 1e-2, 200, loss, &x)
}
