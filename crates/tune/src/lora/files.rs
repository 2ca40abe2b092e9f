//! Adapter directories as PEFT writes and reads them: `adapter_config.json` beside
//! `adapter_model.safetensors`, whose names are `base_model.model.`, the layer's path, and the part.

use std::collections::BTreeMap;
use std::path::Path;

use entrenar_core::{Array, Error, Result, Tensor};
use entrenar_io::{Weights, write_atomic, write_safetensors};
use entrenar_nn::{Init, NamedParameters, Projection, Projections};
use serde_json::{Map, Value};

use super::{AdapterReport, LoraConfig, LoraEmbedding, attach, each, each_adapter};

const PREFIX: &str = "base_model.model.";

/// The settings of the adapter in a directory.
///
/// # Errors
/// When the file is missing or damaged, or asks for what is not built.
pub fn read_config(directory: &Path) -> Result<LoraConfig> {
    let path = directory.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let map: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::format(&path, format!("no JSON object: {e}")))?;
    LoraConfig::from_json(&map).map_err(|e| e.context(directory.display()))
}

/// Writes the model's adapters to a directory that [`load_adapter`] and PEFT read. The config is
/// written last: without it there is no adapter.
///
/// # Errors
/// When the model has no adapter, or a file cannot be written.
pub fn save_adapter(
    model: &mut (impl Projections + ?Sized),
    config: &LoraConfig,
    directory: &Path,
) -> Result<()> {
    let mut state: Vec<(String, Array)> = Vec::new();
    let mut transposed = false;
    each(model, &mut |_, layer| {
        transposed |= matches!(layer.base(), Projection::Transposed(_));
        Ok(())
    })?;
    each_adapter(model, &mut |path, parts| {
        let named = parts.into_iter();
        state.extend(named.map(|(part, p)| (format!("{PREFIX}{path}.{part}"), p.array())));
        Ok(())
    })?;
    if state.is_empty() {
        return Err(Error::config("save_adapter: the model has no adapter"));
    }
    state.extend(
        saved(model, config)
            .into_iter()
            .map(|(path, p)| (format!("{PREFIX}{path}"), p.array())),
    );
    std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, "create", e))?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    write_safetensors(
        directory.join("adapter_model.safetensors"),
        &state,
        &metadata,
    )?;
    let mut map = config.to_json();
    // Not a choice: the layout of the base's weights.
    map.insert("fan_in_fan_out".into(), transposed.into());
    let text = serde_json::to_string_pretty(&map)
        .map_err(|e| Error::other(format!("adapter_config.json: {e}")))?;
    write_atomic(
        directory.join("adapter_config.json"),
        (text + "\n").as_bytes(),
    )
}

/// The parameters that are trained in full.
fn saved(model: &(impl Projections + ?Sized), config: &LoraConfig) -> NamedParameters {
    let mut all = model.named_parameters();
    // An adapter inside a saved module has its own names already.
    all.retain(|(path, _)| config.saves(path) && !path.contains(".lora_"));
    all
}

/// Puts the adapter of a directory on a model. Every tensor must have its place and every place its
/// tensor, or the model is left as it was.
///
/// # Errors
/// When a file is missing or damaged, or names or shapes do not fit the model; the message names
/// all that do not.
pub fn load_adapter(
    model: &mut (impl Projections + ?Sized),
    directory: &Path,
) -> Result<(LoraConfig, AdapterReport)> {
    let config = read_config(directory)?;
    let mut given: BTreeMap<String, Array> =
        Weights::open(directory)?.tensors()?.into_iter().collect();
    let trained = model.trainable_parameters();
    // Values are replaced at once: the seed does not matter.
    let report = attach(model, &config, &mut Init::new(0))?;
    let mut faults = Vec::new();
    let mut values: Vec<(entrenar_nn::Parameter, Array)> = Vec::new();
    let mut take = |given: &mut BTreeMap<String, Array>,
                    name: String,
                    parameter: &entrenar_nn::Parameter| match given.remove(&name)
    {
        Some(a) if *a.shape() == parameter.shape() && a.dtype().is_float() => {
            values.push((parameter.clone(), a));
        }
        Some(a) => faults.push(format!(
            "{name}: expected {} of floats, got {} of {}",
            parameter.shape(),
            a.shape(),
            a.dtype()
        )),
        None => faults.push(format!("{name}: missing")),
    };
    let in_full = saved(model, &config);
    for (path, parameter) in &in_full {
        take(&mut given, format!("{PREFIX}{path}"), parameter);
    }
    each_adapter(model, &mut |path, parts| {
        for (part, parameter) in parts {
            take(&mut given, format!("{PREFIX}{path}.{part}"), parameter);
        }
        Ok(())
    })?;
    // PEFT stores the table of an embedding with its adapter, and so it is the one that counts.
    let mut tables: Vec<(String, entrenar_nn::Parameter)> = Vec::new();
    model.visit_lookups(&mut |path, table| {
        if LoraEmbedding::of(table).is_some() {
            let name = format!("{PREFIX}{path}.base_layer.weight");
            tables.push((name, table.weight.clone()));
        }
        Ok(())
    })?;
    for (name, parameter) in tables {
        if given.contains_key(&name) {
            take(&mut given, name, &parameter);
        }
    }
    faults.extend(given.into_keys().map(|name| format!("{name}: unexpected")));
    if !faults.is_empty() {
        super::detach(model)?;
        for (_, parameter) in in_full {
            parameter.set_trainable(false);
        }
        for (_, parameter) in trained {
            parameter.set_trainable(true);
        }
        let more = faults.len().saturating_sub(20);
        faults.truncate(20);
        let tail = if more > 0 {
            format!("; and {more} more")
        } else {
            String::new()
        };
        return Err(Error::config(format!(
            "{}: the adapter does not fit this model: {}{tail}",
            directory.display(),
            faults.join("; ")
        )));
    }
    for (parameter, array) in values {
        parameter.set(&Tensor::from(array).to_dtype(parameter.dtype())?)?;
    }
    Ok((config, report))
}
