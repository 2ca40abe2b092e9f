//! The run directory and what a run tells the world.
//!
//! [`RunDirectory`] owns the places (`config.yaml`, `metrics.jsonl`,
//! `checkpoints/`, `model/`, `loss.svg`), [`MetricsWriter`] appends and cuts
//! back, [`loss_plot`] draws, [`Progress`] reports, [`Signals`] listens,
//! [`EarlyStopping`] and [`Best`] decide. None of them knows the training
//! loop; the loop (`crate::trainer`) calls them.

mod best;
mod directory;
mod metrics;
mod plot;
mod progress;
mod signals;

pub use best::{Best, EarlyStopping, Mode, Verdict};
pub(crate) use directory::CONFIG_FILE;
pub use directory::{RunDirectory, RunPlace};
pub use metrics::{MetricsWriter, Number, Record, Throughput, read_metrics};
pub use plot::loss_plot;
pub use progress::{Progress, ProgressConfig, ProgressStyle, StepReport, number_text};
pub use signals::Signals;
