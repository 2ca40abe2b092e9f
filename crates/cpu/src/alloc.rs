//! The caching allocator: size classes, a thread-local front, huge pages.
//!
//! Promises: in a steady training step nothing reaches the system allocator; a small allocation
//! with its free costs a few nanoseconds; memory is always initialised (fresh pages are zero,
//! recycled blocks hold old numbers); blocks are aligned to 64 bytes.
//!
//! * Blocks below 2 MiB are carved from slabs, which stay with the process. Up to 64 KiB each
//!   thread keeps a short free list of its own and trades batches with the shared lists.
//! * Larger blocks are mapped one by one, aligned to 2 MiB, with huge pages asked for. Freed ones
//!   stay in the cache up to [`cache_limit`] bytes; [`trim`] gives them back.
//!
//! Built with `--cfg memory_check` (for the address sanitizer and valgrind) every block comes from
//! the system allocator, exactly as long as asked for: the ends of classes hide overruns.
//!
//! A block is reused for its own class only. Classes are four per doubling, so at most a fifth of
//! a block is idle. The interface is [`entrenar_base::Allocator`]; the team installs this
//! allocator when it starts.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use entrenar_base::storage::{System, install_allocator};
use entrenar_base::{Allocator, Element, Error};

/// Blocks from this size on are mapped one by one: the size of a huge page.
const HUGE: usize = 2 << 20;
/// Largest block that the thread-local front keeps.
const FRONT_MAX: usize = 64 << 10;
/// Most bytes of one class in a thread's front.
const FRONT_BYTES: usize = 256 << 10;
/// Address space taken at once for small blocks; pages cost nothing until touched.
const SLAB: usize = 32 << 20;

/// Four classes per doubling from 64 bytes on; class sizes are multiples of 64 bytes.
const SMALLEST: usize = 64;
const CLASSES: usize = 4 * 48;
const FRONT_CLASSES: usize = class_of(FRONT_MAX) + 1;

/// The smallest class that holds `bytes > 0`.
const fn class_of(bytes: usize) -> usize {
    let units = bytes.div_ceil(SMALLEST);
    if units <= 4 {
        return units - 1;
    }
    // 2^k < units <= 2^(k+1): quarter steps of 2^k.
    let k = (usize::BITS - 1 - (units - 1).leading_zeros()) as usize;
    let quarter = 1usize << (k - 2);
    let step = (units - (1 << k)).div_ceil(quarter);
    4 * (k - 1) - 1 + step
}

/// The size in bytes of a class.
const fn class_size(class: usize) -> usize {
    if class < 4 {
        return (class + 1) * SMALLEST;
    }
    let k = (class - 4) / 4 + 2;
    let step = (class - 4) % 4 + 1;
    ((1 << k) + (step << (k - 2))) * SMALLEST
}

static SYSTEM_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static CACHED: AtomicUsize = AtomicUsize::new(0);

/// How often the operating system was asked for memory: constant over a steady training step.
pub fn system_allocations() -> u64 {
    SYSTEM_ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes of freed large blocks kept for reuse: what [`trim`] can give back.
pub fn cached_bytes() -> usize {
    CACHED.load(Ordering::Relaxed)
}

fn limit() -> &'static AtomicUsize {
    static LIMIT: OnceLock<AtomicUsize> = OnceLock::new();
    LIMIT.get_or_init(|| AtomicUsize::new(system::physical_memory() / 2))
}

/// Most bytes that [`cached_bytes`] may reach; by default half of the machine's memory.
pub fn cache_limit() -> usize {
    limit().load(Ordering::Relaxed)
}

/// Changes [`cache_limit`]; what exceeds it is given back by later frees.
pub fn set_cache_limit(bytes: usize) {
    limit().store(bytes, Ordering::Relaxed);
}

