//! The zoo's models in the service of a task: sizes from the data, the loss of a language model, and
//! the checks that a stored model must pass before memory is taken for it.
//!
//! Neighbours: `trained.rs` opens and writes, `from_config.rs` builds.

use std::path::Path;

use entrenar_base::{Error, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;
use entrenar_io::Weights;
use entrenar_nn::{Ctx, Module};
use entrenar_zoo::{Architecture, CnnConfig, GptConfig, MlpConfig, Model};

use super::objective::{Measure, Objective};
use crate::config::{self, Activation};
use crate::data::{Batch, Preprocessing};

/// The architecture of a config, with the sizes that only the data know.
pub(super) fn architecture(
    config: &config::Model,
    preprocessing: &Preprocessing,
) -> Result<Architecture> {
    let outputs = preprocessing.outputs();
    Ok(match config {
        config::Model::Gpt(gpt) => Architecture::Gpt(GptConfig {
            vocabulary: outputs,
            context: gpt.context,
            layers: gpt.layers,
            heads: gpt.heads,
            width: gpt.width,
            dropout: gpt.dropout,
            bias: gpt.bias,
            tie_embeddings: gpt.tie_embeddings,
        }),
        config::Model::Mlp(mlp) => {
            let mut sizes = vec![preprocessing.sample_shape().iter().product()];
            sizes.extend(&mlp.hidden);
            sizes.push(outputs);
            let activation = match mlp.activation {
                Activation::Relu => "relu",
                Activation::Gelu => "gelu",
                Activation::Silu => "silu",
                Activation::Tanh => "tanh",
            };
            Architecture::Mlp(MlpConfig {
                sizes,
                activation: activation.to_string(),
                dropout: mlp.dropout,
            })
        }
        config::Model::Pretrained(_) => {
            return Err(Error::config(
                "a published model is opened from its directory, not built from sizes",
            ));
        }
        config::Model::Cnn(cnn) => {
            let &[depth, height, width] = preprocessing.sample_shape().as_slice() else {
                return Err(Error::config(format!(
                    "a convolutional network needs images, the data have samples of shape {:?}",
                    preprocessing.sample_shape()
                )));
            };
            let mut channels = vec![depth];
            channels.extend(&cnn.channels);
            Architecture::Cnn(CnnConfig {
                channels,
                size: [height, width],
                kernel: cnn.kernel,
                batch_norm: cnn.batch_norm,
                hidden: cnn.hidden.clone(),
                classes: outputs,
                dropout: cnn.dropout,
            })
        }
    })
}

/// Refuses an architecture that the weights cannot fill, before memory is taken for it: a few bytes
/// of a hostile `config.json` must not ask for terabytes.
pub(super) fn check_size(
    architecture: &Architecture,
    weights: &Weights,
    directory: &Path,
) -> Result<()> {
    let there: u128 = weights
        .names()
        .filter_map(|name| weights.info(name))
        .map(|info| info.numel() as u128)
        .sum();
    let wanted = matrices(architecture);
    if wanted > there {
        return Err(Error::format(
            directory,
            format!(
                "the architecture needs at least {wanted} numbers, the weights hold {there}: \
                 they do not belong together"
            ),
        ));
    }
    Ok(())
}

/// Refuses a model that cannot be trained in this machine's memory, before any of it is taken: the
/// system would end the process without a word about the config.
pub(super) fn check_memory(
    architecture: &Architecture,
    optimizer: &config::Optimizer,
) -> Result<()> {
    let Some(there) = memory() else {
        return Ok(());
    };
    // Weights and gradients, and what the optimizer keeps of them.
    let copies = match optimizer {
        config::Optimizer::AdamW { .. } | config::Optimizer::Adam { .. } => 4,
        config::Optimizer::Sgd { momentum, .. } if *momentum > 0.0 => 3,
        // Two bytes of moments are half a number.
        config::Optimizer::AdamW8bit { .. } | config::Optimizer::Sgd { .. } => 2,
    };
    let parameters = matrices(architecture);
    let needed = parameters.saturating_mul(copies * size_of::<f32>() as u128);
    if needed <= there {
        return Ok(());
    }
    let gibibytes = |bytes: u128| bytes as f64 / f64::from(1 << 30);
    Err(Error::config(format!(
        "expected a model that fits in memory ({:.1} GiB), got at least {parameters} parameters, which take \
         {:.1} GiB with their gradients and the optimizer's state",
        gibibytes(there),
        gibibytes(needed)
    )))
}

/// Bytes of memory and swap space, where the system tells.
fn memory() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |key: &str| -> Option<u128> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((kibibytes("MemTotal:")? + kibibytes("SwapTotal:").unwrap_or(0)) * 1024)
}

