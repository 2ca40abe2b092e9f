//! What a step computes: normalisation over micro-batches, clipping, evaluation over whole splits.

use std::sync::Arc;

use entrenar_base::{Result, memory};
use entrenar_nn::optim::Sgd;
use entrenar_nn::{Ctx, Module};
use entrenar_train::config::{Every, Length};
use entrenar_train::data::{Batch, Dataset, Loader, LoaderConfig, Split};
use entrenar_train::trainer::{
    History, MeanSquaredError, Measure, Objective, Settings, Trainer, evaluate,
};
use proptest::prelude::*;

use crate::support::{Net, Points, loader, metrics, numbers, open, settings, trainer, validation};

/// The weights after training in micro-batches of `batch` rows, `group` of them a step.
fn trained(batch: usize, group: usize, rows: usize) -> Vec<(String, Vec<f32>)> {
    let model = Net::new(0.0);
    let settings = Settings {
        length: Length::Epochs(4),
        gradient_accumulation_steps: group,
        max_grad_norm: Some(0.3),
        ..Settings::default()
    };
    let outcome = Trainer::new(
        &model,
        MeanSquaredError,
        Sgd::new(&model, 0.2).unwrap(),
        loader(Points::new(rows), batch),
    )
    .settings(settings)
    .fit()
    .unwrap();
    assert_eq!(outcome.step, 4 * rows.div_ceil(batch * group) as u64);
    numbers(&model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Also where the last micro-batch of an epoch is short, and the last step has fewer of them.
    #[test]
    fn accumulation_is_one_large_batch(batch in 1usize..5, group in 2usize..5, rows in 12usize..40) {
        let large = trained(batch * group, 1, rows);
        for ((name, small), (_, large)) in trained(batch, group, rows).iter().zip(&large) {
            for (a, b) in small.iter().zip(large) {
                prop_assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{name}: {a} and {b}");
            }
        }
    }
}

#[test]
fn an_evaluation_is_the_mean_over_all_targets() {
    let model = Net::new(0.5);
    let by = |batch_size| {
        let mut loader =
            Loader::new(Points::new(13), LoaderConfig::evaluation(batch_size)).unwrap();
        evaluate(&model, &MeanSquaredError, &mut loader).unwrap()
    };
    let one = by(13);
    assert_eq!(one.targets, 13);
    for batch_size in [1, 4, 5, 100] {
        let other = by(batch_size);
        assert!(
            (other.loss - one.loss).abs() < 1e-6 * one.loss,
            "batches of {batch_size}"
        );
        assert_eq!(other.targets, 13);
    }
    // By the definition, without loader and loss functions.
    let all: Vec<usize> = (0..13).collect();
    let batch = Points::new(13).batch(&all).unwrap();
    let predicted = model
        .forward(&batch.inputs.into(), &mut Ctx::eval())
        .unwrap();
    let (predicted, targets) = (
        predicted.to_vec::<f32>().unwrap(),
        batch.targets.to_vec::<f32>().unwrap(),
    );
    let squares = predicted
        .iter()
        .zip(&targets)
        .map(|(p, t)| f64::from(p - t).powi(2));
    assert!((squares.sum::<f64>() / 13.0 - one.loss).abs() < 1e-6);
    assert_eq!(one.metric("loss"), Some(one.loss));
    assert!(one.metric("mae").is_some() && one.metric("accuracy").is_none());
}

#[test]
fn a_limited_evaluation_sees_everything_the_last_time() {
    let model = Net::new(0.0);
    let mut history = History::new();
    let settings = Settings {
        length: Length::Steps(8),
        evaluate_every: Every::Steps(4),
        evaluate_batches: Some(1),
        ..settings()
    };
    let outcome = trainer(&model, settings)
        .callback(&mut history)
        .fit()
        .unwrap();
    let evaluations: Vec<_> = history
        .records()
        .iter()
        .filter(|record| record.split == Split::Validation)
        .collect();
    assert_eq!(evaluations.len(), 2);
    let whole = evaluate(&model, &MeanSquaredError, &mut validation()).unwrap();
    assert_eq!(evaluations[1].loss.value(), f64::from(whole.loss as f32));
    assert_eq!(outcome.validation, Some(whole));
    // The best is decided by the same single batch each time, not by the line of the whole split.
    let mut first_batch = Loader::new(Points::new(4), LoaderConfig::evaluation(4)).unwrap();
    let limited = evaluate(&model, &MeanSquaredError, &mut first_batch).unwrap();
    let [four, eight] = [evaluations[0].loss.value(), f64::from(limited.loss as f32)];
    let best = if eight < four { (8, eight) } else { (4, four) };
    assert_eq!(outcome.best, Some(best));
}

#[test]
fn the_model_ends_with_the_best_weights_where_that_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    for with_directory in [true, false] {
        let model = Net::new(0.0);
        // A learning rate that explodes after a while: the best is in the middle.
        let directory = open(&folder.path().join(format!("run-{with_directory}")), false);
        let mut run = trainer(
            &model,
            Settings {
                restore_best: true,
                keep_checkpoints: 1,
                ..settings()
            },
        )
        .schedule(|step| if step < 8 { 0.01 } else { 0.5 });
        if with_directory {
            run = run.run_directory(&directory);
        }
        let outcome = run.fit().unwrap();
        assert_eq!(outcome.best.map(|best| best.0), Some(8));
        assert_eq!(outcome.weights_step, 8);
        let now = evaluate(&model, &MeanSquaredError, &mut validation()).unwrap();
        assert_eq!(outcome.validation.as_ref(), Some(&now));
        assert_eq!(
            outcome.best.map(|best| best.1),
            Some(f64::from(now.loss as f32))
        );
    }
}

