//! Fine-tuning through the binary: adapters and whole models over one that a run of ours made.

#[path = "support/runs.rs"]
mod left;
mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use left::metrics;
use serde_json::Value;
use support::{entrenar, fails, stderr, stdout, succeeds};

const BASE: &str = "
task: language-model
seed: 1
model: {architecture: gpt, layers: 2, heads: 2, width: 32, context: 48}
data: {path: text.txt, tokenizer: byte, validation: 0.1}
train: {max_steps: 80, batch_size: 8}
optimizer: {learning_rate: 0.003}
";

/// Dropout, packing, recomputed activations, accumulation: whatever could make a resumed run differ.
const LORA: &str = "
task: sft
seed: 2
model: {base: base/model}
adapter: {rank: 4, alpha: 8, dropout: 0.1, lr_ratio: 4}
data: {path: rows.jsonl, packing: true, validation: 0.2}
train: {max_steps: 12, batch_size: 2, gradient_accumulation_steps: 2, gradient_checkpointing: true, log_every_steps: 2}
optimizer: {learning_rate: 0.01, weight_decay: 0.1}
schedule: {name: constant}
evaluate: {every_steps: 4}
checkpoint: {every_steps: 3}
";

/// A folder with a trained model, rows and configs; made once, only read.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (mut text, mut rows) = (String::new(), String::new());
        for i in 0..60 {
            let (a, b) = (i % 7, i % 5);
            writeln!(text, "{a} plus {b} is {}, and so on.", a + b).unwrap();
            let row = serde_json::json!({
                "prompt": format!("{a} plus {b} is "), "completion": (a + b).to_string()
            });
            writeln!(rows, "{row}").unwrap();
        }
        for (name, content) in [("text.txt", text), ("rows.jsonl", rows)] {
            std::fs::write(path(name), content).unwrap();
        }
        for (name, config) in [("base.yaml", BASE), ("lora.yaml", LORA)] {
            std::fs::write(path(name), config).unwrap();
        }
        let (config, run) = (path("base.yaml"), path("base"));
        succeeds(&[
            "train",
            config.to_str().unwrap(),
            "--quiet",
            "--run-dir",
            run.to_str().unwrap(),
        ]);
        folder
    });
    folder.path()
}

fn at(name: &str) -> String {
    folder().join(name).to_str().unwrap().to_owned()
}

/// Fine-tunes into `run` and gives the run directory.
fn tune(run: &str, more: &[&str]) -> PathBuf {
    let (config, directory) = (at("lora.yaml"), at(run));
    let mut args = vec!["train", &config, "--quiet", "--run-dir", &directory];
    args.extend(more);
    succeeds(&args);
    PathBuf::from(directory)
}

fn loss(args: &[&str]) -> f64 {
    let mut all = vec!["eval", "--json"];
    all.extend(args);
    let report: Value = serde_json::from_str(&succeeds(&all)).unwrap();
    report["loss"].as_f64().unwrap()
}

#[test]
fn an_adapter_learns_and_a_resumed_run_ends_in_the_same_bytes() {
    let whole = tune("whole", &[]);
    tune("parts", &["--set", "train.max_steps=6"]);
    let parts = tune("parts", &["--resume"]);
    let file = "model/adapter_model.safetensors";
    let bytes = |run: &Path| std::fs::read(run.join(file)).unwrap();
    assert!(bytes(&whole) == bytes(&parts), "the adapters differ");
    // The shorter run evaluated once more at its end; nothing else may differ.
    let lines = |run: &Path| {
        let all = metrics(run).into_iter();
        let training = all.filter(|line| line.contains("\"train\""));
        training.collect::<Vec<_>>()
    };
    assert_eq!(lines(&whole), lines(&parts));
    let losses: Vec<f64> = metrics(&whole)
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["split"] == "validation")
        .map(|line| line["loss"].as_f64().unwrap())
        .collect();
    assert!(
        losses.len() == 3 && losses.is_sorted_by(|a, b| a > b),
        "{losses:?}"
    );
    // What is saved is what is trained.
    let checkpoint = std::fs::metadata(whole.join("checkpoints/step-12/model.safetensors"));
    let base = std::fs::metadata(at("base/model/model.safetensors"));
    assert!(checkpoint.unwrap().len() < base.unwrap().len() / 2);
}

