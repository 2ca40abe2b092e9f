//! Tiny models of each family against what transformers computes for them
//! (`oracles/language_models.py`): logits, loss, every gradient, three steps of AdamW; and with a
//! cache the same logits as without.

use std::path::PathBuf;

use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Array, DType, Tensor};
use entrenar_io::SafeTensors;
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{Ctx, Parameters};
use entrenar_zoo::{Bert, BertInput, KvCache, LanguageModel, LmInput};

const NAMES: [&str; 7] = [
    "llama",
    "llama3-tied",
    "llama-linear",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/language_models/{name}"))
}

fn golden(name: &str) -> SafeTensors {
    SafeTensors::open(folder(name).join("golden.safetensors")).unwrap()
}

/// The largest difference over the largest value.
fn distance(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let scale = b.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    let far = |m: f64, (x, y): (&f64, &f64)| m.max((x - y).abs() / scale);
    a.iter().zip(&b).fold(0.0, far)
}

#[test]
fn logits_gradients_and_steps_are_those_of_transformers() {
    for name in NAMES {
        let model = LanguageModel::open(folder(name), None).unwrap();
        let golden = golden(name);
        let get = |key: &str| golden.tensor(key).unwrap();
        let (tokens, targets) = (Tensor::from(get("tokens")), Tensor::from(get("targets")));
        let logits = {
            let cx = &mut Ctx::eval();
            let x = model
                .as_causal()
                .features(&tokens, LmInput::default(), cx)
                .unwrap();
            model.as_causal().logits(&x, cx).unwrap()
        };
        let off = distance(logits.array(), &get("logits"));
        assert!(off < 2e-6, "{name}: logits differ by {off}");

        let parameters = model.named_parameters();
        let mut optimizer = AdamW::builder()
            .learning_rate(1e-2)
            .weight_decay(0.1)
            .build(&parameters)
            .unwrap();
        for (step, want) in get("losses").to_f64_vec().into_iter().enumerate() {
            model.zero_grad();
            let loss = model
                .as_causal()
                .loss(
                    &tokens,
                    &targets,
                    Reduction::Mean,
                    LmInput::default(),
                    &mut Ctx::train(0, step as u64),
                )
                .unwrap();
            let got = f64::from(loss.item::<f32>().unwrap());
            assert!(
                (got / want - 1.0).abs() < 1e-5,
                "{name}: loss {got}, not {want}"
            );
            loss.backward().unwrap();
            if step == 0 {
                for (key, p) in &parameters {
                    let off = distance(p.grad().unwrap().array(), &get(&format!("gradient.{key}")));
                    assert!(off < 1e-5, "{name}: the gradient of {key} differs by {off}");
                }
            }
            optimizer.step().unwrap();
        }
        for (key, p) in &parameters {
            let (mut got, mut want) = (p.array(), get(&format!("after.{key}")));
            if key.ends_with("c_attn.bias") {
                // Softmax does not see what is added to every key: the true gradient of the keys'
                // bias is 0, and Adam takes its step in the direction of the rounding error.
                let other = |a: &Array| {
                    let (q, v) = (
                        a.slice(0, 0, 16, 1).unwrap(),
                        a.slice(0, 32, 48, 1).unwrap(),
                    );
                    entrenar_cpu::copy::concat(&[&q, &v], 0).unwrap()
                };
                (got, want) = (other(&got), other(&want));
            }
            let off = distance(&got, &want);
            assert!(
                off < 1e-4,
                "{name}: {key} differs by {off} after three steps"
            );
        }
    }
}

#[test]
fn a_cache_changes_nothing() {
    for name in NAMES {
        let model = LanguageModel::open(folder(name), None).unwrap();
        let golden = golden(name);
        let tokens = Tensor::from(golden.tensor("tokens").unwrap());
        let mut cache = KvCache::new(model.as_causal().layers());
        let mut parts = Vec::new();
        for (start, count) in [(0, 4), (4, 1), (5, 1), (6, 3), (9, 2)] {
            let input = LmInput {
                cache: Some(&mut cache),
                ..Default::default()
            };
            let part = tokens.narrow(1, start, count).unwrap();
            let cx = &mut Ctx::eval();
            let x = model.as_causal().features(&part, input, cx).unwrap();
            parts.push(model.as_causal().logits(&x, cx).unwrap());
        }
        assert_eq!(cache.len(), 11);
        let all = Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1).unwrap();
        let off = distance(all.array(), &golden.tensor("logits").unwrap());
        assert!(off < 2e-6, "{name}: logits differ by {off}");
    }
}

