//! Quantized layers under the names of bitsandbytes' checkpoints.
//!
//! For a layer `x`: `x.weight` (u8 `[numbers / 2, 1]`), `x.weight.absmax` (f32, or u8 codes),
//! `x.weight.quant_map` (f32 `[16]`), for double quantization `x.weight.nested_absmax` and
//! `x.weight.nested_quant_map` (f32), and `x.weight.quant_state.bitsandbytes__nf4` (or `__fp4`): JSON
//! as bytes. The symmetric form has no counterpart there and is stored the same way under its own name.

use std::collections::BTreeMap;
use std::sync::Arc;

use entrenar_core::{Array, DType, Error, Result};
use entrenar_cpu::product::Compute;
use entrenar_cpu::quant4::{Code, NESTED_BLOCK, Quantized, Scales};
use entrenar_nn::{NamedArrays, Projection, Projections};
use serde_json::{Map, Value, json};

use super::{QuantReport, QuantizedLinear, of};

const STATE: &str = "quant_state.bitsandbytes__";

/// The tensors of one layer, by the part of the name after the layer's path.
fn tensors(layer: &QuantizedLinear) -> Result<NamedArrays> {
    let w = layer.weight();
    let n = w.codes().numel();
    // The table has one zero; what is stored has no sign on it either.
    let table = w.code().values().map(|x| x + 0.0).to_vec();
    let mut state = json!({
        "quant_type": w.code().name(),
        "blocksize": w.block(),
        "dtype": torch_name(layer.dtype()),
        "shape": [w.sizes().0, w.sizes().1],
    });
    let mut all = vec![
        ("weight".to_string(), w.codes().reshape([n, 1])?),
        ("weight.quant_map".into(), Array::from_vec(table, [16])?),
    ];
    match w.scales() {
        Scales::Plain(scales) => all.push(("weight.absmax".into(), scales.clone())),
        Scales::Double {
            codes,
            scales,
            map,
            offset,
        } => {
            all.push(("weight.absmax".into(), codes.clone()));
            all.push(("weight.nested_absmax".into(), scales.clone()));
            let map = Array::from_vec(map.to_vec(), [256])?;
            all.push(("weight.nested_quant_map".into(), map));
            state["nested_blocksize"] = json!(NESTED_BLOCK);
            state["nested_dtype"] = json!("float32");
            state["nested_offset"] = json!(f64::from(*offset));
        }
    }
    let text = state.to_string().into_bytes();
    let n = text.len();
    all.push((
        format!("weight.{STATE}{}", w.code().name()),
        Array::from_vec(text, [n])?,
    ));
    Ok(all)
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    }
}

/// The state of a model with quantized layers: its parameters and buffers, and the quantized weights
/// as bitsandbytes stores them. Adapters are left out.
///
/// # Errors
/// What the model's walk reports.
pub fn quantized_state(model: &mut (impl Projections + ?Sized)) -> Result<NamedArrays> {
    let mut all = model.state();
    all.retain(|(name, _)| !name.contains(".lora_"));
    model.visit_projections(&mut |path, projection| {
        if let Some(layer) = of(projection) {
            let parts = tensors(layer)?.into_iter();
            all.extend(parts.map(|(part, array)| (format!("{path}.{part}"), array)));
        }
        Ok(())
    })?;
    Ok(all)
}

/// Puts the quantized weights among `given` (tensors by name) in the place of the model's plain ones,
/// and takes them out of `given`. Whatever else is there stays for others to load.
///
/// # Errors
/// When a part is missing, has another size or dtype, or its JSON is damaged; the message names the
/// tensor. Layers before it are exchanged then.
pub fn load_quantized(
    model: &mut (impl Projections + ?Sized),
    given: &mut BTreeMap<String, Array>,
    compute: Compute,
) -> Result<QuantReport> {
    let mut report = QuantReport::default();
    model.visit_projections(&mut |path, projection| {
        let Some(layer) = take_quantized(path, projection, given, compute)? else {
            return Ok(());
        };
        report.add(path, &layer);
        projection.replace(|_| Ok(Projection::Adapted(Box::new(layer))))
    })?;
    Ok(report)
}

