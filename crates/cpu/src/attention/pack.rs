//! Filling the operands of attention's products: rows of strided inputs, and rows of scores.
//!
//! Left operands are row-major, or stay the block of scores they are. Right operands are slivers
//! whose columns are either the rows of an input (its transpose: `kᵀ`, `vᵀ`) or its channels (the
//! input itself, rows running along the inner dimension). Inputs that already are operands are used
//! where they lie if nothing has to be padded. Padding is zero everywhere, so that it adds nothing.

use entrenar_base::{Element, bf16, f16};

use super::tile::{COLUMNS, Left, Pairs, Plain, Precision, Right};
use crate::cast::round_bf16;
use crate::simd::multiversion;
#[cfg(target_arch = "x86_64")]
use crate::simd::turn;

/// A size padded to whole tiles of columns.
pub(super) const fn padded_columns(n: usize) -> usize {
    n.next_multiple_of(COLUMNS)
}

/// Some rows of an input: row `i` begins at `start + i · stride` and has no gaps.
pub(super) struct Rows<'a, S> {
    pub data: &'a [S],
    pub start: isize,
    pub stride: isize,
    pub count: usize,
    pub width: usize,
}

impl<S> Clone for Rows<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Rows<'_, S> {}

impl<'a, S> Rows<'a, S> {
    /// One row.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &'a [S] {
        if self.width == 0 {
            return &[];
        }
        let at = (self.start + i as isize * self.stride) as usize;
        &self.data[at..at + self.width]
    }

    /// Asks for the rows from `first` on, at most `count`, to be brought into cache. Rows lie a page
    /// apart, where no processor guesses what comes next.
    #[inline(always)]
    pub(super) fn prefetch(&self, first: usize, count: usize) {
        #[cfg(target_arch = "x86_64")]
        for i in first..self.count.min(first + count) {
            for line in self.row(i).chunks(64 / size_of::<S>()) {
                // SAFETY: a hint about memory that we hold a reference to.
                unsafe {
                    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (first, count);
    }
}

/// How far ahead of a loop over rows they are asked for.
const AHEAD: usize = 16;

/// How rows of inputs and scores become operands.
pub(super) trait Pack: Precision {
    /// Steps of an inner dimension of `depth` numbers, those that fill it up included.
    fn steps(depth: usize) -> usize {
        depth.next_multiple_of(Self::DEPTH) / Self::GROUP
    }

    /// A size padded to whole tiles of rows.
    fn padded_rows(n: usize) -> usize {
        n.next_multiple_of(Self::ROWS)
    }

    /// Inputs that are operands already.
    fn as_operands(inputs: &[Self::Source]) -> Option<&[Self::Operand]>;

    /// Neighbours of one row as operands, then zeros; `to` holds [`Pack::steps`] of them.
    fn row(from: &[Self::Source], to: &mut [Self::Operand]);

    /// Neighbours of two rows, one operand per channel; `second` is empty after the last row.
    fn rows(first: &[Self::Source], second: &[Self::Source], to: &mut [Self::Operand]);

    /// Rows of scores, `width` apart, `columns` of them, as the left operand of a product over
    /// those columns. `room` is used when the scores themselves cannot be it.
    fn scores_by_rows<'a>(
        scores: &'a [Self::Sum],
        width: usize,
        columns: usize,
        room: &'a mut [Self::Operand],
    ) -> Left<'a, Self::Operand>;

    /// The same scores turned: the left operand of a product over their rows.
    fn scores_by_columns<'a>(
        scores: &'a [Self::Sum],
        width: usize,
        columns: usize,
        room: &'a mut [Self::Operand],
    ) -> Left<'a, Self::Operand>;
}

/// to = f(from), sixteen at a time: a plain copy would become a call, which costs more than a row.
#[inline(always)]
fn each<S: Copy, T>(from: &[S], to: &mut [T], f: impl Fn(S) -> T + Copy) {
    let (many, few) = from.as_chunks::<16>();
    let (to_many, to_few) = to.as_chunks_mut::<16>();
    // Index loops, here and below: iterator adaptors are calls where the instruction set differs.
    let (blocks, rest) = (many.len(), few.len());
    let (to_many, to_few) = (&mut to_many[..blocks], &mut to_few[..rest]);
    for block in 0..blocks {
        for i in 0..16 {
            to_many[block][i] = f(many[block][i]);
        }
    }
    for i in 0..rest {
        to_few[i] = f(few[i]);
    }
}

/// to = from, as [`each`].
#[inline(always)]
fn same<T: Copy>(from: &[T], to: &mut [T]) {
    each(from, to, |x| x);
}