/// How many numbers the matrices of an architecture have: a lower bound of all its parameters.
fn matrices(architecture: &Architecture) -> u128 {
    let chain = |sizes: &[usize]| -> u128 {
        let pairs = sizes.windows(2);
        pairs.map(|pair| pair[0] as u128 * pair[1] as u128).sum()
    };
    match architecture {
        Architecture::Gpt(gpt) => {
            let width = gpt.width as u128;
            // Embeddings, and in each block 4 matrices of attention and 8 of the feed-forward part.
            let embeddings = (gpt.vocabulary as u128 + gpt.context as u128).saturating_mul(width);
            let blocks = (gpt.layers as u128)
                .saturating_mul(12)
                .saturating_mul(width * width);
            embeddings.saturating_add(blocks)
        }
        Architecture::Mlp(mlp) => chain(&mlp.sizes),
        Architecture::Cnn(cnn) => {
            let area = (cnn.kernel as u128).saturating_mul(cnn.kernel as u128);
            let stages = cnn.channels.len().saturating_sub(1).min(63);
            let pixels = (cnn.size[0] >> stages).saturating_mul(cnn.size[1] >> stages);
            let mut sizes = vec![cnn.channels.last().map_or(0, |c| c.saturating_mul(pixels))];
            sizes.extend(&cnn.hidden);
            sizes.push(cnn.classes);
            chain(&cnn.channels)
                .saturating_mul(area)
                .saturating_add(chain(&sizes))
        }
        // Other architectures are built by a library that knows them.
        _ => 0,
    }
}

/// Refuses a model that does not take what the preprocessing makes, or give what it names.
pub(super) fn check_fits(
    model: &Model,
    preprocessing: &Preprocessing,
    directory: &Path,
) -> Result<()> {
    let shape = preprocessing.sample_shape();
    let (inputs, outputs) = (shape.iter().product::<usize>(), preprocessing.outputs());
    let fits = match model.architecture() {
        Architecture::Gpt(gpt) => {
            let text = matches!(preprocessing, Preprocessing::Text(_));
            text && gpt.vocabulary == outputs && gpt.context >= inputs
        }
        Architecture::Mlp(mlp) => {
            mlp.sizes.first() == Some(&inputs) && mlp.sizes.last() == Some(&outputs)
        }
        Architecture::Cnn(cnn) => {
            let image = [
                cnn.channels.first().copied().unwrap_or(0),
                cnn.size[0],
                cnn.size[1],
            ];
            shape == image && cnn.classes == outputs
        }
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(Error::format(
        directory,
        format!(
            "the model and preprocess.json do not belong together: samples of shape {shape:?} and \
             {outputs} outputs do not fit {:?}",
            model.architecture()
        ),
    ))
}

/// Cross-entropy of the next token; an evaluation also has the perplexity, exp(loss).
#[derive(Clone, Copy, Debug, Default)]
pub struct NextToken;

impl<M: Module + ?Sized> Objective<M> for NextToken {
    fn measure(&self, model: &M, batch: &Batch, cx: &mut Ctx) -> Result<Measure> {
        // [rows, time, vocabulary]
        let logits = model.forward(&batch.inputs.clone().into(), cx)?;
        let targets = Tensor::from(batch.targets.clone());
        let loss = logits.flatten(0, 1)?.cross_entropy(
            &targets.flatten(0, -1)?,
            &CrossEntropy {
                reduction: Reduction::Sum,
                ..CrossEntropy::default()
            },
        )?;
        Ok(loss.into())
    }

    fn derived(&self, mean_loss: f64) -> Vec<(&'static str, f64)> {
        vec![("perplexity", mean_loss.exp())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_nn::{Init, Parameters};

    /// The bound is of use only if it is below what each architecture really has.
    #[test]
    fn the_bound_is_below_the_parameters_and_near_them() {
        let texts = [
            r#"{"architecture": "gpt", "version": 1, "vocabulary": 65, "context": 8, "layers": 3, "heads": 2, "width": 8, "bias": false}"#,
            r#"{"architecture": "mlp", "version": 1, "sizes": [40, 50, 3]}"#,
            r#"{"architecture": "cnn", "version": 1, "channels": [1, 4, 6], "size": [9, 8], "classes": 3, "hidden": [5, 4]}"#,
        ];
        for text in texts {
            let architecture = Architecture::from_json(text).unwrap();
            let model = architecture.build(&mut Init::new(0)).unwrap();
            let (bound, all) = (matrices(&architecture), model.parameter_count() as u128);
            assert!(
                bound <= all && bound * 4 >= all * 3,
                "{text}: {bound} and {all}"
            );
        }
    }
}
