//! Modules, layers, losses, metrics, optimizers and schedules.
//!
//! A model is a struct that derives [`Module`](derive@Module) and implements [`Module`]. It holds
//! [`Parameter`]s, which are shared cells read as leaves of the ambient graph; an optimizer holds
//! the same cells. Nothing here knows of files or training loops: states are lists of named
//! arrays.
//!
//! ```
//! use entrenar_nn::optim::{Optimizer, Sgd};
//! use entrenar_nn::{Ctx, Init, Linear, Module};
//! use entrenar_core::{DType, Tensor};
//!
//! let model = Linear::new(1, 1, &mut Init::new(0))?;
//! let mut optimizer = Sgd::new(&model, 0.1)?;
//! let x = Tensor::from_vec(vec![-1.0f32, 0.0, 1.0], [3, 1])?;
//! let y = x.mul_scalar(3.0)?.add_scalar(1.0)?;
//! for step in 0..100 {
//!     let error = model.forward(&x, &mut Ctx::train(0, step))?.sub(&y)?;
//!     error.square()?.mean()?.backward()?;
//!     optimizer.step()?;
//!     optimizer.zero_grad();
//! }
//! let w = model.weight.value().item::<f32>()?;
//! assert!((w - 3.0).abs() < 1e-3, "{w}");
//! # Ok::<(), entrenar_core::Error>(())
//! ```

// The derive names this crate from outside.
extern crate self as entrenar_nn;

pub mod ctx;
pub mod init;
pub mod layers;
pub mod loss;
pub mod metric;
pub mod module;
pub mod optim;
pub mod parameter;
pub mod schedule;
pub mod state;

pub use ctx::{Ctx, Mode};
pub use entrenar_macros::Module;
pub use init::Init;
pub use layers::*;
pub use loss::{BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, Loss, MSELoss};
pub use metric::{Accuracy, Perplexity};
pub use module::{Item, Module, NamedArrays, NamedParameters, Parameters, Visitor};
pub use parameter::{Buffer, Parameter};
pub use schedule::{
    ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, Schedule, StepLR, WarmUp,
};
pub use state::{LoadOptions, LoadReport};