macro_rules! plain {
    ($T:ty, $S:ty, $same:expr, $copy:expr) => {
        impl Pack for Plain<$T, $S> {
            fn as_operands(inputs: &[$S]) -> Option<&[$T]> {
                $same(inputs)
            }
            #[inline(always)]
            fn row(from: &[$S], to: &mut [$T]) {
                $copy(from, to);
            }
            #[inline(always)]
            fn rows(first: &[$S], _: &[$S], to: &mut [$T]) {
                $copy(first, to);
            }
            fn scores_by_rows<'a>(
                scores: &'a [$T],
                width: usize,
                _: usize,
                _: &'a mut [$T],
            ) -> Left<'a, $T> {
                Left {
                    data: scores,
                    row: width,
                    step: 1,
                }
            }
            fn scores_by_columns<'a>(
                scores: &'a [$T],
                width: usize,
                _: usize,
                _: &'a mut [$T],
            ) -> Left<'a, $T> {
                Left {
                    data: scores,
                    row: 1,
                    step: width,
                }
            }
        }
    };
}
plain!(f64, f64, Some, same);
plain!(f32, f32, Some, same);
plain!(f32, f16, |_| None, |from, to| each(from, to, f16::to_f32));
plain!(f32, bf16, |_| None, |from, to| each(from, to, widen));

#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

#[inline(always)]
pub(super) fn pair(low: bf16, high: bf16) -> i32 {
    (low.to_bits() as u32 | (high.to_bits() as u32) << 16) as i32
}

multiversion! {
    fn narrow_row(from: &[f32], to: &mut [i32]) {
        let from = &from.as_chunks::<2>().0[..to.len()];
        for i in 0..to.len() {
            to[i] = pair(round_bf16(from[i][0]), round_bf16(from[i][1]));
        }
    }
}

multiversion! {
    fn narrow_rows(first: &[f32], second: &[f32], to: &mut [i32]) {
        let (first, second) = (&first[..to.len()], &second[..to.len()]);
        for i in 0..to.len() {
            to[i] = pair(round_bf16(first[i]), round_bf16(second[i]));
        }
    }
}

impl Pack for Pairs {
    fn as_operands(_: &[bf16]) -> Option<&[i32]> {
        None
    }

    #[inline(always)]
    fn row(from: &[bf16], to: &mut [i32]) {
        let (whole, rest) = from.as_chunks::<2>();
        // An odd last number has a pair of its own.
        each(whole, &mut to[..whole.len()], |p| pair(p[0], p[1]));
        if let (Some(to), [last]) = (to.last_mut(), rest) {
            *to = pair(*last, bf16::ZERO);
        }
    }

    #[inline(always)]
    fn rows(first: &[bf16], second: &[bf16], to: &mut [i32]) {
        if second.is_empty() {
            return each(first, to, |x| pair(x, bf16::ZERO));
        }
        let (x_many, x_few) = first.as_chunks::<16>();
        let (y_many, y_few) = second.as_chunks::<16>();
        let (to_many, to_few) = to.as_chunks_mut::<16>();
        for block in 0..to_many.len() {
            let (x, y) = (&x_many[block], &y_many[block]);
            for i in 0..16 {
                to_many[block][i] = pair(x[i], y[i]);
            }
        }
        for i in 0..to_few.len() {
            to_few[i] = pair(x_few[i], y_few[i]);
        }
    }

