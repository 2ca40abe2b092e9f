//! The backward pass of some heads of a group: probabilities are rebuilt from the log-sum-exps.
//!
//! With p = softmax(s), o = p·v and cotangent g: dv = pᵀ·g, dp = g·vᵀ, ds = p·(dp - Σ g·o)·scale,
//! dq = ds·k, dk = dsᵀ·q. Dropout factors f multiply p in dv and dp in ds.

use super::pack::{self, GROUP, Pack, padded_columns};
use super::problem::{Heads, Problem, Sizes};
use super::rows;
use super::tile::product;
use super::{KEYS, QUERIES, Target};
use crate::alloc::Scratch;
use crate::cast::convert;
use crate::kit::{self, Real};
use crate::team::Shared;
use entrenar_base::Float;
use std::ops::Range;

/// What flowed in, and what the forward pass returned.
pub(super) struct Returned<'a, P: Pack> {
    pub grad: Heads<'a, P::Source>,
    pub out: Heads<'a, P::Source>,
    /// `[batch, heads, queries]`
    pub lse: &'a [P::Sum],
}

/// Where the gradients go.
pub(super) struct Targets<'a, S> {
    pub query: Target<'a, S>,
    pub key: Target<'a, S>,
    pub value: Target<'a, S>,
}

/// Operand memory for one block of queries.
struct Room<P: Pack> {
    query_rows: Scratch<P::Operand>,
    query_along: Scratch<P::Operand>,
    grad_rows: Scratch<P::Operand>,
    grad_along: Scratch<P::Operand>,
    scores: Scratch<P::Sum>,
    dscores: Scratch<P::Sum>,
    room: Scratch<P::Operand>,
    factors: Scratch<P::Sum>,
}

/// Sums over the blocks.
struct Sums<T: Real> {
    /// `[heads of the part, padded queries, padded width]`
    dq: Scratch<T>,
    /// `[padded keys of a block, padded width]`
    dk: Scratch<T>,
    dv: Scratch<T>,
    /// Σ g·o of each query, `[heads of the part, queries]`.
    deltas: Scratch<T>,
}

/// Sums over the heads of a part of a group, where the parts of a group are computed apart.
pub(super) struct Parts<'a, T> {
    /// `[batch, heads, keys, width]`: that of the part's first head is filled.
    pub dk: Shared<'a, T>,
    pub dv: Shared<'a, T>,
}

