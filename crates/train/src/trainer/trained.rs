//! [`TrainedModel`]: a model with what it takes to use it, on disk and in memory.
//!
//! A model directory has `config.json` (the architecture), `model.safetensors` (weights and buffers)
//! and `preprocess.json` (how raw data becomes inputs). Checkpoints have the same three files, so
//! any of them can be evaluated. Neighbours: `model.rs` knows the architectures, `predict.rs` the
//! tables of predictions.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{DType, Error, Result};
use entrenar_io::safetensors::with_checksums;
use entrenar_io::{Weights, write_atomic, write_safetensors};
use entrenar_nn::{Init, Parameters};
use entrenar_zoo::{Architecture, Gpt2, LanguageModel, Model, Sampling, TextModel, generate_batch};

use serde_json::{Map, Value};

use super::evaluate::{Evaluation, evaluate};
use super::from_config::model_directory;
use super::model::{NextToken, check_fits, check_size};
use super::objective::{CrossEntropy, MeanSquaredError, Objective};
use super::quantized::{open_quantized, stored_quantization};
use super::recipe;
use super::state::{MODEL_FILE, metadata};
use crate::config::{Generate, Task};
use crate::data::{Dataset, Loader, LoaderConfig, PREPROCESS_FILE, Preprocessing, TargetEncoding};

/// The architecture's file, named as Hugging Face names it.
pub(super) const CONFIG_FILE: &str = "config.json";

/// A model and the preprocessing of its data.
pub struct TrainedModel {
    model: Model,
    preprocessing: Preprocessing,
}

impl TrainedModel {
    pub(super) fn new(model: Model, preprocessing: Preprocessing) -> Self {
        Self {
            model,
            preprocessing,
        }
    }

