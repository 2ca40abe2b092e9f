//! A convolutional classifier with Adam: stages of convolution, batch norm, ReLU and pooling.

use entrenar_base::DType;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::{Tensor, autocast};
use entrenar_nn::optim::{Adam, Optimizer};
use entrenar_nn::{Ctx, Init, Module};
use entrenar_zoo::{Cnn, CnnConfig};
use serde_json::json;

use super::{Case, Work};
use crate::cli::Precision;

pub fn cases() -> Vec<Case> {
    [Precision::F32, Precision::Bf16]
        .map(|precision| case(&[1, 32, 64], 28, 64, precision))
        .into()
}

/// Training steps on random images of `size` × `size`.
pub fn case(channels: &[usize], size: usize, batch: usize, precision: Precision) -> Case {
    let list: Vec<String> = channels.iter().map(usize::to_string).collect();
    let name = match (channels, size) {
        ([1, 32, 64], 28) => format!("cnn_mnist_b{batch}"),
        _ => format!("cnn_{}_{size}px_b{batch}", list.join("_")),
    };
    let config = CnnConfig {
        channels: channels.to_vec(),
        size: [size; 2],
        ..Default::default()
    };
    Case {
        name,
        precision: precision.name(),
        inner: 1,
        reps: 20,
        build: Box::new(move || {
            let model = Cnn::new(config.clone(), &mut Init::new(0))?;
            let mut optimizer = Adam::new(&model, 1e-3)?;
            let x = Tensor::randn([batch, config.channels[0], size, size], DType::F32, 1)?;
            let t = super::classes(batch, config.classes, 2)?;
            let mut step = 0;
            Ok(Work {
                step: Box::new(move || {
                    let mut cx = Ctx::train(0, step);
                    step += 1;
                    let loss = || {
                        let logits = model.forward(&x, &mut cx)?;
                        logits.cross_entropy(&t, &CrossEntropy::default())
                    };
                    autocast(precision == Precision::Bf16, loss)?.backward()?;
                    cx.commit()?;
                    optimizer.step()?;
                    optimizer.zero_grad();
                    Ok(())
                }),
                operations: None,
                fields: json!({}),
            })
        }),
    }
}
