//! Scaled dot-product attention in blocks, forward and backward, with grouped keys and values,
//! masks, variable lengths and dropout.
//!
//! out = softmax(scale·q·kᵀ + mask)·v, never holding the scores of all positions at once: blocks
//! of queries meet blocks of keys, and a running maximum and sum rescale what was accumulated
//! (Dao, Fu, Ermon, Rudra, Ré, "FlashAttention", 2022). Forward saves one log-sum-exp per query;
//! backward rebuilds the probabilities from it. Blocks above the causal diagonal and beyond a
//! sequence's length are skipped.
//!
//! Inputs may be strided views, such as slices of one projection `[batch, time, 3, head, channel]`;
//! they are copied only if their last dimension has gaps. Results lie in memory as
//! `[batch, time, head, channel]`, so that the next projection reads them as they are.
//!
//! f32 and f64 are computed in themselves, 16-bit floats in f32. Where the processor is faster at
//! it, bf16 operands are multiplied in pairs or on tile registers and summed in f32; the weights and
//! their gradients are then rounded to bf16 between products. Block sizes are constants and work is cut by shape alone,
//! so the bits do not depend on the number of threads.

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
mod forward;
mod pack;
mod problem;
mod rows;
mod tile;

use entrenar_base::{Array, DType, Element, Error, Result, bf16, f16};

use crate::alloc::Scratch;
#[cfg(target_arch = "x86_64")]
use crate::gemm::{Way, way};
use crate::kit;
use crate::team::{self, Shared};
use backward::{Parts, Returned, Targets};
use pack::Pack;
use problem::{Heads, Problem, Sizes, readable};
#[cfg(any(test, target_arch = "x86_64"))]
use tile::Pairs;
use tile::Plain;

/// Queries per block.
const QUERIES: usize = 32;
/// Keys per block.
const KEYS: usize = 256;
/// Queries that meet one packed block of keys.
const CHUNK: usize = 512;
/// Nanoseconds per query, key and channel, on one core.
const STEP_NS: f64 = 0.015;
/// Groups (of all batch entries) below which the heads of a group are computed apart.
const FEW_GROUPS: usize = 16;

/// Dropout of the weights after the softmax: weight (b, h, i, j) is element
/// `((b·H + h)·T + i)·S + j` of the mask of [`crate::random::dropout_mask`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of keeping a weight.
    pub keep: f64,
    /// Seed of the generator.
    pub seed: u64,
    /// Stream of the generator.
    pub stream: u64,
}

/// Inputs and settings of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// `[B, H, T, D]`
    pub query: &'a Array,
    /// `[B, G, S, D]`, H a multiple of G: head h reads group h / (H / G).
    pub key: &'a Array,
    /// `[B, G, S, E]`
    pub value: &'a Array,
    /// What q·kᵀ is multiplied by.
    pub scale: f64,
    /// Query i sees keys 0..=i only (aligned at the top left, as PyTorch's `is_causal`).
    pub causal: bool,
    /// Broadcasts to `[B, H, T, S]`: bool keeps where true, floats are added.
    pub mask: Option<&'a Array>,
    /// Number of valid keys of each batch entry, integers `[B]`: nobody sees later ones.
    pub lengths: Option<&'a Array>,
    /// Dropout of the weights.
    pub dropout: Option<Dropout>,
}

impl<'a> Attention<'a> {
    /// Without mask, lengths and dropout.
    pub fn new(
        query: &'a Array,
        key: &'a Array,
        value: &'a Array,
        scale: f64,
        causal: bool,
    ) -> Self {
        Attention {
            query,
            key,
            value,
            scale,
            causal,
            mask: None,
            lengths: None,
            dropout: None,
        }
    }
}

/// Where results lie: rows of channels in an array `[.., batch, row, head, channel]`.
struct Target<'a, S> {
    data: &'a Shared<'a, S>,
    offset: usize,
    batch: usize,
    row: usize,
    head: usize,
}

impl<S> Target<'_, S> {
    /// The `width` channels of one row.
    ///
    /// # Safety
    /// While the result lives, nobody else has the same row.
    #[allow(clippy::mut_from_ref, reason = "disjoint parts of a shared output")]
    unsafe fn row(&self, batch: usize, head: usize, row: usize, width: usize) -> &mut [S] {
        let at = self.offset + batch * self.batch + row * self.row + head * self.head;
        // SAFETY: by the caller's promise.
        unsafe { self.data.slice(at..at + width) }
    }
}

