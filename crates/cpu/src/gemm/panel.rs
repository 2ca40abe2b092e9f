//! One panel of a product on one thread: what is packed, and the loops around the kernels.
//!
//! For each block of rows the left operand is packed over a long stretch of the inner dimension;
//! then, sliver of columns by sliver of columns, the kernels run over it in blocks of
//! [`Engine::BLOCK`]. A block's slice of the right sliver stays in L1 while the tiles of rows pass, partial
//! sums stay in a strip of scratch memory, and an output element is written once.

use std::ops::Range;

use entrenar_base::Element;

use super::Source;
use super::ahead::{Runs, ask_to_write};
use super::engine::{Engine, readable};
use super::pack::{Block, SLACK, Side};
use super::tile::Call;
use crate::alloc::Scratch;

/// Stretch of the inner dimension between writes of partial sums; a multiple of every
/// [`Engine::BLOCK`].
pub(crate) const STRETCH: usize = 4096;
/// Bytes of a packed right operand kept at once.
const RIGHT_BYTES: usize = 8 << 20;
/// Slivers of the right operand that are packed together.
const GROUP: usize = 4;
/// Rows of a left block, at least.
const ROWS: usize = 48;
/// A left operand that meets no more columns than this is read in place; one of pairs always is, since
/// it is half as long.
const FEW_COLUMNS: usize = 128;
/// A right operand that meets no more tiles of rows than this is read in place.
const FEW_TILES: usize = 2;
/// Bytes of a right operand that stays in L1 whatever reads it.
const IN_L1: usize = 20 << 10;

/// Columns of the widest tile of all kernels.
pub(super) const WIDEST: usize = 32;

/// What happens to finished tiles.
pub(crate) trait Finish<S>: Sync {
    /// Asks for the memory of the outputs, while the sums are made.
    fn ask(&self, at: Place);

    /// Old values into the tile, for products that accumulate.
    ///
    /// # Safety
    /// The tile has `high` rows, `width` apart, of whole vectors; the rectangle lies inside the
    /// output, which nobody else uses.
    unsafe fn begin(&self, at: Place, tile: *mut S, width: usize);

    /// The finished sums from the tile, which it may change, to the outputs.
    ///
    /// # Safety
    /// As [`Finish::begin`].
    unsafe fn finish(&self, at: Place, tile: *mut S, width: usize);
}

/// A rectangle of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub row: usize,
    pub column: usize,
    pub high: usize,
    pub wide: usize,
}

/// Where sums go.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a, S> {
    /// Element (0, 0) of the output, if it holds sums as they are: when nothing follows.
    pub c: *mut S,
    pub width: usize,
    /// Whether sums start from the old values.
    pub accumulate: bool,
    /// What takes the sums instead of `c`.
    pub finish: Option<&'a dyn Finish<S>>,
    /// Number of row 0 in what `finish` is told.
    pub first_row: usize,
}

/// The right operand.
pub(crate) enum Right<'a, E: Engine> {
    /// As it lies.
    Strided(Source),
    /// Packed by [`pack_right`], from column `first` on, which is a multiple of the tile's columns.
    Packed { data: &'a [E::P], first: usize },
}

impl<E: Engine> Clone for Right<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Engine> Copy for Right<'_, E> {}

/// One product; rows and columns of a panel count from its corner.
pub(crate) struct Problem<'a, E: Engine> {
    pub k: usize,
    pub alpha: E::S,
    pub a: Source,
    pub b: Right<'a, E>,
    /// Whether packing rounds to bf16.
    pub round: bool,
    pub out: Out<'a, E::S>,
}

impl<E: Engine> Clone for Problem<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Engine> Copy for Problem<'_, E> {}

// SAFETY: operands are only read; the output is written by functions whose callers promise that
// they own the rectangle.
unsafe impl<E: Engine> Sync for Problem<'_, E> {}

