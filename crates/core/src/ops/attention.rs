//! `scaled_dot_product_attention`: softmax(scale·q·kᵀ + mask)·v, blocked forward and backward, so
//! that the scores of all positions never exist at once.
//!
//! Shapes: q `[.., H, T, D]`, k `[.., G, S, D]`, v `[.., G, S, E]`, result `[.., H, T, E]`; H is a
//! multiple of G (grouped queries: head h reads group h / (H / G)). Causality is aligned at the top
//! left, as PyTorch's `is_causal`. A query that may see nothing gets zeros. The result lies in
//! memory as `[.., T, H, E]`, so that joining the heads copies nothing. (Vaswani et al. 2017; blocked
//! as Dao et al. 2022; kernels: `entrenar_cpu::attention`. On one fused projection:
//! `packed_attention.rs`.)

use smallvec::smallvec;

use entrenar_base::{Array, DType, Error, Result, Shape};
use entrenar_cpu::attention as kernel;

use crate::Tensor;
use crate::apply::one;
use crate::autocast::operand;
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
    /// (probability, seed, stream) of dropping a weight after the softmax.
    pub dropout: Option<(f64, u64, u64)>,
    /// Number of valid keys of each batch entry, integers `[B]` for inputs of rank 4: later keys
    /// are padding that nobody sees.
    pub lengths: Option<Tensor>,
}

/// Inputs q `[B, H, T, D]`, k, v and perhaps a mask and lengths; outputs the result and, for the
/// backward pass, the log-sum-exp of each query's scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Attention {
    pub scale: Bits,
    pub causal: bool,
    /// Whether the inputs after k and v begin with a mask.
    pub masked: bool,
    /// Whether they end with lengths.
    pub lengths: bool,
    /// Probability of keeping a weight, seed and stream.
    pub dropout: Option<(Bits, u64, u64)>,
}

impl Attention {
    /// The op with these options and the inputs that follow k and v.
    pub fn new(options: &AttentionOptions, width: usize, masked: bool, lengths: bool) -> Self {
        let usual = (width.max(1) as f64).sqrt().recip();
        Attention {
            scale: Bits(options.scale.unwrap_or(usual)),
            causal: options.causal,
            masked,
            lengths,
            dropout: options
                .dropout
                .filter(|(p, ..)| *p != 0.0)
                .map(|(p, seed, stream)| (Bits(1.0 - p), seed, stream)),
        }
    }

    /// The mask and the lengths among the inputs that follow k and v.
    pub fn extras<T: Copy>(&self, inputs: &[T]) -> (Option<T>, Option<T>) {
        (
            self.masked.then(|| inputs[0]),
            self.lengths.then(|| inputs[usize::from(self.masked)]),
        )
    }

    /// What the kernels take.
    pub fn problem<'a>(
        &self,
        [query, key, value]: [&'a Array; 3],
        extras: &[&'a Array],
    ) -> kernel::Attention<'a> {
        let (mask, lengths) = self.extras(extras);
        kernel::Attention {
            query,
            key,
            value,
            scale: self.scale.0,
            causal: self.causal,
            mask,
            lengths,
            dropout: self.dropout.map(|(keep, seed, stream)| kernel::Dropout {
                keep: keep.0,
                seed,
                stream,
            }),
        }
    }

