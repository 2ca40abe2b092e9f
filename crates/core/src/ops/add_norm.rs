//! A sum and its norm at once: s = x + r and y = norm(s), layer or root mean square (`layer_norm`
//! says how), as transformer blocks have it: after the norm (y goes on) or before it (both do).
//!
//! The forward pass writes s while it is normalised; the backward pass adds what flows to s from
//! elsewhere to the norm's gradient as it is made, s̄ + norm'(s)ᵀ·ȳ, which is the gradient of x and
//! of r alike. Bits are those of the parts one after the other. Kernels: `entrenar_cpu::norm`.

use smallvec::smallvec;

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::norm as kernel;

use super::layer_norm::{LayerNorm, sample};
use super::where_::joined;
use crate::Tensor;
use crate::apply::{apply, handle};
use crate::op::{Aval, Bits, Expand, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::ops::activation::as_float;
use crate::ops::expansion;
use crate::registry::{Entry, Gen, Sample};

/// Inputs: x, r, then the weight and the bias where present. Outputs: y, s, then the statistics of
/// each row, 1/√(variance + eps) and the mean (not for RMS).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AddNorm(LayerNorm);

impl AddNorm {
    /// Places of the weight and the bias among the inputs, where present.
    fn places(&self) -> (Option<usize>, Option<usize>) {
        let LayerNorm { weight, bias, .. } = self.0;
        (weight.then_some(2), bias.then_some(2 + usize::from(weight)))
    }

    /// (x - mean)·rstd and rstd of rows, computed from the sum in the accumulator's dtype.
    fn normal(&self, sum: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = sum.to_dtype(sum.dtype().accumulator())?;
        let centered = if self.0.centered {
            x.sub(&self.average(&x)?)?
        } else {
            x
        };
        let rstd = self.average(&centered.square()?)?;
        let rstd = rstd.add_scalar(self.0.eps.0)?.rsqrt()?;
        Ok((centered.mul(&rstd)?, rstd))
    }

    /// Means over what is normalised together.
    fn average(&self, t: &Tensor) -> Result<Tensor> {
        let dims: Vec<isize> = (1..=self.0.normalized as isize).map(|d| -d).collect();
        t.mean_dim(&dims, true)
    }

    /// The derivative of x̂ along a change `t` of the sum, whose transpose is itself.
    fn derivative(&self, normal: &Tensor, rstd: &Tensor, t: &Tensor) -> Result<Tensor> {
        let along = normal.mul(&self.average(&normal.mul(t)?)?)?;
        let rest = if self.0.centered {
            t.sub(&self.average(t)?)?
        } else {
            t.clone()
        };
        rstd.mul(&rest.sub(&along)?)
    }
}

impl Op for AddNorm {
    fn name(&self) -> &'static str {
        if self.0.centered {
            "add_layer_norm"
        } else {
            "add_rms_norm"
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if inputs[0] != inputs[1] {
            let expected = format!("a residual like the input, {:?}", inputs[0]);
            return Err(Error::shape(
                self.name(),
                expected,
                format!("{:?}", inputs[1]),
            ));
        }
        let norm = self.0.infer(&inputs[1..])?;
        let mut outputs = smallvec![norm[0].clone(), norm[0].clone()];
        outputs.extend(norm[1..].iter().cloned());
        Ok(outputs)
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let (x, r) = (inputs[0], inputs[1]);
        if x.numel() == 0 {
            let zeros = |a: &Aval| Array::zeros(a.shape.clone(), a.dtype);
            return Ok(outputs.iter().map(zeros).collect());
        }
        let (w, b) = self.places();
        let (w, b) = (w.map(|i| inputs[i]), b.map(|i| inputs[i]));
        let (_, row) = self.0.sizes(x.shape());
        let done = kernel::add_norm(x, r, row, w, b, self.0.eps.0, self.0.centered)?;
        let mut outputs = smallvec![done.output, done.sum, done.rstd];
        if self.0.centered {
            outputs.push(done.mean);
        }
        Ok(outputs)
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for AddNorm {
    fn reads(&self, _: &[bool]) -> Reads {
        let weight: &[usize] = if self.0.weight { &[2] } else { &[] };
        let statistics: &[usize] = if self.0.centered { &[1, 2, 3] } else { &[1, 2] };
        Reads::new(weight, statistics)
    }

    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let sum_needed = sink.needs(0) || sink.needs(1);
        let (from_output, from_sum) = (cx.cotangent(0), cx.cotangent(1));
        let Some(g) = from_output else {
            for i in 0..2 {
                if let Some(g) = from_sum {
                    sink.add(i, g.clone())?;
                }
            }
            return Ok(());
        };
        let (weight, bias) = self.places();
        let wanted = |place: Option<usize>| place.is_some_and(|i| sink.needs(i));
        let op = Backward {
            norm: self.clone(),
            sum: sum_needed,
            weight: wanted(weight),
            bias: bias.filter(|&i| sink.needs(i)).map(|i| cx.aval(i).dtype),
            plus: sum_needed && from_sum.is_some(),
        };
        let mut inputs = vec![g, cx.output(1)?, cx.output(2)?];
        if self.0.centered {
            inputs.push(cx.output(3)?);
        }
        if self.0.weight {
            inputs.push(cx.input(2)?);
        }
        inputs.extend(from_sum.filter(|_| op.plus));
        let (sum, dw, db) = (op.sum, op.weight, op.bias.is_some());
        let mut gradients = apply(&handle(op), &inputs)?.into_iter();
        if let Some(gradient) = gradients.next_if_wanted(sum) {
            sink.add(0, gradient.clone())?;
            sink.add(1, gradient)?;
        }
        for (place, wanted) in [(weight, dw), (bias, db)] {
            if let (Some(i), Some(gradient)) = (place, gradients.next_if_wanted(wanted)) {
                sink.add(i, gradient)?;
            }
        }
        Ok(())
    }

    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let (output, sum) = (&cx.outputs[0], &cx.outputs[1]);
        let change = match (&cx.tangents[0], &cx.tangents[1]) {
            (Some(x), Some(r)) => Some(x.add(r)?),
            (one, other) => one.clone().or_else(|| other.clone()),
        };
        let (weight, bias) = self.places();
        let tangent = |place: Option<usize>| place.and_then(|i| cx.tangents[i].as_ref());
        let wide = sum.dtype().accumulator();
        let (normal, rstd) = self.normal(sum)?;
        let mut parts = Vec::new();
        if let Some(t) = &change {
            let t = self.derivative(&normal, &rstd, &t.to_dtype(wide)?)?;
            parts.push(match weight {
                Some(i) => t.mul(&cx.inputs[i].to_dtype(wide)?)?,
                None => t,
            });
        }
        if let Some(t) = tangent(weight) {
            parts.push(normal.mul(&t.to_dtype(wide)?)?);
        }
        if let Some(t) = tangent(bias) {
            parts.push(t.to_dtype(wide)?.broadcast_to(sum.shape())?);
        }
        let mut total: Option<Tensor> = None;
        for part in parts {
            total = Some(match total {
                Some(t) => t.add(&part)?,
                None => part,
            });
        }
        let total = total.map(|t| t.to_dtype(output.dtype())).transpose()?;
        let mut tangents = smallvec![total, change];
        tangents.resize(cx.outputs.len(), None);
        Ok(tangents)
    }
}

/// Taking what is there only if it was asked for.
trait NextIfWanted: Iterator {
    fn next_if_wanted(&mut self, wanted: bool) -> Option<Self::Item> {
        if wanted { self.next() } else { None }
    }
}
impl<I: Iterator> NextIfWanted for I {}

/// Inputs: ȳ, s, 1/√(variance + eps), the mean (not for RMS), the weight where present, and what
/// flows to s from elsewhere where `plus`. Outputs: the gradients of s (with that), weight and bias
/// that are asked for. The statistics carry no gradient: the definition computes them from s.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Backward {
    norm: AddNorm,
    sum: bool,
    weight: bool,
    /// The dtype of the bias, if its gradient is wanted.
    bias: Option<DType>,
    plus: bool,
}

