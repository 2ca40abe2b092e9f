//! `sum` and `mean` over any dimensions. Linear: the transpose is a broadcast.

use smallvec::SmallVec;
use std::sync::{Arc, LazyLock};

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::reduce::{Reduce, reduce, reduce_all};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, OpRef, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

/// Sorted, distinct, non-negative dimensions.
pub(crate) type Dims = SmallVec<[usize; 4]>;

/// Turns a user's list (empty: all) into [`Dims`].
#[track_caller]
pub(crate) fn dims_of(op: &str, shape: &Shape, dims: &[isize]) -> Result<Dims> {
    if dims.is_empty() {
        return Ok((0..shape.rank()).collect());
    }
    let mut out: Dims = dims
        .iter()
        .map(|&d| shape.dim(op, d))
        .collect::<Result<_>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::argument(
            op,
            "each dimension once",
            format!("{dims:?}"),
        ));
    }
    // A scalar accepts dimension 0.
    out.retain(|d| *d < shape.rank());
    Ok(out)
}

/// `shape` with `dims` set to 1.
pub(crate) fn kept_shape(shape: &Shape, dims: &[usize]) -> Shape {
    shape
        .iter()
        .enumerate()
        .map(|(i, &n)| if dims.contains(&i) { 1 } else { n })
        .collect()
}

impl Tensor {
    /// Removes `dims` (all of size 1) unless `keepdim`.
    #[track_caller]
    pub(crate) fn drop_dims(&self, dims: &[usize], keepdim: bool) -> Result<Tensor> {
        if keepdim {
            return Ok(self.clone());
        }
        self.reshape(
            self.dims()
                .iter()
                .enumerate()
                .filter(|(i, _)| !dims.contains(i))
                .map(|(_, &n)| n)
                .collect::<Shape>(),
        )
    }
}

/// Sum over `dims`, which stay as size 1; or (`None`) over everything, to rank 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Sum {
    dims: Option<Dims>,
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let dtype = if inputs[0].dtype.is_float() {
            inputs[0].dtype
        } else {
            DType::I64
        };
        let shape = match &self.dims {
            None => Shape::scalar(),
            Some(dims) => kept_shape(&inputs[0].shape, dims),
        };
        Ok(one(Aval::new(shape, dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(match &self.dims {
            None => reduce_all(Reduce::Sum, inputs[0])?,
            Some(dims) => reduce(Reduce::Sum, inputs[0], dims)?,
        }))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Sum {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, g.broadcast_to(&cx.aval(0).shape)?),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// The sum of all elements, rank 0. Integers and bool sum to i64; 16-bit floats accumulate in
    /// f32.
    ///
    /// # Errors
    /// Never for valid tensors.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// assert_eq!(Tensor::from_vec(vec![1.0f32, 2.0], [2])?.sum()?.item::<f32>()?, 3.0);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn sum(&self) -> Result<Tensor> {
        self.sum_dim(&[], false)
    }

    /// The sum over `dims` (empty: all); they stay as size 1 with `keepdim`.
    ///
    /// # Errors
    /// When a dimension does not exist or is named twice.
    #[track_caller]
    pub fn sum_dim(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        // A rank-0 gradient broadcasts to any shape, so one node does.
        static TOTAL: LazyLock<OpRef> =
            LazyLock::new(|| OpRef::always(Arc::new(Sum { dims: None })));
        if !keepdim && dims.is_empty() {
            return apply1(&TOTAL, &[self]);
        }
        let dims = dims_of("sum", self.shape(), dims)?;
        if !keepdim && dims.len() == self.rank() {
            return apply1(&TOTAL, &[self]);
        }
        let over = Some(dims.clone());
        apply1(&handle(Sum { dims: over }), &[self])?.drop_dims(&dims, keepdim)
    }

    /// The mean of all elements, rank 0.
    ///
    /// # Errors
    /// When the dtype is not a float.
    #[track_caller]
    pub fn mean(&self) -> Result<Tensor> {
        self.mean_dim(&[], false)
    }

    /// The mean over `dims` (empty: all); NaN where there is nothing to average.
    ///
    /// # Errors
    /// When the dtype is not a float, or a dimension does not exist or is named twice.
    #[track_caller]
    pub fn mean_dim(&self, dims: &[isize], keepdim: bool) -> Result<Tensor> {
        if !self.dtype().is_float() {
            return Err(Error::dtype("mean", "a float tensor", self.dtype()));
        }
        let over = dims_of("mean", self.shape(), dims)?;
        let count: usize = over.iter().map(|&d| self.dims()[d]).product();
        // The sum of 16-bit floats may overflow where the mean does not.
        let wide = self.dtype().accumulator();
        let sum = self.to_dtype(wide)?.sum_dim(dims, keepdim)?;
        sum.div_scalar(count as f64)?.to_dtype(self.dtype())
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "sum",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=4);
            let dims = some_dims(g, shape.rank());
            let keep = g.once_in(2);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].square()?.sum_dim(&dims, keep)
            }))
        },
    },
    Entry {
        name: "mean",
        kind: "linear",
        sample: |g| {
            let mut shape = g.shape(0..=4);
            // The mean of nothing is NaN and has no derivative to compare.
            shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
            let dims = some_dims(g, shape.rank());
            let keep = g.once_in(2);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].square()?.mean_dim(&dims, keep)
            }))
        },
    },
];

/// A random set of dimensions for a sample.
pub(crate) fn some_dims(g: &mut crate::registry::Gen, rank: usize) -> Vec<isize> {
    (0..rank as isize).filter(|_| g.once_in(2)).collect()
}
