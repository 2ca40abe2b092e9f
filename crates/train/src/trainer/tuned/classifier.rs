//! Classifiers of texts: a published encoder with a head for the labels of the data.

use std::path::{Path, PathBuf};

use entrenar_base::{DType, Error, Result};
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Tensor, no_grad};
use entrenar_nn::{Ctx, Init};
use entrenar_zoo::bert::{BertInput, Pooling, TokenRows};
use entrenar_zoo::{Bert, Tokenizer};

use super::encoder::Encoder;
use super::{masked, opening};
use crate::config::{self, Config, Loaded, Pretrained, Task};
use crate::data::{
    Batch, Loader, LoaderConfig, Splits, TextLabelsData, TextLabelsSpec, read_column, split_masked,
    splits,
};
use crate::run::CONFIG_FILE;
use crate::trainer::evaluate::{Evaluation, evaluate};
use crate::trainer::from_config::{RunOptions, RunOutcome, model_directory, placed};
use crate::trainer::objective::{Measure, Objective, greatest, right_answers};
use crate::trainer::predict::{Prediction, PredictionFormat, write_predictions};

/// Texts that go through the encoder together.
const ROWS: usize = 32;

/// Trains a classifier as a checked config says.
///
/// # Errors
///
/// What is wrong with model, data and run directory, and what training reports.
pub fn run(loaded: &Loaded, base: &Pretrained, options: RunOptions<'_>) -> Result<RunOutcome> {
    let config = &loaded.config;
    let (directory, tokenizer, data) = prepare(loaded, base)?;
    let here = |error: Error| placed(loaded, "model.base", error);
    let init = Init::new(config.seed);
    let (model, fresh) =
        Bert::open_classifier(&directory, data.labels(), Some(DType::F32), init).map_err(here)?;
    let labels = format!("labels: {}", data.labels().join(", "));
    let mut encoder = Encoder::new(model, tokenizer, labels, &fresh);
    if data.cut() > 0 {
        encoder.notes.push(format!(
            "{} texts were longer than data.sequence_length and lost their end",
            data.cut()
        ));
    }
    encoder.train(loaded, &data.parts(), Box::new(Labels), options)
}

/// What training looks at before its first step: the base, its tokenizer and the rows.
///
/// # Errors
///
/// What is wrong with model and data.
pub(super) fn prepare(
    loaded: &Loaded,
    base: &Pretrained,
) -> Result<(PathBuf, Tokenizer, TextLabelsData)> {
    let here = |key: &'static str| move |error: Error| placed(loaded, key, error);
    let directory = opening::find(&base.base)
        .map_err(|error| Error::config(placed(loaded, "model.base", error).to_string()))?;
    let tokenizer = Tokenizer::open(&directory).map_err(here("model.base"))?;
    let context = Bert::context_of(&directory).map_err(here("model.base"))?;
    let data = open_rows(&loaded.config, &tokenizer, context).map_err(here("data"))?;
    Ok((directory, tokenizer, data))
}

/// `context` is the model's.
fn open_rows(config: &Config, tokenizer: &Tokenizer, context: usize) -> Result<TextLabelsData> {
    let spec = spec(config, context)?;
    // The config made its paths absolute: what they are joined to does not matter.
    let here = Path::new("");
    TextLabelsData::open(
        here,
        &config.data.path,
        &spec,
        tokenizer,
        None,
        &splits(&config.data),
        config.seed,
    )
}

/// The config of the run that left a model directory, where there is one for classes beside it.
fn run_of(directory: &Path) -> Option<Config> {
    let file = directory.parent()?.join(CONFIG_FILE);
    let in_run = directory.file_name()? == "model" && file.is_file();
    let loaded = config::load(in_run.then_some(&file)?, &[]).ok()?;
    Some(loaded.config).filter(|config| config.task == Task::SequenceClassification)
}

