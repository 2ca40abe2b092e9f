//! What happens to a row of scores between two products: softmax forward, its gradient backward.
//!
//! The scale of the scores is folded into the exponential. Sums run over fixed lanes (`kit`).

use crate::kit::{self, LANES, Real};
use crate::simd::multiversion;

multiversion! {
    pub(super) fn scale_row<T: Real>(x: &mut [T], factor: T) {
        kit::scale(x, factor);
    }
}

multiversion! {
    pub(super) fn multiply_rows<T: Real>(x: &mut [T], factors: &[T]) {
        let factors = &factors[..x.len()];
        for i in 0..x.len() {
            x[i] *= factors[i];
        }
    }
}

multiversion! {
    pub(super) fn dot_rows<T: Real>(a: &[T], b: &[T]) -> T {
        kit::dot(a, b)
    }
}

/// x = exp(scale·x - shift); returns the sum.
#[inline(always)]
fn exp_sum<T: Real>(x: &mut [T], scale: T, shift: T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for c in chunks {
        let mut y = [T::ZERO; LANES];
        for l in 0..LANES {
            y[l] = c[l].mul_add(scale, -shift).exp();
        }
        for l in 0..LANES {
            lanes[l] += y[l];
        }
        *c = y;
    }
    if !tail.is_empty() {
        for l in 0..tail.len() {
            tail[l] = tail[l].mul_add(scale, -shift).exp();
        }
        let tail = kit::padded(tail, T::ZERO);
        for l in 0..LANES {
            lanes[l] += tail[l];
        }
    }
    kit::add_lanes(lanes)
}

multiversion! {
    /// Turns a row of scores into exponentials relative to the running maximum `m` (of scaled
    /// scores; `scale` > 0), adds their sum to `s`; returns the factor by which earlier results
    /// shrink.
    pub(super) fn online_row<T: Real>(x: &mut [T], scale: T, m: &mut T, s: &mut T) -> T {
        let top = kit::max(x) * scale;
        let (old, new) = (*m, if top > *m { top } else { *m });
        if new == T::NEG_INFINITY {
            // Everything masked so far. A NaN among the scores stays one; the rest weighs nothing.
            for v in x {
                let weight = if v.is_nan() { T::NAN } else { T::ZERO };
                *v = weight;
                *s += weight;
            }
            return T::ONE;
        }
        let shrink = if old == T::NEG_INFINITY { T::ONE } else { (old - new).exp() };
        *s = *s * shrink + exp_sum(x, scale, new);
        *m = new;
        shrink
    }
}

multiversion! {
    /// x = exp(scale·x - lse); zeros for a row that was masked everywhere.
    pub(super) fn rebuild_row<T: Real>(x: &mut [T], scale: T, lse: T) {
        if lse == T::NEG_INFINITY {
            x.fill(T::ZERO);
            return;
        }
        for x in x {
            *x = x.mul_add(scale, -lse).exp();
        }
    }
}

multiversion! {
    /// dp = p·(dp - delta)·scale.
    pub(super) fn score_gradient_row<T: Real>(p: &[T], dp: &mut [T], delta: T, scale: T) {
        let p = &p[..dp.len()];
        for i in 0..dp.len() {
            dp[i] = p[i] * (dp[i] - delta) * scale;
        }
    }
}
