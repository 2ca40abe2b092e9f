//! What the library does not do, per operation and argument, decided before any comparison.
//!
//! Add an entry only for a missing feature, never to hide a deviation. Operations that are absent
//! from `operations/` and arguments that an operation does not state there are not supported
//! either; they need no entry here.

use entrenar_core::DType;

use crate::replay::Kind;
use crate::suite::{Case, Value};

/// Cases of one operation that are not supported.
pub struct Unsupported {
    /// PyTorch's name of the operation.
    pub op: &'static str,
    /// Which kinds.
    pub kinds: &'static [Kind],
    /// In which dtypes.
    pub dtypes: &'static [DType],
    /// Which of its cases.
    pub when: fn(&Case) -> bool,
    /// The condition and why.
    pub reason: &'static str,
}

const ALL: &[Kind] = &Kind::ALL;
const EVERY: &[DType] = &DType::ALL;

/// The list.
pub const UNSUPPORTED: &[Unsupported] = &[
    Unsupported {
        op: "nn.functional.scaled_dot_product_attention",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| positive(c.argument(3, "dropout_p")),
        reason: "dropout_p > 0: the recorded mask comes from PyTorch's generator",
    },
    Unsupported {
        op: "gather",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| match (
            c.tensor(&c.input),
            c.argument(1, "index").and_then(|v| c.tensor(v)),
        ) {
            (Some(input), Some(index)) => input.rank() != index.rank(),
            _ => false,
        },
        reason: "an empty index of another rank than the input",
    },
    Unsupported {
        op: "nn.functional.linear_cross_entropy",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| {
            c.argument(0, "linear_weight")
                .and_then(|v| c.tensor(v))
                .is_some_and(|t| t.rank() != 2)
        },
        reason: "a weight that is no matrix",
    },
    Unsupported {
        op: "norm",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| c.argument(0, "p") == Some(&Value::Text("nuc".to_string())),
        reason: "p='nuc': no singular values",
    },
    Unsupported {
        op: "repeat_interleave",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| {
            c.argument(0, "repeats")
                .and_then(|v| c.tensor(v))
                .is_some_and(|t| t.numel() != 1)
        },
        reason: "one count per element",
    },
    Unsupported {
        op: "nn.functional.batch_norm",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| {
            c.tensor(&c.input).is_some_and(|x| x.rank() < 2)
                && c.argument(4, "training") == Some(&Value::Bool(true))
        },
        reason: "training on a vector: no channels to normalise",
    },
    Unsupported {
        op: "nn.functional.interpolate",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| c.argument(2, "mode") == Some(&Value::Text("area".to_string())),
        reason: "mode area: use adaptive_avg_pool",
    },
    Unsupported {
        op: "nn.functional.interpolate",
        kinds: ALL,
        dtypes: EVERY,
        when: |c| c.argument(5, "antialias") == Some(&Value::Bool(true)),
        reason: "antialias",
    },
];

fn positive(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Float(f)) => *f > 0.0,
        Some(Value::Int(i)) => *i > 0,
        _ => false,
    }
}

/// Why this kind of this case is not supported, if the list says so.
pub fn reason(case: &Case, kind: Kind, dtype: DType) -> Option<String> {
    UNSUPPORTED
        .iter()
        .filter(|u| u.op == case.op && u.kinds.contains(&kind) && u.dtypes.contains(&dtype))
        .find(|u| (u.when)(case))
        .map(|u| u.reason.to_string())
}
