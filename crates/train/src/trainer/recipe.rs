//! From the sections of a config to the parts of a run: optimizer, schedule, settings, callbacks.
//!
//! The one place where words of the config become values of the loop. Neighbours: `crate::config`
//! checked the words, `from_config.rs` puts the parts together.

use entrenar_base::Result;
use entrenar_nn::optim::{
    Adam, AdamBuilder, AdamW, AdamW8bit, BuiltByAdam, Optimizer, ParamGroup, Sgd,
};
use entrenar_nn::schedule::{ConstantLR, CosineAnnealingLR, LinearLR, Schedule, StepLR, WarmUp};
use entrenar_nn::{NamedParameters, Parameters};

use entrenar_tune::lora::learns_faster;
use entrenar_zoo::Sampling;

use super::callback::EarlyStopping;
use super::settings::{NanPolicy, Settings, Unit};
use crate::config::{self, Config, DecayParameters, Metric, Task};
use crate::run::{Mode, ProgressStyle};

/// The optimizer of a config over the trainable parameters of a model.
pub(super) fn optimizer(
    config: &config::Optimizer,
    model: &impl Parameters,
) -> Result<Box<dyn Optimizer>> {
    build(config, groups(config, model.trainable_parameters()))
}

/// The optimizer of a config with adapters: with LoRA+, B and vectors learn faster, as in PEFT.
///
/// Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", 2024.
pub(super) fn tuning_optimizer(
    config: &Config,
    parameters: NamedParameters,
) -> Result<Box<dyn Optimizer>> {
    let ratio = config.adapter.as_ref().and_then(|adapter| adapter.lr_ratio);
    let Some(ratio) = ratio else {
        return build(&config.optimizer, groups(&config.optimizer, parameters));
    };
    let (fast, slow): (NamedParameters, NamedParameters) = parameters
        .into_iter()
        .partition(|(name, p)| learns_faster(name, p));
    let fast = groups(&config.optimizer, fast);
    let fast = fast
        .into_iter()
        .map(|group| group.learning_rate_scale(ratio));
    let mut all = groups(&config.optimizer, slow);
    all.extend(fast);
    build(&config.optimizer, all)
}

fn build(config: &config::Optimizer, groups: Vec<ParamGroup>) -> Result<Box<dyn Optimizer>> {
    match *config {
        config::Optimizer::AdamW {
            learning_rate,
            betas,
            eps,
            ..
        } => adam(AdamW::builder(), (learning_rate, betas, eps), groups),
        config::Optimizer::AdamW8bit {
            learning_rate,
            betas,
            eps,
            ..
        } => adam(AdamW8bit::builder(), (learning_rate, betas, eps), groups),
        config::Optimizer::Adam {
            learning_rate,
            betas,
            eps,
            ..
        } => adam(Adam::builder(), (learning_rate, betas, eps), groups),
        config::Optimizer::Sgd {
            learning_rate,
            momentum,
            nesterov,
            ..
        } => Ok(Box::new(
            Sgd::builder()
                .learning_rate(learning_rate)
                .momentum(momentum)
                .nesterov(nesterov)
                .build(groups)?,
        )),
    }
}

fn adam<O: BuiltByAdam + Optimizer + 'static>(
    builder: AdamBuilder<O>,
    (learning_rate, betas, eps): (f64, [f64; 2], f64),
    groups: Vec<ParamGroup>,
) -> Result<Box<dyn Optimizer>> {
    let settings = builder.learning_rate(learning_rate).eps(eps);
    Ok(Box::new(settings.betas(betas[0], betas[1]).build(groups)?))
}

