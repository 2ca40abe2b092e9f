//! Diagonals, triangles, windows and pixel rearrangement: `diagonal`, `diag_embed`, `tril`,
//! `triu`, `unfold`, `pixel_shuffle`, `outer`.
//!
//! diagonal: out[.., i] = x[.., i, i + offset] as a view. Its transpose and `diag_embed` are one
//! op: in an n·m matrix laid out in a row, a diagonal is every (m + 1)-th element. unfold shows
//! overlapping windows as a view; its transpose adds them up.

use entrenar_base::{Array, Error, Result, Shape};
use entrenar_cpu::linalg;

use super::where_::constant;
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

/// Elements on the diagonal `offset` of an n×m matrix.
fn length(n: usize, m: usize, offset: isize) -> usize {
    let skip = offset.unsigned_abs();
    if offset >= 0 {
        n.min(m.saturating_sub(skip))
    } else {
        n.saturating_sub(skip).min(m)
    }
}

/// `[.., n at dim1, .., m at dim2, ..]` → the other dimensions, then the diagonal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Diagonal {
    offset: isize,
    dim1: usize,
    dim2: usize,
}

impl Op for Diagonal {
    fn name(&self) -> &'static str {
        "diagonal"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let shape = &inputs[0].shape;
        if self.dim1 == self.dim2 || self.dim1.max(self.dim2) >= shape.rank() {
            return Err(Error::argument(
                "diagonal",
                format!("two different dimensions of {shape}"),
                format!("{} and {}", self.dim1, self.dim2),
            ));
        }
        let mut out: Shape = self.others(shape);
        out.push(length(shape[self.dim1], shape[self.dim2], self.offset));
        Ok(one(Aval::new(out, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let (x, shape) = (inputs[0], outputs[0].shape.clone());
        if shape.numel() == 0 {
            return Ok(one(Array::zeros(shape, x.dtype())));
        }
        let strides = x.layout().strides();
        let (s1, s2) = (strides[self.dim1], strides[self.dim2]);
        let start = if self.offset >= 0 {
            self.offset * s2
        } else {
            -self.offset * s1
        };
        let mut kept: Vec<isize> = (0..x.rank())
            .filter(|&d| d != self.dim1 && d != self.dim2)
            .map(|d| strides[d])
            .collect();
        kept.push(s1 + s2);
        let offset = (x.layout().offset() as isize + start) as usize;
        Ok(one(x.as_strided(shape, &kept, offset)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Diagonal {
    fn others(&self, shape: &Shape) -> Shape {
        (0..shape.rank())
            .filter(|&d| d != self.dim1 && d != self.dim2)
            .map(|d| shape[d])
            .collect()
    }
}

impl Linear for Diagonal {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let shape = &cx.aval(0).shape;
        let op = DiagonalEmbed {
            at: self.clone(),
            rows: shape[self.dim1],
            columns: shape[self.dim2],
        };
        sink.add(0, apply1(&handle(op), &[g])?)
    }
}

/// Zeros with the input's last dimension on a diagonal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DiagonalEmbed {
    at: Diagonal,
    rows: usize,
    columns: usize,
}

impl Op for DiagonalEmbed {
    fn name(&self) -> &'static str {
        "diag_embed"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let expected = length(self.rows, self.columns, self.at.offset);
        let shape = &inputs[0].shape;
        let Some((_, lead)) = shape.split_last().filter(|(n, _)| **n == expected) else {
            return Err(Error::shape(
                "diag_embed",
                format!("a last dimension of size {expected}"),
                shape,
            ));
        };
        let (low, high) = (
            self.at.dim1.min(self.at.dim2),
            self.at.dim1.max(self.at.dim2),
        );
        let mut out = Shape::from(lead);
        // Inserting the lower one first leaves both in place.
        for d in [low, high] {
            let size = if d == self.at.dim1 {
                self.rows
            } else {
                self.columns
            };
            out.insert(d, size);
        }
        out.checked_numel_for(self.name())?;
        Ok(one(Aval::new(out, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let (x, out) = (inputs[0], &outputs[0].shape);
        if x.numel() == 0 {
            return Ok(one(Array::zeros(out, x.dtype())));
        }
        let last = x.rank() - 1;
        let mut flat = Shape::from(&x.dims()[..last]);
        flat.push(self.rows * self.columns);
        let skip = self.at.offset.unsigned_abs();
        let (mut starts, mut steps) = (vec![0; x.rank()], vec![1; x.rank()]);
        starts[last] = if self.at.offset >= 0 {
            skip
        } else {
            skip * self.columns
        };
        steps[last] = self.columns + 1;
        let flat = entrenar_cpu::copy::embed(x, &flat, &starts, &steps)?;
        let mut apart = Shape::from(&x.dims()[..last]);
        apart.push(self.rows);
        apart.push(self.columns);
        let matrices = flat.reshape(apart)?;
        // The two last dimensions go to dim1 and dim2.
        let mut rest = 0..last;
        let axes: Vec<usize> = (0..out.rank())
            .map(|d| match d {
                _ if d == self.at.dim1 => last,
                _ if d == self.at.dim2 => last + 1,
                _ => rest.next().expect("as many as other dimensions"),
            })
            .collect();
        Ok(one(matrices.permute(&axes)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for DiagonalEmbed {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, apply1(&handle(self.at.clone()), &[g])?),
            None => Ok(()),
        }
    }
}

/// Zeros outside a triangle of the last two dimensions. Its own transpose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Triangle {
    diagonal: i64,
    upper: bool,
}

impl Op for Triangle {
    fn name(&self) -> &'static str {
        if self.upper { "triu" } else { "tril" }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if inputs[0].shape.rank() < 2 {
            return Err(Error::shape(
                self.name(),
                "matrices [.., M, N]",
                &inputs[0].shape,
            ));
        }
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(linalg::triangle(inputs[0], self.diagonal, self.upper)?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Triangle {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, apply1(&handle(self.clone()), &[g])?),
            None => Ok(()),
        }
    }
}

/// Windows of `size` every `step` along `dim`, as a new last dimension; a view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Unfold {
    dim: usize,
    size: usize,
    step: usize,
}

impl Op for Unfold {
    fn name(&self) -> &'static str {
        "unfold"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let mut shape = inputs[0].shape.clone();
        let n = shape.get(self.dim).copied().unwrap_or(1);
        if self.size > n || self.step == 0 {
            return Err(Error::argument(
                "unfold",
                format!("a size of at most {n} and a step of at least 1 for {shape}"),
                format!("size {} and step {}", self.size, self.step),
            ));
        }
        if shape.rank() > 0 {
            shape.dims_mut()[self.dim] = (n - self.size) / self.step + 1;
        }
        shape.push(self.size);
        Ok(one(Aval::new(shape, inputs[0].dtype)))
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let (x, shape) = (inputs[0], outputs[0].shape.clone());
        if shape.numel() == 0 {
            return Ok(one(Array::zeros(shape, x.dtype())));
        }
        let mut strides = x.layout().strides().to_vec();
        let along = strides.get(self.dim).copied().unwrap_or(1);
        if let Some(s) = strides.get_mut(self.dim) {
            *s *= self.step as isize;
        }
        strides.push(along);
        Ok(one(x.as_strided(shape, &strides, x.layout().offset())?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Linear(self)
    }
}

impl Linear for Unfold {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(g) = cx.cotangent(0) else {
            return Ok(());
        };
        let shape = &cx.aval(0).shape;
        if shape.rank() == 0 {
            return sink.add(0, g.sum_to(shape)?);
        }
        // [.., windows, .., size] → [.., windows · size, ..], each slice added where it came from.
        let windows = g.dims()[self.dim];
        let mut flat = shape.clone();
        flat.dims_mut()[self.dim] = windows * self.size;
        let slices = g.movedim(-1, self.dim as isize + 1)?.reshape(flat)?;
        let places: Vec<i64> = (0..windows)
            .flat_map(|w| (0..self.size).map(move |j| (w, j)))
            .map(|(w, j)| (w * self.step + j) as i64)
            .collect();
        let index = Tensor::from_vec(places, [windows * self.size])?;
        let zeros = constant(shape, 0.0, g.dtype())?;
        sink.add(0, zeros.index_add(self.dim as isize, &index, &slices)?)
    }
}

impl Tensor {
    /// The diagonal of the matrices in dimensions `dim1` (rows) and `dim2` (columns), as a new
    /// last dimension; above the main diagonal for positive `offset`. A view.
    ///
    /// # Errors
    /// When the dimensions do not exist or are equal.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2, 3, 4, 5, 6], [2, 3])?;
    /// assert_eq!(x.diagonal(1, 0, 1)?.to_vec::<i64>()?, [2, 6]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn diagonal(&self, offset: isize, dim1: isize, dim2: isize) -> Result<Tensor> {
        let dim1 = self.shape().dim("diagonal", dim1)?;
        let dim2 = self.shape().dim("diagonal", dim2)?;
        apply1(&handle(Diagonal { offset, dim1, dim2 }), &[self])
    }

    /// Square matrices with the last dimension on a diagonal and zeros elsewhere; the rows become
    /// dimension `dim1` of the result, the columns `dim2`. Shape: `[.., n]` → `[.., n + |offset|,
    /// n + |offset|]` for dims -2, -1.
    ///
    /// # Errors
    /// When this is a scalar, or the dimensions do not exist or are equal.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1i64, 2], [2])?.diag_embed(0, -2, -1)?;
    /// assert_eq!(x.to_vec::<i64>()?, [1, 0, 0, 2]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn diag_embed(&self, offset: isize, dim1: isize, dim2: isize) -> Result<Tensor> {
        let Some(&n) = self.dims().last() else {
            return Err(Error::shape("diag_embed", "rank 1 or more", self.shape()));
        };
        let full = Shape::from(vec![1; self.rank() + 1]);
        let dim1 = full.dim("diag_embed", dim1)?;
        let dim2 = full.dim("diag_embed", dim2)?;
        let Some(side) = n
            .checked_add(offset.unsigned_abs())
            .filter(|_| dim1 != dim2)
        else {
            return Err(Error::argument(
                "diag_embed",
                "two different dimensions and a moderate offset",
                format!("offset {offset}, dimensions {dim1} and {dim2}"),
            ));
        };
        let op = DiagonalEmbed {
            at: Diagonal { offset, dim1, dim2 },
            rows: side,
            columns: side,
        };
        apply1(&handle(op), &[self])
    }

    /// The lower triangle of matrices `[.., m, n]`: zeros where column - row > `diagonal`.
    ///
    /// # Errors
    /// When the rank is below 2.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// let causal = Tensor::ones([2, 2], DType::I64).tril(0)?;
    /// assert_eq!(causal.to_vec::<i64>()?, [1, 0, 1, 1]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn tril(&self, diagonal: i64) -> Result<Tensor> {
        let upper = false;
        apply1(&handle(Triangle { diagonal, upper }), &[self])
    }

    /// The upper triangle of matrices `[.., m, n]`: zeros where column - row < `diagonal`.
    ///
    /// # Errors
    /// When the rank is below 2.
    #[track_caller]
    pub fn triu(&self, diagonal: i64) -> Result<Tensor> {
        let upper = true;
        apply1(&handle(Triangle { diagonal, upper }), &[self])
    }

    /// Windows of `size` elements, `step` apart, along `dim`, as a new last dimension: a view of
    /// shape `[.., (n - size) / step + 1, .., size]`.
    ///
    /// # Errors
    /// When the window is larger than the dimension or the step is 0.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// let x = Tensor::arange(0.0, 5.0, 1.0, DType::I64)?.unfold(0, 3, 2)?;
    /// assert_eq!(x.to_vec::<i64>()?, [0, 1, 2, 2, 3, 4]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn unfold(&self, dim: isize, size: usize, step: usize) -> Result<Tensor> {
        let dim = self.shape().dim("unfold", dim)?;
        apply1(&handle(Unfold { dim, size, step }), &[self])
    }

