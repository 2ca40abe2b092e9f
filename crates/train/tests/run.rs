//! The run directory from outside: metrics, plots, progress, signals.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use entrenar_base::ErrorKind;
use entrenar_train::data::Split;
use entrenar_train::run::{
    MetricsWriter, Number, Progress, ProgressConfig, ProgressStyle, Record, RunDirectory, RunPlace,
    StepReport, Throughput, loss_plot, read_metrics,
};
use proptest::prelude::*;

fn told(directory: &Path, error: impl std::fmt::Display) -> String {
    error
        .to_string()
        .replace(&directory.display().to_string(), "DIR")
}

#[test]
fn run_directories_are_numbered() {
    let parent = tempfile::tempdir().unwrap();
    let runs = parent.path().join("runs");
    let place = RunPlace::Numbered {
        runs: runs.clone(),
        name: "gpt".into(),
    };
    for name in ["gpt-7", "gpt-01", "gpt-x", "gpt2-99", "gpt"] {
        fs::create_dir_all(runs.join(name)).unwrap();
    }
    let open = |resume| {
        RunDirectory::open(&place, resume)
            .map(|run| run.path().strip_prefix(&runs).unwrap().to_path_buf())
    };
    assert_eq!(open(false).unwrap(), Path::new("gpt-8"));
    assert_eq!(open(true).unwrap(), Path::new("gpt-8"));
    assert_eq!(open(false).unwrap(), Path::new("gpt-9"));
    let other = RunPlace::Numbered {
        runs,
        name: "new".into(),
    };
    assert!(
        RunDirectory::open(&other, true)
            .unwrap()
            .path()
            .ends_with("runs/new-1")
    );
}

#[test]
fn a_directory_in_use_or_with_content_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let place = RunPlace::At(parent.path().join("deep/run"));
    let run = RunDirectory::open(&place, false).unwrap();
    let error = RunDirectory::open(&place, true).unwrap_err();
    insta::assert_snapshot!(told(parent.path(), &error), @"DIR/deep/run: another process is using this run directory");
    assert_eq!(error.kind(), ErrorKind::Config);
    drop(run);
    // Nothing was written: still a fresh directory.
    let run = RunDirectory::open(&place, false).unwrap();
    assert_eq!(run.read_config().unwrap(), None);
    run.write_config("seed: 3\n").unwrap();
    drop(run);
    let error = RunDirectory::open(&place, false).unwrap_err();
    insta::assert_snapshot!(told(parent.path(), &error), @"DIR/deep/run: expected an empty run directory; --resume continues the run in it");
    assert_eq!(error.kind(), ErrorKind::Config);
    let run = RunDirectory::open(&place, true).unwrap();
    assert_eq!(run.read_config().unwrap().as_deref(), Some("seed: 3\n"));
    assert!(
        run.checkpoints().ends_with("deep/run/checkpoints")
            && run.model().ends_with("deep/run/model")
    );
}

#[test]
fn names_that_leave_the_directory_of_runs_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["", "a/b", "..\\x"] {
        let place = RunPlace::Numbered {
            runs: parent.path().into(),
            name: name.into(),
        };
        assert_eq!(
            RunDirectory::open(&place, false).unwrap_err().kind(),
            ErrorKind::Config,
            "{name:?}"
        );
    }
}

fn record(step: u64, split: Split) -> Record {
    let mut record = Record::new(step, step as f64 / 7.0, split, 1.0f32 / (step + 1) as f32);
    record
        .metrics
        .push(("accuracy".into(), Number::F64(0.1 * step as f64)));
    record.lr = Some(3e-4);
    record.seconds = Some(step as f64 * 0.25);
    record.throughput = Some(Throughput::TokensPerSecond(1234.5));
    record
}

fn write(path: &Path, resumed: Option<u64>, steps: impl Iterator<Item = u64>) {
    let mut writer = MetricsWriter::open(path, resumed).unwrap();
    for step in steps {
        writer.append(&record(step, Split::Train)).unwrap();
        if step % 3 == 0 {
            writer.append(&record(step, Split::Validation)).unwrap();
        }
    }
    writer.sync().unwrap();
}

