//! Comparing a result with the recorded one.
//!
//! Shape and dtype must be equal. Integers and booleans must be equal. Floats may differ by the
//! tolerance times the largest finite expected magnitude, or by the rounding noise of the case;
//! NaN must meet NaN, and an infinity the same infinity.

use entrenar_core::Tensor;

/// Checks `got` against `expected`: `tolerance` is relative to the largest value, `noise` absolute.
///
/// # Errors
/// One line that says what differs, where and by how much.
pub fn compare(expected: &Tensor, got: &Tensor, tolerance: f64, noise: f64) -> Result<(), String> {
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
    let allowed = if expected.dtype().is_float() {
        (tolerance * largest(&want)).max(noise)
    } else {
        0.0
    };
    let mut worst: Option<(usize, f64)> = None;
    for (i, (&w, &h)) in want.iter().zip(&have).enumerate() {
        if w == h || (w.is_nan() && h.is_nan()) {
            continue;
        }
        let difference = if w.is_finite() && h.is_finite() {
            (w - h).abs()
        } else {
            f64::INFINITY
        };
        if difference > allowed && worst.is_none_or(|(_, d)| difference > d) {
            worst = Some((i, difference));
        }
    }
    match worst {
        None => Ok(()),
        Some((i, difference)) => Err(format!(
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

    fn row(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, [values.len()]).unwrap()
    }

    #[test]
    fn differences_are_relative_to_the_largest_value() {
        let want = row(&[1000.0, 0.0]);
        assert!(compare(&want, &row(&[1000.0, 9e-7]), 1e-9, 0.0).is_ok());
        assert!(compare(&want, &row(&[1000.0, 2e-6]), 1e-9, 0.0).is_err());
        assert!(compare(&row(&[1e-6]), &row(&[1.1e-6]), 1e-9, 0.0).is_err());
    }

    #[test]
    fn noise_counts_where_nothing_else_is_there() {
        assert!(compare(&row(&[0.0]), &row(&[1e-14]), 1e-9, 0.0).is_err());
        assert!(compare(&row(&[0.0]), &row(&[1e-14]), 1e-9, 2e-14).is_ok());
        assert!(compare(&row(&[1e-16]), &row(&[0.0]), 1e-9, 2e-14).is_ok());
        assert!(compare(&row(&[0.0]), &row(&[3e-14]), 1e-9, 2e-14).is_err());
    }

    #[test]
    fn special_values_must_be_the_same() {
        let inf = f64::INFINITY;
        assert!(compare(&row(&[f64::NAN, inf]), &row(&[f64::NAN, inf]), 1e-9, 0.0).is_ok());
        for wrong in [[0.0, inf], [f64::NAN, -inf], [f64::NAN, 1e300]] {
            assert!(compare(&row(&[f64::NAN, inf]), &row(&wrong), 1e-9, 0.0).is_err());
        }
        assert!(compare(&row(&[1.0]), &row(&[f64::NAN]), 1e-9, 0.0).is_err());
    }

    #[test]
    fn shape_dtype_and_integers_are_exact() {
        let a = row(&[1.0, 2.0]);
        assert!(compare(&a, &a.reshape([2, 1]).unwrap(), 1.0, 0.0).is_err());
        assert!(compare(&a, &a.to_dtype(DType::F32).unwrap(), 1.0, 0.0).is_err());
        let large = Tensor::from_vec(vec![1_000_000_000i64], [1]).unwrap();
        let off = Tensor::from_vec(vec![1_000_000_001i64], [1]).unwrap();
        assert!(compare(&large, &off, 1e-3, 0.0).is_err());
    }
}
