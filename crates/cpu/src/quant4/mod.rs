//! Matrices in blocks of 4-bit numbers, and products with them.
//!
//! A weight is cut, row after row, into blocks of (mostly) 64 numbers; each block keeps a scale, and
//! each number an index into a table of 16 values. [`Code`] has the tables, [`Quantized`]
//! (`matrix`) the stored form with its scales, `unpack` the way back to floats, [`product`] the
//! products x·Wᵀ and x·W, which never hold more of the weight in floats than fits in a cache.
//!
//! Formats: NF4 and FP4 with the bits of bitsandbytes 0.50 (Dettmers et al., "QLoRA", 2023), with
//! scales in f32 or in 8 bits ("double quantization"), and a symmetric form with codes -7 to 7.

mod code;
mod matrix;
mod product;
mod unpack;

pub use code::Code;
pub use matrix::{BLOCKS, NESTED_BLOCK, Quantized, Scales};
pub use product::{Side, product};
