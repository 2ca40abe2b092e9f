//! [`inspect`]: what a model would learn, for people to read.
//!
//! Neighbours: `dataset` has the rows, `samples` the tokens.

use std::fmt::Write;

use entrenar_base::Result;
use entrenar_zoo::Tokenizer;

use super::dataset::SftDataset;
use crate::data::dataset::Dataset;
use crate::data::report::counted;

/// Decoded samples with what is not learned marked, then counts of tokens.
///
/// The first `how_many` samples in the order of the files are shown. What is not learned is dim
/// when `colour`, else within `⟦` and `⟧`. Control characters of the data are written as escapes.
///
/// # Errors
///
/// When the tokenizer cannot decode its own tokens.
pub fn inspect(
    dataset: &SftDataset,
    tokenizer: &Tokenizer,
    how_many: usize,
    colour: bool,
) -> Result<String> {
    let samples = dataset.samples();
    let mut chosen: Vec<usize> = (0..dataset.len())
        .flat_map(|row| dataset.row(row).to_vec())
        .collect();
    chosen.sort_unstable();
    let mut out = String::new();
    for (number, &sample) in chosen.iter().take(how_many).enumerate() {
        let (tokens, trained) = (samples.tokens(sample), samples.trained(sample));
        let learned = trained.iter().filter(|t| **t).count();
        let _ = writeln!(
            out,
            "── sample {}: {}, {learned} trained",
            number + 1,
            counted(tokens.len(), "token")
        );
        out += &marked(tokens, trained, tokenizer, colour)?;
        out.push_str("\n\n");
    }
    out += &statistics(dataset, &chosen);
    Ok(out)
}

/// The text of a sample, stretch by stretch.
fn marked(tokens: &[u32], trained: &[bool], tokenizer: &Tokenizer, colour: bool) -> Result<String> {
    let (open, close) = if colour {
        ("\u{1b}[2m", "\u{1b}[0m")
    } else {
        ("⟦", "⟧")
    };
    // Decoded as one stream: a token's text depends on those before it.
    let mut stream = tokenizer.stream(false);
    let mut stretches: Vec<(bool, String)> = Vec::new();
    let mut add = |learned: bool, text: String| match stretches.last_mut() {
        _ if text.is_empty() => {}
        Some((same, stretch)) if *same == learned => stretch.push_str(&text),
        _ => stretches.push((learned, text)),
    };
    for (&token, &learned) in tokens.iter().zip(trained) {
        add(learned, stream.push(token)?);
    }
    add(*trained.last().unwrap_or(&false), stream.finish()?);
    let mut out = String::new();
    for (learned, text) in stretches {
        let text = printable(&text);
        if learned {
            out += &text;
        } else {
            out += &format!("{open}{text}{close}");
        }
    }
    Ok(out)
}

/// The text without characters that would steer a terminal.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

fn statistics(dataset: &SftDataset, chosen: &[usize]) -> String {
    let samples = dataset.samples();
    let mut lengths: Vec<usize> = chosen.iter().map(|&s| samples.tokens(s).len()).collect();
    lengths.sort_unstable();
    let (tokens, trained) = (lengths.iter().sum::<usize>(), dataset.trained_tokens());
    let middle = match lengths.as_slice() {
        [] => 0.0,
        all if all.len() % 2 == 1 => all[all.len() / 2] as f64,
        all => (all[all.len() / 2 - 1] + all[all.len() / 2]) as f64 / 2.0,
    };
    let count = lengths.len().max(1) as f64;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<18}{value}");
    };
    line("read", samples.report().to_string());
    line("samples", lengths.len().to_string());
    line("tokens", tokens.to_string());
    line(
        "per sample",
        format!(
            "min {}, median {middle}, mean {:.1}, max {}",
            lengths.first().unwrap_or(&0),
            tokens as f64 / count,
            lengths.last().unwrap_or(&0),
        ),
    );
    let share = 100.0 * trained as f64 / tokens.max(1) as f64;
    line("trained tokens", format!("{trained} ({share:.1} %)"));
    let width = samples.config().sequence_length;
    let filled = 100.0 * dataset.efficiency();
    if samples.config().packing {
        line(
            "packed rows",
            format!("{} of {width}, {filled:.1} % filled", dataset.len()),
        );
    } else {
        line("rows", format!("{} (not packed)", dataset.len()));
    }
    out
}
