//! Progress for people: a bar on a terminal, plain lines elsewhere, or silence.
//!
//! Everything goes to standard error; standard output belongs to results. No
//! colour is used, so `NO_COLOR` needs no care. The numbers shown are those
//! the loop measured. Neighbour: `metrics.rs` writes the same for machines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle as BarStyle};

use super::metrics::Throughput;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressStyle {
    /// A bar on a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// Plain lines.
    Plain,
    /// Nothing, not even notes.
    Quiet,
}

/// What a run's progress is measured by.
#[derive(Clone, Copy, Debug)]
pub struct ProgressConfig {
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps done before, when resuming.
    pub start_step: u64,
    /// How to show it.
    pub style: ProgressStyle,
    /// The least time between two plain lines.
    pub interval: Duration,
}

impl ProgressConfig {
    /// A run of `total_steps` from its beginning; a plain line at most every five seconds.
    pub fn new(total_steps: u64) -> Self {
        Self {
            total_steps,
            start_step: 0,
            style: ProgressStyle::Auto,
            interval: Duration::from_secs(5),
        }
    }
}

/// What is known after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The training loss.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The speed.
    pub throughput: Throughput,
}

/// Shows the progress of one run.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use entrenar_train::run::{Progress, ProgressConfig, ProgressStyle, StepReport, Throughput};
///
/// let config = ProgressConfig { style: ProgressStyle::Quiet, ..ProgressConfig::new(100) };
/// let mut progress = Progress::new(config);
/// progress.step(&StepReport { step: 1, loss: 4.2, lr: 1e-3, throughput: Throughput::TokensPerSecond(1e4) });
/// progress.note("validation loss 4.1");
/// progress.finish();
/// ```
pub struct Progress {
    config: ProgressConfig,
    output: Output,
    begun: Instant,
}

enum Output {
    Bar(ProgressBar),
    Lines {
        to: Box<dyn Write + Send>,
        last: Option<Instant>,
    },
    Nothing,
}

impl Progress {
    /// Progress on standard error.
    pub fn new(config: ProgressConfig) -> Self {
        let terminal = std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        if config.style == ProgressStyle::Auto && terminal {
            return Self::with_output(
                config,
                Output::Bar(bar(&config, ProgressDrawTarget::stderr())),
            );
        }
        Self::to(config, Box::new(std::io::stderr()))
    }

    /// Progress in plain lines to `to` (or nothing, if quiet).
    pub fn to(config: ProgressConfig, to: Box<dyn Write + Send>) -> Self {
        let output = if config.style == ProgressStyle::Quiet {
            Output::Nothing
        } else {
            Output::Lines { to, last: None }
        };
        Self::with_output(config, output)
    }

    fn with_output(config: ProgressConfig, output: Output) -> Self {
        Self {
            config,
            output,
            begun: Instant::now(),
        }
    }

    /// Reports a step.
    pub fn step(&mut self, report: &StepReport) {
        let (total, start) = (self.config.total_steps, self.config.start_step);
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_message(format!(
                    "loss {}  lr {:.2e}  {}",
                    number_text(report.loss),
                    report.lr,
                    speed(report.throughput)
                ));
                bar.set_position(report.step);
            }
            Output::Lines { to, last } => {
                let due = last.is_none_or(|last| last.elapsed() >= self.config.interval);
                if !due && report.step < total {
                    return;
                }
                *last = Some(Instant::now());
                let done = report.step.saturating_sub(start);
                let left = total.saturating_sub(report.step);
                let time_left = if done == 0 {
                    Duration::ZERO
                } else {
                    self.begun.elapsed().mul_f64(left as f64 / done as f64)
                };
                let line = format!(
                    "step {}/{total}  loss {}  lr {:.2e}  {}  {} left",
                    report.step,
                    number_text(report.loss),
                    report.lr,
                    speed(report.throughput),
                    clock(time_left)
                );
                print(to, &line);
            }
            Output::Nothing => {}
        }
    }

    /// Says something above the bar, or as a line.
    pub fn note(&mut self, text: &str) {
        match &mut self.output {
            Output::Bar(bar) => bar.println(text),
            Output::Lines { to, .. } => print(to, text),
            Output::Nothing => {}
        }
    }

    /// Ends the bar where it stands.
    pub fn finish(&mut self) {
        if let Output::Bar(bar) = &self.output {
            bar.abandon();
        }
    }
}

/// A loss or metric for people: four decimals, or an exponent where they would say nothing.
///
/// ```
/// use entrenar_train::run::number_text;
///
/// assert_eq!(number_text(1.68537), "1.6854");
/// assert_eq!(number_text(0.0), "0.0000");
/// assert_eq!(number_text(0.00021), "2.10e-4");
/// assert_eq!(number_text(-4.4e30), "-4.40e30");
/// ```
pub fn number_text(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || !magnitude.is_finite() || (1e-3..1e6).contains(&magnitude) {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

/// A closed standard error must not end a run that still saves its model.
fn print(to: &mut Box<dyn Write + Send>, line: &str) {
    if writeln!(to, "{line}").is_ok() {
        drop(to.flush());
    }
}

fn bar(config: &ProgressConfig, target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(config.total_steps), target);
    // The template is a constant; the fallback keeps a typo in it from ending a run.
    let style = BarStyle::with_template("{pos}/{len} [{bar:30}] {msg}  {eta} left")
        .unwrap_or_else(|_| BarStyle::default_bar())
        .progress_chars("=> ");
    bar.set_style(style);
    bar.set_position(config.start_step);
    // Steps of an earlier process took this one no time.
    bar.reset_eta();
    bar
}

fn speed(throughput: Throughput) -> String {
    let (value, unit) = match throughput {
        Throughput::TokensPerSecond(value) => (value, "tokens/s"),
        Throughput::SamplesPerSecond(value) => (value, "samples/s"),
    };
    if value >= 1e6 {
        format!("{:.2}M {unit}", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.1}k {unit}", value / 1e3)
    } else {
        format!("{value:.0} {unit}")
    }
}

/// `3d04h`, `1h02m`, `3m04s` or `5s`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        172_800.. => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
        3600.. => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        60.. => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: 1.25,
            lr: 3e-4,
            throughput: Throughput::TokensPerSecond(12_345.0),
        }
    }

    #[test]
    fn the_bar_shows_loss_rate_and_time_left() {
        let term = InMemoryTerm::new(10, 100);
        let config = ProgressConfig {
            start_step: 40,
            ..ProgressConfig::new(100)
        };
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let mut progress = Progress::with_output(config, Output::Bar(bar(&config, target)));
        progress.note("validation loss 1.5");
        progress.step(&report(50));
        progress.finish();
        let shown = term.contents();
        for part in [
            "validation loss 1.5",
            "50/100 [",
            "loss 1.2500  lr 3.00e-4  12.3k tokens/s",
            "left",
        ] {
            assert!(shown.contains(part), "{part:?} in {shown:?}");
        }
    }

    #[test]
    fn times_and_speeds_are_short() {
        let times = [5, 184, 3725, 273_600].map(|seconds| clock(Duration::from_secs(seconds)));
        assert_eq!(times, ["5s", "3m04s", "1h02m", "3d04h"]);
        assert_eq!(speed(Throughput::SamplesPerSecond(950.4)), "950 samples/s");
        assert_eq!(
            speed(Throughput::TokensPerSecond(2_340_000.0)),
            "2.34M tokens/s"
        );
    }
}
