//! From the sections of a config to the parts of a run: optimizer, schedule, settings, callbacks.
//!
//! The one place where words of the config become values of the loop. Neighbours: `crate::config`
//! checked the words, `from_config.rs` puts the parts together.

use entrenar_base::Result;
use entrenar_nn::optim::{Adam, AdamW, Optimizer, ParamGroup, Sgd};
use entrenar_nn::schedule::{ConstantLR, CosineAnnealingLR, LinearLR, Schedule, StepLR, WarmUp};
use entrenar_nn::{NamedParameters, Parameters};

use super::callback::EarlyStopping;
use super::settings::{NanPolicy, Settings, Unit};
use crate::config::{self, Config, DecayParameters, Metric, Task};
use crate::run::{Mode, ProgressStyle};

/// The optimizer of a config over the trainable parameters of a model.
pub(super) fn optimizer(
    config: &config::Optimizer,
    model: &impl Parameters,
) -> Result<Box<dyn Optimizer>> {
    let groups = groups(config, model.trainable_parameters());
    Ok(match *config {
        config::Optimizer::AdamW {
            learning_rate,
            betas,
            eps,
            ..
        } => Box::new(
            AdamW::builder()
                .learning_rate(learning_rate)
                .betas(betas[0], betas[1])
                .eps(eps)
                .build(groups)?,
        ),
        config::Optimizer::Adam {
            learning_rate,
            betas,
            eps,
            ..
        } => Box::new(
            Adam::builder()
                .learning_rate(learning_rate)
                .betas(betas[0], betas[1])
                .eps(eps)
                .build(groups)?,
        ),
        config::Optimizer::Sgd {
            learning_rate,
            momentum,
            nesterov,
            ..
        } => Box::new(
            Sgd::builder()
                .learning_rate(learning_rate)
                .momentum(momentum)
                .nesterov(nesterov)
                .build(groups)?,
        ),
    })
}

/// What decays and what does not: two groups, or one where all or nothing decays.
fn groups(config: &config::Optimizer, parameters: NamedParameters) -> Vec<ParamGroup> {
    let (decay, which) = config.weight_decay();
    let (decaying, others): (NamedParameters, NamedParameters) = match which {
        DecayParameters::All => (parameters, Vec::new()),
        DecayParameters::Matrices => parameters
            .into_iter()
            .partition(|(_, parameter)| parameter.shape().rank() >= 2),
    };
    [(decaying, decay), (others, 0.0)]
        .into_iter()
        .filter(|(parameters, _)| !parameters.is_empty())
        .map(|(parameters, decay)| ParamGroup::new(parameters).weight_decay(decay))
        .collect()
}

/// The learning rates of a run of `total` steps: the warm-up, then the curve over the steps that are
/// left.
pub(super) fn schedule(config: &config::Schedule, peak: f64, total: u64) -> Box<dyn Schedule> {
    let warmup = config.warmup_steps(total).min(total);
    let left = total - warmup;
    let then: Box<dyn Schedule> = match *config {
        config::Schedule::Constant { .. } => Box::new(ConstantLR {
            learning_rate: peak,
        }),
        config::Schedule::Cosine {
            min_learning_rate, ..
        } => Box::new(CosineAnnealingLR {
            learning_rate: peak,
            t_max: left,
            eta_min: min_learning_rate,
        }),
        config::Schedule::Linear {
            min_learning_rate, ..
        } => Box::new(LinearLR {
            learning_rate: peak,
            total_steps: left,
            end: min_learning_rate,
        }),
        config::Schedule::Step {
            step_size, gamma, ..
        } => Box::new(StepLR {
            learning_rate: peak,
            step_size,
            gamma,
        }),
    };
    Box::new(WarmUp::new(warmup, then))
}

/// The settings of a config.
pub(super) fn settings(config: &Config, random_order: bool, progress: ProgressStyle) -> Settings {
    let train = &config.train;
    Settings {
        seed: config.seed,
        length: train.length(),
        gradient_accumulation_steps: train.gradient_accumulation_steps,
        accumulate_across_epochs: random_order,
        max_grad_norm: train.max_grad_norm,
        clip_value: train.clip_value,
        nan_policy: match train.nan_policy {
            config::NanPolicy::Stop => NanPolicy::Stop,
            config::NanPolicy::Skip => NanPolicy::Skip(train.max_skipped_steps.unwrap_or(0)),
        },
        log_every_steps: train.log_every_steps,
        evaluate_every: config.evaluate.every(),
        evaluate_batches: config.evaluate.max_batches,
        checkpoint_every: config.checkpoint.every(),
        keep_checkpoints: config.checkpoint.keep,
        best_by: match &train.early_stopping {
            Some(stopping) => (stopping.metric.name().to_string(), mode(stopping.mode)),
            None => (Metric::Loss.name().to_string(), Mode::Min),
        },
        restore_best: true,
        unit: match config.task {
            Task::LanguageModel => Unit::Tokens,
            Task::Classification | Task::Regression => Unit::Samples,
        },
        progress,
    }
}

/// The early stopping of a config.
pub(super) fn early_stopping(config: &Config) -> Option<EarlyStopping> {
    let stopping = config.train.early_stopping.as_ref()?;
    Some(EarlyStopping::new(
        stopping.metric.name(),
        mode(stopping.mode),
        stopping.patience,
        stopping.min_delta,
    ))
}

fn mode(mode: config::Mode) -> Mode {
    match mode {
        config::Mode::Min => Mode::Min,
        config::Mode::Max => Mode::Max,
    }
}