/// Units of packed values in `depth` steps.
pub(super) fn units<E: Engine>(depth: usize) -> usize {
    depth.next_multiple_of(E::DEPTH) / E::GROUP
}

/// Values of the packed form of `k × n`, the slack of packing included.
pub(super) fn packed_len<E: Engine>(k: usize, n: usize) -> usize {
    units::<E>(k) * n.next_multiple_of(E::kernels().lanes) + SLACK
}

/// Packs the columns of `b` from the first on as slivers, each `k` deep, one after the other.
///
/// # Safety
/// The columns lie inside the source; `to` has room for them, followed by [`SLACK`] values
/// that are ours or come later.
pub(super) unsafe fn pack_right<E: Engine>(
    b: Source,
    k: usize,
    columns: usize,
    round: bool,
    to: *mut E::P,
) {
    let kernels = E::kernels();
    let packer = E::packer(Side::Right, b.kind, b.column, b.row, round);
    let (filled, all) = (k.div_ceil(E::GROUP), units::<E>(k));
    // SAFETY: the caller's promise.
    unsafe {
        packer(&Block {
            from: b.data,
            major: b.column_bytes(),
            step: b.row_bytes(),
            majors: columns,
            depth: k,
            height: kernels.columns(),
            align: kernels.lanes,
            to,
            next: kernels.columns() * all,
        });
        if filled < all {
            for first in (0..columns).step_by(kernels.columns()) {
                let width = kernels.columns().min(columns - first);
                let width = width.next_multiple_of(kernels.lanes);
                let sliver = to.add(first * all);
                // Zeros are zero bits in every unit.
                sliver
                    .add(filled * width)
                    .write_bytes(0, (all - filled) * width);
            }
        }
    }
}

/// Rows of a left block that fits into L2 with a stretch of `k` steps.
pub(super) fn block_rows<E: Engine>(k: usize) -> usize {
    let row = units::<E>(k.min(STRETCH)).max(1) * size_of::<E::P>();
    (E::LEFT / row).clamp(ROWS, E::LEFT_ROWS)
}

/// Columns of a right operand whose packed form is kept at once.
pub(super) fn chunk_columns<E: Engine>(k: usize) -> usize {
    let nr = E::kernels().columns();
    let column = units::<E>(k).max(1) * size_of::<E::P>();
    (RIGHT_BYTES / column / nr * nr).max(nr)
}

/// Whether a right operand that meets `m` rows is read in place.
fn right_in_place<E: Engine>(b: &Source, k: usize, m: usize, round: bool) -> bool {
    let few = m.div_ceil(E::kernels().rows()) <= FEW_TILES;
    E::GROUP == 1
        && E::as_it_lies(b.kind, round)
        && b.column == 1
        && (few || b.row_bytes().unsigned_abs() * k <= IN_L1)
}

/// Whether a left operand that meets `n` columns is read in place.
pub(super) fn left_in_place<E: Engine>(
    a: &Source,
    k: usize,
    m: usize,
    n: usize,
    round: bool,
) -> bool {
    let kernels = E::kernels();
    // Rows that lie a power of two apart would share cache sets.
    let apart = !a.row_bytes().unsigned_abs().is_multiple_of(2048) || m <= kernels.rows();
    let few = a.column == 1 && (n <= FEW_COLUMNS || E::GROUP > 1) && apart;
    readable::<E>(a, k, m, round) && (m == 1 || n <= kernels.columns() || few)
}

/// What is read in place and how the rest is cut.
struct Plan {
    left_in_place: bool,
    right_in_place: bool,
    /// Rows of a block and columns of a chunk.
    block: usize,
    chunk: usize,
    /// Whether the slivers of a chunk are kept for several blocks.
    keep: bool,
    /// Scratch sizes.
    left: usize,
    right: usize,
    strip: usize,
    carry: usize,
    /// Where a tile of old values lies in the strip, if sums are carried.
    old: usize,
}

