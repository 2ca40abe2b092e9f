//! Losses and gradients of tiny models against PyTorch's, by `oracles/zoo_goldens.py`.

use std::collections::BTreeMap;

use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::{DType, Result, Shape, Tensor};
use entrenar_nn::optim::{AdamW, Optimizer, clip_factor, grad_norm};
use entrenar_nn::{Ctx, Init, Module, Parameters};
use entrenar_zoo::{Cnn, CnnConfig, Gpt, GptConfig, Sampling, generate};
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

/// Three steps with dropout: the same bits at one thread and at two, another seed differs.
#[test]
fn training_gives_the_same_bits_at_any_number_of_threads() -> Result<()> {
    let run = |threads: usize, seed: u64| -> Result<Vec<Vec<f32>>> {
        entrenar_cpu::team::set_threads(threads);
        let config = GptConfig {
            vocabulary: 65,
            context: 64,
            layers: 2,
            heads: 4,
            width: 64,
            dropout: 0.1,
            ..Default::default()
        };
        let model = Gpt::new(config, &mut Init::new(seed))?;
        let mut optimizer = AdamW::new(&model, 1e-2)?;
        let tokens: Vec<i64> = (0..8 * 64).map(|i| (i * i + 3 * i) % 65).collect();
        let tokens = Tensor::from_vec(tokens, [8, 64])?;
        for step in 0..3 {
            let mut cx = Ctx::train(seed, step);
            model.loss(&tokens, &tokens, &mut cx)?.backward()?;
            let norm = grad_norm(&model);
            optimizer.step_scaled(clip_factor(norm, 1.0))?;
            optimizer.zero_grad();
        }
        model
            .parameters()
            .iter()
            .map(|p| p.value().to_vec())
            .collect()
    };
    let before = entrenar_cpu::team::threads();
    let (one, two, other) = (run(1, 0)?, run(2, 0)?, run(2, 1)?);
    entrenar_cpu::team::set_threads(before);
    assert!(one == two, "the number of threads changed the weights");
    assert!(one != other);
    Ok(())
}

/// A tiny model learns a short text by heart and then says it.
#[test]
fn a_model_learns_and_generates() -> Result<()> {
    let text: Vec<u32> = vec![3, 1, 4, 1, 5, 2, 6, 5, 3, 5];
    let config = GptConfig {
        vocabulary: 8,
        context: 10,
        layers: 2,
        heads: 2,
        width: 32,
        ..Default::default()
    };
    let model = Gpt::new(config, &mut Init::new(1))?;
    let mut optimizer = AdamW::new(&model, 1e-2)?;
    let as_tensor = |t: &[u32]| {
        let t: Vec<i64> = t.iter().map(|&t| t.into()).collect();
        Tensor::from_vec(t, [1, text.len() - 1])
    };
    let (tokens, targets) = (as_tensor(&text[..9])?, as_tensor(&text[1..])?);
    let mut loss = f32::NAN;
    for step in 0..100 {
        let value = model.loss(&tokens, &targets, &mut Ctx::train(0, step))?;
        value.backward()?;
        optimizer.step()?;
        optimizer.zero_grad();
        loss = value.item()?;
        if step == 0 {
            // Fresh weights know nothing: ln 8.
            assert!((loss - 8f32.ln()).abs() < 0.1, "{loss}");
        }
    }
    assert!(loss < 0.05, "{loss}");
    let greedy = Sampling {
        max_new_tokens: 9,
        temperature: 0.0,
        ..Default::default()
    };
    let mut seen = Vec::new();
    let said = generate(&model, &text[..1], &greedy, &mut |t| {
        seen.push(t);
        true
    })?;
    assert_eq!(said, text);
    assert_eq!(seen, text[1..]);
    // The callback can end it.
    let short = generate(&model, &text[..1], &greedy, &mut |t| t != 4)?;
    assert_eq!(short, text[..3]);
    Ok(())
}
