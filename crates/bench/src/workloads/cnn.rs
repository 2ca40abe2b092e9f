//! The two-stage CNN on 28 × 28 images with Adam.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_nn::optim::{Adam, Optimizer};
use entrenar_nn::{Ctx, Init, Module};
use entrenar_zoo::{Cnn, CnnConfig};
use serde_json::json;

use crate::timing::{Effort, report, time};

pub fn run() -> Result<()> {
    let model = Cnn::new(CnnConfig::default(), &mut Init::new(0))?;
    let mut optimizer = Adam::new(&model, 1e-3)?;
    let x = Tensor::randn([64, 1, 28, 28], DType::F32, 1)?;
    let t = super::classes(64, 10, 2)?;
    let mut step = 0;
    let timing = time(Effort::reps(20), 1, || {
        let mut cx = Ctx::train(0, step);
        step += 1;
        model
            .forward(&x, &mut cx)?
            .cross_entropy(&t, &CrossEntropy::default())?
            .backward()?;
        cx.commit()?;
        optimizer.step()?;
        optimizer.zero_grad();
        Ok(())
    })?;
    report("cnn_mnist_b64", &timing, json!({}));
    Ok(())
}
