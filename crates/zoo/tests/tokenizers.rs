//! Tokens, texts and rendered conversations against `tokenizers` and `transformers`
//! (`oracles/tokenizers_and_chat.py`), and the published text of a small trained model.

use std::path::PathBuf;

use entrenar_zoo::chat::Rendered;
use entrenar_zoo::{ChatTemplate, LanguageModel, Sampling, Tokenizer, generate};
use serde_json::{Map, Value, json};

/// A folder of the real data beside the workspace, or why there is none.
fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data")
        .join(name);
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as u32)
        .collect()
}

#[test]
fn tokens_are_those_of_the_reference() {
    let golden: Map<String, Value> =
        serde_json::from_str(include_str!("data/tokenizers.json")).unwrap();
    for (name, cases) in &golden {
        let Some(folder) = shared(name) else { return };
        let tokenizer = Tokenizer::open(folder).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids, numbers(&case["ids"]), "{name}: {text:?}");
            let bare = tokenizer.encode(text, false).unwrap();
            assert_eq!(bare, numbers(&case["bare"]), "{name}: {text:?}");
            let decoded = case["decoded"].as_str().unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), decoded, "{name}");
            let mut stream = tokenizer.stream(true);
            let mut streamed = String::new();
            for id in ids {
                streamed += &stream.push(id).unwrap();
            }
            streamed += &stream.finish().unwrap();
            assert_eq!(streamed, decoded, "{name}, streamed");
        }
    }
}

#[test]
fn special_tokens_come_from_the_files() {
    let Some(folder) = shared("tok-small-chat") else {
        return;
    };
    let t = Tokenizer::open(folder).unwrap();
    assert_eq!(t.bos().unwrap().text, "<|begin_of_text|>");
    assert_eq!(t.eos().unwrap().text, "<|end_of_text|>");
    assert_eq!(t.pad().unwrap().text, "<|pad|>");
    assert!(t.chat_template().unwrap().contains("add_generation_prompt"));
    let Some(folder) = shared("stories260k") else {
        return;
    };
    let t = Tokenizer::open(folder).unwrap();
    assert_eq!((t.bos().unwrap().id, t.eos().unwrap().id), (1, 2));
    assert!(t.pad().is_none(), "a padding token is not invented");
    assert_eq!(t.vocabulary(), 512);
}

#[test]
fn conversations_are_rendered_as_transformers_does() {
    let golden: Value = serde_json::from_str(include_str!("data/chat.json")).unwrap();
    let variables = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let variables = variables.as_object().unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let source = golden["templates"][name].as_str().unwrap();
        let template = ChatTemplate::new(source, variables.clone()).unwrap();
        let tools = Some(&case["tools"]).filter(|t| !t.is_null());
        let prompt = case["prompt"].as_bool().unwrap();
        let got = template.render(&case["messages"], tools, prompt);
        let of = format!("{name}, {}", case["messages"]);
        match case.get("error") {
            Some(words) => {
                let message = got.unwrap_err().to_string();
                assert!(message.contains(words.as_str().unwrap()), "{of}: {message}");
            }
            None => {
                let spans = case.get("assistant").map(|spans| {
                    let pair = |s: &Value| (numbers(s)[0] as usize, numbers(s)[1] as usize);
                    spans.as_array().unwrap().iter().map(pair).collect()
                });
                let want = Rendered {
                    text: case["text"].as_str().unwrap().to_string(),
                    assistant: spans,
                };
                assert_eq!(got.unwrap(), want, "{of}");
            }
        }
    }
    let broken = ChatTemplate::new("{% for m in %}", Map::new()).unwrap_err();
    assert!(broken.to_string().contains("[chat template]"), "{broken}");
}

#[test]
fn a_trained_model_tells_its_story() {
    let Some(folder) = shared("stories260k") else {
        return;
    };
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap())
            .unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let model = LanguageModel::open(&folder, None).unwrap();
    let greedy = Sampling {
        max_new_tokens: 200,
        temperature: 0.0,
        stop: vec![tokenizer.eos().unwrap().id],
        ..Default::default()
    };
    let start = tokenizer.encode("", true).unwrap();
    let tokens = generate(model.as_causal(), &start, &greedy, &mut |_| true).unwrap();
    assert_eq!(tokens[1..], numbers(&golden["token_ids"]));
    let text = golden["text"].as_str().unwrap();
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
}

#[test]
fn values_of_the_wrong_kind_are_told_at_their_file() {
    let json = entrenar_zoo::as_gpt2::tokenizer_of_characters(&['a', 'b']);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let path = folder.path().join("tokenizer_config.json");
    for (text, told) in [
        (
            r#"{"chat_template": 5}"#,
            "`chat_template`: expected a text, got 5",
        ),
        (
            r#"{"eos_token": ["a"]}"#,
            "`eos_token`: expected a token's text, got [\"a\"]",
        ),
        (
            r#"{"added_tokens_decoder": {"2": {"special": true}}}"#,
            "`added_tokens_decoder.2`: expected a token's text",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = match Tokenizer::open(folder.path()) {
            Ok(_) => panic!("{text} was taken"),
            Err(error) => error.to_string(),
        };
        let whole = format!("{}: {told}", path.display());
        assert!(message.starts_with(&whole), "{message}");
    }
    std::fs::write(
        &path,
        r#"{"eos_token": {"content": "a"}, "pad_token": null}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.eos().unwrap().text, "a");
    assert!(tokenizer.pad().is_none());
}
