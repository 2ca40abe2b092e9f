//! How far a result may be from the expected one.
//!
//! The allowed difference is relative to the largest value of the result: 1e-9 in f64, and 1e-7
//! for second order; [`DEFAULTS`] has the other types. [`WIDER`] lists the operations that need
//! more, each with its reason. A result that is nothing but cancellation (a gradient that is zero
//! in exact arithmetic) has no scale of its own: a part of the largest number of the whole case,
//! the `floor`, stands in for it.

use entrenar_core::DType;

use crate::replay::Kind;

/// What one comparison allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Allowed difference relative to the scale of the result.
    pub relative: f64,
    /// Smallest scale, relative to the largest number of the case.
    pub floor: f64,
}

/// Tolerances of a dtype: first order, second order, floor.
pub const DEFAULTS: &[(DType, f64, f64, f64)] = &[
    (DType::F64, 1e-9, 1e-7, 1e-4),
    (DType::F32, 1e-5, 1e-4, 1e-1),
    (DType::BF16, 2e-2, 5e-2, 2e-1),
];

/// An operation with a tolerance of its own.
pub struct Wider {
    /// PyTorch's name of the operation.
    pub op: &'static str,
    /// In which dtype.
    pub dtype: DType,
    /// Which kinds.
    pub kinds: &'static [Kind],
    /// The tolerance relative to the scale of the result.
    pub tolerance: f64,
    /// Why.
    pub reason: &'static str,
}

/// The list.
pub const WIDER: &[Wider] = &[Wider {
    op: "nn.functional.hardsigmoid",
    dtype: DType::F64,
    kinds: &[Kind::Vjp, Kind::Jvp],
    tolerance: 1e-7,
    reason: "PyTorch's slope is 1/6 rounded to f32, in every dtype",
}];

/// The entry of [`WIDER`] for this kind of this operation.
pub fn wider(op: &str, kind: Kind, dtype: DType) -> Option<&'static Wider> {
    WIDER
        .iter()
        .find(|w| w.op == op && w.dtype == dtype && w.kinds.contains(&kind))
}

/// The tolerance of this kind of this operation; a dtype without defaults allows nothing.
pub fn tolerance(op: &str, kind: Kind, dtype: DType) -> Tolerance {
    let default = DEFAULTS.iter().find(|(d, ..)| *d == dtype);
    let (first, second, floor) = default.map_or((0.0, 0.0, 0.0), |(_, a, b, c)| (*a, *b, *c));
    let relative = match wider(op, kind, dtype) {
        Some(wider) => wider.tolerance,
        None if kind == Kind::Second => second,
        None => first,
    };
    Tolerance { relative, floor }
}
