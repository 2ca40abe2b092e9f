//! Indexing in several dimensions at once: numbers, ranges, steps, new axes and an ellipsis.
//!
//! A composition of `slice` and `reshape`, so it is a view and differentiable; index tensors go
//! through `index_select` and `gather`.

use std::ops::{Range, RangeFrom, RangeFull, RangeTo};

use entrenar_base::{Error, Result};

use crate::Tensor;
use crate::registry::{Entry, Sample};

/// One position of [`Tensor::index`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// One index (negative counts from the end); the dimension disappears.
    At(isize),
    /// `start..end` by `step`; negative bounds count from the end, too large ones are clipped.
    Range {
        /// First index.
        start: Option<isize>,
        /// One past the last index.
        end: Option<isize>,
        /// Distance, at least 1.
        step: usize,
    },
    /// A new dimension of size 1.
    NewAxis,
    /// All dimensions that the other entries leave over.
    Ellipsis,
}

impl Index {
    /// Every `step`-th index.
    pub fn every(step: usize) -> Index {
        Index::Range {
            start: None,
            end: None,
            step,
        }
    }
}

impl From<isize> for Index {
    fn from(i: isize) -> Index {
        Index::At(i)
    }
}
impl From<RangeFull> for Index {
    fn from(_: RangeFull) -> Index {
        Index::every(1)
    }
}
impl From<Range<isize>> for Index {
    fn from(r: Range<isize>) -> Index {
        Index::Range {
            start: Some(r.start),
            end: Some(r.end),
            step: 1,
        }
    }
}
impl From<RangeFrom<isize>> for Index {
    fn from(r: RangeFrom<isize>) -> Index {
        Index::Range {
            start: Some(r.start),
            end: None,
            step: 1,
        }
    }
}
impl From<RangeTo<isize>> for Index {
    fn from(r: RangeTo<isize>) -> Index {
        Index::Range {
            start: None,
            end: Some(r.end),
            step: 1,
        }
    }
}

