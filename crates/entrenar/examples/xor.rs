//! XOR: two layers learn what one cannot.
//!
//!     cargo run --release -p entrenar --example xor [SEED]
//!
//! 1,000 noisy points around the corners of a square, 800 to train on and 200 to validate on. Prints
//! losses and accuracies of every epoch, marks the best epoch and the patience that is left, stops
//! early, and keeps checkpoints, metrics and a plot of the losses in `runs/xor-N`.

use std::sync::Arc;

use entrenar::base::Philox;
use entrenar::prelude::*;
use entrenar::train::config::{Every, Length};
use entrenar::train::run::{Mode, Record, RunDirectory, RunPlace};
use entrenar::train::trainer::Outcome;

/// Points around the corners (0, 0), (0, 1), (1, 0), (1, 1); the target is 1 where exactly one
/// coordinate is nearer to 1.
struct Corners {
    random: Philox,
    rows: std::ops::Range<usize>,
}

/// Standard deviation of the points around their corner.
const NOISE: f64 = 0.12;

impl Dataset for Corners {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self, indices: &[usize]) -> entrenar::Result<Batch> {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for index in indices {
            let row = (self.rows.start + index) as u64;
            let corner = self.random.fork(row).below(0, 4);
            let (a, b) = (corner & 1, corner >> 1);
            for (axis, bit) in [(0, a), (1, b)] {
                inputs.push((bit as f64 + NOISE * self.random.normal(2 * row + axis)) as f32);
            }
            targets.push((a ^ b) as f32);
        }
        let rows = indices.len();
        Ok(Batch::new(
            Array::from_vec(inputs, [rows, 2])?,
            Array::from_vec(targets, [rows])?,
            rows,
        ))
    }
}

/// Two inputs, eight hidden units, one logit.
#[derive(Module)]
struct Mlp {
    hidden: Linear,
    output: Linear,
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> entrenar::Result<Tensor> {
        let h = cx.call("hidden", &self.hidden, x)?.tanh()?;
        cx.call("output", &self.output, &h)
    }
}

/// One line per epoch.
struct Report {
    patience: u64,
    waited: u64,
    best: f64,
    train: (f64, f64),
}

fn accuracy(record: &Record) -> f64 {
    let found = record.metrics.iter().find(|(name, _)| name == "accuracy");
    found.map_or(f64::NAN, |(_, value)| value.value())
}

impl Callback for Report {
    fn name(&self) -> &str {
        "report"
    }

    fn on_record(&mut self, moment: &Moment<'_>, record: &Record) -> entrenar::Result<()> {
        let (loss, accuracy) = (record.loss.value(), accuracy(record));
        match record.split {
            Split::Train => self.train = (loss, accuracy),
            Split::Validation => {
                let mark = if loss < self.best {
                    (self.best, self.waited) = (loss, 0);
                    "  * best".to_string()
                } else {
                    self.waited += 1;
                    format!("  patience {}/{}", self.waited, self.patience)
                };
                println!(
                    "epoch {:3.0}  train loss {:.4} accuracy {:.3}  validation loss {loss:.4} accuracy {accuracy:.3}{mark}",
                    moment.epoch, self.train.0, self.train.1
                );
            }
            Split::Test => {}
        }
        Ok(())
    }
}

/// Trains in `directory`; at most 100 epochs.
fn run(seed: u64, directory: &RunDirectory) -> entrenar::Result<Outcome> {
    const PATIENCE: u64 = 10;
    let points = |rows| {
        let random = Philox::new(seed, 0);
        Arc::new(Corners { random, rows })
    };
    let init = &mut Init::new(seed);
    let model = Mlp {
        hidden: Linear::new(2, 8, init)?,
        output: Linear::new(8, 1, init)?,
    };
    let training = Loader::new(points(0..800), LoaderConfig::training(32, seed))?;
    let validation = Loader::new(points(800..1000), LoaderConfig::evaluation(200))?;
    let settings = Settings {
        seed,
        length: Length::Epochs(100),
        log_every_steps: training.batches_per_epoch(),
        checkpoint_every: Every::Epochs(20),
        keep_checkpoints: 1,
        restore_best: true,
        ..Settings::default()
    };
    Trainer::new(
        &model,
        BinaryCrossEntropy,
        Adam::new(&model, 0.02)?,
        training,
    )
    .validation(validation)
    .settings(settings)
    .callback(Report {
        patience: PATIENCE,
        waited: 0,
        best: f64::INFINITY,
        train: (f64::NAN, f64::NAN),
    })
    .callback(EarlyStopping::new("loss", Mode::Min, PATIENCE, 0.0))
    .run_directory(directory)
    .fit()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seed = match std::env::args().nth(1) {
        Some(seed) => seed.parse()?,
        None => 0,
    };
    let place = RunPlace::Numbered {
        runs: "runs".into(),
        name: "xor".into(),
    };
    let directory = RunDirectory::open(&place, false)?;
    let outcome = run(seed, &directory)?;
    if let Some(validation) = outcome.validation {
        println!(
            "{:?}: the weights of step {} have validation loss {:.4}; checkpoints in {}",
            outcome.ended,
            outcome.weights_step,
            validation.loss,
            directory.path().display()
        );
    }
    Ok(())
}

#[test]
fn the_default_seed_learns_xor() {
    let folder = tempfile::tempdir().unwrap();
    let place = RunPlace::At(folder.path().join("xor"));
    let directory = RunDirectory::open(&place, false).unwrap();
    let outcome = run(0, &directory).unwrap();
    let validation = outcome.validation.unwrap();
    assert!(validation.loss <= 0.05, "{validation:?}");
    assert!(
        validation.metric("accuracy").unwrap() >= 0.98,
        "{validation:?}"
    );
    assert!(directory.checkpoints().join("best").exists());
}
