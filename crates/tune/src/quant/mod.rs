//! Frozen weights in 4 bits, the base of QLoRA (Dettmers et al., "QLoRA", 2023).
//!
//! [`quantize`] exchanges the linear layers of a model for [`QuantizedLinear`] (`layer`), one after
//! the other, dropping each weight as it goes; adapters are then attached as on any model. The output
//! layer and embeddings are no projections and stay as they are. `op` is the product as a
//! differentiable operation, `files` the tensors under which bitsandbytes stores such a layer.

mod files;
mod layer;
mod op;

use entrenar_core::{Error, Result};
use entrenar_cpu::product::Compute;
use entrenar_cpu::quant4::{BLOCKS, Scales};
use entrenar_nn::{Projection, Projections};
use serde_json::{Map, Value, json};

pub use entrenar_cpu::quant4::Code;
pub use files::{load_quantized, quantized_state, take_quantized};
pub use layer::QuantizedLinear;
pub use op::product;

use crate::lora::LoraLinear;

/// How weights are quantized.
///
/// ```
/// use entrenar_tune::quant::{Code, QuantConfig};
/// let config = QuantConfig::default();
/// assert_eq!((config.kind, config.block, config.double), (Code::Nf4, 64, true));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantConfig {
    /// What the codes mean.
    pub kind: Code,
    /// Numbers that share a scale: a power of two from 32 to 4096.
    pub block: usize,
    /// Whether scales are kept in 8 bits.
    pub double: bool,
    /// Whether products of f32 activations round both sides to bf16, which is faster on some
    /// processors. Activations in bf16 are multiplied so in any case.
    pub compute: Compute,
}

impl Default for QuantConfig {
    fn default() -> Self {
        QuantConfig {
            kind: Code::Nf4,
            block: 64,
            double: true,
            compute: Compute::F32,
        }
    }
}

impl QuantConfig {
    /// The code of a name: `nf4`, `fp4` or `symmetric4`.
    ///
    /// # Errors
    /// When there is no such code.
    pub fn kind_of(name: &str) -> Result<Code> {
        [Code::Nf4, Code::Fp4, Code::Symmetric]
            .into_iter()
            .find(|c| c.name() == name)
            .ok_or_else(|| {
                Error::config(format!(
                    "quantization: expected nf4, fp4 or symmetric4, got `{name}`"
                ))
            })
    }

    /// `quantization_config` of a published directory's `config.json`.
    ///
    /// ```
    /// use entrenar_tune::quant::{Code, QuantConfig};
    /// let config = QuantConfig { kind: Code::Fp4, double: false, ..QuantConfig::default() };
    /// assert_eq!(QuantConfig::from_json(&config.to_json())?, config);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    pub fn to_json(&self) -> Map<String, Value> {
        let pairs = [
            ("quant_method", json!("bitsandbytes")),
            ("load_in_4bit", json!(true)),
            ("load_in_8bit", json!(false)),
            ("bnb_4bit_quant_type", json!(self.kind.name())),
            ("bnb_4bit_use_double_quant", json!(self.double)),
            (
                "bnb_4bit_compute_dtype",
                json!(match self.compute {
                    Compute::F32 => "float32",
                    Compute::Bf16 => "bfloat16",
                }),
            ),
            ("bnb_4bit_quant_storage", json!("uint8")),
        ];
        pairs
            .map(|(key, value)| (key.to_string(), value))
            .into_iter()
            .collect()
    }

    /// Reads such an object, with bitsandbytes' defaults for what it leaves out.
    ///
    /// # Errors
    /// When it describes something other than 4-bit blocks, or a value has the wrong type.
    pub fn from_json(map: &Map<String, Value>) -> Result<QuantConfig> {
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        let wrong = |key: &str, what: &str| {
            let got = map.get(key).unwrap_or(&Value::Null);
            Error::config(format!(
                "quantization_config: `{key}`: expected {what}, got {got}"
            ))
        };
        if get("quant_method").is_some_and(|v| v != "bitsandbytes") {
            return Err(wrong("quant_method", "\"bitsandbytes\""));
        }
        if get("load_in_4bit") != Some(&Value::Bool(true)) {
            return Err(wrong("load_in_4bit", "true"));
        }
        let word = |key: &str, default: &str| match get(key) {
            None => Ok(default.to_string()),
            Some(v) => v
                .as_str()
                .map(str::to_string)
                .ok_or_else(|| wrong(key, "a name")),
        };
        let double = match get("bnb_4bit_use_double_quant") {
            None => false,
            Some(v) => v
                .as_bool()
                .ok_or_else(|| wrong("bnb_4bit_use_double_quant", "true or false"))?,
        };
        Ok(QuantConfig {
            kind: QuantConfig::kind_of(&word("bnb_4bit_quant_type", "fp4")?)?,
            block: 64,
            double,
            compute: match word("bnb_4bit_compute_dtype", "float32")?.as_str() {
                "bfloat16" => Compute::Bf16,
                _ => Compute::F32,
            },
        })
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// When the block has no size that the format knows.
    pub fn check(&self) -> Result<()> {
        if BLOCKS.contains(&self.block) {
            return Ok(());
        }
        Err(Error::config(format!(
            "quantization: block: expected a power of two from 32 to 4096, got {}",
            self.block
        )))
    }
}

