//! Walking strided layouts: dimensions collapsed, elements met as runs of equal stride.
//!
//! Every kernel that accepts any layout goes through here, so that the inner loops elsewhere see
//! only "`len` elements from `position`, `stride` apart". Order is always row-major.

use entrenar_base::Layout;
use smallvec::SmallVec;
use std::ops::Range;

/// A layout without dimensions of size 1, neighbours merged where strides allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    dims: SmallVec<[usize; 6]>,
    strides: SmallVec<[isize; 6]>,
    offset: isize,
}

impl Walk {
    pub(crate) fn new(layout: &Layout) -> Walk {
        Self::of(layout.shape(), layout.strides(), layout.offset())
    }

    /// From parts; `strides` has the length of `shape`.
    pub(crate) fn of(shape: &[usize], strides: &[isize], offset: usize) -> Walk {
        let mut dims: SmallVec<[usize; 6]> = SmallVec::new();
        let mut kept: SmallVec<[isize; 6]> = SmallVec::new();
        for (&dim, &stride) in shape.iter().zip(strides) {
            if dim == 1 {
                continue;
            }
            match (dims.last_mut(), kept.last_mut()) {
                (Some(d), Some(s)) if *s == stride * dim as isize => {
                    *d *= dim;
                    *s = stride;
                }
                _ => {
                    dims.push(dim);
                    kept.push(stride);
                }
            }
        }
        if dims.is_empty() {
            dims.push(1);
            kept.push(1);
        }
        Walk {
            dims,
            strides: kept,
            offset: offset as isize,
        }
    }

    /// Collapsed sizes, at least one.
    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Strides of [`Walk::dims`].
    pub(crate) fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Position of the first element.
    pub(crate) fn offset(&self) -> isize {
        self.offset
    }

    /// Stride of the innermost dimension.
    pub(crate) fn inner_stride(&self) -> isize {
        self.strides[self.strides.len() - 1]
    }

    /// Covers the row-major elements of `range` with calls `run(position, stride, len)`.
    #[inline(always)]
    pub(crate) fn runs(&self, range: Range<usize>, mut run: impl FnMut(usize, isize, usize)) {
        let mut left = range.len();
        if left == 0 {
            return;
        }
        let last = self.dims.len() - 1;
        let (inner, stride) = (self.dims[last], self.strides[last]);
        if last == 0 {
            let at = self.offset + range.start as isize * stride;
            return run(at as usize, stride, left);
        }
        let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, last);
        let mut at = self.offset;
        let mut rest = range.start / inner;
        for d in (0..last).rev() {
            index[d] = rest % self.dims[d];
            rest /= self.dims[d];
            at += index[d] as isize * self.strides[d];
        }
        let mut column = range.start % inner;
        loop {
            let len = (inner - column).min(left);
            run((at + column as isize * stride) as usize, stride, len);
            left -= len;
            if left == 0 {
                return;
            }
            column = 0;
            for d in (0..last).rev() {
                index[d] += 1;
                at += self.strides[d];
                if index[d] < self.dims[d] {
                    break;
                }
                at -= self.strides[d] * self.dims[d] as isize;
                index[d] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::strided;
    use proptest::prelude::*;

    #[test]
    fn neighbours_merge() {
        let l = Layout::contiguous([2, 1, 3, 4]);
        assert_eq!(Walk::new(&l).dims(), [24]);
        let t = l.permute(&[3, 0, 1, 2]).unwrap();
        let w = Walk::new(&t);
        assert_eq!((w.dims(), w.strides()), (&[4, 6][..], &[1, 4][..]));
        let scalar = Walk::new(&Layout::contiguous(()));
        assert_eq!((scalar.dims(), scalar.strides()), (&[1][..], &[1][..]));
    }

    proptest! {
        /// Runs over any range visit the layout's own positions in order.
        #[test]
        fn runs_visit_the_positions(a in strided(), cut in 0usize..50, len in 0usize..50) {
            let all: Vec<usize> = a.layout().positions().collect();
            let start = cut.min(all.len());
            let end = (start + len).min(all.len());
            let mut seen = Vec::new();
            Walk::new(a.layout()).runs(start..end, |at, stride, len| {
                seen.extend((0..len as isize).map(|i| (at as isize + i * stride) as usize));
            });
            prop_assert_eq!(&seen[..], &all[start..end]);
        }
    }
}
