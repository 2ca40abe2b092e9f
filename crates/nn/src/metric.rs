//! Streaming metrics: fed batch by batch, exact over all of them.
//!
//! They take plain numbers, never a graph: a metric keeps no computation alive.

use entrenar_core::{DType, Error, Result, Tensor};

/// The share of rows whose largest logit is the target's.
///
/// ```
/// use entrenar_nn::metric::Accuracy;
/// use entrenar_core::Tensor;
/// let mut accuracy = Accuracy::default();
/// let logits = Tensor::from_vec(vec![0.1f32, 0.9, 0.8, 0.2], [2, 2])?;
/// accuracy.update(&logits, &Tensor::from_vec(vec![1i64, 1], [2])?)?;
/// assert_eq!(accuracy.compute(), Some(0.5));
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    correct: u64,
    total: u64,
    ignore: Option<i64>,
}

impl Accuracy {
    /// Rows with this target do not count.
    pub fn ignoring(index: i64) -> Accuracy {
        Accuracy {
            ignore: Some(index),
            ..Accuracy::default()
        }
    }

    /// Adds logits `[…, C]` with integer targets `[…]`. The first of equal logits is the answer;
    /// a row with NaN counts as wrong.
    ///
    /// # Errors
    /// When the shapes do not fit or the targets are not integers.
    #[track_caller]
    pub fn update(&mut self, logits: &Tensor, targets: &Tensor) -> Result<()> {
        let fits = logits.rank() > 0
            && logits.dims()[..logits.rank() - 1] == *targets.dims()
            && !targets.dtype().is_float();
        if !fits {
            return Err(Error::shape(
                "Accuracy",
                "logits [.., C] and integer targets [..]",
                format!("{:?} and {:?}", logits.aval(), targets.aval()),
            ));
        }
        let classes = logits.dims()[logits.rank() - 1];
        let values = logits.array().to_f64_vec();
        let targets = targets.array().cast(DType::I64).to_vec::<i64>()?;
        for (row, target) in targets.into_iter().enumerate() {
            if self.ignore == Some(target) {
                continue;
            }
            self.total += 1;
            let row = &values[row * classes..(row + 1) * classes];
            let best = (0..classes).reduce(|best, i| if row[i] > row[best] { i } else { best });
            let valid = row.iter().all(|v| !v.is_nan());
            self.correct += u64::from(valid && best.is_some_and(|b| b as i64 == target));
        }
        Ok(())
    }

    /// The share so far; `None` before the first row.
    pub fn compute(&self) -> Option<f64> {
        (self.total > 0).then(|| self.correct as f64 / self.total as f64)
    }

    /// (correct, counted) rows so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.correct, self.total)
    }

    /// Starts again.
    pub fn reset(&mut self) {
        (self.correct, self.total) = (0, 0);
    }
}

/// e to the mean cross-entropy per token.
///
/// ```
/// use entrenar_nn::metric::Perplexity;
/// let mut perplexity = Perplexity::default();
/// perplexity.update(2.0 * 8f64.ln(), 2); // summed loss of two tokens
/// perplexity.update(2f64.ln(), 1);
/// assert!((perplexity.compute().unwrap() - 128f64.cbrt()).abs() < 1e-12);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Perplexity {
    loss: f64,
    tokens: u64,
}

impl Perplexity {
    /// Adds a *summed* loss over this many tokens.
    pub fn update(&mut self, summed_loss: f64, tokens: u64) {
        self.loss += summed_loss;
        self.tokens += tokens;
    }

    /// The perplexity so far; `None` before the first token.
    pub fn compute(&self) -> Option<f64> {
        (self.tokens > 0).then(|| (self.loss / self.tokens as f64).exp())
    }

    /// Starts again.
    pub fn reset(&mut self) {
        *self = Perplexity::default();
    }
}