/// Gradients of some heads of one batch entry, all of the group of the first: those of the queries
/// go to `to`, those of keys and values to `parts`, or to `to` too when the heads are the group.
pub(super) fn some_heads<P: Pack>(
    p: &Problem<'_, P>,
    back: &Returned<'_, P>,
    batch: usize,
    heads: Range<usize>,
    to: &Targets<'_, P::Source>,
    parts: Option<&Parts<'_, P::Sum>>,
) {
    let _session = P::enter();
    let z = &p.z;
    let (group, nr) = (heads.start / z.share(), p.tile.nr);
    let (width, value_width) = (padded_columns(z.width), padded_columns(z.value_width));
    let (block, widest) = (
        P::padded_rows(QUERIES.min(z.queries)),
        padded_columns(KEYS.min(z.keys)),
    );
    let (steps, value_steps) = (P::steps(z.width), P::steps(z.value_width));
    let mut sums = Sums::<P::Sum> {
        dq: Scratch::zeroed(heads.len() * P::padded_rows(z.queries) * width),
        dk: Scratch::new(widest * width),
        dv: Scratch::new(widest * value_width),
        deltas: deltas(p, back, batch, heads.clone()),
    };
    let mut room = Room::<P> {
        query_rows: Scratch::new(block * steps),
        query_along: Scratch::new(P::steps(block) * width),
        grad_rows: Scratch::new(block * value_steps),
        grad_along: Scratch::new(P::steps(block) * value_width),
        scores: Scratch::new(block * widest),
        dscores: Scratch::new(block * widest),
        room: Scratch::new(if P::GROUP == 1 { 0 } else { block * widest / 2 }),
        factors: Scratch::new(widest),
    };
    let mut line = Scratch::<P::Operand>::new(GROUP * steps.max(value_steps));
    let mut keys = Scratch::<P::Operand>::new(widest * steps);
    let mut keys_along = Scratch::<P::Operand>::new(P::steps(widest) * width);
    let mut values = Scratch::<P::Operand>::new(widest * value_steps);
    let last = p.visible(batch, z.queries);
    for first in (0..z.keys).step_by(KEYS) {
        let all = KEYS.min(z.keys - first);
        sums.dk.fill(P::Sum::ZERO);
        sums.dv.fill(P::Sum::ZERO);
        if first < last {
            let here = all.min(last - first);
            let key = p.k.rows((batch, group, first), here, z.width);
            let value = p.v.rows((batch, group, first), here, z.value_width);
            let operands = Keys {
                transposed: pack::transposed::<P>(nr, key, &mut line, &mut keys),
                along: pack::along::<P>(nr, key, &mut keys_along, true),
                values: pack::transposed::<P>(nr, value, &mut line, &mut values),
            };
            for (h, head) in heads.clone().enumerate() {
                for start in (0..z.queries).step_by(QUERIES) {
                    let end = (start + QUERIES).min(z.queries);
                    let visible = p.visible(batch, end).min(first + here);
                    if visible > first {
                        let place = (batch, head, start..end);
                        let seen = (first, visible - first);
                        query_block(p, back, &operands, place, h, seen, &mut room, &mut sums);
                    }
                }
            }
        }
        for j in 0..all {
            let dk = &sums.dk[j * width..][..z.width];
            let dv = &sums.dv[j * value_width..][..z.value_width];
            // SAFETY: rows of these heads, or of their group, belong to this call alone.
            unsafe {
                match parts {
                    Some(parts) => {
                        let row = (batch * z.heads + heads.start) * z.keys + first + j;
                        let keys = row * z.width..(row + 1) * z.width;
                        convert(dk, parts.dk.slice(keys));
                        let values = row * z.value_width..(row + 1) * z.value_width;
                        convert(dv, parts.dv.slice(values));
                    }
                    None => {
                        convert(dk, to.key.row(batch, group, first + j, z.width));
                        convert(dv, to.value.row(batch, group, first + j, z.value_width));
                    }
                }
            }
        }
    }
    for (h, head) in heads.enumerate() {
        for query in 0..z.queries {
            let at = (h * P::padded_rows(z.queries) + query) * width;
            // SAFETY: as above.
            unsafe {
                convert(
                    &sums.dq[at..at + z.width],
                    to.query.row(batch, head, query, z.width),
                );
            }
        }
    }
}

/// Adds up the parts of keys `range` (of all batch entries and groups, in order), head by head.
pub(super) fn add_parts<P: Pack>(
    z: &Sizes,
    parts: &Parts<'_, P::Sum>,
    range: Range<usize>,
    to: &Targets<'_, P::Source>,
) {
    let widest = z.width.max(z.value_width);
    let mut sum = Scratch::<P::Sum>::new(widest);
    for item in range {
        let (group, key) = (item / z.keys, item % z.keys);
        let (batch, group) = (group / z.groups, group % z.groups);
        for (parts, width, to) in [
            (&parts.dk, z.width, &to.key),
            (&parts.dv, z.value_width, &to.value),
        ] {
            let sum = &mut sum[..width];
            sum.fill(P::Sum::ZERO);
            for head in group * z.share()..(group + 1) * z.share() {
                let row = (batch * z.heads + head) * z.keys + key;
                // SAFETY: all parts are complete and only read; the row belongs to this call alone.
                kit::add_slices(sum, unsafe { parts.slice(row * width..(row + 1) * width) });
            }
            // SAFETY: as above.
            convert(sum, unsafe { to.row(batch, group, key, width) });
        }
    }
}

/// Σ g·o of every query of the heads.
fn deltas<P: Pack>(
    p: &Problem<'_, P>,
    back: &Returned<'_, P>,
    batch: usize,
    heads: Range<usize>,
) -> Scratch<P::Sum> {
    let z = &p.z;
    let e = z.value_width;
    let mut deltas = Scratch::<P::Sum>::new(heads.len() * z.queries);
    let mut wide = Scratch::<P::Sum>::new(2 * e);
    let (g, o) = wide.split_at_mut(e);
    for (h, head) in heads.enumerate() {
        for query in 0..z.queries {
            convert(back.grad.rows((batch, head, query), 1, e).row(0), g);
            convert(back.out.rows((batch, head, query), 1, e).row(0), o);
            deltas[h * z.queries + query] = rows::dot_rows(g, o);
        }
    }
    deltas
}

