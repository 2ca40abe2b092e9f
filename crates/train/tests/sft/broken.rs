//! Hostile rows and files, each with its exact message.

use entrenar_train::data::sft::{Fields, Overlong, SftConfig, SftData, SftFormat, TrainOnEos};
use serde_json::json;

use super::{Place, UNMARKED, chat};

fn chatml() -> SftConfig {
    SftConfig {
        chat_template: Some("chatml".to_string()),
        ..SftConfig::default()
    }
}

#[test]
fn broken_files_are_told_by_place() {
    let place = Place::new();
    let config = SftConfig::default();
    for (name, bytes, message) in [
        ("a.jsonl", "", "a.jsonl: the file has no rows"),
        ("a.json", "[]", "a.json: the file has no rows"),
        ("a.jsonl", " \n\n", "a.jsonl: the file has no rows"),
        (
            "a.jsonl",
            "{\"text\": \"a\"}\n{\"text\": \"b\"\n",
            "a.jsonl:2:12: not valid JSON: EOF while parsing an object",
        ),
        (
            "a.jsonl",
            "{\"text\": \"a\"} x",
            "a.jsonl:1:15: not valid JSON: trailing characters",
        ),
        (
            "a.json",
            "[{\"text\": \"a\"},\n {\"text\": 'b'}]",
            "a.json:2:11: not valid JSON: expected value",
        ),
        (
            "a.jsonl",
            "{\"text\": \"a\"}\n[1, 2]",
            "a.jsonl:2: expected an object, got a list",
        ),
        (
            "a.json",
            "[{\"text\": \"a\"}, 3]",
            "a.json: row 2: expected an object, got the number 3",
        ),
        (
            "a.csv",
            "text\na",
            "a.csv: expected a file that ends in .jsonl, .json, .parquet, .txt or .md, got \"csv\"",
        ),
    ] {
        assert_eq!(place.told(name, bytes, &config), message);
    }
    assert_eq!(
        place.told("a.txt", b"ab\xff", &config),
        "a.txt: expected UTF-8, got another byte at offset 2"
    );
    let message = place.told("a.jsonl", b"{\"text\": \"\xff\"}", &config);
    assert_eq!(
        message,
        "a.jsonl:1:11: not valid JSON: invalid unicode code point"
    );
    let deep = "[".repeat(100_000);
    let message = place.told("a.jsonl", format!("{{\"text\": {deep}"), &config);
    assert_eq!(
        message,
        "a.jsonl:1:136: not valid JSON: recursion limit exceeded"
    );
    let none = SftData::open(&[], &config, &place.tokenizer).unwrap_err();
    assert_eq!(none.to_string(), "no data path was given");
    let missing = [place.directory.path().join("none.jsonl")];
    let missing = SftData::open(&missing, &config, &place.tokenizer).unwrap_err();
    assert!(missing.to_string().ends_with("none.jsonl: no such file"));
}

