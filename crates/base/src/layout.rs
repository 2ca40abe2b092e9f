//! How a shape lies in storage: strides and offset, in elements.
//!
//! All view operations of the library are methods here; they compute a new layout over the same
//! storage or say that none exists (`reshape`). Strides may be zero (broadcast) or negative (flip).

use smallvec::SmallVec;
use std::fmt;
use std::ptr::addr_of_mut;

use crate::shape::copied;
use crate::{Error, Result, Shape};

/// Shape, strides and offset of a view into storage.
#[derive(PartialEq, Eq)]
pub struct Layout {
    shape: Shape,
    strides: SmallVec<[isize; 6]>,
    offset: usize,
    /// Follow from the fields above; every kernel asks.
    numel: usize,
    contiguous: bool,
}

impl Clone for Layout {
    #[inline]
    fn clone(&self) -> Self {
        Layout {
            shape: self.shape.clone(),
            strides: copied(&self.strides),
            ..*self
        }
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layout")
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .field("offset", &self.offset)
            .finish()
    }
}

/// True when elements lie row-major without gaps.
fn without_gaps(dims: &[usize], strides: &[isize]) -> bool {
    let mut step = 1isize;
    for (&dim, &stride) in dims.iter().zip(strides).rev() {
        if dim == 0 {
            return true;
        }
        if dim != 1 {
            if stride != step {
                return false;
            }
            step *= dim as isize;
        }
    }
    true
}

/// Row-major strides of `dims`.
#[inline]
fn row_major(dims: &[usize]) -> SmallVec<[isize; 6]> {
    if dims.len() > 6 {
        let mut strides = SmallVec::from_elem(1isize, dims.len());
        fill_row_major(&mut strides, dims);
        return strides;
    }
    let mut strides = [1isize; 6];
    fill_row_major(&mut strides[..dims.len()], dims);
    SmallVec::from_buf_and_len(strides, dims.len())
}

#[inline]
fn fill_row_major(strides: &mut [isize], dims: &[usize]) {
    let mut step = 1isize;
    for (stride, &dim) in strides.iter_mut().zip(dims).rev() {
        *stride = step;
        step = step.saturating_mul(dim.max(1) as isize);
    }
}

impl Layout {
    /// Row-major layout without gaps.
    pub fn contiguous(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        Layout {
            strides: row_major(&shape),
            offset: 0,
            numel: shape.numel(),
            contiguous: true,
            shape,
        }
    }

    /// Writes [`Layout::contiguous`] of a shape whose elements were counted.
    ///
    /// # Safety
    /// `at` is valid and aligned for writing; what lay there is forgotten. All of it is written.
    #[inline]
    pub(crate) unsafe fn write_counted(at: *mut Layout, shape: &Shape, numel: usize) {
        debug_assert_eq!(numel, shape.numel());
        // A further field would have to be written too.
        let _all = |Layout {
                        shape: _,
                        strides: _,
                        offset: _,
                        numel: _,
                        contiguous: _,
                    }: &Layout| ();
        // SAFETY: by the caller's promise.
        unsafe {
            addr_of_mut!((*at).shape).write(shape.clone());
            addr_of_mut!((*at).strides).write(row_major(shape));
            addr_of_mut!((*at).offset).write(0);
            addr_of_mut!((*at).numel).write(numel);
            addr_of_mut!((*at).contiguous).write(true);
        }
    }

    fn new(shape: Shape, strides: SmallVec<[isize; 6]>, offset: usize) -> Self {
        Layout {
            numel: shape.numel(),
            contiguous: without_gaps(&shape, &strides),
            shape,
            strides,
            offset,
        }
    }

