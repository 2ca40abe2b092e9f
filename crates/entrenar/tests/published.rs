//! Published models through the binary: the golden text of a small trained model, and a conversation.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The model directory beside the workspace, or why there is none.
fn stories() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/stories260k");
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn entrenar(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_entrenar"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn greedy_text_is_the_published_text() {
    let Some(folder) = stories() else { return };
    let golden = std::fs::read_to_string(folder.join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let model = folder.to_str().unwrap();
    let all = [
        "generate",
        "--model",
        model,
        "--prompt",
        "",
        "--greedy",
        "--max-new-tokens",
        "200",
    ];
    let output = entrenar(&all, "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("{}\n", golden["text"].as_str().unwrap()));
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn several_prompts_are_each_continued_as_if_alone() {
    let Some(folder) = stories() else { return };
    let model = folder.to_str().unwrap();
    let say = |more: &[&str]| {
        let begin = ["generate", "--model", model, "--max-new-tokens", "60"];
        let output = entrenar(&[&begin[..], more].concat(), "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_string();
    let prompts = [
        "Once upon a time",
        "",
        "Lily and Tom went to the park. They",
        "The cat",
    ];
    for way in [&["--greedy"][..], &["--seed", "3", "--top-p", "0.9"]] {
        let alone: Vec<String> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                let seed = (3 + i).to_string();
                let way = match way {
                    ["--greedy"] => vec!["--greedy"],
                    _ => vec!["--seed", &seed, "--top-p", "0.9"],
                };
                say(&[&way[..], &["--prompt", prompt]].concat())
            })
            .collect();
        let given: Vec<&str> = prompts.iter().flat_map(|p| ["--prompt", p]).collect();
        let together = say(&[way, &given].concat());
        assert_eq!(together, alone.join("---\n"));
        // Also when they do not all fit one batch.
        assert_eq!(
            say(&[way, &given, &["--batch-size", "3"]].concat()),
            together
        );
        let lines = say(&[way, &given, &["--json"]].concat());
        for ((line, prompt), text) in lines.lines().zip(prompts).zip(&alone) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["prompt"], prompt);
            assert_eq!(value["text"], text[..text.len() - 1]);
        }
        assert_eq!(lines.lines().count(), prompts.len());
        // From a file: strings or objects.
        let rows = prompts
            .map(|p| serde_json::json!({"prompt": p}).to_string())
            .join("\n\n");
        std::fs::write(path("p.jsonl"), rows).unwrap();
        assert_eq!(
            say(&[way, &["--prompts", &path("p.jsonl")]].concat()),
            together
        );
    }
    std::fs::write(path("p.txt"), "The cat\n\nTom saw\n").unwrap();
    let text = say(&["--greedy", "--prompts", &path("p.txt"), "--prompt", "A"]);
    let begins: Vec<bool> = text
        .split("---\n")
        .zip(["A", "The cat", "Tom saw"])
        .map(|(text, prompt)| text.starts_with(prompt))
        .collect();
    assert_eq!(begins, [true; 3], "{text}");

    let fails = |file: &str, content: &str, status: i32| {
        std::fs::write(path(file), content).unwrap();
        let file = path(file);
        let output = entrenar(&["generate", "--model", model, "--prompts", &file], "");
        assert_eq!(output.status.code(), Some(status));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let message = fails("q.jsonl", "\"a\"\n{\"text\": 1}\n", 2);
    assert!(
        message.contains("q.jsonl:2: expected a string or an object"),
        "{message}"
    );
    assert!(fails("empty.txt", "\n", 2).contains("expected prompts, got none"));
    let long = fails("long.txt", &format!("a\n{}\n", "word ".repeat(600)), 1);
    assert!(long.contains("in prompt 2"), "{long}");
}

#[test]
fn a_conversation_remembers_what_was_said() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(folder.join(file), place.path().join(file)).unwrap();
    }
    let model = place.path().to_str().unwrap();
    let chat = [
        "chat",
        "--model",
        model,
        "--greedy",
        "--max-new-tokens",
        "12",
    ];
    let refused = entrenar(&chat, "hello\n");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(
        message.contains("the model has no chat template"),
        "{message}"
    );

    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}";
    std::fs::write(place.path().join("chat_template.jinja"), template).unwrap();
    let say = |input: &str| {
        let output = entrenar(&chat, input);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_string).collect::<Vec<_>>()
    };
    let answers = say("Once upon a time\nThe end\n/reset\nThe end\n/exit\nnot heard\n");
    assert_eq!(answers.len(), 3, "{answers:?}");
    // The same words after another conversation get another answer; after /reset the one of a
    // conversation that begins with them.
    assert_eq!(answers[2..], say("The end\n"));
    assert_eq!(answers[..1], say("Once upon a time\n"));
    assert_ne!(answers[1], answers[2]);
}

#[test]
fn an_adapter_can_be_applied_and_merged() {
    let Some(folder) = stories() else { return };
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_string();
    let model = folder.to_str().unwrap();
    // A random adapter whose B is not 0, so that it changes the text.
    let mut opened = entrenar::zoo::LanguageModel::open(&folder, None).unwrap();
    let config = entrenar::tune::LoraConfig {
        r: 4,
        lora_alpha: 32.0,
        ..Default::default()
    };
    let mut init = entrenar::nn::Init::new(1);
    entrenar::tune::lora::attach(&mut opened, &config, &mut init).unwrap();
    entrenar::tune::lora::each(&mut opened, &mut |_, layer| {
        let shape = layer.lora_b.shape();
        layer.lora_b.set(&init.normal(shape, 0.0, 0.05)?)
    })
    .unwrap();
    let adapter = path("adapter");
    entrenar::tune::lora::save_adapter(&mut opened, &config, adapter.as_ref()).unwrap();

    let text = |more: &[&str]| {
        let mut all = vec![
            "generate",
            "--prompt",
            "Once",
            "--greedy",
            "--max-new-tokens",
            "40",
        ];
        all.extend(more);
        let output = entrenar(&all, "");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let adapted = text(&["--model", model, "--adapter", &adapter]);
    assert_ne!(adapted, text(&["--model", model]));
    let merged = path("merged");
    let arguments = [
        "merge-adapter",
        "--model",
        model,
        "--adapter",
        &adapter,
        "--out",
        &merged,
    ];
    let output = entrenar(&arguments, "");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(text(&["--model", &merged]), adapted);
    let again = entrenar(&arguments, "");
    assert_eq!(again.status.code(), Some(1), "nothing is overwritten");

    // The golden text is what the model finds least surprising.
    std::fs::write(
        place.path().join("text.txt"),
        "Once upon a time, there was a little girl.",
    )
    .unwrap();
    let loss = |model: &str| {
        let output = entrenar(
            &[
                "eval",
                "--model",
                model,
                "--data",
                &path("text.txt"),
                "--json",
            ],
            "",
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        value["loss"].as_f64().unwrap()
    };
    assert!(loss(model) < 1.0 && loss(&merged) > loss(model));
}
