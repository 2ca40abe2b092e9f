//! The config end to end: defaults, overrides, paths, round trips, schema, starters and the shipped examples.
//! Messages for broken configs are in `config_broken.rs`.

use entrenar_train::config::describe::{Absent, Kind, Section};
use entrenar_train::config::{self, *};
use std::path::Path;

const TEXT: &str = "
task: language-model
model: {architecture: gpt}
data: {path: input.txt, validation: 0.1}
train: {max_steps: 1000}
";
const SFT: &str = "
task: sft
model: {base: some/model}
adapter: {}
data: {path: train.jsonl, validation: 0.1}
train: {max_steps: 10}
";
const MASKED: &str = "
task: masked-lm
model: {base: some/model}
data: {path: text.txt, validation: 0.1}
train: {max_steps: 10}
";
const TABLE: &str = "
task: classification
model: {architecture: mlp}
data: {path: iris.csv, format: csv, columns: {target: species}, validation: 0.2}
train: {epochs: 3}
";
const IMAGES: &str = "
task: classification
model: {architecture: cnn}
data: {path: mnist, format: idx, validation: 0.1}
train: {epochs: 3}
";
const NUMBERS: &str = "
task: regression
model: {architecture: mlp}
data: {path: a.csv, columns: {target: y}, validation: 0.2}
train: {epochs: 3}
";

fn load_text(text: &str, sets: &[&str]) -> Result<Loaded, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    config::parse(text.as_bytes(), "test.yaml", Path::new("/folder"), &sets)
}

#[track_caller]
fn good(text: &str, sets: &[&str]) -> Loaded {
    load_text(text, sets).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn bad(text: &str, sets: &[&str]) -> String {
    load_text(text, sets)
        .expect_err("expected an error")
        .to_string()
}

/// Every task, architecture, optimizer, schedule and policy at least once.
fn every_kind_of_config() -> Vec<Config> {
    let mut out = Vec::new();
    for base in [TEXT, SFT, MASKED, TABLE, IMAGES, NUMBERS] {
        for optimizer in ["adamw", "adam", "sgd"] {
            for schedule in [
                "{name: constant, warmup_ratio: 0.1}",
                "{name: cosine, warmup_steps: 5}",
                "{name: linear}",
                "{name: step, step_size: 7}",
            ] {
                let optimizer = format!("optimizer.name={optimizer}");
                let schedule = format!("schedule={schedule}");
                let sets = [
                    optimizer.as_str(),
                    &schedule,
                    "train.nan_policy=skip",
                    "train.early_stopping={}",
                    "train.max_grad_norm=1",
                ];
                out.push(good(base, &sets).config);
            }
        }
    }
    out.push(
        good(
            TEXT,
            &["generate={top_k: 5, top_p: 0.5, every_steps: 10, prompt: \"a: \\\"b\\\"\\n\\t→\"}"],
        )
        .config,
    );
    out.push(
        good(
            TABLE,
            &[
                "data.normalize={mean: [1, 2], std: 3}",
                "data.test=[a.csv, 'b c.csv']",
                "data.columns.features=['p q', \"1\"]",
            ],
        )
        .config,
    );
    out.push(
        good(
            TABLE,
            &[
                "data.normalize=standard",
                "data.columns.types={a: number, species: category}",
            ],
        )
        .config,
    );
    out
}

#[test]
fn defaults_are_filled_in() {
    let Loaded {
        config, warnings, ..
    } = good(TEXT, &[]);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        (config.seed, config.device, config.precision),
        (0, Device::Auto, Precision::F32)
    );
    let gpt = Gpt {
        layers: 4,
        heads: 4,
        width: 128,
        context: 64,
        bias: false,
        tie_embeddings: true,
        dropout: 0.0,
    };
    assert_eq!(config.model, Model::Gpt(gpt));
    assert_eq!(config.data.path, ["/folder/input.txt"]);
    assert_eq!(config.data.tokenizer, Some(TokenizerKind::Char));
    assert_eq!(
        (
            config.data.format,
            config.data.normalize,
            config.data.columns
        ),
        (Format::Text, None, None)
    );
    assert_eq!(config.data.validation, Some(Split::Fraction(0.1)));
    assert_eq!(config.train.length(), Length::Steps(1000));
    assert_eq!(
        (config.train.batch_size, config.train.max_skipped_steps),
        (16, None)
    );
    assert_eq!(config.evaluate.every(), Every::Steps(100));
    assert_eq!(config.checkpoint.every(), Every::Steps(100));
    assert_eq!(
        config.optimizer.weight_decay(),
        (0.01, DecayParameters::Matrices)
    );
    assert_eq!(config.schedule.warmup_steps(1000), 0);
    assert_eq!(config.generate, None);

    let config = good(
        TABLE,
        &[
            "optimizer.name=sgd",
            "train.nan_policy=skip",
            "train.early_stopping.metric=accuracy",
        ],
    )
    .config;
    assert_eq!(config.evaluate.every(), Every::Epochs(1));
    assert_eq!(config.optimizer.weight_decay().0, 0.0);
    assert_eq!(config.train.max_skipped_steps, Some(10));
    assert_eq!(
        config.train.early_stopping.map(|stop| stop.mode),
        Some(Mode::Max)
    );
    assert_eq!(
        config.data.normalize,
        Some(Normalize::Named(NormalizeName::None))
    );
}

