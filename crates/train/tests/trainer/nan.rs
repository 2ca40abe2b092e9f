//! A NaN is named, never trained on, never saved.

use std::sync::Arc;

use entrenar_base::ErrorKind;
use entrenar_nn::Parameters;
use entrenar_nn::optim::Sgd;
use entrenar_train::config::{Every, Length};
use entrenar_train::data::{Loader, LoaderConfig, Order};
use entrenar_train::trainer::{MeanSquaredError, NanPolicy, Outcome, Settings, Trainer};

use crate::support::{Net, Points, newest, numbers, open};

/// Ten batches of two in order; one target of the fifth batch is NaN.
fn broken() -> Loader {
    let data = Points {
        rows: 20,
        broken: Some(9),
    };
    let config = LoaderConfig {
        order: Order::Sequential,
        ..LoaderConfig::training(2, 0)
    };
    Loader::new(Arc::new(data), config).unwrap()
}

fn run(model: &Net, nan_policy: NanPolicy, length: Length) -> entrenar_base::Result<Outcome> {
    let settings = Settings {
        length,
        nan_policy,
        ..Settings::default()
    };
    Trainer::new(model, MeanSquaredError, Sgd::new(model, 0.1)?, broken())
        .settings(settings)
        .fit()
}

#[test]
fn stop_names_the_first_bad_parameter_and_keeps_the_step_before() {
    let folder = tempfile::tempdir().unwrap();
    let directory = open(&folder.path().join("run"), false);
    let model = Net::new(0.0);
    let settings = Settings {
        length: Length::Epochs(2),
        checkpoint_every: Every::Steps(2),
        ..Settings::default()
    };
    let error = Trainer::new(
        &model,
        MeanSquaredError,
        Sgd::new(&model, 0.1).unwrap(),
        broken(),
    )
    .settings(settings)
    .run_directory(&directory)
    .fit()
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    let place = directory.path().join("checkpoints/step-4");
    assert_eq!(
        error.to_string(),
        format!(
            "step 5: the loss is NaN and the gradient of `hidden.weight` is not finite; \
             the weights are those of step 4, the newest checkpoint is {}",
            place.display()
        )
    );
    let four = Net::new(0.0);
    run(&four, NanPolicy::Stop, Length::Steps(4)).unwrap();
    assert_eq!(numbers(&model), numbers(&four));
    assert_eq!(newest(directory.path()).0, 4);
}

#[test]
fn skip_leaves_out_the_step_and_counts() {
    let model = Net::new(0.0);
    let outcome = run(&model, NanPolicy::Skip(2), Length::Epochs(2)).unwrap();
    assert_eq!((outcome.step, outcome.skipped_steps), (20, 2));
    assert!(
        numbers(&model)
            .iter()
            .all(|(_, values)| values.iter().all(|v| v.is_finite()))
    );

    let error = run(&Net::new(0.0), NanPolicy::Skip(2), Length::Epochs(3)).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with("step 25: the loss is NaN and the gradient of `hidden.weight`")
            && message.contains("(2 skipped steps are allowed)")
            && message.ends_with("the weights are those of step 24, there is no checkpoint yet"),
        "{message}"
    );
}

/// A skipped step trains nothing: the others give what they give without it.
#[test]
fn a_skipped_step_is_no_step() {
    let skipped = Net::new(0.0);
    run(&skipped, NanPolicy::Skip(1), Length::Steps(5)).unwrap();
    let before = Net::new(0.0);
    run(&before, NanPolicy::Stop, Length::Steps(4)).unwrap();
    assert_eq!(numbers(&skipped), numbers(&before));
}

#[test]
fn a_broken_parameter_is_named_before_any_gradient() {
    let model = Net::new(0.0);
    let bias = model.parameter("output.bias").unwrap();
    bias.with_value_mut::<f32, _>(|values| values[0] = f32::INFINITY)
        .unwrap();
    let message = run(&model, NanPolicy::Skip(0), Length::Steps(2))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("step 1: the loss is inf: the parameter `output.bias` is not finite"),
        "{message}"
    );
}

/// Every later step would fail as this one did: the allowance is not used up in silence.
#[test]
fn a_broken_parameter_is_not_skipped() {
    let model = Net::new(0.0);
    let bias = model.parameter("output.bias").unwrap();
    bias.with_value_mut::<f32, _>(|values| values[0] = f32::NAN)
        .unwrap();
    let error = run(&model, NanPolicy::Skip(1000), Length::Steps(9)).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with("step 1: ") && message.contains("(to skip steps would not mend it)"),
        "{message}"
    );
}

/// An update that overflows is not saved as a checkpoint.
#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let directory = open(&folder.path().join("run"), false);
    let model = Net::new(0.0);
    let settings = Settings {
        length: Length::Steps(4),
        checkpoint_every: Every::Steps(1),
        ..Settings::default()
    };
    let error = Trainer::new(
        &model,
        MeanSquaredError,
        Sgd::new(&model, 0.1).unwrap(),
        broken(),
    )
    .settings(settings)
    .schedule(|step| {
        if step == 2 {
            f64::from(f32::MAX) * 1e3
        } else {
            0.1
        }
    })
    .run_directory(&directory)
    .fit()
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    assert_eq!(
        error.to_string(),
        "after step 3 the parameter `hidden.weight` is not finite; no checkpoint was written"
    );
    assert_eq!(newest(directory.path()).0, 2);
}
