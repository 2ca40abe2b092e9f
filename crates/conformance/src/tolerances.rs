//! How far a result may be from the expected one.
//!
//! The allowed difference is so many [`Rule::unit`]s of the largest value of the result. In f64 the
//! unit is 1e-9, and a hundred of them are allowed in second order: what the recorded suites state.
//! In f32 and bf16 it is the distance from 1 to the next number of the type, so that an entry counts
//! roundings: half a unit each. Kernels compute in f32 and round their results once; what is left
//! are sums (in trees: one rounding per doubling), functions of a few units, and, for operations
//! that consist of others, one rounding per part. Each order of derivatives adds as many parts
//! again. [`RULES`] has the numbers; [`WIDER`] lists the operations that need more, each with its
//! reason.
//!
//! A result that is nothing but cancellation (a gradient that is zero in exact arithmetic) has no
//! scale of its own: [`Rule::floor`] of the largest number of the case stands in for it. In f32 that
//! allows outputs one unit of that number, in bf16 half of one: a rounding of the number itself.

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

/// What a dtype allows, in units.
pub struct Rule {
    /// The dtype of the inputs.
    pub dtype: DType,
    /// What the other numbers count.
    pub unit: f64,
    /// Outputs.
    pub forward: f64,
    /// First derivatives in either mode.
    pub first: f64,
    /// Second derivatives.
    pub second: f64,
    /// The smallest scale of a result, relative to the largest number of the case.
    pub floor: f64,
}

/// 2^-23: the distance from 1 to the next f32.
const F32: f64 = f32::EPSILON as f64;
/// 2^-7: the distance from 1 to the next bf16.
const BF16: f64 = 1.0 / 128.0;

/// The rules.
pub const RULES: &[Rule] = &[
    Rule {
        dtype: DType::F64,
        unit: 1e-9,
        forward: 1.0,
        first: 1.0,
        second: 100.0,
        floor: 1e-4,
    },
    Rule {
        dtype: DType::F32,
        unit: F32,
        forward: 8.0,
        first: 16.0,
        second: 64.0,
        floor: 0.125,
    },
    Rule {
        dtype: DType::BF16,
        unit: BF16,
        forward: 2.0,
        first: 2.5,
        second: 6.0,
        floor: 0.25,
    },
];

/// An operation with a tolerance of its own.
pub struct Wider {
    /// PyTorch's name of the operation.
    pub op: &'static str,
    /// In which dtype.
    pub dtype: DType,
    /// Which kinds.
    pub kinds: &'static [Kind],
    /// Units relative to the scale of the result.
    pub units: f64,
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
        units: 100.0,
        reason: "PyTorch's slope is 1/6 rounded to f32, in every dtype",
    },
    Wider {
        op: "nn.functional.normalize",
        dtype: DType::F32,
        kinds: FIRST,
        units: 256.0,
        reason: "with p < 1 over a single element, terms of 1/x cancel to zero",
    },
    Wider {
        op: "nn.functional.normalize",
        dtype: DType::F32,
        kinds: SECOND,
        units: 16384.0,
        reason: "with p < 1 over a single element, terms of 1/x² cancel to zero",
    },
    Wider {
        op: "nn.functional.scaled_dot_product_attention",
        dtype: DType::F32,
        kinds: &[Kind::Forward, Kind::Vjp, Kind::Jvp],
        units: 64.0,
        reason: "the exponential turns units of a score into units of a weight: recorded scores reach 90",
    },
];

/// The entry of [`WIDER`] for this kind of this operation.
pub fn wider(op: &str, kind: Kind, dtype: DType) -> Option<&'static Wider> {
    WIDER
        .iter()
        .find(|w| w.op == op && w.dtype == dtype && w.kinds.contains(&kind))
}

/// The rule of a dtype.
pub fn rule(dtype: DType) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.dtype == dtype)
}

impl Rule {
    /// The units of a kind where [`WIDER`] says nothing.
    pub fn units(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Forward => self.forward,
            Kind::Vjp | Kind::Jvp => self.first,
            Kind::Second => self.second,
        }
    }
}

/// The tolerance of this kind of this operation; a dtype without a rule allows nothing.
pub fn tolerance(op: &str, kind: Kind, dtype: DType) -> Tolerance {
    let Some(rule) = rule(dtype) else {
        return Tolerance {
            relative: 0.0,
            floor: 0.0,
        };
    };
    let units = wider(op, kind, dtype).map_or(rule.units(kind), |w| w.units);
    Tolerance {
        relative: units * rule.unit,
        floor: rule.floor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_widen_and_are_unique() {
        for (i, w) in WIDER.iter().enumerate() {
            let rule = rule(w.dtype).unwrap_or_else(|| panic!("{}: no rule", w.op));
            for &kind in w.kinds {
                assert!(w.units > rule.units(kind), "{} {}", w.op, kind.name());
                let same = |o: &&Wider| o.op == w.op && o.dtype == w.dtype;
                let mut others = WIDER[i + 1..].iter().filter(same);
                assert!(others.all(|o| !o.kinds.contains(&kind)), "{}", w.op);
            }
        }
    }

    #[test]
    fn units_count_roundings_of_the_type() {
        let one = entrenar_base::bf16::from_f32(1.0);
        let next = entrenar_base::bf16::from_bits(one.to_bits() + 1);
        assert_eq!(BF16, f64::from(next) - 1.0);
        let t = tolerance("sin", Kind::Forward, DType::F32);
        assert_eq!(t.relative, 8.0 * 2f64.powi(-23));
        assert_eq!(t.relative * t.floor, 2f64.powi(-23));
        let t = tolerance("sin", Kind::Forward, DType::BF16);
        assert_eq!(t.relative * t.floor, 2f64.powi(-8));
    }

    #[test]
    fn a_dtype_without_a_rule_allows_nothing() {
        let none = Tolerance {
            relative: 0.0,
            floor: 0.0,
        };
        assert_eq!(tolerance("sin", Kind::Forward, DType::I64), none);
    }
}
