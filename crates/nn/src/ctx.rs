//! [`Ctx`]: what a forward pass needs besides its input.
//!
//! Training or evaluation, random keys, updates of buffers and the layer path travel with the
//! call; no global state changes a number. Keys are a function of (seed, step, order of the
//! draws), so the same step gives the same bits after a restart and on any number of threads.

use std::sync::{Arc, Mutex};

use entrenar_base::memory;
use entrenar_base::{Error, Philox, Result};
use entrenar_core::Tensor;
use entrenar_core::autograd::checkpoint;

use crate::parameter::lock;
use crate::{Buffer, Module, NamedParameters};

/// Whether a pass trains or evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout drops, batch norm measures the batch.
    Train,
    /// Dropout passes, batch norm uses its running statistics.
    Evaluate,
}

/// The context of one forward pass.
///
/// ```
/// use entrenar_nn::{Buffer, Ctx};
/// use entrenar_core::Tensor;
/// let mut cx = Ctx::train(7, 0); // seed and step
/// assert_eq!(cx.key(), Ctx::train(7, 0).key()); // the same draw of the same step
/// assert_ne!(cx.key(), Ctx::train(7, 1).key());
///
/// let count = Buffer::new(&Tensor::scalar(0i64));
/// cx.update(&count, &Tensor::scalar(1i64));
/// assert_eq!(count.value().item::<i64>()?, 0); // not before the step is done
/// cx.commit()?;
/// assert_eq!(count.value().item::<i64>()?, 1);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Ctx {
    mode: Mode,
    keys: Philox,
    drawn: u64,
    path: Option<Arc<str>>,
    updates: Vec<(Buffer, Tensor)>,
    /// α of [`Ctx::with_embedding_noise`].
    noise: Option<f64>,
}

impl Ctx {
    /// A training pass. `step` numbers the passes of a run: each micro-batch of an accumulated
    /// gradient has its own.
    pub fn train(seed: u64, step: u64) -> Ctx {
        Ctx::new(Mode::Train, Philox::new(seed, step))
    }

    /// An evaluation pass: nothing random, no updates.
    pub fn eval() -> Ctx {
        Ctx::new(Mode::Evaluate, Philox::new(0, 0))
    }

    fn new(mode: Mode, keys: Philox) -> Ctx {
        Ctx {
            mode,
            keys,
            drawn: 0,
            path: None,
            updates: Vec::new(),
            noise: None,
        }
    }

    /// With noise on the vectors of tokens while training (NEFTune; Jain et al., "NEFTune: noisy
    /// embeddings improve instruction finetuning", 2023). Models add it through
    /// [`Ctx::noisy_embedding`]; evaluation passes add none.
    ///
    /// ```
    /// use entrenar_nn::Ctx;
    /// use entrenar_core::{DType, Tensor};
    /// let x = Tensor::zeros([2, 8, 2], DType::F32);
    /// let y = Ctx::train(0, 0).with_embedding_noise(4.0).noisy_embedding(&x)?;
    /// let top = y.abs()?.max()?.item::<f32>()?; // uniform in ±4/√(8·2) = ±1
    /// assert!(top > 0.7 && top <= 1.0);
    /// assert_eq!(Ctx::train(0, 0).noisy_embedding(&x)?.to_vec::<f32>()?, [0.0; 32]);
    /// assert_eq!(Ctx::eval().with_embedding_noise(4.0).noisy_embedding(&x)?.to_vec::<f32>()?, [0.0; 32]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[must_use]
    pub fn with_embedding_noise(mut self, alpha: f64) -> Ctx {
        self.noise = Some(alpha);
        self
    }

    /// [`Ctx::with_embedding_noise`] of a pass that is under way; `None` for none.
    pub fn set_embedding_noise(&mut self, alpha: Option<f64>) {
        self.noise = alpha;
    }

    /// x `[.., time, width]`, the vectors of tokens, plus numbers uniform in ±α/√(time·width) where the
    /// pass asks for them.
    ///
    /// # Errors
    /// When x is no float or has fewer than two dimensions.
    #[track_caller]
    pub fn noisy_embedding(&mut self, x: &Tensor) -> Result<Tensor> {
        let Some(alpha) = self.noise.filter(|_| self.is_training()) else {
            return Ok(x.clone());
        };
        let [.., time, width] = *x.dims() else {
            let shape = x.shape();
            return Err(Error::shape(
                "noisy_embedding",
                "vectors [.., time, width]",
                shape,
            ));
        };
        let bound = alpha / ((time * width).max(1) as f64).sqrt();
        let noise = Tensor::rand_from(x.shape(), x.dtype(), &self.draw())?;
        x.add(&noise.mul_scalar(2.0 * bound)?.add_scalar(-bound)?)
    }

