//! What each format and choice makes of a row, read back as text.

use entrenar_train::data::sft::{
    Fields, NoTarget, Overlong, SftConfig, SftData, SftFormat, TrainOnEos,
};
use serde_json::{Value, json};

use super::{BOS, EOS, Place, UNMARKED, chat};

fn chatml() -> SftConfig {
    SftConfig {
        chat_template: Some("chatml".to_string()),
        ..SftConfig::default()
    }
}

#[test]
fn documents_end_once_and_are_cut_without_loss() {
    let place = Place::new();
    let config = SftConfig {
        sequence_length: 6,
        ..SftConfig::default()
    };
    let rows = [
        json!({"text": "<s>abcdefgh</s>"}),
        json!({"text": "xyz"}),
        json!({"text": " \n "}),
    ];
    let samples = place.rows(&rows, &config);
    let report = samples.report();
    assert_eq!((report.rows, report.split, report.empty), (3, 1, 1));
    assert_eq!(report.longest, 10);
    // BOS and EOS once, though the first text had them already.
    assert_eq!(samples.tokens(0), [BOS, 97, 98, 99, 100, 101]);
    assert_eq!(samples.tokens(1), [101, 102, 103, 104, EOS]);
    assert_eq!(samples.tokens(2), [BOS, 120, 121, 122, EOS]);
    // Of 10 tokens all but the first are predicted, each once.
    assert_eq!(report.trained_tokens, 9 + 4);
    assert_eq!(
        samples.report().to_string(),
        "3 rows, 3 samples, 16 tokens, 13 trained (81.2 %), longest row 10 tokens, 1 split, 1 empty"
    );

    let silent = SftConfig {
        train_on_eos: TrainOnEos::None,
        ..config
    };
    let samples = place.rows(&rows, &silent);
    assert_eq!(samples.trained(2), [false, true, true, true, false]);
}

#[test]
fn plain_text_files_are_documents() {
    let place = Place::new();
    let samples = place
        .open("a.txt", "\u{feff}To be.\n", &SftConfig::default())
        .unwrap();
    assert_eq!(place.texts(&samples, 0).0, "<s>To be.\n</s>");
    let samples = place.open("a.md", "# A", &SftConfig::default()).unwrap();
    assert_eq!(place.texts(&samples, 0).1, "# A</s>");
}

#[test]
fn prompts_are_not_learned_unless_asked() {
    let place = Place::new();
    let row = [json!({"prompt": "Hé: ", "completion": "ça va"})];
    for (inputs, eos, learned) in [
        (false, TrainOnEos::Turn, "ça va</s>"),
        (false, TrainOnEos::All, "ça va</s>"),
        (false, TrainOnEos::Last, "ça va</s>"),
        (false, TrainOnEos::None, "ça va"),
        (true, TrainOnEos::Turn, "Hé: ça va</s>"),
    ] {
        let config = SftConfig {
            train_on_inputs: inputs,
            train_on_eos: eos,
            ..SftConfig::default()
        };
        let samples = place.rows(&row, &config);
        let whole = "<s>Hé: ça va</s>".to_string();
        assert_eq!(place.texts(&samples, 0), (whole, learned.to_string()));
    }
}

#[test]
fn alpaca_has_its_published_prompt() {
    let place = Place::new();
    let rows = [
        json!({"instruction": "Add.", "input": "3, 4", "output": "7"}),
        json!({"instruction": "Go.", "input": "", "output": "Gone", "text": "not this"}),
    ];
    let samples = place.rows(&rows, &SftConfig::default());
    assert_eq!(
        place.texts(&samples, 0).0,
        "<s>Below is an instruction that describes a task, paired with an input that provides \
         further context. Write a response that appropriately completes the request.\n\n\
         ### Instruction:\nAdd.\n\n### Input:\n3, 4\n\n### Response:7</s>"
    );
    let (whole, learned) = place.texts(&samples, 1);
    assert_eq!(
        whole,
        "<s>Below is an instruction that describes a task. Write a response that appropriately \
         completes the request.\n\n### Instruction:\nGo.\n\n### Response:Gone</s>"
    );
    assert_eq!(learned, "Gone</s>");
}

