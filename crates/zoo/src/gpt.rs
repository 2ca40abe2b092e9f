//! [`Gpt`]: the decoder of GPT-2 (Radford et al., "Language models are unsupervised multitask
//! learners", 2019): learned positions, pre-norm blocks, GELU, tied output weights.

use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::linear::LinearOptions;
use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_nn::{
    Ctx, Dropout, Embedding, Init, LayerNorm, LayerNormOptions, Linear, Module, Parameter,
    Parameters, TransformerBlock, TransformerBlockOptions,
};
use serde::{Deserialize, Serialize};

use crate::KvCache;
use crate::causal::{CausalLm, LmInput, Ragged, attend_cached, columns};

/// Sizes of a [`Gpt`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GptConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads per block.
    pub heads: usize,
    /// Size of a position's vector.
    pub width: usize,
    /// Dropout of embeddings, attention weights and block outputs.
    pub dropout: f64,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
    /// Whether the output layer is the token embedding.
    pub tie_embeddings: bool,
}

impl Default for GptConfig {
    fn default() -> Self {
        GptConfig {
            vocabulary: 50257,
            context: 1024,
            layers: 12,
            heads: 12,
            width: 768,
            dropout: 0.0,
            bias: true,
            tie_embeddings: true,
        }
    }
}

/// A language model: tokens `[batch, time]` in, logits `[batch, time, vocabulary]` out.
///
/// ```
/// use entrenar_zoo::{Gpt, GptConfig};
/// use entrenar_nn::{Ctx, Init, Module};
/// use entrenar_core::Tensor;
/// let config = GptConfig { vocabulary: 5, context: 8, layers: 1, heads: 2, width: 8, ..Default::default() };
/// let model = Gpt::new(config, &mut Init::new(0))?;
/// let tokens = Tensor::from_vec(vec![0i64, 3, 1], [1, 3])?;
/// assert_eq!(model.forward(&tokens, &mut Ctx::eval())?.dims(), [1, 3, 5]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Module)]
pub struct Gpt {
    /// Token embedding.
    pub wte: Embedding,
    /// Position embedding.
    pub wpe: Embedding,
    /// The blocks.
    pub blocks: Vec<TransformerBlock>,
    /// The last norm.
    pub ln: LayerNorm,
    /// The output layer; its weight is `wte`'s when tied.
    pub head: Linear,
    dropout: Dropout,
    #[module(skip)]
    config: GptConfig,
}

impl Gpt {
    /// A model with GPT-2's initialisation: weights N(0, 0.02), those that write into the residual
    /// stream divided by √(2 layers), biases 0.
    ///
    /// # Errors
    /// When a size is 0 or `heads` does not divide `width`.
    #[track_caller]
    pub fn new(config: GptConfig, init: &mut Init) -> Result<Gpt> {
        let c = &config;
        let sizes = [c.vocabulary, c.context, c.layers, c.heads, c.width];
        if sizes.contains(&0) {
            return Err(Error::argument(
                "gpt",
                "sizes of at least 1",
                format!("{c:?}"),
            ));
        }
        let block = TransformerBlockOptions {
            causal: true,
            dropout: c.dropout,
            bias: c.bias,
            ..Default::default()
        };
        let norm = LayerNormOptions {
            bias: c.bias,
            ..Default::default()
        };
        let wte = Embedding::new(c.vocabulary, c.width, init)?;
        let mut head = Linear::without_bias(c.width, c.vocabulary, init)?;
        if c.tie_embeddings {
            head.weight = wte.weight.clone();
        }
        let model = Gpt {
            wpe: Embedding::new(c.context, c.width, init)?,
            blocks: (0..c.layers)
                .map(|_| TransformerBlock::new(c.width, c.heads, block.clone(), init))
                .collect::<Result<_>>()?,
            ln: LayerNorm::with_options([c.width], norm, init)?,
            dropout: Dropout::new(c.dropout)?,
            wte,
            head,
            config,
        };
        let residual = 0.02 / (2.0 * model.config.layers as f64).sqrt();
        for (name, p) in model.named_parameters() {
            let shape = p.value().shape().clone();
            if shape.rank() >= 2 {
                let writes_residual = name.ends_with("proj.weight");
                p.set(&init.normal(shape, 0.0, if writes_residual { residual } else { 0.02 })?)?;
            } else if name.ends_with("bias") {
                p.set(&init.zeros(shape)?)?;
            }
        }
        Ok(model)
    }