#[test]
fn warm_up_is_counted_in_steps_or_as_a_share() {
    let steps = |set: &str| good(TEXT, &[set]).config.schedule.warmup_steps(1000);
    assert_eq!(steps("schedule={name: cosine, warmup_steps: 7}"), 7);
    assert_eq!(steps("schedule={name: linear, warmup_ratio: 0.0101}"), 11);
}

#[test]
fn overrides_replace_add_and_unset() {
    let config = good(
        TEXT,
        &[
            "train.batch_size=3",
            "seed=9",
            "model.layers=1",
            "schedule.name=cosine",
            "seed=10",
        ],
    )
    .config;
    assert_eq!((config.train.batch_size, config.seed), (3, 10));
    assert!(matches!(config.schedule, Schedule::Cosine { .. }));
    let config = good(TEXT, &["train.max_steps=null", "train.epochs=2"]).config;
    assert_eq!(config.train.length(), Length::Epochs(2));
    let config = good(TEXT, &["data.validation="]).config;
    assert_eq!(config.data.validation, None);
}

#[test]
fn relative_paths_begin_at_the_file_or_the_current_directory() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().canonicalize().unwrap();
    std::fs::create_dir(home.join("configs")).unwrap();
    let file = home.join("configs/a.yaml");
    std::fs::write(
        &file,
        TEXT.replace("input.txt", "[../src/**/*.rs, ./x.txt, /absolute.txt]"),
    )
    .unwrap();
    let config = config::load(&file, &["data.validation=val.txt".to_owned()])
        .unwrap()
        .config;
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    assert_eq!(
        config.data.path,
        [
            text(home.join("src/**/*.rs")),
            text(home.join("configs/x.txt")),
            "/absolute.txt".to_owned()
        ]
    );
    let current = std::env::current_dir().unwrap().canonicalize().unwrap();
    assert_eq!(
        config.data.validation,
        Some(Split::Paths(vec![text(current.join("val.txt"))]))
    );
}

#[test]
fn locations_point_at_the_nearest_written_key() {
    let loaded = good(TEXT, &["train.batch_size=3"]);
    assert_eq!(loaded.location("data.path"), "test.yaml:4:14");
    assert_eq!(loaded.location("model.layers"), "test.yaml:3:8");
    assert_eq!(loaded.location("optimizer.learning_rate"), "test.yaml");
    assert_eq!(
        loaded.location("train.batch_size"),
        "--set train.batch_size"
    );
}

