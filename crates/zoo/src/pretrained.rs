//! Model directories as the Hugging Face hub lays them out: `config.json` beside weights.
//!
//! Weights are mapped from their files and used where they lie unless another dtype is asked for.
//! A directory is written beside its place and renamed, so that it is whole or absent.

use std::path::{Path, PathBuf};

use entrenar_core::{Array, DType, Error, Result, Tensor};
use entrenar_io::Weights;
use entrenar_nn::{
    Ctx, Init, Lookup, Module, NamedArrays, Parameters, Projection, Projections, Visitor,
};
use serde_json::{Map, Value};

use crate::bert::modern_names;
use crate::build::{Builder, Exchange};
use crate::causal::{CausalLm, LmInput};
use crate::{Bert, BertConfig, Decoder, DecoderConfig, Gpt2, Gpt2Config, Tokenizer};

/// A language model of any family that a directory may hold.
#[non_exhaustive]
pub enum LanguageModel {
    /// Llama, Mistral, Qwen 2, Qwen 3.
    Decoder(Decoder),
    /// GPT-2.
    Gpt2(Gpt2),
}

impl LanguageModel {
    /// The model that a `config.json` describes, with parameters from `builder`.
    ///
    /// # Errors
    /// When the model's type is not known or the config is wrong.
    pub fn new(config: &Map<String, Value>, builder: &mut Builder) -> Result<LanguageModel> {
        match config.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => Ok(LanguageModel::Gpt2(Gpt2::new(
                Gpt2Config::from_json(config)?,
                builder,
            )?)),
            Some("llama" | "mistral" | "qwen2" | "qwen3") => Ok(LanguageModel::Decoder(
                Decoder::new(DecoderConfig::from_json(config)?, builder)?,
            )),
            other => Err(Error::config(format!(
                "config.json: `model_type`: expected gpt2, llama, mistral, qwen2 or qwen3, got {}",
                other.map_or("nothing".into(), |o| format!("`{o}`"))
            ))),
        }
    }

    /// A fresh model of this config.
    ///
    /// # Errors
    /// As [`LanguageModel::new`].
    pub fn random(config: &Map<String, Value>, init: Init) -> Result<LanguageModel> {
        LanguageModel::new(config, &mut Builder::random(init))
    }

    /// The model in a directory. Floats are cast to `dtype`; without one they stay as they are,
    /// mapped from the file.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the weights do not fit the config; the message names
    /// every tensor that does not.
    pub fn open(directory: impl AsRef<Path>, dtype: Option<DType>) -> Result<LanguageModel> {
        read(directory.as_ref(), dtype, None)
    }

    /// [`LanguageModel::open`] for a model of which linear layers are exchanged as they are made, see
    /// [`Builder::exchanging`]: weights that are or will be quantized. Their dtype stays as it is.
    ///
    /// # Errors
    /// As there, and what `exchange` reports.
    pub fn open_exchanging<'a>(
        directory: impl AsRef<Path>,
        dtype: Option<DType>,
        exchange: &'a mut Exchange<'a>,
    ) -> Result<LanguageModel> {
        read(directory.as_ref(), dtype, Some(exchange))
    }

    /// The same model with its floats in `dtype`, those of linear layers too unless `exchange` replaces these, see
    /// [`Builder::exchanging`]. One parameter after the other is cast and the one before it dropped, so that
    /// memory holds the model once. Adapters and quantized layers have to be merged first.
    ///
    /// # Errors
    /// When an adapter or a quantized layer is left, and what `exchange` reports.
    ///
    /// ```
    /// use entrenar_core::DType;
    /// use entrenar_nn::{Init, Parameters};
    /// use entrenar_zoo::LanguageModel;
    /// let config = serde_json::from_str(
    ///     r#"{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 4, "vocab_size": 5}"#,
    /// ).unwrap();
    /// let model = LanguageModel::random(&config, Init::new(0))?.rebuilt(Some(DType::BF16), None)?;
    /// assert!(model.named_parameters().iter().all(|(_, p)| p.dtype() == DType::BF16));
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    pub fn rebuilt<'a>(
        self,
        dtype: Option<DType>,
        exchange: Option<&'a mut Exchange<'a>>,
    ) -> Result<LanguageModel> {
        let (config, state) = (self.config(), self.state());
        drop(self);
        let mut builder = Builder::given(state, dtype);
        if let Some(exchange) = exchange {
            builder = builder.exchanging(exchange);
        }
        let model = LanguageModel::new(&config, &mut builder)?;
        builder.finish(|_| false)?;
        Ok(model)
    }

    /// Whether the output layer is the token embedding.
    pub fn tied(&self) -> bool {
        match self {
            LanguageModel::Decoder(m) => m.config().tie_word_embeddings,
            LanguageModel::Gpt2(_) => true,
        }
    }

    /// The object of its `config.json`.
    pub fn config(&self) -> Map<String, Value> {
        match self {
            LanguageModel::Decoder(m) => m.config().to_json(),
            LanguageModel::Gpt2(m) => m.config().to_json(),
        }
    }

    /// The model as what training and generation need.
    pub fn as_causal(&self) -> &dyn CausalLm {
        match self {
            LanguageModel::Decoder(m) => m,
            LanguageModel::Gpt2(m) => m,
        }
    }

    /// Writes `config.json` and `model.safetensors`, the parameters as they are.
    ///
    /// # Errors
    /// When the directory exists and is not empty, or a file cannot be written; nothing is left
    /// behind then.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<()> {
        save(directory.as_ref(), self.config(), self.state(), None)
    }

    /// [`LanguageModel::save`] with the files of a tokenizer.
    ///
    /// # Errors
    /// As there.
    pub fn save_with(&self, directory: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<()> {
        save(
            directory.as_ref(),
            self.config(),
            self.state(),
            Some(tokenizer),
        )
    }

    /// Writes a directory whose quantized weights are among `state`, in place of the model's own, and
    /// described by `quantization`, which becomes `quantization_config` of `config.json`.
    ///
    /// # Errors
    /// As [`LanguageModel::save`].
    pub fn save_quantized(
        &self,
        directory: impl AsRef<Path>,
        state: &NamedArrays,
        quantization: Map<String, Value>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<()> {
        let mut config = self.config();
        config.insert(QUANTIZATION.into(), quantization.into());
        name_dtype(&mut config, state);
        write_directory(directory.as_ref(), &config, state, tokenizer)
    }
}

/// The key of `config.json` that says how weights are quantized.
const QUANTIZATION: &str = "quantization_config";

/// The model in a directory.
fn read<'a>(
    directory: &Path,
    dtype: Option<DType>,
    exchange: Option<&'a mut Exchange<'a>>,
) -> Result<LanguageModel> {
    let config = read_config(directory)?;
    let named = |e: Error| e.context(directory.display());
    if exchange.is_none() {
        check_plain(&config).map_err(named)?;
    }
    let mut arrays = Weights::open(directory)?.tensors()?;
    if config.get("model_type").and_then(Value::as_str) == Some("gpt2") {
        prefix(&mut arrays, "transformer.");
    }
    let mut builder = Builder::given(arrays, dtype);
    if let Some(exchange) = exchange {
        builder = builder.exchanging(exchange);
    }
    let model = LanguageModel::new(&config, &mut builder).map_err(named)?;
    let tied = model.tied();
    builder
        .finish(|name| {
            let buffer = ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
            buffer.iter().any(|b| name.ends_with(b)) || (tied && name == "lm_head.weight")
        })
        .map_err(named)?;
    Ok(model)
}

