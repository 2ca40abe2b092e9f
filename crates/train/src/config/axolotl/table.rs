//! Which key of Axolotl's becomes which of ours.

use super::super::tree::{Entry, Node, Value};
use super::{Writer, rows, shown};

/// Keys that only get another name.
const RENAMED: &[(&str, &str)] = &[
    ("base_model", "model.base"),
    ("lora_r", "adapter.rank"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("lora_modules_to_save", "adapter.modules_to_save"),
    ("peft_use_dora", "adapter.dora"),
    ("peft_use_rslora", "adapter.rslora"),
    ("loraplus_lr_ratio", "adapter.lr_ratio"),
    ("sequence_len", "data.sequence_length"),
    ("sample_packing", "data.packing"),
    ("train_on_inputs", "data.train_on_inputs"),
    ("shuffle_merged_datasets", "data.shuffle"),
    ("chat_template_jinja", "data.chat_template"),
    ("micro_batch_size", "train.batch_size"),
    (
        "gradient_accumulation_steps",
        "train.gradient_accumulation_steps",
    ),
    ("max_grad_norm", "train.max_grad_norm"),
    ("gradient_checkpointing", "train.gradient_checkpointing"),
    ("neftune_noise_alpha", "train.neftune_noise_alpha"),
    ("logging_steps", "train.log_every_steps"),
    ("learning_rate", "optimizer.learning_rate"),
    ("weight_decay", "optimizer.weight_decay"),
    ("adam_epsilon", "optimizer.eps"),
    ("eval_steps", "evaluate.every_steps"),
    ("evals_per_epoch", "evaluate.times_per_epoch"),
    ("save_steps", "checkpoint.every_steps"),
    ("saves_per_epoch", "checkpoint.times_per_epoch"),
    ("save_total_limit", "checkpoint.keep"),
    ("early_stopping_patience", "train.early_stopping.patience"),
    ("seed", "seed"),
];

/// Keys that choose how the same numbers are computed, or where they are kept meanwhile.
const WITHOUT_EFFECT: &[&str] = &[
    "model_type",
    "tokenizer_type",
    "flash_attention",
    "flash_attn",
    "xformers_attention",
    "sdp_attention",
    "eager_attention",
    "attn_implementation",
    "lora_mlp_kernel",
    "lora_qkv_kernel",
    "lora_o_kernel",
    "lora_embedding_kernel",
    "lora_fan_in_fan_out",
    "tf32",
    "torch_compile",
    "gradient_checkpointing_kwargs",
    "activation_offloading",
    "chunked_cross_entropy",
    "dataset_prepared_path",
    "dataset_processes",
    "dataset_num_proc",
    "eval_sample_packing",
    "pad_to_sequence_len",
    "special_tokens",
    "eval_batch_size",
    "save_safetensors",
    "local_rank",
];

/// Axolotl's optimizers and ours.
const OPTIMIZERS: &[(&str, &str)] = &[
    ("adamw_torch", "adamw"),
    ("adamw_torch_fused", "adamw"),
    ("adamw_hf", "adamw"),
    ("adamw_bnb_8bit", "adamw8bit"),
    ("adamw_8bit", "adamw8bit"),
    ("paged_adamw_8bit", "adamw8bit"),
    ("paged_adamw_32bit", "adamw"),
    ("sgd", "sgd"),
];

const SCHEDULES: &[(&str, &str)] = &[
    ("cosine", "cosine"),
    ("linear", "linear"),
    ("constant", "constant"),
    ("constant_with_warmup", "constant"),
];

/// The share of the run that Axolotl warms up over where the file does not say it (there at most 100 steps).
const WARMUP: f64 = 0.03;

/// Rewrites all keys.
pub(super) fn translate(entries: &[Entry], w: &mut Writer) {
    let get = |key: &str| {
        let found = entries.iter().find(|entry| entry.key == key);
        found.filter(|entry| !matches!(entry.value.value, Value::Null))
    };
    let says = |key: &str| get(key).and_then(|entry| entry.value.value.word());
    defaults(w);
    let adapter = says("adapter");
    for entry in entries {
        if matches!(entry.value.value, Value::Null) {
            continue; // `wandb_project:` with nothing behind it
        }
        let key = entry.key.as_str();
        if let Some((_, ours)) = RENAMED.iter().find(|(theirs, _)| *theirs == key) {
            let needs_adapter = ours.starts_with("adapter.") && adapter.is_none();
            if needs_adapter {
                w.leave_out(entry, "no effect without `adapter`");
            } else {
                w.map(entry, ours, entry.value.value.clone());
            }
            continue;
        }
        if !special(entry, &get, &says, w) {
            let message = "this key of Axolotl's has no counterpart here: leave it out";
            w.fault(entry.key_place, key, message);
        }
    }
    finish(&get, &says, w);
}

/// What Axolotl does where a key is absent.
fn defaults(w: &mut Writer) {
    let text = |text: &str| Value::Text(text.to_owned());
    for (path, value) in [
        ("task", text("sft")),
        ("seed", Value::Integer(42)),
        ("data.sequence_length", Value::Integer(512)),
        ("train.batch_size", Value::Integer(1)),
        ("train.max_grad_norm", Value::Integer(1)),
        ("optimizer.name", text("adamw")),
        ("optimizer.weight_decay", Value::Integer(0)),
        ("schedule.name", text("cosine")),
    ] {
        w.assume(path, value);
    }
}

/// A key whose value needs a look; whether it is known.
fn special<'a>(
    entry: &Entry,
    get: &impl Fn(&str) -> Option<&'a Entry>,
    says: &impl Fn(&str) -> Option<String>,
    w: &mut Writer,
) -> bool {
    let value = &entry.value.value;
    let off = matches!(value, Value::Boolean(false));
    let word = value.word().unwrap_or_default();
    let text = |text: &str| Value::Text(text.to_owned());
    let one_of = |table: &[(&str, &str)]| {
        let found = table.iter().find(|(theirs, _)| *theirs == word);
        let allowed: Vec<&str> = table.iter().map(|(theirs, _)| *theirs).collect();
        found.map(|(_, ours)| text(ours)).ok_or_else(|| {
            let got = shown(value);
            format!("expected one of {}, got {got}", allowed.join(", "))
        })
    };
    let refuse = |w: &mut Writer, message: String| w.fault(entry.value.place, &entry.key, message);
    match entry.key.as_str() {
        "adapter" => match word.as_str() {
            "lora" | "qlora" => {
                w.map(entry, "adapter.type", text("lora"));
                for key in ["lora_r", "lora_alpha"] {
                    if get(key).is_none() {
                        refuse(w, format!("needs `{key}`"));
                    }
                }
                if word == "qlora" {
                    w.map(entry, "quantization.type", text("nf4"));
                    w.map(entry, "quantization.double", Value::Boolean(true));
                }
            }
            _ => refuse(w, format!("expected lora or qlora, got {}", shown(value))),
        },
        "load_in_4bit" => match (off, says("adapter").as_deref()) {
            (true, _) => w.leave_out(entry, "nothing to do"),
            (false, Some("qlora")) => w.leave_out(entry, "what `adapter: qlora` says"),
            _ => refuse(w, "needs `adapter: qlora`".to_owned()),
        },
        "load_in_8bit"
        | "fp16"
        | "trust_remote_code"
        | "strict"
        | "use_tensorboard"
        | "auto_resume_from_checkpoints"
        | "group_by_length"
        | "streaming"
        | "save_only_model"
            if off =>
        {
            w.leave_out(entry, "nothing to do");
        }
        "tokenizer_config" if Some(&word) == says("base_model").as_ref() => {
            w.leave_out(entry, "what `base_model` says");
        }
        "special_tokens" if other_than_padding(value) => refuse(
            w,
            "only `pad_token` may be named: others would change the model's own".to_owned(),
        ),
        "bf16" | "bfloat16" if off => w.leave_out(entry, "nothing to do"),
        "bf16" | "bfloat16" => w.map(entry, "precision", text("bf16")),
        "lora_target_modules" | "lora_target_linear" | "peft_init_lora_weights"
            if get("adapter").is_none() =>
        {
            w.leave_out(entry, "no effect without `adapter`");
        }
        "lora_target_modules" => targets(entry, says("lora_target_linear").as_deref(), w),
        "lora_target_linear" if off => w.leave_out(entry, "nothing to do"),
        "lora_target_linear" if matches!(get("lora_target_modules"), Some(e) if !is_text(e)) => {
            w.leave_out(entry, "with `lora_target_modules`");
        }
        "lora_target_linear" => w.map(entry, "adapter.targets", text("all-linear")),
        "peft_init_lora_weights" => match word.as_str() {
            "true" => w.leave_out(entry, "the default"),
            "gaussian" | "pissa" => w.map(entry, "adapter.init", text(&word)),
            _ => refuse(
                w,
                format!("expected true, gaussian or pissa, got {}", shown(value)),
            ),
        },
        "datasets" => rows::training(entry, w),
        "test_datasets" => rows::validation(entry, w),
        "val_set_size" => match value {
            Value::Integer(0) => w.leave_out(entry, "no validation data"),
            Value::Float(x, _) if *x == 0.0 => w.leave_out(entry, "no validation data"),
            Value::Float(x, _) if *x < 1.0 => w.map(entry, "data.validation", value.clone()),
            _ => refuse(w, format!("expected a share below 1, got {}", shown(value))),
        },
        "excess_length_strategy" if word == "raise" => w.map(entry, "data.overlong", text("error")),
        "excess_length_strategy" => w.map(entry, "data.overlong", value.clone()),
        "chat_template" if word == "tokenizer_default" => w.leave_out(entry, "the default"),
        "chat_template" if word == "jinja" => w.leave_out(entry, "what `chat_template_jinja` says"),
        "chat_template" => w.map(entry, "data.chat_template", value.clone()),
        "num_epochs" if get("max_steps").is_some() => w.leave_out(entry, "`max_steps` decides"),
        "num_epochs" => w.map(entry, "train.epochs", value.clone()),
        "max_steps" => w.map(entry, "train.max_steps", value.clone()),
        "optimizer" => match one_of(OPTIMIZERS) {
            Ok(name) => w.map(entry, "optimizer.name", name),
            Err(message) => refuse(w, message),
        },
        "lr_scheduler" => match one_of(SCHEDULES) {
            Ok(name) => w.map(entry, "schedule.name", name),
            Err(message) => refuse(w, message),
        },
        "warmup_steps" | "warmup_ratio" if says("lr_scheduler").as_deref() == Some("constant") => {
            w.leave_out(
                entry,
                "`constant` does not warm up; `constant_with_warmup` does",
            );
        }
        "warmup_steps" | "warmup_ratio" => {
            w.map(entry, &format!("schedule.{}", entry.key), value.clone());
        }
        "adam_beta1" | "adam_beta2" => betas(entry, get, w),
        "cosine_min_lr_ratio" => {
            let number = |key: &str| says(key).and_then(|word| word.parse::<f64>().ok());
            match (number("cosine_min_lr_ratio"), number("learning_rate")) {
                (Some(ratio), Some(peak)) => {
                    let least = ratio * peak;
                    let value = Value::Float(least, least.to_string());
                    w.map(entry, "schedule.min_learning_rate", value);
                }
                _ => refuse(w, "expected a number, and `learning_rate` too".to_owned()),
            }
        }
        "eval_strategy" | "save_strategy" => {
            let section = match entry.key.as_str() {
                "eval_strategy" => "evaluate",
                _ => "checkpoint",
            };
            match word.as_str() {
                "no" | "false" => never(entry, section, get, w),
                "steps" => w.leave_out(entry, "what the number of steps says"),
                "epoch" => w.map(entry, &format!("{section}.every_epochs"), Value::Integer(1)),
                _ => refuse(
                    w,
                    format!("expected no, steps or epoch, got {}", shown(value)),
                ),
            }
        }
        "output_dir" => match value {
            Value::Text(path) => {
                w.leave_out(entry, "the run directory, unless --run-dir is given");
                w.output = Some((path.clone(), entry.value.place));
            }
            _ => refuse(w, format!("expected a path, got {}", shown(value))),
        },
        key if WITHOUT_EFFECT.contains(&key) => {
            w.leave_out(entry, "has no effect on the result here");
        }
        _ => return false,
    }
    true
}

