//! [`Flatten`]: everything after the batch dimension in one.

use entrenar_core::{Result, Tensor};

use crate::{Ctx, Module};

/// `[N, …]` → `[N, product of the rest]` (`torch.nn.Flatten`).
#[derive(Clone, Copy, Debug, Default, Module)]
pub struct Flatten;

impl Module for Flatten {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        if x.rank() == 1 {
            // One number per example is a feature of its own.
            return x.unsqueeze(1);
        }
        x.flatten(1, -1)
    }
}
