//! The workspace's only memory-map wrapper.
//!
//! A mapped file that somebody truncates while it is in use makes the kernel send SIGBUS; that is
//! the price of loading without a copy, and callers that cannot accept it read the file instead.

use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::{Array, DType, Error, Result, Shape, Storage};

/// A read-only file in memory.
#[derive(Clone)]
pub struct Mapped(Arc<Mmap>);

impl Mapped {
    /// Maps `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Mapped> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
        // SAFETY: the map is private and read-only. Rust's model assumes that the bytes do not
        // change; files under a running process are treated as immutable, as the module says.
        let map = unsafe { Mmap::map(&file) }
            .map_err(|e| Error::io(path, "cannot map into memory", e))?;
        Ok(Mapped(Arc::new(map)))
    }

    /// An array over `bytes[offset..]` without a copy, or with one where the alignment of `dtype`
    /// requires it.
    ///
    /// # Errors
    /// When the range leaves the file, or a bool array holds bytes other than 0 and 1.
    pub fn array(&self, offset: usize, dtype: DType, shape: impl Into<Shape>) -> Result<Array> {
        let shape = shape.into();
        let bytes = shape.checked_numel()? * dtype.size();
        let slice = offset
            .checked_add(bytes)
            .and_then(|end| self.0.get(offset..end))
            .ok_or_else(|| {
                Error::index(
                    "map",
                    format!("{bytes} bytes at offset {offset}"),
                    format!("a file of {} bytes", self.0.len()),
                )
            })?;
        let aligned = (slice.as_ptr() as usize).is_multiple_of(dtype.size());
        if !aligned || bytes == 0 || dtype == DType::Bool {
            return Array::from_bytes(slice, dtype, shape);
        }
        let ptr = NonNull::from(&slice[0]);
        // SAFETY: the slice lies inside the map, which `owner` keeps alive and nobody writes.
        let storage = unsafe { Storage::foreign(ptr, bytes, Box::new(self.clone())) };
        // SAFETY: not bool, which was copied and checked above.
        Ok(unsafe { Array::from_storage(storage, dtype, shape) })
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
