//! Best-fit decreasing: which samples share a row.
//!
//! Samples, longest first, each go to the fullest row that still has room (Johnson 1973; at most
//! 11/9 of the fewest rows possible, plus one). Rows are kept by the room left, so that a million
//! samples take seconds at most.

use std::collections::BTreeMap;

use entrenar_base::Philox;

// Packing must not follow the streams that shuffle and split.
const PACKING_STREAM: u64 = 0x7061_636b_696e;

/// Rows of indices into `lengths` whose lengths sum to at most `room`; samples of equal length come
/// in an order chosen by `seed`. A length above `room` gets a row of its own.
pub(super) fn best_fit_decreasing(lengths: &[usize], room: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut order = Philox::new(seed, PACKING_STREAM).permutation(lengths.len());
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // The rows that have exactly this much room left.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for sample in order {
        let length = lengths[sample];
        let fit = by_room.range(length..).next().map(|(&left, _)| left);
        let (row, left) = match fit {
            Some(left) => (take(&mut by_room, left), left),
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, room)
            }
        };
        rows[row].push(sample);
        by_room
            .entry(left.saturating_sub(length))
            .or_default()
            .push(row);
    }
    rows
}

/// Takes a row with exactly `left` room out of the table.
fn take(by_room: &mut BTreeMap<usize, Vec<usize>>, left: usize) -> usize {
    let rows = by_room.get_mut(&left).expect("the key was just found");
    let row = rows.pop().expect("no empty list is kept");
    if rows.is_empty() {
        by_room.remove(&left);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_sample_is_in_one_row_that_has_room(
            lengths in proptest::collection::vec(1usize..40, 0..200), seed: u64,
        ) {
            let rows = best_fit_decreasing(&lengths, 40, seed);
            let mut seen: Vec<usize> = rows.concat();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..lengths.len()));
            let sums: Vec<usize> = rows.iter().map(|r| r.iter().map(|&i| lengths[i]).sum()).collect();
            prop_assert!(sums.iter().all(|sum| *sum <= 40));
            // No two rows could have been one, which holds of any fitting by the fullest row.
            let mut sorted = sums;
            sorted.sort_unstable();
            if sorted.len() >= 2 {
                prop_assert!(sorted[0] + sorted[1] > 40);
            }
        }
    }

    #[test]
    fn the_fullest_row_that_fits_is_taken() {
        // 7 and 6 open rows with 3 and 4 left; 4 fits the second exactly, 3 the first.
        let rows = best_fit_decreasing(&[6, 3, 7, 4], 10, 0);
        assert_eq!(rows, [vec![2, 1], vec![0, 3]]);
    }

    #[test]
    fn the_seed_orders_equal_lengths() {
        let lengths = vec![5; 40];
        let rows = |seed| best_fit_decreasing(&lengths, 10, seed);
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
    }
}