/// Keeps freed memory of the C library's `malloc`, where graphs and lists of a step lie, with the
/// process: glibc otherwise gives it back after each backward pass and asks for it again in the
/// next step, page by page. The price is up to 64 MiB that nobody uses.
///
/// For a program's `main`, since it concerns the whole process; it prevails over glibc's
/// environment variables. Whether the library took it: not where it is another than glibc.
///
/// ```
/// let kept = entrenar_cpu::alloc::keep_heap();
/// # let glibc = cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"));
/// # assert!(kept || !glibc);
/// ```
pub fn keep_heap() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const KEPT: libc::c_int = 64 << 20;
        const IN_HEAP: libc::c_int = 16 << 20;
        // Setting one threshold fixes the other, which lies at 128 KiB.
        // SAFETY: both set a number, under the lock of `malloc`.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, IN_HEAP) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        false
    }
}

/// Gives cached large blocks back to the operating system until at most `keep` bytes are cached.
/// The largest go first. Small blocks stay.
pub fn trim(keep: usize) {
    for class in (class_of(HUGE)..CLASSES).rev() {
        while cached_bytes() > keep {
            let Some(block) = lists(class).pop() else {
                break;
            };
            CACHED.fetch_sub(class_size(class), Ordering::Relaxed);
            // SAFETY: a mapped block of this class that nobody uses: it was in the free list.
            unsafe { system::unmap(block, class_size(class)) };
        }
    }
}

/// Makes the caching allocator the source of all arrays. Idempotent; called by
/// [`crate::init`] and when the thread team starts.
pub fn install() {
    install_allocator(&Cache);
}

/// The shared free blocks of a class; the pointers are to blocks that nobody uses.
struct Free(Vec<NonNull<u8>>);
// SAFETY: a free block belongs to the list, wherever that is.
unsafe impl Send for Free {}

