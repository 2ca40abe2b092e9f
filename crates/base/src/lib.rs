//! The ground floor of entrenar: what an array of numbers *is*.
//!
//! This crate owns dtypes, shapes, layouts (strides and offset), reference-counted storage with its
//! allocator interface and byte accounting, [`Array`], [`View`]s for kernels, the counter-based
//! random generator, the only memory-map wrapper and the one error type. It knows nothing of
//! tensors, gradients or operations: those live in `entrenar-core`, kernels in `entrenar-cpu`.
//!
//! ```
//! use entrenar_base::{Array, DType};
//! let a = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
//! let t = a.transpose(0, 1)?; // a view: shares storage
//! assert_eq!(t.shape().dims(), [3, 2]);
//! assert_eq!(t.to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
//! assert_eq!(t.dtype(), DType::F32);
//! # Ok::<(), entrenar_base::Error>(())
//! ```

pub mod array;
pub mod device;
pub mod dtype;
pub mod error;
pub mod layout;
pub mod mapped;
pub mod memory;
pub mod rng;
pub mod shape;
pub mod storage;
pub mod view;

pub use array::Array;
pub use device::Device;
pub use dtype::{DType, Element, Float};
pub use error::{Error, ErrorKind, Result};
pub use half::{bf16, f16};
pub use layout::Layout;
pub use mapped::Mapped;
pub use rng::Philox;
pub use shape::Shape;
pub use storage::{Allocator, Storage};
pub use view::View;
