//! `scaled_dot_product_attention`: softmax(scale·q·kᵀ + mask)·v, blocked forward and backward, so
//! that the scores of all positions never exist at once.
//!
//! Shapes: q `[.., H, T, D]`, k `[.., G, S, D]`, v `[.., G, S, E]`, result `[.., H, T, E]`; H is a
//! multiple of G (grouped queries: head h reads group h / (H / G)). Causality is aligned at the top
//! left, as PyTorch's `is_causal`. A query that may see nothing gets zeros. (Vaswani et al. 2017;
//! blocked as Dao et al. 2022; kernels: `entrenar_cpu::attention`.)

use smallvec::smallvec;

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::attention as kernel;

use crate::Tensor;
use crate::apply::one;
use crate::op::{Aval, BackwardKernel, Bits, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::ops::expansion;
use crate::ops::where_::constant;
use crate::registry::{Entry, Gen, Sample};

/// Parameters of [`Tensor::scaled_dot_product_attention`].
///
/// ```
/// # use entrenar_core::ops::attention::AttentionOptions;
/// let options = AttentionOptions { causal: true, ..Default::default() };
/// assert!(options.mask.is_none());
/// ```
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// Broadcasts to `[.., H, T, S]`: bool keeps where true, floats are added to the scores.
    pub mask: Option<Tensor>,
    /// Query i sees keys 0..=i only.
    pub causal: bool,
    /// What q·kᵀ is multiplied by; 1/√D if absent.
    pub scale: Option<f64>,
    /// (probability, seed, stream) of dropping a weight after the softmax. This path holds all
    /// scores at once.
    pub dropout: Option<(f64, u64, u64)>,
    /// Number of valid keys of each batch entry, integers `[B]` for inputs of rank 4: later keys
    /// are padding that nobody sees.
    pub lengths: Option<Tensor>,
}

/// Inputs q `[B, H, T, D]`, k, v and perhaps a mask; outputs the result and, for the backward
/// pass, the log-sum-exp of each query's scores.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attention {
    scale: Bits,
    causal: bool,
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "scaled_dot_product_attention"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        let fits = [q, k, v]
            .iter()
            .all(|a| a.shape.rank() == 4 && a.dtype == q.dtype)
            && q.shape[0] == k.shape[0]
            && q.shape[3] == k.shape[3]
            && k.shape[..3] == v.shape[..3]
            && k.shape[1] > 0
            && q.shape[1].is_multiple_of(k.shape[1]);
        if !fits {
            return Err(Error::shape(
                self.name(),
                "q [.., H, T, D], k [.., G, S, D] and v [.., G, S, E] with H a multiple of G",
                format!("{q:?}, {k:?} and {v:?}"),
            ));
        }
        let mut shape = q.shape.clone();
        if let Some(mask) = inputs.get(3) {
            shape.dims_mut()[3] = k.shape[2];
            if mask.shape.broadcast(&shape, self.name())? != shape {
                return Err(Error::shape(
                    self.name(),
                    format!("a mask that broadcasts to {shape}"),
                    &mask.shape,
                ));
            }
            if mask.dtype != DType::Bool && !mask.dtype.is_float() {
                return Err(Error::dtype(
                    self.name(),
                    "a bool or float mask",
                    mask.dtype,
                ));
            }
        }
        shape.dims_mut()[3] = v.shape[3];
        let rows = Aval::new(&shape[..3], q.dtype.accumulator());
        Ok(smallvec![Aval::new(shape, q.dtype), rows])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (out, lse) = kernel::attention(
            inputs[0],
            inputs[1],
            inputs[2],
            self.scale.0,
            self.causal,
            inputs.get(3).copied(),
        )?;
        Ok(smallvec![out, lse])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

impl Attention {
    /// softmax(scale·q·kᵀ + mask) `[B, H, T, S]`, and v `[B, H, S, E]`, both in the accumulator's
    /// dtype.
    fn weights(&self, inputs: &[&Tensor]) -> Result<(Tensor, Tensor)> {
        let wide = inputs[0].dtype().accumulator();
        let heads = inputs[0].dims()[1];
        let q = inputs[0].to_dtype(wide)?;
        let k = repeated(&inputs[1].to_dtype(wide)?, heads)?;
        let v = repeated(&inputs[2].to_dtype(wide)?, heads)?;
        let mut scores = q.matmul(&k.transpose(-1, -2)?)?.mul_scalar(self.scale.0)?;
        let mut allowed = self
            .causal
            .then(|| lower_triangle(q.dims()[2], k.dims()[2]))
            .transpose()?;
        if let Some(mask) = inputs.get(3) {
            let seen = if mask.dtype() == DType::Bool {
                (*mask).clone()
            } else {
                scores = scores.add(&mask.to_dtype(wide)?)?;
                mask.eq_scalar(f64::NEG_INFINITY)?.logical_not()?
            };
            allowed = Some(match allowed {
                Some(a) => a.logical_and(&seen)?,
                None => seen,
            });
        }
        let Some(allowed) = allowed else {
            return Ok((scores.softmax(-1)?, v));
        };
        // Minus infinity would give NaN where a query sees nothing: a huge number gives uniform
        // weights there, which the second choice removes.
        let fill = |value: f64| constant(scores.shape(), value, wide);
        let weights = Tensor::where_(&allowed, &scores, &fill(-1e30)?)?.softmax(-1)?;
        Ok((Tensor::where_(&allowed, &weights, &fill(0.0)?)?, v))
    }
}

