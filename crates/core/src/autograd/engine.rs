//! The backward engine: walks the graph once, newest node first.
//!
//! Creation order is a topological order, so ready nodes run by descending sequence number. A leaf
//! fires as soon as its last consumer has run. Everything happens on the calling thread (kernels
//! use the team inside), so gradients add up in the same order and to the same bits every time.

use smallvec::SmallVec;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use entrenar_base::memory;
use entrenar_base::{Error, Result};

use super::graph::{Edge, Leaf, Node, NodeRef};
use super::{accumulate_gradient, vjp_of};
use crate::autocast::autocast;
use crate::expr::Variable;
use crate::op::{Gradient, Rule, Sink, VjpCx};
use crate::tensor::{Inner, Level};
use crate::{Tensor, diagnostics};

/// Sequence numbers and addresses are already well spread after one multiplication.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(self.0 << 8 | b as u64);
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;

/// How [`grad`] and [`crate::Tensor::backward_with_options`] run.
///
/// ```
/// # use entrenar_core::autograd::GradOptions;
/// let o = GradOptions { create_graph: true, ..Default::default() };
/// assert!(!o.retain_graph && !o.allow_unused);
/// ```
#[derive(Clone, Debug, Default)]
pub struct GradOptions {
    /// Record the backward pass too, so that gradients can be differentiated again. Implies
    /// `retain_graph`.
    pub create_graph: bool,
    /// Keep saved values, so that the same graph can be used again.
    pub retain_graph: bool,
    /// Return `None` for inputs that the outputs do not depend on, instead of an error.
    pub allow_unused: bool,
    /// Cotangents of the outputs; ones for scalar outputs when absent.
    pub grad_outputs: Option<Vec<Tensor>>,
}

/// Where a pass starts, and from which gradients.
type Roots<'g> = SmallVec<[(&'g Edge, Tensor); 1]>;

/// One pending node of a pass. Whoever asks for a pass keeps the graph alive, so that it borrows it.
struct Pending<'g> {
    node: &'g NodeRef,
    cotangents: SmallVec<[Option<Tensor>; 1]>,
    wanted: bool,
}

struct LeafState<'g> {
    leaf: &'g Arc<Leaf>,
    consumers: usize,
    gradient: Option<Tensor>,
}

/// What a pass delivers to.
enum Targets<'a> {
    /// Every reachable leaf accumulates.
    Leaves,
    /// These edges are collected; nothing accumulates.
    Edges(&'a [Option<&'a Edge>]),
}

/// The keys of [`Targets::Edges`].
#[derive(Default)]
struct Asked {
    leaves: Map<usize, ()>,
    nodes: Map<u64, ()>,
}

#[derive(Default)]
struct Pass<'g> {
    /// Newest first, so that a node is found by its sequence number.
    pending: SmallVec<[Pending<'g>; SMALL]>,
    leaves: SmallVec<[LeafState<'g>; SMALL]>,
    /// Positions in `leaves`, once there are too many to look through.
    leaf_index: Map<usize, usize>,
    /// Who asked for gradients; `None` when every leaf did.
    asked: Option<Asked>,
}

/// Nodes and leaves of a small graph, which have room on the stack.
const SMALL: usize = 8;

/// Up to this many leaves are found by looking through them.
const FEW_LEAVES: usize = 16;

fn leaf_key(leaf: &Arc<Leaf>) -> usize {
    Arc::as_ptr(leaf) as usize
}

/// A node in the order of the walk.
struct Newest<'g>(&'g NodeRef);

impl PartialEq for Newest<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.sequence == other.0.sequence
    }
}
impl Eq for Newest<'_> {}
impl PartialOrd for Newest<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Newest<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.sequence.cmp(&other.0.sequence)
    }
}

/// Nodes that a plan has heard of and not yet visited.
#[derive(Default)]
struct Frontier<'g> {
    /// Apart from the others, so that a chain needs no heap.
    newest: Option<Newest<'g>>,
    older: BinaryHeap<Newest<'g>>,
}

