//! `slice` along one dimension, and `embed`, its transpose (zeros with the slice put back).

use entrenar_base::{Array, DType, Element, Error, Result};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Place, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slice {
    dim: usize,
    start: usize,
    end: usize,
    step: usize,
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let mut shape = inputs[0].shape.clone();
        let size = shape.get(self.dim).copied().unwrap_or(0);
        if self.dim >= shape.rank() || self.start > self.end || self.end > size || self.step == 0 {
            return Err(Error::index(
                "slice",
                format!(
                    "start <= end <= {size} and step >= 1 in dimension {} of {shape}",
                    self.dim
                ),
                format!("{}..{} step {}", self.start, self.end, self.step),
            ));
        }
        shape.dims_mut()[self.dim] = (self.end - self.start).div_ceil(self.step);
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(
            inputs[0].slice(self.dim, self.start, self.end, self.step)?
        ))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Slice {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let size = cx.aval(0).shape[self.dim];
        let op = Embed {
            dim: self.dim,
            start: self.start,
            step: self.step,
            size,
        };
        sink.add_part(0, g.clone(), op)
    }
}

/// Zeros of size `size` along `dim` with the input at `start, start + step, …`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Embed {
    dim: usize,
    start: usize,
    step: usize,
    size: usize,
}

impl Place for Embed {
    fn embed(&self, part: &Tensor) -> Result<Tensor> {
        apply1(&handle(self.clone()), &[part])
    }

