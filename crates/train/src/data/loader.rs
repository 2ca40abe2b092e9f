//! Batches in order, made ahead on one background thread.
//!
//! What a loader yields depends on its dataset, its [`LoaderConfig`] and its
//! [`LoaderState`], never on timing: the thread only runs ahead by a bounded
//! number of batches. Dropping a loader early stops and joins the thread.
//! Neighbours: `order.rs` says which samples, [`Dataset`] builds them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use entrenar_base::{Error, Result};

use super::dataset::{Batch, Dataset};
use super::order::{LoaderState, Order, Permutation, Plan};

/// How a loader makes batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Samples in a batch.
    pub batch_size: usize,
    /// In what order samples come.
    pub order: Order,
    /// What chooses the order.
    pub seed: u64,
    /// Whether a last batch with fewer samples is left out.
    pub drop_last: bool,
    /// How many batches are made ahead; 0: none, on the calling thread.
    pub prefetch: usize,
}

impl LoaderConfig {
    /// For training: shuffled by `seed`, short batches kept, two batches ahead.
    pub fn training(batch_size: usize, seed: u64) -> Self {
        Self {
            batch_size,
            order: Order::Shuffled,
            seed,
            drop_last: false,
            prefetch: 2,
        }
    }

    /// For evaluation: in order, short batches kept, two batches ahead.
    pub fn evaluation(batch_size: usize) -> Self {
        Self {
            batch_size,
            order: Order::Sequential,
            seed: 0,
            drop_last: false,
            prefetch: 2,
        }
    }
}

/// Endless batches of a dataset, epoch after epoch.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use entrenar_base::{Array, Result};
/// use entrenar_train::data::{Batch, Dataset, Loader, LoaderConfig};
///
/// struct Squares;
/// impl Dataset for Squares {
///     fn len(&self) -> usize { 5 }
///     fn batch(&self, indices: &[usize]) -> Result<Batch> {
///         let rows = indices.len();
///         let inputs: Vec<f32> = indices.iter().map(|&i| i as f32).collect();
///         let targets: Vec<f32> = inputs.iter().map(|x| x * x).collect();
///         Ok(Batch::new(Array::from_vec(inputs, [rows, 1])?, Array::from_vec(targets, [rows])?, rows))
///     }
/// }
///
/// let mut loader = Loader::new(Arc::new(Squares), LoaderConfig::training(2, 7))?;
/// assert_eq!(loader.batches_per_epoch(), 3);
/// let rows: Vec<usize> = loader.epoch().map(|batch| batch.map(|batch| batch.rows)).collect::<Result<_>>()?;
/// assert_eq!(rows, [2, 2, 1]);
/// assert_eq!(loader.state().epoch, 1);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    plan: Plan,
    prefetch: usize,
    // Of the batch that `next_batch` yields next.
    state: LoaderState,
    worker: Option<Worker>,
    // Without prefetch, the order of the present epoch.
    permutation: Permutation,
    failed: Option<String>,
}

impl Loader {
    /// A loader at the beginning of epoch 0.
    ///
    /// # Errors
    ///
    /// A batch size of 0; data that makes no batch (empty, or shorter than one batch with `drop_last`).
    pub fn new(dataset: Arc<dyn Dataset>, config: LoaderConfig) -> Result<Self> {
        if config.batch_size == 0 {
            return Err(Error::config("expected a batch size of at least 1, got 0"));
        }
        let (len, tail) = (dataset.len(), dataset.ragged_tail());
        let plan = Plan {
            order: config.order,
            seed: config.seed,
            batch_size: config.batch_size,
            uniform: len.saturating_sub(tail),
            tail,
            draws: dataset.draws_per_epoch(),
            drop_last: config.drop_last,
        };
        if plan.batches() == 0 || (plan.order == Order::Random && plan.uniform == 0) {
            return Err(Error::config(if len == 0 {
                "the data has no samples".to_string()
            } else {
                format!("{len} samples make no full batch of {}", config.batch_size)
            }));
        }
        Ok(Self {
            dataset,
            plan,
            prefetch: config.prefetch,
            state: LoaderState::default(),
            worker: None,
            permutation: Permutation::default(),
            failed: None,
        })
    }

    /// How many batches an epoch has.
    pub fn batches_per_epoch(&self) -> u64 {
        self.plan.batches()
    }

    /// The dataset.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// Where the loader stands: what a checkpoint has to keep.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Epochs behind, with the present one as a fraction.
    pub fn epochs_done(&self) -> f64 {
        self.state.epoch as f64 + self.state.position as f64 / self.batches_per_epoch() as f64
    }

