//! The table of the library's own operations: kind, dtypes, derivative order, device.
//!
//! Nothing in it is declared by hand. Dtypes are those in which samples of the registry run,
//! the order is the highest at which the registry's tests differentiate them (they stop at 3),
//! devices are where the results lie.

use std::fmt::Write as _;

use entrenar_core::registry::{Entry, Gen, Sample, operations};
use entrenar_core::{DType, Result};

/// Samples tried per operation: an odd one (empty, at a tie) must not decide alone.
const SAMPLES: u64 = 12;

/// Columns of the table: the dtypes with derivatives. (Samples wrap operations in real functions, so
/// that they say nothing about integers.)
const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The operation's name.
    pub name: &'static str,
    /// Its derivative kind.
    pub kind: &'static str,
    /// The dtype of the first result for each of the dtypes that run, in the order of the columns.
    pub dtypes: [Option<DType>; 4],
    /// Highest derivative order that the tests check.
    pub order: u8,
    /// Where its results lie.
    pub devices: Vec<String>,
}

/// Tries one operation.
///
/// # Errors
/// When a sample cannot be drawn, or does not run in f64.
pub fn row(entry: &Entry) -> Result<Row> {
    let mut samples = Vec::new();
    let mut devices: Vec<String> = Vec::new();
    for stream in 0..SAMPLES {
        let sample = (entry.sample)(&mut Gen::new(0, stream))?;
        for output in (sample.function)(&sample.inputs)? {
            let device = output.device().to_string();
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        samples.push(sample);
    }
    Ok(Row {
        name: entry.name,
        kind: entry.kind,
        dtypes: DTYPES.map(|dtype| result_dtype(&samples, dtype)),
        order: samples.iter().map(|s| s.order).max().unwrap_or(0),
        devices,
    })
}

/// What all samples give in `dtype`; `None` when one does not run.
fn result_dtype(samples: &[Sample], dtype: DType) -> Option<DType> {
    let mut result = None;
    for sample in samples {
        let outputs = (sample.function)(&Gen::cast_inputs(sample, dtype)).ok()?;
        result = outputs.first().map(|t| t.dtype());
    }
    result
}

/// The table of all operations.
///
/// # Errors
/// As [`row`].
pub fn markdown() -> Result<String> {
    let mut text = String::from("| operation | kind |");
    for dtype in DTYPES {
        let _ = write!(text, " {dtype} |");
    }
    text.push_str(" order | device |\n|---|---|");
    text.push_str(&"---|".repeat(DTYPES.len() + 2));
    text.push('\n');
    for entry in operations() {
        let row = row(&entry)?;
        let _ = write!(text, "| {} | {} |", row.name, row.kind);
        for (dtype, result) in DTYPES.iter().zip(row.dtypes) {
            let _ = match result {
                None => write!(text, " – |"),
                Some(same) if same == *dtype => write!(text, " yes |"),
                Some(other) => write!(text, " {other} |"),
            };
        }
        let _ = writeln!(text, " {} | {} |", row.order, row.devices.join(", "));
    }
    text.push_str(
        "\nA dtype counts when every tried sample runs in it; where the result has another dtype, \
         that is named. The order is the highest that the tests differentiate; they stop at 3.\n",
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_operations_do() {
        let all = operations();
        let find = |name: &str| row(all.iter().find(|e| e.name == name).unwrap()).unwrap();
        let sin = find("sin");
        assert_eq!((sin.kind, sin.order), ("pointwise", 3));
        assert_eq!(sin.dtypes, DTYPES.map(Some));
        assert_eq!(sin.devices, ["cpu"]);
        let eq = find("eq");
        assert_eq!((eq.order, eq.dtypes[0]), (0, Some(DType::Bool)));
    }

    #[test]
    fn every_operation_has_a_row_of_the_same_width() {
        let table = markdown().unwrap();
        let rows: Vec<&str> = table.lines().filter(|l| l.starts_with('|')).collect();
        assert_eq!(rows.len(), operations().len() + 2);
        for row in rows {
            assert_eq!(row.matches('|').count(), DTYPES.len() + 5, "{row}");
        }
    }
}
