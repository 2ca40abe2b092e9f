//! A batch of products cut among the threads of the team.
//!
//! Products are cut into panels that pack for themselves. On many threads, large ones pack the right
//! operand once, all threads together, and then share out rows. Nothing here changes a bit: panels
//! cut rows and columns, never the inner dimension.

use std::ops::Range;

use super::Source;
use super::engine::Engine;
use super::panel::{self, Problem, Right, left_in_place};
use crate::alloc::Scratch;
use crate::team::{self, Shared};

/// Estimated work below this stays on the calling thread (nanoseconds).
const PARALLEL_NS: f64 = 10_000.0;
/// A part of less work is not worth handing out.
const PART_NS: f64 = 4_000.0;
/// Work from which packing together pays for a dispatch of its own.
const SHARED_NS: f64 = 150_000.0;
/// Teams up to this size pack the same columns on each thread rather than wait for each other.
const FEW_THREADS: usize = 4;
/// Fewest rows and columns of a panel that was cut for another thread.
const LEAST: usize = 32;
/// Nanoseconds to pack an element.
const PACK_NS: f64 = 0.3;
/// Columns of panels are multiples of this: whole vectors of every level.
const ALIGN: usize = 16;

/// Products of one size.
pub(crate) struct Batch<'a, E: Engine> {
    pub count: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The product of a number below `count`.
    pub at: &'a (dyn Fn(usize) -> Problem<'a, E> + Sync),
}

/// Computes all products.
///
/// # Safety
/// All elements of the operands are readable; the outputs are valid, exclusively ours and do not
/// overlap.
pub(crate) unsafe fn multiply<E: Engine>(batch: &Batch<'_, E>) {
    let &Batch { count, m, n, k, at } = batch;
    if count == 0 || m == 0 || n == 0 {
        return;
    }
    let one = (m * n) as f64 * k as f64 / E::RATE;
    let all = one * count as f64;
    let threads = if team::is_inside() {
        1
    } else {
        team::threads()
    };
    if threads == 1 || all < PARALLEL_NS {
        for item in 0..count {
            // SAFETY: the caller's promise.
            unsafe { panel::run(&at(item), 0..m, 0..n) };
        }
    } else if count >= 2 * threads {
        let parts = ((all / PART_NS) as usize).clamp(1, count.min(4 * threads));
        team::parallel(parts, &|part| {
            for item in count * part / parts..count * (part + 1) / parts {
                // SAFETY: the caller's promise.
                unsafe { panel::run(&at(item), 0..m, 0..n) };
            }
        });
    } else if one >= SHARED_NS && (threads > FEW_THREADS || matches!(at(0).b, Right::Packed { .. }))
    {
        for item in 0..count {
            // SAFETY: the caller's promise.
            unsafe { large(&at(item), m, n, threads) };
        }
    } else {
        let cut = grid(&at(0), (m, n), E::PARTS * threads.div_ceil(count), one);
        let cells = cut.0 * cut.1;
        team::parallel(count * cells, &|part| {
            // SAFETY: the caller's promise; cells are disjoint.
            unsafe { cell(&at(part / cells), (m, n), cut, part % cells) };
        });
    }
}

/// One cell of a grid.
///
/// # Safety
/// As [`multiply`].
unsafe fn cell<E: Engine>(
    p: &Problem<'_, E>,
    (m, n): (usize, usize),
    (rows, columns): (usize, usize),
    cell: usize,
) {
    let align = match p.b {
        Right::Strided(_) => ALIGN,
        Right::Packed { .. } => E::kernels().columns(),
    };
    let rows = panel_of(cell / columns, rows, m, E::ROWS);
    let columns = panel_of(cell % columns, columns, n, align);
    // SAFETY: the caller's promise.
    unsafe { panel::run(p, rows, columns) };
}

/// The `i`-th of `count` ranges of `0..size`, borders on multiples of `align`.
fn panel_of(i: usize, count: usize, size: usize, align: usize) -> Range<usize> {
    let step = size.div_ceil(count).next_multiple_of(align);
    (i * step).min(size)..((i + 1) * step).min(size)
}

/// Panels per matrix along rows and columns.
fn grid<E: Engine>(
    p: &Problem<'_, E>,
    (m, n): (usize, usize),
    wanted: usize,
    ns: f64,
) -> (usize, usize) {
    let most = ((ns / PART_NS) as usize).clamp(1, wanted);
    let (mut rows, mut columns) = (1, 1);
    while rows * columns < most {
        let (height, width) = (m.div_ceil(rows), n.div_ceil(columns));
        // Cutting columns repeats what is done to the left operand, unless it is read in place.
        let free = left_in_place::<E>(&p.a, p.k, height, width / 2, p.round);
        if width >= 2 * LEAST && (free || width >= height || height < 2 * LEAST) {
            columns = next_count(columns, most / rows);
        } else if height >= 2 * LEAST {
            rows = next_count(rows, most / columns);
        } else {
            break;
        }
    }
    (rows, columns)
}

