//! From a model directory to a [`Tuned`]: number formats, quantization, adapters.

use std::path::{Path, PathBuf};

use entrenar_base::{DType, Error, Result};
use entrenar_nn::{Init, Parameters, Projections};
use entrenar_tune::lora::{self, LoraInit};
use entrenar_tune::quant::{self, Code, QuantConfig};
use entrenar_tune::{LoraConfig, Targets};
use entrenar_zoo::TextModel;

use super::model::Tuned;
use crate::config::{
    Adapter, AdapterInit, AdapterTargets, Config, Loaded, Precision, Quantization, QuantizationType,
};
use crate::data::sft::templates::jinja;
use crate::trainer::from_config::{model_directory, placed};
use crate::trainer::quantized::{open_quantized, stored_quantization};
use crate::trainer::trained::open_text_model;

/// The directory of a base: a path, or an id of the hub.
///
/// # Errors
///
/// A directory that does not exist, or an id that is not at hand.
pub(super) fn find(base: &str) -> Result<PathBuf> {
    let directory = model_directory(Path::new(base));
    if directory.join("config.json").is_file() {
        return Ok(directory);
    }
    let relative = !Path::new(base).is_absolute();
    if relative && !directory.exists() && base.split('/').count() == 2 {
        return entrenar_io::hub::resolve(base, None);
    }
    let what = if directory.is_dir() {
        "has no config.json"
    } else {
        "does not exist"
    };
    Err(Error::config(format!(
        "expected a model directory with config.json, weights and tokenizer: {base} {what}"
    )))
}

/// Opens a base as the config says, and what to tell about it.
///
/// # Errors
///
/// Files that are missing or damaged, and adapters that do not fit.
pub(super) fn open(loaded: &Loaded, directory: &Path) -> Result<(Tuned, Vec<String>)> {
    let config = &loaded.config;
    let base = |error: Error| placed(loaded, "model.base", error);
    let whole = config.adapter.is_none();
    let dtype = match config.precision {
        Precision::Bf16 if !whole => DType::BF16,
        // What is trained is kept in f32: small steps would be lost in bf16.
        Precision::Bf16 | Precision::F32 => DType::F32,
    };
    let mut notes = Vec::new();
    let stored = check_trainable(config, directory).map_err(base)?;
    let wanted = config.quantization.as_ref().map(code);
    let mut text = match (stored, &wanted) {
        (Some(stored), wanted) => {
            let differs =
                |wanted: &QuantConfig| (wanted.kind, wanted.double) != (stored.kind, stored.double);
            if wanted.as_ref().is_some_and(differs) {
                notes
                    .push("the base is in 4 bits already: `quantization` has no effect".to_owned());
            }
            open_quantized(directory, Some(dtype), None, &[])
        }
        (None, None) => open_text_model(directory, Some(dtype)),
        (None, Some(wanted)) => {
            // Straight from the mapped file: no weight of a published model is ever held whole.
            let saved = config
                .adapter
                .as_ref()
                .map_or(&[][..], |a| &a.modules_to_save);
            open_quantized(directory, Some(dtype), Some(wanted), saved)
        }
    }
    .map_err(base)?;
    notes.extend(warnings(&text));
    if stored.is_some() || wanted.is_some() {
        notes.push(quant::report(&mut text.model)?.to_string());
    }
    if let Some(template) = &config.data.chat_template {
        let template = jinja(template)
            .map_err(|error| placed(loaded, "data.chat_template", error))?
            .to_owned();
        text.tokenizer = text.tokenizer.with_chat_template(template);
    }
    let mut adapter = config.adapter.as_ref().map(|a| settings(a, config));
    if let Some(adapter) = &mut adapter {
        let mut linear = Vec::new();
        text.model.visit_projections(&mut |path, _| {
            linear.push(path.to_owned());
            Ok(())
        })?;
        adapter.targets = adapter.targets.expanded(&linear);
    }
    if let Some(adapter) = &adapter {
        notes.extend(attach(loaded, &mut text, adapter)?.1);
    } else {
        let count = text.model.parameter_count();
        notes.push(format!("trainable parameters: {count} of {count}"));
    }
    // What reading and quantizing took, and no step takes.
    entrenar_cpu::alloc::trim(0);
    let trained = text.model.trainable_parameters();
    let tuned = Tuned {
        text,
        trained,
        adapter,
        checkpointing: config.train.gradient_checkpointing.unwrap_or(false),
        noise: config.train.neftune_noise_alpha,
        conversations: false,
    };
    Ok((tuned, notes))
}

