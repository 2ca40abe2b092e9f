//! Files of times: one JSON object with the machine and a row per subject.
//!
//! Times of different machines or numbers of threads do not compare; the report says so when the
//! file was written elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Times;

/// What one run measured.
pub struct Record {
    machine: Value,
    rows: BTreeMap<String, Times>,
}

/// One time that changed.
pub struct Change {
    /// The subject.
    pub name: String,
    /// `forward` or `step`.
    what: &'static str,
    before: f64,
    now: f64,
}

/// The outcome of a comparison.
pub struct Comparison {
    /// What to print.
    pub text: String,
    /// Whether anything is slower than the margin allows, or gone.
    pub worse: bool,
}

impl Record {
    /// An empty record of this machine.
    pub fn here() -> Record {
        Record {
            machine: machine(),
            rows: BTreeMap::new(),
        }
    }

    /// Adds a row, or keeps the smaller times of one that is there.
    pub fn insert(&mut self, name: &str, times: Times) {
        let row = self.rows.entry(name.to_string()).or_insert(times);
        *row = row.min(times);
    }

    /// The rows to print where nothing is compared.
    pub fn lines(&self) -> impl Iterator<Item = Value> {
        self.rows.iter().map(|(name, times)| {
            let mut line = json!({"op": name});
            if let (Some(line), Value::Object(row)) = (line.as_object_mut(), row(times)) {
                line.extend(row);
            }
            line
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Record, String> {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let file: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let rows = file["rows"]
            .as_object()
            .ok_or_else(|| wrong("no `rows`: not written by `bench ops --record`".into()))?;
        let rows = rows.iter().map(|(name, row)| {
            let forward = row["forward_s"].as_f64();
            let forward = forward.ok_or_else(|| wrong(format!("`{name}` has no forward_s")))?;
            let step = row["step_s"].as_f64();
            Ok((name.clone(), Times { forward, step }))
        });
        Ok(Record {
            machine: file["machine"].clone(),
            rows: rows.collect::<Result<_, String>>()?,
        })
    }

    /// Writes a file.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let rows: Map<String, Value> = self.rows.iter().map(|(n, t)| (n.clone(), row(t))).collect();
        let file = json!({"machine": self.machine, "rows": rows});
        let text = format!("{file:#}\n");
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// What is slower in `now` by more than `margin`.
    pub fn slower(&self, now: &Record, margin: f64) -> Vec<Change> {
        let mut changes = self.changes(now);
        changes.retain(|c| c.now > c.before * (1.0 + margin));
        changes
    }

    fn changes(&self, now: &Record) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, before) in &self.rows {
            let Some(now) = now.rows.get(name) else {
                continue;
            };
            let steps = before.step.zip(now.step).map(|(b, n)| ("step", b, n));
            let pairs = [("forward", before.forward, now.forward)];
            for (what, before, now) in pairs.into_iter().chain(steps) {
                changes.push(Change {
                    name: name.clone(),
                    what,
                    before,
                    now,
                });
            }
        }
        changes
    }

    /// The report of `now` against this record; rows that `only` leaves out are not missed.
    pub fn compare(&self, now: &Record, margin: f64, only: Option<&str>) -> Comparison {
        let mut text = String::new();
        if self.machine != now.machine {
            let _ = writeln!(
                text,
                "note: recorded on {}, this is {}: times do not compare well",
                self.machine, now.machine
            );
        }
        let expected = |name: &&String| only.is_none_or(|part| name.contains(part));
        let gone: Vec<&String> = self
            .rows
            .keys()
            .filter(expected)
            .filter(|name| !now.rows.contains_key(*name))
            .collect();
        for name in &gone {
            let _ = writeln!(text, "gone     {name}: record anew");
        }
        let mut changes = self.changes(now);
        changes.sort_by(|a, b| (b.now / b.before).total_cmp(&(a.now / a.before)));
        let (mut slower, mut faster) = (0, 0);
        for c in &changes {
            let ratio = c.now / c.before;
            let word = if ratio > 1.0 + margin {
                slower += 1;
                "SLOWER  "
            } else if ratio < 1.0 / (1.0 + margin) {
                faster += 1;
                "faster  "
            } else {
                continue;
            };
            let _ = writeln!(
                text,
                "{word} {} {}: {} -> {} ({ratio:.2} times)",
                c.name,
                c.what,
                micros(c.before),
                micros(c.now)
            );
        }
        let fresh = now
            .rows
            .keys()
            .filter(|n| !self.rows.contains_key(*n))
            .count();
        let _ = writeln!(
            text,
            "{} times compared: {slower} slower and {faster} faster by more than {:.0} %, {} gone, {fresh} new",
            changes.len(),
            margin * 100.0,
            gone.len(),
        );
        Comparison {
            text,
            worse: slower > 0 || !gone.is_empty(),
        }
    }
}

fn row(times: &Times) -> Value {
    let round = |s: f64| (s * 1e10).round() / 1e10;
    json!({"forward_s": round(times.forward), "step_s": times.step.map(round)})
}

fn micros(seconds: f64) -> String {
    format!("{:.3} µs", seconds * 1e6)
}

/// What decides about times besides the program.
fn machine() -> Value {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name"));
    let model = model
        .and_then(|l| l.split_once(':'))
        .map_or("", |(_, m)| m.trim());
    json!({
        "processor": model,
        "threads": entrenar_cpu::team::threads(),
        "simd": format!("{:?}", entrenar_cpu::simd::level()).to_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rows: &[(&str, f64, Option<f64>)]) -> Record {
        let mut record = Record::here();
        for &(name, forward, step) in rows {
            record.insert(name, Times { forward, step });
        }
        record
    }

    #[test]
    fn a_slower_row_is_found_and_a_margin_is_kept() {
        let before = record(&[("a", 1e-6, Some(2e-6)), ("b", 1e-6, None)]);
        let same = record(&[("a", 1.09e-6, Some(2e-6)), ("b", 0.5e-6, None)]);
        let report = before.compare(&same, 0.1, None);
        assert!(!report.worse, "{}", report.text);
        assert!(
            report
                .text
                .contains("faster   b forward: 1.000 µs -> 0.500 µs")
        );
        let slow = record(&[("a", 1e-6, Some(2.3e-6)), ("b", 1e-6, None)]);
        let report = before.compare(&slow, 0.1, None);
        assert!(report.worse);
        assert!(report.text.contains("SLOWER   a step"), "{}", report.text);
        assert_eq!(before.slower(&slow, 0.1).len(), 1);
        assert!(!before.compare(&slow, 0.2, None).worse);
    }

    #[test]
    fn a_row_that_is_gone_counts_unless_it_was_not_asked_for() {
        let before = record(&[("a", 1e-6, None), ("b", 1e-6, None)]);
        let now = record(&[("a", 1e-6, None)]);
        assert!(before.compare(&now, 0.1, None).worse);
        assert!(!before.compare(&now, 0.1, Some("a")).worse);
    }

    #[test]
    fn files_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ops.json");
        record(&[("a", 1.5e-6, Some(2e-6)), ("b", 1e-6, None)])
            .write(&path)
            .unwrap();
        let back = Record::read(&path).unwrap();
        assert_eq!(
            back.rows["a"],
            Times {
                forward: 1.5e-6,
                step: Some(2e-6)
            }
        );
        assert_eq!(back.rows["b"].step, None);
        assert_eq!(back.machine, machine());
        std::fs::write(&path, "{}").unwrap();
        let Err(message) = Record::read(&path) else {
            panic!("an empty object was read");
        };
        assert!(message.contains("ops.json: no `rows`"), "{message}");
        assert!(Record::read(&folder.path().join("absent")).is_err());
    }
}