    /// The sizes it was built with.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The vectors before the output layer, `[batch, time, width]`.
    ///
    /// # Errors
    /// When the tokens are not `[batch, time]` integers below the vocabulary, or `time` exceeds
    /// the context.
    pub fn features(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let &[_, time] = tokens.dims() else {
            return Err(Error::shape("gpt", "tokens [batch, time]", tokens.shape()));
        };
        if time > self.config.context {
            return Err(Error::shape(
                "gpt",
                format!("at most {} tokens", self.config.context),
                format!("{time} tokens"),
            ));
        }
        let positions = Tensor::arange(0.0, time as f64, 1.0, DType::I64)?;
        let x = cx.call("wte", &self.wte, tokens)?;
        let x = x.add(&cx.call("wpe", &self.wpe, &positions)?)?;
        let mut x = cx.call("dropout", &self.dropout, &x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = cx.scope("blocks", |cx| cx.call(&i.to_string(), block, &x))?;
        }
        cx.call("ln", &self.ln, &x)
    }

    /// [`Gpt::features`] of positions after those of a cache, which they are added to.
    fn continued(&self, tokens: &Tensor, cache: &mut KvCache, cx: &mut Ctx) -> Result<Tensor> {
        let (c, before) = (&self.config, cache.len());
        let input = LmInput {
            cache: Some(&mut *cache),
            ..Default::default()
        };
        let ragged = Ragged::of("gpt", tokens, &input, c.context)?;
        let (batch, time, mut positions) = columns("gpt", tokens, &input, c.context)?;
        // Rows of different lengths are one long row, except in attention.
        let [rows, length] = match &ragged {
            Some(ragged) => {
                positions.clone_from(&ragged.positions);
                [1, batch * time]
            }
            None => [batch, time],
        };
        let positions = positions.into_iter().map(|p| p as i64).collect();
        let positions = Tensor::from_vec(positions, [length])?;
        let tokens = tokens.reshape([rows, length])?;
        let x = cx.call("wte", &self.wte, &tokens)?;
        let mut x = x.add(&cx.call("wpe", &self.wpe, &positions)?)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let kept = cache.layer(i)?;
            x = cx.scope("blocks", |cx| {
                cx.scope(&i.to_string(), |cx| {
                    let h = cx.call("ln1", &block.ln1, &x)?;
                    let joint = cx.scope("attn", |cx| cx.call("qkv", &block.attn.qkv, &h))?;
                    let head = |part: usize| {
                        joint
                            .narrow(-1, part * c.width, c.width)?
                            .reshape([rows, length, c.heads, c.width / c.heads])?
                            .transpose(1, 2)
                    };
                    let (q, k, v) = (head(0)?, head(1)?, head(2)?);
                    let y = attend_cached([&q, &k, &v], kept, ragged.as_ref(), before)?;
                    let y = y.transpose(1, 2)?.reshape([rows, length, c.width])?;
                    let x = block.attn.proj.onto(&y, &x)?;
                    let h = cx.call("ln2", &block.ln2, &x)?;
                    cx.scope("mlp", |cx| block.mlp.onto(&h, &x, cx))
                })
            })?;
        }
        cache.advance(time);
        let x = cx.call("ln", &self.ln, &x)?;
        x.reshape([batch, time, c.width])
    }

    /// The mean cross-entropy of `targets` (`[batch, time]`) given the tokens.
    ///
    /// # Errors
    /// As [`Gpt::features`], or when the targets' shape or values do not fit.
    pub fn loss(&self, tokens: &Tensor, targets: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        // Logits as wide as their loss, whatever the products run in.
        let wide = LinearOptions {
            output: Some(self.head.weight.value().dtype()),
            ..Default::default()
        };
        let x = self.features(tokens, cx)?;
        let logits = cx.scope("head", |_| {
            x.linear_with(&self.head.weight.tensor(), None, &wide)
        })?;
        let logits = logits.flatten(0, 1)?;
        logits.cross_entropy(&targets.flatten(0, -1)?, &CrossEntropy::default())
    }
}

