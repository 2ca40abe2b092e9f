//! The reverse-mode graph: nodes are plain data, edges point from results to operands.
//!
//! A node saves *peeled* values, never values of its own level, so there are no cycles; dropping
//! a long chain walks an explicit list, so depth is limited by memory and not by the call stack.

use smallvec::SmallVec;
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use entrenar_base::memory::Tag;
use entrenar_base::{DType, Error, Result, Shape};

use super::checkpoint::Region;
use crate::Tensor;
use crate::op::{Aval, OpRef};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a user's hook must not poison later training steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the gradient of a tensor goes.
#[derive(Clone)]
pub(crate) enum Edge {
    /// A leaf accumulates it.
    Leaf(Arc<Leaf>),
    /// Output `output` of `node` receives it.
    Node { node: NodeRef, output: u32 },
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edge::Leaf(_) => f.write_str("requires_grad"),
            Edge::Node { node, .. } => write!(f, "grad_fn={}", node.op.name()),
        }
    }
}

/// What runs on a gradient as it passes.
pub(crate) type HookFunction = dyn Fn(&Tensor) -> Result<Option<Tensor>> + Send + Sync;

/// A shared [`HookFunction`].
pub(crate) type Hook = Arc<HookFunction>;

/// The cell that a `requires_grad` leaf shares with its parameter.
pub struct Leaf {
    aval: Aval,
    grad: Mutex<Option<Tensor>>,
    /// Made when the first hook comes: most leaves have none.
    hooks: OnceLock<Mutex<Vec<Hook>>>,
}

impl Leaf {
    /// A leaf for values of this shape and dtype.
    pub fn new(aval: Aval) -> Arc<Leaf> {
        Arc::new(Leaf {
            aval,
            grad: Mutex::new(None),
            hooks: OnceLock::new(),
        })
    }

    /// The accumulated gradient.
    pub fn grad(&self) -> Option<Tensor> {
        lock(&self.grad).clone()
    }

    /// Takes the accumulated gradient out, leaving none.
    pub fn take_grad(&self) -> Option<Tensor> {
        lock(&self.grad).take()
    }

    /// Replaces the accumulated gradient.
    pub fn set_grad(&self, gradient: Option<Tensor>) {
        *lock(&self.grad) = gradient;
    }

    pub(crate) fn add_hook(&self, hook: Hook) {
        lock(self.hooks.get_or_init(Mutex::default)).push(hook);
    }

    /// Shape and dtype of the values whose gradient it holds.
    pub fn aval(&self) -> &Aval {
        &self.aval
    }

    /// Runs the hooks on a complete gradient of one backward pass.
    pub(crate) fn hooked(&self, mut gradient: Tensor) -> Result<Tensor> {
        let Some(hooks) = self.hooks.get() else {
            return Ok(gradient);
        };
        let hooks = lock(hooks).clone();
        for hook in hooks {
            if let Some(new) = hook(&gradient)? {
                gradient = new;
            }
        }
        Ok(gradient)
    }

    pub(crate) fn accumulate(&self, gradient: Tensor) -> Result<()> {
        let mut slot = lock(&self.grad);
        if slot.is_none() {
            gradient.array().retag(Tag::Gradient);
            *slot = Some(gradient);
            return Ok(());
        }
        // Take it out first: no lock is held while an op runs.
        let mut sum = slot.take();
        drop(slot);
        super::accumulate(&mut sum, gradient)?;
        if let Some(g) = &sum {
            g.array().retag(Tag::Gradient);
        }
        self.set_grad(sum);
        Ok(())
    }
}

/// A saved value: kept, or rebuilt by replaying a checkpoint region.
#[derive(Clone)]
pub(crate) enum Slot {
    Value(Tensor),
    Region(Arc<Region>, usize),
}

impl Slot {
    /// The value, unless it must be rebuilt.
    #[inline]
    pub fn value(&self) -> Option<&Tensor> {
        match self {
            Slot::Value(t) => Some(t),
            Slot::Region(..) => None,
        }
    }

    /// Rebuilds the value if need be, and passes it through `wrap`.
    pub fn open(&mut self, retain: bool, wrap: impl FnOnce(Tensor) -> Tensor) -> Result<()> {
        let value = match self {
            Slot::Value(t) => t.clone(),
            Slot::Region(region, i) => region.fetch(*i, retain)?,
        };
        *self = Slot::Value(wrap(value));
        Ok(())
    }
}

/// What a node keeps for its rule: an entry for each operand, then one for each result; `None`
/// where the rule does not read it.
pub(crate) type Saved = SmallVec<[Option<Slot>; 3]>;

