//! [`LoraLinear`]: one linear layer with a low-rank adapter.

use std::any::Any;

use entrenar_core::ops::linear::LinearOptions;
use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_nn::{
    AdaptedLayer, Ctx, Dropout, Init, Linear, Module, NamedArrays, Parameter, Parameters,
    Projection, TransposedLinear, Visitor,
};

use super::Parts;
use super::config::{LayerSettings, LoraInit};
use super::pissa;
use crate::quant::{self, QuantizedLinear};

/// y = W x + b + s · B A x, W frozen; with a magnitude m, each row of W + s · B A is first brought
/// to the length that m says.
///
/// ```
/// use entrenar_nn::{Ctx, Init, Linear, Module, Parameters};
/// use entrenar_tune::{LoraConfig, LoraLinear};
/// use entrenar_core::{DType, Tensor};
/// let mut init = Init::new(0);
/// let base = Linear::new(6, 4, &mut init)?;
/// let x = Tensor::ones([2, 6], DType::F32);
/// let before = base.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?;
/// let layer = LoraLinear::new(base.into(), &LoraConfig::default().of("layer")?, &mut init)?;
/// assert_eq!(layer.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?, before);
/// assert_eq!(layer.trainable_parameters().len(), 2); // A and B
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub struct LoraLinear {
    base: Projection,
    /// `[r, in]`.
    pub lora_a: Parameter,
    /// `[out, r]`.
    pub lora_b: Parameter,
    /// DoRA's length of each row, `[out]`.
    pub magnitude: Option<Parameter>,
    scale: f64,
    dropout: Dropout,
}

impl LoraLinear {
    /// Freezes `base`, a plain or a quantized layer, and puts a fresh adapter on it. PiSSA takes the
    /// adapter's product out of the base's weight, so that the sum stays what it was.
    ///
    /// # Errors
    /// When the base is adapted already, the rank is 0, or PiSSA is asked for on a quantized base.
    pub fn new(base: Projection, settings: &LayerSettings, init: &mut Init) -> Result<LoraLinear> {
        base.freeze();
        let (inputs, outputs) = base.sizes();
        let rank = settings.rank;
        let adapted =
            matches!(&base, Projection::Adapted(layer) if !layer.as_any().is::<QuantizedLinear>());
        if rank == 0 || adapted {
            return Err(Error::argument(
                "lora",
                "a plain layer and a rank of at least 1",
                rank,
            ));
        }
        // Kaiming-uniform with a = √5 is uniform in ±1/√in.
        let a = match settings.init {
            LoraInit::Kaiming => {
                let bound = 1.0 / (inputs as f64).sqrt();
                init.uniform([rank, inputs], -bound, bound)?
            }
            LoraInit::Gaussian => init.normal([rank, inputs], 0.0, 1.0 / rank as f64)?,
            LoraInit::Pissa { .. } => init.zeros([rank, inputs])?,
        };
        let b = init.zeros([outputs, rank])?;
        let (a, b) = match settings.init {
            LoraInit::Pissa { iterations } => {
                pissa::split(&base, settings, iterations, init, a.dtype())?
            }
            _ => (a, b),
        };
        let mut layer = LoraLinear {
            base,
            lora_a: Parameter::new(a)?,
            lora_b: Parameter::new(b)?,
            magnitude: None,
            scale: settings.scale(),
            dropout: Dropout::new(settings.dropout)?,
        };
        if settings.dora {
            let norms = layer.norms()?;
            layer.magnitude = Some(Parameter::new(norms)?);
        }
        Ok(layer)
    }

    /// The layer under the adapter.
    pub fn base(&self) -> &Projection {
        &self.base
    }

    pub(crate) fn base_mut(&mut self) -> &mut Projection {
        &mut self.base
    }

    /// The quantized layer under the adapter, if it is one.
    fn quantized(&self) -> Option<&QuantizedLinear> {
        quant::of(&self.base)
    }

    fn bias(&self) -> Option<&Parameter> {
        match self.quantized() {
            Some(layer) => layer.bias.as_ref(),
            None => self.base.bias(),
        }
    }

    /// The layer under the adapter, as it was (after PiSSA: what it was left with).
    pub fn into_base(self) -> Projection {
        self.base
    }

    /// What the adapter's product is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The adapter's own arrays by PEFT's names after the layer's path.
    pub fn state(&self) -> NamedArrays {
        self.named()
            .into_iter()
            .map(|(name, p)| (name.to_string(), p.array()))
            .collect()
    }

