//! [`GroupNorm`].

use entrenar_core::{Error, Result, Tensor};

use crate::{Ctx, Init, Module, Parameter};

/// Normalises groups of channels of each example, `[N, C, …]` (`torch.nn.GroupNorm`; Wu, He
/// 2018).
///
/// ```
/// use entrenar_nn::{Ctx, GroupNorm, Init, Module};
/// use entrenar_core::{DType, Tensor};
/// let norm = GroupNorm::new(2, 4, &Init::new(0))?;
/// let y = norm.forward(&Tensor::ones([1, 4, 3], DType::F32), &mut Ctx::eval())?;
/// assert_eq!(y.to_vec::<f32>()?, [0.0; 12]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct GroupNorm {
    /// `[C]`, starting at 1.
    pub weight: Parameter,
    /// `[C]`, starting at 0.
    pub bias: Parameter,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// `channels` in `groups` equal groups, with ε = 1e-5.
    ///
    /// # Errors
    /// When `groups` does not divide `channels`.
    #[track_caller]
    pub fn new(groups: usize, channels: usize, init: &Init) -> Result<GroupNorm> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::argument(
                "GroupNorm",
                format!("a number of groups that divides {channels} channels"),
                groups,
            ));
        }
        Ok(GroupNorm {
            weight: Parameter::new(init.ones([channels])?)?,
            bias: Parameter::new(init.zeros([channels])?)?,
            groups,
            eps: 1e-5,
        })
    }
}

impl Module for GroupNorm {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        let (weight, bias) = (self.weight.tensor(), self.bias.tensor());
        x.group_norm(self.groups, Some(&weight), Some(&bias), self.eps)
    }
}
