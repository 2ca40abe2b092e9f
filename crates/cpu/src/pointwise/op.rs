//! The closed sets of scalar operations and their names.
//!
//! What each means for one number is written in [`crate::scalar`]; the vector kernels are in
//! `super::kernels`.

/// An operation on one number. Float semantics; for integers see [`crate::scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// -x
    Neg,
    /// |x|
    Abs,
    /// -1, 0 or 1; 0 for NaN, as in PyTorch.
    Sign,
    /// e^x
    Exp,
    /// 2^x
    Exp2,
    /// e^x - 1
    Expm1,
    /// Natural logarithm.
    Log,
    /// Base-2 logarithm.
    Log2,
    /// Base-10 logarithm.
    Log10,
    /// log(1 + x)
    Log1p,
    /// Square root.
    Sqrt,
    /// 1 / sqrt(x)
    Rsqrt,
    /// 1 / x
    Recip,
    /// x²
    Square,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Tangent of radians.
    Tan,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Hyperbolic tangent.
    Tanh,
    /// Inverse hyperbolic sine.
    Asinh,
    /// Inverse hyperbolic cosine.
    Acosh,
    /// Inverse hyperbolic tangent.
    Atanh,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// log(1 + e^x)
    Softplus,
    /// max(x, 0); NaN stays.
    Relu,
    /// x·sigmoid(2u) with u = √(2/π)·(x + 0.044715·x³): gelu's tanh approximation, written without
    /// the cancellation of 1 + tanh(u).
    GeluTanh,
    /// Error function.
    Erf,
    /// 1 - erf(x)
    Erfc,
    /// Largest integer not above x.
    Floor,
    /// Smallest integer not below x.
    Ceil,
    /// Nearest integer, ties to even.
    Round,
    /// x without its fraction.
    Trunc,
    /// 1 for NaN, else 0.
    IsNan,
    /// 1 for ±infinity, else 0.
    IsInf,
    /// 0 for NaN and ±infinity, else 1.
    IsFinite,
    /// 1 for 0, else 0 (NaN counts as true).
    Not,
}

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a · b
    Mul,
    /// a / b; integers truncate, and a zero divisor gives 0.
    Div,
    /// a^b
    Pow,
    /// The larger; NaN if either is.
    Max,
    /// The smaller; NaN if either is.
    Min,
    /// Angle of the point (b, a).
    Atan2,
    /// Remainder with the sign of a (C).
    Fmod,
    /// Remainder with the sign of b (Python).
    Remainder,
    /// |a| with the sign of b.
    Copysign,
    /// a = b
    Eq,
    /// a ≠ b
    Ne,
    /// a < b
    Lt,
    /// a ≤ b
    Le,
    /// a > b
    Gt,
    /// a ≥ b
    Ge,
    /// Both are not 0.
    And,
    /// One is not 0.
    Or,
    /// Exactly one is not 0.
    Xor,
}

macro_rules! table {
    ($kind:ident: $($op:ident $name:literal $cost:literal),* $(,)?) => {
        impl $kind {
            /// Every operation.
            pub const ALL: &[$kind] = &[$($kind::$op),*];

            /// Lower-case name, PyTorch's where it has one.
            pub const fn name(self) -> &'static str {
                match self { $($kind::$op => $name),* }
            }

            /// Estimated nanoseconds per f32 element on one core with operands in cache.
            pub(crate) const fn cost(self) -> f64 {
                match self { $($kind::$op => $cost),* }
            }
        }
    };
}

table!(Unary:
    Neg "neg" 0.05, Abs "abs" 0.05, Sign "sign" 0.1, Exp "exp" 0.4, Exp2 "exp2" 1.0,
    Expm1 "expm1" 1.0, Log "log" 0.5, Log2 "log2" 1.5, Log10 "log10" 1.5, Log1p "log1p" 1.5,
    Sqrt "sqrt" 0.4, Rsqrt "rsqrt" 0.6, Recip "reciprocal" 0.3, Square "square" 0.05,
    Sin "sin" 1.0, Cos "cos" 1.0, Tan "tan" 1.5, Asin "asin" 2.5, Acos "acos" 2.5,
    Atan "atan" 2.0, Sinh "sinh" 2.0, Cosh "cosh" 2.0, Tanh "tanh" 0.8, Asinh "asinh" 2.5,
    Acosh "acosh" 2.5, Atanh "atanh" 2.5, Sigmoid "sigmoid" 0.7, Softplus "softplus" 2.5,
    Relu "relu" 0.05, GeluTanh "gelu_tanh" 0.8,
    Erf "erf" 0.9, Erfc "erfc" 2.5, Floor "floor" 0.1, Ceil "ceil" 0.1, Round "round" 0.1,
    Trunc "trunc" 0.1, IsNan "isnan" 0.1, IsInf "isinf" 0.1, IsFinite "isfinite" 0.1,
    Not "logical_not" 0.1,
);

table!(Binary:
    Add "add" 0.06, Sub "sub" 0.06, Mul "mul" 0.06, Div "div" 0.3, Pow "pow" 3.0,
    Max "maximum" 0.1, Min "minimum" 0.1, Atan2 "atan2" 10.0, Fmod "fmod" 8.0,
    Remainder "remainder" 9.0, Copysign "copysign" 0.1, Eq "eq" 0.1, Ne "ne" 0.1, Lt "lt" 0.1,
    Le "le" 0.1, Gt "gt" 0.1, Ge "ge" 0.1, And "logical_and" 0.15, Or "logical_or" 0.15,
    Xor "logical_xor" 0.15,
);

impl Binary {
    /// True for comparisons and logic, whose results are 0 or 1.
    pub const fn is_predicate(self) -> bool {
        matches!(
            self,
            Binary::Eq
                | Binary::Ne
                | Binary::Lt
                | Binary::Le
                | Binary::Gt
                | Binary::Ge
                | Binary::And
                | Binary::Or
                | Binary::Xor
        )
    }
}

impl Unary {
    /// True for tests, whose results are 0 or 1.
    pub const fn is_predicate(self) -> bool {
        matches!(
            self,
            Unary::IsNan | Unary::IsInf | Unary::IsFinite | Unary::Not
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_tables_complete() {
        let names: HashSet<_> = Unary::ALL
            .iter()
            .map(|u| u.name())
            .chain(Binary::ALL.iter().map(|b| b.name()))
            .collect();
        assert_eq!(names.len(), 40 + 20);
        assert_eq!((Unary::ALL.len(), Binary::ALL.len()), (40, 20));
    }
}
