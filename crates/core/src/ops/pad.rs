//! Rearrangement and repetition: `pad`, `flip`, `roll`, `repeat`, `tile`, `repeat_interleave`.
//!
//! Padding follows torch.nn.functional.pad, with one pair (before, after) per dimension *from the
//! first*: constant values; reflect (d c b | a b c d | c b a), which does not repeat the edge;
//! replicate (a a | a b c | c c); circular (b c | a b c | a b). Cropping is `narrow`.

use smallvec::SmallVec;

use entrenar_base::{Array, Error, Result, Shape};

use super::sum::dims_of;
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Bits, Explicit, Few, JvpCx, Linear, Op, Reads, Rule, Sink, VjpCx};
use crate::registry::{Entry, Gen, Sample};

/// What [`Tensor::pad`] puts around a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Padding {
    /// One value.
    Constant(f64),
    /// The tensor mirrored at its edge elements, which are not repeated.
    Reflect,
    /// The edge elements.
    Replicate,
    /// The opposite end: the tensor as a ring.
    Circular,
}

/// Constant padding. Affine, not linear: a tangent is padded with zeros.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pad {
    widths: SmallVec<[(usize, usize); 6]>,
    value: Bits,
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape: Option<Shape> = inputs[0]
            .shape
            .iter()
            .zip(&self.widths)
            .map(|(&n, &(a, b))| n.checked_add(a)?.checked_add(b))
            .collect::<Option<Vec<usize>>>()
            .map(Shape::from);
        let shape = shape
            .filter(|s| self.widths.len() == s.rank() && s.rank() == inputs[0].shape.rank())
            .ok_or_else(|| {
                Error::argument(
                    "pad",
                    format!("{} pairs of moderate size", inputs[0].shape.rank()),
                    format!("{:?}", self.widths),
                )
            })?;
        shape.checked_numel_for(self.name())?;
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::copy::pad(
            inputs[0],
            &self.widths,
            self.value.0,
        )?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

impl Explicit for Pad {
    fn reads(&self, _: &[bool]) -> Reads {
        Reads::NOTHING
    }
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(mut g) = cx.cotangent(0).cloned() else {
            return Ok(());
        };
        for (d, (&(before, _), &n)) in self.widths.iter().zip(cx.aval(0).shape.iter()).enumerate() {
            g = g.narrow(d as isize, before, n)?;
        }
        sink.add(0, g)
    }
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let zero = Pad {
            widths: self.widths.clone(),
            value: Bits(0.0),
        };
        let pushed = cx.tangents[0].as_ref().map(|t| apply1(&handle(zero), &[t]));
        Ok(one(pushed.transpose()?))
    }
}

/// Reversed along dimensions; a view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Flip {
    dims: SmallVec<[usize; 4]>,
}

impl Op for Flip {
    fn name(&self) -> &'static str {
        "flip"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if let Some(d) = self.dims.iter().find(|&&d| d >= inputs[0].shape.rank()) {
            let shape = &inputs[0].shape;
            return Err(Error::index("flip", format!("a dimension of {shape}"), d));
        }
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let flipped = self.dims.iter().fold(inputs[0].clone(), |a, &d| a.flip(d));
        Ok(one(flipped))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Flip {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, apply1(&handle(self.clone()), &[g])?),
            None => Ok(()),
        }
    }
}

/// For every index of the padded dimension the index it is read from.
fn sources(
    n: usize,
    (before, after): (usize, usize),
    padding: Padding,
    shape: &Shape,
) -> Result<Vec<i64>> {
    let limit = match padding {
        Padding::Constant(_) => usize::MAX,
        Padding::Reflect => n.saturating_sub(1),
        Padding::Replicate if n == 0 => 0,
        Padding::Replicate => usize::MAX,
        Padding::Circular => n,
    };
    let total = n.checked_add(before).and_then(|t| t.checked_add(after));
    let (Some(total), true) = (total, before.max(after) <= limit) else {
        return Err(Error::argument(
            "pad",
            format!(
                "widths of at most {limit} for {padding:?} in a dimension of size {n} of {shape}"
            ),
            format!("({before}, {after})"),
        ));
    };
    let (n, before) = (n as i64, before as i64);
    Ok((0..total as i64)
        .map(|i| i - before)
        .map(|i| match padding {
            Padding::Reflect if i < 0 => -i,
            Padding::Reflect if i >= n => 2 * (n - 1) - i,
            Padding::Circular => i.rem_euclid(n.max(1)),
            _ => i.clamp(0, (n - 1).max(0)),
        })
        .collect())
}

