//! Products with a 4-bit matrix W: x·Wᵀ, and x·W for the gradient of x.
//!
//! The output is cut into columns, among threads first and then so that a piece of W in floats, as deep
//! as the inner dimension, fits in a core's cache. Each piece is turned into floats there, multiplied
//! and forgotten; no thread ever holds more of W. Pieces are cut where `crate::gemm` cuts the inner
//! dimension, so every bit is that of a product with the whole matrix in floats.

use std::ops::Range;

use entrenar_base::{Array, DType, Element, Error, Result, Shape, bf16, f16};

use super::Quantized;
use super::matrix::Reader;
use crate::alloc::Scratch;
use crate::cast::convert;
use crate::copy::contiguous;
use crate::gemm::{
    Engine, Epilogue, Kind, Operand, Out, Problem, Right, Rows, STRETCH, Source, gemm, run_panel,
    way, with_engine,
};
use crate::product::{Activation, Compute};
use crate::team::{self, Shared};

/// Numbers of W in floats at once on a thread: 1 MiB.
const PIECE: usize = 256 << 10;
/// Columns of the output that a piece is made for, at most: the left operand is read once for them.
const WIDE: usize = 512;
/// Columns of a part are a multiple of this: whole vectors, and no half bytes.
const ALIGN: usize = 32;
/// Rows of a part when columns alone cannot occupy the threads.
const ROWS: usize = 64;

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// x·Wᵀ: `[.., columns]` → `[.., rows]`.
    Transposed,
    /// x·W: `[.., rows]` → `[.., columns]`.
    Plain,
}

impl Side {
    /// The other product: what takes a gradient back.
    pub fn other(self) -> Side {
        match self {
            Side::Transposed => Side::Plain,
            Side::Plain => Side::Transposed,
        }
    }

    /// (inner size, columns of the output) for W `[rows, columns]`.
    pub fn sizes(self, (rows, columns): (usize, usize)) -> (usize, usize) {
        match self {
            Side::Transposed => (columns, rows),
            Side::Plain => (rows, columns),
        }
    }
}

/// x·Wᵀ or x·W for x of any float dtype and layout, which is the dtype of the result.
///
/// Sums are f32. Operands are multiplied in f32, or rounded to bf16 first when x is bf16 or
/// `compute` says so. An x in f64 is multiplied in f64, for checks of gradients.
///
/// # Errors
/// When the last dimension of x is not the inner size, or x is not a float.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::product::Compute;
/// use entrenar_cpu::quant4::{Code, Quantized, Side, product};
/// let w = Array::from_vec(vec![1.0f32, -1.0, 0.0, 1.0], [2, 2])?;
/// let w = Quantized::new(&w, Code::Nf4, 64, false)?;
/// let x = Array::from_vec(vec![2.0f32, 3.0], [1, 2])?;
/// assert_eq!(product(&x, &w, Side::Transposed, Compute::F32)?.to_vec::<f32>()?, [-1.0, 3.0]);
/// assert_eq!(product(&x, &w, Side::Plain, Compute::F32)?.to_vec::<f32>()?, [2.0, 1.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn product(x: &Array, w: &Quantized, side: Side, compute: Compute) -> Result<Array> {
    let (k, n) = side.sizes(w.sizes());
    let Some((&inner, lead)) = x.dims().split_last() else {
        return Err(misfit(x, k));
    };
    if inner != k {
        return Err(misfit(x, k));
    }
    let mut shape = Shape::from(lead);
    let m = shape.numel();
    shape.push(n);
    let x = contiguous(x)?;
    let job = Job {
        m,
        k,
        n,
        side,
        reader: w.reader()?,
        round: compute == Compute::Bf16 || x.dtype() == DType::BF16,
    };
    match x.dtype() {
        DType::F32 => job.run::<f32>(&x, Kind::F32, &shape),
        DType::BF16 => job.run::<bf16>(&x, Kind::Bf16, &shape),
        DType::F16 => job.run::<f16>(&x, Kind::F16, &shape),
        DType::F64 => job.run_f64(&x, &shape),
        other => Err(Error::dtype("product4", "a float input", other)),
    }
}

