//! [`Array`]: shape, dtype, layout and shared storage. Immutable from outside.
//!
//! An array is one pointer to all of that, so that results pass from call to call in a register.
//! The header of a fresh array owns its storage; a view's header has a layout of its own and holds
//! the array whose storage it looks at.
//!
//! Writes go through [`Array::make_mut`], which works in place only when nobody else can see the
//! storage and copies (and counts the copy) otherwise. There are no version counters to check
//! because a value that was handed out never changes.

use std::fmt;
use std::ptr::addr_of_mut;
use triomphe::{Arc, UniqueArc};

use crate::memory::{self, Tag};
use crate::{
    DType, Device, Element, Error, Layout, Result, Shape, Storage, View, bf16, dispatch, f16,
};

/// A dense n-dimensional array. Cloning shares storage.
///
/// ```
/// use entrenar_base::Array;
/// let mut a = Array::from_vec(vec![1i64, 2, 3], [3])?;
/// let b = a.clone();
/// a.make_mut::<i64>()?[0] = 9; // b is not touched: copy on write
/// assert_eq!(a.to_vec::<i64>()?, [9, 2, 3]);
/// assert_eq!(b.to_vec::<i64>()?, [1, 2, 3]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Clone)]
pub struct Array(Arc<Header>);

struct Header {
    bytes: Bytes,
    layout: Layout,
    dtype: DType,
}

/// Where the numbers of an array lie.
enum Bytes {
    /// In its own storage.
    Own(Storage),
    /// In the storage of this array, which is of the other kind: a view of a view looks at the
    /// same owner.
    Of(Array),
}

impl Array {
    /// Takes the elements of `values`, row-major.
    ///
    /// # Errors
    /// When the count differs from the shape's.
    #[track_caller]
    pub fn from_vec<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Array> {
        Self::from_slice(&values, shape)
    }

    /// Copies `values`, row-major.
    ///
    /// # Errors
    /// When the count differs from the shape's.
    #[track_caller]
    pub fn from_slice<T: Element>(values: &[T], shape: impl Into<Shape>) -> Result<Array> {
        let shape = shape.into();
        if shape.checked_numel()? != values.len() {
            return Err(Error::shape(
                "from_vec",
                format!("{} values for shape {shape}", shape.numel()),
                format!("{} values", values.len()),
            ));
        }
        Self::try_build(shape, |out: &mut [T]| {
            out.copy_from_slice(values);
            Ok(())
        })
    }