    /// Training or evaluation.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.mode == Mode::Train
    }

    fn draw(&mut self) -> Philox {
        self.drawn += 1;
        self.keys.fork(self.drawn)
    }

    /// A fresh random key (seed, stream) for one random operation.
    pub fn key(&mut self) -> (u64, u64) {
        let key = self.draw();
        (key.seed(), key.stream())
    }

    /// The layer path so far, such as `blocks.0.attn`.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("")
    }

    /// Runs `f` as the part `name` of this layer: profiles and anomaly reports name it so.
    pub fn scope<R>(&mut self, name: &str, f: impl FnOnce(&mut Ctx) -> R) -> R {
        let path: Arc<str> = match &self.path {
            None => Arc::from(name),
            Some(parent) => Arc::from(format!("{parent}.{name}")),
        };
        let parent = self.path.replace(path.clone());
        let label = memory::scope_layer(Some(path));
        let result = f(self);
        drop(label);
        self.path = parent;
        result
    }

    /// `module.forward(x)` as the part `name` of this layer.
    ///
    /// # Errors
    /// Whatever the module returns.
    #[track_caller]
    pub fn call(
        &mut self,
        name: &str,
        module: &(impl Module + ?Sized),
        x: &Tensor,
    ) -> Result<Tensor> {
        self.scope(name, |cx| module.forward(x, cx))
    }

    /// The value of a buffer as this pass sees it: with its own updates.
    pub fn buffer(&self, buffer: &Buffer) -> Tensor {
        self.updates
            .iter()
            .rev()
            .find(|(b, _)| b.id() == buffer.id())
            .map_or_else(|| buffer.value(), |(_, value)| value.clone())
    }

    /// Sets a buffer when the pass is committed.
    pub fn update(&mut self, buffer: &Buffer, value: &Tensor) {
        self.updates.push((buffer.clone(), value.detach()));
    }

    /// Makes the updates of this pass take effect. A pass that is dropped without it leaves every
    /// buffer as it was (a skipped step).
    ///
    /// # Errors
    /// When an update has another shape or dtype than its buffer.
    #[track_caller]
    pub fn commit(&mut self) -> Result<()> {
        for (buffer, value) in self.updates.drain(..) {
            buffer.set(&value)?;
        }
        Ok(())
    }

    /// `module.forward(x)` without keeping what its backward pass needs; that is recomputed then
    /// (activation checkpointing). The replay draws the same random keys and its buffer updates
    /// are discarded.
    ///
    /// # Errors
    /// Whatever the module returns; in the backward pass also when a parameter of the module was
    /// changed since the forward pass, because the replay would compute something else.
    #[track_caller]
    pub fn checkpoint<M>(&mut self, module: &M, x: &Tensor) -> Result<Tensor>
    where
        M: Module + Clone + 'static,
    {
        let parameters = module.named_parameters();
        let module = module.clone();
        self.checkpoint_with(parameters, x, move |x, cx| module.forward(x, cx))
    }

    /// [`Ctx::checkpoint`] of any function of `x` whose `parameters` are those.
    ///
    /// # Errors
    /// As there.
    ///
    /// ```
    /// use entrenar_nn::{Ctx, Init, Linear, Module, Parameters};
    /// use entrenar_core::{DType, Tensor};
    /// use std::sync::Arc;
    /// let layer = Arc::new(Linear::new(2, 3, &mut Init::new(0))?);
    /// let x = Tensor::ones([4, 2], DType::F32);
    /// let inner = layer.clone();
    /// let run = move |x: &Tensor, cx: &mut Ctx| inner.forward(x, cx)?.tanh();
    /// let y = Ctx::train(0, 0).checkpoint_with(layer.named_parameters(), &x, run)?;
    /// y.sum()?.backward()?;
    /// assert!(layer.weight.grad().is_some());
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn checkpoint_with(
        &mut self,
        parameters: NamedParameters,
        x: &Tensor,
        run: impl Fn(&Tensor, &mut Ctx) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let versions: Vec<_> = parameters
            .into_iter()
            .map(|(name, p)| (name, p.version(), p))
            .collect();
        let (mode, keys, path) = (self.mode, self.draw(), self.path.clone());
        let noise = self.noise;
        // Filled by the first run; a replay finds it taken.
        let updates = Arc::new(Mutex::new(Some(Vec::new())));
        let first_updates = updates.clone();
        let function = move |inputs: &[Tensor]| {
            for (name, version, p) in &versions {
                if p.version() != *version {
                    return Err(Error::autodiff(
                        "checkpoint",
                        format!("parameter {name} changed between the forward pass and its replay"),
                    ));
                }
            }
            let mut cx = Ctx::new(mode, keys);
            cx.path = path.clone();
            cx.noise = noise;
            let _label = memory::scope_layer(path.clone());
            let y = run(&inputs[0], &mut cx)?;
            if let Some(list) = lock(&updates).as_mut() {
                list.append(&mut cx.updates);
            }
            Ok(vec![y])
        };
        let mut outputs = checkpoint(function, &[x])?;
        self.updates
            .extend(lock(&first_updates).take().into_iter().flatten());
        outputs
            .pop()
            .ok_or_else(|| Error::autodiff("checkpoint", "the function gave no output"))
    }
}
