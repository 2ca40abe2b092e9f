//! [`Gpt2`]: GPT-2 under the names of its published checkpoints.
//!
//! The architecture is that of [`crate::Gpt`] (Radford et al. 2019); what differs is the layout of
//! the files: linear layers are `Conv1D`, whose weight is stored `[in, out]`. Names are those of
//! transformers' `GPT2LMHeadModel`; [`crate::pretrained`] adds the prefix that the first
//! checkpoints lack.

use std::sync::Arc;

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::{Error, Result, Tensor};
use entrenar_nn::{
    Ctx, Dropout, LayerNorm, Lookup, Module, Parameter, Parameters, Projection, Projections,
};
use serde_json::{Map, Value, json};

use crate::KvCache;
use crate::build::Builder;
use crate::causal::{CausalLm, Context, LmInput, Packed, Ragged, attend_cached, columns, unshared};
use crate::decoder::{LayerCache, band};
use crate::keys::Keys;

/// Sizes and settings of a [`Gpt2`], under their names in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Size of a position's vector.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Inner size of the feed-forward part.
    pub n_inner: usize,
    /// Dropout of embeddings.
    pub embd_pdrop: f64,
    /// Dropout of attention weights.
    pub attn_pdrop: f64,
    /// Dropout of what is added to the residual stream.
    pub resid_pdrop: f64,
    /// Added to the variance in norms.
    pub layer_norm_epsilon: f64,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Every key of the file, for those who write it again.
    pub raw: Map<String, Value>,
}

impl Gpt2Config {
    /// Reads the object of a `config.json`.
    ///
    /// # Errors
    /// When a value has the wrong type or an impossible size, or the file asks for something that
    /// is not built.
    pub fn from_json(map: &Map<String, Value>) -> Result<Gpt2Config> {
        let keys = Keys(map);
        keys.one_of("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
        for (key, built) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("add_cross_attention", false),
            ("tie_word_embeddings", true),
        ] {
            if keys.flag(key, built)? != built {
                return Err(Error::config(format!(
                    "config.json: `{key}`: only {built} is built for gpt2"
                )));
            }
        }
        let width = keys.size("n_embd", 768)?;
        let config = Gpt2Config {
            vocab_size: keys.size("vocab_size", 50257)?,
            n_positions: keys.size("n_positions", keys.size("n_ctx", 1024)?)?,
            n_embd: width,
            n_layer: keys.layers("n_layer", 12)?,
            n_head: keys.size("n_head", 12)?,
            n_inner: keys.size("n_inner", 4 * width)?,
            embd_pdrop: keys.probability("embd_pdrop", 0.1)?,
            attn_pdrop: keys.probability("attn_pdrop", 0.1)?,
            resid_pdrop: keys.probability("resid_pdrop", 0.1)?,
            layer_norm_epsilon: keys.number("layer_norm_epsilon", 1e-5)?,
            initializer_range: keys.number("initializer_range", 0.02)?,
            raw: map.clone(),
        };
        if !width.is_multiple_of(config.n_head) {
            return Err(Error::config(format!(
                "config.json: `n_head`: expected a divisor of n_embd {width}, got {}",
                config.n_head
            )));
        }
        Ok(config)
    }

    /// The object of `config.json`. Converters to other formats read `n_ctx`, so it is written too.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let ours = json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_ctx": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": "gelu_new",
            "embd_pdrop": self.embd_pdrop,
            "attn_pdrop": self.attn_pdrop,
            "resid_pdrop": self.resid_pdrop,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": true,
        });
        if let Value::Object(ours) = ours {
            map.extend(ours);
        }
        map
    }
}

/// Self-attention with one matrix for queries, keys and values.
#[derive(Module)]
pub struct Gpt2Attention {
    /// `[width, 3 width]`.
    pub c_attn: Projection,
    /// `[width, width]`.
    pub c_proj: Projection,
    heads: usize,
    attn_dropout: f64,
    resid_dropout: Dropout,
}

/// The feed-forward part.
#[derive(Module)]
pub struct Gpt2FeedForward {
    /// `[width, inner]`.
    pub c_fc: Projection,
    /// `[inner, width]`.
    pub c_proj: Projection,
    dropout: Dropout,
}

/// One block.
#[derive(Module)]
pub struct Gpt2Block {
    /// Before attention.
    pub ln_1: LayerNorm,
    /// Attention.
    pub attn: Gpt2Attention,
    /// Before the feed-forward part.
    pub ln_2: LayerNorm,
    /// The feed-forward part.
    pub mlp: Gpt2FeedForward,
}

/// Everything before the output layer.
#[derive(Module)]
pub struct Gpt2Model {
    /// Token embedding.
    pub wte: Lookup,
    /// Position embedding.
    pub wpe: Lookup,
    /// The blocks.
    pub h: Vec<Arc<Gpt2Block>>,
    /// The last norm.
    pub ln_f: LayerNorm,
    drop: Dropout,
}