#[test]
fn adapted_and_merged_models_are_one() {
    let run = tune("merging", &[]);
    let (base, text) = (at("base"), at("text.txt"));
    let adapter = run.join("model").to_str().unwrap().to_owned();
    let merged = at("merged");
    let adapted = loss(&["--model", &base, "--adapter", &adapter, "--data", &text]);
    let mut merge = entrenar();
    merge.args(["merge-adapter", "--model", &base]);
    merge.args(["--adapter", &adapter, "--out", &merged]);
    assert!(merge.output().unwrap().status.success());
    let alone = loss(&["--model", &merged, "--data", &text]);
    assert!((adapted - alone).abs() < 1e-6, "{adapted} {alone}");
    assert!(adapted != loss(&["--model", &base, "--data", &text]));
    let message = fails(&["eval", "--model", &adapter, "--data", &text], 1);
    assert!(message.contains("this is an adapter"), "{message}");
    let prompt = [
        "--prompt",
        "3 plus 4 is ",
        "--greedy",
        "--max-new-tokens",
        "4",
    ];
    let with = |args: &[&str]| {
        let mut all = vec!["generate"];
        all.extend(args);
        all.extend(prompt);
        succeeds(&all)
    };
    let both = with(&["--model", &base, "--adapter", &adapter]);
    assert_eq!(both, with(&["--model", &merged]));
}

#[test]
fn every_kind_of_adapter_trains_resumes_and_merges() {
    let (base, text) = (at("base"), at("text.txt"));
    for (name, sets) in [
        ("nf4", &["quantization={}", "optimizer.name=adamw8bit"][..]),
        ("int4", &["quantization={type: int4}", "precision=bf16"]),
        ("dora", &["adapter.dora=true", "adapter.rslora=true"]),
        ("pissa", &["adapter.init=pissa"]),
        ("noise", &["train.neftune_noise_alpha=5"]),
        ("saved", &["adapter.modules_to_save=[ln_f]"]),
        ("positions", &["adapter.targets=[all-linear, wpe]"]),
        ("pattern", &[r"adapter.targets={pattern: '.*\.(c_fc|wpe)'}"]),
    ] {
        let mut sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        let run = tune(name, &sets);
        let parts = format!("{name}-parts");
        sets.extend(["--set", "train.max_steps=6"]);
        tune(&parts, &sets);
        sets.truncate(sets.len() - 2);
        sets.push("--resume");
        let parts = tune(&parts, &sets);
        let file = "model/adapter_model.safetensors";
        let bytes = |run: &Path| std::fs::read(run.join(file)).unwrap();
        assert!(bytes(&run) == bytes(&parts), "{name}: the adapters differ");
        let adapter = run.join("model").to_str().unwrap().to_owned();
        let merged = at(&format!("{name}-merged"));
        let mut merge = entrenar();
        merge.args(["merge-adapter", "--model", &base]);
        merge.args(["--adapter", &adapter, "--out", &merged]);
        let output = merge.output().unwrap();
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        let adapted = loss(&["--model", &base, "--adapter", &adapter, "--data", &text]);
        let alone = loss(&["--model", &merged, "--data", &text]);
        assert!((adapted - alone).abs() < 1e-5, "{name}: {adapted} {alone}");
    }
}

