//! [`SftSamples`]: the tokens of all samples, which of them are learned, and a report.
//!
//! Tokens lie one after another, so that a million samples are three allocations.
//! Neighbours: `encode` makes them, `dataset` batches them, `inspect` shows them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use entrenar_base::{Error, Result};

use super::config::SftConfig;
use super::dataset::SftDataset;
use crate::data::dataset::{Parts, Splits, split_rows};
use crate::data::report::counted;

/// What became of the rows of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SftReport {
    /// Rows read.
    pub rows: usize,
    /// Samples made of them.
    pub samples: usize,
    /// Tokens of the samples.
    pub tokens: usize,
    /// Those that are learned.
    pub trained_tokens: usize,
    /// Rows whose end was cut off.
    pub truncated: usize,
    /// Documents that were cut into several samples.
    pub split: usize,
    /// Rows left out because they were too long.
    pub dropped: usize,
    /// Rows left out because nothing in them is learned.
    pub without_target: usize,
    /// Documents left out because they were empty.
    pub empty: usize,
    /// Tokens of the longest row, before cutting.
    pub longest: usize,
    /// Whether there are conversations among the rows.
    pub conversations: bool,
}

impl SftReport {
    /// The report of two collections together.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            samples: self.samples + other.samples,
            tokens: self.tokens + other.tokens,
            trained_tokens: self.trained_tokens + other.trained_tokens,
            truncated: self.truncated + other.truncated,
            split: self.split + other.split,
            dropped: self.dropped + other.dropped,
            without_target: self.without_target + other.without_target,
            empty: self.empty + other.empty,
            longest: self.longest.max(other.longest),
            conversations: self.conversations | other.conversations,
        }
    }
}

impl fmt::Display for SftReport {
    /// One line: `3 rows, 3 samples, 120 tokens, 45 trained (37.5 %), longest row 60 tokens`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.trained_tokens as f64 / self.tokens.max(1) as f64;
        write!(
            f,
            "{}, {}, {}, {} trained ({share:.1} %), longest row {}",
            counted(self.rows, "row"),
            counted(self.samples, "sample"),
            counted(self.tokens, "token"),
            self.trained_tokens,
            counted(self.longest, "token"),
        )?;
        for (count, what) in [
            (self.truncated, "truncated"),
            (self.split, "split"),
            (self.dropped, "dropped"),
            (self.without_target, "without a target"),
            (self.empty, "empty"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Samples ready to be batched.
#[derive(Clone, Debug)]
pub struct SftSamples {
    tokens: Vec<u32>,
    trained: Vec<bool>,
    /// Where each sample ends.
    ends: Vec<usize>,
    report: SftReport,
    config: SftConfig,
}

impl SftSamples {
    pub(super) fn new(config: SftConfig) -> Self {
        Self {
            tokens: Vec::new(),
            trained: Vec::new(),
            ends: Vec::new(),
            report: SftReport::default(),
            config,
        }
    }

    /// Appends a sample; nothing is learned of a first token, which nothing predicts.
    pub(super) fn push(&mut self, tokens: &[u32], trained: &[bool]) {
        self.tokens.extend_from_slice(tokens);
        self.trained.extend_from_slice(trained);
        let first = self.trained.len() - trained.len();
        if let Some(mark) = self.trained.get_mut(first) {
            *mark = false;
        }
        self.ends.push(self.tokens.len());
        self.report.samples += 1;
        self.report.tokens += tokens.len();
        self.report.trained_tokens += self.trained[first..].iter().filter(|t| **t).count();
    }

    pub(super) fn report_mut(&mut self) -> &mut SftReport {
        &mut self.report
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn range(&self, sample: usize) -> Range<usize> {
        let start = sample.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[sample]
    }

    /// The tokens of a sample; panics unless `sample` is below `len()`.
    pub fn tokens(&self, sample: usize) -> &[u32] {
        &self.tokens[self.range(sample)]
    }

    /// Which tokens of a sample are learned; the first never is.
    pub fn trained(&self, sample: usize) -> &[bool] {
        &self.trained[self.range(sample)]
    }

    /// What became of the rows.
    pub fn report(&self) -> &SftReport {
        &self.report
    }

    /// A number that other tokens, or other ones learned, hardly share (FNV-1a, 64 bits).
    pub fn fingerprint(&self) -> u64 {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(PRIME);
        let words = self.tokens.iter().zip(&self.trained);
        let words = words.map(|(token, trained)| (u64::from(*token) << 1) | u64::from(*trained));
        let ends = self.ends.iter().map(|end| *end as u64);
        words.chain(ends).fold(0xcbf2_9ce4_8422_2325, mix)
    }

    /// What they were made by.
    pub fn config(&self) -> &SftConfig {
        &self.config
    }

    /// All samples as one dataset, packed if the config says so (`seed` breaks ties of length).
    ///
    /// # Errors
    ///
    /// When nothing would be trained.
    pub fn dataset(self: &Arc<Self>, seed: u64) -> Result<SftDataset> {
        SftDataset::new(Arc::clone(self), (0..self.len()).collect(), seed)
    }

    /// Divides the samples by `seed` into training, validation and test; files of their own
    /// ([`Holdout::Paths`](crate::data::Holdout::Paths)) are not looked at here.
    ///
    /// # Errors
    ///
    /// Fractions that leave a part without samples, or a part in which nothing would be trained.
    pub fn parts(self: &Arc<Self>, splits: &Splits, seed: u64) -> Result<Parts> {
        if self.is_empty() {
            return Err(nothing(&self.report));
        }
        let rows = split_rows(self.len(), splits, seed)?;
        let part = |rows: Vec<usize>| SftDataset::new(Arc::clone(self), rows, seed).map(Arc::new);
        let held = |rows: Vec<usize>| -> Result<Option<Arc<dyn crate::data::Dataset>>> {
            Ok(if rows.is_empty() {
                None
            } else {
                Some(part(rows)?)
            })
        };
        Ok(Parts {
            training: part(rows.training)?,
            validation: held(rows.validation)?,
            test: held(rows.test)?,
        })
    }
}

/// The error of a run that would learn nothing.
pub(super) fn nothing(report: &SftReport) -> Error {
    Error::config(format!(
        "nothing would be trained: no token of the data is a target ({report})"
    ))
}