#[track_caller]
fn misfit(x: &Array, k: usize) -> Error {
    Error::shape("product4", format!("an input [.., {k}]"), x.shape())
}

struct Job<'a> {
    m: usize,
    k: usize,
    n: usize,
    side: Side,
    reader: Reader<'a>,
    round: bool,
}

/// The cut of the output.
struct Cut {
    rows: usize,
    high: usize,
    columns: usize,
    wide: usize,
    /// Steps of the inner dimension in a piece.
    deep: usize,
}

impl Cut {
    fn of(m: usize, n: usize, k: usize) -> Cut {
        let threads = if team::is_inside() {
            1
        } else {
            team::threads()
        };
        let deep = k.clamp(1, STRETCH);
        let widest = (PIECE / deep / ALIGN * ALIGN).clamp(ALIGN, WIDE);
        let parts = n.div_ceil(widest).max(1).next_multiple_of(threads);
        let wide = n.div_ceil(parts).next_multiple_of(ALIGN).min(n).max(1);
        let columns = n.div_ceil(wide);
        let rows = (threads / columns.max(1)).clamp(1, m.div_ceil(ROWS).max(1));
        let high = m.div_ceil(rows).max(1);
        Cut {
            rows: m.div_ceil(high),
            high,
            columns,
            wide,
            deep,
        }
    }

    fn part(&self, part: usize, m: usize, n: usize) -> (Range<usize>, Range<usize>) {
        let (row, column) = (part / self.columns, part % self.columns);
        (
            row * self.high..m.min((row + 1) * self.high),
            column * self.wide..n.min((column + 1) * self.wide),
        )
    }
}

