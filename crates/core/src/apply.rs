//! The only door to operations.
//!
//! [`apply`] finds the highest level among the inputs, peels it, recurses, and rewraps the results
//! with what that level is for: a graph node, a tangent, a checkpoint region. With no level left
//! it runs the kernel.

use smallvec::SmallVec;
use std::cell::Cell;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use triomphe::UniqueArc;

use entrenar_base::memory::{self, Tag};
use entrenar_base::{Array, Result};

use crate::autocast::autocast;
use crate::autograd::checkpoint::{self, Region};
use crate::autograd::forward;
use crate::autograd::graph::{Edge, Node, Operand, Slot, places};
use crate::diagnostics;
use crate::op::{Aval, Expand, Few, Op, OpRef, Reads, Rule};
use crate::tensor::{Inner, Level, Tensor};

thread_local! {
    static GRAD_ENABLED: Cell<bool> = const { Cell::new(true) };
}

/// Whether the ambient graph is recorded on this thread (see [`crate::no_grad`]).
pub fn grad_enabled() -> bool {
    GRAD_ENABLED.get()
}

pub(crate) fn set_grad_enabled(enabled: bool) -> bool {
    GRAD_ENABLED.replace(enabled)
}

/// How an application is to be carried out; passed down the levels.
#[derive(Clone, Copy)]
pub(crate) struct How<'a> {
    /// Where nodes put the values they save.
    pub region: Option<&'a Arc<Region>>,
    /// Results stored by an earlier run, to be used instead of the kernel's.
    pub given: Option<&'a [Array]>,
    /// The user's source line.
    pub location: &'static Location<'static>,
}

/// Applies `op` to `inputs`, which already have the shapes and dtypes the op wants.
///
/// # Errors
/// When the op's shape rule or kernel refuses, naming the op and the user's line.
#[track_caller]
pub fn apply(op: &OpRef, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
    let how = How {
        region: None,
        given: None,
        location: Location::caller(),
    };
    run(op, inputs, how).map_err(|e| e.at(how.location))
}

/// [`apply`] for an op with one visible output.
///
/// # Errors
/// As [`apply`].
#[track_caller]
pub fn apply1(op: &OpRef, inputs: &[&Tensor]) -> Result<Tensor> {
    let how = How {
        region: None,
        given: None,
        location: Location::caller(),
    };
    match run(op, inputs, how) {
        Ok(results) => Ok(first(results)),
        Err(e) => Err(e.at(how.location)),
    }
}

pub(crate) fn run(op: &OpRef, inputs: &[&Tensor], how: How<'_>) -> Result<Few<Tensor>> {
    let (mut top, mut highest) = (None, None);
    for t in inputs {
        let level = t.level();
        if level > highest {
            (top, highest) = (Some(&t.0), level);
        }
    }
    match top {
        None | Some(Inner::Concrete(_)) => concrete(op, inputs, how),
        Some(Inner::Ambient(..)) => reverse(Level::AMBIENT, op, inputs, how),
        Some(Inner::Reverse(r)) => reverse(r.level, op, inputs, how),
        Some(Inner::Dual(d)) => forward::push(d.level, op, inputs, how),
        Some(Inner::Region(r)) => checkpoint::record(r.level, &r.region, op, inputs, how),
    }
}

/// Operands that have room on the stack; nearly every operation has at most so many.
const ROOM: usize = 4;

/// `f` of every input, side by side. With room on the stack by a loop over an array, since a
/// general collection costs more than it holds.
#[inline]
fn each<'t, T: Copy>(inputs: &[&'t Tensor], f: impl Fn(&'t Tensor) -> T) -> SmallVec<[T; ROOM]> {
    match inputs {
        [first, rest @ ..] if rest.len() < ROOM => {
            let mut all = [f(first); ROOM];
            for (place, t) in all[1..].iter_mut().zip(rest) {
                *place = f(t);
            }
            SmallVec::from_buf_and_len(all, inputs.len())
        }
        _ => inputs.iter().map(|t| f(t)).collect(),
    }
}

pub(crate) fn peeled<'t>(level: Level, inputs: &[&'t Tensor]) -> SmallVec<[&'t Tensor; ROOM]> {
    each(inputs, |t| t.peel(level))
}

