//! [`Tensor`]: a value, or a wrapper of a transform level around another tensor.
//!
//! A tensor is a concrete [`Array`] or one wrapper with a [`Level`] around another tensor of lower
//! levels. Level 0 is the ambient graph of `requires_grad` leaves; every tape, `vjp`, `jvp` and
//! checkpoint takes a fresh higher level. Below the ambient graph there are arrays only, so that its
//! values hold one and no wrapper around it. Operations live in `crate::ops`, transforms in
//! `crate::autograd`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use entrenar_base::{Array, DType, Device, Element, Error, Philox, Result, Shape, dispatch};

use crate::autograd::checkpoint::Region;
use crate::autograd::graph::{Edge, Leaf};
use crate::op::Aval;

/// The rank of a transform: higher levels were opened later and are peeled first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u64);

impl Level {
    /// The ambient graph of `requires_grad` leaves.
    pub(crate) const AMBIENT: Level = Level(0);

    /// A level above all existing ones.
    pub(crate) fn fresh() -> Level {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Level(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An immutable n-dimensional array that may take part in differentiation.
///
/// Cloning copies a pointer; so does an operation on plain values that gives one back. Named methods return `Result`; the operators `&a + &b`, `-`, `*`, `/`
/// panic at the caller's line with the same message.
#[derive(Clone)]
pub struct Tensor(pub(crate) Inner);

#[derive(Clone)]
pub(crate) enum Inner {
    Concrete(Array),
    /// A value with a place in the ambient graph.
    Ambient(Array, Edge),
    Reverse(Arc<Reverse>),
    Dual(Arc<Dual>),
    Region(Arc<InRegion>),
}

/// A value with a place in the graph of `level`, which is above the ambient one.
pub(crate) struct Reverse {
    pub level: Level,
    pub value: Tensor,
    pub edge: Edge,
}

/// A value with its derivative along the direction of `level`.
pub(crate) struct Dual {
    pub level: Level,
    pub primal: Tensor,
    pub tangent: Tensor,
}

/// A value inside a checkpointed function.
pub(crate) struct InRegion {
    pub level: Level,
    pub value: Tensor,
    pub region: Arc<Region>,
}

impl Tensor {
    #[inline]
    pub(crate) fn concrete(array: Array) -> Tensor {
        Tensor(Inner::Concrete(array))
    }

    /// A value with a place in the graph of `level`.
    #[inline]
    pub(crate) fn reverse(level: Level, value: Tensor, edge: Edge) -> Tensor {
        if level == Level::AMBIENT {
            return Tensor(Inner::Ambient(value.into_array(), edge));
        }
        Tensor(Inner::Reverse(Arc::new(Reverse { level, value, edge })))
    }

    pub(crate) fn dual(level: Level, primal: Tensor, tangent: Tensor) -> Tensor {
        Tensor(Inner::Dual(Arc::new(Dual {
            level,
            primal,
            tangent,
        })))
    }

    pub(crate) fn in_region(level: Level, value: Tensor, region: Arc<Region>) -> Tensor {
        Tensor(Inner::Region(Arc::new(InRegion {
            level,
            value,
            region,
        })))
    }

    /// The level of the outermost wrapper.
    #[inline]
    pub(crate) fn level(&self) -> Option<Level> {
        match &self.0 {
            Inner::Concrete(_) => None,
            Inner::Ambient(..) => Some(Level::AMBIENT),
            Inner::Reverse(r) => Some(r.level),
            Inner::Dual(d) => Some(d.level),
            Inner::Region(r) => Some(r.level),
        }
    }

    /// The value under the wrapper of `level`, which is above the ambient one; itself when it
    /// carries no such wrapper on top.
    pub(crate) fn peel(&self, at: Level) -> &Tensor {
        match &self.0 {
            Inner::Reverse(r) if r.level == at => &r.value,
            Inner::Dual(d) if d.level == at => &d.primal,
            Inner::Region(r) if r.level == at => &r.value,
            _ => self,
        }
    }

    /// The value under the wrapper of any `level`.
    pub(crate) fn below(&self, level: Level) -> Tensor {
        match &self.0 {
            Inner::Ambient(a, _) if level == Level::AMBIENT => Tensor::concrete(a.clone()),
            _ => self.peel(level).clone(),
        }
    }

    /// The value without the wrappers of levels above `at`: of transforms that ran inside the one
    /// at `at` and are over.
    pub(crate) fn settled(&self, at: Level) -> &Tensor {
        let mut t = self;
        while let Some(level) = t.level().filter(|&l| l > at) {
            t = t.peel(level);
        }
        t
    }

    /// The gradient edge at `level`, if it is tracked there.
    #[inline]
    pub(crate) fn edge(&self, at: Level) -> Option<&Edge> {
        match &self.0 {
            Inner::Ambient(_, edge) if at == Level::AMBIENT => Some(edge),
            Inner::Reverse(r) if r.level == at => Some(&r.edge),
            _ => None,
        }
    }

    /// The concrete numbers beneath all levels.
    #[inline]
    pub fn array(&self) -> &Array {
        let mut t = self;
        loop {
            t = match &t.0 {
                Inner::Concrete(a) | Inner::Ambient(a, _) => return a,
                Inner::Reverse(r) => &r.value,
                Inner::Dual(d) => &d.primal,
                Inner::Region(r) => &r.value,
            }
        }
    }

    fn into_array(self) -> Array {
        match self.0 {
            Inner::Concrete(a) | Inner::Ambient(a, _) => a,
            _ => self.array().clone(),
        }
    }

    /// The concrete array, writable in place, when this tensor is plain and nobody else holds it.
    pub(crate) fn exclusive_array(&mut self) -> Option<&mut Array> {
        match &mut self.0 {
            Inner::Concrete(a) if a.is_exclusive() => Some(a),
            _ => None,
        }
    }

    // ---- creation ----------------------------------------------------------------------------

    /// From row-major values.
    ///
    /// # Errors
    /// When the count differs from the shape's.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let t = Tensor::from_vec(vec![1.0f32, 2.0], [2])?;
    /// assert!(Tensor::from_vec(vec![1.0f32, 2.0], [3]).is_err());
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn from_vec<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        entrenar_cpu::init();
        Ok(Self::concrete(Array::from_vec(values, shape)?))
    }

    /// From a slice, row-major.
    ///
    /// # Errors
    /// When the count differs from the shape's.
    #[track_caller]
    pub fn from_slice<T: Element>(values: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        entrenar_cpu::init();
        Ok(Self::concrete(Array::from_slice(values, shape)?))
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        entrenar_cpu::init();
        Self::concrete(Array::scalar(value))
    }

    /// Filled with `value` in `dtype`.
    ///
    /// # Panics
    /// At the caller's line when the number of elements overflows or there is no memory for it;
    /// [`Tensor::try_full`] returns an error instead.
    #[track_caller]
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType) -> Tensor {
        entrenar_cpu::init();
        Self::concrete(Array::full_as(shape, value, dtype))
    }

    /// [`Tensor::full`] for shapes that come from outside the program.
    ///
    /// # Errors
    /// When the number of elements overflows or there is no memory for it.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// assert!(Tensor::try_full([1 << 45], 0.0, DType::F64).is_err());
    /// assert_eq!(Tensor::try_full([2], 1.0, DType::F32)?.to_vec::<f32>()?, [1.0, 1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn try_full(shape: impl Into<Shape>, value: f64, dtype: DType) -> Result<Tensor> {
        entrenar_cpu::init();
        Ok(Self::concrete(Array::try_full_as(shape, value, dtype)?))
    }

