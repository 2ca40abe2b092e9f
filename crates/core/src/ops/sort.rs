//! Order along a dimension: `sort`, `argsort`, `topk`, `cummax`, `cummin`; `unique`.
//!
//! Each gives values and the indices they came from; values = gather(x, indices), so the gradient
//! goes back to the chosen elements and ties are settled by the choice. Sorting is stable; NaN is
//! larger than every number, as in PyTorch.

use entrenar_base::{Array, DType, Error, Result};
use entrenar_cpu::{scan, sort as kernel};
use smallvec::smallvec;

use super::where_::constant;
use crate::Tensor;
use crate::apply::{apply, handle};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Order {
    Sort { descending: bool },
    TopK { k: usize, largest: bool },
    CumMax,
    CumMin,
}

/// x → (values, indices i64).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Chosen {
    dim: usize,
    order: Order,
}

impl Op for Chosen {
    fn name(&self) -> &'static str {
        match self.order {
            Order::Sort { .. } => "sort",
            Order::TopK { .. } => "topk",
            Order::CumMax => "cummax",
            Order::CumMin => "cummin",
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let mut shape = inputs[0].shape.clone();
        if let Order::TopK { k, .. } = self.order {
            let n = shape.get(self.dim).copied().unwrap_or(1);
            if k > n || (shape.rank() == 0 && k == 0) {
                return Err(Error::argument(
                    "topk",
                    format!(
                        "k of at most {n}, the size of dimension {} of {shape}",
                        self.dim
                    ),
                    k,
                ));
            }
            if shape.rank() > 0 {
                shape.dims_mut()[self.dim] = k;
            }
        }
        let indices = Aval::new(shape.clone(), DType::I64);
        Ok(smallvec![Aval::new(shape, inputs[0].dtype), indices])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (x, dim) = (inputs[0], self.dim);
        let (values, indices) = match self.order {
            Order::Sort { descending } => kernel::sort(x, dim, descending)?,
            Order::TopK { k, largest } => kernel::topk(x, k, dim, largest, true)?,
            Order::CumMax => scan::cummax(x, dim)?,
            Order::CumMin => scan::cummin(x, dim)?,
        };
        Ok(smallvec![values, indices])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for Chosen {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::new(&[], &[1])
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let zeros = constant(&cx.aval(0).shape, 0.0, g.dtype())?;
        sink.add(0, zeros.scatter_add(self.dim as isize, cx.output(1)?, g)?)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let pushed = match &cx.tangents[0] {
            Some(t) => Some(t.gather(self.dim as isize, &cx.outputs[1])?),
            None => None,
        };
        Ok(smallvec![pushed, None])
    }
}

impl Tensor {
    #[track_caller]
    fn chosen(&self, dim: isize, order: Order, name: &str) -> Result<(Tensor, Tensor)> {
        let dim = self.shape().dim(name, dim)?;
        let mut both = apply(&handle(Chosen { dim, order }), &[self])?.into_iter();
        match (both.next(), both.next()) {
            (Some(values), Some(indices)) => Ok((values, indices)),
            _ => Err(Error::other(format!("[{name}] lost an output"))),
        }
    }

    /// The elements along `dim` in order, and where each came from (i64). Stable; NaN comes last,
    /// or first when `descending`.
    ///
    /// # Errors
    /// When the dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![3.0f32, 1.0, 2.0], [3])?;
    /// let (values, indices) = x.sort(0, true)?;
    /// assert_eq!(values.to_vec::<f32>()?, [3.0, 2.0, 1.0]);
    /// assert_eq!(indices.to_vec::<i64>()?, [0, 2, 1]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn sort(&self, dim: isize, descending: bool) -> Result<(Tensor, Tensor)> {
        self.chosen(dim, Order::Sort { descending }, "sort")
    }

    /// The indices that sort along `dim` (i64).
    ///
    /// # Errors
    /// When the dimension does not exist.
    #[track_caller]
    pub fn argsort(&self, dim: isize, descending: bool) -> Result<Tensor> {
        Ok(self.detach().sort(dim, descending)?.1)
    }

    /// The `k` largest (or smallest) elements along `dim`, in order, and where they are (i64).
    /// Among equals the first ones count.
    ///
    /// # Errors
    /// When the dimension does not exist or `k` exceeds its size.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f32, 5.0, 3.0], [3])?;
    /// let (values, indices) = x.topk(2, 0, true)?;
    /// assert_eq!(values.to_vec::<f32>()?, [5.0, 3.0]);
    /// assert_eq!(indices.to_vec::<i64>()?, [1, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn topk(&self, k: usize, dim: isize, largest: bool) -> Result<(Tensor, Tensor)> {
        self.chosen(dim, Order::TopK { k, largest }, "topk")
    }

    /// Running maxima along `dim` and where they were last met (i64). The gradient goes there.
    ///
    /// # Errors
    /// When the dimension does not exist or the dtype is bool.
    #[track_caller]
    pub fn cummax(&self, dim: isize) -> Result<(Tensor, Tensor)> {
        self.chosen(dim, Order::CumMax, "cummax")
    }

    /// Running minima along `dim` and where they were last met (i64). The gradient goes there.
    ///
    /// # Errors
    /// When the dimension does not exist or the dtype is bool.
    #[track_caller]
    pub fn cummin(&self, dim: isize) -> Result<(Tensor, Tensor)> {
        self.chosen(dim, Order::CumMin, "cummin")
    }

    /// The different elements of the whole tensor in ascending order `[K]`, which of them each
    /// element is (i64, this tensor's shape), and how often each is met (i64 `[K]`). NaN counts as
    /// one value. Nothing is differentiated: K depends on the numbers.
    ///
    /// # Errors
    /// When there is no memory for the result.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![2.0f32, 0.5, 2.0], [3])?;
    /// let (values, places, counts) = x.unique()?;
    /// assert_eq!(values.to_vec::<f32>()?, [0.5, 2.0]);
    /// assert_eq!(places.to_vec::<i64>()?, [1, 0, 1]);
    /// assert_eq!(counts.to_vec::<i64>()?, [1, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn unique(&self) -> Result<(Tensor, Tensor, Tensor)> {
        let (values, places, counts) = kernel::unique(self.array())?;
        Ok((values.into(), places.into(), counts.into()))
    }
}

