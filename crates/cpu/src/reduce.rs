//! Reductions: sums, products, extremes, means, truth, positions of extremes, log-sum-exp.
//!
//! Reduced dimensions stay with size 1. Every order of combination is fixed by the shape: slices
//! are folded in blocks of `BLOCK` over `LANES` partial results, blocks and chunks pairwise,
//! so sums are accurate (error grows with the logarithm of the length) and the same bits at any
//! thread count and layout. 16-bit floats accumulate in f32, integers in i64.
//!
//! An array is seen as `[a, r, b]`, the reduced dimensions in the middle; when they are not
//! neighbours, one group is reduced after the other, innermost first, without rounding between.

use entrenar_base::{Array, DType, Element, Error, Result, Shape, dispatch};
use smallvec::SmallVec;
use std::marker::PhantomData;
use std::ops::Range;

use crate::alloc::Scratch;
use crate::cast;
use crate::pointwise::Lane;
use crate::simd::{math, multiversion};
use crate::team::{self, Shared};
use crate::walk::Walk;

/// Partial results side by side: four AVX-512 registers of f32.
const LANES: usize = 64;
/// Elements folded into the lanes before lanes are joined.
const BLOCK: usize = 1024;
/// Elements per part of a long slice.
const CHUNK: usize = 16 * BLOCK;
/// Rows added one after the other in a reduction over columns.
const ROWS: usize = 64;
/// Rows per part of a long reduction over columns.
const ROW_CHUNK: usize = ROWS * ROWS;
/// Columns handled together.
const COLUMNS: usize = 1024;
/// Estimated nanoseconds per element.
const COST: f64 = 0.1;

/// What is computed from the elements that share an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// Sum; 0 when empty. i64 for integers and bool.
    Sum,
    /// Product; 1 when empty. i64 for integers and bool.
    Prod,
    /// Largest, NaN if there is one.
    Max,
    /// Smallest, NaN if there is one.
    Min,
    /// Arithmetic mean of floats; NaN when empty.
    Mean,
    /// Whether one is not 0.
    Any,
    /// Whether none is 0.
    All,
}

impl Reduce {
    /// PyTorch's name.
    pub const fn name(self) -> &'static str {
        match self {
            Reduce::Sum => "sum",
            Reduce::Prod => "prod",
            Reduce::Max => "amax",
            Reduce::Min => "amin",
            Reduce::Mean => "mean",
            Reduce::Any => "any",
            Reduce::All => "all",
        }
    }
}

/// Reduces `x` over `dims`, which stay with size 1.
///
/// # Errors
/// When a dimension does not exist or comes twice, for `Max` and `Min` over nothing, and for
/// `Mean` of a dtype that is not a float.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::reduce::{Reduce, reduce};
/// let x = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// let s = reduce(Reduce::Sum, &x, &[1])?;
/// assert_eq!((s.dims(), s.to_vec::<f32>()?), (&[2, 1][..], vec![6.0, 15.0]));
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn reduce(kind: Reduce, x: &Array, dims: &[usize]) -> Result<Array> {
    carry_out(kind, x, &Plan::of(kind.name(), x, dims)?)
}

/// Reduces all of `x` to one element, of rank 0. Errors as [`reduce`].
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::reduce::{Reduce, reduce_all};
/// let x = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// assert_eq!(reduce_all(Reduce::Sum, &x)?.item::<f32>()?, 10.0);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn reduce_all(kind: Reduce, x: &Array) -> Result<Array> {
    let whole = Group {
        a: 1,
        r: x.numel(),
        b: 1,
    };
    let plan = Plan {
        groups: SmallVec::from_buf([whole]),
        count: x.numel(),
        shape: Shape::scalar(),
    };
    carry_out(kind, x, &plan)
}

