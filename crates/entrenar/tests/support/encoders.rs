//! A small random encoder with its tokenizer, for the tasks of texts.

use std::path::Path;

use entrenar::nn::Init;
use entrenar::zoo::{Bert, BertConfig, Builder};
use serde_json::{Map, Value, json};

/// Writes a BERT of these words, of which the first `special` are special tokens, named by their texts
/// (`[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and perhaps `[MASK]`); `sizes` are keys of its config.
pub fn write_encoder(base: &Path, words: &[&str], special: usize, sizes: Value) {
    let mut config = json!({
        "model_type": "bert", "vocab_size": words.len(), "pad_token_id": 0,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    });
    let keys = config.as_object_mut().unwrap();
    keys.extend(sizes.as_object().unwrap().clone());
    let config = BertConfig::from_json(keys).unwrap();
    let model = Bert::new(config, &mut Builder::random(Init::new(5))).unwrap();
    model.save(base).unwrap();
    let vocabulary: Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(i, w)| (w.to_string(), json!(i)))
        .collect();
    let token = |id: usize| {
        json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": (0..special).map(token).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    std::fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let name = |word: &&str| {
        (
            word[1..word.len() - 1].to_lowercase() + "_token",
            json!(word),
        )
    };
    let names: Map<String, Value> = words[..special].iter().map(name).collect();
    std::fs::write(
        base.join("tokenizer_config.json"),
        Value::from(names).to_string(),
    )
    .unwrap();
}