fn is_text(entry: &Entry) -> bool {
    matches!(entry.value.value, Value::Text(_))
}

/// `lora_target_modules`: names, or one text, which PEFT takes as an expression for whole names. With
/// `lora_target_linear` a list is added to every linear layer.
fn targets(entry: &Entry, linear: Option<&str>, w: &mut Writer) {
    let text = |text: &str| Value::Text(text.to_owned());
    let place = entry.value.place;
    let value = match (&entry.value.value, linear == Some("true")) {
        (Value::Text(_), true) => {
            w.leave_out(entry, "`lora_target_linear` means every linear layer");
            return;
        }
        (Value::Text(word), false) if word == "all-linear" => text(word),
        // No expression for a whole name, so one name is meant.
        (Value::Text(word), false) if word.chars().all(|c| c.is_alphanumeric() || c == '_') => {
            Value::List(vec![entry.value.clone()])
        }
        (Value::Text(pattern), false) => Value::Map(vec![Entry {
            key: "pattern".to_owned(),
            key_place: place,
            value: Node {
                place,
                value: text(pattern),
            },
        }]),
        (Value::List(names), true) => {
            let all = Node {
                place,
                value: text("all-linear"),
            };
            Value::List([vec![all], names.clone()].concat())
        }
        (other, _) => other.clone(),
    };
    w.map(entry, "adapter.targets", value);
}