#[test]
fn the_adapter_of_an_embedding_is_not_that_of_the_output_layer() {
    let (base, text, config) = (at("base"), at("text.txt"), at("lora.yaml"));
    let (run, merged) = (at("tied"), at("tied-merged"));
    let mut train = entrenar();
    train.args(["train", &config, "--run-dir", &run]);
    train.args(["--set", "adapter.targets=[c_attn, wte]"]);
    let output = train.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let warned = "the output layer is tied to transformer.wte";
    assert!(stderr(&output).contains(warned), "{}", stderr(&output));
    let adapter = format!("{run}/model");
    let adapted = loss(&["--model", &base, "--adapter", &adapter, "--data", &text]);
    let mut merge = entrenar();
    merge.args(["merge-adapter", "--model", &base]);
    merge.args(["--adapter", &adapter, "--out", &merged]);
    let output = merge.output().unwrap();
    assert!(output.status.success());
    assert!(stderr(&output).contains(warned), "{}", stderr(&output));
    // As in PEFT, merging changes the output layer too.
    let alone = loss(&["--model", &merged, "--data", &text]);
    assert!((adapted - alone).abs() > 1e-3, "{adapted} {alone}");
}

#[test]
fn a_model_learns_to_answer_by_a_template_of_the_config() {
    let row = |i: usize| {
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("{i}+1")},
            {"role": "assistant", "content": (i + 1).to_string()},
        ]})
    };
    let rows: String = (0..9).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(folder().join("chat.jsonl"), rows).unwrap();
    let template = "{% for m in messages %}{{ m.role[0] + m.content }}|{% endfor %}{% if add_generation_prompt %}a{% endif %}";
    let (path, template) = (
        format!("data.path={}", at("chat.jsonl")),
        format!("data.chat_template='{template}'"),
    );
    let sets = [
        "--set",
        &path,
        "--set",
        &template,
        "--set",
        "generate={prompt: 2+1, max_new_tokens: 3}",
    ];
    let (config, directory) = (at("lora.yaml"), at("chat"));
    let mut args = vec![
        "train",
        &config,
        "--quiet",
        "--json",
        "--run-dir",
        &directory,
    ];
    args.extend(sets);
    let report: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    // An answer, not the prompt continued.
    let sample = report["sample"].as_str().unwrap();
    assert!(!sample.contains("2+1"), "{sample}");
    let stored = std::fs::read_to_string(format!("{directory}/model/chat_template.jinja"));
    assert!(stored.unwrap().starts_with("{% for m in messages %}"));

    // Other rows cannot take the run's place.
    let other = format!("data.path={}", at("rows.jsonl"));
    let mut args = vec![
        "train",
        &config,
        "--quiet",
        "--resume",
        "--run-dir",
        &directory,
    ];
    args.extend([
        "--set",
        &other,
        "--set",
        &template,
        "--set",
        "train.max_steps=20",
    ]);
    let message = fails(&args, 2);
    assert!(message.contains("the rows have changed"), "{message}");
}

#[test]
fn what_is_trained_in_full_has_no_adapter_and_is_not_quantized() {
    for (name, more) in [
        ("full-part", &[][..]),
        ("full-part-4bit", &["--set", "quantization={}"]),
    ] {
        let mut sets = vec!["--set", "adapter.modules_to_save=[c_fc]"];
        sets.extend(more);
        let run = tune(name, &sets);
        let (base, text) = (at("base"), at("text.txt"));
        let adapter = run.join("model").to_str().unwrap().to_owned();
        let listed = succeeds(&["inspect", &adapter]);
        assert!(
            listed.contains("mlp.c_fc.weight") && !listed.contains("c_fc.lora_A"),
            "{listed}"
        );
        // The layer did change, and comes back from the file.
        let tuned = loss(&["--model", &base, "--adapter", &adapter, "--data", &text]);
        assert!(tuned.is_finite() && tuned != loss(&["--model", &base, "--data", &text]));
    }
}

#[test]
fn a_whole_model_is_tuned_without_an_adapter() {
    let directory = at("full");
    let config = at("lora.yaml");
    let args = [
        "--set",
        "adapter=null",
        "--set",
        "optimizer.learning_rate=0.001",
    ];
    let mut all = vec![
        "train",
        &config,
        "--json",
        "--quiet",
        "--run-dir",
        &directory,
    ];
    all.extend(args);
    let report: Value = serde_json::from_str(&succeeds(&all)).unwrap();
    assert_eq!(report["status"], "finished");
    let model = format!("{directory}/model");
    let read: Value =
        serde_json::from_slice(&std::fs::read(format!("{model}/config.json")).unwrap()).unwrap();
    assert_eq!(read["model_type"], "gpt2");
    // Another run begins where this one ended.
    let base = format!("model.base={model}");
    let run = tune("further", &["--set", &base]);
    assert!(run.join("model/adapter_config.json").is_file());
}