/// Refuses a directory whose weights are stored in few bits.
fn check_plain(config: &Map<String, Value>) -> Result<()> {
    match config.get(QUANTIZATION) {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Err(Error::config(format!(
            "config.json: `{QUANTIZATION}`: expected weights in floats, got quantized ones"
        ))),
    }
}

/// Writes a directory whose config names the parameters' dtype; its weights are all in floats.
fn save(
    directory: &Path,
    mut config: Map<String, Value>,
    state: NamedArrays,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    config.remove(QUANTIZATION);
    name_dtype(&mut config, &state);
    write_directory(directory, &config, &state, tokenizer)
}

fn name_dtype(config: &mut Map<String, Value>, state: &NamedArrays) {
    let float = |(_, a): &&(String, Array)| a.dtype().is_float();
    let dtype = state
        .iter()
        .find(float)
        .map_or(DType::F32, |(_, a)| a.dtype());
    let torch = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F64 => "float64",
        _ => "float32",
    };
    config.insert("dtype".into(), torch.into());
    config.insert("torch_dtype".into(), torch.into());
}

impl Bert {
    /// The encoder in a directory, with the head that its config names. Floats are cast to `dtype`;
    /// without one they stay as they are, mapped from the file.
    ///
    /// # Errors
    /// As [`LanguageModel::open`].
    pub fn open(directory: impl AsRef<Path>, dtype: Option<DType>) -> Result<Bert> {
        let directory = directory.as_ref();
        let named = |e: Error| e.context(directory.display());
        let config = read_config(directory)?;
        check_plain(&config).map_err(named)?;
        let config = BertConfig::from_json(&config).map_err(named)?;
        let arrays = modern_names(Weights::open(directory)?.tensors()?, config.head);
        let mut builder = Builder::given(arrays, dtype);
        let model = Bert::new(config, &mut builder).map_err(named)?;
        builder.finish(|_| false).map_err(named)?;
        Ok(model)
    }