#[test]
fn a_line_has_the_documented_fields() {
    let line = record(3, Split::Validation).to_json().unwrap();
    insta::assert_snapshot!(line, @r#"{"step":3,"epoch":0.42857142857142855,"split":"validation","loss":0.25,"accuracy":0.30000000000000004,"lr":0.0003,"seconds":0.75,"tokens_per_second":1234.5}"#);
    let not_a_number = Record::new(1, 1.0, Split::Test, f32::NAN)
        .to_json()
        .unwrap();
    assert_eq!(
        not_a_number,
        r#"{"step":1,"epoch":1.0,"split":"test","loss":null}"#
    );
    for name in ["loss", "lr", "accuracy"] {
        let mut clash = record(1, Split::Train);
        clash.metrics.push((name.into(), 1.0.into()));
        assert!(clash.to_json().unwrap_err().to_string().contains(name));
    }
}

#[test]
fn a_killed_and_resumed_file_equals_an_uninterrupted_one() {
    let directory = tempfile::tempdir().unwrap();
    let straight = directory.path().join("straight.jsonl");
    write(&straight, None, 0..20);
    let expected = fs::read(&straight).unwrap();
    // Killed at any byte after the lines of the checkpoint, resumed from it.
    for checkpoint in [0u64, 6, 11] {
        let kept = read_lines_until(&expected, checkpoint);
        for cut in (kept..expected.len()).step_by(53) {
            let killed = directory.path().join("killed.jsonl");
            fs::write(&killed, &expected[..cut]).unwrap();
            write(&killed, Some(checkpoint), checkpoint + 1..20);
            assert_eq!(
                fs::read(&killed).unwrap(),
                expected,
                "checkpoint {checkpoint}, cut at {cut}"
            );
        }
    }
    // Without a checkpoint everything is written again, also what stood before the first step.
    write(&straight, None, 0..20);
    assert_eq!(fs::read(&straight).unwrap(), expected);
}

/// The length of the lines with step <= `step`.
fn read_lines_until(bytes: &[u8], step: u64) -> usize {
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .take_while(|line| {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            value["step"].as_u64().unwrap() <= step
        })
        .map(<[u8]>::len)
        .sum()
}

#[test]
fn damage_in_the_middle_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.jsonl");
    let good = record(1, Split::Train).to_json().unwrap();
    fs::write(&path, format!("{good}\n{{\"step\":\n{good}\n")).unwrap();
    insta::assert_snapshot!(told(directory.path(), read_metrics(&path).unwrap_err()), @"DIR/metrics.jsonl:2: expected a JSON object: EOF while parsing a value, column 8");
    fs::write(
        &path,
        format!("{good}\n{{\"step\":2,\"split\":\"dev\"}}\n{good}\n"),
    )
    .unwrap();
    insta::assert_snapshot!(told(directory.path(), MetricsWriter::open(&path, Some(1)).unwrap_err()), @r#"DIR/metrics.jsonl:2: expected train, validation or test as "split""#);
    // A block of zeros at the end is what a power cut leaves.
    fs::write(&path, format!("{good}\n\0\0\0\0")).unwrap();
    assert_eq!(read_metrics(&path).unwrap().len(), 1);
    assert!(
        read_metrics(&directory.path().join("none"))
            .unwrap()
            .is_empty()
    );
}

proptest! {
    #[test]
    fn numbers_read_back_exactly(loss: f32, value: f64, step: u64, count: u64) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m");
        let mut written = Record::new(step, value, Split::Train, loss);
        written.metrics = vec![("m".into(), value.into()), ("n".into(), count.into())];
        written.lr = Some(value);
        MetricsWriter::open(&path, None).unwrap().append(&written).unwrap();
        let read = &read_metrics(&path).unwrap()[0];
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (!a.is_finite() && b.is_nan());
        prop_assert_eq!(read.step, step);
        prop_assert!(same(value, read.epoch) && same(value, read.lr.unwrap()) && same(value, read.metrics[0].1.value()));
        prop_assert_eq!(read.metrics[1].1, Number::Integer(count));
        prop_assert!(same(f64::from(loss), f64::from(read.loss.value() as f32)));
    }

    #[test]
    fn plots_hold_only_finite_coordinates(
        losses in proptest::collection::vec(prop_oneof![8 => -1e3f32..1e3, 1 => Just(f32::NAN), 1 => Just(1e30f32)], 0..400)
    ) {
        let records: Vec<Record> = losses
            .iter()
            .enumerate()
            .map(|(step, &loss)| {
                Record::new(step as u64, 0.0, if step % 5 == 4 { Split::Validation } else { Split::Train }, loss)
            })
            .collect();
        let svg = loss_plot(&records, None);
        prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", svg);
        prop_assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}

/// A curve like those of real runs.
fn curve(steps: u64, every: u64) -> Vec<Record> {
    let mut records = Vec::new();
    for step in 1..=steps {
        let wave = ((step * 7919) % 101) as f64 / 101.0 - 0.5;
        let loss = 1.4 + 2.8 * (-(step as f64) / (steps as f64 / 6.0)).exp();
        records.push(Record::new(step, 0.0, Split::Train, loss + 0.25 * wave));
        if step % every == 0 {
            let overfit = 0.3 * (step as f64 / steps as f64).powi(2);
            records.push(Record::new(
                step,
                0.0,
                Split::Validation,
                loss + 0.12 + overfit,
            ));
        }
    }
    records
}

#[test]
fn plots_are_readable_with_few_and_many_points() {
    let one = vec![Record::new(1, 0.1, Split::Train, 4.17)];
    let mut spiked = curve(2000, 200);
    spiked[900].loss = Number::F64(5000.0);
    spiked[901].loss = Number::F64(f64::NAN);
    let plots = [
        ("one", loss_plot(&one, None)),
        ("few", loss_plot(&curve(12, 4), Some(4))),
        ("many", loss_plot(&curve(10_000, 250), None)),
        ("spiked", loss_plot(&spiked, None)),
        ("none", loss_plot(&[], None)),
    ];
    for (name, svg) in &plots {
        // For looking at them: PLOT_DIR=somewhere cargo test.
        if let Some(directory) = std::env::var_os("PLOT_DIR") {
            fs::write(Path::new(&directory).join(format!("{name}.svg")), svg).unwrap();
        }
        assert!(
            svg.contains(">step</text>") && svg.contains(">loss</text>"),
            "{name}"
        );
        let ticks = svg.matches("text-anchor=\"end\" fill=\"#444444\"").count();
        assert!((2..=14).contains(&ticks), "{name}: {ticks} ticks");
        assert!(svg.len() < 40_000, "{name}: {} bytes", svg.len());
    }
    assert!(plots[0].1.contains("train: 4.17"));
    assert!(plots[1].1.contains("at step 4)"), "the step that was told");
    assert!(plots[2].1.contains("best: 1.") && plots[2].1.contains("validation"));
    assert!(
        plots[3]
            .1
            .contains("losses not drawn: 1 above the axis, 1 not finite")
    );
    assert!(plots[4].1.contains("no loss was finite"));
}

#[test]
fn the_run_directory_draws_its_metrics() {
    let parent = tempfile::tempdir().unwrap();
    let run = RunDirectory::open(&RunPlace::At(parent.path().join("r")), false).unwrap();
    run.write_plot().unwrap();
    assert!(!run.plot_file().exists());
    write(&run.metrics_file(), None, 1..5);
    run.write_plot().unwrap();
    assert!(
        fs::read_to_string(run.plot_file())
            .unwrap()
            .contains("validation")
    );
}

/// A writer that several hands can look into.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn plain_progress_is_lines_and_quiet_progress_is_nothing() {
    let report = |step| StepReport {
        step,
        loss: 2.0,
        lr: 1e-3,
        throughput: Throughput::SamplesPerSecond(640.0),
    };
    let lines = |style, interval| {
        let sink = Sink::default();
        let config = ProgressConfig {
            style,
            interval,
            ..ProgressConfig::new(4)
        };
        let mut progress = Progress::to(config, Box::new(sink.clone()));
        (1..=4).for_each(|step| progress.step(&report(step)));
        progress.note("saved");
        progress.finish();
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    };
    let all = lines(ProgressStyle::Plain, Duration::ZERO);
    assert_eq!(all.lines().count(), 5);
    assert!(
        all.starts_with("step 1/4  loss 2.0000  lr 1.00e-3  640 samples/s  0s left\n"),
        "{all}"
    );
    // The first and the last step are always shown.
    let few = lines(ProgressStyle::Plain, Duration::from_secs(3600));
    let shown: Vec<&str> = few
        .lines()
        .map(|line| line.split("  ").next().unwrap())
        .collect();
    assert_eq!(shown, ["step 1/4", "step 4/4", "saved"]);
    assert_eq!(lines(ProgressStyle::Quiet, Duration::ZERO), "");
}