/// What a node knows of an operand whether or not it keeps its value.
pub(crate) struct Operand {
    /// Where its gradient goes, if it has one.
    pub edge: Option<Edge>,
    pub aval: Aval,
}

impl Operand {
    /// Of which nothing is known yet.
    pub const UNKNOWN: Operand = Operand {
        edge: None,
        aval: Aval {
            shape: Shape::scalar(),
            dtype: DType::Bool,
        },
    };
}

/// A list of `count` times `empty()`, to be filled where it lies.
#[inline(always)]
pub(crate) fn places<T, const N: usize>(count: usize, empty: impl Fn() -> T) -> SmallVec<[T; N]> {
    if count <= N {
        SmallVec::from_buf_and_len(std::array::from_fn(|_| empty()), count)
    } else {
        (0..count).map(|_| empty()).collect()
    }
}

/// A shared node. Nobody holds one weakly, and the upkeep of weak counts would cost as much as an
/// operation on a few numbers.
pub(crate) type NodeRef = triomphe::Arc<Node>;

/// One recorded operation.
pub(crate) struct Node {
    pub op: OpRef,
    pub operands: SmallVec<[Operand; 2]>,
    /// Results that gradients come back from.
    pub outputs: usize,
    pub saved: Mutex<Option<Saved>>,
    pub sequence: u64,
    pub location: &'static Location<'static>,
    pub layer: Option<Arc<str>>,
}

impl Node {
    pub fn next_sequence() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Where gradients of the operands go.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        self.operands.iter().flat_map(|o| &o.edge)
    }

    /// The saved values, taken out unless the graph is retained.
    #[inline]
    pub fn unpack(&self, retain: bool) -> Result<Saved> {
        let mut saved = lock(&self.saved);
        let values = if retain { saved.clone() } else { saved.take() };
        values.ok_or_else(|| {
            Error::autodiff(
                self.op.name(),
                format!(
                    "this part of the graph (recorded at {}) was already used by a backward pass and freed; pass retain_graph to use it twice",
                    self.location
                ),
            )
        })
    }

    /// The cell of a `retain_grad` node.
    pub fn retained(&self) -> Option<&Arc<Leaf>> {
        self.op
            .as_any()
            .downcast_ref::<super::hooks::Retain>()
            .map(|r| &r.cell.0)
    }
}

/// Something whose drop may free further parts of a graph.
pub(crate) enum Deferred {
    /// From a node to its operand.
    Edge(Edge),
    /// Whatever else holds tensors: a checkpoint's function and inputs, a user's closure.
    Other(Box<dyn Any>),
}

/// What waits to be dropped on this thread.
struct Waiting {
    /// Without a destructor, so that it is there as long as the thread is: the last values of a
    /// thread may hold graphs too. Empty and without memory of its own when nothing is dropped.
    list: ManuallyDrop<SmallVec<[Deferred; 8]>>,
    /// Somebody up the call stack empties the list.
    busy: bool,
}

thread_local! {
    static WAITING: RefCell<Waiting> = const {
        RefCell::new(Waiting { list: ManuallyDrop::new(SmallVec::new_const()), busy: false })
    };
}

/// Drops `things` without recursion: inside the drop of another part of a graph they only join a
/// list, which the outermost call empties. So the depth of the call stack does not depend on the
/// length of the graph, through edges, checkpoints or closures.
pub(crate) fn drop_flat(things: impl Iterator<Item = Deferred>) {
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            // Also when a user's value panics in its drop.
            WAITING.with_borrow_mut(|w| {
                w.busy = false;
                if w.list.is_empty() && w.list.spilled() {
                    drop(std::mem::take(&mut *w.list));
                }
            });
        }
    }
    let outermost = WAITING.with_borrow_mut(|w| {
        w.list.extend(things);
        !std::mem::replace(&mut w.busy, true)
    });
    if outermost {
        let _done = Done;
        // The borrow ends before the drop, which may come back here.
        while let Some(next) = WAITING.with_borrow_mut(|w| w.list.pop()) {
            match next {
                Deferred::Edge(edge) => drop(edge),
                Deferred::Other(held) => drop(held),
            }
        }
    }
}

/// Iterative: a chain of any length is freed without recursion.
impl Drop for Node {
    fn drop(&mut self) {
        let frees = |e: &Edge| !matches!(e, Edge::Leaf(l) if Arc::strong_count(l) > 1);
        if self.edges().any(frees) {
            let edges = self.operands.iter_mut().filter_map(|o| o.edge.take());
            drop_flat(edges.map(Deferred::Edge));
        }
    }
}
