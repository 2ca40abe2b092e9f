//! `to_dtype`: conversion of element types. Linear between floats; nothing flows through integers.

use entrenar_base::{Array, DType, Result};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Linear, Op, Rule, Sink, VjpCx};
use crate::registry::{Entry, Sample};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cast {
    to: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "to_dtype"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        Ok(one(Aval::new(inputs[0].shape.clone(), self.to)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::cast::cast(inputs[0], self.to)?))
    }
    fn rule(&self) -> Rule<'_> {
        if self.to.is_float() {
            Rule::Linear(self)
        } else {
            Rule::Zero
        }
    }
}

impl Linear for Cast {
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        match cx.cotangent(0) {
            Some(g) => sink.add(0, g.to_dtype(cx.aval(0).dtype)?),
            None => Ok(()),
        }
    }
}

impl Tensor {
    /// The same values in another element type; itself when nothing changes.
    ///
    /// Floats to integers truncate towards zero, anything to bool is `!= 0`, and 16-bit floats
    /// round to nearest even. Gradients come back in the original dtype.
    ///
    /// # Errors
    /// Never for the dtypes of this version.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// let t = Tensor::from_vec(vec![1.7f32, -1.7], [2])?;
    /// assert_eq!(t.to_dtype(DType::I64)?.to_vec::<i64>()?, [1, -1]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        apply1(&handle(Cast { to: dtype }), &[self])
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "to_dtype",
    kind: "linear",
    sample: |g| {
        let shape = g.shape(0..=3);
        let x = g.tensor(shape, -2.0, 2.0);
        // f64 to f64 is the identity; through i64 nothing flows.
        Ok(Sample::one(vec![x], |t| {
            t[0].add(&t[0].to_dtype(DType::I64)?.to_dtype(t[0].dtype())?)
        })
        .order(0))
    },
}];
