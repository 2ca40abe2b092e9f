//! [`SftDataset`]: samples, one or several to a row, as batches.
//!
//! A sample of n tokens is n − 1 inputs, and the target of each is the token after it, or −100
//! where that token is not learned: the convention of `text.rs`. Rows are padded at the right to
//! the longest of the batch; padding has the target −100, whatever its token, and earlier positions
//! do not see it. Neighbours: `samples` holds tokens, `packing` chooses who shares a row.

use std::sync::Arc;

use entrenar_base::{Array, Result};

use super::packing::best_fit_decreasing;
use super::samples::{SftSamples, nothing};
use crate::data::dataset::{Batch, Dataset, IGNORED};

/// Rows of a fine-tuning run.
pub struct SftDataset {
    samples: Arc<SftSamples>,
    /// The samples of each row.
    rows: Vec<Vec<usize>>,
    packed: bool,
}

impl SftDataset {
    /// `chosen` samples, packed if their config says so.
    ///
    /// # Errors
    ///
    /// When none of them has a target.
    pub(super) fn new(samples: Arc<SftSamples>, chosen: Vec<usize>, seed: u64) -> Result<Self> {
        if !chosen.iter().any(|&s| samples.trained(s).contains(&true)) {
            return Err(nothing(samples.report()));
        }
        let packed = samples.config().packing;
        let rows = if packed {
            let lengths: Vec<usize> = chosen.iter().map(|&s| inputs_of(&samples, s)).collect();
            let rows = best_fit_decreasing(&lengths, samples.config().sequence_length, seed);
            rows.into_iter()
                .map(|row| row.into_iter().map(|i| chosen[i]).collect())
                .collect()
        } else {
            chosen.into_iter().map(|s| vec![s]).collect()
        };
        Ok(Self {
            samples,
            rows,
            packed,
        })
    }

    /// Where the tokens are.
    pub fn samples(&self) -> &Arc<SftSamples> {
        &self.samples
    }

    /// The samples of a row, in order; panics unless `row` is below `len()`.
    pub fn row(&self, row: usize) -> &[usize] {
        &self.rows[row]
    }

    /// Inputs of the longest row: no batch is wider.
    pub fn longest_row(&self) -> usize {
        let lengths = (0..self.rows.len()).map(|row| self.inputs(row));
        lengths.max().unwrap_or(0)
    }

    /// Inputs over the places of all rows at their full width `sequence_length`: 1 wastes nothing.
    pub fn efficiency(&self) -> f64 {
        let inputs: usize = (0..self.rows.len()).map(|row| self.inputs(row)).sum();
        let width = self.samples.config().sequence_length;
        inputs as f64 / (self.rows.len() * width).max(1) as f64
    }

    /// Targets of all rows.
    pub fn trained_tokens(&self) -> usize {
        let of = |&s: &usize| self.samples.trained(s).iter().filter(|t| **t).count();
        self.rows.iter().flatten().map(of).sum()
    }

    fn inputs(&self, row: usize) -> usize {
        self.rows[row]
            .iter()
            .map(|&s| inputs_of(&self.samples, s))
            .sum()
    }
}

fn inputs_of(samples: &SftSamples, sample: usize) -> usize {
    samples.tokens(sample).len().saturating_sub(1)
}

impl Dataset for SftDataset {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let width = indices.iter().map(|&row| self.inputs(row)).max();
        let width = width.unwrap_or(0);
        let mut inputs = Vec::with_capacity(indices.len() * width);
        let mut targets = Vec::with_capacity(indices.len() * width);
        let mut segments = Vec::with_capacity(indices.len());
        for (filled, &row) in indices.iter().enumerate() {
            let mut lengths = Vec::with_capacity(self.rows[row].len());
            for &sample in &self.rows[row] {
                let (tokens, trained) = (self.samples.tokens(sample), self.samples.trained(sample));
                let Some((_, before)) = tokens.split_last() else {
                    continue;
                };
                inputs.extend(before.iter().map(|&token| i64::from(token)));
                let target = |(&token, &learned): (&u32, &bool)| {
                    if learned { i64::from(token) } else { IGNORED }
                };
                targets.extend(tokens[1..].iter().zip(&trained[1..]).map(target));
                lengths.push(before.len());
            }
            // Any token serves as padding, since nothing sees it: 0 exists in every vocabulary.
            inputs.resize((filled + 1) * width, 0);
            targets.resize((filled + 1) * width, IGNORED);
            segments.push(lengths);
        }
        Ok(Batch {
            inputs: Array::from_vec(inputs, [indices.len(), width])?,
            targets: Array::from_vec(targets, [indices.len(), width])?,
            rows: indices.len(),
            segments: self.packed.then_some(segments),
        })
    }
}
