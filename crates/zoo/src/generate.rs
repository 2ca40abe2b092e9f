//! Sampling of text, one token at a time.
//!
//! The order is the usual one: repetition penalty, temperature, then the `top_k` likeliest, then
//! the smallest set with probability `top_p`, then a draw. Draw number i is a function of (seed, i)
//! alone, so a seed names a text. Models that keep a cache compute one position per token; texts of
//! one batch share that work.

use entrenar_core::{Error, Result, Tensor, no_grad};
use entrenar_nn::Ctx;

use crate::{CausalLm, KvCache, LmInput};

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
    /// Logits of tokens that were there before are divided by this where positive and multiplied
    /// where negative (Keskar et al., "CTRL", 2019); 1 changes nothing.
    pub repetition_penalty: f64,
    /// Generation ends before one of these tokens.
    pub stop: Vec<u32>,
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
            repetition_penalty: 1.0,
            stop: Vec::new(),
            seed: 0,
        }
    }
}

/// Continues `tokens`, calling `on_token` with each new one; generation ends early when it returns
/// `false`, before a token of `stop`, and when a model has reached its context, unless it
/// [slides](CausalLm::slides): then it sees the last `context` tokens. Returns all tokens.
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
    model: &dyn CausalLm,
    tokens: &[u32],
    sampling: &Sampling,
    on_token: &mut dyn FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    let mut all = generate_batch(model, &[tokens], &[sampling.seed], sampling, &mut |_, t| {
        on_token(t)
    })?;
    Ok(all.pop().unwrap_or_default())
}

/// Continues several texts at once: [`generate`] of each `prompts[i]` with the seed `seeds[i]`
/// (`sampling.seed` is not used), in a batch whose rows may differ in length and end on their own.
/// `on_token` is given the number of the text and its new token, and ends this text with `false`.
///
/// A row is computed as it would be alone, up to the rounding of products of more rows: tokens are
/// the same unless two of them are equally likely to six digits.
///
/// # Errors
/// As [`generate`], or when there is not one seed per prompt.
///
/// ```
/// use entrenar_zoo::{Gpt, GptConfig, Sampling, generate, generate_batch};
/// use entrenar_nn::Init;
/// let config = GptConfig { vocabulary: 5, context: 4, layers: 1, heads: 2, width: 8, ..Default::default() };
/// let model = Gpt::new(config, &mut Init::new(0))?;
/// let sampling = Sampling { max_new_tokens: 6, ..Default::default() };
/// let texts = generate_batch(&model, &[&[1], &[2, 3]], &[0, 7], &sampling, &mut |_, _| true)?;
/// let alone = Sampling { seed: 7, ..sampling };
/// assert_eq!(texts[1], generate(&model, &[2, 3], &alone, &mut |_| true)?);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn generate_batch(
    model: &dyn CausalLm,
    prompts: &[&[u32]],
    seeds: &[u64],
    sampling: &Sampling,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    if prompts.iter().any(|tokens| tokens.is_empty()) {
        return Err(Error::argument(
            "generate",
            "at least one token to continue",
            "none",
        ));
    }
    if seeds.len() != prompts.len() {
        let want = format!("{} seeds, one per prompt", prompts.len());
        return Err(Error::argument("generate", want, seeds.len()));
    }
    check(sampling)?;
    let mut texts: Vec<Vec<u32>> = prompts.iter().map(|tokens| tokens.to_vec()).collect();
    let draws = |row: usize| entrenar_base::Philox::new(seeds[row], 0x6765_6e65);
    let mut cache = model.has_cache().then(|| KvCache::new(model.layers()));
    // The texts that go on; the rows of the batch and of the cache.
    let room = |text: &Vec<u32>| model.slides() || text.len() <= model.context();
    let mut live: Vec<usize> = (0..texts.len()).filter(|i| room(&texts[*i])).collect();
    for i in 0..sampling.max_new_tokens {
        if live.is_empty() {
            break;
        }
        // Beyond the context every position moves: nothing that was kept holds any more.
        if model.slides() && live.iter().any(|row| texts[*row].len() > model.context()) {
            cache = None;
        }
        let rows: Vec<&[u32]> = live.iter().map(|row| texts[*row].as_slice()).collect();
        let logits = last_logits(model, &rows, cache.as_mut())?;
        let mut kept = Vec::with_capacity(live.len());
        for (place, (&row, mut logits)) in live.iter().zip(logits).enumerate() {
            let text = &mut texts[row];
            penalize(&mut logits, text, sampling.repetition_penalty);
            let next = choose(&logits, sampling, draws(row).uniform64(i as u64))?;
            if sampling.stop.contains(&next) {
                continue;
            }
            text.push(next);
            if on_token(row, next) && room(text) {
                kept.push(place);
            }
        }
        if kept.len() < live.len() {
            live = kept.iter().map(|place| live[*place]).collect();
            if let Some(cache) = &mut cache {
                cache.keep_rows(&kept)?;
            }
        }
    }
    Ok(texts)
}

