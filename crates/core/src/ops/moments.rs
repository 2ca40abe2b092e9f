//! Statistics and norms: `var`, `std`, `logsumexp`, `logaddexp`, `norm`, `normalize`,
//! `cosine_similarity`.
//!
//! var = Σ (x - mean)² / max(0, n - correction), in two passes. logsumexp = log Σ eˣ with the
//! largest element taken out first; its gradient is the softmax. norm follows
//! torch.linalg.vector_norm, (Σ |x|ᵖ)^(1/p), with its subgradients: 0 at 0, ties of ±∞ shared.

use entrenar_base::{Array, DType, Error, Result};
use entrenar_cpu::pointwise::{Binary, Unary};

use super::sum::{Dims, dims_of, kept_shape, some_dims};
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::expr::{Expr, OutputType, Pointwise, c, x};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, OpRef, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

/// log Σ eˣ over `dims`, which stay as size 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LogSumExp {
    dims: Dims,
}

impl Op for LogSumExp {
    fn name(&self) -> &'static str {
        "logsumexp"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new(
            kept_shape(&inputs[0].shape, &self.dims),
            inputs[0].dtype,
        )))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let out = entrenar_cpu::reduce::log_sum_exp(inputs[0], &self.dims)?;
        Ok(one(out))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl LogSumExp {
    /// softmax(x) = e^(x - y); 0 where y is -∞ because every x is.
    fn weights(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let empty = y.detach().eq_scalar(f64::NEG_INFINITY)?;
        x.sub(&y.masked_fill(&empty, 0.0)?)?.exp()
    }
}

impl Explicit for LogSumExp {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[0], &[0])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, self.weights(cx.input(0)?, cx.output(0)?)?.mul(g)?),
            None => Ok(()),
        }
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(one(None));
        };
        let weighted = self.weights(cx.inputs[0], &cx.outputs[0])?.mul(t)?;
        Ok(one(Some(weighted.sum_to(cx.outputs[0].shape())?)))
    }
}

/// `exponent`-th power of a number that is not negative, with value `at_zero` and gradient 0 at 0.
fn guarded_power(name: &'static str, base: &Expr, exponent: f64, at_zero: f64) -> OpRef {
    Pointwise::cached(name, &[exponent, at_zero], || {
        let power = match exponent {
            0.5 => base.unary(Unary::Sqrt),
            e => base.binary(Binary::Pow, &c(e)),
        };
        let guarded = x(0).equals(&c(0.0)).select(&c(at_zero), &power);
        Pointwise::new(name, 1, OutputType::Like(0), guarded)
    })
}

/// √x with gradient 0 at 0: the subgradient of smallest norm for a root of a sum of squares.
fn root(t: &Tensor) -> Result<Tensor> {
    apply1(&guarded_power("guarded_root", &x(0), 0.5, 0.0), &[t])
}

/// Statistics of 16-bit floats are computed in f32.
#[track_caller]
fn widened(t: &Tensor, op: &str) -> Result<Tensor> {
    if !t.dtype().is_float() {
        return Err(Error::dtype(op, "a float tensor", t.dtype()));
    }
    t.to_dtype(t.dtype().accumulator())
}

#[track_caller]
fn wide_variance(
    t: &Tensor,
    dims: &[isize],
    correction: f64,
    keepdim: bool,
    op: &str,
) -> Result<Tensor> {
    let over = dims_of(op, t.shape(), dims)?;
    let count: usize = over.iter().map(|&d| t.dims()[d]).product();
    let wide = widened(t, op)?;
    let deviation = wide.sub(&wide.mean_dim(dims, true)?)?;
    let sum = deviation.square()?.sum_dim(dims, keepdim)?;
    sum.div_scalar((count as f64 - correction).max(0.0))
}

