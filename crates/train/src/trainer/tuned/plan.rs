//! [`plan`]: the memory and time that a fine-tuning run will take, before it takes them.
//!
//! Weights are counted exactly, from the mapped files. Activations are what the linear layers take in and give out,
//! which is most of them. Time is the arithmetic of the linear layers at the speed of one of them, measured on the
//! spot; attention, norms and reading come on top.

use std::fmt;
use std::time::Instant;

use entrenar_base::{DType, Error, Result};
use entrenar_core::{Tensor, no_grad};
use entrenar_nn::{Parameters, Projections};
use entrenar_tune::quant;

use super::{opening, placed, rows};
use crate::config::{Config, Loaded, Model, Optimizer, Precision, Task};
use crate::data::{Loader, LoaderConfig};
use crate::run::ProgressStyle;
use crate::trainer::recipe;
use crate::trainer::settings::{batches_per_step, total_steps};
use crate::trainer::trained::open_text_model;

/// Bytes and seconds of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Bytes of the weights that do not change.
    pub frozen: u64,
    /// Bytes of what is trained, its gradients and the optimizer's state.
    pub trained: u64,
    /// Bytes of the activations that the backward pass of one micro-batch needs.
    pub activations: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of an average optimizer step.
    pub tokens_per_step: f64,
    /// Seconds of an average optimizer step.
    pub seconds_per_step: f64,
    /// What is known of model and data.
    pub notes: Vec<String>,
}

impl Plan {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.frozen + self.trained + self.activations
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(
            f,
            "memory: about {:.0} MiB ({:.0} frozen weights, {:.0} trained with gradients and optimizer, {:.0} activations)",
            mebibytes(self.bytes()),
            mebibytes(self.frozen),
            mebibytes(self.trained),
            mebibytes(self.activations),
        )?;
        write!(
            f,
            "time: about {:.2} s a step of {:.0} tokens, {:.1} min for {} steps",
            self.seconds_per_step,
            self.tokens_per_step,
            self.seconds_per_step * self.steps as f64 / 60.0,
            self.steps,
        )
    }
}

