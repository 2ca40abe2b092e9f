//! [`CausalLm`]: what training and generation need of a language model, whatever its family.

use std::sync::Arc;

use entrenar_core::ops::attention::AttentionOptions;
use entrenar_core::ops::loss::Reduction;
use entrenar_core::{DType, Error, Result, Tensor};
use entrenar_nn::{Ctx, Module, Parameter};

use crate::KvCache;
use crate::decoder::{LayerCache, band};

/// What a language model is given besides the tokens.
#[derive(Default)]
pub struct LmInput<'a> {
    /// Position of each column; 0, 1, 2, … after what the cache holds, if absent. Packed
    /// sequences start again at 0.
    pub positions: Option<&'a [usize]>,
    /// Broadcasts to `[batch, heads, time, seen]`: true where a query may see a key. Causality is
    /// added to it.
    pub mask: Option<&'a Tensor>,
    /// Keys and values of earlier positions; this call's are appended. After
    /// [`KvCache::set_lengths`] each row goes on at its own position.
    pub cache: Option<&'a mut KvCache>,
    /// Where several sequences share a row: the lengths of those of each row. Positions start again
    /// at 0 in each and none sees another, so that the result is that of each alone; what is left
    /// of a row is padding. Not together with the others.
    pub segments: Option<&'a [Vec<usize>]>,
    /// Whether the backward pass computes each layer's activations again instead of keeping them.
    /// Without effect together with a cache.
    pub checkpoint: bool,
}

/// What every layer of a model is given besides the vectors; a checkpoint keeps it.
pub(crate) struct Context<T> {
    /// What only this family has.
    pub own: T,
    /// The user's mask.
    pub mask: Option<Tensor>,
    /// Positions before this call.
    pub before: usize,
    /// Sequences that share the row.
    pub packed: Option<Packed>,
    /// Rows of different lengths in the cache.
    pub ragged: Option<Ragged>,
}

/// Refuses to change a layer that a recorded computation still refers to.
pub(crate) fn unshared<T>(layer: &mut Arc<T>) -> Result<&mut T> {
    Arc::get_mut(layer).ok_or_else(|| {
        Error::other("a layer cannot be exchanged while a graph that went through it is alive: drop the loss first")
    })
}