    /// Opens a model directory, a checkpoint, or the final model of a run directory.
    ///
    /// # Errors
    ///
    /// A file that is missing or damaged, or weights that do not fit the architecture.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = model_directory(path);
        let file = directory.join(CONFIG_FILE);
        let text = fs::read_to_string(&file).map_err(|error| {
            let hint = if directory.join("adapter_config.json").is_file() || path.join("model/adapter_config.json").is_file() {
                ": this is an adapter, which goes with --adapter beside the --model that it was trained on"
            } else if newest_is_whole(path) {
                "; the run has not finished, but each of its checkpoints is a model directory"
            } else if path.join("checkpoints").is_dir() {
                "; the run has not finished: --resume continues it"
            } else {
                ""
            };
            Error::io(&file, format!("cannot open the model{hint}"), error)
        })?;
        let architecture = Architecture::from_json(&text).map_err(|error| {
            let map: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
            let message = match (map.contains_key("architecture"), map.get("model_type")) {
                (true, _) => return error.context(file.display()),
                (false, Some(kind)) => format!(
                    "expected a model that a run of ours left, with `architecture`; this is a published one, of \
                     `model_type` {kind}"
                ),
                (false, None) => "`model_type` is missing, which a published model has; one that a run of ours left \
                                  has `architecture`"
                    .to_owned(),
            };
            Error::format(&file, message)
        })?;
        let preprocessing = Preprocessing::load(&directory)?;
        let weights = Weights::open(&directory)?;
        check_size(&architecture, &weights, &directory)?;
        let here = |error: Error| error.context(directory.display());
        let model = architecture.build(&mut Init::new(0)).map_err(here)?;
        model.load_state(&weights.tensors()?).map_err(here)?;
        check_fits(&model, &preprocessing, &directory)?;
        Ok(Self::new(model, preprocessing))
    }

    /// Writes a model directory, replacing one that is there.
    ///
    /// # Errors
    ///
    /// What the file system reports.
    pub fn save(&self, directory: &Path) -> Result<()> {
        replace_directory(directory, |new| {
            for (name, bytes) in self.description()? {
                write_atomic(new.join(name), &bytes)?;
            }
            let state = self.model.state();
            let metadata = with_checksums(metadata(), &state);
            write_safetensors(new.join(MODEL_FILE), &state, &metadata)
        })
    }

    /// The files of a model directory besides the weights.
    pub(super) fn description(&self) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(vec![
            (
                CONFIG_FILE.to_string(),
                self.model.architecture().to_json()?.into_bytes(),
            ),
            (
                PREPROCESS_FILE.to_string(),
                self.preprocessing.to_json()?.into_bytes(),
            ),
        ])
    }

    /// A language model trained here in the form of published ones, with its tokenizer. The end of a
    /// line stands for the end of a text.
    ///
    /// # Errors
    ///
    /// A model that is no language model, or whose output layer is not tied to its embedding.
    pub fn published(&self) -> Result<TextModel> {
        let (Model::Gpt(model), Preprocessing::Text(text)) = (&self.model, &self.preprocessing)
        else {
            return Err(Error::config("expected a language model"));
        };
        let (json, eos) = text.tokenizer.published();
        let mut config = serde_json::Map::new();
        if let Some(eos) = eos {
            config.insert("eos_token".into(), eos.into());
        }
        let tokenizer = entrenar_zoo::Tokenizer::from_json(&json, config)?;
        let model = LanguageModel::Gpt2(Gpt2::of(model)?);
        Ok(TextModel::of(model, tokenizer))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How its inputs are made.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// What it was trained for.
    pub fn task(&self) -> Task {
        match &self.preprocessing {
            Preprocessing::Text(_) => Task::LanguageModel,
            Preprocessing::Image(_) => Task::Classification,
            Preprocessing::Table(table) => match table.target {
                TargetEncoding::Class { .. } => Task::Classification,
                TargetEncoding::Number { .. } => Task::Regression,
            },
        }
    }

    /// What its training minimised.
    pub(super) fn objective(&self) -> Box<dyn Objective<Model>> {
        match self.task() {
            Task::LanguageModel | Task::Sft => Box::new(NextToken),
            Task::Classification | Task::SequenceClassification | Task::MaskedLm => {
                Box::new(CrossEntropy)
            }
            Task::Regression => Box::new(MeanSquaredError),
        }
    }

    /// Reads data of the kind that the model was trained on; see [`Preprocessing::read`].
    ///
    /// # Errors
    ///
    /// What is wrong with the files.
    pub fn read(&self, path: &str, require_target: bool) -> Result<Arc<dyn Dataset>> {
        self.preprocessing
            .read(Path::new(""), &[path], require_target)
    }

    /// Measures the model on all of some data. For a regression, `rmse` and `mae` are on the scale of
    /// the table; `loss` is on the scale of the training.
    ///
    /// # Errors
    ///
    /// What is wrong with the files, and what the model reports.
    pub fn evaluate(&self, path: &str) -> Result<Evaluation> {
        const ROWS: usize = 32;
        let data = self.read(path, true)?;
        let mut loader = Loader::new(data, LoaderConfig::evaluation(ROWS))?;
        let mut evaluation = evaluate(&self.model, &*self.objective(), &mut loader)?;
        if let Preprocessing::Table(table) = &self.preprocessing
            && let TargetEncoding::Number { std, .. } = table.target
        {
            for (name, value) in &mut evaluation.metrics {
                if name == "mae" {
                    *value *= std;
                }
            }
            let rmse = evaluation.loss.sqrt() * std;
            evaluation.metrics.push(("rmse".to_string(), rmse));
        }
        Ok(evaluation)
    }

    /// Continues `prompt`, handing each new token's bytes to `on_bytes`, which returns whether to go
    /// on. A token may be a part of a character.
    ///
    /// # Errors
    ///
    /// A model that is no language model, a prompt that is empty or has characters that the model
    /// does not know, and what sampling reports.
    pub fn generate(
        &self,
        prompt: &str,
        sampling: &Sampling,
        mut on_bytes: impl FnMut(&[u8]) -> bool,
    ) -> Result<()> {
        self.generate_batch(&[prompt], &[sampling.seed], sampling, |_, bytes| {
            on_bytes(bytes)
        })
    }

    /// Continues several prompts in one batch, each with its own seed (`sampling.seed` is not used); `on_bytes` is given
    /// the number of the prompt and new bytes, and ends this text with `false`.
    ///
    /// # Errors
    ///
    /// As [`TrainedModel::generate`], naming the prompt.
    pub fn generate_batch(
        &self,
        prompts: &[&str],
        seeds: &[u64],
        sampling: &Sampling,
        mut on_bytes: impl FnMut(usize, &[u8]) -> bool,
    ) -> Result<()> {
        let (Model::Gpt(model), Preprocessing::Text(text)) = (&self.model, &self.preprocessing)
        else {
            return Err(Error::config(format!(
                "expected a language model, this model ({}) is one of {}",
                self.model.architecture().name(),
                match self.task() {
                    Task::LanguageModel | Task::Sft | Task::MaskedLm => "text",
                    Task::Classification | Task::SequenceClassification => "classification",
                    Task::Regression => "regression",
                }
            )));
        };
        let mut tokens = Vec::with_capacity(prompts.len());
        for (i, prompt) in prompts.iter().enumerate() {
            let the = match prompts.len() {
                1 => "prompt".to_owned(),
                _ => format!("prompt {}", i + 1),
            };
            if prompt.is_empty() {
                let head = if prompts.len() == 1 { "the " } else { "" };
                return Err(Error::config(format!(
                    "{head}{the} is empty: give at least one character"
                )));
            }
            let encoded = text.tokenizer.encode(prompt);
            tokens.push(encoded.map_err(|error| Error::config(format!("{the}: {error}")))?);
        }
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let mut failed = None;
        generate_batch(
            model,
            &tokens,
            seeds,
            sampling,
            &mut |row, token| match text.tokenizer.decode_bytes(&[token]) {
                Ok(bytes) => on_bytes(row, &bytes),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            },
        )?;
        failed.map_or(Ok(()), Err)
    }

    /// The sample that a config wants: its prompt and what the model makes of it.
    pub(super) fn sample(&self, wanted: &Generate, seed: u64) -> Result<String> {
        let sampling = recipe::sampling(wanted, seed);
        let mut bytes = wanted.prompt.clone().into_bytes();
        self.generate(&wanted.prompt, &sampling, |more| {
            bytes.extend_from_slice(more);
            true
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Whether the checkpoints of a run are model directories: those of adapters hold only what is trained.
fn newest_is_whole(run: &Path) -> bool {
    let newest = entrenar_io::Store::at(run.join("checkpoints")).latest();
    let newest = newest.ok().and_then(|found| found.checkpoint);
    newest.is_some_and(|checkpoint| checkpoint.contains(CONFIG_FILE))
}

/// Puts a model directory that `write` fills in the place of one that is there.
///
/// # Errors
///
/// What `write` and the file system report; the old directory is then still there.
pub(super) fn replace_directory(
    directory: &Path,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    // One fixed name: what a kill leaves is overwritten by the next attempt.
    let temporary: PathBuf = directory.with_file_name(format!(".{name}-new"));
    let failed = |what: &'static str| {
        move |error| {
            Error::io(
                directory,
                format!("cannot {what} the model directory"),
                error,
            )
        }
    };
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(failed("prepare"))?;
    }
    fs::create_dir_all(&temporary).map_err(failed("create"))?;
    write(&temporary)?;
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed("replace"))?;
    }
    fs::rename(&temporary, directory).map_err(failed("put in place"))
}

