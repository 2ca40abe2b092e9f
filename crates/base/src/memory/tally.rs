//! Counts that every thread keeps for itself.
//!
//! Every result of every operation is counted, and an atomic addition to a shared place costs as
//! much as adding sixteen numbers. Only its own thread writes a tally, so that a load and a store do;
//! whoever asks adds all of them up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// On cache lines of its own.
#[repr(align(128))]
pub(super) struct Tally {
    pub allocations: AtomicU64,
    pub live: AtomicUsize,
}

impl Tally {
    const fn new() -> Tally {
        Tally {
            allocations: AtomicU64::new(0),
            live: AtomicUsize::new(0),
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

/// Of threads that are ending and have given their tally back.
static LATE: Tally = Tally::new();

/// Gives the thread's tally back when the thread ends.
struct Held(&'static Tally);

impl Drop for Held {
    fn drop(&mut self) {
        MINE.set(None);
        with_tallies(|t| t.idle.push(self.0));
    }
}

thread_local! {
    static MINE: Cell<Option<&'static Tally>> = const { Cell::new(None) };
    static HELD: Held = Held(with_tallies(|t| {
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

/// Adds to this thread's tally, both modulo their range.
#[inline]
pub(super) fn add(allocations: u64, bytes: usize) {
    let Some(mine) = MINE.get() else {
        return first(allocations, bytes);
    };
    let so_far = mine.allocations.load(Ordering::Relaxed);
    mine.allocations
        .store(so_far.wrapping_add(allocations), Ordering::Relaxed);
    let so_far = mine.live.load(Ordering::Relaxed);
    mine.live
        .store(so_far.wrapping_add(bytes), Ordering::Relaxed);
}

/// What a thread counts first, or after it gave its tally back.
#[cold]
fn first(allocations: u64, bytes: usize) {
    if HELD.try_with(|held| MINE.set(Some(held.0))).is_ok() {
        return add(allocations, bytes);
    }
    LATE.allocations.fetch_add(allocations, Ordering::Relaxed);
    LATE.live.fetch_add(bytes, Ordering::Relaxed);
}

/// The sum of one count over all threads, modulo its range.
pub(super) fn all(count: impl Fn(&Tally) -> u64) -> u64 {
    with_tallies(|t| {
        t.all
            .iter()
            .fold(count(&LATE), |sum, &tally| sum.wrapping_add(count(tally)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocations() -> u64 {
        all(|t| t.allocations.load(Ordering::Relaxed))
    }

    /// Counts outlive their thread, whose tally the next one goes on with.
    #[test]
    fn ended_threads_stay_counted() {
        const EACH: u64 = 1 << 40;
        let before = allocations();
        for _ in 0..50 {
            std::thread::spawn(|| add(EACH, 0)).join().unwrap();
        }
        // Other tests count too, but not so much.
        assert_eq!((allocations() - before) / EACH, 50);
        let tallies = with_tallies(|t| t.all.len());
        assert!(tallies < 50, "{tallies} tallies for 50 threads in turn");
    }

    /// Something dropped at the end of a thread, after the tally was given back.
    #[test]
    fn what_comes_late_is_counted() {
        struct Late;
        impl Drop for Late {
            fn drop(&mut self) {
                add(1 << 50, 0);
            }
        }
        thread_local!(static LAST: Late = const { Late });
        let before = allocations();
        let ended = std::thread::spawn(|| {
            // Destructors run in the order of first use or in reverse: both ways are counted.
            LAST.with(|_| ());
            add(1 << 50, 0);
        });
        ended.join().unwrap();
        let ended = std::thread::spawn(|| {
            add(1 << 50, 0);
            LAST.with(|_| ());
        });
        ended.join().unwrap();
        assert_eq!((allocations() - before) >> 50, 4);
    }
}
