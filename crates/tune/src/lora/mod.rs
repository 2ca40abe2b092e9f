//! LoRA: y = W x + b + s · B A x with W frozen (Hu et al., "LoRA", 2021), its scale s = α / r or
//! α / √r ("rsLoRA", Kalajdzievski 2023), and DoRA, which also learns the length of each row
//! (Liu et al., "DoRA", 2024).
//!
//! `pissa` starts an adapter from the weight's leading singular vectors, `plus` gives A and B learning
//! rates of their own. The base may be a plain layer or a quantized one.
//!
//! `config` is PEFT's `adapter_config.json`, `layer` the adapted linear layer, `embedding` the adapted
//! embedding, `files` the adapter directories. [`attach`] puts adapters on a model, [`merge`] makes it
//! an ordinary model again (`merging`).

mod config;
mod embedding;
mod files;
mod layer;
mod merging;
mod pissa;
mod plus;

use std::collections::BTreeMap;

use entrenar_core::{Error, Result};
use entrenar_nn::{Init, Parameter, Projection, Projections};

use crate::quant::{self, QuantizedLinear};

use config::within;
pub use config::{LoraConfig, LoraInit, Targets};
pub use embedding::LoraEmbedding;
pub use files::{load_adapter, read_config, save_adapter};
pub use layer::LoraLinear;
pub use merging::{Merged, detach, merge, merge_keeping, unmerge};
pub use plus::{learns_faster, lora_plus_groups};

/// What [`attach`] made of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterReport {
    /// The adapted layers.
    pub layers: Vec<String>,
    /// Numbers that are trained.
    pub trainable: usize,
    /// Numbers in all.
    pub total: usize,
    /// Size of the adapter as a file holds it.
    pub bytes: usize,
    /// What one should know before using it.
    pub warnings: Vec<String>,
}

impl std::fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let share = 100.0 * self.trainable as f64 / self.total.max(1) as f64;
        write!(
            f,
            "trainable parameters: {} of {} ({share:.4} %), adapter: {} bytes, {} layers",
            self.trainable,
            self.total,
            self.bytes,
            self.layers.len()
        )
    }
}

/// Freezes the model and puts adapters on the layers that `config` names; the modules that it saves
/// stay trainable themselves. With fresh adapters the model computes what it did before.
///
/// # Errors
/// When no layer matches, an entry matches none, or a layer has an adapter already; the model is
/// then as it was. When PiSSA does not fit a layer, those before it are changed.
pub fn attach(
    model: &mut (impl Projections + ?Sized),
    config: &LoraConfig,
    init: &mut Init,
) -> Result<AdapterReport> {
    config.check()?;
    let mut names = Vec::new();
    model.visit_projections(&mut |path, projection| {
        if let Projection::Adapted(layer) = projection
            && !layer.as_any().is::<QuantizedLinear>()
        {
            return Err(Error::argument("lora", "a layer without an adapter", path));
        }
        names.push(path.to_string());
        Ok(())
    })?;
    let mut tables = Vec::new();
    model.visit_lookups(&mut |path, table| {
        if table.adapter.is_some() {
            return Err(Error::argument(
                "lora",
                "an embedding without an adapter",
                path,
            ));
        }
        tables.push((path.to_string(), table.tied));
        Ok(())
    })?;
    let embeddings: Vec<String> = tables.iter().map(|(path, _)| path.clone()).collect();
    let mut chosen = BTreeMap::new();
    for path in config.targets.choose(&names, &embeddings)? {
        let settings = config.of(&path)?;
        // What is trained in full needs no adapter; PEFT leaves it out too.
        if !config.saves(&format!("{path}.weight")) {
            chosen.insert(path, settings);
        }
    }
    names.extend(embeddings);
    config.check_patterns(&names)?;
    if config.ensures_tying()
        && let Some((path, _)) = tables
            .iter()
            .find(|(p, tied)| *tied && chosen.contains_key(p))
    {
        return Err(Error::config(format!(
            "lora: `ensure_weight_tying`: an adapter of {path} that the tied output layer shares is not built"
        )));
    }
    let parameters = model.named_parameters();
    for entry in &config.modules_to_save {
        if !parameters.iter().any(|(path, _)| within(entry, path)) {
            return Err(Error::config(format!(
                "lora: modules_to_save: `{entry}` matches no module with parameters of its own (tied weights go by their first name)"
            )));
        }
    }
    model.freeze();
    for (_, parameter) in parameters.iter().filter(|(path, _)| config.saves(path)) {
        parameter.set_trainable(true);
    }
    model.visit_projections(&mut |path, projection| {
        let Some(settings) = chosen.get(path) else {
            return Ok(());
        };
        projection.replace(|base| {
            let layer = LoraLinear::new(base, settings, init)?;
            Ok(Projection::Adapted(Box::new(layer)))
        })
    })?;
    model.visit_lookups(&mut |path, table| match chosen.get(path) {
        Some(settings) => LoraEmbedding::attach(table, settings, init),
        None => Ok(()),
    })?;
    Ok(report(model))
}