    /// The adapter's own parameters by PEFT's names after the layer's path.
    pub fn named(&self) -> Parts<'_> {
        let mut all = vec![
            ("lora_A.weight", &self.lora_a),
            ("lora_B.weight", &self.lora_b),
        ];
        all.extend(
            self.magnitude
                .as_ref()
                .map(|m| ("lora_magnitude_vector", m)),
        );
        all
    }

    /// The base's weight in f32: for a quantized base a full-size copy.
    fn weight(&self) -> Result<Tensor> {
        if let Some(layer) = self.quantized() {
            return layer.dequantized();
        }
        let (weight, _) = self
            .base
            .matrix()?
            .ok_or_else(|| Error::other("an adapter on an adapter"))?;
        weight.to_dtype(DType::F32)
    }

    /// W + s · B A, `[out, in]` in f32, without a gradient.
    fn sum(&self) -> Result<Tensor> {
        let delta = self.lora_b.value().matmul(&self.lora_a.value())?;
        self.weight()?.detach().add(&delta.mul_scalar(self.scale)?)
    }

    /// Length of each row of W + s · B A, `[out]`, a constant for gradients as in the paper.
    fn norms(&self) -> Result<Tensor> {
        if let Some(layer) = self.quantized() {
            return self.quantized_norms(layer);
        }
        self.sum()?.square()?.sum_dim(&[1], false)?.sqrt()
    }

    /// The same without the weight in floats: ‖w + s·b A‖² = ‖w‖² + 2 s·b·(A w) + s²·b (A Aᵀ) bᵀ for
    /// a row w of W and b of B.
    fn quantized_norms(&self, layer: &QuantizedLinear) -> Result<Tensor> {
        let (a, b) = (self.lora_a.value(), self.lora_b.value());
        let across = layer.product(&a)?.t()?.mul(&b)?.sum_dim(&[1], false)?;
        let low = b.matmul(&a.matmul(&a.t()?)?)?.mul(&b)?;
        let low = low.sum_dim(&[1], false)?;
        layer
            .row_squares()?
            .add(&across.mul_scalar(2.0 * self.scale)?)?
            .add(&low.mul_scalar(self.scale * self.scale)?)?
            .relu()?
            .sqrt()
    }

    /// The plain layer with the adapter added to its weight; on a quantized base, to what its codes
    /// mean. The bias is shared.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn plain(&self) -> Result<Projection> {
        let mut sum = self.sum()?;
        if let Some(m) = &self.magnitude {
            let factor = m.value().div(&self.norms()?)?;
            sum = sum.mul(&factor.unsqueeze(1)?)?;
        }
        if let Some(layer) = self.quantized() {
            return layer.plain(&sum);
        }
        match &self.base {
            Projection::Linear(Linear { weight, bias }) => Ok(Projection::Linear(Linear {
                weight: Parameter::new(sum.to_dtype(weight.dtype())?)?,
                bias: bias.clone(),
            })),
            Projection::Transposed(TransposedLinear { weight, bias }) => {
                let turned = sum.t()?.contiguous()?.to_dtype(weight.dtype())?;
                Ok(Projection::Transposed(TransposedLinear {
                    weight: Parameter::new(turned)?,
                    bias: bias.clone(),
                }))
            }
            Projection::Adapted(_) => Err(Error::other("an adapter on an adapter")),
        }
    }

    /// [`LoraLinear::plain`], dropping the adapter and the weight before.
    ///
    /// # Errors
    /// As there.
    pub fn merged(self) -> Result<Projection> {
        self.plain()
    }
}

impl Parameters for LoraLinear {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        self.base.visit(visitor);
        for (name, parameter) in self.named() {
            visitor.field(name, parameter);
        }
    }
}

impl Module for LoraLinear {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let y = self.base.forward(x, cx)?;
        let dropped = cx.call("dropout", &self.dropout, x)?;
        // The thin products run in the number format of the activations; A and B themselves stay in
        // theirs, and so do their gradients.
        let a = self.lora_a.tensor().to_dtype(x.dtype())?;
        let b = self.lora_b.tensor().to_dtype(x.dtype())?;
        let low = dropped.linear(&a, None)?;
        if self.magnitude.is_none() && x.dtype().size() == 2 {
            // Every step of PEFT's rounds to 16 bits. Here B's product, of the scaled few numbers in
            // between, joins the layer's as it is made: one pass and one rounding.
            let onto = LinearOptions {
                output: Some(y.dtype()),
                residual: Some(y),
                ..Default::default()
            };
            return low.mul_scalar(self.scale)?.linear_with(&b, None, &onto);
        }
        let delta = low.linear(&b, None)?.mul_scalar(self.scale)?;
        let Some(magnitude) = &self.magnitude else {
            return y.add(&delta.to_dtype(y.dtype())?);
        };
        // PEFT rescales W x without the bias, and while dropping computes it on the dropped x.
        let plain = if cx.is_training() && self.dropout.p() > 0.0 {
            match self.quantized() {
                Some(layer) => layer.product(&dropped)?,
                None => dropped.linear(&self.weight()?, None)?,
            }
        } else {
            match self.bias() {
                Some(bias) => y.sub(&bias.tensor())?,
                None => y.clone(),
            }
        };
        let ratio = magnitude.tensor().div(&self.norms()?)?;
        let change = plain
            .mul(&ratio.add_scalar(-1.0)?)?
            .add(&delta.mul(&ratio)?)?;
        y.add(&change.to_dtype(y.dtype())?)
    }
}

impl AdaptedLayer for LoraLinear {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
    fn sizes(&self) -> (usize, usize) {
        self.base.sizes()
    }
}
