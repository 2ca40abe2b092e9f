//! Callbacks: when they are called, what they see, what they can do.

use std::fmt::Write;

use entrenar_base::{Error, Result};
use entrenar_io::SafeTensors;
use entrenar_nn::Parameters;
use entrenar_train::config::{Every, Length};
use entrenar_train::run::{Mode, Record};
use entrenar_train::trainer::{
    Callback, Control, Ended, History, LearningRateMonitor, ModelCheckpoint, Moment, Settings,
};

use crate::support::{Net, settings, trainer};

#[derive(Default)]
struct Diary {
    lines: String,
    stop_at: Option<u64>,
}

impl Callback for Diary {
    fn name(&self) -> &str {
        "diary"
    }

    fn on_begin(&mut self, moment: &Moment<'_>) -> Result<()> {
        let count = moment.model.parameter_count();
        writeln!(
            self.lines,
            "begin {} of {} with {count}",
            moment.step, moment.total_steps
        )
        .map_err(|error| Error::other(error.to_string()))
    }

    fn on_step(&mut self, moment: &Moment<'_>) -> Result<Control> {
        self.lines += &format!("step {}\n", moment.step);
        assert!(moment.loss.is_finite() && moment.learning_rate > 0.0 && moment.epoch > 0.0);
        Ok(match self.stop_at {
            Some(step) if step == moment.step => Control::Stop("enough".into()),
            _ => Control::Continue,
        })
    }

    fn on_evaluation(&mut self, moment: &Moment<'_>, record: &Record) -> Result<Control> {
        assert_eq!(moment.step, record.step);
        self.lines += &format!("evaluation {}\n", moment.step);
        Ok(Control::Continue)
    }

    fn on_record(&mut self, _moment: &Moment<'_>, record: &Record) -> Result<()> {
        self.lines += &format!("{} {}\n", record.split.name(), record.step);
        Ok(())
    }

    fn on_end(&mut self, moment: &Moment<'_>) -> Result<()> {
        self.lines += &format!("end {}\n", moment.step);
        Ok(())
    }
}

fn short() -> Settings {
    Settings {
        length: Length::Steps(4),
        log_every_steps: 2,
        evaluate_every: Every::Steps(2),
        ..settings()
    }
}

#[test]
fn callbacks_are_called_in_order() {
    let model = Net::new(0.0);
    let mut diary = Diary::default();
    trainer(&model, short()).callback(&mut diary).fit().unwrap();
    insta::assert_snapshot!(diary.lines, @"
    begin 0 of 4 with 33
    step 1
    step 2
    train 2
    evaluation 2
    validation 2
    step 3
    step 4
    train 4
    evaluation 4
    validation 4
    end 4
    ");
}

#[test]
fn a_callback_can_end_the_run() {
    let model = Net::new(0.0);
    let mut diary = Diary {
        stop_at: Some(3),
        ..Diary::default()
    };
    let outcome = trainer(&model, short()).callback(&mut diary).fit().unwrap();
    assert_eq!(
        (outcome.ended, outcome.step),
        (Ended::Early("enough".into()), 3)
    );
    // There is a last evaluation even though none was due.
    assert!(
        diary
            .lines
            .ends_with("step 3\nevaluation 3\nvalidation 3\nend 3\n"),
        "{}",
        diary.lines
    );
}

#[test]
fn an_error_of_a_callback_ends_the_run() {
    struct Failing;
    impl Callback for Failing {
        fn name(&self) -> &str {
            "failing"
        }

        fn on_step(&mut self, _: &Moment<'_>) -> Result<Control> {
            Err(Error::other("no more"))
        }
    }
    let model = Net::new(0.0);
    let error = trainer(&model, short())
        .callback(Failing)
        .fit()
        .unwrap_err();
    assert_eq!(error.to_string(), "no more");
}

#[test]
fn an_unknown_metric_is_an_error_that_names_the_known_ones() {
    let model = Net::new(0.0);
    let settings = Settings {
        best_by: ("accuracy".into(), Mode::Max),
        ..short()
    };
    let error = trainer(&model, settings).fit().unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected a metric of the evaluation (loss, mae), got \"accuracy\""
    );
}

#[test]
fn the_usual_callbacks_keep_what_they_promise() {
    let folder = tempfile::tempdir().unwrap();
    let best_file = folder.path().join("best.safetensors");
    let last_file = folder.path().join("last.safetensors");
    let model = Net::new(0.0);
    let (mut rates, mut history) = (LearningRateMonitor::new(), History::new());
    let mut best = ModelCheckpoint::new(&best_file).monitor("mae", Mode::Min);
    // From step 2 on the rate is far too large: the first evaluation is the best.
    let outcome = trainer(&model, short())
        .schedule(|step| if step < 2 { 0.01 } else { 3.0 })
        .callback(&mut rates)
        .callback(&mut history)
        .callback(&mut best)
        .callback(ModelCheckpoint::new(&last_file).every_evaluation())
        .fit()
        .unwrap();
    assert_eq!(rates.rates(), [(1, 0.01), (2, 0.01), (3, 3.0), (4, 3.0)]);
    assert_eq!(history.records().len(), 4);
    assert_eq!(best.best().map(|best| best.0), Some(2));
    assert_eq!(outcome.best.map(|best| best.0), Some(2));
    let stored = |file: &std::path::Path| SafeTensors::read(file).unwrap().tensors().unwrap();
    let again = Net::new(0.0);
    again.load_state(&stored(&last_file)).unwrap();
    assert_eq!(
        crate::support::numbers(&again),
        crate::support::numbers(&model)
    );
    again.load_state(&stored(&best_file)).unwrap();
    assert_ne!(
        crate::support::numbers(&again),
        crate::support::numbers(&model)
    );
}