#[test]
fn warnings_name_the_line() {
    let text = "task: language-model\nmodel: {architecture: gpt}\ndata:\n  path: a\ntrain:\n  epochs: 1\n  early_stopping:\noptimizer:\n  learning_rate: 1e-9\n";
    let warnings: Vec<String> = good(text, &[])
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        warnings,
        [
            "test.yaml:7:3: train.early_stopping: is empty and stays switched off; write `{}` to switch it on with its defaults",
            "test.yaml:9:18: optimizer.learning_rate: 1e-9 is below 1e-6: the model will hardly change",
            "test.yaml:4:3: data.validation: no validation data: overfitting will not show, and the last weights count as the best",
        ]
    );
    assert!(
        good(TEXT, &["optimizer.learning_rate=1e-6"])
            .warnings
            .is_empty()
    );
}

#[test]
fn resolved_configs_read_back_to_the_same_value() {
    for config in every_kind_of_config() {
        let yaml = config.to_yaml().unwrap();
        let again = config::parse(
            yaml.as_bytes(),
            "resolved.yaml",
            Path::new("/elsewhere"),
            &[],
        );
        let again = again
            .unwrap_or_else(|error| panic!("{error}\n{yaml}"))
            .config;
        assert_eq!(again, config, "{yaml}");
        assert_eq!(again.to_yaml().unwrap(), yaml);
    }
}

proptest::proptest! {
    #[test]
    fn any_text_and_number_reads_back(prompt in ".{1,30}", learning_rate in 1e-300f64..1e300, seed in 0..=i64::MAX as u64, target in ".{0,20}") {
        let mut config = good(TEXT, &["generate={}"]).config;
        config.seed = seed;
        config.generate.as_mut().unwrap().prompt = prompt;
        config.optimizer = good(TEXT, &[&format!("optimizer.learning_rate={learning_rate:e}")]).config.optimizer;
        proptest::prop_assert_eq!(config.optimizer.learning_rate(), learning_rate);
        let again = good(&config.to_yaml().unwrap(), &[]).config;
        proptest::prop_assert_eq!(again, config);

        let mut config = good(TABLE, &[]).config;
        let columns = config.data.columns.as_mut().unwrap();
        columns.types.insert(target.clone(), ColumnType::Category);
        columns.target = target;
        let again = good(&config.to_yaml().unwrap(), &[]).config;
        proptest::prop_assert_eq!(again, config);
    }

    #[test]
    fn damaged_configs_never_panic(at in 0usize..200, byte in proptest::num::u8::ANY, cut in proptest::bool::ANY) {
        let mut bytes = TABLE.as_bytes().to_vec();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        if let Err(error) = config::parse(&bytes, "test.yaml", Path::new("/folder"), &[]) {
            proptest::prop_assert!(error.to_string().lines().all(|line| line.starts_with("test.yaml")));
        }
    }
}

/// With every optional key of the description switched on in turn, serde finds a field for it; and it misses none.
#[test]
fn every_described_key_reaches_its_struct() {
    fn walk(section: &'static Section, path: &str, seen: &mut Vec<(String, String)>) {
        for field in section.fields {
            let path = if path.is_empty() {
                field.name.to_owned()
            } else {
                format!("{path}.{}", field.name)
            };
            if let Kind::Section(inner) = &field.kind {
                walk(inner, &path, seen);
            }
            let (Absent::Required(yaml) | Absent::Default(yaml) | Absent::Unset(yaml)) =
                field.absent;
            let text = yaml.text(&|_| None).unwrap_or_default();
            seen.push((path, text.to_owned()));
        }
    }
    let mut keys = Vec::new();
    walk(config::describe_root(), "", &mut keys);
    assert!(keys.len() > 60, "{}", keys.len());
    for (path, text) in keys {
        if matches!(
            path.as_str(),
            "task"
                | "model"
                | "data"
                | "train"
                | "model.architecture"
                | "data.format"
                | "data.columns"
                | "data.test"
                | "train.max_steps"
        ) {
            continue;
        }
        let set = format!("{path}={text}");
        let mut reached = false;
        let mut errors = String::new();
        for base in [TEXT, SFT, MASKED, TABLE, IMAGES, NUMBERS] {
            for name in ["adamw", "sgd"] {
                let name = format!("optimizer.name={name}");
                let mut sets = vec![
                    name.as_str(),
                    "schedule={name: step, step_size: 5}",
                    "train.nan_policy=skip",
                ];
                if path == "schedule.name" {
                    sets[1] = "seed=0";
                }
                if path.contains("min_learning") {
                    sets[1] = "schedule.name=cosine";
                }
                if path.ends_with("warmup_ratio") {
                    sets[1] = "schedule.name=linear";
                }
                if path == "train.epochs" {
                    sets.push("train.max_steps=null");
                }
                sets.push(&set);
                match load_text(base, &sets) {
                    Ok(loaded) => {
                        let yaml = loaded.config.to_yaml().unwrap();
                        let key = path.rsplit('.').next().unwrap();
                        reached |= yaml.contains(&format!("{key}:"));
                    }
                    Err(error) => {
                        errors = error.to_string();
                        assert!(!errors.contains("internal error"), "{path}: {errors}");
                    }
                }
            }
        }
        assert!(reached, "{path}={text} is never accepted: {errors}");
    }
}

