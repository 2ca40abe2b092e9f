//! [`Parameter`] and [`Buffer`]: the cells that hold what a model learns and what it remembers.
//!
//! A cell is shared: cloning copies the handle, so a tied weight is the same parameter in two
//! places. A parameter is read as a leaf of the ambient graph that holds its gradient cell, not
//! its numbers: `backward` finds the cell, an optimizer step replaces the numbers. Writes never
//! reach a value that a graph still holds; they copy instead. Names are not stored here, they come
//! from the path of the field (`module.rs`).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use entrenar_base::memory::Tag;
use entrenar_base::{Array, DType, Element, Error, Result, Shape};
use entrenar_core::autograd::Leaf;
use entrenar_core::{Aval, Tensor};

/// A panic in a user's code must not poison later training steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A trained tensor: a shared cell of value, gradient and the flag `trainable`.
///
/// ```
/// use entrenar_nn::Parameter;
/// use entrenar_core::Tensor;
/// let w = Parameter::new(Tensor::from_vec(vec![1.0f32, 2.0], [2])?)?;
/// w.tensor().square()?.sum()?.backward()?;
/// assert_eq!(w.grad().unwrap().to_vec::<f32>()?, [2.0, 4.0]);
/// w.set_trainable(false); // frozen: nothing is recorded for it any more
/// assert!(!w.tensor().is_tracked());
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Parameter(Arc<ParameterCell>);

struct ParameterCell {
    id: u64,
    leaf: Arc<Leaf>,
    state: Mutex<ParameterState>,
}

/// What the lock of a parameter protects; optimizers hold several at once.
pub(crate) struct ParameterState {
    value: Array,
    /// What `tensor()` hands out; dropped before a write so that the write can be in place.
    tensor: Option<Tensor>,
    trainable: bool,
    version: u64,
}

impl ParameterState {
    fn replace(&mut self, value: Array) {
        self.tensor = None;
        self.version += 1;
        self.value = value;
        self.value.retag(Tag::Parameter);
    }

    /// The numbers, for writing: in place when no graph holds them.
    #[track_caller]
    pub fn slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.tensor = None;
        self.version += 1;
        self.value.make_mut::<T>()?;
        // After a copy on write the storage is a new one.
        self.value.retag(Tag::Parameter);
        self.value.make_mut::<T>()
    }

    pub fn trainable(&self) -> bool {
        self.trainable
    }
}

