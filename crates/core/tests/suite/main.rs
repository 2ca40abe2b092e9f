//! One integration binary: generic checks over the registry and its samples, the pitfalls of
//! automatic differentiation, the transforms, absurd sizes, and values of PyTorch.

mod custom;
mod engine;
mod functional;
mod limits;
mod pitfalls;
mod refusals;
mod registry;
mod samples;
mod transforms;
mod watching;
