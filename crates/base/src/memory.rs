//! Byte accounting: how much is alive, what it is for, and what was alive at the peak.
//!
//! Live bytes and allocation counts are always kept, by each thread for itself. While a
//! [`Recording`] is open, every storage is also entered in a ledger by tag, operation and layer.
//! Bytes are counted once per storage, however many views share it.
//!
//! The labels come from thread-local diagnostics ([`scope_tag`], [`scope_op`], [`scope_layer`]);
//! they never change a number.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod tally;

/// What a storage is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Tag {
    /// Results of operations that nothing keeps for later.
    #[default]
    Temporary,
    /// Model weights.
    Parameter,
    /// Gradients.
    Gradient,
    /// Optimizer moments.
    Optimizer,
    /// Values kept for the backward pass.
    Saved,
    /// Batches and data sets.
    Data,
}

impl Tag {
    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Tag::Temporary => "temporary",
            Tag::Parameter => "parameter",
            Tag::Gradient => "gradient",
            Tag::Optimizer => "optimizer",
            Tag::Saved => "saved",
            Tag::Data => "data",
        }
    }
}

static COPIES_ON_WRITE: AtomicU64 = AtomicU64::new(0);
static RECORDING: AtomicBool = AtomicBool::new(false);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static LEDGER: Mutex<Option<Ledger>> = Mutex::new(None);

/// Bytes of all live storages; exact when nothing else runs, and never too low. Takes a lock and
/// adds over all threads.
pub fn live_bytes() -> usize {
    tally::live()
}

/// Storages created since the program began. Takes a lock and adds over all threads.
pub fn allocations() -> u64 {
    tally::allocations()
}

/// A count of storages that rises with each one that this thread creates, and with no others.
///
/// ```
/// use entrenar_base::{Array, DType, memory};
/// let before = memory::allocations_here();
/// let x = Array::zeros([2, 3], DType::F32);
/// let view = x.transpose(0, 1)?; // of the same storage
/// assert_eq!(memory::allocations_here() - before, 1);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub fn allocations_here() -> u64 {
    tally::allocations_here()
}

/// Writes that had to copy because the storage was shared.
pub fn copies_on_write() -> u64 {
    COPIES_ON_WRITE.load(Ordering::Relaxed)
}

pub(crate) fn count_copy_on_write() {
    COPIES_ON_WRITE.fetch_add(1, Ordering::Relaxed);
}

thread_local! {
    static TAG: Cell<Tag> = const { Cell::new(Tag::Temporary) };
    static OP: Cell<&'static str> = const { Cell::new("") };
    static LAYER: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

/// Restores the previous tag when dropped.
#[must_use = "the label holds until this guard is dropped"]
pub struct TagScope(Tag);

impl Drop for TagScope {
    fn drop(&mut self) {
        TAG.set(self.0);
    }
}

/// Restores the previous operation name when dropped.
#[must_use = "the label holds until this guard is dropped"]
pub struct OpScope(&'static str);

impl Drop for OpScope {
    #[inline]
    fn drop(&mut self) {
        OP.set(self.0);
    }
}

/// Restores the previous layer path when dropped.
#[must_use = "the label holds until this guard is dropped"]
pub struct LayerScope(Option<Option<Arc<str>>>);

impl Drop for LayerScope {
    #[inline]
    fn drop(&mut self) {
        if let Some(previous) = self.0.take() {
            LAYER.with(|c| *c.borrow_mut() = previous);
        }
    }
}

/// Storages made on this thread while the guard lives carry `tag`.
pub fn scope_tag(tag: Tag) -> TagScope {
    TagScope(TAG.replace(tag))
}

/// Storages made on this thread while the guard lives carry the operation name `op`.
#[inline]
pub fn scope_op(op: &'static str) -> OpScope {
    OpScope(OP.replace(op))
}

/// Storages made on this thread while the guard lives carry the layer path `layer`.
#[inline]
pub fn scope_layer(layer: Option<Arc<str>>) -> LayerScope {
    LayerScope(LAYER.with(|c| {
        // Outside of layers there is nothing to put and nothing to restore.
        let changes = layer.is_some() || c.borrow().is_some();
        changes.then(|| c.replace(layer))
    }))
}

/// The layer path in force on this thread.
#[inline]
pub fn current_layer() -> Option<Arc<str>> {
    LAYER.with(|c| c.borrow().clone())
}

/// What a group of bytes is: the key of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Label {
    /// Purpose.
    pub tag: Tag,
    /// Operation that made it; empty outside operations.
    pub op: &'static str,
    /// Layer path; empty outside layers.
    pub layer: Arc<str>,
}

/// Live bytes by label at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Bytes per label; labels with no bytes are absent.
    pub bytes: BTreeMap<Label, usize>,
}

impl Snapshot {
    /// All bytes.
    pub fn total(&self) -> usize {
        self.bytes.values().sum()
    }

    /// Bytes grouped by tag.
    pub fn by_tag(&self) -> BTreeMap<Tag, usize> {
        self.group(|l| l.tag)
    }

