//! Text for language models: one long row of tokens and windows into it.
//!
//! For training, windows of `context_length` tokens begin anywhere
//! ([`TextData::training`], drawn with replacement, nanoGPT's manner). For
//! evaluation, non-overlapping windows cover every prediction of a split
//! exactly once ([`TextData::validation`]), the last one being shorter. In
//! both, targets are the inputs shifted by one token.
//! Neighbours: `files.rs` finds files, `tokenizer.rs` numbers their content.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Array, Error, Result};
use serde::{Deserialize, Serialize};

use super::dataset::{Batch, Dataset, Parts, Splits, split_points};
use super::files::{find_files, read_file};
use super::report::{counted, fault_at};
use super::tokenizer::{CharTokenizer, Tokenizer};

/// How a text is cut into tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextUnit {
    /// Characters; the vocabulary is what occurs in the training and validation files.
    #[default]
    Char,
    /// Bytes; files need not be UTF-8.
    Byte,
}

/// Token numbers, one byte each where the vocabulary allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Of a vocabulary of at most 256.
    Narrow(Vec<u8>),
    /// Of any other vocabulary.
    Wide(Vec<u32>),
}

impl Tokens {
    fn new(vocabulary_size: usize) -> Self {
        if vocabulary_size <= 256 {
            Self::Narrow(Vec::new())
        } else {
            Self::Wide(Vec::new())
        }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(tokens) => tokens.len(),
            Self::Wide(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn extend(&mut self, ids: &[u32]) {
        match self {
            // `new` chose the narrow form because every number is below 256.
            Self::Narrow(tokens) => tokens.extend(ids.iter().map(|&id| id as u8)),
            Self::Wide(tokens) => tokens.extend_from_slice(ids),
        }
    }

    fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::Narrow(tokens) => Self::Narrow(tokens.split_off(at)),
            Self::Wide(tokens) => Self::Wide(tokens.split_off(at)),
        }
    }

    fn push_window(&self, start: usize, length: usize, into: &mut Vec<i64>) {
        match self {
            Self::Narrow(tokens) => into.extend(
                tokens[start..start + length]
                    .iter()
                    .map(|&id| i64::from(id)),
            ),
            Self::Wide(tokens) => into.extend(
                tokens[start..start + length]
                    .iter()
                    .map(|&id| i64::from(id)),
            ),
        }
    }
}

/// The windows that begin at each token: sample `i` is tokens `i..i + context_length` with the next
/// token of each as target.
pub struct RandomWindows {
    tokens: Arc<Tokens>,
    context_length: usize,
}

impl Dataset for RandomWindows {
    fn len(&self) -> usize {
        self.tokens.len() - self.context_length
    }

    // As many windows as lie side by side in the text: an epoch sees each token once on average.
    fn draws_per_epoch(&self) -> usize {
        (self.tokens.len() / self.context_length).max(1)
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        windows(
            &self.tokens,
            indices.iter().copied(),
            indices.len(),
            self.context_length,
        )
    }
}

/// Non-overlapping windows that cover every prediction once; the last may be shorter.
pub struct CoveringWindows {
    tokens: Arc<Tokens>,
    context_length: usize,
}

impl CoveringWindows {
    /// All of `tokens`, which must be at least two.
    ///
    /// # Errors
    ///
    /// Fewer than two tokens: there is nothing to predict.
    pub fn new(tokens: Arc<Tokens>, context_length: usize) -> Result<Self> {
        if context_length == 0 {
            return Err(Error::config(
                "expected a context length of at least 1, got 0",
            ));
        }
        if tokens.len() < 2 {
            return Err(Error::config(format!(
                "expected at least 2 tokens to evaluate on, got {}",
                tokens.len()
            )));
        }
        Ok(Self {
            tokens,
            context_length,
        })
    }

    fn predictions(&self) -> usize {
        self.tokens.len() - 1
    }
}

impl Dataset for CoveringWindows {
    fn len(&self) -> usize {
        self.predictions().div_ceil(self.context_length)
    }

    fn ragged_tail(&self) -> usize {
        usize::from(!self.predictions().is_multiple_of(self.context_length))
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let context = self.context_length;
        // The loader puts the short window in a batch of its own.
        let shortest = indices
            .iter()
            .map(|&index| (self.predictions() - index * context).min(context))
            .min();
        let length = shortest.unwrap_or(context);
        if length < context && indices.len() > 1 {
            return Err(Error::argument(
                "CoveringWindows::batch",
                "the last window alone",
                format!("{indices:?}"),
            ));
        }
        windows(
            &self.tokens,
            indices.iter().map(|index| index * context),
            indices.len(),
            length,
        )
    }
}