/// `[B, rows, heads, width]` in one piece.
fn dense<'a, S>(data: &'a Shared<'a, S>, rows: usize, heads: usize, width: usize) -> Target<'a, S> {
    Target {
        data,
        offset: 0,
        batch: rows * heads * width,
        row: heads * width,
        head: width,
    }
}

/// Runs a block with `$P` bound to the precision for inputs of this dtype.
macro_rules! with_precision {
    ($dtype:expr, $queries:expr, $P:ident => $body:expr) => {
        match $dtype {
            DType::F64 => {
                type $P = Plain<f64, f64>;
                $body
            }
            DType::F16 => {
                type $P = Plain<f32, f16>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            DType::BF16 if way(true) == Way::Tiles && $queries >= amx::SIDE => {
                type $P = amx::Tiles;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            DType::BF16 if way(true) == Way::Dot => {
                type $P = Pairs;
                $body
            }
            DType::BF16 => {
                type $P = Plain<f32, bf16>;
                $body
            }
            _ => {
                type $P = Plain<f32, f32>;
                $body
            }
        }
    };
}

/// Attention of queries over keys; returns the output, of shape `[B, H, T, E]` and q's dtype, lying
/// in memory as `[B, T, H, E]`, and the log-sum-exp of each query's scores `[B, H, T]` in f32 (f64
/// for f64).
///
/// A query that sees nothing gets zeros and a log-sum-exp of minus infinity.
///
/// # Errors
/// When shapes or dtypes do not fit.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_cpu::attention::{Attention, attention};
/// let q = Array::zeros([1, 1, 2, 4], DType::F32);
/// let v = Array::from_vec(vec![1.0f32, 3.0], [1, 1, 2, 1])?;
/// let (out, _) = attention(&Attention::new(&q, &q, &v, 0.5, true))?;
/// assert_eq!(out.to_vec::<f32>()?, [1.0, 2.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn attention(a: &Attention<'_>) -> Result<(Array, Array)> {
    const OP: &str = "attention";
    let z = Sizes::of(OP, a)?;
    let wide = kit::compute_dtype(OP, a.query.dtype())?;
    let mask = problem::broadcast_mask(OP, a.mask, &z, wide)?;
    let counts = problem::key_counts(OP, a.lengths, &z)?;
    let (q, k, v) = (readable(a.query)?, readable(a.key)?, readable(a.value)?);
    let (out, lse) = with_precision!(a.query.dtype(), z.queries, P => {
        let p = Problem::<P>::new(a, z, [&q, &k, &v], mask.as_ref(), counts)?;
        run_forward(&p)?
    });
    Ok((out.permute(&[0, 2, 1, 3])?, lse))
}

fn run_forward<P: Pack>(p: &Problem<'_, P>) -> Result<(Array, Array)> {
    let z = p.z;
    let mut lse = Array::zeros([z.batch, z.heads, z.queries], <P::Sum as Element>::DTYPE);
    let lses = Shared::new(lse.make_mut::<P::Sum>()?);
    let shape = [z.batch, z.queries, z.heads, z.value_width];
    let out = Array::build(shape, |out: &mut [P::Source]| {
        let data = Shared::new(out);
        let out = dense(&data, z.queries, z.heads, z.value_width);
        let chunks = z.queries.div_ceil(CHUNK);
        let steps = z.share() * CHUNK.min(z.queries) * z.keys * (z.width + z.value_width + 16);
        team::split(
            z.batch * z.groups * chunks,
            steps as f64 * STEP_NS,
            |items| {
                for item in items {
                    let (pair, chunk) = (item / chunks, item % chunks);
                    let queries = chunk * CHUNK..((chunk + 1) * CHUNK).min(z.queries);
                    forward::chunk(p, pair / z.groups, pair % z.groups, queries, &out, &lses);
                }
            },
        );
    });
    Ok((out, lse))
}

/// Gradients of [`attention`] with respect to q, k and v, each in its input's shape and dtype,
/// lying in memory as `[B, rows, heads, width]`.
///
/// `out` and `lse` are those the forward pass returned; the settings must be the same. A float
/// mask gets no gradient here.
///
/// # Errors
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn attention_backward(
    a: &Attention<'_>,
    grad: &Array,
    out: &Array,
    lse: &Array,
) -> Result<(Array, Array, Array)> {
    const OP: &str = "attention_backward";
    let z = Sizes::of(OP, a)?;
    let ([dq, dk, dv], _) = gradients(OP, a, z, grad, out, lse, false)?;
    let finish = |x: Option<Array>, shape: [usize; 4]| -> Result<Array> {
        let x = x.expect("three separate gradients were asked for");
        x.reshape(shape)?.permute(&[0, 2, 1, 3])
    };
    Ok((
        finish(dq, [z.batch, z.queries, z.heads, z.width])?,
        finish(dk, [z.batch, z.keys, z.groups, z.width])?,
        finish(dv, [z.batch, z.keys, z.groups, z.value_width])?,
    ))
}

/// The gradients of [`attention`] side by side: `[B, T, H·D + G·D + G·E]` holds those of all query
/// heads, then of the keys, then of the values. For inputs that are parts of one projection.
///
/// # Errors
/// As [`attention_backward`], and when there are not as many keys as queries.
#[track_caller]
pub fn packed_attention_backward(
    a: &Attention<'_>,
    grad: &Array,
    out: &Array,
    lse: &Array,
) -> Result<Array> {
    const OP: &str = "packed_attention_backward";
    let z = Sizes::of(OP, a)?;
    if z.keys != z.queries {
        return Err(Error::shape(
            OP,
            format!("as many keys as queries, {}", z.queries),
            a.key.shape(),
        ));
    }
    let (_, packed) = gradients(OP, a, z, grad, out, lse, true)?;
    let packed = packed.expect("one joint gradient was asked for");
    let width = z.heads * z.width + z.groups * (z.width + z.value_width);
    packed.reshape([z.batch, z.queries, width])
}

/// Three gradients, or one joint one.
type Gradients = ([Option<Array>; 3], Option<Array>);

#[track_caller]
fn gradients(
    op: &str,
    a: &Attention<'_>,
    z: Sizes,
    grad: &Array,
    out: &Array,
    lse: &Array,
    joint: bool,
) -> Result<Gradients> {
    let shape = [z.batch, z.heads, z.queries, z.value_width];
    for (what, x) in [("gradient", grad), ("output", out)] {
        kit::same_dtype(op, a.query, x)?;
        if x.dims() != shape {
            return Err(Error::shape(
                op,
                format!("{what} of shape {shape:?}"),
                x.shape(),
            ));
        }
    }
    if lse.dims() != &shape[..3] {
        return Err(Error::shape(
            op,
            format!("log-sum-exps of shape {:?}", &shape[..3]),
            lse.shape(),
        ));
    }
    let wide = kit::compute_dtype(op, a.query.dtype())?;
    let mask = problem::broadcast_mask(op, a.mask, &z, wide)?;
    let counts = problem::key_counts(op, a.lengths, &z)?;
    let [q, k, v] = [readable(a.query)?, readable(a.key)?, readable(a.value)?];
    let [grad, out] = [readable(grad)?, readable(out)?];
    let lse = kit::dense(lse, wide)?;
    with_precision!(a.query.dtype(), z.queries, P => {
        let p = Problem::<P>::new(a, z, [&q, &k, &v], mask.as_ref(), counts)?;
        let back = Returned::<P> {
            grad: Heads::new(&grad)?,
            out: Heads::new(&out)?,
            lse: lse.as_slice()?,
        };
        Ok(run_backward(&p, &back, joint))
    })
}

fn run_backward<P: Pack>(p: &Problem<'_, P>, back: &Returned<'_, P>, joint: bool) -> Gradients {
    let z = p.z;
    // Few groups would leave threads idle: their heads are computed apart, and then added.
    let apart = z.share() > 1 && z.batch * z.groups < FEW_GROUPS;
    let run = |to: &Targets<'_, P::Source>| {
        let steps = (z.queries * z.keys * (3 * z.width + 2 * z.value_width + 32)) as f64 * STEP_NS;
        if !apart {
            team::split(z.batch * z.groups, z.share() as f64 * steps, |items| {
                for item in items {
                    let (batch, head) = (item / z.groups, item % z.groups * z.share());
                    let heads = head..head + z.share();
                    backward::some_heads(p, back, batch, heads, to, None);
                }
            });
            return;
        }
        let rows = z.batch * z.heads * z.keys;
        let mut dk = Scratch::<P::Sum>::new(rows * z.width);
        let mut dv = Scratch::<P::Sum>::new(rows * z.value_width);
        let parts = Parts {
            dk: Shared::new(&mut dk),
            dv: Shared::new(&mut dv),
        };
        team::split(z.batch * z.heads, steps, |items| {
            for item in items {
                let (batch, head) = (item / z.heads, item % z.heads);
                backward::some_heads(p, back, batch, head..head + 1, to, Some(&parts));
            }
        });
        let row = (z.heads * (z.width + z.value_width)) as f64 * 0.2;
        team::split(z.batch * z.groups * z.keys, row, |range| {
            backward::add_parts::<P>(&z, &parts, range, to);
        });
    };
    if joint {
        let (key, value) = (z.heads * z.width, (z.heads + z.groups) * z.width);
        let row = value + z.groups * z.value_width;
        let joint = Array::build([z.batch, z.queries, row], |all: &mut [P::Source]| {
            let data = Shared::new(all);
            let part = |offset: usize, head: usize| Target {
                data: &data,
                offset,
                batch: z.queries * row,
                row,
                head,
            };
            run(&Targets {
                query: part(0, z.width),
                key: part(key, z.width),
                value: part(value, z.value_width),
            });
        });
        return ([None, None, None], Some(joint));
    }
    let (mut dq, mut dk) = (None, None);
    let dv = Array::build(
        [z.batch, z.keys, z.groups, z.value_width],
        |dv: &mut [P::Source]| {
            dk = Some(Array::build(
                [z.batch, z.keys, z.groups, z.width],
                |dk: &mut [P::Source]| {
                    dq = Some(Array::build(
                        [z.batch, z.queries, z.heads, z.width],
                        |dq: &mut [P::Source]| {
                            let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
                            run(&Targets {
                                query: dense(&dq, z.queries, z.heads, z.width),
                                key: dense(&dk, z.keys, z.groups, z.width),
                                value: dense(&dv, z.keys, z.groups, z.value_width),
                            });
                        },
                    ));
                },
            ));
        },
    );
    ([dq, dk, Some(dv)], None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::Philox;

    /// Output and joint gradient in precision `P`, as f64.
    fn run<P: Pack>(qkv: &Array, grad: &Array, causal: bool) -> [Vec<f64>; 2] {
        let (b, t, h, d) = (2, 75, 2, 40);
        let part = |i: usize| {
            let part = qkv.slice(2, i, i + 1, 1).unwrap();
            let part = part.reshape([b, t, h, d]).unwrap();
            part.permute(&[0, 2, 1, 3]).unwrap()
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let a = Attention::new(&q, &k, &v, 0.3, causal);
        let z = Sizes::of("test", &a).unwrap();
        let p = Problem::<P>::new(&a, z, [&q, &k, &v], None, None).unwrap();
        let (out, lse) = run_forward(&p).unwrap();
        let view = out.permute(&[0, 2, 1, 3]).unwrap();
        let back = Returned::<P> {
            grad: Heads::new(grad).unwrap(),
            out: Heads::new(&view).unwrap(),
            lse: lse.as_slice().unwrap(),
        };
        let joint = run_backward(&p, &back, true).1.unwrap();
        [out.to_f64_vec(), joint.to_f64_vec()]
    }

    /// Every precision for bf16, whichever this processor prefers, against f64 on the same inputs.
    #[test]
    fn both_ways_with_bf16_stay_near_f64() {
        let r = Philox::new(1, 1);
        let random = |shape: &[usize], from: u64| {
            let n = shape.iter().product::<usize>() as u64;
            let values = (from..from + n).map(|i| bf16::from_f64(r.normal(i)));
            Array::from_vec(values.collect::<Vec<_>>(), shape).unwrap()
        };
        let (qkv, grad) = (
            random(&[2, 75, 3, 2, 40], 0),
            random(&[2, 2, 75, 40], 50_000),
        );
        let (wide, wide_grad) = (qkv.cast(DType::F64), grad.cast(DType::F64));
        for causal in [true, false] {
            let exact = run::<Plain<f64, f64>>(&wide, &wide_grad, causal);
            let widened = run::<Plain<f32, bf16>>(&qkv, &grad, causal);
            let pairs = run::<Pairs>(&qkv, &grad, causal);
            let mut results = vec![(widened, 0.005), (pairs, 0.02)];
            #[cfg(target_arch = "x86_64")]
            if crate::simd::amx::available() {
                results.push((run::<amx::Tiles>(&qkv, &grad, causal), 0.02));
            }
            for (found, tolerance) in results {
                for (found, exact) in found.iter().zip(&exact) {
                    let size = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                    for (x, y) in found.iter().zip(exact) {
                        assert!((x - y).abs() <= tolerance * size, "{x} {y} of {size}");
                    }
                }
            }
        }
    }
}
