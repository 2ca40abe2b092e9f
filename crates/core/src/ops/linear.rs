//! `linear` (y = act(x·Wᵀ + b) + r), fused forward and backward, and `bilinear` (yₒ = x₁ᵀ·Wₒ·x₂ + bₒ),
//! composed of products. Kernels: `entrenar_cpu::linear`.

use smallvec::smallvec;

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::cast::cast;
use entrenar_cpu::linear as kernel;
use entrenar_cpu::product::Compute;

pub use entrenar_cpu::product::Activation;

use crate::Tensor;
use crate::apply::{apply1, grad_enabled, handle, one};
use crate::autocast::{compute_for, is_autocast};
use crate::op::{Aval, BackwardKernel, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::registry::{Entry, Sample};

/// Parameters of [`Tensor::linear_with`].
///
/// ```
/// # use entrenar_core::ops::linear::{Activation, LinearOptions};
/// let options = LinearOptions { activation: Activation::Relu, ..Default::default() };
/// assert!(options.output.is_none());
/// ```
#[derive(Clone, Debug, Default)]
pub struct LinearOptions {
    /// Applied after the bias, while the sums are still in cache.
    pub activation: Activation,
    /// Added last, a shortcut around the layer: of the result's shape.
    pub residual: Option<Tensor>,
    /// Dtype of the result: by default that of the promoted operands, or bf16 inside
    /// [`crate::autocast()`].
    pub output: Option<DType>,
}

/// (x `[.., in]`, W `[out, in]`, b `[out]` if any, r `[.., out]` if any) to y `[.., out]` and, with an
/// activation, what it was applied to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Linear {
    bias: bool,
    activation: Activation,
    residual: bool,
    /// What products run in.
    compute: Compute,
    output: DType,
}

impl Linear {
    fn layer<'a>(&self, inputs: &[&'a Array]) -> kernel::Layer<'a> {
        kernel::Layer {
            compute: self.compute,
            bias: self.bias.then(|| inputs[2]),
            activation: self.activation,
            residual: self.residual_among(inputs),
            output: self.output,
        }
    }

    /// The shortcut among `inputs`.
    fn residual_among<T: Copy>(&self, inputs: &[T]) -> Option<T> {
        self.residual.then(|| inputs[2 + usize::from(self.bias)])
    }
}

