//! How far a result may be from the recorded one.
//!
//! The allowed difference is relative to the largest value of the result: 1e-9, and 1e-7 for
//! second order. [`WIDER`] lists the operations that need more, each with its reason. A result
//! that is nothing but cancellation (a gradient that is zero in exact arithmetic) has no scale of
//! its own: there, [`NOISE`] times the tolerance times the largest number of the whole case is
//! allowed.

use crate::replay::Kind;

/// Rounding noise as a part of the tolerance: 1e-13 of the largest number of a case, and 1e-11 for
/// second order.
pub const NOISE: f64 = 1e-4;

/// An operation with a tolerance of its own.
pub struct Wider {
    /// PyTorch's name of the operation.
    pub op: &'static str,
    /// Which kinds.
    pub kinds: &'static [Kind],
    /// The tolerance relative to the largest value of the result.
    pub tolerance: f64,
    /// Why.
    pub reason: &'static str,
}

/// The list.
pub const WIDER: &[Wider] = &[Wider {
    op: "nn.functional.hardsigmoid",
    kinds: &[Kind::Vjp, Kind::Jvp],
    tolerance: 1e-7,
    reason: "PyTorch's slope is 1/6 rounded to f32, in every dtype",
}];

/// The entry of [`WIDER`] for this kind of this operation.
pub fn wider(op: &str, kind: Kind) -> Option<&'static Wider> {
    WIDER.iter().find(|w| w.op == op && w.kinds.contains(&kind))
}

/// The tolerance of this kind of this operation.
pub fn tolerance(op: &str, kind: Kind) -> f64 {
    match wider(op, kind) {
        Some(wider) => wider.tolerance,
        None if kind == Kind::Second => 1e-7,
        None => 1e-9,
    }
}
