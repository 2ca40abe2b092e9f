//! One matrix product on one thread: packed panels around a register-tile kernel.
//!
//! The scheme is Goto's ("Anatomy of high-performance matrix multiplication", 2008): a block of
//! the right operand is packed into slivers of `nr` columns, blocks of the left one into slivers
//! of `mr` rows, and a microkernel multiplies slivers in registers.
//!
//! Promise: an element's bits depend on its row of `a`, its column of `b`, the inner size and the
//! instruction set, and on nothing else: not on the operands' layouts, not on where a panel was
//! cut, not on the path taken. Every path sums the inner dimension in blocks of [`KC`], each block
//! from zero in ascending order with fused multiply-adds, and adds the blocks in order.
//!
//! Neighbours: [`crate::matmul`] cuts batches into panels for the team; `conv` and `attention` call
//! through [`crate::kit`].

mod kernels;
mod pack;

use crate::alloc::Scratch;

pub(crate) use kernels::GemmFloat;
use kernels::Tile;

/// Block of the inner dimension. Part of the numerical contract: changing it changes bits.
const KC: usize = 256;
/// Columns of a packed right block (at most 1 MiB with [`KC`] in f32).
const NC: usize = 1024;
/// Rows of a packed left block: a multiple of every kernel's `mr`.
const MC: usize = 192;
/// Products of fewer multiplications skip packing.
const TINY: usize = 8192;

/// A strided operand: element (i, j) lies at `data + i · row + j · column`.
pub(crate) struct Operand<T> {
    pub data: *const T,
    pub row: isize,
    pub column: isize,
}

impl<T> Clone for Operand<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Operand<T> {}

impl<T> Operand<T> {
    /// # Safety
    /// Element (i, j) lies inside the operand's memory, or is not read.
    unsafe fn at(&self, i: usize, j: usize) -> *const T {
        // SAFETY: by the caller's promise.
        unsafe {
            self.data
                .offset(i as isize * self.row + j as isize * self.column)
        }
    }
}

/// `c[m, n] = alpha · a[m, k] · b[k, n]`, plus what `c` held when `accumulate`. Rows of `c` are
/// `width` apart.
///
/// # Safety
/// All elements of the three matrices lie inside memory that is valid for reading (`a`, `b`) or
/// exclusively ours (`c`).
#[allow(clippy::too_many_arguments, reason = "the arguments of every gemm")]
pub(crate) unsafe fn gemm<T: GemmFloat>(
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Operand<T>,
    b: Operand<T>,
    c: *mut T,
    width: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let few_rows = m <= 2 && b.column == 1;
    if m * n * k <= TINY || few_rows || k == 0 {
        // SAFETY: the caller's promise.
        return unsafe { T::unpacked((m, n, k), alpha, a, b, c, width, accumulate) };
    }
    let tile = T::tile();
    let packed_n = n.min(NC).next_multiple_of(tile.nr);
    let packed_m = m.min(MC).next_multiple_of(tile.mr);
    let depth = k.min(KC);
    let mut right = Scratch::<T>::new(packed_n * depth);
    let mut left = Scratch::<T>::new(packed_m * depth);
    for column in (0..n).step_by(NC) {
        let columns = (n - column).min(NC);
        for inner in (0..k).step_by(KC) {
            let depth = (k - inner).min(KC);
            let add = accumulate || inner > 0;
            // SAFETY: the block lies inside `b` and its slivers inside `right`.
            unsafe {
                let block = Operand {
                    data: b.at(inner, column),
                    ..b
                };
                // Slivers of `b` are slivers of rows of its transpose.
                let turned = Operand {
                    data: block.data,
                    row: b.column,
                    column: b.row,
                };
                pack::slivers(turned, columns, depth, tile.nr, &mut right);
            }
            for row in (0..m).step_by(MC) {
                let rows = (m - row).min(MC);
                // SAFETY: as above, for `a` and `left`; the output block lies inside `c`.
                unsafe {
                    let block = Operand {
                        data: a.at(row, inner),
                        ..a
                    };
                    pack::slivers(block, rows, depth, tile.mr, &mut left);
                    let out = c.add(row * width + column);
                    multiply(
                        &tile,
                        (rows, columns, depth),
                        alpha,
                        &left,
                        &right,
                        out,
                        width,
                        add,
                    );
                }
            }
        }
    }
}