impl Backward {
    /// The mean, the weight and what is added, of `inputs`.
    fn rest<T: Copy>(&self, inputs: &[T]) -> (Option<T>, Option<T>, Option<T>) {
        let mut rest = inputs[3..].iter().copied();
        (
            rest.next_if_wanted(self.norm.0.centered),
            rest.next_if_wanted(self.norm.0.weight),
            rest.next_if_wanted(self.plus),
        )
    }

    /// The shape of what is normalised together.
    fn row(&self, sum: &Shape) -> Shape {
        Shape::from(&sum[sum.rank() - self.norm.0.normalized..])
    }
}

impl Op for Backward {
    fn name(&self) -> &'static str {
        if self.norm.0.centered {
            "add_layer_norm_backward"
        } else {
            "add_rms_norm_backward"
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (sum, (_, weight, _)) = (inputs[1], self.rest(inputs));
        let mut outputs = smallvec![];
        if self.sum {
            outputs.push(sum.clone());
        }
        outputs.extend(weight.filter(|_| self.weight).cloned());
        outputs.extend(self.bias.map(|d| Aval::new(self.row(&sum.shape), d)));
        Ok(outputs)
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let (g, sum, rstd) = (inputs[0], inputs[1], inputs[2]);
        let (mean, weight, plus) = self.rest(inputs);
        if sum.numel() == 0 {
            let zeros = |a: &Aval| Array::zeros(a.shape.clone(), a.dtype);
            return Ok(outputs.iter().map(zeros).collect());
        }
        let needs = [self.sum, self.weight, self.bias.is_some()];
        let (ds, dw, db) = kernel::add_norm_backward(g, sum, mean, rstd, weight, plus, needs)?;
        // The kernel sums in its own shape and dtype.
        let made = [ds, dw, db].into_iter().flatten();
        made.zip(outputs)
            .map(|(a, like)| Ok(a.reshape(like.shape.clone())?.cast(like.dtype)))
            .collect()
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for Backward {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let (g, sum) = (inputs[0], inputs[1]);
        let (_, weight, plus) = self.rest(inputs);
        let (dtype, wide) = (sum.dtype(), sum.dtype().accumulator());
        let g = g.to_dtype(wide)?;
        let (normal, rstd) = self.norm.normal(sum)?;
        let mut outputs = smallvec![];
        if self.sum {
            let h = match weight {
                Some(w) => g.mul(&w.to_dtype(wide)?)?,
                None => g.clone(),
            };
            let gradient = self.norm.derivative(&normal, &rstd, &h)?.to_dtype(dtype)?;
            outputs.push(match plus {
                Some(plus) => plus.add(&gradient)?,
                None => gradient,
            });
        }
        let row = self.row(sum.shape());
        if let Some(w) = weight.filter(|_| self.weight) {
            outputs.push(g.mul(&normal)?.sum_to(&row)?.to_dtype(w.dtype())?);
        }
        if let Some(dtype) = self.bias {
            outputs.push(g.sum_to(&row)?.to_dtype(dtype)?);
        }
        Ok(outputs)
    }
    fn visible(&self) -> usize {
        usize::from(self.sum) + usize::from(self.weight) + usize::from(self.bias.is_some())
    }
}

impl Tensor {
    /// `(layer_norm(self + residual), self + residual)` in one pass over memory, forward and
    /// backward; see [`Tensor::layer_norm`]. Operands broadcast and promote as in a sum. Sums in 16
    /// bits are rounded before they are normalised.
    ///
    /// # Errors
    /// When shapes do not broadcast, and as [`Tensor::layer_norm`].
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f64, 1.0], [1, 2])?;
    /// let residual = Tensor::from_vec(vec![0.0f64, 2.0], [1, 2])?;
    /// let (y, sum) = x.add_layer_norm(&residual, 1, None, None, 0.0)?;
    /// assert_eq!(sum.to_vec::<f64>()?, [1.0, 3.0]);
    /// assert_eq!(y.to_vec::<f64>()?, [-1.0, 1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn add_layer_norm(
        &self,
        residual: &Tensor,
        normalized: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        let norm = LayerNorm {
            normalized,
            eps: Bits(eps),
            weight: weight.is_some(),
            bias: bias.is_some(),
            centered: true,
        };
        add_norm(self, residual, [weight, bias], norm)
    }

    /// `(rms_norm(self + residual), self + residual)` in one pass over memory, forward and
    /// backward; see [`Tensor::rms_norm`]. Operands broadcast and promote as in a sum. Sums in 16
    /// bits are rounded before they are normalised.
    ///
    /// # Errors
    /// When shapes do not broadcast, and as [`Tensor::rms_norm`].
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f64, -3.0], [1, 2])?;
    /// let (y, sum) = x.add_rms_norm(&Tensor::scalar(1.0f64), 1, None, 0.0)?;
    /// assert_eq!(sum.to_vec::<f64>()?, [2.0, -2.0]);
    /// assert_eq!(y.to_vec::<f64>()?, [1.0, -1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn add_rms_norm(
        &self,
        residual: &Tensor,
        normalized: usize,
        weight: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        let norm = LayerNorm {
            normalized,
            eps: Bits(eps),
            weight: weight.is_some(),
            bias: false,
            centered: false,
        };
        add_norm(self, residual, [weight, None], norm)
    }
}

