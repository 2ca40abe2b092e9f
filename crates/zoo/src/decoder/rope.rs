//! Rotary frequencies of the Llama family, plain and stretched for longer sequences.
//!
//! Formulas: Su et al., "RoFormer" (2021); `linear` is Chen et al., "Position interpolation"
//! (2023); `llama3` is the rule published with Llama 3.1. Angles are computed in f32, as the
//! reference models do, so that long positions agree with them.

use entrenar_core::{Error, Result, Tensor};
use serde_json::{Map, Value, json};

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all (`rope_type: default`).
    #[default]
    None,
    /// All frequencies divided by this.
    Linear(f64),
    /// Long wavelengths divided by `factor`, short ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above the original length over this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below the original length over this are high frequencies.
        high_freq_factor: f64,
        /// The length the model was first trained for.
        original_max_position_embeddings: f64,
    },
}

impl RopeScaling {
    /// The base and the scaling of a `config.json`, from `rope_parameters` or from `rope_theta`
    /// and `rope_scaling`.
    ///
    /// # Errors
    /// When a value has the wrong type, is missing, or the type of scaling is not built.
    pub fn from_json(map: &Map<String, Value>) -> Result<(f64, RopeScaling)> {
        let fault = |key: &str, want: &str, got: &Value| {
            Error::config(format!("config.json: `{key}`: expected {want}, got {got}"))
        };
        let set = |key: &str| map.get(key).filter(|v| !v.is_null());
        let (key, table) = match (set("rope_parameters"), set("rope_scaling")) {
            (Some(v), _) => ("rope_parameters", v),
            (None, Some(v)) => ("rope_scaling", v),
            (None, None) => ("rope_scaling", &Value::Null),
        };
        let empty = Map::new();
        let table = match table {
            Value::Object(table) => table,
            Value::Null => &empty,
            other => return Err(fault(key, "an object", other)),
        };
        let positive = |name: &str, v: &Value| {
            v.as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| fault(name, "a positive number", v))
        };
        let theta = match table.get("rope_theta").or_else(|| set("rope_theta")) {
            Some(v) => positive("rope_theta", v)?,
            None => 10000.0,
        };
        let number = |name: &str| {
            let path = format!("{key}.{name}");
            let missing = Value::from("nothing");
            positive(&path, table.get(name).unwrap_or(&missing))
        };
        let kind = table.get("rope_type").or_else(|| table.get("type"));
        let scaling = match kind.map(|k| (k.as_str(), k)) {
            None | Some((Some("default"), _)) => RopeScaling::None,
            Some((Some("linear"), _)) => RopeScaling::Linear(number("factor")?),
            Some((Some("llama3"), _)) => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position_embeddings: number("original_max_position_embeddings")?,
            },
            Some((_, other)) => {
                return Err(fault(
                    &format!("{key}.rope_type"),
                    "default, linear or llama3",
                    other,
                ));
            }
        };
        Ok((theta, scaling))
    }

    /// Writes both forms: `rope_parameters`, and `rope_theta` with `rope_scaling`.
    pub fn write(&self, theta: f64, map: &mut Map<String, Value>) {
        let table = match self {
            RopeScaling::None => json!({"rope_type": "default"}),
            RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": *original as u64,
            }),
        };
        let plain = *self == RopeScaling::None;
        map.insert(
            "rope_scaling".into(),
            if plain { Value::Null } else { table.clone() },
        );
        map.insert("rope_theta".into(), json!(theta));
        let mut table = table;
        table["rope_theta"] = json!(theta);
        map.insert("rope_parameters".into(), table);
    }

    /// Angle per position of each channel pair of a head of `width` channels.
    pub fn frequencies(&self, theta: f64, width: usize) -> Vec<f32> {
        let plain = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / width as f32);
        let stretch = |f: f32| match self {
            RopeScaling::None => f,
            RopeScaling::Linear(factor) => f / *factor as f32,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: length,
            } => {
                let wave = 2.0 * std::f64::consts::PI / f64::from(f);
                if wave < length / high {
                    f
                } else if wave > length / low {
                    (f64::from(f) / factor) as f32
                } else {
                    let smooth = (length / wave - low) / (high - low);
                    (f64::from(f) * ((1.0 - smooth) / factor + smooth)) as f32
                }
            }
        };
        (0..width / 2).map(|i| stretch(plain(i))).collect()
    }
}

/// Cosines and sines `[positions, width / 2]` of the angles at these positions.
///
/// # Errors
/// When the size overflows.
pub fn angles(frequencies: &[f32], positions: &[usize]) -> Result<(Tensor, Tensor)> {
    let of = |f: fn(f32) -> f32| {
        let values: Vec<f32> = positions
            .iter()
            .flat_map(|&p| frequencies.iter().map(move |w| f(p as f32 * w)))
            .collect();
        Tensor::from_vec(values, [positions.len(), frequencies.len()])
    };
    Ok((of(f32::cos)?, of(f32::sin)?))
}
