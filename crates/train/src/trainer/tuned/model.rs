//! [`Tuned`]: a published model as the training loop sees it, which is the part that is trained.

use std::path::Path;

use entrenar_base::Result;
use entrenar_core::Tensor;
use entrenar_core::ops::loss::Reduction;
use entrenar_nn::{Ctx, NamedParameters, Parameters, Visitor};
use entrenar_tune::{LoraConfig, lora};
use entrenar_zoo::{LmInput, TextModel};
use serde_json::json;

use crate::config::Generate;
use crate::data::Batch;
use crate::trainer::objective::{Measure, Objective};
use crate::trainer::recipe;
use crate::trainer::trained::replace_directory;

/// A published model of which some parameters are trained. To the loop it consists of these alone:
/// checkpoints and the best weights hold nothing that never changes.
pub(super) struct Tuned {
    /// The model and its tokenizer.
    pub text: TextModel,
    /// What is trained.
    pub trained: NamedParameters,
    /// The adapters' settings, where there are adapters.
    pub adapter: Option<LoraConfig>,
    /// Whether the backward pass computes activations again.
    pub checkpointing: bool,
    /// Noise on the embeddings while training.
    pub noise: Option<f64>,
    /// Whether it learns from conversations: then the sample is an answer.
    pub conversations: bool,
}

impl Parameters for Tuned {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        self.trained.visit(visitor);
    }
}

impl Tuned {
    /// Writes the adapter as PEFT does, or the whole model, with the tokenizer.
    ///
    /// # Errors
    ///
    /// What the file system reports; what was there before is then still there.
    pub(super) fn save(&mut self, directory: &Path) -> Result<()> {
        let Self { text, adapter, .. } = self;
        replace_directory(directory, |new| match adapter {
            Some(config) => {
                lora::save_adapter(&mut text.model, config, new)?;
                text.tokenizer.copy_to(new)
            }
            None => text.model.save_with(new, &text.tokenizer),
        })
    }

    /// What the model makes of the config's prompt: of conversations its answer, otherwise the
    /// prompt and its continuation.
    ///
    /// # Errors
    ///
    /// What the tokenizer, the chat template and sampling report.
    pub(super) fn sample(&self, wanted: &Generate, seed: u64) -> Result<String> {
        let sampling = recipe::sampling(wanted, seed);
        let mut text = String::new();
        let mut add = |more: &str| {
            text.push_str(more);
            true
        };
        if self.conversations {
            let template = self.text.chat_template()?;
            let messages = json!([{"role": "user", "content": wanted.prompt}]);
            let tokens = self.text.encode_chat(&template, &messages)?;
            self.text.continue_tokens(&tokens, &sampling, add)?;
        } else {
            add(&wanted.prompt);
            self.text.generate(&wanted.prompt, &sampling, add)?;
        }
        Ok(text)
    }
}

/// Cross-entropy of the tokens that are learned; an evaluation also has the perplexity, exp(loss).
pub(super) struct NextTokens;

impl Objective<Tuned> for NextTokens {
    fn measure(&self, tuned: &Tuned, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        let tokens = Tensor::from(batch.inputs.clone());
        let targets = Tensor::from(batch.targets.clone());
        let input = LmInput {
            segments: batch.segments.as_deref(),
            checkpoint: tuned.checkpointing,
            ..LmInput::default()
        };
        cx.set_embedding_noise(tuned.noise);
        let model = tuned.text.model.as_causal();
        let loss = model.loss(&tokens, &targets, Reduction::Sum, input, cx)?;
        Ok(loss.into())
    }

    fn derived(&self, mean_loss: f64) -> Vec<(&'static str, f64)> {
        vec![("perplexity", mean_loss.exp())]
    }
}
