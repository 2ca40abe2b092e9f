//! Hidden words: how many, which, and when, beside the counts of transformers' collator
//! (`oracles/masked_lm.py`).

use std::path::Path;

use entrenar_train::data::{
    Batch, IGNORED, Loader, LoaderConfig, MaskedTextData, MaskedTextSpec, Splits, split_masked,
};
use entrenar_zoo::Tokenizer;
use serde_json::{Value, json};

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const MASK: i64 = 4;
const ROWS: usize = 3000;
const LENGTH: usize = 40;

/// The tokenizer of the oracle: five special tokens and the words w0 to w94.
fn tokenizer(names: &Value) -> Tokenizer {
    let words = (0..95).map(|i| format!("w{i}"));
    let all = SPECIAL.iter().map(|w| w.to_string()).chain(words);
    let vocabulary: Value = all.zip(0..).map(|(w, i)| (w, json!(i))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": SPECIAL[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": (0..5).map(special).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    Tokenizer::from_json(&file, names.as_object().unwrap().clone()).unwrap()
}

fn usual() -> Tokenizer {
    tokenizer(&json!({"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}))
}

fn text(row: usize) -> String {
    let words = (0..LENGTH).map(|i| format!("w{}", (7 * row + 13 * i) % 95));
    words.collect::<Vec<_>>().join(" ")
}

/// The text as one row per line of JSON, read back.
fn open(place: &Path, texts: &[String], spec: &MaskedTextSpec, splits: &Splits) -> MaskedTextData {
    let lines = texts.iter().map(|t| json!({"text": t}).to_string() + "\n");
    std::fs::write(place.join("rows.jsonl"), lines.collect::<String>()).unwrap();
    MaskedTextData::open(place, &["rows.jsonl"], spec, &usual(), splits, 3).unwrap()
}

/// Tokens and targets of a batch.
fn look(batch: &Batch) -> (Vec<i64>, Vec<i64>) {
    let (tokens, _) = split_masked(&batch.inputs).unwrap();
    (
        tokens.to_vec::<i64>().unwrap(),
        batch.targets.to_vec::<i64>().unwrap(),
    )
}

#[test]
fn words_are_hidden_as_often_and_in_the_ways_of_transformers() {
    let place = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..ROWS).map(text).collect();
    let data = open(
        place.path(),
        &texts,
        &MaskedTextSpec::default(),
        &Splits::none(),
    );
    let training = data.parts().training;
    let all: Vec<usize> = (0..ROWS).collect();
    let (tokens, targets) = look(&training.batch_of_epoch(&all, 1).unwrap());
    let width = LENGTH + 2;
    let [
        mut chosen,
        mut masked,
        mut kept,
        mut random,
        mut random_special,
    ] = [0.0f64; 5];
    for (at, (&token, &target)) in tokens.iter().zip(&targets).enumerate() {
        let (row, place) = (at / width, at % width);
        let before = match place {
            0 => 2,
            p if p == width - 1 => 3,
            p => 5 + ((7 * row + 13 * (p - 1)) % 95) as i64,
        };
        if target == IGNORED {
            assert_eq!(token, before, "row {row}, place {place}");
            continue;
        }
        // The target is what stood there, and never a special token.
        assert_eq!(target, before, "row {row}, place {place}");
        assert!(before >= 5);
        chosen += 1.0;
        if token == MASK {
            masked += 1.0;
        } else if token == before {
            kept += 1.0;
        } else {
            random += 1.0;
            random_special += f64::from(u8::from(token < 5));
        }
    }
    let golden: Value = serde_json::from_str(include_str!("fixtures/masked_lm.json")).unwrap();
    let theirs = |key: &str| golden[key].as_f64().unwrap();
    // Two counts of the same chance differ by few of their standard deviations.
    let near = |name: &str, ours: f64, n: f64, their_n: f64| {
        let (p, q) = (ours / n, theirs(name) / their_n);
        let deviation = (q * (1.0 - q) * (1.0 / n + 1.0 / their_n)).sqrt();
        assert!(
            (p - q).abs() < 4.0 * deviation,
            "{name}: {p}, theirs {q} ± {deviation}"
        );
    };
    let count = (ROWS * LENGTH) as f64;
    near("chosen", chosen, count, theirs("tokens"));
    near("masked", masked, chosen, theirs("chosen"));
    near("kept", kept, chosen, theirs("chosen"));
    near("random", random, chosen, theirs("chosen"));
    near("random_special", random_special, random, theirs("random"));
    // And from what they should be.
    let exact = |share: f64, n: f64, p: f64| {
        let deviation = (p * (1.0 - p) / n).sqrt();
        assert!((share - p).abs() < 4.0 * deviation, "{share}, not {p}");
    };
    exact(chosen / count, count, 0.15);
    exact(masked / chosen, chosen, 0.8 + 0.1 / 100.0);
}

#[test]
fn choices_follow_seed_row_and_epoch_alone() {
    let place = tempfile::tempdir().unwrap();
    let texts: Vec<String> = (0..40).map(text).collect();
    let spec = MaskedTextSpec::default();
    let data = open(place.path(), &texts, &spec, &Splits::none());
    let training = data.parts().training;
    let of = |rows: &[usize], epoch| look(&training.batch_of_epoch(rows, epoch).unwrap());
    assert_eq!(of(&[1, 2], 0), look(&training.batch(&[1, 2]).unwrap()));
    assert_ne!(of(&[1, 2], 0), of(&[1, 2], 1));
    // Whoever else is in the batch.
    assert_eq!(of(&[1, 2], 5).0[42..], of(&[2], 5).0[..]);
    // Through a loader: another choice each epoch, the same on another run, and after a resume.
    let config = LoaderConfig {
        prefetch: 0,
        ..LoaderConfig::evaluation(20)
    };
    let mut loader = Loader::new(training.clone(), config).unwrap();
    let batches: Vec<_> = (0..4)
        .map(|_| look(&loader.next_batch().unwrap()))
        .collect();
    assert_ne!(batches[0], batches[2]);
    let mut again = Loader::new(training, config).unwrap();
    again.next_batch().unwrap();
    again.next_batch().unwrap();
    let state = again.state();
    let mut resumed = Loader::new(data.parts().training, config).unwrap();
    resumed.seek(state).unwrap();
    assert_eq!(look(&resumed.next_batch().unwrap()), batches[2]);
    // A part of the data, as validation has it.
    let parts = open(place.path(), &texts, &spec, &Splits::validation(0.5)).parts();
    let validation = parts.validation.unwrap();
    let one = look(&validation.batch(&[3]).unwrap());
    assert_eq!(one, look(&validation.batch_of_epoch(&[3], 0).unwrap()));
    assert_ne!(one, look(&validation.batch_of_epoch(&[3], 1).unwrap()));
}

#[test]
fn long_texts_are_cut_and_short_ones_have_a_word_to_find() {
    let place = tempfile::tempdir().unwrap();
    let spec = MaskedTextSpec {
        max_length: 12,
        probability: 0.05,
        ..Default::default()
    };
    std::fs::write(place.path().join("all.txt"), text(0)).unwrap();
    let one = |spec: &MaskedTextSpec| {
        MaskedTextData::open(
            place.path(),
            &["all.txt"],
            spec,
            &usual(),
            &Splits::none(),
            0,
        )
    };
    let data = one(&spec).unwrap();
    assert_eq!(data.row_counts(), [4, 0, 0]);
    assert!(
        data.report()
            .contains("4 rows to train on, 48 tokens in all; 1 text")
    );
    let training = data.parts().training;
    for epoch in 0..20 {
        let batch = training.batch_of_epoch(&[0, 1, 2, 3], epoch).unwrap();
        assert_eq!(batch.inputs.dims(), [4, 2, 12]);
        let targets = batch.targets.to_vec::<i64>().unwrap();
        for row in targets.chunks(12) {
            assert!(row.iter().any(|t| *t != IGNORED));
            assert_eq!((row[0], row[11]), (IGNORED, IGNORED));
        }
    }
    let refused = |spec: &MaskedTextSpec| one(spec).err().unwrap().to_string();
    let none = MaskedTextSpec {
        max_length: 2,
        ..spec.clone()
    };
    assert!(refused(&none).contains("room for more than 2 special tokens"));
    let odd = MaskedTextSpec {
        probability: 1.0,
        ..spec.clone()
    };
    assert!(refused(&odd).contains("between 0 and 1"));
    std::fs::write(place.path().join("all.txt"), " \n").unwrap();
    assert!(refused(&spec).contains("no token that could be hidden"));
    let plain = tokenizer(&json!({"pad_token": "[PAD]"}));
    let message = MaskedTextData::open(
        place.path(),
        &["all.txt"],
        &spec,
        &plain,
        &Splits::none(),
        0,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(message.contains("needs a mask token"), "{message}");
    std::fs::write(
        place.path().join("rows.jsonl"),
        "{\"text\": \"w1\"}\n{\"txt\": 1}\n",
    )
    .unwrap();
    let message = MaskedTextData::open(
        place.path(),
        &["rows.jsonl"],
        &spec,
        &usual(),
        &Splits::none(),
        0,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(
        message.ends_with("rows.jsonl:2: \"text\": expected text, got nothing"),
        "{message}"
    );
}
