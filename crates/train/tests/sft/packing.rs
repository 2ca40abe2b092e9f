//! Batches: shifted targets, padding, and packed rows that cost what single rows cost.

use std::sync::Arc;

use entrenar_core::Tensor;
use entrenar_core::ops::loss::Reduction;
use entrenar_nn::{Ctx, Init, Parameters};
use entrenar_train::data::sft::SftConfig;
use entrenar_train::data::{Dataset, Splits};
use entrenar_zoo::{Builder, CausalLm, Decoder, DecoderConfig, Gpt2, Gpt2Config, LmInput};
use serde_json::{Value, json};

use super::{BOS, EOS, Place};

/// Rows with completions of 1 to 8 letters.
fn short_rows() -> Vec<Value> {
    (0..14)
        .map(|i| json!({"prompt": "p".repeat(1 + i % 5), "completion": "abcdefgh"[..1 + i % 8]}))
        .collect()
}

#[test]
fn targets_are_the_next_tokens() {
    let place = Place::new();
    let data = [
        json!({"prompt": "ab", "completion": "c"}),
        json!({"prompt": "x", "completion": "yz"}),
        json!({"prompt": "", "completion": "q"}),
    ];
    let samples = Arc::new(place.rows(&data, &SftConfig::default()));
    let dataset = samples.dataset(0).unwrap();
    assert_eq!((dataset.len(), dataset.longest_row()), (3, 4));
    let batch = dataset.batch(&[2, 0]).unwrap();
    assert!(batch.segments.is_none());
    let (bos, eos, no) = (i64::from(BOS), i64::from(EOS), -100);
    assert_eq!(batch.inputs.dims(), [2, 4]);
    assert_eq!(
        batch.inputs.to_vec::<i64>().unwrap(),
        [bos, 113, 0, 0, bos, 97, 98, 99]
    );
    assert_eq!(
        batch.targets.to_vec::<i64>().unwrap(),
        [113, eos, no, no, no, no, 99, eos]
    );
    assert_eq!((batch.rows, batch.target_count()), (2, 4));
}

#[test]
fn packed_rows_say_where_sequences_end() {
    let place = Place::new();
    let config = SftConfig {
        sequence_length: 16,
        packing: true,
        ..SftConfig::default()
    };
    let samples = Arc::new(place.rows(&short_rows(), &config));
    let dataset = samples.dataset(5).unwrap();
    assert!(dataset.len() < samples.len());
    assert!(dataset.efficiency() > 0.8, "{}", dataset.efficiency());
    assert_eq!(dataset.trained_tokens(), samples.report().trained_tokens);
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let batch = dataset.batch(&indices).unwrap();
    let segments = batch.segments.as_ref().unwrap();
    assert_eq!(batch.target_count(), samples.report().trained_tokens);
    let width = batch.inputs.dims()[1];
    let inputs = batch.inputs.to_vec::<i64>().unwrap();
    for (row, lengths) in segments.iter().enumerate() {
        let mut at = row * width;
        assert_eq!(lengths.len(), dataset.row(row).len());
        for (&length, &sample) in lengths.iter().zip(dataset.row(row)) {
            let tokens = samples.tokens(sample);
            assert_eq!(length, tokens.len() - 1);
            let part: Vec<u32> = inputs[at..at + length].iter().map(|&t| t as u32).collect();
            assert_eq!(part, tokens[..length]);
            at += length;
        }
        assert!(at <= (row + 1) * width && width <= 16);
    }
    // The same seed, the same rows.
    let again = samples.dataset(5).unwrap();
    assert!(
        indices
            .iter()
            .all(|&row| again.row(row) == dataset.row(row))
    );
}

