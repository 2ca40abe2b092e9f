//! Layer and root-mean-square normalisation over trailing dimensions, fused forward and backward.
//!
//! layer_norm: y = (x - mean) / √(variance + eps) · w + b, with the biased variance (Ba, Kiros,
//! Hinton 2016). rms_norm: y = x / √(mean of x² + eps) · w (Zhang, Sennrich 2019). 16-bit floats
//! are computed in f32 and rounded once. Kernels: `entrenar_cpu::norm`. Neighbour: `add_norm`.

use smallvec::smallvec;

use entrenar_base::{Array, Error, Result, Shape};
use entrenar_cpu::norm as kernel;

use crate::Tensor;
use crate::apply::one;
use crate::op::{Aval, BackwardKernel, Bits, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::ops::expansion;
use crate::registry::{Entry, Gen, Sample};

/// Inputs: x, then the weight and the bias where present. Outputs: y, then the statistics of each
/// row, mean (not for RMS) and 1/√(variance + eps), for the backward pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LayerNorm {
    /// How many trailing dimensions are normalised together.
    pub(super) normalized: usize,
    pub(super) eps: Bits,
    pub(super) weight: bool,
    pub(super) bias: bool,
    /// Subtract the mean (layer norm) or not (RMS).
    pub(super) centered: bool,
}

impl LayerNorm {
    /// The present parameters among `inputs`.
    pub(super) fn parameters<T: Copy>(&self, inputs: &[T]) -> (Option<T>, Option<T>) {
        (
            self.weight.then(|| inputs[1]),
            self.bias.then(|| inputs[1 + usize::from(self.weight)]),
        )
    }