    /// Result `[B, H, T, E]` and statistics `[B, H, T]`.
    pub fn infer_parts(
        &self,
        name: &'static str,
        [q, k, v]: [&Aval; 3],
        extras: &[&Aval],
    ) -> Result<Few<Aval>> {
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
                name,
                "q [.., H, T, D], k [.., G, S, D] and v [.., G, S, E] with H a multiple of G",
                format!("{q:?}, {k:?} and {v:?}"),
            ));
        }
        let (mask, lengths) = self.extras(extras);
        let mut shape = q.shape.clone();
        if let Some(mask) = mask {
            shape.dims_mut()[3] = k.shape[2];
            check_mask(name, &mask.shape, &shape)?;
            if mask.dtype != DType::Bool && !mask.dtype.is_float() {
                return Err(Error::dtype(name, "a bool or float mask", mask.dtype));
            }
        }
        if let Some(lengths) = lengths
            && (lengths.shape[..] != q.shape[..1] || !lengths.dtype.is_int())
        {
            return Err(Error::shape(
                name,
                format!("integer lengths of shape [{}]", q.shape[0]),
                format!("{lengths:?}"),
            ));
        }
        if let Some((keep, ..)) = self.dropout
            && !(0.0..=1.0).contains(&keep.0)
        {
            let expected = "a dropout probability in [0, 1]";
            return Err(Error::argument(name, expected, 1.0 - keep.0));
        }
        shape.dims_mut()[3] = v.shape[3];
        let rows = Aval::new(&shape[..3], q.dtype.accumulator());
        Ok(smallvec![Aval::new(shape, q.dtype), rows])
    }

    /// The plain definition.
    pub fn definition(&self, [q, k, v]: [&Tensor; 3], extras: &[&Tensor]) -> Result<Tensor> {
        let dtype = q.dtype();
        let wide = dtype.accumulator();
        let heads = q.dims()[1];
        let (q, k) = (q.to_dtype(wide)?, repeated(&k.to_dtype(wide)?, heads)?);
        let v = repeated(&v.to_dtype(wide)?, heads)?;
        let mut scores = q.matmul(&k.transpose(-1, -2)?)?.mul_scalar(self.scale.0)?;
        let (queries, keys) = (q.dims()[2], k.dims()[2]);
        let mut allowed = self
            .causal
            .then(|| lower_triangle(queries, keys))
            .transpose()?;
        let (mask, lengths) = self.extras(extras);
        let mut also = |seen: Tensor| -> Result<()> {
            allowed = Some(match &allowed {
                Some(a) => a.logical_and(&seen)?,
                None => seen,
            });
            Ok(())
        };
        if let Some(mask) = mask {
            also(if mask.dtype() == DType::Bool {
                mask.clone()
            } else {
                scores = scores.add(&mask.to_dtype(wide)?)?;
                mask.eq_scalar(f64::NEG_INFINITY)?.logical_not()?
            })?;
        }
        if let Some(lengths) = lengths {
            let positions = Tensor::arange(0.0, keys as f64, 1.0, DType::I64)?;
            let counts = lengths.to_dtype(DType::I64)?;
            also(positions.lt(&counts.reshape([counts.numel(), 1, 1, 1])?)?)?;
        }
        let weights = match allowed {
            None => scores.softmax(-1)?,
            Some(allowed) => {
                // Minus infinity would give NaN where a query sees nothing: a huge number gives
                // uniform weights there, which the second choice removes.
                let fill = |value: f64| constant(scores.shape(), value, wide);
                let weights = Tensor::where_(&allowed, &scores, &fill(-1e30)?)?.softmax(-1)?;
                Tensor::where_(&allowed, &weights, &fill(0.0)?)?
            }
        };
        let weights = match self.dropout {
            Some((keep, seed, stream)) => weights.dropout(1.0 - keep.0, seed, stream)?,
            None => weights,
        };
        weights.matmul(&v)?.to_dtype(dtype)
    }
}

/// The first three of some inputs.
fn parts<'a, T>(inputs: &[&'a T]) -> [&'a T; 3] {
    [inputs[0], inputs[1], inputs[2]]
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "scaled_dot_product_attention"
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        self.infer_parts(self.name(), parts(inputs), &inputs[3..])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (out, lse) = kernel::attention(&self.problem(parts(inputs), &inputs[3..]))?;
        Ok(smallvec![out, lse])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
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
        Ok(one(self.definition(parts(inputs), &inputs[3..])?))
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
        let [g, out, lse] = returned(self.name(), outputs, cotangents)?;
        let mut gradients: Few<Option<Array>> = smallvec![None; inputs.len()];
        if needs[..3].contains(&true) {
            let problem = self.problem(parts(inputs), &inputs[3..]);
            let (dq, dk, dv) = kernel::attention_backward(&problem, g, out, lse)?;
            for (i, d) in [dq, dk, dv].into_iter().enumerate() {
                gradients[i] = needs[i].then_some(d);
            }
        }
        if needs[3..].contains(&true) {
            gradients[3] = mask_gradient(self, inputs, g, 3)?;
        }
        Ok(gradients)
    }
}