#[test]
fn rows_that_do_not_fit_are_told_by_line_and_field() {
    let place = Place::new();
    for (row, message) in [
        (
            json!({"question": "a", "answer": "b"}),
            "expected `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, or `text`; the row has `question`, `answer`",
        ),
        (
            json!({"text": 3}),
            "`text`: expected a text, got the number 3",
        ),
        (
            json!({"prompt": "a", "completion": null}),
            "`completion`: expected a text, got null",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}),
            "`prompt`: expected a text, got a list",
        ),
        (
            json!({"instruction": "a", "input": ["b"], "output": "c"}),
            "`input`: expected a text, got a list",
        ),
        (
            json!({"messages": "hello"}),
            "`messages`: expected a list of messages, got the text \"hello\"",
        ),
        (
            json!({"messages": []}),
            "`messages`: expected messages, got an empty list",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}, "b"]}),
            "`messages[1]`: expected a message object, got the text \"b\"",
        ),
        (
            json!({"messages": [{"from": "human", "value": "a"}]}),
            "`messages[0].role` is missing; the message has `from`, `value`",
        ),
        (
            json!({"messages": [{"role": 1, "content": "a"}]}),
            "`messages[0].role`: expected a text, got the number 1",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "`messages[0].content` is missing; the message is empty",
        ),
        (
            json!({"messages": [{"role": "user", "content": {"a": 1}}]}),
            "`messages[0].content`: expected a text, got an object",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "`messages[0].content`: expected parts of type text",
        ),
        (
            json!({"conversations": [{"from": "robot", "value": "a"}]}),
            "`conversations[0].from`: expected human, gpt, system or tool, got \"robot\"",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}], "tools": "clock"}),
            "`tools`: expected a list of tools, got the text \"clock\"",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "nothing in this row is learned: it has no answer, or none of a role to train",
        ),
        (
            json!({"prompt": "a", "completion": ""}),
            "nothing in this row is learned: it has no answer, or none of a role to train",
        ),
    ] {
        assert_eq!(
            place.told("a.jsonl", row.to_string(), &chatml()),
            format!("a.jsonl:1: {message}")
        );
    }
    // The first row decides the format of a file.
    let lines = "{\"text\": \"a\"}\n\n{\"Text\": \"b\"}";
    assert_eq!(
        place.told("a.jsonl", lines, &chatml()),
        "a.jsonl:3: `text` is missing (did you mean `Text`?); the row has `Text`"
    );
    let named = SftConfig {
        format: SftFormat::PromptCompletion,
        fields: Fields {
            prompt: Some("question".to_string()),
            ..Fields::default()
        },
        ..SftConfig::default()
    };
    assert_eq!(
        place.told(
            "a.json",
            "[{\"prompt\": \"a\", \"completion\": \"b\"}]",
            &named
        ),
        "a.json: row 1: `question` is missing; the row has `prompt`, `completion`"
    );
}

#[test]
fn what_is_too_long_can_be_an_error() {
    let place = Place::new();
    let config = SftConfig {
        sequence_length: 4,
        overlong: Overlong::Error,
        ..SftConfig::default()
    };
    let row = json!({"prompt": "ab", "completion": "cd"}).to_string();
    assert_eq!(
        place.told("a.jsonl", row, &config),
        "a.jsonl:1: expected at most 4 tokens (`sequence_length`), got 6"
    );
}

#[test]
fn a_run_that_would_learn_nothing_is_an_error() {
    let place = Place::new();
    let config = SftConfig {
        sequence_length: 4,
        ..SftConfig::default()
    };
    let row = json!({"prompt": "abcdef", "completion": "x"}).to_string();
    assert_eq!(
        place.told("a.jsonl", row, &config),
        "nothing would be trained: no token of the data is a target (1 row, 0 samples, 0 tokens, \
         0 trained (0.0 %), longest row 9 tokens, 1 dropped)"
    );
    let blank = json!({"text": "  "}).to_string();
    let message = place.told("a.jsonl", blank, &config);
    assert!(
        message.starts_with("nothing would be trained: "),
        "{message}"
    );
}

#[test]
fn what_a_tokenizer_lacks_is_named() {
    let row = chat().to_string();
    assert_eq!(
        Place::new().told("a.jsonl", &row, &SftConfig::default()),
        "a.jsonl:1: a conversation needs a chat template, and the model has none: set \
         `chat_template` to chatml, llama3 or a Jinja text"
    );
    // A pad token is no EOS.
    let place = Place::with(json!({"pad_token": "</s>"}));
    let text = "{\"text\": \"a\"}";
    assert_eq!(
        place.told("a.jsonl", text, &SftConfig::default()),
        "a.jsonl:1: the tokenizer names no EOS token, which ends every document and completion: \
         set `eos_token`, or `train_on_eos: none` to go without"
    );
    let none = SftConfig {
        train_on_eos: TrainOnEos::None,
        ..SftConfig::default()
    };
    assert_eq!(
        place.open("a.jsonl", text, &none).unwrap().tokens(0),
        [256, 97]
    );
    let given = SftConfig {
        eos_token: Some("<|im_end|>".to_string()),
        ..SftConfig::default()
    };
    let samples = place.open("a.jsonl", text, &given).unwrap();
    assert_eq!(samples.tokens(0), [256, 97, 259]);
    let wrong = SftConfig {
        eos_token: Some("<end>".to_string()),
        ..SftConfig::default()
    };
    assert_eq!(
        place.told("a.jsonl", text, &wrong),
        "eos_token: the tokenizer has no token \"<end>\""
    );
}