/// `[B, G, S, D]` with each group repeated for its heads.
fn repeated(t: &Tensor, heads: usize) -> Result<Tensor> {
    let [b, g, s, d] = t.dims() else {
        return Err(Error::shape("attention", "rank 4", t.shape()));
    };
    let (b, g, s, d) = (*b, *g, *s, *d);
    if g == heads {
        return Ok(t.clone());
    }
    t.unsqueeze(2)?
        .broadcast_to([b, g, heads / g, s, d])?
        .reshape([b, heads, s, d])
}

/// True where key j <= query i.
fn lower_triangle(queries: usize, keys: usize) -> Result<Tensor> {
    let seen = (0..queries)
        .flat_map(|i| (0..keys).map(move |j| j <= i))
        .collect();
    Tensor::from_vec::<bool>(seen, [queries, keys])
}

impl Expand for Attention {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let (weights, v) = self.weights(inputs)?;
        Ok(one(weights.matmul(&v)?.to_dtype(inputs[0].dtype())?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for Attention {
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let (Some(g), Some(out), Some(lse)) = (cotangents[0], outputs[0], outputs[1]) else {
            return Err(Error::autodiff(
                self.name(),
                "backward without a cotangent or its statistics",
            ));
        };
        let mut gradients: Few<Option<Array>> = smallvec![None; inputs.len()];
        if needs[..3].contains(&true) {
            let (dq, dk, dv) = kernel::attention_backward(
                g,
                inputs[0],
                inputs[1],
                inputs[2],
                out,
                lse,
                self.scale.0,
                self.causal,
                inputs.get(3).copied(),
            )?;
            for (gradient, d) in gradients.iter_mut().zip([dq, dk, dv]) {
                *gradient = Some(d);
            }
        }
        if needs.get(3) == Some(&true) {
            // A learned mask is rare and its gradient as large as the scores.
            let only_mask = [false, false, false, true];
            gradients[3] = expansion::gradients(self, inputs, &[g], &only_mask)?
                .pop()
                .flatten();
        }
        for (gradient, need) in gradients.iter_mut().zip(needs) {
            if !need {
                *gradient = None;
            }
        }
        Ok(gradients)
    }
}

/// All of one rank of at least 4, leading dimensions broadcast and joined into one.
struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Leading dimensions and heads of the result.
    lead: Shape,
    /// Rank of the result.
    rank: usize,
}

#[track_caller]
fn problem(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Problem> {
    const OP: &str = "scaled_dot_product_attention";
    let dtype = q.dtype().promote(k.dtype()).promote(v.dtype());
    let dtype = if dtype.is_float() { dtype } else { DType::F32 };
    let rank = q.rank().max(k.rank()).max(v.rank());
    if q.rank().min(k.rank()).min(v.rank()) < 2 {
        return Err(Error::shape(
            OP,
            "at least 2 dimensions, [.., T, D], [.., S, D] and [.., S, E]",
            format!("{}, {} and {}", q.shape(), k.shape(), v.shape()),
        ));
    }
    let raise = |t: &Tensor| -> Result<Tensor> {
        let mut shape = t.shape().clone();
        while shape.rank() < rank.max(4) {
            shape.insert(0, 1);
        }
        t.to_dtype(dtype)?.reshape(shape)
    };
    let (mut q, k, v) = (raise(q)?, raise(k)?, raise(v)?);
    let at = q.rank() - 3;
    let lead_of = |t: &Tensor| Shape::from(&t.dims()[..at]);
    let lead = lead_of(&q)
        .broadcast(&lead_of(&k), OP)?
        .broadcast(&lead_of(&v), OP)?;
    if q.dims()[at] == 1 && k.dims()[at] != 1 {
        let mut shape = q.shape().clone();
        shape.dims_mut()[at] = k.dims()[at];
        q = q.broadcast_to(shape)?;
    }
    let join = |t: &Tensor| -> Result<Tensor> {
        let tail = &t.dims()[at..];
        let mut full = lead.clone();
        tail.iter().for_each(|&n| full.push(n));
        t.broadcast_to(full)?
            .reshape([lead.numel(), tail[0], tail[1], tail[2]])
    };
    let (q4, k, v) = (join(&q)?, join(&k)?, join(&v)?);
    let mut lead = lead;
    lead.push(q4.dims()[1]);
    Ok(Problem {
        q: q4,
        k,
        v,
        lead,
        rank,
    })
}

/// The mask for rank-4 inputs, from the user's mask and the lengths.
#[track_caller]
fn joined_mask(options: &AttentionOptions, p: &Problem) -> Result<Option<Tensor>> {
    const OP: &str = "scaled_dot_product_attention";
    let (queries, keys) = (p.q.dims()[2], p.k.dims()[2]);
    let mask = match &options.mask {
        Some(m) if p.lead.rank() > 2 && m.rank() > 3 => {
            let mut full = p.lead.clone();
            full.push(queries);
            full.push(keys);
            let joined = [p.q.dims()[0], p.q.dims()[1], queries, keys];
            Some(m.broadcast_to(full)?.reshape(joined)?)
        }
        other => other.clone(),
    };
    let Some(lengths) = &options.lengths else {
        return Ok(mask);
    };
    let batch = p.q.dims()[0];
    if lengths.dims() != [batch] || lengths.dtype().is_float() {
        return Err(Error::shape(
            OP,
            format!("integer lengths of shape [{batch}]"),
            format!("{:?}", lengths.aval()),
        ));
    }
    let positions = Tensor::arange(0.0, keys as f64, 1.0, DType::I64)?;
    let valid = positions.lt(&lengths.reshape([batch, 1, 1, 1])?)?;
    Ok(Some(match mask {
        None => valid,
        Some(m) if m.dtype() == DType::Bool => m.logical_and(&valid)?,
        Some(m) => {
            let shape = m.shape().broadcast(valid.shape(), OP)?;
            let forbidden = valid.logical_not()?.broadcast_to(&shape)?;
            let closed = constant(&shape, f64::NEG_INFINITY, m.dtype())?;
            Tensor::where_(&forbidden, &closed, &m.broadcast_to(&shape)?)?
        }
    }))
}

impl Tensor {
    /// Attention of the queries `self` `[.., H, T, D]` over `key` `[.., G, S, D]` and `value`
    /// `[.., G, S, E]`: softmax(scale·q·kᵀ + mask)·v, of shape `[.., H, T, E]`. Leading dimensions
    /// broadcast; H is a multiple of G; ranks below 4 are one batch entry, or one head of one.
    ///
    /// # Errors
    /// When shapes, the mask or the lengths do not fit.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, DType, ops::attention::AttentionOptions};
    /// let q = Tensor::zeros([1, 1, 2, 4], DType::F32); // equal scores: averages of the values
    /// let v = Tensor::from_vec(vec![1.0f32, 3.0], [1, 1, 2, 1])?;
    /// let causal = AttentionOptions { causal: true, ..Default::default() };
    /// let out = q.scaled_dot_product_attention(&q, &v, &causal)?;
    /// assert_eq!(out.to_vec::<f32>()?, [1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn scaled_dot_product_attention(
        &self,
        key: &Tensor,
        value: &Tensor,
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        let p = problem(&as_float(self)?, key, value)?;
        let width = p.q.dims()[3].max(1) as f64;
        let op = Attention {
            scale: Bits(options.scale.unwrap_or(width.sqrt().recip())),
            causal: options.causal,
        };
        let mask = joined_mask(options, &p)?;
        let inputs: Vec<&Tensor> = [Some(&p.q), Some(&p.k), Some(&p.v), mask.as_ref()]
            .into_iter()
            .flatten()
            .collect();
        let out = match options.dropout {
            Some((probability, seed, stream)) if probability != 0.0 => {
                let avals: Vec<Aval> = inputs.iter().map(|t| t.aval()).collect();
                op.infer(&avals.iter().collect::<Vec<_>>())?;
                let (weights, v) = op.weights(&inputs)?;
                weights
                    .dropout(probability, seed, stream)?
                    .matmul(&v)?
                    .to_dtype(p.q.dtype())?
            }
            _ => expansion::checked(op, &inputs)?.swap_remove(0),
        };
        let mut shape = p.lead;
        shape.push(out.dims()[2]);
        shape.push(out.dims()[3]);
        while shape.rank() > p.rank {
            shape.remove(0);
        }
        out.reshape(shape)
    }
}

/// Shapes of q, k and v with rank 2 to 5.
fn shapes(g: &mut Gen) -> [Vec<usize>; 3] {
    let (t, s, d, e) = (g.range(1, 5), g.range(1, 5), g.range(1, 4), g.range(1, 4));
    let (groups, times) = (g.range(1, 3), g.range(1, 3));
    let lead = match g.range(0, 6) {
        0 => vec![],
        1 => vec![1],
        2 => vec![2, 1],
        n => vec![n - 2],
    };
    let of = |heads: usize, rows: usize, width: usize| {
        let mut shape = lead.clone();
        shape.extend([heads, rows, width]);
        shape
    };
    if g.once_in(8) {
        return [vec![t, d], vec![s, d], vec![s, e]];
    }
    [of(groups * times, t, d), of(groups, s, d), of(groups, s, e)]
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "scaled_dot_product_attention",
    kind: "expand",
    sample: |g| {
        let [q, k, v] = shapes(g);
        let (t, s) = (q[q.len() - 2], k[k.len() - 2]);
        let batch: usize = q[..q.len().max(3) - 3].iter().product();
        let mut inputs = vec![
            g.tensor(q, -1.0, 1.0),
            g.tensor(k, -1.0, 1.0),
            g.tensor(v, -1.0, 1.0),
        ];
        match g.range(0, 4) {
            0 => inputs.push(g.mask([t, s])),
            1 => inputs.push(g.tensor([t, s], -1.0, 1.0)),
            _ => {}
        }
        let options = AttentionOptions {
            causal: g.once_in(3),
            scale: g.once_in(3).then_some(0.7),
            dropout: g.once_in(6).then_some((0.4, 5, 6)),
            lengths: g.once_in(4).then(|| g.indices([batch], s + 1)),
            mask: None,
        };
        Ok(Sample::one(inputs, move |t| {
            let options = AttentionOptions {
                mask: t.get(3).cloned(),
                ..options.clone()
            };
            t[0].scaled_dot_product_attention(&t[1], &t[2], &options)
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_sees_nothing_gets_zeros_and_no_gradient() {
        let q = Tensor::ones([1, 1, 2, 3], DType::F64)
            .requires_grad()
            .unwrap();
        let v = Tensor::ones([1, 1, 2, 1], DType::F64);
        let mask = Tensor::from_vec(vec![false, false, true, true], [2, 2]).unwrap();
        let options = AttentionOptions {
            mask: Some(mask),
            ..Default::default()
        };
        let k = Tensor::ones([1, 1, 2, 3], DType::F64);
        let out = q.scaled_dot_product_attention(&k, &v, &options).unwrap();
        assert_eq!(out.to_vec::<f64>().unwrap(), [0.0, 1.0]);
        out.sum().unwrap().backward().unwrap();
        let grad = q.grad().unwrap().to_vec::<f64>().unwrap();
        assert!(grad.iter().all(|g| g.abs() < 1e-15), "{grad:?}");
    }

    #[test]
    fn lengths_hide_padding() {
        let q = Tensor::zeros([2, 1, 1, 1], DType::F64);
        let k = Tensor::zeros([2, 1, 3, 1], DType::F64);
        let v = Tensor::from_vec(vec![1.0f64, 3.0, 100.0, 1.0, 3.0, 5.0], [2, 1, 3, 1]).unwrap();
        let lengths = Tensor::from_vec(vec![2i64, 3], [2]).unwrap();
        for mask in [None, Some(Tensor::zeros([1, 3], DType::F64))] {
            let options = AttentionOptions {
                lengths: Some(lengths.clone()),
                mask,
                ..Default::default()
            };
            let out = q.scaled_dot_product_attention(&k, &v, &options).unwrap();
            assert_eq!(out.to_vec::<f64>().unwrap(), [2.0, 3.0]);
        }
    }

    #[test]
    fn misfits_are_errors() {
        let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32);
        let plain = AttentionOptions::default();
        let run = |q: &[usize], k: &[usize], v: &[usize], o: &AttentionOptions| {
            t(q).scaled_dot_product_attention(&t(k), &t(v), o).is_err()
        };
        assert!(run(&[3], &[3], &[3], &plain));
        assert!(run(&[1, 3, 2, 4], &[1, 2, 2, 4], &[1, 2, 2, 4], &plain));
        assert!(run(&[1, 1, 2, 4], &[1, 1, 2, 5], &[1, 1, 2, 4], &plain));
        assert!(run(&[1, 1, 2, 4], &[1, 1, 2, 4], &[1, 1, 3, 4], &plain));
        let masked = AttentionOptions {
            mask: Some(t(&[3, 3])),
            ..Default::default()
        };
        assert!(run(&[1, 1, 2, 4], &[1, 1, 2, 4], &[1, 1, 2, 4], &masked));
    }
}
