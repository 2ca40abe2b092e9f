//! Matrix products, batched, of operands in any layout.
//!
//! f32 and f64 run `crate::gemm` on panels of the output, one panel per part of the thread team.
//! 16-bit floats are widened to f32 and rounded once; integers run plain loops in i64 (wrapping,
//! as in PyTorch).
//!
//! Panels cut rows and columns, never the inner dimension: an element has the same bits whatever
//! the cut, so the cut may follow the number of threads. A test holds this.

use entrenar_base::{Array, DType, Element, Error, Result, Shape, dispatch};
use smallvec::SmallVec;

use crate::alloc::Scratch;
use crate::cast;
use crate::gemm::{GemmFloat, Operand, gemm};
use crate::team::{self, Shared};

/// Floating-point operations per nanosecond expected of one core.
const FLOPS_PER_NS: f64 = 60.0;
/// Work below this stays on one thread (nanoseconds).
const PARALLEL_NS: f64 = 25_000.0;
/// Panels keep more rows or columns than this, so that packing stays a small part of the work.
const SMALL: usize = 64;
/// Panel borders fall on multiples of this.
const ALIGN: usize = 16;

/// `a[batch…, m, k] · b[batch…, k, n]` → `[batch…, m, n]`.
///
/// Batch dimensions must be equal (broadcast with zero strides beforehand). No layout costs a copy
/// in f32 and f64: transposed operands are read as they lie.
///
/// # Errors
/// When ranks are below 2, batch or inner dimensions differ, dtypes differ, or the dtype is bool.
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// let c = entrenar_cpu::matmul::matmul(&a, &a.transpose(0, 1)?)?;
/// assert_eq!(c.to_vec::<f32>()?, [5.0, 11.0, 11.0, 25.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn matmul(a: &Array, b: &Array) -> Result<Array> {
    let sizes = Sizes::of(a, b)?;
    let shape = sizes.shape(a);
    match a.dtype() {
        DType::F32 => Array::try_build(shape, |out: &mut [f32]| products(&sizes, a, b, out, false)),
        DType::F64 => Array::try_build(shape, |out: &mut [f64]| products(&sizes, a, b, out, false)),
        DType::F16 | DType::BF16 => {
            let (wide_a, wide_b) = (cast::cast(a, DType::F32)?, cast::cast(b, DType::F32)?);
            let sizes = Sizes::of(&wide_a, &wide_b)?;
            let mut sum = Scratch::<f32>::new(shape.checked_numel()?);
            products(&sizes, &wide_a, &wide_b, &mut sum, false)?;
            round(&sum, shape, a.dtype())
        }
        dtype => dispatch!(dtype, T => Array::try_build(shape, |out: &mut [T]| {
            integers::<T>(&sizes, a, b, out, false)
        })),
    }
}

/// `target += a · b`, in place when `target` is the only owner of a contiguous storage; otherwise
/// the sum replaces it.
///
/// # Errors
/// As [`matmul`], and when the shape or dtype of `target` is not the product's.
#[track_caller]
pub fn matmul_acc(target: &mut Array, a: &Array, b: &Array) -> Result<()> {
    let sizes = Sizes::of(a, b)?;
    let shape = sizes.shape(a);
    if *target.shape() != shape {
        return Err(Error::shape("matmul_acc", shape, target.shape()));
    }
    if target.dtype() != a.dtype() {
        return Err(Error::dtype("matmul_acc", a.dtype(), target.dtype()));
    }
    match a.dtype() {
        DType::F32 => products(&sizes, a, b, target.make_mut::<f32>()?, true),
        DType::F64 => products(&sizes, a, b, target.make_mut::<f64>()?, true),
        DType::F16 | DType::BF16 => {
            let (wide_a, wide_b) = (cast::cast(a, DType::F32)?, cast::cast(b, DType::F32)?);
            let sizes = Sizes::of(&wide_a, &wide_b)?;
            // The sum is rounded once, old value included.
            let mut sum = Scratch::<f32>::new(target.numel());
            let wide = cast::cast(target, DType::F32)?;
            sum.copy_from_slice(wide.as_slice::<f32>()?);
            products(&sizes, &wide_a, &wide_b, &mut sum, true)?;
            *target = round(&sum, shape, a.dtype())?;
            Ok(())
        }
        dtype => dispatch!(dtype, T => integers::<T>(&sizes, a, b, target.make_mut::<T>()?, true)),
    }
}

