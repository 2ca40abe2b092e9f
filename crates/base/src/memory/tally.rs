//! Counts that every thread keeps for itself.
//!
//! Every result of every operation is counted, and an atomic addition to a shared place costs as
//! much as adding sixteen numbers. Only its own thread writes a tally, so that a load and a store
//! do; whoever asks adds all of them up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What one thread has done since the program began; on cache lines of its own.
#[repr(align(128))]
struct Tally {
    allocations: AtomicU64,
    /// Bytes, each modulo its range. Both only rise: see [`live`].
    allocated: AtomicUsize,
    freed: AtomicUsize,
}

impl Tally {
    const fn new() -> Tally {
        Tally {
            allocations: AtomicU64::new(0),
            allocated: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
        }
    }
}

/// Every tally there is, and those of threads that have ended: the next thread goes on with one of
/// them, so that there are never more than there were threads at once.
struct Tallies {
    all: Vec<&'static Tally>,
    idle: Vec<&'static Tally>,
}

static TALLIES: Mutex<Tallies> = Mutex::new(Tallies {
    all: Vec::new(),
    idle: Vec::new(),
});

/// Of all threads that are ending and have given their tally back: the one that several write.
static LATE: Tally = Tally::new();

/// Gives the thread's tally back when the thread ends.
struct Lent(&'static Tally);

impl Drop for Lent {
    fn drop(&mut self) {
        MINE.set(None);
        with_tallies(|t| t.idle.push(self.0));
    }
}

thread_local! {
    static MINE: Cell<Option<&'static Tally>> = const { Cell::new(None) };
    static LENT: Lent = Lent(with_tallies(|t| {
        t.idle.pop().unwrap_or_else(|| {
            let new: &'static Tally = Box::leak(Box::new(Tally::new()));
            t.all.push(new);
            new
        })
    }));
}

fn with_tallies<T>(f: impl FnOnce(&mut Tallies) -> T) -> T {
    f(&mut TALLIES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// This thread's tally, if it has one: not before its first count, nor when it is ending.
fn mine() -> Option<&'static Tally> {
    MINE.get().or_else(|| {
        let lent = LENT.try_with(|lent| lent.0).ok();
        MINE.set(lent);
        lent
    })
}

/// Counts a storage that this thread made.
#[inline]
pub(super) fn made(bytes: usize) {
    match MINE.get() {
        Some(mine) => {
            let so_far = mine.allocations.load(Ordering::Relaxed);
            mine.allocations.store(so_far + 1, Ordering::Relaxed);
            rise(&mine.allocated, bytes);
        }
        None => made_first(bytes),
    }
}

/// Counts a storage that this thread gave back, whoever made it.
#[inline]
pub(super) fn freed(bytes: usize) {
    match MINE.get() {
        Some(mine) => rise(&mine.freed, bytes),
        None => freed_first(bytes),
    }
}

/// Adds to a number that only this thread writes. Who sees it sees all that this thread had seen:
/// of a storage that is counted as freed, that it was made.
#[inline]
fn rise(number: &AtomicUsize, by: usize) {
    let so_far = number.load(Ordering::Relaxed);
    number.store(so_far.wrapping_add(by), Ordering::Release);
}

#[cold]
fn made_first(bytes: usize) {
    if mine().is_some() {
        return made(bytes);
    }
    LATE.allocations.fetch_add(1, Ordering::Relaxed);
    LATE.allocated.fetch_add(bytes, Ordering::Release);
}

#[cold]
fn freed_first(bytes: usize) {
    if mine().is_some() {
        return freed(bytes);
    }
    LATE.freed.fetch_add(bytes, Ordering::Release);
}

/// Storages made by all threads.
pub(super) fn allocations() -> u64 {
    let count = |t: &Tally| t.allocations.load(Ordering::Relaxed);
    with_tallies(|t| t.all.iter().map(|&t| count(t)).sum::<u64>()) + count(&LATE)
}

/// Storages made by this thread, and by those whose tally it goes on with.
pub(super) fn allocations_here() -> u64 {
    mine().map_or(0, |t| t.allocations.load(Ordering::Relaxed))
}

/// Bytes made and not freed. What others do meanwhile may be counted as made only, never as freed
/// only, since all that is freed is read before what was made.
pub(super) fn live() -> usize {
    with_tallies(|t| {
        let sum = |number: fn(&Tally) -> &AtomicUsize| {
            let tallies = t.all.iter().copied().chain([&LATE]);
            tallies.fold(0, |sum: usize, t| {
                sum.wrapping_add(number(t).load(Ordering::Acquire))
            })
        };
        let freed = sum(|t| &t.freed);
        sum(|t| &t.allocated).wrapping_sub(freed)
    })
}
