//! Typed, borrowed, strided windows on arrays: what kernels read.

use crate::{Element, Layout};

/// A borrowed array of `T` with strides. Copying it copies two pointers.
///
/// `data[offset + Σ index·stride]` is always in bounds: [`crate::Array::view`] checked the whole
/// span once, so kernels index with safe code and the check stays out of inner loops that use
/// [`View::as_slice`].
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    data: &'a [T],
    layout: &'a Layout,
}

impl<'a, T: Element> View<'a, T> {
    #[inline]
    pub(crate) fn new(data: &'a [T], layout: &'a Layout) -> Self {
        debug_assert!(
            layout
                .bounds()
                .is_none_or(|(l, h)| l >= 0 && (h as usize) < data.len())
        );
        View { data, layout }
    }

    /// All elements of the underlying storage, from its start (not from the offset).
    #[inline]
    pub fn data(&self) -> &'a [T] {
        self.data
    }

    /// The layout: shape, strides, offset.
    #[inline]
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// Sizes of the dimensions.
    #[inline]
    pub fn dims(&self) -> &'a [usize] {
        self.layout.shape()
    }

    /// Strides in elements.
    #[inline]
    pub fn strides(&self) -> &'a [isize] {
        self.layout.strides()
    }

    /// Position of the first element in [`View::data`].
    #[inline]
    pub fn offset(&self) -> usize {
        self.layout.offset()
    }

    /// Number of elements.
    #[inline]
    pub fn numel(&self) -> usize {
        self.layout.numel()
    }

    /// The elements as one slice when they lie row-major without gaps.
    #[inline]
    pub fn as_slice(&self) -> Option<&'a [T]> {
        if !self.layout.is_contiguous() {
            return None;
        }
        let n = self.numel();
        // An empty view may carry any offset.
        Some(if n == 0 {
            &[]
        } else {
            &self.data[self.offset()..self.offset() + n]
        })
    }

    /// Elements in row-major order, wherever they lie.
    pub fn iter(&self) -> impl Iterator<Item = T> + 'a {
        let data = self.data;
        self.layout.positions().map(move |p| data[p])
    }
}