/// Tokens `[batch, time]` in, logits `[batch, time, vocabulary]` out, each seeing only earlier
/// positions and itself.
pub trait CausalLm: Module {
    /// The vectors before the output layer, `[batch, time, width]`.
    ///
    /// # Errors
    /// When the tokens are not `[batch, time]` integers below the vocabulary, the positions are
    /// not one per column, the mask does not broadcast, or the sequence is longer than the model
    /// can take.
    fn features(&self, tokens: &Tensor, input: LmInput<'_>, cx: &mut Ctx) -> Result<Tensor>;

    /// The output layer's weight, `[vocabulary, width]`.
    fn head(&self) -> &Parameter;

    /// Number of layers, which is the number of entries of a [`KvCache`].
    fn layers(&self) -> usize;

    /// Longest sequence that the model was made for.
    fn context(&self) -> usize;

    /// Whether a sequence may be longer: positions are computed, not looked up in a table.
    fn has_open_context(&self) -> bool {
        false
    }

    /// Whether [`LmInput::cache`] is understood.
    fn has_cache(&self) -> bool {
        true
    }

    /// Whether a text goes on beyond the context, each token seeing the last `context` ones from
    /// position 0, rather than end there. A cache is of no use then.
    fn slides(&self) -> bool {
        !self.has_cache()
    }

    /// The logits of vectors that [`CausalLm::features`] gave.
    ///
    /// # Errors
    /// When the last dimension is not the width.
    fn logits(&self, features: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        cx.scope("lm_head", |_| features.linear(&self.head().tensor(), None))
    }

    /// The cross-entropy of `targets` `[batch, time]` (at each position the token that follows it;
    /// -100 is not counted) without holding all logits.
    ///
    /// # Errors
    /// As [`CausalLm::features`], or when a target is neither a token nor -100.
    fn loss(
        &self,
        tokens: &Tensor,
        targets: &Tensor,
        reduction: Reduction,
        input: LmInput<'_>,
        cx: &mut Ctx,
    ) -> Result<Tensor> {
        let x = self.features(tokens, input, cx)?;
        let targets = targets.to_dtype(DType::I64)?;
        cx.scope("lm_head", |_| {
            x.linear_cross_entropy(&self.head().tensor(), &targets, -100, reduction)
        })
    }
}

/// Sequences that share rows, as one long row: all rows one after another.
///
/// What works on each position alone (projections, norms, the feed-forward part) does not notice;
/// attention runs over each sequence by itself, which costs the squares of their lengths only.
pub(crate) struct Packed {
    /// Lengths in order, and whether that stretch is padding.
    stretches: Vec<(usize, bool)>,
    /// Positions of the long row, from 0 in each sequence.
    pub positions: Vec<usize>,
}

impl Packed {
    /// What the segments of `input` say, if there are any.
    ///
    /// # Errors
    /// When the segments do not fit the tokens `[batch, time]`, a sequence is longer than
    /// `context`, or positions, a mask or a cache are given too.
    pub fn of(
        name: &str,
        tokens: &Tensor,
        input: &LmInput<'_>,
        context: usize,
    ) -> Result<Option<Packed>> {
        let Some(rows) = input.segments else {
            return Ok(None);
        };
        let &[batch, time] = tokens.dims() else {
            return Err(Error::shape(name, "tokens [batch, time]", tokens.shape()));
        };
        if input.positions.is_some() || input.mask.is_some() || input.cache.is_some() {
            return Err(Error::argument(
                name,
                "segments alone",
                "positions, a mask or a cache besides",
            ));
        }
        if rows.len() != batch {
            return Err(Error::argument(
                name,
                format!("segments of {batch} rows"),
                format!("{} rows", rows.len()),
            ));
        }
        let mut packed = Packed {
            stretches: Vec::new(),
            positions: Vec::with_capacity(batch * time),
        };
        for (number, row) in rows.iter().enumerate() {
            let sum = row.iter().fold(0usize, |sum, n| sum.saturating_add(*n));
            if sum > time {
                return Err(Error::argument(
                    name,
                    format!("segments that add up to at most {time}"),
                    format!("{sum} in row {number}"),
                ));
            }
            if let Some(long) = row.iter().find(|n| **n > context) {
                return Err(Error::argument(
                    name,
                    format!("segments within the context of {context}"),
                    format!("{long} tokens in row {number}"),
                ));
            }
            for &length in row.iter().filter(|n| **n > 0) {
                packed.stretches.push((length, false));
                packed.positions.extend(0..length);
            }
            if sum < time {
                packed.stretches.push((time - sum, true));
                packed
                    .positions
                    .resize(packed.positions.len() + time - sum, 0);
            }
        }
        Ok(Some(packed))
    }

    /// `attend` over each sequence of q `[1, heads, time, size]`, k and v; zeros for padding.
    pub fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        mut attend: impl FnMut([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.stretches.len());
        for &(length, padding) in &self.stretches {
            let part = |t: &Tensor| t.narrow(2, start, length);
            let q = part(q)?;
            parts.push(if padding {
                q.zeros_like()
            } else {
                attend([&q, &part(k)?, &part(v)?])?
            });
            start += length;
        }
        match parts.as_slice() {
            // An empty batch.
            [] => Ok(q.zeros_like()),
            [one] => Ok(one.clone()),
            _ => Tensor::concat(&parts.iter().collect::<Vec<_>>(), 2),
        }
    }
}

/// New positions of rows whose lengths in the cache differ, as one long row: all rows one after
/// another, `[1, rows · time]`, except in attention.
pub(crate) struct Ragged {
    /// What each row has in the cache.
    pub starts: Vec<usize>,
    time: usize,
    /// Positions of the long row.
    pub positions: Vec<usize>,
}

impl Ragged {
    /// What the cache of `input` says, if its rows have lengths of their own.
    ///
    /// # Errors
    /// When the tokens `[batch, time]` are not as many rows, a row would pass `context`, or
    /// positions or a mask are given too.
    pub fn of(
        name: &str,
        tokens: &Tensor,
        input: &LmInput<'_>,
        context: usize,
    ) -> Result<Option<Ragged>> {
        let Some(starts) = input.cache.as_ref().and_then(|cache| cache.lengths()) else {
            return Ok(None);
        };
        let &[batch, time] = tokens.dims() else {
            return Err(Error::shape(name, "tokens [batch, time]", tokens.shape()));
        };
        if input.positions.is_some() || input.mask.is_some() {
            return Err(Error::argument(
                name,
                "a cache whose rows have their own lengths alone",
                "positions or a mask besides",
            ));
        }
        if starts.len() != batch {
            let want = format!("{} rows, as the cache", starts.len());
            return Err(Error::argument(name, want, batch));
        }
        if let Some(start) = starts.iter().find(|s| **s + time > context) {
            return Err(Error::argument(
                name,
                format!("positions below the context of {context}"),
                format!("position {}", start + time - 1),
            ));
        }
        Ok(Some(Ragged {
            positions: starts.iter().flat_map(|s| *s..s + time).collect(),
            starts: starts.to_vec(),
            time,
        }))
    }

