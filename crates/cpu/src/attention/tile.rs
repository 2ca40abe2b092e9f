//! Register tiles of attention's small products, and the precisions they come in.
//!
//! The right operand consists of slivers of `nr` columns, packed or where they lie; the left one is
//! read where it lies, by rows or by columns, because the scores that a row pass leaves behind are
//! the next product's left operand. Everything is padded to multiples of [`Precision::ROWS`] and [`COLUMNS`], so there are no
//! edge tiles. Sums run over the inner dimension in ascending order with fused multiply-adds (on tile
//! registers in theirs): their bits do not depend on where blocks of rows or columns were cut.
//!
//! A [`Precision`] says what operands are made of: plain numbers, or pairs of bf16 neighbours along
//! the inner dimension that are multiplied two at a time and summed in f32.
//!
//! Neighbours: `pack.rs` fills the operands, `forward.rs` and `backward.rs` call [`product`].

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes")]

use entrenar_base::{Element, bf16, f16};

use crate::kit::Real;
use crate::simd::{Level, fused, level, multiversion};

/// Columns of right operands are padded to a multiple of this.
pub(super) const COLUMNS: usize = 32;

/// `c[mr, nr] (+)= left · sliver` over `depth` steps: element (r, p) of the left operand lies at
/// `a + r · row + p · step`, step `p` of the sliver at `b + p · next`; rows of `c` are `width` apart.
type Kernel<S, O> = unsafe fn(
    depth: usize,
    a: *const O,
    row: usize,
    step: usize,
    b: *const O,
    next: usize,
    c: *mut S,
    width: usize,
    add: bool,
);

/// A kernel and the shape of its tile; `mr` divides [`Precision::ROWS`] and `nr` divides [`COLUMNS`].
pub(super) struct Tile<S, O> {
    pub mr: usize,
    pub nr: usize,
    pub kernel: Kernel<S, O>,
}

impl<S, O> Clone for Tile<S, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, O> Copy for Tile<S, O> {}

/// What the operands of products are made of.
pub(super) trait Precision: 'static {
    /// What sums are held in, and scores.
    type Sum: Real;
    /// What inputs are read from and results rounded to.
    type Source: Element;
    /// One or two neighbours along the inner dimension.
    type Operand: Element;
    /// How many neighbours an operand holds.
    const GROUP: usize;
    /// Inner dimensions are filled with zeros to a multiple of this many numbers.
    const DEPTH: usize = Self::GROUP;
    /// Rows of left operands are padded to a multiple of this.
    const ROWS: usize = 8;
    /// What must live while a thread multiplies.
    type Session;
    fn enter() -> Self::Session;
    /// The tile for the instruction set in use.
    fn tile() -> Tile<Self::Sum, Self::Operand>;
}

/// Operands and sums in `T`, inputs and results in `S`.
pub(super) struct Plain<T, S>(std::marker::PhantomData<(T, S)>);

/// bf16 operands in pairs, f32 sums.
pub(super) struct Pairs;

macro_rules! plain {
    ($T:ty, $S:ty, $avx512:ident, $lanes512:literal, $avx2:ident, $lanes2:literal) => {
        impl Precision for Plain<$T, $S> {
            type Sum = $T;
            type Source = $S;
            type Operand = $T;
            const GROUP: usize = 1;
            type Session = ();
            fn enter() {}
            fn tile() -> Tile<$T, $T> {
                #[cfg(target_arch = "x86_64")]
                match level() {
                    Level::Avx512 => {
                        return Tile {
                            mr: 8,
                            nr: 2 * $lanes512,
                            kernel: $avx512,
                        };
                    }
                    Level::Avx2 => {
                        return Tile {
                            mr: 4,
                            nr: 2 * $lanes2,
                            kernel: $avx2,
                        };
                    }
                    Level::Baseline => {}
                }
                plain_tile()
            }
        }
    };
}
plain!(f64, f64, avx512_f64, 8, avx2_f64, 4);
plain!(f32, f32, avx512_f32, 16, avx2_f32, 8);
plain!(f32, f16, avx512_f32, 16, avx2_f32, 8);
plain!(f32, bf16, avx512_f32, 16, avx2_f32, 8);

