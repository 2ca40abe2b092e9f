//! A small model, made-up data, and ways to compare runs.

use std::path::Path;
use std::sync::Arc;

use entrenar_base::{Array, Philox, Result};
use entrenar_core::Tensor;
use entrenar_io::Store;
use entrenar_nn::optim::AdamW;
use entrenar_nn::{Ctx, Dropout, Init, Linear, Module, NamedArrays, Parameters};
use entrenar_train::config::{Every, Length};
use entrenar_train::data::{Batch, Dataset, Loader, LoaderConfig};
use entrenar_train::run::{RunDirectory, RunPlace};
use entrenar_train::trainer::{MeanSquaredError, Settings, Trainer};
use serde_json::Value;

/// Two layers with dropout between them.
#[derive(Module)]
pub struct Net {
    hidden: Linear,
    dropout: Dropout,
    output: Linear,
}

impl Net {
    pub fn new(dropout: f64) -> Self {
        let init = &mut Init::new(3);
        Self {
            hidden: Linear::new(2, 8, init).unwrap(),
            dropout: Dropout::new(dropout).unwrap(),
            output: Linear::new(8, 1, init).unwrap(),
        }
    }
}

impl Module for Net {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let x = cx.call("hidden", &self.hidden, x)?.tanh()?;
        let x = cx.call("dropout", &self.dropout, &x)?;
        cx.call("output", &self.output, &x)
    }
}

/// Points of a plane with a value that is not linear in them.
pub struct Points {
    pub rows: usize,
    /// The target of this row is NaN.
    pub broken: Option<usize>,
}

impl Points {
    pub fn new(rows: usize) -> Arc<Self> {
        Arc::new(Self { rows, broken: None })
    }
}

impl Dataset for Points {
    fn len(&self) -> usize {
        self.rows
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let random = Philox::new(9, 9);
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for &row in indices {
            let [a, b] = [0, 1].map(|at| random.uniform(2 * row as u64 + at) * 2.0 - 1.0);
            inputs.extend([a, b]);
            targets.push(if self.broken == Some(row) {
                f32::NAN
            } else {
                a * b + 0.5 * a
            });
        }
        let rows = indices.len();
        Ok(Batch::new(
            Array::from_vec(inputs, [rows, 2])?,
            Array::from_vec(targets, [rows])?,
            rows,
        ))
    }
}

/// Three epochs, evaluated and saved every four steps.
pub fn settings() -> Settings {
    Settings {
        seed: 5,
        length: Length::Epochs(3),
        max_grad_norm: Some(0.5),
        log_every_steps: 3,
        evaluate_every: Every::Steps(4),
        checkpoint_every: Every::Steps(4),
        ..Settings::default()
    }
}

pub fn loader(data: Arc<dyn Dataset>, batch_size: usize) -> Loader {
    Loader::new(data, LoaderConfig::training(batch_size, 7)).unwrap()
}

pub fn validation() -> Loader {
    Loader::new(Points::new(13), LoaderConfig::evaluation(4)).unwrap()
}

/// A trainer of `model` on 30 points in batches of 4 (the last of an epoch is shorter).
pub fn trainer<'a>(model: &'a Net, settings: Settings) -> Trainer<'a, Net> {
    let total = 24.0;
    Trainer::new(
        model,
        MeanSquaredError,
        AdamW::new(model, 0.01).unwrap(),
        loader(Points::new(30), 4),
    )
    .schedule(move |step| 0.01 * (1.0 - 0.9 * step as f64 / total))
    .validation(validation())
    .settings(settings)
}

pub fn open(path: &Path, resume: bool) -> RunDirectory {
    RunDirectory::open(&RunPlace::At(path.to_path_buf()), resume).unwrap()
}

/// The lines of `metrics.jsonl` without what depends on the clock.
pub fn metrics(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            let fields = value.as_object_mut().unwrap();
            for clock in ["seconds", "tokens_per_second", "samples_per_second"] {
                fields.shift_remove(clock);
            }
            value.to_string()
        })
        .collect()
}

/// The bytes of the weights and of the optimizer of the newest checkpoint, and its step.
pub fn newest(path: &Path) -> (u64, Vec<u8>, Vec<u8>) {
    let found = Store::at(path.join("checkpoints")).latest_intact().unwrap();
    let checkpoint = found.checkpoint.unwrap();
    (
        checkpoint.step(),
        checkpoint.bytes("model.safetensors").unwrap(),
        checkpoint.bytes("optimizer.safetensors").unwrap(),
    )
}

/// All numbers of a model.
pub fn numbers(model: &impl Parameters) -> Vec<(String, Vec<f32>)> {
    let state: NamedArrays = model.state();
    state
        .into_iter()
        .map(|(name, array)| (name, array.to_vec().unwrap()))
        .collect()
}
