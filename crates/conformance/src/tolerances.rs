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

const FIRST: &[Kind] = &[Kind::Vjp, Kind::Jvp];
const SECOND: &[Kind] = &[Kind::Second];

/// The list.
pub const WIDER: &[Wider] = &[
    Wider {
        op: "nn.functional.hardsigmoid",
        dtype: DType::F64,
        kinds: FIRST,
        tolerance: 1e-7,
        reason: "PyTorch's slope is 1/6 rounded to f32, in every dtype",
    },
    Wider {
        op: "nn.functional.normalize",
        dtype: DType::F32,
        kinds: FIRST,
        tolerance: 1e-4,
        reason: "with p < 1 over a single element, terms of 1/x cancel to zero",
    },
    Wider {
        op: "nn.functional.normalize",
        dtype: DType::F32,
        kinds: SECOND,
        tolerance: 1e-2,
        reason: "with p < 1 over a single element, terms of 1/x² cancel to zero",
    },
    Wider {
        op: "nn.functional.scaled_dot_product_attention",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 1e-1,
        reason: "the backward pass reads the output rounded to bf16 and subtracts",
    },
    Wider {
        op: "nn.functional.prelu",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 5e-2,
        reason: "the slope's gradient sums products of both signs",
    },
    Wider {
        op: "logaddexp",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 5e-2,
        reason: "each step of the tangent is rounded",
    },
    Wider {
        op: "nn.functional.margin_ranking_loss",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 5e-2,
        reason: "tangents of both signs cancel in the mean",
    },
    Wider {
        op: "nn.functional.huber_loss",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 1e-1,
        reason: "tangents of both signs cancel in the mean",
    },
    Wider {
        op: "nn.functional.gaussian_nll_loss",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 1e-1,
        reason: "tangents of both signs cancel in the mean",
    },
    Wider {
        op: "nn.functional.poisson_nll_loss",
        dtype: DType::BF16,
        kinds: FIRST,
        tolerance: 5e-1,
        reason: "tangents of both signs, as large as exp(input), cancel in the mean",
    },
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_widen_and_are_unique() {
        for (i, w) in WIDER.iter().enumerate() {
            assert!(DEFAULTS.iter().any(|(d, ..)| *d == w.dtype), "{}", w.op);
            for &kind in w.kinds {
                let usual = tolerance("", kind, w.dtype).relative;
                assert!(w.tolerance > usual, "{} {}", w.op, kind.name());
                let same = |o: &&Wider| o.op == w.op && o.dtype == w.dtype;
                let doubled = WIDER[i + 1..].iter().filter(same);
                assert!(
                    doubled.clone().all(|o| !o.kinds.contains(&kind)),
                    "{}",
                    w.op
                );
            }
        }
    }

    #[test]
    fn a_dtype_without_defaults_allows_nothing() {
        let none = Tolerance {
            relative: 0.0,
            floor: 0.0,
        };
        assert_eq!(tolerance("sin", Kind::Forward, DType::I64), none);
    }
}