#[test]
fn a_model_goes_on_learning_from_plain_text() {
    let directory = at("further-text");
    std::fs::write(
        folder().join("text.yaml"),
        "task: language-model\nmodel: {base: base}\ndata: {path: text.txt, sequence_length: 32}\n\
         train: {max_steps: 60, batch_size: 4}\noptimizer: {learning_rate: 0.001}\n",
    )
    .unwrap();
    succeeds(&[
        "train",
        &at("text.yaml"),
        "--quiet",
        "--run-dir",
        &directory,
    ]);
    let (before, text) = (at("base"), at("text.txt"));
    let before = loss(&["--model", &before, "--data", &text]);
    let after = loss(&["--model", &directory, "--data", &text]);
    assert!(after < before, "{after} {before}");
}

#[test]
fn rows_and_plan_are_shown_before_training() {
    let config = at("lora.yaml");
    let text = succeeds(&["inspect-data", &config, "--samples", "1"]);
    assert!(text.contains("⟦0 plus 0 is ⟧0"), "{text}");
    let dry_run = |more: &[&str]| {
        let mut command = entrenar();
        command.args(["train", "--dry-run"]).args(more);
        command.output().unwrap()
    };
    let output = dry_run(&[&config]);
    assert!(stdout(&output).contains("architecture: pretrained"));
    let told = stderr(&output);
    for words in [
        "data: 60 rows",
        "trainable parameters: 4096 of ",
        "memory: about ",
        "min for 12 steps",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let base = format!("model.base={}", at("base"));
    let output = dry_run(&[&example("finetune-lora.yaml"), "--set", &base]);
    let told = stderr(&output);
    assert!(told.contains("data: 400 rows"), "{told}");
}

/// The number before `word`.
fn number_before(text: &str, word: &str) -> f64 {
    let before = text.split(word).next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_plan_is_what_the_run_does() {
    // More is accumulated than an epoch has: a step is an epoch.
    let sets = [
        "--set",
        "train={epochs: 2, batch_size: 4, gradient_accumulation_steps: 100, log_every_steps: 1}",
        "--set",
        "schedule={name: cosine, warmup_steps: 2}",
    ];
    let mut command = entrenar();
    command.args(["train", &at("lora.yaml"), "--dry-run"]);
    let plan = stderr(&command.args(sets).output().unwrap());
    let run = tune("planned", &sets);
    let steps: Vec<Value> = metrics(&run)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["split"] == "train")
        .collect();
    assert_eq!(
        number_before(&plan, " steps\n"),
        steps.len() as f64,
        "{plan}"
    );
    // `data: … 60 samples, N tokens, …` and `time: … a step of N tokens, …`
    let (data, time) = plan.split_once("time: ").unwrap();
    let (all, step) = (
        number_before(data, " tokens, "),
        number_before(time, " tokens, "),
    );
    assert!(0.5 * all < step && step < 2.0 * all, "{plan}");

    // A warm-up that takes the whole run is told, and trains.
    let told = "warning: the warm-up takes all 2 steps of the run: the learning rate ends at ";
    assert!(plan.contains(told), "{plan}");
    for (line, share) in steps.iter().zip([1.0 / 3.0, 2.0 / 3.0]) {
        let rate = line["lr"].as_f64().unwrap();
        assert!((rate / (0.01 * share) - 1.0).abs() < 1e-9, "{line}");
    }
}

#[test]
fn what_is_finished_says_so_when_it_is_resumed() {
    let run = tune("finished", &[]);
    let run = run.to_str().unwrap();
    let again = |sets: &[&str]| {
        let mut command = entrenar();
        command.args(["train", &at("lora.yaml"), "--run-dir", run, "--resume"]);
        stderr(&command.args(sets).output().unwrap())
    };
    let told = again(&[]);
    let all = "all 12 steps were done before, nothing was trained; to go on, raise train.max_steps and --resume again";
    assert!(told.contains(all), "{told}");
    let told = again(&["--set", "train.max_steps=13"]);
    assert!(told.contains("finished 13 steps"), "{told}");
}

#[test]
fn what_a_directory_lacks_is_told_at_its_file() {
    let base = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(at("base/model")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), base.path().join(entry.file_name())).unwrap();
    }
    let set = format!("model.base={}", base.path().display());
    let config = base.path().join("config.json");
    for text in ["{}", "{\"architectures\": [\"LlamaForCausalLM\"]}"] {
        std::fs::write(&config, text).unwrap();
        let message = fails(&["train", &at("lora.yaml"), "--quiet", "--set", &set], 1);
        let told = format!("model.base: {}: `model_type` is missing", config.display());
        assert!(message.contains(&told), "{message}");
    }
    std::fs::write(&config, "{\"model_type\": \"gpt2\"}").unwrap();
    let (model, rows) = (base.path().to_str().unwrap(), at("rows.jsonl"));
    let message = fails(
        &[
            "predict", "--model", model, "--data", &rows, "--out", "x.csv",
        ],
        1,
    );
    let told = "config.json: expected a model that a run of ours left";
    assert!(
        message.contains(told) && message.contains("gpt2"),
        "{message}"
    );
}

