//! Files of entrenar: weights, checkpoints and what is in them.
//!
//! [`SafeTensors`] reads one safetensors file, [`PyTorch`] one file of `torch.save`, [`Weights`] a
//! file, a sharded index or a Hugging Face directory of either; [`write_safetensors`] writes; [`Store`] keeps checkpoints that are whole or
//! absent; [`inspect()`] describes any of them; [`write_atomic`] replaces a small file as one step.
//! This crate knows arrays (`entrenar-base`) but neither tensors with gradients nor layers.
//!
//! Nothing here trusts a file: lengths are checked before memory is taken, names before a path is
//! made of them, and every error says which file and which tensor it is about.
//!
//! ```
//! use entrenar_base::Array;
//! use entrenar_io::{SafeTensors, write_safetensors};
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("model.safetensors");
//! let weight = Array::from_vec(vec![1.0f32, 2.0], [2, 1])?;
//! write_safetensors(&path, &[("weight", weight)], &Default::default())?;
//! let file = SafeTensors::open(&path)?;
//! assert_eq!(file.tensor("weight")?.to_vec::<f32>()?, [1.0, 2.0]);
//! # Ok::<(), entrenar_base::Error>(())
//! ```

pub mod atomic;
mod content;
mod disk;
#[cfg(test)]
mod faults;
pub mod hub;
pub mod inspect;
mod names;
#[cfg(test)]
mod power;
pub mod pytorch;
pub mod safetensors;
pub mod store;
mod weights;

pub use atomic::write_atomic;
pub use inspect::{Inspection, inspect};
pub use pytorch::PyTorch;
pub use safetensors::{SafeTensors, StoredDType, TensorInfo, write_safetensors};
pub use store::{Checkpoint, CheckpointWriter, Report, Store};
pub use weights::{WeightFile, Weights};