/// How the sample of a config is drawn.
pub(super) fn sampling(wanted: &config::Generate, seed: u64) -> Sampling {
    Sampling {
        max_new_tokens: wanted.max_new_tokens,
        temperature: wanted.temperature,
        top_k: wanted.top_k,
        top_p: wanted.top_p,
        seed,
        ..Sampling::default()
    }
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
    // A warm-up that takes the whole run rises towards the peak, not towards the end of the curve.
    let left = (total - warmup).max(1);
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

/// What is odd about the learning rates of a run of `total` steps.
pub(super) fn schedule_warning(config: &Config, total: u64) -> Option<String> {
    let peak = config.optimizer.learning_rate();
    let rates = schedule(&config.schedule, peak, total);
    let all = config.schedule.warmup_steps(total) >= total && total > 0;
    all.then(|| {
        format!(
            "warning: the warm-up takes all {total} steps of the run: the learning rate ends at {:?} and never reaches \
             {peak:?}",
            rates.lr_at(total - 1)
        )
    })
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
            Task::LanguageModel | Task::Sft => Unit::Tokens,
            Task::MaskedLm
            | Task::SequenceClassification
            | Task::Classification
            | Task::Regression => Unit::Samples,
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

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_nn::{Init, LayerNorm, Linear, Module};

    #[derive(Module)]
    struct Net {
        linear: Linear,
        norm: LayerNorm,
    }

    fn names(groups: &[ParamGroup]) -> Vec<(Vec<&str>, Option<f64>)> {
        groups
            .iter()
            .map(|group| {
                let names = group.parameters.iter().map(|(name, _)| name.as_str());
                (names.collect(), group.weight_decay)
            })
            .collect()
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let init = &mut Init::new(0);
        let net = Net {
            linear: Linear::new(2, 3, init).unwrap(),
            norm: LayerNorm::new([3], init).unwrap(),
        };
        let config = |which| config::Optimizer::AdamW {
            learning_rate: 0.1,
            weight_decay: 0.5,
            decay_parameters: which,
            betas: [0.9, 0.99],
            eps: 1e-8,
        };
        let made = groups(&config(DecayParameters::Matrices), net.named_parameters());
        assert_eq!(
            names(&made),
            [
                (vec!["linear.weight"], Some(0.5)),
                (vec!["linear.bias", "norm.weight", "norm.bias"], Some(0.0)),
            ]
        );
        let made = groups(&config(DecayParameters::All), net.named_parameters());
        let all = vec!["linear.weight", "linear.bias", "norm.weight", "norm.bias"];
        assert_eq!(names(&made), [(all, Some(0.5))]);
    }

    #[test]
    fn schedules_warm_up_and_end_where_they_should() {
        let cosine = config::Schedule::Cosine {
            warmup_steps: Some(10),
            warmup_ratio: None,
            min_learning_rate: 0.1,
        };
        let rates = schedule(&cosine, 1.0, 110);
        assert!((rates.lr_at(0) - 1.0 / 11.0).abs() < 1e-12);
        assert_eq!(rates.lr_at(10), 1.0);
        assert!((rates.lr_at(60) - 0.55).abs() < 1e-12);
        assert!(rates.lr_at(109) < 0.101 && rates.lr_at(110) == 0.1);
        let linear = config::Schedule::Linear {
            warmup_steps: None,
            warmup_ratio: Some(0.1),
            min_learning_rate: 0.0,
        };
        let rates = schedule(&linear, 2.0, 100);
        assert_eq!(
            (rates.lr_at(10), rates.lr_at(55), rates.lr_at(100)),
            (2.0, 1.0, 0.0)
        );
        let step = config::Schedule::Step {
            warmup_steps: Some(5),
            warmup_ratio: None,
            step_size: 10,
            gamma: 0.5,
        };
        let rates = schedule(&step, 1.0, 100);
        assert_eq!(
            (rates.lr_at(14), rates.lr_at(15), rates.lr_at(25)),
            (1.0, 0.5, 0.25)
        );
        // A warm-up longer than the run is the run.
        let constant = config::Schedule::Constant {
            warmup_steps: Some(100),
            warmup_ratio: None,
        };
        assert!(schedule(&constant, 1.0, 10).lr_at(9) < 1.0);
        // No curve ends before it begins: every step trains.
        let (warmup_steps, warmup_ratio, min_learning_rate) = (Some(10), None, 0.0);
        for curve in [
            config::Schedule::Constant {
                warmup_steps,
                warmup_ratio,
            },
            config::Schedule::Cosine {
                warmup_steps,
                warmup_ratio,
                min_learning_rate,
            },
            config::Schedule::Linear {
                warmup_steps,
                warmup_ratio,
                min_learning_rate,
            },
        ] {
            for total in [1, 10] {
                let rates = schedule(&curve, 1.0, total);
                let rising = |step| (step + 1) as f64 / (total + 1) as f64;
                assert!(
                    (0..total).all(|step| rates.lr_at(step) == rising(step)),
                    "{curve:?}"
                );
            }
        }
    }
}