#[test]
fn parts_are_packed_by_themselves() {
    let place = Place::new();
    let config = SftConfig {
        sequence_length: 64,
        packing: true,
        ..SftConfig::default()
    };
    let samples = Arc::new(place.rows(&short_rows(), &config));
    let parts = samples.parts(&Splits::validation(0.25), 3).unwrap();
    let targets = |data: &Arc<dyn Dataset>| {
        let all: Vec<usize> = (0..data.len()).collect();
        data.batch(&all).unwrap().target_count()
    };
    let (training, validation) = (
        targets(&parts.training),
        targets(&parts.validation.unwrap()),
    );
    assert!(training > validation && validation > 0);
    assert_eq!(training + validation, samples.report().trained_tokens);
}

/// The loss of each target token by sample, and every gradient of their sum.
fn learned(
    model: &(impl CausalLm + Parameters),
    place: &Place,
    packing: bool,
) -> (Vec<Vec<f32>>, Vec<Vec<f64>>) {
    let config = SftConfig {
        sequence_length: 24,
        packing,
        ..SftConfig::default()
    };
    let samples = Arc::new(place.rows(&short_rows(), &config));
    let dataset = samples.dataset(9).unwrap();
    model.zero_grad();
    let mut losses = vec![Vec::new(); samples.len()];
    let all: Vec<usize> = (0..dataset.len()).collect();
    for indices in all.chunks(3) {
        let batch = dataset.batch(indices).unwrap();
        let width = batch.inputs.dims()[1];
        let (inputs, targets) = (Tensor::from(batch.inputs), Tensor::from(batch.targets));
        let input = LmInput {
            segments: batch.segments.as_deref(),
            ..Default::default()
        };
        let loss = model
            .loss(
                &inputs,
                &targets,
                Reduction::None,
                input,
                &mut Ctx::train(0, 0),
            )
            .unwrap();
        let values = loss.to_vec::<f32>().unwrap();
        for (i, &row) in indices.iter().enumerate() {
            let mut at = i * width;
            for &sample in dataset.row(row) {
                let length = samples.tokens(sample).len() - 1;
                losses[sample] = values[at..at + length].to_vec();
                at += length;
            }
        }
        loss.sum().unwrap().backward().unwrap();
    }
    let gradients = model
        .named_parameters()
        .iter()
        .map(|(_, p)| p.grad().unwrap().array().to_f64_vec())
        .collect();
    (losses, gradients)
}

fn same_when_packed(name: &str, model: &(impl CausalLm + Parameters)) {
    let place = Place::new();
    let (single, single_gradients) = learned(model, &place, false);
    let (packed, packed_gradients) = learned(model, &place, true);
    let mut targets = 0;
    for (a, b) in single.iter().flatten().zip(packed.iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{name}: {a} alone, {b} packed");
        targets += usize::from(*a > 0.0);
    }
    assert_eq!(single.concat().len(), packed.concat().len());
    assert!(targets > 60, "{targets}");
    for (a, b) in single_gradients.iter().zip(&packed_gradients) {
        let scale = a.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
        let off = a.iter().zip(b).fold(0f64, |m, (x, y)| m.max((x - y).abs()));
        assert!(off / scale < 1e-5, "{name}: gradients differ by {off}");
    }
}

#[test]
fn a_packed_llama_learns_the_same() {
    let config = DecoderConfig {
        vocab_size: 260,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        initializer_range: 0.3,
        windows: vec![None; 2],
        ..DecoderConfig::default()
    };
    let model = Decoder::new(config, &mut Builder::random(Init::new(1))).unwrap();
    same_when_packed("llama", &model);
}

#[test]
fn a_packed_gpt2_learns_the_same() {
    let map = json!({
        "vocab_size": 260, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4,
        "initializer_range": 0.3, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    });
    // Packed rows of 24 are longer than the context of 16, which holds each sequence.
    let config = Gpt2Config::from_json(map.as_object().unwrap()).unwrap();
    let model = Gpt2::new(config, &mut Builder::random(Init::new(1))).unwrap();
    same_when_packed("gpt2", &model);
}