#[test]
fn lines_of_metrics_have_the_fields_of_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let directory = open(&path, false);
    let model = Net::new(0.1);
    let outcome = trainer(&model, settings())
        .test(validation())
        .run_directory(&directory)
        .fit()
        .unwrap();
    let lines = metrics(&path);
    let steps = |split: &str| -> Vec<u64> {
        lines
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|line| line["split"] == split)
            .map(|line| line["step"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(steps("train"), [3, 6, 9, 12, 15, 18, 21, 24]);
    assert_eq!(steps("validation"), [4, 8, 12, 16, 20, 24]);
    assert_eq!(steps("test"), [24]);
    let text = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let first = text.lines().next().unwrap();
    let names = [
        "step",
        "epoch",
        "split",
        "loss",
        "mae",
        "grad_norm",
        "lr",
        "seconds",
        "samples_per_second",
    ];
    let mut from = 0;
    for name in names {
        let at = first[from..].find(&format!("\"{name}\":"));
        from += at.unwrap_or_else(|| panic!("{name} in order in {first}"));
    }
    assert!(
        std::fs::read_to_string(path.join("loss.svg"))
            .unwrap()
            .contains("<svg")
    );
    assert_eq!(outcome.total_steps, 24);
    // The test split is the validation split here.
    assert_eq!(outcome.test, outcome.validation);
}

#[test]
fn targets_that_an_objective_does_not_count_have_no_weight() {
    /// Leaves out negative targets.
    struct Positive;
    impl Objective<Net> for Positive {
        fn measure(&self, model: &Net, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
            let targets = entrenar_core::Tensor::from(batch.targets.clone());
            let keep = targets
                .gt_scalar(0.0)?
                .to_dtype(entrenar_core::DType::F32)?;
            let output = model
                .forward(&batch.inputs.clone().into(), cx)?
                .squeeze(-1)?;
            Ok(output.sub(&targets)?.square()?.mul(&keep)?.sum()?.into())
        }

        fn count(&self, batch: &Batch) -> usize {
            let targets = batch.targets.to_vec::<f32>().unwrap();
            targets.iter().filter(|target| **target > 0.0).count()
        }
    }
    let model = Net::new(0.0);
    let mut loader = Loader::new(Points::new(13), LoaderConfig::evaluation(2)).unwrap();
    let evaluation = evaluate(&model, &Positive, &mut loader).unwrap();
    let all: Vec<usize> = (0..13).collect();
    let batch = Points::new(13).batch(&all).unwrap();
    let predicted = model
        .forward(&batch.inputs.into(), &mut Ctx::eval())
        .unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for (p, t) in predicted
        .to_vec::<f32>()
        .unwrap()
        .iter()
        .zip(batch.targets.to_vec::<f32>().unwrap())
    {
        if t > 0.0 {
            sum += f64::from(p - t).powi(2);
            count += 1;
        }
    }
    assert_eq!(evaluation.targets, count);
    assert!((evaluation.loss - sum / count as f64).abs() < 1e-6);
}

#[test]
fn data_without_targets_is_refused() {
    struct Bare;
    impl Dataset for Bare {
        fn len(&self) -> usize {
            3
        }

        fn batch(&self, indices: &[usize]) -> Result<Batch> {
            Ok(Batch {
                targets: entrenar_base::Array::from_vec(Vec::<f32>::new(), [0])?,
                ..Points::new(3).batch(indices)?
            })
        }
    }
    let model = Net::new(0.0);
    let mut run = Trainer::new(
        &model,
        MeanSquaredError,
        Sgd::new(&model, 0.1).unwrap(),
        loader(Arc::new(Bare), 2),
    );
    assert_eq!(
        run.fit().unwrap_err().to_string(),
        "cannot train on data without targets"
    );
}

#[test]
fn memory_does_not_grow_with_steps() {
    let model = Net::new(0.1);
    let live_after = |steps| {
        trainer(
            &model,
            Settings {
                length: Length::Steps(steps),
                evaluate_every: Every::Steps(10),
                ..settings()
            },
        )
        .fit()
        .unwrap();
        memory::live_bytes()
    };
    // Other tests of this process allocate too: the smallest of several is ours.
    let least = |steps| (0..5).map(|_| live_after(steps)).min();
    let short = least(20);
    assert!(least(400) <= short.map(|bytes| bytes + 4096), "{short:?}");
}
