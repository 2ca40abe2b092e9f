//! `entrenar generate`: a prompt and text that continues it, or several prompts in batches. Standard output holds only
//! the text.

use super::{Failure, Output, at_hand, json, print, print_bytes, text_model};
use entrenar::train::trainer::{TrainedModel, is_text_model};
use entrenar::zoo::{Sampling, TextModel};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Continue a prompt with a trained language model
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run, a model directory as published on a hub, or its ORG/NAME there
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue; give it again for further texts, which are generated in batches
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// Prompts from a file: one per line, or in a .jsonl file objects with `prompt` (or strings)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Prompts generated at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
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
    /// Seed of the draws: the same seed gives the same text; prompt number i takes S + i - 1
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

/// What continues a text: a published model or one that a run made.
enum Model {
    Text(Box<TextModel>),
    Trained(Box<TrainedModel>),
}

impl Model {
    fn generate(
        &self,
        prompts: &[&str],
        seeds: &[u64],
        sampling: &Sampling,
        mut on_bytes: impl FnMut(usize, &[u8]) -> bool,
    ) -> Result<(), Failure> {
        match self {
            Model::Text(model) => model.generate_batch(prompts, seeds, sampling, |row, text| {
                on_bytes(row, text.as_bytes())
            })?,
            Model::Trained(model) => model.generate_batch(prompts, seeds, sampling, on_bytes)?,
        }
        Ok(())
    }
}

/// Prints each prompt and its continuation, then a line break.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let mut prompts = args.prompt.clone();
    if let Some(path) = &args.prompts {
        prompts.extend(read_prompts(path)?);
    }
    let directory = at_hand(&args.model)?;
    let model = if is_text_model(&directory) || args.adapter.is_some() {
        Model::Text(Box::new(text_model(
            &directory,
            args.adapter.as_deref(),
            output,
        )?))
    } else {
        Model::Trained(Box::new(TrainedModel::open(&directory)?))
    };
    let sampling = args.sampling.sampling();
    match prompts.as_slice() {
        [prompt] => one(&model, prompt, &sampling, output),
        _ => several(
            &model,
            &prompts,
            &sampling,
            args.batch_size as usize,
            output,
        ),
    }
}

/// The text as it comes.
fn one(model: &Model, prompt: &str, sampling: &Sampling, output: Output) -> Result<(), Failure> {
    let mut text = Vec::new();
    let mut trouble = None;
    model.generate(&[prompt], &[sampling.seed], sampling, |_, bytes| {
        // The prompt comes with the first token: a prompt that is refused prints nothing.
        if text.is_empty() {
            text.extend_from_slice(prompt.as_bytes());
            if !output.json {
                trouble = print_bytes(&text).err();
            }
        }
        text.extend_from_slice(bytes);
        if !output.json && trouble.is_none() {
            trouble = print_bytes(bytes).err();
        }
        trouble.is_none()
    })?;
    if let Some(failure) = trouble {
        return Err(failure);
    }
    if output.json {
        let text = String::from_utf8_lossy(&text);
        return print(&json(&json!({"prompt": prompt, "text": text}))?);
    }
    print("\n")
}

/// Each text when its batch is done, with a line `---` between two, or as a line of JSON.
fn several(
    model: &Model,
    prompts: &[String],
    sampling: &Sampling,
    batch_size: usize,
    output: Output,
) -> Result<(), Failure> {
    for (batch, prompts) in prompts.chunks(batch_size).enumerate() {
        let first = batch * batch_size;
        let seeds: Vec<u64> = (first..first + prompts.len())
            .map(|i| sampling.seed.wrapping_add(i as u64))
            .collect();
        let given: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let mut texts: Vec<Vec<u8>> = prompts.iter().map(|p| p.clone().into_bytes()).collect();
        model.generate(&given, &seeds, sampling, |row, bytes| {
            texts[row].extend_from_slice(bytes);
            true
        })?;
        for (i, (prompt, text)) in prompts.iter().zip(texts).enumerate() {
            if output.json {
                let text = String::from_utf8_lossy(&text);
                print(&format!("{}\n", json!({"prompt": prompt, "text": text})))?;
                continue;
            }
            if first + i > 0 {
                print("---\n")?;
            }
            print_bytes(&text)?;
            print("\n")?;
        }
    }
    Ok(())
}

/// The prompts of a file. Lines without text are passed over.
fn read_prompts(path: &Path) -> Result<Vec<String>, Failure> {
    let place = |line: usize| format!("--prompts: {}:{}", path.display(), line + 1);
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::Usage(format!("--prompts: {}: {e}", path.display())))?;
    let json_lines = path.extension().is_some_and(|e| e == "jsonl");
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        if !json_lines {
            prompts.push(line.to_owned());
            continue;
        }
        let value: Value = serde_json::from_str(line)
            .map_err(|e| Failure::Usage(format!("{}: no JSON: {e}", place(i))))?;
        match value.as_str().or_else(|| value["prompt"].as_str()) {
            Some(prompt) => prompts.push(prompt.to_owned()),
            None => {
                let want = "a string or an object with the text `prompt`";
                let message = format!("{}: expected {want}, got {value}", place(i));
                return Err(Failure::Usage(message));
            }
        }
    }
    if prompts.is_empty() {
        let message = format!("--prompts: {}: expected prompts, got none", path.display());
        return Err(Failure::Usage(message));
    }
    Ok(prompts)
}
