//! Which samples make up batch `position` of epoch `epoch`: a pure function.
//!
//! Everything random comes from a counter-based generator keyed by the seed,
//! with the epoch or batch as stream, so there is no state to save beyond
//! [`LoaderState`] and no history to replay on resume.
//! Neighbour: `loader.rs` turns plans into batches.

use entrenar_base::Philox;
use serde::{Deserialize, Serialize};

/// In what order samples come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As numbered: for evaluation.
    Sequential,
    /// Every sample once an epoch, in an order chosen by seed and epoch.
    Shuffled,
    /// Drawn with replacement, chosen by seed and batch: for windows of text.
    Random,
}

/// Where a loader stands: before batch `position` of epoch `epoch`, both from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LoaderState {
    /// Full passes behind.
    pub epoch: u64,
    /// Batches of the present pass behind.
    pub position: u64,
}

/// The arithmetic of one loader's batches.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub order: Order,
    pub seed: u64,
    pub batch_size: usize,
    /// Samples of equal shape.
    pub uniform: usize,
    /// Samples at the end, each a batch of its own.
    pub tail: usize,
    /// Draws that count as an epoch, for random order.
    pub draws: usize,
    pub drop_last: bool,
}

// Shuffling and drawing must not share numbers: the upper bits of the stream tell them apart.
const SHUFFLE_STREAMS: u64 = 1 << 62;
const DRAW_STREAMS: u64 = 1 << 63;

impl Plan {
    /// Batches of equal-shaped samples in an epoch.
    fn uniform_batches(&self) -> usize {
        match self.order {
            // A draw with replacement is always full.
            Order::Random => self.draws.div_ceil(self.batch_size),
            _ if self.drop_last => self.uniform / self.batch_size,
            _ => self.uniform.div_ceil(self.batch_size),
        }
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> u64 {
        let tail = if self.drop_last || self.order == Order::Random {
            0
        } else {
            self.tail
        };
        (self.uniform_batches() + tail) as u64
    }

    /// The samples of a batch. `permutation` caches the order of the epoch it was asked for last.
    pub fn samples(&self, at: LoaderState, permutation: &mut Permutation) -> Vec<usize> {
        let position = at.position as usize;
        if self.order == Order::Random {
            let batch = at.epoch * self.batches() + at.position;
            let stream = Philox::new(self.seed, DRAW_STREAMS | batch);
            return (0..self.batch_size as u64)
                .map(|row| stream.below(row, self.uniform as u64) as usize)
                .collect();
        }
        if position >= self.uniform_batches() {
            return vec![self.uniform + position - self.uniform_batches()];
        }
        let start = position * self.batch_size;
        let end = (start + self.batch_size).min(self.uniform);
        match self.order {
            Order::Shuffled => permutation.of_epoch(self, at.epoch)[start..end].to_vec(),
            Order::Sequential | Order::Random => (start..end).collect(),
        }
    }

    /// The state after `at`.
    pub fn after(&self, at: LoaderState) -> LoaderState {
        if at.position + 1 < self.batches() {
            LoaderState {
                position: at.position + 1,
                ..at
            }
        } else {
            LoaderState {
                epoch: at.epoch + 1,
                position: 0,
            }
        }
    }
}

/// The sample order of one epoch, kept until another epoch is asked for.
#[derive(Default)]
pub(super) struct Permutation {
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl Permutation {
    fn of_epoch(&mut self, plan: &Plan, epoch: u64) -> &[usize] {
        if self.epoch != Some(epoch) {
            self.order = Philox::new(plan.seed, SHUFFLE_STREAMS | epoch).permutation(plan.uniform);
            self.epoch = Some(epoch);
        }
        &self.order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn orders() -> impl Strategy<Value = Order> {
        prop_oneof![Just(Order::Sequential), Just(Order::Shuffled)]
    }

    proptest! {
        #[test]
        fn an_epoch_is_a_permutation(
            order in orders(), seed: u64, epoch in 0u64..5, batch_size in 1usize..9,
            uniform in 0usize..70, tail in 0usize..3, drop_last: bool,
        ) {
            let plan = Plan { order, seed, batch_size, uniform, tail, draws: uniform, drop_last };
            let mut cache = Permutation::default();
            let batches: Vec<Vec<usize>> = (0..plan.batches())
                .map(|position| plan.samples(LoaderState { epoch, position }, &mut cache))
                .collect();
            prop_assert!(batches.iter().all(|batch| !batch.is_empty() && batch.len() <= batch_size));
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            if drop_last {
                prop_assert_eq!(seen.len(), uniform / batch_size * batch_size);
                seen.dedup();
                prop_assert_eq!(seen.len(), uniform / batch_size * batch_size);
            } else {
                prop_assert!(seen.into_iter().eq(0..uniform + tail));
            }
        }

        #[test]
        fn a_batch_needs_no_history(seed: u64, epoch in 0u64..4, position in 0u64..6, random: bool) {
            let order = if random { Order::Random } else { Order::Shuffled };
            let plan = Plan { order, seed, batch_size: 3, uniform: 20, tail: 0, draws: 20, drop_last: false };
            let at = LoaderState { epoch, position };
            let mut used = Permutation::default();
            plan.samples(LoaderState { epoch: 9, position: 1 }, &mut used);
            prop_assert_eq!(plan.samples(at, &mut used), plan.samples(at, &mut Permutation::default()));
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let plan = Plan {
            order: Order::Shuffled,
            seed: 1,
            batch_size: 50,
            uniform: 50,
            tail: 0,
            draws: 50,
            drop_last: false,
        };
        let order = |seed, epoch| {
            Plan {
                seed,
                ..plan.clone()
            }
            .samples(
                LoaderState { epoch, position: 0 },
                &mut Permutation::default(),
            )
        };
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn draws_cover_the_range_evenly() {
        let plan = Plan {
            order: Order::Random,
            seed: 3,
            batch_size: 10,
            uniform: 10,
            tail: 0,
            draws: 10_000,
            drop_last: false,
        };
        let mut counts = [0u32; 10];
        for position in 0..plan.batches() {
            for sample in plan.samples(
                LoaderState { epoch: 0, position },
                &mut Permutation::default(),
            ) {
                counts[sample] += 1;
            }
        }
        // 10,000 draws: 1,000 each with deviation 30.
        assert!(
            counts.iter().all(|&count| (850..1150).contains(&count)),
            "{counts:?}"
        );
    }

    #[test]
    fn the_state_crosses_epochs() {
        let plan = Plan {
            order: Order::Sequential,
            seed: 0,
            batch_size: 2,
            uniform: 3,
            tail: 0,
            draws: 3,
            drop_last: false,
        };
        let states: Vec<_> =
            std::iter::successors(Some(LoaderState::default()), |&at| Some(plan.after(at)))
                .take(4)
                .map(|state| (state.epoch, state.position))
                .collect();
        assert_eq!(states, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }
}