impl Parameter {
    /// A trainable parameter with this value; whatever graph the value came from is left behind.
    ///
    /// # Errors
    /// When the dtype is not a float.
    #[track_caller]
    pub fn new(value: Tensor) -> Result<Parameter> {
        if !value.dtype().is_float() {
            return Err(Error::dtype("Parameter", "a float tensor", value.dtype()));
        }
        let value = value.array().clone();
        value.retag(Tag::Parameter);
        Ok(Parameter(Arc::new(ParameterCell {
            id: next_id(),
            leaf: Leaf::new(Aval::of(&value)),
            state: Mutex::new(ParameterState {
                value,
                tensor: None,
                trainable: true,
                version: 0,
            }),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ParameterState> {
        lock(&self.0.state)
    }

    /// The value to compute with: a leaf of the ambient graph, or a plain tensor when frozen.
    /// Cheap; the same tensor until the value changes.
    pub fn tensor(&self) -> Tensor {
        let mut state = self.lock();
        if let Some(tensor) = &state.tensor {
            return tensor.clone();
        }
        let plain = Tensor::from(state.value.clone());
        let tensor = if state.trainable {
            Tensor::from_leaf(&plain, &self.0.leaf)
                .expect("a parameter keeps the shape and dtype of its leaf")
        } else {
            plain
        };
        state.tensor = Some(tensor.clone());
        tensor
    }

    /// The numbers, outside every graph.
    pub fn value(&self) -> Tensor {
        Tensor::from(self.array())
    }

    /// The numbers as an array; shares memory until the next change.
    pub fn array(&self) -> Array {
        self.lock().value.clone()
    }

    /// Replaces the value; the gradient stays.
    ///
    /// # Errors
    /// When the shape or dtype differs.
    ///
    /// ```
    /// # use entrenar_nn::Parameter;
    /// # use entrenar_core::{DType, Tensor};
    /// let w = Parameter::new(Tensor::zeros([2], DType::F32))?;
    /// w.set(&Tensor::ones([2], DType::F32))?;
    /// assert!(w.set(&Tensor::ones([3], DType::F32)).is_err());
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.aval() != *self.0.leaf.aval() {
            return Err(Error::shape(
                "Parameter::set",
                format!("{:?}", self.0.leaf.aval()),
                format!("{:?}", value.aval()),
            ));
        }
        self.lock().replace(value.array().clone());
        Ok(())
    }

    /// Changes the numbers through a slice, row-major: in place when no graph holds the old
    /// value, on a copy otherwise.
    ///
    /// # Errors
    /// When `T` is not the dtype.
    #[track_caller]
    pub fn with_value_mut<T: Element, R>(&self, change: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        Ok(change(self.lock().slice_mut::<T>()?))
    }

    /// The gradient that `backward` accumulated, if any.
    pub fn grad(&self) -> Option<Tensor> {
        self.0.leaf.grad()
    }

    /// Replaces the gradient.
    ///
    /// # Errors
    /// When the shape or dtype differs.
    #[track_caller]
    pub fn set_grad(&self, gradient: Option<Tensor>) -> Result<()> {
        if let Some(g) = &gradient
            && g.aval() != *self.0.leaf.aval()
        {
            return Err(Error::shape(
                "Parameter::set_grad",
                format!("{:?}", self.0.leaf.aval()),
                format!("{:?}", g.aval()),
            ));
        }
        self.0.leaf.set_grad(gradient.map(|g| g.detach()));
        Ok(())
    }

    /// Forgets the gradient.
    pub fn zero_grad(&self) {
        self.0.leaf.set_grad(None);
    }

    /// Whether gradients flow to it.
    pub fn trainable(&self) -> bool {
        self.lock().trainable
    }

    /// Freezes it (`false`: no edge, no gradient, no update) or thaws it.
    pub fn set_trainable(&self, trainable: bool) {
        let mut state = self.lock();
        if state.trainable != trainable {
            state.trainable = trainable;
            state.tensor = None;
            self.zero_grad();
        }
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.0.leaf.aval().shape.clone()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.leaf.aval().dtype
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.0.leaf.aval().shape.numel()
    }

    /// A number that no other parameter of this process has; clones share it.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Counts the changes of the value, so that a replay can notice one.
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frozen = if self.trainable() { "" } else { ", frozen" };
        write!(f, "Parameter({:?}{frozen})", self.0.leaf.aval())
    }
}

/// A tensor that is saved with the model but not trained: running statistics, counters.
///
/// ```
/// use entrenar_nn::Buffer;
/// use entrenar_core::{DType, Tensor};
/// let mean = Buffer::new(&Tensor::zeros([3], DType::F32));
/// mean.set(&Tensor::ones([3], DType::F32))?;
/// assert_eq!(mean.value().to_vec::<f32>()?, [1.0; 3]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Buffer(Arc<BufferCell>);

struct BufferCell {
    id: u64,
    value: Mutex<Tensor>,
}

impl Buffer {
    /// A buffer with this value.
    pub fn new(value: &Tensor) -> Buffer {
        Buffer(Arc::new(BufferCell {
            id: next_id(),
            value: Mutex::new(value.detach()),
        }))
    }

    /// The value. A forward pass reads it through `Ctx::buffer`, which knows pending updates.
    pub fn value(&self) -> Tensor {
        lock(&self.0.value).clone()
    }

    /// Replaces the value at once; a forward pass uses `Ctx::update` instead.
    ///
    /// # Errors
    /// When the shape or dtype differs.
    #[track_caller]
    pub fn set(&self, value: &Tensor) -> Result<()> {
        let mut slot = lock(&self.0.value);
        if value.aval() != slot.aval() {
            return Err(Error::shape(
                "Buffer::set",
                format!("{:?}", slot.aval()),
                format!("{:?}", value.aval()),
            ));
        }
        *slot = value.detach();
        Ok(())
    }

    /// A number that no other buffer of this process has; clones share it.
    pub fn id(&self) -> u64 {
        self.0.id
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:?})", self.value().aval())
    }
}