#[test]
fn what_cannot_be_tuned_is_told_with_its_place() {
    let config = at("lora.yaml");
    let told = |sets: &[&str], status: i32| {
        let run = at("never");
        let mut args = vec!["train", &config, "--quiet", "--run-dir", &run];
        for set in sets {
            args.extend(["--set", set]);
        }
        let message = fails(&args, status);
        assert!(!Path::new(&run).exists(), "{sets:?}");
        message
    };
    let message = told(&["model.base=nowhere"], 2);
    assert!(
        message.contains("--set model.base: expected a model directory"),
        "{message}"
    );
    let message = told(&["adapter.targets=[q_proj]"], 2);
    assert!(message.contains("lora.yaml:5:10: adapter: "), "{message}");
    assert!(
        message.contains("`q_proj` matches no linear layer of this model; its layers end with c_attn, c_fc, c_proj"),
        "{message}"
    );
    let message = told(&["adapter.rank_pattern={nothere: 2}"], 2);
    assert!(
        message.contains("rank_pattern: `nothere` matches no linear layer"),
        "{message}"
    );
    let message = told(&["data.sequence_length=49"], 2);
    assert!(
        message.contains("at most the model's context of 48, got 49"),
        "{message}"
    );
    let path = format!("data.path={}", at("text.txt"));
    let message = told(&[&path, "data.format=messages"], 1);
    assert!(
        message.contains("text.txt: expected rows of format messages")
            && message.contains("got a text file"),
        "{message}"
    );
    let message = told(&["data.fields={prompts: a}"], 2);
    assert!(
        message.contains("expected one of text, prompt, completion"),
        "{message}"
    );
    std::fs::write(folder().join("other.jsonl"), "{\"prompt\": \"a\"}\n").unwrap();
    let other = format!("data.path={}", at("other.jsonl"));
    let message = told(&[&other, "data.format=prompt-completion"], 1);
    assert!(
        message.contains("other.jsonl") && message.contains("completion"),
        "{message}"
    );
}

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn whole_models_learn_in_bf16_what_they_learn_in_f32() {
    let losses = |run: &str, more: &[&str]| -> Vec<f64> {
        let set = [
            "--set",
            "adapter=null",
            "--set",
            "train={max_steps: 60, batch_size: 4, gradient_accumulation_steps: 2, log_every_steps: 6}",
            "--set",
            "optimizer={learning_rate: 0.001}",
            "--set",
            "evaluate.every_steps=20",
        ];
        let run = tune(run, &[&set[..], more].concat());
        metrics(&run)
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["split"] == "validation")
            .map(|line| line["loss"].as_f64().unwrap())
            .collect()
    };
    let whole = losses("f32", &[]);
    let half = losses("bf16", &["--set", "precision=bf16"]);
    assert!(
        whole.is_sorted_by(|a, b| a > b) && whole[2] < 0.92 * whole[0],
        "{whole:?}"
    );
    for (a, b) in whole.iter().zip(&half) {
        assert!((a / b - 1.0).abs() < 0.01, "{whole:?} and {half:?}");
    }
    assert_ne!(whole, half, "nothing was rounded");
    // Recomputed activations change nothing, and a resumed run ends in the same bytes.
    let checkpointed = [
        "--set",
        "precision=bf16",
        "--set",
        "train.gradient_checkpointing=true",
    ];
    assert_eq!(losses("bf16-recomputed", &checkpointed), half);
    let bytes = |run: &str| std::fs::read(at(&format!("{run}/model/model.safetensors"))).unwrap();
    assert!(bytes("bf16") == bytes("bf16-recomputed"));
    let until = |steps: &str, more: &[&str]| {
        let steps = format!("train.max_steps={steps}");
        losses(
            "bf16-parts",
            &[&["--set", "precision=bf16", "--set", &steps], more].concat(),
        );
    };
    until("33", &[]);
    until("60", &["--resume"]);
    assert!(bytes("bf16") == bytes("bf16-parts"));
    // What is left is f32, and the steps were those of f32: bf16 has no room for most of them.
    let left = entrenar::io::Weights::open(at("bf16/model")).unwrap();
    let fine = left.tensors().unwrap().into_iter().any(|(_, array)| {
        let values = array.to_vec::<f32>().unwrap();
        values.iter().any(|v| v.to_bits() & 0xffff != 0)
    });
    assert!(fine);
}

