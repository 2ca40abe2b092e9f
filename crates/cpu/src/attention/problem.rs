//! Shapes, strides, masks and limits of one attention problem, as its kernels read them.

use entrenar_base::{Array, DType, Element, Error, Float, Philox, Result, Shape};

use super::pack::Rows;
use super::tile::{Left, Precision, Right, Tile, product};
use super::{Attention, Dropout, rows};
use crate::kit::{self, Real};
use crate::random;

/// Sizes of a problem: q `[batch, heads, queries, width]`, k `[batch, groups, keys, width]`,
/// v `[batch, groups, keys, value_width]`.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub groups: usize,
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub value_width: usize,
}

impl Sizes {
    #[track_caller]
    pub(super) fn of(op: &str, a: &Attention<'_>) -> Result<Sizes> {
        let (q, k, v) = (a.query, a.key, a.value);
        kit::same_dtype(op, q, k)?;
        kit::same_dtype(op, q, v)?;
        if let (
            &[batch, heads, queries, width],
            &[kb, groups, keys, kw],
            &[vb, vg, vs, value_width],
        ) = (q.dims(), k.dims(), v.dims())
        {
            let agree = kb == batch && vb == batch && vg == groups && vs == keys && kw == width;
            let grouped = groups > 0 && heads.is_multiple_of(groups) || heads == groups;
            if agree && grouped {
                return Ok(Sizes {
                    batch,
                    heads,
                    groups,
                    queries,
                    keys,
                    width,
                    value_width,
                });
            }
        }
        Err(Error::shape(
            op,
            "q [B, H, T, D], k [B, G, S, D] and v [B, G, S, E] with H a multiple of G",
            format!("{}, {} and {}", q.shape(), k.shape(), v.shape()),
        ))
    }

    /// Heads per group.
    pub(super) fn share(&self) -> usize {
        self.heads / self.groups.max(1)
    }
}

/// A rank-4 array `[batch, head, row, channel]` whose rows have no gaps.
pub(super) struct Heads<'a, T> {
    data: &'a [T],
    strides: [isize; 4],
    offset: isize,
}

impl<'a, T: Element> Heads<'a, T> {
    pub(super) fn new(array: &'a Array) -> Result<Self> {
        let view = array.view::<T>()?;
        let s = view.strides();
        Ok(Heads {
            data: view.data(),
            strides: [s[0], s[1], s[2], s[3]],
            offset: view.offset() as isize,
        })
    }

    /// The first `width` channels of `count` rows from `first` on.
    pub(super) fn rows(
        &self,
        (batch, head, first): (usize, usize, usize),
        count: usize,
        width: usize,
    ) -> Rows<'a, T> {
        let [b, h, r, _] = self.strides;
        Rows {
            data: self.data,
            start: self.offset + batch as isize * b + head as isize * h + first as isize * r,
            stride: r,
            count,
            width,
        }
    }
}

/// The array, copied when its last dimension has gaps.
pub(super) fn readable(x: &Array) -> Result<Array> {
    let last = x.rank() - 1;
    if x.dims()[last] <= 1 || x.layout().strides()[last] == 1 {
        Ok(x.clone())
    } else {
        kit::contiguous(x)
    }
}