impl CausalLm for Gpt {
    fn features(&self, tokens: &Tensor, input: LmInput<'_>, cx: &mut Ctx) -> Result<Tensor> {
        if input.positions.is_some() || input.mask.is_some() || input.segments.is_some() {
            return Err(Error::argument(
                "gpt",
                "tokens alone, or with a cache",
                "positions, a mask or segments",
            ));
        }
        match input.cache {
            Some(cache) => self.continued(tokens, cache, cx),
            None => Gpt::features(self, tokens, cx),
        }
    }

    fn head(&self) -> &Parameter {
        &self.head.weight
    }

    fn layers(&self) -> usize {
        self.blocks.len()
    }

    fn context(&self) -> usize {
        self.config.context
    }

    fn slides(&self) -> bool {
        true
    }
}

impl Module for Gpt {
    fn forward(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let x = self.features(tokens, cx)?;
        cx.call("head", &self.head, &x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Gpt {
        let config = GptConfig {
            vocabulary: 7,
            context: 6,
            layers: 2,
            heads: 2,
            width: 8,
            ..Default::default()
        };
        Gpt::new(config, &mut Init::new(3)).unwrap()
    }

    #[test]
    fn later_tokens_do_not_change_earlier_logits() {
        let model = tiny();
        let run = |last: i64| {
            let t = Tensor::from_vec(vec![1i64, 2, 3, last], [1, 4]).unwrap();
            model
                .forward(&t, &mut Ctx::eval())
                .unwrap()
                .to_vec::<f32>()
                .unwrap()
        };
        let (a, b) = (run(4), run(5));
        assert_eq!(a[..21], b[..21]);
        assert_ne!(a[21..], b[21..]);
    }

    #[test]
    fn tied_weights_get_both_gradients() {
        let model = tiny();
        assert_eq!(
            model.tied_names(),
            [("head.weight".to_string(), "wte.weight".to_string())]
        );
        let tokens = Tensor::from_vec(vec![1i64, 2, 3], [1, 3]).unwrap();
        let targets = Tensor::from_vec(vec![2i64, 3, 4], [1, 3]).unwrap();
        model
            .loss(&tokens, &targets, &mut Ctx::train(0, 0))
            .unwrap()
            .backward()
            .unwrap();
        let g = model.wte.weight.grad().unwrap().to_vec::<f32>().unwrap();
        // Token 6 appears nowhere, yet the softmax pushes its row.
        assert!(g[48..].iter().any(|v| *v != 0.0));
        assert!(
            model
                .named_parameters()
                .iter()
                .all(|(_, p)| p.grad().is_some())
        );
    }

    #[test]
    fn impossible_inputs_are_errors() {
        let model = tiny();
        let cx = &mut Ctx::eval();
        let long = Tensor::zeros([1, 7], DType::I64);
        assert!(
            model
                .forward(&long, cx)
                .unwrap_err()
                .to_string()
                .contains("at most 6 tokens")
        );
        let outside = Tensor::from_vec(vec![7i64], [1, 1]).unwrap();
        assert!(model.forward(&outside, cx).is_err());
        assert!(model.forward(&Tensor::zeros([3], DType::I64), cx).is_err());
        let bad = GptConfig {
            heads: 3,
            width: 8,
            ..GptConfig::default()
        };
        assert!(Gpt::new(bad, &mut Init::new(0)).is_err());
    }
}