#[test]
fn packed_sequences_do_not_see_one_another() {
    for name in NAMES {
        let model = LanguageModel::open(folder(name), None).unwrap();
        let tokens = Tensor::from(golden(name).tensor("tokens").unwrap());
        let logits = |t: &Tensor, input: LmInput<'_>| {
            let cx = &mut Ctx::eval();
            let x = model.as_causal().features(t, input, cx).unwrap();
            model.as_causal().logits(&x, cx).unwrap()
        };
        // Columns 0..7 are one sequence, 7..11 another.
        let positions: Vec<usize> = (0..7).chain(0..4).collect();
        let same = |e: usize| (e / 11 < 7) == (e % 11 < 7);
        let mask = Tensor::from_vec((0..121).map(same).collect(), [11, 11]).unwrap();
        let packed = logits(
            &tokens,
            LmInput {
                positions: Some(&positions),
                mask: Some(&mask),
                ..Default::default()
            },
        );
        for (start, count) in [(0, 7), (7, 4)] {
            let alone = logits(&tokens.narrow(1, start, count).unwrap(), LmInput::default());
            let part = packed.narrow(1, start, count).unwrap();
            let off = distance(part.array(), alone.array());
            assert!(off < 2e-6, "{name}: logits differ by {off}");
        }
    }
}

/// Tokens, targets and perhaps segments of a call.
type Row = (Tensor, Tensor, Option<Vec<Vec<usize>>>);

/// Losses of each token of `rows` and every parameter's gradient of their sum.
fn losses_and_gradients(model: &LanguageModel, rows: &[Row]) -> (Vec<Vec<f64>>, Vec<Array>) {
    model.zero_grad();
    let mut losses = Vec::new();
    for (tokens, targets, segments) in rows {
        let input = LmInput {
            segments: segments.as_deref(),
            ..Default::default()
        };
        let cx = &mut Ctx::train(0, 0);
        let loss = model
            .as_causal()
            .loss(tokens, targets, Reduction::None, input, cx)
            .unwrap();
        losses.push(loss.array().to_f64_vec());
        loss.sum().unwrap().backward().unwrap();
    }
    let gradients = model
        .named_parameters()
        .into_iter()
        .map(|(_, p)| p.grad().unwrap().array().clone());
    (losses, gradients.collect())
}

#[test]
fn packed_rows_learn_what_single_rows_learn() {
    for name in NAMES {
        let model = LanguageModel::open(folder(name), None).unwrap();
        let all: Vec<i64> = golden(name).tensor("tokens").unwrap().to_vec().unwrap();
        let row = |values: Vec<i64>| {
            let count = values.len();
            Tensor::from_vec(values, [1, count]).unwrap()
        };
        // Sequences of 5, 1, 4 and 7 tokens; two rows of 11 with one and three columns of padding.
        let sequences: Vec<(Vec<i64>, Vec<i64>)> = [(0usize, 5usize), (3, 1), (6, 4), (2, 7)]
            .iter()
            .map(|&(start, count)| {
                let tokens = all[start..start + count].to_vec();
                let mut targets = all[start + 1..=start + count].to_vec();
                targets[0] = if count > 4 { -100 } else { targets[0] };
                (tokens, targets)
            })
            .collect();
        let alone: Vec<_> = sequences
            .iter()
            .map(|(tokens, targets)| (row(tokens.clone()), row(targets.clone()), None))
            .collect();
        let (single, want) = losses_and_gradients(&model, &alone);

        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for (sequences, padding) in [(&sequences[..3], 1), (&sequences[3..], 4)] {
            for (t, y) in sequences {
                tokens.extend(t);
                targets.extend(y);
            }
            tokens.resize(tokens.len() + padding, 2);
            targets.resize(targets.len() + padding, -100);
        }
        let packed = (
            Tensor::from_vec(tokens, [2, 11]).unwrap(),
            Tensor::from_vec(targets, [2, 11]).unwrap(),
            Some(vec![vec![5, 1, 4], vec![7]]),
        );
        let (together, got) = losses_and_gradients(&model, &[packed]);
        let mut expected = single[..3].concat();
        expected.push(0.0);
        expected.extend(&single[3]);
        expected.extend([0.0; 4]);
        for (a, b) in together[0].iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} against {b}");
        }
        assert!(expected.iter().filter(|loss| **loss > 0.0).count() >= 13);
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            let off = distance(a, b);
            assert!(off < 1e-5, "{name}: gradient {i} differs by {off}");
        }
    }
}

