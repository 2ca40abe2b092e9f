//! [`DecoderConfig`]: what a `config.json` of the Llama family says.
//!
//! Read from both forms in use (transformers 4: `rope_theta`, `rope_scaling`, `torch_dtype`;
//! transformers 5: `rope_parameters`, `dtype`) and written so that either reads it. A feature that
//! would change the numbers and is not built is an error that names it, never ignored.

use entrenar_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::rope::RopeScaling;
use crate::keys::{Keys, wrong};

/// The models that share this decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama 1 to 3 (`LlamaForCausalLM`).
    Llama,
    /// Mistral (`MistralForCausalLM`): attention over a sliding window.
    Mistral,
    /// Qwen 2 and 2.5 (`Qwen2ForCausalLM`): biases on queries, keys and values.
    Qwen2,
    /// Qwen 3 (`Qwen3ForCausalLM`): normalised queries and keys, a head size of its own.
    Qwen3,
}

impl Family {
    const ALL: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The entry of `architectures` in `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The family with this `model_type`.
    pub fn of(model_type: &str) -> Option<Family> {
        Family::ALL
            .into_iter()
            .find(|f| f.model_type() == model_type)
    }
}

/// Sizes and settings of a [`super::Decoder`], under their names in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which of the models that share the decoder.
    pub family: Family,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Size of a position's vector.
    pub hidden_size: usize,
    /// Inner size of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves a group of query heads.
    pub num_key_value_heads: usize,
    /// Size of one head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched for longer sequences.
    pub rope_scaling: RopeScaling,
    /// Whether queries, keys, values (and in Llama the output) have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward part has biases.
    pub mlp_bias: bool,
    /// A position sees this many positions, itself included; per layer.
    pub windows: Vec<Option<usize>>,
    /// Whether the output layer is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Every key of the file, for those who write it again.
    pub raw: Map<String, Value>,
}

impl Default for DecoderConfig {
    /// A Llama of the sizes that transformers gives by default.
    fn default() -> Self {
        DecoderConfig {
            family: Family::Llama,
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            rope_scaling: RopeScaling::None,
            attention_bias: false,
            mlp_bias: false,
            windows: vec![None; 32],
            tie_word_embeddings: false,
            initializer_range: 0.02,
            raw: Map::new(),
        }
    }
}

impl DecoderConfig {
    /// Reads the object of a `config.json`.
    ///
    /// # Errors
    /// When the model is of another family, a value has the wrong type or an impossible size, or
    /// the file asks for something that is not built (an activation other than SiLU, an unknown
    /// `rope_type`).
    pub fn from_json(map: &Map<String, Value>) -> Result<DecoderConfig> {
        let keys = Keys(map);
        let model_type = keys.text("model_type").unwrap_or("");
        let family = Family::of(model_type).ok_or_else(|| {
            Error::config(format!(
                "config.json: `model_type`: expected llama, mistral, qwen2 or qwen3, got `{model_type}`"
            ))
        })?;
        keys.one_of("hidden_act", &["silu", "swish"])?;
        let d = DecoderConfig::default();
        let heads = keys.size("num_attention_heads", 32)?;
        let hidden = keys.size("hidden_size", d.hidden_size)?;
        let layers = keys.layers("num_hidden_layers", d.num_hidden_layers)?;
        let default_head = if family == Family::Qwen3 {
            128
        } else {
            hidden / heads
        };
        let kv = if family == Family::Mistral { 8 } else { heads };
        let (theta, scaling) = RopeScaling::from_json(map)?;
        let config = DecoderConfig {
            family,
            vocab_size: keys.size("vocab_size", d.vocab_size)?,
            hidden_size: hidden,
            intermediate_size: keys.size("intermediate_size", d.intermediate_size)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.size("num_key_value_heads", kv)?,
            head_dim: keys.size("head_dim", default_head.max(1))?,
            max_position_embeddings: keys.size("max_position_embeddings", 2048)?,
            rms_norm_eps: keys.number("rms_norm_eps", d.rms_norm_eps)?,
            rope_theta: theta,
            rope_scaling: scaling,
            attention_bias: family == Family::Qwen2 || keys.flag("attention_bias", false)?,
            mlp_bias: keys.flag("mlp_bias", false)?,
            windows: windows(family, layers, &keys)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            initializer_range: keys.number("initializer_range", d.initializer_range)?,
            raw: map.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that the sizes fit one another.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self) -> Result<()> {
        let fault = if self.head_dim % 2 == 1 {
            format!("`head_dim`: expected an even size, got {}", self.head_dim)
        } else if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            format!(
                "`num_key_value_heads`: expected a divisor of num_attention_heads {}, got {}",
                self.num_attention_heads, self.num_key_value_heads
            )
        } else if self.windows.len() != self.num_hidden_layers {
            format!(
                "`layer_types`: expected {} entries, got {}",
                self.num_hidden_layers,
                self.windows.len()
            )
        } else {
            return Ok(());
        };
        Err(Error::config(format!("config.json: {fault}")))
    }

    /// The object of `config.json`, in the keys of transformers 4 and 5 both.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let theirs = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
        });
        if let Value::Object(theirs) = theirs {
            map.extend(theirs);
        }
        self.rope_scaling.write(self.rope_theta, &mut map);
        if self.family == Family::Mistral {
            map.insert(
                "sliding_window".into(),
                json!(self.windows.first().copied().flatten()),
            );
        }
        map
    }
}

/// The window of each layer.
fn windows(family: Family, layers: usize, keys: &Keys<'_>) -> Result<Vec<Option<usize>>> {
    let default = (family == Family::Mistral).then_some(4096);
    let window = match (keys.0.get("sliding_window"), default) {
        (Some(Value::Null), _) | (None, None) => None,
        (_, default) => Some(keys.size("sliding_window", default.unwrap_or(4096))?),
    };
    match family {
        Family::Llama => Ok(vec![None; layers]),
        Family::Mistral => Ok(vec![window; layers]),
        Family::Qwen2 | Family::Qwen3 => {
            let used = keys.flag("use_sliding_window", false)?;
            let Some(types) = keys.get("layer_types") else {
                // Layers from `max_window_layers` on look through the window.
                let from = match keys.get("max_window_layers") {
                    Some(Value::Number(n)) if n.as_u64() == Some(0) => 0,
                    _ => keys.size("max_window_layers", 28)?,
                };
                let windowed = |i| window.filter(|_| used && i >= from);
                return Ok((0..layers).map(windowed).collect());
            };
            let fault = || {
                let what = "full_attention or sliding_attention for each layer";
                wrong("layer_types", what, types)
            };
            let entries = types.as_array().ok_or_else(fault)?;
            entries
                .iter()
                .map(|t| match t.as_str() {
                    Some("full_attention") => Ok(None),
                    Some("sliding_attention") => Ok(window.filter(|_| used)),
                    _ => Err(fault()),
                })
                .collect()
        }
    }
}