/// What a run from this config will take; `None` for a config without `model.base`.
///
/// # Errors
///
/// What is wrong with model or data.
pub fn plan(loaded: &Loaded) -> Result<Option<Plan>> {
    let config = &loaded.config;
    let Model::Pretrained(base) = &config.model else {
        return Ok(None);
    };
    match config.task {
        Task::SequenceClassification => {
            return super::classifier::prepare(loaded, base).map(|_| None);
        }
        Task::MaskedLm => return super::masked::prepare(loaded, base).map(|_| None),
        _ => {}
    }
    let here = |key: &'static str| move |error: Error| placed(loaded, key, error);
    let directory = opening::find(&base.base).map_err(here("model.base"))?;
    let mut text = open_text_model(&directory, None).map_err(here("model.base"))?;
    opening::check_trainable(config, &directory).map_err(here("model.base"))?;
    let rows = rows::open(config, &text).map_err(here("data"))?;
    let mut notes: Vec<String> = opening::warnings(&text).chain(rows.notes).collect();

    let (mut linear, mut widths) = (0u64, 0u64);
    text.model.visit_projections(&mut |_, projection| {
        let (inputs, outputs) = projection.sizes();
        linear += (inputs * outputs) as u64;
        widths += (inputs + outputs) as u64;
        Ok(())
    })?;
    // Weights that are stored in 4 bits are no parameters.
    let stored = quant::report(&mut text.model)?;
    let total = (text.model.parameter_count() + stored.numbers) as u64;
    let trained_count = match &config.adapter {
        Some(adapter) => {
            let settings = opening::settings(adapter, config);
            let (trainable, told) = opening::attach(loaded, &mut text, &settings)?;
            notes.extend(told);
            trainable as u64
        }
        None => total,
    };

    let number = match config.precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let frozen = match (&config.adapter, &config.quantization) {
        (None, _) => 0,
        _ if stored.numbers > 0 => (total - stored.numbers as u64) * number + stored.bytes as u64,
        (Some(_), None) => total * number,
        (Some(_), Some(quantization)) => {
            let bits = opening::bits_per_weight(quantization);
            (total - linear) * number + (linear as f64 * bits / 8.0) as u64
        }
    };
    let moments = match &config.optimizer {
        Optimizer::AdamW { .. } | Optimizer::Adam { .. } => 8,
        Optimizer::AdamW8bit { .. } => 2,
        Optimizer::Sgd { momentum, .. } if *momentum > 0.0 => 4,
        Optimizer::Sgd { .. } => 0,
    };
    let loader = Loader::new(
        rows.parts.training.clone(),
        LoaderConfig::training(config.train.batch_size, config.seed),
    )?;
    let settings = recipe::settings(config, false, ProgressStyle::Quiet);
    let batches = loader.batches_per_epoch();
    let steps = total_steps(&settings, batches);
    notes.extend(recipe::schedule_warning(config, steps));
    let (tokens, widest) = size_of_batches(&loader, config)?;
    let layers = text.model.as_causal().layers().max(1) as u64;
    let kept = if config.train.gradient_checkpointing == Some(true) {
        // One layer's activations, and the input of every layer.
        let width = text.model.as_causal().head().shape()[1] as u64;
        widths / layers + width * layers
    } else {
        widths
    };
    let tokens_per_step = tokens * batches_per_step(&settings, batches);
    let head = text.model.as_causal().head().numel() as u64;
    // Forward, backward to the inputs, and to the weights where these are trained.
    let per_token = 4.0 * (linear + head) as f64
        + 2.0
            * if config.adapter.is_some() {
                3.0 * trained_count as f64
            } else {
                (linear + head) as f64
            };
    let replay = match config.train.gradient_checkpointing {
        Some(true) => 2.0 * linear as f64,
        _ => 0.0,
    };
    Ok(Some(Plan {
        frozen,
        trained: trained_count * (8 + moments),
        activations: widest * kept * number,
        steps,
        tokens_per_step,
        seconds_per_step: tokens_per_step * (per_token + replay) / speed(config)?,
        notes,
    }))
}

/// The tokens of an average micro-batch and the places of the widest, of a sample of the data.
fn size_of_batches(loader: &Loader, config: &Config) -> Result<(f64, u64)> {
    const LOOKED_AT: usize = 200;
    let data = loader.dataset();
    let rows = config.train.batch_size.min(data.len()).max(1);
    let (mut places, mut widest, mut batches) = (0u64, 0u64, 0u64);
    let count = data.len().div_ceil(rows);
    for index in (0..count).step_by(count.div_ceil(LOOKED_AT).max(1)) {
        let members: Vec<usize> = (index * rows..((index + 1) * rows).min(data.len())).collect();
        let size = data.batch(&members)?.inputs.numel() as u64;
        places += size;
        widest = widest.max(size);
        batches += 1;
    }
    Ok((places as f64 / batches.max(1) as f64, widest))
}

/// Operations per second of a linear layer of a usual size in this precision.
fn speed(config: &Config) -> Result<f64> {
    const ROWS: usize = 256;
    const INPUTS: usize = 768;
    const OUTPUTS: usize = 768;
    const SECONDS: f64 = 0.2;
    let dtype = match config.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let x = Tensor::full([ROWS, INPUTS], 0.5, dtype);
    let weight = Tensor::full([OUTPUTS, INPUTS], 0.25, dtype);
    no_grad(|| {
        x.linear(&weight, None)?; // caches and threads warm up
        let (begin, mut runs) = (Instant::now(), 0u32);
        while begin.elapsed().as_secs_f64() < SECONDS {
            x.linear(&weight, None)?;
            runs += 1;
        }
        let operations = 2.0 * (ROWS * INPUTS * OUTPUTS) as f64 * f64::from(runs);
        Ok(operations / begin.elapsed().as_secs_f64())
    })
}
