//! `where`, `masked_fill`, `clamp` and `lerp`: elementwise choice and interpolation.
//!
//! where(c, a, b) = c ? a : b is jointly linear in a and b; the gradient of the branch that was
//! not taken is exactly 0 (never 0 · NaN). But the branch itself is evaluated: guard its *input*
//! too when it may be infinite there (the "double where").
//! clamp(x, l, h) = min(max(x, l), h); exactly at a bound the gradient is 0 when the bound is a
//! number and shared equally when it is a tensor, as in PyTorch 2.15.
//! lerp(a, b, w) = a + w·(b - a), computed from the nearer end.

use std::sync::{Arc, LazyLock};

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::pointwise::{Binary, Unary};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::expr::{OutputType, Pointwise, c, x};
use crate::op::{Aval, Few, Linear, Op, OpRef, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

/// A constant of this shape: one element with zero strides.
pub(crate) fn constant(shape: &Shape, value: f64, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::from(
        Array::full_as((), value, dtype).broadcast_to(shape)?,
    ))
}

/// Promotes tensors to one dtype and broadcasts them to one shape.
#[track_caller]
pub(crate) fn joined<const N: usize>(tensors: [&Tensor; N], op: &str) -> Result<[Tensor; N]> {
    let mut out = tensors.map(Clone::clone);
    let mut dtype = out[0].dtype();
    let mut shape = out[0].shape().clone();
    for t in &out[1..] {
        dtype = dtype.promote(t.dtype());
        shape = shape.broadcast(t.shape(), op)?;
    }
    for t in &mut out {
        *t = t.to_dtype(dtype)?.broadcast_to(&shape)?;
    }
    Ok(out)
}

/// (condition bool, a, b), all of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Where;

impl Op for Where {
    fn name(&self) -> &'static str {
        "where"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let [condition, a, b] = inputs else {
            return Err(Error::argument("where", "3 inputs", inputs.len()));
        };
        if condition.dtype != DType::Bool {
            return Err(Error::dtype("where", "a bool condition", condition.dtype));
        }
        if a != b || condition.shape != a.shape {
            return Err(Error::shape(
                "where",
                "a condition and two values of one shape and dtype",
                format!("{condition:?}, {a:?} and {b:?}"),
            ));
        }
        Ok(one((*a).clone()))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        static SELECT: LazyLock<Arc<Pointwise>> = LazyLock::new(|| {
            Pointwise::new("where", 3, OutputType::Like(1), x(0).select(&x(1), &x(2)))
        });
        SELECT.eval(inputs, outputs)
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Where {
    fn linear_in(&self, input: usize) -> bool {
        input > 0
    }
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let condition = cx.input(0)?;
        let zero = constant(g.shape(), 0.0, g.dtype())?;
        if sink.needs(1) {
            sink.add(1, apply1(&handle(Where), &[condition, g, &zero])?)?;
        }
        if sink.needs(2) {
            sink.add(2, apply1(&handle(Where), &[condition, &zero, g])?)?;
        }
        Ok(())
    }
}

