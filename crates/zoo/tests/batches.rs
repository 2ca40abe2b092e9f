//! Texts generated in one batch are those generated alone: rows of different lengths, greedy and
//! drawn, with a cache (each family) and without, each row ending on its own.

use std::path::PathBuf;

use entrenar_core::Tensor;
use entrenar_nn::{Ctx, Init};
use entrenar_zoo::{
    CausalLm, Gpt, GptConfig, KvCache, LanguageModel, LmInput, Sampling, generate, generate_batch,
};

const NAMES: [&str; 7] = [
    "llama",
    "llama3-tied",
    "llama-linear",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
];

fn published(name: &str) -> LanguageModel {
    let folder = format!("tests/data/language_models/{name}");
    LanguageModel::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder), None).unwrap()
}

fn ours() -> Gpt {
    let config = GptConfig {
        vocabulary: 19,
        context: 12,
        layers: 2,
        heads: 2,
        width: 16,
        ..Default::default()
    };
    Gpt::new(config, &mut Init::new(5)).unwrap()
}

const PROMPTS: [&[u32]; 4] = [&[3], &[1, 4, 1, 5, 9], &[2, 6, 5], &[3]];
const SEEDS: [u64; 4] = [7, 8, 9, 10];

/// The texts of a batch, after a look that each is that of its prompt alone.
fn check(name: &str, model: &dyn CausalLm, sampling: &Sampling) -> Vec<Vec<u32>> {
    let mut heard = vec![Vec::new(); PROMPTS.len()];
    let texts = generate_batch(model, &PROMPTS, &SEEDS, sampling, &mut |row, token| {
        heard[row].push(token);
        true
    })
    .unwrap();
    for (row, text) in texts.iter().enumerate() {
        let alone = Sampling {
            seed: SEEDS[row],
            ..sampling.clone()
        };
        let want = generate(model, PROMPTS[row], &alone, &mut |_| true).unwrap();
        assert_eq!(*text, want, "{name}, row {row}, {sampling:?}");
        assert_eq!(heard[row], text[PROMPTS[row].len()..], "{name}, row {row}");
    }
    texts
}

fn batches(name: &str, model: &dyn CausalLm) {
    let greedy = Sampling {
        max_new_tokens: 20,
        temperature: 0.0,
        repetition_penalty: 1.3,
        ..Default::default()
    };
    check(name, model, &greedy);
    let drawn = Sampling {
        temperature: 1.0,
        top_p: Some(0.95),
        ..greedy
    };
    let free = check(name, model, &drawn);
    assert_ne!(free[0], free[3], "{name}: two seeds, one text");
    // A token in the middle of one text ends that one early and others elsewhere or not at all.
    let stopped = Sampling {
        stop: vec![free[1][8]],
        ..drawn
    };
    let texts = check(name, model, &stopped);
    assert!(texts[1].len() <= 8, "{name}");
    let mut lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    lengths.dedup();
    assert!(lengths.len() > 1, "{name}: {lengths:?}");
}

#[test]
fn each_row_is_the_text_it_would_be_alone() {
    for name in NAMES {
        batches(name, published(name).as_causal());
    }
    batches("gpt", &ours());
}

#[test]
fn the_context_ends_each_row_at_its_own_place() {
    let model = published("gpt2");
    let context = model.as_causal().context();
    let long = Sampling {
        max_new_tokens: context + 5,
        ..Default::default()
    };
    for text in check("gpt2", model.as_causal(), &long) {
        assert_eq!(text.len(), context + 1);
    }
    // The window slides.
    let texts = check("gpt", &ours(), &long);
    assert_eq!(texts[1].len(), 5 + context + 5);
}

