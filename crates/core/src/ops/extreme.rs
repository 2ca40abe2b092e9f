//! Largest and smallest elements: `amax`, `amin`, `max_dim`, `min_dim`, `argmax`, `argmin`.
//!
//! amax: y = max x over dimensions; the gradient is shared equally among the ties. max_dim gives
//! it to the chosen element alone, the first of the ties. A NaN beats everything, as in PyTorch.

use entrenar_base::{Array, DType, Error, Result};
use entrenar_cpu::reduce::{Reduce, arg_reduce, reduce};

use super::sum::{Dims, dims_of, kept_shape, some_dims};
use super::where_::constant;
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

/// The extreme over `dims`, which stay as size 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Extreme {
    dims: Dims,
    largest: bool,
}

impl Op for Extreme {
    fn name(&self) -> &'static str {
        if self.largest { "amax" } else { "amin" }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = &inputs[0].shape;
        if self.dims.iter().any(|&d| shape[d] == 0) {
            return Err(Error::shape(
                self.name(),
                "at least one element to choose from",
                shape,
            ));
        }
        Ok(one(Aval::new(
            kept_shape(shape, &self.dims),
            inputs[0].dtype,
        )))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let kind = if self.largest {
            Reduce::Max
        } else {
            Reduce::Min
        };
        Ok(one(reduce(kind, inputs[0], &self.dims)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Extreme {
    /// Where the extreme is met, and how often, in `dtype`.
    fn ties(&self, x: &Tensor, y: &Tensor, dtype: DType) -> Result<(Tensor, Tensor)> {
        let met = x.detach().eq(&y.detach())?;
        let dims: Vec<isize> = self.dims.iter().map(|&d| d as isize).collect();
        let count = if dims.is_empty() {
            // A scalar: an empty list would mean all dimensions, here the same.
            met.to_dtype(dtype)?
        } else {
            met.sum_dim(&dims, true)?.to_dtype(dtype)?
        };
        Ok((met, count))
    }
}

impl Explicit for Extreme {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[0], &[0])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let (met, count) = self.ties(cx.input(0)?, cx.output(0)?, g.dtype())?;
        let zero = constant(met.shape(), 0.0, g.dtype())?;
        sink.add(0, Tensor::where_(&met, &g.div(&count)?, &zero)?)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let Some(t) = &cx.tangents[0] else {
            return Ok(one(None));
        };
        let (met, count) = self.ties(cx.inputs[0], &cx.outputs[0], t.dtype())?;
        let zero = constant(met.shape(), 0.0, t.dtype())?;
        let chosen = Tensor::where_(&met, t, &zero)?;
        Ok(one(Some(chosen.sum_to(count.shape())?.div(&count)?)))
    }
}

/// The position of the extreme along `dim`, which stays as size 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ArgExtreme {
    dim: usize,
    largest: bool,
}