    /// The longest sequence of the encoder in a directory.
    ///
    /// # Errors
    /// When `config.json` is missing or wrong.
    pub fn context_of(directory: impl AsRef<Path>) -> Result<usize> {
        let directory = directory.as_ref();
        let config = BertConfig::from_json(&read_config(directory)?)
            .map_err(|e| e.context(directory.display()))?;
        Ok(config.max_position_embeddings)
    }

    /// The encoder in a directory with a head for hidden words, to be trained, and the names of the
    /// parameters that begin afresh: none where the directory has such a head.
    ///
    /// # Errors
    /// As [`LanguageModel::open`].
    pub fn open_for_words(
        directory: impl AsRef<Path>,
        dtype: Option<DType>,
        init: Init,
    ) -> Result<(Bert, Vec<String>)> {
        let directory = directory.as_ref();
        let named = |e: Error| e.context(directory.display());
        let config = BertConfig::from_json(&read_config(directory)?)
            .map_err(named)?
            .with_words();
        let mut arrays = modern_names(Weights::open(directory)?.tensors()?, config.head);
        arrays.retain(|(name, _)| !name.starts_with("classifier."));
        let mut builder = Builder::given(arrays, dtype).with_fresh(init, &["cls."]);
        let model = Bert::new(config, &mut builder).map_err(named)?;
        let made = builder.made().to_vec();
        builder.finish(|_| false).map_err(named)?;
        Ok((model, made))
    }

    /// The encoder in a directory with a head for the classes `labels`, to be trained, and the names
    /// of the parameters that begin afresh. A directory that already classifies into the same
    /// labels, in this order, keeps its head, and nothing begins afresh.
    ///
    /// # Errors
    /// As [`LanguageModel::open`]; when there are fewer than two labels or one comes twice.
    pub fn open_classifier<S: AsRef<str>>(
        directory: impl AsRef<Path>,
        labels: &[S],
        dtype: Option<DType>,
        init: Init,
    ) -> Result<(Bert, Vec<String>)> {
        let directory = directory.as_ref();
        let distinct: std::collections::HashSet<&str> = labels.iter().map(S::as_ref).collect();
        if labels.len() < 2 || distinct.len() != labels.len() {
            let shown: Vec<&str> = labels.iter().map(S::as_ref).collect();
            return Err(Error::argument(
                "bert",
                "two or more different labels",
                format!("{shown:?}"),
            ));
        }
        let named = |e: Error| e.context(directory.display());
        let config = read_config(directory)?;
        check_plain(&config).map_err(named)?;
        let before = BertConfig::from_json(&config).map_err(named)?;
        let keeps = before
            .labels()
            .iter()
            .map(String::as_str)
            .eq(labels.iter().map(S::as_ref));
        let config = before.with_labels(labels);
        let mut arrays = modern_names(Weights::open(directory)?.tensors()?, config.head);
        if !keeps {
            arrays.retain(|(name, _)| !name.starts_with("classifier."));
        }
        let heads = ["classifier.", "bert.pooler."];
        let mut builder = Builder::given(arrays, dtype).with_fresh(init, &heads);
        let model = Bert::new(config, &mut builder).map_err(named)?;
        let made = builder.made().to_vec();
        builder.finish(|_| false).map_err(named)?;
        Ok((model, made))
    }

