//! One integration binary: generic checks over the registry, the pitfalls of automatic
//! differentiation, the transforms, absurd sizes, and values of PyTorch.

mod functional;
mod limits;
mod pitfalls;
mod registry;
mod transforms;