fn yaml_to_json(text: &str) -> serde_json::Value {
    // Through the resolved form for tests of the schema alone would hide it: read the text as it is.
    config::read_as_json(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn validator() -> jsonschema::Validator {
    jsonschema::draft7::new(&config::schema()).expect("the schema is a valid draft 7 schema")
}

#[track_caller]
fn assert_schema_accepts(validator: &jsonschema::Validator, text: &str, name: &str) {
    let value = yaml_to_json(text);
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\n{text}");
}

#[test]
fn schema_is_itself_valid_and_accepts_what_the_parser_accepts() {
    let schema = config::schema();
    assert!(jsonschema::draft7::meta::is_valid(&schema));
    let validator = validator();
    for (name, text) in [
        ("text", TEXT),
        ("table", TABLE),
        ("images", IMAGES),
        ("numbers", NUMBERS),
    ] {
        assert_schema_accepts(&validator, text, name);
    }
    for config in every_kind_of_config() {
        assert_schema_accepts(&validator, &config.to_yaml().unwrap(), "resolved");
    }
}

#[test]
fn schema_refuses_what_the_parser_refuses() {
    let validator = validator();
    for (base, from, to) in [
        (TEXT, "language-model", "language-modle"),
        (TEXT, "language-model", "sft"),
        (TEXT, "architecture: gpt", "architecture: mlp"),
        (TEXT, "architecture: gpt", "layers: 2"),
        (TEXT, "architecture: gpt", "architecture: gpt, layres: 2"),
        (TEXT, "architecture: gpt", "architecture: gpt, layers: 0"),
        (TEXT, "architecture: gpt", "architecture: gpt, layers: two"),
        (TEXT, "architecture: gpt", "architecture: gpt, dropout: 1"),
        (TEXT, "architecture: gpt", "architecture: gpt, hidden: 3"),
        (TEXT, "max_steps: 1000", "max_steps: 1000, epochs: 2"),
        (TEXT, "max_steps: 1000", "batch_size: 2"),
        (
            TEXT,
            "max_steps: 1000",
            "max_steps: 1000, max_skipped_steps: 2",
        ),
        (TEXT, "validation: 0.1", "validation: 1.0"),
        (TEXT, "validation: 0.1", "columns: {target: a}"),
        (TEXT, "data: {path: input.txt, validation: 0.1}", ""),
        (TABLE, "format: csv, ", ""),
        (TABLE, "columns: {target: species}, ", ""),
        (TABLE, "target: species", "features: [a]"),
        (
            TABLE,
            "target: species",
            "target: species, types: {a: integer}",
        ),
        (IMAGES, "format: idx", "format: idx, columns: {target: a}"),
        (NUMBERS, "architecture: mlp", "architecture: cnn"),
        (NUMBERS, "epochs: 3", "epochs: 3, optimizer: {}"),
    ] {
        let text = base.replace(from, to);
        assert_ne!(text, base, "{from} does not occur");
        assert!(load_text(&text, &[]).is_err(), "the parser accepts {to}");
        assert!(
            !validator.is_valid(&yaml_to_json(&text)),
            "the schema accepts {to}:\n{text}"
        );
    }
}

#[test]
fn starters_pass_the_parser_and_the_schema() {
    let validator = validator();
    let table = DataHint {
        path: "a b.csv".to_owned(),
        images: false,
        columns: vec![
            ("x".to_owned(), true),
            ("my colour".to_owned(), false),
            ("y".to_owned(), false),
        ],
    };
    let images = DataHint {
        path: "mnist".to_owned(),
        images: true,
        columns: Vec::new(),
    };
    for (task, hint) in [
        (Task::LanguageModel, None),
        (Task::Sft, None),
        (Task::MaskedLm, None),
        (Task::SequenceClassification, None),
        (Task::Classification, None),
        (Task::Regression, None),
        (Task::Classification, Some(&table)),
        (Task::Classification, Some(&images)),
        (Task::Regression, Some(&table)),
    ] {
        let text = config::starter(task, hint);
        let loaded = good(&text, &[]);
        assert_eq!(loaded.config.task, task);
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_schema_accepts(&validator, &text, "starter");
        // The lines that are commented out are valid too, one at a time.
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let body = line.trim_start();
            let Some(key) = body.strip_prefix("# ").filter(|rest| is_key_line(rest)) else {
                continue;
            };
            let indent = &line[..line.len() - body.len()];
            // A key of a section that is itself commented out is covered by the section's defaults.
            if key.ends_with(':') || in_commented_section(&lines, i) {
                continue;
            }
            let mut changed: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
            changed[i] = format!("{indent}{key}");
            if let Err(error) = load_text(&changed.join("\n"), &[]) {
                // Keys that exclude one another are offered side by side, and so are those that
                // need a published model.
                let excluded = error.problems.iter().all(|p| {
                    p.message.contains("only one of") || p.message.contains("needs model.base")
                });
                assert!(excluded, "{key}: {error}");
            }
        }
    }
    assert!(
        config::starter(Task::Classification, Some(&table))
            .contains("types: {\"my colour\": category}")
    );
}

fn is_key_line(text: &str) -> bool {
    let key = text.split(':').next().unwrap_or("");
    text.contains(':') && !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

fn in_commented_section(lines: &[&str], at: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mine = indent(lines[at]);
    lines[..at]
        .iter()
        .rev()
        .find(|line| {
            indent(line) < mine
                && is_key_line(line.trim_start().trim_start_matches("# "))
                && line.trim_end().ends_with(':')
        })
        .is_some_and(|line| line.trim_start().starts_with('#'))
}

fn examples() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut out: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    out.sort();
    assert!(out.len() >= 6, "{out:?}");
    out
}

#[test]
fn examples_pass_the_parser_and_the_schema() {
    let validator = validator();
    for path in examples() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(config::SCHEMA_LINE), "{}", path.display());
        let loaded = config::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert!(
            loaded.warnings.is_empty(),
            "{}: {:?}",
            path.display(),
            loaded.warnings
        );
        assert_schema_accepts(&validator, &text, &path.display().to_string());
    }
}