#[test]
fn ends_of_turns_are_learned_as_chosen() {
    let place = Place::new();
    let end = "<|im_end|>";
    // The template with marks and the same without agree.
    for template in ["chatml", UNMARKED] {
        for (eos, learned) in [
            (TrainOnEos::Turn, format!("1{end} 2 {end}")),
            (TrainOnEos::Last, format!("1 2 {end}")),
            (TrainOnEos::None, "1 2 ".to_string()),
            (TrainOnEos::All, format!("{end}{end}1{end}{end} 2 {end}")),
        ] {
            let config = SftConfig {
                chat_template: Some(template.to_string()),
                train_on_eos: eos,
                ..SftConfig::default()
            };
            let samples = place.rows(&[chat()], &config);
            assert_eq!(place.texts(&samples, 0).1, learned, "{template}, {eos:?}");
        }
    }
}

#[test]
fn roles_are_learned_as_chosen() {
    let place = Place::new();
    let config = SftConfig {
        roles_to_train: vec!["user".to_string(), "system".to_string()],
        ..chatml()
    };
    let samples = place.rows(&[chat()], &config);
    assert_eq!(
        place.texts(&samples, 0).1,
        "Be brief.<|im_end|>One?<|im_end|>Two?<|im_end|>"
    );
    let all = SftConfig {
        train_on_inputs: true,
        ..chatml()
    };
    let samples = place.rows(&[chat()], &all);
    // All but the first token, which nothing predicts.
    let (whole, learned) = place.texts(&samples, 0);
    assert_eq!(whole, format!("<|im_start|>{learned}"));
    // All but the ends that are not to be learned, with marks and without.
    for template in ["chatml", UNMARKED] {
        for (eos, ends) in [
            (TrainOnEos::All, 5),
            (TrainOnEos::Turn, 5),
            (TrainOnEos::Last, 1),
            (TrainOnEos::None, 0),
        ] {
            let config = SftConfig {
                train_on_eos: eos,
                chat_template: Some(template.to_string()),
                ..all.clone()
            };
            let samples = place.rows(&[chat()], &config);
            let (with, without) = place.texts(&samples, 0);
            assert_eq!(with, whole);
            assert_eq!(without.matches("<|im_end|>").count(), ends, "{eos:?}");
            assert_eq!(
                without.replace("<|im_end|>", ""),
                learned.replace("<|im_end|>", "")
            );
        }
    }
}

#[test]
fn conversations_come_under_many_names() {
    let place = Place::new();
    let expected = place.rows(&[chat()], &chatml());
    let others = [
        (
            json!({"conversations": [
                {"from": "system", "value": "Be brief."}, {"from": "human", "value": "One?"},
                {"from": "gpt", "value": "1"}, {"from": "human", "value": "Two?"},
                {"from": "gpt", "value": " 2 ", "weight": null},
            ]}),
            chatml(),
        ),
        (
            json!({"system": "Be brief.", "dialog": [
                {"who": "user", "said": "One?"}, {"who": "assistant", "said": "1"},
                {"who": "user", "said": [{"type": "text", "text": "Two?"}]},
                {"who": "assistant", "said": " 2 "},
            ]}),
            SftConfig {
                fields: Fields {
                    messages: Some("dialog".to_string()),
                    role: Some("who".to_string()),
                    content: Some("said".to_string()),
                    ..Fields::default()
                },
                ..chatml()
            },
        ),
    ];
    for (row, config) in others {
        let samples = place.rows(&[row], &config);
        assert_eq!(samples.tokens(0), expected.tokens(0));
        assert_eq!(samples.trained(0), expected.trained(0));
    }
    // As prompt and completion, only the last answer is learned.
    let all = chat()["messages"].as_array().unwrap().clone();
    let row = json!({"prompt": all[..4], "completion": all[4..]});
    let samples = place.rows(&[row], &chatml());
    assert_eq!(samples.tokens(0), expected.tokens(0));
    assert_eq!(place.texts(&samples, 0).1, " 2 <|im_end|>");
}

