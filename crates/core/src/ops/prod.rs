//! Products and running sums: `prod`, `cumsum`, `cumprod`.
//!
//! ∂(Π x)/∂xᵢ is the product of the others, taken as (product before i)·(product after i) and
//! never as Π x / xᵢ, so zeros are no special case. A running product satisfies
//! y\[i\] = x\[i\]·y\[i-1\]; differentiating that gives the recurrence t\[i\] = x\[i\]·t\[i-1\] + dx\[i\]·y\[i-1\],
//! which is again of the form h\[i\] = a\[i\]·h\[i-1\] + b\[i\]. This family is closed under both modes, so
//! all orders are exact and take linear time, zeros or not.

use entrenar_base::{Array, DType, Error, Result};
use entrenar_cpu::reduce::{Reduce, reduce};
use entrenar_cpu::{recurrence, scan};

use super::pad::Padding;
use super::sum::kept_shape;
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Explicit, Few, JvpCx, Linear, Op, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

/// The dtype of sums and products: i64 for integers and bool.
fn summed(dtype: DType) -> DType {
    if dtype.is_float() { dtype } else { DType::I64 }
}

/// Running sums, from the end when `reverse`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CumSum {
    dim: usize,
    reverse: bool,
}

impl Op for CumSum {
    fn name(&self) -> &'static str {
        "cumsum"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let dtype = summed(inputs[0].dtype);
        Ok(one(Aval::new(inputs[0].shape.clone(), dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(scan::cumsum(inputs[0], self.dim, self.reverse)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for CumSum {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let back = CumSum {
            dim: self.dim,
            reverse: !self.reverse,
        };
        sink.add(0, apply1(&handle(back), &[g])?)
    }
}

/// (a, b) → h with h[i] = a[i]·h[i-1] + b[i] along `dim`, h[-1] = 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Recurrence {
    dim: usize,
}

impl Op for Recurrence {
    fn name(&self) -> &'static str {
        "linear_recurrence"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if inputs[0] != inputs[1] {
            return Err(Error::shape(
                "linear_recurrence",
                "operands of one shape and dtype",
                format!("{:?} and {:?}", inputs[0], inputs[1]),
            ));
        }
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let out = recurrence::linear_recurrence(inputs[0], inputs[1], self.dim)?;
        Ok(one(out))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

fn recur(a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    apply1(&handle(Recurrence { dim }), &[a, b])
}

/// `t` moved one step along `dim`, with `fill` at the start.
fn shifted(t: &Tensor, dim: usize, fill: f64) -> Result<Tensor> {
    let n = t.dims()[dim];
    if n == 0 {
        return Ok(t.clone());
    }
    let mut widths = vec![(0, 0); t.rank()];
    widths[dim] = (1, 0);
    t.narrow(dim as isize, 0, n - 1)?
        .pad(&widths, Padding::Constant(fill))
}

/// What arrives at b: λ[i] = g[i] + a[i+1]·λ[i+1], the recurrence run backwards.
fn adjoint(a: &Tensor, g: &Tensor, dim: usize) -> Result<Tensor> {
    let back = [dim as isize];
    let factors = shifted(&a.flip(&back)?, dim, 0.0)?;
    recur(&factors, &g.flip(&back)?, dim)?.flip(&back)
}

impl Explicit for Recurrence {
    fn reads(&self, needs: &[bool]) -> Reads {
        if needs[0] {
            Reads::new(&[0], &[0])
        } else {
            Reads::new(&[0], &[])
        }
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let arriving = adjoint(cx.input(0)?, g, self.dim)?;
        if sink.needs(0) {
            let before = shifted(cx.output(0)?, self.dim, 0.0)?;
            sink.add(0, arriving.mul(&before)?)?;
        }
        sink.add(1, arriving)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let through_a = match &cx.tangents[0] {
            Some(t) => Some(t.mul(&shifted(&cx.outputs[0], self.dim, 0.0)?)?),
            None => None,
        };
        let source = match (through_a, &cx.tangents[1]) {
            (Some(a), Some(b)) => a.add(b)?,
            (Some(a), None) => a,
            (None, Some(b)) => b.clone(),
            (None, None) => return Ok(one(None)),
        };
        Ok(one(Some(recur(cx.inputs[0], &source, self.dim)?)))
    }
}

/// Running products.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CumProd {
    dim: usize,
}

impl Op for CumProd {
    fn name(&self) -> &'static str {
        "cumprod"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let dtype = summed(inputs[0].dtype);
        Ok(one(Aval::new(inputs[0].shape.clone(), dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(scan::cumprod(inputs[0], self.dim)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for CumProd {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[0], &[0])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let before = shifted(cx.output(0)?, self.dim, 1.0)?;
        sink.add(0, adjoint(cx.input(0)?, g, self.dim)?.mul(&before)?)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(one(None));
        };
        let before = shifted(&cx.outputs[0], self.dim, 1.0)?;
        Ok(one(Some(recur(cx.inputs[0], &t.mul(&before)?, self.dim)?)))
    }
}

/// The product along `dim`, which stays as size 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Prod {
    dim: usize,
}

impl Op for Prod {
    fn name(&self) -> &'static str {
        "prod"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = kept_shape(&inputs[0].shape, &[self.dim]);
        Ok(one(Aval::new(shape, summed(inputs[0].dtype))))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(reduce(Reduce::Prod, inputs[0], &[self.dim])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Prod {
    /// For each element the product of the others.
    fn others(&self, x: &Tensor) -> Result<Tensor> {
        let back = [self.dim as isize];
        let running = |t: &Tensor| -> Result<Tensor> {
            let products = apply1(&handle(CumProd { dim: self.dim }), &[t])?;
            shifted(&products, self.dim, 1.0)
        };
        running(x)?.mul(&running(&x.flip(&back)?)?.flip(&back)?)
    }
}

impl Explicit for Prod {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[0], &[])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, self.others(cx.input(0)?)?.mul(g)?),
            None => Ok(()),
        }
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(one(None));
        };
        let terms = self.others(cx.inputs[0])?.mul(t)?;
        Ok(one(Some(terms.sum_dim(&[self.dim as isize], true)?)))
    }
}

impl Tensor {
    /// The product of all elements, rank 0; 1 without elements. Integers and bool multiply to
    /// i64. Gradients are exact where elements are 0.
    ///
    /// # Errors
    /// Never for valid tensors.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![2.0f32, 0.0, 3.0], [3])?.requires_grad()?;
    /// x.prod()?.backward()?;
    /// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [0.0, 6.0, 0.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn prod(&self) -> Result<Tensor> {
        self.reshape([self.numel()])?.prod_dim(0, false)
    }

