//! Sampling of text, one token at a time.
//!
//! The order is the usual one: temperature, then the `top_k` likeliest, then the smallest set with
//! probability `top_p`, then a draw. Draw number i is a function of (seed, i) alone, so a seed
//! names a text.

use entrenar_core::{Error, Result, Tensor, no_grad};
use entrenar_nn::{Ctx, Module};

use crate::Gpt;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Most tokens to add.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the smallest set of likeliest tokens with this probability.
    pub top_p: Option<f64>,
    /// Names the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            max_new_tokens: 100,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            seed: 0,
        }
    }
}

/// Continues `tokens`, calling `on_token` with each new one; generation ends early when it returns
/// `false`. Only the last `context` tokens are seen. Returns all tokens.
///
/// # Errors
/// When there is no token to start from, a setting is impossible, or a token is outside the
/// vocabulary.
///
/// ```
/// use entrenar_zoo::{Gpt, GptConfig, Sampling, generate};
/// use entrenar_nn::Init;
/// let config = GptConfig { vocabulary: 5, context: 4, layers: 1, heads: 2, width: 8, ..Default::default() };
/// let model = Gpt::new(config, &mut Init::new(0))?;
/// let greedy = Sampling { max_new_tokens: 6, temperature: 0.0, ..Default::default() };
/// let text = generate(&model, &[1], &greedy, &mut |_| true)?;
/// assert_eq!(text.len(), 7);
/// assert_eq!(text, generate(&model, &[1], &greedy, &mut |_| true)?);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn generate(
    model: &Gpt,
    tokens: &[u32],
    sampling: &Sampling,
    on_token: &mut dyn FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    if tokens.is_empty() {
        return Err(Error::argument(
            "generate",
            "at least one token to continue",
            "none",
        ));
    }
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return Err(Error::argument(
            "generate",
            "a temperature of 0 or more",
            sampling.temperature,
        ));
    }
    if sampling.top_k == Some(0) {
        return Err(Error::argument("generate", "top_k of at least 1", 0));
    }
    if let Some(p) = sampling.top_p
        && !(p > 0.0 && p <= 1.0)
    {
        return Err(Error::argument("generate", "top_p in (0, 1]", p));
    }
    let rng = entrenar_base::Philox::new(sampling.seed, 0x6765_6e65);
    let context = model.config().context;
    let mut all = tokens.to_vec();
    for i in 0..sampling.max_new_tokens {
        let window = &all[all.len().saturating_sub(context)..];
        let input: Vec<i64> = window.iter().map(|&t| t as i64).collect();
        let input = Tensor::from_vec(input, [1, window.len()])?;
        let logits = no_grad(|| {
            let x = model.features(&input, &mut Ctx::eval())?;
            // Only the last position decides.
            let last = x.narrow(1, window.len() - 1, 1)?;
            model.head.forward(&last, &mut Ctx::eval())
        })?;
        let next = choose(
            &logits.array().to_f64_vec(),
            sampling,
            rng.uniform64(i as u64),
        )?;
        all.push(next);
        if !on_token(next) {
            break;
        }
    }
    Ok(all)
}

/// The token that the draw `u` in [0, 1) names.
fn choose(logits: &[f64], sampling: &Sampling, u: f64) -> Result<u32> {
    // Minus infinity is a token that cannot come; all of them would leave none.
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if logits.iter().any(|l| l.is_nan()) || !top.is_finite() {
        return Err(Error::non_finite(
            "generate",
            "the model's logits hold NaN or infinity",
        ));
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Ties keep the lower token first.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if sampling.temperature == 0.0 {
        return Ok(order[0] as u32);
    }
    if let Some(k) = sampling.top_k {
        order.truncate(k);
    }
    let weights: Vec<f64> = order
        .iter()
        .map(|&t| ((logits[t] - top) / sampling.temperature).exp())
        .collect();
    let mut kept = weights.len();
    if let Some(p) = sampling.top_p {
        let goal = p * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        kept = weights
            .iter()
            .position(|w| {
                sum += w;
                sum >= goal
            })
            .map_or(kept, |i| i + 1);
    }
    let total: f64 = weights[..kept].iter().sum();
    let mut rest = u * total;
    for (&token, w) in order.iter().zip(&weights[..kept]) {
        rest -= w;
        if rest < 0.0 {
            return Ok(token as u32);
        }
    }
    Ok(order[kept - 1] as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_the_distribution_and_its_cuts() {
        let logits = [1.0f64.ln(), 4.0f64.ln(), 3.0f64.ln(), 2.0f64.ln()];
        let rng = entrenar_base::Philox::new(1, 1);
        let share = |s: &Sampling| {
            let mut counts = [0.0; 4];
            for i in 0..20_000 {
                counts[choose(&logits, s, rng.uniform64(i)).unwrap() as usize] += 1.0 / 20_000.0;
            }
            counts
        };
        let near = |a: [f64; 4], b: [f64; 4]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 0.015);
        let s = Sampling::default();
        assert!(near(share(&s), [0.1, 0.4, 0.3, 0.2]));
        assert!(near(
            share(&Sampling {
                top_k: Some(2),
                ..s.clone()
            }),
            [0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]
        ));
        assert!(near(
            share(&Sampling {
                top_p: Some(0.6),
                ..s.clone()
            }),
            [0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]
        ));
        // Temperature 1/2 squares the odds: 1, 16, 9, 4.
        assert!(near(
            share(&Sampling {
                temperature: 0.5,
                ..s.clone()
            }),
            [1.0 / 30.0, 16.0 / 30.0, 0.3, 4.0 / 30.0]
        ));
        assert_eq!(
            share(&Sampling {
                temperature: 0.0,
                ..s
            })[1]
                .round(),
            1.0
        );
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(choose(&[bad], &Sampling::default(), 0.5).is_err(), "{bad}");
            assert!(choose(&[bad, bad], &Sampling::default(), 0.5).is_err());
        }
        let never = [f64::NEG_INFINITY, 0.0];
        assert_eq!(choose(&never, &Sampling::default(), 0.0).unwrap(), 1);
    }
}
