//! **entrenar** trains neural networks: tensors with automatic differentiation, layers, optimizers, a training loop
//! driven by one YAML file, and a binary of the same name behind the default feature `cli`.
//!
//! This crate is the façade: it re-exports the floors below it and adds nothing of its own but the command line
//! (`src/main.rs`, `src/cli/`). Use `default-features = false` for the library alone.
//!
//! ```
//! use entrenar::prelude::*;
//!
//! let text = config::starter(Task::LanguageModel, None);
//! let loaded = config::parse(text.as_bytes(), "starter.yaml", ".".as_ref(), &[])?;
//! assert_eq!(loaded.config.task, Task::LanguageModel);
//! # Ok::<(), entrenar::train::config::ConfigError>(())
//! ```

pub use entrenar_train as train;

/// What most programs need: `use entrenar::prelude::*;`.
pub mod prelude {
    pub use entrenar_train::config::{self, Config, Task};
}
