//! Texts with hidden words, for encoders: plain text or rows to padded token batches.
//!
//! Devlin et al., "BERT" (2018): of the tokens of a text, special ones aside, some are chosen; of these
//! 80 % are replaced by the mask token, 10 % by any token, and 10 % stay; the model is to say what
//! stood there. Which tokens are chosen is a function of (seed, row, epoch): training sees other
//! choices each epoch, an evaluation, which asks for epoch 0, always the same. Neighbours:
//! `text_labels.rs` pads in the same way, `sft/rows.rs` reads the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Array, Error, Philox, Result};
use entrenar_zoo::Tokenizer;

use super::dataset::{Batch, Dataset, IGNORED, Parts, Splits, split_rows};
use super::files::find_files;
use super::report::{counted, shown};
use super::sft::rows::{Content, kind, read_rows};
use super::text_labels::join_masked;

/// How texts become rows, and how much of them is hidden.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedTextSpec {
    /// Column or key of the text, in files of rows.
    pub text: String,
    /// Most tokens of a row, special tokens included; longer texts become several rows.
    pub max_length: usize,
    /// Share of the tokens that are to be found; special tokens are never among them.
    pub probability: f64,
}

impl Default for MaskedTextSpec {
    /// `text`, 512 tokens, 15 %.
    fn default() -> Self {
        Self {
            text: "text".into(),
            max_length: 512,
            probability: 0.15,
        }
    }
}

/// Of the chosen tokens, the share that the mask token replaces, and with it that of any token.
const MASKED: f64 = 0.8;
const MASKED_OR_RANDOM: f64 = 0.9;

/// Keeps the draws apart from those of dropout and of splits.
const MASK_STREAM: u64 = 0x6d61_736b_0000_0000;

/// Texts with hidden words, divided into parts.
pub struct MaskedTextData {
    parts: Parts,
    tokens: u64,
    split: usize,
}

/// Rows of one source.
struct Rows {
    tokens: Vec<Vec<u32>>,
    /// Whether a token may be chosen.
    open: Vec<Vec<bool>>,
    vocabulary: u64,
    mask: u32,
    padding: u32,
    probability: f64,
    seed: u64,
}

impl MaskedTextData {
    /// Reads the files that `patterns` name in `directory` (`.txt`, `.md`: one text each; `.jsonl`,
    /// `.json`, `.parquet`: a text per row) and those of the splits that have files of their own.
    ///
    /// # Errors
    /// What is wrong with a file, with its place; a tokenizer without a mask or padding token; a
    /// probability that is not within (0, 1); texts without a token to hide; a split that leaves
    /// nothing on one side.
    pub fn open<S: AsRef<str>>(
        directory: &Path,
        patterns: &[S],
        spec: &MaskedTextSpec,
        tokenizer: &Tokenizer,
        splits: &Splits,
        seed: u64,
    ) -> Result<MaskedTextData> {
        if !(spec.probability > 0.0 && spec.probability < 1.0) {
            return Err(Error::config(format!(
                "expected a share of hidden tokens between 0 and 1 (both excluded), got {:?}",
                spec.probability
            )));
        }
        let missing = |name: &str| {
            Error::config(format!(
                "hiding words needs a {name} token, and the tokenizer names none (`{name}_token` in \
                 tokenizer_config.json)"
            ))
        };
        let mask = tokenizer.mask().ok_or_else(|| missing("mask"))?.id;
        let padding = tokenizer.pad().ok_or_else(|| missing("pad"))?.id;
        let mut split = 0;
        let mut read = |files: &[PathBuf]| -> Result<Arc<Rows>> {
            let mut rows = Rows {
                tokens: Vec::new(),
                open: Vec::new(),
                vocabulary: tokenizer.vocabulary() as u64,
                mask,
                padding,
                probability: spec.probability,
                seed,
            };
            for file in files {
                read_rows(file, &mut |place, content| {
                    let text = match content {
                        Content::Document(text) => text,
                        Content::Row(row) => match row.get(&spec.text) {
                            Some(serde_json::Value::String(text)) => text.clone(),
                            other => {
                                let got = other.map_or("nothing".to_string(), kind);
                                let name = shown(&spec.text);
                                return Err(
                                    place.fault(format!("{name}: expected text, got {got}"))
                                );
                            }
                        },
                    };
                    let pieces = rows.add(&text, spec.max_length, tokenizer);
                    split += usize::from(pieces.map_err(|e| place.fault(e.to_string()))? > 1);
                    Ok(())
                })?;
            }
            if rows.tokens.is_empty() {
                return Err(Error::config(
                    "the texts have no token that could be hidden",
                ));
            }
            Ok(Arc::new(rows))
        };
        let all = read(&find_files(directory, patterns)?)?;
        let tokens = all.tokens.iter().map(|row| row.len() as u64).sum();
        let divided = split_rows(all.tokens.len(), splits, seed)?;
        let parts = Parts::of(&all, divided, splits, |paths| {
            Ok(read(&find_files(directory, paths)?)?)
        })?;
        Ok(MaskedTextData {
            tokens,
            split,
            parts,
        })
    }