/// Puts adapters on a base; how many parameters are trained, and what to tell about it.
///
/// # Errors
///
/// Adapters that do not fit.
pub(super) fn attach(
    loaded: &Loaded,
    text: &mut TextModel,
    adapter: &LoraConfig,
) -> Result<(usize, Vec<String>)> {
    let init = &mut Init::new(loaded.config.seed);
    let report = lora::attach(&mut text.model, adapter, init)
        .map_err(|error| placed(loaded, "adapter", error))?;
    let told = std::iter::once(report.to_string());
    Ok((report.trainable, told.chain(report.warnings).collect()))
}

/// What is odd about the base's directory.
pub(super) fn warnings(text: &TextModel) -> impl Iterator<Item = String> {
    text.warnings()
        .iter()
        .map(|text| format!("warning: {text}"))
}

/// How the base is stored, if in 4 bits.
///
/// # Errors
///
/// When it would have to be trained itself.
pub(super) fn check_trainable(config: &Config, directory: &Path) -> Result<Option<QuantConfig>> {
    let stored = stored_quantization(directory)?;
    if stored.is_some() && config.adapter.is_none() {
        return Err(Error::config(
            "the weights of this model are in 4 bits, which cannot be trained: add the section `adapter`",
        ));
    }
    Ok(stored)
}

/// The section `adapter` in PEFT's words.
pub(super) fn settings(adapter: &Adapter, config: &Config) -> LoraConfig {
    let base = match &config.model {
        crate::config::Model::Pretrained(model) => Some(model.base.clone()),
        _ => None,
    };
    LoraConfig {
        r: adapter.rank,
        lora_alpha: adapter.alpha,
        lora_dropout: adapter.dropout,
        targets: match &adapter.targets {
            AdapterTargets::All(_) => Targets::AllLinear,
            AdapterTargets::Names(names) => Targets::Names(names.clone()),
            AdapterTargets::Pattern { pattern } => Targets::Pattern(pattern.clone()),
        },
        modules_to_save: adapter.modules_to_save.clone(),
        rank_pattern: adapter.rank_pattern.clone().into_iter().collect(),
        alpha_pattern: adapter.alpha_pattern.clone().into_iter().collect(),
        use_rslora: adapter.rslora,
        use_dora: adapter.dora,
        init: match adapter.init {
            AdapterInit::Default => LoraInit::Kaiming,
            AdapterInit::Gaussian => LoraInit::Gaussian,
            AdapterInit::Pissa => LoraInit::Pissa { iterations: None },
        },
        base_model: base,
        ..LoraConfig::default()
    }
}

/// The section `quantization` in the quantizer's words.
fn code(quantization: &Quantization) -> QuantConfig {
    QuantConfig {
        kind: match quantization.r#type {
            QuantizationType::Nf4 => Code::Nf4,
            QuantizationType::Fp4 => Code::Fp4,
            QuantizationType::Int4 => Code::Symmetric,
        },
        double: quantization.double.unwrap_or(false),
        ..QuantConfig::default()
    }
}

/// Bits that one quantized weight takes, its share of the scales included.
pub(super) fn bits_per_weight(quantization: &Quantization) -> f64 {
    const CODE: f64 = 4.0;
    const BLOCK: f64 = 64.0;
    // A scale of 32 bits for each block; with double quantization 8 bits, and 32 for 256 of these.
    let scale = match quantization.double {
        Some(true) => 8.0 + 32.0 / 256.0,
        _ => 32.0,
    };
    CODE + scale / BLOCK
}