#[test]
fn checkpointed_layers_give_the_same_gradients_to_the_bit() {
    for name in NAMES {
        let model = LanguageModel::open(folder(name), None).unwrap();
        let all: Vec<i64> = golden(name).tensor("tokens").unwrap().to_vec().unwrap();
        let row = |from: usize| Tensor::from_vec(all[from..from + 8].to_vec(), [2, 4]).unwrap();
        let segments = [vec![4], vec![1, 2]];
        let run = |checkpoint: bool| {
            model.zero_grad();
            let input = LmInput {
                segments: Some(&segments),
                checkpoint,
                ..Default::default()
            };
            // No dropout: a replay of a layer draws keys of its own.
            let cx = &mut Ctx::eval();
            let causal = model.as_causal();
            let loss = causal.loss(&row(0), &row(1), Reduction::Sum, input, cx);
            let loss = loss.unwrap();
            loss.backward().unwrap();
            let gradients = model.named_parameters().into_iter().map(|(_, p)| {
                let gradient = p.grad().unwrap();
                gradient.to_vec::<f32>().unwrap()
            });
            (loss.item::<f32>().unwrap(), gradients.collect::<Vec<_>>())
        };
        let (kept, computed_again) = (run(false), run(true));
        assert!(kept.1.iter().flatten().any(|g| *g != 0.0));
        assert_eq!(kept, computed_again, "{name}");
    }
}