impl Job<'_> {
    /// The piece of W for columns of the output and steps of the inner dimension, put into `to`.
    fn piece(&self, columns: &Range<usize>, steps: Range<usize>, to: &mut Scratch<f32>) -> Source {
        let (columns, depth) = (columns.clone(), steps.len() as isize);
        let (row, column) = match self.side {
            Side::Transposed => {
                self.reader.rectangle(columns, steps, to);
                (1, depth)
            }
            Side::Plain => {
                let wide = columns.len() as isize;
                self.reader.rectangle(steps, columns, to);
                (wide, 1)
            }
        };
        Source {
            data: to.as_ptr().cast(),
            kind: Kind::F32,
            row,
            column,
        }
    }

    /// The product in f32 sums, rounded once to `T`, which is of this kind.
    fn run<T: Element>(&self, x: &Array, kind: Kind, shape: &Shape) -> Result<Array> {
        let data = x.as_slice::<T>()?.as_ptr().cast::<u8>();
        let x = Source {
            data,
            kind,
            row: self.k as isize,
            column: 1,
        };
        let cut = Cut::of(self.m, self.n, self.k);
        Array::try_build(shape, |out: &mut [T]| {
            let (to, n) = (Shared::new(out), self.n);
            team::parallel(cut.rows * cut.columns, &|part| {
                let (rows, columns) = cut.part(part, self.m, n);
                if (1..=cut.deep).contains(&self.k) {
                    let data = to.as_mut_ptr().wrapping_add(columns.start).cast();
                    // SAFETY: parts are disjoint rectangles of the output.
                    unsafe { self.whole_part(x, &rows, &columns, Rows { data, kind }) };
                    return;
                }
                let mut sums = Scratch::<f32>::new(rows.len() * columns.len());
                self.part(x, &cut, &rows, &columns, &mut sums);
                for (row, sums) in rows.zip(sums.chunks(columns.len().max(1))) {
                    let at = row * n;
                    // SAFETY: parts are disjoint rectangles of the output.
                    let to = unsafe { to.slice(at + columns.start..at + columns.end) };
                    convert(sums, to);
                }
            });
            Ok(())
        })
    }

    /// One part of the output whose piece of W is as deep as the inner dimension; `to` begins at its
    /// first column.
    ///
    /// # Safety
    /// The rows and columns of `to` are exclusively ours.
    unsafe fn whole_part(&self, x: Source, rows: &Range<usize>, columns: &Range<usize>, to: Rows) {
        let mut piece = Scratch::<f32>::new(columns.len() * self.k);
        let b = self.piece(columns, 0..self.k, &mut piece);
        let finish = Epilogue {
            width: self.n,
            bias: None,
            activation: Activation::None,
            residual: None,
            preactivation: None,
            output: to,
        };
        let out = Out {
            c: std::ptr::null_mut(),
            width: 0,
            accumulate: false,
            finish: Some(&finish),
            first_row: rows.start,
        };
        let (a, sizes) = (x.from(rows.start, 0), (rows.len(), columns.len(), self.k));
        // SAFETY: the rows of x exist and the piece holds all of its columns; the output is the
        // caller's promise.
        with_engine!(way(self.round), E => unsafe { self.multiply::<E>(sizes, a, b, out) });
    }

    /// One part of the output, in pieces.
    fn part(
        &self,
        x: Source,
        cut: &Cut,
        rows: &Range<usize>,
        columns: &Range<usize>,
        sums: &mut Scratch<f32>,
    ) {
        if self.k == 0 {
            sums.fill(0.0);
        }
        let mut piece = Scratch::<f32>::new(columns.len() * cut.deep);
        for first in (0..self.k).step_by(cut.deep) {
            let steps = first..self.k.min(first + cut.deep);
            let b = self.piece(columns, steps.clone(), &mut piece);
            let a = x.from(rows.start, first);
            let sizes = (rows.len(), columns.len(), steps.len());
            let out = Out {
                c: sums.as_mut_ptr(),
                width: columns.len(),
                accumulate: first > 0,
                finish: None,
                first_row: 0,
            };
            // SAFETY: the rows and steps of x exist, the piece holds all of its columns, and `sums`
            // has the size of the part.
            with_engine!(way(self.round), E => unsafe { self.multiply::<E>(sizes, a, b, out) });
        }
    }

    /// # Safety
    /// `a` and `b` have these sizes, and so has `out`, which is exclusively ours.
    unsafe fn multiply<E: Engine<S = f32>>(
        &self,
        (m, n, k): (usize, usize, usize),
        a: Source,
        b: Source,
        out: Out<'_, f32>,
    ) {
        let problem = Problem::<E> {
            k,
            alpha: 1.0,
            a,
            b: Right::Strided(b),
            round: self.round,
            out,
        };
        // SAFETY: the caller's promise.
        unsafe { run_panel(&problem, 0..m, 0..n) };
    }

    fn run_f64(&self, x: &Array, shape: &Shape) -> Result<Array> {
        let x = x.as_slice::<f64>()?;
        let cut = Cut::of(self.m, self.n, self.k);
        Array::try_build(shape, |out: &mut [f64]| {
            if self.k == 0 {
                out.fill(0.0);
            }
            let (to, n) = (Shared::new(out), self.n);
            for part in 0..cut.rows * cut.columns {
                let (rows, columns) = cut.part(part, self.m, n);
                let mut piece = Scratch::<f32>::new(columns.len() * cut.deep);
                for first in (0..self.k).step_by(cut.deep) {
                    let steps = first..self.k.min(first + cut.deep);
                    let Source { row, column, .. } =
                        self.piece(&columns, steps.clone(), &mut piece);
                    let wide: Vec<f64> = piece.iter().map(|x| f64::from(*x)).collect();
                    let a = Operand {
                        data: x[rows.start * self.k + first..].as_ptr(),
                        row: self.k as isize,
                        column: 1,
                    };
                    let b = Operand {
                        data: wide.as_ptr(),
                        row,
                        column,
                    };
                    let sizes = (rows.len(), columns.len(), steps.len());
                    // SAFETY: as in `multiply`; the rectangle of the output is this loop's own.
                    unsafe {
                        let all = to.slice(0..to.len());
                        let c = all.as_mut_ptr().add(rows.start * n + columns.start);
                        gemm::<f64>(Compute::F32, sizes, 1.0, a, b, c, n, first > 0);
                    }
                }
            }
            Ok(())
        })
    }
}