fn concrete(op: &OpRef, inputs: &[&Tensor], how: How<'_>) -> Result<Few<Tensor>> {
    if let Some(arrays) = how.given {
        return Ok(arrays.iter().cloned().map(Tensor::concrete).collect());
    }
    entrenar_cpu::init();
    // One and two inputs are nearly all calls, and lie on the stack where they are read.
    let outputs = match inputs {
        [a] => diagnostics::evaluate(&**op, &[a.array()], how.location),
        [a, b] => diagnostics::evaluate(&**op, &[a.array(), b.array()], how.location),
        _ => diagnostics::evaluate(&**op, &each(inputs, Tensor::array), how.location),
    }?;
    if cfg!(debug_assertions) {
        let avals: Vec<Aval> = inputs.iter().map(|t| Aval::of(t.array())).collect();
        let expected = op.infer(&avals.iter().collect::<Vec<_>>())?;
        let found: Vec<Aval> = outputs.iter().map(Aval::of).collect();
        let name = op.name();
        assert!(
            found[..] == expected[..],
            "{name}: infer said {expected:?}, eval gave {found:?}"
        );
    }
    if outputs.len() == 1 {
        return Ok(one(Tensor::concrete(first(outputs))));
    }
    Ok(outputs.into_iter().map(Tensor::concrete).collect())
}

/// Runs the op on the peeled values and records a node where a gradient can flow.
fn reverse(level: Level, op: &OpRef, inputs: &[&Tensor], how: How<'_>) -> Result<Few<Tensor>> {
    let lower = || match level {
        // Below there are arrays only.
        Level::AMBIENT => concrete(op, inputs, how),
        _ => run(op, &peeled(level, inputs), how),
    };
    if level == Level::AMBIENT && !grad_enabled() {
        return lower();
    }
    let rule = op.rule();
    let needs = each(inputs, |t| t.edge(level).is_some() && t.dtype().is_float());
    let visible = match &rule {
        Rule::Zero => return lower(),
        // A region replays nodes one by one: stored results of a fused op go to its parts.
        Rule::Expand(e) if e.backward().is_none() => return expanded(*e, inputs),
        Rule::Expand(e) => e.visible(),
        _ => usize::MAX,
    };
    if !needs.contains(&true) {
        return lower();
    }
    let results = lower()?;
    let reads = reads(&rule, &needs, inputs.len(), results.len());
    // Ops of many inputs (concat) name none beyond the mask's bits.
    let named = |mask: u32, i: usize| mask.checked_shr(i as u32).unwrap_or(0) & 1 == 1;
    let keep = |t: Tensor| match how.region {
        None => {
            t.array().retag(Tag::Saved);
            Slot::Value(t)
        }
        Some(region) => region.save(&t),
    };
    let mut node = UniqueArc::new(Node {
        op: op.clone(),
        operands: places(inputs.len(), || Operand::UNKNOWN),
        outputs: visible.min(results.len()),
        saved: Mutex::new(Some(places(inputs.len() + results.len(), || None))),
        sequence: Node::next_sequence(),
        location: how.location,
        layer: memory::current_layer(),
    });
    // Filled where it lies, field by field: most of a node is its lists, and what is moved right
    // after it was put together waits for its own bytes.
    let Node {
        operands, saved, ..
    } = &mut *node;
    let saved = saved
        .get_mut()
        .unwrap_or_else(PoisonError::into_inner)
        .as_mut()
        .expect("made with places");
    for (i, (t, operand)) in inputs.iter().zip(operands).enumerate() {
        operand.aval.shape.clone_from(t.shape());
        operand.aval.dtype = t.dtype();
        if needs[i] {
            operand.edge = t.edge(level).cloned();
        }
        if named(reads.inputs, i) {
            saved[i] = Some(keep(t.below(level)));
        }
    }
    for (j, value) in results.iter().enumerate() {
        if named(reads.outputs, j) {
            saved[inputs.len() + j] = Some(keep(value.clone()));
        }
    }
    let node = node.shareable();
    let visible = node.outputs;
    if results.len() == 1 && visible == 1 && results[0].dtype().is_float() {
        let value = first(results);
        return Ok(one(Tensor::reverse(
            level,
            value,
            Edge::Node { node, output: 0 },
        )));
    }
    let track = |(j, value): (usize, Tensor)| {
        if j < visible && value.dtype().is_float() {
            let node = node.clone();
            Tensor::reverse(
                level,
                value,
                Edge::Node {
                    node,
                    output: j as u32,
                },
            )
        } else {
            value
        }
    };
    Ok(results.into_iter().enumerate().map(track).collect())
}