impl Tensor {
    /// Surrounded by `widths[d] = (before, after)` elements in each dimension `d`, from the first.
    ///
    /// # Errors
    /// When there is not one pair per dimension, or the mode cannot fill it: reflect needs widths
    /// below the size, circular at most the size, replicate a size above 0.
    ///
    /// ```
    /// use entrenar_core::{Tensor, ops::pad::Padding};
    /// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3])?;
    /// assert_eq!(x.pad(&[(0, 1)], Padding::Constant(9.0))?.to_vec::<f32>()?, [1.0, 2.0, 3.0, 9.0]);
    /// assert_eq!(x.pad(&[(2, 0)], Padding::Reflect)?.to_vec::<f32>()?, [3.0, 2.0, 1.0, 2.0, 3.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn pad(&self, widths: &[(usize, usize)], padding: Padding) -> Result<Tensor> {
        if widths.len() != self.rank() {
            return Err(Error::argument(
                "pad",
                format!("{} pairs (before, after) for {}", self.rank(), self.shape()),
                format!("{widths:?}"),
            ));
        }
        if widths.iter().all(|w| *w == (0, 0)) {
            return Ok(self.clone());
        }
        if let Padding::Constant(value) = padding {
            let op = Pad {
                widths: SmallVec::from_slice(widths),
                value: Bits(value),
            };
            return apply1(&handle(op), &[self]);
        }
        let mut out = self.clone();
        for (d, &width) in widths.iter().enumerate().filter(|(_, w)| **w != (0, 0)) {
            let from = sources(self.dims()[d], width, padding, self.shape())?;
            let count = from.len();
            out = out.index_select(d as isize, &Tensor::from_vec(from, [count])?)?;
        }
        Ok(out)
    }

    /// Reversed along `dims` (none: unchanged); a view.
    ///
    /// # Errors
    /// When a dimension does not exist or is named twice.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2, 3], [3])?;
    /// assert_eq!(x.flip(&[0])?.to_vec::<i64>()?, [3, 2, 1]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn flip(&self, dims: &[isize]) -> Result<Tensor> {
        if dims.is_empty() {
            return Ok(self.clone());
        }
        let dims = dims_of("flip", self.shape(), dims)?;
        if dims.is_empty() {
            return Ok(self.clone());
        }
        apply1(&handle(Flip { dims }), &[self])
    }

    /// Rotated by `shifts[i]` along `dims[i]`; elements pushed off the end return at the start.
    /// Without `dims` the flattened tensor is rotated by the one shift.
    ///
    /// # Errors
    /// When the two lists differ in length (or there is not one shift without dims), or a
    /// dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2, 3], [3])?;
    /// assert_eq!(x.roll(&[1], &[0])?.to_vec::<i64>()?, [3, 1, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn roll(&self, shifts: &[isize], dims: &[isize]) -> Result<Tensor> {
        if dims.is_empty() && shifts.len() == 1 {
            let flat = self.reshape([self.numel()])?.roll(shifts, &[0])?;
            return flat.reshape(self.shape());
        }
        if shifts.len() != dims.len() {
            return Err(Error::argument(
                "roll",
                "one shift per dimension",
                format!("shifts {shifts:?} and dimensions {dims:?}"),
            ));
        }
        let mut out = self.clone();
        for (&shift, &dim) in shifts.iter().zip(dims) {
            let d = self.shape().dim("roll", dim)?;
            let n = self.dims().get(d).copied().unwrap_or(1);
            let by = if n == 0 {
                0
            } else {
                shift.rem_euclid(n as isize) as usize
            };
            if by > 0 {
                let tail = out.narrow(dim, n - by, by)?;
                out = Self::concat(&[&tail, &out.narrow(dim, 0, n - by)?], dim)?;
            }
        }
        Ok(out)
    }

    /// The tensor `repeats[d]` times along each dimension; extra entries at the front make new
    /// dimensions.
    ///
    /// # Errors
    /// When there are fewer entries than dimensions.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2], [2])?.repeat(&[2, 2])?;
    /// assert_eq!(x.dims(), [2, 4]);
    /// assert_eq!(x.to_vec::<i64>()?, [1, 2, 1, 2, 1, 2, 1, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn repeat(&self, repeats: &[usize]) -> Result<Tensor> {
        let Some(lead) = repeats.len().checked_sub(self.rank()) else {
            return Err(Error::argument(
                "repeat",
                format!("at least {} counts for {}", self.rank(), self.shape()),
                format!("{repeats:?}"),
            ));
        };
        // [n, m] → [1, n, 1, m] → [r, n, s, m] → [r·n, s·m]
        let (mut apart, mut full) = (Shape::scalar(), Shape::scalar());
        let mut joined = Shape::scalar();
        for (i, &r) in repeats.iter().enumerate() {
            let n = if i < lead { 1 } else { self.dims()[i - lead] };
            apart.push(1);
            apart.push(n);
            full.push(r);
            full.push(n);
            joined.push(r.checked_mul(n).ok_or_else(|| {
                Error::argument(
                    "repeat",
                    "counts that fit in memory",
                    format!("{repeats:?}"),
                )
            })?);
        }
        joined.checked_numel_for("repeat")?;
        self.reshape(apart)?.broadcast_to(full)?.reshape(joined)
    }

    /// [`Tensor::repeat`] with missing counts at the front taken as 1.
    ///
    /// # Errors
    /// When the result would not fit in memory.
    #[track_caller]
    pub fn tile(&self, repeats: &[usize]) -> Result<Tensor> {
        let mut counts = vec![1; self.rank().saturating_sub(repeats.len())];
        counts.extend_from_slice(repeats);
        self.repeat(&counts)
    }

    /// Each element `n` times in a row along `dim`.
    ///
    /// # Errors
    /// When the dimension does not exist.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2], [2])?;
    /// assert_eq!(x.repeat_interleave(2, 0)?.to_vec::<i64>()?, [1, 1, 2, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn repeat_interleave(&self, n: usize, dim: isize) -> Result<Tensor> {
        if self.rank() == 0 {
            self.shape().dim("repeat_interleave", dim)?;
            return self.reshape([1])?.repeat_interleave(n, 0);
        }
        let d = self.shape().dim("repeat_interleave", dim)?;
        let mut full = self.shape().clone();
        full.insert(d + 1, n);
        let mut joined = self.shape().clone();
        joined.dims_mut()[d] = joined[d].saturating_mul(n);
        joined.checked_numel_for("repeat_interleave")?;
        self.unsqueeze(d as isize + 1)?
            .broadcast_to(full)?
            .reshape(joined)
    }
}