    /// `[.., channel · r², height, width]` → `[.., channel, height · r, width · r]`: sub-pixel
    /// upsampling (Shi et al. 2016, arXiv 1609.05158).
    ///
    /// # Errors
    /// When the rank is below 3, `r` is 0, or the channels are no multiple of r².
    #[track_caller]
    pub fn pixel_shuffle(&self, r: usize) -> Result<Tensor> {
        let rank = self.rank();
        let square = r.checked_mul(r).filter(|&s| s > 0);
        let (Some(square), true) = (square, rank >= 3) else {
            return Err(Error::shape(
                "pixel_shuffle",
                "[.., channel · r², height, width] and r of at least 1",
                format!("{} and r = {r}", self.shape()),
            ));
        };
        let [channels, h, w] = self.dims()[rank - 3..] else {
            unreachable!("three dimensions were taken");
        };
        if channels % square != 0 {
            return Err(Error::shape(
                "pixel_shuffle",
                format!("a multiple of {square} channels"),
                self.shape(),
            ));
        }
        let lead = &self.dims()[..rank - 3];
        let shape = |tail: &[usize]| Shape::from([lead, tail].concat());
        let at = rank as isize - 3;
        // [c, r, r, h, w] → [c, h, r, w, r]
        let mut axes: Vec<isize> = (0..at).collect();
        axes.extend([0, 3, 1, 4, 2].map(|a| at + a));
        self.reshape(shape(&[channels / square, r, r, h, w]))?
            .permute(&axes)?
            .reshape(shape(&[channels / square, h * r, w * r]))
    }