/// Multiplies packed blocks into the output block.
///
/// # Safety
/// `left` and `right` hold the slivers of `rows × depth` and `depth × columns`; the output block
/// is exclusively ours.
#[allow(clippy::too_many_arguments, reason = "the arguments of every gemm")]
unsafe fn multiply<T: GemmFloat>(
    tile: &Tile<T>,
    (rows, columns, depth): (usize, usize, usize),
    alpha: T,
    left: &[T],
    right: &[T],
    out: *mut T,
    width: usize,
    add: bool,
) {
    let mut edge = [T::ZERO; kernels::LARGEST];
    for (j, b) in (0..columns)
        .step_by(tile.nr)
        .zip(right.chunks_exact(tile.nr * depth))
    {
        let wide = (columns - j).min(tile.nr);
        for (i, a) in (0..rows)
            .step_by(tile.mr)
            .zip(left.chunks_exact(tile.mr * depth))
        {
            let high = (rows - i).min(tile.mr);
            // SAFETY: slivers hold `depth` steps; a full tile lies inside the output block, a
            // partial one is computed beside it and copied.
            unsafe {
                let to = out.add(i * width + j);
                if high == tile.mr && wide == tile.nr {
                    (tile.kernel)(depth, alpha, a.as_ptr(), b.as_ptr(), to, width, add);
                    continue;
                }
                (tile.kernel)(
                    depth,
                    alpha,
                    a.as_ptr(),
                    b.as_ptr(),
                    edge.as_mut_ptr(),
                    tile.nr,
                    false,
                );
                for r in 0..high {
                    for s in 0..wide {
                        let (value, at) = (edge[r * tile.nr + s], to.add(r * width + s));
                        *at = if add { *at + value } else { value };
                    }
                }
            }
        }
    }
}

/// The plain definition with the same order of sums, for tests and for no other use.
#[cfg(test)]
fn plain(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    (0..m * n)
        .map(|e| (0..k).map(|p| a[e / n * k + p] * b[p * n + e % n]).sum())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::{Element, Philox};

    fn numbers<T: Element>(n: usize, stream: u64) -> Vec<T> {
        let r = Philox::new(5, stream);
        (0..n as u64).map(|i| T::from_f64(r.normal(i))).collect()
    }

    fn turned<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
        (0..rows * columns)
            .map(|e| x[e % rows * columns + e / rows])
            .collect()
    }

    fn check<T: GemmFloat>(tolerance: f64) {
        let sizes = [
            (1, 1, 1),
            (1, 40, 300),
            (2, 33, 17),
            (5, 7, 3),
            (12, 32, 64),
            (13, 33, 257),
            (64, 64, 64),
            (200, 70, 300),
            (25, 1100, 40),
            (90, 10, 513),
            (31, 1, 700),
        ];
        for (m, n, k) in sizes {
            let (a, b) = (numbers::<T>(m * k, 1), numbers::<T>(k * n, 2));
            let wide = |x: &[T]| x.iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
            let exact = plain(m, n, k, &wide(&a), &wide(&b));
            let run = |a: &[T], ra: (isize, isize), b: &[T], rb: (isize, isize), from: usize| {
                // Rows from `from`: the same bits whatever the cut.
                let mut c = vec![T::from_f64(9.0); (m - from) * n];
                // SAFETY: all three matrices lie inside their vectors.
                unsafe {
                    let first = Operand {
                        data: a.as_ptr().offset(from as isize * ra.0),
                        row: ra.0,
                        column: ra.1,
                    };
                    let second = Operand {
                        data: b.as_ptr(),
                        row: rb.0,
                        column: rb.1,
                    };
                    gemm(
                        (m - from, n, k),
                        T::ONE,
                        first,
                        second,
                        c.as_mut_ptr(),
                        n,
                        false,
                    );
                }
                c
            };
            let (ki, ni, mi) = (k as isize, n as isize, m as isize);
            let direct = run(&a, (ki, 1), &b, (ni, 1), 0);
            for (x, y) in direct.iter().zip(&exact) {
                let room = tolerance * (k as f64).sqrt() * 4.0;
                assert!((x.to_f64() - y).abs() <= room, "{m} {n} {k}: {x:?} {y}");
            }
            let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
            // `turned` lists columns: element (i, j) of a at j·m + i.
            let other = run(&at, (1, mi), &bt, (1, ki), 0);
            assert!(direct == other, "{m} {n} {k}: the layout changes bits");
            let cut = m / 2;
            assert!(
                direct[cut * n..] == run(&a, (ki, 1), &b, (ni, 1), cut),
                "{m} {n} {k}: a cut changes bits"
            );
        }
    }

    #[test]
    fn all_sizes_and_layouts_agree_with_the_definition() {
        check::<f32>(1e-6);
        check::<f64>(1e-15);
    }

    #[test]
    fn scaling_and_accumulation() {
        let (m, n, k) = (30, 50, 300);
        let (a, b) = (numbers::<f64>(m * k, 1), numbers::<f64>(k * n, 2));
        let exact = plain(m, n, k, &a, &b);
        let mut c = vec![1.0; m * n];
        // SAFETY: all three matrices lie inside their vectors.
        unsafe {
            let first = Operand {
                data: a.as_ptr(),
                row: k as isize,
                column: 1,
            };
            let second = Operand {
                data: b.as_ptr(),
                row: n as isize,
                column: 1,
            };
            gemm((m, n, k), 0.5, first, second, c.as_mut_ptr(), n, true);
        }
        for (x, y) in c.iter().zip(&exact) {
            assert!((x - (1.0 + 0.5 * y)).abs() < 1e-12);
        }
    }
}