    /// `[1, heads, rows · time, size]` as `[rows, heads, time, size]`.
    pub fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let (heads, size) = (x.dims()[1], x.dims()[3]);
        x.reshape([heads, self.starts.len(), self.time, size])?
            .transpose(0, 1)
    }

    /// Which of the `seen` keys each new position may see, through a window where there is one.
    pub fn options(&self, seen: usize, window: Option<usize>) -> Result<AttentionOptions> {
        let (rows, time) = (self.starts.len(), self.time);
        let mut options = AttentionOptions::default();
        if time == 1 && window.is_none_or(|w| w >= seen) {
            let lengths = self.starts.iter().map(|s| *s as i64 + 1).collect();
            options.lengths = Some(Tensor::from_vec(lengths, [rows])?);
        } else {
            let mut sees = Vec::with_capacity(rows * time * seen);
            for at in &self.positions {
                let first = window.map_or(0, |w| (at + 1).saturating_sub(w));
                sees.extend((0..seen).map(|key| key >= first && key <= *at));
            }
            options.mask = Some(Tensor::from_vec(sees, [rows, 1, time, seen])?);
        }
        Ok(options)
    }
}

/// Attention over what `rows` hold and the new keys and values `[batch, heads, time, size]`, which
/// are appended; `before` positions were there. With `ragged`, all rows are one long one.
pub(crate) fn attend_cached(
    [q, k, v]: [&Tensor; 3],
    rows: &mut LayerCache,
    ragged: Option<&Ragged>,
    before: usize,
) -> Result<Tensor> {
    if let Some(ragged) = ragged {
        let (k, v) = (ragged.rows(k)?, ragged.rows(v)?);
        let (k, v) = rows.append(&k, &v, Some(&ragged.starts))?;
        let options = ragged.options(k.dims()[2], None)?;
        return ragged
            .rows(q)?
            .scaled_dot_product_attention(&k, &v, &options);
    }
    let time = q.dims()[2];
    let (k, v) = rows.append(k, v, None)?;
    let aligned = before == 0 || time == 1;
    let mask = (!aligned).then(|| band(time, k.dims()[2], before, None));
    let options = AttentionOptions {
        mask: mask.transpose()?,
        // One query sees all that is there.
        causal: aligned && time > 1,
        ..Default::default()
    };
    q.scaled_dot_product_attention(&k, &v, &options)
}

/// (batch, time) of a call and the position of each column.
pub(crate) fn columns(
    name: &str,
    tokens: &Tensor,
    input: &LmInput<'_>,
    context: usize,
) -> Result<(usize, usize, Vec<usize>)> {
    let &[batch, time] = tokens.dims() else {
        return Err(Error::shape(name, "tokens [batch, time]", tokens.shape()));
    };
    let before = input.cache.as_ref().map_or(0, |c| c.len());
    let positions = match input.positions {
        Some(given) if given.len() == time => given.to_vec(),
        Some(given) => {
            return Err(Error::argument(
                name,
                format!("{time} positions"),
                given.len(),
            ));
        }
        None => (before..before + time).collect(),
    };
    match positions.iter().max() {
        Some(&last) if last >= context => Err(Error::argument(
            name,
            format!("positions below the context of {context}"),
            format!("position {last}"),
        )),
        _ => Ok((batch, time, positions)),
    }
}