fn ordered(g: &mut Gen, order: impl Fn(&mut Gen, usize) -> Order) -> Result<Sample> {
    let shape = g.shape(0..=3);
    let dim = g.range(0, shape.rank().max(1));
    let order = order(g, shape.get(dim).copied().unwrap_or(1));
    Ok(Sample::new(vec![g.tensor_distinct(shape)], move |t| {
        let (values, indices) = t[0].chosen(dim as isize, order, "sample")?;
        Ok(vec![values.square()?, indices])
    }))
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "sort",
        kind: "explicit",
        sample: |g| {
            ordered(g, |g, _| Order::Sort {
                descending: g.once_in(2),
            })
        },
    },
    Entry {
        name: "argsort",
        kind: "zero",
        sample: |g| {
            let shape = g.shape(1..=3);
            let dim = g.range(0, shape.rank()) as isize;
            let x = g.tensor_distinct(shape);
            Ok(Sample::one(vec![x], move |t| t[0].argsort(dim, true)).order(0))
        },
    },
    Entry {
        name: "topk",
        kind: "explicit",
        sample: |g| {
            ordered(g, |g, n| Order::TopK {
                k: g.range(n.min(1), n + 1),
                largest: g.once_in(2),
            })
        },
    },
    Entry {
        name: "cummax",
        kind: "explicit",
        sample: |g| ordered(g, |_, _| Order::CumMax),
    },
    Entry {
        name: "cummin",
        kind: "explicit",
        sample: |g| ordered(g, |_, _| Order::CumMin),
    },
    Entry {
        name: "unique",
        kind: "zero",
        sample: |g| {
            let shape = g.shape(0..=3);
            let x = g.indices(shape, 5);
            Ok(Sample::new(vec![x], |t| {
                let (values, places, counts) = t[0].unique()?;
                Ok(vec![values, places, counts])
            })
            .order(0))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_return_to_where_values_came_from() {
        let x = Tensor::from_vec(vec![3.0f64, 1.0, 3.0, f64::NAN], [4])
            .unwrap()
            .requires_grad()
            .unwrap();
        let weights = Tensor::from_vec(vec![1.0f64, 10.0, 100.0, 1000.0], [4]).unwrap();
        let (values, indices) = x.sort(0, false).unwrap();
        assert_eq!(indices.to_vec::<i64>().unwrap(), [1, 0, 2, 3]);
        values
            .mul(&weights)
            .unwrap()
            .sum()
            .unwrap()
            .backward()
            .unwrap();
        assert_eq!(
            x.grad().unwrap().to_vec::<f64>().unwrap(),
            [10.0, 1.0, 100.0, 1000.0]
        );
        x.zero_grad();
        let y = x.narrow(0, 0, 3).unwrap();
        y.cummax(0).unwrap().0.sum().unwrap().backward().unwrap();
        assert_eq!(
            x.grad().unwrap().to_vec::<f64>().unwrap(),
            [2.0, 0.0, 1.0, 0.0]
        );
    }

    #[test]
    fn unique_elements_are_placed_and_counted() {
        let nan = f64::NAN;
        let x = Tensor::from_vec(vec![nan, 1.0, -0.0, 1.0, nan, 0.0], [2, 3]).unwrap();
        let (values, places, counts) = x.unique().unwrap();
        let values = values.to_vec::<f64>().unwrap();
        assert_eq!(values[..2], [0.0, 1.0]);
        assert!(values[2].is_nan() && values.len() == 3);
        assert_eq!(places.dims(), [2, 3]);
        assert_eq!(places.to_vec::<i64>().unwrap(), [2, 1, 0, 1, 2, 0]);
        assert_eq!(counts.to_vec::<i64>().unwrap(), [2, 2, 2]);
        assert_eq!(
            Tensor::zeros([0], DType::I64).unique().unwrap().2.dims(),
            [0]
        );
    }

    #[test]
    fn too_many_are_refused() {
        let x = Tensor::zeros([2, 3], DType::F32);
        let e = x.topk(4, -1, true).unwrap_err().to_string();
        assert!(e.contains("k of at most 3"), "{e}");
        assert!(x.sort(2, false).is_err());
        assert_eq!(x.topk(0, 0, true).unwrap().0.dims(), [0, 3]);
        assert_eq!(Tensor::scalar(2.0f32).sort(0, true).unwrap().1.rank(), 0);
    }
}