/// The section `data` in the words of the reader. `context` is the model's.
fn spec(config: &Config, context: usize) -> Result<TextLabelsSpec> {
    let data = &config.data;
    let mut spec = TextLabelsSpec::default();
    for (name, column) in data.fields.iter().flatten() {
        match name.as_str() {
            "text" => spec.text.clone_from(column),
            "label" => spec.label.clone_from(column),
            _ => {
                return Err(Error::config(format!(
                    "data.fields: expected text or label, got `{name}`"
                )));
            }
        }
    }
    spec.max_length = data.sequence_length.unwrap_or(spec.max_length.min(context));
    if spec.max_length > context {
        return Err(Error::config(format!(
            "data.sequence_length: expected at most the model's context of {context}, got {}",
            spec.max_length
        )));
    }
    Ok(spec)
}

/// Cross-entropy of the labels; metric `accuracy`.
struct Labels;

impl Objective<Bert> for Labels {
    fn measure(&self, model: &Bert, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        let (tokens, mask) = split_masked(&batch.inputs)?;
        let (tokens, mask) = (Tensor::from(tokens), Tensor::from(mask));
        let input = BertInput {
            mask: Some(&mask),
            ..BertInput::default()
        };
        let logits = model.forward_with(&tokens, input, cx)?;
        let targets = Tensor::from(batch.targets.clone());
        let right = right_answers(&logits, &targets)?;
        let loss = logits.cross_entropy(
            &targets,
            &CrossEntropy {
                reduction: Reduction::Sum,
                ..CrossEntropy::default()
            },
        )?;
        Ok(Measure {
            loss,
            sums: vec![("accuracy", right as f64)],
        })
    }
}

/// An encoder and its tokenizer in use: labels for texts, or vectors.
pub struct TextClassifier {
    model: Bert,
    tokenizer: Tokenizer,
    pooling: Pooling,
    /// The columns and lengths that it was trained on, as far as its run tells.
    spec: TextLabelsSpec,
}

impl TextClassifier {
    /// Whether a path holds an encoder.
    pub fn is_in(path: &Path) -> bool {
        entrenar_zoo::pretrained::read_config(&model_directory(path))
            .is_ok_and(|config| config.get("model_type").is_some_and(|t| t == "bert"))
    }

