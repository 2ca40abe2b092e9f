//! A [`Gpt`] trained here in the published form of the same network, GPT-2's, so that whatever works on published
//! models works on it: adapters, merging, other tools.
//!
//! The two compute the same. GPT-2 stores the weights of linear layers `[in, out]`, always has biases, and keeps the
//! output layer tied to the embedding.

use entrenar_core::{Array, DType, Error, Result, Tensor};
use entrenar_nn::Parameters;
use serde_json::{Map, Value, json};

use crate::build::Builder;
use crate::{Gpt, Gpt2, Gpt2Config};

impl Gpt2 {
    /// The same network with copied weights.
    ///
    /// # Errors
    /// When the output layer is not tied to the embedding, which GPT-2 cannot say.
    ///
    /// ```
    /// use entrenar_zoo::{Gpt, Gpt2, GptConfig};
    /// use entrenar_nn::{Ctx, Init, Module};
    /// use entrenar_core::Tensor;
    /// let config = GptConfig { vocabulary: 5, context: 8, layers: 1, heads: 2, width: 8, ..Default::default() };
    /// let ours = Gpt::new(config, &mut Init::new(0))?;
    /// let published = Gpt2::of(&ours)?;
    /// let tokens = Tensor::from_vec(vec![0i64, 3, 1], [1, 3])?;
    /// let [a, b] = [ours.forward(&tokens, &mut Ctx::eval())?, published.forward(&tokens, &mut Ctx::eval())?];
    /// assert!(a.sub(&b)?.abs()?.max()?.item::<f32>()? < 1e-6);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    pub fn of(gpt: &Gpt) -> Result<Gpt2> {
        let sizes = gpt.config();
        if !sizes.tie_embeddings {
            return Err(Error::config(
                "expected a model whose output layer is its token embedding (tie_embeddings), this one has its own",
            ));
        }
        let map = json!({
            "vocab_size": sizes.vocabulary,
            "n_positions": sizes.context,
            "n_embd": sizes.width,
            "n_layer": sizes.layers,
            "n_head": sizes.heads,
            "embd_pdrop": sizes.dropout,
            "attn_pdrop": sizes.dropout,
            "resid_pdrop": sizes.dropout,
        });
        let empty = Map::new();
        let config = Gpt2Config::from_json(map.as_object().unwrap_or(&empty))?;
        let mut arrays = Vec::new();
        for (name, array) in gpt.state() {
            arrays.push(renamed(&name, array)?);
        }
        let named = |name: &str| arrays.iter().any(|(n, _): &(String, Array)| n == name);
        let missing: Vec<(String, Array)> = biases(sizes.layers, sizes.width)
            .into_iter()
            .filter(|(name, _)| !named(name))
            .map(|(name, size)| (name, Tensor::zeros([size], DType::F32).array().clone()))
            .collect();
        arrays.extend(missing);
        let mut builder = Builder::given(arrays, None);
        let model = Gpt2::new(config, &mut builder)?;
        builder.finish(|name| name == "head.weight")?;
        Ok(model)
    }
}

/// A parameter of ours under its published name and in its published layout.
fn renamed(name: &str, array: Array) -> Result<(String, Array)> {
    let name = name
        .replace("blocks.", "transformer.h.")
        .replace(".ln1.", ".ln_1.")
        .replace(".ln2.", ".ln_2.")
        .replace(".attn.qkv.", ".attn.c_attn.")
        .replace(".attn.proj.", ".attn.c_proj.")
        .replace(".mlp.fc.", ".mlp.c_fc.")
        .replace(".mlp.proj.", ".mlp.c_proj.");
    let name = match name.split_once('.') {
        Some(("ln", part)) => format!("transformer.ln_f.{part}"),
        Some(("wte" | "wpe", _)) => format!("transformer.{name}"),
        _ => name,
    };
    let turned = name.contains(".h.") && name.ends_with(".weight") && !name.contains(".ln_");
    let array = if turned {
        Tensor::from(array).t()?.contiguous()?.array().clone()
    } else {
        array
    };
    Ok((name, array))
}

/// The vectors that a model without biases has none of, and their sizes.
fn biases(layers: usize, width: usize) -> Vec<(String, usize)> {
    let mut all = vec![("transformer.ln_f.bias".to_string(), width)];
    for layer in 0..layers {
        for (name, size) in [
            ("ln_1", width),
            ("attn.c_attn", 3 * width),
            ("attn.c_proj", width),
            ("ln_2", width),
            ("mlp.c_fc", 4 * width),
            ("mlp.c_proj", width),
        ] {
            all.push((format!("transformer.h.{layer}.{name}.bias"), size));
        }
    }
    all
}

/// The `tokenizer.json` of one token a character, numbered in order.
pub fn tokenizer_of_characters(characters: &[char]) -> Value {
    let vocabulary: Map<String, Value> = characters
        .iter()
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false
        },
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        // No text spells this: a character that is not known is an error.
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    })
}

/// The `tokenizer.json` of one token a byte.
pub fn tokenizer_of_bytes() -> Value {
    let vocabulary: Map<String, Value> = (0..=255u8)
        .map(|byte| (byte_letter(byte).to_string(), json!(byte)))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        },
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": []
        }
    })
}

/// The letter by which byte-level tokenizers write a byte: printable ones as they are, the others, in order, from
/// U+0100 on.
pub fn byte_letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GptConfig, Tokenizer};
    use entrenar_nn::{Ctx, Init, Module};

    #[test]
    fn both_forms_compute_the_same() {
        for bias in [true, false] {
            let config = GptConfig {
                vocabulary: 7,
                context: 6,
                layers: 2,
                heads: 2,
                width: 8,
                bias,
                ..Default::default()
            };
            let ours = Gpt::new(config, &mut Init::new(3)).unwrap();
            // Fresh biases are zero and fresh norms one: exchanged names would not show.
            let mut init = Init::new(4);
            for (_, p) in ours.named_parameters() {
                p.set(&init.normal(p.shape(), 0.0, 0.5).unwrap()).unwrap();
            }
            let published = Gpt2::of(&ours).unwrap();
            let tokens = Tensor::from_vec(vec![1i64, 6, 3, 0, 2, 5], [1, 6]).unwrap();
            let run = |m: &dyn Module| {
                let y = m.forward(&tokens, &mut Ctx::eval()).unwrap();
                y.to_vec::<f32>().unwrap()
            };
            for (a, b) in run(&ours).iter().zip(run(&published)) {
                assert!(
                    (a - b).abs() < 1e-4 * a.abs().max(1.0),
                    "bias {bias}: {a} {b}"
                );
            }
        }
    }

    #[test]
    fn an_output_layer_of_its_own_is_refused() {
        let config = GptConfig {
            vocabulary: 3,
            context: 2,
            layers: 1,
            heads: 1,
            width: 2,
            tie_embeddings: false,
            ..Default::default()
        };
        let message = Gpt2::of(&Gpt::new(config, &mut Init::new(0)).unwrap());
        let message = message.err().unwrap().to_string();
        assert!(message.contains("tie_embeddings"), "{message}");
    }

    #[test]
    fn any_text_is_its_bytes_and_back() {
        let tokenizer = Tokenizer::from_json(&tokenizer_of_bytes(), Map::new()).unwrap();
        let text: String = ('\0'..='\u{2fff}').chain(['𝄞', '\u{10ffff}']).collect();
        let tokens = tokenizer.encode(&text, true).unwrap();
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(tokens, bytes);
        assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    }
}