/// The adapted layers of a model and their share of its parameters.
pub fn report(model: &mut (impl Projections + ?Sized)) -> AdapterReport {
    let (mut layers, mut bytes) = (Vec::new(), 0);
    let walked = each_adapter(model, &mut |path, parts| {
        layers.push(path.to_string());
        let sizes = parts.iter().map(|(_, p)| p.numel() * p.dtype().size());
        bytes += sizes.sum::<usize>();
        Ok(())
    });
    let mut warnings = Vec::new();
    let looked = model.visit_lookups(&mut |path, table| {
        if table.tied && LoraEmbedding::of(table).is_some() {
            warnings.push(format!(
                "the output layer is tied to {path}, whose adapter it does not have; merging changes both, so that a \
                 merged model gives other outputs than the adapter (PEFT's does too)"
            ));
        }
        Ok(())
    });
    debug_assert!(
        walked.is_ok() && looked.is_ok(),
        "the visitors report no error"
    );
    // What else is trained is stored with the adapter.
    let in_full = model.trainable_parameters().into_iter();
    bytes += in_full
        .filter(|(path, _)| !path.contains("lora_"))
        .map(|(_, p)| p.numel() * p.dtype().size())
        .sum::<usize>();
    let count =
        |all: entrenar_nn::NamedParameters| -> usize { all.iter().map(|(_, p)| p.numel()).sum() };
    // Quantized weights are no parameters, but the model has as many numbers as before.
    let quantized = quant::report(model).map_or(0, |r| r.numbers);
    AdapterReport {
        layers,
        bytes,
        warnings,
        trainable: count(model.trainable_parameters()),
        total: count(model.named_parameters()) + quantized,
    }
}

/// An adapter's own parameters, by PEFT's names after its layer's path.
pub type Parts<'a> = Vec<(&'static str, &'a Parameter)>;

/// Calls `visit` with each adapted layer's path and the adapter's own parameters by PEFT's names after
/// it, embeddings last.
///
/// # Errors
/// The first that `visit` reports.
pub fn each_adapter(
    model: &mut (impl Projections + ?Sized),
    visit: &mut dyn FnMut(&str, Parts<'_>) -> Result<()>,
) -> Result<()> {
    each(model, &mut |path, layer| visit(path, layer.named()))?;
    model.visit_lookups(&mut |path, table| match LoraEmbedding::of(table) {
        Some(adapter) => visit(path, adapter.named()),
        None => Ok(()),
    })
}

/// Calls `visit` with each adapted linear layer.
///
/// # Errors
/// The first that `visit` reports.
pub fn each(
    model: &mut (impl Projections + ?Sized),
    visit: &mut dyn FnMut(&str, &mut LoraLinear) -> Result<()>,
) -> Result<()> {
    model.visit_projections(&mut |path, projection| {
        let Projection::Adapted(layer) = projection else {
            return Ok(());
        };
        match layer.as_any_mut().downcast_mut::<LoraLinear>() {
            Some(layer) => visit(path, layer),
            None => Ok(()),
        }
    })
}