    /// Copies little-endian bytes.
    ///
    /// # Errors
    /// When the byte count differs from the shape's, or a bool is neither 0 nor 1.
    #[track_caller]
    pub fn from_bytes(bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Array> {
        let shape = shape.into();
        let want = shape.checked_numel_for("from_bytes")? * dtype.size();
        if bytes.len() != want {
            return Err(Error::shape(
                "from_bytes",
                format!("{want} bytes for {dtype} {shape}"),
                format!("{} bytes", bytes.len()),
            ));
        }
        if dtype == DType::Bool
            && let Some(at) = bytes.iter().position(|&b| b > 1)
        {
            return Err(Error::argument(
                "from_bytes",
                "bool bytes of 0 or 1",
                format!("{} at element {at}", bytes[at]),
            ));
        }
        let mut storage = Storage::allocate(want)?;
        // SAFETY: both ranges are `want` bytes long and a fresh storage overlaps nothing.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), storage.as_mut_ptr(), want) };
        // SAFETY: bool bytes were checked above.
        Ok(unsafe { Self::from_storage(storage, dtype, shape) })
    }

    /// A scalar (rank 0).
    pub fn scalar<T: Element>(value: T) -> Array {
        Self::build((), |out: &mut [T]| out[0] = value)
    }

    /// Filled with one value.
    ///
    /// # Panics
    /// As [`Array::build`].
    #[track_caller]
    pub fn full<T: Element>(shape: impl Into<Shape>, value: T) -> Array {
        Self::build(shape, |out: &mut [T]| out.fill(value))
    }

    /// Filled with `value` converted to `dtype`.
    ///
    /// # Panics
    /// As [`Array::build`]; [`Array::try_full_as`] returns an error instead.
    #[track_caller]
    pub fn full_as(shape: impl Into<Shape>, value: f64, dtype: DType) -> Array {
        dispatch!(dtype, T => Self::full(shape, T::from_f64(value)))
    }

    /// Filled with `value` converted to `dtype`, for sizes that come from outside.
    ///
    /// # Errors
    /// When the size overflows or there is no memory for it.
    #[track_caller]
    pub fn try_full_as(shape: impl Into<Shape>, value: f64, dtype: DType) -> Result<Array> {
        dispatch!(dtype, T => Self::try_build(shape, |out: &mut [T]| {
            out.fill(T::from_f64(value));
            Ok(())
        }))
    }

    /// Filled with zeros.
    ///
    /// # Panics
    /// As [`Array::build`].
    #[track_caller]
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Array {
        Self::full_as(shape, 0.0, dtype)
    }

    /// A new contiguous array whose elements `fill` writes, row-major.
    ///
    /// The slice arrives with arbitrary content (zeros for bool); `fill` must write all of it.
    ///
    /// # Panics
    /// At the caller's line when the size of `shape` overflows or there is no memory for it; use
    /// [`Array::try_build`] for sizes that come from outside.
    #[track_caller]
    pub fn build<T: Element>(shape: impl Into<Shape>, fill: impl FnOnce(&mut [T])) -> Array {
        let built = Self::try_build(shape, |out| {
            fill(out);
            Ok(())
        });
        match built {
            Ok(array) => array,
            Err(e) => panic!("{e}"),
        }
    }

    /// Like [`Array::build`] with a fallible filler.
    ///
    /// # Errors
    /// When the size overflows, there is no memory for it, or whatever `fill` returns.
    #[track_caller]
    pub fn try_build<T: Element>(
        shape: impl Into<Shape>,
        fill: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<Array> {
        let shape = shape.into();
        let n = shape.checked_numel()?;
        Self::filled(&shape, n, fill)
    }

    /// [`Array::try_build`] in the shape of `model`, which need not be checked again.
    ///
    /// # Errors
    /// When there is no memory for it, or whatever `fill` returns.
    #[track_caller]
    pub fn try_build_like<T: Element>(
        model: &Array,
        fill: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<Array> {
        Self::filled(model.shape(), model.numel(), fill)
    }

    /// A fresh array of `n` elements, row-major, which `fill` wrote. They were counted without
    /// overflow.
    ///
    /// The header is made first: moving a storage that was written just now, out of a result and
    /// into the header, waits for those writes.
    #[inline]
    #[track_caller]
    fn filled<T: Element>(
        shape: &Shape,
        n: usize,
        fill: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<Array> {
        let mut storage = Storage::allocate(n * size_of::<T>())?;
        let ptr = storage.as_mut_ptr();
        let array = Self::owning(storage, shape, n, T::DTYPE);
        if T::DTYPE == DType::Bool {
            // SAFETY: the storage holds `n` bytes.
            unsafe { ptr.write_bytes(0, n) };
        }
        // SAFETY: `n * size_of::<T>()` bytes, aligned to 64 and initialised (the allocator's
        // contract), of a storage that only `array` holds, which nobody else has seen and which is
        // not looked at before the slice is gone; every bit pattern is a valid T, or was zeroed
        // for bool.
        fill(unsafe { std::slice::from_raw_parts_mut(ptr.cast::<T>(), n) })?;
        Ok(array)
    }

    /// The array of a storage that nobody else has and that holds `numel` elements, row-major.
    #[inline]
    fn owning(storage: Storage, shape: &Shape, numel: usize, dtype: DType) -> Array {
        // Written where it lies, field by field: what is moved right after it was put together
        // waits for its own bytes.
        let mut header = UniqueArc::<Header>::new_uninit();
        let at = header.as_mut_ptr().cast::<Header>();
        // A further field would have to be written too.
        let _all = |Header {
                        bytes: _,
                        layout: _,
                        dtype: _,
                    }: &Header| ();
        // SAFETY: the memory is ours and of the right size; every field is written, once.
        let header = unsafe {
            addr_of_mut!((*at).bytes).write(Bytes::Own(storage));
            Layout::write_counted(addr_of_mut!((*at).layout), shape, numel);
            addr_of_mut!((*at).dtype).write(dtype);
            UniqueArc::assume_init(header)
        };
        Array(header.shareable())
    }

    /// A contiguous array over the whole of a storage.
    ///
    /// # Panics
    /// When the storage is too short, or not aligned for the dtype.
    ///
    /// # Safety
    /// For [`DType::Bool`] every byte of the storage is 0 or 1.
    pub(crate) unsafe fn from_storage(storage: Storage, dtype: DType, shape: Shape) -> Array {
        let numel = shape.numel();
        assert!(
            numel <= storage.bytes() / dtype.size()
                && (storage.as_ptr() as usize).is_multiple_of(dtype.size()),
            "{dtype}{shape} needs another storage than {storage:?}"
        );
        Self::owning(storage, &shape, numel, dtype)
    }

    /// The shape.
    #[inline]
    pub fn shape(&self) -> &Shape {
        self.0.layout.shape()
    }

    /// The sizes of the dimensions.
    #[inline]
    pub fn dims(&self) -> &[usize] {
        self.0.layout.shape()
    }

    /// Number of dimensions.
    #[inline]
    pub fn rank(&self) -> usize {
        self.0.layout.shape().rank()
    }

    /// Number of elements.
    #[inline]
    pub fn numel(&self) -> usize {
        self.0.layout.numel()
    }

    /// The element type.
    #[inline]
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The layout.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The storage, shared with every view of it: two arrays look at the same numbers when
    /// [`std::ptr::eq`] says so of their storages.
    #[inline]
    pub fn storage(&self) -> &Storage {
        let mut header = &self.0;
        loop {
            match &header.bytes {
                Bytes::Own(storage) => return storage,
                Bytes::Of(owner) => header = &owner.0,
            }
        }
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.storage().device()
    }

    /// True when elements lie row-major without gaps.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.0.layout.is_contiguous()
    }

    /// Files the storage's bytes under `tag` in the memory profile.
    #[inline]
    pub fn retag(&self, tag: Tag) {
        self.storage().retag(tag);
    }

    #[inline]
    fn data<T: Element>(&self) -> &[T] {
        debug_assert_eq!(T::DTYPE, self.0.dtype);
        let len = self.storage().bytes() / size_of::<T>();
        // SAFETY: storages are aligned for their dtype (`from_storage` checks, `bitcast` keeps the
        // size), initialised, and written only through unique ownership, which `&self` excludes.
        // Bool storages hold 0 or 1: every constructor checks or converts.
        unsafe { std::slice::from_raw_parts(self.storage().as_ptr().cast::<T>(), len) }
    }

    /// The typed view that kernels read.
    ///
    /// # Errors
    /// When `T` is not this array's dtype.
    #[inline]
    #[track_caller]
    pub fn view<T: Element>(&self) -> Result<View<'_, T>> {
        if T::DTYPE != self.0.dtype {
            return Err(Error::dtype("view", self.0.dtype, T::DTYPE));
        }
        Ok(View::new(self.data::<T>(), &self.0.layout))
    }

    /// The elements as one slice.
    ///
    /// # Errors
    /// When `T` is not this array's dtype or the layout has gaps.
    #[track_caller]
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.view::<T>()?.as_slice().ok_or_else(|| {
            Error::argument(
                "as_slice",
                "a contiguous array",
                format!("{:?}", self.0.layout),
            )
        })
    }

    /// The elements' bytes in native (little-endian) order, if contiguous.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if !self.is_contiguous() {
            return None;
        }
        let n = self.numel() * self.0.dtype.size();
        if n == 0 {
            return Some(&[]);
        }
        let start = self.0.layout.offset() * self.0.dtype.size();
        // SAFETY: the whole storage is initialised bytes; the range was checked at construction.
        Some(unsafe { std::slice::from_raw_parts(self.storage().as_ptr().add(start), n) })
    }

    /// The elements, writable, row-major. In place when this is the only owner of a contiguous
    /// storage, otherwise on a fresh copy (counted in [`memory::copies_on_write`]).
    ///
    /// # Errors
    /// When `T` is not this array's dtype, or there is no memory for a copy.
    #[track_caller]
    pub fn make_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        if T::DTYPE != self.0.dtype {
            return Err(Error::dtype("make_mut", self.0.dtype, T::DTYPE));
        }
        if !self.is_exclusive() {
            memory::count_copy_on_write();
            *self = self.copied()?;
        }
        let (offset, n) = (self.0.layout.offset(), self.numel());
        let storage = self
            .storage_mut()
            .expect("uniquely owned: checked or copied above");
        if n == 0 {
            return Ok(&mut []);
        }
        // SAFETY: uniquely owned through `&mut self`; the range lies inside by construction.
        Ok(unsafe {
            std::slice::from_raw_parts_mut(storage.as_mut_ptr().cast::<T>().add(offset), n)
        })
    }

    /// The storage when nobody else can see it: neither a clone of this array nor, where it is a
    /// view, anybody who holds the owner.
    fn storage_mut(&mut self) -> Option<&mut Storage> {
        match &mut Arc::get_mut(&mut self.0)?.bytes {
            Bytes::Own(storage) => Some(storage),
            Bytes::Of(owner) => owner.storage_mut(),
        }
    }

    /// True when [`Array::make_mut`] would work in place.
    pub fn is_exclusive(&self) -> bool {
        let alone = |a: &Array| Arc::strong_count(&a.0) == 1;
        let unseen = match &self.0.bytes {
            Bytes::Own(_) => alone(self),
            Bytes::Of(owner) => alone(self) && alone(owner),
        };
        unseen && self.is_contiguous() && self.storage().is_writable()
    }

    /// A contiguous array with its own storage.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[track_caller]
    pub fn deep_copy(&self) -> Array {
        match self.copied() {
            Ok(copy) => copy,
            Err(e) => panic!("{e}"),
        }
    }

    #[track_caller]
    fn copied(&self) -> Result<Array> {
        dispatch!(self.0.dtype, T => {
            let view = View::new(self.data::<T>(), &self.0.layout);
            Self::try_build(self.shape(), |out: &mut [T]| {
                match view.as_slice() {
                    Some(s) => out.copy_from_slice(s),
                    None => out.iter_mut().zip(view.iter()).for_each(|(o, x)| *o = x),
                }
                Ok(())
            })
        })
    }

    /// All elements, row-major.
    ///
    /// # Errors
    /// When `T` is not this array's dtype.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let view = self.view::<T>()?;
        Ok(match view.as_slice() {
            Some(elements) => elements.to_vec(),
            None => view.iter().collect(),
        })
    }

    /// All elements as f64, whatever the dtype.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        dispatch!(self.0.dtype, T => {
            View::new(self.data::<T>(), &self.0.layout).iter().map(T::to_f64).collect()
        })
    }

    /// The only element.
    ///
    /// # Errors
    /// When there is not exactly one element or `T` is not the dtype.
    #[track_caller]
    pub fn item<T: Element>(&self) -> Result<T> {
        if self.numel() != 1 {
            return Err(Error::shape("item", "exactly one element", self.shape()));
        }
        Ok(self.view::<T>()?.data()[self.0.layout.offset()])
    }

    /// The same storage seen otherwise.
    fn seen_as(&self, layout: Layout, dtype: DType) -> Array {
        let owner = match &self.0.bytes {
            Bytes::Own(_) => self,
            Bytes::Of(owner) => owner,
        };
        Array(Arc::new(Header {
            bytes: Bytes::Of(owner.clone()),
            layout,
            dtype,
        }))
    }

    fn with_layout(&self, layout: Layout) -> Array {
        self.seen_as(layout, self.0.dtype)
    }

    /// View with dimensions reordered. Errors as [`Layout::permute`].
    #[track_caller]
    pub fn permute(&self, axes: &[usize]) -> Result<Array> {
        Ok(self.with_layout(self.0.layout.permute(axes)?))
    }

    /// View with two dimensions swapped (negative indices count from the end).
    ///
    /// # Errors
    /// When a dimension does not exist.
    #[track_caller]
    pub fn transpose(&self, a: isize, b: isize) -> Result<Array> {
        let (a, b) = (
            self.shape().dim("transpose", a)?,
            self.shape().dim("transpose", b)?,
        );
        let mut axes: Vec<usize> = (0..self.rank()).collect();
        if self.rank() > 0 {
            axes.swap(a, b);
        }
        self.permute(&axes)
    }

    /// View of every `step`-th index in `start..end`. Errors as [`Layout::slice`].
    #[track_caller]
    pub fn slice(&self, dim: usize, start: usize, end: usize, step: usize) -> Result<Array> {
        Ok(self.with_layout(self.0.layout.slice(dim, start, end, step)?))
    }

    /// View walked backwards along `dim`.
    pub fn flip(&self, dim: usize) -> Array {
        self.with_layout(self.0.layout.flip(dim))
    }

    /// View stretched with zero strides. Errors as [`Layout::broadcast_to`].
    #[track_caller]
    pub fn broadcast_to(&self, shape: &Shape) -> Result<Array> {
        Ok(self.with_layout(self.0.layout.broadcast_to(shape)?))
    }

    /// The same elements under another shape: a view where strides allow, else a copy.
    ///
    /// # Errors
    /// When the counts differ, or there is no memory for a copy.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Array> {
        let shape = shape.into();
        if shape.checked_numel_for("reshape")? != self.numel() {
            return Err(Error::shape(
                "reshape",
                format!("a shape of {} elements like {}", self.numel(), self.shape()),
                &shape,
            ));
        }
        Ok(match self.0.layout.reshape(&shape) {
            Some(layout) => self.with_layout(layout),
            None => {
                let copy = self.copied()?;
                copy.with_layout(Layout::contiguous(shape))
            }
        })
    }

    /// A view by explicit strides over the whole storage. Errors as [`Layout::strided`].
    #[track_caller]
    pub fn as_strided(&self, shape: Shape, strides: &[isize], offset: usize) -> Result<Array> {
        let len = self.storage().bytes() / self.0.dtype.size();
        Ok(self.with_layout(Layout::strided(shape, strides, offset, len)?))
    }

    /// The same bits read as another dtype of equal size (what becomes bool is checked).
    ///
    /// # Errors
    /// When sizes differ, or values other than 0 and 1 would become bool.
    #[track_caller]
    pub fn bitcast(&self, dtype: DType) -> Result<Array> {
        if dtype.size() != self.0.dtype.size() {
            return Err(Error::dtype(
                "bitcast",
                format!("a dtype of {} bytes", self.0.dtype.size()),
                dtype,
            ));
        }
        let not_flags = match self.0.dtype {
            DType::U8 => self.data::<u8>().iter().any(|&b| b > 1),
            DType::I8 => self.data::<i8>().iter().any(|&b| b != 0 && b != 1),
            _ => false,
        };
        if dtype == DType::Bool && not_flags {
            return Err(Error::argument(
                "bitcast",
                "values 0 or 1 for bool",
                "a larger value",
            ));
        }
        Ok(self.seen_as(self.0.layout.clone(), dtype))
    }

    /// Converted to `dtype` element by element (the plain definition; `entrenar-cpu` has the fast
    /// kernel). Floats to integers truncate; anything to bool is `!= 0`.
    ///
    /// # Panics
    /// When there is no memory for it.
    #[track_caller]
    pub fn cast(&self, dtype: DType) -> Array {
        if dtype == self.0.dtype {
            return self.clone();
        }
        dispatch!(self.0.dtype, S => {
            let view = View::new(self.data::<S>(), &self.0.layout);
            dispatch!(dtype, D => {
                Self::build(self.shape(), |out: &mut [D]| {
                    let through_int = !S::DTYPE.is_float();
                    for (o, x) in out.iter_mut().zip(view.iter()) {
                        *o = if through_int { D::from_i64(x.to_i64()) } else { D::from_f64(x.to_f64()) };
                    }
                })
            })
        })
    }
}

