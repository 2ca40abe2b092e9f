//! `int_matmul`: products of matrices of signed bytes with 32-bit sums, C\[i, j] = Σₚ A\[i, p]·B\[p, j],
//! as `torch._int_mm`: what a product of quantized values is before its scales are applied.
//!
//! Without derivative: integers have none.

use entrenar_base::{Array, DType, Error, Result};

use crate::Tensor;
use crate::apply::{apply1, handle, one};
use crate::op::{Aval, Few, Op, Rule};
use crate::registry::{Entry, Gen, Sample};

const NAME: &str = "int_matmul";

/// `[batch…, m, k] · [batch…, k, n]` of i8 with equal batch dimensions, in i32.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct IntMatMul;

impl Op for IntMatMul {
    fn name(&self) -> &'static str {
        NAME
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (a, b) = (inputs[0], inputs[1]);
        let got = || format!("{a:?} and {b:?}");
        if a.dtype != DType::I8 || b.dtype != DType::I8 {
            return Err(Error::dtype(NAME, "two operands of i8", got()));
        }
        let r = a.shape.rank();
        let fits = r >= 2
            && b.shape.rank() == r
            && a.shape[..r - 2] == b.shape[..r - 2]
            && a.shape[r - 1] == b.shape[r - 2];
        if !fits {
            return Err(Error::shape(
                NAME,
                "[batch…, m, k] and [batch…, k, n] with equal batch dimensions",
                got(),
            ));
        }
        let mut shape = a.shape.clone();
        shape.dims_mut()[r - 1] = b.shape[r - 1];
        Ok(one(Aval::new(shape, DType::I32)))
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        Ok(one(entrenar_cpu::matmul::int_matmul(inputs[0], inputs[1])?))
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Zero
    }
}

impl Tensor {
    /// The product of matrices of signed bytes, `[batch…, m, k] · [batch…, k, n]`, as i32: exact for
    /// an inner size up to 131,071 (beyond it, sums of extreme values may wrap). Transposed operands
    /// cost no copy. [`Tensor::matmul`] of i8 would keep the dtype, and wrap.
    ///
    /// # Errors
    /// When an operand is not i8, a rank is below 2, inner sizes differ or batch dimensions do.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let a = Tensor::from_vec(vec![-128i8, 127, 1, 2], [2, 2])?;
    /// assert_eq!(a.int_matmul(&a.t()?)?.to_vec::<i32>()?, [32513, 126, 126, 5]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn int_matmul(&self, other: &Tensor) -> Result<Tensor> {
        apply1(&handle(IntMatMul), &[self, other])
    }
}

/// Signed bytes, extremes among them, in rows or (seen through a transpose) in columns.
fn bytes(g: &mut Gen, batch: &[usize], rows: usize, columns: usize) -> Result<Tensor> {
    let turned = g.once_in(2);
    let (r, c) = if turned {
        (columns, rows)
    } else {
        (rows, columns)
    };
    let x = g.indices([batch, &[r, c]].concat(), 256);
    let x = x.add_scalar(-128.0)?.to_dtype(DType::I8)?;
    if turned { x.transpose(-1, -2) } else { Ok(x) }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: NAME,
    kind: "zero",
    sample: |g| {
        let (m, k, n) = (g.range(0, 5), g.range(0, 9), g.range(1, 5));
        let batch: &[usize] = if g.once_in(3) { &[2] } else { &[] };
        let inputs = vec![bytes(g, batch, m, k)?, bytes(g, batch, k, n)?];
        Ok(Sample::one(inputs, |t| t[0].int_matmul(&t[1])).order(0))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfits_name_what_came() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype);
        let a = zeros(&[2, 3], DType::I8);
        for (b, expected) in [
            (zeros(&[3, 2], DType::U8), "two operands of i8"),
            (zeros(&[2, 3], DType::I8), "[batch…, k, n]"),
            (zeros(&[1, 3, 2], DType::I8), "equal batch dimensions"),
            (zeros(&[3], DType::I8), "[batch…, k, n]"),
        ] {
            let e = a.int_matmul(&b).unwrap_err().to_string();
            assert!(e.contains(NAME) && e.contains(expected), "{e}");
        }
        assert_eq!(
            a.int_matmul(&zeros(&[3, 0], DType::I8)).unwrap().dims(),
            [2, 0]
        );
    }

    #[test]
    fn batches_multiply_one_by_one() {
        let a = Tensor::from_vec((0..12).map(|i| i as i8 - 6).collect(), [2, 2, 3]).unwrap();
        let c = a.int_matmul(&a.transpose(1, 2).unwrap()).unwrap();
        assert_eq!(c.to_vec::<i32>().unwrap(), [77, 32, 32, 14, 5, 14, 14, 50]);
    }
}