fn round(sum: &[f32], shape: Shape, dtype: DType) -> Result<Array> {
    dispatch!(dtype, D => Array::try_build(shape, |out: &mut [D]| {
        let n = out.len();
        team::split_mut(out, n, 0.2, |range, out| cast::convert(&sum[range], out));
        Ok(())
    }))
}

/// Sizes and strides of a product. Element (i, p) of batch `j` of `a` lies at
/// `a_starts(j) + i · a_row + p · a_column`.
struct Sizes {
    batch: SmallVec<[usize; 6]>,
    m: usize,
    n: usize,
    k: usize,
    a: Steps,
    b: Steps,
}

struct Steps {
    offset: usize,
    row: isize,
    column: isize,
    batch: SmallVec<[isize; 6]>,
}

impl Steps {
    fn of(x: &Array) -> Steps {
        let strides = x.layout().strides();
        let r = strides.len();
        Steps {
            offset: x.layout().offset(),
            row: strides[r - 2],
            column: strides[r - 1],
            batch: SmallVec::from_slice(&strides[..r - 2]),
        }
    }

    /// Position of element (0, 0) of batch `j`.
    fn start(&self, batch: &[usize], mut j: usize) -> isize {
        let mut at = self.offset as isize;
        for (&size, &stride) in batch.iter().zip(&self.batch).rev() {
            at += (j % size) as isize * stride;
            j /= size;
        }
        at
    }
}

impl Sizes {
    #[track_caller]
    fn of(a: &Array, b: &Array) -> Result<Sizes> {
        if a.dtype() != b.dtype() {
            return Err(Error::dtype(
                "matmul",
                "operands of one dtype",
                format!("{} and {}", a.dtype(), b.dtype()),
            ));
        }
        if a.dtype() == DType::Bool {
            return Err(Error::dtype("matmul", "a numeric dtype", DType::Bool));
        }
        let (ra, rb) = (a.rank(), b.rank());
        let (da, db) = (a.dims(), b.dims());
        let fits = ra >= 2 && ra == rb && da[..ra - 2] == db[..rb - 2] && da[ra - 1] == db[rb - 2];
        if !fits {
            return Err(Error::shape(
                "matmul",
                "shapes [batch…, m, k] and [batch…, k, n]",
                format!("{} and {}", a.shape(), b.shape()),
            ));
        }
        Ok(Sizes {
            batch: SmallVec::from_slice(&da[..ra - 2]),
            m: da[ra - 2],
            n: db[rb - 1],
            k: da[ra - 1],
            a: Steps::of(a),
            b: Steps::of(b),
        })
    }

    fn shape(&self, a: &Array) -> Shape {
        let mut shape = a.shape().clone();
        let last = shape.rank() - 1;
        shape.dims_mut()[last] = self.n;
        shape
    }

    fn batches(&self) -> usize {
        self.batch.iter().product()
    }