#[track_caller]
fn carry_out(kind: Reduce, x: &Array, plan: &Plan) -> Result<Array> {
    let dtype = x.dtype();
    if matches!(kind, Reduce::Max | Reduce::Min) && plan.count == 0 {
        return Err(Error::shape(
            kind.name(),
            "reduced dimensions with at least one element",
            x.shape(),
        ));
    }
    if kind == Reduce::Mean && !dtype.is_float() {
        return Err(Error::dtype(kind.name(), "a float dtype", dtype));
    }
    let out = match kind {
        Reduce::Sum | Reduce::Prod if !dtype.is_float() => DType::I64,
        Reduce::Any | Reduce::All => DType::Bool,
        _ => dtype,
    };
    macro_rules! lane {
        ($T:ty) => {
            match kind {
                Reduce::Sum => plan.run::<Sum<$T>>(x, out, None),
                Reduce::Mean => plan.run::<Sum<$T>>(x, out, Some(plan.count as $T)),
                Reduce::Prod => plan.run::<Prod<$T>>(x, out, None),
                Reduce::Max => plan.run::<Max<$T>>(x, out, None),
                Reduce::Min => plan.run::<Min<$T>>(x, out, None),
                Reduce::Any => plan.run::<Any<$T>>(x, out, None),
                Reduce::All => plan.run::<All<$T>>(x, out, None),
            }
        };
    }
    match dtype.accumulator() {
        DType::F32 => lane!(f32),
        DType::F64 => lane!(f64),
        _ => lane!(i64),
    }
}

/// Neighbouring reduced dimensions: sizes before, of, and after the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    a: usize,
    r: usize,
    b: usize,
}

struct Plan {
    /// Innermost first; sizes as they are when its turn comes.
    groups: SmallVec<[Group; 1]>,
    /// Elements per output.
    count: usize,
    shape: Shape,
}

impl Plan {
    #[track_caller]
    fn of(op: &str, x: &Array, dims: &[usize]) -> Result<Plan> {
        let rank = x.rank();
        let mut reduced: SmallVec<[bool; 8]> = SmallVec::from_elem(false, rank);
        for &d in dims {
            if d >= rank {
                return Err(Error::index(op, format!("a dimension of {}", x.shape()), d));
            }
            if std::mem::replace(&mut reduced[d], true) {
                return Err(Error::argument(
                    op,
                    "each dimension once",
                    format!("{dims:?}"),
                ));
            }
        }
        let mut sizes = x.shape().clone();
        let mut groups = SmallVec::new();
        let mut end = rank;
        while end > 0 {
            if !reduced[end - 1] {
                end -= 1;
                continue;
            }
            let mut start = end - 1;
            // Kept dimensions of size 1 do not separate.
            while start > 0 && (reduced[start - 1] || sizes[start - 1] == 1) {
                start -= 1;
            }
            groups.push(Group {
                a: sizes[..start].iter().product(),
                r: sizes[start..end].iter().product(),
                b: sizes[end..].iter().product(),
            });
            sizes.dims_mut()[start..end].fill(1);
            end = start;
        }
        if groups.is_empty() {
            groups.push(Group {
                a: x.numel(),
                r: 1,
                b: 1,
            });
        }
        Ok(Plan {
            groups,
            count: dims.iter().map(|&d| x.dims()[d]).product(),
            shape: sizes,
        })
    }

    /// Folds by `K`, divides by `divisor`, converts to `out`.
    fn run<K: Fold>(&self, x: &Array, out: DType, divisor: Option<K::T>) -> Result<Array> {
        let straight = crate::copy::straighten(x)?;
        let mut source = Input::<K::T>::of(&straight)?;
        for (i, &group) in self.groups.iter().enumerate() {
            let last = i + 1 == self.groups.len();
            let finish = |result: &mut [K::T]| {
                fold_group::<K>(&source, group, result);
                if let Some(n) = divisor.filter(|_| last) {
                    result.iter_mut().for_each(|v| *v = v.over(n));
                }
            };
            if last && out == K::T::DTYPE {
                return Array::try_build(&self.shape, |out: &mut [K::T]| {
                    finish(out);
                    Ok(())
                });
            }
            let mut result = Scratch::<K::T>::new(group.a * group.b);
            finish(&mut result);
            if last {
                return dispatch!(out, D => Array::try_build(&self.shape, |out: &mut [D]| {
                    cast::convert(&result, out);
                    Ok(())
                }));
            }
            source = Input::Owned(result);
        }
        unreachable!("a plan has at least one group")
    }
}