#[test]
fn templates_that_cannot_be_masked_are_refused() {
    let place = Place::new();
    let with = |template: &str| SftConfig {
        chat_template: Some(template.to_string()),
        ..SftConfig::default()
    };
    assert_eq!(
        place.told("a.jsonl", chat().to_string(), &with("vicuna")),
        "chat template: expected chatml, llama3 or a Jinja text, got \"vicuna\""
    );
    // Only the last answer is written whole: what is rendered of a beginning does not begin the whole.
    let forgetful = "{% for m in messages %}{{ m.role }}: {% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}\n{% endfor %}";
    assert_eq!(
        place.told("a.jsonl", chat().to_string(), &with(forgetful)),
        "a.jsonl:1: which part of the conversation's text each message is cannot be told from the \
         chat template: what it makes of the first 3 messages alone does not begin the whole; mark \
         what the assistant says in the template ({% generation %}), or set another chat template \
         (`chatml`, `llama3`)"
    );
    let picky = format!(
        "{{% if messages | length == 2 %}}{{{{ raise_exception('two is too few') }}}}{{% endif %}}{UNMARKED}"
    );
    assert_eq!(
        place.told("a.jsonl", chat().to_string(), &with(&picky)),
        "a.jsonl:1: which part of the conversation's text each message is cannot be told from the \
         chat template: it does not render the first 2 messages alone: [chat template] two is too \
         few (line 1); mark what the assistant says in the template ({% generation %}), or set \
         another chat template (`chatml`, `llama3`)"
    );
    let strict = "{{ raise_exception('no systems') }}";
    assert_eq!(
        place.told("a.jsonl", chat().to_string(), &with(strict)),
        "a.jsonl:1: [chat template] no systems (line 1)"
    );
}

#[test]
fn impossible_settings_are_refused() {
    let place = Place::new();
    let short = SftConfig {
        sequence_length: 1,
        ..SftConfig::default()
    };
    assert_eq!(
        place.told("a.txt", "a", &short),
        "expected a sequence length of at least 2 (a token and the one that follows), got 1"
    );
    let nobody = SftConfig {
        roles_to_train: Vec::new(),
        ..SftConfig::default()
    };
    assert_eq!(
        place.told("a.txt", "a", &nobody),
        "expected at least one role to train, got an empty list"
    );
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_of_an_unknown_compression_is_told() {
    let bytes = include_bytes!("../fixtures/chats-lz4.parquet");
    let message = Place::new().told("a.parquet", bytes, &chatml());
    assert_eq!(
        message,
        "a.parquet: column id is compressed with lz4_raw; expected snappy, gzip, zstd or no compression: write \
         the file again, such as by pyarrow.parquet.write_table(…, compression=\"snappy\")"
    );
}

#[cfg(feature = "parquet")]
#[test]
fn damaged_parquet_is_an_error_wherever_the_damage_is() {
    let place = Place::new();
    let whole = include_bytes!("../fixtures/chats-snappy.parquet");
    let message = place.told("a.parquet", "PAR1", &chatml());
    assert!(message.starts_with("a.parquet: Parquet: "), "{message}");
    let message = place.told("a.parquet", &whole[..whole.len() / 2], &chatml());
    assert!(message.starts_with("a.parquet: Parquet: "), "{message}");
    // Any byte turned over: an error or rows, never a panic.
    for whole in [
        &whole[..],
        include_bytes!("../fixtures/chats-zstd.parquet"),
        include_bytes!("../fixtures/chats-zstd-v2.parquet"),
    ] {
        let mut told = 0;
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 0xff;
            told += usize::from(place.open("a.parquet", bytes, &chatml()).is_err());
        }
        assert!(told > 10, "{told}");
    }
}