/// Inputs and shifted targets, both `[rows, length]`.
fn windows(
    tokens: &Tokens,
    starts: impl Iterator<Item = usize>,
    rows: usize,
    length: usize,
) -> Result<Batch> {
    let mut inputs = Vec::with_capacity(rows * length);
    let mut targets = Vec::with_capacity(rows * length);
    for start in starts {
        tokens.push_window(start, length, &mut inputs);
        tokens.push_window(start + 1, length, &mut targets);
    }
    Ok(Batch::new(
        Array::from_vec(inputs, [rows, length])?,
        Array::from_vec(targets, [rows, length])?,
        rows,
    ))
}

/// Text files read for training.
///
/// # Examples
///
/// ```
/// use entrenar_train::data::{Dataset, Splits, TextData, TextUnit};
///
/// let directory = tempfile::tempdir().unwrap();
/// std::fs::write(directory.path().join("a.txt"), "to be or not to be").unwrap();
/// let data = TextData::open(directory.path(), &["*.txt"], TextUnit::Char, &Splits::validation(0.3), 4)?;
/// assert_eq!(data.tokenizer().vocabulary_size(), 7); // space b e n o r t
/// assert_eq!(data.token_counts(), [12, 6, 0]);
/// let batch = data.parts().training.batch(&[0])?;
/// let ids: Vec<u32> = batch.inputs.to_vec::<i64>()?.iter().map(|&id| id as u32).collect();
/// assert_eq!(data.tokenizer().decode(&ids)?, "to b");
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct TextData {
    tokenizer: Tokenizer,
    context_length: usize,
    training: Arc<Tokens>,
    validation: Option<Arc<Tokens>>,
    test: Option<Arc<Tokens>>,
}

impl TextData {
    /// Reads the files of `patterns` (relative to `directory`), joined in order.
    ///
    /// Fractions hold out the end of the joined text, contiguous: training, validation, test.
    ///
    /// # Errors
    ///
    /// Patterns that match nothing; text that is not UTF-8 (for characters), with its place; no text;
    /// a part too short for one window.
    pub fn open<S: AsRef<str>>(
        directory: &Path,
        patterns: &[S],
        unit: TextUnit,
        splits: &Splits,
        context_length: usize,
    ) -> Result<Self> {
        if context_length == 0 {
            return Err(Error::config(
                "expected a context length of at least 1, got 0",
            ));
        }
        let joined = read_parts(&find_files(directory, patterns)?, unit)?;
        let own_files = |paths: Option<&[String]>| match paths {
            Some(paths) => Ok(Some(read_parts(&find_files(directory, paths)?, unit)?)),
            None => Ok(None),
        };
        let own = [
            own_files(splits.validation.paths())?,
            own_files(splits.test.paths())?,
        ];
        let tokenizer = match unit {
            TextUnit::Byte => Tokenizer::bytes(),
            TextUnit::Char => {
                // The vocabulary is a list of characters, nothing learnt: taking it from all parts
                // keeps a rare character of the validation text from stopping the run.
                let all = joined.iter().chain(own.iter().flatten().flatten());
                Tokenizer::Char(CharTokenizer::from_texts(all.filter_map(Part::text)))
            }
        };
        let mut training = encode_parts(&tokenizer, &joined)?;
        drop(joined);
        let [first, second] = split_points(training.len(), splits, "token")?;
        let (last, middle) = (training.split_off(second), training.split_off(first));
        let [own_validation, own_test] = own;
        let held =
            |name: &str, own: Option<Vec<Part>>, cut: Tokens| -> Result<Option<Arc<Tokens>>> {
                let tokens = match own {
                    Some(parts) => encode_parts(&tokenizer, &parts)?,
                    None if cut.is_empty() => return Ok(None),
                    None => cut,
                };
                if tokens.len() < 2 {
                    return Err(Error::config(format!(
                        "expected at least 2 {name} tokens, got {}",
                        tokens.len()
                    )));
                }
                Ok(Some(Arc::new(tokens)))
            };
        let validation = held("validation", own_validation, middle)?;
        let test = held("test", own_test, last)?;
        if training.len() <= context_length {
            return Err(Error::config(format!(
                "a context length of {context_length} needs at least {} training tokens, got {}",
                context_length + 1,
                training.len()
            )));
        }
        Ok(Self {
            training: Arc::new(training),
            validation,
            test,
            context_length,
            tokenizer,
        })
    }

    /// The tokenizer made for these files.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The numbers of training, validation and test tokens.
    pub fn token_counts(&self) -> [usize; 3] {
        let count = |tokens: &Option<Arc<Tokens>>| tokens.as_ref().map_or(0, |tokens| tokens.len());
        [
            self.training.len(),
            count(&self.validation),
            count(&self.test),
        ]
    }

    /// Training windows that begin anywhere (for random order); validation and test covered once.
    pub fn parts(&self) -> Parts {
        let windows = RandomWindows {
            tokens: Arc::clone(&self.training),
            context_length: self.context_length,
        };
        Parts {
            training: Arc::new(windows),
            validation: self.validation.as_ref().map(|tokens| self.covering(tokens)),
            test: self.test.as_ref().map(|tokens| self.covering(tokens)),
        }
    }