    /// The shape.
    #[inline]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Number of elements.
    #[inline]
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// Elements to skip per step of each dimension.
    #[inline]
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Position of the first element.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// True when elements lie row-major without gaps (the offset may be anything).
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.contiguous
    }

    /// Smallest and largest element position touched, or `None` when there is no element.
    ///
    /// A position that overflows is the farthest one there is, which no storage holds: unsafe
    /// kernels rely on whoever compares these numbers with a length.
    pub fn bounds(&self) -> Option<(isize, isize)> {
        let start = isize::try_from(self.offset).unwrap_or(isize::MAX);
        let (mut low, mut high) = (start, start);
        for (&dim, &stride) in self.shape.iter().zip(&self.strides) {
            let steps = isize::try_from(dim.checked_sub(1)?).unwrap_or(isize::MAX);
            let reach = steps.saturating_mul(stride);
            // Each end only ever moves outwards, so that saturation sticks.
            if reach < 0 {
                low = low.saturating_add(reach)
            } else {
                high = high.saturating_add(reach)
            }
        }
        Some((low, high))
    }

    /// Whether every element lies within `len` elements of storage.
    pub(crate) fn fits(&self, len: usize) -> bool {
        self.bounds()
            .is_none_or(|(low, high)| low >= 0 && (high as usize) < len)
    }

    /// Dimensions reordered: `out[i] = self[axes[i]]`.
    ///
    /// # Errors
    /// When `axes` is not a permutation of `0..rank`.
    #[track_caller]
    pub fn permute(&self, axes: &[usize]) -> Result<Layout> {
        let mut seen: SmallVec<[bool; 6]> = SmallVec::from_elem(false, self.shape.rank());
        let valid = axes.len() == self.shape.rank()
            && axes
                .iter()
                .all(|&a| a < seen.len() && !std::mem::replace(&mut seen[a], true));
        if !valid {
            return Err(Error::argument(
                "permute",
                format!("a permutation of the dimensions of {}", self.shape),
                format!("{axes:?}"),
            ));
        }
        Ok(Layout::new(
            axes.iter().map(|&a| self.shape[a]).collect(),
            axes.iter().map(|&a| self.strides[a]).collect(),
            self.offset,
        ))
    }

    /// Every `step`-th index of `start..end` along `dim`.
    ///
    /// # Errors
    /// When the range leaves the dimension or `step` is 0.
    #[track_caller]
    pub fn slice(&self, dim: usize, start: usize, end: usize, step: usize) -> Result<Layout> {
        let size = *self
            .shape
            .get(dim)
            .ok_or_else(|| Error::index("slice", format!("a dimension of {}", self.shape), dim))?;
        if start > end || end > size || step == 0 {
            return Err(Error::index(
                "slice",
                format!(
                    "start <= end <= {size} and step >= 1 in dimension {dim} of {}",
                    self.shape
                ),
                format!("{start}..{end} step {step}"),
            ));
        }
        let (mut shape, mut strides) = (self.shape.clone(), copied(&self.strides));
        shape.dims_mut()[dim] = (end - start).div_ceil(step);
        let mut offset = self.offset;
        if start < size {
            offset = (offset as isize + start as isize * strides[dim]) as usize;
        }
        // A step that is never taken may be too large to multiply with.
        if shape[dim] > 1 {
            strides[dim] *= step as isize;
        }
        Ok(Layout::new(shape, strides, offset))
    }

    /// The dimension walked backwards.
    pub fn flip(&self, dim: usize) -> Layout {
        let (mut strides, mut offset) = (copied(&self.strides), self.offset);
        if self.shape[dim] > 0 {
            let last = (self.shape[dim] as isize - 1) * strides[dim];
            offset = (offset as isize + last) as usize;
        }
        strides[dim] = -strides[dim];
        Layout::new(self.shape.clone(), strides, offset)
    }

    /// Stretched to `shape` with zero strides.
    ///
    /// # Errors
    /// When a size differs and is not 1, the rank would shrink, or the number of elements
    /// overflows.
    #[track_caller]
    pub fn broadcast_to(&self, shape: &Shape) -> Result<Layout> {
        shape.checked_numel_for("broadcast_to")?;
        let fail = || {
            Error::shape(
                "broadcast_to",
                format!("a shape that broadcasts to {shape}"),
                &self.shape,
            )
        };
        let lead = shape
            .rank()
            .checked_sub(self.shape.rank())
            .ok_or_else(fail)?;
        let mut strides: SmallVec<[isize; 6]> = SmallVec::from_elem(0, shape.rank());
        for (i, (&dim, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            if dim == shape[lead + i] {
                strides[lead + i] = stride;
            } else if dim != 1 {
                return Err(fail());
            }
        }
        Ok(Layout::new(shape.clone(), strides, self.offset))
    }

    /// The same elements in the same order under another shape, if strides can express it.
    ///
    /// `None` means that a copy is needed. The caller has checked that counts agree.
    pub fn reshape(&self, shape: &Shape) -> Option<Layout> {
        if self.is_contiguous() {
            let mut out = Layout::contiguous(shape.clone());
            out.offset = self.offset;
            return Some(out);
        }
        // Walk both shapes from the left, matching groups of dimensions with equal products;
        // inside a group the old dimensions must be mutually contiguous.
        let old: SmallVec<[(usize, isize); 6]> = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|(d, _)| **d != 1)
            .map(|(&d, &s)| (d, s))
            .collect();
        let mut strides: SmallVec<[isize; 6]> = SmallVec::from_elem(1, shape.rank());
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let start_new = j;
            let (mut have, mut want) = (old[i].0, 1);
            let start_old = i;
            i += 1;
            while want != have {
                if want < have {
                    want *= *shape.get(j)?;
                    j += 1;
                } else {
                    have *= old.get(i)?.0;
                    i += 1;
                }
            }
            for k in start_old..i - 1 {
                if old[k].1 != old[k + 1].1 * old[k + 1].0 as isize {
                    return None;
                }
            }
            let mut step = old[i - 1].1;
            for k in (start_new..j).rev() {
                strides[k] = step;
                step *= shape[k] as isize;
            }
        }
        Some(Layout::new(shape.clone(), strides, self.offset))
    }

    /// A view by explicit strides (diagonals, sliding windows).
    ///
    /// # Errors
    /// When a position would leave `0..len` elements of storage, or the number of elements
    /// overflows.
    #[track_caller]
    pub fn strided(shape: Shape, strides: &[isize], offset: usize, len: usize) -> Result<Layout> {
        if shape.rank() != strides.len() {
            return Err(Error::argument(
                "as_strided",
                format!("{} strides for shape {shape}", shape.rank()),
                format!("{strides:?}"),
            ));
        }
        let count = shape.checked_numel_for("as_strided")?;
        let out = Layout::new(shape, SmallVec::from_slice(strides), offset);
        if !out.fits(len) {
            let (low, high) = out.bounds().unwrap_or_default();
            return Err(Error::index(
                "as_strided",
                format!("positions within 0..{len}"),
                format!(
                    "{low}..={high} from shape {}, strides {strides:?}, offset {offset}",
                    out.shape
                ),
            ));
        }
        // Steps that are never taken may be anything: forget them, so that sums and products of
        // what remains cannot overflow.
        let mut strides = out.strides;
        for (stride, &dim) in strides.iter_mut().zip(&*out.shape) {
            if dim <= 1 || count == 0 {
                *stride = 0;
            }
        }
        let offset = if count == 0 { 0 } else { offset };
        Ok(Layout::new(out.shape, strides, offset))
    }

    /// Offsets of all elements in row-major order.
    pub fn positions(&self) -> Positions<'_> {
        Positions {
            layout: self,
            index: SmallVec::from_elem(0, self.shape.rank()),
            at: self.offset as isize,
            left: self.numel,
        }
    }
}

