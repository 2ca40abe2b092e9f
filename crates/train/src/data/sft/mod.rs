//! Supervised fine-tuning: rows of prompts, answers and conversations as tokens with a mask.
//!
//! [`SftData::open`] reads JSONL, JSON, Parquet and plain text files into [`SftSamples`], which
//! know of each token whether it is learned; [`SftDataset`] batches them, packed or not;
//! [`inspect`] prints what a model would learn. Files: `rows` and `parquet_file` read, `formats`
//! understands a row, `templates` and `turns` render conversations, `encode` makes tokens,
//! `packing` fills rows.

mod config;
mod dataset;
mod encode;
mod formats;
mod inspect;
mod packing;
mod parquet_file;
pub(in crate::data) mod rows;
mod samples;
pub(crate) mod templates;
mod turns;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Error, Result};
use entrenar_zoo::Tokenizer;

use super::dataset::{Parts, Splits};
use super::files::find_files;
use super::report::counted;
pub use config::{Fields, NoTarget, Overlong, SftConfig, SftFormat, TrainOnEos};
pub use dataset::SftDataset;
use encode::{Encoded, Encoder};
pub use inspect::inspect;
use rows::{Content, Place};
pub use samples::{SftReport, SftSamples};

/// Reads files for fine-tuning.
///
/// ```no_run
/// use std::sync::Arc;
/// use entrenar_train::data::sft::{SftConfig, SftData, inspect};
/// use entrenar_zoo::Tokenizer;
///
/// let tokenizer = Tokenizer::open("model")?;
/// let config = SftConfig { sequence_length: 512, packing: true, ..SftConfig::default() };
/// let samples = Arc::new(SftData::open(&["chats.jsonl".into()], &config, &tokenizer)?);
/// println!("{}", samples.report());
/// println!("{}", inspect(&samples.dataset(0)?, &tokenizer, 3, false)?);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct SftData;

impl SftData {
    /// The samples of files (`.jsonl`, `.json`, `.parquet`, `.txt`, `.md`), in order.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or a row that cannot be understood, with its place; a tokenizer
    /// without the EOS or chat template that the rows need; data in which nothing would be trained.
    pub fn open(
        paths: &[PathBuf],
        config: &SftConfig,
        tokenizer: &Tokenizer,
    ) -> Result<SftSamples> {
        config.check()?;
        if paths.is_empty() {
            return Err(Error::config("no data path was given"));
        }
        let encoder = Encoder::new(config, tokenizer)?;
        let mut samples = SftSamples::new(config.clone());
        for file in paths {
            read(file, &encoder, &mut samples)?;
        }
        if samples.report().trained_tokens == 0 {
            return Err(samples::nothing(samples.report()));
        }
        Ok(samples)
    }

    /// The datasets of a run: the files of `patterns` relative to `directory`, divided by
    /// `splits` and `seed`, and files of their own for validation and test where `splits` says so.
    /// Beside them the samples of each: of the training files (before division), and of the others.
    ///
    /// # Errors
    ///
    /// As [`SftData::open`] and [`SftSamples::parts`]; a pattern that matches nothing.
    pub fn open_parts<S: AsRef<str>>(
        directory: &Path,
        patterns: &[S],
        splits: &Splits,
        seed: u64,
        config: &SftConfig,
        tokenizer: &Tokenizer,
    ) -> Result<(Parts, Vec<Arc<SftSamples>>)> {
        let samples = Arc::new(Self::open(
            &find_files(directory, patterns)?,
            config,
            tokenizer,
        )?);
        let mut parts = samples.parts(splits, seed)?;
        let mut all = vec![samples];
        for (holdout, part) in [
            (&splits.validation, &mut parts.validation),
            (&splits.test, &mut parts.test),
        ] {
            if let Some(paths) = holdout.paths() {
                let own = Arc::new(Self::open(
                    &find_files(directory, paths)?,
                    config,
                    tokenizer,
                )?);
                *part = Some(Arc::new(own.dataset(seed)?));
                all.push(own);
            }
        }
        Ok((parts, all))
    }
}

/// Rows that are encoded together, by all threads.
const TOGETHER: usize = 512;

fn read(file: &Path, encoder: &Encoder<'_>, samples: &mut SftSamples) -> Result<()> {
    let mut format = None;
    let mut waiting: Vec<(Place, Content)> = Vec::new();
    rows::read_rows(file, &mut |place, content| {
        if format.is_none() {
            let found = encoder.format(&place, &content)?;
            samples.report_mut().conversations |=
                matches!(found, SftFormat::Messages | SftFormat::ShareGpt);
            format = Some(found);
        }
        waiting.push((place, content));
        if waiting.len() == TOGETHER {
            take(&waiting, format.unwrap_or_default(), encoder, samples)?;
            waiting.clear();
        }
        Ok(())
    })?;
    take(&waiting, format.unwrap_or_default(), encoder, samples)
}

/// Encodes rows on all threads and appends them in order.
fn take(
    rows: &[(Place, Content)],
    format: SftFormat,
    encoder: &Encoder<'_>,
    samples: &mut SftSamples,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).max(1);
    let encode = |(place, content): &(Place, Content)| encoder.encode(place, content, format);
    let encoded: Vec<Result<Encoded>> = std::thread::scope(|scope| {
        let work = |part: &'_ [(Place, Content)]| part.iter().map(encode).collect::<Vec<_>>();
        let running: Vec<_> = rows
            .chunks(share)
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        let mut all = Vec::with_capacity(rows.len());
        for thread in running {
            match thread.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    for ((place, _), encoded) in rows.iter().zip(encoded) {
        keep(place, encoded?, samples)?;
    }
    Ok(())
}

/// Cuts or drops what is too long and appends the rest.
fn keep(place: &Place, encoded: Encoded, samples: &mut SftSamples) -> Result<()> {
    let Encoded {
        mut tokens,
        mut trained,
        document,
    } = encoded;
    let (room, overlong) = (samples.config().sequence_length, samples.config().overlong);
    let no_target = samples.config().no_target;
    let count = tokens.len();
    let report = samples.report_mut();
    report.rows += 1;
    report.longest = report.longest.max(count);
    if document {
        if count < 2 {
            report.empty += 1;
            return Ok(());
        }
        report.split += usize::from(count > room);
        // Pieces share a token, so that each token but the first is predicted exactly once.
        for start in (0..count - 1).step_by(room - 1) {
            let end = (start + room).min(count);
            samples.push(&tokens[start..end], &trained[start..end]);
        }
        return Ok(());
    }
    if !trained.iter().skip(1).any(|t| *t) {
        return match no_target {
            NoTarget::Drop => {
                report.without_target += 1;
                Ok(())
            }
            NoTarget::Error => Err(place.fault(
                "nothing in this row is learned: it has no answer, or none of a role to train",
            )),
        };
    }
    if count > room {
        match overlong {
            Overlong::Error => {
                return Err(place.fault(format!(
                    "expected at most {} (`sequence_length`), got {count}",
                    counted(room, "token")
                )));
            }
            Overlong::Drop => {
                report.dropped += 1;
                return Ok(());
            }
            Overlong::Truncate if !trained[1..room].contains(&true) => {
                report.dropped += 1;
                return Ok(());
            }
            Overlong::Truncate => {
                report.truncated += 1;
                tokens.truncate(room);
                trained.truncate(room);
            }
        }
    }
    samples.push(&tokens, &trained);
    Ok(())
}