    /// Filled with zeros.
    ///
    /// # Panics
    /// As [`Tensor::full`].
    #[track_caller]
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        Self::full(shape, 0.0, dtype)
    }

    /// Filled with ones.
    ///
    /// # Panics
    /// As [`Tensor::full`].
    #[track_caller]
    pub fn ones(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        Self::full(shape, 1.0, dtype)
    }

    /// Zeros of this tensor's shape and dtype.
    ///
    /// # Panics
    /// When there is no memory for them.
    #[track_caller]
    pub fn zeros_like(&self) -> Tensor {
        Self::zeros(self.shape(), self.dtype())
    }

    /// Ones of this tensor's shape and dtype.
    ///
    /// # Panics
    /// When there is no memory for them.
    #[track_caller]
    pub fn ones_like(&self) -> Tensor {
        Self::ones(self.shape(), self.dtype())
    }

    /// `start, start + step, …` below `end`.
    ///
    /// # Errors
    /// When `step` is zero or points away from `end`, or there is no memory for so many numbers.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType};
    /// assert_eq!(Tensor::arange(0.0, 5.0, 2.0, DType::I64)?.to_vec::<i64>()?, [0, 2, 4]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn arange(start: f64, end: f64, step: f64, dtype: DType) -> Result<Tensor> {
        let count = (end - start) / step;
        if step == 0.0 || !count.is_finite() || count < 0.0 {
            return Err(Error::argument(
                "arange",
                "a finite range that `step` walks from start to end",
                format!("start {start}, end {end}, step {step}"),
            ));
        }
        let n = count.ceil() as usize; // saturates, and the shape is refused below
        entrenar_cpu::init();
        let array = dispatch!(dtype, T => Array::try_build([n], |out: &mut [T]| {
            for (i, o) in out.iter_mut().enumerate() {
                *o = T::from_f64(start + i as f64 * step);
            }
            Ok(())
        }))?;
        Ok(Self::concrete(array))
    }

    /// The identity matrix `[n, n]`.
    ///
    /// # Panics
    /// As [`Tensor::full`].
    #[track_caller]
    pub fn eye(n: usize, dtype: DType) -> Tensor {
        entrenar_cpu::init();
        Self::concrete(dispatch!(dtype, T => Array::build([n, n], |out: &mut [T]| {
            out.fill(T::from_f64(0.0));
            let diagonal = out.iter_mut().step_by(n.saturating_add(1));
            diagonal.for_each(|o| *o = T::from_f64(1.0));
        })))
    }

    /// Uniform numbers in [0, 1) from `seed`: the same seed gives the same bits everywhere.
    ///
    /// # Errors
    /// When the dtype is not a float.
    #[track_caller]
    pub fn rand(shape: impl Into<Shape>, dtype: DType, seed: u64) -> Result<Tensor> {
        Self::rand_from(shape, dtype, &Philox::new(seed, 0))
    }

    /// Standard normal numbers from `seed`.
    ///
    /// # Errors
    /// When the dtype is not a float.
    #[track_caller]
    pub fn randn(shape: impl Into<Shape>, dtype: DType, seed: u64) -> Result<Tensor> {
        Self::randn_from(shape, dtype, &Philox::new(seed, 0))
    }

    /// Uniform numbers in [0, 1) from a generator stream. Errors as [`Tensor::rand`].
    #[track_caller]
    pub fn rand_from(shape: impl Into<Shape>, dtype: DType, rng: &Philox) -> Result<Tensor> {
        Ok(Self::concrete(entrenar_cpu::random::uniform(
            shape.into(),
            dtype,
            rng,
        )?))
    }

    /// Standard normal numbers from a generator stream. Errors as [`Tensor::randn`].
    #[track_caller]
    pub fn randn_from(shape: impl Into<Shape>, dtype: DType, rng: &Philox) -> Result<Tensor> {
        Ok(Self::concrete(entrenar_cpu::random::normal(
            shape.into(),
            dtype,
            rng,
        )?))
    }

    // ---- looking -----------------------------------------------------------------------------

    /// The shape.
    pub fn shape(&self) -> &Shape {
        self.array().shape()
    }

    /// The sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        self.array().dims()
    }

    /// The size of dimension `dim` (negative counts from the end).
    ///
    /// # Errors
    /// When there is no such dimension.
    #[track_caller]
    pub fn size(&self, dim: isize) -> Result<usize> {
        let d = self.shape().dim("size", dim)?;
        Ok(self.dims().get(d).copied().unwrap_or(1))
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.array().rank()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.array().numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.array().dtype()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.array().device()
    }

    /// Shape and dtype together.
    pub fn aval(&self) -> Aval {
        Aval::of(self.array())
    }

    /// All elements, row-major.
    ///
    /// # Errors
    /// When `T` is not the dtype.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.array().to_vec()
    }

    /// The only element.
    ///
    /// # Errors
    /// When there is not exactly one element or `T` is not the dtype.
    #[track_caller]
    pub fn item<T: Element>(&self) -> Result<T> {
        self.array().item()
    }

    // ---- differentiation manners ---------------------------------------------------------------

    /// A leaf of the ambient graph with this value: gradients accumulate in [`Tensor::grad`].
    ///
    /// # Errors
    /// When the dtype is not a float, or the tensor belongs to a transform (use
    /// [`GradientTape`](crate::GradientTape) or `value_and_grad` there).
    #[track_caller]
    pub fn requires_grad(&self) -> Result<Tensor> {
        if !self.dtype().is_float() {
            return Err(Error::dtype(
                "requires_grad",
                "a float tensor",
                self.dtype(),
            ));
        }
        if self.level() > Some(Level::AMBIENT) {
            return Err(Error::autodiff(
                "requires_grad",
                "this value belongs to a running transform; watch it with a GradientTape or value_and_grad instead",
            ));
        }
        Ok(Tensor::reverse(
            Level::AMBIENT,
            self.detach(),
            Edge::Leaf(Leaf::new(self.aval())),
        ))
    }

    /// A leaf of the ambient graph with this value whose gradients accumulate in `leaf`: how a
    /// parameter that keeps its gradient cell hands out its current value.
    ///
    /// # Errors
    /// When the shape, dtype or kind of `value` is not what the leaf was made for.
    #[track_caller]
    pub fn from_leaf(value: &Tensor, leaf: &Arc<Leaf>) -> Result<Tensor> {
        if value.aval() != *leaf.aval() || !value.dtype().is_float() {
            return Err(Error::shape(
                "from_leaf",
                format!("a float tensor like {:?}", leaf.aval()),
                format!("{:?}", value.aval()),
            ));
        }
        if value.level().is_some() {
            return Err(Error::autodiff(
                "from_leaf",
                "this value belongs to a graph or transform; detach it first",
            ));
        }
        Ok(Tensor::reverse(
            Level::AMBIENT,
            value.clone(),
            Edge::Leaf(leaf.clone()),
        ))
    }

    /// Whether gradients flow to this tensor at its outermost level (inside a checkpointed
    /// function: at the level around it).
    pub fn is_tracked(&self) -> bool {
        match &self.0 {
            Inner::Ambient(..) | Inner::Reverse(_) => true,
            Inner::Region(r) => r.value.is_tracked(),
            Inner::Concrete(_) | Inner::Dual(_) => false,
        }
    }

    /// Whether this is a leaf: made by the user, not by an operation.
    pub fn is_leaf(&self) -> bool {
        match &self.0 {
            Inner::Ambient(_, edge) => matches!(edge, Edge::Leaf(_)),
            Inner::Reverse(r) => matches!(r.edge, Edge::Leaf(_)),
            Inner::Region(r) => r.value.is_leaf(),
            Inner::Concrete(_) | Inner::Dual(_) => true,
        }
    }

    pub(crate) fn leaf(&self) -> Option<&Arc<Leaf>> {
        let edge = match &self.0 {
            Inner::Ambient(_, edge) => edge,
            Inner::Reverse(r) => &r.edge,
            Inner::Region(r) => return r.value.leaf(),
            Inner::Concrete(_) | Inner::Dual(_) => return None,
        };
        match edge {
            Edge::Leaf(leaf) => Some(leaf),
            Edge::Node { node, .. } => node.retained(),
        }
    }

    /// The gradient accumulated by `backward`, if any. Only leaves and results of
    /// [`Tensor::retain_grad`] have one.
    pub fn grad(&self) -> Option<Tensor> {
        self.leaf().and_then(|l| l.grad())
    }

    /// Replaces the accumulated gradient (clipping, scaling).
    ///
    /// # Errors
    /// When this is not a leaf or the shape or dtype differs.
    #[track_caller]
    pub fn set_grad(&self, gradient: Option<Tensor>) -> Result<()> {
        let leaf = self.leaf().ok_or_else(|| {
            Error::autodiff(
                "set_grad",
                "only leaves made by requires_grad hold a gradient",
            )
        })?;
        if let Some(g) = &gradient
            && g.aval() != self.aval()
        {
            return Err(Error::shape(
                "set_grad",
                format!("{:?}", self.aval()),
                format!("{:?}", g.aval()),
            ));
        }
        leaf.set_grad(gradient);
        Ok(())
    }

    /// Forgets the accumulated gradient.
    pub fn zero_grad(&self) {
        if let Some(l) = self.leaf() {
            l.set_grad(None);
        }
    }

    /// The same numbers outside every transform: nothing flows through.
    pub fn detach(&self) -> Tensor {
        Tensor::concrete(self.array().clone())
    }
}

impl From<Array> for Tensor {
    fn from(a: Array) -> Tensor {
        Tensor::concrete(a)
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.array().fmt(f)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {}", self.dtype(), self.shape())?;
        match &self.0 {
            Inner::Concrete(_) => {}
            Inner::Ambient(_, edge) => write!(f, ", {edge:?}")?,
            Inner::Reverse(r) => write!(f, ", {:?}", r.edge)?,
            Inner::Dual(_) => write!(f, ", dual")?,
            Inner::Region(_) => write!(f, ", checkpointed")?,
        }
        write!(f, ", {})", self.array())
    }
}
