//! From labelled texts to a classifier: data, a small BERT, plain training loops, files.

use std::path::Path;

use entrenar_base::Philox;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::{Array, Result, Tensor};
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{Ctx, Init, Parameters};
use entrenar_train::data::{
    Dataset, Holdout, Loader, LoaderConfig, Splits, TextLabelsData, TextLabelsSpec, split_masked,
};
use entrenar_zoo::{Bert, BertConfig, BertInput, Builder, Tokenizer};
use serde_json::json;

const WORDS: [&str; 18] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "not", "good", "great", "bad", "awful", "the", "film",
    "food", "was", "it", "really", "##ly", "today", "a",
];

/// A directory with a WordPiece tokenizer.
fn tokenizer(place: &Path) -> Tokenizer {
    let vocabulary: serde_json::Map<_, _> = WORDS
        .iter()
        .zip(0..)
        .map(|(w, i)| (w.to_string(), json!(i)))
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    std::fs::write(place.join("tokenizer.json"), file.to_string()).unwrap();
    let config = json!({"pad_token": "[PAD]", "unk_token": "[UNK]"});
    std::fs::write(place.join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::open(place).unwrap()
}

/// A sentence of filler around one judgement, which `not` turns into its opposite.
fn sentence(n: u64) -> (String, &'static str) {
    let random = Philox::new(7, n);
    let fillers = ["the", "film", "food", "was", "it", "really", "today", "a"];
    let judgements = [
        ("good", true),
        ("great", true),
        ("bad", false),
        ("awful", false),
    ];
    let filler = |i| fillers[random.below(i, fillers.len() as u64) as usize];
    let (word, positive) = judgements[random.below(0, 4) as usize];
    let negated = random.below(1, 2) == 1;
    let mut words: Vec<&str> = (0..random.below(2, 5)).map(|i| filler(10 + i)).collect();
    words.extend(negated.then_some("not"));
    words.push(word);
    words.extend((0..random.below(3, 4)).map(|i| filler(20 + i)));
    (
        words.join(" "),
        if positive != negated {
            "positive"
        } else {
            "negative"
        },
    )
}

fn write_sentences(place: &Path) {
    let lines = |rows: std::ops::Range<u64>| {
        rows.map(|n| {
            let (text, label) = sentence(n);
            json!({"text": text, "label": label}).to_string() + "\n"
        })
        .collect::<String>()
    };
    std::fs::write(place.join("train.jsonl"), lines(0..480)).unwrap();
    let csv = (480..640).map(|n| {
        let (text, label) = sentence(n);
        format!("{label},\"{text}\"\n")
    });
    let csv = "label,text\n".to_string() + &csv.collect::<String>();
    std::fs::write(place.join("validation.csv"), csv).unwrap();
}

/// Logits of a batch's inputs.
fn logits(model: &Bert, inputs: &Array, cx: &mut Ctx) -> Result<Tensor> {
    let (tokens, mask) = split_masked(inputs)?;
    let mask = Tensor::from(mask);
    let input = BertInput {
        mask: Some(&mask),
        ..Default::default()
    };
    model.forward_with(&Tensor::from(tokens), input, cx)
}

/// The part of the rows whose highest logit is that of their label.
fn accuracy(model: &Bert, data: &dyn Dataset) -> Result<f64> {
    let mut right = 0;
    for start in (0..data.len()).step_by(64) {
        let rows: Vec<usize> = (start..(start + 64).min(data.len())).collect();
        let batch = data.batch(&rows)?;
        let out = logits(model, &batch.inputs, &mut Ctx::eval())?;
        let classes = out.dims()[1];
        let scores = out.array().to_f64_vec();
        for (row, target) in scores.chunks(classes).zip(batch.targets.to_vec::<i64>()?) {
            let best = (0..classes).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            right += usize::from(best == Some(target as usize));
        }
    }
    Ok(right as f64 / data.len() as f64)
}

#[test]
fn a_small_encoder_learns_to_classify() -> Result<()> {
    let place = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(place.path());
    write_sentences(place.path());
    // A random encoder, saved without a head as a published one would be.
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": WORDS.len(),
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 16, "initializer_range": 0.1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0
    });
    let config = BertConfig::from_json(config.as_object().unwrap())?;
    let encoder = place.path().join("encoder");
    Bert::new(config, &mut Builder::random(Init::new(1)))?.save_with(&encoder, &tokenizer)?;

    let splits = Splits {
        validation: Holdout::Paths(vec!["validation.csv".into()]),
        test: Holdout::None,
    };
    let spec = TextLabelsSpec {
        max_length: 16,
        ..Default::default()
    };
    let data = TextLabelsData::open(
        place.path(),
        &["train.jsonl"],
        &spec,
        &tokenizer,
        None,
        &splits,
        0,
    )?;
    assert_eq!(data.labels(), ["negative", "positive"]);
    assert_eq!((data.row_counts(), data.cut()), ([480, 160, 0], 0));
    let (model, fresh) = Bert::open_classifier(&encoder, data.labels(), None, Init::new(2))?;
    assert_eq!(fresh, ["classifier.weight", "classifier.bias"]);
    let parts = data.parts();
    let validation = parts.validation.unwrap();
    assert!(accuracy(&model, &*validation)? < 0.75);

    let mut loader = Loader::new(parts.training, LoaderConfig::training(32, 3))?;
    let mut optimizer = AdamW::new(model.named_parameters(), 2e-3)?;
    for step in 0..450 {
        let batch = loader.next_batch()?;
        let out = logits(&model, &batch.inputs, &mut Ctx::train(0, step))?;
        let loss = out.cross_entropy(&Tensor::from(batch.targets), &CrossEntropy::default())?;
        loss.backward()?;
        optimizer.step()?;
        optimizer.zero_grad();
    }
    let reached = accuracy(&model, &*validation)?;
    assert!(reached >= 0.95, "{reached}");

    // What was saved says the same, by the labels' names.
    let saved = place.path().join("classifier");
    model.save_with(&saved, &tokenizer)?;
    let back = Bert::open(&saved, None)?;
    assert_eq!(back.config().labels(), data.labels());
    assert_eq!(accuracy(&back, &*validation)?, reached);
    Ok(())
}

