//! Reference-counted bytes and the allocator interface behind them.
//!
//! A [`Storage`] is owned by the header of an array; views share that. It returns its bytes to whoever gave
//! them: an [`Allocator`], or the owner of foreign memory (a memory map, an interchange capsule).

use std::alloc::{Layout as Request, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::memory::{self, Tag};
use crate::{Device, Error, Result};

/// Alignment of every allocation: one cache line, which is also one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// A source of memory.
///
/// # Safety
/// What `allocate` returns is at least `bytes` bytes long, aligned to [`ALIGNMENT`], exclusively owned until
/// `free` and **initialised** (their content is arbitrary but defined: zeroed pages or recycled
/// buffers). Kernels write into them through `&mut [f32]`, which relies on that.
pub unsafe trait Allocator: Send + Sync {
    /// Memory for `bytes > 0` bytes; `None` when the system has none.
    fn allocate(&self, bytes: usize) -> Option<NonNull<u8>>;
    /// Takes back memory given by `allocate` of the same size.
    ///
    /// # Safety
    /// `ptr` came from `self.allocate(bytes)` and nobody uses it any more.
    unsafe fn free(&self, ptr: NonNull<u8>, bytes: usize);
}

/// The system allocator with zeroed memory; used until another one is installed.
pub struct System;

// SAFETY: alloc_zeroed gives fresh, exclusively owned, zero-initialised memory of the requested
// size and alignment.
unsafe impl Allocator for System {
    fn allocate(&self, bytes: usize) -> Option<NonNull<u8>> {
        let request = Request::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: `bytes > 0` by the trait's contract, so the layout is not zero-sized.
        NonNull::new(unsafe { alloc_zeroed(request) })
    }
    unsafe fn free(&self, ptr: NonNull<u8>, bytes: usize) {
        // SAFETY: same size and alignment as in `allocate`, which accepted them.
        unsafe {
            dealloc(
                ptr.as_ptr(),
                Request::from_size_align_unchecked(bytes, ALIGNMENT),
            )
        }
    }
}

static INSTALLED: OnceLock<&'static dyn Allocator> = OnceLock::new();

/// Makes `allocator` the source of all storages created from now on. Only the first call counts;
/// returns whether this one did.
#[inline]
pub fn install_allocator(allocator: &'static dyn Allocator) -> bool {
    INSTALLED.get().is_none() && INSTALLED.set(allocator).is_ok()
}

#[inline]
fn allocator() -> &'static dyn Allocator {
    *INSTALLED
        .get()
        .unwrap_or(&(&System as &'static dyn Allocator))
}

enum Owner {
    Allocator(&'static dyn Allocator),
    Foreign(
        #[expect(dead_code, reason = "held to keep the memory alive")] Box<dyn Any + Send + Sync>,
    ),
    Empty,
}

/// A block of bytes with its owner and accounting entry.
pub struct Storage {
    ptr: NonNull<u8>,
    bytes: usize,
    owner: Owner,
    device: Device,
    ledger_id: u64,
}

// SAFETY: the bytes are plain data; shared access is read-only and writes need `&mut Storage`
// (unique ownership through `Arc::get_mut`). Foreign owners are `Send + Sync` themselves.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Storage {
    /// Fresh initialised memory with arbitrary content.
    ///
    /// # Errors
    /// When the system has none.
    #[track_caller]
    pub(crate) fn allocate(bytes: usize) -> Result<Storage> {
        let (ptr, owner) = if bytes == 0 {
            (NonNull::<AlignedByte>::dangling().cast(), Owner::Empty)
        } else {
            let a = allocator();
            let Some(ptr) = a.allocate(bytes) else {
                return Err(Error::memory("allocate", bytes));
            };
            (ptr, Owner::Allocator(a))
        };
        let ledger_id = memory::on_allocate(bytes);
        Ok(Storage {
            ptr,
            bytes,
            owner,
            device: Device::Cpu,
            ledger_id,
        })
    }

    /// Memory that somebody else owns; `owner` is dropped when the last view is gone. Foreign
    /// storage is never written in place.
    ///
    /// # Safety
    /// `ptr..ptr + bytes` stays valid, initialised and unchanged while `owner` lives.
    pub(crate) unsafe fn foreign(
        ptr: NonNull<u8>,
        bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Storage {
        let ledger_id = memory::on_allocate(bytes);
        Storage {
            ptr,
            bytes,
            owner: Owner::Foreign(owner),
            device: Device::Cpu,
            ledger_id,
        }
    }

    /// Size in bytes.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.device
    }

    /// True when the memory may be written through unique ownership.
    #[inline]
    pub fn is_writable(&self) -> bool {
        !matches!(self.owner, Owner::Foreign(_))
    }

    /// Files these bytes under `tag` from now on.
    #[inline]
    pub fn retag(&self, tag: Tag) {
        memory::on_retag(self.ledger_id, tag);
    }

    #[inline]
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    #[inline]
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

#[repr(align(64))]
struct AlignedByte(#[expect(dead_code, reason = "only its alignment matters")] u8);

impl Drop for Storage {
    fn drop(&mut self) {
        memory::on_free(self.ledger_id, self.bytes);
        if let Owner::Allocator(a) = self.owner {
            // SAFETY: `ptr` came from `a.allocate(bytes)` and this was the last owner.
            unsafe { a.free(self.ptr, self.bytes) }
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({} bytes on {})", self.bytes, self.device)
    }
}
