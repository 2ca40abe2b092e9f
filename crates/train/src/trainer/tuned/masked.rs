//! Encoders that learn to find hidden words: masked language modelling.

use std::path::{Path, PathBuf};

use entrenar_base::{DType, Error, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_nn::{Ctx, Init};
use entrenar_zoo::bert::BertInput;
use entrenar_zoo::pretrained::read_config;
use entrenar_zoo::{Bert, Tokenizer};

use super::encoder::Encoder;
use super::opening;
use crate::config::{Config, Loaded, Pretrained};
use crate::data::{
    Batch, Loader, LoaderConfig, MaskedTextData, MaskedTextSpec, Splits, split_masked, splits,
};
use crate::trainer::evaluate::{Evaluation, evaluate};
use crate::trainer::from_config::{RunOptions, RunOutcome, placed};
use crate::trainer::objective::{Measure, Objective, right_answers};

/// Rows of an evaluation that go through the encoder together.
const ROWS: usize = 16;

/// Trains an encoder as a checked config says.
///
/// # Errors
///
/// What is wrong with model, data and run directory, and what training reports.
pub(in crate::trainer) fn run(
    loaded: &Loaded,
    base: &Pretrained,
    options: RunOptions<'_>,
) -> Result<RunOutcome> {
    let (directory, tokenizer, data) = prepare(loaded, base)?;
    let init = Init::new(loaded.config.seed);
    let (model, fresh) = Bert::open_for_words(&directory, Some(DType::F32), init)
        .map_err(|error| placed(loaded, "model.base", error))?;
    let encoder = Encoder::new(model, tokenizer, data.report(), &fresh);
    encoder.train(loaded, &data.parts(), Box::new(HiddenWords), options)
}

/// What training looks at before its first step: the base, its tokenizer and the rows.
///
/// # Errors
///
/// What is wrong with model and data, such as a model that is no encoder.
pub(super) fn prepare(
    loaded: &Loaded,
    base: &Pretrained,
) -> Result<(PathBuf, Tokenizer, MaskedTextData)> {
    let here = |key: &'static str| move |error: Error| placed(loaded, key, error);
    let directory = opening::find(&base.base)
        .map_err(|error| Error::config(placed(loaded, "model.base", error).to_string()))?;
    let described = read_config(&directory).map_err(here("model.base"))?;
    let family = described.get("model_type").and_then(|t| t.as_str());
    if family != Some("bert") {
        let error = Error::config(format!(
            "expected an encoder (`model_type` bert), which sees the words after a hidden one too, got {}; \
             a model that writes from left to right learns texts with task `language-model`",
            family.map_or("another model".to_string(), |f| format!("`{f}`"))
        ));
        return Err(Error::config(
            placed(loaded, "model.base", error).to_string(),
        ));
    }
    let tokenizer = Tokenizer::open(&directory).map_err(here("model.base"))?;
    let context = Bert::context_of(&directory).map_err(here("model.base"))?;
    let data = open_rows(&loaded.config, &tokenizer, context).map_err(here("data"))?;
    Ok((directory, tokenizer, data))
}

/// `context` is the model's.
fn open_rows(config: &Config, tokenizer: &Tokenizer, context: usize) -> Result<MaskedTextData> {
    let data = &config.data;
    let mut spec = MaskedTextSpec::default();
    for (name, column) in data.fields.iter().flatten() {
        if name != "text" {
            let message = format!("data.fields: expected text, got `{name}`");
            return Err(Error::config(message));
        }
        spec.text.clone_from(column);
    }
    spec.max_length = data.sequence_length.unwrap_or(spec.max_length.min(context));
    if spec.max_length > context {
        return Err(Error::config(format!(
            "data.sequence_length: expected at most the model's context of {context}, got {}",
            spec.max_length
        )));
    }
    spec.probability = data.mask_probability.unwrap_or(spec.probability);
    // The config made its paths absolute: what they are joined to does not matter.
    let here = Path::new("");
    MaskedTextData::open(
        here,
        &data.path,
        &spec,
        tokenizer,
        &splits(data),
        config.seed,
    )
}

/// Loss, accuracy and perplexity of the hidden words of a file, always the same ones.
///
/// # Errors
///
/// What is wrong with the file.
pub(super) fn evaluate_words(
    model: &Bert,
    tokenizer: &Tokenizer,
    path: &str,
) -> Result<Evaluation> {
    let mut spec = MaskedTextSpec::default();
    spec.max_length = spec.max_length.min(model.config().max_position_embeddings);
    let none = Splits::none();
    let data = MaskedTextData::open(Path::new(""), &[path], &spec, tokenizer, &none, 0)?;
    let mut loader = Loader::new(data.parts().training, LoaderConfig::evaluation(ROWS))?;
    evaluate(model, &HiddenWords, &mut loader)
}

/// Cross-entropy of the hidden words; metrics `accuracy` and, in evaluations, `perplexity`.
struct HiddenWords;

impl Objective<Bert> for HiddenWords {
    fn measure(&self, model: &Bert, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        let (tokens, mask) = split_masked(&batch.inputs)?;
        let (tokens, mask) = (Tensor::from(tokens), Tensor::from(mask));
        let input = BertInput {
            mask: Some(&mask),
            ..BertInput::default()
        };
        let targets = Tensor::from(batch.targets.clone());
        let (logits, targets) = model.hidden_words(&tokens, &targets, input, cx)?;
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

    fn derived(&self, mean_loss: f64) -> Vec<(&'static str, f64)> {
        vec![("perplexity", mean_loss.exp())]
    }
}