impl Op for ArgExtreme {
    fn name(&self) -> &'static str {
        if self.largest { "argmax" } else { "argmin" }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = &inputs[0].shape;
        if shape.get(self.dim).is_none_or(|&n| n == 0) {
            return Err(Error::shape(
                self.name(),
                format!("at least one element along dimension {}", self.dim),
                shape,
            ));
        }
        Ok(one(Aval::new(kept_shape(shape, &[self.dim]), DType::I64)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(arg_reduce(self.largest, inputs[0], self.dim)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Zero
    }
}

impl Tensor {
    #[track_caller]
    fn extreme(&self, dims: &[isize], keepdim: bool, largest: bool) -> Result<Tensor> {
        let name = if largest { "amax" } else { "amin" };
        let dims = dims_of(name, self.shape(), dims)?;
        let op = Extreme {
            dims: dims.clone(),
            largest,
        };
        apply1(&handle(op), &[self])?.drop_dims(&dims, keepdim)
    }

    #[track_caller]
    fn arg_extreme(&self, dim: Option<isize>, keepdim: bool, largest: bool) -> Result<Tensor> {
        let name = if largest { "argmax" } else { "argmin" };
        let at = self.shape().dim(name, dim.unwrap_or(0))?;
        if dim.is_none() || self.rank() == 0 {
            let flat = self.reshape([self.numel()])?;
            let found = apply1(&handle(ArgExtreme { dim: 0, largest }), &[&flat])?;
            let rank = if keepdim { self.rank() } else { 0 };
            return found.reshape(vec![1; rank]);
        }
        apply1(&handle(ArgExtreme { dim: at, largest }), &[self])?.drop_dims(&[at], keepdim)
    }

    #[track_caller]
    fn extreme_dim(&self, dim: isize, keepdim: bool, largest: bool) -> Result<(Tensor, Tensor)> {
        let index = self.arg_extreme(Some(dim), true, largest)?;
        let values = self.gather(dim, &index)?;
        let at = [self.shape().dim("max", dim)?];
        Ok((
            values.drop_dims(&at, keepdim)?,
            index.drop_dims(&at, keepdim)?,
        ))
    }

    /// The largest elements over `dims` (empty: all), which stay as size 1 with `keepdim`. Ties
    /// share the gradient equally.
    ///
    /// # Errors
    /// When there is nothing to choose from, or a dimension does not exist or is named twice.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 5.0, 3.0, 2.0], [2, 2])?;
    /// assert_eq!(x.amax(&[1], false)?.to_vec::<f32>()?, [5.0, 3.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn amax(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        self.extreme(dims, keepdim, true)
    }

    /// The smallest elements over `dims`. Everything else as [`Tensor::amax`].
    ///
    /// # Errors
    /// As [`Tensor::amax`].
    #[track_caller]
    pub fn amin(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        self.extreme(dims, keepdim, false)
    }

    /// The largest of all elements, rank 0. Ties share the gradient equally.
    ///
    /// # Errors
    /// When there is no element.
    #[track_caller]
    pub fn max(&self) -> Result<Tensor> {
        self.amax(&[], false)
    }

    /// The smallest of all elements, rank 0. Ties share the gradient equally.
    ///
    /// # Errors
    /// When there is no element.
    #[track_caller]
    pub fn min(&self) -> Result<Tensor> {
        self.amin(&[], false)
    }

    /// The largest elements along `dim` and where they are (i64, the first of ties). The gradient
    /// goes to the chosen element alone.
    ///
    /// # Errors
    /// When the dimension does not exist or is empty.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 5.0, 3.0, 2.0], [2, 2])?;
    /// let (values, indices) = x.max_dim(1, false)?;
    /// assert_eq!(values.to_vec::<f32>()?, [5.0, 3.0]);
    /// assert_eq!(indices.to_vec::<i64>()?, [1, 0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn max_dim(&self, dim: isize, keepdim: bool) -> Result<(Tensor, Tensor)> {
        self.extreme_dim(dim, keepdim, true)
    }

    /// The smallest elements along `dim` and where they are. Everything else as
    /// [`Tensor::max_dim`].
    ///
    /// # Errors
    /// As [`Tensor::max_dim`].
    #[track_caller]
    pub fn min_dim(&self, dim: isize, keepdim: bool) -> Result<(Tensor, Tensor)> {
        self.extreme_dim(dim, keepdim, false)
    }

    /// The position of the largest element along `dim`, or in the flattened tensor (i64). The
    /// first of ties, or the first NaN.
    ///
    /// # Errors
    /// When the dimension does not exist or there is nothing to choose from.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 5.0, 3.0, 2.0], [2, 2])?;
    /// assert_eq!(x.argmax(None, false)?.item::<i64>()?, 1);
    /// assert_eq!(x.argmax(Some(0), false)?.to_vec::<i64>()?, [1, 0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn argmax(&self, dim: Option<isize>, keepdim: bool) -> Result<Tensor> {
        self.arg_extreme(dim, keepdim, true)
    }

    /// The position of the smallest element. Everything else as [`Tensor::argmax`].
    ///
    /// # Errors
    /// As [`Tensor::argmax`].
    #[track_caller]
    pub fn argmin(&self, dim: Option<isize>, keepdim: bool) -> Result<Tensor> {
        self.arg_extreme(dim, keepdim, false)
    }
}

/// Distinct values in a shape without empty dimensions, so that every extreme exists.
fn filled(g: &mut Gen) -> Tensor {
    let mut shape = g.shape(0..=4);
    shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
    g.tensor_distinct(shape)
}

fn reduced(g: &mut Gen, largest: bool) -> Sample {
    let x = filled(g);
    let dims = some_dims(g, x.rank());
    let keep = g.once_in(2);
    Sample::one(vec![x], move |t| {
        t[0].extreme(&dims, keep, largest)?.square()
    })
}

