//! `packed_attention`: self-attention on one fused projection, its gradient written into one too.
//!
//! Input `[B, T, (H + 2G)·D]`: the channels of H query heads, then of G key heads, then of G value
//! heads, as one linear layer gives them. The result is `[B, T, H·D]`, as the next one takes them:
//! [`Tensor::scaled_dot_product_attention`] of the parts with heads moved forward, without a copy of
//! any of them in either pass.

use smallvec::smallvec;

use entrenar_base::{Array, Error, Result};
use entrenar_cpu::attention as kernel;

use crate::Tensor;
use crate::apply::one;
use crate::autocast::operand;
use crate::op::{Aval, BackwardKernel, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::ops::attention::{Attention, AttentionOptions, mask_gradient, returned};
use crate::ops::expansion;
use crate::registry::{Entry, Sample};

/// Inputs: the projection, then perhaps a mask and lengths. Outputs the result and, for the
/// backward pass, the log-sum-exp of each query's scores.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PackedAttention {
    heads: usize,
    groups: usize,
    attention: Attention,
}

impl PackedAttention {
    /// Where the parts begin and end among the channels, and how many heads each has.
    fn parts(&self, channels: usize) -> [(usize, usize, usize); 3] {
        let width = channels / (self.heads + 2 * self.groups);
        let (key, value) = (self.heads * width, (self.heads + self.groups) * width);
        [
            (0, key, self.heads),
            (key, value, self.groups),
            (value, channels, self.groups),
        ]
    }

    /// Queries, keys and values `[B, heads, T, D]` as views of the projection.
    fn views(&self, joint: &Array) -> Result<[Array; 3]> {
        let (batch, time) = (joint.dims()[0], joint.dims()[1]);
        let view = |(start, end, heads): (usize, usize, usize)| -> Result<Array> {
            let part = joint.slice(2, start, end, 1)?;
            let width = (end - start) / heads;
            part.reshape([batch, time, heads, width])?
                .permute(&[0, 2, 1, 3])
        };
        let [q, k, v] = self.parts(joint.dims()[2]);
        Ok([view(q)?, view(k)?, view(v)?])
    }
}