impl Precision for Pairs {
    type Sum = f32;
    type Source = bf16;
    type Operand = i32;
    const GROUP: usize = 2;
    type Session = ();
    fn enter() {}
    fn tile() -> Tile<f32, i32> {
        #[cfg(target_arch = "x86_64")]
        if has_bf16_products() {
            return Tile {
                mr: 8,
                nr: 32,
                kernel: avx512_pairs,
            };
        }
        Tile {
            mr: 4,
            nr: 16,
            kernel: portable_pairs,
        }
    }
}

/// Whether the processor multiplies pairs of bf16 (and the level in use allows it).
pub(super) fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        level() == Level::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (level(), Level::Baseline);
        false
    }
}

macro_rules! x86_tile {
    ($name:ident, $T:ty, $features:literal, $mr:literal, $vectors:literal, $lanes:literal,
     $zero:ident, $load:ident, $splat:ident, $fma:ident, $add:ident, $store:ident) => {
        /// # Safety
        /// As [`product`] promises, on a processor with these features.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name(
            depth: usize,
            mut a: *const $T,
            row: usize,
            step: usize,
            mut b: *const $T,
            next: usize,
            c: *mut $T,
            width: usize,
            add: bool,
        ) {
            use std::arch::x86_64::*;
            // SAFETY: `depth` steps of `mr` rows and `nr` columns lie inside the operands and the
            // tile inside the output, by the caller's promise.
            unsafe {
                let mut sums = [[$zero(); $vectors]; $mr];
                for _ in 0..depth {
                    let mut right = [$zero(); $vectors];
                    for v in 0..$vectors {
                        right[v] = $load(b.add(v * $lanes));
                    }
                    for r in 0..$mr {
                        let left = $splat(*a.add(r * row));
                        for v in 0..$vectors {
                            sums[r][v] = $fma(left, right[v], sums[r][v]);
                        }
                    }
                    a = a.add(step);
                    b = b.add(next);
                }
                for r in 0..$mr {
                    for v in 0..$vectors {
                        let to = c.add(r * width + v * $lanes);
                        $store(
                            to,
                            if add {
                                $add($load(to), sums[r][v])
                            } else {
                                sums[r][v]
                            },
                        );
                    }
                }
            }
        }
    };
}

x86_tile!(
    avx512_f32,
    f32,
    "avx512f",
    8,
    2,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);
x86_tile!(
    avx512_f64,
    f64,
    "avx512f",
    8,
    2,
    8,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_add_pd,
    _mm512_storeu_pd
);
x86_tile!(
    avx2_f32,
    f32,
    "avx2,fma",
    4,
    2,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);
x86_tile!(
    avx2_f64,
    f64,
    "avx2,fma",
    4,
    2,
    4,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_add_pd,
    _mm256_storeu_pd
);

/// # Safety
/// As [`product`] promises, on a processor with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(clippy::needless_range_loop, reason = "registers go by number")]
unsafe fn avx512_pairs(
    depth: usize,
    mut a: *const i32,
    row: usize,
    step: usize,
    mut b: *const i32,
    next: usize,
    c: *mut f32,
    width: usize,
    add: bool,
) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    // SAFETY: as in the other tiles; the casts between registers of one size change no bit.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; 8];
        for _ in 0..depth {
            let right = [
                transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast())),
                transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.add(16).cast())),
            ];
            for r in 0..8 {
                let left = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(r * row)));
                for v in 0..2 {
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], left, right[v]);
                }
            }
            a = a.add(step);
            b = b.add(next);
        }
        for r in 0..8 {
            for v in 0..2 {
                let to = c.add(r * width + v * 16);
                let sum = sums[r][v];
                _mm512_storeu_ps(
                    to,
                    if add {
                        _mm512_add_ps(_mm512_loadu_ps(to), sum)
                    } else {
                        sum
                    },
                );
            }
        }
    }
}

