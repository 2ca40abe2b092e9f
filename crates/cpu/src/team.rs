//! The thread team: one fork-join pool for all kernels, the calling thread working too.
//!
//! Promises: a dispatch runs every part exactly once and returns when all have finished; nested
//! and concurrent dispatches run inline on their caller; a panic in any part reaches the caller;
//! idle workers spin for a millisecond, then sleep. Nothing here influences a number:
//! kernels divide work so that each result is independent of who computes it.
//!
//! A caller never waits for a sleeping worker. Workers *join* an open job; when the parts are
//! handed out the caller closes the job and waits only for those who joined.
//!
//! Memory comes from [`crate::alloc`]; [`crate::init`] installs both.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Most threads a team can have.
pub const MAX_THREADS: usize = 256;
/// Work estimated below this runs on the caller alone.
const INLINE_NS: f64 = 30_000.0;
/// A part smaller than this is not worth handing out.
const PART_NS: f64 = 8_000.0;
/// How long an idle worker spins before it sleeps: longer than what a training step does between
/// dispatches, since waking takes longer than most of them.
const SPIN: Duration = Duration::from_millis(1);

/// Set in [`Team::state`] while a job accepts workers.
const OPEN: u64 = 1 << 16;
/// One step of the job number in [`Team::state`]; the low 16 bits count the joined workers.
const EPOCH: u64 = 1 << 17;
const JOINED: u64 = OPEN - 1;

type Body = dyn Fn(usize) + Sync + 'static;

/// What the workers run. Written by the owner of `busy` while the job is closed and nobody is
/// joined, read only by joined workers.
struct Job {
    body: *const Body,
    parts: usize,
}

struct Team {
    /// Held by the one thread that is dispatching.
    busy: AtomicBool,
    /// Job number, open flag and number of joined workers.
    state: AtomicU64,
    /// Next part to hand out.
    next: AtomicUsize,
    job: UnsafeCell<Job>,
    /// The first panic of the running job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Threads in use, the caller included.
    size: AtomicUsize,
    workers: Mutex<usize>,
    seats: [Seat; MAX_THREADS],
}

#[derive(Default)]
struct Seat {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

// SAFETY: `job` follows the protocol stated at `Job`; all else is atomics and locks. The body
// behind the pointer is `Sync` and outlives the dispatch, which waits for every joined worker.
unsafe impl Sync for Team {}
// SAFETY: as above.
unsafe impl Send for Team {}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn default_threads() -> usize {
    let wanted = std::env::var("ENTRENAR_THREADS")
        .ok()
        .and_then(|v| v.trim().parse::<usize>().ok())
        .filter(|&n| n > 0);
    wanted
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .min(MAX_THREADS)
}

fn team() -> &'static Team {
    static TEAM: OnceLock<Team> = OnceLock::new();
    TEAM.get_or_init(|| {
        crate::alloc::install();
        static IDLE: fn(usize) = |_| {};
        Team {
            busy: AtomicBool::new(false),
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(Job {
                body: &raw const IDLE as *const Body,
                parts: 0,
            }),
            panic: Mutex::new(None),
            size: AtomicUsize::new(default_threads()),
            workers: Mutex::new(0),
            seats: std::array::from_fn(|_| Seat::default()),
        }
    })
}

/// Threads that kernels use, the caller included.
///
/// The default is the environment variable `ENTRENAR_THREADS`, else the machine's parallelism.
pub fn threads() -> usize {
    team().size.load(Ordering::Relaxed)
}

/// Sets the number of threads from now on (clamped to 1..=[`MAX_THREADS`]). No result changes.
///
/// ```
/// use entrenar_cpu::team;
/// team::set_threads(1);
/// assert_eq!(team::threads(), 1);
/// ```
pub fn set_threads(n: usize) {
    team()
        .size
        .store(n.clamp(1, MAX_THREADS), Ordering::Relaxed);
}

impl Team {
    fn hire(&'static self, wanted: usize) {
        let mut count = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while *count < wanted {
            let seat = *count;
            let spawned = std::thread::Builder::new()
                .name(format!("entrenar-{}", seat + 1))
                .spawn(move || self.work(seat));
            // Without another thread the work still gets done, by those there are.
            let Ok(handle) = spawned else { break };
            // Only this line writes the cell: `seat` is new.
            let _ = self.seats[seat].thread.set(handle.thread().clone());
            *count += 1;
        }
    }

