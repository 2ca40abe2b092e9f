//! Fine-tuning data from outside: tokens and masks against transformers, hostile rows with their
//! exact messages, packed against single rows.

#[path = "sft/broken.rs"]
mod broken;
#[path = "sft/formats.rs"]
mod formats;
#[path = "sft/goldens.rs"]
mod goldens;
#[path = "sft/packing.rs"]
mod packing;
#[path = "sft/showing.rs"]
mod showing;

use std::path::PathBuf;

use entrenar_train::data::sft::{SftConfig, SftData, SftSamples};
use entrenar_zoo::Tokenizer;
use serde_json::{Map, Value, json};

/// A tokenizer of bytes with a BOS that it puts in front, and a directory for data.
struct Place {
    directory: tempfile::TempDir,
    tokenizer: Tokenizer,
}

/// Numbers of the special tokens, after the bytes.
const BOS: u32 = 256;
const EOS: u32 = 257;

const SPECIAL: [&str; 4] = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];

/// The character by which byte-level vocabularies write a byte.
fn letter(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !plain(b)).count();
    char::from_u32(256 + before as u32).unwrap()
}

impl Place {
    fn new() -> Self {
        Self::with(json!({"bos_token": "<s>", "eos_token": "</s>"}))
    }

    /// With another `tokenizer_config.json`.
    fn with(config: Value) -> Self {
        let vocabulary: Map<String, Value> = (0..=255u8)
            .map(|byte| (letter(byte).to_string(), json!(byte)))
            .chain((0..).zip(SPECIAL).map(|(i, s)| (s.into(), json!(256 + i))))
            .collect();
        let added: Vec<Value> = (0..)
            .zip(SPECIAL)
            .map(|(i, s)| {
                json!({"id": 256 + i, "content": s, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                           "use_regex": true});
        let (bos, a, b) = (
            json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
            json!({"Sequence": {"id": "A", "type_id": 0}}),
            json!({"Sequence": {"id": "B", "type_id": 0}}),
        );
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": bytes, "decoder": bytes,
            "post_processor": {"type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, b],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": []},
        });
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            std::fs::write(directory.path().join(name), value.to_string()).unwrap();
        };
        write("tokenizer.json", &tokenizer);
        write("tokenizer_config.json", &config);
        let tokenizer = Tokenizer::open(directory.path()).unwrap();
        Self {
            directory,
            tokenizer,
        }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let file = self.directory.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    }

    /// The samples of one file.
    fn open(
        &self,
        name: &str,
        bytes: impl AsRef<[u8]>,
        config: &SftConfig,
    ) -> entrenar_base::Result<SftSamples> {
        SftData::open(&[self.write(name, bytes)], config, &self.tokenizer)
    }

    /// The samples of rows.
    fn rows(&self, rows: &[Value], config: &SftConfig) -> SftSamples {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        self.open("rows.jsonl", lines.join("\n"), config).unwrap()
    }

    /// The message with the directory taken out.
    fn told(&self, name: &str, bytes: impl AsRef<[u8]>, config: &SftConfig) -> String {
        let message = self.open(name, bytes, config).unwrap_err().to_string();
        message.replace(&format!("{}/", self.directory.path().display()), "")
    }

    /// The whole text of a sample, and only what is learned of it.
    fn texts(&self, samples: &SftSamples, sample: usize) -> (String, String) {
        let (tokens, trained) = (samples.tokens(sample), samples.trained(sample));
        let learned: Vec<u32> = tokens
            .iter()
            .zip(trained)
            .filter_map(|(token, learned)| learned.then_some(*token))
            .collect();
        let decode = |tokens: &[u32]| self.tokenizer.decode(tokens, false).unwrap();
        (decode(tokens), decode(&learned))
    }
}

/// ChatML without marks.
const UNMARKED: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn chat() -> Value {
    json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": " 2 "},
    ]})
}