/// # Safety
/// As [`product`] promises.
unsafe fn portable<T: Real, const FUSED: bool>(
    depth: usize,
    a: *const T,
    row: usize,
    step: usize,
    b: *const T,
    next: usize,
    c: *mut T,
    width: usize,
    add: bool,
) {
    let mut sums = [[T::ZERO; 8]; 4];
    for p in 0..depth {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside the operands by the caller's promise.
                let (x, y) = unsafe { (*a.add(r * row + p * step), *b.add(p * next + v)) };
                *sum = if FUSED {
                    x.mul_add(y, *sum)
                } else {
                    x * y + *sum
                };
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            // SAFETY: inside the output by the caller's promise.
            unsafe {
                let to = c.add(r * width + v);
                *to = if add { *to + sum } else { sum };
            }
        }
    }
}

/// The tile of every other instruction set.
fn plain_tile<T: Real>() -> Tile<T, T> {
    Tile {
        mr: 4,
        nr: 8,
        kernel: if fused() {
            portable::<T, true>
        } else {
            portable::<T, false>
        },
    }
}

/// The two numbers of a pair.
#[inline(always)]
fn halves(pair: i32) -> (f32, f32) {
    (
        f32::from_bits((pair as u32) << 16),
        f32::from_bits(pair as u32 & 0xffff_0000),
    )
}

multiversion! {
    /// The sums of a 4 × 16 tile of pairs; slices start at the tile's first elements.
    fn pair_sums(
        depth: usize, a: &[i32], row: usize, step: usize, b: &[i32], next: usize,
        sums: &mut [[f32; 16]; 4], fused: bool,
    ) {
        for p in 0..depth {
            let right = &b[p * next..p * next + 16];
            for (r, sums) in sums.iter_mut().enumerate() {
                let (low, high) = halves(a[r * row + p * step]);
                for (sum, &pair) in sums.iter_mut().zip(right) {
                    let (x, y) = halves(pair);
                    *sum = if fused {
                        high.mul_add(y, low.mul_add(x, *sum))
                    } else {
                        high * y + (low * x + *sum)
                    };
                }
            }
        }
    }
}

/// # Safety
/// As [`product`] promises.
unsafe fn portable_pairs(
    depth: usize,
    a: *const i32,
    row: usize,
    step: usize,
    b: *const i32,
    next: usize,
    c: *mut f32,
    width: usize,
    add: bool,
) {
    let mut sums = [[0.0f32; 16]; 4];
    if depth > 0 {
        // SAFETY: exactly the elements that the tile reads, all inside the operands.
        let (a, b) = unsafe {
            (
                std::slice::from_raw_parts(a, 3 * row + (depth - 1) * step + 1),
                std::slice::from_raw_parts(b, (depth - 1) * next + 16),
            )
        };
        pair_sums(depth, a, row, step, b, next, &mut sums, fused());
    }
    for (r, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            // SAFETY: inside the output by the caller's promise.
            unsafe {
                let to = c.add(r * width + v);
                *to = if add { *to + sum } else { sum };
            }
        }
    }
}

/// A left operand: element (r, p) lies at `r · row + p · step`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, O> {
    pub data: &'a [O],
    pub row: usize,
    pub step: usize,
}

/// A right operand of `steps` steps, in slivers of `nr` columns: sliver s begins at `s · sliver`,
/// its steps are `next` apart.
#[derive(Clone, Copy)]
pub(super) struct Right<'a, O> {
    pub data: &'a [O],
    pub steps: usize,
    pub sliver: usize,
    pub next: usize,
}

