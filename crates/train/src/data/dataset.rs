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
    /// Where several sequences share a row: the lengths of those of each row, which do not see one
    /// another. What is left of a row is padding.
    pub segments: Option<Vec<Vec<usize>>>,
}

/// The target of a position that asks for no prediction.
pub const IGNORED: i64 = -100;

impl Batch {
    /// Samples of one sequence each.
    pub fn new(inputs: Array, targets: Array, rows: usize) -> Self {
        Self {
            inputs,
            targets,
            rows,
            segments: None,
        }
    }

    /// How many predictions the batch asks for: the weight of its mean loss in an exact mean over
    /// batches of different sizes.
    pub fn target_count(&self) -> usize {
        match self.targets.as_slice::<i64>() {
            Ok(targets) => targets.iter().filter(|target| **target != IGNORED).count(),
            Err(_) => self.targets.shape().numel(),
        }
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

    /// The samples as they are in this epoch, for data that chance changes each time, such as hidden
    /// words; still a pure function. Evaluations ask for epoch 0.
    ///
    /// # Errors
    ///
    /// As [`Dataset::batch`].
    fn batch_of_epoch(&self, indices: &[usize], epoch: u64) -> Result<Batch> {
        let _ = epoch;
        self.batch(indices)
    }
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

/// Where data that is not trained on comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Holdout {
    /// There is none.
    #[default]
    None,
    /// This part of the training data, strictly between 0 and 1.
    Fraction(f64),
    /// Files of their own: paths or patterns, of the same kind as the training path.
    Paths(Vec<String>),
}

impl Holdout {
    fn fraction(&self) -> Option<f64> {
        match self {
            Self::Fraction(fraction) => Some(*fraction),
            Self::None | Self::Paths(_) => None,
        }
    }

    pub(super) fn paths(&self) -> Option<&[String]> {
        match self {
            Self::Paths(paths) => Some(paths),
            Self::None | Self::Fraction(_) => None,
        }
    }
}

/// What is held out from training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Splits {
    /// For steering the run.
    pub validation: Holdout,
    /// For one look at the end.
    pub test: Holdout,
}

impl Splits {
    /// Nothing is held out.
    pub fn none() -> Self {
        Self::default()
    }

    /// This fraction is held out for validation.
    pub fn validation(fraction: f64) -> Self {
        Self {
            validation: Holdout::Fraction(fraction),
            test: Holdout::None,
        }
    }
}

/// The datasets of a run.
#[derive(Clone)]
pub struct Parts {
    /// What the model learns from.
    pub training: Arc<dyn Dataset>,
    /// What training is steered by.
    pub validation: Option<Arc<dyn Dataset>>,
    /// What is looked at once, at the end.
    pub test: Option<Arc<dyn Dataset>>,
}

/// The rows of another dataset, chosen and ordered.
struct Subset<D> {
    data: Arc<D>,
    rows: Vec<usize>,
}

impl<D: Dataset> Dataset for Subset<D> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        self.batch_of_epoch(indices, 0)
    }

    fn batch_of_epoch(&self, indices: &[usize], epoch: u64) -> Result<Batch> {
        let rows: Vec<usize> = indices.iter().map(|&index| self.rows[index]).collect();
        self.data.batch_of_epoch(&rows, epoch)
    }
}

/// Where training ends and where validation ends; the test part follows.
///
/// Training ends at `floor((1 − validation − test) · count)`, which is nanoGPT's `int(0.9 * n)` for
/// 0.1. Both ends are `count` without fractions.
pub(super) fn split_points(count: usize, splits: &Splits, noun: &str) -> Result<[usize; 2]> {
    let (validation, test) = (splits.validation.fraction(), splits.test.fraction());
    for (name, fraction) in [("validation", validation), ("test", test)] {
        if let Some(fraction) = fraction
            && !(fraction > 0.0 && fraction < 1.0)
        {
            return Err(Error::config(format!(
                "expected a {name} fraction between 0 and 1 (both excluded), got {fraction:?}"
            )));
        }
    }
    let held = validation.unwrap_or(0.0) + test.unwrap_or(0.0);
    let first = (((1.0 - held) * count as f64) as usize).min(count);
    let second = match test {
        // Without a test part, rounding must not open a gap after validation.
        None => count,
        Some(_) if validation.is_none() => first,
        Some(test) => (((1.0 - test) * count as f64) as usize).clamp(first, count),
    };
    let nothing = |purpose: &str| {
        let parts: Vec<String> = [("validation", validation), ("test", test)]
            .iter()
            .filter_map(|(name, fraction)| Some(format!("a {name} fraction of {:?}", (*fraction)?)))
            .collect();
        let verb = if parts.len() == 1 { "leaves" } else { "leave" };
        Err(Error::config(format!(
            "{} of {} {verb} nothing to {purpose}",
            parts.join(" and "),
            counted(count, noun)
        )))
    };
    if first == 0 {
        return nothing("train on");
    }
    if validation.is_some() && first == second {
        return nothing("validate on");
    }
    if test.is_some() && second == count {
        return nothing("test on");
    }
    Ok([first, second])
}