/// Cotangent, output and statistics, which backward kernels always get.
pub(crate) fn returned<'a>(
    name: &str,
    outputs: &[Option<&'a Array>],
    cotangents: &[Option<&'a Array>],
) -> Result<[&'a Array; 3]> {
    match (cotangents[0], outputs[0], outputs[1]) {
        (Some(g), Some(out), Some(lse)) => Ok([g, out, lse]),
        _ => Err(Error::autodiff(
            name,
            "backward without a cotangent or its statistics",
        )),
    }
}

/// The gradient of the mask, input `at`: a learned mask is rare and its gradient as large as the
/// scores.
pub(crate) fn mask_gradient(
    op: &dyn Expand,
    inputs: &[&Array],
    g: &Array,
    at: usize,
) -> Result<Option<Array>> {
    let only: Vec<bool> = (0..inputs.len()).map(|i| i == at).collect();
    Ok(expansion::gradients(op, inputs, &[g], &only)?.swap_remove(at))
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

/// The mask for rank-4 inputs.
#[track_caller]
fn joined_mask(mask: &Tensor, p: &Problem) -> Result<Tensor> {
    if p.lead.rank() <= 2 || mask.rank() <= 3 {
        return Ok(mask.clone());
    }
    let (queries, keys) = (p.q.dims()[2], p.k.dims()[2]);
    let mut full = p.lead.clone();
    full.push(queries);
    full.push(keys);
    let joined = [p.q.dims()[0], p.q.dims()[1], queries, keys];
    check_mask("scaled_dot_product_attention", mask.shape(), &full)?;
    mask.broadcast_to(full)?.reshape(joined)
}

/// An error unless a mask of this shape broadcasts to that of the scores.
#[track_caller]
fn check_mask(name: &'static str, mask: &Shape, scores: &Shape) -> Result<()> {
    match mask.broadcast(scores, name) {
        Ok(both) if both == *scores => Ok(()),
        _ => Err(Error::shape(
            name,
            format!("a mask that broadcasts to the scores {scores}"),
            mask,
        )),
    }
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
        let p = problem(
            &operand(&as_float(self)?)?,
            &operand(key)?,
            &operand(value)?,
        )?;
        let mask = options.mask.as_ref();
        let mask = mask.map(|m| joined_mask(m, &p)).transpose()?;
        let lengths = options.lengths.as_ref();
        let op = Attention::new(options, p.q.dims()[3], mask.is_some(), lengths.is_some());
        let inputs: Vec<&Tensor> = [&p.q, &p.k, &p.v]
            .into_iter()
            .chain(mask.as_ref())
            .chain(lengths)
            .collect();
        let out = expansion::checked(op, &inputs)?.swap_remove(0);
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

    /// The op itself takes rank 4 only; each condition alone refuses.
    #[test]
    fn the_op_takes_rank_4_of_one_dtype() {
        let a = |shape: &[usize]| Aval::new(shape, DType::F32);
        let op = Attention::new(&AttentionOptions::default(), 5, false, false);
        let infer = |q: &Aval, k: &Aval, v: &Aval| op.infer(&[q, k, v]).ok();
        let (q, k, v) = (a(&[2, 4, 3, 5]), a(&[2, 2, 6, 5]), a(&[2, 2, 6, 7]));
        let outputs = infer(&q, &k, &v).unwrap();
        assert_eq!(outputs[..], [a(&[2, 4, 3, 7]), a(&[2, 4, 3])]);
        for (q, k, v) in [
            (a(&[4, 3, 5]), k.clone(), v.clone()),
            (q.clone(), a(&[2, 6, 5]), v.clone()),
            (q.clone(), k.clone(), a(&[2, 6, 7])),
            (Aval::new([2, 4, 3, 5], DType::F64), k.clone(), v.clone()),
            (q.clone(), Aval::new([2, 2, 6, 5], DType::F64), v.clone()),
            (q.clone(), k.clone(), Aval::new([2, 2, 6, 7], DType::F64)),
            (a(&[1, 4, 3, 5]), k.clone(), v.clone()),
            (a(&[2, 4, 3, 4]), k.clone(), v.clone()),
            (q.clone(), k.clone(), a(&[2, 1, 6, 7])),
            (q.clone(), k.clone(), a(&[2, 2, 5, 7])),
            (q.clone(), k.clone(), a(&[1, 2, 6, 7])),
            (a(&[2, 3, 3, 5]), k.clone(), v.clone()),
            (a(&[2, 0, 3, 5]), a(&[2, 0, 6, 5]), a(&[2, 0, 6, 7])),
        ] {
            assert!(infer(&q, &k, &v).is_none(), "{q:?} {k:?} {v:?}");
        }
        assert_eq!(op.scale, Bits(5f64.sqrt().recip()));
        let half = AttentionOptions {
            scale: Some(0.5),
            dropout: Some((0.25, 1, 2)),
            ..Default::default()
        };
        let op = Attention::new(&half, 5, false, false);
        assert_eq!(
            (op.scale, op.dropout),
            (Bits(0.5), Some((Bits(0.75), 1, 2)))
        );
        let none = AttentionOptions {
            dropout: Some((0.0, 1, 2)),
            ..Default::default()
        };
        assert_eq!(Attention::new(&none, 5, false, false).dropout, None);
    }
}
