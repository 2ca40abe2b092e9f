//! Fine-tuning steps of a Llama of SmolLM-135M's shape with random weights: adapters of rank 16 on all linear layers,
//! over weights in f32, in bf16, or in four bits (NF4, scales quantized too).

use entrenar_core::ops::loss::Reduction;
use entrenar_core::{DType, Tensor};
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{Ctx, Init, Parameters, Projection};
use entrenar_tune::quant::{self, QuantConfig, QuantizedLinear};
use entrenar_tune::{LoraConfig, lora};
use entrenar_zoo::{Arrays, Builder, CausalLm, Decoder, DecoderConfig, LmInput};
use serde_json::json;

use super::{Case, Work};

const TOKENS: usize = 512;

/// How the frozen weights are held.
#[derive(Clone, Copy)]
enum Base {
    F32,
    Bf16,
    Nf4,
}

fn smollm() -> DecoderConfig {
    DecoderConfig {
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        vocab_size: 49152,
        tie_word_embeddings: true,
        windows: vec![None; 30],
        ..DecoderConfig::default()
    }
}

fn case(name: &str, precision: &'static str, base: Base) -> Case {
    Case {
        name: name.to_string(),
        precision,
        inner: 1,
        reps: 5,
        build: Box::new(move || {
            let dtype = match base {
                Base::F32 => DType::F32,
                Base::Bf16 | Base::Nf4 => DType::BF16,
            };
            let init = &mut Init::new(0);
            // Quantized as they are made, as a run quantizes what it reads: never the whole model in bf16.
            let mut four_bits = |_: &str, made: Projection, _: &mut Arrays| {
                let layer = QuantizedLinear::new(&made, &QuantConfig::default())?;
                Ok(Projection::Adapted(Box::new(layer)))
            };
            let mut builder = Builder::random_in(init.clone(), dtype);
            if let Base::Nf4 = base {
                builder = builder.exchanging(&mut four_bits);
            }
            let mut model = Decoder::new(smollm(), &mut builder)?;
            // What making random numbers took and no step takes.
            entrenar_cpu::alloc::trim(0);
            let settings = LoraConfig {
                r: 16,
                lora_alpha: 32.0,
                ..LoraConfig::default()
            };
            let report = lora::attach(&mut model, &settings, init)?;
            let frozen = quant::frozen_bytes(&mut model)?;
            let mut optimizer = AdamW::new(model.trainable_parameters(), 1e-4)?;
            let tokens = super::classes(TOKENS + 1, 49152, 1)?.reshape([1, TOKENS + 1])?;
            let targets = tokens.narrow(1, 1, TOKENS)?;
            let tokens: Tensor = tokens.narrow(1, 0, TOKENS)?;
            let mut step = 0;
            Ok(Work {
                step: Box::new(move || {
                    let mut cx = Ctx::train(0, step);
                    step += 1;
                    let input = LmInput::default();
                    let loss = model.loss(&tokens, &targets, Reduction::Mean, input, &mut cx)?;
                    loss.backward()?;
                    optimizer.step()?;
                    optimizer.zero_grad();
                    Ok(())
                }),
                operations: None,
                fields: json!({
                    "tokens": TOKENS, "trainable": report.trainable, "frozen_bytes": frozen
                }),
            })
        }),
    }
}

pub fn lora() -> Vec<Case> {
    let name = "lora_r16_smollm135M_T512_B1";
    vec![case(name, "f32", Base::F32), case(name, "bf16", Base::Bf16)]
}

pub fn qlora() -> Vec<Case> {
    vec![case("qlora_nf4_r16_smollm135M_T512_B1", "bf16", Base::Nf4)]
}