fn check(sampling: &Sampling) -> Result<()> {
    let positive = |x: f64| x > 0.0 && x.is_finite();
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
    if !positive(sampling.repetition_penalty) {
        return Err(Error::argument(
            "generate",
            "a positive repetition_penalty",
            sampling.repetition_penalty,
        ));
    }
    Ok(())
}

/// The logits of what follows each text; the cache holds a beginning of each and is brought up to
/// date. Texts of different lengths are filled up at the end, where nothing before sees it.
fn last_logits(
    model: &dyn CausalLm,
    texts: &[&[u32]],
    mut cache: Option<&mut KvCache>,
) -> Result<Vec<Vec<f64>>> {
    let new: Vec<&[u32]> = texts
        .iter()
        .enumerate()
        .map(|(row, text)| match &cache {
            Some(cache) => &text[cache.lengths().map_or(cache.len(), |l| l[row])..],
            None => &text[text.len().saturating_sub(model.context())..],
        })
        .collect();
    let time = new.iter().map(|part| part.len()).max().unwrap_or(0);
    let uneven = new.iter().any(|part| part.len() < time);
    let mut tokens = Vec::with_capacity(new.len() * time);
    for part in &new {
        tokens.extend(part.iter().map(|&t| i64::from(t)));
        tokens.resize(tokens.len() + time - part.len(), 0);
    }
    let input = Tensor::from_vec(tokens, [new.len(), time])?;
    no_grad(|| {
        let cx = &mut Ctx::eval();
        let given = LmInput {
            cache: cache.as_deref_mut(),
            ..Default::default()
        };
        let x = model.features(&input, given, cx)?;
        if let (Some(cache), true) = (cache, uneven) {
            cache.set_lengths(texts.iter().map(|text| text.len()).collect())?;
        }
        // Only the last position of each text decides.
        let x = if uneven {
            let last = new.iter().enumerate();
            let last: Vec<i64> = last
                .map(|(row, part)| (row * time + part.len() - 1) as i64)
                .collect();
            let index = Tensor::from_vec(last, [new.len()])?;
            x.flatten(0, 1)?.index_select(0, &index)?.unsqueeze(1)?
        } else {
            x.narrow(1, time - 1, 1)?
        };
        let logits = model.logits(&x, cx)?.array().to_f64_vec();
        let width = logits.len() / new.len().max(1);
        Ok(logits.chunks(width.max(1)).map(<[f64]>::to_vec).collect())
    })
}

fn penalize(logits: &mut [f64], all: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut tokens = all.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(l) = logits.get_mut(token as usize) {
            *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
        }
    }
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
    fn a_penalty_makes_what_was_there_less_likely() {
        let mut logits = vec![2.0, -2.0, 3.0];
        penalize(&mut logits, &[0, 1, 0], 2.0);
        assert_eq!(logits, [1.0, -4.0, 3.0]);
        let none = Sampling {
            repetition_penalty: 0.0,
            ..Default::default()
        };
        assert!(check(&none).is_err());
    }

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
