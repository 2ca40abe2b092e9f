//! First-order linear recurrences along one dimension: h\[i\] = a\[i\]·h\[i-1\] + b\[i\], h\[-1\] = 0.
//!
//! Running sums are the case a = 1. Derivatives of running products are recurrences of this kind,
//! which is how they stay exact where a factor is 0. Every slice is walked in order by one thread;
//! 16-bit floats are computed in f32 and rounded once.

use entrenar_base::{Array, Error, Result};

use crate::kit::{self, with_real};
use crate::team;

/// The recurrence h\[i\] = a\[i\]·h\[i-1\] + b\[i\] along `dim`; shapes and dtypes of `a`, `b` and the
/// result are equal.
///
/// # Errors
/// When shapes or dtypes differ, the dtype is no float, or `dim` does not exist.
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![5.0f32, 2.0, 0.5], [3])?;
/// let b = Array::from_vec(vec![1.0f32, 1.0, 1.0], [3])?;
/// let h = entrenar_cpu::recurrence::linear_recurrence(&a, &b, 0)?;
/// assert_eq!(h.to_vec::<f32>()?, [1.0, 3.0, 2.5]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn linear_recurrence(a: &Array, b: &Array, dim: usize) -> Result<Array> {
    const OP: &str = "linear_recurrence";
    kit::same_dtype(OP, a, b)?;
    kit::check_dim(OP, a, dim)?;
    if a.shape() != b.shape() {
        return Err(Error::shape(
            OP,
            "equal shapes",
            format!("{} and {}", a.shape(), b.shape()),
        ));
    }
    let compute = kit::compute_dtype(OP, a.dtype())?;
    let (outer, n, inner) = kit::around(a.dims(), dim);
    let (dense_a, dense_b) = (kit::dense(a, compute)?, kit::dense(b, compute)?);
    let out = with_real!(compute, T => {
        let (a, b) = (dense_a.as_slice::<T>()?, dense_b.as_slice::<T>()?);
        Array::build(dense_a.shape(), |out: &mut [T]| {
            let size = n * inner;
            if size == 0 {
                return;
            }
            team::split_mut(out, outer, size as f64, |range, out| {
                for (slice, out) in range.zip(out.chunks_exact_mut(size)) {
                    let at = slice * size..(slice + 1) * size;
                    let (a, b) = (&a[at.clone()], &b[at]);
                    out[..inner].copy_from_slice(&b[..inner]);
                    for i in inner..size {
                        out[i] = a[i] * out[i - inner] + b[i];
                    }
                }
            });
        })
    });
    kit::cast(&out, a.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{scattered, strided};
    use entrenar_base::DType;
    use proptest::prelude::*;

    proptest! {
        /// Against the definition, element by element, along every dimension.
        #[test]
        fn follows_its_definition(a in strided(), seed in any::<u16>()) {
            let a = a.cast(DType::F64);
            let b = scattered(&a, seed).cast(DType::F64);
            for dim in 0..a.rank().max(1) {
                let h = linear_recurrence(&a, &b, dim).unwrap().to_f64_vec();
                let (_, n, inner) = kit::around(a.dims(), dim);
                let (x, y) = (a.to_f64_vec(), b.to_f64_vec());
                for i in 0..h.len() {
                    let before = if i / inner % n == 0 { 0.0 } else { x[i] * h[i - inner] };
                    prop_assert_eq!(h[i], before + y[i]);
                }
            }
        }
    }

    #[test]
    fn operands_must_agree() {
        let a = Array::zeros([2], DType::F32);
        assert!(linear_recurrence(&a, &Array::zeros([3], DType::F32), 0).is_err());
        assert!(linear_recurrence(&a, &Array::zeros([2], DType::F64), 0).is_err());
        assert!(linear_recurrence(&a, &a, 1).is_err());
        let i = Array::zeros([2], DType::I64);
        assert!(linear_recurrence(&i, &i, 0).is_err());
    }
}