impl<'g> Frontier<'g> {
    fn push(&mut self, edge: &'g Edge) {
        let Edge::Node { node, .. } = edge else {
            return;
        };
        let mut node = Newest(node);
        match &mut self.newest {
            Some(newest) => {
                if node > *newest {
                    std::mem::swap(newest, &mut node);
                }
                // A node comes out once however many edges lead to it.
                if node != *newest {
                    self.older.push(node);
                }
            }
            none => *none = Some(node),
        }
    }

    fn pop(&mut self) -> Option<&'g NodeRef> {
        let Newest(node) = self.newest.take()?;
        while let Some(next) = self.older.pop() {
            if next.0.sequence != node.sequence {
                self.newest = Some(next);
                break;
            }
        }
        Some(node)
    }
}

impl<'g> Pass<'g> {
    /// Finds all nodes that the roots reach, newest first, and how often each leaf is consumed.
    fn plan(&mut self, roots: &[(&'g Edge, Tensor)], targets: &Targets<'_>) {
        // A node's consumers are all newer than itself: when it comes out, every edge to it is
        // already in.
        let mut frontier = Frontier::default();
        for &(edge, _) in roots {
            frontier.push(edge);
        }
        while let Some(node) = frontier.pop() {
            for edge in node.edges() {
                frontier.push(edge);
            }
            let cotangents = match node.outputs {
                1 => SmallVec::from_buf([None]),
                n => SmallVec::from_elem(None, n),
            };
            self.pending.push(Pending {
                cotangents,
                wanted: true,
                node,
            });
        }
        self.mark_wanted(targets);
        for i in 0..self.pending.len() {
            if self.pending[i].wanted {
                let node = self.pending[i].node;
                for edge in node.edges() {
                    self.count_leaf(edge);
                }
            }
        }
        for &(edge, _) in roots {
            self.count_leaf(edge);
        }
    }

    /// Position of a node that the walk found.
    fn find(&self, node: &Node) -> usize {
        self.pending
            .partition_point(|p| p.node.sequence > node.sequence)
    }

    fn find_leaf(&self, leaf: &Arc<Leaf>) -> Option<usize> {
        if self.leaves.len() <= FEW_LEAVES {
            return self.leaves.iter().position(|s| Arc::ptr_eq(s.leaf, leaf));
        }
        self.leaf_index.get(&leaf_key(leaf)).copied()
    }

    /// Leaves out nodes from which no target can be reached.
    fn mark_wanted(&mut self, targets: &Targets<'_>) {
        let Targets::Edges(edges) = targets else {
            return;
        };
        let mut asked = Asked::default();
        for edge in edges.iter().flatten() {
            match edge {
                Edge::Leaf(l) => drop(asked.leaves.insert(leaf_key(l), ())),
                Edge::Node { node, .. } => drop(asked.nodes.insert(node.sequence, ())),
            }
        }
        self.asked = Some(asked);
        // Oldest first: a node is wanted when an operand is a target or is itself wanted.
        for i in (0..self.pending.len()).rev() {
            let wanted = self.pending[i]
                .node
                .edges()
                .any(|e| self.leads_to_target(e));
            self.pending[i].wanted = wanted;
        }
    }

    /// Whether a gradient sent along `edge` reaches anybody who asked for one.
    fn leads_to_target(&self, edge: &Edge) -> bool {
        let Some(asked) = &self.asked else {
            return true;
        };
        match edge {
            Edge::Leaf(l) => asked.leaves.contains_key(&leaf_key(l)),
            Edge::Node { node, .. } => {
                asked.nodes.contains_key(&node.sequence) || self.pending[self.find(node)].wanted
            }
        }
    }

    fn count_leaf(&mut self, edge: &'g Edge) {
        let Edge::Leaf(leaf) = edge else { return };
        let at = self.find_leaf(leaf).unwrap_or_else(|| {
            self.leaves.push(LeafState {
                leaf,
                consumers: 0,
                gradient: None,
            });
            let new = self.leaves.len() - 1;
            if new == FEW_LEAVES {
                // From here on leaves are looked up: enter all of them.
                self.leaf_index = self
                    .leaves
                    .iter()
                    .enumerate()
                    .map(|(i, s)| (leaf_key(s.leaf), i))
                    .collect();
            } else if new > FEW_LEAVES {
                self.leaf_index.insert(leaf_key(leaf), new);
            }
            new
        });
        self.leaves[at].consumers += 1;
    }

    /// Gives a gradient (or the news that there is none) to whoever `edge` names.
    fn deliver(&mut self, edge: &Edge, gradient: Option<Gradient>, fire: bool) -> Result<()> {
        match edge {
            Edge::Node { node, output } => {
                if let Some(g) = gradient {
                    let at = self.find(node);
                    accumulate_gradient(&mut self.pending[at].cotangents[*output as usize], g)?;
                }
            }
            Edge::Leaf(leaf) => {
                let at = self
                    .find_leaf(leaf)
                    .expect("every leaf was counted by the plan");
                let state = &mut self.leaves[at];
                if let Some(g) = gradient {
                    accumulate_gradient(&mut state.gradient, g)?;
                }
                state.consumers -= 1;
                if state.consumers == 0
                    && let Some(g) = state.gradient.take()
                {
                    let g = state.leaf.hooked(g)?;
                    if fire {
                        state.leaf.accumulate(g)?;
                    } else {
                        state.gradient = Some(g);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Runs a pass at `level` from `roots`; for [`Targets::Edges`] returns their gradients.
fn pass(
    level: Level,
    roots: Roots<'_>,
    targets: Targets<'_>,
    create_graph: bool,
    retain: bool,
) -> Result<Vec<Option<Tensor>>> {
    // Rules compute in the dtypes they were recorded with.
    autocast(false, || walk(level, roots, targets, create_graph, retain))
}

fn walk(
    level: Level,
    roots: Roots<'_>,
    targets: Targets<'_>,
    create_graph: bool,
    retain: bool,
) -> Result<Vec<Option<Tensor>>> {
    let mut plan = Pass::default();
    plan.plan(&roots, &targets);
    let fire = matches!(targets, Targets::Leaves);
    let mut interior: Map<(u64, u32), Option<Tensor>> = Map::default();
    if let Targets::Edges(edges) = &targets {
        for edge in edges.iter().flatten() {
            if let Edge::Node { node, output } = edge {
                interior.insert((node.sequence, *output), None);
            }
        }
    }
    for (edge, cotangent) in roots {
        let wanted = plan.leads_to_target(edge);
        plan.deliver(edge, wanted.then_some(Gradient::Whole(cotangent)), fire)?;
    }
    let mut needs: SmallVec<[bool; 4]> = SmallVec::new();
    let mut gradients: SmallVec<[Option<Gradient>; 4]> = SmallVec::new();
    for at in 0..plan.pending.len() {
        let pending = &mut plan.pending[at];
        let wanted = pending.wanted;
        let node = pending.node;
        let cotangents = std::mem::take(&mut pending.cotangents);
        if !interior.is_empty() {
            for (j, c) in cotangents.iter().enumerate() {
                if let Some(slot) = interior.get_mut(&(node.sequence, j as u32)) {
                    *slot = c.clone();
                }
            }
        }
        if !wanted {
            continue;
        }
        needs.clear();
        gradients.clear();
        for operand in &node.operands {
            let edge = operand.edge.as_ref();
            needs.push(edge.is_some_and(|e| plan.leads_to_target(e)));
            gradients.push(None);
        }
        if cotangents.iter().any(Option::is_some) {
            run_node(
                level,
                node,
                &cotangents,
                Sink {
                    needs: &needs,
                    gradients: &mut gradients,
                },
                create_graph,
                retain,
            )?;
        }
        drop(cotangents);
        for (operand, gradient) in node.operands.iter().zip(&mut gradients) {
            if let Some(edge) = &operand.edge {
                plan.deliver(edge, gradient.take(), fire)?;
            }
        }
    }
    let Targets::Edges(edges) = targets else {
        return Ok(Vec::new());
    };
    Ok(edges
        .iter()
        .map(|edge| match edge {
            None => None,
            Some(Edge::Leaf(l)) => plan
                .find_leaf(l)
                .and_then(|i| plan.leaves[i].gradient.clone()),
            Some(Edge::Node { node, output }) => {
                interior.get(&(node.sequence, *output)).cloned().flatten()
            }
        })
        .collect())
}

/// Calls the rule of one node.
fn run_node(
    level: Level,
    node: &NodeRef,
    cotangents: &[Option<Tensor>],
    mut sink: Sink<'_>,
    create_graph: bool,
    retain: bool,
) -> Result<()> {
    let _layer = memory::scope_layer(node.layer.clone());
    let _pass = diagnostics::enter_backward();
    let mut saved = node.unpack(retain)?;
    let arity = node.operands.len();
    // At higher orders the rule sees the values where they stand in the graph.
    let edge = |i: usize| match i.checked_sub(arity) {
        None => node.operands[i].edge.clone(),
        Some(j) => (j < node.outputs).then(|| Edge::Node {
            node: node.clone(),
            output: j as u32,
        }),
    };
    for (i, slot) in saved.iter_mut().enumerate() {
        if let Some(slot) = slot
            && (create_graph || slot.value().is_none())
        {
            slot.open(retain, |value| {
                let followed = create_graph && value.dtype().is_float();
                match followed.then(|| edge(i)).flatten() {
                    Some(edge) => Tensor::reverse(level, value, edge),
                    None => value,
                }
            })?;
        }
    }
    let (inputs, outputs) = saved.split_at(arity);
    let cx = VjpCx {
        op: node.op.name(),
        inputs,
        outputs,
        operands: &node.operands,
        cotangents,
    };
    vjp(node, &cx, &mut sink).map_err(|e| {
        e.context(format!(
            "in the backward pass of `{}` recorded at {}",
            node.op.name(),
            node.location
        ))
    })
}

fn vjp(node: &Node, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
    match node.op.rule() {
        Rule::Zero => Ok(()),
        Rule::Linear(l) => l.transpose(cx, sink),
        Rule::Multilinear(m) => {
            let Some(cotangent) = cx.cotangent(0) else {
                return Ok(());
            };
            for i in 0..cx.arity() {
                if sink.needs(i) {
                    let g = m.transpose(i, cotangent, cx)?;
                    sink.add(i, g)?;
                }
            }
            Ok(())
        }
        Rule::Pointwise(p) => {
            let Some(cotangent) = cx.cotangent(0) else {
                return Ok(());
            };
            for i in 0..cx.arity() {
                if !sink.needs(i) {
                    continue;
                }
                if let Some(partial) = p.partial(i) {
                    let mut g = partial.times(cotangent, |variable| match variable {
                        Variable::Input(i) => cx.input(i),
                        Variable::Output => cx.output(0),
                    })?;
                    // A mixed-dtype op (select on a wider type) returns each gradient in its
                    // operand's dtype.
                    let dtype = cx.aval(i).dtype;
                    if g.dtype() != dtype {
                        g = g.to_dtype(dtype)?;
                    }
                    sink.add(i, g)?;
                }
            }
            Ok(())
        }
        Rule::Expand(_) => vjp_of::backward(&node.op, cx, sink),
        Rule::Explicit(e) => e.vjp(cx, sink),
    }
}

/// The default cotangent of a scalar output.
#[track_caller]
fn seed(output: &Tensor, what: &str) -> Result<Tensor> {
    if output.numel() != 1 {
        return Err(Error::autodiff(
            what,
            format!(
                "a gradient starts from a scalar, and this output has shape {}; reduce it first or give its gradient with backward_with(grad)",
                output.shape()
            ),
        ));
    }
    Ok(Tensor::ones(output.shape(), output.dtype()))
}

#[track_caller]
fn check_seed(output: &Tensor, cotangent: &Tensor) -> Result<()> {
    if cotangent.dtype() != output.dtype() || cotangent.shape() != output.shape() {
        return Err(Error::shape(
            "backward",
            format!("a gradient like the output, {:?}", output.aval()),
            format!("{:?}", cotangent.aval()),
        ));
    }
    Ok(())
}

/// Gradients at `level` of outputs with respect to inputs; the workhorse of [`grad`], tapes and
/// the functional transforms. Values whose outermost level is another one count as not tracked:
/// callers refuse them or strip what is over.
pub(crate) fn gradients_at(
    level: Level,
    outputs: &[(Tensor, Tensor)],
    inputs: &[Tensor],
    create_graph: bool,
    retain: bool,
) -> Result<Vec<Option<Tensor>>> {
    let mut roots = Roots::default();
    for (out, cotangent) in outputs {
        if let Some(edge) = out.edge(level) {
            roots.push((edge, cotangent.clone()));
        }
    }
    let edges: Vec<Option<&Edge>> = inputs.iter().map(|t| t.edge(level)).collect();
    pass(
        level,
        roots,
        Targets::Edges(&edges),
        create_graph,
        retain || create_graph,
    )
}

/// Gradients of the outputs (summed) with respect to `inputs`, without touching `.grad()`.
///
/// Works at the outermost level of the outputs: the ambient graph, or a running tape's.
///
/// # Errors
/// When no output is tracked, an output is not scalar and has no cotangent, an input does not
/// take part (unless `allow_unused`), or the graph was freed.
///
/// ```
/// use entrenar_core::{Tensor, autograd::{grad, GradOptions}};
/// let x = Tensor::from_vec(vec![3.0f64], [1])?.requires_grad()?;
/// let y = x.mul(&x)?.mul(&x)?.sum()?;
/// let again = GradOptions { create_graph: true, ..Default::default() };
/// let dy = grad(&[&y], &[&x], &again)?[0].clone().unwrap(); // 3x²
/// let d2y = grad(&[&dy.sum()?], &[&x], &GradOptions::default())?[0].clone().unwrap(); // 6x
/// assert_eq!((dy.to_vec::<f64>()?[0], d2y.to_vec::<f64>()?[0]), (27.0, 18.0));
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[track_caller]
pub fn grad(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    options: &GradOptions,
) -> Result<Vec<Option<Tensor>>> {
    let level = outputs
        .iter()
        .filter_map(|t| t.level())
        .max()
        .ok_or_else(|| {
            Error::autodiff(
                "grad",
                "no output depends on a tensor that requires gradients",
            )
        })?;
    if !outputs.iter().any(|t| t.edge(level).is_some()) {
        return Err(Error::autodiff(
            "grad",
            "an output belongs to a running forward-mode transform or checkpoint; take gradients outside it, or use value_and_grad",
        ));
    }
    for (i, t) in inputs.iter().enumerate() {
        if t.level().is_some() && t.edge(level).is_none() {
            return Err(Error::autodiff(
                "grad",
                format!(
                    "input {i} is tracked by another transform than the outputs (one of the two was made inside a tape, value_and_grad or jvp); ask each for its own gradients"
                ),
            ));
        }
    }
    if let Some(given) = &options.grad_outputs
        && given.len() != outputs.len()
    {
        return Err(Error::argument(
            "grad",
            format!("{} grad_outputs", outputs.len()),
            given.len(),
        ));
    }
    let mut pairs = Vec::with_capacity(outputs.len());
    for (k, out) in outputs.iter().enumerate() {
        let cotangent = match &options.grad_outputs {
            Some(given) => given[k].clone(),
            None => seed(out, "grad")?,
        };
        check_seed(out, &cotangent)?;
        pairs.push(((*out).clone(), cotangent));
    }
    let inputs: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
    let found = gradients_at(
        level,
        &pairs,
        &inputs,
        options.create_graph,
        options.retain_graph,
    )?;
    if !options.allow_unused
        && let Some(i) = found.iter().position(Option::is_none)
    {
        return Err(Error::autodiff(
            "grad",
            format!("input {i} does not take part in the outputs (set allow_unused to get None)"),
        ));
    }
    Ok(found)
}

/// Accumulates gradients of several outputs into all reachable leaves of the ambient graph.
///
/// # Errors
/// As [`Tensor::backward`].
#[track_caller]
pub fn backward_all(outputs: &[(&Tensor, Option<Tensor>)], options: &GradOptions) -> Result<()> {
    let mut roots = Roots::default();
    for (out, cotangent) in outputs {
        match &out.0 {
            Inner::Ambient(_, edge) => {
                let c = match cotangent {
                    Some(c) => c.clone(),
                    None => seed(out, "backward")?,
                };
                check_seed(out, &c)?;
                roots.push((edge, c));
            }
            Inner::Concrete(_) => {
                return Err(Error::autodiff(
                    "backward",
                    "this tensor does not depend on anything that requires gradients (was it made under no_grad or detached?)",
                ));
            }
            _ => {
                return Err(Error::autodiff(
                    "backward",
                    "this value belongs to a running transform, whose gradients are returned and not accumulated: use value_and_grad, or GradientTape::gradient",
                ));
            }
        }
    }
    let retain = options.retain_graph || options.create_graph;
    pass(
        Level::AMBIENT,
        roots,
        Targets::Leaves,
        options.create_graph,
        retain,
    )?;
    Ok(())
}

impl Tensor {
    /// Accumulates the gradient of this scalar into every leaf that it depends on.
    ///
    /// # Errors
    /// When this is not a scalar (the message names [`Tensor::backward_with`]), nothing requires
    /// gradients, or the graph was freed by an earlier pass.
    #[track_caller]
    pub fn backward(&self) -> Result<()> {
        backward_all(&[(self, None)], &GradOptions::default())
    }

    /// [`Tensor::backward`] from a given gradient of this tensor.
    ///
    /// # Errors
    /// When its shape or dtype differs from this tensor's, and as [`Tensor::backward`].
    #[track_caller]
    pub fn backward_with(&self, gradient: &Tensor) -> Result<()> {
        backward_all(&[(self, Some(gradient.clone()))], &GradOptions::default())
    }

    /// [`Tensor::backward`] that keeps or records the graph.
    ///
    /// # Errors
    /// As [`Tensor::backward`].
    #[track_caller]
    pub fn backward_with_options(&self, options: &GradOptions) -> Result<()> {
        let cotangent = options
            .grad_outputs
            .as_ref()
            .and_then(|g| g.first().cloned());
        backward_all(&[(self, cotangent)], options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_and_differ() {
        let of = |n: u64| {
            let mut h = Spread::default();
            h.write_u64(n);
            h.finish()
        };
        let all: std::collections::HashSet<u64> = (0..1000).map(of).collect();
        assert_eq!(all.len(), 1000);
        let tops: std::collections::HashSet<u64> = (0..1000).map(|n| of(n) >> 56).collect();
        assert!(
            tops.len() > 200,
            "the upper bits, which the table uses, vary: {}",
            tops.len()
        );
        let mut h = Spread::default();
        h.write_usize(5);
        assert_eq!(h.finish(), of(5));
        let bytes = |b: &[u8]| {
            let mut h = Spread::default();
            h.write(b);
            h.finish()
        };
        assert_ne!(bytes(&[1, 2]), bytes(&[2, 1]));
        assert_ne!(bytes(&[1, 2]), bytes(&[3, 2]));
        assert_ne!(bytes(&[1]), bytes(&[]));
        assert_eq!(bytes(&[1, 2]), of(of(1) << 8 | 2));
    }

    #[test]
    fn the_newest_node_comes_first() {
        let x = Tensor::scalar(1.0f64).requires_grad().unwrap();
        let node = |t: &Tensor| match t.edge(Level::AMBIENT) {
            Some(Edge::Node { node, .. }) => node.clone(),
            _ => panic!("not recorded"),
        };
        let (a, b) = (node(&x.exp().unwrap()), node(&x.sin().unwrap()));
        let (a, b) = (Newest(&a), Newest(&b));
        assert!(a < b && a != b && a == Newest(a.0));
        assert_eq!(a.partial_cmp(&b), Some(Ordering::Less));
    }
}