    fn add_in_place(&self, target: &mut Array, part: &Array) -> Result<bool> {
        fn add<T: Element + std::ops::AddAssign>(
            at: &Embed,
            target: &mut Array,
            part: &Array,
        ) -> Result<()> {
            let inner: usize = target.dims()[at.dim + 1..].iter().product();
            let (count, size) = (part.dims()[at.dim], target.dims()[at.dim]);
            let dense = entrenar_cpu::copy::contiguous(part)?;
            let (source, out) = (dense.as_slice::<T>()?, target.make_mut::<T>()?);
            if inner == 0 || count == 0 {
                return Ok(());
            }
            for (row, values) in source.chunks_exact(inner).enumerate() {
                let (outer, k) = (row / count, row % count);
                let start = (outer * size + at.start + k * at.step) * inner;
                for (o, v) in out[start..start + inner].iter_mut().zip(values) {
                    *o += *v;
                }
            }
            Ok(())
        }
        if target.dtype() != part.dtype() {
            return Ok(false);
        }
        match part.dtype() {
            DType::F32 => add::<f32>(self, target, part)?,
            DType::F64 => add::<f64>(self, target, part)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "slice_backward"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let mut shape = inputs[0].shape.clone();
        shape.dims_mut()[self.dim] = self.size;
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let rank = inputs[0].rank();
        let (mut starts, mut steps) = (vec![0; rank], vec![1; rank]);
        starts[self.dim] = self.start;
        steps[self.dim] = self.step;
        Ok(one(entrenar_cpu::copy::embed(
            inputs[0],
            &outputs[0].shape,
            &starts,
            &steps,
        )?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Embed {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let count = cx.aval(0).shape[self.dim];
        let end = if count == 0 {
            self.start
        } else {
            self.start + (count - 1) * self.step + 1
        };
        let op = Slice {
            dim: self.dim,
            start: self.start,
            end,
            step: self.step,
        };
        sink.add(0, apply1(&handle(op), &[g])?)
    }
}

impl Tensor {
    /// Indices `start, start + step, …` below `end` of dimension `dim`; a view.
    ///
    /// # Errors
    /// When the range leaves the dimension or `step` is 0.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// let t = Tensor::arange(0.0, 6.0, 1.0, DType::I64)?;
    /// assert_eq!(t.slice(0, 1, 6, 2)?.to_vec::<i64>()?, [1, 3, 5]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn slice(&self, dim: isize, start: usize, end: usize, step: usize) -> Result<Tensor> {
        let dim = self.shape().dim("slice", dim)?;
        if self.dims().get(dim) == Some(&end) && start == 0 && step == 1 {
            return Ok(self.clone());
        }
        apply1(
            &handle(Slice {
                dim,
                start,
                end,
                step,
            }),
            &[self],
        )
    }

    /// `length` indices from `start` along `dim`; a view.
    ///
    /// # Errors
    /// When the range leaves the dimension.
    #[track_caller]
    pub fn narrow(&self, dim: isize, start: usize, length: usize) -> Result<Tensor> {
        self.slice(dim, start, start.saturating_add(length), 1)
    }

    /// Index `index` of dimension `dim`, which disappears.
    ///
    /// # Errors
    /// When the index or the dimension does not exist.
    #[track_caller]
    pub fn select(&self, dim: isize, index: usize) -> Result<Tensor> {
        let d = self.shape().dim("select", dim)?;
        self.slice(dim, index, index.saturating_add(1), 1)?
            .squeeze(d as isize)
    }

    /// Consecutive parts of the given sizes along `dim`.
    ///
    /// # Errors
    /// When the sizes do not add up to the dimension.
    #[track_caller]
    pub fn split(&self, sizes: &[usize], dim: isize) -> Result<Vec<Tensor>> {
        let d = self.shape().dim("split", dim)?;
        let size = self.dims().get(d).copied().unwrap_or(1);
        if sizes.iter().sum::<usize>() != size {
            return Err(Error::argument(
                "split",
                format!("sizes that add up to {size}"),
                format!("{sizes:?}"),
            ));
        }
        let mut at = 0;
        sizes
            .iter()
            .map(|&n| {
                at += n;
                self.narrow(dim, at - n, n)
            })
            .collect()
    }

    /// At most `chunks` equal parts along `dim` (the last may be smaller), as PyTorch divides.
    ///
    /// # Errors
    /// When the dimension does not exist or `chunks` is 0.
    #[track_caller]
    pub fn chunk(&self, chunks: usize, dim: isize) -> Result<Vec<Tensor>> {
        let d = self.shape().dim("chunk", dim)?;
        let size = self.dims().get(d).copied().unwrap_or(1);
        if chunks == 0 {
            return Err(Error::argument("chunk", "at least one part", 0));
        }
        let each = size.div_ceil(chunks).max(1);
        let sizes: Vec<usize> = (0..size.div_ceil(each).max(1))
            .map(|i| each.min(size - i * each))
            .collect();
        self.split(&sizes, dim)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "slice",
    kind: "linear",
    sample: |g| {
        let shape = g.shape(1..=4);
        let dim = g.range(0, shape.rank());
        let end = g.range(0, shape[dim] + 1);
        let start = g.range(0, end + 1);
        let step = g.range(1, 3);
        Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
            t[0].square()?.slice(dim as isize, start, end, step)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;

    /// Gradients of slices add up in place, in every dimension, step and dtype.
    #[test]
    fn parts_are_added_where_they_came_from() {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let x = Tensor::arange(0.0, 24.0, 1.0, dtype).unwrap();
            let x = x.reshape([2, 3, 4]).unwrap().requires_grad().unwrap();
            for (dim, start, end, step) in [
                (0, 1, 2, 1),
                (1, 0, 3, 2),
                (1, 1, 3, 1),
                (2, 1, 4, 2),
                (2, 2, 2, 1),
                (-1, 0, 4, 3),
            ] {
                x.zero_grad();
                let part = x.slice(dim, start, end, step).unwrap();
                // Twice, and the whole once: the parts meet a gradient that is there already.
                let weights = Tensor::arange(1.0, part.numel() as f64 + 1.0, 1.0, dtype).unwrap();
                let weights = weights.reshape(part.shape()).unwrap();
                let sum = x.sum().unwrap();
                let loss = part.mul(&weights).unwrap().sum().unwrap();
                let again = x.slice(dim, start, end, step).unwrap();
                let again = again.mul(&weights).unwrap().sum().unwrap();
                let loss = loss.add(&sum).unwrap().add(&again).unwrap();
                loss.backward().unwrap();
                let mut expected = vec![1.0; 24];
                let index = Tensor::arange(0.0, 24.0, 1.0, DType::I64).unwrap();
                let index = index.reshape([2, 3, 4]).unwrap();
                let places = index.slice(dim, start, end, step).unwrap();
                for (k, at) in places.to_vec::<i64>().unwrap().into_iter().enumerate() {
                    expected[at as usize] += 2.0 * (k as f64 + 1.0);
                }
                let found = x.grad().unwrap().array().to_f64_vec();
                assert_eq!(found, expected, "{dtype} {dim} {start}..{end} by {step}");
            }
        }
    }

    #[test]
    fn only_floats_of_one_dtype_are_added_in_place() {
        let at = Embed {
            dim: 0,
            start: 1,
            step: 2,
            size: 4,
        };
        let target = |dtype| Array::full_as([4, 2], 1.0, dtype);
        let part = |dtype| Array::full_as([2, 2], 5.0, dtype);
        let mut sum = target(DType::F32);
        assert!(at.add_in_place(&mut sum, &part(DType::F32)).unwrap());
        assert_eq!(sum.to_f64_vec(), [1.0, 1.0, 6.0, 6.0, 1.0, 1.0, 6.0, 6.0]);
        let mut sum = target(DType::F64);
        assert!(at.add_in_place(&mut sum, &part(DType::F64)).unwrap());
        assert_eq!(sum.to_f64_vec()[2..4], [6.0, 6.0]);
        assert!(!at.add_in_place(&mut sum, &part(DType::F32)).unwrap());
        let mut sum = target(DType::F16);
        assert!(!at.add_in_place(&mut sum, &part(DType::F16)).unwrap());
        assert_eq!(sum.to_f64_vec(), [1.0; 8]);
        let mut thin = Array::full_as([4, 0], 1.0, DType::F32);
        let none = Array::full_as([2, 0], 1.0, DType::F32);
        assert!(at.add_in_place(&mut thin, &none).unwrap());
    }

    #[test]
    fn the_op_refuses_what_lies_outside() {
        let x = Aval::new([2, 3], DType::F32);
        let infer = |dim, start, end, step| {
            let op = Slice {
                dim,
                start,
                end,
                step,
            };
            op.infer(&[&x]).ok().map(|out| out[0].shape.to_vec())
        };
        assert_eq!(infer(1, 0, 3, 1), Some(vec![2, 3]));
        assert_eq!(infer(1, 1, 3, 2), Some(vec![2, 1]));
        assert_eq!(infer(1, 3, 3, 1), Some(vec![2, 0]));
        for (dim, start, end, step) in [(2, 0, 0, 1), (1, 0, 4, 1), (1, 2, 1, 1), (1, 0, 3, 0)] {
            assert_eq!(infer(dim, start, end, step), None);
        }
    }
}