    /// Panels per matrix: (along rows, along columns). No element's value depends on it.
    fn grid(&self, batches: usize) -> (usize, usize) {
        let (m, n) = (self.m, self.n);
        let ns = 2.0 * m as f64 * n as f64 * self.k as f64 / FLOPS_PER_NS;
        let threads = team::threads();
        if threads == 1 || ns * (batches as f64) < PARALLEL_NS || m.min(n) < 2 {
            return (1, 1);
        }
        // Enough panels that every thread has one, none below a useful size.
        let wanted = threads.div_ceil(batches.min(threads));
        let most = ((ns / (PARALLEL_NS / 3.0)) as usize).clamp(1, wanted);
        let (mut rows, mut columns) = (1, 1);
        while rows * columns < most {
            // Halving the longer side of the panel repeats the least packing.
            let (height, width) = (m.div_ceil(rows), n.div_ceil(columns));
            if height >= width && height / 2 > SMALL {
                rows = next_count(rows, most / columns);
            } else if width / 2 > SMALL {
                columns = next_count(columns, most / rows);
            } else if height / 2 > SMALL {
                rows = next_count(rows, most / columns);
            } else {
                break;
            }
        }
        (rows, columns)
    }
}

/// The next number of cuts: doubled, or up to `limit` exactly when that comes first.
fn next_count(count: usize, limit: usize) -> usize {
    (count * 2).min(limit.max(count + 1))
}

/// The `i`-th of `count` ranges of `0..size`, borders on multiples of [`ALIGN`].
fn panel(i: usize, count: usize, size: usize) -> std::ops::Range<usize> {
    let step = size.div_ceil(count).next_multiple_of(ALIGN);
    (i * step).min(size)..((i + 1) * step).min(size)
}

/// All products of a batch into contiguous `out`; adds to it when `accumulate`.
fn products<T: GemmFloat>(
    s: &Sizes,
    a: &Array,
    b: &Array,
    out: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let (m, n, k) = (s.m, s.n, s.k);
    if out.is_empty() {
        return Ok(());
    }
    if k == 0 {
        if !accumulate {
            out.fill(T::ZERO);
        }
        return Ok(());
    }
    let (a, b) = (a.view::<T>()?.data(), b.view::<T>()?.data());
    let batches = s.batches();
    let (rows, columns) = s.grid(batches);
    let per_matrix = rows * columns;
    let shared = Shared::new(out);
    let ns = 2.0 * m as f64 * n as f64 * k as f64 / FLOPS_PER_NS / per_matrix as f64;
    team::split(batches * per_matrix, ns, |range| {
        for item in range {
            let (j, cell) = (item / per_matrix, item % per_matrix);
            let r = panel(cell / columns, rows, m);
            let c = panel(cell % columns, columns, n);
            if r.is_empty() || c.is_empty() {
                continue;
            }
            let at_a = s.a.start(&s.batch, j) + r.start as isize * s.a.row;
            let at_b = s.b.start(&s.batch, j) + c.start as isize * s.b.column;
            let to = (j * m + r.start) * n + c.start;
            let one = One {
                m: r.len(),
                n: c.len(),
                k,
                a: Matrix {
                    data: a,
                    at: at_a as usize,
                    row: s.a.row,
                    column: s.a.column,
                },
                b: Matrix {
                    data: b,
                    at: at_b as usize,
                    row: s.b.row,
                    column: s.b.column,
                },
                width: n,
            };
            // SAFETY: panels are disjoint rectangles of `out`, which lie inside it.
            unsafe { one.run(&shared, to, accumulate) };
        }
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    data: &'a [T],
    at: usize,
    row: isize,
    column: isize,
}

/// One product of an m × k and a k × n matrix into rows `width` apart.
struct One<'a, T> {
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    width: usize,
}

impl<T: GemmFloat> One<'_, T> {
    /// # Safety
    /// Rows `to + i · width .. + n` of `out` exist and nobody else uses them.
    unsafe fn run(&self, out: &Shared<'_, T>, to: usize, accumulate: bool) {
        let operand = |x: Matrix<'_, T>| Operand {
            // SAFETY: the first element lies inside the storage; panels are not empty.
            data: unsafe { x.data.as_ptr().add(x.at) },
            row: x.row,
            column: x.column,
        };
        // SAFETY: the layouts of both operands were checked when their arrays were made, and
        // panels stay inside them; the output's rows are ours by the caller's promise.
        unsafe {
            let first = out.slice(to..to + self.n).as_mut_ptr();
            gemm(
                (self.m, self.n, self.k),
                T::ONE,
                operand(self.a),
                operand(self.b),
                first,
                self.width,
                accumulate,
            );
        }
    }
}

