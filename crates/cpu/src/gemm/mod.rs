//! Matrix products: packed panels around register-tile kernels.
//!
//! The scheme is Goto's ("Anatomy of high-performance matrix multiplication", 2008): the right
//! operand is packed into slivers of columns, blocks of the left one into slivers of rows, and a
//! microkernel multiplies slivers in registers. Small products read operands where they lie.
//!
//! Promise: an element's bits depend on its row of `a`, its column of `b`, the inner size, the
//! [`Engine`] and the instruction set, and on nothing else: not on the operands' layouts, not on
//! where a panel was cut, not on what was packed. Every path sums the inner dimension in blocks of
//! [`KC`], each block from zero in ascending order, multiplies the block by alpha and adds the
//! blocks in order, to the old value if there is one. `Tiles` does so with stretches of [`STRETCH`].
//!
//! * [`Single`] (f32), `Double` (f64): one fused multiply-add per element and step. Without such an
//!   instruction (x86-64 before AVX2) product and sum round separately, unless numbers are strict;
//!   products of bf16 values are exact in f32, so those agree at every level either way.
//! * `Dot` (AVX-512 BF16): see there. It rounds like two fused multiply-adds per pair, in another
//!   order than [`Single`], and knows no subnormal numbers.
//! * `Tiles` (Intel's AMX): see there. As `Dot`, in yet another order.
//! * `Words` and `Quads` (i8): sums in i32, exact modulo 2³² in any order, so that they agree with
//!   each other whatever [`Engine::BLOCK`] is.
//!
//! Files: `tile` kernels, `amx` those on tile registers, `engine` and `bytes` what they multiply,
//! `pack`, `pack256`, `pack512` and `pack_tiles` packing, `panel` the loops of one thread, `drive`
//! the cut among threads, `epilogue` what follows a product.
//! Neighbours: [`crate::matmul`] and [`crate::product`] are the entry points; `conv` and others
//! call [`gemm`] through [`crate::kit`].

mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod bytes;
mod drive;
mod engine;
mod epilogue;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack256;
#[cfg(target_arch = "x86_64")]
mod pack512;
#[cfg(target_arch = "x86_64")]
mod pack_tiles;
mod panel;
mod tile;

#[cfg(test)]
mod tests;

use entrenar_base::DType;

use crate::product::Compute;

pub(crate) use ahead::{ask_to_read, ask_to_write};
#[cfg(target_arch = "x86_64")]
pub(crate) use amx::Tiles;
pub(crate) use bytes::Words;
#[cfg(target_arch = "x86_64")]
pub(crate) use bytes::{Quads, has_quads};
pub(crate) use drive::{Batch, multiply, packed};
#[cfg(target_arch = "x86_64")]
pub(crate) use engine::Dot;
pub(crate) use engine::{Engine, GemmFloat, Single, Way, way, with_engine};
pub(crate) use epilogue::{Epilogue, Rows};
pub(crate) use panel::{Finish, Out, Problem, Right, STRETCH, run as run_panel};
pub(crate) use tile::{Once, Round, Twice};

/// Block of the inner dimension. Part of the numerical contract: changing it changes bits.
const KC: usize = 256;

/// Dtypes of operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F64,
    Bf16,
    F16,
    I8,
}

impl Kind {
    /// The kind of a float dtype.
    pub fn of(dtype: DType) -> Option<Kind> {
        Some(match dtype {
            DType::F32 => Kind::F32,
            DType::F64 => Kind::F64,
            DType::BF16 => Kind::Bf16,
            DType::F16 => Kind::F16,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::F64 => 8,
            Kind::F32 => 4,
            Kind::Bf16 | Kind::F16 => 2,
            Kind::I8 => 1,
        }
    }
}

/// A strided operand: element (i, j) lies `i · row + j · column` elements after `data`.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub data: *const u8,
    pub kind: Kind,
    pub row: isize,
    pub column: isize,
}

// SAFETY: a source is only read, and the functions that do are unsafe: their callers promise that
// the memory stays valid.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// Where element (i, j) lies, if there is one.
    pub fn at(&self, i: usize, j: usize) -> *const u8 {
        let elements = i as isize * self.row + j as isize * self.column;
        self.data
            .wrapping_offset(elements * self.kind.bytes() as isize)
    }

    /// The source from element (i, j) on.
    pub fn from(self, i: usize, j: usize) -> Source {
        Source {
            data: self.at(i, j),
            ..self
        }
    }

    /// The source that begins some elements further on.
    pub fn moved(self, elements: isize) -> Source {
        let data = self
            .data
            .wrapping_offset(elements * self.kind.bytes() as isize);
        Source { data, ..self }
    }

    /// Bytes between rows.
    pub fn row_bytes(&self) -> isize {
        self.row * self.kind.bytes() as isize
    }

    /// Bytes between columns.
    pub fn column_bytes(&self) -> isize {
        self.column * self.kind.bytes() as isize
    }
}

/// A strided operand: element (i, j) lies at `data + i · row + j · column`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<T> {
    pub data: *const T,
    pub row: isize,
    pub column: isize,
}

impl<T: GemmFloat> Operand<T> {
    pub fn source(self) -> Source {
        Source {
            data: self.data.cast(),
            kind: T::KIND,
            row: self.row,
            column: self.column,
        }
    }
}

/// `c[m, n] = alpha · a[m, k] · b[k, n]`, plus what `c` held when `accumulate`, on the calling
/// thread. Rows of `c` are `width` apart. f32 operands are multiplied in `compute`.
///
/// # Safety
/// All elements of the three matrices lie inside memory that is valid for reading (`a`, `b`) or
/// exclusively ours (`c`).
#[allow(clippy::too_many_arguments, reason = "the arguments of every gemm")]
pub(crate) unsafe fn gemm<T: GemmFloat>(
    compute: Compute,
    sizes: (usize, usize, usize),
    alpha: T,
    a: Operand<T>,
    b: Operand<T>,
    c: *mut T,
    width: usize,
    accumulate: bool,
) {
    let round = compute == Compute::Bf16 && T::KIND == Kind::F32;
    let (a, b) = (a.source(), b.source());
    if round {
        let alpha = alpha.to_f64() as f32;
        // SAFETY: the caller's promise; T is f32.
        with_engine!(way(true), E => unsafe {
            panel_of::<E>(sizes, alpha, a, b, c.cast(), (width, accumulate, true));
        });
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { panel_of::<T::Engine>(sizes, alpha, a, b, c, (width, accumulate, false)) };
}

/// # Safety
/// As [`gemm`].
unsafe fn panel_of<E: Engine>(
    (m, n, k): (usize, usize, usize),
    alpha: E::S,
    a: Source,
    b: Source,
    c: *mut E::S,
    (width, accumulate, round): (usize, bool, bool),
) {
    let problem = Problem::<E> {
        k,
        alpha,
        a,
        b: Right::Strided(b),
        round,
        out: Out {
            c,
            width,
            accumulate,
            finish: None,
            first_row: 0,
        },
    };
    // SAFETY: the caller's promise.
    unsafe { panel::run(&problem, 0..m, 0..n) };
}