/// Which values the op's backward rule will read, given who needs a gradient.
fn reads(rule: &Rule<'_>, needs: &[bool], inputs: usize, outputs: usize) -> Reads {
    let mut reads = Reads::NOTHING;
    match rule {
        Rule::Zero => {}
        Rule::Linear(l) => {
            for i in (0..inputs).filter(|&i| !l.linear_in(i)) {
                reads.inputs |= 1 << i;
            }
        }
        Rule::Multilinear(_) => {
            // A factor is read only when another one needs a gradient.
            for i in 0..inputs {
                if needs.iter().enumerate().any(|(j, &need)| need && j != i) {
                    reads.inputs |= 1 << i;
                }
            }
        }
        Rule::Pointwise(p) => {
            for (i, _) in needs.iter().enumerate().filter(|(_, need)| **need) {
                if let Some(partial) = p.partial(i) {
                    reads.inputs |= partial.mask.inputs;
                    reads.outputs |= partial.mask.outputs;
                }
            }
        }
        Rule::Expand(e) => {
            // The expansion is needed for higher orders, so every input stays.
            reads.inputs = 1u32
                .checked_shl(inputs as u32)
                .map_or(u32::MAX, |bit| bit - 1);
            if let Some(kernel) = e.backward() {
                for j in (0..outputs).filter(|&j| kernel.reads_output(j)) {
                    reads.outputs |= 1 << j;
                }
            }
        }
        Rule::Explicit(e) => reads = e.reads(needs),
    }
    reads
}

/// The plain definition of a fused op, which says itself in which dtypes it computes.
pub(crate) fn expanded(e: &dyn Expand, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
    autocast(false, || e.expand(inputs))
}

/// Wraps an op for [`apply`].
pub fn handle<O: Op>(op: O) -> OpRef {
    Arc::new(op).into()
}

/// The first of an op's results, of which there is at least one. Mostly it is the only one, and
/// then it is moved out without looking for others to drop.
#[inline]
pub(crate) fn first<T>(results: Few<T>) -> T {
    match results.into_inner() {
        Ok([only]) => only,
        Err(mut several) => several.swap_remove(0),
    }
}

