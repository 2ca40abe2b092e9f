//! Adding adapters to the weights under them, and taking that back.
//!
//! Nothing is subtracted: [`merge_keeping`] hands over what it replaced, and [`unmerge`] puts it back,
//! so that every bit is what it was. [`merge`] drops it at once. Neighbours: `layer` and `embedding`
//! know the sums.

use std::any::Any;
use std::collections::BTreeMap;

use entrenar_core::{Error, Result, Tensor};
use entrenar_nn::{Lookup, LookupAdapter, Projection, Projections};

use super::{LoraEmbedding, LoraLinear};

/// What [`merge_keeping`] took out of a model: adapters, and the weights as they were.
#[must_use = "without it the adapters cannot be taken out again; `merge` drops it"]
pub struct Merged {
    layers: BTreeMap<String, LoraLinear>,
    /// An embedding's adapter and its table's value.
    tables: BTreeMap<String, (Box<dyn LookupAdapter>, Tensor)>,
}

impl Merged {
    /// Paths of the layers that were merged.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        let tables = self.tables.keys();
        self.layers.keys().chain(tables).map(String::as_str)
    }
}

/// Adds every adapter to its weight; the model is then an ordinary one with the same outputs. A
/// quantized weight becomes one in floats. Where the output layer is tied to an embedding that has an
/// adapter, it changes with it, as in PEFT, and outputs differ.
///
/// # Errors
/// When a weight cannot be written.
pub fn merge(model: &mut (impl Projections + ?Sized)) -> Result<()> {
    exchange(model, |_, layer| layer.merged())?;
    model.visit_lookups(&mut |_, table| {
        merge_table(table)?;
        Ok(())
    })
}

/// [`merge`], and what [`unmerge`] needs: the weights before stay in memory.
///
/// ```
/// use entrenar_core::Result;
/// use entrenar_nn::{Init, Linear, Parameters, Projection, Projections, Visitor};
/// use entrenar_tune::lora::{self, LoraConfig};
/// struct Net(Projection);
/// impl Parameters for Net {
///     fn visit(&self, visitor: &mut Visitor<'_>) {
///         visitor.field("layer", &self.0);
///     }
/// }
/// impl Projections for Net {
///     fn visit_projections(&mut self, visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>) -> Result<()> {
///         visit("layer", &mut self.0)
///     }
/// }
/// let init = &mut Init::new(0);
/// let mut net = Net(Linear::new(6, 4, init)?.into());
/// lora::attach(&mut net, &LoraConfig::default(), init)?;
/// let merged = lora::merge_keeping(&mut net)?;
/// assert_eq!(net.named_parameters().len(), 2); // an ordinary layer
/// lora::unmerge(&mut net, merged)?;
/// assert_eq!(net.trainable_parameters().len(), 2); // A and B, as before
/// # Ok::<(), entrenar_core::Error>(())
/// ```
///
/// # Errors
/// As [`merge`].
pub fn merge_keeping(model: &mut (impl Projections + ?Sized)) -> Result<Merged> {
    let mut kept = Merged {
        layers: BTreeMap::new(),
        tables: BTreeMap::new(),
    };
    exchange(model, |path, layer| {
        let plain = layer.plain()?;
        kept.layers.insert(path.to_string(), layer);
        Ok(plain)
    })?;
    model.visit_lookups(&mut |path, table| {
        if let Some(both) = merge_table(table)? {
            kept.tables.insert(path.to_string(), both);
        }
        Ok(())
    })?;
    Ok(kept)
}

/// Puts adapters and weights back as they were before [`merge_keeping`], to the last bit; what was done
/// to the merged weights since is lost.
///
/// # Errors
/// When the model is another one, or has got adapters since; it is then as it was.
pub fn unmerge(model: &mut (impl Projections + ?Sized), merged: Merged) -> Result<()> {
    let Merged {
        mut layers,
        mut tables,
    } = merged;
    let fault = |path: &str| {
        Error::argument(
            "unmerge",
            "the model that was merged, without adapters since",
            format!("another one at {path}"),
        )
    };
    let mut missing: Vec<String> = layers.keys().chain(tables.keys()).cloned().collect();
    model.visit_projections(&mut |path, projection| {
        if let Some(layer) = layers.get(path) {
            if matches!(projection, Projection::Adapted(_))
                || projection.sizes() != layer.base().sizes()
            {
                return Err(fault(path));
            }
            missing.retain(|wanted| wanted != path);
        }
        Ok(())
    })?;
    model.visit_lookups(&mut |path, table| {
        if let Some((_, before)) = tables.get(path) {
            if table.adapter.is_some() || table.weight.shape() != *before.shape() {
                return Err(fault(path));
            }
            missing.retain(|wanted| wanted != path);
        }
        Ok(())
    })?;
    if let Some(path) = missing.first() {
        return Err(fault(path));
    }
    model.visit_projections(&mut |path, projection| match layers.remove(path) {
        Some(layer) => projection.replace(|_| Ok(Projection::Adapted(Box::new(layer)))),
        None => Ok(()),
    })?;
    model.visit_lookups(&mut |path, table| {
        if let Some((adapter, before)) = tables.remove(path) {
            table.weight.set(&before)?;
            table.adapter = Some(adapter);
        }
        Ok(())
    })
}

/// Takes every adapter off; the model is then what it was before, but for modules that were trained in
/// full, and for what PiSSA took out of the weights.
///
/// # Errors
/// Never for adapters that [`super::attach`] made.
pub fn detach(model: &mut (impl Projections + ?Sized)) -> Result<()> {
    exchange(model, |_, layer| Ok(layer.into_base()))?;
    model.visit_lookups(&mut |_, table| {
        if LoraEmbedding::of(table).is_some() {
            table.adapter = None;
        }
        Ok(())
    })
}

/// Adds an embedding's adapter to its table; gives both as they were.
fn merge_table(table: &mut Lookup) -> Result<Option<(Box<dyn LookupAdapter>, Tensor)>> {
    let weight = table.weight.clone();
    let Some(adapter) = LoraEmbedding::of(table) else {
        return Ok(None);
    };
    let sum = adapter.merged(&weight)?;
    let before = weight.value();
    weight.set(&sum)?;
    Ok(table.adapter.take().map(|adapter| (adapter, before)))
}

fn exchange(
    model: &mut (impl Projections + ?Sized),
    mut change: impl FnMut(&str, LoraLinear) -> Result<Projection>,
) -> Result<()> {
    model.visit_projections(&mut |path, projection| {
        let ours = match projection {
            Projection::Adapted(layer) => layer.as_any().is::<LoraLinear>(),
            _ => false,
        };
        if !ours {
            return Ok(());
        }
        projection.replace(|held| match held {
            Projection::Adapted(layer) => {
                let layer: Box<dyn Any> = layer.into_any();
                match layer.downcast::<LoraLinear>() {
                    Ok(layer) => change(path, *layer),
                    Err(_) => Err(Error::other("an adapted layer changed its type")),
                }
            }
            other => Ok(other),
        })
    })
}