/// Row numbers of one part each, ascending.
pub(super) struct SplitRows {
    pub training: Vec<usize>,
    pub validation: Vec<usize>,
    pub test: Vec<usize>,
}

impl Parts {
    /// The chosen rows of `all`; parts that have files of their own are read by `open`.
    pub(super) fn of<D: Dataset + 'static>(
        all: &Arc<D>,
        rows: SplitRows,
        splits: &Splits,
        mut open: impl FnMut(&[String]) -> Result<Arc<dyn Dataset>>,
    ) -> Result<Parts> {
        let subset = |rows: Vec<usize>| -> Arc<dyn Dataset> {
            Arc::new(Subset {
                data: Arc::clone(all),
                rows,
            })
        };
        let mut held = |rows: Vec<usize>, holdout: &Holdout| {
            Ok::<_, Error>(match holdout.paths() {
                Some(paths) => Some(open(paths)?),
                None => (!rows.is_empty()).then(|| subset(rows)),
            })
        };
        Ok(Parts {
            validation: held(rows.validation, &splits.validation)?,
            test: held(rows.test, &splits.test)?,
            training: subset(rows.training),
        })
    }

    /// Rows for training, validation and test.
    pub(super) fn row_counts(&self) -> [usize; 3] {
        let count = |data: &Option<Arc<dyn Dataset>>| data.as_ref().map_or(0, |d| d.len());
        [
            self.training.len(),
            count(&self.validation),
            count(&self.test),
        ]
    }
}

// The split must not follow the shuffling streams, which are numbered by epoch.
const SPLIT_STREAM: u64 = 0x7370_6c69_7400;

/// Divides rows by `seed` alone. Without fractions, all are training rows.
pub(super) fn split_rows(count: usize, splits: &Splits, seed: u64) -> Result<SplitRows> {
    let [first, second] = split_points(count, splits, "row")?;
    let mut training = Philox::new(seed, SPLIT_STREAM).permutation(count);
    let mut test = training.split_off(second);
    let mut validation = training.split_off(first);
    for part in [&mut training, &mut validation, &mut test] {
        part.sort_unstable();
    }
    Ok(SplitRows {
        training,
        validation,
        test,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn splits(validation: Option<f64>, test: Option<f64>) -> Splits {
        let holdout = |fraction: Option<f64>| fraction.map_or(Holdout::None, Holdout::Fraction);
        Splits {
            validation: holdout(validation),
            test: holdout(test),
        }
    }

    proptest! {
        #[test]
        fn a_split_is_a_partition(
            count in 1usize..500,
            validation in proptest::option::of(0.01f64..0.6),
            test in proptest::option::of(0.01f64..0.6),
            seed: u64,
        ) {
            match split_rows(count, &splits(validation, test), seed) {
                Ok(rows) => {
                    prop_assert!(!rows.training.is_empty());
                    prop_assert_eq!(rows.validation.is_empty(), validation.is_none());
                    prop_assert_eq!(rows.test.is_empty(), test.is_none());
                    let mut all = [rows.training, rows.validation, rows.test].concat();
                    all.sort_unstable();
                    prop_assert!(all.into_iter().eq(0..count));
                }
                Err(error) => prop_assert!(error.to_string().contains(" nothing to "), "{}", error),
            }
        }
    }

    #[test]
    fn the_fraction_rounds_like_nanogpt() {
        assert_eq!(
            split_points(1_115_394, &Splits::validation(0.1), "token").unwrap(),
            [1_003_854, 1_115_394]
        );
        assert_eq!(
            split_points(10, &splits(Some(0.2), Some(0.1)), "row").unwrap(),
            [7, 9]
        );
        assert_eq!(
            split_points(10, &splits(None, Some(0.1)), "row").unwrap(),
            [9, 9]
        );
        assert_eq!(split_points(10, &Splits::none(), "row").unwrap(), [10, 10]);
    }

    #[test]
    fn impossible_fractions_are_refused() {
        for fraction in [0.0, 1.0, -0.1, f64::NAN, 2.0] {
            let message = split_points(10, &Splits::validation(fraction), "row")
                .unwrap_err()
                .to_string();
            assert!(
                message.starts_with("expected a validation fraction"),
                "{message}"
            );
            let message = split_points(10, &splits(None, Some(fraction)), "row")
                .unwrap_err()
                .to_string();
            assert!(message.starts_with("expected a test fraction"), "{message}");
        }
        let message = split_points(3, &splits(Some(0.4), Some(0.9)), "row")
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "a validation fraction of 0.4 and a test fraction of 0.9 of 3 rows leave nothing to train on"
        );
    }

    #[test]
    fn the_seed_chooses_the_rows() {
        let rows = |seed| {
            split_rows(100, &Splits::validation(0.3), seed)
                .unwrap()
                .validation
        };
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
    }
}