/// One result.
#[inline]
pub fn one<T>(value: T) -> Few<T> {
    Few::from_buf([value])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::graph::NodeRef;
    use entrenar_base::DType;

    fn node_of(t: &Tensor) -> NodeRef {
        match t.edge(Level::AMBIENT) {
            Some(Edge::Node { node, .. }) => node.clone(),
            _ => panic!("not the result of a recorded operation: {t:?}"),
        }
    }

    /// Which inputs and outputs the node behind `t` keeps, as 0 and 1.
    fn kept(t: &Tensor) -> (String, String) {
        let node = node_of(t);
        let saved = crate::autograd::graph::lock(&node.saved);
        let saved = saved.as_ref().expect("not used yet");
        let (inputs, outputs) = saved.split_at(node.operands.len());
        let bits = |slots: &[Option<Slot>]| {
            let bit = |s: &Option<Slot>| if s.is_some() { '1' } else { '0' };
            slots.iter().map(bit).collect::<String>()
        };
        (bits(inputs), bits(outputs))
    }

    /// Memory of a training step: a node keeps what its rule reads for the gradients that somebody
    /// wants, and nothing else.
    #[test]
    fn nodes_keep_exactly_what_their_rules_read() -> Result<()> {
        use crate::ops::cross_entropy::CrossEntropy;
        let fixed = Tensor::full([2, 3], 0.5, DType::F64);
        let x = fixed.requires_grad()?;
        let index = Tensor::zeros([2, 1], DType::I64);
        let mask = Tensor::full([2, 3], 1.0, DType::Bool);
        let row = Tensor::full([3], 0.5, DType::F64);
        let kept = |y: Result<Tensor>| -> Result<(String, String)> { Ok(kept(&y?)) };
        for (what, found, inputs, outputs) in [
            ("add", kept(x.add(&fixed))?, "00", "0"),
            ("mul", kept(x.mul(&x))?, "11", "0"),
            ("mul, left", kept(x.mul(&fixed))?, "01", "0"),
            ("mul, right", kept(fixed.mul(&x))?, "10", "0"),
            ("exp", kept(x.exp())?, "0", "1"),
            ("sin", kept(x.sin())?, "1", "0"),
            ("sqrt", kept(x.sqrt())?, "0", "1"),
            ("neg", kept(x.neg())?, "0", "0"),
            ("div, left", kept(x.div(&fixed))?, "01", "0"),
            ("div, right", kept(fixed.div(&x))?, "01", "1"),
            ("sum", kept(x.sum())?, "0", "0"),
            ("transpose", kept(x.t())?, "0", "0"),
            ("matmul", kept(x.matmul(&x.t()?.detach()))?, "01", "0"),
            ("matmul, right", kept(fixed.t()?.matmul(&x))?, "10", "0"),
            ("gather", kept(x.gather(1, &index))?, "01", "0"),
            (
                "where",
                kept(Tensor::where_(&mask, &x, &fixed))?,
                "100",
                "0",
            ),
            ("softmax", kept(x.softmax(1))?, "0", "1"),
            (
                "layer_norm",
                kept(x.layer_norm(1, Some(&row), Some(&row), 0.1))?,
                "111",
                "011",
            ),
            (
                "rms_norm",
                kept(x.rms_norm(1, Some(&row), 0.1))?,
                "11",
                "01",
            ),
            (
                "batch_norm",
                x.batch_norm(None, None, 0.1)
                    .map(|y| self::tests::kept(&y.0))?,
                "1",
                "011",
            ),
            (
                "sort",
                x.sort(1, false).map(|y| self::tests::kept(&y.0))?,
                "0",
                "01",
            ),
        ] {
            assert_eq!(
                (found.0.as_str(), found.1.as_str()),
                (inputs, outputs),
                "{what}"
            );
        }
        // The node of the losses lies behind a reshape and a mean.
        let targets = Tensor::zeros([2], DType::I64);
        let loss = x.cross_entropy(&targets, &CrossEntropy::default())?;
        let mut node = node_of(&loss);
        while node.op.name() != "cross_entropy" {
            let Some(Edge::Node { node: next, .. }) = node.edges().next().cloned() else {
                panic!("no cross_entropy behind the loss");
            };
            node = next;
        }
        let saved = crate::autograd::graph::lock(&node.saved).clone().unwrap();
        let outputs = &saved[node.operands.len()..];
        assert!(outputs[0].is_none() && outputs[1].is_some());
        Ok(())
    }

    #[test]
    fn nodes_know_their_operands_and_place() -> Result<()> {
        let x = Tensor::full([2], 0.5, DType::F64).requires_grad()?;
        let fixed = Tensor::full([2], 2.0, DType::F64);
        let y = x.mul(&fixed)?;
        let node = node_of(&y);
        assert_eq!(node.op.name(), "mul");
        assert!(node.operands[0].edge.is_some() && node.operands[1].edge.is_none());
        assert_eq!((node.operands.len(), node.outputs), (2, 1));
        assert!(
            node.location.file().ends_with("apply.rs"),
            "{}",
            node.location
        );
        let later = node_of(&y.exp()?);
        assert!(later.sequence > node.sequence);
        let (values, index) = x.sort(0, false)?;
        assert!(values.is_tracked() && !index.is_tracked());
        // What nobody wants a gradient of is not recorded at all.
        assert!(!fixed.mul(&fixed)?.is_tracked());
        assert!(!x.argmax(None, false)?.is_tracked() && !x.lt(&fixed)?.is_tracked());
        Ok(())
    }
}