/// The quantized layer that `given` holds for the projection at `path`, taken out of it; `None` where
/// it holds none. Of the projection the sizes and the bias count.
///
/// # Errors
/// As [`load_quantized`].
pub fn take_quantized(
    path: &str,
    projection: &Projection,
    given: &mut BTreeMap<String, Array>,
    compute: Compute,
) -> Result<Option<QuantizedLinear>> {
    let stem = format!("{path}.weight.{STATE}");
    let found = given.range(stem.clone()..).next();
    let name = found.map(|(n, _)| n).filter(|n| n.starts_with(&stem));
    let Some(name) = name.cloned() else {
        return Ok(None);
    };
    read(path, &name, projection, given, compute)
        .map(Some)
        .map_err(|e| e.context(format!("{path}.weight")))
}

fn read(
    path: &str,
    name: &str,
    projection: &Projection,
    given: &mut BTreeMap<String, Array>,
    compute: Compute,
) -> Result<QuantizedLinear> {
    let fault = |what: String| Error::config(format!("quantized weight: {what}"));
    let mut take = |part: &str| {
        let full = format!("{path}.weight{part}");
        given
            .remove(&full)
            .ok_or_else(|| fault(format!("{full} is missing")))
    };
    let text = take(&name[path.len() + ".weight".len()..])?;
    let bytes = text.to_vec::<u8>()?;
    let state: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|e| fault(format!("{name} is no JSON object: {e}")))?;
    let wrong = |key: &str, what: &str| {
        let got = state.get(key).unwrap_or(&Value::Null);
        fault(format!("`{key}` in {name}: expected {what}, got {got}"))
    };
    let word = |key: &str| state.get(key).and_then(Value::as_str);
    let size = |v: Option<&Value>| {
        v.and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
    };
    let code = word("quant_type")
        .and_then(|name| super::QuantConfig::kind_of(name).ok())
        .ok_or_else(|| wrong("quant_type", "nf4, fp4 or symmetric4"))?;
    let block = size(state.get("blocksize")).ok_or_else(|| wrong("blocksize", "a size"))?;
    let dtype = match word("dtype") {
        Some("float32") => DType::F32,
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::BF16,
        Some("float64") => DType::F64,
        _ => return Err(wrong("dtype", "float32, float16 or bfloat16")),
    };
    let (inputs, outputs) = projection.sizes();
    let shape = state.get("shape").and_then(Value::as_array);
    let shape: Vec<Option<usize>> = shape.into_iter().flatten().map(|v| size(Some(v))).collect();
    if shape != [Some(outputs), Some(inputs)] {
        return Err(wrong("shape", &format!("[{outputs}, {inputs}]")));
    }
    let table = take(".quant_map")?;
    check_table(code, &table).map_err(fault)?;
    let (codes, absmax) = (take("")?, take(".absmax")?);
    let scales = if state.contains_key("nested_offset") {
        if size(state.get("nested_blocksize")) != Some(NESTED_BLOCK) {
            return Err(wrong("nested_blocksize", "256"));
        }
        let offset = state.get("nested_offset").and_then(Value::as_f64);
        let map = take(".nested_quant_map")?.to_vec::<f32>()?;
        let count = map.len();
        Scales::Double {
            codes: absmax,
            scales: take(".nested_absmax")?,
            map: shared_map(map.try_into().map_err(|_| {
                fault(format!(
                    "nested_quant_map: expected 256 values, got {count}"
                ))
            })?),
            offset: offset.ok_or_else(|| wrong("nested_offset", "a number"))? as f32,
        }
    } else {
        Scales::Plain(absmax)
    };
    let weight = Quantized::from_parts((outputs, inputs), code, block, codes, scales)?;
    let transposed = matches!(projection, Projection::Transposed(_));
    let bias = projection.bias().cloned();
    Ok(QuantizedLinear::from_quantized(
        weight, bias, dtype, transposed, compute,
    ))
}

/// A map that is the usual one shares its memory.
fn shared_map(map: [f32; 256]) -> Arc<[f32; 256]> {
    let usual = entrenar_cpu::quant8::Codebook::signed().values();
    if **usual == map {
        usual.clone()
    } else {
        Arc::new(map)
    }
}

fn check_table(code: Code, table: &Array) -> Result<(), String> {
    let (ours, theirs) = (code.values(), table.to_f64_vec());
    let equal = theirs.len() == 16
        && ours
            .iter()
            .zip(&theirs)
            .all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6);
    if table.dtype().is_float() && equal {
        return Ok(());
    }
    let name = code.name();
    Err(format!(
        "quant_map: expected the 16 values of {name}, got others"
    ))
}
