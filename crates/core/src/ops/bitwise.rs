//! Bitwise logic of integers and bool: `bitwise_and`, `bitwise_or`, `bitwise_xor`, `bitwise_not`.
//!
//! Without derivative: integers have none.

use entrenar_base::{Array, Error, Result};
use entrenar_cpu::bitwise::{self as kernel, Bitwise};

use super::where_::joined;
use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Op, Rule};
use crate::registry::{Entry, Sample};

/// Two operands of one shape and dtype, or one and `None`: all bits turned over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bits(Option<Bitwise>);

impl Op for Bits {
    fn name(&self) -> &'static str {
        match self.0 {
            Some(Bitwise::And) => "bitwise_and",
            Some(Bitwise::Or) => "bitwise_or",
            Some(Bitwise::Xor) => "bitwise_xor",
            None => "bitwise_not",
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if inputs[0].dtype.is_float() {
            let name = self.name();
            return Err(Error::dtype(name, "integers or bool", inputs[0].dtype));
        }
        Ok(one(inputs[0].clone()))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(match self.0 {
            Some(op) => kernel::binary(op, inputs[0], inputs[1])?,
            None => kernel::not(inputs[0])?,
        }))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Zero
    }
}

impl Tensor {
    #[track_caller]
    fn bits(&self, other: &Tensor, op: Bitwise) -> Result<Tensor> {
        let op = Bits(Some(op));
        let [a, b] = joined([self, other], op.name())?;
        apply1(&handle(op), &[&a, &b])
    }

    /// The bits that both have, of integers or bool; shapes broadcast.
    ///
    /// # Errors
    /// When shapes do not broadcast or an operand is a float.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![6i64, 5], [2])?;
    /// assert_eq!(a.bitwise_and(&Tensor::scalar(3i64))?.to_vec::<i64>()?, [2, 1]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn bitwise_and(&self, other: &Tensor) -> Result<Tensor> {
        self.bits(other, Bitwise::And)
    }

    /// The bits that either has, of integers or bool; shapes broadcast.
    ///
    /// # Errors
    /// As [`Tensor::bitwise_and`].
    #[track_caller]
    pub fn bitwise_or(&self, other: &Tensor) -> Result<Tensor> {
        self.bits(other, Bitwise::Or)
    }

    /// The bits that exactly one has, of integers or bool; shapes broadcast.
    ///
    /// # Errors
    /// As [`Tensor::bitwise_and`].
    #[track_caller]
    pub fn bitwise_xor(&self, other: &Tensor) -> Result<Tensor> {
        self.bits(other, Bitwise::Xor)
    }

    /// Every bit turned over; of bool, the other truth value.
    ///
    /// # Errors
    /// When the tensor is a float.
    #[track_caller]
    pub fn bitwise_not(&self) -> Result<Tensor> {
        apply1(&handle(Bits(None)), &[self])
    }
}

macro_rules! entry {
    ($name:literal, $method:ident) => {
        Entry {
            name: $name,
            kind: "zero",
            sample: |g| {
                let (a, b) = g.broadcast_pair();
                let inputs = vec![g.indices(a, 16), g.indices(b, 16)];
                Ok(Sample::one(inputs, |t| t[0].$method(&t[1])).order(0))
            },
        }
    };
}

pub(crate) const ENTRIES: &[Entry] = &[
    entry!("bitwise_and", bitwise_and),
    entry!("bitwise_or", bitwise_or),
    entry!("bitwise_xor", bitwise_xor),
    Entry {
        name: "bitwise_not",
        kind: "zero",
        sample: |g| {
            let shape = g.shape(0..=3);
            let x = g.indices(shape, 16);
            Ok(Sample::one(vec![x], |t| t[0].bitwise_not()).order(0))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn operands_broadcast_and_promote() {
        let a = Tensor::from_vec(vec![12i32, 10], [2, 1]).unwrap();
        let b = Tensor::from_vec(vec![6i64, 1], [2]).unwrap();
        let run = |r: Result<Tensor>| r.unwrap().to_vec::<i64>().unwrap();
        assert_eq!(run(a.bitwise_and(&b)), [4, 0, 2, 0]);
        assert_eq!(run(a.bitwise_or(&b)), [14, 13, 14, 11]);
        assert_eq!(run(a.bitwise_xor(&b)), [10, 13, 12, 11]);
        assert_eq!(run(b.bitwise_not()), [-7, -2]);
        let e = a
            .bitwise_or(&Tensor::scalar(1.0f32))
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("bitwise_or") && e.contains("integers or bool"),
            "{e}"
        );
        assert!(Tensor::zeros([2], DType::F64).bitwise_not().is_err());
    }
}