/// `eval_strategy: no` and `save_strategy: no`: at the end only, where both are done in any case.
fn never<'a>(
    entry: &Entry,
    section: &str,
    get: &impl Fn(&str) -> Option<&'a Entry>,
    w: &mut Writer,
) {
    let rhythms = match section {
        "evaluate" => ["eval_steps", "evals_per_epoch"],
        _ => ["save_steps", "saves_per_epoch"],
    };
    if let Some(other) = rhythms.into_iter().find_map(get) {
        let message = format!("`no` and `{}` contradict each other", other.key);
        w.fault(entry.value.place, &entry.key, message);
        return;
    }
    const NEVER: i64 = 1_000_000_000;
    w.map(
        entry,
        &format!("{section}.every_steps"),
        Value::Integer(NEVER),
    );
}

/// Whether `special_tokens` names more than the token of padding, which is masked whatever it is.
fn other_than_padding(value: &Value) -> bool {
    match value {
        Value::Map(tokens) => tokens.iter().any(|token| token.key != "pad_token"),
        _ => true,
    }
}

/// `betas` from one or both of two keys, written once.
fn betas<'a>(entry: &Entry, get: &impl Fn(&str) -> Option<&'a Entry>, w: &mut Writer) {
    if entry.key == "adam_beta2" && get("adam_beta1").is_some() {
        w.leave_out(entry, "with `adam_beta1`");
        return;
    }
    let beta = |key: &str, default: f64| match get(key) {
        Some(given) => given.value.clone(),
        None => Node {
            place: entry.value.place,
            value: Value::Float(default, default.to_string()),
        },
    };
    let both = vec![beta("adam_beta1", 0.9), beta("adam_beta2", 0.999)];
    w.map(entry, "optimizer.betas", Value::List(both));
}

