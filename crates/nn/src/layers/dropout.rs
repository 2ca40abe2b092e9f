//! [`Dropout`]: zeros a random share of the values while training.

use entrenar_core::{Error, Result, Tensor};

use crate::{Ctx, Module};

/// Zeros each value with probability `p` while training and scales the rest by 1 / (1 − p)
/// (`torch.nn.Dropout`; Srivastava et al. 2014). Evaluation passes values through.
///
/// The mask is a function of the context's key, so a replay draws the same one.
#[derive(Clone, Debug, Module)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Drops with probability `p`.
    ///
    /// # Errors
    /// When `p` is not in [0, 1].
    #[track_caller]
    pub fn new(p: f64) -> Result<Dropout> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::argument("Dropout", "a probability from 0 to 1", p));
        }
        Ok(Dropout { p })
    }

    /// The probability of dropping.
    pub fn p(&self) -> f64 {
        self.p
    }
}

impl Module for Dropout {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        if !cx.is_training() || self.p == 0.0 {
            return Ok(x.clone());
        }
        let (seed, stream) = cx.key();
        x.dropout(self.p, seed, stream)
    }
}
