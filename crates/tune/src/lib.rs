//! Fine-tuning of finished models with few parameters.
//!
//! [`lora`] puts low-rank adapters on the linear layers and embeddings of any model that has
//! [`entrenar_nn::Projections`], trains them alone, and exchanges them with PEFT. This crate knows
//! layers and files of weights; it knows neither model families nor training loops.
//!
//! [`quant`] keeps frozen weights in 4 bits; an adapter on such a base is QLoRA.

pub mod lora;
pub mod quant;

pub use lora::{LoraConfig, LoraLinear, Targets};
pub use quant::{QuantConfig, QuantizedLinear};

/// A low-rank adapter on a base in 4 bits: a [`LoraLinear`] whose base is a [`QuantizedLinear`].
pub type QLoraLinear = LoraLinear;