/// A language model: tokens `[batch, time]` in, logits `[batch, time, vocabulary]` out. The output
/// layer is the token embedding.
#[derive(Module)]
pub struct Gpt2 {
    /// Everything before the output layer.
    pub transformer: Gpt2Model,
    #[module(skip)]
    config: Gpt2Config,
}

type Shared = Context<()>;

impl Gpt2Attention {
    fn forward(
        &self,
        x: &Tensor,
        shared: &Shared,
        cache: Option<&mut LayerCache>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let (batch, time, width) = (x.dims()[0], x.dims()[1], x.dims()[2]);
        let parts = cx.call("c_attn", &self.c_attn, x)?.chunk(3, -1)?;
        let split = |t: &Tensor| {
            t.reshape([batch, time, self.heads, width / self.heads])?
                .transpose(1, 2)
        };
        let q = split(&parts[0])?;
        let (k, v) = (split(&parts[1])?, split(&parts[2])?);
        let y = match (&shared.packed, &shared.ragged, cache) {
            (Some(packed), ..) => {
                packed.attend([&q, &k, &v], |part| self.attend(part, None, 0, cx))?
            }
            (_, Some(ragged), Some(cache)) => {
                attend_cached([&q, &k, &v], cache, Some(ragged), shared.before)?
            }
            (.., Some(cache)) => {
                let (k, v) = cache.append(&k, &v, None)?;
                self.attend([&q, &k, &v], shared.mask.as_ref(), shared.before, cx)?
            }
            (.., None) => self.attend([&q, &k, &v], shared.mask.as_ref(), shared.before, cx)?,
        };
        let y = y.transpose(1, 2)?.reshape([batch, time, width])?;
        let y = cx.call("c_proj", &self.c_proj, &y)?;
        cx.call("resid_dropout", &self.resid_dropout, &y)
    }

    /// Queries `[batch, heads, time, size]`, `before` positions after the first key, over keys and
    /// values `[batch, heads, seen, size]`.
    fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
        before: usize,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let (time, seen) = (q.dims()[2], k.dims()[2]);
        let aligned = before == 0;
        let mut mask = mask.cloned();
        if !(aligned || time == 1) {
            let band = band(time, seen, before, None)?;
            mask = Some(match mask {
                Some(mask) => mask.logical_and(&band)?,
                None => band,
            });
        }
        let dropout = (cx.is_training() && self.attn_dropout > 0.0).then(|| {
            let (seed, stream) = cx.key();
            (self.attn_dropout, seed, stream)
        });
        let options = AttentionOptions {
            mask,
            causal: aligned && time > 1,
            dropout,
            ..Default::default()
        };
        q.scaled_dot_product_attention(k, v, &options)
    }
}

impl Module for Gpt2FeedForward {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let h = cx.call("c_fc", &self.c_fc, x)?.gelu_tanh()?;
        let y = cx.call("c_proj", &self.c_proj, &h)?;
        cx.call("dropout", &self.dropout, &y)
    }
}

impl Gpt2Block {
    fn new(c: &Gpt2Config, b: &mut Builder) -> Result<Gpt2Block> {
        let (width, eps, std) = (c.n_embd, c.layer_norm_epsilon, c.initializer_range);
        // What writes into the residual stream begins smaller: there are 2 · n_layer such layers.
        let small = std / (2.0 * c.n_layer as f64).sqrt();
        Ok(Gpt2Block {
            ln_1: b.layer_norm("ln_1", width, eps)?,
            attn: b.scope("attn", |b| {
                Ok::<_, Error>(Gpt2Attention {
                    c_attn: b.transposed_projection("c_attn", (width, 3 * width), std)?,
                    c_proj: b.transposed_projection("c_proj", (width, width), small)?,
                    heads: c.n_head,
                    attn_dropout: c.attn_pdrop,
                    resid_dropout: Dropout::new(c.resid_pdrop)?,
                })
            })?,
            ln_2: b.layer_norm("ln_2", width, eps)?,
            mlp: b.scope("mlp", |b| {
                Ok::<_, Error>(Gpt2FeedForward {
                    c_fc: b.transposed_projection("c_fc", (width, c.n_inner), std)?,
                    c_proj: b.transposed_projection("c_proj", (c.n_inner, width), small)?,
                    dropout: Dropout::new(c.resid_pdrop)?,
                })
            })?,
        })
    }
}

impl Gpt2Block {
    fn forward(
        &self,
        x: &Tensor,
        shared: &Shared,
        rows: Option<&mut LayerCache>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let h = cx.call("ln_1", &self.ln_1, x)?;
        let h = cx.scope("attn", |cx| self.attn.forward(&h, shared, rows, cx))?;
        let (h, x) = cx.scope("ln_2", |_| self.ln_2.of_sum(x, &h))?;
        x.add(&cx.call("mlp", &self.mlp, &h)?)
    }
}