    /// Writes `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`LanguageModel::save`].
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<()> {
        save(
            directory.as_ref(),
            self.config().to_json(),
            self.state(),
            None,
        )
    }

    /// [`Bert::save`] with the files of a tokenizer.
    ///
    /// # Errors
    /// As there.
    pub fn save_with(&self, directory: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<()> {
        save(
            directory.as_ref(),
            self.config().to_json(),
            self.state(),
            Some(tokenizer),
        )
    }
}

/// Adds the prefix to names that lack it (the first GPT-2 checkpoints).
fn prefix(arrays: &mut [(String, Array)], prefix: &str) {
    for (name, _) in arrays {
        if !name.starts_with(prefix) && !name.starts_with("lm_head.") {
            name.insert_str(0, prefix);
        }
    }
}

/// The object of `directory/config.json`.
///
/// # Errors
/// When the file is missing or no JSON object.
pub fn read_config(directory: &Path) -> Result<Map<String, Value>> {
    let path = directory.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::format(&path, "expected a JSON object")),
        Err(e) => Err(Error::format(&path, format!("no JSON: {e}"))),
    }
}

fn write_directory(
    directory: &Path,
    config: &Map<String, Value>,
    state: &[(String, Array)],
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let occupied = std::fs::read_dir(directory).is_ok_and(|mut d| d.next().is_some());
    if occupied || directory.is_file() {
        return Err(Error::other(format!(
            "{}: expected a new or empty directory; it holds something already",
            directory.display()
        )));
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    let write = || -> Result<()> {
        let io = |what: &'static str, path: &Path| {
            let path = path.to_path_buf();
            move |e| Error::io(path, what, e)
        };
        std::fs::create_dir_all(&beside).map_err(io("create", &beside))?;
        let text = serde_json::to_string_pretty(config)
            .map_err(|e| Error::other(format!("config.json: {e}")))?;
        let path: PathBuf = beside.join("config.json");
        std::fs::write(&path, text + "\n").map_err(io("write", &path))?;
        let metadata = [("format".to_string(), "pt".to_string())].into();
        entrenar_io::write_safetensors(beside.join("model.safetensors"), state, &metadata)?;
        if let Some(tokenizer) = tokenizer {
            tokenizer.copy_to(&beside)?;
        }
        if directory.is_dir() {
            std::fs::remove_dir(directory).map_err(io("replace", directory))?;
        }
        std::fs::rename(&beside, directory).map_err(io("write", directory))
    };
    let result = write();
    if result.is_err() {
        // The error that stopped the writing is the one to report.
        let _ = std::fs::remove_dir_all(&beside);
    }
    result
}

impl Parameters for LanguageModel {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        match self {
            LanguageModel::Decoder(m) => m.visit(visitor),
            LanguageModel::Gpt2(m) => m.visit(visitor),
        }
    }
}

impl Projections for LanguageModel {
    fn visit_projections(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>,
    ) -> Result<()> {
        match self {
            LanguageModel::Decoder(m) => m.visit_projections(visit),
            LanguageModel::Gpt2(m) => m.visit_projections(visit),
        }
    }

    fn visit_lookups(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Lookup) -> Result<()>,
    ) -> Result<()> {
        match self {
            LanguageModel::Decoder(m) => m.visit_lookups(visit),
            LanguageModel::Gpt2(m) => m.visit_lookups(visit),
        }
    }
}

impl Module for LanguageModel {
    fn forward(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let model = self.as_causal();
        let x = model.features(tokens, LmInput::default(), cx)?;
        model.logits(&x, cx)
    }
}
