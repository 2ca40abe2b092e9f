//! One integration binary: generic checks over the registry and its samples, the pitfalls of
//! automatic differentiation, the transforms, absurd sizes, and values of PyTorch.

mod engine;
mod functional;
mod limits;
mod pitfalls;
mod refusals;
mod refusals_of_layers;
mod registry;
mod samples;
mod transforms;
