//! `permute` and `transpose`: reordered dimensions, as views.

use smallvec::SmallVec;

use entrenar_base::{Array, Error, Result};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Permute {
    axes: SmallVec<[usize; 6]>,
}

impl Op for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = &inputs[0].shape;
        let mut seen: SmallVec<[bool; 6]> = SmallVec::from_elem(false, shape.rank());
        let valid = self.axes.len() == shape.rank()
            && self
                .axes
                .iter()
                .all(|&a| a < seen.len() && !std::mem::replace(&mut seen[a], true));
        if !valid {
            return Err(Error::argument(
                "permute",
                format!("a permutation of the dimensions of {shape}"),
                format!("{:?}", self.axes),
            ));
        }
        Ok(one(Aval::new(
            self.axes
                .iter()
                .map(|&a| shape[a])
                .collect::<entrenar_base::Shape>(),
            inputs[0].dtype,
        )))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(inputs[0].permute(&self.axes)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Permute {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let mut inverse: SmallVec<[isize; 6]> = SmallVec::from_elem(0, self.axes.len());
        for (i, &a) in self.axes.iter().enumerate() {
            inverse[a] = i as isize;
        }
        sink.add(0, g.permute(&inverse)?)
    }
}

impl Tensor {
    /// Dimensions reordered: `out[i] = self[axes[i]]`; a view.
    ///
    /// # Errors
    /// When `axes` is not a permutation (negative entries count from the end).
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// assert_eq!(Tensor::zeros([2, 3, 4], DType::F32).permute(&[2, 0, 1])?.dims(), [4, 2, 3]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn permute(&self, axes: &[isize]) -> Result<Tensor> {
        let axes: SmallVec<[usize; 6]> = axes
            .iter()
            .map(|&a| self.shape().dim("permute", a))
            .collect::<Result<_>>()?;
        if axes.iter().copied().eq(0..self.rank()) {
            return Ok(self.clone());
        }
        apply1(&handle(Permute { axes }), &[self])
    }

    /// Two dimensions swapped; a view.
    ///
    /// # Errors
    /// When a dimension does not exist.
    #[track_caller]
    pub fn transpose(&self, a: isize, b: isize) -> Result<Tensor> {
        let (a, b) = (
            self.shape().dim("transpose", a)?,
            self.shape().dim("transpose", b)?,
        );
        if self.rank() == 0 || a == b {
            return Ok(self.clone());
        }
        let mut axes: SmallVec<[usize; 6]> = (0..self.rank()).collect();
        axes.swap(a, b);
        apply1(&handle(Permute { axes }), &[self])
    }

    /// The matrix transpose of a rank-2 tensor (PyTorch's `t`).
    ///
    /// # Errors
    /// When the rank is above 2.
    #[track_caller]
    pub fn t(&self) -> Result<Tensor> {
        match self.rank() {
            0 | 1 => Ok(self.clone()),
            2 => self.transpose(0, 1),
            r => Err(Error::shape(
                "t",
                "a matrix",
                format!("rank {r}, shape {}", self.shape()),
            )),
        }
    }

    /// Moves dimension `source` to position `destination`; the others keep their order.
    ///
    /// # Errors
    /// When a dimension does not exist.
    #[track_caller]
    pub fn movedim(&self, source: isize, destination: isize) -> Result<Tensor> {
        let from = self.shape().dim("movedim", source)?;
        let to = self.shape().dim("movedim", destination)?;
        let mut axes: Vec<isize> = (0..self.rank() as isize)
            .filter(|&a| a != from as isize)
            .collect();
        if self.rank() > 0 {
            axes.insert(to, from as isize);
        }
        self.permute(&axes)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "permute",
    kind: "linear",
    sample: |g| {
        let shape = g.shape(0..=4);
        let rank = shape.rank();
        let turn = if rank > 0 { g.range(0, rank) } else { 0 };
        let axes: Vec<isize> = (0..rank)
            .map(|i| ((i + turn) % rank) as isize)
            .rev()
            .collect();
        Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
            t[0].square()?.permute(&axes)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn the_op_takes_each_dimension_once() {
        let x = Aval::new([2, 3, 4], DType::F32);
        let infer = |axes: &[usize]| {
            let op = Permute {
                axes: SmallVec::from_slice(axes),
            };
            op.infer(&[&x]).ok().map(|out| out[0].shape.to_vec())
        };
        assert_eq!(infer(&[2, 0, 1]), Some(vec![4, 2, 3]));
        for axes in [
            &[0, 1][..],
            &[0, 1, 1],
            &[0, 1, 3],
            &[0, 1, 2, 2],
            &[0, 1, 2, 3],
        ] {
            assert_eq!(infer(axes), None, "{axes:?}");
        }
    }

    #[test]
    fn values_move_with_their_dimensions() {
        let x = Tensor::arange(0.0, 24.0, 1.0, DType::I64).unwrap();
        let x = x.reshape([2, 3, 4]).unwrap();
        let y = x.permute(&[2, 0, 1]).unwrap();
        assert_eq!(
            y.select(0, 1).unwrap().to_vec::<i64>().unwrap(),
            [1, 5, 9, 13, 17, 21]
        );
        let y = x.movedim(0, -1).unwrap();
        assert_eq!(
            y.select(0, 0).unwrap().to_vec::<i64>().unwrap(),
            [0, 12, 1, 13, 2, 14, 3, 15]
        );
        let y = x.transpose(-1, 0).unwrap();
        assert_eq!(
            y.select(0, 3).unwrap().to_vec::<i64>().unwrap(),
            [3, 15, 7, 19, 11, 23]
        );
    }
}
