//! Dimensions of an array, inline up to rank 6.

use smallvec::SmallVec;
use std::fmt;
use std::ops::Deref;

use crate::{Error, Result};

/// The sizes of each dimension, outermost first. Rank 0 is a scalar.
///
/// ```
/// use entrenar_base::Shape;
/// let s = Shape::from([2, 3]);
/// assert_eq!((s.rank(), s.numel(), s.to_string().as_str()), (2, 6, "[2, 3]"));
/// ```
#[derive(Eq, Default)]
pub struct Shape(SmallVec<[usize; 6]>);

/// Of the same numbers that are compared.
impl std::hash::Hash for Shape {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.dims().hash(state);
    }
}

/// By a loop: a call of `memcmp` costs more than a few numbers.
impl PartialEq for Shape {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank() && self.iter().zip(other.iter()).all(|(a, b)| a == b)
    }
}

impl Clone for Shape {
    #[inline]
    fn clone(&self) -> Self {
        Shape(copied(&self.0))
    }
    #[inline]
    fn clone_from(&mut self, from: &Self) {
        if self.0.spilled() || from.0.spilled() {
            *self = from.clone();
        } else {
            // SAFETY: as in `copied`; what is overwritten owns nothing either, and a reference to
            // be written excludes that the two are one.
            unsafe { std::ptr::copy_nonoverlapping(&from.0, &mut self.0, 1) };
        }
    }
}

/// A few numbers, inline if they fit; by a loop, since a call of `memcpy` costs more than six numbers.
fn inline(from: &[usize]) -> SmallVec<[usize; 6]> {
    if from.len() > 6 {
        return SmallVec::from_slice(from);
    }
    let mut dims = [0; 6];
    for (i, &dim) in from.iter().enumerate() {
        dims[i] = dim;
    }
    SmallVec::from_buf_and_len(dims, from.len())
}

/// A copy of a few numbers. Inline ones are copied as one block of known size: every operation copies
/// several shapes, and the vector's own loop over its elements costs more than a small kernel.
#[inline]
pub(crate) fn copied<T: Copy>(from: &SmallVec<[T; 6]>) -> SmallVec<[T; 6]> {
    if from.spilled() {
        return SmallVec::from_slice(from);
    }
    // SAFETY: an inline vector of plain numbers owns nothing but itself: its bytes are its value.
    unsafe { std::ptr::read(from) }
}

impl Shape {
    /// The shape of a scalar.
    #[inline]
    pub const fn scalar() -> Self {
        Shape(SmallVec::new_const())
    }

    /// The sizes as a slice.
    #[inline]
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The sizes, mutable.
    pub fn dims_mut(&mut self) -> &mut [usize] {
        &mut self.0
    }

    /// Number of dimensions.
    #[inline]
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements; 1 for a scalar.
    ///
    /// Shapes that reach an [`crate::Array`] were checked by [`Shape::checked_numel`].
    #[inline]
    pub fn numel(&self) -> usize {
        self.0.iter().product()
    }

    /// Number of elements.
    ///
    /// # Errors
    /// When the product, or its size in bytes at 8 bytes an element, overflows.
    #[track_caller]
    pub fn checked_numel(&self) -> Result<usize> {
        self.checked_numel_for("shape")
    }

    /// [`Shape::checked_numel`] on behalf of the operation `op`, which the message names.
    ///
    /// # Errors
    /// As [`Shape::checked_numel`].
    #[track_caller]
    pub fn checked_numel_for(&self, op: &str) -> Result<usize> {
        // Zero sizes must not hide an overflow of the others: [2^63, 2^63, 0] is refused too.
        let (mut count, mut fits, mut empty) = (1usize, true, false);
        for &dim in self.0.iter() {
            let (product, overflows) = count.overflowing_mul(dim.max(1));
            fits &= !overflows;
            empty |= dim == 0;
            count = product;
        }
        if !fits || count > isize::MAX as usize / 8 {
            return Err(Error::shape(op, "a size that fits in memory", self));
        }
        Ok(if empty { 0 } else { count })
    }

    /// Appends a dimension.
    pub fn push(&mut self, dim: usize) {
        self.0.push(dim);
    }

    /// Inserts a dimension before position `at`.
    pub fn insert(&mut self, at: usize, dim: usize) {
        self.0.insert(at, dim);
    }

