//! CPU kernels of entrenar, one file per operation family.
//!
//! Entry points take `&Array`s of any layout and return fresh contiguous `Array`s; the typed
//! kernels behind them work on `View`s and slices. This crate knows nothing of tensors and
//! gradients: a backward kernel is just another function of arrays.

#![allow(
    clippy::needless_range_loop,
    reason = "iterator adaptors that stay calls are compiled for the baseline instruction set"
)]

pub mod alloc;
pub mod attention;
pub mod bitwise;
pub mod cast;
pub mod conv;
pub mod copy;
pub mod gated;
mod gemm;
pub mod index;
mod kit;
pub mod linalg;
pub mod linear;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod optim;
pub mod optim8;
pub mod pointwise;
pub mod pool;
pub mod product;
pub mod quant4;
pub mod quant8;
pub mod random;
pub mod recurrence;
pub mod reduce;
pub mod rotary;
pub mod scalar;
pub mod scan;
pub mod simd;
pub mod softmax;
pub mod sort;
pub mod team;
#[cfg(test)]
mod testing;
mod walk;

/// Installs the caching allocator. Idempotent and cheap; call it before the first array is made.
pub fn init() {
    alloc::install();
}
