//! Training steps of GPTs with AdamW on random tokens.

use entrenar_core::autocast;
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{Ctx, Init};
use entrenar_zoo::{Gpt, GptConfig};
use serde_json::json;

use super::{Case, Work};
use crate::cli::Precision;

/// Complete steps of a GPT that reads `batch` sequences as long as its context.
pub fn case(
    name: String,
    config: GptConfig,
    batch: usize,
    precision: Precision,
    reps: usize,
) -> Case {
    Case {
        name,
        precision: precision.name(),
        inner: 1,
        reps,
        build: Box::new(move || {
            let (vocabulary, context) = (config.vocabulary, config.context);
            let model = Gpt::new(config.clone(), &mut Init::new(0))?;
            let mut optimizer = AdamW::new(&model, 1e-4)?;
            let shape = [batch, context];
            let tokens = super::classes(batch * context, vocabulary, 1)?.reshape(shape)?;
            let targets = super::classes(batch * context, vocabulary, 2)?.reshape(shape)?;
            let mut step = 0;
            Ok(Work {
                step: Box::new(move || {
                    let mut cx = Ctx::train(0, step);
                    step += 1;
                    let loss = || model.loss(&tokens, &targets, &mut cx);
                    autocast(precision == Precision::Bf16, loss)?.backward()?;
                    optimizer.step()?;
                    optimizer.zero_grad();
                    Ok(())
                }),
                operations: None,
                fields: json!({ "tokens": batch * context }),
            })
        }),
    }
}

/// A fixed model in every precision.
fn every_precision(name: &str, config: GptConfig, batch: usize, reps: usize) -> Vec<Case> {
    [Precision::F32, Precision::Bf16]
        .into_iter()
        .map(|p| case(name.to_string(), config.clone(), batch, p, reps))
        .collect()
}

pub fn character() -> Vec<Case> {
    let config = GptConfig {
        vocabulary: 65,
        context: 64,
        layers: 4,
        heads: 4,
        width: 128,
        ..Default::default()
    };
    every_precision("gpt_char_4L128d_T64_B12", config, 12, 30)
}

pub fn small() -> Vec<Case> {
    let config = GptConfig {
        vocabulary: 65,
        context: 256,
        layers: 6,
        heads: 6,
        width: 384,
        ..Default::default()
    };
    every_precision("gpt_6L384d_T256_B8", config, 8, 8)
}

pub fn gpt2_124m() -> Vec<Case> {
    let config = GptConfig {
        context: 256,
        ..Default::default()
    };
    every_precision("gpt2_124M_T256_B1", config, 1, 6)
}