    /// Goes to `state`: the next batches are those of a loader that came there by itself.
    ///
    /// # Errors
    ///
    /// A position that an epoch of this loader does not have, as when data or batch size changed.
    pub fn seek(&mut self, state: LoaderState) -> Result<()> {
        if state.position >= self.batches_per_epoch() {
            return Err(Error::config(format!(
                "cannot resume at batch {} of an epoch of {}: data or batch size have changed",
                state.position,
                self.batches_per_epoch()
            )));
        }
        self.worker = None;
        self.failed = None;
        self.state = state;
        Ok(())
    }

    /// The next batch; after the last one of an epoch the next epoch begins.
    ///
    /// # Errors
    ///
    /// What the dataset reports, also when it panicked on the background thread. The loader then
    /// stays failed until [`seek`](Self::seek).
    pub fn next_batch(&mut self) -> Result<Batch> {
        if let Some(reason) = &self.failed {
            return Err(Error::other(format!("the loader has stopped: {reason}")));
        }
        let result = if self.prefetch == 0 {
            make(
                &*self.dataset,
                &self.plan,
                self.state,
                &mut self.permutation,
            )
        } else {
            let worker = match &mut self.worker {
                Some(worker) => worker,
                None => {
                    let started = Worker::start(
                        Arc::clone(&self.dataset),
                        self.plan.clone(),
                        self.state,
                        self.prefetch,
                    )?;
                    self.worker.insert(started)
                }
            };
            worker.receive()
        };
        match &result {
            Ok(_) => self.state = self.plan.after(self.state),
            Err(error) => {
                self.failed = Some(error.to_string());
                self.worker = None;
            }
        }
        result
    }

    /// The batches that are left of the present epoch (all of them at its beginning).
    pub fn epoch(&mut self) -> Epoch<'_> {
        let epoch = self.state.epoch;
        Epoch {
            loader: self,
            epoch,
            failed: false,
        }
    }
}

/// An iterator to the end of the present epoch; ends after an error.
pub struct Epoch<'a> {
    loader: &'a mut Loader,
    epoch: u64,
    failed: bool,
}

impl Iterator for Epoch<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.loader.state.epoch != self.epoch {
            return None;
        }
        let result = self.loader.next_batch();
        self.failed = result.is_err();
        Some(result)
    }
}

/// Builds one batch; a panic of the dataset becomes an error.
fn make(
    dataset: &dyn Dataset,
    plan: &Plan,
    at: LoaderState,
    permutation: &mut Permutation,
) -> Result<Batch> {
    // The dataset is immutable and the permutation is rebuilt when its epoch does not match, so a
    // panic leaves nothing half done.
    catch_unwind(AssertUnwindSafe(|| {
        dataset.batch_of_epoch(&plan.samples(at, permutation), at.epoch)
    }))
    .unwrap_or_else(|panic| {
        Err(Error::other(format!(
            "building batch {} of epoch {} panicked: {}",
            at.position,
            at.epoch,
            panic_text(&*panic)
        )))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The background thread and the channel it fills.
struct Worker {
    // `Option` so that drop can hang up before it joins.
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(
        dataset: Arc<dyn Dataset>,
        plan: Plan,
        from: LoaderState,
        ahead: usize,
    ) -> Result<Self> {
        let (sender, receiver) = sync_channel(ahead);
        let thread = std::thread::Builder::new()
            .name("data-loader".to_string())
            .spawn(move || fill(&*dataset, &plan, from, &sender))
            .map_err(|error| Error::other(format!("cannot start the data thread: {error}")))?;
        Ok(Self {
            receiver: Some(receiver),
            thread: Some(thread),
        })
    }

    fn receive(&self) -> Result<Batch> {
        self.receiver
            .as_ref()
            .and_then(|receiver| receiver.recv().ok())
            .unwrap_or_else(|| Err(Error::other("the data thread ended without a batch")))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A thread that waits for room in the channel wakes up with an error when the receiver goes.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and sent; there is nothing to learn from the result.
            drop(thread.join());
        }
    }
}

/// The thread's life: batch after batch until nobody listens or one fails.
fn fill(
    dataset: &dyn Dataset,
    plan: &Plan,
    mut at: LoaderState,
    sender: &SyncSender<Result<Batch>>,
) {
    let mut permutation = Permutation::default();
    loop {
        let result = make(dataset, plan, at, &mut permutation);
        let failed = result.is_err();
        if sender.send(result).is_err() || failed {
            return;
        }
        at = plan.after(at);
    }
}