impl Op for PackedAttention {
    fn name(&self) -> &'static str {
        "packed_attention"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let joint = inputs[0];
        let all = self.heads + 2 * self.groups;
        let fits = self.groups > 0
            && self.heads.is_multiple_of(self.groups)
            && joint.shape.rank() == 3
            && joint.shape[2].is_multiple_of(all);
        if !fits {
            return Err(Error::shape(
                self.name(),
                format!(
                    "a projection [B, T, ({} + 2·{})·D], the first number a multiple of the second",
                    self.heads, self.groups
                ),
                format!("{joint:?}"),
            ));
        }
        let (batch, time, width) = (joint.shape[0], joint.shape[1], joint.shape[2] / all);
        let part = |heads: usize| Aval::new([batch, heads, time, width], joint.dtype);
        let (q, k) = (part(self.heads), part(self.groups));
        let rest = &inputs[1..];
        let inferred = self
            .attention
            .infer_parts(self.name(), [&q, &k, &k], rest)?;
        Ok(smallvec![
            Aval::new([batch, time, self.heads * width], joint.dtype),
            inferred[1].clone()
        ])
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let [q, k, v] = self.views(inputs[0])?;
        let problem = self.attention.problem([&q, &k, &v], &inputs[1..]);
        let (out, lse) = kernel::attention(&problem)?;
        let joined = out.permute(&[0, 2, 1, 3])?.reshape(&outputs[0].shape)?;
        Ok(smallvec![joined, lse])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Expand for PackedAttention {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let &[batch, time, channels] = inputs[0].dims() else {
            return Err(Error::shape(self.name(), "rank 3", inputs[0].shape()));
        };
        let view = |(start, end, heads): (usize, usize, usize)| -> Result<Tensor> {
            let part = inputs[0].narrow(2, start, end - start)?;
            part.reshape([batch, time, heads, (end - start) / heads])?
                .transpose(1, 2)
        };
        let [q, k, v] = self.parts(channels).map(view);
        let out = self.attention.definition([&q?, &k?, &v?], &inputs[1..])?;
        let width = out.dims()[3];
        Ok(one(out.transpose(1, 2)?.reshape([
            batch,
            time,
            self.heads * width,
        ])?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for PackedAttention {
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let [g, out, lse] = returned(self.name(), outputs, cotangents)?;
        let mut gradients: Few<Option<Array>> = smallvec![None; inputs.len()];
        if needs[0] {
            let [q, k, v] = self.views(inputs[0])?;
            let problem = self.attention.problem([&q, &k, &v], &inputs[1..]);
            let split = |x: &Array| -> Result<Array> {
                let (batch, time) = (x.dims()[0], x.dims()[1]);
                x.reshape([batch, time, self.heads, q.dims()[3]])?
                    .permute(&[0, 2, 1, 3])
            };
            let (g, out) = (split(g)?, split(out)?);
            gradients[0] = Some(kernel::packed_attention_backward(&problem, &g, &out, lse)?);
        }
        if needs[1..].contains(&true) {
            gradients[1] = mask_gradient(self, inputs, g, 1)?;
        }
        Ok(gradients)
    }
}

impl Tensor {
    /// Self-attention on one projection `[B, T, (heads + 2·groups)·D]`, whose channels are those of
    /// the query heads, then of the key heads, then of the value heads; the result is
    /// `[B, T, heads·D]`. Query head h reads key and value head h / (heads / groups).
    ///
    /// # Errors
    /// When `groups` does not divide `heads`, or the input, the mask or the lengths do not fit.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType, ops::attention::AttentionOptions};
    /// let qkv = Tensor::from_vec(vec![0.0f32, 0.0, 1.0, 0.0, 0.0, 3.0], [1, 2, 3])?;
    /// let causal = AttentionOptions { causal: true, ..Default::default() };
    /// let y = qkv.packed_attention(1, 1, &causal)?; // equal scores: averages of the values
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn packed_attention(
        &self,
        heads: usize,
        groups: usize,
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        let joint = operand(&as_float(self)?)?;
        let (mask, lengths) = (options.mask.as_ref(), options.lengths.as_ref());
        let all = (heads + 2 * groups).max(1);
        let width = joint.dims().last().map_or(1, |n| n / all);
        let op = PackedAttention {
            heads,
            groups,
            attention: Attention::new(options, width, mask.is_some(), lengths.is_some()),
        };
        let inputs: Vec<&Tensor> = [&joint].into_iter().chain(mask).chain(lengths).collect();
        Ok(expansion::checked(op, &inputs)?.swap_remove(0))
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "packed_attention",
    kind: "expand",
    sample: |g| {
        let (batch, time, width) = (g.range(0, 3), g.range(1, 5), g.range(1, 4));
        let (groups, times) = (g.range(1, 3), g.range(1, 3));
        let heads = groups * times;
        let mut inputs = vec![g.tensor([batch, time, (heads + 2 * groups) * width], -1.0, 1.0)];
        match g.range(0, 4) {
            0 => inputs.push(g.mask([time, time])),
            1 => inputs.push(g.tensor([heads, time, time], -1.0, 1.0)),
            _ => {}
        }
        let options = AttentionOptions {
            causal: g.once_in(2),
            scale: g.once_in(3).then_some(0.7),
            dropout: g.once_in(4).then_some((0.4, 5, 6)),
            lengths: g.once_in(4).then(|| g.indices([batch], time + 1)),
            mask: None,
        };
        Ok(Sample::one(inputs, move |t| {
            let options = AttentionOptions {
                mask: t.get(1).cloned(),
                ..options.clone()
            };
            t[0].packed_attention(heads, groups, &options)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    /// The same numbers as with separate tensors, bit for bit, and the same gradient.
    #[test]
    fn one_projection_is_three_tensors() {
        let (b, t, h, g, d) = (2, 5, 4, 2, 3);
        let joint = Tensor::randn([b, t, (h + 2 * g) * d], DType::F32, 1).unwrap();
        let options = AttentionOptions {
            causal: true,
            ..Default::default()
        };
        let joint = joint.requires_grad().unwrap();
        let packed = joint.packed_attention(h, g, &options).unwrap();
        let seed = Tensor::randn(packed.shape(), DType::F32, 2).unwrap();
        packed
            .mul(&seed)
            .unwrap()
            .sum()
            .unwrap()
            .backward()
            .unwrap();
        let gradient = joint.grad().unwrap();
        joint.zero_grad();
        let part = |start: usize, heads: usize| {
            let part = joint.narrow(2, start * d, heads * d).unwrap();
            let split = part.reshape([b, t, heads, d]).unwrap();
            split.transpose(1, 2).unwrap()
        };
        let (q, k, v) = (part(0, h), part(h, g), part(h + g, g));
        let out = q.scaled_dot_product_attention(&k, &v, &options).unwrap();
        let out = out.transpose(1, 2).unwrap();
        let out = out.reshape([b, t, h * d]).unwrap();
        out.mul(&seed).unwrap().sum().unwrap().backward().unwrap();
        let values = |t: &Tensor| t.to_vec::<f32>().unwrap();
        assert_eq!(values(&packed), values(&out));
        assert_eq!(values(&gradient), values(&joint.grad().unwrap()));
    }

    #[test]
    fn misfits_are_errors() {
        let run = |shape: &[usize], heads: usize, groups: usize| {
            let x = Tensor::zeros(shape, DType::F32);
            x.packed_attention(heads, groups, &AttentionOptions::default())
                .is_err()
        };
        assert!(run(&[2, 6], 1, 1));
        assert!(run(&[1, 2, 7], 1, 1));
        assert!(run(&[1, 2, 12], 3, 2));
        assert!(run(&[1, 2, 6], 0, 0));
        assert!(!run(&[1, 2, 6], 1, 1));
    }
}