#[test]
fn continued_pre_training_in_bf16_writes_samples() {
    let (config, run) = (at("base.yaml"), at("pre-bf16"));
    let base = format!("model={{base: {}}}", at("base/model"));
    let output = entrenar()
        .args(["train", &config, "--run-dir", &run, "--set", &base])
        .args(["--set", "precision=bf16", "--set", "data.tokenizer=model"])
        .args(["--set", "train={max_steps: 6, batch_size: 4}"])
        .args([
            "--set",
            "generate={prompt: \"3 plus \", max_new_tokens: 5, temperature: 0}",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("3 plus ") || stderr(&output).contains("3 plus "));
    let text = at("text.txt");
    let (before, after) = (
        loss(&["--model", &at("base"), "--data", &text]),
        loss(&["--model", &run, "--data", &text]),
    );
    assert!(after < 1.05 * before, "{before} then {after}");
}

#[test]
fn rows_without_a_target_are_refused_or_counted() {
    let rows = "{\"prompt\": \"1 plus 1 is \", \"completion\": \"2\"}\n\
                {\"prompt\": \"2 plus 1 is \", \"completion\": \"\"}\n\
                {\"prompt\": \"2 plus 2 is \", \"completion\": \"4\"}\n";
    std::fs::write(at("holes.jsonl"), rows).unwrap();
    let set = format!("data={{path: {}}}", at("holes.jsonl"));
    let config = at("lora.yaml");
    let plan = ["train", &config, "--dry-run", "--set", &set];
    let run = |more: &[&str]| entrenar().args(plan).args(more).output().unwrap();
    let refused = run(&[]);
    assert!(!refused.status.success());
    let message = stderr(&refused);
    assert!(
        message.contains("holes.jsonl:2: nothing in this row is learned"),
        "{message}"
    );
    let counted = run(&["--set", "data.no_target=drop"]);
    let told = stdout(&counted) + &stderr(&counted);
    assert!(counted.status.success(), "{told}");
    assert!(
        told.contains("3 rows, 2 samples,") && told.contains("1 without a target"),
        "{told}"
    );
}
