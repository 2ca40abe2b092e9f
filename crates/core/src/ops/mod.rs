//! One file per operation or tight family.
//!
//! Each file holds, in this order: the formula with its reference, the parameter struct, `infer`,
//! `eval`, `rule`, the [`Tensor`](crate::Tensor) methods with their examples, and `ENTRIES`: the
//! samples from which every generic check is run. Adding an op means writing one file and adding
//! one line to each of the two lists below.

pub mod activation;
pub mod add_norm;
pub mod arithmetic;
pub mod attention;
pub mod batch_norm;
pub mod bitwise;
pub mod broadcast;
pub mod cast;
pub mod conv;
pub mod cross_entropy;
pub mod diagonal;
pub mod dropout;
pub(crate) mod expansion;
pub mod extreme;
pub mod gated;
pub mod index;
pub mod indexing;
pub mod int_matmul;
pub mod interpolate;
pub mod layer_norm;
pub mod linalg;
pub mod linear;
pub mod loss;
pub mod matmul;
pub mod moments;
pub mod orthogonal;
pub mod packed_attention;
pub mod pad;
pub mod permute;
pub mod pool;
pub mod prod;
pub mod reshape;
pub mod rotary;
pub mod slice;
pub mod softmax;
pub mod sort;
pub mod stack;
pub mod sum;
pub mod unary;
pub mod where_;

pub use indexing::Index;

use crate::registry::Entry;

/// The registry, file by file. New files go to the end: samples are drawn by place.
pub(crate) const ENTRIES: &[&[Entry]] = &[
    activation::ENTRIES,
    arithmetic::ENTRIES,
    attention::ENTRIES,
    batch_norm::ENTRIES,
    bitwise::ENTRIES,
    broadcast::ENTRIES,
    cast::ENTRIES,
    conv::ENTRIES,
    cross_entropy::ENTRIES,
    diagonal::ENTRIES,
    dropout::ENTRIES,
    extreme::ENTRIES,
    gated::ENTRIES,
    index::ENTRIES,
    interpolate::ENTRIES,
    layer_norm::ENTRIES,
    linalg::ENTRIES,
    linear::ENTRIES,
    indexing::ENTRIES,
    loss::ENTRIES,
    matmul::ENTRIES,
    moments::ENTRIES,
    orthogonal::ENTRIES,
    packed_attention::ENTRIES,
    pad::ENTRIES,
    permute::ENTRIES,
    pool::ENTRIES,
    prod::ENTRIES,
    reshape::ENTRIES,
    rotary::ENTRIES,
    slice::ENTRIES,
    softmax::ENTRIES,
    sort::ENTRIES,
    stack::ENTRIES,
    sum::ENTRIES,
    unary::ENTRIES,
    where_::ENTRIES,
    int_matmul::ENTRIES,
    add_norm::ENTRIES,
];