/// The next number of cuts: doubled, or up to `limit` exactly when that comes first.
fn next_count(count: usize, limit: usize) -> usize {
    (count * 2).min(limit.max(count + 1))
}

/// One product on all threads.
///
/// # Safety
/// As [`multiply`].
unsafe fn large<E: Engine>(p: &Problem<'_, E>, m: usize, n: usize, threads: usize) {
    let b = match p.b {
        // SAFETY: the caller's promise.
        Right::Packed { .. } => return unsafe { shared_rows(p, m, &(0..n), threads) },
        Right::Strided(b) => b,
    };
    let chunk = panel::chunk_columns::<E>(p.k);
    if m < 4 * LEAST || chunk < n.min(4 * LEAST) {
        let cut = grid(p, (m, n), threads, f64::INFINITY);
        // SAFETY: the caller's promise; cells are disjoint.
        team::parallel(cut.0 * cut.1, &|part| unsafe { cell(p, (m, n), cut, part) });
        return;
    }
    let mut slivers = Scratch::<E::P>::new(panel::packed_len::<E>(p.k, chunk.min(n)));
    for first in (0..n).step_by(chunk) {
        let columns = first..n.min(first + chunk);
        // SAFETY: the columns are readable.
        unsafe { pack::<E>(b.from(0, first), p.k, columns.len(), p.round, &mut slivers) };
        let data = &slivers;
        let b = Right::Packed { data, first };
        // SAFETY: the caller's promise.
        unsafe { shared_rows(&Problem { b, ..*p }, m, &columns, threads) };
    }
}

/// Packs all columns of `b`, with all threads together when that is much.
///
/// # Safety
/// The columns lie inside the source.
unsafe fn pack<E: Engine>(b: Source, k: usize, columns: usize, round: bool, to: &mut [E::P]) {
    assert!(
        to.len() >= panel::packed_len::<E>(k, columns),
        "room for the columns"
    );
    let nr = E::kernels().columns();
    let slivers = columns.div_ceil(nr);
    let sliver = nr * panel::units::<E>(k);
    let shared = Shared::new(to);
    team::split(slivers, (nr * k) as f64 * PACK_NS, |range| {
        let here = columns.min(range.end * nr) - range.start * nr;
        let end = if range.end == slivers {
            shared.len()
        } else {
            range.end * sliver
        };
        // SAFETY: slivers are disjoint, and only the last range holds the slack: slivers of whole
        // vectors are packed without it. The columns are readable.
        unsafe {
            let to = shared.slice(range.start * sliver..end);
            panel::pack_right::<E>(b.from(0, range.start * nr), k, here, round, to.as_mut_ptr());
        }
    });
}

/// All of `b` packed, as [`Right::Packed`] wants it.
///
/// # Safety
/// The matrix lies inside the source.
pub(crate) unsafe fn packed<E: Engine>(
    b: Source,
    k: usize,
    n: usize,
    round: bool,
) -> Scratch<E::P> {
    let mut to = Scratch::new(panel::packed_len::<E>(k, n));
    // SAFETY: the caller's promise.
    unsafe { pack::<E>(b, k, n, round, &mut to) };
    to
}

/// The columns of a product whose right operand is packed, shared out: by rows, and by columns too
/// where there are few.
///
/// # Safety
/// As [`multiply`].
unsafe fn shared_rows<E: Engine>(
    p: &Problem<'_, E>,
    m: usize,
    columns: &Range<usize>,
    threads: usize,
) {
    let nr = E::kernels().columns();
    // One block of rows per part, and parts enough that all threads finish together.
    let rounds = m.div_ceil(threads * panel::block_rows::<E>(p.k));
    let rows = (threads * rounds).min(m.div_ceil(LEAST)).max(1);
    let across = threads
        .div_ceil(rows)
        .min(columns.len().div_ceil(nr))
        .max(1);
    team::parallel(rows * across, &|part| {
        let (row, cell) = (part / across, part % across);
        let here = panel_of(cell, across, columns.len(), nr);
        let here = columns.start + here.start..columns.start + here.end;
        // SAFETY: the caller's promise; parts are disjoint.
        unsafe { panel::run(p, panel_of(row, rows, m, E::ROWS), here) };
    });
}
