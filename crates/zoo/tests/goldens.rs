//! Losses and gradients of tiny models against PyTorch's, by `oracles/zoo_goldens.py`.

use std::collections::BTreeMap;

use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::{DType, Result, Shape, Tensor};
use entrenar_nn::{Ctx, Init, Module, Parameters};
use entrenar_zoo::{Cnn, CnnConfig, Gpt, GptConfig};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    loss: [f64; 1],
    gradients: BTreeMap<String, Vec<f64>>,
}

fn golden(name: &str) -> Golden {
    let mut all: BTreeMap<String, Golden> =
        serde_json::from_str(include_str!("data/models.json")).unwrap();
    all.remove(name).unwrap()
}

/// sin(0.7 i + 1.3 seed) at row-major place i.
fn fill(shape: impl Into<Shape>, seed: usize) -> Tensor {
    let shape = shape.into();
    let values = (0..shape.numel())
        .map(|i| (0.7 * i as f64 + 1.3 * seed as f64).sin())
        .collect();
    Tensor::from_vec::<f64>(values, shape).unwrap()
}

fn set_weights(model: &impl Parameters) -> Result<()> {
    for (k, (_, p)) in model.named_parameters().iter().enumerate() {
        let values = fill(p.shape(), 20 + k).mul_scalar(0.5)?;
        p.set(&values.to_dtype(p.dtype())?)?;
    }
    Ok(())
}

fn check(model: &impl Parameters, loss: &Tensor, golden: &Golden, tolerance: f64) -> Result<()> {
    let near = |got: f64, want: f64| (got - want).abs() <= tolerance * want.abs().max(1.0);
    let value = loss.array().to_f64_vec()[0];
    assert!(near(value, golden.loss[0]), "{value} {}", golden.loss[0]);
    loss.backward()?;
    let named = model.named_parameters();
    assert!(
        named
            .iter()
            .map(|p| &p.0)
            .all(|n| golden.gradients.contains_key(n))
    );
    assert_eq!(named.len(), golden.gradients.len());
    for (name, p) in named {
        let got = p.grad().unwrap().array().to_f64_vec();
        let want = &golden.gradients[&name];
        assert_eq!(got.len(), want.len(), "{name}");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!(near(*g, *w), "{name} element {i}: {g}, expected {w}");
        }
    }
    Ok(())
}

fn tiny(tie_embeddings: bool, dtype: DType) -> Result<Gpt> {
    let config = GptConfig {
        vocabulary: 7,
        context: 6,
        layers: 2,
        heads: 2,
        width: 4,
        tie_embeddings,
        ..Default::default()
    };
    let model = Gpt::new(config, &mut Init::new(0).dtype(dtype))?;
    set_weights(&model)?;
    Ok(model)
}

fn text() -> Result<(Tensor, Tensor)> {
    Ok((
        Tensor::from_vec(vec![1i64, 4, 0, 6, 2, 3, 3, 5, 1, 0], [2, 5])?,
        Tensor::from_vec(vec![4i64, 0, 6, 2, 5, 3, 5, 1, 0, 2], [2, 5])?,
    ))
}

#[test]
fn gpt_equals_pytorchs() -> Result<()> {
    for (name, tied) in [("gpt", true), ("gpt_untied", false)] {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
            let model = tiny(tied, dtype)?;
            let (tokens, targets) = text()?;
            let loss = model.loss(&tokens, &targets, &mut Ctx::train(0, 0))?;
            check(&model, &loss, &golden(name), tolerance)?;
        }
    }
    Ok(())
}

/// Each block checkpointed: the same bits.
#[test]
fn checkpointed_blocks_give_the_same_gradients() -> Result<()> {
    let (tokens, targets) = text()?;
    let gradients = |model: &Gpt| -> Vec<Vec<f32>> {
        let all = model.parameters();
        all.iter()
            .map(|p| p.grad().unwrap().to_vec().unwrap())
            .collect()
    };
    let plain = tiny(true, DType::F32)?;
    plain
        .loss(&tokens, &targets, &mut Ctx::train(0, 0))?
        .backward()?;
    let model = tiny(true, DType::F32)?;
    let mut cx = Ctx::train(0, 0);
    let positions = Tensor::arange(0.0, 5.0, 1.0, DType::I64)?;
    let mut x = model
        .wte
        .forward(&tokens, &mut cx)?
        .add(&model.wpe.forward(&positions, &mut cx)?)?;
    for block in &model.blocks {
        x = cx.checkpoint(block, &x)?;
    }
    let logits = model
        .head
        .forward(&model.ln.forward(&x, &mut cx)?, &mut cx)?;
    let targets = targets.flatten(0, -1)?;
    logits
        .flatten(0, 1)?
        .cross_entropy(&targets, &CrossEntropy::default())?
        .backward()?;
    assert_eq!(gradients(&plain), gradients(&model));
    Ok(())
}

#[test]
fn cnn_equals_pytorchs() -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-4)] {
        let config = CnnConfig {
            channels: vec![1, 2, 3],
            size: [8, 5],
            hidden: vec![5],
            classes: 3,
            ..Default::default()
        };
        let model = Cnn::new(config, &mut Init::new(0).dtype(dtype))?;
        set_weights(&model)?;
        let x = fill([3, 1, 8, 5], 3).mul_scalar(3.0)?.to_dtype(dtype)?;
        let logits = model.forward(&x, &mut Ctx::train(0, 0))?;
        let targets = Tensor::from_vec(vec![2i64, 0, 1], [3])?;
        let loss = logits.cross_entropy(&targets, &CrossEntropy::default())?;
        check(&model, &loss, &golden("cnn"), tolerance)?;
    }
    Ok(())
}