#[test]
fn every_kind_of_file_gives_the_same() {
    let place = Place::new();
    let rows = [
        chat(),
        json!({"messages": [
            {"role": "user", "content": "Naïve?"}, {"role": "assistant", "content": "é\n"},
        ]}),
    ];
    let expected = place.rows(&rows, &chatml());
    let list = Value::from(rows.to_vec());
    let lines: String = rows.iter().map(|row| format!("{row}\r\n\n")).collect();
    for (name, bytes) in [
        ("a.json", format!("\u{feff} {list:#}")),
        ("b.json", lines.clone()),
        ("c.JSONL", format!("\u{feff}{lines}")),
    ] {
        let samples = place.open(name, bytes, &chatml()).unwrap();
        assert_eq!(samples.len(), 2, "{name}");
        for i in 0..2 {
            assert_eq!(samples.tokens(i), expected.tokens(i), "{name}");
            assert_eq!(samples.trained(i), expected.trained(i), "{name}");
        }
    }
    #[cfg(feature = "parquet")]
    for bytes in [
        &include_bytes!("../fixtures/chats-snappy.parquet")[..],
        include_bytes!("../fixtures/chats-gzip.parquet"),
        include_bytes!("../fixtures/chats-zstd.parquet"),
        include_bytes!("../fixtures/chats-zstd-v2.parquet"),
    ] {
        let samples = place.open("d.parquet", bytes, &chatml()).unwrap();
        assert_eq!(samples.len(), 2);
        for i in 0..2 {
            assert_eq!(samples.tokens(i), expected.tokens(i));
            assert_eq!(samples.trained(i), expected.trained(i));
        }
    }
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_in_zstd_is_read_over_pages_and_groups() {
    let place = Place::new();
    let rows: Vec<Value> = (0..2000)
        .map(|i| json!({"text": format!("{i} times {} is {}.", i % 7, i * (i % 7))}))
        .collect();
    let expected = place.rows(&rows, &SftConfig::default());
    let bytes = include_bytes!("../fixtures/texts-zstd.parquet");
    let samples = place
        .open("t.parquet", bytes, &SftConfig::default())
        .unwrap();
    assert_eq!(samples.len(), 2000);
    assert!((0..2000).all(|i| samples.tokens(i) == expected.tokens(i)));
}

#[test]
fn what_is_too_long_is_cut_dropped_or_refused() {
    let place = Place::new();
    let rows = [
        json!({"prompt": "ab", "completion": "cdefgh"}),
        json!({"prompt": "abcdefgh", "completion": "x"}),
        json!({"prompt": "a", "completion": "b"}),
        json!({"prompt": "a", "completion": ""}),
    ];
    let config = SftConfig {
        sequence_length: 6,
        no_target: NoTarget::Drop,
        ..SftConfig::default()
    };
    let samples = place.rows(&rows, &config);
    assert_eq!(place.texts(&samples, 0), ("<s>abcde".into(), "cde".into()));
    assert_eq!(place.texts(&samples, 1).1, "b</s>");
    let report = samples.report();
    assert_eq!(
        (
            report.samples,
            report.truncated,
            report.dropped,
            report.without_target
        ),
        (2, 1, 1, 1)
    );

    let config = SftConfig {
        overlong: Overlong::Drop,
        ..config
    };
    let samples = place.rows(&rows, &config);
    assert_eq!((samples.len(), samples.report().dropped), (1, 2));
    assert!(
        samples
            .report()
            .to_string()
            .ends_with("2 dropped, 1 without a target")
    );
    assert_eq!(samples.config().format, SftFormat::Auto);
}

#[test]
fn tools_reach_the_template() {
    let place = Place::new();
    let template = "{{ tools[0].name }}:{% for m in messages %}{% if m.tool_calls %}{% generation %}call {{ m.tool_calls[0].name }}</s>{% endgeneration %}{% else %}{{ m.role }} {{ m.content }} {% endif %}{% endfor %}";
    let config = SftConfig {
        chat_template: Some(template.to_string()),
        ..SftConfig::default()
    };
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [{"name": "clock"}]},
    ]);
    for tools in [json!([{"name": "clock"}]), json!("[{\"name\": \"clock\"}]")] {
        let row = json!({"messages": messages, "tools": tools});
        let samples = place.rows(&[row], &config);
        let (whole, learned) = place.texts(&samples, 0);
        assert_eq!(whole, "clock:user hi call clock</s>");
        assert_eq!(learned, "call clock</s>");
    }
}

#[test]
fn files_of_their_own_are_held_out() {
    use entrenar_train::data::{Holdout, Splits};
    let place = Place::new();
    let line = |n: usize| json!({"text": "x".repeat(n + 1)}).to_string() + "\n";
    place.write("train.jsonl", (0..10).map(line).collect::<String>());
    place.write("held.jsonl", (0..3).map(line).collect::<String>());
    let splits = Splits {
        validation: Holdout::Paths(vec!["held.jsonl".to_string()]),
        test: Holdout::Fraction(0.2),
    };
    let (parts, samples) = SftData::open_parts(
        place.directory.path(),
        &["train.*"],
        &splits,
        1,
        &SftConfig::default(),
        &place.tokenizer,
    )
    .unwrap();
    assert_eq!(parts.training.len(), 8);
    assert_eq!(parts.validation.unwrap().len(), 3);
    assert_eq!(parts.test.unwrap().len(), 2);
    assert_eq!(samples[0].report().and(samples[1].report()).rows, 13);
}
