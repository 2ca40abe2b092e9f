//! Adapters of PEFT (`oracles/lora.py`) on tiny models: the same logits and gradients, before and
//! after merging, and after writing them again.

mod support;

use std::path::{Path, PathBuf};

use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Array, Tensor};
use entrenar_io::{SafeTensors, write_safetensors};
use entrenar_nn::{Ctx, Init, Parameters};
use entrenar_tune::lora::{self, LoraConfig, Targets};
use entrenar_zoo::{LanguageModel, LmInput};
use support::{distance, model as base};

const CASES: [(&str, &str); 10] = [
    ("plain", "llama"),
    ("patterns", "qwen3"),
    ("dora", "llama3-tied"),
    ("conv1d", "gpt2"),
    ("conv1d-dora", "gpt2"),
    ("all", "mistral"),
    ("saved", "llama"),
    ("embedding", "llama"),
    ("embedding-tied", "qwen2"),
    ("embedding-dora", "gpt2"),
];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn logits(model: &LanguageModel, tokens: &Tensor) -> Array {
    let cx = &mut Ctx::eval();
    let model = model.as_causal();
    let x = model.features(tokens, LmInput::default(), cx).unwrap();
    model.logits(&x, cx).unwrap().array().clone()
}

/// Where `ENTRENAR_KEEP` names a directory, an adapter that was written is kept there with the model's
/// logits, for `oracles/lora.py --check`.
fn keep(written: &Path, name: &str, tokens: &Tensor, logits: &Array) {
    let Some(place) = std::env::var_os("ENTRENAR_KEEP") else {
        return;
    };
    let kept = Path::new(&place).join(name);
    std::fs::create_dir_all(&kept).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(written.join(file), kept.join(file)).unwrap();
    }
    let both = [
        ("tokens".to_string(), tokens.array().clone()),
        ("logits".to_string(), logits.clone()),
    ];
    write_safetensors(kept.join("logits.safetensors"), &both, &Default::default()).unwrap();
}

#[test]
fn adapters_are_those_of_peft() {
    for (name, base_name) in CASES {
        let golden = SafeTensors::open(folder(name).join("golden.safetensors")).unwrap();
        let get = |key: &str| golden.tensor(key).unwrap();
        let tokens = Tensor::from(get("tokens"));
        let mut model = base(base_name);
        let before = logits(&model, &tokens);
        let (config, report) = lora::load_adapter(&mut model, &folder(name)).unwrap();
        let off = distance(&logits(&model, &tokens), &get("logits"));
        assert!(off < 2e-6, "{name}: logits differ by {off}");
        assert!(
            distance(&before, &get("logits")) > 1e-2,
            "{name}: the adapter does nothing"
        );

        // Only the adapter is trained, and with PEFT's gradients.
        let loss = model
            .as_causal()
            .loss(
                &tokens,
                &Tensor::from(get("targets")),
                Reduction::Mean,
                LmInput::default(),
                &mut Ctx::train(0, 0),
            )
            .unwrap();
        let off = distance(loss.reshape([1]).unwrap().array(), &get("loss"));
        assert!(off < 1e-5, "{name}: the loss differs by {off}");
        loss.backward().unwrap();
        let trained = model.trainable_parameters();
        let wanted = golden
            .names()
            .filter(|n| n.starts_with("gradient."))
            .count();
        assert_eq!(trained.len(), wanted, "{name}");
        assert_eq!(
            report.trainable,
            trained.iter().map(|(_, p)| p.numel()).sum::<usize>()
        );
        for (key, p) in &trained {
            let want = get(&format!("gradient.base_model.model.{key}"));
            let off = distance(p.grad().unwrap().array(), &want);
            assert!(off < 2e-5, "{name}: the gradient of {key} differs by {off}");
        }

        // Written again, it is the same adapter.
        let place = tempfile::tempdir().unwrap();
        lora::save_adapter(&mut model, &config, place.path()).unwrap();
        keep(place.path(), name, &tokens, &logits(&model, &tokens));
        let mut again = base(base_name);
        let (config_again, _) = lora::load_adapter(&mut again, place.path()).unwrap();
        assert_eq!(
            (config_again.r, config_again.targets),
            (config.r, config.targets)
        );
        assert_eq!(
            logits(&again, &tokens).to_f64_vec(),
            logits(&model, &tokens).to_f64_vec()
        );

        // Merged, it is an ordinary model; taken off, the one before.
        lora::merge(&mut model).unwrap();
        let merged = match name.starts_with("embedding") {
            true => get("merged_logits"),
            false => get("logits"),
        };
        let off = distance(&logits(&model, &tokens), &merged);
        assert!(off < 5e-6, "{name}: merged logits differ by {off}");
        for (key, p) in model.named_parameters() {
            if let Ok(want) = golden.tensor(&format!("merged.{key}")) {
                let off = distance(&p.array(), &want);
                assert!(off < 2e-6, "{name}: merged {key} differs by {off}");
            }
        }
        assert_eq!(lora::report(&mut model).layers.len(), 0);
        lora::detach(&mut again).unwrap();
        if config.modules_to_save.is_empty() {
            assert_eq!(logits(&again, &tokens).to_f64_vec(), before.to_f64_vec());
        }
    }
}

