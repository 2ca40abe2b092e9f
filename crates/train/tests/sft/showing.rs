//! What `inspect` prints.

use std::sync::Arc;

use entrenar_train::data::sft::{SftConfig, inspect};
use serde_json::json;

use super::{Place, chat};

#[test]
fn masked_text_is_marked_and_tokens_are_counted() {
    let place = Place::new();
    let config = SftConfig {
        chat_template: Some("chatml".to_string()),
        sequence_length: 100,
        packing: true,
        ..SftConfig::default()
    };
    let short = json!({"messages": [
        {"role": "user", "content": "\u{1b}[31mred é"}, {"role": "assistant", "content": "no"},
    ]});
    let samples = Arc::new(place.rows(&[short, chat()], &config));
    let dataset = samples.dataset(0).unwrap();
    let shown = inspect(&dataset, &place.tokenizer, 1, false).unwrap();
    assert_eq!(
        shown,
        "── sample 1: 34 tokens, 3 trained\n\
         ⟦<|im_start|>user\n\\u{1b}[31mred é<|im_end|>\n<|im_start|>assistant\n⟧no<|im_end|>⟦\n⟧\n\
         \n\
         read              2 rows, 2 samples, 107 tokens, 9 trained (8.4 %), longest row 73 tokens\n\
         samples           2\n\
         tokens            107\n\
         per sample        min 34, median 53.5, mean 53.5, max 73\n\
         trained tokens    9 (8.4 %)\n\
         packed rows       2 of 100, 52.5 % filled\n"
    );
    let shown = inspect(&dataset, &place.tokenizer, 5, true).unwrap();
    assert!(shown.contains("── sample 2"));
    assert!(shown.contains("assistant\n\u{1b}[0mno<|im_end|>\u{1b}[2m\n\u{1b}[0m"));
    assert!(!shown.contains("\u{1b}[31m"));

    let plain = SftConfig {
        packing: false,
        ..config
    };
    let samples = Arc::new(place.rows(&[chat()], &plain));
    let shown = inspect(&samples.dataset(0).unwrap(), &place.tokenizer, 0, false).unwrap();
    assert!(
        shown.ends_with("rows              1 (not packed)\n"),
        "{shown}"
    );
}
