//! [`Embedding`]: a table of vectors looked up by index.

use entrenar_core::{Result, Tensor};

use crate::{Ctx, Init, Module, Parameter};

/// Indices `[…]` → vectors `[…, width]` (`torch.nn.Embedding`). Starts standard normal.
///
/// ```
/// use entrenar_nn::{Ctx, Embedding, Init, Module};
/// use entrenar_core::Tensor;
/// let table = Embedding::new(10, 4, &mut Init::new(0))?;
/// let tokens = Tensor::from_vec(vec![3i64, 3, 9], [3])?;
/// assert_eq!(table.forward(&tokens, &mut Ctx::eval())?.dims(), [3, 4]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct Embedding {
    /// `[count, width]`.
    pub weight: Parameter,
}

impl Embedding {
    /// A table of `count` vectors of `width` numbers.
    ///
    /// # Errors
    /// When the size overflows.
    #[track_caller]
    pub fn new(count: usize, width: usize, init: &mut Init) -> Result<Embedding> {
        Embedding::from_tensor(init.normal([count, width], 0.0, 1.0)?)
    }

    /// A table with these vectors, `[count, width]`.
    ///
    /// # Errors
    /// When the dtype is not a float.
    #[track_caller]
    pub fn from_tensor(weight: Tensor) -> Result<Embedding> {
        Ok(Embedding {
            weight: Parameter::new(weight)?,
        })
    }
}

impl Module for Embedding {
    fn forward(&self, indices: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        self.weight.tensor().embedding(indices)
    }
}