/// Editors follow the first line of the examples to this file; `entrenar schema > examples/entrenar.schema.json`.
#[test]
fn the_committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/entrenar.schema.json");
    let committed: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(
        committed == config::schema(),
        "run `entrenar schema > examples/entrenar.schema.json`"
    );
}

#[test]
fn all_mistakes_come_at_once_in_file_order() {
    let message = bad(
        "task: regression\nmodel: {architecture: mlp, dropout: 2}\ntrain: {epochs: 0}\nspeed: 1\n",
        &["seed=-1"],
    );
    let heads: Vec<&str> = message
        .lines()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        heads,
        [
            "test.yaml",
            "test.yaml",
            "test.yaml:2:37",
            "test.yaml:3:17",
            "test.yaml:4:1",
            "--set seed"
        ],
        "{message}"
    );
}

#[test]
fn a_base_is_a_path_or_a_hub_id_and_names_the_architecture() {
    let base = |text: &str, sets: &[&str]| match good(text, sets).config.model {
        Model::Pretrained(model) => model.base,
        other => panic!("{other:?}"),
    };
    assert_eq!(base(SFT, &[]), "some/model");
    assert_eq!(base(SFT, &["model.base=/a/b"]), "/a/b");
    let text = SFT.replace("some/model", "../models/small");
    assert_eq!(base(&text, &[]), "/folder/../models/small");
    let text = SFT.replace("some/model", "small");
    assert_eq!(base(&text, &[]), "/folder/small");
    let text = TEXT.replace("architecture: gpt", "base: small");
    assert_eq!(base(&text, &[]), "/folder/small");
    assert_eq!(
        good(&text, &[]).config.data.tokenizer,
        Some(TokenizerKind::Model)
    );
}