/// The quantized layers of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantReport {
    /// Their paths.
    pub layers: Vec<String>,
    /// Numbers in their weights.
    pub numbers: usize,
    /// Bytes that hold these.
    pub bytes: usize,
}

impl QuantReport {
    /// Bits for each number, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.numbers.max(1) as f64
    }

    fn add(&mut self, path: &str, layer: &QuantizedLinear) {
        self.layers.push(path.to_string());
        self.numbers += layer.numbers();
        self.bytes += layer.weight().bytes();
    }
}

impl std::fmt::Display for QuantReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "quantized: {} layers, {} weights in {} bytes ({:.3} bits each)",
            self.layers.len(),
            self.numbers,
            self.bytes,
            self.bits_per_weight()
        )
    }
}

/// The quantized layer that a projection is, or that is under its adapter.
pub(crate) fn of(projection: &Projection) -> Option<&QuantizedLinear> {
    let Projection::Adapted(layer) = projection else {
        return None;
    };
    match layer.as_any().downcast_ref::<LoraLinear>() {
        Some(adapter) => of(adapter.base()),
        None => layer.as_any().downcast_ref(),
    }
}

/// How the quantized layer was made that a projection is, or that is under its adapter.
pub fn config_of(projection: &Projection) -> Option<QuantConfig> {
    of(projection).map(|layer| QuantConfig {
        kind: layer.weight().code(),
        block: layer.weight().block(),
        double: matches!(layer.weight().scales(), Scales::Double { .. }),
        compute: layer.compute(),
    })
}

/// Quantizes every linear layer of the model whose path is not in `skip` (an entry is a path or the
/// end of one after a dot). A layer that has an adapter keeps it, on a quantized base: this is how
/// PiSSA's residuals are quantized. Each weight is dropped before the next is quantized.
///
/// # Errors
/// When the settings are wrong, a layer is quantized already, a weight holds a NaN or an infinity, or
/// nothing is left to quantize. Layers before a bad weight are quantized then.
///
/// ```
/// use entrenar_core::{DType, Result, Tensor};
/// use entrenar_nn::{Init, Linear, Parameters, Projection, Projections, Visitor};
/// use entrenar_tune::quant::{QuantConfig, quantize};
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
/// let mut net = Net(Linear::new(256, 256, &mut Init::new(0))?.into());
/// let report = quantize(&mut net, &QuantConfig::default(), &[])?;
/// assert!(report.bits_per_weight() < 4.2);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn quantize(
    model: &mut (impl Projections + ?Sized),
    config: &QuantConfig,
    skip: &[String],
) -> Result<QuantReport> {
    config.check()?;
    let mut report = QuantReport::default();
    model.visit_projections(&mut |path, projection| {
        if skips(skip, path) {
            return Ok(());
        }
        exchange(projection, config).map_err(|e| e.context(path))?;
        if let Some(layer) = of(projection) {
            report.add(path, layer);
        }
        Ok(())
    })?;
    if report.layers.is_empty() {
        return Err(Error::config(
            "quantization: no linear layer of this model is left to quantize",
        ));
    }
    Ok(report)
}

/// Whether an entry is `path` or the end of it after a dot.
pub fn skips(entries: &[String], path: &str) -> bool {
    entries.iter().any(|entry| {
        path.strip_suffix(entry.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn exchange(projection: &mut Projection, config: &QuantConfig) -> Result<()> {
    if let Projection::Adapted(layer) = projection {
        return match layer.as_any_mut().downcast_mut::<LoraLinear>() {
            Some(adapter) => exchange(adapter.base_mut(), config),
            None => Err(Error::argument(
                "quantize",
                "a plain linear layer",
                "one that is quantized already",
            )),
        };
    }
    let layer = QuantizedLinear::new(projection, config)?;
    projection.replace(|_| Ok(Projection::Adapted(Box::new(layer))))
}

/// The quantized layers of a model, those under adapters included.
///
/// # Errors
/// What the model's walk reports.
pub fn report(model: &mut (impl Projections + ?Sized)) -> Result<QuantReport> {
    let mut report = QuantReport::default();
    model.visit_projections(&mut |path, projection| {
        if let Some(layer) = of(projection) {
            report.add(path, layer);
        }
        Ok(())
    })?;
    Ok(report)
}

/// Bytes of everything in the model that is not trained: frozen parameters and quantized weights.
///
/// # Errors
/// What the model's walk reports.
pub fn frozen_bytes(model: &mut (impl Projections + ?Sized)) -> Result<usize> {
    let frozen = model.named_parameters().into_iter();
    let plain: usize = frozen
        .filter(|(_, p)| !p.trainable())
        .map(|(_, p)| p.numel() * p.dtype().size())
        .sum();
    Ok(plain + report(model)?.bytes)
}

/// Makes quantized layers ordinary ones again, with the values that their codes mean, in the dtype
/// that the weights had. Layers under adapters stay.
///
/// # Errors
/// When the system has no memory.
pub fn dequantize(model: &mut (impl Projections + ?Sized)) -> Result<()> {
    model.visit_projections(&mut |_, projection| {
        let plain = match projection {
            Projection::Adapted(layer) => layer.as_any().downcast_ref::<QuantizedLinear>(),
            _ => None,
        };
        let Some(layer) = plain else {
            return Ok(());
        };
        let weight = layer.dequantized()?;
        let plain = layer.plain(&weight)?;
        projection.replace(|_| Ok(plain))
    })
}