impl Tensor {
    /// `a` where `condition` (bool) is true, `b` elsewhere. All three broadcast together; the
    /// dtypes of `a` and `b` are promoted.
    ///
    /// # Errors
    /// When the condition is not bool or shapes do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![-1.0f32, 4.0], [2])?;
    /// let y = Tensor::where_(&x.gt_scalar(0.0)?, &x.sqrt()?, &Tensor::scalar(0.0f32))?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn where_(condition: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let [a, b] = joined([a, b], "where")?;
        let shape = condition.shape().broadcast(a.shape(), "where")?;
        apply1(
            &handle(Where),
            &[
                &condition.broadcast_to(&shape)?,
                &a.broadcast_to(&shape)?,
                &b.broadcast_to(&shape)?,
            ],
        )
    }

    /// `value` where `mask` (bool, broadcast) is true. No gradient reaches the filled elements.
    ///
    /// # Errors
    /// When the mask is not bool or does not broadcast with this tensor.
    #[track_caller]
    pub fn masked_fill(&self, mask: &Tensor, value: f64) -> Result<Tensor> {
        Self::where_(
            mask,
            &constant(&Shape::scalar(), value, self.dtype())?,
            self,
        )
        .map_err(|e| e.context("masked_fill"))
    }

    /// Limited to `min..=max`; a missing bound does not limit. The result is `max` everywhere when
    /// `min > max`. NaN stays NaN. The gradient is 1 strictly inside the bounds, 0 elsewhere.
    ///
    /// # Errors
    /// When both bounds are missing.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![-2.0f32, 0.5, 2.0], [3])?;
    /// assert_eq!(x.clamp(Some(-1.0), Some(1.0))?.to_vec::<f32>()?, [-1.0, 0.5, 1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn clamp(&self, min: Option<f64>, max: Option<f64>) -> Result<Tensor> {
        if min.is_none() && max.is_none() {
            return Err(Error::argument("clamp", "at least one bound", "none"));
        }
        let fractional = |b: Option<f64>| b.is_some_and(|v| v.fract() != 0.0);
        if !self.dtype().is_float() && (fractional(min) || fractional(max)) {
            return self.to_dtype(DType::F32)?.clamp(min, max);
        }
        let (low, high) = (
            min.unwrap_or(f64::NEG_INFINITY),
            max.unwrap_or(f64::INFINITY),
        );
        // Without a bound, no comparison with it: integers have no infinity.
        let op = Pointwise::cached("clamp", &[low, high], || {
            let inside = match (min, max) {
                (Some(l), Some(h)) => c(l).lt(&x(0)).binary(Binary::And, &x(0).lt(&c(h))),
                (Some(l), None) => c(l).lt(&x(0)),
                _ => x(0).lt(&c(high)),
            };
            let outside = match (min, max) {
                (Some(l), Some(h)) => x(0).le(&c(l)).select(&c(l.min(h)), &c(h)),
                (Some(l), None) => c(l),
                _ => c(high),
            };
            let nan = x(0).unary(Unary::IsNan);
            Pointwise::new(
                "clamp",
                1,
                OutputType::Like(0),
                inside.select(&x(0), &nan.select(&c(f64::NAN), &outside)),
            )
        });
        apply1(&op, &[self])
    }

    /// [`Tensor::clamp`] with tensors as bounds, which broadcast and receive the gradient where
    /// they limit; at a tie it is shared equally.
    ///
    /// # Errors
    /// When both bounds are missing or shapes do not broadcast.
    #[track_caller]
    pub fn clamp_tensor(&self, min: Option<&Tensor>, max: Option<&Tensor>) -> Result<Tensor> {
        static BOTH: LazyLock<OpRef> = LazyLock::new(|| {
            let (value, low, high) = (x(0), x(1), x(2));
            let within = value.binary(Binary::Max, &low).binary(Binary::Min, &high);
            let meets = low.equals(&high).select(&value, &within);
            let above = high.lt(&value).select(&high, &meets);
            let below = value.lt(&low).select(&low, &above);
            OpRef::always(Pointwise::new(
                "clamp",
                3,
                LIKE,
                high.lt(&low).select(&high, &below),
            ))
        });
        match (min, max) {
            (Some(low), Some(high)) => {
                let [t, low, high] = joined([self, low, high], "clamp")?;
                apply1(&BOTH, &[&t, &low, &high])
            }
            (Some(low), None) => self.maximum(low),
            (None, Some(high)) => self.minimum(high),
            (None, None) => Err(Error::argument("clamp", "at least one bound", "none")),
        }
    }

    /// self + weight · (end - self): linear interpolation. All three broadcast; `weight` may lie
    /// outside 0..1. Integers are interpolated as f32.
    ///
    /// # Errors
    /// When shapes do not broadcast.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![0.0f32, 10.0], [2])?;
    /// let b = Tensor::from_vec(vec![4.0f32, 20.0], [2])?;
    /// assert_eq!(a.lerp(&b, &Tensor::scalar(0.25f32))?.to_vec::<f32>()?, [1.0, 12.5]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn lerp(&self, end: &Tensor, weight: &Tensor) -> Result<Tensor> {
        static OP: LazyLock<OpRef> = LazyLock::new(|| {
            let span = &x(1) - &x(0);
            let from_start = &x(0) + &(&x(2) * &span);
            let from_end = &x(1) - &(&span * &(&c(1.0) - &x(2)));
            let near_start = x(2).unary(Unary::Abs).lt(&c(0.5));
            OpRef::always(Pointwise::new(
                "lerp",
                3,
                LIKE,
                near_start.select(&from_start, &from_end),
            ))
        });
        let [start, end, weight] = joined([self, end, weight], "lerp")?;
        if !start.dtype().is_float() {
            let f = |t: Tensor| t.to_dtype(DType::F32);
            return apply1(&OP, &[&f(start)?, &f(end)?, &f(weight)?]);
        }
        apply1(&OP, &[&start, &end, &weight])
    }
}

const LIKE: OutputType = OutputType::Like(0);