/// Elements of the compute type, read in place or converted on demand.
enum Input<'a, T: Element> {
    Slice(&'a [T]),
    Owned(Scratch<T>),
    Gather(&'a Array, Walk),
}

impl<'a, T: Element> Input<'a, T> {
    fn of(x: &'a Array) -> Result<Self> {
        if x.dtype() == T::DTYPE
            && let Some(s) = x.view::<T>()?.as_slice()
        {
            return Ok(Input::Slice(s));
        }
        Ok(Input::Gather(x, Walk::new(x.layout())))
    }

    /// The row-major elements of `range`; `buffer` is grown when they must be converted.
    fn get<'b>(&'b self, range: Range<usize>, buffer: &'b mut Option<Scratch<T>>) -> &'b [T] {
        match self {
            Input::Slice(s) => &s[range],
            Input::Owned(s) => &s[range],
            Input::Gather(x, walk) => {
                let n = range.len();
                if buffer.as_ref().is_none_or(|b| b.len() < n) {
                    *buffer = Some(Scratch::new(n));
                }
                let tile = &mut buffer.as_mut().expect("made above")[..n];
                dispatch!(x.dtype(), S => {
                    let view = x.view::<S>().expect("dispatched on its dtype");
                    cast::load(view.data(), walk, range, tile);
                });
                tile
            }
        }
    }
}

/// Arithmetic of the compute types.
trait Number: Lane {
    const LOWEST: Self;
    const HIGHEST: Self;
    const ZERO: Self;
    const ONE: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn over(self, other: Self) -> Self;
    fn is_nan(self) -> bool;
}

macro_rules! number {
    ($T:ident, $low:expr, $high:expr, $zero:literal, $one:literal,
     |$a:ident, $b:ident| $plus:expr, $times:expr, $over:expr, $nan:expr) => {
        impl Number for $T {
            const LOWEST: $T = $low;
            const HIGHEST: $T = $high;
            const ZERO: $T = $zero;
            const ONE: $T = $one;
            #[inline(always)]
            fn plus(self, $b: $T) -> $T {
                let $a = self;
                $plus
            }
            #[inline(always)]
            fn times(self, $b: $T) -> $T {
                let $a = self;
                $times
            }
            fn over(self, $b: $T) -> $T {
                let $a = self;
                $over
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $nan(self)
            }
        }
    };
}
number!(
    f32,
    f32::NEG_INFINITY,
    f32::INFINITY,
    0.0,
    1.0,
    |a, b| a + b,
    a * b,
    a / b,
    f32::is_nan
);
number!(
    f64,
    f64::NEG_INFINITY,
    f64::INFINITY,
    0.0,
    1.0,
    |a, b| a + b,
    a * b,
    a / b,
    f64::is_nan
);
number!(
    i64,
    i64::MIN,
    i64::MAX,
    0,
    1,
    |a, b| a.wrapping_add(b),
    a.wrapping_mul(b),
    a.checked_div(b).unwrap_or(0),
    |_| false
);

/// A way of combining two values, associative up to rounding.
trait Fold: Send + Sync {
    type T: Number;
    /// Combines with anything without changing it.
    const IDENTITY: Self::T;
    /// `acc` with one more value. Results of steps may be values again.
    fn step(acc: Self::T, value: Self::T) -> Self::T;
}

macro_rules! fold {
    ($name:ident, $identity:ident, |$a:ident, $v:ident| $step:expr) => {
        struct $name<T>(PhantomData<T>);
        impl<T: Number> Fold for $name<T> {
            type T = T;
            const IDENTITY: T = T::$identity;
            #[inline(always)]
            fn step($a: T, $v: T) -> T {
                $step
            }
        }
    };
}
fold!(Sum, ZERO, |a, v| a.plus(v));
fold!(Prod, ONE, |a, v| a.times(v));
// A NaN replaces everything, and nothing but a NaN replaces it.
fold!(Max, LOWEST, |a, v| if (v > a) | v.is_nan() { v } else { a });
fold!(Min, HIGHEST, |a, v| if (v < a) | v.is_nan() {
    v
} else {
    a
});
fold!(Any, ZERO, |a, v| if v != T::ZERO { T::ONE } else { a });
fold!(All, ONE, |a, v| if v == T::ZERO { T::ZERO } else { a });

/// Folds at most [`BLOCK`] elements.
#[inline(always)]
fn fold_block<K: Fold>(x: &[K::T]) -> K::T {
    if x.len() < LANES {
        return x.iter().fold(K::IDENTITY, |a, &v| K::step(a, v));
    }
    let mut lanes = [K::IDENTITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for l in 0..LANES {
            lanes[l] = K::step(lanes[l], chunk[l]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = K::step(*lane, v);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = K::step(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Folds a slice of at most [`CHUNK`] elements.
#[inline(always)]
fn fold_chunk<K: Fold>(x: &[K::T]) -> K::T {
    if x.len() <= BLOCK {
        return fold_block::<K>(x);
    }
    let mut sums = [K::IDENTITY; CHUNK / BLOCK];
    let blocks = x.len().div_ceil(BLOCK);
    for (sum, block) in sums.iter_mut().zip(x.chunks(BLOCK)) {
        *sum = fold_block::<K>(block);
    }
    fold_pairs::<K>(&mut sums[..blocks])
}

/// Folds neighbours until one is left.
#[inline(always)]
fn fold_pairs<K: Fold>(values: &mut [K::T]) -> K::T {
    let mut n = values.len();
    if n == 0 {
        return K::IDENTITY;
    }
    while n > 1 {
        let half = n / 2;
        for i in 0..half {
            values[i] = K::step(values[2 * i], values[2 * i + 1]);
        }
        if n % 2 == 1 {
            values[half] = values[n - 1];
        }
        n = n.div_ceil(2);
    }
    values[0]
}

multiversion! {
    /// Folds each of `out.len()` slices of `r <= CHUNK` elements.
    fn fold_rows<K: Fold>(x: &[K::T], r: usize, out: &mut [K::T]) {
        for (row, out) in x.chunks_exact(r).zip(out) {
            *out = fold_chunk::<K>(row);
        }
    }
}

multiversion! {
    /// `acc[i] = step(acc[i], x[i])`.
    fn fold_into<K: Fold>(acc: &mut [K::T], x: &[K::T]) {
        let n = acc.len();
        let x = &x[..n];
        for i in 0..n {
            acc[i] = K::step(acc[i], x[i]);
        }
    }
}

/// `[a, r, b]` → `[a, b]`.
fn fold_group<K: Fold>(x: &Input<'_, K::T>, Group { a, r, b }: Group, out: &mut [K::T]) {
    if out.is_empty() {
        return;
    }
    if r == 0 {
        out.fill(K::IDENTITY);
    } else if b == 1 && r <= CHUNK {
        // Whole rows; several at a time, so that conversion has enough to do.
        let group = (CHUNK / r).max(1);
        team::split_mut(out, a, COST * r as f64 + 1.0, |range, out| {
            let mut buffer = None;
            let mut start = range.start;
            for out in out.chunks_mut(group) {
                let rows = x.get(start * r..(start + out.len()) * r, &mut buffer);
                fold_rows::<K>(rows, r, out);
                start += out.len();
            }
        });
    } else if b == 1 {
        let pieces = r.div_ceil(CHUNK);
        let mut partial = Scratch::<K::T>::new(a * pieces);
        team::split_mut(
            &mut partial,
            a * pieces,
            COST * CHUNK as f64,
            |range, partial| {
                let mut buffer = None;
                for (item, out) in range.zip(partial) {
                    let (i, piece) = (item / pieces, item % pieces);
                    let len = CHUNK.min(r - piece * CHUNK);
                    let start = i * r + piece * CHUNK;
                    let values = x.get(start..start + len, &mut buffer);
                    fold_rows::<K>(values, len, std::slice::from_mut(out));
                }
            },
        );
        for (out, partial) in out.iter_mut().zip(partial.chunks_mut(pieces)) {
            *out = fold_pairs::<K>(partial);
        }
    } else {
        fold_columns::<K>(x, Group { a, r, b }, out);
    }
}

/// The case `b > 1`: rows are added to rows.
fn fold_columns<K: Fold>(x: &Input<'_, K::T>, Group { a, r, b }: Group, out: &mut [K::T]) {
    let pieces = r.div_ceil(ROW_CHUNK);
    let tiles = b.div_ceil(COLUMNS);
    let mut partial = Scratch::<K::T>::new(if pieces > 1 { a * pieces * b } else { 0 });
    {
        let target = Shared::new(if pieces > 1 { &mut partial } else { out });
        let rows = ROW_CHUNK.min(r);
        let cost = COST * (rows * COLUMNS.min(b)) as f64;
        team::split(a * pieces * tiles, cost, |range| {
            let mut buffer = None;
            let mut block = Scratch::<K::T>::new(COLUMNS.min(b));
            for item in range {
                let (i, rest) = (item / (pieces * tiles), item % (pieces * tiles));
                let (piece, tile) = (rest / tiles, rest % tiles);
                let columns = tile * COLUMNS..((tile + 1) * COLUMNS).min(b);
                let first = piece * ROW_CHUNK;
                let rows = first..(first + ROW_CHUNK).min(r);
                let to = (i * pieces + piece) * b;
                // SAFETY: items are disjoint rectangles of the target.
                let out = unsafe { target.slice(to + columns.start..to + columns.end) };
                fold_rectangle::<K>(x, i * r, rows, columns, b, out, &mut block, &mut buffer);
            }
        });
    }
    if pieces > 1 {
        let cost = COST * (pieces * b) as f64;
        team::split_mut(&mut partial, a, cost, |_, partial| {
            for partial in partial.chunks_mut(pieces * b) {
                // Pairwise, the result in the first row.
                let mut step = b;
                while step < partial.len() {
                    for pair in partial
                        .chunks_mut(2 * step)
                        .filter(|pair| pair.len() > step)
                    {
                        let (left, right) = pair.split_at_mut(step);
                        fold_into::<K>(&mut left[..b], &right[..b]);
                    }
                    step *= 2;
                }
            }
        });
        for (out, partial) in out.chunks_mut(b).zip(partial.chunks(pieces * b)) {
            out.copy_from_slice(&partial[..b]);
        }
    }
}

/// Folds `rows` of one matrix over `columns` into `out`, [`ROWS`] at a time.
#[allow(clippy::too_many_arguments, reason = "one caller, above")]
fn fold_rectangle<K: Fold>(
    x: &Input<'_, K::T>,
    first_row: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    b: usize,
    out: &mut [K::T],
    block: &mut [K::T],
    buffer: &mut Option<Scratch<K::T>>,
) {
    out.fill(K::IDENTITY);
    let width = columns.len();
    let block = &mut block[..width];
    let mut row = rows.start;
    while row < rows.end {
        let end = (row + ROWS).min(rows.end);
        block.fill(K::IDENTITY);
        if width == b {
            let values = x.get((first_row + row) * b..(first_row + end) * b, buffer);
            for line in values.chunks_exact(b) {
                fold_into::<K>(block, line);
            }
        } else {
            for i in row..end {
                let at = (first_row + i) * b;
                let line = x.get(at + columns.start..at + columns.end, buffer);
                fold_into::<K>(block, line);
            }
        }
        fold_into::<K>(out, block);
        row = end;
    }
}

/// `x` with the dimensions `dims` moved to the end and contiguous, as rows of their product.
fn as_rows(op: &str, x: &Array, dims: &[usize]) -> Result<(Array, usize, Shape)> {
    let plan = Plan::of(op, x, dims)?;
    let mut axes: Vec<usize> = (0..x.rank()).filter(|d| !dims.contains(d)).collect();
    let mut last = dims.to_vec();
    last.sort_unstable();
    axes.extend(last);
    let rows = crate::copy::contiguous(&x.permute(&axes)?)?;
    Ok((rows, plan.count, plan.shape))
}

/// The position along `dim` of the largest (`max`) or smallest element, as i64; `dim` stays with
/// size 1. The first of equals wins and a NaN beats everything, as in PyTorch.
///
/// # Errors
/// When the dimension does not exist or is empty.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1.0f32, 7.0, 7.0, 3.0], [2, 2])?;
/// let at = entrenar_cpu::reduce::arg_reduce(true, &x, 1)?;
/// assert_eq!(at.to_vec::<i64>()?, [1, 0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn arg_reduce(max: bool, x: &Array, dim: usize) -> Result<Array> {
    let op = if max { "argmax" } else { "argmin" };
    let (rows, r, shape) = as_rows(op, x, &[dim])?;
    if r == 0 {
        return Err(Error::shape(
            op,
            "a dimension with at least one element",
            x.shape(),
        ));
    }
    fn find<K: Fold>(rows: &Array, r: usize, shape: Shape) -> Result<Array> {
        let input = Input::<K::T>::of(rows)?;
        Array::try_build(shape, |out: &mut [i64]| {
            let a = out.len();
            team::split_mut(out, a, 0.3 * r as f64 + 1.0, |range, out| {
                let mut buffer = None;
                for (i, out) in range.zip(out) {
                    let row = input.get(i * r..(i + 1) * r, &mut buffer);
                    // A first pass finds the value, the second its place: both are simple loops.
                    let mut best = K::IDENTITY;
                    for chunk in row.chunks(CHUNK) {
                        let mut one = [best];
                        fold_rows::<K>(chunk, chunk.len(), &mut one);
                        best = K::step(best, one[0]);
                    }
                    let nan = best.is_nan();
                    let at = row.iter().position(|&v| v == best || (nan && v.is_nan()));
                    *out = at.unwrap_or(0) as i64;
                }
            });
            Ok(())
        })
    }
    match (x.dtype().accumulator(), max) {
        (DType::F32, true) => find::<Max<f32>>(&rows, r, shape),
        (DType::F32, false) => find::<Min<f32>>(&rows, r, shape),
        (DType::F64, true) => find::<Max<f64>>(&rows, r, shape),
        (DType::F64, false) => find::<Min<f64>>(&rows, r, shape),
        (_, true) => find::<Max<i64>>(&rows, r, shape),
        (_, false) => find::<Min<i64>>(&rows, r, shape),
    }
}

multiversion! {
    fn exponentials(x: &[f32], top: f32, out: &mut [f32]) {
        let n = out.len();
        let x = &x[..n];
        for i in 0..n {
            out[i] = math::exp(x[i] - top);
        }
    }
}

/// log Σ e^x over `dims`, without overflow: the largest element is taken out first. Over nothing
/// it is -∞.
///
/// # Errors
/// When a dimension does not exist or comes twice, or the dtype is not a float.
#[track_caller]
pub fn log_sum_exp(x: &Array, dims: &[usize]) -> Result<Array> {
    let op = "logsumexp";
    if !x.dtype().is_float() {
        return Err(Error::dtype(op, "a float dtype", x.dtype()));
    }
    let (rows, r, shape) = as_rows(op, x, dims)?;
    fn run<K, S>(
        rows: &Array,
        r: usize,
        shape: &Shape,
        out: DType,
        exp: impl Fn(&[K::T], K::T, &mut [K::T]) + Sync,
        finish: impl Fn(K::T, f64) -> f64 + Sync,
    ) -> Result<Array>
    where
        K: Fold,
        S: Fold<T = K::T>,
    {
        let input = Input::<K::T>::of(rows)?;
        dispatch!(out, D => Array::try_build(shape, |out: &mut [D]| {
            let a = out.len();
            team::split_mut(out, a, 0.6 * r as f64 + 1.0, |range, out| {
                let mut buffer = None;
                let mut tile = Scratch::<K::T>::new(CHUNK.min(r));
                for (i, out) in range.zip(out) {
                    let row = input.get(i * r..(i + 1) * r, &mut buffer);
                    let mut top = K::IDENTITY;
                    for chunk in row.chunks(CHUNK) {
                        let mut one = [top];
                        fold_rows::<K>(chunk, chunk.len(), &mut one);
                        top = K::step(top, one[0]);
                    }
                    let mut sum = S::IDENTITY;
                    // An infinite maximum, of either sign, is the answer itself.
                    if top.to_f64().is_finite() {
                        for chunk in row.chunks(CHUNK) {
                            let tile = &mut tile[..chunk.len()];
                            exp(chunk, top, tile);
                            let mut one = [sum];
                            fold_rows::<S>(tile, tile.len(), &mut one);
                            sum = S::step(sum, one[0]);
                        }
                    }
                    *out = D::from_f64(finish(top, sum.to_f64()));
                }
            });
            Ok(())
        }))
    }
    // The sum is at least 1 where the maximum is finite.
    let finish = |top: f64, sum: f64| if top.is_finite() { top + sum.ln() } else { top };
    match x.dtype() {
        DType::F64 => run::<Max<f64>, Sum<f64>>(
            &rows,
            r,
            &shape,
            DType::F64,
            |x, top, out| {
                for (o, &x) in out.iter_mut().zip(x) {
                    *o = (x - top).exp();
                }
            },
            finish,
        ),
        dtype => run::<Max<f32>, Sum<f32>>(&rows, r, &shape, dtype, exponentials, |top, sum| {
            finish(top as f64, sum)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, same_at_any_thread_count, scattered, strided};
    use proptest::prelude::*;

    /// Outputs in order, each with the elements it is made of.
    fn gather(x: &Array, dims: &[usize]) -> Vec<Vec<f64>> {
        let kept: Vec<usize> = (0..x.rank()).filter(|d| !dims.contains(d)).collect();
        let mut sorted = dims.to_vec();
        sorted.sort_unstable();
        let axes = [kept.clone(), sorted].concat();
        let values = x.permute(&axes).unwrap().to_f64_vec();
        let r: usize = dims.iter().map(|&d| x.dims()[d]).product();
        let a: usize = kept.iter().map(|&d| x.dims()[d]).product();
        (0..a)
            .map(|i| values[i * r..(i + 1) * r].to_vec())
            .collect()
    }

    fn plain(kind: Reduce, v: &[f64]) -> f64 {
        match kind {
            Reduce::Sum => v.iter().sum(),
            Reduce::Prod => v.iter().product(),
            Reduce::Mean => v.iter().sum::<f64>() / v.len() as f64,
            Reduce::Max => v.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Reduce::Min => v.iter().copied().fold(f64::INFINITY, f64::min),
            Reduce::Any => v.iter().any(|&v| v != 0.0) as u8 as f64,
            Reduce::All => v.iter().all(|&v| v != 0.0) as u8 as f64,
        }
    }

    const KINDS: [Reduce; 7] = [
        Reduce::Sum,
        Reduce::Prod,
        Reduce::Max,
        Reduce::Min,
        Reduce::Mean,
        Reduce::Any,
        Reduce::All,
    ];

    fn check(x: &Array, dims: &[usize], kind: Reduce) {
        let got = reduce(kind, x, dims);
        let count: usize = dims.iter().map(|&d| x.dims()[d]).product();
        let refused = (matches!(kind, Reduce::Max | Reduce::Min) && count == 0)
            || (kind == Reduce::Mean && !x.dtype().is_float());
        if refused {
            assert!(got.is_err());
            return;
        }
        let got = got.unwrap();
        for d in 0..x.rank() {
            assert_eq!(
                got.dims()[d],
                if dims.contains(&d) { 1 } else { x.dims()[d] }
            );
        }
        let tolerance = match got.dtype() {
            DType::F64 => 1e-13,
            DType::F32 => 1e-5,
            DType::BF16 => 1e-2,
            DType::F16 => 2e-3,
            _ => 0.0,
        };
        for (g, v) in got.to_f64_vec().iter().zip(gather(x, dims)) {
            let w = plain(kind, &v);
            // Products leave the range of 16-bit floats.
            let close = (g - w).abs() <= tolerance * w.abs().max(1.0)
                || (g.is_nan() && w.is_nan())
                || (tolerance > 0.0 && g.is_infinite() && w.abs() > 6e4);
            assert!(close, "{kind:?} {g} {w} {x:?} {dims:?}");
        }
    }

    proptest! {
        #[test]
        fn reductions_agree_with_the_definition(a in strided(), pick in any::<u8>(), which in 0usize..6) {
            let dims: Vec<usize> = (0..a.rank()).filter(|d| pick >> d & 1 == 1).collect();
            let dtype = [DType::F32, DType::F64, DType::BF16, DType::I32, DType::U8, DType::Bool][which];
            let x = if dtype == DType::U8 || dtype == DType::I32 {
                // Small, so that products stay exact in the f64 reference.
                let small: Vec<f64> = a.to_f64_vec().iter().map(|v| v.abs() % 3.0).collect();
                Array::from_vec(small, a.shape()).unwrap().cast(dtype)
            } else {
                a.cast(dtype)
            };
            for kind in KINDS {
                if kind == Reduce::Prod && x.numel() > 60 {
                    continue;
                }
                check(&x, &dims, kind);
                check(&scattered(&x, pick as u16), &dims, kind);
            }
            for d in 0..a.rank() {
                for max in [true, false] {
                    let got = arg_reduce(max, &a, d);
                    if a.dims()[d] == 0 {
                        prop_assert!(got.is_err());
                        continue;
                    }
                    for (g, v) in got.unwrap().to_vec::<i64>().unwrap().into_iter().zip(gather(&a, &[d])) {
                        let best = plain(if max { Reduce::Max } else { Reduce::Min }, &v);
                        prop_assert_eq!(Some(g as usize), v.iter().position(|&v| v == best));
                    }
                }
            }
            let lse = log_sum_exp(&a, &dims).unwrap();
            for (g, v) in lse.to_f64_vec().into_iter().zip(gather(&a, &dims)) {
                let w = v.iter().map(|v| v.exp()).sum::<f64>().ln();
                prop_assert!((g - w).abs() < 1e-5 * w.abs().max(1.0) || g == w, "{} {}", g, w);
            }
        }
    }

    #[test]
    fn long_and_wide_shapes() {
        for (dims, over) in [
            (&[100_000][..], &[0][..]),
            (&[3, 40_000], &[1]),
            (&[40_000, 3], &[0]),
            (&[5_000, 1_100], &[0]),
            (&[5, 300, 7, 200], &[0, 2]),
            (&[5, 300, 7, 200], &[1, 3]),
            (&[20, 30, 400], &[0, 1, 2]),
        ] {
            let x = array(dims, DType::F32, 11);
            for kind in [Reduce::Sum, Reduce::Max, Reduce::Mean, Reduce::All] {
                check(&x, over, kind);
                same_at_any_thread_count(|| reduce(kind, &x, over).unwrap());
            }
            let h = x.cast(DType::BF16);
            same_at_any_thread_count(|| reduce(Reduce::Sum, &h, over).unwrap());
            // The layout does not change a bit either.
            let t = scattered(&x, 12345);
            assert_eq!(
                reduce(Reduce::Sum, &t, over).unwrap().as_bytes(),
                reduce(Reduce::Sum, &x, over).unwrap().as_bytes()
            );
        }
    }

    #[test]
    fn long_sums_stay_accurate() {
        let n = 10_000_000;
        let x = Array::full([n], 0.1f32);
        let sum = reduce(Reduce::Sum, &x, &[0])
            .unwrap()
            .item::<f32>()
            .unwrap() as f64;
        let want = 0.1f32 as f64 * n as f64;
        assert!((sum / want - 1.0).abs() < 2e-7, "{sum} {want}");
        let columns = x.reshape([n / 2, 2]).unwrap();
        let sum = reduce(Reduce::Sum, &columns, &[0]).unwrap().to_f64_vec()[0];
        assert!((sum / want * 2.0 - 1.0).abs() < 1e-5, "{sum}");
    }

    #[test]
    fn nan_and_infinity() {
        let x = Array::from_vec(vec![1.0f32, f32::NAN, 3.0, f32::NAN], [4]).unwrap();
        for kind in [Reduce::Max, Reduce::Min, Reduce::Sum] {
            assert!(
                reduce(kind, &x, &[0])
                    .unwrap()
                    .item::<f32>()
                    .unwrap()
                    .is_nan()
            );
        }
        assert_eq!(arg_reduce(true, &x, 0).unwrap().item::<i64>().unwrap(), 1);
        assert_eq!(arg_reduce(false, &x, 0).unwrap().item::<i64>().unwrap(), 1);
        assert!(
            log_sum_exp(&x, &[0])
                .unwrap()
                .item::<f32>()
                .unwrap()
                .is_nan()
        );
        let low = Array::full([3], f32::NEG_INFINITY);
        assert_eq!(
            log_sum_exp(&low, &[0]).unwrap().item::<f32>().unwrap(),
            f32::NEG_INFINITY
        );
        assert_eq!(arg_reduce(true, &low, 0).unwrap().item::<i64>().unwrap(), 0);
        let big = Array::full([2], 1000.0f64);
        let want = 1000.0 + 2f64.ln();
        assert_eq!(
            log_sum_exp(&big, &[0]).unwrap().item::<f64>().unwrap(),
            want
        );
        // A NaN late in a long row.
        let mut v = vec![1.0f32; 5000];
        v[4321] = f32::NAN;
        let x = Array::from_vec(v, [5000]).unwrap();
        assert_eq!(
            arg_reduce(true, &x, 0).unwrap().item::<i64>().unwrap(),
            4321
        );
    }

    #[test]
    fn misuse_is_an_error() {
        let x = array(&[2, 3], DType::F32, 1);
        assert!(reduce(Reduce::Sum, &x, &[2]).is_err());
        assert!(reduce(Reduce::Sum, &x, &[1, 1]).is_err());
        assert!(reduce(Reduce::Mean, &x.cast(DType::I64), &[1]).is_err());
        assert!(reduce(Reduce::Max, &array(&[2, 0], DType::F32, 1), &[1]).is_err());
        assert!(arg_reduce(true, &x, 2).is_err());
        assert!(log_sum_exp(&x.cast(DType::I64), &[0]).is_err());
        assert!(
            reduce(Reduce::Mean, &array(&[2, 0], DType::F32, 1), &[1])
                .unwrap()
                .to_f64_vec()[0]
                .is_nan()
        );
    }
}