fn lists(class: usize) -> impl DerefMut<Target = Vec<NonNull<u8>>> {
    static LISTS: [Mutex<Free>; CLASSES] = [const { Mutex::new(Free(Vec::new())) }; CLASSES];
    struct Guard(MutexGuard<'static, Free>);
    impl Deref for Guard {
        type Target = Vec<NonNull<u8>>;
        fn deref(&self) -> &Self::Target {
            &self.0.0
        }
    }
    impl DerefMut for Guard {
        fn deref_mut(&mut self) -> &mut Self::Target {
            &mut self.0.0
        }
    }
    Guard(LISTS[class].lock().unwrap_or_else(PoisonError::into_inner))
}

/// Cuts `count` fresh blocks of `class` from the current slab; fewer when memory runs out.
fn carve(class: usize, count: usize, mut give: impl FnMut(NonNull<u8>)) {
    struct Slab(*mut u8, usize);
    // SAFETY: the rest of a slab belongs to whoever holds the lock.
    unsafe impl Send for Slab {}
    static CURRENT: Mutex<Slab> = Mutex::new(Slab(std::ptr::null_mut(), 0));
    let size = class_size(class);
    let mut slab = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..count {
        if slab.1 < size {
            // The tail, at most one block's worth of address space, is given up.
            let Some(fresh) = system::map(SLAB) else {
                return;
            };
            SYSTEM_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            *slab = Slab(fresh.as_ptr(), SLAB);
        }
        // SAFETY: `size <= slab.1` bytes from `slab.0` on are ours and unused; not null.
        unsafe {
            give(NonNull::new_unchecked(slab.0));
            slab.0 = slab.0.add(size);
        }
        slab.1 -= size;
    }
}

/// One thread's free lists: blocks linked through their first word.
struct Front {
    heads: [*mut u8; FRONT_CLASSES],
    counts: [u32; FRONT_CLASSES],
}

thread_local! {
    static FRONT: UnsafeCell<Front> = const {
        UnsafeCell::new(Front { heads: [std::ptr::null_mut(); FRONT_CLASSES], counts: [0; FRONT_CLASSES] })
    };
}

impl Front {
    #[inline(always)]
    fn pop(&mut self, class: usize) -> Option<NonNull<u8>> {
        let head = NonNull::new(self.heads[class])?;
        // SAFETY: a block in the list is ours, 64-byte aligned and holds the link written by
        // `push`.
        self.heads[class] = unsafe { head.cast::<*mut u8>().read() };
        self.counts[class] -= 1;
        Some(head)
    }

    #[inline(always)]
    fn push(&mut self, class: usize, block: NonNull<u8>) {
        // SAFETY: the block was freed, is at least 64 bytes long and aligned to 64.
        unsafe { block.cast::<*mut u8>().write(self.heads[class]) };
        self.heads[class] = block.as_ptr();
        self.counts[class] += 1;
    }

    /// Blocks moved at once between a front and the shared list.
    const fn batch(class: usize) -> usize {
        let n = FRONT_BYTES / 2 / class_size(class);
        if n > 32 { 32 } else { n }
    }

    #[cold]
    fn refill(&mut self, class: usize) -> Option<NonNull<u8>> {
        let batch = Self::batch(class);
        {
            let mut shared = lists(class);
            for _ in 0..batch {
                let Some(block) = shared.pop() else { break };
                self.push(class, block);
            }
        }
        if self.heads[class].is_null() {
            carve(class, batch, |block| self.push(class, block));
        }
        self.pop(class)
    }

    #[cold]
    fn spill(&mut self, class: usize, count: usize) {
        let mut shared = lists(class);
        for _ in 0..count {
            let Some(block) = self.pop(class) else { break };
            shared.push(block);
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        for class in 0..FRONT_CLASSES {
            self.spill(class, usize::MAX);
        }
    }
}

/// The allocator; all state is in statics.
struct Cache;

/// Without a thread-local front: threads that are ending, and blocks above its sizes.
#[cold]
fn allocate_shared(class: usize) -> Option<NonNull<u8>> {
    if class >= CLASSES {
        return None; // more than any machine has
    }
    let size = class_size(class);
    let recycled = lists(class).pop();
    if size < HUGE {
        return recycled.or_else(|| {
            let mut block = None;
            carve(class, 1, |b| block = Some(b));
            block
        });
    }
    if recycled.is_some() {
        CACHED.fetch_sub(size, Ordering::Relaxed);
        return recycled;
    }
    let fresh = system::map(size)?;
    SYSTEM_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    Some(fresh)
}

#[cold]
fn free_shared(class: usize, block: NonNull<u8>) {
    lists(class).push(block);
    let size = class_size(class);
    if size >= HUGE && CACHED.fetch_add(size, Ordering::Relaxed) + size > cache_limit() {
        trim(cache_limit());
    }
}

// SAFETY: blocks come zeroed from the system or recycled from earlier use, are at least as long
// as their class, aligned to 64 bytes, and in no list while they are given out.
unsafe impl Allocator for Cache {
    #[inline]
    fn allocate(&self, bytes: usize) -> Option<NonNull<u8>> {
        if cfg!(memory_check) {
            return System.allocate(bytes);
        }
        let class = class_of(bytes);
        if class < FRONT_CLASSES {
            let block = FRONT.try_with(|front| {
                // SAFETY: only this thread reaches its front, and no call below comes back here.
                let front = unsafe { &mut *front.get() };
                front.pop(class).or_else(|| front.refill(class))
            });
            if let Ok(block) = block {
                return block;
            }
        }
        allocate_shared(class)
    }

    #[inline]
    unsafe fn free(&self, block: NonNull<u8>, bytes: usize) {
        if cfg!(memory_check) {
            // SAFETY: the caller's promise; `allocate` went the same way.
            return unsafe { System.free(block, bytes) };
        }
        let class = class_of(bytes);
        if class < FRONT_CLASSES {
            let kept = FRONT.try_with(|front| {
                // SAFETY: as in `allocate`.
                let front = unsafe { &mut *front.get() };
                front.push(class, block);
                if front.counts[class] as usize >= 2 * Front::batch(class) {
                    front.spill(class, Front::batch(class));
                }
            });
            if kept.is_ok() {
                return;
            }
        }
        free_shared(class, block);
    }
}

/// Temporary memory of a kernel: `len` elements with arbitrary content, from the cache.
///
/// ```
/// use entrenar_cpu::alloc::Scratch;
/// let mut s = Scratch::<f32>::new(100);
/// s.fill(1.0);
/// assert_eq!(s.iter().sum::<f32>(), 100.0);
/// ```
pub struct Scratch<T: Element> {
    ptr: NonNull<T>,
    len: usize,
}

// SAFETY: owned plain data.
unsafe impl<T: Element> Send for Scratch<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Element> Sync for Scratch<T> {}

impl<T: Element> Scratch<T> {
    /// Memory for `len` elements (zeros for bool).
    ///
    /// # Panics
    /// When the system has no memory.
    pub fn new(len: usize) -> Self {
        let bytes = len
            .checked_mul(size_of::<T>())
            .expect("scratch of a size that was allocated before");
        let ptr = if bytes == 0 {
            NonNull::dangling()
        } else {
            let Some(ptr) = Cache.allocate(bytes) else {
                panic!("{}", Error::memory("scratch", bytes));
            };
            ptr.cast::<T>()
        };
        if T::DTYPE == entrenar_base::DType::Bool {
            // SAFETY: `bytes` bytes are ours.
            unsafe { ptr.cast::<u8>().write_bytes(0, bytes) };
        }
        Scratch { ptr, len }
    }

    /// Memory for `len` elements, all zero.
    pub fn zeroed(len: usize) -> Self {
        let mut out = Self::new(len);
        out.fill(T::default());
        out
    }
}

impl<T: Element> Drop for Scratch<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: allocated in `new` with this size, used by nobody else.
            unsafe { Cache.free(self.ptr.cast(), bytes) }
        }
    }
}

