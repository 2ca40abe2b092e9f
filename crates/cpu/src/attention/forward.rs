//! The forward pass of one group of heads over one chunk of queries.

use std::ops::Range;

use super::pack::{self, GROUP, Pack, padded_columns};
use super::problem::Problem;
use super::rows;
use super::tile::product;
use super::{KEYS, QUERIES, Target};
use crate::alloc::Scratch;
use crate::cast::convert;
use crate::kit::Real;
use crate::team::Shared;
use entrenar_base::Float;

/// Running results of the queries of a chunk, head by head.
struct Running<T: Real> {
    /// `[heads, padded queries, padded value width]`
    out: Scratch<T>,
    /// Maximum of the scaled scores, `[heads, queries]`.
    top: Scratch<T>,
    /// Sum of exponentials relative to it.
    sum: Scratch<T>,
}

/// Attention of `queries` of every head of `group`; writes their rows of `out` and `lse`.
pub(super) fn chunk<P: Pack>(
    p: &Problem<'_, P>,
    batch: usize,
    group: usize,
    queries: Range<usize>,
    out: &Target<'_, P::Source>,
    lse: &Shared<'_, P::Sum>,
) {
    let _session = P::enter();
    let z = &p.z;
    let (share, count) = (z.share(), queries.len());
    let value_width = padded_columns(z.value_width);
    let last = p.visible(batch, queries.end);
    let mut running = Running::<P::Sum> {
        out: Scratch::new(share * P::padded_rows(count) * value_width),
        top: Scratch::new(share * count),
        sum: Scratch::zeroed(share * count),
    };
    running.top.fill(P::Sum::NEG_INFINITY);
    if last == 0 {
        running.out.fill(P::Sum::ZERO);
    }
    accumulate(p, batch, group, &queries, last, &mut running);
    for h in 0..share {
        let head = group * share + h;
        for (i, query) in queries.clone().enumerate() {
            let at = (h * P::padded_rows(count) + i) * value_width;
            let row = &mut running.out[at..at + z.value_width];
            let (mut top, sum) = (running.top[h * count + i], running.sum[h * count + i]);
            if sum == P::Sum::ZERO {
                row.fill(P::Sum::ZERO);
            } else {
                rows::scale_row(row, P::Sum::ONE / sum);
                top += sum.ln();
            }
            // SAFETY: rows of this group and chunk belong to this call alone.
            unsafe {
                convert(row, out.row(batch, head, query, z.value_width));
                let at = (batch * z.heads + head) * z.queries + query;
                lse.slice(at..at + 1)[0] = top;
            }
        }
    }
}

/// Goes through all visible keys, block by block.
fn accumulate<P: Pack>(
    p: &Problem<'_, P>,
    batch: usize,
    group: usize,
    queries: &Range<usize>,
    last: usize,
    running: &mut Running<P::Sum>,
) {
    let z = &p.z;
    let (share, count) = (z.share(), queries.len());
    let (steps, value_width) = (P::steps(z.width), padded_columns(z.value_width));
    let (block, widest) = (
        P::padded_rows(QUERIES.min(count)),
        padded_columns(KEYS.min(last)),
    );
    let mut line = Scratch::<P::Operand>::new(GROUP * steps);
    let mut keys = Scratch::<P::Operand>::new(widest * steps);
    let mut values = Scratch::<P::Operand>::new(P::steps(widest) * value_width);
    let mut query_rows = Scratch::<P::Operand>::new(block * steps);
    let mut scores = Scratch::<P::Sum>::new(block * widest);
    let mut room = Scratch::<P::Operand>::new(if P::GROUP == 1 { 0 } else { block * widest / 2 });
    let mut factors = Scratch::<P::Sum>::new(widest);
    for first in (0..last).step_by(KEYS) {
        let here = KEYS.min(last - first);
        let key = p.k.rows((batch, group, first), here, z.width);
        let value = p.v.rows((batch, group, first), here, z.value_width);
        value.prefetch(0, 16);
        p.q.rows(
            (batch, group * share, queries.start),
            QUERIES.min(count),
            z.width,
        )
        .prefetch(0, QUERIES);
        let kt = pack::transposed::<P>(p.tile.nr, key, &mut line, &mut keys);
        let v = pack::along::<P>(p.tile.nr, value, &mut values, true);
        for h in 0..share {
            let head = group * share + h;
            for start in queries.clone().step_by(QUERIES) {
                let end = (start + QUERIES).min(queries.end);
                let visible = p.visible(batch, end).min(first + here);
                if visible <= first {
                    continue;
                }
                let (n, width) = (end - start, padded_columns(visible - first));
                let rows = P::padded_rows(n);
                let query = p.q.rows((batch, head, start), n, z.width);
                let q = pack::by_rows::<P>(query, &mut query_rows);
                let next = QUERIES.min(queries.end - end);
                p.q.rows((batch, head, end), next, z.width)
                    .prefetch(0, next);
                let scores = &mut scores[..rows * width];
                p.scores(scores, (rows, width, n), q, kt, (batch, head, start), first);
                let from = start - queries.start;
                let at = (h * P::padded_rows(count) + from) * value_width;
                let out = &mut running.out[at..at + rows * value_width];
                scores[n * width..].fill(P::Sum::ZERO);
                for (i, row) in scores.chunks_exact_mut(width).take(n).enumerate() {
                    let seen = p.seen(batch, start + i, first, width);
                    // Whole groups of lanes: what is hidden among them weighs nothing.
                    let (row, hidden) = row.split_at_mut(padded_columns(seen));
                    row[seen..].fill(P::Sum::NEG_INFINITY);
                    hidden.fill(P::Sum::ZERO);
                    let at = h * count + from + i;
                    let (top, sum) = (&mut running.top[at], &mut running.sum[at]);
                    let shrink = rows::online_row(row, p.fold, top, sum);
                    if first > 0 && shrink != P::Sum::ONE {
                        let out = &mut out[i * value_width..(i + 1) * value_width];
                        rows::scale_row(out, shrink);
                    }
                    let place = (batch, head, start + i);
                    if let Some(f) = p.dropout_factors(place, first, &mut factors[..seen]) {
                        rows::multiply_rows(&mut row[..seen], f);
                    }
                }
                let weights = P::scores_by_rows(scores, width, width, &mut room);
                let sizes = (rows, value_width, P::steps(visible - first));
                product(&p.tile, out, value_width, sizes, weights, v, first > 0);
            }
        }
    }
}