impl Gpt2 {
    /// A model whose parameters `builder` makes under the published names.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn new(config: Gpt2Config, builder: &mut Builder) -> Result<Gpt2> {
        let c = &config;
        let transformer = builder.scope("transformer", |b| {
            Ok::<_, Error>(Gpt2Model {
                wte: b.lookup("wte", (c.vocab_size, c.n_embd), c.initializer_range, true)?,
                wpe: b.lookup("wpe", (c.n_positions, c.n_embd), c.initializer_range, false)?,
                h: b.scope("h", |b| {
                    (0..c.n_layer)
                        .map(|i| b.scope(i.to_string(), |b| Gpt2Block::new(c, b).map(Arc::new)))
                        .collect::<Result<_>>()
                })?,
                ln_f: b.layer_norm("ln_f", c.n_embd, c.layer_norm_epsilon)?,
                drop: Dropout::new(c.embd_pdrop)?,
            })
        })?;
        Ok(Gpt2 {
            transformer,
            config,
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }
}

impl Projections for Gpt2 {
    fn visit_projections(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>,
    ) -> Result<()> {
        for (i, block) in self.transformer.h.iter_mut().enumerate() {
            let block = unshared(block)?;
            for (name, projection) in [
                ("attn.c_attn", &mut block.attn.c_attn),
                ("attn.c_proj", &mut block.attn.c_proj),
                ("mlp.c_fc", &mut block.mlp.c_fc),
                ("mlp.c_proj", &mut block.mlp.c_proj),
            ] {
                visit(&format!("transformer.h.{i}.{name}"), projection)?;
            }
        }
        Ok(())
    }

    fn visit_lookups(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Lookup) -> Result<()>,
    ) -> Result<()> {
        visit("transformer.wte", &mut self.transformer.wte)?;
        visit("transformer.wpe", &mut self.transformer.wpe)
    }
}

impl CausalLm for Gpt2 {
    fn features(&self, tokens: &Tensor, input: LmInput<'_>, cx: &mut Ctx) -> Result<Tensor> {
        let before = input.cache.as_ref().map_or(0, |c| c.len());
        let packed = Packed::of("gpt2", tokens, &input, self.config.n_positions)?;
        let ragged = Ragged::of("gpt2", tokens, &input, self.config.n_positions)?;
        // What is packed may be longer than the context as a whole.
        let context = match packed {
            Some(_) => usize::MAX,
            None => self.config.n_positions,
        };
        let (batch, time, mut positions) = columns("gpt2", tokens, &input, context)?;
        let long = packed.as_ref().map(|p| &p.positions);
        let tokens = &match long.or(ragged.as_ref().map(|r| &r.positions)) {
            Some(long) => {
                positions.clone_from(long);
                tokens.reshape([1, batch * time])?
            }
            None => tokens.clone(),
        };
        let count = positions.len();
        let positions: Vec<i64> = positions.into_iter().map(|p| p as i64).collect();
        let positions = Tensor::from_vec(positions, [count])?;
        let shared = Arc::new(Shared {
            own: (),
            mask: input.mask.cloned(),
            before,
            packed,
            ragged,
        });
        let checkpoint = input.checkpoint && input.cache.is_none();
        let mut cache: Option<&mut KvCache> = input.cache;
        let model = &self.transformer;
        cx.scope("transformer", |cx| {
            let x = cx.call("wte", &model.wte, tokens)?;
            let x = cx.noisy_embedding(&x)?;
            let x = x.add(&cx.call("wpe", &model.wpe, &positions)?)?;
            let mut x = cx.call("drop", &model.drop, &x)?;
            for (i, block) in model.h.iter().enumerate() {
                let rows = cache.as_deref_mut().map(|c| c.layer(i)).transpose()?;
                x = cx.scope(&format!("h.{i}"), |cx| {
                    if !checkpoint {
                        return block.forward(&x, &shared, rows, cx);
                    }
                    let (inner, shared) = (block.clone(), shared.clone());
                    cx.checkpoint_with(block.named_parameters(), &x, move |x, cx| {
                        inner.forward(x, &shared, None, cx)
                    })
                })?;
            }
            if let Some(cache) = cache {
                cache.advance(time);
            }
            let x = cx.call("ln_f", &model.ln_f, &x)?;
            x.reshape([batch, time, self.config.n_embd])
        })
    }

    fn head(&self) -> &Parameter {
        &self.transformer.wte.weight
    }

    fn layers(&self) -> usize {
        self.transformer.h.len()
    }

    fn context(&self) -> usize {
        self.config.n_positions
    }
}

impl Module for Gpt2 {
    fn forward(&self, tokens: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let x = self.features(tokens, LmInput::default(), cx)?;
        self.logits(&x, cx)
    }
}
