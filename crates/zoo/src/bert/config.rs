//! [`BertConfig`]: the keys of BERT's `config.json`, and the names of the classes in it.

use entrenar_core::{Error, Result};
use serde_json::{Map, Value, json};

use crate::keys::Keys;

/// What is built on the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BertHead {
    /// Logits of every position's word (`BertForMaskedLM`).
    MaskedLm,
    /// Logits of the sequence's class (`BertForSequenceClassification`).
    Classes(usize),
    /// Nothing (`BertModel`).
    None,
}

/// Sizes and settings of a [`Bert`](super::Bert), under their names in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Size of a position's vector.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Inner size of the feed-forward part.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// Dropout of embeddings and block outputs.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention weights.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the classes; as `hidden_dropout_prob` where the file has none.
    pub classifier_dropout: f64,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// The padding token, whose vector is not trained.
    pub pad_token_id: Option<u64>,
    /// What is built on the encoder.
    pub head: BertHead,
    /// Every key of the file, for those who write it again.
    pub raw: Map<String, Value>,
}

impl BertConfig {
    /// Reads the object of a `config.json`; its `architectures` says which head there is.
    ///
    /// # Errors
    /// When a value has the wrong type or an impossible size, or the file asks for something that
    /// is not built.
    pub fn from_json(map: &Map<String, Value>) -> Result<BertConfig> {
        let keys = Keys(map);
        keys.one_of("model_type", &["bert"])?;
        keys.one_of("hidden_act", &["gelu"])?;
        keys.one_of("position_embedding_type", &["absolute"])?;
        let hidden_dropout = keys.probability("hidden_dropout_prob", 0.1)?;
        let named = keys.get("architectures").and_then(|a| a.get(0)?.as_str());
        let head = match named {
            Some("BertForMaskedLM" | "BertForPreTraining") => BertHead::MaskedLm,
            Some("BertForSequenceClassification") => BertHead::Classes(classes(&keys)?),
            Some("BertModel") | None => BertHead::None,
            Some(other) => {
                return Err(Error::config(format!(
                    "config.json: `architectures`: expected BertForMaskedLM, BertForSequenceClassification or BertModel, got {other}"
                )));
            }
        };
        let config = BertConfig {
            vocab_size: keys.size("vocab_size", 30522)?,
            hidden_size: keys.size("hidden_size", 768)?,
            num_hidden_layers: keys.layers("num_hidden_layers", 12)?,
            num_attention_heads: keys.size("num_attention_heads", 12)?,
            intermediate_size: keys.size("intermediate_size", 3072)?,
            max_position_embeddings: keys.size("max_position_embeddings", 512)?,
            type_vocab_size: keys.size("type_vocab_size", 2)?,
            hidden_dropout_prob: hidden_dropout,
            attention_probs_dropout_prob: keys.probability("attention_probs_dropout_prob", 0.1)?,
            classifier_dropout: keys.probability("classifier_dropout", hidden_dropout)?,
            layer_norm_eps: keys.number("layer_norm_eps", 1e-12)?,
            initializer_range: keys.number("initializer_range", 0.02)?,
            // 0 where the file says nothing; null means none.
            pad_token_id: map.get("pad_token_id").map_or(Some(0), Value::as_u64),
            head,
            raw: map.clone(),
        };
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            return Err(Error::config(format!(
                "config.json: `num_attention_heads`: expected a divisor of hidden_size {}, got {}",
                config.hidden_size, config.num_attention_heads
            )));
        }
        Ok(config)
    }

    /// Names of the classes by number: `id2label`, or `LABEL_0` and so on where it has none. Empty
    /// without a head for classes.
    pub fn labels(&self) -> Vec<String> {
        let BertHead::Classes(count) = self.head else {
            return Vec::new();
        };
        let named = self.raw.get("id2label").and_then(Value::as_object);
        let label = |i: usize| {
            let name = named.and_then(|map| map.get(&i.to_string())?.as_str());
            name.map_or_else(|| format!("LABEL_{i}"), str::to_string)
        };
        (0..count).map(label).collect()
    }

    /// The same sizes with a head for these classes.
    pub fn with_labels<S: AsRef<str>>(mut self, labels: &[S]) -> BertConfig {
        let names = || labels.iter().map(|l| l.as_ref().to_string()).enumerate();
        let by_id = names().map(|(i, name)| (i.to_string(), Value::from(name)));
        let by_name = names().map(|(i, name)| (name, Value::from(i)));
        self.raw
            .insert("id2label".into(), Value::Object(by_id.collect()));
        self.raw
            .insert("label2id".into(), Value::Object(by_name.collect()));
        self.raw.remove("num_labels");
        self.head = BertHead::Classes(labels.len());
        self
    }

    /// The same sizes with a head for hidden words.
    pub fn with_words(mut self) -> BertConfig {
        for key in ["id2label", "label2id", "num_labels"] {
            self.raw.remove(key);
        }
        self.head = BertHead::MaskedLm;
        self
    }

    /// The object of `config.json`.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let architecture = match self.head {
            BertHead::MaskedLm => "BertForMaskedLM",
            BertHead::Classes(_) => "BertForSequenceClassification",
            BertHead::None => "BertModel",
        };
        let ours = json!({
            "architectures": [architecture],
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "classifier_dropout": self.classifier_dropout,
            "layer_norm_eps": self.layer_norm_eps,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
        });
        if let Value::Object(ours) = ours {
            map.extend(ours);
        }
        if let BertHead::Classes(count) = self.head
            && classes(&Keys(&map)).ok() != Some(count)
        {
            let label = |i: usize| (i.to_string(), Value::from(format!("LABEL_{i}")));
            let labels: Map<String, Value> = (0..count).map(label).collect();
            let back = labels.iter().map(|(i, l)| {
                let number: usize = i.parse().unwrap_or(0);
                (
                    l.as_str().unwrap_or_default().to_string(),
                    Value::from(number),
                )
            });
            map.insert("label2id".into(), Value::Object(back.collect()));
            map.insert("id2label".into(), Value::Object(labels));
            map.remove("num_labels");
        }
        map
    }
}

/// Number of classes: entries of `id2label`, else `num_labels`, else 2.
fn classes(keys: &Keys<'_>) -> Result<usize> {
    match keys.get("id2label").and_then(Value::as_object) {
        Some(labels) if !labels.is_empty() => Ok(labels.len()),
        _ => keys.size("num_labels", 2),
    }
}
