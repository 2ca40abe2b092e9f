//! `entrenar generate`: a prompt and text that continues it. Standard output holds only the text.

use super::{Failure, Output, json, print, print_bytes, text_model};
use entrenar::train::trainer::{TrainedModel, is_text_model};
use entrenar::zoo::Sampling;
use serde_json::json;
use std::path::PathBuf;

/// Continue a prompt with a trained language model
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run, or a model directory as published on a hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// How tokens are chosen.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
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
    /// Divide the logits of tokens that were there before: above 1 means less repetition
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = penalty)]
    repetition_penalty: f64,
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

fn penalty(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p.is_finite() => Ok(p),
        _ => Err("expected a number above 0; 1 changes nothing".to_owned()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number above 0 and at most 1".to_owned()),
    }
}

impl SamplingArgs {
    /// The settings.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens as usize,
            temperature: if self.greedy { 0.0 } else { self.temperature },
            top_k: self.top_k.map(|k| k as usize),
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..Sampling::default()
        }
    }
}

/// Prints the prompt and its continuation as it comes, then a line break.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let mut text = Vec::new();
    let mut trouble = None;
    let mut hand_over = |bytes: &[u8]| {
        // The prompt comes with the first token: a prompt that is refused prints nothing.
        if text.is_empty() {
            text.extend_from_slice(args.prompt.as_bytes());
            if !output.json {
                trouble = print_bytes(&text).err();
            }
        }
        text.extend_from_slice(bytes);
        if !output.json && trouble.is_none() {
            trouble = print_bytes(bytes).err();
        }
        trouble.is_none()
    };
    if is_text_model(&args.model) || args.adapter.is_some() {
        let model = text_model(&args.model, args.adapter.as_deref())?;
        model.generate(&args.prompt, &args.sampling.sampling(), |text| {
            hand_over(text.as_bytes())
        })?;
    } else {
        let model = TrainedModel::open(&args.model)?;
        model.generate(&args.prompt, &args.sampling.sampling(), hand_over)?;
    }
    if let Some(failure) = trouble {
        return Err(failure);
    }
    if output.json {
        let text = String::from_utf8_lossy(&text);
        return print(&json(&json!({"prompt": args.prompt, "text": text}))?);
    }
    print("\n")
}