    /// Opens a model directory or the final model of a run.
    ///
    /// # Errors
    ///
    /// A file that is missing or damaged, or weights that do not fit.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = model_directory(path);
        let model = Bert::open(&directory, Some(DType::F32))?;
        let context = model.config().max_position_embeddings;
        let spec = match run_of(&directory) {
            Some(config) => spec(&config, context)?,
            None => TextLabelsSpec {
                max_length: TextLabelsSpec::default().max_length.min(context),
                ..TextLabelsSpec::default()
            },
        };
        Ok(Self {
            model,
            tokenizer: Tokenizer::open(&directory)?,
            pooling: Pooling::open(&directory)?.unwrap_or_default(),
            spec,
        })
    }

    /// The labels that it tells apart; none for an encoder without a head for them.
    pub fn labels(&self) -> Vec<String> {
        match self.model.classifier {
            Some(_) => self.model.config().labels(),
            None => Vec::new(),
        }
    }

    /// The probability of each label for each of `texts`.
    ///
    /// # Errors
    ///
    /// An encoder without a head for labels, or a tokenizer without padding.
    pub fn classify(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        if self.model.classifier.is_none() {
            return Err(Error::config(
                "the model has no classifier: train one with task `sequence-classification`",
            ));
        }
        let padding = self.tokenizer.pad().map(|token| token.id).ok_or_else(|| {
            Error::config(
                "the tokenizer names no padding token (`pad_token` in tokenizer_config.json)",
            )
        })?;
        let longest = self.model.config().max_position_embeddings;
        let classes = self.labels().len();
        let mut all = Vec::with_capacity(texts.len());
        for part in texts.chunks(ROWS) {
            let mut rows = Vec::with_capacity(part.len());
            for text in part {
                let (tokens, _) = self.tokenizer.encode_at_most(text, longest)?;
                rows.push(tokens);
            }
            let rows = TokenRows::new(&rows, padding)?;
            let input = BertInput {
                mask: Some(&rows.mask),
                ..BertInput::default()
            };
            let logits = no_grad(|| {
                self.model
                    .forward_with(&rows.tokens, input, &mut Ctx::eval())
            })?;
            let odds = logits.softmax(-1)?.to_vec::<f32>()?;
            all.extend(odds.chunks(classes.max(1)).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// A vector for each of `texts`, pooled as the directory says (the mean over the tokens where it
    /// says nothing).
    ///
    /// # Errors
    ///
    /// What the tokenizer reports.
    pub fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(texts.len());
        for part in texts.chunks(ROWS) {
            let vectors = no_grad(|| self.model.embed_texts(&self.tokenizer, part, self.pooling))?;
            let width = vectors.dims()[1].max(1);
            all.extend(vectors.to_vec::<f32>()?.chunks(width).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// A label, or a vector, for every text of the file `path` into the file `out`, whose ending says
    /// the format; the number of rows. Tables (.csv, .tsv) and JSON Lines have the text in the
    /// column `text`, or in that of the model's run; any other file is one text a line.
    ///
    /// # Errors
    ///
    /// What is wrong with the files. `out` is then as it was.
    pub fn predict_file(&self, path: &Path, out: &Path) -> Result<usize> {
        let format = PredictionFormat::of(out)?;
        let texts = read_texts(path, &self.spec)?;
        let labels = self.labels();
        write_predictions(out, &labels, format, |each| {
            for (part, texts) in texts.chunks(ROWS).enumerate() {
                let answers: Vec<Prediction> = if labels.is_empty() {
                    let vectors = self.embed(texts)?;
                    vectors.into_iter().map(Prediction::Embedding).collect()
                } else {
                    let answer = |probabilities: Vec<f32>| Prediction::Class {
                        class: greatest(&probabilities),
                        probabilities,
                    };
                    self.classify(texts)?.into_iter().map(answer).collect()
                };
                for (row, answer) in answers.into_iter().enumerate() {
                    each(part * ROWS + row, answer)?;
                }
            }
            Ok(())
        })
    }

    /// Loss and accuracy on labelled texts, in columns `text` and `label` or those of the model's run; of a model with a head for
    /// words, on a text of which some words are hidden, always the same ones.
    ///
    /// # Errors
    ///
    /// What is wrong with the file.
    pub fn evaluate(&self, path: &str) -> Result<Evaluation> {
        if self.model.cls.is_some() {
            return masked::evaluate_words(&self.model, &self.tokenizer, path);
        }
        let labels = self.labels();
        let data = TextLabelsData::open(
            Path::new(""),
            &[path],
            &self.spec,
            &self.tokenizer,
            Some(&labels),
            &Splits::none(),
            0,
        )?;
        let mut loader = Loader::new(data.parts().training, LoaderConfig::evaluation(ROWS))?;
        evaluate(&self.model, &Labels, &mut loader)
    }
}

/// The texts of a file.
fn read_texts(path: &Path, spec: &TextLabelsSpec) -> Result<Vec<String>> {
    let content =
        std::fs::read_to_string(path).map_err(|error| Error::io(path, "cannot read", error))?;
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending.map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => return read_column(path, content.as_bytes(), spec.delimiter, &spec.text),
        Some("tsv") => return read_column(path, content.as_bytes(), b'\t', &spec.text),
        Some("jsonl" | "ndjson") => {}
        _ => return Ok(content.lines().map(str::to_string).collect()),
    }
    let text = |(number, line): (usize, &str)| {
        let value: serde_json::Value = serde_json::from_str(line).map_err(|error| {
            Error::format(path, format!("line {}: no JSON: {error}", number + 1))
        })?;
        let text = value[spec.text.as_str()].as_str().map(str::to_string);
        text.ok_or_else(|| {
            let (line, name) = (number + 1, &spec.text);
            let message = format!("line {line}: expected an object with the text `{name}`");
            Error::format(path, message)
        })
    };
    let lines = content.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(text)
        .collect()
}
