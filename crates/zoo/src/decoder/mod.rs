//! [`Decoder`]: the language models of the Llama family (Llama, Mistral, Qwen 2, Qwen 3).
//!
//! Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward
//! part (Touvron et al., "LLaMA", 2023; Jiang et al., "Mistral 7B", 2023; Yang et al., "Qwen2",
//! 2024, "Qwen3", 2025). Field names are the parameter names of the published checkpoints, so
//! that weights need no renaming. Neighbours: `config` reads `config.json`, `rope` the angles,
//! `cache` the keys and values of generation; [`crate::pretrained`] opens directories.

mod cache;
mod config;
pub mod rope;

use std::sync::Arc;

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::{Error, Result, Tensor};
use entrenar_nn::{
    Ctx, Linear, Lookup, Module, Parameter, Parameters, Projection, Projections, RMSNorm,
};

use crate::build::Builder;
use crate::causal::{CausalLm, Context, LmInput, Packed, Ragged, columns, unshared};
pub use cache::KvCache;
pub(crate) use cache::LayerCache;
pub use config::{DecoderConfig, Family};

/// Queries and keys of every layer share these angles.
struct Angles {
    cos: Tensor,
    sin: Tensor,
}

type Shared = Context<Angles>;

/// Grouped-query attention with rotary positions.
#[derive(Module)]
pub struct Attention {
    /// `[heads · size, hidden]`.
    pub q_proj: Projection,
    /// `[kv heads · size, hidden]`.
    pub k_proj: Projection,
    /// `[kv heads · size, hidden]`.
    pub v_proj: Projection,
    /// `[hidden, heads · size]`.
    pub o_proj: Projection,
    /// Over each head's query (Qwen 3).
    pub q_norm: Option<RMSNorm>,
    /// Over each head's key (Qwen 3).
    pub k_norm: Option<RMSNorm>,
    heads: usize,
    groups: usize,
    size: usize,
    #[module(skip)]
    window: Option<usize>,
}

/// SwiGLU: down(silu(gate(x)) · up(x)).
#[derive(Module)]
pub struct FeedForward {
    /// `[intermediate, hidden]`.
    pub gate_proj: Projection,
    /// `[intermediate, hidden]`.
    pub up_proj: Projection,
    /// `[hidden, intermediate]`.
    pub down_proj: Projection,
}

/// One block.
#[derive(Module)]
pub struct DecoderLayer {
    /// Before attention.
    pub input_layernorm: RMSNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Before the feed-forward part.
    pub post_attention_layernorm: RMSNorm,
    /// The feed-forward part.
    pub mlp: FeedForward,
}

/// Everything before the output layer.
#[derive(Module)]
pub struct DecoderModel {
    /// Token embedding.
    pub embed_tokens: Lookup,
    /// The blocks.
    pub layers: Vec<Arc<DecoderLayer>>,
    /// The last norm.
    pub norm: RMSNorm,
}

/// A language model: tokens `[batch, time]` in, logits `[batch, time, vocabulary]` out.
///
/// ```
/// use entrenar_zoo::{Builder, Decoder, DecoderConfig};
/// use entrenar_nn::{Ctx, Init, Module};
/// use entrenar_core::Tensor;
/// let config = DecoderConfig {
///     vocab_size: 5, hidden_size: 8, intermediate_size: 12, num_hidden_layers: 1,
///     num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, windows: vec![None],
///     ..Default::default()
/// };
/// let model = Decoder::new(config, &mut Builder::random(Init::new(0)))?;
/// let tokens = Tensor::from_vec(vec![0i64, 3, 1], [1, 3])?;
/// assert_eq!(model.forward(&tokens, &mut Ctx::eval())?.dims(), [1, 3, 5]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Module)]
pub struct Decoder {
    /// Everything before the output layer.
    pub model: DecoderModel,
    /// The output layer; its weight is `embed_tokens`' when tied.
    pub lm_head: Linear,
    #[module(skip)]
    config: DecoderConfig,
    #[module(skip)]
    frequencies: Vec<f32>,
}