impl Plan {
    fn of<E: Engine>(p: &Problem<'_, E>, m: usize, n: usize) -> Plan {
        let kernels = E::kernels();
        let nr = kernels.columns();
        let depth = p.k.min(STRETCH);
        let left_in_place = left_in_place::<E>(&p.a, p.k, m, n, p.round);
        // Blocks of equal height: the last would otherwise be a thin one.
        let mut block = m.div_ceil(m.div_ceil(block_rows::<E>(p.k)));
        if E::ROWS > 1 {
            block = block.next_multiple_of(kernels.rows());
        }
        let right_in_place = match p.b {
            Right::Packed { .. } => true,
            Right::Strided(b) => right_in_place::<E>(&b, p.k, m, p.round),
        };
        let chunk = if matches!(p.b, Right::Packed { .. }) || m <= block {
            n
        } else {
            chunk_columns::<E>(depth).min(n.next_multiple_of(nr))
        };
        // With one block of rows a sliver is used up before the next is packed.
        let keep = m > block;
        let kept = if keep {
            chunk.min(n)
        } else {
            n.min(GROUP * nr)
        };
        let carried = p.k > STRETCH && p.out.finish.is_some();
        Plan {
            left_in_place,
            right_in_place,
            block,
            chunk,
            keep,
            left: if left_in_place {
                0
            } else {
                block * units::<E>(depth) + SLACK
            },
            right: match p.b {
                Right::Packed { .. } => 0,
                Right::Strided(_) => packed_len::<E>(depth, kept),
            },
            strip: if depth > E::BLOCK || p.out.finish.is_some() {
                // Old values have a tile of their own where sums are carried.
                let tiles = usize::from(E::CARRIES) * kernels.rows();
                (block + tiles) * nr
            } else {
                0
            },
            carry: if carried { m * chunk.min(n) } else { 0 },
            old: block * nr,
        }
    }
}

/// The panel `rows × columns` of a product.
///
/// # Safety
/// All elements of the panel's operands are readable; its rectangle of the output is exclusively
/// ours and valid.
pub(crate) unsafe fn run<E: Engine>(p: &Problem<'_, E>, rows: Range<usize>, columns: Range<usize>) {
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    let (m, n) = (rows.len(), columns.len());
    let plan = Plan::of(p, m, n);
    let _session = E::enter();
    let mut left = Scratch::<E::P>::new(plan.left);
    let mut right = Scratch::<E::P>::new(plan.right);
    let mut strip = Scratch::<E::S>::new(plan.strip);
    let mut carry = Scratch::<E::S>::new(plan.carry);
    let mut work = Work {
        p,
        plan: &plan,
        left: left.as_mut_ptr(),
        right: right.as_mut_ptr(),
        strip: strip.as_mut_ptr(),
        carry: carry.as_mut_ptr(),
        first_row: rows.start,
        rows: 0..0,
        tiles: 0,
        units_per_tile: 0,
        taller_tiles: 0,
        chunk: 0..0,
        inner: 0,
        depth: 0,
        next_left: Runs::none(),
        next_right: Runs::none(),
    };
    for column in columns.clone().step_by(plan.chunk) {
        work.chunk = column..columns.end.min(column + plan.chunk);
        for inner in (0..p.k.max(1)).step_by(STRETCH) {
            work.inner = inner;
            work.depth = (p.k - inner).min(STRETCH);
            for row in rows.clone().step_by(plan.block) {
                work.rows = row..rows.end.min(row + plan.block);
                let row_units = work.rows.len().div_ceil(E::ROWS);
                work.tiles = work.rows.len().div_ceil(E::kernels().rows());
                work.units_per_tile = row_units / work.tiles;
                work.taller_tiles = row_units % work.tiles;
                let after = rows.end.min(row + 2 * plan.block) - work.rows.end;
                // SAFETY: the caller's promise; scratch memory has the sizes of the plan.
                unsafe { work.block(after) };
            }
        }
    }
}