    /// Bytes grouped by operation.
    pub fn by_op(&self) -> BTreeMap<&'static str, usize> {
        self.group(|l| l.op)
    }

    /// Bytes grouped by layer path.
    pub fn by_layer(&self) -> BTreeMap<Arc<str>, usize> {
        self.group(|l| l.layer.clone())
    }

    fn group<K: Ord>(&self, key: impl Fn(&Label) -> K) -> BTreeMap<K, usize> {
        let mut out = BTreeMap::new();
        for (label, bytes) in &self.bytes {
            *out.entry(key(label)).or_insert(0) += bytes;
        }
        out
    }

    /// `self` minus `earlier`, label by label; equal labels are left out.
    pub fn difference(&self, earlier: &Snapshot) -> Vec<(Label, isize)> {
        let mut out: BTreeMap<Label, isize> = self
            .bytes
            .iter()
            .map(|(l, &b)| (l.clone(), b as isize))
            .collect();
        for (label, &bytes) in &earlier.bytes {
            *out.entry(label.clone()).or_insert(0) -= bytes as isize;
        }
        out.into_iter().filter(|(_, b)| *b != 0).collect()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>14}  {:<10} {:<20} layer",
            "bytes", "tag", "operation"
        )?;
        let mut rows: Vec<_> = self.bytes.iter().collect();
        rows.sort_by_key(|(l, b)| (std::cmp::Reverse(**b), (*l).clone()));
        for (l, b) in rows {
            writeln!(f, "{b:>14}  {:<10} {:<20} {}", l.tag.name(), l.op, l.layer)?;
        }
        writeln!(f, "{:>14}  total", self.total())
    }
}

#[derive(Default)]
struct Ledger {
    entries: BTreeMap<u64, (Label, usize)>,
    now: Snapshot,
    live: usize,
    peak: usize,
    at_peak: Snapshot,
    /// The live set grew past `peak` and `at_peak` was not yet copied: copying waits for the
    /// next free, so that a growing phase costs one copy instead of one per allocation.
    stale: bool,
}

impl Ledger {
    fn add(&mut self, id: u64, label: Label, bytes: usize) {
        *self.now.bytes.entry(label.clone()).or_insert(0) += bytes;
        self.entries.insert(id, (label, bytes));
        self.live += bytes;
        if self.live > self.peak {
            self.peak = self.live;
            self.stale = true;
        }
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.at_peak = self.now.clone();
        }
    }

    fn remove(&mut self, id: u64) {
        let Some((label, bytes)) = self.entries.remove(&id) else {
            return;
        };
        self.settle();
        self.live -= bytes;
        Self::subtract(&mut self.now, &label, bytes);
    }

    fn subtract(snapshot: &mut Snapshot, label: &Label, bytes: usize) {
        if let Some(b) = snapshot.bytes.get_mut(label) {
            *b -= bytes;
            if *b == 0 {
                snapshot.bytes.remove(label);
            }
        }
    }
}

fn ledger() -> MutexGuard<'static, Option<Ledger>> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called once per new storage; the id is 0 when nothing is recorded.
#[inline]
pub(crate) fn on_allocate(bytes: usize) -> u64 {
    tally::made(bytes);
    if !RECORDING.load(Ordering::Relaxed) {
        return 0;
    }
    record(bytes)
}

#[cold]
fn record(bytes: usize) -> u64 {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    if let Some(l) = ledger().as_mut() {
        let layer = current_layer().unwrap_or_else(|| Arc::from(""));
        l.add(
            id,
            Label {
                tag: TAG.get(),
                op: OP.get(),
                layer,
            },
            bytes,
        );
    }
    id
}

#[inline]
pub(crate) fn on_free(id: u64, bytes: usize) {
    tally::freed(bytes);
    if id != 0 {
        forget(id);
    }
}

#[cold]
fn forget(id: u64) {
    if let Some(l) = ledger().as_mut() {
        l.remove(id);
    }
}

/// Moves a recorded storage to another tag (a result becomes a saved value or a gradient). A
/// parameter or a batch that a node also saves stays what it is: it is there anyway.
#[inline]
pub(crate) fn on_retag(id: u64, tag: Tag) {
    if id != 0 {
        relabel(id, tag);
    }
}

#[cold]
fn relabel(id: u64, tag: Tag) {
    if let Some(l) = ledger().as_mut()
        && let Some((label, bytes)) = l.entries.get_mut(&id)
        && label.tag != tag
        && (tag != Tag::Saved || label.tag == Tag::Temporary)
    {
        let (old, bytes) = (label.clone(), *bytes);
        label.tag = tag;
        let new = label.clone();
        l.settle();
        Ledger::subtract(&mut l.now, &old, bytes);
        *l.now.bytes.entry(new).or_insert(0) += bytes;
        // Equal totals: the newest composition of the peak is the one to show.
        l.stale = l.live == l.peak;
    }
}

/// A profile of memory while it is open; one at a time in a process.
pub struct Recording(());

impl Recording {
    /// Starts recording storages made from now on; `None` while another recording is open.
    pub fn start() -> Option<Recording> {
        let mut l = ledger();
        if l.is_some() {
            return None;
        }
        *l = Some(Ledger::default());
        RECORDING.store(true, Ordering::Relaxed);
        Some(Recording(()))
    }

    /// Live recorded bytes now.
    pub fn snapshot(&self) -> Snapshot {
        ledger().as_ref().map(|l| l.now.clone()).unwrap_or_default()
    }

    /// Recorded bytes at their highest since the start or the last [`Recording::mark`].
    pub fn peak(&self) -> Snapshot {
        let mut l = ledger();
        l.as_mut().map_or_else(Snapshot::default, |l| {
            l.settle();
            l.at_peak.clone()
        })
    }

    /// Begins a new pass: the peak is measured afresh from what is alive now.
    pub fn mark(&self) {
        if let Some(l) = ledger().as_mut() {
            l.peak = l.live;
            l.at_peak = l.now.clone();
            l.stale = false;
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.store(false, Ordering::Relaxed);
        *ledger() = None;
    }
}
