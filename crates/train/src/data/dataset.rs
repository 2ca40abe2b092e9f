//! The contract between data and loader: numbered samples, batched on demand.
//!
//! A [`Dataset`] is immutable and thread-safe; `batch` is a pure function of
//! the sample numbers, so a background thread and a resumed run see the same
//! bits. Neighbours: `text.rs`, `table.rs` and `image.rs` implement it,
//! `loader.rs` decides which samples come when.

use std::sync::Arc;

use entrenar_base::{Array, Error, Philox, Result};

use super::report::counted;

/// Rows that go through the model together.
#[derive(Clone)]
pub struct Batch {
    /// Model inputs: f32 `[rows, …]`, or token numbers i64 `[rows, time]`.
    pub inputs: Array,
    /// What the model should say: class or token numbers i64 `[rows]` or `[rows, time]`, or f32
    /// `[rows]` for regression. No elements (`[0]`) where the data has no target.
    pub targets: Array,
    /// How many samples this is.
    pub rows: usize,
}

impl Batch {
    /// How many predictions the batch asks for: the weight of its mean loss in an exact mean over
    /// batches of different sizes.
    pub fn target_count(&self) -> usize {
        self.targets.shape().numel()
    }
}

/// Samples numbered from 0.
pub trait Dataset: Send + Sync {
    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many samples at the end differ in shape from the others. Each of them becomes a batch of
    /// its own, after all the others.
    fn ragged_tail(&self) -> usize {
        0
    }

    /// How many random draws count as one epoch, for [`Order::Random`](super::Order::Random).
    fn draws_per_epoch(&self) -> usize {
        self.len()
    }

    /// The samples `indices`, in that order.
    ///
    /// # Errors
    ///
    /// What building the arrays reports; an index that is not below `len()` may panic.
    fn batch(&self, indices: &[usize]) -> Result<Batch>;
}

/// Which part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What training is steered by.
    Validation,
    /// What is looked at once, at the end.
    Test,
}

impl Split {
    /// The name used in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Where validation data comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Validation {
    /// There is none.
    #[default]
    None,
    /// This part of the training data, strictly between 0 and 1.
    Fraction(f64),
    /// Files of their own: a path or pattern, of the same kind as the training path.
    Path(String),
}

/// The rows of another dataset, chosen and ordered.
pub(super) struct Subset<D> {
    pub data: Arc<D>,
    pub rows: Vec<usize>,
}

impl<D: Dataset> Dataset for Subset<D> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let rows: Vec<usize> = indices.iter().map(|&index| self.rows[index]).collect();
        self.data.batch(&rows)
    }
}

/// The number of training samples when the last `fraction` of `count` is kept for validation.
///
/// `floor((1 − fraction) · count)`, which is nanoGPT's `int(0.9 * n)` for 0.1.
pub(super) fn training_part(count: usize, fraction: f64, noun: &str) -> Result<usize> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::config(format!(
            "expected a validation fraction between 0 and 1 (both excluded), got {fraction}"
        )));
    }
    let training = ((1.0 - fraction) * count as f64) as usize;
    let nothing = |what: &str| {
        Error::config(format!(
            "a validation fraction of {fraction} of {} leaves nothing to {what}",
            counted(count, noun)
        ))
    };
    if training == 0 {
        return Err(nothing("train on"));
    }
    if training >= count {
        return Err(nothing("validate on"));
    }
    Ok(training)
}

// The split must not follow the shuffling streams, which are numbered by epoch.
const SPLIT_STREAM: u64 = 0x7370_6c69_7400;

/// Row numbers for training and validation, chosen by `seed` alone; both ascending.
pub(super) fn split_rows(
    count: usize,
    fraction: f64,
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let training = training_part(count, fraction, "row")?;
    let mut rows = Philox::new(seed, SPLIT_STREAM).permutation(count);
    let mut validation = rows.split_off(training);
    rows.sort_unstable();
    validation.sort_unstable();
    Ok((rows, validation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_split_is_a_partition(count in 2usize..500, fraction in 0.01f64..0.99, seed: u64) {
            match split_rows(count, fraction, seed) {
                Ok((training, validation)) => {
                    prop_assert!(!training.is_empty() && !validation.is_empty());
                    let mut all = [training, validation].concat();
                    all.sort_unstable();
                    prop_assert!(all.into_iter().eq(0..count));
                }
                Err(error) => prop_assert!(error.to_string().contains("leaves nothing"), "{}", error),
            }
        }
    }

    #[test]
    fn the_fraction_rounds_like_nanogpt() {
        assert_eq!(training_part(1_115_394, 0.1, "token").unwrap(), 1_003_854);
        assert_eq!(training_part(10, 0.2, "row").unwrap(), 8);
    }

    #[test]
    fn impossible_fractions_are_refused() {
        for fraction in [0.0, 1.0, -0.1, f64::NAN, 2.0] {
            let message = training_part(10, fraction, "row").unwrap_err().to_string();
            assert!(
                message.starts_with("expected a validation fraction"),
                "{message}"
            );
        }
        let message = training_part(1, 0.5, "row").unwrap_err().to_string();
        assert_eq!(
            message,
            "a validation fraction of 0.5 of 1 row leaves nothing to train on"
        );
    }

    #[test]
    fn the_seed_chooses_the_rows() {
        assert_eq!(
            split_rows(100, 0.3, 1).unwrap(),
            split_rows(100, 0.3, 1).unwrap()
        );
        assert_ne!(
            split_rows(100, 0.3, 1).unwrap(),
            split_rows(100, 0.3, 2).unwrap()
        );
    }
}