/// Iterator over storage positions; see [`Layout::positions`].
pub struct Positions<'a> {
    layout: &'a Layout,
    index: SmallVec<[usize; 6]>,
    at: isize,
    left: usize,
}

impl Iterator for Positions<'_> {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let now = self.at as usize;
        for d in (0..self.index.len()).rev() {
            self.index[d] += 1;
            self.at += self.layout.strides[d];
            if self.index[d] < self.layout.shape[d] {
                break;
            }
            self.at -= self.layout.strides[d] * self.layout.shape[d] as isize;
            self.index[d] = 0;
        }
        Some(now)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}
impl ExactSizeIterator for Positions<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn transposed_and_reshaped() {
        let l = Layout::contiguous([2, 3]).permute(&[1, 0]).unwrap();
        assert!(!l.is_contiguous());
        assert_eq!(l.positions().collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert!(l.reshape(&Shape::from([6])).is_none());
        assert!(l.reshape(&Shape::from([3, 1, 2])).is_some());
        assert!(l.permute(&[0, 0]).is_err());
    }

    #[test]
    fn strided_views_stay_inside() {
        assert!(Layout::strided(Shape::from([3]), &[2], 0, 5).is_ok());
        assert!(Layout::strided(Shape::from([3]), &[2], 0, 4).is_err());
        assert!(Layout::strided(Shape::from([3]), &[-1], 1, 4).is_err());
        assert!(Layout::strided(Shape::from([0]), &[9], 0, 0).is_ok());
        assert!(Layout::strided(Shape::from([0]), &[isize::MIN], usize::MAX, 0).is_ok());
        assert!(Layout::strided(Shape::from([1]), &[isize::MAX], 3, 4).is_ok());
        assert!(Layout::strided(Shape::from([1]), &[1], 4, 4).is_err());
        assert!(Layout::strided(Shape::from([1]), &[1], usize::MAX, 4).is_err());
    }