/// Whether a path holds a language model in the published form, itself or as the final model of a run.
pub fn is_text_model(path: &Path) -> bool {
    TextModel::is_in(&model_directory(path))
}

/// The directory of a model: of a run its final model, of a hub's id its snapshot.
///
/// # Errors
///
/// When an id is not at hand.
pub(super) fn resolved(path: &Path) -> Result<PathBuf> {
    if let Some(id) = path.to_str()
        && path.is_relative()
        && !path.exists()
        && id.split('/').count() == 2
    {
        return entrenar_io::hub::resolve(id, None);
    }
    Ok(model_directory(path))
}

/// A language model to fine-tune, to adapt or to merge: a directory as published on a hub, or what a
/// run left. Floats are cast to `dtype` where one is named; weights that are stored in 4 bits stay so.
///
/// # Errors
///
/// What is wrong with the directory.
pub fn open_text_model(path: &Path, dtype: Option<DType>) -> Result<TextModel> {
    let directory = resolved(path)?;
    if is_text_model(&directory) {
        return match stored_quantization(&directory)? {
            Some(_) => open_quantized(&directory, dtype, None, &[]),
            None => TextModel::open(&directory, dtype),
        };
    }
    let here = |error: Error| error.context(directory.display());
    let text = TrainedModel::open(&directory)?.published().map_err(here)?;
    match dtype {
        None | Some(DType::F32) => Ok(text),
        cast => {
            let model = text.model.rebuilt(cast, None).map_err(here)?;
            Ok(TextModel::of(model, text.tokenizer))
        }
    }
}