impl Attention {
    fn new(c: &DecoderConfig, layer: usize, b: &mut Builder) -> Result<Attention> {
        let (hidden, size, std) = (c.hidden_size, c.head_dim, c.initializer_range);
        let (wide, narrow) = (c.num_attention_heads * size, c.num_key_value_heads * size);
        let bias = c.attention_bias;
        // Qwen 2 has biases on queries, keys and values only.
        let output_bias = bias && c.family != Family::Qwen2;
        let norms = c.family == Family::Qwen3;
        let norm = |b: &mut Builder, name: &str| {
            norms
                .then(|| b.rms_norm(name, size, c.rms_norm_eps))
                .transpose()
        };
        Ok(Attention {
            q_proj: b.projection("q_proj", (hidden, wide), bias, std)?,
            k_proj: b.projection("k_proj", (hidden, narrow), bias, std)?,
            v_proj: b.projection("v_proj", (hidden, narrow), bias, std)?,
            o_proj: b.projection("o_proj", (wide, hidden), output_bias, std)?,
            q_norm: norm(b, "q_norm")?,
            k_norm: norm(b, "k_norm")?,
            heads: c.num_attention_heads,
            groups: c.num_key_value_heads,
            size,
            window: c.windows[layer],
        })
    }

    /// `x` `[batch, time, hidden]`.
    fn forward(
        &self,
        x: &Tensor,
        shared: &Shared,
        cache: Option<&mut LayerCache>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let (batch, time) = (x.dims()[0], x.dims()[1]);
        let mut part = |name: &str, layer: &Projection, norm: &Option<RMSNorm>, heads: usize| {
            let y = cx.call(name, layer, x)?;
            let y = y.reshape([batch, time, heads, self.size])?;
            let y = match norm {
                Some(norm) => cx.call(&format!("{}_norm", &name[..1]), norm, &y)?,
                None => y,
            };
            y.transpose(1, 2) // [batch, heads, time, size]
        };
        let q = part("q_proj", &self.q_proj, &self.q_norm, self.heads)?;
        let k = part("k_proj", &self.k_proj, &self.k_norm, self.groups)?;
        let v = part("v_proj", &self.v_proj, &None, self.groups)?;
        let Angles { cos, sin } = &shared.own;
        let q = q.rotary(cos, sin, false)?;
        let k = k.rotary(cos, sin, false)?;
        let y = match (&shared.packed, &shared.ragged, cache) {
            (Some(packed), ..) => packed.attend([&q, &k, &v], |part| self.attend(part, None, 0))?,
            (_, Some(ragged), Some(cache)) => {
                let (k, v) = (ragged.rows(&k)?, ragged.rows(&v)?);
                let (k, v) = cache.append(&k, &v, Some(&ragged.starts))?;
                let options = ragged.options(k.dims()[2], self.window)?;
                ragged
                    .rows(&q)?
                    .scaled_dot_product_attention(&k, &v, &options)?
            }
            (.., Some(cache)) => {
                let (k, v) = cache.append(&k, &v, None)?;
                self.attend([&q, &k, &v], shared.mask.as_ref(), shared.before)?
            }
            (.., None) => self.attend([&q, &k, &v], shared.mask.as_ref(), shared.before)?,
        };
        let y = y
            .transpose(1, 2)?
            .reshape([batch, time, self.heads * self.size])?;
        cx.call("o_proj", &self.o_proj, &y)
    }