    /// Removes and returns the dimension at `at`.
    pub fn remove(&mut self, at: usize) -> usize {
        self.0.remove(at)
    }

    /// Turns a possibly negative dimension index into `0..rank`.
    ///
    /// # Errors
    /// When it lies outside `-rank..rank` (a scalar accepts -1 and 0, as in PyTorch).
    #[track_caller]
    pub fn dim(&self, op: &str, dim: isize) -> Result<usize> {
        let rank = self.rank().max(1) as isize;
        if dim < -rank || dim >= rank {
            return Err(Error::index(
                op,
                format!("a dimension in {}..{rank} for shape {self}", -rank),
                dim,
            ));
        }
        Ok(if dim < 0 { dim + rank } else { dim } as usize)
    }

    /// The shape both broadcast to (NumPy's rule: align right, 1 stretches).
    ///
    /// # Errors
    /// When a pair of sizes differs and neither is 1.
    #[track_caller]
    pub fn broadcast(&self, other: &Shape, op: &str) -> Result<Shape> {
        let rank = self.rank().max(other.rank());
        let mut out = SmallVec::from_elem(1, rank);
        for i in 0..rank {
            let a = if i + self.rank() >= rank {
                self.0[i + self.rank() - rank]
            } else {
                1
            };
            let b = if i + other.rank() >= rank {
                other.0[i + other.rank() - rank]
            } else {
                1
            };
            out[i] = match (a, b) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(Error::shape(
                        op,
                        "shapes that broadcast together",
                        format!("{self} and {other}"),
                    ));
                }
            };
        }
        Ok(Shape(out))
    }
}

impl Deref for Shape {
    type Target = [usize];
    #[inline]
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl From<&[usize]> for Shape {
    fn from(d: &[usize]) -> Self {
        Shape(inline(d))
    }
}
impl From<Vec<usize>> for Shape {
    fn from(d: Vec<usize>) -> Self {
        Shape(inline(&d))
    }
}
impl From<&Vec<usize>> for Shape {
    fn from(d: &Vec<usize>) -> Self {
        Shape(inline(d))
    }
}
impl<const N: usize> From<[usize; N]> for Shape {
    fn from(d: [usize; N]) -> Self {
        Shape(inline(&d))
    }
}
impl<const N: usize> From<&[usize; N]> for Shape {
    fn from(d: &[usize; N]) -> Self {
        Shape(inline(d))
    }
}
impl From<usize> for Shape {
    fn from(d: usize) -> Self {
        Shape(inline(&[d]))
    }
}
impl From<()> for Shape {
    fn from((): ()) -> Self {
        Shape::scalar()
    }
}
impl From<&Shape> for Shape {
    fn from(s: &Shape) -> Self {
        s.clone()
    }
}
impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(iter: I) -> Self {
        Shape(iter.into_iter().collect())
    }
}
impl PartialEq<[usize]> for Shape {
    fn eq(&self, other: &[usize]) -> bool {
        self.dims() == other
    }
}
impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        self.dims() == other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_aligns_right() {
        let b = |a: &[usize], b: &[usize]| Shape::from(a).broadcast(&Shape::from(b), "t");
        assert_eq!(b(&[2, 1, 4], &[3, 1]).unwrap(), [2, 3, 4]);
        assert_eq!(b(&[], &[0]).unwrap(), [0]);
        assert_eq!(b(&[1], &[0]).unwrap(), [0]);
        assert_eq!(
            b(&[2, 3], &[2, 4]).unwrap_err().to_string(),
            "[t] expected shapes that broadcast together, got [2, 3] and [2, 4]"
        );
    }

    #[test]
    fn overflow_is_an_error_even_behind_a_zero() {
        assert!(Shape::from([1 << 40, 1 << 40]).checked_numel().is_err());
        assert!(Shape::from([1 << 40, 1 << 40, 0]).checked_numel().is_err());
        assert_eq!(Shape::from([3, 0, 5]).checked_numel().unwrap(), 0);
    }

    #[test]
    fn negative_dimensions_count_from_the_end() {
        let s = Shape::from([2, 3, 4]);
        assert_eq!(s.dim("t", -1).unwrap(), 2);
        assert_eq!(s.dim("t", 0).unwrap(), 0);
        assert!(s.dim("t", 3).is_err() && s.dim("t", -4).is_err());
        assert_eq!(Shape::scalar().dim("t", -1).unwrap(), 0);
    }
}