    fn scores_by_rows<'a>(
        scores: &'a [f32],
        width: usize,
        columns: usize,
        room: &'a mut [i32],
    ) -> Left<'a, i32> {
        let half = columns / 2;
        for (row, to) in scores.chunks(width).zip(room.chunks_exact_mut(half)) {
            #[cfg(target_arch = "x86_64")]
            if super::tile::has_bf16_products() {
                // SAFETY: the processor has the instructions.
                unsafe { x86::narrow_row(&row[..columns], to) };
                continue;
            }
            narrow_row(&row[..columns], to);
        }
        Left {
            data: room,
            row: half,
            step: 1,
        }
    }

    fn scores_by_columns<'a>(
        scores: &'a [f32],
        width: usize,
        columns: usize,
        room: &'a mut [i32],
    ) -> Left<'a, i32> {
        for (two, to) in scores.chunks(2 * width).zip(room.chunks_exact_mut(columns)) {
            let (first, second) = (&two[..columns], &two[width..width + columns]);
            #[cfg(target_arch = "x86_64")]
            if super::tile::has_bf16_products() {
                // SAFETY: the processor has the instructions.
                unsafe { x86::narrow_rows(first, second, to) };
                continue;
            }
            narrow_rows(first, second, to);
        }
        Left {
            data: room,
            row: 1,
            step: columns,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! What the compiler does not find: rounding to bf16 with the processor's own instruction
    //! (which flushes denormals to zero).

    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// Lengths are multiples of 32 numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn narrow_row(from: &[f32], to: &mut [i32]) {
        assert!(to.len().is_multiple_of(16) && from.len() == 2 * to.len());
        let (from, to, count) = (from.as_ptr(), to.as_mut_ptr(), to.len());
        for i in (0..count).step_by(16) {
            // SAFETY: 32 numbers are read and 16 pairs written, all inside by the assertion.
            unsafe {
                let low = _mm512_loadu_ps(from.add(2 * i));
                let high = _mm512_loadu_ps(from.add(2 * i + 16));
                let pairs = _mm512_cvtne2ps_pbh(high, low);
                _mm512_storeu_si512(to.add(i).cast(), transmute::<__m512bh, __m512i>(pairs));
            }
        }
    }

    /// Lengths are multiples of 16 numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn narrow_rows(first: &[f32], second: &[f32], to: &mut [i32]) {
        assert!(to.len().is_multiple_of(16) && first.len() == to.len() && second.len() == to.len());
        let (first, second) = (first.as_ptr(), second.as_ptr());
        for i in (0..to.len()).step_by(16) {
            // SAFETY: 16 numbers of each row are read and 16 pairs written, inside by the assertion.
            unsafe {
                let low = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(
                    _mm512_cvtneps_pbh(_mm512_loadu_ps(first.add(i))),
                ));
                let high = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(
                    _mm512_cvtneps_pbh(_mm512_loadu_ps(second.add(i))),
                ));
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(to.as_mut_ptr().add(i).cast(), pairs);
            }
        }
    }
}

/// Rows one after the other, padded to whole tiles of rows; where they lie if that is possible.
pub(super) fn by_rows<'a, P: Pack>(
    rows: Rows<'a, P::Source>,
    to: &'a mut [P::Operand],
) -> Left<'a, P::Operand> {
    if let (Some(operands), Ok(stride), true) = (
        P::as_operands(rows.data),
        usize::try_from(rows.stride),
        rows.count.is_multiple_of(P::ROWS) && rows.width > 0,
    ) {
        return Left {
            data: &operands[rows.start as usize..],
            row: stride,
            step: 1,
        };
    }
    fill_rows::<P>(rows, to);
    Left {
        data: to,
        row: P::steps(rows.width),
        step: 1,
    }
}

multiversion! {
    fn fill_rows<P: Pack>(rows: Rows<'_, P::Source>, to: &mut [P::Operand]) {
        let steps = P::steps(rows.width);
        if steps > 0 {
            for i in 0..rows.count {
                P::row(rows.row(i), &mut to[i * steps..(i + 1) * steps]);
            }
        }
        to[rows.count * steps..P::padded_rows(rows.count) * steps].fill(P::Operand::from_i64(0));
    }
}

/// Rows as columns: the right operand of a product over their channels. `line` holds [`GROUP`]
/// rows.
pub(super) fn transposed<'a, P: Pack>(
    nr: usize,
    rows: Rows<'_, P::Source>,
    line: &mut [P::Operand],
    to: &'a mut [P::Operand],
) -> Right<'a, P::Operand> {
    fill_transposed::<P>(nr, rows, line, to);
    let steps = P::steps(rows.width);
    Right {
        data: to,
        steps,
        sliver: nr * steps,
        next: nr,
    }
}

/// Rows that [`transposed`] turns at once.
pub(super) const GROUP: usize = 16;

multiversion! {
    fn fill_transposed<P: Pack>(
        nr: usize, rows: Rows<'_, P::Source>, line: &mut [P::Operand], to: &mut [P::Operand],
    ) {
        let steps = P::steps(rows.width);
        if steps == 0 {
            return;
        }
        let used = padded_columns(rows.count) * steps;
        for s in 0..used / (nr * steps) {
            let sliver = &mut to[s * nr * steps..(s + 1) * nr * steps];
            let here = rows.count.saturating_sub(s * nr).min(nr);
            if here < nr {
                sliver.fill(P::Operand::from_i64(0));
            }
            // Sixteen rows side by side, so that both sides stay in cache lines.
            for group in (0..here).step_by(GROUP) {
                let wide = (here - group).min(GROUP);
                rows.prefetch(s * nr + group + GROUP, AHEAD);
                for r in 0..wide {
                    P::row(rows.row(s * nr + group + r), &mut line[r * steps..(r + 1) * steps]);
                }
                turn(&line[..wide * steps], steps, &mut sliver[group..], nr);
            }
        }
    }
}