    /// Training windows side by side, for those who want the text in order or in shuffled pieces.
    pub fn covering_training(&self) -> Arc<dyn Dataset> {
        self.covering(&self.training)
    }

    // `open` refused parts of fewer than two tokens and an empty context.
    fn covering(&self, tokens: &Arc<Tokens>) -> Arc<dyn Dataset> {
        Arc::new(CoveringWindows {
            tokens: Arc::clone(tokens),
            context_length: self.context_length,
        })
    }
}

/// Reads files with a tokenizer that exists already: for evaluation and prediction.
///
/// # Errors
///
/// As [`TextData::open`]; a character that the tokenizer does not know, with its place.
pub fn read_tokens<S: AsRef<str>>(
    directory: &Path,
    patterns: &[S],
    tokenizer: &Tokenizer,
) -> Result<Tokens> {
    let unit = match tokenizer {
        Tokenizer::Char(_) => TextUnit::Char,
        Tokenizer::Byte(_) => TextUnit::Byte,
    };
    encode_parts(
        tokenizer,
        &read_parts(&find_files(directory, patterns)?, unit)?,
    )
}

/// One file's content.
enum Part {
    Text(PathBuf, String),
    Bytes(Vec<u8>),
}

impl Part {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(_, text) => Some(text),
            Self::Bytes(_) => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(_, text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

fn read_parts(files: &[PathBuf], unit: TextUnit) -> Result<Vec<Part>> {
    let mut parts = Vec::with_capacity(files.len());
    for file in files {
        let bytes = read_file(file)?;
        parts.push(match unit {
            TextUnit::Byte => Part::Bytes(bytes),
            TextUnit::Char => Part::Text(file.clone(), utf8(file, bytes)?),
        });
    }
    if parts.iter().all(|part| part.len() == 0) {
        return Err(match files {
            [file] => Error::format(file, "the text is empty"),
            _ => Error::config(format!(
                "the text is empty: {} without a byte",
                counted(files.len(), "file")
            )),
        });
    }
    Ok(parts)
}

fn utf8(file: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        // Everything before `at` is valid, so this keeps all of it.
        let before = String::from_utf8_lossy(&bytes[..at]);
        fault_at(
            file,
            place(&before, before.len()),
            format!(
                "the text is not UTF-8 at byte {at} (0x{:02x}); byte-level tokens would take it",
                bytes[at]
            ),
        )
    })
}

/// Line and column (from 1, in characters) of a byte offset.
fn place(text: &str, offset: usize) -> (u64, u64) {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        1 + before.matches('\n').count() as u64,
        1 + before[line_start..].chars().count() as u64,
    )
}

fn encode_parts(tokenizer: &Tokenizer, parts: &[Part]) -> Result<Tokens> {
    let mut tokens = Tokens::new(tokenizer.vocabulary_size());
    for part in parts {
        match part {
            Part::Bytes(bytes) => match &mut tokens {
                Tokens::Narrow(narrow) => narrow.extend_from_slice(bytes),
                Tokens::Wide(wide) => wide.extend(bytes.iter().map(|&byte| u32::from(byte))),
            },
            Part::Text(file, text) => {
                let ids = tokenizer.encode(text).map_err(|error| {
                    let unknown = tokenizer.first_unknown(text).unwrap_or(0);
                    fault_at(file, place(text, unknown), error.to_string())
                })?;
                tokens.extend(&ids);
            }
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn covering_windows_ask_for_every_token_once(count in 2usize..80, context in 1usize..12) {
            let tokens = Arc::new(Tokens::Wide((0..count as u32).collect()));
            let windows = CoveringWindows::new(tokens, context).unwrap();
            let mut asked = Vec::new();
            for index in 0..windows.len() {
                let batch = windows.batch(&[index]).unwrap();
                let inputs = batch.inputs.to_vec::<i64>().unwrap();
                let targets = batch.targets.to_vec::<i64>().unwrap();
                prop_assert!(inputs.iter().zip(&targets).all(|(input, target)| input + 1 == *target));
                let is_tail = index >= windows.len() - windows.ragged_tail();
                prop_assert_eq!(inputs.len() != context, is_tail);
                asked.extend(targets);
            }
            prop_assert!(asked.into_iter().eq(1..count as i64));
        }

        #[test]
        fn random_windows_stay_inside(count in 2usize..60, context in 1usize..12) {
            prop_assume!(count > context);
            let windows = RandomWindows { tokens: Arc::new(Tokens::Wide((0..count as u32).collect())), context_length: context };
            let last = windows.batch(&[windows.len() - 1]).unwrap();
            prop_assert_eq!(last.targets.to_vec::<i64>().unwrap().last().copied(), Some(count as i64 - 1));
        }
    }

    #[test]
    fn places_count_characters() {
        assert_eq!(place("aé\nbé", 0), (1, 1));
        assert_eq!(place("aé\nbé", 3), (1, 3));
        assert_eq!(place("aé\nbé", 5), (2, 2));
    }
}
