//! Tensors, operations and automatic differentiation.
//!
//! A [`Tensor`] is a few words wide and immutable. Every operation goes through one door,
//! [`apply()`], which looks at the highest transform level among its inputs: recording for reverse
//! mode, pushing tangents for forward mode, or deferring saves to a checkpoint region. Because
//! derivative rules are written with tensor functions, any nesting of these is right by
//! construction. `ops/` holds one file per operation (or tight family), `autograd/` the transforms.
//!
//! ```
//! use entrenar_core::Tensor;
//! let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3])?.requires_grad()?;
//! let y = x.mul(&x)?.sum()?; // x is used twice: its gradient is 2x
//! y.backward()?;
//! assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [2.0, 4.0, 6.0]);
//! # Ok::<(), entrenar_core::Error>(())
//! ```

pub mod apply;
mod autocast;
pub mod autograd;
pub mod diagnostics;
pub mod expr;
pub mod op;
pub mod ops;
pub mod registry;
mod serialize;
pub mod tensor;

pub use apply::apply;
pub use autocast::{autocast, is_autocast};
pub use autograd::{GradientTape, no_grad};
pub use entrenar_base::{
    Array, DType, Device, Element, Error, ErrorKind, Result, Shape, bf16, f16,
};
pub use op::{Aval, Op};
pub use tensor::Tensor;
