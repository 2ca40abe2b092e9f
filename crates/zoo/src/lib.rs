//! Model architectures and text generation.
//!
//! Each architecture is a configuration (what `config.json` holds) and a module built from it;
//! [`Architecture`] and [`Model`] are the closed sets of both, so that a saved directory can be
//! rebuilt without user code. Published language models are opened from their directories
//! ([`LanguageModel`], with a [`Tokenizer`] as [`TextModel`]); [`generate()`] samples text from any
//! [`CausalLm`]. This crate knows nothing of training loops.
//!
//! ```
//! use entrenar_zoo::{Architecture, Model};
//! use entrenar_nn::{Ctx, Init, Module};
//! use entrenar_core::{DType, Tensor};
//! let text = r#"{"architecture": "mlp", "version": 1, "sizes": [4, 8, 3]}"#;
//! let model = Architecture::from_json(text)?.build(&mut Init::new(0))?;
//! let y = model.forward(&Tensor::ones([2, 4], DType::F32), &mut Ctx::eval())?;
//! assert_eq!(y.dims(), [2, 3]);
//! # Ok::<(), entrenar_core::Error>(())
//! ```

pub mod architecture;
pub mod as_gpt2;
pub mod bert;
pub mod build;
pub mod causal;
pub mod chat;
pub mod cnn;
pub mod decoder;
pub mod generate;
pub mod gpt;
pub mod gpt2;
mod keys;
pub mod mlp;
pub mod pretrained;
pub mod text_model;
pub mod tokenizer;

pub use architecture::{Architecture, Model};
pub use bert::{Bert, BertConfig, BertHead, BertInput, Pooling, PoolingMode, TokenRows};
pub use build::{Arrays, Builder, Exchange, Start};
pub use causal::{CausalLm, LmInput};
pub use chat::ChatTemplate;
pub use cnn::{Cnn, CnnConfig};
pub use decoder::{Decoder, DecoderConfig, KvCache};
pub use generate::{Sampling, generate, generate_batch};
pub use gpt::{Gpt, GptConfig};
pub use gpt2::{Gpt2, Gpt2Config};
pub use mlp::{Mlp, MlpConfig};
pub use pretrained::LanguageModel;
pub use text_model::TextModel;
pub use tokenizer::Tokenizer;