#[test]
fn segments_that_do_not_fit_are_refused() {
    let model = LanguageModel::open(folder("gpt2"), None).unwrap();
    let tokens = Tensor::from_vec(vec![1i64; 8], [2, 4]).unwrap();
    let told = |segments: &[Vec<usize>], positions: Option<&[usize]>| {
        let input = LmInput {
            segments: Some(segments),
            positions,
            ..Default::default()
        };
        let cx = &mut Ctx::eval();
        let refused = model.as_causal().features(&tokens, input, cx);
        refused.unwrap_err().to_string()
    };
    for (segments, positions, words) in [
        (vec![vec![4]], None, "segments of 2 rows, got 1 rows"),
        (
            vec![vec![4], vec![3, 2]],
            None,
            "segments that add up to at most 4, got 5 in row 1",
        ),
        (
            vec![vec![4], vec![4]],
            Some(&[0, 1, 2, 3][..]),
            "segments alone, got positions, a mask or a cache besides",
        ),
    ] {
        let message = told(&segments, positions);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    for name in NAMES {
        let model = LanguageModel::open(folder(name), None).unwrap();
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("copy");
        model.save(&copy).unwrap();
        let back = LanguageModel::open(&copy, None).unwrap();
        for ((a, x), (b, y)) in model.state().iter().zip(&back.state()) {
            assert_eq!(a, b);
            assert_eq!(x.to_f64_vec(), y.to_f64_vec(), "{a}");
        }
        assert!(model.save(&copy).is_err(), "nothing is overwritten");
        let half = LanguageModel::open(&copy, Some(DType::BF16)).unwrap();
        assert!(half.state().iter().all(|(_, a)| a.dtype() == DType::BF16));
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let place = tempfile::tempdir().unwrap();
    let copy = |name: &str, change: &dyn Fn(&str) -> String| {
        let config = std::fs::read_to_string(folder("llama").join("config.json")).unwrap();
        let to = place.path().join(name);
        std::fs::create_dir(&to).unwrap();
        std::fs::write(to.join("config.json"), change(&config)).unwrap();
        std::fs::copy(
            folder("llama").join("model.safetensors"),
            to.join("model.safetensors"),
        )
        .unwrap();
        match LanguageModel::open(&to, None) {
            Ok(_) => panic!("{name} was accepted"),
            Err(e) => e.to_string(),
        }
    };
    let replace = |a: &'static str, b: &'static str| move |t: &str| t.replace(a, b);
    for (name, from, to, part) in [
        (
            "vocabulary",
            "\"vocab_size\": 29",
            "\"vocab_size\": 30",
            "model.embed_tokens.weight: expected [30, 16] of floats, got [29, 16]",
        ),
        (
            "layers",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "model.layers.1.input_layernorm.weight: unexpected",
        ),
        (
            "more layers",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "model.layers.2.input_layernorm.weight: missing",
        ),
        (
            "type",
            "\"llama\"",
            "\"falcon\"",
            "expected gpt2, llama, mistral, qwen2 or qwen3, got `falcon`",
        ),
        (
            "rope",
            "\"default\"",
            "\"yarn\"",
            "`rope_parameters.rope_type`: expected default, linear or llama3, got \"yarn\"",
        ),
        (
            "act",
            "\"silu\"",
            "\"relu\"",
            "`hidden_act`: expected silu or swish, got \"relu\"",
        ),
        (
            "negative",
            "\"hidden_size\": 16",
            "\"hidden_size\": -16",
            "`hidden_size`: expected a whole number of at least 1, got -16",
        ),
        (
            "huge",
            "\"hidden_size\": 16",
            "\"hidden_size\": 16000000000",
            "expected",
        ),
        (
            "groups",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 3",
            "a divisor of num_attention_heads 4, got 3",
        ),
        ("json", "{", "[", "config.json"),
    ] {
        let message = copy(name, &replace(from, to));
        assert!(message.contains(part), "{name}: {message}");
    }
}

#[test]
fn encoders_are_those_of_transformers() {
    for name in ["bert-words", "bert-classes"] {
        let model = Bert::open(folder(name), None).unwrap();
        let golden = golden(name);
        let get = |key: &str| Tensor::from(golden.tensor(key).unwrap());
        let (types, mask) = (get("types"), get("mask"));
        let input = BertInput {
            token_types: Some(&types),
            mask: Some(&mask),
        };
        let cx = &mut Ctx::train(0, 0);
        let logits = model.forward_with(&get("tokens"), input, cx).unwrap();
        let off = distance(logits.array(), get("logits").array());
        assert!(off < 2e-6, "{name}: logits differ by {off}");
        let rows = logits.reshape([get("targets").numel(), logits.dims()[logits.rank() - 1]]);
        let targets = get("targets").flatten(0, -1).unwrap();
        let options = CrossEntropy {
            ignore_index: -100,
            ..Default::default()
        };
        let loss = rows.unwrap().cross_entropy(&targets, &options).unwrap();
        let check = |loss: Tensor| {
            let off = distance(loss.reshape([1]).unwrap().array(), get("loss").array());
            assert!(off < 2e-6, "{name}: the loss differs by {off}");
            loss.backward().unwrap();
            for (key, p) in model.named_parameters() {
                // Softmax does not see what is added to every key: only rounding is left.
                if key.ends_with("key.bias") {
                    continue;
                }
                let Some(gradient) = p.grad() else {
                    panic!("{name}: {key} has no gradient");
                };
                let off = distance(gradient.array(), get(&format!("gradient.{key}")).array());
                assert!(off < 1e-5, "{name}: the gradient of {key} differs by {off}");
            }
            model.zero_grad();
        };
        check(loss);
        // The head on the positions with targets alone: the same loss, the same gradients.
        let cx = &mut Ctx::train(0, 0);
        match model.hidden_words(&get("tokens"), &get("targets"), input, cx) {
            Ok((logits, words)) => {
                assert!(words.to_vec::<i64>().unwrap().iter().all(|w| *w >= 0));
                check(
                    logits
                        .cross_entropy(&words, &CrossEntropy::default())
                        .unwrap(),
                );
            }
            Err(_) => assert!(model.cls.is_none(), "{name}"),
        }
        let sentence = model
            .embed(&get("tokens"), input, &mut Ctx::eval())
            .unwrap();
        let off = distance(sentence.array(), get("sentence").array());
        assert!(off < 2e-6, "{name}: the sentence's vector differs by {off}");
        let place = tempfile::tempdir().unwrap();
        model.save(place.path().join("copy")).unwrap();
        let back = Bert::open(place.path().join("copy"), None).unwrap();
        assert_eq!(back.config().head, model.config().head);
        assert!(
            back.features(
                &Tensor::zeros([1, 17], DType::I64),
                BertInput::default(),
                &mut Ctx::eval()
            )
            .is_err()
        );
    }
}