/// The example of Axolotl's own documentation, every key of it.
const AXOLOTL: &str = r#"
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
adapter: qlora
datasets:
  - path: mhenrichsen/alpaca.jsonl
    type: alpaca
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
  - gate_proj
  - down_proj
  - up_proj
  - q_proj
  - v_proj
  - k_proj
  - o_proj
wandb_project:
wandb_entity:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
output_dir: ./outputs/qlora
special_tokens:
  pad_token: "<|end_of_text|>"
"#;

#[test]
fn a_config_of_axolotls_is_ours_in_other_words() {
    let loaded = good(AXOLOTL, &[]);
    let ours = "
task: sft
seed: 42
precision: bf16
model: {base: NousResearch/Llama-3.2-1B}
adapter:
  rank: 32
  alpha: 16
  dropout: 0.05
  targets: [gate_proj, down_proj, up_proj, q_proj, v_proj, k_proj, o_proj]
quantization: {type: nf4, double: true}
data: {path: mhenrichsen/alpaca.jsonl, format: alpaca, validation: 0.1, sequence_length: 2048, packing: true}
train:
  epochs: 1
  batch_size: 2
  gradient_accumulation_steps: 4
  gradient_checkpointing: true
  max_grad_norm: 1
  log_every_steps: 1
optimizer: {name: adamw8bit, learning_rate: 2e-4, weight_decay: 0}
schedule: {name: cosine, warmup_ratio: 0.1}
evaluate: {times_per_epoch: 4}
checkpoint: {times_per_epoch: 1}
";
    assert_eq!(loaded.config, good(ours, &[]).config);
    assert_eq!(
        loaded.output.as_deref(),
        Some(Path::new("/folder/outputs/qlora"))
    );
    // Beside a config in the current directory.
    let here = config::parse(AXOLOTL.as_bytes(), "qlora.yaml", Path::new("."), &[]).unwrap();
    assert_eq!(here.output.as_deref(), Some(Path::new("outputs/qlora")));
    for line in [
        "base_model -> model.base: NousResearch/Llama-3.2-1B",
        "load_in_4bit: what `adapter: qlora` says",
        "adapter -> quantization.type: nf4",
        "optimizer -> optimizer.name: adamw8bit",
        "flash_attention: has no effect on the result here",
    ] {
        assert!(
            loaded.mapping.iter().any(|l| l == line),
            "{line}: {:#?}",
            loaded.mapping
        );
    }
    // What is written as nothing is not mentioned.
    assert!(!loaded.mapping.iter().any(|l| l.contains("wandb")));
    // `--set` speaks the dialect too.
    let loaded = good(AXOLOTL, &["lora_r=8", "adapter=lora", "load_in_4bit=false"]);
    assert_eq!(loaded.config.adapter.unwrap().rank, 8);
    assert_eq!(loaded.config.quantization, None);
}

