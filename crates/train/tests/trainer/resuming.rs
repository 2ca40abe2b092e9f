//! A run that was stopped anywhere and taken up again is the run that was never stopped.

use std::cell::Cell;
use std::path::Path;

use entrenar_train::config::{Every, Length};
use entrenar_train::run::Mode;
use entrenar_train::trainer::{EarlyStopping, Ended, ModelCheckpoint, Outcome, Settings};

use crate::support::{Net, metrics, newest, open, settings, trainer};

/// Accumulation over short epochs, dropout, clipping, a schedule, limited evaluations, callbacks.
fn rich() -> Settings {
    Settings {
        length: Length::Epochs(6),
        gradient_accumulation_steps: 3,
        evaluate_every: Every::Steps(2),
        evaluate_batches: Some(2),
        checkpoint_every: Every::Steps(5),
        restore_best: true,
        ..settings()
    }
}

/// Runs in `path` until `stop` steps were made by this process.
fn run(path: &Path, settings: Settings, stop: Option<u64>) -> Outcome {
    let resume = path.exists();
    let directory = open(path, resume);
    let model = Net::new(0.2);
    let made = Cell::new(0);
    let weights = path.parent().unwrap().join(format!(
        "{}.safetensors",
        path.file_name().unwrap().to_str().unwrap()
    ));
    trainer(&model, settings)
        .callback(EarlyStopping::new("mae", Mode::Min, 50, 0.0))
        .callback(ModelCheckpoint::new(weights))
        .run_directory(&directory)
        .stop_when(|| {
            made.set(made.get() + 1);
            (Some(made.get()) == stop).then(|| "SIGTERM".to_string())
        })
        .fit()
        .unwrap()
}

#[test]
fn stopping_at_any_step_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let outcome = run(&whole, rich(), None);
    assert_eq!(outcome.ended, Ended::Finished);
    assert_eq!((outcome.step, outcome.total_steps), (18, 18));
    for stop in 1..18 {
        let parts = folder.path().join(format!("stopped-{stop}"));
        let first = run(&parts, rich(), Some(stop));
        assert_eq!(first.ended, Ended::Interrupted("SIGTERM".into()));
        assert_eq!(
            (first.step, first.validation, first.test),
            (stop, None, None)
        );
        let second = run(&parts, rich(), None);
        assert_eq!(metrics(&parts), metrics(&whole), "stopped at {stop}");
        assert_eq!(newest(&parts), newest(&whole), "stopped at {stop}");
        assert_eq!(second.best, outcome.best);
        assert_eq!(second.validation, outcome.validation);
    }
}

#[test]
fn stopping_after_every_step_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    run(&whole, rich(), None);
    let mut times = 0;
    while run(&parts, rich(), Some(1)).ended != Ended::Finished {
        times += 1;
    }
    assert_eq!(times, 17);
    assert_eq!(metrics(&parts), metrics(&whole));
    assert_eq!(newest(&parts), newest(&whole));
    let weights = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(weights("parts.safetensors"), weights("whole.safetensors"));
}

/// What a kill leaves: files of later steps, a torn line, no clean end.
#[test]
fn an_older_checkpoint_continues_like_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let keep = Settings {
        keep_checkpoints: 100,
        ..rich()
    };
    run(&whole, keep.clone(), None);
    let expected = (metrics(&whole), newest(&whole));
    for step in [15, 10, 5] {
        for entry in std::fs::read_dir(whole.join("checkpoints")).unwrap() {
            let entry = entry.unwrap().path();
            let name = entry.file_name().unwrap().to_str().unwrap().to_string();
            let number = name
                .strip_prefix("step-")
                .and_then(|n| n.parse::<u64>().ok());
            if number.is_some_and(|number| number > step) {
                std::fs::remove_dir_all(entry).unwrap();
            }
        }
        let file = whole.join("metrics.jsonl");
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("{\"step\":1");
        std::fs::write(&file, text).unwrap();
        assert_eq!(newest(&whole).0, step);
        run(&whole, keep.clone(), None);
        assert_eq!(
            (metrics(&whole), newest(&whole)),
            expected,
            "from step {step}"
        );
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, damaged) = (folder.path().join("whole"), folder.path().join("damaged"));
    run(&whole, rich(), None);
    run(&damaged, rich(), Some(12));
    let file = damaged.join("checkpoints/step-12/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let outcome = run(&damaged, rich(), None);
    assert_eq!(outcome.ended, Ended::Finished);
    assert_eq!(metrics(&damaged), metrics(&whole));
    assert_eq!(newest(&damaged), newest(&whole));
}

#[test]
fn a_finished_run_stays_finished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let with_test = |stop: Option<u64>| {
        let directory = open(&path, path.exists());
        let model = Net::new(0.2);
        trainer(&model, rich())
            .test(crate::support::validation())
            .run_directory(&directory)
            .stop_when(move || stop.map(|_| "SIGINT".to_string()))
            .fit()
            .unwrap()
    };
    let first = with_test(None);
    let before = (metrics(&path), newest(&path));
    let again = with_test(Some(1));
    assert_eq!((metrics(&path), newest(&path)), before);
    assert_eq!(
        (
            again.ended,
            again.test,
            again.validation,
            again.best,
            again.weights_step
        ),
        (
            first.ended,
            first.test,
            first.validation,
            first.best,
            first.weights_step
        )
    );
}

#[test]
fn early_stopping_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, stop: Option<u64>| {
        let path = folder.path().join(name);
        let directory = open(&path, path.exists());
        let model = Net::new(0.0);
        let made = Cell::new(0);
        // Nothing improves at a learning rate of nearly nothing by more than min_delta.
        trainer(&model, settings())
            .schedule(|_| 1e-9)
            .callback(EarlyStopping::new("loss", Mode::Min, 3, 0.1))
            .run_directory(&directory)
            .stop_when(|| {
                made.set(made.get() + 1);
                (Some(made.get()) == stop).then(|| "SIGTERM".to_string())
            })
            .fit()
            .unwrap()
    };
    let whole = run("whole", None);
    let reason = "validation loss has not improved for 3 evaluations";
    assert_eq!(whole.ended, Ended::Early(reason.into()));
    assert_eq!(whole.step, 16);
    for stop in [4, 9, 13, 15] {
        let name = format!("stopped-{stop}");
        assert_eq!(
            run(&name, Some(stop)).ended,
            Ended::Interrupted("SIGTERM".into())
        );
        let rest = run(&name, None);
        assert_eq!((rest.ended, rest.step), (whole.ended.clone(), 16));
        assert_eq!(
            metrics(&folder.path().join(&name)),
            metrics(&folder.path().join("whole"))
        );
        // Once more: it has ended.
        let again = run(&name, None);
        assert_eq!((again.ended, again.step), (whole.ended.clone(), 16));
    }
}

#[test]
fn changed_data_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    run(&path, rich(), Some(8));
    let directory = open(&path, true);
    let model = Net::new(0.2);
    let mut fewer = entrenar_train::trainer::Trainer::new(
        &model,
        entrenar_train::trainer::MeanSquaredError,
        entrenar_nn::optim::AdamW::new(&model, 0.01).unwrap(),
        crate::support::loader(crate::support::Points::new(8), 4),
    )
    .run_directory(&directory);
    let message = fewer.fit().unwrap_err().to_string();
    assert_eq!(
        message,
        "cannot resume at batch 6 of an epoch of 2: data or batch size have changed"
    );
}