    /// The datasets. Inputs are i64 `[rows, 2, longest]`, for
    /// [`split_masked`](super::split_masked); targets i64 `[rows, longest]`, [`IGNORED`] where
    /// nothing is asked.
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }

    /// Rows for training, validation and test.
    pub fn row_counts(&self) -> [usize; 3] {
        self.parts.row_counts()
    }

    /// What was read, in a line.
    pub fn report(&self) -> String {
        let [training, ..] = self.row_counts();
        let mut text = format!(
            "data: {} to train on, {} in all",
            counted(training, "row"),
            counted(self.tokens as usize, "token")
        );
        if self.split > 0 {
            text.push_str(&format!(
                "; {} longer than the sequence length became several rows",
                counted(self.split, "text")
            ));
        }
        text
    }
}

impl Rows {
    /// Appends the rows of a text; how many there are.
    fn add(&mut self, text: &str, most: usize, tokenizer: &Tokenizer) -> Result<usize> {
        let plain = tokenizer.encode(text, false)?;
        let whole = tokenizer.encode(text, true)?;
        if plain.iter().all(|token| tokenizer.is_special(*token)) {
            return Ok(0);
        }
        // What the tokenizer puts around a text goes around each of its pieces.
        let Some(start) = whole.windows(plain.len()).position(|part| part == plain) else {
            return Err(Error::other(
                "the tokenizer puts special tokens within a text, which cannot be cut then",
            ));
        };
        let (before, after) = (&whole[..start], &whole[start + plain.len()..]);
        let around = before.len() + after.len();
        if most <= around {
            return Err(Error::argument(
                "data.sequence_length",
                format!("room for more than {around} special tokens"),
                most,
            ));
        }
        let mut pieces = 0;
        for piece in plain.chunks(most - around) {
            let open: Vec<bool> = piece.iter().map(|t| !tokenizer.is_special(*t)).collect();
            if !open.contains(&true) {
                continue;
            }
            self.tokens.push([before, piece, after].concat());
            let closed = |part: &[u32]| vec![false; part.len()];
            self.open
                .push([closed(before), open, closed(after)].concat());
            pieces += 1;
        }
        Ok(pieces)
    }

    /// A row with hidden tokens, and what stood there.
    fn hidden(&self, row: usize, epoch: u64) -> (Vec<u32>, Vec<i64>) {
        let (mut tokens, open) = (self.tokens[row].clone(), &self.open[row]);
        let mut targets = vec![IGNORED; tokens.len()];
        // A row and an epoch have a generator of their own.
        let stream = Philox::new(self.seed ^ MASK_STREAM, epoch).word64(row as u64);
        let draws = Philox::new(self.seed, stream);
        let places: Vec<usize> = (0..tokens.len()).filter(|at| open[*at]).collect();
        let mut chosen: Vec<usize> = places.clone();
        chosen.retain(|at| draws.uniform64(3 * *at as u64) < self.probability);
        if chosen.is_empty() {
            // A short text in which chance chose nothing would be of no use.
            let at = draws.below(3 * tokens.len() as u64, places.len() as u64);
            chosen.push(places[at as usize]);
        }
        for at in chosen {
            targets[at] = i64::from(tokens[at]);
            let way = draws.uniform64(3 * at as u64 + 1);
            if way < MASKED {
                tokens[at] = self.mask;
            } else if way < MASKED_OR_RANDOM {
                tokens[at] = draws.below(3 * at as u64 + 2, self.vocabulary) as u32;
            }
        }
        (tokens, targets)
    }
}

impl Dataset for Rows {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        self.batch_of_epoch(indices, 0)
    }

    fn batch_of_epoch(&self, indices: &[usize], epoch: u64) -> Result<Batch> {
        let (rows, answers): (Vec<Vec<u32>>, Vec<Vec<i64>>) =
            indices.iter().map(|&row| self.hidden(row, epoch)).unzip();
        let inputs = join_masked(&rows, self.padding)?;
        let longest = inputs.dims()[2];
        let mut targets = Vec::with_capacity(rows.len() * longest);
        for answer in answers {
            targets.extend(&answer);
            targets.resize(targets.len() + longest - answer.len(), IGNORED);
        }
        let targets = Array::from_vec(targets, [rows.len(), longest])?;
        Ok(Batch::new(inputs, targets, rows.len()))
    }
}
