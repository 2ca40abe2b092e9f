//! `softmax` and `log_softmax` along one dimension.
//!
//! softmax(x)ᵢ = exp(xᵢ) / Σⱼ exp(xⱼ), computed relative to the largest element; log_softmax is its
//! logarithm without forming it. Explicit rules that read only the result y:
//! softmax: x̄ = y·(ȳ - Σ ȳ·y); log_softmax: x̄ = ȳ - exp(y)·Σ ȳ. (Bridle 1990.)

use entrenar_base::{Array, Error, Result, Shape};
use entrenar_cpu::softmax as kernel;

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::ops::activation::as_float;
use crate::registry::{Entry, Gen, Sample};

/// x to y.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Softmax {
    dim: usize,
    log: bool,
}

/// (y, ȳ) to x̄.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SoftmaxBackward {
    dim: usize,
    log: bool,
}

/// Sum along `dim`, which stays.
fn total(t: &Tensor, dim: usize) -> Result<Tensor> {
    t.sum_dim(&[dim as isize], true)
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(if self.log {
            kernel::log_softmax(inputs[0], self.dim)?
        } else {
            kernel::softmax(inputs[0], self.dim)?
        }))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Softmax {
    fn back(&self, y: &Tensor, g: &Tensor) -> Result<Tensor> {
        let op = SoftmaxBackward {
            dim: self.dim,
            log: self.log,
        };
        apply1(&handle(op), &[y, g])
    }
}

impl Explicit for Softmax {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[], &[0])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, self.back(cx.output(0)?, g)?),
            None => Ok(()),
        }
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(one(None));
        };
        let y = &cx.outputs[0];
        Ok(one(Some(if self.log {
            t.sub(&total(&y.exp()?.mul(t)?, self.dim)?)?
        } else {
            // The Jacobian of softmax is symmetric.
            self.back(y, t)?
        })))
    }
}

impl Op for SoftmaxBackward {
    fn name(&self) -> &'static str {
        if self.log {
            "log_softmax_backward"
        } else {
            "softmax_backward"
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (y, g) = (inputs[0], inputs[1]);
        if y != g {
            return Err(Error::shape(
                self.name(),
                format!("a gradient like the result, {y:?}"),
                format!("{g:?}"),
            ));
        }
        Ok(one(y.clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (y, g) = (inputs[0], inputs[1]);
        Ok(one(if self.log {
            kernel::log_softmax_backward(y, g, self.dim)?
        } else {
            kernel::softmax_backward(y, g, self.dim)?
        }))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for SoftmaxBackward {
    fn reads(&self, needs: &[bool]) -> Reads {
        if needs[0] {
            Reads::new(&[0, 1], &[])
        } else {
            Reads::new(&[0], &[])
        }
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(c) = cx.cotangent(0) else {
            return Ok(());
        };
        let y = cx.input(0)?;
        if sink.needs(1) {
            let gradient = if self.log {
                c.sub(&total(&c.mul(&y.exp()?)?, self.dim)?)?
            } else {
                apply1(&handle(self.clone()), &[y, c])?
            };
            sink.add(1, gradient)?;
        }
        if sink.needs(0) {
            let g = cx.input(1)?;
            let gradient = if self.log {
                c.mul(&y.exp()?)?.mul(&total(g, self.dim)?)?.neg()?
            } else {
                let left = c.mul(&g.sub(&total(&g.mul(y)?, self.dim)?)?)?;
                left.sub(&g.mul(&total(&c.mul(y)?, self.dim)?)?)?
            };
            sink.add(0, gradient)?;
        }
        Ok(())
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let (y, g) = (cx.inputs[0], cx.inputs[1]);
        let mut sum = None;
        if let Some(t) = &cx.tangents[1] {
            sum = Some(apply1(&handle(self.clone()), &[y, t])?);
        }
        if let Some(t) = &cx.tangents[0] {
            let part = if self.log {
                y.exp()?.mul(t)?.mul(&total(g, self.dim)?)?.neg()?
            } else {
                let left = t.mul(&g.sub(&total(&g.mul(y)?, self.dim)?)?)?;
                left.sub(&y.mul(&total(&g.mul(t)?, self.dim)?)?)?
            };
            sum = Some(match sum {
                Some(s) => s.add(&part)?,
                None => part,
            });
        }
        Ok(one(sum))
    }
}

#[track_caller]
fn along(t: &Tensor, dim: isize, log: bool) -> Result<Tensor> {
    let x = as_float(t)?;
    if x.rank() == 0 {
        x.shape()
            .dim(if log { "log_softmax" } else { "softmax" }, dim)?;
        return along(&x.reshape([1])?, 0, log)?.reshape(Shape::scalar());
    }
    let dim = x
        .shape()
        .dim(if log { "log_softmax" } else { "softmax" }, dim)?;
    apply1(&handle(Softmax { dim, log }), &[&x])
}

impl Tensor {
    /// exp(x) divided by its sum along `dim`: non-negative numbers that add up to 1.
    ///
    /// # Errors
    /// When the dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![1000.0f64, 1000.0], [1, 2])?;
    /// assert_eq!(t.softmax(-1)?.to_vec::<f64>()?, [0.5, 0.5]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn softmax(&self, dim: isize) -> Result<Tensor> {
        along(self, dim, false)
    }

    /// The logarithm of [`Tensor::softmax`], accurate where that is close to 0.
    ///
    /// # Errors
    /// When the dimension does not exist.
    #[track_caller]
    pub fn log_softmax(&self, dim: isize) -> Result<Tensor> {
        along(self, dim, true)
    }
}

fn sample(g: &mut Gen, f: fn(&Tensor, isize) -> Result<Tensor>) -> Result<Sample> {
    let shape = g.shape(0..=4);
    let dim = g.range(0, shape.rank().max(1)) as isize;
    let x = g.tensor(shape, -2.0, 2.0);
    Ok(Sample::one(vec![x], move |t| f(&t[0], dim)))
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "softmax",
        kind: "explicit",
        sample: |g| sample(g, Tensor::softmax),
    },
    Entry {
        name: "log_softmax",
        kind: "explicit",
        sample: |g| sample(g, Tensor::log_softmax),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn gradients_must_be_like_their_results() {
        let y = Aval::new([2, 3], DType::F32);
        for log in [false, true] {
            let op = SoftmaxBackward { dim: 1, log };
            assert_eq!(op.infer(&[&y, &y]).unwrap()[0], y);
            assert!(op.infer(&[&y, &Aval::new([3, 2], DType::F32)]).is_err());
            let e = op.infer(&[&y, &Aval::new([2, 3], DType::F64)]).unwrap_err();
            let name = if log {
                "[log_softmax_backward]"
            } else {
                "[softmax_backward]"
            };
            assert!(e.to_string().contains(name), "{e}");
        }
    }
}