/// The two 16-bit floats print as their f32 value.
fn format_element(f: &mut fmt::Formatter<'_>, array: &Array, at: usize) -> fmt::Result {
    match array.0.dtype {
        DType::Bool => write!(f, "{}", array.data::<bool>()[at]),
        DType::U8 => write!(f, "{}", array.data::<u8>()[at]),
        DType::I8 => write!(f, "{}", array.data::<i8>()[at]),
        DType::I32 => write!(f, "{}", array.data::<i32>()[at]),
        DType::I64 => write!(f, "{}", array.data::<i64>()[at]),
        DType::F16 => write!(f, "{}", array.data::<f16>()[at].to_f32()),
        DType::BF16 => write!(f, "{}", array.data::<bf16>()[at].to_f32()),
        DType::F32 => write!(f, "{:.4}", array.data::<f32>()[at]),
        DType::F64 => write!(f, "{:.4}", array.data::<f64>()[at]),
    }
}

/// Nested brackets like NumPy's; long dimensions show their first and last three entries.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn level(f: &mut fmt::Formatter<'_>, a: &Array, dim: usize, at: isize) -> fmt::Result {
            if dim == a.rank() {
                return format_element(f, a, at as usize);
            }
            let (n, stride) = (a.dims()[dim], a.0.layout.strides()[dim]);
            let shorten = a.numel() > 1000 && n > 6;
            write!(f, "[")?;
            let mut i = 0;
            while i < n {
                if i > 0 {
                    write!(f, ",")?;
                    let newlines = a.rank() - dim - 1;
                    if newlines == 0 {
                        write!(f, " ")?;
                    } else {
                        write!(f, "{}{}", "\n".repeat(newlines), " ".repeat(dim + 1))?;
                    }
                }
                if shorten && i == 3 {
                    write!(f, "...")?;
                    i = n - 3;
                    continue;
                }
                level(f, a, dim + 1, at + i as isize * stride)?;
                i += 1;
            }
            write!(f, "]")
        }
        level(f, self, 0, self.0.layout.offset() as isize)
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({} {}, {self})", self.0.dtype, self.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_on_write_never_touches_the_other_owner() {
        let before = memory::copies_on_write();
        let a = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        let mut v = a.transpose(0, 1).unwrap();
        v.make_mut::<f32>().unwrap()[1] = 9.0;
        assert_eq!(a.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(v.to_vec::<f32>().unwrap(), [1.0, 9.0, 2.0, 4.0]);
        assert!(memory::copies_on_write() > before);
        let ptr = v.as_slice::<f32>().unwrap().as_ptr();
        v.make_mut::<f32>().unwrap()[0] = 5.0;
        assert_eq!(
            v.as_slice::<f32>().unwrap().as_ptr(),
            ptr,
            "unique owner writes in place"
        );
    }

    #[test]
    fn views_slices_flips_and_casts() {
        let a = Array::from_vec((0..12i64).collect(), [3, 4]).unwrap();
        let s = a.slice(1, 1, 4, 2).unwrap().flip(0);
        assert_eq!(s.to_vec::<i64>().unwrap(), [9, 11, 5, 7, 1, 3]);
        assert_eq!(
            s.cast(DType::F32).to_vec::<f32>().unwrap(),
            [9.0, 11.0, 5.0, 7.0, 1.0, 3.0]
        );
        assert_eq!(s.cast(DType::Bool).to_f64_vec(), [1.0; 6]);
        let b = Array::from_vec(vec![7i64], [1])
            .unwrap()
            .broadcast_to(&Shape::from([2, 2]))
            .unwrap();
        assert_eq!(b.reshape([4]).unwrap().to_vec::<i64>().unwrap(), [7; 4]);
        assert!(a.reshape([5]).is_err());
        assert!(a.view::<f32>().is_err());
        assert!(a.slice(1, 3, 5, 1).is_err());
        assert_eq!(a.slice(1, 4, 4, 1).unwrap().numel(), 0);
    }

    #[test]
    fn display_is_nested() {
        let a = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        assert_eq!(a.to_string(), "[[1.0000, 2.0000],\n [3.0000, 4.0000]]");
        assert_eq!(Array::scalar(true).to_string(), "true");
        assert_eq!(Array::zeros([0], DType::F32).to_string(), "[]");
    }

    /// Sizes that no machine holds are errors that say so, or panics at the caller's line.
    #[test]
    fn sizes_beyond_memory_are_errors() {
        for bits in [46, 55, 59] {
            let e = Array::try_full_as([1usize << bits], 0.0, DType::F64).unwrap_err();
            assert_eq!(e.kind(), crate::ErrorKind::Memory, "{e}");
            assert!(e.to_string().contains(&(8usize << bits).to_string()), "{e}");
        }
        let e = Array::try_full_as([1usize << 61], 0.0, DType::U8).unwrap_err();
        assert_eq!(e.kind(), crate::ErrorKind::Shape, "{e}");
        let one = Array::scalar(1.0f64);
        let mut many = one.broadcast_to(&Shape::from([1 << 46])).unwrap();
        assert!(
            many.reshape([1 << 23, 1 << 23]).is_ok(),
            "one stride: a view"
        );
        assert_eq!(
            many.make_mut::<f64>().unwrap_err().kind(),
            crate::ErrorKind::Memory
        );
        let caught = std::panic::catch_unwind(|| Array::zeros([1usize << 60, 8], DType::F32));
        let message = *caught.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("fits in memory"), "{message}");
    }

    #[test]
    fn hostile_bytes_are_refused() {
        assert!(Array::from_bytes(&[2], DType::Bool, [1]).is_err());
        assert!(Array::from_bytes(&[0; 7], DType::F32, [2]).is_err());
        assert!(Array::from_bytes(&[], DType::F64, [usize::MAX, 4]).is_err());
    }
}
