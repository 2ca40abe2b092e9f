//! `entrenar generate`: text that continues a prompt. Standard output holds only the text.

use super::{Failure, Output};
use std::path::PathBuf;

/// Continue a prompt with a trained language model
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Length of the continuation in tokens
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    greedy: bool,
    /// Divide the logits: below 1 safer, above 1 wilder
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature)]
    temperature: f64,
    /// Draw only from the K most likely tokens
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Draw only from the most likely tokens that together reach probability P
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f64>,
    /// Seed of the draws: the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t > 0.0 && t.is_finite() => Ok(t),
        _ => Err("expected a number above 0 (or --greedy)".to_owned()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number above 0 and at most 1".to_owned()),
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sampling {
    /// The most likely token.
    Greedy,
    /// A draw.
    Draw {
        /// Divides the logits.
        temperature: f64,
        /// Only from the k most likely.
        top_k: Option<u32>,
        /// Only from the most likely that reach p.
        top_p: Option<f64>,
    },
}

impl Args {
    fn sampling(&self) -> Sampling {
        if self.greedy {
            Sampling::Greedy
        } else {
            Sampling::Draw {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
            }
        }
    }
}

/// Prints the continuation, token by token where the reader sees it.
pub(crate) fn run(args: &Args, _output: Output) -> Result<(), Failure> {
    let adapter = args.adapter.as_ref().map_or_else(String::new, |dir| {
        format!(" with adapter {}", dir.display())
    });
    Err(Failure::Run(format!(
        "generating {} tokens after a prompt of {} bytes from {}{adapter} ({:?}, seed {}) is not built into this version",
        args.max_new_tokens,
        args.prompt.len(),
        args.model.display(),
        args.sampling(),
        args.seed
    )))
}