impl Tensor {
    /// The variance over `dims` (empty: all), divided by n - `correction`: 1 for the unbiased
    /// estimate, 0 for the population. NaN or ∞ when nothing is left to divide by.
    ///
    /// # Errors
    /// When the dtype is not a float, or a dimension does not exist or is named twice.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 3.0], [2])?;
    /// assert_eq!(x.var(&[], 1.0, false)?.item::<f32>()?, 2.0);
    /// assert_eq!(x.var(&[], 0.0, false)?.item::<f32>()?, 1.0);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn var(&self, dims: &[isize], correction: f64, keepdim: bool) -> Result<Tensor> {
        wide_variance(self, dims, correction, keepdim, "var")?.to_dtype(self.dtype())
    }

    /// The standard deviation, √var. Its gradient is 0 where all values are equal.
    ///
    /// # Errors
    /// As [`Tensor::var`].
    #[track_caller]
    pub fn std(&self, dims: &[isize], correction: f64, keepdim: bool) -> Result<Tensor> {
        let variance = wide_variance(self, dims, correction, keepdim, "std")?;
        root(&variance)?.to_dtype(self.dtype())
    }

    /// log Σ eˣ over `dims` (empty: all) without overflow; -∞ over nothing. Integers are computed
    /// as f32.
    ///
    /// # Errors
    /// When a dimension does not exist or is named twice.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1000.0f64, 1000.0], [2])?;
    /// assert_eq!(x.logsumexp(&[0], false)?.item::<f64>()?, 1000.0 + 2f64.ln());
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn logsumexp(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        let dims = dims_of("logsumexp", self.shape(), dims)?;
        let op = handle(LogSumExp { dims: dims.clone() });
        let y = if self.dtype().is_float() {
            apply1(&op, &[self])?
        } else {
            apply1(&op, &[&self.to_dtype(DType::F32)?])?
        };
        y.drop_dims(&dims, keepdim)
    }

    /// log(eᵃ + eᵇ) elementwise without overflow: the log-sum-exp of each pair.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let (a, b) = (Tensor::scalar(1000.0f64), Tensor::scalar(1000.0f64));
    /// assert_eq!(a.logaddexp(&b)?.item::<f64>()?, 1000.0 + 2f64.ln());
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn logaddexp(&self, other: &Tensor) -> Result<Tensor> {
        let shape = self.shape().broadcast(other.shape(), "logaddexp")?;
        let a = self.broadcast_to(shape.clone())?;
        Tensor::stack(&[&a, &other.broadcast_to(shape)?], 0)?.logsumexp(&[0], false)
    }

    /// The vector norm (Σ |x|ᵖ)^(1/p) over `dims` (empty: all): ∞ and -∞ give the largest and
    /// smallest magnitude, 0 counts what is not 0. Gradients are 0 where the norm or an element
    /// is 0.
    ///
    /// # Errors
    /// When the dtype is not a float, a dimension does not exist or is named twice, or `p` is NaN,
    /// or it is negative or infinite and there is no element.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![3.0f32, -4.0], [2])?;
    /// assert_eq!(x.norm(2.0, &[], false)?.item::<f32>()?, 5.0);
    /// assert_eq!(x.norm(f64::INFINITY, &[], false)?.item::<f32>()?, 4.0);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn norm(&self, p: f64, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        let wide = widened(self, "norm")?;
        let over = dims_of("norm", self.shape(), dims)?;
        let nothing = over.iter().any(|&d| self.dims()[d] == 0);
        if p.is_nan() || (nothing && (p < 0.0 || p.is_infinite())) {
            return Err(Error::argument(
                "norm",
                "an order p that is a number, and at least one element if it is negative or ∞",
                format!("p = {p} for shape {}", self.shape()),
            ));
        }
        let out = if p == f64::INFINITY {
            wide.abs()?.amax(dims, keepdim)?
        } else if p == f64::NEG_INFINITY {
            wide.abs()?.amin(dims, keepdim)?
        } else if p == 0.0 {
            let counted = wide.eq_scalar(0.0)?.logical_not()?;
            counted.to_dtype(wide.dtype())?.sum_dim(dims, keepdim)?
        } else if p == 1.0 {
            wide.abs()?.sum_dim(dims, keepdim)?
        } else if p == 2.0 {
            root(&wide.square()?.sum_dim(dims, keepdim)?)?
        } else {
            let magnitude = x(0).unary(Unary::Abs);
            let powers = guarded_power("guarded_power", &magnitude, p, 0f64.powf(p));
            let sum = apply1(&powers, &[&wide])?.sum_dim(dims, keepdim)?;
            let inverse = guarded_power("guarded_inverse", &x(0), 1.0 / p, 0f64.powf(1.0 / p));
            apply1(&inverse, &[&sum])?
        };
        out.to_dtype(self.dtype())
    }

    /// x / max(‖x‖ₚ, eps) along `dim`: vectors of length 1.
    ///
    /// # Errors
    /// When the dtype is not a float or the dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![3.0f32, 4.0], [2])?;
    /// assert_eq!(x.normalize(2.0, 0, 1e-12)?.to_vec::<f32>()?, [0.6, 0.8]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn normalize(&self, p: f64, dim: isize, eps: f64) -> Result<Tensor> {
        self.div(&self.norm(p, &[dim], true)?.clamp(Some(eps), None)?)
    }

    /// The cosine of the angle between two vectors along `dim`: Σ (a / max(‖a‖, eps)) ·
    /// (b / max(‖b‖, eps)). The operands broadcast; `dim` refers to the result of that.
    ///
    /// # Errors
    /// When shapes do not broadcast, the dtypes are not floats, or the dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![1.0f32, 0.0], [2])?;
    /// let b = Tensor::from_vec(vec![3.0f32, 4.0], [2])?;
    /// assert_eq!(a.cosine_similarity(&b, 0, 1e-8)?.item::<f32>()?, 0.6);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn cosine_similarity(&self, other: &Tensor, dim: isize, eps: f64) -> Result<Tensor> {
        let [a, b] = super::where_::joined([self, other], "cosine_similarity")?;
        let unit = |t: &Tensor| t.normalize(2.0, dim, eps);
        unit(&a)?.mul(&unit(&b)?)?.sum_dim(&[dim], false)
    }
}