#[test]
fn targets_and_strategies_of_axolotls_mean_what_they_mean_there() {
    let list = AXOLOTL.find("lora_target_modules").unwrap();
    let (before, after) = (
        &AXOLOTL[..list],
        &AXOLOTL[AXOLOTL.find("wandb_project").unwrap()..],
    );
    let targets = |lines: &str| {
        let text = format!("{before}{lines}\n{after}");
        let adapter = good(&text, &[]).config.adapter.unwrap();
        serde_json::to_value(adapter.targets).unwrap()
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    for (lines, expected) in [
        (
            r"lora_target_modules: 'model\.layers\.\d+\.(mlp|self_attn)\.(up|q)_proj'",
            r#"{"pattern": "model\\.layers\\.\\d+\\.(mlp|self_attn)\\.(up|q)_proj"}"#,
        ),
        ("lora_target_modules: all-linear", r#""all-linear""#),
        ("lora_target_modules: q_proj", r#"["q_proj"]"#),
        ("lora_target_linear: true", r#""all-linear""#),
        (
            "lora_target_linear: true\nlora_target_modules: [embed_tokens]",
            r#"["all-linear", "embed_tokens"]"#,
        ),
        (
            "lora_target_modules: [embed_tokens]\nlora_target_linear: true",
            r#"["all-linear", "embed_tokens"]"#,
        ),
        (
            "lora_target_linear: true\nlora_target_modules: '.*_proj'",
            r#""all-linear""#,
        ),
        ("lora_target_linear: false", r#"["q_proj", "v_proj"]"#),
    ] {
        assert_eq!(targets(lines), json(expected), "{lines}");
    }

    let without = AXOLOTL
        .replace("evals_per_epoch: 4\n", "eval_strategy: no\n")
        .replace("saves_per_epoch: 1\n", "save_strategy: 'no'\n");
    let config = good(&without, &[]).config;
    let steps = |every| match every {
        Every::Steps(steps) => steps,
        other => panic!("{other:?}"),
    };
    assert!(steps(config.evaluate.every()) >= 1_000_000_000);
    assert!(steps(config.checkpoint.every()) >= 1_000_000_000);
}

#[test]
fn warm_ups_of_axolotls_are_what_they_are_there() {
    let schedule = |lines: &str| {
        let text = AXOLOTL.replace("lr_scheduler: cosine\n", "");
        let loaded = good(&text.replace("warmup_ratio: 0.1\n", lines), &[]);
        (loaded.config.schedule.warmup_steps(1000), loaded.mapping)
    };
    let (steps, mapping) = schedule("");
    assert_eq!(steps, 30);
    let told = "(Axolotl's default) -> schedule.warmup_ratio: 0.03";
    assert!(mapping.iter().any(|line| line == told), "{mapping:#?}");
    assert_eq!(schedule("warmup_steps: 7\n").0, 7);
    assert_eq!(schedule("lr_scheduler: constant\n").0, 0);
    let (steps, mapping) = schedule("lr_scheduler: constant\nwarmup_steps: 7\n");
    assert_eq!(steps, 0);
    let told = "warmup_steps: `constant` does not warm up; `constant_with_warmup` does";
    assert!(mapping.iter().any(|line| line == told), "{mapping:#?}");
    assert_eq!(
        schedule("lr_scheduler: constant_with_warmup\nwarmup_steps: 7\n").0,
        7
    );
}

#[test]
fn what_axolotls_dialect_lacks_is_told_where_it_belongs() {
    let lines = |text: &str| {
        let loaded = good(text, &[]);
        let warnings = loaded.warnings.into_iter();
        warnings
            .map(|w| format!("{}: {}", w.location, w.path))
            .collect::<Vec<_>>()
    };
    // Axolotl requires it, and no default is one that suits it.
    let message = bad(&AXOLOTL.replace("learning_rate: 2e-4\n", ""), &[]);
    assert_eq!(
        message,
        "test.yaml: learning_rate: this key is missing: expected a number, such as 0.0002; Axolotl has no default for it"
    );
    // Of the section `data`, the file has `datasets` first.
    let text = AXOLOTL.replace("val_set_size: 0.1\n", "");
    assert_eq!(lines(&text), ["test.yaml:5:1: data.validation"]);
}
