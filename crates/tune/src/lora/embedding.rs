//! [`LoraEmbedding`]: a low-rank adapter beside the table of an embedding.
//!
//! A token's vector is its row of W + s · (B A)ᵀ (Hu et al., "LoRA", 2021, as PEFT has it): A is looked
//! up instead of multiplied. DoRA's magnitudes are those of the columns. There is no dropout.

use std::any::Any;

use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_nn::{Ctx, Init, Lookup, LookupAdapter, Parameter, Parameters, Visitor};

use super::Parts;
use super::config::LayerSettings;

/// Row i of W + s · (B A)ᵀ for index i, W frozen; with a magnitude m, each column of that is first
/// brought to the length that m says.
///
/// ```
/// use entrenar_nn::{Ctx, Embedding, Init, Lookup, Module, Parameters};
/// use entrenar_tune::{LoraConfig, lora::LoraEmbedding};
/// use entrenar_core::Tensor;
/// let mut init = Init::new(0);
/// let mut table = Lookup::from(Embedding::new(10, 4, &mut init)?);
/// let tokens = Tensor::from_vec(vec![3i64, 9], [2])?;
/// let before = table.forward(&tokens, &mut Ctx::eval())?.to_vec::<f32>()?;
/// LoraEmbedding::attach(&mut table, &LoraConfig::default().of("embed_tokens")?, &mut init)?;
/// assert_eq!(table.forward(&tokens, &mut Ctx::eval())?.to_vec::<f32>()?, before); // A is 0
/// let names: Vec<String> = table.trainable_parameters().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["lora_embedding_A", "lora_embedding_B"]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub struct LoraEmbedding {
    /// `[r, count]`.
    pub lora_a: Parameter,
    /// `[width, r]`.
    pub lora_b: Parameter,
    /// DoRA's length of each column, `[width]`.
    pub magnitude: Option<Parameter>,
    scale: f64,
}

impl LoraEmbedding {
    /// Freezes the table and puts a fresh adapter on it: A zero and B standard normal, however linear
    /// layers begin.
    ///
    /// # Errors
    /// When it has an adapter, or the rank is 0.
    pub fn attach(table: &mut Lookup, settings: &LayerSettings, init: &mut Init) -> Result<()> {
        let rank = settings.rank;
        if rank == 0 || table.adapter.is_some() {
            return Err(Error::argument(
                "lora",
                "an embedding without an adapter and a rank of at least 1",
                rank,
            ));
        }
        table.weight.set_trainable(false);
        let (count, width) = (table.weight.shape()[0], table.weight.shape()[1]);
        let mut adapter = LoraEmbedding {
            lora_a: Parameter::new(init.zeros([rank, count])?)?,
            lora_b: Parameter::new(init.normal([width, rank], 0.0, 1.0)?)?,
            magnitude: None,
            scale: settings.scale(),
        };
        if settings.dora {
            adapter.magnitude = Some(Parameter::new(adapter.norms(&table.weight)?)?);
        }
        table.adapter = Some(Box::new(adapter));
        Ok(())
    }

    /// The adapter of a table, if it is one of these.
    pub fn of(table: &mut Lookup) -> Option<&mut LoraEmbedding> {
        table.adapter.as_mut()?.as_any_mut().downcast_mut()
    }

    /// What the adapter's product is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The adapter's own parameters by PEFT's names after the embedding's path.
    pub fn named(&self) -> Parts<'_> {
        let mut all = vec![
            ("lora_embedding_A", &self.lora_a),
            ("lora_embedding_B", &self.lora_b),
        ];
        all.extend(
            self.magnitude
                .as_ref()
                .map(|m| ("lora_magnitude_vector", m)),
        );
        all
    }

    /// W + s · (B A)ᵀ, `[count, width]` in f32, without a gradient.
    fn sum(&self, table: &Parameter) -> Result<Tensor> {
        let (a, b) = (self.lora_a.value(), self.lora_b.value());
        let delta = a.t()?.matmul(&b.t()?)?.mul_scalar(self.scale)?;
        table.value().to_dtype(DType::F32)?.add(&delta)
    }

    /// Length of each column of W + s · (B A)ᵀ, `[width]`, a constant for gradients.
    fn norms(&self, table: &Parameter) -> Result<Tensor> {
        self.sum(table)?.square()?.sum_dim(&[0], false)?.sqrt()
    }

    /// The table with the adapter added to it, `[count, width]` in the table's dtype.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn merged(&self, table: &Parameter) -> Result<Tensor> {
        let mut sum = self.sum(table)?;
        if let Some(m) = &self.magnitude {
            let norms = sum.square()?.sum_dim(&[0], false)?.sqrt()?;
            sum = sum.mul(&m.value().div(&norms)?)?;
        }
        sum.to_dtype(table.dtype())
    }
}

impl Parameters for LoraEmbedding {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        for (name, parameter) in self.named() {
            visitor.field(name, parameter);
        }
    }
}

impl LookupAdapter for LoraEmbedding {
    fn look_up(&self, table: &Parameter, indices: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        let y = table.tensor().embedding(indices)?;
        // The thin product runs in the number format of the activations, as in linear layers.
        let chosen = self.lora_a.tensor().t()?.contiguous()?.embedding(indices)?;
        let b = self.lora_b.tensor().to_dtype(y.dtype())?;
        let delta = chosen.to_dtype(y.dtype())?.linear(&b, None)?;
        let delta = delta.mul_scalar(self.scale)?;
        match &self.magnitude {
            None => y.add(&delta),
            Some(magnitude) => {
                let ratio = magnitude.tensor().div(&self.norms(table)?)?;
                y.add(&delta)?.mul(&ratio.to_dtype(y.dtype())?)
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
