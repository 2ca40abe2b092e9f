//! The product with a 4-bit weight as an operation: linear in x, with the other product as its
//! transpose. The weight is a constant: it has no gradient, and nothing of x is kept.

use std::sync::Arc;

use entrenar_core::autograd::{BackwardCx, CustomOp};
use entrenar_core::op::{Aval, Reads};
use entrenar_core::{Error, Result, Tensor};
use entrenar_cpu::product::Compute;
use entrenar_cpu::quant4::{self, Quantized, Side};

#[derive(Clone, Debug)]
struct QuantizedProduct {
    weight: Arc<Quantized>,
    side: Side,
    compute: Compute,
}

impl QuantizedProduct {
    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let mut all = Tensor::apply_custom(self.clone(), &[x])?;
        Ok(all.swap_remove(0))
    }
}

impl CustomOp for QuantizedProduct {
    fn name(&self) -> &'static str {
        "quantized_linear"
    }

    fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
        let (inner, outputs) = self.side.sizes(self.weight.sizes());
        let x = inputs[0];
        if x.shape.last() != Some(&inner) || !x.dtype.is_float() {
            return Err(Error::shape(
                self.name(),
                format!("a float input [.., {inner}]"),
                format!("{x:?}"),
            ));
        }
        let mut out = x.clone();
        if let Some(last) = out.shape.dims_mut().last_mut() {
            *last = outputs;
        }
        Ok(vec![out])
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let y = quant4::product(inputs[0].array(), &self.weight, self.side, self.compute)?;
        Ok(vec![y.into()])
    }

    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn backward(
        &self,
        _: &BackwardCx<'_>,
        cotangents: &[Option<&Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let back = QuantizedProduct {
            side: self.side.other(),
            ..self.clone()
        };
        Ok(vec![cotangents[0].map(|g| back.run(g)).transpose()?])
    }

    fn jvp(
        &self,
        _: &[&Tensor],
        _: &[&Tensor],
        tangents: &[Option<&Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![tangents[0].map(|t| self.run(t)).transpose()?])
    }
}

/// x·Wᵀ for x `[.., in]` and a 4-bit W `[out, in]`: `[.., out]` in the dtype of x, differentiable in x
/// any number of times.
///
/// # Errors
/// When the last dimension of x is not `in` or x is no float.
///
/// ```
/// use entrenar_core::{Array, Tensor};
/// use entrenar_cpu::product::Compute;
/// use entrenar_cpu::quant4::{Code, Quantized};
/// let w = Array::from_vec(vec![1.0f32, -1.0], [1, 2])?;
/// let w = std::sync::Arc::new(Quantized::new(&w, Code::Nf4, 64, false)?);
/// let x = Tensor::from_vec(vec![5.0f32, 3.0], [1, 2])?.requires_grad()?;
/// let y = entrenar_tune::quant::product(&x, &w, Compute::F32)?;
/// assert_eq!(y.to_vec::<f32>()?, [2.0]);
/// y.sum()?.backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [1.0, -1.0]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn product(x: &Tensor, weight: &Arc<Quantized>, compute: Compute) -> Result<Tensor> {
    QuantizedProduct {
        weight: weight.clone(),
        side: Side::Transposed,
        compute,
    }
    .run(x)
}