impl<T: Element> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements (the allocator's promise); any bits are a valid
        // number and bools were zeroed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and uniquely borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Pages from the operating system.
#[cfg(unix)]
mod system {
    use super::HUGE;
    use std::ptr::NonNull;

    fn raw(bytes: usize) -> Option<*mut u8> {
        // SAFETY: an anonymous private map at an address of the system's choice touches nothing.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        (ptr != libc::MAP_FAILED).then_some(ptr.cast())
    }

    /// `bytes` (a multiple of the page size, at least [`HUGE`]) zeroed bytes aligned to [`HUGE`].
    pub fn map(bytes: usize) -> Option<NonNull<u8>> {
        let whole = bytes.checked_add(HUGE)?;
        let start = raw(whole).or_else(|| {
            super::trim(0);
            raw(whole)
        })?;
        let head = start.align_offset(HUGE);
        // SAFETY: head + bytes <= whole; both ends cut off are page-aligned parts of this map.
        unsafe {
            if head > 0 {
                libc::munmap(start.cast(), head);
            }
            let block = start.add(head);
            if HUGE - head > 0 {
                libc::munmap(block.add(bytes).cast(), HUGE - head);
            }
            // Advice only: without huge pages everything works, more slowly.
            #[cfg(target_os = "linux")]
            libc::madvise(block.cast(), bytes, libc::MADV_HUGEPAGE);
            NonNull::new(block)
        }
    }

    /// # Safety
    /// `block` came from `map(bytes)` and nobody uses it.
    pub unsafe fn unmap(block: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(block.as_ptr().cast(), bytes) };
    }

    pub fn physical_memory() -> usize {
        // SAFETY: both only read system constants.
        let (pages, size) = unsafe {
            (
                libc::sysconf(libc::_SC_PHYS_PAGES),
                libc::sysconf(libc::_SC_PAGESIZE),
            )
        };
        usize::try_from(pages)
            .ok()
            .zip(usize::try_from(size).ok())
            .map_or(8 << 30, |(p, s)| p.saturating_mul(s))
    }
}

/// Zeroed memory from the standard allocator where there is no `mmap`.
#[cfg(not(unix))]
mod system {
    use super::HUGE;
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    pub fn map(bytes: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(bytes, HUGE).ok()?;
        // SAFETY: `bytes` is at least HUGE.
        let get = || NonNull::new(unsafe { alloc_zeroed(layout) });
        get().or_else(|| {
            super::trim(0);
            get()
        })
    }

    /// # Safety
    /// `block` came from `map(bytes)` and nobody uses it.
    pub unsafe fn unmap(block: NonNull<u8>, bytes: usize) {
        // SAFETY: the layout that `map` accepted.
        unsafe {
            dealloc(
                block.as_ptr(),
                Layout::from_size_align_unchecked(bytes, HUGE),
            )
        }
    }

