//! Language models whose linear layers are in 4 bits: opened as bitsandbytes stores them, or quantized
//! from floats layer by layer as they are read, and written as bitsandbytes stores them.
//!
//! Neighbours: `trained.rs` opens what is in floats, `tuned/opening.rs` puts adapters on either.

use std::path::Path;

use entrenar_base::{DType, Error, Result};
use entrenar_cpu::product::Compute;
use entrenar_nn::{Projection, Projections};
use entrenar_tune::quant::{self, QuantConfig, QuantizedLinear};
use entrenar_zoo::pretrained::read_config;
use entrenar_zoo::{Arrays, TextModel};
use serde_json::Value;

use super::trained::{open_text_model, resolved};

/// How the linear layers of a directory are stored, if in 4 bits: `quantization_config` of its
/// `config.json`. `None` also for a directory without one.
///
/// # Errors
/// When they are quantized in another way than bitsandbytes' 4 bits.
pub fn stored_quantization(directory: &Path) -> Result<Option<QuantConfig>> {
    let Ok(config) = read_config(directory) else {
        return Ok(None); // Whoever opens it tells what is wrong.
    };
    match config.get("quantization_config") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => QuantConfig::from_json(map)
            .map(Some)
            .map_err(|error| error.context(directory.join("config.json").display())),
        Some(other) => Err(Error::format(
            directory.join("config.json"),
            format!("`quantization_config`: expected an object, got {other}"),
        )),
    }
}

/// Opens a language model with linear layers in 4 bits. Those that are stored so are used as they
/// are; others are quantized by `wanted`, where there is one and `skip` does not name them (by path or
/// its end), straight from the mapped file: a published model is never held whole. What is not
/// quantized is cast to `dtype` where one is named.
///
/// # Errors
/// What is wrong with the directory; a quantized weight without its parts; a weight that holds a NaN
/// or an infinity.
pub fn open_quantized(
    path: &Path,
    dtype: Option<DType>,
    wanted: Option<&QuantConfig>,
    skip: &[String],
) -> Result<TextModel> {
    if let Some(wanted) = wanted {
        wanted.check()?;
    }
    let directory = &resolved(path)?;
    let compute = match stored_quantization(directory)? {
        Some(stored) => stored.compute,
        None => wanted.map_or(Compute::F32, |wanted| wanted.compute),
    };
    let mut exchange = |path: &str, made: Projection, given: &mut Arrays| -> Result<Projection> {
        let as_opened = |layer: QuantizedLinear| match dtype {
            Some(dtype) => layer.with_dtype(dtype),
            None => layer,
        };
        let adapted = |layer| Ok(Projection::Adapted(Box::new(as_opened(layer))));
        if let Some(layer) = quant::take_quantized(path, &made, given, compute)? {
            return adapted(layer);
        }
        let weight = format!("{path}.weight");
        if given.contains_key(&weight) {
            return Err(Error::config(format!(
                "{weight}: expected floats, or bytes with {weight}.quant_state.bitsandbytes__nf4 (or __fp4) beside \
                 them; got bytes alone"
            )));
        }
        match wanted {
            Some(wanted) if !quant::skips(skip, path) => {
                let layer =
                    QuantizedLinear::new(&made, wanted).map_err(|error| error.context(&weight))?;
                adapted(layer)
            }
            _ => cast(made, dtype),
        }
    };
    let named = |error: Error| error.context(directory.display());
    let mut text = if TextModel::is_in(directory) {
        TextModel::open_exchanging(directory, dtype, &mut exchange)?
    } else {
        let text = open_text_model(directory, None)?;
        let model = text.model.rebuilt(dtype, Some(&mut exchange));
        TextModel::of(model.map_err(named)?, text.tokenizer)
    };
    let report = quant::report(&mut text.model)?;
    if report.layers.is_empty() {
        return Err(named(Error::config(
            "quantization: no linear layer of this model is in 4 bits or left to quantize",
        )));
    }
    Ok(text)
}

/// A layer that stays in floats, in `dtype`.
fn cast(made: Projection, dtype: Option<DType>) -> Result<Projection> {
    if let (Some(dtype), Some((_, parameter))) = (dtype, made.matrix()?)
        && parameter.dtype() != dtype
    {
        let cast = entrenar_nn::Parameter::new(parameter.value().to_dtype(dtype)?)?;
        return Ok(match made {
            Projection::Linear(layer) => Projection::Linear(entrenar_nn::Linear {
                weight: cast,
                ..layer
            }),
            Projection::Transposed(layer) => {
                Projection::Transposed(entrenar_nn::TransposedLinear {
                    weight: cast,
                    ..layer
                })
            }
            other => other,
        });
    }
    Ok(made)
}

/// Writes a model with linear layers in 4 bits as bitsandbytes stores it: what [`open_quantized`] and
/// transformers open. Adapters are left out.
///
/// # Errors
/// When no layer is quantized, or some are by another code than the first (the form has one); as
/// [`entrenar_zoo::LanguageModel::save`].
pub fn save_quantized(text: &mut TextModel, directory: &Path) -> Result<()> {
    let mut stored: Option<QuantConfig> = None;
    let mut plain: Vec<String> = Vec::new();
    let mut mixed = None;
    text.model.visit_projections(&mut |path, projection| {
        let Some(config) = quant::config_of(projection) else {
            plain.push(path.to_owned());
            return Ok(());
        };
        match stored {
            Some(first) if first != config => mixed = Some(path.to_owned()),
            _ => stored = Some(config),
        }
        Ok(())
    })?;
    let Some(config) = stored else {
        return Err(Error::config(
            "save_quantized: no linear layer of this model is in 4 bits",
        ));
    };
    if let Some(path) = mixed {
        return Err(Error::config(format!(
            "save_quantized: {path} is quantized in another way than the layers before it"
        )));
    }
    let mut described = config.to_json();
    if !plain.is_empty() {
        // Named, so that others do not quantize them; with a list, the output layer must be in it too.
        plain.push("lm_head".to_owned());
        described.insert("llm_int8_skip_modules".to_owned(), plain.into());
    }
    let state = quant::quantized_state(&mut text.model)?;
    text.model
        .save_quantized(directory, &state, described, Some(&text.tokenizer))
}
