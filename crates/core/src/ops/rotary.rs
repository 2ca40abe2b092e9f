//! `rotary`: rotary position embedding, pairs of channels turned by angles.
//!
//! (y₁, y₂) = (x₁·cos - x₂·sin, x₂·cos + x₁·sin) for the channel pairs (i, i + D/2), or
//! (2i, 2i + 1) when interleaved. Linear in x; the transpose turns back. (Su, Lu, Pan, Murtadha,
//! Wen, Liu, "RoFormer", 2021.) Angles that need a gradient take the composed definition.

use entrenar_base::{Array, Error, Result};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::ops::activation::as_float;
use crate::registry::{Entry, Sample};
use crate::tensor::Inner;

/// x `[.., T, D]`; cos and sin `[T, D/2]` are constants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rotary {
    interleaved: bool,
    inverse: bool,
}

impl Op for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::rotary::rotary(
            inputs[0],
            inputs[1],
            inputs[2],
            self.interleaved,
            self.inverse,
        )?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Rotary {
    fn linear_in(&self, input: usize) -> bool {
        input == 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let back = Rotary {
            inverse: !self.inverse,
            ..self.clone()
        };
        sink.add(0, apply1(&handle(back), &[g, cx.input(1)?, cx.input(2)?])?)
    }
}

/// Whether some transform follows this value.
fn is_followed(t: &Tensor) -> bool {
    match &t.0 {
        Inner::Concrete(_) => false,
        Inner::Region(r) => is_followed(&r.value),
        Inner::Ambient(..) | Inner::Reverse(_) | Inner::Dual(_) => true,
    }
}

impl Tensor {
    /// Turns the channel pairs of self `[.., T, D]` by the angles whose cosines and sines are
    /// `cos` and `sin`, `[T, D/2]` (or anything that broadcasts to `[.., T, D/2]`).
    ///
    /// Pairs are (i, i + D/2), or (2i, 2i + 1) with `interleaved`.
    ///
    /// # Errors
    /// When D is odd or the angles do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0], [1, 2])?;
    /// let cos = Tensor::from_vec(vec![0.0f32], [1, 1])?; // a quarter turn
    /// let sin = Tensor::from_vec(vec![1.0f32], [1, 1])?;
    /// assert_eq!(x.rotary(&cos, &sin, false)?.to_vec::<f32>()?, [-2.0, 1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn rotary(&self, cos: &Tensor, sin: &Tensor, interleaved: bool) -> Result<Tensor> {
        let x = as_float(self)?;
        let width = x.dims().last().copied().unwrap_or(1);
        let mut half = x.shape().clone();
        if let Some(last) = half.dims_mut().last_mut() {
            *last /= 2;
        }
        let fits = |t: &Tensor| t.shape().broadcast(&half, "rotary").ok().as_ref() == Some(&half);
        if x.rank() < 2 || !width.is_multiple_of(2) || !fits(cos) || !fits(sin) {
            return Err(Error::shape(
                "rotary",
                "an input [.., T, D] with D even and angles [T, D/2]",
                format!("{}, {} and {}", x.shape(), cos.shape(), sin.shape()),
            ));
        }
        let angles = &half[half.rank() - 2..];
        let fused = [cos, sin]
            .iter()
            .all(|t| t.dims() == angles && t.dtype().is_float() && !is_followed(t));
        if fused {
            let op = Rotary {
                interleaved,
                inverse: false,
            };
            return apply1(&handle(op), &[&x, cos, sin]);
        }
        let wide = x.dtype().accumulator();
        let (t, h) = (x.to_dtype(wide)?, width / 2);
        let (cos, sin) = (cos.to_dtype(wide)?, sin.to_dtype(wide)?);
        let (a, b) = if interleaved {
            (
                t.slice(-1, 0, width, 2)?,
                t.slice(-1, width.min(1), width, 2)?,
            )
        } else {
            (t.narrow(-1, 0, h)?, t.narrow(-1, h, h)?)
        };
        let first = a.mul(&cos)?.sub(&b.mul(&sin)?)?;
        let second = b.mul(&cos)?.add(&a.mul(&sin)?)?;
        let y = if interleaved {
            Tensor::stack(&[&first, &second], -1)?.reshape(x.shape())?
        } else {
            Tensor::concat(&[&first, &second], -1)?
        };
        y.to_dtype(x.dtype())
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "rotary",
    kind: "linear",
    sample: |g| {
        let mut shape = g.shape(2..=4);
        let rank = shape.rank();
        shape.dims_mut()[rank - 1] *= 2;
        let angles = [shape[rank - 2], shape[rank - 1] / 2];
        let mut inputs = vec![g.tensor(shape, -2.0, 2.0)];
        let (cos, sin) = (g.tensor(angles, -1.0, 1.0), g.tensor(angles, -1.0, 1.0));
        let interleaved = g.once_in(2);
        let learned = g.once_in(3);
        if learned {
            inputs.extend([cos.clone(), sin.clone()]);
        }
        Ok(Sample::one(inputs, move |t| {
            let (cos, sin) = (t.get(1).unwrap_or(&cos), t.get(2).unwrap_or(&sin));
            t[0].square()?.rotary(cos, sin, interleaved)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    /// The kernel against the composed definition, which a broadcast batch of angles takes.
    #[test]
    fn both_paths_agree() {
        let x = Tensor::randn([2, 3, 8], DType::F64, 1).unwrap();
        let angle = Tensor::randn([3, 4], DType::F64, 2).unwrap();
        let (cos, sin) = (angle.cos().unwrap(), angle.sin().unwrap());
        for interleaved in [false, true] {
            let fused = x.rotary(&cos, &sin, interleaved).unwrap();
            let (cos, sin) = (cos.unsqueeze(0).unwrap(), sin.unsqueeze(0).unwrap());
            let composed = x.rotary(&cos, &sin, interleaved).unwrap();
            let pairs = fused.to_vec::<f64>().unwrap().into_iter();
            for (a, b) in pairs.zip(composed.to_vec::<f64>().unwrap()) {
                assert!((a - b).abs() < 1e-14, "{a} {b}");
            }
        }
    }

    #[test]
    fn misfits_are_errors() {
        let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32);
        assert!(t(&[4]).rotary(&t(&[2]), &t(&[2]), false).is_err());
        assert!(t(&[2, 3]).rotary(&t(&[2, 1]), &t(&[2, 1]), false).is_err());
        assert!(t(&[2, 4]).rotary(&t(&[3, 2]), &t(&[3, 2]), false).is_err());
    }
}
