//! One integration binary: generic checks over the registry, the pitfalls of automatic
//! differentiation, the transforms, and values of PyTorch.

mod functional;
mod pitfalls;
mod registry;
mod transforms;