#[test]
fn batches_are_padded_to_their_longest_text() {
    let place = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(place.path());
    std::fs::write(
        place.path().join("x.tsv"),
        "note\ttext\tlabel\n1\tgood film\t10\n2\tbad\t9\n3\tthe film was really bad today\t9\n",
    )
    .unwrap();
    let spec = TextLabelsSpec {
        max_length: 5,
        ..Default::default()
    };
    let open = |labels: Option<&[String]>| {
        let splits = Splits::none();
        TextLabelsData::open(
            place.path(),
            &["x.tsv"],
            &spec,
            &tokenizer,
            labels,
            &splits,
            0,
        )
    };
    let data = open(None).unwrap();
    // Numbers in their own order.
    assert_eq!(data.labels(), ["9", "10"]);
    assert_eq!(data.cut(), 1);
    let batch = data.parts().training.batch(&[0, 1]).unwrap();
    assert_eq!(batch.inputs.dims(), [2, 2, 4]);
    let (tokens, mask) = split_masked(&batch.inputs).unwrap();
    assert_eq!(tokens.to_vec::<i64>().unwrap(), [2, 5, 10, 3, 2, 7, 3, 0]);
    assert_eq!(mask.to_vec::<i64>().unwrap(), [1, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(batch.targets.to_vec::<i64>().unwrap(), [1, 0]);
    let cut = data.parts().training.batch(&[2]).unwrap();
    assert_eq!(cut.inputs.to_vec::<i64>().unwrap()[..5], [2, 9, 10, 12, 3]);
    // The order of a model that has labels.
    let own = ["10".to_string(), "9".to_string(), "8".to_string()];
    let data = open(Some(&own)).unwrap();
    assert_eq!(data.labels(), own);
    let batch = data.parts().training.batch(&[0, 1]).unwrap();
    assert_eq!(batch.targets.to_vec::<i64>().unwrap(), [0, 1]);
    assert!(split_masked(&tokens).is_err());
}

#[test]
fn wrong_files_are_told_by_their_lines() {
    let place = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(place.path());
    let known = ["a".to_string(), "b".to_string()];
    for (name, content, labels, expected) in [
        (
            "x.csv",
            "text,labels\ngood,a\n",
            None,
            "x.csv:1:1: no column \"label\" among \"text\", \"labels\"; did you mean \"labels\"?",
        ),
        (
            "x.csv",
            "text,label,label\ngood,a,b\n",
            None,
            "x.csv:1:1: column \"label\" is there twice",
        ),
        ("x.csv", "text,label\ngood,a\nbad\n", None, "x.csv:3:1: "),
        (
            "x.csv",
            "text,label\n",
            None,
            "x.csv:1:1: the file has no rows",
        ),
        (
            "x.csv",
            "text,label\ngood,a\n,b\n",
            None,
            "x.csv:3:1: \"text\" is empty",
        ),
        (
            "x.csv",
            "text,label\ngood,a\nbad,a\n",
            None,
            "column \"label\" holds the label \"a\" alone",
        ),
        (
            "x.csv",
            "text,label\ngood,a\nbad,c\n",
            Some(&known[..]),
            "x.csv:3:1: the label \"c\" is none of \"a\", \"b\"",
        ),
        (
            "x.jsonl",
            "{\"text\": \"good\", \"label\": 1}\n\n{\"text\": 3, \"label\": 1}\n",
            None,
            "x.jsonl:3:1: \"text\": expected text, got 3",
        ),
        (
            "x.jsonl",
            "{\"text\": \"good\", \"label\": 1.5}\n",
            None,
            "x.jsonl:1:1: \"label\": expected text, a whole number or a bool, got 1.5",
        ),
        (
            "x.jsonl",
            "{\"text\": \"good\"}\n",
            None,
            "x.jsonl:1:1: no column \"label\" among \"text\"",
        ),
        (
            "x.jsonl",
            "[]\n",
            None,
            "x.jsonl:1:1: expected a JSON object",
        ),
        ("x.jsonl", "{\"text\"\n", None, "x.jsonl:1:"),
    ] {
        std::fs::write(place.path().join(name), content).unwrap();
        let got = TextLabelsData::open(
            place.path(),
            &[name],
            &TextLabelsSpec::default(),
            &tokenizer,
            labels,
            &Splits::none(),
            0,
        );
        let e = got.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(e.contains(expected), "{content:?}: {e}");
    }
    std::fs::write(
        place.path().join("y.jsonl"),
        b"{\"text\": \"good\", \"label\": 1}\n\xff",
    )
    .unwrap();
    std::fs::write(place.path().join("tokenizer_config.json"), "{}").unwrap();
    let open = |tokenizer: &Tokenizer| {
        let spec = TextLabelsSpec::default();
        let splits = Splits::none();
        TextLabelsData::open(
            place.path(),
            &["y.jsonl"],
            &spec,
            tokenizer,
            None,
            &splits,
            0,
        )
    };
    let e = open(&tokenizer).err().unwrap().to_string();
    assert!(e.contains("y.jsonl:2:1: not UTF-8"), "{e}");
    let e = open(&Tokenizer::open(place.path()).unwrap()).err().unwrap();
    assert!(e.to_string().contains("names none"), "{e}");
}