fn pad_sample(g: &mut Gen, padding: Padding) -> Result<Sample> {
    let shape = g.shape(0..=4);
    let widths: Vec<(usize, usize)> = shape
        .iter()
        .map(|&n| {
            let limit = match padding {
                Padding::Constant(_) => 3,
                Padding::Reflect => n.saturating_sub(1),
                Padding::Replicate => 3 * n.min(1),
                Padding::Circular => n,
            };
            (g.range(0, limit + 1), g.range(0, limit + 1))
        })
        .collect();
    let x = g.tensor(shape, -2.0, 2.0);
    Ok(Sample::one(vec![x], move |t| {
        t[0].sin()?.pad(&widths, padding)?.square()
    }))
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "pad",
        kind: "explicit",
        sample: |g| {
            let value = g.pick(&[0.0, -1.5]);
            pad_sample(g, Padding::Constant(value))
        },
    },
    Entry {
        name: "pad_reflect",
        kind: "linear",
        sample: |g| pad_sample(g, Padding::Reflect),
    },
    Entry {
        name: "pad_replicate",
        kind: "linear",
        sample: |g| pad_sample(g, Padding::Replicate),
    },
    Entry {
        name: "pad_circular",
        kind: "linear",
        sample: |g| pad_sample(g, Padding::Circular),
    },
    Entry {
        name: "flip",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=4);
            let dims = super::sum::some_dims(g, shape.rank());
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.flip(&dims)?.square()
            }))
        },
    },
    Entry {
        name: "roll",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=3);
            let dims = super::sum::some_dims(g, shape.rank());
            let count = dims.len().max(1);
            let shifts: Vec<isize> = (0..count).map(|_| g.range(0, 12) as isize - 6).collect();
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.roll(&shifts, &dims)?.square()
            }))
        },
    },
    Entry {
        name: "repeat",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=3);
            let lead = g.range(0, 2);
            let repeats: Vec<usize> = (0..shape.rank() + lead).map(|_| g.range(0, 4)).collect();
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.repeat(&repeats)?.square()
            }))
        },
    },
    Entry {
        name: "tile",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=3);
            let repeats: Vec<usize> = (0..g.range(0, 4)).map(|_| g.range(1, 3)).collect();
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.tile(&repeats)?.square()
            }))
        },
    },
    Entry {
        name: "repeat_interleave",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=3);
            let dim = g.range(0, shape.rank().max(1)) as isize;
            let n = g.range(0, 4);
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.repeat_interleave(n, dim)?.square()
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    fn iota(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_vec((0..n as i64).collect::<Vec<_>>(), shape.to_vec()).unwrap()
    }

    fn ints(t: Result<Tensor>) -> Vec<i64> {
        t.unwrap().to_vec().unwrap()
    }

    /// Values from torch.nn.functional.pad.
    #[test]
    fn modes_follow_pytorch() {
        let x = iota(&[4]);
        assert_eq!(
            ints(x.pad(&[(3, 2)], Padding::Reflect)),
            [3, 2, 1, 0, 1, 2, 3, 2, 1]
        );
        assert_eq!(
            ints(x.pad(&[(1, 2)], Padding::Replicate)),
            [0, 0, 1, 2, 3, 3, 3]
        );
        assert_eq!(
            ints(x.pad(&[(4, 1)], Padding::Circular)),
            [0, 1, 2, 3, 0, 1, 2, 3, 0]
        );
        let y = iota(&[2, 2]).pad(&[(1, 0), (0, 1)], Padding::Constant(7.0));
        assert_eq!(ints(y), [7, 7, 7, 0, 1, 7, 2, 3, 7]);
        assert!(x.pad(&[(4, 0)], Padding::Reflect).is_err());
        assert!(x.pad(&[(0, 5)], Padding::Circular).is_err());
        assert!(x.pad(&[], Padding::Constant(0.0)).is_err());
        assert!(x.pad(&[(usize::MAX, 1)], Padding::Constant(0.0)).is_err());
        assert!(x.pad(&[(usize::MAX, 1)], Padding::Replicate).is_err());
        assert!(iota(&[0]).pad(&[(1, 0)], Padding::Replicate).is_err());
    }

    #[test]
    fn rolls_and_repeats_follow_pytorch() {
        let x = iota(&[2, 3]);
        assert_eq!(ints(x.roll(&[-1, 4], &[0, 1])), [5, 3, 4, 2, 0, 1]);
        assert_eq!(ints(x.roll(&[2], &[])), [4, 5, 0, 1, 2, 3]);
        assert!(x.roll(&[1, 2], &[0]).is_err());
        assert_eq!(
            ints(x.repeat_interleave(2, -1)),
            [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        );
        assert_eq!(x.repeat(&[0, 1, 2]).unwrap().dims(), [0, 2, 6]);
        assert_eq!(ints(x.tile(&[2])), [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
        assert!(x.repeat(&[2]).is_err());
        assert!(x.repeat(&[usize::MAX, 2]).is_err());
        assert!(x.flip(&[0, 0]).is_err() && x.flip(&[2]).is_err());
    }

    #[test]
    fn the_op_takes_one_pair_per_dimension() {
        let x = Aval::new([2, 3], DType::F32);
        let infer = |widths: &[(usize, usize)]| {
            let op = Pad {
                widths: SmallVec::from_slice(widths),
                value: Bits(0.0),
            };
            op.infer(&[&x]).ok().map(|o| o[0].shape.to_vec())
        };
        assert_eq!(infer(&[(1, 2), (0, 4)]), Some(vec![5, 7]));
        assert_eq!(infer(&[(1, 2)]), None);
        assert_eq!(infer(&[(1, 2), (0, 4), (0, 0)]), None);
        assert_eq!(infer(&[(usize::MAX, 2), (0, 4)]), None);
    }

    #[test]
    fn sources_repeat_edges_or_turn_at_them() {
        let shape = Shape::from([4]);
        let from = |n, widths, padding| sources(n, widths, padding, &shape).ok();
        assert_eq!(
            from(4, (3, 3), Padding::Reflect),
            Some(vec![3, 2, 1, 0, 1, 2, 3, 2, 1, 0])
        );
        assert_eq!(
            from(4, (2, 1), Padding::Circular),
            Some(vec![2, 3, 0, 1, 2, 3, 0])
        );
        assert_eq!(
            from(2, (2, 3), Padding::Replicate),
            Some(vec![0, 0, 0, 1, 1, 1, 1])
        );
        assert_eq!(
            from(2, (1, 1), Padding::Constant(0.0)),
            Some(vec![0, 0, 1, 1])
        );
        assert_eq!(from(0, (0, 0), Padding::Replicate), Some(vec![]));
        assert_eq!(from(0, (0, 0), Padding::Circular), Some(vec![]));
        assert_eq!(from(0, (1, 0), Padding::Replicate), None);
        assert_eq!(from(1, (1, 0), Padding::Reflect), None);
        assert_eq!(from(1, (0, 2), Padding::Circular), None);
    }

    #[test]
    fn rolls_turn_by_any_number() {
        let x = Tensor::arange(0.0, 6.0, 1.0, DType::I64)
            .unwrap()
            .reshape([2, 3])
            .unwrap();
        let list = |shifts: &[isize], dims: &[isize]| {
            x.roll(shifts, dims).unwrap().to_vec::<i64>().unwrap()
        };
        assert_eq!(list(&[1], &[1]), [2, 0, 1, 5, 3, 4]);
        assert_eq!(list(&[-1], &[1]), [1, 2, 0, 4, 5, 3]);
        assert_eq!(list(&[5], &[-1]), [1, 2, 0, 4, 5, 3]);
        assert_eq!(list(&[3], &[1]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(list(&[1, 1], &[0, 1]), [5, 3, 4, 2, 0, 1]);
        assert_eq!(list(&[2], &[]), [4, 5, 0, 1, 2, 3]);
    }
}