    /// A worker's life.
    fn work(&'static self, seat: usize) {
        INSIDE.set(true);
        let mut seen = 0;
        loop {
            let state = self.wait(seat, seen);
            seen = state / EPOCH;
            if self.join(state) {
                // SAFETY: joined, so the caller waits for us and the job stays as it is.
                let job = unsafe { &*self.job.get() };
                self.run(job);
                // Release: the caller sees what the parts wrote.
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for an open job other than number `seen`; returns the state that showed it.
    fn wait(&self, seat: usize, seen: u64) -> u64 {
        let wanted = |state: u64| {
            state & OPEN != 0
                && state / EPOCH != seen
                && seat + 1 < self.size.load(Ordering::Relaxed)
        };
        loop {
            let begin = Instant::now();
            loop {
                for _ in 0..32 {
                    let state = self.state.load(Ordering::Acquire);
                    if wanted(state) {
                        return state;
                    }
                    std::hint::spin_loop();
                }
                if begin.elapsed() > SPIN {
                    break;
                }
            }
            let seat = &self.seats[seat];
            // Sequential consistency on both sides: either the caller sees `asleep` and wakes us,
            // or we see its job here.
            seat.asleep.store(true, Ordering::SeqCst);
            if wanted(self.state.load(Ordering::SeqCst)) {
                seat.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            while seat.asleep.load(Ordering::SeqCst) {
                std::thread::park();
            }
        }
    }

    /// Registers for the job of `state`; false when it has closed meanwhile.
    fn join(&self, mut state: u64) -> bool {
        let epoch = state / EPOCH;
        while state & OPEN != 0 && state / EPOCH == epoch {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Takes parts until none is left. Keeps the first panic.
    fn run(&self, job: &Job) {
        // SAFETY: the dispatching thread keeps the body alive until all joined threads left.
        let body = unsafe { &*job.body };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let part = self.next.fetch_add(1, Ordering::Relaxed);
                if part >= job.parts {
                    break;
                }
                body(part);
            }
        }));
        if let Err(payload) = result {
            // No further parts: the caller will unwind anyway. (Adding instead of storing the
            // part count could wrap; a store only lets a few parts more through.)
            self.next.store(job.parts, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    /// Runs a job; the caller owns `busy`.
    fn dispatch(&'static self, parts: usize, body: &(dyn Fn(usize) + Sync), size: usize) {
        self.hire(size - 1);
        self.next.store(0, Ordering::Relaxed);
        let body: *const (dyn Fn(usize) + Sync + '_) = body;
        // SAFETY: the job is closed and nobody is joined, so no other thread looks at it. The
        // lifetime is erased: this function does not return before every joined worker left.
        unsafe {
            *self.job.get() = Job {
                body: std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Body>(body),
                parts,
            }
        };
        let epoch = (self.state.load(Ordering::Relaxed) / EPOCH).wrapping_add(1);
        self.state.store((epoch * EPOCH) | OPEN, Ordering::SeqCst);
        // The caller takes one part itself.
        for seat in &self.seats[..(size - 1).min(parts - 1)] {
            if seat.asleep.load(Ordering::SeqCst)
                && seat.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = seat.thread.get()
            {
                thread.unpark();
            }
        }
        // SAFETY: written above; shared reads only from here on.
        self.run(unsafe { &*self.job.get() });
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut spins = 0u32;
        while state & JOINED != 0 {
            spins += 1;
            if spins < 10_000 {
                std::hint::spin_loop();
            } else {
                // More threads than cores: let the joined one finish.
                std::thread::yield_now();
            }
            state = self.state.load(Ordering::Acquire);
        }
    }
}

/// Clears a flag when dropped, also by unwinding.
struct Inside(bool);
impl Inside {
    fn enter() -> Inside {
        Inside(INSIDE.replace(true))
    }
}
impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

/// Runs `body(0)`, …, `body(parts - 1)`, each once, on the team and the caller; returns when all
/// are done. Nested calls, and calls while another thread dispatches, run inline.
///
/// # Panics
/// With the first panic of `body`; parts not yet begun are then skipped.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// entrenar_cpu::team::parallel(10, &|part| {
///     sum.fetch_add(part, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 45);
/// ```
pub fn parallel(parts: usize, body: &(dyn Fn(usize) + Sync)) {
    if parts <= 1 || INSIDE.get() {
        // A single part may dispatch further work itself.
        return (0..parts).for_each(body);
    }
    let team = team();
    let size = team.size.load(Ordering::Relaxed).min(parts);
    if size <= 1 || team.busy.swap(true, Ordering::Acquire) {
        let _inside = Inside::enter();
        return (0..parts).for_each(body);
    }
    let inside = Inside::enter();
    team.dispatch(parts, body, size);
    drop(inside);
    let panic = team
        .panic
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    team.busy.store(false, Ordering::Release);
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

/// True on a thread that is running a part of a dispatch: a further dispatch would run inline.
pub fn is_inside() -> bool {
    INSIDE.get()
}

/// How many parts to cut `items` into, given an estimate in nanoseconds per item; 1 means inline.
#[inline]
fn parts_for(items: usize, cost_ns_per_item: f64) -> usize {
    let total = items as f64 * cost_ns_per_item;
    if items <= 1 || total < INLINE_NS || INSIDE.get() {
        return 1;
    }
    let threads = threads();
    if threads == 1 {
        return 1;
    }
    // A few parts per thread: a worker that wakes late then still finds some left.
    ((total / PART_NS) as usize).min(threads * 4).min(items)
}

/// The `part`-th of `parts` nearly equal ranges of `0..items`.
#[inline]
fn range_of(part: usize, parts: usize, items: usize) -> Range<usize> {
    let (size, extra) = (items / parts, items % parts);
    let start = part * size + part.min(extra);
    start..start + size + usize::from(part < extra)
}

/// Covers `0..items` with calls of `body` on disjoint ranges: one inline call when the estimated
/// work is small, else on the team. The ranges depend on the number of threads, so the result of
/// an item must not depend on the range it is in.
pub fn split(items: usize, cost_ns_per_item: f64, body: impl Fn(Range<usize>) + Sync) {
    if items == 0 {
        return;
    }
    match parts_for(items, cost_ns_per_item) {
        1 => body(0..items),
        parts => parallel(parts, &|part| body(range_of(part, parts, items))),
    }
}

/// Like [`split`], giving each range its part of `out`, which holds `out.len() / items` elements
/// per item.
///
/// # Panics
/// When `out.len()` is not a multiple of `items`.
///
/// ```
/// let mut out = vec![0; 6];
/// entrenar_cpu::team::split_mut(&mut out, 3, 1e6, |rows, out| {
///     for (row, out) in rows.zip(out.chunks_mut(2)) {
///         out.fill(row);
///     }
/// });
/// assert_eq!(out, [0, 0, 1, 1, 2, 2]);
/// ```
pub fn split_mut<T: Send>(
    out: &mut [T],
    items: usize,
    cost_ns_per_item: f64,
    body: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    if items == 0 {
        return;
    }
    // Mostly there is one element per item, and a division is not for nothing.
    let chunk = if out.len() == items {
        1
    } else {
        assert_eq!(out.len() % items, 0, "out must hold whole items");
        out.len() / items
    };
    let parts = parts_for(items, cost_ns_per_item);
    if parts == 1 {
        return body(0..items, out);
    }
    let shared = Shared::new(out);
    parallel(parts, &|part| {
        let range = range_of(part, parts, items);
        // SAFETY: ranges of items are disjoint, hence so are these ranges of `out`.
        let out = unsafe { shared.slice(range.start * chunk..range.end * chunk) };
        body(range, out);
    });
}

/// A mutable slice that parts of a dispatch write at disjoint places.
///
/// For kernels whose parts write shapes that [`split_mut`] cannot express (two outputs, tiles).
pub struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose contract demands disjoint ranges; `T: Send` lets
// other threads write elements.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `slice` for as long as it is borrowed.
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared {
            ptr: slice.as_mut_ptr(),
            len: slice.len(),
            _slice: std::marker::PhantomData,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the first element lies, for kernels that write strided places; what goes through it keeps
    /// the promise of [`Shared::slice`].
    pub fn as_mut_ptr(&self) -> *mut T {
        self.ptr
    }

    /// The elements of `range`, writable.
    ///
    /// # Safety
    /// While the result lives, no other slice of an overlapping range does.
    ///
    /// # Panics
    /// When the range leaves the slice.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the borrowed slice; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    use crate::testing::with_threads;

    #[test]
    fn every_part_runs_once_under_stress() {
        for n in [1, 2, 3, 7] {
            with_threads(n, || {
                for round in 0..3_000usize {
                    let parts = round % 17;
                    let hits: Vec<AtomicU32> = (0..parts).map(|_| AtomicU32::new(0)).collect();
                    parallel(parts, &|p| {
                        hits[p].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            });
        }
    }

    #[test]
    fn callers_on_many_threads_do_not_disturb_each_other() {
        with_threads(3, || {
            std::thread::scope(|s| {
                for t in 0..4u64 {
                    s.spawn(move || {
                        for round in 0..500u64 {
                            let sum = AtomicU64::new(0);
                            parallel(9, &|p| {
                                sum.fetch_add(p as u64 + t * round, Ordering::Relaxed);
                            });
                            assert_eq!(sum.into_inner(), 36 + 9 * t * round);
                        }
                    });
                }
            });
        });
    }

    #[test]
    fn workers_wake_after_sleeping() {
        with_threads(2, || {
            // Other tests may hold the team for a moment, so several tries are allowed; without
            // a worker that wakes none can succeed.
            let met = (0..20).filter(|_| {
                std::thread::sleep(Duration::from_millis(1));
                let arrived = AtomicUsize::new(0);
                parallel(2, &|_| {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    let begin = Instant::now();
                    while arrived.load(Ordering::SeqCst) < 2
                        && begin.elapsed() < Duration::from_millis(200)
                    {
                        std::thread::yield_now();
                    }
                    // Leaving early must not let the other part meet nobody.
                    if arrived.load(Ordering::SeqCst) < 2 {
                        arrived.fetch_add(100, Ordering::SeqCst);
                    }
                });
                arrived.into_inner() == 2
            });
            assert!(met.count() > 0, "no worker ever took part");
        });
    }

    #[test]
    fn nested_calls_run_inline() {
        with_threads(2, || {
            let count = AtomicUsize::new(0);
            parallel(4, &|_| {
                assert!(is_inside());
                let here = std::thread::current().id();
                parallel(4, &|_| {
                    assert_eq!(std::thread::current().id(), here);
                    count.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(!is_inside());
            assert_eq!(count.into_inner(), 16);
        });
    }

    #[test]
    fn panics_reach_the_caller_and_the_team_survives() {
        with_threads(2, || {
            for bad in 0..8 {
                let caught = catch_unwind(|| {
                    parallel(8, &|p| {
                        if p == bad {
                            panic!("part {p}");
                        }
                    })
                });
                let message = *caught.unwrap_err().downcast::<String>().unwrap();
                assert_eq!(message, format!("part {bad}"));
                assert!(!is_inside());
            }
            let count = AtomicUsize::new(0);
            parallel(8, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 8);
        });
    }

    #[test]
    fn split_covers_everything_in_disjoint_ranges() {
        for n in [1, 2, 5] {
            with_threads(n, || {
                for items in [0usize, 1, 2, 3, 100, 1001] {
                    for cost in [0.0, 100.0, 1e6] {
                        let mut out = vec![0usize; items * 3];
                        split_mut(&mut out, items, cost, |range, out| {
                            assert_eq!(out.len(), range.len() * 3);
                            for (i, o) in range.zip(out.chunks_mut(3)) {
                                o.iter_mut().for_each(|o| *o += i + 1);
                            }
                        });
                        assert!(out.iter().enumerate().all(|(i, &o)| o == i / 3 + 1));
                    }
                }
            });
        }
    }

    #[test]
    #[should_panic(expected = "whole items")]
    fn uneven_output_is_refused() {
        split_mut(&mut [0u8; 5], 2, 0.0, |_, _| {});
    }
}
