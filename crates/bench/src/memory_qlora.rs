//! `bench memory-qlora`: what training a low-rank adapter holds in memory, on a base in floats and on
//! one in 4 bits.
//!
//! The models are Llama's blocks with hardly any vocabulary, since embeddings are the same in both.
//! The two small ones are made and trained for a step of AdamW; what is alive between steps (weights,
//! adapters, gradients, moments) is counted by `base`'s accounting. The large one is planned by the
//! same sums, which must also give what was counted for the small ones.

use entrenar_base::memory::live_bytes;
use entrenar_base::{DType, Error, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::loss::Reduction;
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{Ctx, Init, Projections};
use entrenar_tune::lora::{self, LoraConfig};
use entrenar_tune::quant::{self, QuantConfig};
use entrenar_zoo::{Builder, CausalLm, Decoder, DecoderConfig, LmInput};

use crate::cli::MemoryArguments;

/// Number of tokens: as few as a model can sensibly have.
const VOCABULARY: usize = 32;
/// Trained bytes per number of an adapter: value, gradient and two moments in f32.
const TRAINED: usize = 16;

/// One size of model.
struct Size {
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    /// Share that must be saved.
    target: f64,
    /// Whether it is made, rather than planned.
    made: bool,
}

const SIZES: [Size; 3] = [
    Size {
        width: 256,
        inner: 688,
        layers: 6,
        heads: 4,
        target: 0.65,
        made: true,
    },
    Size {
        width: 768,
        inner: 2048,
        layers: 12,
        heads: 12,
        target: 0.68,
        made: true,
    },
    Size {
        width: 4096,
        inner: 11008,
        layers: 32,
        heads: 32,
        target: 0.70,
        made: false,
    },
];

impl Size {
    fn config(&self) -> DecoderConfig {
        DecoderConfig {
            vocab_size: VOCABULARY,
            hidden_size: self.width,
            intermediate_size: self.inner,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            head_dim: self.width / self.heads,
            windows: vec![None; self.layers],
            tie_word_embeddings: true,
            ..DecoderConfig::default()
        }
    }

    /// (inputs, outputs) of the projections of a layer.
    fn projections(&self) -> [(usize, usize); 7] {
        let (w, i) = (self.width, self.inner);
        [(w, w), (w, w), (w, w), (w, w), (w, i), (w, i), (i, w)]
    }

    /// Bytes of training with adapters of `rank` between steps.
    fn plan(&self, rank: usize, quantized: bool) -> usize {
        let layer: usize = self
            .projections()
            .iter()
            .map(|(i, o)| {
                let weights = i * o;
                let base = if quantized {
                    let blocks = weights.div_ceil(64);
                    weights.div_ceil(2) + blocks + 4 * blocks.div_ceil(256)
                } else {
                    4 * weights
                };
                base + TRAINED * rank * (i + o)
            })
            .sum();
        // Two norms in each layer and one at the end, and the embedding.
        let rest = 4 * self.width * (2 * self.layers + 1 + VOCABULARY);
        self.layers * layer + rest
    }

    /// The same, counted on a model that was trained for a step.
    fn count(&self, rank: usize, quantized: bool) -> Result<usize> {
        let before = live_bytes();
        let mut builder = Builder::random(Init::new(0));
        let mut model = Decoder::new(self.config(), &mut builder)?;
        if quantized {
            quant::quantize(&mut model, &QuantConfig::default(), &[])?;
        }
        let config = LoraConfig {
            r: rank,
            ..LoraConfig::default()
        };
        lora::attach(&mut model, &config, &mut Init::new(1))?;
        let mut optimizer = AdamW::new(&model, 1e-4)?;
        let tokens: Vec<i64> = (0..16).map(|i| i * 7 % VOCABULARY as i64).collect();
        let tokens = Tensor::from_vec(tokens, [1, 16])?;
        let input = LmInput::default();
        let cx = &mut Ctx::train(0, 0);
        model
            .loss(&tokens, &tokens, Reduction::Mean, input, cx)?
            .backward()?;
        optimizer.step()?;
        drop(tokens);
        let held = live_bytes() - before;
        check_dtypes(&mut model)?;
        Ok(held)
    }
}

/// The plan counts adapters in f32.
fn check_dtypes(model: &mut impl Projections) -> Result<()> {
    match model
        .trainable_parameters()
        .into_iter()
        .find(|(_, p)| p.dtype() != DType::F32)
    {
        None => Ok(()),
        Some((name, p)) => Err(Error::dtype(
            "memory-qlora",
            format!("{name} in f32"),
            p.dtype(),
        )),
    }
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Prints the table; an error names a size whose savings or plan are off.
///
/// # Errors
/// When a step fails, a plan is more than 2 % from what was counted, or less is saved than wanted.
pub fn run(arguments: &MemoryArguments) -> Result<()> {
    let rank = arguments.rank;
    println!("rank {rank}, AdamW, f32 against NF4 with double quantization; MB between steps");
    println!(
        "{:<12} {:>10} {:>10} {:>8}  how",
        "model", "LoRA", "QLoRA", "saved"
    );
    let mut faults = Vec::new();
    for size in &SIZES {
        let name = format!("{} × {}", size.width, size.layers);
        let (mut lora, mut qlora) = (size.plan(rank, false), size.plan(rank, true));
        if size.made {
            let planned = (lora, qlora);
            (lora, qlora) = (size.count(rank, false)?, size.count(rank, true)?);
            for (plan, counted) in [(planned.0, lora), (planned.1, qlora)] {
                if plan.abs_diff(counted) as f64 > 0.02 * counted as f64 {
                    faults.push(format!("{name}: planned {plan} bytes, counted {counted}"));
                }
            }
        }
        let saved = 1.0 - qlora as f64 / lora as f64;
        println!(
            "{name:<12} {:>10.2} {:>10.2} {:>6.1} %  {}",
            megabytes(lora),
            megabytes(qlora),
            100.0 * saved,
            if size.made { "counted" } else { "planned" }
        );
        if saved < size.target {
            let want = 100.0 * size.target;
            faults.push(format!(
                "{name}: saves {:.1} %, wanted {want} %",
                100.0 * saved
            ));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::other(faults.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_save_what_is_promised_at_the_default_rank() {
        for size in &SIZES {
            let saved = 1.0 - size.plan(8, true) as f64 / size.plan(8, false) as f64;
            assert!(saved >= size.target, "{}: {saved}", size.width);
        }
    }
}
