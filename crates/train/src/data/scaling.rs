//! How numeric inputs are scaled: `(x − mean) / std`.
//!
//! The numbers are given, measured on the training part, or 0 and 1.
//! Neighbours: `table_encoding.rs` scales columns, `image.rs` pixels.

use entrenar_base::{Error, Result};

use super::report::counted;

/// Where mean and deviation come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scaling {
    /// Values as they are (pixels: 0 to 1).
    #[default]
    None,
    /// Mean 0 and deviation 1 over the training part, for each numeric column or over all pixels.
    Standard,
    /// Given numbers; each list holds one for all, or one for each numeric column.
    Fixed {
        /// Subtracted.
        mean: Vec<f64>,
        /// Divided by; positive.
        std: Vec<f64>,
    },
}

impl Scaling {
    /// Checks the lengths of given lists and that they can scale: `count` things named `noun`.
    pub(super) fn check(&self, count: usize, noun: &str) -> Result<()> {
        let Self::Fixed { mean, std } = self else {
            return Ok(());
        };
        for (name, values) in [("mean", mean), ("std", std)] {
            if values.len() != 1 && values.len() != count {
                let expected = if count == 1 {
                    "1 number".to_string()
                } else {
                    format!("1 or {count} numbers")
                };
                return Err(Error::config(format!(
                    "expected {expected} as {name} for {}, got {}",
                    counted(count, noun),
                    values.len()
                )));
            }
            if let Some(value) = values
                .iter()
                .find(|&&value| !(value.is_finite() && (name == "mean" || value > 0.0)))
            {
                return Err(Error::config(format!(
                    "expected a finite mean and a positive std to scale by, got {value} as {name}"
                )));
            }
        }
        Ok(())
    }

    /// Mean and deviation of thing `index`; `measure` looks at the training part.
    pub(super) fn mean_std(
        &self,
        index: usize,
        measure: impl FnOnce() -> Result<(f64, f64)>,
    ) -> Result<(f64, f64)> {
        let pick = |values: &[f64]| values.get(index).or(values.first()).copied();
        match self {
            Self::None => Ok((0.0, 1.0)),
            Self::Standard => measure(),
            Self::Fixed { mean, std } => Ok((pick(mean).unwrap_or(0.0), pick(std).unwrap_or(1.0))),
        }
    }
}

/// What is wrong with a stored mean and deviation, if anything.
pub(super) fn check_scale(what: &str, mean: f64, std: f64) -> std::result::Result<(), String> {
    if mean.is_finite() && std.is_finite() && std > 0.0 {
        Ok(())
    } else {
        Err(format!(
            "{what}: mean {mean} and deviation {std} scale nothing"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_numbers_are_for_all_or_for_each() {
        let unused = || -> Result<(f64, f64)> { panic!("nothing is measured") };
        let one = Scaling::Fixed {
            mean: vec![3.0],
            std: vec![2.0, 4.0],
        };
        one.check(2, "column").unwrap();
        assert_eq!(one.mean_std(1, unused).unwrap(), (3.0, 4.0));
        assert_eq!(one.mean_std(0, unused).unwrap(), (3.0, 2.0));
        let message = one.check(3, "numeric column").unwrap_err().to_string();
        assert_eq!(
            message,
            "expected 1 or 3 numbers as std for 3 numeric columns, got 2"
        );
        for (mean, std) in [(f64::NAN, 1.0), (0.0, 0.0), (0.0, f64::INFINITY)] {
            assert!(
                Scaling::Fixed {
                    mean: vec![mean],
                    std: vec![std]
                }
                .check(1, "channel")
                .is_err()
            );
        }
    }
}