    /// The product along `dim`, which stays as size 1 with `keepdim`.
    ///
    /// # Errors
    /// When the dimension does not exist.
    #[track_caller]
    pub fn prod_dim(&self, dim: isize, keepdim: bool) -> Result<Tensor> {
        let dim = self.shape().dim("prod", dim)?;
        if self.rank() == 0 {
            return self.to_dtype(summed(self.dtype()));
        }
        apply1(&handle(Prod { dim }), &[self])?.drop_dims(&[dim], keepdim)
    }

    /// Running sums along `dim`. Integers and bool sum to i64; 16-bit floats accumulate in f32.
    ///
    /// # Errors
    /// When the dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2, 3], [3])?;
    /// assert_eq!(x.cumsum(0)?.to_vec::<i64>()?, [1, 3, 6]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn cumsum(&self, dim: isize) -> Result<Tensor> {
        let dim = self.shape().dim("cumsum", dim)?;
        let reverse = false;
        apply1(&handle(CumSum { dim, reverse }), &[self])
    }

    /// Running products along `dim`. Gradients are exact where elements are 0.
    ///
    /// # Errors
    /// When the dimension does not exist.
    #[track_caller]
    pub fn cumprod(&self, dim: isize) -> Result<Tensor> {
        let dim = self.shape().dim("cumprod", dim)?;
        if self.rank() == 0 {
            return self.to_dtype(summed(self.dtype()));
        }
        apply1(&handle(CumProd { dim }), &[self])
    }
}

