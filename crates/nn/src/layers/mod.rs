//! Layers, one file each. Names of layers, fields and default initial values are PyTorch's.

mod linear;

pub use linear::{Dense, Linear};
