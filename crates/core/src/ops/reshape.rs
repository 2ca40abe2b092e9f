//! `reshape` and the shape manners built on it: flatten, squeeze, unsqueeze.

use entrenar_base::{Array, Error, Result, Shape};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reshape {
    shape: Shape,
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if self.shape.checked_numel()? != inputs[0].shape.numel() {
            return Err(Error::shape(
                "reshape",
                format!(
                    "a shape of {} elements like {}",
                    inputs[0].shape.numel(),
                    inputs[0].shape
                ),
                &self.shape,
            ));
        }
        Ok(one(Aval::new(self.shape.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let x = inputs[0];
        Ok(one(match x.layout().reshape(&self.shape) {
            Some(_) => x.reshape(self.shape.clone())?,
            None => entrenar_cpu::copy::contiguous(x)?.reshape(self.shape.clone())?,
        }))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Reshape {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, g.reshape(cx.aval(0).shape.clone())?),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// The same elements in row-major order under another shape; a view where strides allow.
    ///
    /// # Errors
    /// When the counts differ.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![1i64, 2, 3, 4], [2, 2])?.reshape([4])?;
    /// assert_eq!(t.dims(), [4]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if *self.shape() == shape {
            return Ok(self.clone());
        }
        apply1(&handle(Reshape { shape }), &[self])
    }

    /// [`Tensor::reshape`] with at most one -1, which takes what is left.
    ///
    /// # Errors
    /// When there are several -1, or the counts cannot agree.
    #[track_caller]
    pub fn view(&self, sizes: &[isize]) -> Result<Tensor> {
        let fail = || {
            Error::shape(
                "view",
                format!("sizes for {} elements with at most one -1", self.numel()),
                format!("{sizes:?}"),
            )
        };
        let known: usize = sizes
            .iter()
            .filter(|&&s| s >= 0)
            .map(|&s| s as usize)
            .product();
        if sizes.iter().any(|&s| s < -1) || sizes.iter().filter(|&&s| s == -1).count() > 1 {
            return Err(fail());
        }
        let free = self.numel().checked_div(known).unwrap_or(0);
        self.reshape(
            sizes
                .iter()
                .map(|&s| if s < 0 { free } else { s as usize })
                .collect::<Shape>(),
        )
        .map_err(|_| fail())
    }

    /// Merges dimensions `start..=end` into one.
    ///
    /// # Errors
    /// When a dimension does not exist or `start > end`.
    #[track_caller]
    pub fn flatten(&self, start: isize, end: isize) -> Result<Tensor> {
        let (a, b) = (
            self.shape().dim("flatten", start)?,
            self.shape().dim("flatten", end)?,
        );
        if self.rank() == 0 {
            return self.reshape([1]);
        }
        if a > b {
            return Err(Error::argument(
                "flatten",
                "start <= end",
                format!("{start} and {end}"),
            ));
        }
        let mut shape: Vec<usize> = self.dims()[..a].to_vec();
        shape.push(self.dims()[a..=b].iter().product());
        shape.extend_from_slice(&self.dims()[b + 1..]);
        self.reshape(shape)
    }

    /// Without the dimension `dim` if its size is 1, unchanged otherwise (PyTorch's rule).
    ///
    /// # Errors
    /// When the dimension does not exist.
    #[track_caller]
    pub fn squeeze(&self, dim: isize) -> Result<Tensor> {
        let d = self.shape().dim("squeeze", dim)?;
        if self.dims().get(d) != Some(&1) {
            return Ok(self.clone());
        }
        let mut shape = self.shape().clone();
        shape.remove(d);
        self.reshape(shape)
    }

    /// Without all dimensions of size 1.
    ///
    /// # Errors
    /// Never.
    #[track_caller]
    pub fn squeeze_all(&self) -> Result<Tensor> {
        self.reshape(
            self.dims()
                .iter()
                .copied()
                .filter(|&d| d != 1)
                .collect::<Shape>(),
        )
    }

    /// With a dimension of size 1 inserted at `dim` (negative counts from the end of the result).
    ///
    /// # Errors
    /// When `dim` lies outside `-rank-1..=rank`.
    #[track_caller]
    pub fn unsqueeze(&self, dim: isize) -> Result<Tensor> {
        let rank = self.rank() as isize;
        if dim < -rank - 1 || dim > rank {
            return Err(Error::index(
                "unsqueeze",
                format!("a dimension in {}..={rank}", -rank - 1),
                dim,
            ));
        }
        let mut shape = self.shape().clone();
        shape.insert(if dim < 0 { dim + rank + 1 } else { dim } as usize, 1);
        self.reshape(shape)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Contiguous;

impl Op for Contiguous {
    fn name(&self) -> &'static str {
        "contiguous"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::copy::contiguous(inputs[0])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Contiguous {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, g.clone()),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// The same values without gaps in memory; itself when they already lie so.
    ///
    /// # Errors
    /// Never for valid tensors.
    #[track_caller]
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.array().is_contiguous() {
            return Ok(self.clone());
        }
        apply1(&handle(Contiguous), &[self])
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "contiguous",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(2..=4);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], |t| {
                t[0].square()?.transpose(0, 1)?.contiguous()
            }))
        },
    },
    Entry {
        name: "reshape",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=4);
            let flat = [shape.numel()];
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].square()?.reshape(flat)
            }))
        },
    },
];