/// What follows from several keys together.
fn finish<'a>(
    get: &impl Fn(&str) -> Option<&'a Entry>,
    says: &impl Fn(&str) -> Option<String>,
    w: &mut Writer,
) {
    let place = w.root.place;
    if get("num_epochs").is_none() && get("max_steps").is_none() {
        let value = Value::Integer(1);
        w.set("train.epochs", Node { place, value });
    }
    let targeted = get("lora_target_modules").is_some()
        || says("lora_target_linear").as_deref() == Some("true");
    if let Some(adapter) = get("adapter").filter(|_| !targeted) {
        // PEFT's own choice for these architectures.
        let names = ["q_proj", "v_proj"].map(|name| Node {
            place,
            value: Value::Text(name.to_owned()),
        });
        w.map(adapter, "adapter.targets", Value::List(names.to_vec()));
    }
    if get("learning_rate").is_none() {
        w.missing(
            "learning_rate",
            "a number, such as 0.0002; Axolotl has no default for it",
        );
    }
    let warms_up = ["warmup_steps", "warmup_ratio"].map(|key| get(key).is_some());
    if warms_up == [false, false] && says("lr_scheduler").as_deref() != Some("constant") {
        w.default(
            "schedule.warmup_ratio",
            Value::Float(WARMUP, WARMUP.to_string()),
        );
    }
    if get("datasets").is_none() {
        w.missing("datasets", "a list of mappings with `path` and `type`");
    }
}
