//! [`LayerNorm`].

use entrenar_core::{Result, Shape, Tensor};

use crate::{Ctx, Init, Module, Parameter};

/// Settings of [`LayerNorm`] beyond its shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNormOptions {
    /// Added to the variance.
    pub eps: f64,
    /// Whether there is a weight, starting at 1.
    pub weight: bool,
    /// Whether there is a bias, starting at 0.
    pub bias: bool,
}

impl Default for LayerNormOptions {
    fn default() -> Self {
        LayerNormOptions {
            eps: 1e-5,
            weight: true,
            bias: true,
        }
    }
}

/// (x − mean) / √(variance + ε) · weight + bias over the last dimensions (`torch.nn.LayerNorm`;
/// Ba, Kiros, Hinton 2016).
///
/// ```
/// use entrenar_nn::{Ctx, Init, LayerNorm, Module};
/// use entrenar_core::Tensor;
/// let norm = LayerNorm::new([2], &Init::new(0))?;
/// let x = Tensor::from_vec(vec![1.0f32, 3.0, 10.0, 30.0], [2, 2])?;
/// let y = norm.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?;
/// assert!((y[0] + 1.0).abs() < 1e-4 && (y[3] - 1.0).abs() < 1e-4);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct LayerNorm {
    /// Of the normalised shape.
    pub weight: Option<Parameter>,
    /// Of the normalised shape.
    pub bias: Option<Parameter>,
    #[module(skip)]
    shape: Shape,
    eps: f64,
}

impl LayerNorm {
    /// Over the last dimensions, which have this shape; with weight and bias.
    ///
    /// # Errors
    /// When the size overflows.
    #[track_caller]
    pub fn new(shape: impl Into<Shape>, init: &Init) -> Result<LayerNorm> {
        LayerNorm::with_options(shape, LayerNormOptions::default(), init)
    }

    /// [`LayerNorm::new`] with other settings. Errors as there.
    #[track_caller]
    pub fn with_options(
        shape: impl Into<Shape>,
        options: LayerNormOptions,
        init: &Init,
    ) -> Result<LayerNorm> {
        let shape = shape.into();
        let weight = options.weight.then(|| init.ones(shape.clone()));
        let bias = options.bias.then(|| init.zeros(shape.clone()));
        Ok(LayerNorm {
            weight: weight.transpose()?.map(Parameter::new).transpose()?,
            bias: bias.transpose()?.map(Parameter::new).transpose()?,
            shape,
            eps: options.eps,
        })
    }

    /// A norm with these initial values, both of the normalised shape.
    ///
    /// # Errors
    /// When the shapes differ or a dtype is not a float.
    #[track_caller]
    pub fn from_tensors(weight: Tensor, bias: Tensor, eps: f64) -> Result<LayerNorm> {
        super::ends_with("LayerNorm", &bias, weight.shape())?;
        Ok(LayerNorm {
            shape: weight.shape().clone(),
            weight: Some(Parameter::new(weight)?),
            bias: Some(Parameter::new(bias)?),
            eps,
        })
    }

    /// The norm of `x + residual`, and that sum, in one pass over memory: for blocks that normalise
    /// what a shortcut was added to. The bits are those of one after the other.
    ///
    /// # Errors
    /// When the shapes do not broadcast, or the sum does not end with the normalised shape.
    ///
    /// ```
    /// use entrenar_nn::{Init, LayerNorm};
    /// use entrenar_core::Tensor;
    /// let norm = LayerNorm::new([2], &Init::new(0))?;
    /// let x = Tensor::from_vec(vec![1.0f32, 1.0], [1, 2])?;
    /// let (y, sum) = norm.of_sum(&x, &Tensor::from_vec(vec![0.0f32, 2.0], [1, 2])?)?;
    /// assert_eq!(sum.to_vec::<f32>()?, [1.0, 3.0]);
    /// assert!((y.to_vec::<f32>()?[1] - 1.0).abs() < 1e-4);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn of_sum(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        super::ends_with("LayerNorm", x, &self.shape)?;
        let weight = self.weight.as_ref().map(Parameter::tensor);
        let bias = self.bias.as_ref().map(Parameter::tensor);
        let (weight, bias) = (weight.as_ref(), bias.as_ref());
        x.add_layer_norm(residual, self.shape.rank(), weight, bias, self.eps)
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        super::ends_with("LayerNorm", x, &self.shape)?;
        let weight = self.weight.as_ref().map(Parameter::tensor);
        let bias = self.bias.as_ref().map(Parameter::tensor);
        x.layer_norm(self.shape.rank(), weight.as_ref(), bias.as_ref(), self.eps)
    }
}