/// Every number of the model by name, as bits.
fn bits(model: &LanguageModel) -> Vec<(String, Vec<u32>)> {
    let state = model.state().into_iter();
    let bits = |a: Array| a.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits);
    state.map(|(key, a)| (key, bits(a).collect())).collect()
}

#[test]
fn what_was_merged_can_be_taken_apart_to_the_last_bit() {
    for (name, base_name) in CASES {
        let golden = SafeTensors::open(folder(name).join("golden.safetensors")).unwrap();
        let tokens = Tensor::from(golden.tensor("tokens").unwrap());
        let mut model = base(base_name);
        let (config, report) = lora::load_adapter(&mut model, &folder(name)).unwrap();
        let (before, adapted) = (bits(&model), logits(&model, &tokens));
        let mut trained: Vec<String> = Vec::new();
        for round in 0..2 {
            let merged = lora::merge_keeping(&mut model).unwrap();
            let mut layers: Vec<&str> = merged.layers().collect();
            layers.sort_unstable();
            let mut wanted: Vec<&str> = report.layers.iter().map(String::as_str).collect();
            wanted.sort_unstable();
            assert_eq!(layers, wanted, "{name}");
            assert_eq!(lora::report(&mut model).layers.len(), 0, "{name}");
            let off = distance(&logits(&model, &tokens), &adapted);
            assert_eq!(
                off < 5e-6,
                report.warnings.is_empty(),
                "{name}: merged logits differ by {off}"
            );
            lora::unmerge(&mut model, merged).unwrap();
            assert!(bits(&model) == before, "{name}: round {round}");
            assert_eq!(
                logits(&model, &tokens).to_f64_vec(),
                adapted.to_f64_vec(),
                "{name}"
            );
            let names = model.trainable_parameters().into_iter();
            let names: Vec<String> = names.map(|(key, _)| key).collect();
            if round > 0 {
                assert_eq!(names, trained, "{name}");
            }
            trained = names;
        }
        let place = tempfile::tempdir().unwrap();
        lora::save_adapter(&mut model, &config, place.path()).unwrap();

        // Another model, and one with adapters, are refused and stay as they are.
        let merged = lora::merge_keeping(&mut model).unwrap();
        lora::attach(&mut model, &config, &mut Init::new(1)).unwrap();
        let before = bits(&model);
        let refused = lora::unmerge(&mut model, merged).unwrap_err().to_string();
        assert!(refused.contains("without adapters since"), "{refused}");
        assert!(bits(&model) == before, "{name}");
    }
}

