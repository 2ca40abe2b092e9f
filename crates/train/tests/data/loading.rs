//! Loaders: order, resume, prefetch, failure and shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use entrenar_base::{Array, Error, Result};
use entrenar_train::data::{
    Batch, Dataset, Loader, LoaderConfig, LoaderState, Order, Splits, TextData, TextUnit,
};
use proptest::prelude::*;

use super::Place;

/// Samples that are their own numbers, with ways to fail.
#[derive(Default)]
struct Numbers {
    count: usize,
    tail: usize,
    fails_at: Option<usize>,
    panics_at: Option<usize>,
    pause: Duration,
    made: Arc<AtomicUsize>,
}

impl Dataset for Numbers {
    fn len(&self) -> usize {
        self.count
    }

    fn ragged_tail(&self) -> usize {
        self.tail
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        std::thread::sleep(self.pause);
        self.made.fetch_add(1, Ordering::SeqCst);
        if self.fails_at.is_some_and(|at| indices.contains(&at)) {
            return Err(Error::format("numbers", "sample is broken"));
        }
        assert!(
            !self.panics_at.is_some_and(|at| indices.contains(&at)),
            "sample {:?} exploded",
            self.panics_at
        );
        let values: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
        let rows = indices.len();
        let array = Array::from_vec(values, [rows])?;
        Ok(Batch::new(array.clone(), array, rows))
    }
}

fn loader(dataset: Numbers, config: LoaderConfig) -> Loader {
    Loader::new(Arc::new(dataset), config).unwrap()
}

fn take(loader: &mut Loader, count: usize) -> Vec<Vec<i64>> {
    (0..count)
        .map(|_| loader.next_batch().unwrap().inputs.to_vec::<i64>().unwrap())
        .collect()
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Sequential),
        Just(Order::Shuffled),
        Just(Order::Random)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn resuming_anywhere_and_prefetching_change_nothing(
        count in 4usize..40, tail in 0usize..3, batch_size in 1usize..5, order in orders(), seed: u64,
        drop_last: bool, cut in 0usize..30, prefetch in 0usize..4,
    ) {
        let numbers = || Numbers { count, tail, ..Numbers::default() };
        prop_assume!(count - tail >= batch_size);
        let config = LoaderConfig { batch_size, order, seed, drop_last, prefetch: 0 };
        let straight = take(&mut loader(numbers(), config), 40);
        prop_assert_eq!(&straight, &take(&mut loader(numbers(), LoaderConfig { prefetch, ..config }), 40));

        let mut first = loader(numbers(), LoaderConfig { prefetch, ..config });
        let mut seen = take(&mut first, cut);
        let json = serde_json::to_string(&first.state()).unwrap();
        drop(first);
        let mut second = loader(numbers(), LoaderConfig { prefetch, ..config });
        second.seek(serde_json::from_str::<LoaderState>(&json).unwrap()).unwrap();
        seen.extend(take(&mut second, 40 - cut));
        prop_assert_eq!(straight, seen);
    }

    #[test]
    fn an_epoch_has_every_sample_once(count in 1usize..60, tail in 0usize..3, batch_size in 1usize..9, seed: u64) {
        prop_assume!(tail <= count);
        let mut loader = loader(Numbers { count, tail, ..Numbers::default() }, LoaderConfig::training(batch_size, seed));
        for _ in 0..2 {
            let batches: Vec<Batch> = loader.epoch().collect::<Result<_>>().unwrap();
            prop_assert_eq!(batches.len() as u64, loader.batches_per_epoch());
            let mut seen: Vec<i64> = batches.iter().flat_map(|batch| batch.inputs.to_vec::<i64>().unwrap()).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..count as i64));
        }
    }
}

#[test]
fn the_order_is_this_one_for_ever() {
    // A resumed run must find the order that an older version of the program began with.
    let config = LoaderConfig::training(4, 42);
    let batches = take(
        &mut loader(
            Numbers {
                count: 8,
                ..Numbers::default()
            },
            config,
        ),
        4,
    );
    insta::assert_snapshot!(format!("{batches:?}"), @"[[6, 0, 7, 4], [5, 2, 1, 3], [0, 5, 2, 1], [4, 6, 3, 7]]");
    let config = LoaderConfig {
        order: Order::Random,
        ..config
    };
    let batches = take(
        &mut loader(
            Numbers {
                count: 1000,
                ..Numbers::default()
            },
            config,
        ),
        3,
    );
    insta::assert_snapshot!(format!("{batches:?}"), @"[[933, 372, 319, 87], [990, 843, 373, 40], [428, 134, 204, 931]]");
}