    /// Queries `[batch, heads, time, size]`, `before` positions after the first key, over keys and
    /// values `[batch, groups, seen, size]`.
    fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
        before: usize,
    ) -> Result<Tensor> {
        let (time, seen) = (q.dims()[2], k.dims()[2]);
        // The kernel's own causality is enough unless queries begin after the keys do.
        let aligned = before == 0;
        let narrow = self.window.filter(|w| *w < seen);
        let mut mask = mask.cloned();
        if narrow.is_some() || !(aligned || time == 1) {
            let band = band(time, seen, before, narrow)?;
            mask = Some(match mask {
                Some(mask) => mask.logical_and(&band)?,
                None => band,
            });
        }
        let options = AttentionOptions {
            mask,
            causal: aligned && time > 1,
            ..Default::default()
        };
        q.scaled_dot_product_attention(k, v, &options)
    }
}

/// `[time, seen]`: true where the query at `before + i` sees key `j` through its window.
pub(crate) fn band(
    time: usize,
    seen: usize,
    before: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let sees = |i: usize, j: usize| {
        let at = before + i;
        j <= at && window.is_none_or(|w| j + w > at)
    };
    let values: Vec<bool> = (0..time * seen).map(|e| sees(e / seen, e % seen)).collect();
    Tensor::from_vec(values, [time, seen])
}

impl Module for FeedForward {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let gate = cx.call("gate_proj", &self.gate_proj, x)?;
        let up = cx.call("up_proj", &self.up_proj, x)?;
        cx.call("down_proj", &self.down_proj, &gate.silu_mul(&up)?)
    }
}

