//! What was learnt from the data, stored beside the model.
//!
//! `preprocess.json` lets `eval` and `predict` rebuild the very inputs that
//! training saw, without the training files. The format carries a version;
//! unknown versions and kinds are errors. Neighbours: `tokenizer.rs`,
//! `table.rs` and `image.rs` own the parts.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use entrenar_base::{Error, Result};
use entrenar_io::write_atomic;
use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::files::find_files;
use super::image::ImagePreprocessing;
use super::report::unusable;
use super::table_encoding::TablePreprocessing;
use super::text::{CoveringWindows, read_tokens};
use super::tokenizer::Tokenizer;

/// The name of the file beside the model.
pub const PREPROCESS_FILE: &str = "preprocess.json";

const VERSION: u32 = 1;

/// How raw data becomes model inputs, and model outputs become names.
///
/// # Examples
///
/// ```
/// use entrenar_train::data::{Preprocessing, TextPreprocessing, Tokenizer};
///
/// let directory = tempfile::tempdir().unwrap();
/// let stored = Preprocessing::Text(TextPreprocessing { tokenizer: Tokenizer::characters_of("abc"), context_length: 8 });
/// stored.save(directory.path())?;
/// assert_eq!(Preprocessing::load(directory.path())?, stored);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "data", rename_all = "lowercase")]
pub enum Preprocessing {
    /// Text.
    Text(TextPreprocessing),
    /// A table.
    Table(TablePreprocessing),
    /// Images.
    Image(ImagePreprocessing),
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextPreprocessing {
    /// Numbers tokens.
    pub tokenizer: Tokenizer,
    /// The window that training used.
    pub context_length: usize,
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

#[derive(Serialize)]
struct Stored<'a> {
    format_version: u32,
    #[serde(flatten)]
    preprocessing: &'a Preprocessing,
}

impl Preprocessing {
    /// The JSON text, with its format version.
    ///
    /// # Errors
    ///
    /// Statistics that are no numbers have no JSON form.
    pub fn to_json(&self) -> Result<String> {
        let stored = Stored {
            format_version: VERSION,
            preprocessing: self,
        };
        serde_json::to_string_pretty(&stored)
            .map(|text| text + "\n")
            .map_err(|error| {
                Error::other(format!("cannot write the preprocessing as JSON: {error}"))
            })
    }

    /// Reads the JSON text; `file` is for messages.
    ///
    /// # Errors
    ///
    /// Text that is no such JSON, with line and column; another format version.
    pub fn from_json(text: &str, file: &Path) -> Result<Self> {
        let version: VersionOnly =
            serde_json::from_str(text).map_err(|error| Error::format(file, error))?;
        if version.format_version != VERSION {
            return Err(Error::format(
                file,
                format!(
                    "expected format version {VERSION}, got {}",
                    version.format_version
                ),
            ));
        }
        let preprocessing: Self =
            serde_json::from_str(text).map_err(|error| Error::format(file, error))?;
        preprocessing
            .check()
            .map_err(|problem| Error::format(file, problem))?;
        Ok(preprocessing)
    }

    /// Refuses what could only fail later, far from the file.
    fn check(&self) -> std::result::Result<(), String> {
        match self {
            Self::Text(text) if text.context_length == 0 => Err("the context length is 0".into()),
            Self::Text(text) if text.tokenizer.vocabulary_size() == 0 => {
                Err("the vocabulary is empty".into())
            }
            Self::Text(_) => Ok(()),
            Self::Table(table) => table.check(),
            Self::Image(image) => image.check(),
        }
    }

    /// Writes `preprocess.json` into a model directory.
    ///
    /// # Errors
    ///
    /// What the file system reports.
    pub fn save(&self, directory: &Path) -> Result<()> {
        write_atomic(directory.join(PREPROCESS_FILE), self.to_json()?.as_bytes())
    }

    /// Reads `preprocess.json` of a model directory.
    ///
    /// # Errors
    ///
    /// No such file, or not in its format.
    pub fn load(directory: &Path) -> Result<Self> {
        let file = directory.join(PREPROCESS_FILE);
        let text = fs::read_to_string(&file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => unusable(
                &file,
                "no such file: the model does not say how its inputs are made",
            ),
            _ => Error::io(&file, "cannot read the file", error),
        })?;
        Self::from_json(&text, &file)
    }

    /// Reads other files as training read its own: tables, or a directory of images, or text covered
    /// window by window. `require_target` makes missing targets an error (for evaluation); without
    /// it, batches of such data have none. Paths and patterns are relative to `directory`.
    ///
    /// # Errors
    ///
    /// What is wrong with the files, and labels, categories or characters that training did not know.
    pub fn read<S: AsRef<str>>(
        &self,
        directory: &Path,
        patterns: &[S],
        require_target: bool,
    ) -> Result<Arc<dyn Dataset>> {
        match self {
            Self::Text(text) => {
                let tokens = read_tokens(directory, patterns, &text.tokenizer)?;
                Ok(Arc::new(CoveringWindows::new(
                    Arc::new(tokens),
                    text.context_length,
                )?))
            }
            Self::Table(table) => Ok(Arc::new(
                table.read(&find_files(directory, patterns)?, require_target)?,
            )),
            Self::Image(image) => match patterns {
                [path] => image.read(&directory.join(path.as_ref()), require_target),
                _ => Err(Error::config(format!(
                    "expected one directory of images, got {} paths",
                    patterns.len()
                ))),
            },
        }
    }

    /// The shape of one input sample, without the batch: `[time]`, `[features]` or `[1, height, width]`.
    pub fn sample_shape(&self) -> Vec<usize> {
        match self {
            Self::Text(text) => vec![text.context_length],
            Self::Table(table) => table.sample_shape(),
            Self::Image(image) => vec![1, image.size[0], image.size[1]],
        }
    }

    /// How many outputs the model needs: tokens, labels, or 1 for a number.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Text(text) => text.tokenizer.vocabulary_size(),
            Self::Table(_) | Self::Image(_) => self.labels().len().max(1),
        }
    }

    /// Label names in the order of their numbers; empty where there are none.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Text(_) => &[],
            Self::Table(table) => table.labels(),
            Self::Image(image) => &image.labels,
        }
    }
}
