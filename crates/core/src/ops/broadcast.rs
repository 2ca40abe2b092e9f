//! `broadcast_to` and its transpose `sum_to`: the only places where shapes stretch or shrink back.
//!
//! Broadcasting is a stride-0 view and costs nothing; because it is an op, binary rules always
//! see equal shapes and never reduce (pitfall: forgotten reductions in broadcast gradients).

use entrenar_base::{Array, DType, Error, Result, Shape};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BroadcastTo {
    shape: Shape,
}

impl Op for BroadcastTo {
    fn name(&self) -> &'static str {
        "broadcast_to"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let joined = inputs[0].shape.broadcast(&self.shape, self.name())?;
        if joined != self.shape {
            return Err(Error::shape(
                self.name(),
                format!("a shape that broadcasts to {}", self.shape),
                &inputs[0].shape,
            ));
        }
        // A view costs nothing, so nothing else would stop at an absurd size.
        self.shape.checked_numel_for(self.name())?;
        Ok(one(Aval::new(self.shape.clone(), inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(inputs[0].broadcast_to(&self.shape)?))
    }
    fn run(&self, inputs: &[&Array]) -> Result<Few<Array>> {
        // The view exists exactly when the shapes fit; only errors are worded by `infer`.
        match inputs[0].broadcast_to(&self.shape) {
            Ok(view) => Ok(one(view)),
            Err(_) => self.infer_and_eval(inputs),
        }
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for BroadcastTo {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, g.sum_to(&cx.aval(0).shape)?),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SumTo {
    shape: Shape,
}

impl Op for SumTo {
    fn name(&self) -> &'static str {
        "sum_to"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let joined = self.shape.broadcast(&inputs[0].shape, self.name())?;
        if joined != inputs[0].shape {
            return Err(Error::shape(
                self.name(),
                format!("a shape that {} broadcasts to", self.shape),
                &inputs[0].shape,
            ));
        }
        // As in `sum`, integers add up in i64.
        let dtype = match inputs[0].dtype {
            d if d.is_float() => d,
            _ => DType::I64,
        };
        Ok(one(Aval::new(self.shape.clone(), dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let x = inputs[0];
        let lead = x.rank() - self.shape.rank();
        let dims: Vec<usize> = (0..x.rank())
            .filter(|&d| d < lead || (self.shape[d - lead] == 1 && x.dims()[d] != 1))
            .collect();
        let sum = entrenar_cpu::reduce::reduce(entrenar_cpu::reduce::Reduce::Sum, x, &dims)?;
        Ok(one(sum.reshape(self.shape.clone())?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for SumTo {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, g.broadcast_to(&cx.aval(0).shape)?),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// Stretched to `shape` by NumPy's rule; a view without copying.
    ///
    /// # Errors
    /// When a size differs and is not 1, or the number of elements overflows.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![1i64, 2], [2, 1])?.broadcast_to([2, 3])?;
    /// assert_eq!(t.to_vec::<i64>()?, [1, 1, 1, 2, 2, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if *self.shape() == shape {
            return Ok(self.clone());
        }
        apply1(&handle(BroadcastTo { shape }), &[self])
    }

    /// PyTorch's `expand`: like [`Tensor::broadcast_to`], with -1 for "keep this size".
    ///
    /// # Errors
    /// When a size differs and is not 1, or -1 stands for a new dimension.
    #[track_caller]
    pub fn expand(&self, sizes: &[isize]) -> Result<Tensor> {
        let lead = sizes.len().checked_sub(self.rank()).ok_or_else(|| {
            Error::shape(
                "expand",
                format!("at least {} sizes", self.rank()),
                format!("{sizes:?}"),
            )
        })?;
        let shape = sizes
            .iter()
            .enumerate()
            .map(|(i, &s)| match s {
                -1 if i >= lead => Ok(self.dims()[i - lead]),
                s => usize::try_from(s).map_err(|_| {
                    Error::shape("expand", "sizes of 0 or more, or -1", format!("{sizes:?}"))
                }),
            })
            .collect::<Result<Shape>>()?;
        self.broadcast_to(shape)
    }

    /// The transpose of broadcasting: sums over the dimensions that `shape` would stretch.
    ///
    /// # Errors
    /// When `shape` does not broadcast to this tensor's shape.
    #[track_caller]
    pub fn sum_to(&self, shape: &Shape) -> Result<Tensor> {
        if self.shape() == shape {
            return Ok(self.clone());
        }
        apply1(
            &handle(SumTo {
                shape: shape.clone(),
            }),
            &[self],
        )
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "broadcast_to",
        kind: "linear",
        sample: |g| {
            let (a, b) = g.broadcast_pair();
            let to = a.broadcast(&b, "sample")?;
            Ok(Sample::one(vec![g.tensor(a, -2.0, 2.0)], move |t| {
                t[0].broadcast_to(to.clone())?.square()
            }))
        },
    },
    Entry {
        name: "sum_to",
        kind: "linear",
        sample: |g| {
            let (a, b) = g.broadcast_pair();
            let from = a.broadcast(&b, "sample")?;
            Ok(Sample::one(vec![g.tensor(from, -2.0, 2.0)], move |t| {
                t[0].square()?.sum_to(&a)
            }))
        },
    },
];