impl Tensor {
    /// Python's `t[i, a:b, ..., None]`; missing trailing entries mean everything.
    ///
    /// # Errors
    /// When an index lies outside its dimension, a step is 0, there are more entries than
    /// dimensions, or two ellipses.
    ///
    /// ```
    /// use entrenar_core::{Tensor, DType, ops::Index};
    /// let t = Tensor::arange(0.0, 12.0, 1.0, DType::I64)?.reshape([3, 4])?;
    /// assert_eq!(t.index(&[(-1).into()])?.to_vec::<i64>()?, [8, 9, 10, 11]);
    /// assert_eq!(t.index(&[(..2).into(), (1..).into()])?.dims(), [2, 3]);
    /// assert_eq!(t.index(&[Index::Ellipsis, 0.into()])?.to_vec::<i64>()?, [0, 4, 8]);
    /// assert_eq!(t.index(&[Index::NewAxis, Index::every(2)])?.dims(), [1, 2, 4]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn index(&self, entries: &[Index]) -> Result<Tensor> {
        let used = entries
            .iter()
            .filter(|e| matches!(e, Index::At(_) | Index::Range { .. }))
            .count();
        let ellipses = entries.iter().filter(|e| **e == Index::Ellipsis).count();
        if used > self.rank() || ellipses > 1 {
            return Err(Error::index(
                "index",
                format!(
                    "at most {} entries and one ellipsis for shape {}",
                    self.rank(),
                    self.shape()
                ),
                format!("{entries:?}"),
            ));
        }
        let mut out = self.clone();
        let mut dim = 0;
        for entry in entries {
            let size = out.dims().get(dim).copied().unwrap_or(0);
            match *entry {
                Index::At(i) => {
                    let at = if i < 0 { i + size as isize } else { i };
                    if at < 0 || at >= size as isize {
                        return Err(Error::index(
                            "index",
                            format!(
                                "an index in -{size}..{size} for dimension {dim} of {}",
                                out.shape()
                            ),
                            i,
                        ));
                    }
                    out = out.select(dim as isize, at as usize)?;
                }
                Index::Range { start, end, step } => {
                    let clip = |b: isize| {
                        (if b < 0 { b + size as isize } else { b }).clamp(0, size as isize) as usize
                    };
                    let (start, end) = (start.map_or(0, clip), end.map_or(size, clip));
                    out = out.slice(dim as isize, start, end.max(start), step)?;
                    dim += 1;
                }
                Index::NewAxis => {
                    out = out.unsqueeze(dim as isize)?;
                    dim += 1;
                }
                Index::Ellipsis => dim += self.rank() - used,
            }
        }
        Ok(out)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "index",
    kind: "linear",
    sample: |g| {
        let mut shape = g.shape(1..=4);
        shape.dims_mut().iter_mut().for_each(|d| *d = (*d).max(1));
        let entries: Vec<Index> = shape
            .iter()
            .map(|&n| match g.range(0, 3) {
                0 => Index::At(g.range(0, 2 * n) as isize - n as isize),
                1 => ((g.range(0, n) as isize)..(n as isize)).into(),
                _ => Index::every(g.range(1, 3)),
            })
            .chain([Index::NewAxis])
            .collect();
        Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
            t[0].square()?.index(&entries)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn bounds_and_counts_are_checked() {
        let t = Tensor::zeros([2, 3], DType::F32);
        assert!(
            t.index(&[2.into()])
                .unwrap_err()
                .to_string()
                .contains("-2..2")
        );
        assert!(t.index(&[(-3).into()]).is_err());
        assert!(t.index(&[0.into(), 0.into(), 0.into()]).is_err());
        assert!(t.index(&[Index::Ellipsis, Index::Ellipsis]).is_err());
        assert!(t.index(&[Index::every(0)]).is_err());
        assert_eq!(
            t.index(&[(5..9).into()]).unwrap().dims(),
            [0, 3],
            "ranges are clipped, as in Python"
        );
        assert_eq!(t.index(&[]).unwrap().dims(), [2, 3]);
    }

    #[test]
    fn entries_walk_the_dimensions() {
        let x = Tensor::arange(0.0, 24.0, 1.0, DType::I64).unwrap();
        let x = x.reshape([2, 3, 4]).unwrap();
        let found = |entries: &[Index]| {
            let y = x.index(entries).unwrap();
            (y.dims().to_vec(), y.to_vec::<i64>().unwrap())
        };
        let (dots, new) = (Index::Ellipsis, Index::NewAxis);
        let at = |i: isize| Index::At(i);
        let column: Vec<i64> = vec![1, 5, 9, 13, 17, 21];
        assert_eq!(found(&[dots.clone(), at(1)]), (vec![2, 3], column.clone()));
        assert_eq!(
            found(&[(..).into(), dots.clone(), at(-3)]),
            (vec![2, 3], column)
        );
        let row: Vec<i64> = (12..16).collect();
        assert_eq!(found(&[at(1), at(0), dots.clone()]), (vec![4], row.clone()));
        assert_eq!(found(&[at(-1), at(-3)]), (vec![4], row.clone()));
        assert_eq!(
            found(&[at(1), dots.clone(), at(0)]),
            (vec![3], vec![12, 16, 20])
        );
        assert_eq!(
            found(&[at(1), new.clone(), at(0)]),
            (vec![1, 4], row.clone())
        );
        assert_eq!(
            found(&[new.clone(), at(1), at(0), new.clone()]),
            (vec![1, 1, 4], row)
        );
        assert_eq!(
            found(&[dots.clone(), new, at(3)]),
            (vec![2, 3, 1], vec![3, 7, 11, 15, 19, 23])
        );
        assert_eq!(
            found(&[at(0), (1..3).into(), (2..).into()]),
            (vec![2, 2], vec![6, 7, 10, 11])
        );
        assert_eq!(
            found(&[at(0), (-1..).into(), (..-3).into()]),
            (vec![1, 1], vec![8])
        );
        assert_eq!(
            found(&[at(0), at(0), Index::every(3)]),
            (vec![2], vec![0, 3])
        );
        let backwards = Index::Range {
            start: Some(3),
            end: Some(1),
            step: 1,
        };
        let odd = Index::Range {
            start: Some(1),
            end: Some(-1),
            step: 2,
        };
        assert_eq!(found(&[at(0), at(1), odd]), (vec![1], vec![5]));
        assert_eq!(found(&[at(0), at(1), backwards]), (vec![0], vec![]));
    }
}
