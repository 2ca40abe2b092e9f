//! Sums of losses and metrics with the number of targets they are about.
//!
//! Kept in f64 and stored as bits: a resumed run adds to the very numbers that it left, NaN
//! included. Neighbours: `update.rs` and `evaluate.rs` add, `state.rs` stores.

use serde::{Deserialize, Serialize};

/// Sums over targets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Totals {
    loss: Bits,
    targets: u64,
    rows: u64,
    sums: Vec<(String, Bits)>,
}

/// An f64 that survives JSON unchanged.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub(super) struct Bits(pub f64);

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl From<u64> for Bits {
    fn from(bits: u64) -> Self {
        Self(f64::from_bits(bits))
    }
}

impl From<Bits> for u64 {
    fn from(value: Bits) -> Self {
        value.0.to_bits()
    }
}

impl Totals {
    /// Adds a batch of `rows` rows with `targets` targets.
    pub fn add(&mut self, loss: f64, sums: &[(&'static str, f64)], targets: usize, rows: usize) {
        self.loss.0 += loss;
        self.targets += targets as u64;
        self.rows += rows as u64;
        for (name, value) in sums {
            self.slot(name).0 += value;
        }
    }

    /// Adds other totals.
    pub fn absorb(&mut self, other: &Self) {
        self.loss.0 += other.loss.0;
        self.targets += other.targets;
        self.rows += other.rows;
        for (name, value) in &other.sums {
            self.slot(name).0 += value.0;
        }
    }

    fn slot(&mut self, name: &str) -> &mut Bits {
        let at = match self.sums.iter().position(|(known, _)| known == name) {
            Some(at) => at,
            None => {
                self.sums.push((name.to_string(), Bits(0.0)));
                self.sums.len() - 1
            }
        };
        &mut self.sums[at].1
    }

    /// Targets so far.
    pub fn targets(&self) -> u64 {
        self.targets
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The mean loss over the targets.
    pub fn loss(&self) -> f64 {
        self.loss.0 / self.targets as f64
    }

    /// The means of the metrics.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let mean = |sum: f64| sum / self.targets as f64;
        self.sums
            .iter()
            .map(|(name, sum)| (name.clone(), mean(sum.0)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storing_keeps_every_bit() {
        for loss in [0.1 + 0.2, f64::NAN, f64::NEG_INFINITY, -0.0] {
            let mut totals = Totals::default();
            totals.add(loss, &[("accuracy", 1.0 / 3.0)], 3, 2);
            let text = serde_json::to_string(&totals).unwrap();
            assert_eq!(
                serde_json::from_str::<Totals>(&text).unwrap(),
                totals,
                "{text}"
            );
        }
    }

    #[test]
    fn means_weigh_by_targets() {
        let mut totals = Totals::default();
        totals.add(2.0, &[("accuracy", 1.0)], 1, 1);
        let mut more = Totals::default();
        more.add(3.0, &[("accuracy", 1.0)], 4, 2);
        totals.absorb(&more);
        assert_eq!(
            (totals.loss(), totals.targets(), totals.rows()),
            (1.0, 5, 3)
        );
        assert_eq!(totals.metrics(), [("accuracy".to_string(), 0.4)]);
    }
}
