//! What `merge-adapter` and `quantize` write has the number format of the model that they were given, or the one that is
//! asked for; either is what f32 gives, rounded once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use entrenar::io::{Weights, write_safetensors};
use entrenar::nn::{Init, Parameters};
use entrenar::tune::{LoraConfig, lora};
use entrenar::zoo::LanguageModel;
use entrenar::{Array, DType};
use serde_json::Value;

use crate::support::{entrenar, fails, stderr};

/// A small Llama's config and tokenizer.
fn described() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../train/tests/data/bitsandbytes/llama-nf4")
}

/// A model whose norms are in f32 and whose other weights are in `dtype`, in `place/model`, and an adapter on it.
fn prepare(place: &Path, dtype: DType) {
    let text = std::fs::read_to_string(described().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let config = config.as_object_mut().unwrap();
    config.remove("quantization_config");
    let model = place.join("model");
    std::fs::create_dir_all(&model).unwrap();
    let written = serde_json::to_string(&config).unwrap();
    std::fs::write(model.join("config.json"), written).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(described().join(file), model.join(file)).unwrap();
    }
    let made = LanguageModel::random(config, Init::new(3)).unwrap();
    let state: Vec<(String, Array)> = made
        .state()
        .into_iter()
        .map(|(name, array)| match name.contains("norm") {
            true => (name, array),
            false => (name, array.cast(dtype)),
        })
        .collect();
    write_safetensors(model.join("model.safetensors"), &state, &BTreeMap::new()).unwrap();

    let mut opened = LanguageModel::open(&model, None).unwrap();
    let config = LoraConfig {
        r: 4,
        lora_alpha: 32.0,
        ..LoraConfig::default()
    };
    let mut init = Init::new(1);
    lora::attach(&mut opened, &config, &mut init).unwrap();
    lora::each(&mut opened, &mut |_, layer| {
        let shape = layer.lora_b.shape();
        layer.lora_b.set(&init.normal(shape, 0.0, 0.05)?)
    })
    .unwrap();
    lora::save_adapter(&mut opened, &config, &place.join("adapter")).unwrap();
}

/// Runs a command on `place/model` and reads what it wrote: the tensors and the two names of the dtype.
fn written(
    place: &Path,
    command: &str,
    out: &str,
    more: &[&str],
) -> (BTreeMap<String, Array>, String) {
    let out = place.join(out);
    let mut run = entrenar();
    run.arg(command).arg("--model").arg(place.join("model"));
    if command == "merge-adapter" {
        run.arg("--adapter").arg(place.join("adapter"));
    }
    let output = run.arg("--out").arg(&out).args(more).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = std::fs::read_to_string(out.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["dtype"], config["torch_dtype"]);
    let name = config["dtype"].as_str().unwrap().to_owned();
    let tensors = Weights::open(&out).unwrap().tensors().unwrap();
    (tensors.into_iter().collect(), name)
}

/// Checks that `got` is `wide`, each rounded to the dtype that `dtype` says.
fn check(
    got: &BTreeMap<String, Array>,
    wide: &BTreeMap<String, Array>,
    dtype: impl Fn(&str, &Array) -> DType,
) {
    assert!(got.keys().eq(wide.keys()));
    for (name, array) in got {
        let wide = &wide[name];
        assert_eq!(array.dtype(), dtype(name, wide), "{name}");
        let rounded = wide.cast(array.dtype());
        assert!(array.to_f64_vec() == rounded.to_f64_vec(), "{name}");
    }
}

#[test]
fn what_is_written_has_the_format_of_the_model_or_the_one_asked_for() {
    for (dtype, torch) in [
        (DType::BF16, "bfloat16"),
        (DType::F16, "float16"),
        (DType::F32, "float32"),
    ] {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        prepare(place, dtype);
        for command in ["merge-adapter", "quantize"] {
            let run = |dtype: &str| {
                let out = format!("{command}-{dtype}");
                match dtype {
                    "own" => written(place, command, &out, &[]),
                    _ => written(place, command, &out, &["--dtype", dtype]),
                }
            };
            let (wide, name) = run("f32");
            assert_eq!(name, "float32");
            // Scales, codes and their tables are what they are; how a weight was stored before is told by the state.
            let floats = |name: &str| !name.contains(".weight.");
            let float = |name: &str, array: &Array, dtype| match array.dtype() {
                DType::F32 if floats(name) => dtype,
                other => other,
            };
            let states = |mut all: BTreeMap<String, Array>| {
                all.retain(|name, _| !name.contains("quant_state"));
                all
            };
            let wide = states(wide);
            assert!(
                wide.iter()
                    .all(|(n, a)| !floats(n) || matches!(a.dtype(), DType::F32 | DType::U8))
            );
            let (own, name) = run("own");
            assert_eq!(name, torch, "{command}");
            check(&states(own), &wide, |name, array| {
                match name.contains("norm") {
                    true => DType::F32,
                    false => float(name, array, dtype),
                }
            });
            for (asked, as_asked, torch) in [
                ("bf16", DType::BF16, "bfloat16"),
                ("f16", DType::F16, "float16"),
            ] {
                let (got, name) = run(asked);
                assert_eq!(name, torch, "{command}");
                check(&states(got), &wide, |name, array| {
                    float(name, array, as_asked)
                });
            }
        }
    }
}