    /// Positions that overflow must not come out inside again: 8 · 2^61 wraps to 0.
    #[test]
    fn positions_that_overflow_leave_the_storage() {
        let view = |dims: &[usize], strides: &[isize], offset| {
            Layout::strided(Shape::from(dims), strides, offset, 64)
        };
        assert!(view(&[9, 64], &[1 << 61, 1], 0).is_err());
        assert!(view(&[9, 64], &[-1 << 61, 1], 63).is_err());
        assert!(view(&[5, 5, 5], &[1 << 62, -1 << 62, 1], 0).is_err());
        assert!(view(&[3, 2], &[isize::MAX, 1], 0).is_err());
        assert!(view(&[3, 2], &[isize::MIN, 1], 0).is_err());
        assert!(view(&[2], &[-1], usize::MAX).is_err());
        // A view of zero strides may repeat its elements, but their number must fit.
        assert!(view(&[1 << 32, 1 << 32], &[0, 0], 0).is_err());
        assert!(view(&[1 << 40], &[0], 0).is_ok());
        let one = Layout::contiguous([1]);
        let huge = Shape::from([1 << 32, 1 << 32]);
        assert!(one.broadcast_to(&huge).is_err());
        assert!(one.broadcast_to(&Shape::from([1 << 40])).is_ok());
        let long = one.slice(0, 0, 1, usize::MAX).unwrap();
        assert_eq!(long.positions().collect::<Vec<_>>(), [0]);
        assert_eq!(long.flip(0).positions().collect::<Vec<_>>(), [0]);
    }

    proptest! {
        /// A reshape that succeeds visits the same positions in the same order.
        #[test]
        fn reshape_keeps_order(
            dims in prop::collection::vec(1usize..5, 0..4),
            cut in 0usize..3,
            split in 1usize..4,
        ) {
            let mut l = Layout::contiguous(dims.clone());
            if let Some(&d) = dims.first()
                && d > cut
            {
                l = l.slice(0, cut, d, 1).unwrap();
            }
            if l.shape().rank() >= 2 {
                let mut p: Vec<usize> = (0..l.shape().rank()).collect();
                p.swap(0, cut % l.shape().rank());
                l = l.permute(&p).unwrap();
            }
            let n = l.shape().numel();
            if n.is_multiple_of(split) {
                let to = Shape::from([split, n / split]);
                if let Some(r) = l.reshape(&to) {
                    prop_assert_eq!(
                        r.positions().collect::<Vec<_>>(),
                        l.positions().collect::<Vec<_>>()
                    );
                }
            }
        }
    }
}
