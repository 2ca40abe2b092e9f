//! What follows a product while its tile is in cache: bias, activation, residual, the casts.
//!
//! The formulas are those of the pointwise operations of the same names, operation by operation in
//! f32, so that a fused product has the bits of its parts in f32. Loops run over indices: iterator
//! adaptors that the compiler leaves as calls would be compiled for the baseline.

use entrenar_base::{bf16, f16};
use half::slice::HalfFloatSliceExt;

use super::Kind;
use super::panel::{Finish, Place};
use crate::cast::round_bf16;
use crate::product::Activation;
use crate::simd::{math, multiversion};

/// `output = activation(sum + bias) + residual`; rows of all three are `width` apart.
pub(crate) struct Epilogue<'a> {
    pub width: usize,
    /// One value per column, and any values up to whole tiles.
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
    pub residual: Option<Rows>,
    pub preactivation: Option<Rows>,
    pub output: Rows,
}

/// Rows of a dtype, from element (0, 0) on.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub data: *mut u8,
    pub kind: Kind,
}

// SAFETY: `Rows` are read and written by unsafe functions whose callers own the places.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// Where an element lies, if there is one.
    pub fn at(&self, index: usize) -> *mut u8 {
        self.data.wrapping_add(index * self.kind.bytes())
    }

    /// # Safety
    /// The rows hold `index + n` elements; nobody writes them meanwhile.
    #[inline(always)]
    unsafe fn load(&self, index: usize, to: &mut [f32]) {
        let n = to.len();
        // SAFETY: the caller's promise.
        unsafe {
            match self.kind {
                Kind::F32 => {
                    let from = std::slice::from_raw_parts(self.data.cast::<f32>().add(index), n);
                    copy(from, to);
                }
                Kind::Bf16 => {
                    let from = std::slice::from_raw_parts(self.data.cast::<u16>().add(index), n);
                    for i in 0..n {
                        to[i] = f32::from_bits(u32::from(from[i]) << 16);
                    }
                }
                Kind::F16 => std::slice::from_raw_parts(self.data.cast::<f16>().add(index), n)
                    .convert_to_f32_slice(to),
                Kind::F64 => unreachable!("products end in f32, bf16 or f16"),
            }
        }
    }

    /// # Safety
    /// The rows hold `index + n` elements, which are exclusively ours.
    #[inline(always)]
    unsafe fn store(&self, index: usize, from: &[f32]) {
        let n = from.len();
        // SAFETY: the caller's promise.
        unsafe {
            match self.kind {
                Kind::F32 => {
                    let to = std::slice::from_raw_parts_mut(self.data.cast::<f32>().add(index), n);
                    copy(from, to);
                }
                Kind::Bf16 => {
                    let to = std::slice::from_raw_parts_mut(self.data.cast::<bf16>().add(index), n);
                    for i in 0..n {
                        to[i] = round_bf16(from[i]);
                    }
                }
                Kind::F16 => std::slice::from_raw_parts_mut(self.data.cast::<f16>().add(index), n)
                    .convert_from_f32_slice(from),
                Kind::F64 => unreachable!("products end in f32, bf16 or f16"),
            }
        }
    }
}

/// to = from; a call of `memcpy` would cost more than a row.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (many, few) = from.as_chunks::<16>();
    let (to_many, to_few) = to.as_chunks_mut::<16>();
    for i in 0..many.len().min(to_many.len()) {
        to_many[i] = many[i];
    }
    for i in 0..few.len().min(to_few.len()) {
        to_few[i] = few[i];
    }
}

/// max(x, 0); NaN is kept.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

/// x·Φ(x).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
    (0.5 * x) * (1.0 + math::erf(x * ROOT))
}

/// x·sigmoid(x).
#[inline(always)]
fn silu(x: f32) -> f32 {
    x * math::sigmoid(x)
}

/// Applies `f` to the tile.
#[inline(always)]
fn map(tile: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in tile {
        *x = f(*x);
    }
}

multiversion! {
    fn finish_tile(e: &Epilogue<'_>, at: Place, tile: &mut [f32], width: usize) {
        if let Some(bias) = e.bias {
            let bias = &bias[at.column..at.column + at.wide];
            for row in tile.chunks_exact_mut(width) {
                let row = &mut row[..at.wide];
                for i in 0..at.wide {
                    row[i] += bias[i];
                }
            }
        }
        let start = |r: usize| (at.row + r) * e.width + at.column;
        if let Some(rows) = e.preactivation {
            for (r, row) in tile.chunks_exact(width).enumerate() {
                // SAFETY: the rectangle lies inside the output and is ours, by `Finish`.
                unsafe { rows.store(start(r), &row[..at.wide]) };
            }
        }
        match e.activation {
            Activation::None => {}
            Activation::Relu => map(tile, relu),
            Activation::Gelu => map(tile, gelu),
            Activation::GeluTanh => map(tile, math::gelu_tanh),
            Activation::Silu => map(tile, silu),
        }
        if let Some(rows) = e.residual {
            let mut old = [0.0; 64];
            let old = &mut old[..at.wide];
            for (r, row) in tile.chunks_exact_mut(width).enumerate() {
                // SAFETY: as above; the residual has the output's shape.
                unsafe { rows.load(start(r), old) };
                let row = &mut row[..at.wide];
                for i in 0..at.wide {
                    row[i] += old[i];
                }
            }
        }
        for (r, row) in tile.chunks_exact(width).enumerate() {
            // SAFETY: as above.
            unsafe { e.output.store(start(r), &row[..at.wide]) };
        }
    }
}

impl Finish<f32> for Epilogue<'_> {
    unsafe fn begin(&self, at: Place, tile: *mut f32, width: usize) {
        for r in 0..at.high {
            // SAFETY: the caller's promise.
            unsafe {
                let row = std::slice::from_raw_parts_mut(tile.add(r * width), at.wide);
                self.output.load((at.row + r) * self.width + at.column, row);
            }
        }
    }

    unsafe fn finish(&self, at: Place, tile: *mut f32, width: usize) {
        // SAFETY: the caller's promise: whole rows of the tile are ours.
        let tile = unsafe { std::slice::from_raw_parts_mut(tile, at.high * width) };
        finish_tile(self, at, tile, width);
    }
}