#[test]
fn a_broken_adapter_makes_no_model() {
    let place = tempfile::tempdir().unwrap();
    prepare(place.path(), DType::F16);
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (model, adapter, out) = (at("model"), at("adapter"), at("out"));
    let file = place.path().join("adapter/adapter_model.safetensors");
    let mut state = Weights::open(&file).unwrap().tensors().unwrap();
    for (value, more) in [(f32::NAN, ""), (1e30, ": choose --dtype bf16 or f32")] {
        let (_, first) = &mut state[0];
        let mut numbers = first.to_vec::<f32>().unwrap();
        numbers[0] = value;
        *first = Array::from_vec(numbers, first.shape().clone()).unwrap();
        write_safetensors(&file, &state, &BTreeMap::new()).unwrap();
        let arguments = [
            "--model",
            &model,
            "--adapter",
            &adapter,
            "--out",
            &out,
            "--quiet",
        ];
        let message = fails(&[&["merge-adapter"][..], &arguments].concat(), 1);
        assert!(
            message.contains("merging leaves a NaN or an infinity in model.layers.0."),
            "{message}"
        );
        assert!(
            message.contains(more) && !Path::new(&out).exists(),
            "{message}"
        );
    }
}

#[test]
fn other_formats_are_refused() {
    for command in ["merge-adapter", "quantize"] {
        let message = fails(&[command, "--dtype", "i8"], 2);
        assert!(
            message.contains("possible values: f32, bf16, f16"),
            "{message}"
        );
    }
}

#[test]
fn tokens_that_the_model_has_not_are_told() {
    let place = tempfile::tempdir().unwrap();
    prepare(place.path(), DType::F32);
    let model = place.path().join("model");
    let change = |file: &str, keys: &[(&str, Value)]| {
        let path = model.join(file);
        let text = std::fs::read_to_string(&path).unwrap_or("{}".into());
        let mut map: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        map.extend(keys.iter().map(|(k, v)| (k.to_string(), v.clone())));
        std::fs::write(path, serde_json::to_string(&map).unwrap()).unwrap();
    };
    change("config.json", &[("bos_token_id", (-1).into())]);
    change(
        "generation_config.json",
        &[("eos_token_id", vec![2, 99_999].into())],
    );
    let mut generate = entrenar();
    generate.arg("generate").arg("--model").arg(&model);
    let output = generate.args(["--prompt", "the", "--max-new-tokens", "2"]);
    let told = stderr(&output.output().unwrap());
    for line in [
        "config.json: `bos_token_id`: -1 is no token of the model, which has ",
        "generation_config.json: `eos_token_id`: 99999 is no token of the model, which has ",
    ] {
        assert!(told.contains(line), "{told}");
    }
    assert!(told.contains("; no text ends with it"), "{told}");

    let rows = place.path().join("rows.jsonl");
    std::fs::write(
        &rows,
        "{\"prompt\": \"the\", \"completion\": \"dog\"}\n".repeat(4),
    )
    .unwrap();
    let config = place.path().join("c.yaml");
    let text = "task: sft\nmodel: {base: model}\nadapter: {rank: 2}\ndata: {path: rows.jsonl}\n\
                train: {max_steps: 1, batch_size: 2}\noptimizer: {learning_rate: 0.001}\n";
    std::fs::write(&config, text).unwrap();
    for more in [&["--dry-run"][..], &["--run-dir"]] {
        let mut train = entrenar();
        train.arg("train").arg(&config).args(more);
        if more == ["--run-dir"] {
            train.arg(place.path().join("run"));
        }
        let told = stderr(&train.output().unwrap());
        assert!(
            told.contains("warning: ") && told.contains("-1 is no token"),
            "{told}"
        );
    }
}