/// Writes rows of `steps` elements as columns of rows `nr` apart.
#[inline(always)]
fn turn<O: Element>(rows: &[O], steps: usize, to: &mut [O], nr: usize) {
    let count = rows.len() / steps;
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if count == GROUP && size_of::<O>() == 4 {
        use crate::simd::Level;
        assert!(steps == 0 || (steps - 1) * nr + GROUP <= to.len());
        let level = crate::simd::level();
        let block = match level {
            Level::Avx512 => 16,
            Level::Avx2 => 8,
            _ => usize::MAX,
        };
        while block <= steps - done {
            // SAFETY: 16 rows of `block` words from column `done` on lie inside `rows`, and as many
            // rows of 16 columns inside `to`, as asserted; words are moved, whatever they mean.
            unsafe {
                let from = rows.as_ptr().add(done).cast::<i32>();
                let to = to.as_mut_ptr().add(done * nr).cast::<i32>();
                if level == Level::Avx512 {
                    turn::sixteen::<false>(from, steps, to, nr);
                } else {
                    turn::eight(from, steps, to, nr);
                    turn::eight(from.add(8 * steps), steps, to.add(8), nr);
                }
            }
            done += block;
        }
    }
    for r in 0..count {
        for p in done..steps {
            to[p * nr + r] = rows[r * steps + p];
        }
    }
}

/// Rows along the inner dimension: the right operand of a product over them, one column per
/// channel; where they lie if that is possible.
pub(super) fn along<'a, P: Pack>(
    nr: usize,
    rows: Rows<'a, P::Source>,
    to: &'a mut [P::Operand],
    copied: bool,
) -> Right<'a, P::Operand> {
    let steps = P::steps(rows.count);
    if let (Some(operands), Ok(stride), true) = (
        P::as_operands(rows.data),
        usize::try_from(rows.stride),
        !copied && rows.width.is_multiple_of(COLUMNS) && rows.width * rows.count > 0,
    ) {
        return Right {
            data: &operands[rows.start as usize..],
            steps,
            sliver: nr,
            next: stride,
        };
    }
    fill_along::<P>(nr, rows, to);
    Right {
        data: to,
        steps,
        sliver: nr * steps,
        next: nr,
    }
}

multiversion! {
    fn fill_along<P: Pack>(nr: usize, rows: Rows<'_, P::Source>, to: &mut [P::Operand]) {
        let (steps, width) = (P::steps(rows.count), rows.width);
        if width < padded_columns(width) {
            to[..padded_columns(width) * steps].fill(P::Operand::from_i64(0));
        }
        let filled = rows.count.div_ceil(P::GROUP);
        if filled < steps {
            for s in 0..width.div_ceil(nr) {
                to[(s * steps + filled) * nr..(s + 1) * steps * nr].fill(P::Operand::from_i64(0));
            }
        }
        for p in 0..filled {
            let first = rows.row(p * P::GROUP);
            let next = p * P::GROUP + 1;
            rows.prefetch(p * P::GROUP + AHEAD, P::GROUP);
            let second = if P::GROUP == 2 && next < rows.count {
                rows.row(next)
            } else {
                &[]
            };
            for s in 0..width.div_ceil(nr) {
                let columns = s * nr..((s + 1) * nr).min(width);
                let at = (s * steps + p) * nr;
                let to = &mut to[at..at + columns.len()];
                let second = if second.is_empty() {
                    second
                } else {
                    &second[columns.clone()]
                };
                P::rows(&first[columns], second, to);
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    const STEPS: usize = 19;
    const NR: usize = 32;

    fn assert_turned(rows: &[i32], to: &[i32], columns: usize) {
        for r in 0..GROUP {
            for p in 0..columns {
                assert_eq!(to[p * NR + r], rows[r * STEPS + p], "{r} {p}");
            }
        }
    }

    #[test]
    fn words_turn() {
        let rows: Vec<i32> = (0..(GROUP * STEPS) as i32).collect();
        let mut to = vec![0; STEPS * NR];
        turn(&rows, STEPS, &mut to, NR);
        assert_turned(&rows, &to, STEPS);
    }

    #[test]
    fn eights_of_words_turn() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return; // the portable loop is what every other test runs
        }
        let rows: Vec<i32> = (0..(GROUP * STEPS) as i32).collect();
        let mut to = vec![0; STEPS * NR];
        for half in 0..2 {
            // SAFETY: the processor has AVX2; 8 rows of 8 words lie in both.
            unsafe {
                let from = rows.as_ptr().add(8 * half * STEPS);
                turn::eight(from, STEPS, to.as_mut_ptr().add(8 * half), NR);
            }
        }
        assert_turned(&rows, &to, 8);
    }
}