impl DecoderLayer {
    fn new(c: &DecoderConfig, layer: usize, b: &mut Builder) -> Result<DecoderLayer> {
        let (hidden, inner, std) = (c.hidden_size, c.intermediate_size, c.initializer_range);
        Ok(DecoderLayer {
            input_layernorm: b.rms_norm("input_layernorm", hidden, c.rms_norm_eps)?,
            self_attn: b.scope("self_attn", |b| Attention::new(c, layer, b))?,
            post_attention_layernorm: b.rms_norm(
                "post_attention_layernorm",
                hidden,
                c.rms_norm_eps,
            )?,
            mlp: b.scope("mlp", |b| {
                Ok::<_, Error>(FeedForward {
                    gate_proj: b.projection("gate_proj", (hidden, inner), c.mlp_bias, std)?,
                    up_proj: b.projection("up_proj", (hidden, inner), c.mlp_bias, std)?,
                    down_proj: b.projection("down_proj", (inner, hidden), c.mlp_bias, std)?,
                })
            })?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        shared: &Shared,
        cache: Option<&mut LayerCache>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let h = cx.call("input_layernorm", &self.input_layernorm, x)?;
        let h = cx.scope("self_attn", |cx| {
            self.self_attn.forward(&h, shared, cache, cx)
        })?;
        let norm = &self.post_attention_layernorm;
        let (h, x) = cx.scope("post_attention_layernorm", |_| norm.of_sum(x, &h))?;
        x.add(&cx.call("mlp", &self.mlp, &h)?)
    }
}

impl Decoder {
    /// A model whose parameters `builder` makes under the published names.
    ///
    /// # Errors
    /// When the sizes do not fit one another, or a size overflows.
    pub fn new(config: DecoderConfig, builder: &mut Builder) -> Result<Decoder> {
        config.check()?;
        let (c, b) = (&config, builder);
        let model = b.scope("model", |b| {
            Ok::<_, Error>(DecoderModel {
                embed_tokens: b.lookup(
                    "embed_tokens",
                    (c.vocab_size, c.hidden_size),
                    c.initializer_range,
                    c.tie_word_embeddings,
                )?,
                layers: b.scope("layers", |b| {
                    (0..c.num_hidden_layers)
                        .map(|i| {
                            b.scope(i.to_string(), |b| DecoderLayer::new(c, i, b).map(Arc::new))
                        })
                        .collect::<Result<_>>()
                })?,
                norm: b.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
            })
        })?;
        let lm_head = if c.tie_word_embeddings {
            Linear {
                weight: model.embed_tokens.weight.clone(),
                bias: None,
            }
        } else {
            let sizes = (c.hidden_size, c.vocab_size);
            b.linear("lm_head", sizes, false, c.initializer_range)?
        };
        Ok(Decoder {
            model,
            lm_head,
            frequencies: c.rope_scaling.frequencies(c.rope_theta, c.head_dim),
            config,
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }
}

impl Projections for Decoder {
    fn visit_projections(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>,
    ) -> Result<()> {
        for (i, layer) in self.model.layers.iter_mut().enumerate() {
            let layer = unshared(layer)?;
            let (a, m) = (&mut layer.self_attn, &mut layer.mlp);
            for (name, projection) in [
                ("self_attn.q_proj", &mut a.q_proj),
                ("self_attn.k_proj", &mut a.k_proj),
                ("self_attn.v_proj", &mut a.v_proj),
                ("self_attn.o_proj", &mut a.o_proj),
                ("mlp.gate_proj", &mut m.gate_proj),
                ("mlp.up_proj", &mut m.up_proj),
                ("mlp.down_proj", &mut m.down_proj),
            ] {
                visit(&format!("model.layers.{i}.{name}"), projection)?;
            }
        }
        Ok(())
    }

    fn visit_lookups(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Lookup) -> Result<()>,
    ) -> Result<()> {
        visit("model.embed_tokens", &mut self.model.embed_tokens)
    }
}

impl CausalLm for Decoder {
    fn features(&self, tokens: &Tensor, input: LmInput<'_>, cx: &mut Ctx) -> Result<Tensor> {
        let before = input.cache.as_ref().map_or(0, |c| c.len());
        let packed = Packed::of("decoder", tokens, &input, usize::MAX)?;
        let ragged = Ragged::of("decoder", tokens, &input, usize::MAX)?;
        let (batch, time, mut positions) = columns("decoder", tokens, &input, usize::MAX)?;
        let long = packed.as_ref().map(|p| &p.positions);
        let tokens = &match long.or(ragged.as_ref().map(|r| &r.positions)) {
            Some(long) => {
                positions.clone_from(long);
                tokens.reshape([1, batch * time])?
            }
            None => tokens.clone(),
        };
        let (cos, sin) = rope::angles(&self.frequencies, &positions)?;
        let shared = Arc::new(Shared {
            own: Angles { cos, sin },
            mask: input.mask.cloned(),
            before,
            packed,
            ragged,
        });
        let checkpoint = input.checkpoint && input.cache.is_none();
        let mut cache = input.cache;
        cx.scope("model", |cx| {
            let x = cx.call("embed_tokens", &self.model.embed_tokens, tokens)?;
            let mut x = cx.noisy_embedding(&x)?;
            for (i, layer) in self.model.layers.iter().enumerate() {
                let rows = cache.as_deref_mut().map(|c| c.layer(i)).transpose()?;
                x = cx.scope("layers", |cx| {
                    cx.scope(&i.to_string(), |cx| {
                        if !checkpoint {
                            return layer.forward(&x, &shared, rows, cx);
                        }
                        let (inner, shared) = (layer.clone(), shared.clone());
                        cx.checkpoint_with(layer.named_parameters(), &x, move |x, cx| {
                            inner.forward(x, &shared, None, cx)
                        })
                    })
                })?;
            }
            if let Some(cache) = cache {
                cache.advance(time);
            }
            let x = cx.call("norm", &self.model.norm, &x)?;
            x.reshape([batch, time, self.config.hidden_size])
        })
    }

    fn head(&self) -> &Parameter {
        &self.lm_head.weight
    }

    fn layers(&self) -> usize {
        self.model.layers.len()
    }

    fn context(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn has_open_context(&self) -> bool {
        true
    }
}

impl Module for Decoder {
    fn forward(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let x = self.features(tokens, LmInput::default(), cx)?;
        self.logits(&x, cx)
    }
}