/// `[.., n]` as rows `[*, n]`; a view where the layout allows.
fn rows_of(x: &Array) -> Result<Array> {
    let n = *x.dims().last().unwrap_or(&1);
    if x.rank() == 2 {
        return Ok(x.clone());
    }
    let rows: usize = x.dims()[..x.rank().saturating_sub(1)].iter().product();
    x.reshape([rows, n])
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (x, w) = (inputs[0], inputs[1]);
        let r = x.shape.rank();
        let mut fits = r > 0 && w.shape.rank() == 2 && x.shape[r - 1] == w.shape[1];
        if self.bias {
            let b = inputs[2];
            fits &= b.shape.rank() == 1 && b.shape[0] == w.shape[0];
        }
        if let Some(other) = self.residual_among(inputs) {
            let lead = r > 0 && other.shape.rank() == r && other.shape[..r - 1] == x.shape[..r - 1];
            fits &= lead && other.shape[r - 1] == w.shape[0];
        }
        let wide = inputs.iter().any(|a| a.dtype == DType::F64);
        fits &= inputs
            .iter()
            .all(|a| a.dtype.is_float() && (a.dtype == DType::F64) == wide);
        if !fits {
            return Err(Error::shape(
                "linear",
                "[.., in], [out, in], perhaps [out] and [.., out], all f64 or none",
                format!("{inputs:?}"),
            ));
        }
        let mut shape = x.shape.clone();
        shape.dims_mut()[r - 1] = w.shape[0];
        let y = Aval::new(shape, self.output);
        Ok(match self.activation {
            Activation::None => one(y),
            _ => smallvec![y.clone(), y],
        })
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let residual = self.residual_among(inputs).map(rows_of).transpose()?;
        let layer = kernel::Layer {
            residual: residual.as_ref(),
            ..self.layer(inputs)
        };
        let (y, before) = kernel::linear(&rows_of(inputs[0])?, inputs[1], &layer)?;
        let shaped = |a: Array| a.reshape(outputs[0].shape.clone());
        Ok(match before {
            None => one(shaped(y)?),
            Some(before) => smallvec![shaped(y)?, shaped(before)?],
        })
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for Linear {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let wide = self.output.accumulator();
        let operand = |t: &Tensor| match self.compute {
            Compute::Bf16 => t.to_dtype(DType::BF16)?.to_dtype(wide),
            Compute::F32 => t.to_dtype(wide),
        };
        let mut y = operand(inputs[0])?.matmul(&operand(inputs[1])?.t()?)?;
        if self.bias {
            y = y.add(&inputs[2].to_dtype(wide)?)?;
        }
        let mut y = activated(&y, self.activation)?;
        if let Some(residual) = self.residual_among(inputs) {
            y = y.add(&residual.to_dtype(wide)?)?;
        }
        Ok(one(y.to_dtype(self.output)?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for Linear {
    fn reads_output(&self, output: usize) -> bool {
        output == 1
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let g = cotangents[0]
            .ok_or_else(|| Error::autodiff("linear", "backward without a cotangent"))?;
        let before = outputs.get(1).copied().flatten();
        let [dx, dw, db] = kernel::linear_backward(
            &rows_of(g)?,
            &rows_of(inputs[0])?,
            inputs[1],
            before.map(rows_of).transpose()?.as_ref(),
            &self.layer(inputs),
            [needs[0], needs[1], self.bias && needs[2]],
        )?;
        let dx = dx.map(|d| d.reshape(inputs[0].shape().clone()));
        let mut gradients: Few<_> = smallvec![dx.transpose()?, dw];
        if self.bias {
            gradients.push(db);
        }
        if let Some(residual) = self.residual_among(inputs) {
            let wanted = needs[inputs.len() - 1];
            gradients.push(wanted.then(|| cast(g, residual.dtype())).transpose()?);
        }
        Ok(gradients)
    }
}

/// The activation as an operation of its own.
fn activated(y: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(y.clone()),
        Activation::Relu => y.relu(),
        Activation::Gelu => y.gelu(),
        Activation::GeluTanh => y.gelu_tanh(),
        Activation::Silu => y.silu(),
    }
}

/// One operation after the other: for vectors, integers, and matrices that are not trained.
#[track_caller]
fn separate(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &LinearOptions,
) -> Result<Tensor> {
    let mut y = if weight.rank() == 1 {
        x.matmul(weight)?
    } else {
        x.matmul(&weight.t()?)?
    };
    if let Some(b) = bias {
        y = y.add(b)?;
    }
    let mut y = activated(&y, options.activation)?;
    if let Some(residual) = &options.residual {
        y = y.add(residual)?;
    }
    match options.output {
        Some(dtype) => y.to_dtype(dtype),
        None => Ok(y),
    }
}

impl Tensor {
    /// x·Wᵀ + b: x `[.., in]`, weight `[out, in]` (or `[in]`, for one output without a
    /// dimension), bias `[out]`; the result is `[.., out]`. Inside [`crate::autocast()`] f32
    /// operands are multiplied in bf16, and the result of a matrix is bf16.
    ///
    /// # Errors
    /// When the inner sizes or the bias do not fit.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0], [1, 2])?;
    /// let w = Tensor::from_vec(vec![1.0f32, 1.0, 0.0, 2.0, 3.0, 0.0], [3, 2])?;
    /// let b = Tensor::from_vec(vec![0.5f32, 0.0, 0.0], [3])?;
    /// assert_eq!(x.linear(&w, Some(&b))?.to_vec::<f32>()?, [3.5, 4.0, 3.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.linear_with(weight, bias, &LinearOptions::default())
    }

    /// [`Tensor::linear`] with an activation, or with a result of another dtype: nothing is stored
    /// in between but what the backward pass reads.
    ///
    /// # Errors
    /// When sizes do not fit.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::linear::{Activation, LinearOptions}};
    /// let x = Tensor::from_vec(vec![1.0f32, -2.0], [1, 2])?;
    /// let w = Tensor::from_vec(vec![1.0f32, 0.0, 0.0, 1.0], [2, 2])?;
    /// let relu = LinearOptions { activation: Activation::Relu, ..Default::default() };
    /// assert_eq!(x.linear_with(&w, None, &relu)?.to_vec::<f32>()?, [1.0, 0.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn linear_with(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        options: &LinearOptions,
    ) -> Result<Tensor> {
        let inner = self.dims().last();
        if !(1..=2).contains(&weight.rank()) || inner.is_none() || weight.dims().last() != inner {
            return Err(Error::shape(
                "linear",
                "an input [.., in] and a weight [out, in]",
                format!("{} and {}", self.shape(), weight.shape()),
            ));
        }
        let out: Shape = weight.dims()[..weight.rank() - 1].into();
        if let Some(b) = bias
            && *b.shape() != out
        {
            return Err(Error::shape(
                "linear",
                format!("a bias of shape {out}"),
                b.shape(),
            ));
        }
        if let Some(residual) = &options.residual {
            let mut shape = Shape::from(&self.dims()[..self.rank() - 1]);
            out.iter().for_each(|&n| shape.push(n));
            if *residual.shape() != shape {
                let expected = format!("a residual of shape {shape}");
                return Err(Error::shape("linear", expected, residual.shape()));
            }
        }
        let residual = options.residual.as_ref();
        let all = [Some(self), Some(weight), bias, residual];
        let all = all.into_iter().flatten();
        let dtype = all.clone().fold(self.dtype(), |d, t| d.promote(t.dtype()));
        let floats = all.clone().all(|t| t.dtype().is_float());
        // A product by itself does not save the input of a matrix that is not trained.
        let frozen = !weight.is_tracked() && self.is_tracked() && grad_enabled();
        let narrowed = dtype == DType::F64 && options.output.is_some_and(|o| o != dtype);
        if weight.rank() == 1 || !floats || narrowed || (frozen && !is_autocast()) {
            return separate(self, weight, bias, options);
        }
        let mixed = is_autocast() && dtype == DType::F32;
        // A shortcut keeps its width.
        let narrow = if residual.is_some() {
            dtype
        } else {
            DType::BF16
        };
        let op = Linear {
            bias: bias.is_some(),
            activation: options.activation,
            residual: residual.is_some(),
            compute: compute_for(match dtype {
                DType::F64 => dtype,
                _ => self.dtype().promote(weight.dtype()),
            }),
            output: options.output.unwrap_or(if mixed { narrow } else { dtype }),
        };
        let alike = |t: &Tensor| match dtype {
            DType::F64 => t.to_dtype(DType::F64),
            _ => Ok(t.clone()),
        };
        let inputs: Few<Tensor> = all.map(alike).collect::<Result<_>>()?;
        apply1(&handle(op), &inputs.iter().collect::<Few<_>>())
    }

    /// x₁ᵀ·Wₒ·x₂ + bₒ for every output o: x₁ `[.., m]`, x₂ `[.., n]`, weight `[out, m, n]`, bias
    /// `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    /// When sizes do not fit.
    #[track_caller]
    pub fn bilinear(
        &self,
        other: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (a, b) = (as_float(self)?, as_float(other)?);
        let fits = weight.rank() == 3
            && a.rank() > 0
            && a.rank() == b.rank()
            && a.dims()[..a.rank() - 1] == b.dims()[..b.rank() - 1]
            && weight.dims()[1..] == [a.dims()[a.rank() - 1], b.dims()[b.rank() - 1]];
        if !fits {
            return Err(Error::shape(
                "bilinear",
                "inputs [.., m] and [.., n] and a weight [out, m, n]",
                format!("{}, {} and {}", self.shape(), other.shape(), weight.shape()),
            ));
        }
        let (out, m, n) = (weight.dims()[0], weight.dims()[1], weight.dims()[2]);
        let lead = Shape::from(&a.dims()[..a.rank() - 1]);
        let rows = lead.numel();
        // [rows, m] · [m, out·n], then for each row [out, n] · [n].
        let side = weight.permute(&[1, 0, 2])?.reshape([m, out * n])?;
        let half = a.reshape([rows, m])?.matmul(&side)?;
        let product = half
            .reshape([rows, out, n])?
            .matmul(&b.reshape([rows, n, 1])?)?;
        let mut shape = lead;
        shape.push(out);
        let product = product.reshape(shape)?;
        match bias {
            Some(bias) if bias.dims() != [out] => Err(Error::shape(
                "bilinear",
                format!("a bias of shape [{out}]"),
                bias.shape(),
            )),
            Some(bias) => product.add(bias),
            None => Ok(product),
        }
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "linear",
        kind: "expand",
        sample: |g| {
            let mut shape = g.shape(0..=3);
            let (inner, out) = (g.range(0, 5), g.range(1, 4));
            shape.push(inner);
            let x = g.tensor(shape, -2.0, 2.0);
            let vector = g.once_in(5);
            let (w, b) = if vector {
                (Shape::from([inner]), Shape::scalar())
            } else {
                (Shape::from([out, inner]), Shape::from([out]))
            };
            let mut inputs = vec![x, g.tensor(w, -2.0, 2.0)];
            let bias = g.once_in(2);
            if bias {
                inputs.push(g.tensor(b, -2.0, 2.0));
            }
            let shortcut = g.once_in(3);
            if shortcut {
                let mut shape = inputs[0].shape().clone();
                shape.remove(shape.rank() - 1);
                if !vector {
                    shape.push(out);
                }
                inputs.push(g.tensor(shape, -2.0, 2.0));
            }
            let activation = g.pick(&[
                Activation::None,
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::Silu,
            ]);
            Ok(Sample::one(inputs, move |t| {
                let options = LinearOptions {
                    activation,
                    residual: shortcut.then(|| t[t.len() - 1].clone()),
                    output: None,
                };
                t[0].linear_with(&t[1], bias.then(|| &t[2]), &options)
            }))
        },
    },
    Entry {
        name: "bilinear",
        kind: "composed",
        sample: |g| {
            let lead = g.shape(0..=2);
            let (m, n, out) = (g.range(1, 4), g.range(1, 4), g.range(1, 4));
            let with = |size: usize| {
                let mut shape = lead.clone();
                shape.push(size);
                shape
            };
            let mut inputs = vec![
                g.tensor(with(m), -2.0, 2.0),
                g.tensor(with(n), -2.0, 2.0),
                g.tensor([out, m, n], -2.0, 2.0),
            ];
            if g.once_in(2) {
                inputs.push(g.tensor([out], -2.0, 2.0));
            }
            Ok(Sample::one(inputs, |t| {
                t[0].bilinear(&t[1], &t[2], t.get(3))
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autocast;

    fn random(shape: [usize; 2], seed: u64) -> Tensor {
        Tensor::randn(shape, DType::F32, seed).unwrap()
    }

    /// Values and gradients of Σ y·c.
    fn run(f: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>) -> Vec<Vec<f32>> {
        let leaf = |t: Tensor| t.requires_grad().unwrap();
        let (x, w) = (leaf(random([6, 40], 1)), leaf(random([24, 40], 2)));
        let b = leaf(Tensor::randn([24], DType::F32, 3).unwrap());
        let y = f(&x, &w, &b).unwrap();
        let weights = random([6, 24], 4);
        y.mul(&weights).unwrap().sum().unwrap().backward().unwrap();
        let grads = [&x, &w, &b].map(|t| t.grad().unwrap());
        let y = y.detach();
        let all = std::iter::once(&y).chain(&grads);
        all.map(|t| t.to_dtype(DType::F32).unwrap().to_vec().unwrap())
            .collect()
    }

    fn close(found: &[Vec<f32>], want: &[Vec<f32>], tolerance: f32) {
        for (found, want) in found.iter().zip(want) {
            let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (f, w) in found.iter().zip(want) {
                assert!((f - w).abs() <= tolerance * scale, "{f} {w} of {scale}");
            }
        }
    }

    #[test]
    fn fused_equals_separate() {
        use Activation::*;
        for activation in [None, Relu, Gelu, GeluTanh, Silu] {
            let options = LinearOptions {
                activation,
                ..Default::default()
            };
            let fused = run(|x, w, b| x.linear_with(w, Some(b), &options));
            close(
                &fused,
                &run(|x, w, b| separate(x, w, Some(b), &options)),
                3e-6,
            );
            if activation != Relu {
                let mixed = run(|x, w, b| autocast(true, || x.linear_with(w, Some(b), &options)));
                close(&mixed, &fused, 2e-2);
            }
        }
    }

    #[test]
    fn mixed_precision_keeps_the_dtypes_of_its_operands() {
        let w = random([24, 40], 2).requires_grad().unwrap();
        let x = random([6, 40], 1).requires_grad().unwrap();
        let low = x.to_dtype(DType::BF16).unwrap();
        let y = autocast(true, || low.linear(&w, None)).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        let wide = LinearOptions {
            output: Some(DType::F32),
            ..Default::default()
        };
        let y = autocast(true, || low.linear_with(&w, None, &wide)).unwrap();
        assert_eq!(y.dtype(), DType::F32);
        y.sum().unwrap().backward().unwrap();
        assert_eq!(w.grad().unwrap().dtype(), DType::F32);
        assert_eq!(x.grad().unwrap().dtype(), DType::F32);
    }
}
