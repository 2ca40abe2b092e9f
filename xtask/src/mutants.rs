//! The share of mutants that the tests caught, from cargo-mutants' `outcomes.json`.
//!
//! Rate = (caught + timed out) / (caught + timed out + missed). A mutant that
//! does not compile says nothing about the tests and is not counted; one that
//! hangs the tests was noticed by them. Called by `make mutants`.

use serde_json::Value;

/// How many mutants ended in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// A test failed: what we want.
    pub caught: u64,
    /// The tests never ended.
    pub timeout: u64,
    /// Every test passed although the code was wrong.
    pub missed: u64,
    /// Did not compile.
    pub unviable: u64,
}

/// Whether the rate is high enough, and the line to print about it.
#[derive(Debug)]
pub struct Verdict {
    /// The rate reaches the minimum.
    pub enough: bool,
    /// One line with the rate and the counts behind it.
    pub message: String,
}

impl Tally {
    /// Counts the outcomes of a report; the baseline run (no mutation) is left out.
    pub fn from_json(text: &str) -> Result<Tally, String> {
        let report: Value =
            serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let outcomes = report
            .get("outcomes")
            .and_then(Value::as_array)
            .ok_or("no list `outcomes`: not a report of cargo-mutants")?;
        let mut tally = Tally {
            caught: 0,
            timeout: 0,
            missed: 0,
            unviable: 0,
        };
        for outcome in outcomes {
            if outcome.get("scenario").and_then(Value::as_str) == Some("Baseline") {
                continue;
            }
            let summary = outcome
                .get("summary")
                .and_then(Value::as_str)
                .unwrap_or("nothing");
            match summary {
                "CaughtMutant" => tally.caught += 1,
                "Timeout" => tally.timeout += 1,
                "MissedMutant" => tally.missed += 1,
                "Unviable" => tally.unviable += 1,
                other => return Err(format!("a mutant ended in `{other}`, which is no verdict")),
            }
        }
        Ok(tally)
    }

    /// Compares the rate with `minimum` percent. No counted mutant at all is an
    /// error: a rate of nothing must not read as a pass.
    pub fn verdict(&self, minimum: f64) -> Result<Verdict, String> {
        let noticed = self.caught + self.timeout;
        let counted = noticed + self.missed;
        if counted == 0 {
            return Err(format!(
                "no mutant was tested ({} did not compile)",
                self.unviable
            ));
        }
        let rate = 100.0 * noticed as f64 / counted as f64;
        Ok(Verdict {
            enough: rate >= minimum,
            message: format!(
                "mutants: {rate:.1} % caught (at least {minimum} % wanted): {} caught, {} timed out, \
                 {} missed; {} did not compile",
                self.caught, self.timeout, self.missed, self.unviable
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(summaries: &[&str]) -> String {
        let mut outcomes = vec![r#"{"scenario":"Baseline","summary":"Success"}"#.to_string()];
        for summary in summaries {
            outcomes.push(format!(
                r#"{{"scenario":{{"Mutant":{{}}}},"summary":"{summary}"}}"#
            ));
        }
        format!(r#"{{"outcomes":[{}]}}"#, outcomes.join(","))
    }

    #[test]
    fn counts_and_leaves_out_the_baseline() {
        let text = report(&[
            "CaughtMutant",
            "CaughtMutant",
            "MissedMutant",
            "Timeout",
            "Unviable",
        ]);
        let tally = Tally::from_json(&text).unwrap();
        assert_eq!(
            tally,
            Tally {
                caught: 2,
                timeout: 1,
                missed: 1,
                unviable: 1
            }
        );
    }

    #[test]
    fn the_rate_decides() {
        let tally = Tally {
            caught: 3,
            timeout: 1,
            missed: 1,
            unviable: 7,
        };
        assert!(tally.verdict(80.0).unwrap().enough);
        assert!(!tally.verdict(80.1).unwrap().enough);
        assert!(tally.verdict(80.0).unwrap().message.contains("80.0 %"));
    }

    #[test]
    fn nothing_tested_is_not_a_pass() {
        let tally = Tally::from_json(&report(&["Unviable"])).unwrap();
        assert!(tally.verdict(0.0).is_err());
    }

    #[test]
    fn a_damaged_report_is_refused() {
        assert!(Tally::from_json("{").is_err());
        assert!(Tally::from_json("{}").is_err());
        assert!(Tally::from_json(&report(&["Failure"])).is_err());
        assert!(Tally::from_json(r#"{"outcomes":[{"scenario":{}}]}"#).is_err());
    }
}
