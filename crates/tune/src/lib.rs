//! Fine-tuning of finished models with few parameters.
//!
//! [`lora`] puts low-rank adapters on the linear layers of any model that has
//! [`entrenar_nn::Projections`], trains them alone, and exchanges them with PEFT. This crate knows
//! layers and files of weights; it knows neither model families nor training loops.

pub mod lora;

pub use lora::{LoraConfig, LoraLinear, Targets};