#[cfg(unix)]
mod signals {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use entrenar_train::run::Signals;

    /// What the child process of the next tests does; in the ordinary run it does nothing.
    #[test]
    fn child() {
        let Some(role) = std::env::var_os("SIGNAL_CHILD") else {
            return;
        };
        let signals = Signals::install().unwrap();
        assert!(!signals.stop_requested() && signals.name().is_none());
        println!("\nready");
        let begun = Instant::now();
        let mut told = false;
        while begun.elapsed() < Duration::from_secs(60) {
            if signals.stop_requested() && !told {
                println!("\ngot {}", signals.name().unwrap());
                told = true;
                if role == "polite" {
                    std::process::exit(0);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::process::exit(9);
    }

    fn start(role: &str) -> (Child, impl FnMut(&str)) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signals::child", "--nocapture"])
            .env("SIGNAL_CHILD", role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wait = move |wanted: &str| {
            assert!(
                lines.any(|line| line.unwrap() == wanted),
                "the child never said {wanted:?}"
            );
        };
        (child, wait)
    }

    fn send(child: &Child, signal: &str) {
        let status = Command::new("sh")
            .args(["-c", &format!("kill {signal} {}", child.id())])
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn the_first_signal_asks() {
        for (signal, name) in [("-INT", "got SIGINT"), ("-TERM", "got SIGTERM")] {
            let (mut child, mut wait) = start("polite");
            wait("ready");
            send(&child, signal);
            wait(name);
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
    }

    #[test]
    fn the_second_signal_insists() {
        let (mut child, mut wait) = start("stubborn");
        wait("ready");
        send(&child, "-INT");
        wait("got SIGINT");
        send(&child, "-TERM");
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}