#[test]
fn a_callback_ends_one_row() {
    let sampling = Sampling {
        max_new_tokens: 6,
        ..Default::default()
    };
    let model = published("llama");
    let mut left = [6, 2, 6, 0];
    let texts = generate_batch(
        model.as_causal(),
        &PROMPTS,
        &SEEDS,
        &sampling,
        &mut |row, _| {
            left[row] -= 1;
            left[row] > 0
        },
    )
    .unwrap();
    let new: Vec<usize> = texts
        .iter()
        .zip(PROMPTS)
        .map(|(t, p)| t.len() - p.len())
        .collect();
    assert_eq!(new, [6, 2, 6, 1]);
}

#[test]
fn rows_go_on_from_their_own_lengths() {
    let mut models: Vec<(&str, Box<dyn CausalLm>)> = vec![("gpt", Box::new(ours()))];
    for name in NAMES {
        models.push((
            name,
            match published(name) {
                LanguageModel::Decoder(model) => Box::new(model),
                LanguageModel::Gpt2(model) => Box::new(model),
                _ => panic!("{name} is of another kind"),
            },
        ));
    }
    for (name, model) in models {
        let model = &*model;
        let logits = |tokens: &[i64], rows: usize, cache: Option<&mut KvCache>| {
            let input = Tensor::from_vec(tokens.to_vec(), [rows, tokens.len() / rows]).unwrap();
            let given = LmInput {
                cache,
                ..Default::default()
            };
            let cx = &mut Ctx::eval();
            let x = model.features(&input, given, cx).unwrap();
            model.logits(&x, cx).unwrap()
        };
        let mut cache = KvCache::new(model.layers());
        // 3 tokens and 1 (with two of padding), then 2 and 2, then only the second row with 1.
        logits(&[1, 2, 3, 4, 0, 0], 2, Some(&mut cache));
        cache.set_lengths(vec![3, 1]).unwrap();
        let both = logits(&[5, 6, 7, 8], 2, Some(&mut cache));
        assert_eq!(cache.lengths(), Some(&[5usize, 3][..]));
        cache.keep_rows(&[1]).unwrap();
        assert_eq!(cache.len(), 3);
        let last = logits(&[9], 1, Some(&mut cache));
        let first = logits(&[1, 2, 3, 5, 6], 1, None).narrow(1, 3, 2).unwrap();
        let second = logits(&[4, 7, 8, 9], 1, None).narrow(1, 1, 3).unwrap();
        let near = |a: Tensor, b: Tensor| {
            let far = a.sub(&b).unwrap().abs().unwrap().max().unwrap();
            assert!(far.item::<f32>().unwrap() < 2e-6, "{name}: {far}");
        };
        near(both.narrow(0, 0, 1).unwrap(), first);
        near(
            both.narrow(0, 1, 1).unwrap(),
            second.narrow(1, 0, 2).unwrap(),
        );
        near(last, second.narrow(1, 2, 1).unwrap());
    }
}

#[test]
fn what_cannot_be_a_batch_is_an_error() {
    let model = published("llama");
    let model = model.as_causal();
    let say = |prompts: &[&[u32]], seeds: &[u64]| {
        generate_batch(model, prompts, seeds, &Sampling::default(), &mut |_, _| {
            true
        })
        .unwrap_err()
        .to_string()
    };
    assert!(say(&[&[1], &[]], &[0, 0]).contains("at least one token"));
    assert!(say(&[&[1], &[2]], &[0]).contains("2 seeds"));
    let mut cache = KvCache::new(model.layers());
    assert!(cache.set_lengths(vec![1]).is_err());
    let tokens = Tensor::from_vec(vec![1i64, 2], [2, 1]).unwrap();
    let given = LmInput {
        cache: Some(&mut cache),
        ..Default::default()
    };
    model.features(&tokens, given, &mut Ctx::eval()).unwrap();
    assert!(cache.set_lengths(vec![1]).is_err());
    assert!(cache.keep_rows(&[2]).is_err());
    cache.set_lengths(vec![1, 0]).unwrap();
    let three = Tensor::from_vec(vec![1i64, 2, 3], [3, 1]).unwrap();
    let given = LmInput {
        cache: Some(&mut cache),
        ..Default::default()
    };
    assert!(model.features(&three, given, &mut Ctx::eval()).is_err());
}