    /// The inverse of [`Tensor::pixel_shuffle`].
    ///
    /// # Errors
    /// When the rank is below 3, or `r` does not divide height and width.
    #[track_caller]
    pub fn pixel_unshuffle(&self, r: usize) -> Result<Tensor> {
        let rank = self.rank();
        let fits = r > 0 && rank >= 3 && self.dims()[rank - 2..].iter().all(|n| n % r == 0);
        if !fits {
            return Err(Error::shape(
                "pixel_unshuffle",
                "[.., channel, height, width] with sizes divisible by r",
                format!("{} and r = {r}", self.shape()),
            ));
        }
        let [channels, h, w] = self.dims()[rank - 3..] else {
            unreachable!("three dimensions were taken");
        };
        let lead = &self.dims()[..rank - 3];
        let shape = |tail: &[usize]| Shape::from([lead, tail].concat());
        let at = rank as isize - 3;
        // [c, h, r, w, r] → [c, r, r, h, w]
        let mut axes: Vec<isize> = (0..at).collect();
        axes.extend([0, 2, 4, 1, 3].map(|a| at + a));
        self.reshape(shape(&[channels, h / r, r, w / r, r]))?
            .permute(&axes)?
            .reshape(shape(&[channels * r * r, h / r, w / r]))
    }

