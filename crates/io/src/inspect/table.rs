//! [`Inspection`] as text for people. Names from files are escaped: they cannot drive a terminal.

use std::fmt;

use super::Inspection;
use crate::names::Printable;

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.kind.name())?;
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(producer) = &self.producer {
            write!(f, ", written by {}", Printable(producer))?;
        }
        writeln!(f)?;
        self.checkpoints(f)?;
        for file in &self.files {
            write!(f, "  {}: {}", Printable(&file.name), size(file.bytes))?;
            if let Some(n) = file.tensors {
                write!(f, ", {n} tensor{}", if n == 1 { "" } else { "s" })?;
            }
            writeln!(f)?;
            for (key, value) in &file.metadata {
                writeln!(f, "    {} = {}", Printable(key), Printable(value))?;
            }
        }
        self.tensors(f)?;
        if !self.tensors.is_empty() {
            writeln!(
                f,
                "{} parameters, {} in tensors",
                grouped(self.parameters as u64),
                size(self.tensor_bytes as u64)
            )?;
        }
        if let Some(v) = &self.verification {
            write!(f, "{}", v.report)?;
            if !v.checksums {
                write!(f, "\n  no checksums: structure and values only")?;
            }
            for n in &v.non_finite {
                write!(
                    f,
                    "\n  {}: tensor `{}` has {} NaN and {} infinite elements",
                    Printable(&n.file),
                    Printable(&n.tensor),
                    n.nan,
                    n.infinite
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Inspection {
    fn checkpoints(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.checkpoints {
            write!(f, "  checkpoint step {}", row.step)?;
            if let Some(bytes) = row.bytes {
                write!(f, ": {}", size(bytes))?;
            }
            if row.best {
                write!(f, " (best)")?;
            }
            if let Some(problem) = &row.problem {
                write!(f, ": not usable: {}", Printable(problem))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn tensors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut width = 4;
        let mut shapes = 5;
        let rows: Vec<(String, String)> = self
            .tensors
            .iter()
            .map(|t| (Printable(&t.name).to_string(), format!("{:?}", t.shape)))
            .collect();
        for (name, shape) in &rows {
            width = width.max(name.chars().count());
            shapes = shapes.max(shape.len());
        }
        let mut file = None;
        for (row, (name, shape)) in self.tensors.iter().zip(&rows) {
            if file != Some(&row.file) {
                file = Some(&row.file);
                writeln!(
                    f,
                    "{:<width$}  {:<5}  {:<shapes$}  {:>14}  {}",
                    "name",
                    "dtype",
                    "shape",
                    "bytes",
                    Printable(&row.file)
                )?;
            }
            writeln!(
                f,
                "{name:<width$}  {:<5}  {shape:<shapes$}  {:>14}",
                row.dtype,
                grouped(row.bytes as u64)
            )?;
        }
        Ok(())
    }
}

/// Thousands separated by commas.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes, with the binary unit that gives a short number.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, one)| bytes >= *one) {
        Some((unit, one)) => format!("{:.1} {unit}", bytes as f64 / one as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
    }
}
