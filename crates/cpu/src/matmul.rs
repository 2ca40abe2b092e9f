//! Matrix products, batched, of operands in any layout.
//!
//! Floats run `crate::gemm`; bf16 and f16 sums are f32 and rounded once. So do bytes whose sums are
//! i32 ([`int_matmul`]). Other integers run plain loops in i64 (wrapping, as in PyTorch). [`crate::product`] mixes dtypes and adds what follows a product.
//!
//! An element has the same bits however the work was cut, so the cut may follow the number of
//! threads. A test holds this.

use entrenar_base::{Array, DType, Element, Error, Result, Shape, dispatch};
use smallvec::SmallVec;

use crate::gemm::{
    Batch, Engine, GemmFloat, Kind, Out, Problem, Right, Rows, Source, Words, multiply,
};
#[cfg(target_arch = "x86_64")]
use crate::gemm::{Quads, has_quads};
use crate::product::{Compute, Options, product, product_acc};
use crate::team::{self, Shared};

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
            let compute = natural(a.dtype());
            let options = Options {
                compute,
                ..Options::default()
            };
            Ok(product(a, b, &options)?.output)
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
        // The sum is rounded once, old value included.
        DType::F16 | DType::BF16 => product_acc(target, a, b, natural(a.dtype())),
        dtype => dispatch!(dtype, T => integers::<T>(&sizes, a, b, target.make_mut::<T>()?, true)),
    }
}

/// The precision that changes no operand of a 16-bit dtype.
fn natural(dtype: DType) -> Compute {
    if dtype == DType::BF16 {
        Compute::Bf16
    } else {
        Compute::F32
    }
}

/// Sizes and strides of a product. Element (i, p) of batch `j` of `a` lies at
/// `a_starts(j) + i · a_row + p · a_column`.
pub(crate) struct Sizes {
    batch: SmallVec<[usize; 6]>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Steps,
    pub b: Steps,
}

pub(crate) struct Steps {
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