    /// Rows, and elements per row, of an input of this shape.
    pub(super) fn sizes(&self, shape: &Shape) -> (usize, usize) {
        let (rows, row) = shape.split_at(shape.rank() - self.normalized);
        (rows.iter().product(), row.iter().product())
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        if self.centered {
            "layer_norm"
        } else {
            "rms_norm"
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let x = inputs[0];
        if self.normalized == 0 || self.normalized > x.shape.rank() {
            return Err(Error::shape(
                self.name(),
                format!(
                    "at least {} dimensions, 1 or more normalised",
                    self.normalized
                ),
                &x.shape,
            ));
        }
        let row = &x.shape[x.shape.rank() - self.normalized..];
        for p in &inputs[1..] {
            if p.shape[..] != *row {
                return Err(Error::shape(
                    self.name(),
                    format!("weight and bias of shape {}", Shape::from(row)),
                    &p.shape,
                ));
            }
        }
        let statistics = Aval::new([self.sizes(&x.shape).0], x.dtype.accumulator());
        let mut outputs = smallvec![x.clone(), statistics.clone()];
        if self.centered {
            outputs.push(statistics);
        }
        Ok(outputs)
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let x = inputs[0];
        if x.numel() == 0 {
            return Ok(outputs
                .iter()
                .map(|a| Array::zeros(a.shape.clone(), a.dtype))
                .collect());
        }
        let (_, row) = self.sizes(x.shape());
        let (w, b) = self.parameters(inputs);
        if self.centered {
            let (y, mean, rstd) = kernel::layer_norm(x, row, w, b, self.eps.0)?;
            Ok(smallvec![y, mean, rstd])
        } else {
            let (y, rstd) = kernel::rms_norm(x, row, w, self.eps.0)?;
            Ok(smallvec![y, rstd])
        }
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for LayerNorm {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let dtype = inputs[0].dtype();
        let wide = dtype.accumulator();
        let dims: Vec<isize> = (1..=self.normalized as isize).map(|d| -d).collect();
        let x = inputs[0].to_dtype(wide)?;
        let (w, b) = self.parameters(inputs);
        let centered = if self.centered {
            x.sub(&x.mean_dim(&dims, true)?)?
        } else {
            x
        };
        let variance = centered.square()?.mean_dim(&dims, true)?;
        let mut y = centered.mul(&variance.add_scalar(self.eps.0)?.rsqrt()?)?;
        if let Some(w) = w {
            y = y.mul(&w.to_dtype(wide)?)?;
        }
        if let Some(b) = b {
            y = y.add(&b.to_dtype(wide)?)?;
        }
        Ok(one(y.to_dtype(dtype)?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for LayerNorm {
    fn reads_output(&self, output: usize) -> bool {
        output > 0
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let x = inputs[0];
        let (Some(g), false) = (cotangents[0], x.numel() == 0) else {
            return Ok(inputs
                .iter()
                .map(|a| Some(Array::zeros(a.shape().clone(), a.dtype())))
                .collect());
        };
        let statistics = |j: usize| {
            outputs[j].ok_or_else(|| Error::autodiff(self.name(), "its statistics were not saved"))
        };
        let (w, b) = self.parameters(inputs);
        let wanted = |present: bool, at: usize| present && needs[at];
        let need_w = wanted(self.weight, 1);
        let need_b = wanted(self.bias, 1 + usize::from(self.weight));
        let (dx, dw, db) = if self.centered {
            let needs = [needs[0], need_w, need_b];
            kernel::layer_norm_backward(g, x, statistics(1)?, statistics(2)?, w, needs)?
        } else {
            let (dx, dw) = kernel::rms_norm_backward(g, x, statistics(1)?, w, [needs[0], need_w])?;
            (dx, dw, None)
        };
        let mut gradients = smallvec![dx];
        for (gradient, like) in [(dw, w), (db, b)] {
            if let Some(like) = like {
                // The kernel sums in its own shape and dtype.
                let shaped = |a: Array| Ok(a.reshape(like.shape().clone())?.cast(like.dtype()));
                gradients.push(gradient.map(shaped).transpose()?);
            }
        }
        Ok(gradients)
    }
}

impl Tensor {
    /// Normalises the last `normalized` dimensions together to mean 0 and variance 1, then scales
    /// by `weight` and shifts by `bias`, both of the shape of those dimensions.
    /// (PyTorch's default for `eps` is 1e-5.)
    ///
    /// # Errors
    /// When there are fewer dimensions or a parameter has another shape.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![1.0f64, 3.0, 10.0, 30.0], [2, 2])?;
    /// let y = t.layer_norm(1, None, None, 0.0)?;
    /// assert_eq!(y.to_vec::<f64>()?, [-1.0, 1.0, -1.0, 1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn layer_norm(
        &self,
        normalized: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        normalize(self, normalized, weight, bias, eps, true)
    }

    /// Divides the last `normalized` dimensions by their root mean square, then scales by
    /// `weight`, of the shape of those dimensions. (PyTorch's default for `eps` is the dtype's
    /// machine epsilon.)
    ///
    /// # Errors
    /// When there are fewer dimensions or the weight has another shape.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![2.0f64, -2.0], [1, 2])?;
    /// assert_eq!(t.rms_norm(1, None, 0.0)?.to_vec::<f64>()?, [1.0, -1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn rms_norm(&self, normalized: usize, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        normalize(self, normalized, weight, None, eps, false)
    }
}

#[track_caller]
fn normalize(
    x: &Tensor,
    normalized: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
    centered: bool,
) -> Result<Tensor> {
    let x = as_float(x)?;
    let op = LayerNorm {
        normalized,
        eps: Bits(eps),
        weight: weight.is_some(),
        bias: bias.is_some(),
        centered,
    };
    let inputs: Vec<&Tensor> = [Some(&x), weight, bias].into_iter().flatten().collect();
    let mut outputs = expansion::checked(op, &inputs)?;
    Ok(outputs.swap_remove(0))
}

/// Input, number of normalised dimensions, and parameters of their shape.
pub(super) fn sample(g: &mut Gen, most: usize) -> (Vec<Tensor>, usize) {
    let mut shape = g.shape(1..=4);
    let normalized = g.range(1, shape.rank() + 1);
    // One or two elements in a row make the variance degenerate.
    let last = shape.rank() - 1;
    shape.dims_mut()[last] = g.range(3, 6);
    let row = Shape::from(&shape[shape.rank() - normalized..]);
    let mut inputs = vec![g.tensor(shape, -2.0, 2.0)];
    for _ in 0..g.range(0, most + 1) {
        inputs.push(g.tensor(row.clone(), -2.0, 2.0));
    }
    (inputs, normalized)
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "layer_norm",
        kind: "expand",
        sample: |g| {
            let (inputs, normalized) = sample(g, 2);
            Ok(Sample::one(inputs, move |t| {
                t[0].layer_norm(normalized, t.get(1), t.get(2), 0.1)
            }))
        },
    },
    Entry {
        name: "rms_norm",
        kind: "expand",
        sample: |g| {
            let (inputs, normalized) = sample(g, 1);
            Ok(Sample::one(inputs, move |t| {
                t[0].rms_norm(normalized, t.get(1), 0.1)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn a_bias_without_a_weight_is_a_bias() {
        let x = Tensor::from_vec(vec![1.0f64, 3.0], [1, 2]).unwrap();
        let b = Tensor::from_vec(vec![10.0f64, 20.0], [2])
            .unwrap()
            .requires_grad()
            .unwrap();
        let y = x.layer_norm(1, None, Some(&b), 0.0).unwrap();
        assert_eq!(y.to_vec::<f64>().unwrap(), [9.0, 21.0]);
        y.sum().unwrap().backward().unwrap();
        assert_eq!(b.grad().unwrap().to_vec::<f64>().unwrap(), [1.0, 1.0]);
    }

    #[test]
    fn a_16_bit_input_may_have_an_f32_weight() {
        let x = Tensor::from_vec(vec![1.0f64, 3.0], [1, 2])
            .unwrap()
            .to_dtype(DType::BF16)
            .unwrap();
        let w = Tensor::from_vec(vec![2.0f32, 4.0], [2])
            .unwrap()
            .requires_grad()
            .unwrap();
        let y = x.layer_norm(1, Some(&w), None, 0.0).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        assert_eq!(y.array().to_f64_vec(), [-2.0, 4.0]);
        y.sum().unwrap().backward().unwrap();
        assert_eq!(w.grad().unwrap().to_vec::<f32>().unwrap(), [-1.0, 1.0]);
    }

    #[test]
    fn misfits_are_errors() {
        let x = Tensor::zeros([2, 3], DType::F32);
        let w = Tensor::zeros([1], DType::F32);
        assert!(x.layer_norm(3, None, None, 1e-5).is_err());
        assert!(x.layer_norm(0, None, None, 1e-5).is_err());
        assert!(x.layer_norm(1, Some(&w), None, 1e-5).is_err());
    }
}
