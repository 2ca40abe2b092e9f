//! Training steps of GPTs with AdamW, f32.

use entrenar_base::Result;
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{Ctx, Init};
use entrenar_zoo::{Gpt, GptConfig};
use serde_json::json;

use crate::timing::{Effort, report, time};

fn steps(name: &str, config: GptConfig, batch: usize, reps: usize) -> Result<()> {
    let (vocabulary, context) = (config.vocabulary, config.context);
    let model = Gpt::new(config, &mut Init::new(0))?;
    let mut optimizer = AdamW::new(&model, 1e-4)?;
    let tokens = super::classes(batch * context, vocabulary, 1)?.reshape([batch, context])?;
    let targets = super::classes(batch * context, vocabulary, 2)?.reshape([batch, context])?;
    let mut step = 0;
    let t = time(Effort::reps(reps), 1, || {
        let mut cx = Ctx::train(0, step);
        step += 1;
        model.loss(&tokens, &targets, &mut cx)?.backward()?;
        optimizer.step()?;
        optimizer.zero_grad();
        Ok(())
    })?;
    report(
        name,
        &t,
        json!({ "tokens": batch * context, "precision": "f32" }),
    );
    Ok(())
}

pub fn char_level() -> Result<()> {
    let config = GptConfig {
        vocabulary: 65,
        context: 64,
        layers: 4,
        heads: 4,
        width: 128,
        ..Default::default()
    };
    steps("gpt_char_4L128d_T64_B12", config, 12, 30)
}

pub fn small() -> Result<()> {
    let config = GptConfig {
        vocabulary: 65,
        context: 256,
        layers: 6,
        heads: 6,
        width: 384,
        ..Default::default()
    };
    steps("gpt_6L384d_T256_B8", config, 8, 8)
}

pub fn gpt2_124m() -> Result<()> {
    let config = GptConfig {
        context: 256,
        ..Default::default()
    };
    steps("gpt2_124M_T256_B1", config, 1, 6)
}
