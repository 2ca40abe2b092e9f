//! Linear regression by hand: a model, a loss, an optimizer and nothing else.
//!
//!     cargo run --release -p entrenar --example linear_regression

use entrenar::prelude::*;

/// Fits y = 2a − 3b + 0.5 to noisy samples; the weights and the bias found.
fn fit() -> entrenar::Result<(Vec<f32>, f32)> {
    let x = Tensor::randn([256, 2], DType::F32, 1)?;
    let truth = Tensor::from_vec(vec![2.0f32, -3.0], [2, 1])?;
    let noise = Tensor::randn([256, 1], DType::F32, 2)?.mul_scalar(0.05)?;
    let y = x.matmul(&truth)?.add_scalar(0.5)?.add(&noise)?;

    let model = Linear::new(2, 1, &mut Init::new(0))?;
    let mut optimizer = Sgd::new(&model, 0.1)?;
    for step in 0..200 {
        let predicted = model.forward(&x, &mut Ctx::train(0, step))?;
        let loss = predicted.sub(&y)?.square()?.mean()?;
        loss.backward()?;
        optimizer.step()?;
        optimizer.zero_grad();
        if step % 50 == 0 {
            println!("step {step:3}  loss {:.5}", loss.item::<f32>()?);
        }
    }
    let bias = model.parameter("bias")?.value().item::<f32>()?;
    Ok((model.weight.value().to_vec()?, bias))
}

fn main() -> entrenar::Result<()> {
    let (weights, bias) = fit()?;
    println!("y = {:.3} a + {:.3} b + {bias:.3}", weights[0], weights[1]);
    Ok(())
}

#[test]
fn the_line_is_found() {
    let (weights, bias) = fit().unwrap();
    for (found, truth) in [(weights[0], 2.0), (weights[1], -3.0), (bias, 0.5)] {
        assert!((found - truth).abs() < 0.02, "{found} and {truth}");
    }
}
