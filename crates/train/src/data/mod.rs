//! Data: from files to batches.
//!
//! Three kinds of data ([`TextData`], [`TableData`], [`ImageData`]) give
//! [`Dataset`]s, a [`Loader`] gives their [`Batch`]es in a reproducible order,
//! and [`Preprocessing`] remembers beside the model how inputs were made.
//!
//! Promises: hostile files give one clear error, never a panic or an
//! allocation larger than the file justifies; the same seed gives the same
//! batches, whatever the timing, and a loader resumes exactly at any batch.
//! Files: `files` finds, `csv_file` and `idx` parse, `text`, `text_labels`, `masked_text`,
//! `table` and `image` encode, `dataset` and `order` define, `loader` runs, `open` starts
//! from a config.

mod csv_file;
mod dataset;
mod files;
mod idx;
mod image;
mod loader;
mod masked_text;
mod open;
mod order;
mod preprocessing;
mod report;
mod scaling;
pub mod sft;
mod table;
mod table_encoding;
mod text;
mod text_labels;
mod tokenizer;

pub use csv_file::{ColumnKind, Missing};
pub use dataset::{Batch, Dataset, Holdout, IGNORED, Parts, Split, Splits};
pub use files::find_files;
pub use image::{ImageData, ImagePreprocessing, Images};
pub use loader::{Epoch, Loader, LoaderConfig};
pub use masked_text::{MaskedTextData, MaskedTextSpec};
pub(crate) use open::splits;
pub use open::{OpenedData, open_data};
pub use order::{LoaderState, Order};
pub use preprocessing::{PREPROCESS_FILE, Preprocessing, TextPreprocessing};
pub use scaling::Scaling;
pub use table::{TableData, TableSpec, TargetKind};
pub use table_encoding::{Feature, Rows, TablePreprocessing, TargetEncoding};
pub use text::{CoveringWindows, RandomWindows, TextData, TextUnit, Tokens, read_tokens};
pub(crate) use text_labels::read_column;
pub use text_labels::{TextLabelsData, TextLabelsSpec, split_masked};
pub use tokenizer::{ByteTokenizer, CharTokenizer, Tokenizer};