/// `out[rows, columns] (+)= left · right` over the first `depth` steps; rows of `out` are `width`
/// apart. `rows` is a multiple of the tile's, `columns` of [`COLUMNS`].
///
/// # Panics
/// When an operand is too short: a mistake of the calling kernel.
pub(super) fn product<S: Real, O: Element>(
    tile: &Tile<S, O>,
    out: &mut [S],
    width: usize,
    (rows, columns, depth): (usize, usize, usize),
    left: Left<'_, O>,
    right: Right<'_, O>,
    add: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(rows.is_multiple_of(tile.mr) && columns.is_multiple_of(COLUMNS));
    assert!(columns <= width && (rows - 1) * width + columns <= out.len());
    let reach = (rows - 1) * left.row + depth.saturating_sub(1) * left.step;
    assert!(depth == 0 || reach < left.data.len());
    let last = (columns / tile.nr - 1) * right.sliver + depth.saturating_sub(1) * right.next;
    assert!(depth <= right.steps && (depth == 0 || last + tile.nr <= right.data.len()));
    for j in (0..columns).step_by(tile.nr) {
        let sliver = if depth == 0 {
            0
        } else {
            j / tile.nr * right.sliver
        };
        for i in (0..rows).step_by(tile.mr) {
            // SAFETY: the checks above cover every tile: `mr` divides the rows and `nr` the
            // columns, and both operands reach to their last step.
            unsafe {
                (tile.kernel)(
                    depth,
                    left.data
                        .as_ptr()
                        .add(if depth == 0 { 0 } else { i * left.row }),
                    left.row,
                    left.step,
                    right.data.as_ptr().add(sliver),
                    right.next,
                    out.as_mut_ptr().add(i * width + j),
                    width,
                    add,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::{Float, Philox};

    /// All tiles of one precision against a plain triple loop, from rows and from columns.
    fn check<P: Precision>(
        pair: impl Fn(f64, f64) -> P::Operand,
        split: impl Fn(P::Operand) -> (f64, f64),
        tiles: &[Tile<P::Sum, P::Operand>],
        tolerance: f64,
    ) {
        let random = Philox::new(3, 4);
        for tile in tiles {
            let (rows, columns, depth) = (P::ROWS * 2, COLUMNS * 2, 7);
            let draw = |n: usize, from: u64| -> Vec<P::Operand> {
                (0..n as u64)
                    .map(|i| pair(random.normal(from + 2 * i), random.normal(from + 2 * i + 1)))
                    .collect()
            };
            let (a, b) = (draw(rows * depth, 0), draw(columns * depth, 10_000));
            for by_rows in [true, false] {
                let (row, step) = if by_rows { (depth, 1) } else { (1, rows) };
                let left = Left {
                    data: &a,
                    row,
                    step,
                };
                let right = Right {
                    data: &b,
                    steps: depth,
                    sliver: depth * tile.nr,
                    next: tile.nr,
                };
                let mut out = vec![P::Sum::ONE; rows * (columns + 3)];
                for add in [true, false] {
                    let sizes = (rows, columns, depth);
                    product(tile, &mut out, columns + 3, sizes, left, right, add);
                    for r in 0..rows {
                        for c in 0..columns {
                            let sum: f64 = (0..depth)
                                .map(|p| {
                                    let x = split(a[r * row + p * step]);
                                    let at = (c / tile.nr * depth + p) * tile.nr + c % tile.nr;
                                    let y = split(b[at]);
                                    x.0 * y.0 + x.1 * y.1
                                })
                                .sum();
                            let want = sum + if add { 1.0 } else { 0.0 };
                            let got = out[r * (columns + 3) + c].to_f64();
                            assert!((got - want).abs() < tolerance, "{r} {c}: {got} {want}");
                        }
                        assert!(out[r * (columns + 3) + columns] == P::Sum::ONE);
                    }
                }
            }
        }
    }

    #[test]
    fn every_tile_agrees_with_the_plain_loop() {
        let tile = |kernel| Tile {
            mr: 4,
            nr: 8,
            kernel,
        };
        check::<Plain<f32, f32>>(
            |x, _| x as f32,
            |x| (x as f64, 0.0),
            &[
                Plain::<f32, f32>::tile(),
                tile(portable::<f32, true>),
                tile(portable::<f32, false>),
            ],
            1e-5,
        );
        let tiles = [Plain::<f64, f64>::tile(), plain_tile()];
        check::<Plain<f64, f64>>(|x, _| x, |x| (x, 0.0), &tiles, 1e-13);
        let pairs = Tile {
            mr: 4,
            nr: 16,
            kernel: portable_pairs,
        };
        let join = |x: f64, y: f64| {
            let bits = |v: f64| bf16::from_f64(v).to_bits() as u32;
            (bits(x) | bits(y) << 16) as i32
        };
        let split = |p: i32| {
            let (x, y) = halves(p);
            (x as f64, y as f64)
        };
        check::<Pairs>(join, split, &[Pairs::tile(), pairs], 1e-5);
    }
}