    fn source(&self, data: *const u8, kind: Kind) -> Source {
        Source {
            data,
            kind,
            row: self.row,
            column: self.column,
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
    /// The products `at` says, all of these sizes.
    pub(crate) fn batch<'a, E: Engine>(
        &self,
        at: &'a (dyn Fn(usize) -> Problem<'a, E> + Sync),
    ) -> Batch<'a, E> {
        Batch {
            count: self.batches(),
            m: self.m,
            n: self.n,
            k: self.k,
            at,
        }
    }

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
        Sizes::fitting("matmul", a, b)
    }

    /// The sizes of a product of any two dtypes.
    #[track_caller]
    pub fn fitting(op: &str, a: &Array, b: &Array) -> Result<Sizes> {
        let (ra, rb) = (a.rank(), b.rank());
        let (da, db) = (a.dims(), b.dims());
        let fits = ra >= 2 && ra == rb && da[..ra - 2] == db[..rb - 2] && da[ra - 1] == db[rb - 2];
        if !fits {
            return Err(Error::shape(
                op,
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

    /// The sizes of a product whose right operand is one matrix `(k, n)`: all leading dimensions of
    /// `a`, a matrix or more, are rows of it when they lie so, else it is repeated.
    #[track_caller]
    pub fn with_matrix(op: &str, a: &Array, (k, n): (usize, usize)) -> Result<Sizes> {
        let r = a.rank();
        if r < 2 || a.dims()[r - 1] != k {
            let expected = format!("a shape [batch…, m, {k}] for a matrix [{k}, {n}]");
            return Err(Error::shape(op, expected, a.shape()));
        }
        Ok(Sizes {
            batch: SmallVec::from_slice(&a.dims()[..r - 2]),
            m: a.dims()[r - 2],
            n,
            k,
            a: Steps::of(a),
            b: Steps {
                offset: 0,
                row: 0,
                column: 0,
                batch: SmallVec::from_elem(0, r - 2),
            },
        })
    }

    pub fn shape(&self, a: &Array) -> Shape {
        let mut shape = a.shape().clone();
        let last = shape.rank() - 1;
        shape.dims_mut()[last] = self.n;
        shape
    }

    pub fn batches(&self) -> usize {
        self.batch.iter().product()
    }

    /// The left operands, `data` being the first element of their storage.
    pub fn left(&self, data: *const u8, kind: Kind) -> Source {
        self.a.source(data, kind)
    }

    /// The right operands.
    pub fn right(&self, data: *const u8, kind: Kind) -> Source {
        self.b.source(data, kind)
    }

    /// The left operand of product number `j`.
    pub fn left_of(&self, a: Source, j: usize) -> Source {
        a.moved(self.a.start(&self.batch, j))
    }

    /// The right operand of product number `j`.
    pub fn right_of(&self, b: Source, j: usize) -> Source {
        b.moved(self.b.start(&self.batch, j))
    }
}

/// All products of a batch into contiguous `out`; adds to it when `accumulate`.
fn products<T: GemmFloat>(
    s: &Sizes,
    a: &Array,
    b: &Array,
    out: &mut [T],
    accumulate: bool,
) -> Result<()> {
    // Views check dtypes; layouts were checked when the arrays were made.
    let a = s.left(a.view::<T>()?.data().as_ptr().cast(), T::KIND);
    let b = s.right(b.view::<T>()?.data().as_ptr().cast(), T::KIND);
    let c = Rows {
        data: out.as_mut_ptr().cast(),
        kind: T::KIND,
    };
    let at = |j: usize| Problem::<T::Engine> {
        k: s.k,
        alpha: T::ONE,
        a: s.left_of(a, j),
        b: Right::Strided(s.right_of(b, j)),
        round: false,
        out: Out {
            c: c.at(j * s.m * s.n).cast(),
            width: s.n,
            accumulate,
            finish: None,
            first_row: j * s.m,
        },
    };
    let batch = s.batch(&at);
    // SAFETY: the layouts of both operands were checked when their arrays were made, and `out` has
    // the shape of the products.
    unsafe { multiply(&batch) };
    Ok(())
}

/// `a[batch…, m, k] · b[batch…, k, n]` of i8 with i32 sums: exact for an inner size up to 131,071,
/// beyond which extreme values may wrap. Both may lie in any layout.
///
/// # Errors
/// When a dtype is not i8 or the shapes do not fit.
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![-128i8, 127, 1, 2], [2, 2])?;
/// let c = entrenar_cpu::matmul::int_matmul(&a, &a.transpose(0, 1)?)?;
/// assert_eq!(c.to_vec::<i32>()?, [32513, 126, 126, 5]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn int_matmul(a: &Array, b: &Array) -> Result<Array> {
    const OP: &str = "int_matmul";
    if a.dtype() != DType::I8 || b.dtype() != DType::I8 {
        let got = format!("{} and {}", a.dtype(), b.dtype());
        return Err(Error::dtype(OP, "two operands of i8", got));
    }
    let sizes = Sizes::fitting(OP, a, b)?;
    Array::try_build(sizes.shape(a), |out: &mut [i32]| {
        #[cfg(target_arch = "x86_64")]
        if has_quads() {
            return exact::<Quads>(&sizes, a, b, out);
        }
        exact::<Words>(&sizes, a, b, out)
    })
}

/// All products of a batch of i8 into contiguous `out`.
fn exact<E: Engine<S = i32>>(s: &Sizes, a: &Array, b: &Array, out: &mut [i32]) -> Result<()> {
    let a = s.left(a.view::<i8>()?.data().as_ptr().cast(), Kind::I8);
    let b = s.right(b.view::<i8>()?.data().as_ptr().cast(), Kind::I8);
    let c = Shared::new(out);
    let at = |j: usize| Problem::<E> {
        k: s.k,
        alpha: 1,
        a: s.left_of(a, j),
        b: Right::Strided(s.right_of(b, j)),
        round: false,
        out: Out {
            c: c.as_mut_ptr().wrapping_add(j * s.m * s.n),
            width: s.n,
            accumulate: false,
            finish: None,
            first_row: j * s.m,
        },
    };
    let batch = s.batch(&at);
    // SAFETY: as in `products`.
    unsafe { multiply(&batch) };
    Ok(())
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

    /// Sums of bytes, wrapped to i32, by plain loops over the elements.
    fn plain_bytes(a: &Array, b: &Array) -> Vec<i32> {
        let (x, y) = (a.cast(DType::I64), b.cast(DType::I64));
        let sums = matmul(&x, &y).unwrap().to_vec::<i64>().unwrap();
        sums.into_iter().map(|s| s as i32).collect()
    }

    fn bytes(dims: &[usize], seed: u64) -> Array {
        let random = entrenar_base::Philox::new(3, seed);
        let n: usize = dims.iter().product();
        // A quarter of the values are extremes.
        let value = |i: usize| match (random.uniform(2 * i as u64) * 8.0) as u8 {
            0 => i8::MIN,
            1 => i8::MAX,
            _ => (random.uniform(2 * i as u64 + 1) * 256.0) as u8 as i8,
        };
        Array::from_vec((0..n).map(value).collect(), dims.to_vec()).unwrap()
    }

    proptest! {
        #[test]
        fn products_of_bytes_are_exact(
            batch in prop::collection::vec(1usize..3, 0..3),
            m in 0usize..40, k in 0usize..70, n in 0usize..70, seed in any::<u16>(),
        ) {
            let dims = |r, c| [&batch[..], &[r, c]].concat();
            let turned = |x: &Array| x.transpose(-1, -2).unwrap();
            let a = [scattered(&bytes(&dims(m, k), 1), seed), turned(&bytes(&dims(k, m), 2))];
            let b = [scattered(&bytes(&dims(k, n), 3), seed ^ 77), turned(&bytes(&dims(n, k), 4))];
            for a in &a {
                for b in &b {
                    let c = int_matmul(a, b).unwrap();
                    prop_assert_eq!(c.dims(), dims(m, n));
                    prop_assert_eq!(c.to_vec::<i32>().unwrap(), plain_bytes(a, b));
                }
            }
        }
    }

    #[test]
    fn large_products_of_bytes_at_any_number_of_threads() {
        for (m, k, n) in [
            (300, 1500, 200),
            (1, 5000, 70),
            (70, 4099, 1),
            (513, 64, 600),
        ] {
            let (a, b) = (
                bytes(&[m, k], 5),
                bytes(&[n, k], 6).transpose(0, 1).unwrap(),
            );
            assert_eq!(
                int_matmul(&a, &b).unwrap().to_vec::<i32>().unwrap(),
                plain_bytes(&a, &b)
            );
            same_at_any_thread_count(|| int_matmul(&a, &b).unwrap());
        }
    }

    /// What torch._int_mm says: `oracles/cpu_goldens.py`.
    #[test]
    fn bytes_as_torch_multiplies_them() {
        let lines = include_str!("../tests/data/int_mm.txt").lines();
        let mut checked = 0;
        for line in lines.filter(|l| !l.starts_with('#')) {
            let (sizes, values) = line.split_once(':').unwrap();
            let sizes: Vec<usize> = sizes.split(' ').map(|s| s.parse().unwrap()).collect();
            let want: Vec<i64> = values
                .split_whitespace()
                .map(|s| s.parse().unwrap())
                .collect();
            let [m, k, n] = sizes[..] else {
                panic!("{line}")
            };
            let numbers = |r: usize, c: usize, seed: usize| {
                let value = |i| ((i * 7919 + seed * 104_729) % 1009 % 256) as i64 - 128;
                let all = (0..r * c).map(|i| value(i) as i8).collect();
                Array::from_vec(all, [r, c]).unwrap()
            };
            let c = int_matmul(&numbers(m, k, 1), &numbers(k, n, 2)).unwrap();
            let c = c.to_vec::<i32>().unwrap();
            let got = [
                c.iter().map(|&x| i64::from(x)).sum(),
                c.iter()
                    .enumerate()
                    .map(|(i, &x)| (i % 97) as i64 * i64::from(x))
                    .sum(),
                i64::from(c[0]),
                i64::from(c[m * n - 1]),
            ];
            assert_eq!(&want, &got, "{line}");
            checked += 1;
        }
        assert_eq!(checked, 6);
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
        let codes = array(&[2, 3], DType::I8, 1);
        let e = int_matmul(&codes, &a).unwrap_err().to_string();
        assert!(
            e.contains("two operands of i8") && e.contains("i8 and f32"),
            "{e}"
        );
        let e = int_matmul(&codes, &codes).unwrap_err().to_string();
        assert!(e.contains("[batch…, k, n]") && e.contains("[2, 3]"), "{e}");
        let mut target = array(&[2, 3], DType::F32, 1);
        assert!(matmul_acc(&mut target, &a, &a.transpose(0, 1).unwrap()).is_err());
    }
}