/// What the mask adds to scores.
pub(super) enum Mask<'a, T> {
    None,
    Add(Heads<'a, T>),
    Keep(Heads<'a, bool>),
}

impl<'a, T: Real> Mask<'a, T> {
    /// From what [`broadcast_mask`] returned.
    pub(super) fn of(mask: Option<&'a Array>) -> Result<Self> {
        Ok(match mask {
            None => Mask::None,
            Some(m) if m.dtype() == DType::Bool => Mask::Keep(Heads::new(m)?),
            Some(m) => Mask::Add(Heads::new(m)?),
        })
    }

    /// Applies the mask to the scores of one query against keys from `first` on.
    fn apply(&self, scores: &mut [T], at: (usize, usize, usize), first: usize) {
        fn start<T>(mask: &Heads<'_, T>, at: (usize, usize, usize), first: usize) -> isize {
            let s = &mask.strides;
            mask.offset
                + at.0 as isize * s[0]
                + at.1 as isize * s[1]
                + at.2 as isize * s[2]
                + first as isize * s[3]
        }
        match self {
            Mask::None => {}
            Mask::Add(mask) => {
                let at = start(mask, at, first);
                for (j, s) in scores.iter_mut().enumerate() {
                    *s += mask.data[(at + j as isize * mask.strides[3]) as usize];
                }
            }
            Mask::Keep(mask) => {
                let at = start(mask, at, first);
                for (j, s) in scores.iter_mut().enumerate() {
                    if !mask.data[(at + j as isize * mask.strides[3]) as usize] {
                        *s = T::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The mask stretched over all scores: bool as it is, floats in the compute dtype.
#[track_caller]
pub(super) fn broadcast_mask(
    op: &str,
    mask: Option<&Array>,
    z: &Sizes,
    dtype: DType,
) -> Result<Option<Array>> {
    let Some(mask) = mask else { return Ok(None) };
    let scores = Shape::from([z.batch, z.heads, z.queries, z.keys]);
    if mask.dtype() != DType::Bool && !mask.dtype().is_float() {
        return Err(Error::dtype(
            op,
            "a mask of bool (true = attend) or of a float dtype (added)",
            mask.dtype(),
        ));
    }
    let mask = if mask.dtype() == DType::Bool {
        mask.clone()
    } else {
        kit::cast(mask, dtype)?
    };
    let stretched = mask.broadcast_to(&scores).map_err(|_| {
        Error::shape(
            op,
            format!("a mask that broadcasts to {scores}"),
            mask.shape(),
        )
    })?;
    Ok(Some(stretched))
}

/// The number of keys of each batch entry.
#[track_caller]
pub(super) fn key_counts(
    op: &str,
    lengths: Option<&Array>,
    z: &Sizes,
) -> Result<Option<Vec<usize>>> {
    let Some(lengths) = lengths else {
        return Ok(None);
    };
    if lengths.dims() != [z.batch] {
        return Err(Error::shape(
            op,
            format!("lengths of shape [{}]", z.batch),
            lengths.shape(),
        ));
    }
    let counts = kit::integers(op, lengths)?;
    Ok(Some(
        counts
            .iter()
            .map(|&n| usize::try_from(n).unwrap_or(0).min(z.keys))
            .collect(),
    ))
}

/// One problem in one precision.
pub(super) struct Problem<'a, P: Precision> {
    pub z: Sizes,
    pub q: Heads<'a, P::Source>,
    pub k: Heads<'a, P::Source>,
    pub v: Heads<'a, P::Source>,
    pub tile: Tile<P::Sum, P::Operand>,
    mask: Mask<'a, P::Sum>,
    counts: Option<Vec<usize>>,
    /// What scores are multiplied by before the mask; 1 where `fold` does it.
    before: P::Sum,
    /// What scores are multiplied by in the exponential.
    pub fold: P::Sum,
    /// Both together: the scale of the score gradients.
    pub scale: P::Sum,
    causal: bool,
    dropout: Option<Dropout>,
}

impl<'a, P: Precision> Problem<'a, P> {
    pub(super) fn new(
        a: &Attention<'_>,
        z: Sizes,
        [q, k, v]: [&'a Array; 3],
        mask: Option<&'a Array>,
        counts: Option<Vec<usize>>,
    ) -> Result<Self> {
        let scale = P::Sum::of(a.scale);
        // A running maximum of unscaled scores is one of scaled scores for positive scales only.
        let (before, fold) = if mask.is_none() && a.scale > 0.0 {
            (P::Sum::ONE, scale)
        } else {
            (scale, P::Sum::ONE)
        };
        Ok(Problem {
            z,
            q: Heads::new(q)?,
            k: Heads::new(k)?,
            v: Heads::new(v)?,
            tile: P::tile(),
            mask: Mask::of(mask)?,
            counts,
            before,
            fold,
            scale,
            causal: a.causal,
            dropout: a.dropout,
        })
    }

    /// Keys that the queries before `end` may see.
    pub(super) fn visible(&self, batch: usize, end: usize) -> usize {
        let all = self.counts.as_ref().map_or(self.z.keys, |c| c[batch]);
        if self.causal { end.min(all) } else { all }
    }

    /// Scores of a block: q·kᵀ, scaled and masked unless the exponential does that. Rows are
    /// `width` apart and `count` of them are real.
    pub(super) fn scores(
        &self,
        out: &mut [P::Sum],
        (rows, width, count): (usize, usize, usize),
        q: Left<'_, P::Operand>,
        k: Right<'_, P::Operand>,
        (batch, head, query): (usize, usize, usize),
        first: usize,
    ) {
        product(&self.tile, out, width, (rows, width, k.steps), q, k, false);
        if self.before == P::Sum::ONE && matches!(self.mask, Mask::None) {
            return;
        }
        for (i, row) in out.chunks_exact_mut(width).take(count).enumerate() {
            let seen = self.seen(batch, query + i, first, width);
            rows::scale_row(&mut row[..seen], self.before);
            self.mask
                .apply(&mut row[..seen], (batch, head, query + i), first);
        }
    }

    /// How many of the `width` keys from `first` on the query may see.
    pub(super) fn seen(&self, batch: usize, query: usize, first: usize, width: usize) -> usize {
        self.visible(batch, query + 1)
            .saturating_sub(first)
            .min(width)
    }

    /// What dropout multiplies the weights of one query by, for keys from `first` on.
    pub(super) fn dropout_factors<'f>(
        &self,
        (batch, head, query): (usize, usize, usize),
        first: usize,
        factors: &'f mut [P::Sum],
    ) -> Option<&'f [P::Sum]> {
        let d = self.dropout?;
        let z = &self.z;
        let at = ((batch * z.heads + head) * z.queries + query) * z.keys + first;
        let rng = Philox::new(d.seed, d.stream);
        random::dropout_factors(&rng, d.keep, at..at + factors.len(), factors);
        Some(factors)
    }
}