/// A block of keys and values as right operands.
struct Keys<'a, P: Pack> {
    transposed: super::tile::Right<'a, P::Operand>,
    along: super::tile::Right<'a, P::Operand>,
    values: super::tile::Right<'a, P::Operand>,
}

/// One block of queries of the `h`-th head of the part against the keys `seen` (first and number).
#[allow(
    clippy::too_many_arguments,
    reason = "the inner part of a five-fold loop"
)]
fn query_block<P: Pack>(
    p: &Problem<'_, P>,
    back: &Returned<'_, P>,
    keys: &Keys<'_, P>,
    (batch, head, queries): (usize, usize, std::ops::Range<usize>),
    h: usize,
    (first, visible): (usize, usize),
    room: &mut Room<P>,
    sums: &mut Sums<P::Sum>,
) {
    let (z, tile, nr) = (&p.z, &p.tile, p.tile.nr);
    let (start, n) = (queries.start, queries.len());
    let (rows, width) = (P::padded_rows(n), padded_columns(visible));
    let (dw, ew) = (padded_columns(z.width), padded_columns(z.value_width));
    let query = p.q.rows((batch, head, start), n, z.width);
    let grad = back.grad.rows((batch, head, start), n, z.value_width);
    // A few rows stay in cache wherever they lie.
    let q = pack::by_rows::<P>(query, &mut room.query_rows);
    let q_along = pack::along::<P>(nr, query, &mut room.query_along, false);
    let g = pack::by_rows::<P>(grad, &mut room.grad_rows);
    let g_along = pack::along::<P>(nr, grad, &mut room.grad_along, false);
    let next = QUERIES.min(z.queries - queries.end);
    let after = (batch, head, queries.end);
    p.q.rows(after, next, z.width).prefetch(0, next);
    back.grad.rows(after, next, z.value_width).prefetch(0, next);
    let weights = &mut room.scores[..rows * width];
    let slopes = &mut room.dscores[..rows * width];
    let place = (batch, head, start);
    p.scores(weights, (rows, width, n), q, keys.transposed, place, first);
    let depth = keys.values.steps;
    product(
        tile,
        slopes,
        width,
        (rows, width, depth),
        g,
        keys.values,
        false,
    );
    weights[n * width..].fill(P::Sum::ZERO);
    slopes[n * width..].fill(P::Sum::ZERO);
    let block = weights
        .chunks_exact_mut(width)
        .zip(slopes.chunks_exact_mut(width));
    for (i, (row, slope)) in block.take(n).enumerate() {
        let seen = p.seen(batch, start + i, first, width);
        // Whole groups of lanes: what is hidden among them weighs nothing.
        let (row, hidden) = row.split_at_mut(padded_columns(seen));
        row[seen..].fill(P::Sum::NEG_INFINITY);
        hidden.fill(P::Sum::ZERO);
        let (slope, flat) = slope.split_at_mut(seen);
        flat.fill(P::Sum::ZERO);
        let lse = back.lse[(batch * z.heads + head) * z.queries + start + i];
        let delta = sums.deltas[h * z.queries + start + i];
        rows::rebuild_row(row, p.fold, lse);
        let place = (batch, head, start + i);
        let factors = p.dropout_factors(place, first, &mut room.factors[..seen]);
        if let Some(f) = factors {
            rows::multiply_rows(slope, f);
        }
        rows::score_gradient_row(row, slope, delta, p.scale);
        if let Some(f) = factors {
            rows::multiply_rows(&mut row[..seen], f);
        }
    }
    let depth = P::steps(n);
    let left = P::scores_by_columns(weights, width, width, &mut room.room);
    product(
        tile,
        &mut sums.dv,
        ew,
        (width, ew, depth),
        left,
        g_along,
        true,
    );
    let left = P::scores_by_columns(slopes, width, width, &mut room.room);
    product(
        tile,
        &mut sums.dk,
        dw,
        (width, dw, depth),
        left,
        q_along,
        true,
    );
    let left = P::scores_by_rows(slopes, width, width, &mut room.room);
    let at = (h * P::padded_rows(z.queries) + start) * dw;
    let dq = &mut sums.dq[at..at + rows * dw];
    product(
        tile,
        dq,
        dw,
        (rows, dw, P::steps(visible)),
        left,
        keys.along,
        true,
    );
}
