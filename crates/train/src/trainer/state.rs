//! What a checkpoint holds, and how a run is taken up from it.
//!
//! `model.safetensors` has the parameters and buffers, `optimizer.safetensors` the moments,
//! `state.json` everything else ([`State`]); a run from a config adds `config.json` and
//! `preprocess.json`, which make each checkpoint a model directory of its own. Everything random is
//! a function of seed and position, so there is no generator to store. Neighbours: `fit.rs`, and the
//! store of `entrenar-io`, which makes a checkpoint whole or absent.

use std::collections::BTreeMap;

use entrenar_base::{Error, Result};
use entrenar_io::{Checkpoint, Store};
use entrenar_nn::Parameters;
use entrenar_nn::optim::Optimizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::totals::Totals;
use crate::data::LoaderState;
use crate::run::Best;

/// The weights and buffers of a checkpoint or a model directory.
pub(super) const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";
const VERSION: u64 = 1;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    format_version: u64,
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Where the training data stands.
    pub loader: LoaderState,
    /// The random position: seed and number of the next forward pass.
    pub random: RandomPosition,
    /// Where the schedule stands.
    pub schedule: SchedulePosition,
    /// Losses since the last line of training metrics.
    pub window: Totals,
    /// Steps left out because of a NaN.
    pub skipped_steps: u64,
    /// The best evaluation.
    pub best: Best,
    /// Why the run ended before its last step, if it did.
    pub stopped: Option<String>,
    /// Seconds since the run began, over all its resumptions.
    pub seconds: f64,
    /// States of the callbacks by position and name.
    pub callbacks: BTreeMap<String, Value>,
}

/// The position of everything random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RandomPosition {
    pub seed: u64,
    /// The number of the next forward pass.
    pub pass: u64,
}

/// The position of the schedule: for readers; the learning rate is a function of the step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SchedulePosition {
    pub learning_rate: f64,
    pub total_steps: u64,
}

impl State {
    /// A run before its first step.
    pub fn new(best: Best, seed: u64, total_steps: u64) -> Self {
        Self {
            format_version: VERSION,
            step: 0,
            loader: LoaderState::default(),
            random: RandomPosition { seed, pass: 0 },
            schedule: SchedulePosition {
                learning_rate: 0.0,
                total_steps,
            },
            window: Totals::default(),
            skipped_steps: 0,
            best,
            stopped: None,
            seconds: 0.0,
            callbacks: BTreeMap::new(),
        }
    }

    /// Saves everything as the checkpoint of its step.
    pub fn save<M: Parameters + ?Sized>(
        &self,
        store: &Store,
        model: &M,
        optimizer: &dyn Optimizer,
        extra: &[(String, Vec<u8>)],
    ) -> Result<()> {
        store.save(self.step, |writer| {
            writer.tensors_with(MODEL_FILE, &model.state(), &metadata())?;
            writer.tensors(OPTIMIZER_FILE, &optimizer.state())?;
            for (name, bytes) in extra {
                writer.bytes(name, bytes)?;
            }
            writer.json(STATE_FILE, self)
        })?;
        Ok(())
    }

    /// Reads a checkpoint into a model and an optimizer.
    pub fn load<M: Parameters + ?Sized>(
        checkpoint: &Checkpoint,
        model: &M,
        optimizer: &mut dyn Optimizer,
    ) -> Result<Self> {
        let here = |error: Error| error.context(checkpoint.path().display());
        let version: VersionOnly = checkpoint.json(STATE_FILE)?;
        if version.format_version != VERSION {
            return Err(Error::format(
                checkpoint.path().join(STATE_FILE),
                format!(
                    "expected format version {VERSION}, got {}",
                    version.format_version
                ),
            ));
        }
        let state: Self = checkpoint.json(STATE_FILE)?;
        load_weights(checkpoint, model)?;
        optimizer
            .load_state(&checkpoint.tensors(OPTIMIZER_FILE)?.tensors()?)
            .map_err(here)?;
        Ok(state)
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: u64,
}

/// Reads the weights and buffers of a checkpoint into a model.
pub(super) fn load_weights<M: Parameters + ?Sized>(
    checkpoint: &Checkpoint,
    model: &M,
) -> Result<()> {
    model
        .load_state(&checkpoint.tensors(MODEL_FILE)?.tensors()?)
        .map_err(|error| error.context(checkpoint.path().display()))
}

/// What safetensors files of PyTorch's world say about themselves; readers there insist on it.
pub(super) fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_string(), "pt".to_string())])
}