fn chosen(g: &mut Gen, largest: bool) -> Sample {
    let x = filled(g);
    let dim = g.range(0, x.rank().max(1)) as isize;
    let keep = g.once_in(2);
    Sample::new(vec![x], move |t| {
        let (values, index) = t[0].extreme_dim(dim, keep, largest)?;
        Ok(vec![values.square()?, index])
    })
}

fn position(g: &mut Gen, largest: bool) -> Sample {
    let x = filled(g);
    let at = g.range(0, x.rank().max(1)) as isize;
    let dim = (!g.once_in(3)).then_some(at);
    let keep = g.once_in(2);
    Sample::one(vec![x], move |t| t[0].arg_extreme(dim, keep, largest)).order(0)
}

macro_rules! entry {
    ($name:literal, $kind:literal, $sample:ident, $largest:literal) => {
        Entry {
            name: $name,
            kind: $kind,
            sample: |g| Ok($sample(g, $largest)),
        }
    };
}

pub(crate) const ENTRIES: &[Entry] = &[
    entry!("amax", "explicit", reduced, true),
    entry!("amin", "explicit", reduced, false),
    entry!("max_dim", "linear", chosen, true),
    entry!("min_dim", "linear", chosen, false),
    entry!("argmax", "zero", position, true),
    entry!("argmin", "zero", position, false),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(values: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape.to_vec())
            .unwrap()
            .requires_grad()
            .unwrap()
    }

    fn gradient(x: &Tensor, y: &Tensor) -> Vec<f64> {
        x.zero_grad();
        y.sum().unwrap().backward().unwrap();
        x.grad().unwrap().to_vec::<f64>().unwrap()
    }

    /// Values from PyTorch 2.15.
    #[test]
    fn ties_share_in_amax_and_go_to_the_first_in_max_dim() {
        let x = leaf(&[2.0, 2.0, 1.0, 0.0, 3.0, 3.0], &[2, 3]);
        let y = x.amax(&[1], false).unwrap();
        assert_eq!(gradient(&x, &y), [0.5, 0.5, 0.0, 0.0, 0.5, 0.5]);
        let (y, index) = x.max_dim(1, true).unwrap();
        assert_eq!(index.to_vec::<i64>().unwrap(), [0, 1]);
        assert_eq!(gradient(&x, &y), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(
            gradient(&x, &x.max().unwrap()),
            [0.0, 0.0, 0.0, 0.0, 0.5, 0.5]
        );
        // Forward mode answers the same question.
        let t = Tensor::from_vec(vec![1.0f64, 3.0, 5.0, 7.0, 9.0, 1.0], [2, 3]).unwrap();
        let (_, pushed) =
            crate::autograd::jvp(|t| Ok(vec![t[0].amax(&[1], false)?]), &[&x.detach()], &[&t])
                .unwrap();
        assert_eq!(pushed[0].to_vec::<f64>().unwrap(), [2.0, 5.0]);
    }

    #[test]
    fn nan_wins_and_scalars_work() {
        let x = leaf(&[1.0, f64::NAN, 3.0], &[3]);
        assert!(x.amax(&[], false).unwrap().item::<f64>().unwrap().is_nan());
        assert_eq!(x.argmin(None, true).unwrap().dims(), [1]);
        assert_eq!(x.argmin(None, false).unwrap().item::<i64>().unwrap(), 1);
        let s = leaf(&[4.0], &[]);
        assert_eq!(s.argmax(Some(-1), false).unwrap().item::<i64>().unwrap(), 0);
        let (v, i) = s.max_dim(0, false).unwrap();
        assert_eq!((v.rank(), i.rank()), (0, 0));
        assert_eq!(gradient(&s, &s.amax(&[0], false).unwrap()), [1.0]);
    }

    #[test]
    fn nothing_to_choose_from_is_an_error() {
        let x = Tensor::zeros([2, 0], DType::F32);
        let say = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert!(say(x.amax(&[1], false)).contains("at least one element"));
        assert!(say(x.argmax(None, false)).contains("at least one element"));
        assert!(x.max_dim(1, false).is_err() && x.max().is_err());
        assert_eq!(x.amax(&[0], false).unwrap().dims(), [0]);
        assert!(x.amax(&[2], false).is_err());
    }
}