#[track_caller]
fn add_norm(
    x: &Tensor,
    residual: &Tensor,
    parameters: [Option<&Tensor>; 2],
    norm: LayerNorm,
) -> Result<(Tensor, Tensor)> {
    let op = AddNorm(norm);
    let (x, residual) = (as_float(x)?, as_float(residual)?);
    let [x, residual] = joined([&x, &residual], op.name())?;
    let mut inputs = vec![&x, &residual];
    inputs.extend(parameters.into_iter().flatten());
    let mut outputs = expansion::checked(op, &inputs)?.into_iter();
    match (outputs.next(), outputs.next()) {
        (Some(y), Some(sum)) => Ok((y, sum)),
        _ => Err(Error::autodiff("add_norm", "gave fewer than two outputs")),
    }
}

/// Two operands, number of normalised dimensions, and parameters of their shape.
fn operands(g: &mut Gen, most: usize) -> (Vec<Tensor>, usize) {
    let (mut inputs, normalized) = sample(g, most);
    let residual = g.tensor(inputs[0].shape().clone(), -2.0, 2.0);
    inputs.insert(1, residual);
    (inputs, normalized)
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "add_layer_norm",
        kind: "explicit",
        sample: |g| {
            let (inputs, normalized) = operands(g, 2);
            Ok(Sample::new(inputs, move |t| {
                let (y, sum) = t[0].add_layer_norm(&t[1], normalized, t.get(2), t.get(3), 0.1)?;
                Ok(vec![y, sum])
            }))
        },
    },
    Entry {
        name: "add_rms_norm",
        kind: "explicit",
        sample: |g| {
            let (inputs, normalized) = operands(g, 1);
            Ok(Sample::new(inputs, move |t| {
                let (y, sum) = t[0].add_rms_norm(&t[1], normalized, t.get(2), 0.1)?;
                Ok(vec![y, sum])
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and gradients of a function of (x, residual, weight, bias), as bits.
    fn run(
        dtype: DType,
        uses: (bool, bool),
        f: impl Fn(&[Tensor]) -> Result<(Tensor, Tensor)>,
    ) -> Result<Vec<Vec<f64>>> {
        let make = |shape: &[usize], seed| {
            let t = Tensor::randn(shape, DType::F32, seed)?.to_dtype(dtype)?;
            t.requires_grad()
        };
        let leaves = [
            make(&[5, 2, 67], 1)?,
            make(&[5, 2, 67], 2)?,
            make(&[67], 3)?,
            make(&[67], 4)?,
        ];
        let (y, sum) = f(&leaves)?;
        let weigh = |t: &Tensor, seed| {
            let w = Tensor::randn(t.shape(), DType::F32, seed)?.to_dtype(dtype)?;
            t.mul(&w)?.sum()
        };
        let loss = match uses {
            (true, true) => weigh(&y, 5)?.add(&weigh(&sum, 6)?)?,
            (true, false) => weigh(&y, 5)?,
            _ => weigh(&sum, 6)?,
        };
        loss.backward()?;
        let mut all = vec![y.array().to_f64_vec(), sum.array().to_f64_vec()];
        let gradient = |t: &Tensor| t.grad().map_or(vec![], |g| g.array().to_f64_vec());
        all.extend(leaves.iter().map(gradient));
        Ok(all)
    }

    #[test]
    fn bits_are_those_of_the_parts() -> Result<()> {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            for uses in [(true, true), (true, false), (false, true)] {
                let fused = run(dtype, uses, |t| {
                    t[0].add_layer_norm(&t[1], 1, Some(&t[2]), Some(&t[3]), 1e-5)
                })?;
                let parts = run(dtype, uses, |t| {
                    let sum = t[0].add(&t[1])?;
                    let y = sum.layer_norm(1, Some(&t[2]), Some(&t[3]), 1e-5)?;
                    Ok((y, sum))
                })?;
                assert_eq!(fused, parts, "layer norm, {dtype}, {uses:?}");
                let fused = run(dtype, uses, |t| t[0].add_rms_norm(&t[1], 2, None, 1e-5))?;
                let parts = run(dtype, uses, |t| {
                    let sum = t[0].add(&t[1])?;
                    Ok((sum.rms_norm(2, None, 1e-5)?, sum))
                })?;
                assert_eq!(fused, parts, "rms norm, {dtype}, {uses:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn operands_broadcast_and_promote() -> Result<()> {
        let x = Tensor::from_vec(vec![1.0f32, 3.0], [2])?.to_dtype(DType::BF16)?;
        let r = Tensor::zeros([3, 2], DType::F32).requires_grad()?;
        let (y, sum) = x.add_layer_norm(&r, 1, None, None, 0.0)?;
        assert_eq!((y.dims(), y.dtype()), (&[3, 2][..], DType::F32));
        assert_eq!(y.to_vec::<f32>()?, [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]);
        sum.sum()?.backward()?;
        assert_eq!(r.grad().unwrap().to_vec::<f32>()?, [1.0; 6]);
        Ok(())
    }

    #[test]
    fn misfits_are_errors() {
        let x = Tensor::zeros([2, 3], DType::F32);
        let w = Tensor::zeros([1], DType::F32);
        assert!(x.add_layer_norm(&x, 3, None, None, 1e-5).is_err());
        assert!(x.add_rms_norm(&x, 1, Some(&w), 1e-5).is_err());
        let e = x.add_rms_norm(&Tensor::zeros([2, 2], DType::F32), 1, None, 1e-5);
        let e = e.unwrap_err().to_string();
        assert!(e.contains("add_rms_norm") && e.contains("[2, 2]"), "{e}");
        let empty = Tensor::zeros([0, 3], DType::F32).requires_grad().unwrap();
        let (y, sum) = empty.add_layer_norm(&empty, 1, None, None, 1e-5).unwrap();
        assert_eq!((y.dims(), sum.dims()), (&[0, 3][..], &[0, 3][..]));
        y.sum().unwrap().backward().unwrap();
        assert_eq!(empty.grad().unwrap().dims(), [0, 3]);
    }
}
