//! Counting outcomes and printing them.
//!
//! One row per operation with passed, failed and not supported for each kind; then what is not
//! supported, with reasons; then the failures; then one closing line that counts cases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use entrenar_core::DType;

use crate::replay::{Kind, Outcome, Replayed};
use crate::suite::Case;
use crate::tolerances::{rule, wider};

/// Passed, failed, not supported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Equal within tolerance.
    pub passed: usize,
    /// Wrong.
    pub failed: usize,
    /// Not supported.
    pub skipped: usize,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Absent => {}
            Outcome::Passed(_) => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Tally::default() {
            return f.pad("-");
        }
        f.pad(&format!("{}/{}/{}", self.passed, self.failed, self.skipped))
    }
}

/// Everything a replay found.
#[derive(Default)]
pub struct Report {
    dtype: DType,
    /// Whether to print the largest errors.
    errors: bool,
    rows: Vec<Row>,
    row_of: BTreeMap<String, usize>,
    /// Operation and reason, with the number of cases.
    unsupported: BTreeMap<(String, String), usize>,
    /// Operation, kind and reason of tolerances that are wider than usual.
    wider: BTreeSet<String>,
    failures: Vec<String>,
    cases: Tally,
}

#[derive(Default)]
struct Row {
    label: String,
    tallies: [Tally; 4],
    /// Largest relative errors of what passed.
    errors: [f64; 4],
}

impl Report {
    /// An empty report of a replay in `dtype`, which prints the largest relative errors if asked.
    pub fn new(dtype: DType, errors: bool) -> Report {
        Report {
            dtype,
            errors,
            ..Default::default()
        }
    }

    /// Adds the outcomes of one case.
    pub fn add(&mut self, case: &Case, replayed: &Replayed) {
        let label = case.label();
        let next = self.rows.len();
        let row = *self.row_of.entry(label.clone()).or_insert(next);
        if row == next {
            self.rows.push(Row {
                label: label.clone(),
                ..Default::default()
            });
        }
        let Row {
            tallies, errors, ..
        } = &mut self.rows[row];
        for (i, (kind, outcome)) in Kind::ALL.iter().zip(&replayed.outcomes).enumerate() {
            tallies[i].count(outcome);
            if let Outcome::Passed(error) = outcome {
                errors[i] = errors[i].max(*error);
            }
            if let (Outcome::Passed(_), Some(w)) = (outcome, wider(&case.op, *kind, self.dtype)) {
                let (kind, units) = (kind.name(), w.units);
                self.wider
                    .insert(format!("{label} {kind}: {units} units, {}", w.reason));
            }
            if let Outcome::Failed(why) = outcome {
                let name = kind.name();
                let sample = case.sample;
                self.failures
                    .push(format!("{label} sample {sample} {name}: {why}"));
            }
        }
        let verdict = replayed.verdict();
        self.cases.count(verdict);
        let mut reasons: Vec<String> = Vec::new();
        for (kind, outcome) in Kind::ALL.iter().zip(&replayed.outcomes) {
            if let Outcome::Skipped(why) = outcome {
                let partly = !matches!(replayed.outcomes[0], Outcome::Skipped(_));
                let text = match partly {
                    true => format!("{why} ({} only)", kind.name()),
                    false => why.clone(),
                };
                if !reasons.contains(&text) {
                    reasons.push(text);
                }
            }
        }
        for text in reasons {
            *self.unsupported.entry((label.clone(), text)).or_insert(0) += 1;
        }
    }

    /// Cases passed, failed and skipped.
    pub fn cases(&self) -> Tally {
        self.cases
    }

    /// Totals of one kind.
    pub fn total(&self, kind: Kind) -> Tally {
        let at = Kind::ALL.iter().position(|k| *k == kind).unwrap_or(0);
        self.rows
            .iter()
            .map(|row| row.tallies[at])
            .fold(Tally::default(), |sum, t| Tally {
                passed: sum.passed + t.passed,
                failed: sum.failed + t.failed,
                skipped: sum.skipped + t.skipped,
            })
    }

    /// One line per failure.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// One line per operation and reason.
    pub fn unsupported(&self) -> impl Iterator<Item = String> {
        self.unsupported.iter().map(|((op, reason), count)| {
            let cases = if *count == 1 { "case" } else { "cases" };
            format!("{op}: {reason} ({count} {cases})")
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .rows
            .iter()
            .map(|row| row.label.len())
            .max()
            .unwrap_or(0)
            .max(40);
        let mut line = |label: &str, cells: [String; 4]| {
            let cells = cells.map(|c| format!("{c:>12}"));
            writeln!(f, "{label:<width$}{}", cells.concat())
        };
        line(
            "operation (passed/failed/not supported)",
            Kind::ALL.map(|k| k.name().to_string()),
        )?;
        for row in &self.rows {
            line(&row.label, row.tallies.map(|t| t.to_string()))?;
            if self.errors {
                line("    largest error", row.errors.map(|e| format!("{e:.1e}")))?;
            }
        }
        line("total", Kind::ALL.map(|k| self.total(k).to_string()))?;
        if !self.unsupported.is_empty() {
            writeln!(f, "\nnot supported:")?;
            for text in self.unsupported() {
                writeln!(f, "  {text}")?;
            }
        }
        if let Some(rule) = rule(self.dtype) {
            writeln!(
                f,
                "\ntolerance in units of {:.1e}: {} forward, {} vjp and jvp, {} second",
                rule.unit, rule.forward, rule.first, rule.second
            )?;
        }
        if !self.wider.is_empty() {
            writeln!(f, "\nwider tolerance:")?;
            for text in &self.wider {
                writeln!(f, "  {text}")?;
            }
        }
        if !self.failures.is_empty() {
            writeln!(f, "\nfailed:")?;
            for text in &self.failures {
                writeln!(f, "  {text}")?;
            }
        }
        let Tally {
            passed,
            failed,
            skipped,
        } = self.cases;
        writeln!(f, "\n{passed} passed, {failed} failed, {skipped} skipped")
    }
}
