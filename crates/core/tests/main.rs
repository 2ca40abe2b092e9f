//! One integration binary: generic checks over the registry, the pitfalls of automatic
//! differentiation, and the transforms.

mod pitfalls;
mod registry;
mod transforms;
