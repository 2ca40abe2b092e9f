//! [`QuantizedLinear`]: a linear layer whose weight is frozen in 4 bits.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use entrenar_core::{Array, DType, Error, Result, Tensor};
use entrenar_cpu::product::Compute;
use entrenar_cpu::quant4::Quantized;
use entrenar_nn::{
    AdaptedLayer, Ctx, Linear, Module, Parameter, Parameters, Projection, TransposedLinear, Visitor,
};

use super::QuantConfig;
use super::op::product;

/// y = W x + b with W frozen in 4 bits. The weight is no parameter: it is neither trained nor counted
/// nor part of the model's state; [`super::quantized_state`] has it.
///
/// ```
/// use entrenar_core::{DType, Tensor};
/// use entrenar_nn::{Ctx, Init, Linear, Module, Parameters};
/// use entrenar_tune::quant::{QuantConfig, QuantizedLinear};
/// let plain = Linear::new(64, 3, &mut Init::new(0))?.into();
/// let layer = QuantizedLinear::new(&plain, &QuantConfig::default())?;
/// let x = Tensor::ones([2, 64], DType::F32);
/// let (a, b) = (plain.forward(&x, &mut Ctx::eval())?, layer.forward(&x, &mut Ctx::eval())?);
/// assert!(a.sub(&b)?.abs()?.max()?.item::<f32>()? < 0.3);
/// assert_eq!(layer.named_parameters().len(), 1); // the bias
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Debug)]
pub struct QuantizedLinear {
    /// `[out, in]`.
    weight: Arc<Quantized>,
    /// `[out]`.
    pub bias: Option<Parameter>,
    /// Dtype of the weight before.
    dtype: DType,
    /// Whether the layer stored its weight `[in, out]` before.
    transposed: bool,
    compute: Compute,
    /// Sum of squares of each row, `[out]`, once it was asked for.
    squares: OnceLock<Array>,
}

impl QuantizedLinear {
    /// The layer with its weight quantized as `[out, in]`; the bias is shared.
    ///
    /// # Errors
    /// When the layer is not a plain one or its weight holds a NaN or an infinity.
    pub fn new(layer: &Projection, config: &QuantConfig) -> Result<QuantizedLinear> {
        let (matrix, parameter) = layer
            .matrix()?
            .ok_or_else(|| Error::argument("quantize", "a plain linear layer", "an adapted one"))?;
        let (kind, block) = (config.kind, config.block);
        let weight = Quantized::new(matrix.detach().array(), kind, block, config.double)?;
        Ok(QuantizedLinear::from_quantized(
            weight,
            layer.bias().cloned(),
            parameter.dtype(),
            matches!(layer, Projection::Transposed(_)),
            config.compute,
        ))
    }

    /// A layer from a weight `[out, in]` that is quantized already. `dtype` and `transposed` say what
    /// the plain layer is like that takes its place after merging.
    pub fn from_quantized(
        weight: Quantized,
        bias: Option<Parameter>,
        dtype: DType,
        transposed: bool,
        compute: Compute,
    ) -> QuantizedLinear {
        QuantizedLinear {
            weight: Arc::new(weight),
            bias,
            dtype,
            transposed,
            compute,
            squares: OnceLock::new(),
        }
    }

    /// The same layer, of which merging makes a plain one in `dtype`.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> QuantizedLinear {
        self.dtype = dtype;
        self
    }

    /// The weight, `[out, in]`.
    pub fn weight(&self) -> &Quantized {
        &self.weight
    }

    /// Numbers in the weight.
    pub fn numbers(&self) -> usize {
        let (rows, columns) = self.weight.sizes();
        rows * columns
    }

    /// Dtype of the weight before it was quantized.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// In which numbers products are computed.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Whether the plain layer stored its weight `[in, out]`.
    pub fn transposed(&self) -> bool {
        self.transposed
    }

    /// The weight in floats, `[out, in]` in f32: a full-size copy.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn dequantized(&self) -> Result<Tensor> {
        Ok(self.weight.dequantize()?.into())
    }

    /// W x without the bias.
    ///
    /// # Errors
    /// When x does not fit.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        product(x, &self.weight, self.compute)
    }

    /// Sum of squares of each row of the weight, `[out]` in f32; computed once.
    pub(crate) fn row_squares(&self) -> Result<Tensor> {
        if let Some(known) = self.squares.get() {
            return Ok(known.clone().into());
        }
        let found = self.weight.row_squares()?;
        Ok(self.squares.get_or_init(|| found).clone().into())
    }

    /// An ordinary layer with this weight, `[out, in]`, instead of the quantized one.
    pub(crate) fn plain(&self, weight: &Tensor) -> Result<Projection> {
        let bias = self.bias.clone();
        let weight = weight.to_dtype(self.dtype)?;
        Ok(if self.transposed {
            Projection::Transposed(TransposedLinear {
                weight: Parameter::new(weight.t()?.contiguous()?)?,
                bias,
            })
        } else {
            Projection::Linear(Linear {
                weight: Parameter::new(weight)?,
                bias,
            })
        })
    }
}

impl Parameters for QuantizedLinear {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        if let Some(bias) = &self.bias {
            visitor.field("bias", bias);
        }
    }
}

impl Module for QuantizedLinear {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => y.add(&bias.tensor().to_dtype(y.dtype())?),
            None => Ok(y),
        }
    }
}

impl AdaptedLayer for QuantizedLinear {
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
        let (outputs, inputs) = self.weight.sizes();
        (inputs, outputs)
    }
}
