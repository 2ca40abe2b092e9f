//! Token numbers and learned tokens as transformers has them (`oracles/sft.py`).

use std::path::PathBuf;

use entrenar_train::data::sft::{SftConfig, SftData, SftSamples};
use entrenar_zoo::Tokenizer;
use serde_json::{Value, json};

/// The tokenizer among the real data beside the workspace, or why it is not there.
fn tokenizer() -> Option<Tokenizer> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tok-small-chat");
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(Tokenizer::open(path).unwrap())
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../fixtures/sft.json")).unwrap()
}

/// The samples of `rows`, which are objects with `ids` and `learned` among others.
fn check(rows: &[Value], data: &[Value], config: &SftConfig, tokenizer: &Tokenizer) {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("rows.jsonl");
    let lines: Vec<String> = data.iter().map(Value::to_string).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let samples: SftSamples = SftData::open(&[file], config, tokenizer).unwrap();
    assert_eq!(samples.len(), rows.len());
    for (i, row) in rows.iter().enumerate() {
        let numbers = |key: &str| -> Vec<u64> {
            let values = row[key].as_array().unwrap().iter();
            values.map(|n| n.as_u64().unwrap()).collect()
        };
        let ids: Vec<u64> = samples.tokens(i).iter().map(|&t| t.into()).collect();
        assert_eq!(ids, numbers("ids"), "row {i}");
        let learned: Vec<u64> = samples.trained(i).iter().map(|&t| t.into()).collect();
        assert_eq!(learned, numbers("learned"), "row {i}");
        assert!(learned.contains(&1) && learned.contains(&0));
    }
}

#[test]
fn conversations_are_masked_as_transformers_masks_them() {
    let Some(tokenizer) = tokenizer() else { return };
    let golden = golden();
    for name in ["marked", "unmarked", "own"] {
        let rows = golden[name]["rows"].as_array().unwrap();
        let data: Vec<Value> = rows
            .iter()
            .map(|row| json!({"messages": row["messages"]}))
            .collect();
        let template = golden[name]["template"].as_str().unwrap();
        assert_eq!(tokenizer.chat_template() == Some(template), name == "own");
        let config = SftConfig {
            chat_template: (name != "own").then(|| template.to_string()),
            ..SftConfig::default()
        };
        check(rows, &data, &config, &tokenizer);
    }
}

#[test]
fn the_named_chatml_is_the_usual_one() {
    let Some(tokenizer) = tokenizer() else { return };
    let golden = golden();
    let rows = golden["marked"]["rows"].as_array().unwrap();
    let data: Vec<Value> = rows
        .iter()
        .map(|row| json!({"messages": row["messages"]}))
        .collect();
    let config = SftConfig {
        chat_template: Some("chatml".to_string()),
        ..SftConfig::default()
    };
    check(rows, &data, &config, &tokenizer);
}

#[test]
fn alpaca_rows_are_encoded_as_one_text() {
    let Some(tokenizer) = tokenizer() else { return };
    let golden = golden();
    let rows = golden["alpaca"].as_array().unwrap();
    let data: Vec<Value> = rows.iter().map(|row| row["row"].clone()).collect();
    check(rows, &data, &SftConfig::default(), &tokenizer);
}