/// Factors around 1, some of them exactly 0.
fn factors(g: &mut Gen, ranks: std::ops::RangeInclusive<usize>) -> Tensor {
    let shape = g.shape(ranks);
    let x = g.tensor(shape, -1.5, 1.5);
    let zeros = g.pick(&[0.0, 0.0, 0.4]);
    let kept: Vec<f64> = x
        .to_vec::<f64>()
        .expect("f64")
        .into_iter()
        .map(|v| if v.abs() < zeros { 0.0 } else { v })
        .collect();
    Tensor::from_vec(kept, x.shape()).expect("counted")
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "prod",
        kind: "explicit",
        sample: |g| {
            let x = factors(g, 0..=3);
            if g.once_in(3) {
                return Ok(Sample::one(vec![x], |t| t[0].prod()));
            }
            let dim = g.range(0, x.rank().max(1)) as isize;
            let keep = g.once_in(2);
            Ok(Sample::one(vec![x], move |t| t[0].prod_dim(dim, keep)))
        },
    },
    Entry {
        name: "cumsum",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=4);
            let dim = g.range(0, shape.rank().max(1)) as isize;
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.cumsum(dim)?.square()
            }))
        },
    },
    Entry {
        name: "cumprod",
        kind: "explicit",
        sample: |g| {
            let x = factors(g, 0..=3);
            let dim = g.range(0, x.rank().max(1)) as isize;
            Ok(Sample::one(vec![x], move |t| t[0].cumprod(dim)))
        },
    },
    Entry {
        name: "linear_recurrence",
        kind: "explicit",
        sample: |g| {
            let shape = g.shape(1..=3);
            let dim = g.range(0, shape.rank());
            let inputs = vec![
                g.tensor(shape.clone(), -1.5, 1.5),
                g.tensor(shape, -2.0, 2.0),
            ];
            Ok(Sample::one(inputs, move |t| recur(&t[0], &t[1], dim)))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::hessian;

    #[test]
    fn second_derivatives_of_a_product_with_zeros_are_exact() {
        for values in [[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 4.0]] {
            let x = Tensor::from_slice(&values, [3]).unwrap();
            let h = hessian(|t| t.prod(), &x).unwrap();
            let [a, b, c] = values;
            let want = [0.0, c, b, c, 0.0, a, b, a, 0.0];
            assert_eq!(h.to_vec::<f64>().unwrap(), want, "{values:?}");
        }
    }

    #[test]
    fn integers_and_empty_tensors_follow_pytorch() {
        let x = Tensor::from_vec(vec![true, true, false], [3]).unwrap();
        assert_eq!(x.cumsum(0).unwrap().to_vec::<i64>().unwrap(), [1, 2, 2]);
        assert_eq!(x.cumprod(0).unwrap().to_vec::<i64>().unwrap(), [1, 1, 0]);
        let none = Tensor::zeros([2, 0], DType::F32);
        assert_eq!(none.prod().unwrap().item::<f32>().unwrap(), 1.0);
        assert_eq!(
            none.prod_dim(1, false).unwrap().to_vec::<f32>().unwrap(),
            [1.0; 2]
        );
        assert_eq!(none.cumprod(1).unwrap().dims(), [2, 0]);
        assert!(none.cumsum(2).is_err() && none.prod_dim(-3, true).is_err());
    }

    #[test]
    fn recurrences_take_operands_alike() {
        let a = Aval::new([2, 3], DType::F32);
        let op = Recurrence { dim: 1 };
        assert_eq!(op.infer(&[&a, &a]).unwrap()[0], a);
        assert!(op.infer(&[&a, &Aval::new([2, 3], DType::F64)]).is_err());
        assert!(op.infer(&[&a, &Aval::new([3], DType::F32)]).is_err());
    }

    #[test]
    fn running_values_follow_their_definition() {
        let x = Tensor::from_vec(vec![2.0f64, 3.0, -1.0, 0.0, 5.0, 2.0], [2, 3]).unwrap();
        let list = |t: Result<Tensor>| t.unwrap().to_vec::<f64>().unwrap();
        assert_eq!(list(x.cumsum(1)), [2.0, 5.0, 4.0, 0.0, 5.0, 7.0]);
        assert_eq!(list(x.cumsum(0)), [2.0, 3.0, -1.0, 2.0, 8.0, 1.0]);
        assert_eq!(list(x.cumprod(1)), [2.0, 6.0, -6.0, 0.0, 0.0, 0.0]);
        assert_eq!(list(x.prod_dim(0, false)), [0.0, 15.0, -2.0]);
        assert_eq!(list(x.prod()), [0.0]);
        let b = Tensor::ones([2, 3], DType::F64);
        assert_eq!(list(recur(&x, &b, 1)), [1.0, 4.0, -3.0, 1.0, 6.0, 13.0]);
        let whole = Tensor::from_vec(vec![3u8, 100, 2], [3]).unwrap();
        assert_eq!(
            whole.cumsum(0).unwrap().to_vec::<i64>().unwrap(),
            [3, 103, 105]
        );
        assert_eq!(whole.prod().unwrap().to_vec::<i64>().unwrap(), [600]);
        assert_eq!(Tensor::scalar(7u8).cumprod(0).unwrap().dtype(), DType::I64);
    }
}
