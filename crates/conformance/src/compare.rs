//! Comparing a result with the recorded one.
//!
//! Shape and dtype must be equal. Integers and booleans must be equal. Floats may differ by the
//! tolerance times the scale of the result: its largest finite expected magnitude, but no less
//! than a part of the largest number of the case. NaN must meet NaN, and an infinity the same
//! infinity.

use entrenar_core::Tensor;

use crate::tolerances::Tolerance;

/// Checks `got` against `expected`, where `magnitude` is the largest number of the case; gives the
/// largest difference relative to the scale of the result.
///
/// # Errors
/// One line that says what differs, where and by how much.
pub fn compare(
    expected: &Tensor,
    got: &Tensor,
    tolerance: Tolerance,
    magnitude: f64,
) -> Result<f64, String> {
    if expected.dims() != got.dims() {
        return Err(format!(
            "shape {} instead of {}",
            got.shape(),
            expected.shape()
        ));
    }
    if expected.dtype() != got.dtype() {
        return Err(format!(
            "dtype {} instead of {}",
            got.dtype(),
            expected.dtype()
        ));
    }
    let want = expected.array().to_f64_vec();
    let have = got.array().to_f64_vec();
    let scale = largest(&want).max(tolerance.floor * magnitude);
    let allowed = if expected.dtype().is_float() {
        tolerance.relative * scale
    } else {
        0.0
    };
    let mut worst = (0, 0.0);
    for (i, (&w, &h)) in want.iter().zip(&have).enumerate() {
        if w == h || (w.is_nan() && h.is_nan()) {
            continue;
        }
        let difference = if w.is_finite() && h.is_finite() {
            (w - h).abs()
        } else {
            f64::INFINITY
        };
        if difference > worst.1 {
            worst = (i, difference);
        }
    }
    match worst {
        (_, 0.0) => Ok(0.0),
        (_, difference) if difference <= allowed => Ok(difference / scale),
        (i, difference) => Err(format!(
            "element {i} of {}: {:e} instead of {:e} (off by {difference:.3e}, allowed {allowed:.3e})",
            expected.shape(),
            have[i],
            want[i],
        )),
    }
}

/// The largest finite magnitude; 0 when there is none.
pub fn largest(values: &[f64]) -> f64 {
    values
        .iter()
        .filter(|v| v.is_finite())
        .fold(0.0, |m, v| m.max(v.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_core::DType;

    /// With a floor under the scale that allows `noise` in a case whose largest number is 1.
    fn check(want: &Tensor, got: &Tensor, relative: f64, noise: f64) -> Result<f64, String> {
        let floor = noise / relative;
        compare(want, got, Tolerance { relative, floor }, 1.0)
    }

    fn row(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, [values.len()]).unwrap()
    }

    #[test]
    fn differences_are_relative_to_the_largest_value() {
        let want = row(&[1000.0, 0.0]);
        assert!(check(&want, &row(&[1000.0, 9e-7]), 1e-9, 0.0).is_ok());
        assert!(check(&want, &row(&[1000.0, 2e-6]), 1e-9, 0.0).is_err());
        assert!(check(&row(&[1e-6]), &row(&[1.1e-6]), 1e-9, 0.0).is_err());
    }

    #[test]
    fn noise_counts_where_nothing_else_is_there() {
        assert!(check(&row(&[0.0]), &row(&[1e-14]), 1e-9, 0.0).is_err());
        assert!(check(&row(&[0.0]), &row(&[1e-14]), 1e-9, 2e-14).is_ok());
        assert!(check(&row(&[1e-16]), &row(&[0.0]), 1e-9, 2e-14).is_ok());
        assert!(check(&row(&[0.0]), &row(&[3e-14]), 1e-9, 2e-14).is_err());
    }

    #[test]
    fn special_values_must_be_the_same() {
        let inf = f64::INFINITY;
        assert!(check(&row(&[f64::NAN, inf]), &row(&[f64::NAN, inf]), 1e-9, 0.0).is_ok());
        for wrong in [[0.0, inf], [f64::NAN, -inf], [f64::NAN, 1e300]] {
            assert!(check(&row(&[f64::NAN, inf]), &row(&wrong), 1e-9, 0.0).is_err());
        }
        assert!(check(&row(&[1.0]), &row(&[f64::NAN]), 1e-9, 0.0).is_err());
    }

    #[test]
    fn shape_dtype_and_integers_are_exact() {
        let a = row(&[1.0, 2.0]);
        assert!(check(&a, &a.reshape([2, 1]).unwrap(), 1.0, 0.0).is_err());
        assert!(check(&a, &a.to_dtype(DType::F32).unwrap(), 1.0, 0.0).is_err());
        let large = Tensor::from_vec(vec![1_000_000_000i64], [1]).unwrap();
        let off = Tensor::from_vec(vec![1_000_000_001i64], [1]).unwrap();
        assert!(check(&large, &off, 1e-3, 0.0).is_err());
    }
}
