//! `concat` (PyTorch's `cat`) and `stack`.

use entrenar_base::{Array, DType, Error, Result};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Concat {
    dim: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let mut shape = inputs[0].shape.clone();
        let mut total = 0;
        for a in inputs {
            let fits = a.shape.rank() == shape.rank()
                && self.dim < shape.rank()
                && (0..shape.rank()).all(|d| d == self.dim || a.shape[d] == shape[d]);
            if !fits {
                return Err(Error::shape(
                    "concat",
                    format!("shapes that agree outside dimension {}", self.dim),
                    format!("{} and {}", inputs[0].shape, a.shape),
                ));
            }
            total += a.shape[self.dim];
        }
        shape.dims_mut()[self.dim] = total;
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::copy::concat(inputs, self.dim)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Concat {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let mut at = 0;
        for i in 0..cx.arity() {
            let n = cx.aval(i).shape[self.dim];
            if sink.needs(i) {
                sink.add(i, g.narrow(self.dim as isize, at, n)?)?;
            }
            at += n;
        }
        Ok(())
    }
}

impl Tensor {
    /// Joins tensors along an existing dimension. Dtypes are promoted; empty rank-1 tensors are
    /// skipped, as in PyTorch.
    ///
    /// # Errors
    /// When the list is empty, there is no dimension `dim`, or shapes differ outside it.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![1i64, 2], [2])?;
    /// assert_eq!(Tensor::concat(&[&a, &a], 0)?.to_vec::<i64>()?, [1, 2, 1, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn concat(tensors: &[&Tensor], dim: isize) -> Result<Tensor> {
        let Some(first) = tensors.first() else {
            return Err(Error::argument("concat", "at least one tensor", "none"));
        };
        let dtype = tensors
            .iter()
            .fold(DType::Bool, |d, t| d.promote(t.dtype()));
        let skip = |t: &Tensor| t.rank() == 1 && t.numel() == 0;
        let kept: Vec<Tensor> = tensors
            .iter()
            .filter(|t| !skip(t))
            .map(|t| t.to_dtype(dtype))
            .collect::<Result<_>>()?;
        let Some(joined) = kept.first() else {
            return first.to_dtype(dtype);
        };
        if joined.rank() == 0 {
            return Err(Error::shape(
                "concat",
                "tensors of rank 1 or more",
                joined.shape(),
            ));
        }
        let dim = joined.shape().dim("concat", dim)?;
        if kept.len() == 1 {
            return Ok(joined.clone());
        }
        let refs: Vec<&Tensor> = kept.iter().collect();
        apply1(&handle(Concat { dim }), &refs)
    }

    /// Joins tensors of equal shape along a new dimension.
    ///
    /// # Errors
    /// When the list is empty or shapes differ.
    #[track_caller]
    pub fn stack(tensors: &[&Tensor], dim: isize) -> Result<Tensor> {
        let parts: Vec<Tensor> = tensors
            .iter()
            .map(|t| t.unsqueeze(dim))
            .collect::<Result<_>>()?;
        let Some(first) = parts.first() else {
            return Err(Error::argument("stack", "at least one tensor", "none"));
        };
        if let Some(other) = tensors.iter().find(|t| t.shape() != tensors[0].shape()) {
            return Err(Error::shape(
                "stack",
                "equal shapes",
                format!("{} and {}", tensors[0].shape(), other.shape()),
            ));
        }
        let dim = if dim < 0 {
            dim + first.rank() as isize
        } else {
            dim
        };
        let refs: Vec<&Tensor> = parts.iter().collect();
        Self::concat(&refs, dim)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "concat",
    kind: "linear",
    sample: |g| {
        let shape = g.shape(1..=4);
        let dim = g.range(0, shape.rank());
        let count = g.range(1, 4);
        let parts = (0..count)
            .map(|_| {
                let mut s = shape.clone();
                s.dims_mut()[dim] = g.range(0, 4);
                g.tensor(s, -2.0, 2.0)
            })
            .collect();
        Ok(Sample::one(parts, move |t| {
            let squares: Vec<Tensor> = t.iter().map(Tensor::square).collect::<Result<_>>()?;
            let refs: Vec<&Tensor> = squares.iter().collect();
            Tensor::concat(&refs, dim as isize)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;

    /// More inputs than a word has bits.
    #[test]
    fn many_parts_can_be_joined_and_differentiated() {
        let parts: Vec<Tensor> = (0..70)
            .map(|i| {
                Tensor::full([1], f64::from(i), DType::F64)
                    .requires_grad()
                    .unwrap()
            })
            .collect();
        let refs: Vec<&Tensor> = parts.iter().collect();
        let y = Tensor::concat(&refs, 0).unwrap().square().unwrap();
        y.sum().unwrap().backward().unwrap();
        for (i, part) in parts.iter().enumerate() {
            let found = part.grad().unwrap().item::<f64>().unwrap();
            assert_eq!(found, 2.0 * i as f64);
        }
    }

    #[test]
    fn joining_one_is_itself() {
        let x = Tensor::from_vec(vec![1.0f32, 2.0], [2])
            .unwrap()
            .requires_grad()
            .unwrap();
        let none = Tensor::zeros([0], DType::F32);
        assert!(Tensor::concat(&[&x], 0).unwrap().is_leaf());
        assert!(Tensor::concat(&[&none, &x], 0).unwrap().is_leaf());
        let empty = Tensor::concat(&[&none, &Tensor::zeros([0], DType::F64)], 0).unwrap();
        assert_eq!((empty.dims(), empty.dtype()), (&[0][..], DType::F64));
        let joined = Tensor::concat(&[&x, &Tensor::ones([1], DType::F64)], 0).unwrap();
        assert_eq!(joined.to_vec::<f64>().unwrap(), [1.0, 2.0, 1.0]);
    }

    /// As in PyTorch, where only a tensor that is skipped has every dimension.
    #[test]
    fn joining_one_needs_the_dimension_too() {
        let (x, none) = (
            Tensor::ones([2, 3], DType::F32),
            Tensor::zeros([0], DType::F32),
        );
        for parts in [&[&x][..], &[&none, &x]] {
            assert!(Tensor::concat(parts, -2).is_ok());
            let message = Tensor::concat(parts, 2).unwrap_err().to_string();
            assert!(message.contains("a dimension in -2..2"), "{message}");
        }
        let scalar = Tensor::scalar(1.0f32);
        assert!(Tensor::concat(&[&scalar], 0).is_err());
        assert!(Tensor::concat(&[&none], 1).is_ok());
    }
}
