//! **entrenar** trains neural networks: tensors with automatic differentiation, layers, optimizers, a training loop
//! driven by one YAML file, and a binary of the same name behind the default feature `cli`.
//!
//! This crate is the façade: it re-exports the floors below it and adds nothing of its own but the command line
//! (`src/main.rs`, `src/cli/`). Use `default-features = false` for the library alone.
//!
//! ```
//! use entrenar::prelude::*;
//!
//! let model = Linear::new(2, 1, &mut Init::new(0))?;
//! let mut optimizer = AdamW::new(&model, 0.01)?;
//! let x = Tensor::randn([8, 2], DType::F32, 0)?;
//! let y = x.sum_dim(&[1], true)?;
//! for step in 0..300 {
//!     let error = model.forward(&x, &mut Ctx::train(0, step))?.sub(&y)?;
//!     error.square()?.mean()?.backward()?;
//!     optimizer.step()?;
//!     optimizer.zero_grad();
//! }
//! let loss = model.forward(&x, &mut Ctx::eval())?.sub(&y)?.square()?.mean()?;
//! assert!(loss.item::<f32>()? < 0.01);
//! # Ok::<(), entrenar::Error>(())
//! ```

pub use entrenar_base as base;
pub use entrenar_core as core;
pub use entrenar_cpu as cpu;
pub use entrenar_io as io;
pub use entrenar_nn as nn;
pub use entrenar_train as train;
pub use entrenar_tune as tune;
pub use entrenar_zoo as zoo;

pub use entrenar_core::{Array, DType, Device, Error, ErrorKind, Result, Shape, Tensor};

/// What most programs need: `use entrenar::prelude::*;`.
pub mod prelude {
    pub use entrenar_core::autograd::{
        CustomOp, DualTensor, GradCheck, GradOptions, check_gradient, checkpoint, grad, hessian,
        hvp, jacfwd, jacobian, jacrev, jvp, linearize, value_and_grad, vjp,
    };
    pub use entrenar_core::{Array, DType, Device, GradientTape, Shape, Tensor, no_grad};
    pub use entrenar_nn::optim::{Adam, AdamW, Optimizer, SGD, Sgd};
    pub use entrenar_nn::*;
    pub use entrenar_train::config::{self, Config, Task};
    pub use entrenar_train::data::{Batch, Dataset, Loader, LoaderConfig, Split};
    pub use entrenar_train::run::Mode as MetricMode;
    pub use entrenar_train::trainer::{
        BinaryCrossEntropy, Callback, Control, CrossEntropy, EarlyStopping, History,
        LearningRateMonitor, MeanSquaredError, ModelCheckpoint, Moment, Objective, Settings,
        Trainer,
    };
}

// The README's Rust is compiled and run with the documentation examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeExamples;