/// A tensor without empty dimensions and a few of its dimensions.
fn filled(g: &mut Gen, low: usize) -> (entrenar_base::Shape, Vec<isize>, bool) {
    let mut shape = g.shape(1..=3);
    shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(low));
    let dims = some_dims(g, shape.rank());
    let keep = g.once_in(2);
    (shape, dims, keep)
}

/// Values that differ by about 1 in every direction: far from the kink of the root at 0.
fn spread(t: &Tensor) -> Result<Tensor> {
    let steps = (0..t.numel()).map(|i| (i * 7 % 5) as f64).collect();
    let steps = Tensor::from_vec::<f64>(steps, t.shape())?;
    t.mul_scalar(0.2)?.add(&steps.to_dtype(t.dtype())?)
}

fn norm_sample(g: &mut Gen) -> Result<Sample> {
    let (shape, dims, keep) = filled(g, 1);
    let p = g.pick(&[1.0, 2.0, 3.0, 4.0, 0.5, 1.5, -1.0, -2.5]);
    let x = g.tensor_avoiding(shape, -2.0, 2.0, &[0.0], 0.4);
    Ok(Sample::one(vec![x], move |t| t[0].norm(p, &dims, keep)).tolerance(1e-5))
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "var",
        kind: "pointwise",
        sample: |g| {
            let (shape, dims, keep) = filled(g, 2);
            let correction = g.pick(&[0.0, 1.0, -2.0]);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].var(&dims, correction, keep)
            }))
        },
    },
    Entry {
        name: "std",
        kind: "pointwise",
        sample: |g| {
            let (shape, _, keep) = filled(g, 2);
            let correction = g.pick(&[0.0, 1.0]);
            Ok(Sample::one(vec![g.tensor(shape, -1.0, 1.0)], move |t| {
                spread(&t[0])?.std(&[], correction, keep)
            })
            .tolerance(1e-5))
        },
    },
    Entry {
        name: "logsumexp",
        kind: "explicit",
        sample: |g| {
            let shape = g.shape(0..=4);
            let dims = some_dims(g, shape.rank());
            let keep = g.once_in(2);
            // Over nothing it is -∞, which no finite difference can check.
            let order = if shape.numel() == 0 { 0 } else { 3 };
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].logsumexp(&dims, keep)
            })
            .order(order))
        },
    },
    Entry {
        name: "logaddexp",
        kind: "composed",
        sample: |g| {
            let (a, b) = g.broadcast_pair();
            let inputs = vec![g.tensor(a, -2.0, 2.0), g.tensor(b, -2.0, 2.0)];
            Ok(Sample::one(inputs, |t| t[0].logaddexp(&t[1])))
        },
    },
    Entry {
        name: "norm",
        kind: "pointwise",
        sample: norm_sample,
    },
    Entry {
        name: "norm_extreme",
        kind: "explicit",
        sample: |g| {
            let (shape, dims, keep) = filled(g, 1);
            let p = g.pick(&[f64::INFINITY, f64::NEG_INFINITY]);
            Ok(Sample::one(vec![g.tensor_distinct(shape)], move |t| {
                t[0].sub_scalar(10.0)?.norm(p, &dims, keep)?.square()
            }))
        },
    },
    Entry {
        name: "norm_zero",
        kind: "zero",
        sample: |g| {
            let (shape, dims, keep) = filled(g, 1);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].trunc()?.norm(0.0, &dims, keep)
            })
            .order(0))
        },
    },
    Entry {
        name: "normalize",
        kind: "pointwise",
        sample: |g| {
            let (shape, _, _) = filled(g, 1);
            let dim = g.range(0, shape.rank()) as isize;
            let p = g.pick(&[1.0, 2.0, 3.0]);
            let x = g.tensor_avoiding(shape, -2.0, 2.0, &[0.0], 0.4);
            Ok(Sample::one(vec![x], move |t| t[0].normalize(p, dim, 1e-12)).tolerance(1e-5))
        },
    },
    Entry {
        name: "cosine_similarity",
        kind: "pointwise",
        sample: |g| {
            let (shape, _, _) = filled(g, 1);
            let dim = g.range(0, shape.rank()) as isize;
            let eps = g.pick(&[1e-8, 100.0]);
            let a = g.tensor_avoiding(shape.clone(), -2.0, 2.0, &[0.0], 0.4);
            let b = g.tensor_avoiding(shape, -2.0, 2.0, &[0.0], 0.4);
            Ok(
                Sample::one(vec![a, b], move |t| t[0].cosine_similarity(&t[1], dim, eps))
                    .tolerance(1e-5),
            )
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, [values.len()])
            .unwrap()
            .requires_grad()
            .unwrap()
    }

    fn gradient(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f64> {
        let x = x.detach().requires_grad().unwrap();
        f(&x).unwrap().sum().unwrap().backward().unwrap();
        x.grad().unwrap().to_vec::<f64>().unwrap()
    }

    /// torch.linalg.vector_norm at its kinks, PyTorch 2.15.
    #[test]
    fn subgradients_of_norms_follow_pytorch() {
        let x = leaf(&[0.0, -3.0, 3.0, 0.0]);
        let at = |p: f64| gradient(&x, |x| x.norm(p, &[], false));
        assert_eq!(at(1.0), [0.0, -1.0, 1.0, 0.0]);
        assert_eq!(at(f64::INFINITY), [0.0, -0.5, 0.5, 0.0]);
        assert_eq!(at(f64::NEG_INFINITY), [0.0; 4]);
        for p in [2.0, 3.0, 1.5, 0.5, -1.0] {
            let g = at(p);
            assert_eq!((g[0], g[3]), (0.0, 0.0), "p = {p}");
            assert!(g.iter().all(|v| v.is_finite()), "p = {p}");
        }
        let zero = leaf(&[0.0, 0.0]);
        for p in [2.0, 3.0, 1.5, 0.5] {
            assert_eq!(
                zero.norm(p, &[], false).unwrap().item::<f64>().unwrap(),
                0.0
            );
            assert_eq!(
                gradient(&zero, |x| x.norm(p, &[], false)),
                [0.0, 0.0],
                "{p}"
            );
        }
        assert_eq!(x.norm(0.0, &[], false).unwrap().item::<f64>().unwrap(), 2.0);
        assert_eq!(
            x.norm(-1.0, &[], false).unwrap().item::<f64>().unwrap(),
            0.0
        );
    }

    #[test]
    fn constant_values_have_no_gradient_of_std() {
        let x = leaf(&[2.0, 2.0, 2.0]);
        assert_eq!(gradient(&x, |x| x.std(&[], 1.0, false)), [0.0; 3]);
        assert!(
            leaf(&[2.0])
                .var(&[], 1.0, false)
                .unwrap()
                .item::<f64>()
                .unwrap()
                .is_nan()
        );
        let i = Tensor::from_vec(vec![1i64, 2], [2]).unwrap();
        assert!(i.var(&[], 1.0, false).is_err() && i.norm(2.0, &[], false).is_err());
    }

    #[test]
    fn logsumexp_of_infinities_stays_defined() {
        let x = leaf(&[f64::NEG_INFINITY, f64::NEG_INFINITY]);
        let y = x.logsumexp(&[0], false).unwrap();
        assert_eq!(y.item::<f64>().unwrap(), f64::NEG_INFINITY);
        assert_eq!(gradient(&x, |x| x.logsumexp(&[0], false)), [0.0, 0.0]);
        let half = leaf(&[f64::NEG_INFINITY, 1.0]);
        assert_eq!(gradient(&half, |x| x.logsumexp(&[0], false)), [0.0, 1.0]);
        let none = Tensor::zeros([2, 0], DType::F64)
            .logsumexp(&[1], false)
            .unwrap();
        assert_eq!(none.to_vec::<f64>().unwrap(), [f64::NEG_INFINITY; 2]);
    }

    #[test]
    fn large_16_bit_values_do_not_overflow() {
        let x = Tensor::full([4], 300.0, DType::F16);
        assert_eq!(
            x.norm(2.0, &[], false)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap()
                .item::<f32>()
                .unwrap(),
            600.0
        );
        assert!(x.norm(f64::NAN, &[], false).is_err());
        assert!(
            Tensor::zeros([0], DType::F32)
                .norm(-1.0, &[], false)
                .is_err()
        );
    }
}