/// Integer products, wrapping in i64 and then in the dtype.
fn integers<T: Element>(
    s: &Sizes,
    a: &Array,
    b: &Array,
    out: &mut [T],
    accumulate: bool,
) -> Result<()> {
    let (a, b) = (a.view::<T>()?.data(), b.view::<T>()?.data());
    let (m, n, k) = (s.m, s.n, s.k);
    let rows = s.batches() * m;
    team::split_mut(out, rows, (n * k) as f64, |range, out| {
        let mut sums = vec![0i64; n];
        for (item, out) in range.zip(out.chunks_mut(n.max(1))) {
            let (j, i) = (item / m, item % m);
            let at_a = s.a.start(&s.batch, j) + i as isize * s.a.row;
            let at_b = s.b.start(&s.batch, j);
            for (sum, &old) in sums.iter_mut().zip(&*out) {
                *sum = if accumulate { old.to_i64() } else { 0 };
            }
            for p in 0..k as isize {
                let x = a[(at_a + p * s.a.column) as usize].to_i64();
                let mut at = at_b + p * s.b.row;
                for sum in &mut sums {
                    *sum = sum.wrapping_add(x.wrapping_mul(b[at as usize].to_i64()));
                    at += s.b.column;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = T::from_i64(sum);
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, same_at_any_thread_count, scattered};
    use proptest::prelude::*;

    /// Plain products of row-major values.
    fn plain(a: &Array, b: &Array) -> Vec<f64> {
        let r = a.rank();
        let (m, k, n) = (a.dims()[r - 2], a.dims()[r - 1], b.dims()[r - 1]);
        let (x, y) = (a.to_f64_vec(), b.to_f64_vec());
        let batches = a.numel().max(b.numel()) / (m * k).max(k * n).max(1);
        let batches = if m * k * n == 0 {
            a.dims()[..r - 2].iter().product()
        } else {
            batches.max(a.dims()[..r - 2].iter().product())
        };
        let mut out = Vec::new();
        for j in 0..batches {
            for i in 0..m {
                for c in 0..n {
                    out.push(
                        (0..k)
                            .map(|p| x[(j * m + i) * k + p] * y[(j * k + p) * n + c])
                            .sum(),
                    );
                }
            }
        }
        out
    }

    fn check(a: &Array, b: &Array, tolerance: f64) {
        let c = matmul(a, b).unwrap();
        let want = plain(a, b);
        assert_eq!(c.dtype(), a.dtype());
        assert_eq!(c.numel(), want.len());
        for (g, w) in c.to_f64_vec().iter().zip(&want) {
            assert!((g - w).abs() <= tolerance * w.abs().max(64.0), "{g} {w}");
        }
        let start = array(c.dims(), a.dtype(), 9);
        let mut sum = start.deep_copy();
        matmul_acc(&mut sum, a, b).unwrap();
        for ((g, w), s) in sum.to_f64_vec().iter().zip(&want).zip(start.to_f64_vec()) {
            assert!(
                (g - w - s).abs() <= tolerance * w.abs().max(64.0),
                "{g} {w} {s}"
            );
        }
    }

    proptest! {
        #[test]
        fn products_agree_with_the_definition(
            batch in prop::collection::vec(1usize..3, 0..3),
            m in 0usize..20, k in 0usize..20, n in 0usize..20, seed in any::<u16>(),
        ) {
            let dims = |r, c| [&batch[..], &[r, c]].concat();
            for (dtype, tolerance) in [
                (DType::F32, 1e-6), (DType::F64, 1e-14), (DType::BF16, 1e-2), (DType::F16, 2e-3), (DType::I64, 0.0),
            ] {
                let a = scattered(&array(&dims(m, k), dtype, seed), seed);
                let b = scattered(&array(&dims(k, n), dtype, seed ^ 5), seed.rotate_left(3));
                check(&a, &b, tolerance);
                check(&array(&dims(k, m), dtype, seed).transpose(-1, -2).unwrap(), &b, tolerance);
                check(&a, &array(&dims(n, k), dtype, seed).transpose(-1, -2).unwrap(), tolerance);
            }
        }
    }

    #[test]
    fn large_products_of_every_layout() {
        for (m, k, n) in [
            (200, 300, 150),
            (1, 700, 300),
            (300, 700, 1),
            (65, 1500, 64),
            (640, 33, 80),
        ] {
            for transposed in 0..4 {
                let make = |r: usize, c: usize, t: bool, seed| {
                    if t {
                        array(&[c, r], DType::F32, seed).transpose(0, 1).unwrap()
                    } else {
                        array(&[r, c], DType::F32, seed)
                    }
                };
                let a = make(m, k, transposed & 1 == 1, 3);
                let b = make(k, n, transposed & 2 == 2, 4);
                check(&a, &b, 1e-5);
                same_at_any_thread_count(|| matmul(&a, &b).unwrap());
            }
        }
    }

    #[test]
    fn broadcast_batches_need_no_copy() {
        let a = array(&[1, 3, 4], DType::F32, 1)
            .broadcast_to(&[5, 3, 4].into())
            .unwrap();
        let b = array(&[5, 4, 2], DType::F32, 2);
        check(&a, &b, 1e-6);
        let row = array(&[1, 1, 4], DType::F64, 1)
            .broadcast_to(&[5, 70, 4].into())
            .unwrap();
        check(&row, &b.cast(DType::F64), 1e-12);
    }

    /// The promise of the module: an element has the same bits however the output is cut.
    #[test]
    fn the_cut_into_panels_never_changes_a_bit() {
        for (m, k, n) in [
            (512, 700, 300),
            (130, 2000, 1024),
            (70, 513, 2000),
            (1024, 64, 66),
        ] {
            let noise = |r: usize, c: usize, seed| {
                let x = array(&[r, c], DType::F64, seed).to_f64_vec();
                let v = x
                    .iter()
                    .enumerate()
                    .map(|(i, v)| (v * 0.37 + i as f64).sin() as f32);
                Array::from_vec(v.collect::<Vec<f32>>(), [r, c]).unwrap()
            };
            let (a, b) = (noise(m, k, 1), noise(k, n, 2));
            for a in [
                a.clone(),
                crate::copy::contiguous(&a.transpose(0, 1).unwrap())
                    .unwrap()
                    .transpose(0, 1)
                    .unwrap(),
            ] {
                let before = team::threads();
                let mut results = Vec::new();
                for threads in [1, 2, 3, 4, 8] {
                    team::set_threads(threads);
                    results.push(matmul(&a, &b).unwrap());
                }
                team::set_threads(before);
                for r in &results[1..] {
                    assert_eq!(r.as_bytes(), results[0].as_bytes(), "{m} {k} {n}");
                }
            }
        }
    }

    #[test]
    fn misfits_are_errors() {
        let a = array(&[2, 3], DType::F32, 1);
        for b in [
            array(&[2, 3], DType::F32, 1),
            array(&[3], DType::F32, 1),
            array(&[1, 3, 2], DType::F32, 1),
            array(&[3, 2], DType::F64, 1),
        ] {
            assert!(matmul(&a, &b).is_err());
        }
        let flags = array(&[2, 2], DType::Bool, 1);
        assert!(matmul(&flags, &flags).is_err());
        let mut target = array(&[2, 3], DType::F32, 1);
        assert!(matmul_acc(&mut target, &a, &a.transpose(0, 1).unwrap()).is_err());
    }
}