#[test]
fn an_epoch_can_be_finished_after_a_resume() {
    let mut loader = loader(
        Numbers {
            count: 10,
            ..Numbers::default()
        },
        LoaderConfig::training(2, 1),
    );
    loader
        .seek(LoaderState {
            epoch: 3,
            position: 2,
        })
        .unwrap();
    assert_eq!(loader.epochs_done(), 3.4);
    assert_eq!(loader.epoch().count(), 3);
    assert_eq!(
        loader.state(),
        LoaderState {
            epoch: 4,
            position: 0
        }
    );
    let error = loader
        .seek(LoaderState {
            epoch: 0,
            position: 5,
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot resume at batch 5 of an epoch of 5: data or batch size have changed"
    );
}

#[test]
fn errors_come_at_their_place_and_stay() {
    for prefetch in [0, 3] {
        let numbers = Numbers {
            count: 10,
            fails_at: Some(5),
            ..Numbers::default()
        };
        let config = LoaderConfig {
            prefetch,
            ..LoaderConfig::evaluation(2)
        };
        let mut loader = loader(numbers, config);
        assert_eq!(take(&mut loader, 2), [[0, 1], [2, 3]]);
        assert_eq!(
            loader.next_batch().err().unwrap().to_string(),
            "numbers: sample is broken"
        );
        assert_eq!(
            loader.next_batch().err().unwrap().to_string(),
            "the loader has stopped: numbers: sample is broken"
        );
        // The failed batch was not delivered: the state still points to it.
        assert_eq!(
            loader.state(),
            LoaderState {
                epoch: 0,
                position: 2
            }
        );
        loader
            .seek(LoaderState {
                epoch: 0,
                position: 3,
            })
            .unwrap();
        assert_eq!(take(&mut loader, 1), [[6, 7]]);
    }
}

#[test]
fn an_epoch_ends_after_an_error() {
    let numbers = Numbers {
        count: 10,
        fails_at: Some(5),
        ..Numbers::default()
    };
    let mut loader = loader(numbers, LoaderConfig::evaluation(2));
    let results: Vec<bool> = loader.epoch().map(|batch| batch.is_ok()).collect();
    assert_eq!(results, [true, true, false]);
}

#[test]
fn a_panic_on_the_thread_is_an_error_here() {
    for prefetch in [0, 2] {
        let numbers = Numbers {
            count: 6,
            panics_at: Some(2),
            ..Numbers::default()
        };
        let mut loader = loader(
            numbers,
            LoaderConfig {
                prefetch,
                ..LoaderConfig::evaluation(2)
            },
        );
        assert_eq!(take(&mut loader, 1), [[0, 1]]);
        assert_eq!(
            loader.next_batch().err().unwrap().to_string(),
            "building batch 1 of epoch 0 panicked: sample Some(2) exploded"
        );
    }
}

#[test]
fn dropping_early_stops_the_thread_and_it_never_runs_far_ahead() {
    let made = Arc::new(AtomicUsize::new(0));
    let numbers = Numbers {
        count: 1000,
        made: Arc::clone(&made),
        ..Numbers::default()
    };
    let mut loader = loader(
        numbers,
        LoaderConfig {
            prefetch: 2,
            ..LoaderConfig::training(1, 0)
        },
    );
    take(&mut loader, 3);
    std::thread::sleep(Duration::from_millis(50));
    // Three taken, two waiting in the channel, one in the hands of the thread.
    assert!(made.load(Ordering::SeqCst) <= 6);
    drop(loader);
    let after = made.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(made.load(Ordering::SeqCst), after);
}

#[test]
fn dropping_while_the_thread_works_does_not_hang() {
    let (done, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for taken in 0..4 {
            let numbers = Numbers {
                count: 100,
                pause: Duration::from_millis(5),
                ..Numbers::default()
            };
            let mut loader = loader(
                numbers,
                LoaderConfig {
                    prefetch: 1,
                    ..LoaderConfig::training(1, 0)
                },
            );
            take(&mut loader, taken);
            drop(loader);
        }
        done.send(()).unwrap();
    });
    waits
        .recv_timeout(Duration::from_secs(20))
        .expect("dropping a loader hangs");
}

#[test]
fn text_goes_through_loaders() {
    let place = Place::new();
    let text: String = (0..1000)
        .map(|n| char::from(b'a' + (n % 26) as u8))
        .collect();
    place.write("a.txt", &text);
    let data = TextData::open(
        place.path(),
        &["a.txt"],
        TextUnit::Char,
        &Splits::validation(0.1),
        16,
    )
    .unwrap();
    let random = LoaderConfig {
        order: Order::Random,
        ..LoaderConfig::training(8, 3)
    };
    let mut training = Loader::new(data.parts().training, random).unwrap();
    // 900 tokens are 56 windows of 16: 7 batches of 8.
    assert_eq!(training.batches_per_epoch(), 7);
    let batch = training.next_batch().unwrap();
    assert_eq!(batch.inputs.shape().dims(), [8, 16]);
    let (inputs, targets) = (
        batch.inputs.to_vec::<i64>().unwrap(),
        batch.targets.to_vec::<i64>().unwrap(),
    );
    assert!(
        inputs
            .iter()
            .zip(&targets)
            .all(|(input, target)| (input + 1) % 26 == *target)
    );

    // 99 predictions: six windows of 16 in two batches, then three tokens alone.
    let mut validation = Loader::new(
        data.parts().validation.unwrap(),
        LoaderConfig::evaluation(4),
    )
    .unwrap();
    let batches: Vec<Batch> = validation.epoch().collect::<Result<_>>().unwrap();
    let shapes: Vec<_> = batches
        .iter()
        .map(|batch| batch.inputs.shape().dims().to_vec())
        .collect();
    assert_eq!(shapes, [[4, 16], [2, 16], [1, 3]]);
    assert_eq!(batches.iter().map(Batch::target_count).sum::<usize>(), 99);
}