/// The state of the loops.
struct Work<'a, E: Engine> {
    p: &'a Problem<'a, E>,
    plan: &'a Plan,
    left: *mut E::P,
    right: *mut E::P,
    strip: *mut E::S,
    carry: *mut E::S,
    /// First row of the panel.
    first_row: usize,
    /// The block's rows and the tiles that cover them as evenly as possible.
    rows: Range<usize>,
    tiles: usize,
    /// Rows of a tile in units of [`Engine::ROWS`], and how many tiles have one more.
    units_per_tile: usize,
    taller_tiles: usize,
    /// Columns whose slivers are kept together.
    chunk: Range<usize>,
    /// The stretch of the inner dimension.
    inner: usize,
    depth: usize,
    /// Sources that are packed later.
    next_left: Runs,
    next_right: Runs,
}

/// A sliver of the right operand, as kernels read it: from the stretch's first step on.
struct Sliver<P> {
    column: usize,
    wide: usize,
    data: *const P,
    /// Bytes from unit to unit.
    step: isize,
    vectors: usize,
}

impl<E: Engine> Work<'_, E> {
    fn first_block(&self) -> bool {
        self.rows.start == self.first_row
    }

    fn height(&self, tile: usize) -> usize {
        let first = tile * self.units_per_tile + tile.min(self.taller_tiles);
        let high = self.units_per_tile + usize::from(tile < self.taller_tiles);
        (high * E::ROWS).min(self.rows.len() - first * E::ROWS)
    }

    /// Calls of kernels for a number of slivers.
    fn calls(&self, slivers: usize) -> usize {
        slivers * self.depth.div_ceil(E::BLOCK) * self.tiles
    }

    /// One block of rows against the chunk; `after` rows follow in the next block.
    ///
    /// # Safety
    /// As [`run`].
    unsafe fn block(&mut self, after: usize) {
        let nr = E::kernels().columns();
        self.next_left = Runs::none();
        if !self.plan.left_in_place {
            // SAFETY: the caller's promise.
            unsafe { self.pack_left() };
            if after > 0 {
                let calls = self.calls(self.chunk.len().div_ceil(nr));
                let next = self.p.a.from(self.rows.end, self.inner);
                self.next_left = Runs::of(&next, after, self.depth, calls);
            }
        }
        for j in self.chunk.clone().step_by(nr) {
            // SAFETY: the caller's promise.
            unsafe {
                let sliver = self.sliver(j, nr.min(self.chunk.end - j));
                self.strip(&sliver);
            }
        }
    }

    /// # Safety
    /// As [`run`].
    unsafe fn pack_left(&mut self) {
        let a = self.p.a;
        let packer = E::packer(Side::Left, a.kind, a.row, a.column, self.p.round);
        let mut row = self.rows.start;
        let mut to = self.left;
        for tile in 0..self.tiles {
            let high = self.height(tile);
            // SAFETY: the rows are readable; the plan made room for all tiles and the slack.
            unsafe {
                packer(&Block {
                    from: a.at(row, self.inner),
                    major: a.row_bytes(),
                    step: a.column_bytes(),
                    majors: high,
                    depth: self.depth,
                    height: high,
                    align: 1,
                    to,
                    next: 0,
                });
                to = to.add(high.next_multiple_of(E::ROWS) * units::<E>(self.depth));
            }
            row += high;
        }
    }

    /// The sliver from column `j` on, packed if need be.
    ///
    /// # Safety
    /// As [`run`].
    unsafe fn sliver(&mut self, j: usize, wide: usize) -> Sliver<E::P> {
        let kernels = E::kernels();
        let vectors = wide.div_ceil(kernels.lanes);
        let width = vectors * kernels.lanes;
        let mut sliver = Sliver {
            column: j,
            wide,
            data: self.right.cast_const(),
            step: (width * size_of::<E::P>()) as isize,
            vectors,
        };
        let b = match self.p.b {
            Right::Packed { data, first } => {
                let at = (j - first) * units::<E>(self.p.k) + units::<E>(self.inner) * width;
                sliver.data = data[at..].as_ptr();
                return sliver;
            }
            Right::Strided(b) => b.from(self.inner, j),
        };
        let round = self.p.round;
        if self.plan.right_in_place {
            if wide == width {
                sliver.data = b.data.cast();
                sliver.step = b.row_bytes();
            } else {
                // Kernels read whole vectors of the right operand.
                // SAFETY: the plan made room for a group of slivers; the columns are readable.
                unsafe { pack_right::<E>(b, self.depth, wide, round, self.right) };
            }
            return sliver;
        }
        let group = GROUP * kernels.columns();
        let offset = j - self.chunk.start;
        let slot = if self.plan.keep {
            offset
        } else {
            offset % group
        };
        // SAFETY: the plan made room for a group of slivers or for the chunk.
        let to = unsafe { self.right.add(slot * units::<E>(self.depth)) };
        if self.first_block() && offset.is_multiple_of(group) {
            let left = self.chunk.end - j;
            // SAFETY: as above; the columns are readable.
            unsafe { pack_right::<E>(b, self.depth, group.min(left), round, to) };
            self.next_right = if left > group {
                let columns = group.min(left - group);
                Runs::of(&b.from(0, group), self.depth, columns, self.calls(GROUP))
            } else {
                Runs::none()
            };
        }
        sliver.data = to;
        sliver
    }

    /// One sliver of columns against all tiles of the block.
    ///
    /// # Safety
    /// As [`run`].
    unsafe fn strip(&mut self, sliver: &Sliver<E::P>) {
        let nr = E::kernels().columns();
        for kc in (0..self.depth.max(1)).step_by(E::BLOCK) {
            let depth = (self.depth - kc).min(E::BLOCK);
            let (steps, start) = (units::<E>(depth), (kc / E::GROUP) as isize * sliver.step);
            let b = sliver.data.cast::<u8>().wrapping_offset(start);
            // The next slice of kept slivers follows this one in memory: each tile asks for a part.
            let slice = steps * sliver.step.unsigned_abs();
            let ahead_step = slice.div_ceil((steps * self.tiles).max(1));
            let mut base = [E::S::default(); WIDEST];
            if E::BASED {
                // SAFETY: the sliver holds this many steps of whole vectors.
                unsafe { E::base(b.cast(), sliver.step, steps, sliver.vectors, &mut base) };
            }
            let mut i = 0;
            for tile in 0..self.tiles {
                let high = self.height(tile);
                self.next_left.ask();
                self.next_right.ask();
                let (a, a_row, a_step) = self.left_tile(i, high, kc);
                let slot = self.strip.wrapping_add(i * nr);
                let place = Place {
                    row: self.rows.start + i,
                    column: sliver.column,
                    high,
                    wide: sliver.wide,
                };
                // SAFETY: the caller's promise.
                let ends = unsafe { self.ends(&place, kc, kc + depth, slot) };
                let call = Call {
                    depth: steps,
                    alpha: ends.alpha,
                    a,
                    a_row,
                    a_step,
                    b: b.cast(),
                    b_step: sliver.step,
                    base: base.as_ptr(),
                    carry: ends.carry,
                    from: ends.from,
                    from_width: ends.from_width,
                    to: ends.to,
                    to_width: ends.to_width,
                    roomy: ends.to == slot,
                    rows: high,
                    columns: sliver.wide,
                    ahead: b.wrapping_add(slice + tile * steps * ahead_step),
                    ahead_step: ahead_step as isize,
                };
                let kernel = E::kernels().get(high, sliver.vectors, !self.plan.left_in_place);
                match ends.finish {
                    Some(finish) => finish.ask(self.told(&place)),
                    None if ends.to_width != nr => {
                        let size = size_of::<E::S>();
                        let stride = ends.to_width * size;
                        ask_to_write(ends.to.cast(), high, stride, sliver.wide * size);
                    }
                    None => {}
                }
                // SAFETY: operands are packed or readable in place; the destination is scratch
                // memory with room for a tile or the caller's output.
                unsafe {
                    kernel(&call);
                    if let Some(finish) = ends.finish {
                        finish.finish(self.told(&place), slot, nr);
                    }
                }
                i += high;
            }
        }
    }

    /// Where kernels find a tile of the left operand, and its strides in bytes.
    fn left_tile(&self, i: usize, high: usize, kc: usize) -> (*const E::P, isize, isize) {
        if self.plan.left_in_place {
            let a = &self.p.a;
            let at = a.at(self.rows.start + i, self.inner + kc).cast();
            return (at, a.row_bytes(), a.column_bytes() * E::GROUP as isize);
        }
        let high = high.next_multiple_of(E::ROWS);
        let at = i * units::<E>(self.depth) + kc / E::GROUP * high;
        (self.left.wrapping_add(at).cast_const(), 0, 0)
    }

    /// A place as [`Finish`] counts rows.
    fn told(&self, place: &Place) -> Place {
        Place {
            row: self.p.out.first_row + place.row,
            ..*place
        }
    }

    /// Where the sums of steps `kc..end` of the stretch start from and go to; `slot` is the tile's
    /// place in the strip.
    ///
    /// # Safety
    /// As [`run`].
    unsafe fn ends(&self, place: &Place, kc: usize, end: usize, slot: *mut E::S) -> Ends<'_, E::S> {
        let out = &self.p.out;
        let nr = E::kernels().columns();
        // Where sums lie between stretches: in the output if it can hold them.
        let (kept, kept_width) = if out.finish.is_some() {
            let row = (place.row - self.first_row) * self.chunk.len();
            let at = row + place.column - self.chunk.start;
            (self.carry.wrapping_add(at), self.chunk.len())
        } else {
            (
                out.c.wrapping_add(place.row * out.width + place.column),
                out.width,
            )
        };
        let last = end >= self.depth;
        let nothing = (std::ptr::null(), 0);
        let (carry, old) = if E::CARRIES {
            let carry = if kc > 0 { slot } else { std::ptr::null_mut() };
            (carry.cast_const(), self.strip.wrapping_add(self.plan.old))
        } else {
            (std::ptr::null(), slot)
        };
        let (from, from_width) = if !E::CARRIES && kc > 0 {
            (slot.cast_const(), nr)
        } else if E::CARRIES && !last {
            nothing
        } else if self.inner > 0 {
            (kept.cast_const(), kept_width)
        } else if !out.accumulate {
            nothing
        } else if let Some(finish) = out.finish {
            // SAFETY: the strip has room for the tile; the output is the caller's.
            unsafe { finish.begin(self.told(place), old, nr) };
            (old.cast_const(), nr)
        } else {
            (kept.cast_const(), kept_width)
        };
        let finish = out.finish.filter(|_| last && self.inner + end >= self.p.k);
        let (to, to_width) = if last && finish.is_none() {
            (kept, kept_width)
        } else {
            (slot, nr)
        };
        let alpha = if E::CARRIES && !last {
            E::S::from_f64(1.0)
        } else {
            self.p.alpha
        };
        Ends {
            alpha,
            carry,
            from,
            from_width,
            to,
            to_width,
            finish,
        }
    }
}

/// Both ends of a kernel's sums.
struct Ends<'a, S> {
    alpha: S,
    carry: *const S,
    from: *const S,
    from_width: usize,
    to: *mut S,
    to_width: usize,
    /// What takes the sums when they are complete.
    finish: Option<&'a dyn Finish<S>>,
}