#[test]
fn an_embedding_is_adapted_where_it_is_named() {
    let config = |targets| LoraConfig {
        r: 2,
        targets,
        ..Default::default()
    };
    for (name, ends, tied) in [
        ("llama", vec!["embed_tokens"], false),
        ("llama3-tied", vec!["embed_tokens"], true),
        ("gpt2", vec!["wpe", "wte"], true),
    ] {
        let mut model = base(name);
        let tokens = Tensor::from_vec(vec![1i64, 5, 9, 2], [1, 4]).unwrap();
        let before = logits(&model, &tokens);
        let all = lora::attach(&mut model, &config(Targets::AllLinear), &mut Init::new(3));
        let all = all.unwrap();
        assert!(!all.layers.iter().any(|l| l.ends_with(ends[0])));
        assert!(all.warnings.is_empty());
        lora::detach(&mut model).unwrap();
        let pattern = format!(r".*\.({})", ends.join("|"));
        let names = ends.iter().map(|e| e.to_string()).collect();
        for targets in [Targets::Pattern(pattern), Targets::Names(names)] {
            let made = config(targets);
            let report = lora::attach(&mut model, &made, &mut Init::new(3)).unwrap();
            assert_eq!(report.layers.len(), ends.len());
            assert_eq!(report.warnings.len(), usize::from(tied), "{name}");
            assert_eq!(
                logits(&model, &tokens).to_f64_vec(),
                before.to_f64_vec(),
                "A is 0"
            );
            let twice = lora::attach(&mut model, &made, &mut Init::new(3)).unwrap_err();
            assert!(
                twice
                    .to_string()
                    .contains("an embedding without an adapter"),
                "{twice}"
            );
            // A learns first: B is not 0.
            let loss = model.as_causal().loss(
                &tokens,
                &tokens,
                Reduction::Mean,
                LmInput::default(),
                &mut Ctx::train(0, 0),
            );
            loss.unwrap().backward().unwrap();
            for (key, p) in model.trainable_parameters() {
                let gradient = p.grad().unwrap().array().to_f64_vec();
                let moved = gradient.iter().any(|g| *g != 0.0);
                assert_eq!(moved, key.ends_with("lora_embedding_A"), "{key}");
            }
            lora::detach(&mut model).unwrap();
        }
        // PEFT would give the output layer the adapter too.
        let names = ends.iter().map(|e| e.to_string()).collect();
        let mut sharing = config(Targets::Names(names));
        sharing
            .raw
            .insert("ensure_weight_tying".into(), true.into());
        let shared = lora::attach(&mut model, &sharing, &mut Init::new(3));
        assert_eq!(shared.is_err(), tied, "{name}");
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_then_learns() {
    let mut model = base("llama");
    let tokens = Tensor::from_vec(vec![1i64, 5, 9, 2], [1, 4]).unwrap();
    let before = logits(&model, &tokens);
    for use_dora in [false, true] {
        let config = LoraConfig {
            r: 2,
            use_dora,
            lora_dropout: 0.3,
            ..Default::default()
        };
        let report = lora::attach(&mut model, &config, &mut Init::new(3)).unwrap();
        assert_eq!(report.layers.len(), 14);
        let off = distance(&logits(&model, &tokens), &before);
        assert!(off < 1e-6, "off {off}");
        let twice = lora::attach(&mut model, &config, &mut Init::new(3)).unwrap_err();
        assert!(
            twice.to_string().contains("a layer without an adapter"),
            "{twice}"
        );
        let loss = model.as_causal().loss(
            &tokens,
            &tokens,
            Reduction::Mean,
            LmInput::default(),
            &mut Ctx::train(0, 0),
        );
        loss.unwrap().backward().unwrap();
        let moved = |part: &str| {
            let all = model.trainable_parameters();
            let of = all.iter().filter(|(n, _)| n.ends_with(part));
            of.filter(|(_, p)| {
                p.grad()
                    .unwrap()
                    .array()
                    .to_f64_vec()
                    .iter()
                    .any(|g| *g != 0.0)
            })
            .count()
        };
        // B is 0, so A cannot move in the first step.
        assert_eq!((moved("lora_A.weight"), moved("lora_B.weight")), (0, 14));
        assert_eq!(
            moved("lora_magnitude_vector"),
            if use_dora { 14 } else { 0 }
        );
        model.zero_grad();
        lora::detach(&mut model).unwrap();
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let copy = |change: &dyn Fn(&str) -> String| {
        let place = tempfile::tempdir().unwrap();
        let from = folder("plain");
        let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
        std::fs::write(place.path().join("adapter_config.json"), change(&text)).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(from.join(weights), place.path().join(weights)).unwrap();
        let mut model = base("llama");
        let count = model.trainable_parameters().len();
        let message = lora::load_adapter(&mut model, place.path())
            .unwrap_err()
            .to_string();
        assert_eq!(
            model.trainable_parameters().len(),
            count,
            "the model is as it was"
        );
        assert_eq!(lora::report(&mut model).layers.len(), 0);
        message
    };
    for (from, to, part) in [
        (
            "\"r\": 4",
            "\"r\": 5",
            "lora_A.weight: expected [5, 16] of floats, got [4, 16]",
        ),
        (
            "\"v_proj\"",
            "\"k_proj\"",
            "self_attn.v_proj.lora_A.weight: unexpected",
        ),
        (
            "\"v_proj\"",
            "\"w_proj\"",
            "`w_proj` matches no linear layer of this model; its layers end with down_proj, gate_proj",
        ),
        (
            "\"LORA\"",
            "\"IA3\"",
            "`peft_type`: expected \"LORA\", got \"IA3\"",
        ),
        (
            "\"bias\": \"none\"",
            "\"bias\": \"all\"",
            "`bias`: expected \"none\"",
        ),
        (
            "\"r\": 4",
            "\"r\": 0",
            "`r`: expected a whole number of at least 1",
        ),
        (
            "\"lora_dropout\": 0.0",
            "\"lora_dropout\": 1.5",
            "lora_dropout: expected a probability below 1, got 1.5",
        ),
        (
            "\"modules_to_save\": null",
            "\"modules_to_save\": [\"lm_head\"]",
            "base_model.model.lm_head.weight: missing",
        ),
        (
            "\"modules_to_save\": null",
            "\"modules_to_save\": [\"head\"]",
            "`head` matches no module",
        ),
        (
            "\"modules_to_save\": null",
            "\"modules_to_save\": 3",
            "`modules_to_save`: expected a list of names",
        ),
        (
            "\"layers_to_transform\": null",
            "\"layers_to_transform\": [0]",
            "`layers_to_transform`: expected null",
        ),
    ] {
        let message = copy(&|text| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        assert!(message.contains(part), "{to}: {message}");
    }
    let mut model = base("llama");
    let pattern = LoraConfig {
        targets: Targets::Pattern("(".into()),
        ..Default::default()
    };
    assert!(lora::attach(&mut model, &pattern, &mut Init::new(0)).is_err());
    assert!(lora::save_adapter(&mut model, &pattern, &folder("nowhere")).is_err());
}