/// A bool tensor whose shape broadcasts with `shape`.
fn mask_for(g: &mut Gen, shape: &Shape) -> Tensor {
    let shape: Shape = shape
        .iter()
        .map(|&d| if g.once_in(4) { 1 } else { d })
        .collect();
    g.mask(shape)
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "where",
        kind: "linear",
        sample: |g| {
            let (a, b) = g.broadcast_pair();
            let mask = mask_for(g, &a);
            let inputs = vec![mask, g.tensor(a, -2.0, 2.0), g.tensor(b, -2.0, 2.0)];
            Ok(Sample::one(inputs, |t| {
                Tensor::where_(&t[0], &t[1].square()?, &t[2].sin()?)
            }))
        },
    },
    Entry {
        name: "masked_fill",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=4);
            let mask = mask_for(g, &shape);
            let value = g.pick(&[0.0, -1.5, 7.0]);
            let x = g.tensor(shape, -2.0, 2.0);
            Ok(Sample::one(vec![x, mask], move |t| {
                t[0].square()?.masked_fill(&t[1], value)
            }))
        },
    },
    Entry {
        name: "clamp",
        kind: "pointwise",
        sample: |g| {
            let shape = g.shape(0..=4);
            let bounds = g.pick(&[
                (Some(-0.5), Some(1.0)),
                (Some(-0.5), None),
                (None, Some(1.0)),
                (Some(1.0), Some(-0.5)),
            ]);
            let x = g.tensor_avoiding(shape, -2.0, 2.0, &[-0.5, 1.0], 0.05);
            Ok(Sample::one(vec![x], move |t| {
                t[0].clamp(bounds.0, bounds.1)?.square()
            }))
        },
    },
    Entry {
        name: "clamp_tensor",
        kind: "pointwise",
        sample: |g| {
            let (a, b) = g.broadcast_pair();
            // Values, lower and upper bounds from grids that never meet, so without ties.
            let spaced = |g: &mut Gen, shape: &Shape, shift: f64| -> Result<Tensor> {
                let t = g.tensor(shape, -6.0, 6.0);
                let values = t
                    .to_vec::<f64>()?
                    .iter()
                    .map(|v| v.round() / 3.0 + shift)
                    .collect();
                Tensor::from_vec::<f64>(values, shape)
            };
            let x = spaced(g, &a, 0.0)?;
            let (low, high) = (spaced(g, &b, -0.4)?, spaced(g, &b, 0.5)?);
            let which = g.range(0, 3);
            Ok(Sample::one(vec![x, low, high], move |t| {
                t[0].clamp_tensor((which != 1).then_some(&t[1]), (which != 2).then_some(&t[2]))?
                    .sin()
            }))
        },
    },
    Entry {
        name: "lerp",
        kind: "pointwise",
        sample: |g| {
            let (a, b) = g.broadcast_pair();
            let w = if g.once_in(2) {
                Shape::scalar()
            } else {
                b.clone()
            };
            let inputs = vec![
                g.tensor(a, -2.0, 2.0),
                g.tensor(b, -2.0, 2.0),
                g.tensor_avoiding(w, -1.0, 2.0, &[-0.5, 0.5], 0.05),
            ];
            Ok(Sample::one(inputs, |t| t[0].lerp(&t[1], &t[2])))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn t(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, [values.len()]).unwrap()
    }

    fn gradient(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f64> {
        let x = x.requires_grad().unwrap();
        f(&x).unwrap().sum().unwrap().backward().unwrap();
        x.grad().unwrap().to_vec::<f64>().unwrap()
    }

    #[test]
    fn clamp_follows_pytorch_at_bounds_nan_and_crossed_bounds() {
        let x = t(&[-2.0, -1.0, 0.0, 1.0, 2.0, f64::NAN]);
        let y = x
            .clamp(Some(-1.0), Some(1.0))
            .unwrap()
            .to_vec::<f64>()
            .unwrap();
        assert_eq!(&y[..5], [-1.0, -1.0, 0.0, 1.0, 1.0]);
        assert!(y[5].is_nan());
        assert_eq!(
            gradient(&x, |x| x.clamp(Some(-1.0), Some(1.0))),
            [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
        );
        let crossed = x
            .clamp(Some(1.0), Some(-1.0))
            .unwrap()
            .to_vec::<f64>()
            .unwrap();
        assert_eq!(&crossed[..5], [-1.0; 5]);
        assert!(x.clamp(None, None).is_err());
        let i = Tensor::from_vec(vec![-5i64, 0, i64::MAX], [3]).unwrap();
        let low = i.clamp(Some(-1.0), None).unwrap();
        assert_eq!(low.to_vec::<i64>().unwrap(), [-1, 0, i64::MAX]);
        assert_eq!(i.clamp(None, Some(0.5)).unwrap().dtype(), DType::F32);
    }

    /// Values and gradients from PyTorch 2.15.
    #[test]
    fn tensor_bounds_share_ties_like_pytorch() {
        let x = t(&[-1.0, 0.0, 0.5, 1.0, 2.0]);
        for (low, high, want) in [
            (
                0.0,
                1.0,
                [
                    [0.0, 0.5, 1.0, 0.5, 0.0],
                    [1.0, 0.5, 0.0, 0.0, 0.0],
                    [0.0, 0.0, 0.0, 0.5, 1.0],
                ],
            ),
            (
                1.0,
                1.0,
                [
                    [0.0, 0.0, 0.0, 1.0, 0.0],
                    [1.0, 1.0, 1.0, 0.0, 0.0],
                    [0.0, 0.0, 0.0, 0.0, 1.0],
                ],
            ),
            (1.0, 0.0, [[0.0; 5], [0.0; 5], [1.0; 5]]),
        ] {
            let leaves =
                [x.clone(), t(&[low; 5]), t(&[high; 5])].map(|t| t.requires_grad().unwrap());
            let y = leaves[0]
                .clamp_tensor(Some(&leaves[1]), Some(&leaves[2]))
                .unwrap();
            let values = x.clamp(Some(low), Some(high)).unwrap();
            assert_eq!(y.to_vec::<f64>().unwrap(), values.to_vec::<f64>().unwrap());
            y.sum().unwrap().backward().unwrap();
            for (leaf, want) in leaves.iter().zip(want) {
                assert_eq!(
                    leaf.grad().unwrap().to_vec::<f64>().unwrap(),
                    want,
                    "{low} {high}"
                );
            }
        }
    }

    #[test]
    fn nothing_flows_into_the_branch_not_taken() {
        let x = t(&[0.0, 4.0]);
        let mask = x.gt_scalar(0.0).unwrap();
        // The reciprocal is infinite at 0, and so would be its gradient if 1 reached it.
        let inf = gradient(&x, |x| Tensor::where_(&mask, &x.reciprocal()?, x));
        assert!(
            inf[0].is_nan(),
            "the unguarded branch still multiplies 0 by infinity"
        );
        let safe = gradient(&x, |x| {
            let guarded = Tensor::where_(&mask, x, &Tensor::scalar(1.0))?;
            Tensor::where_(&mask, &guarded.reciprocal()?, x)
        });
        assert_eq!(safe, [1.0, -0.0625]);
        let filled = gradient(&x, |x| x.masked_fill(&mask, f64::NEG_INFINITY));
        assert_eq!(filled, [1.0, 0.0]);
    }

    #[test]
    fn impossible_conditions_are_refused() {
        let x = t(&[1.0, 2.0]);
        let e = Tensor::where_(&x, &x, &x).unwrap_err().to_string();
        assert!(e.contains("bool condition"), "{e}");
        assert!(Tensor::where_(&Tensor::scalar(true), &x, &t(&[1.0; 3])).is_err());
    }

    #[test]
    fn the_op_takes_three_alike() {
        let (c, x) = (Aval::new([2], DType::Bool), Aval::new([2], DType::F32));
        let infer = |inputs: &[&Aval]| Where.infer(inputs).is_ok();
        assert!(infer(&[&c, &x, &x]));
        assert!(!infer(&[&c, &x]) && !infer(&[&x, &x, &x]));
        assert!(!infer(&[&c, &x, &Aval::new([2], DType::F64)]));
        assert!(!infer(&[&Aval::new([1], DType::Bool), &x, &x]));
        assert!(!Where.linear_in(0) && Where.linear_in(1) && Where.linear_in(2));
    }

    #[test]
    fn lerp_starts_and_ends_exactly() {
        let (a, b) = (t(&[1.0, 3.0]), t(&[2.0, -3.0]));
        let at = |w: f64| {
            let y = a.lerp(&b, &Tensor::scalar(w)).unwrap();
            y.to_vec::<f64>().unwrap()
        };
        assert_eq!(at(0.0), [1.0, 3.0]);
        assert_eq!(at(1.0), [2.0, -3.0]);
        assert_eq!(at(0.25), [1.25, 1.5]);
        assert_eq!(at(0.75), [1.75, -1.5]);
        assert_eq!(at(-1.0), [0.0, 9.0]);
        let whole = Tensor::from_vec(vec![2i64], [1]).unwrap();
        assert_eq!(whole.lerp(&whole, &whole).unwrap().dtype(), DType::F32);
    }
}
