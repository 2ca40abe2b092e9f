//! `silu_mul`: the gate of SwiGLU, in one pass forward and one backward.
//!
//! silu(h)·u with silu(h) = h·σ(h) (Shazeer, "GLU variants improve transformer", 2020). A fused
//! node keeps the two inputs, and not silu(h) besides.

use smallvec::smallvec;

use entrenar_base::{Array, Error, Result};
use entrenar_cpu::gated as kernel;

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, BackwardKernel, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::ops::arithmetic::paired;
use crate::registry::{Entry, Sample};

/// (gate, up) of one shape and dtype.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SiluMul;

impl Op for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(kernel::silu_mul(inputs[0], inputs[1])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for SiluMul {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let wide = inputs[0].dtype().accumulator();
        let (h, u) = (inputs[0].to_dtype(wide)?, inputs[1].to_dtype(wide)?);
        Ok(one(h.silu()?.mul(&u)?.to_dtype(inputs[0].dtype())?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for SiluMul {
    fn reads_output(&self, _: usize) -> bool {
        false
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        _: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let g = cotangents[0]
            .ok_or_else(|| Error::autodiff(self.name(), "backward without a cotangent"))?;
        let [dh, du] = kernel::silu_mul_backward(g, inputs[0], inputs[1], [needs[0], needs[1]])?;
        Ok(smallvec![dh, du])
    }
}

impl Tensor {
    /// silu(self)·up, elementwise with broadcasting and promotion: how SwiGLU gates `up`. One
    /// rounding in 16-bit dtypes, where [`Tensor::silu`] and [`Tensor::mul`] round twice.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let gate = Tensor::from_vec(vec![0.0f64, 100.0], [2])?;
    /// let up = Tensor::from_vec(vec![5.0f64, 2.0], [2])?;
    /// assert_eq!(gate.silu_mul(&up)?.to_vec::<f64>()?, [0.0, 200.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn silu_mul(&self, up: &Tensor) -> Result<Tensor> {
        let (h, u) = paired(&as_float(self)?, &as_float(up)?, "silu_mul")?;
        apply1(&handle(SiluMul), &[&h, &u])
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "silu_mul",
    kind: "expand",
    sample: |g| {
        let shape = g.shape(0..=3);
        let inputs = vec![
            g.tensor(shape.clone(), -3.0, 3.0),
            g.tensor(shape, -2.0, 2.0),
        ];
        Ok(Sample::one(inputs, |t| t[0].silu_mul(&t[1])))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn it_is_what_its_parts_are() -> Result<()> {
        let h = Tensor::randn([3, 5], DType::F32, 1)?;
        let u = Tensor::randn([5], DType::F32, 2)?;
        let parts = h.silu()?.mul(&u)?;
        assert_eq!(h.silu_mul(&u)?.to_vec::<f32>()?, parts.to_vec::<f32>()?);
        // Operands of two dtypes are promoted as everywhere.
        let mixed = h.to_dtype(DType::BF16)?.silu_mul(&u)?;
        assert_eq!(mixed.dtype(), DType::F32);
        let e = h.silu_mul(&Tensor::zeros([4], DType::F32)).unwrap_err();
        assert!(e.to_string().contains("silu_mul"), "{e}");
        Ok(())
    }
}