    pub fn physical_memory() -> usize {
        8 << 30
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::storage::ALIGNMENT;

    #[test]
    fn classes_hold_their_sizes_with_little_waste() {
        let mut previous = 0;
        for class in 0..CLASSES - 8 {
            let size = class_size(class);
            assert!(size > previous && size.is_multiple_of(SMALLEST));
            assert_eq!(class_of(size), class);
            assert_eq!(class_of(previous + 1), class);
            previous = size;
        }
        for bytes in (1..100_000usize).chain([1 << 30, (1 << 40) + 1]) {
            let size = class_size(class_of(bytes));
            assert!(size >= bytes && (bytes <= 256 || size * 4 <= bytes * 5 + 4 * 64));
        }
        assert!(class_size(class_of(HUGE)).is_multiple_of(HUGE));
        assert_eq!(class_size(FRONT_CLASSES - 1), FRONT_MAX);
    }

    /// Blocks that are alive together never overlap, across threads and sizes.
    #[test]
    fn live_blocks_are_disjoint_and_aligned() {
        std::thread::scope(|s| {
            for t in 0..4u8 {
                s.spawn(move || {
                    let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
                    let mut seed = t as u64 + 1;
                    let mut random = |n: u64| {
                        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                        (seed >> 33) % n
                    };
                    for round in 0..3_000 {
                        if live.len() > 40 || (round % 3 == 0 && !live.is_empty()) {
                            let at = random(live.len() as u64) as usize;
                            let (p, n, mark) = live.swap_remove(at);
                            // SAFETY: ours until the free below.
                            let bytes = unsafe { std::slice::from_raw_parts(p.as_ptr(), n) };
                            assert!(bytes.iter().all(|&b| b == mark));
                            // SAFETY: allocated below with this size.
                            unsafe { Cache.free(p, n) };
                        } else {
                            let bits = 4 + random(14);
                            let n = 1 + random(1 << bits) as usize;
                            let p = Cache.allocate(n).unwrap();
                            assert!((p.as_ptr() as usize).is_multiple_of(ALIGNMENT));
                            let mark = (t << 6) | (round % 64) as u8;
                            // SAFETY: `n` bytes are ours.
                            unsafe { p.as_ptr().write_bytes(mark, n) };
                            live.push((p, n, mark));
                        }
                    }
                    for (p, n, _) in live {
                        // SAFETY: allocated above with this size.
                        unsafe { Cache.free(p, n) };
                    }
                });
            }
        });
    }

    #[test]
    fn large_blocks_are_cached_and_trimmed() {
        // A size that no other test uses, so that counters are about this block alone.
        let bytes = 37 << 20;
        let p = Cache.allocate(bytes).unwrap();
        assert!((p.as_ptr() as usize).is_multiple_of(HUGE));
        // SAFETY: `bytes` bytes are ours, zero because they are fresh.
        unsafe {
            assert!(p.as_ptr().add(bytes - 1).read() == 0);
            p.as_ptr().add(bytes - 1).write(7);
            Cache.free(p, bytes);
        }
        assert!(cached_bytes() >= bytes);
        let again = Cache.allocate(bytes).unwrap();
        assert_eq!(again, p, "the cached block comes back");
        // SAFETY: allocated above with this size.
        unsafe { Cache.free(again, bytes) };
        trim(0);
        let fresh = Cache.allocate(bytes).unwrap();
        // SAFETY: fresh pages; then freed with their size.
        unsafe {
            assert_eq!(fresh.as_ptr().add(bytes - 1).read(), 0);
            Cache.free(fresh, bytes);
        }
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        for bits in 47..=62 {
            assert!(Cache.allocate(1 << bits).is_none(), "2^{bits} bytes");
        }
        assert!(Cache.allocate(isize::MAX as usize).is_none());
    }

    #[test]
    fn arrays_use_the_cache() {
        install();
        let a = entrenar_base::Array::zeros([3, 5], entrenar_base::DType::F32);
        let at = a.as_slice::<f32>().unwrap().as_ptr();
        drop(a);
        let b = entrenar_base::Array::zeros([15], entrenar_base::DType::F32);
        assert_eq!(b.as_slice::<f32>().unwrap().as_ptr(), at);
    }
}