    /// The products of all pairs of elements of two vectors, `[n]` and `[m]` → `[n, m]`.
    ///
    /// # Errors
    /// When either is not a vector.
    #[track_caller]
    pub fn outer(&self, other: &Tensor) -> Result<Tensor> {
        if self.rank() != 1 || other.rank() != 1 {
            return Err(Error::shape(
                "outer",
                "two vectors",
                format!("{} and {}", self.shape(), other.shape()),
            ));
        }
        self.unsqueeze(1)?.mul(other)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "diagonal",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(2..=4);
            let dim1 = g.range(0, shape.rank());
            let dim2 = (dim1 + g.range(1, shape.rank())) % shape.rank();
            let offset = g.range(0, 9) as isize - 4;
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?
                    .diagonal(offset, dim1 as isize, dim2 as isize)?
                    .square()
            }))
        },
    },
    Entry {
        name: "diag_embed",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(1..=3);
            let rank = shape.rank() + 1;
            let dim1 = g.range(0, rank);
            let dim2 = (dim1 + g.range(1, rank)) % rank;
            let offset = g.range(0, 5) as isize - 2;
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?
                    .diag_embed(offset, dim1 as isize, dim2 as isize)?
                    .square()
            }))
        },
    },
    Entry {
        name: "tril",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(2..=4);
            let k = g.range(0, 9) as i64 - 4;
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.tril(k)?.square()
            }))
        },
    },
    Entry {
        name: "triu",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(2..=4);
            let k = g.range(0, 9) as i64 - 4;
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.triu(k)?.square()
            }))
        },
    },
    Entry {
        name: "unfold",
        kind: "linear",
        sample: |g| {
            let shape = g.shape(0..=3);
            let dim = g.range(0, shape.rank().max(1));
            let n = shape.get(dim).copied().unwrap_or(1);
            let (size, step) = (g.range(0, n + 1), g.range(1, 4));
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.unfold(dim as isize, size, step)?.square()
            }))
        },
    },
    Entry {
        name: "pixel_shuffle",
        kind: "linear",
        sample: |g| {
            let mut shape = g.shape(1..=3);
            let r = g.range(1, 3);
            let channels = shape.rank() - 1;
            shape.dims_mut()[channels] *= r * r;
            shape.push(g.range(1, 3));
            shape.push(g.range(0, 3));
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.pixel_shuffle(r)?.square()
            }))
        },
    },
    Entry {
        name: "pixel_unshuffle",
        kind: "linear",
        sample: |g| {
            let mut shape = g.shape(1..=2);
            let r = g.range(1, 3);
            shape.push(r * g.range(1, 3));
            shape.push(r * g.range(0, 3));
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].sin()?.pixel_unshuffle(r)?.square()
            }))
        },
    },
    Entry {
        name: "outer",
        kind: "pointwise",
        sample: |g| {
            let (n, m) = (g.range(0, 5), g.range(0, 5));
            let inputs = vec![g.tensor([n], -2.0, 2.0), g.tensor([m], -2.0, 2.0)];
            Ok(Sample::one(inputs, |t| t[0].outer(&t[1])))
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

    /// Values from PyTorch 2.15.
    #[test]
    fn diagonals_and_windows_follow_pytorch() {
        let x = iota(&[2, 3, 4]);
        let d = x.diagonal(-1, 1, 0).unwrap();
        assert_eq!(d.dims(), [4, 2]);
        assert_eq!(d.to_vec::<i64>().unwrap(), [4, 20, 5, 21, 6, 22, 7, 23]);
        let e = iota(&[2, 2]).diag_embed(-1, 0, 2).unwrap();
        assert_eq!(e.dims(), [3, 2, 3]);
        assert_eq!(
            e.to_vec::<i64>().unwrap(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 3, 0]
        );
        let p = iota(&[4, 1, 2]).pixel_shuffle(2).unwrap();
        assert_eq!(p.dims(), [1, 2, 4]);
        assert_eq!(p.to_vec::<i64>().unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        let back = p.pixel_unshuffle(2).unwrap();
        assert_eq!(back.to_vec::<i64>().unwrap(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn impossible_arguments_are_refused() {
        let x = Tensor::zeros([2, 3], DType::F32);
        assert!(x.diagonal(0, 1, 1).is_err() && x.diagonal(0, 0, 2).is_err());
        assert!(Tensor::scalar(1.0f32).diagonal(0, 0, 0).is_err());
        assert!(x.diag_embed(isize::MAX, 0, 1).is_err() && x.diag_embed(0, 1, 1).is_err());
        assert!(x.unfold(1, 4, 1).is_err() && x.unfold(1, 2, 0).is_err());
        assert!(x.pixel_shuffle(2).is_err() && x.pixel_unshuffle(0).is_err());
        assert!(x.outer(&x).is_err() && Tensor::scalar(1.0f32).tril(0).is_err());
        assert_eq!(x.diagonal(9, 0, 1).unwrap().dims(), [0]);
        assert_eq!(x.diagonal(isize::MIN, 0, 1).unwrap().dims(), [0]);
    }
}
