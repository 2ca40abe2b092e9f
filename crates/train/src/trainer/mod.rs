//! The training loop.
//!
//! [`Trainer`] runs any model with any objective; [`Settings`] say how, [`Callback`]s look on.
//! [`run_config`] does everything for a config, [`TrainedModel`] uses what came of it.
//!
//! Promises: the same seed gives the same bits at any number of threads; a run that was killed and
//! resumed gives the same metrics and weights as one that was not, times apart; a NaN never reaches
//! a parameter or a checkpoint unnoticed; memory does not grow with the number of steps; nothing of
//! a run stays behind in the process. Files: `fit` is the loop, `update` one step, `evaluate` one
//! evaluation, `session` and `state` what is carried and what is saved, `objective` and `callback`
//! what others may supply; `from_config`, `recipe` and `model` make a run from a config,
//! `tuned` one that begins with a published model, `trained` and
//! `predict` serve the final model, `quantized` opens and writes weights in 4 bits.

mod callback;
mod evaluate;
mod fit;
mod from_config;
mod model;
mod objective;
mod predict;
mod quantized;
mod recipe;
mod session;
mod settings;
mod state;
mod totals;
mod trained;
mod tuned;
mod update;

pub use callback::{
    Callback, Control, EarlyStopping, History, LearningRateMonitor, ModelCheckpoint, Moment,
};
pub use evaluate::{Evaluation, evaluate};
pub use fit::{Ended, Outcome, Trainer};
pub use from_config::{RunOptions, RunOutcome, run_config};
pub use model::NextToken;
pub use objective::{BinaryCrossEntropy, CrossEntropy, MeanSquaredError, Measure, Objective};
pub use predict::{Prediction, PredictionFormat};
pub use quantized::{open_quantized, save_quantized, stored_quantization};
pub use settings::{NanPolicy, Settings, Unit};
pub use trained::{TrainedModel, is_text_model, open_text_model};
pub use tuned::{Plan, TextClassifier, inspect_rows, plan};
