//! Random arrays from the counter-based generator [`Philox`].
//!
//! Element `i` is a pure function of the stream and `i`: the bits do not depend on threads, and a
//! replayed step draws the same numbers.

use entrenar_base::rng::unit;
use entrenar_base::{Array, DType, Element, Error, Philox, Result, Shape, bf16, f16};
use std::ops::Range;

use crate::simd::{math, multiversion};
use crate::{cast, team};

/// Nanoseconds per 32-bit word drawn.
const WORD_COST: f64 = 0.6;
/// Elements drawn at once before they are converted to 16 bits.
const TILE: usize = 1024;

/// Calls `fill(first block, blocks)` for the whole blocks of four words in `range` and `edge` for
/// the elements around them.
fn blocks<T>(
    range: Range<usize>,
    per_block: usize,
    out: &mut [T],
    fill: impl Fn(usize, &mut [T]),
    edge: impl Fn(usize) -> T,
) {
    let head = range.start.next_multiple_of(per_block).min(range.end) - range.start;
    let (first, rest) = out.split_at_mut(head);
    for (i, o) in first.iter_mut().enumerate() {
        *o = edge(range.start + i);
    }
    let whole = rest.len() / per_block * per_block;
    let (middle, last) = rest.split_at_mut(whole);
    let start = range.start + head;
    fill(start / per_block, middle);
    for (i, o) in last.iter_mut().enumerate() {
        *o = edge(start + whole + i);
    }
}

multiversion! {
    fn uniform_blocks(r: Philox, first: usize, out: &mut [f32]) {
        for (b, out) in out.chunks_exact_mut(4).enumerate() {
            let words = r.block((first + b) as u64);
            for i in 0..4 {
                out[i] = unit(words[i]);
            }
        }
    }
}

fn uniform_f32(r: &Philox, range: Range<usize>, out: &mut [f32]) {
    blocks(
        range,
        4,
        out,
        |first, out| uniform_blocks(*r, first, out),
        |i| r.uniform(i as u64),
    );
}

/// The pair of normal numbers of one block of four words.
#[inline(always)]
fn normal_pair(words: [u32; 4]) -> (f64, f64) {
    const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
    let word64 = |low: u32, high: u32| low as u64 | (high as u64) << 32;
    let u = ((word64(words[0], words[1]) >> 11) as f64 + 1.0) * SCALE;
    let v = (word64(words[2], words[3]) >> 11) as f64 * SCALE;
    math::box_muller(u, v)
}

multiversion! {
    fn normal_blocks(r: Philox, first: usize, out: &mut [f32]) {
        for (b, out) in out.chunks_exact_mut(2).enumerate() {
            let (x, y) = normal_pair(r.block((first + b) as u64));
            out[0] = x as f32;
            out[1] = y as f32;
        }
    }
}

fn normal_f32(r: &Philox, range: Range<usize>, out: &mut [f32]) {
    let one = |i: usize| {
        let (x, y) = normal_pair(r.block(i as u64 / 2));
        (if i.is_multiple_of(2) { x } else { y }) as f32
    };
    blocks(
        range,
        2,
        out,
        |first, out| normal_blocks(*r, first, out),
        one,
    );
}

#[track_caller]
fn check(op: &str, dtype: DType) -> Result<()> {
    if dtype.is_float() {
        Ok(())
    } else {
        Err(Error::dtype(op, "a float dtype", dtype))
    }
}

/// Fills `shape` with f32 draws converted to `T` by `convert`.
fn through_f32<T: Element>(
    shape: Shape,
    cost: f64,
    draw: impl Fn(Range<usize>, &mut [f32]) + Sync,
    convert: impl Fn(&mut [f32], &mut [T]) + Sync,
) -> Result<Array> {
    Array::try_build(shape, |out: &mut [T]| {
        let n = out.len();
        team::split_mut(out, n, cost, |range, out| {
            let mut tile = [0.0f32; TILE];
            let mut start = range.start;
            for out in out.chunks_mut(TILE) {
                let tile = &mut tile[..out.len()];
                draw(start..start + out.len(), tile);
                convert(tile, out);
                start += out.len();
            }
        });
        Ok(())
    })
}

/// Uniform numbers in [0, 1): element `i` is `r.uniform(i)` (f64: `r.uniform64(i)`). The 16-bit
/// floats keep as many leading bits as they can hold, so that 1 is never reached.
///
/// # Errors
/// When `dtype` is not a float or the shape overflows.
///
/// ```
/// use entrenar_base::{DType, Philox};
/// let r = Philox::new(7, 0);
/// let x = entrenar_cpu::random::uniform([3], DType::F32, &r)?;
/// assert_eq!(x.to_vec::<f32>()?[2], r.uniform(2));
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn uniform(shape: impl Into<Shape>, dtype: DType, r: &Philox) -> Result<Array> {
    check("rand", dtype)?;
    let shape = shape.into();
    let truncated = |bits: f32| {
        move |tile: &mut [f32]| {
            for v in tile {
                *v = (*v * bits).floor() / bits;
            }
        }
    };
    match dtype {
        DType::F64 => Array::try_build(shape, |out: &mut [f64]| {
            let n = out.len();
            team::split_mut(out, n, 2.0 * WORD_COST, |range, out| {
                for (i, o) in range.zip(out) {
                    *o = r.uniform64(i as u64);
                }
            });
            Ok(())
        }),
        DType::BF16 => {
            let cut = truncated(256.0);
            let draw = |range, tile: &mut [f32]| uniform_f32(r, range, tile);
            through_f32::<bf16>(shape, WORD_COST, draw, |tile, out| {
                cut(tile);
                cast::convert(tile, out);
            })
        }
        DType::F16 => {
            let cut = truncated(2048.0);
            let draw = |range, tile: &mut [f32]| uniform_f32(r, range, tile);
            through_f32::<f16>(shape, WORD_COST, draw, |tile, out| {
                cut(tile);
                cast::convert(tile, out);
            })
        }
        _ => Array::try_build(shape, |out: &mut [f32]| {
            let n = out.len();
            team::split_mut(out, n, WORD_COST, |range, out| uniform_f32(r, range, out));
            Ok(())
        }),
    }
}

/// Standard normal numbers: element `i` is `r.normal(i)` rounded to `dtype` (for f64 itself).
///
/// # Errors
/// When `dtype` is not a float or the shape overflows.
#[track_caller]
pub fn normal(shape: impl Into<Shape>, dtype: DType, r: &Philox) -> Result<Array> {
    check("randn", dtype)?;
    let shape = shape.into();
    let draw = |range, tile: &mut [f32]| normal_f32(r, range, tile);
    match dtype {
        DType::F64 => Array::try_build(shape, |out: &mut [f64]| {
            let n = out.len();
            team::split_mut(out, n, 40.0, |range, out| {
                for (i, o) in range.zip(out) {
                    *o = r.normal(i as u64);
                }
            });
            Ok(())
        }),
        DType::F16 => through_f32::<f16>(shape, 5.0, draw, |tile, out| cast::convert(tile, out)),
        DType::BF16 => through_f32::<bf16>(shape, 5.0, draw, |tile, out| cast::convert(tile, out)),
        _ => Array::try_build(shape, |out: &mut [f32]| {
            let n = out.len();
            team::split_mut(out, n, 5.0, |range, out| normal_f32(r, range, out));
            Ok(())
        }),
    }
}

/// Integers in `low..high` as i64: element `i` is `low + r.below(i, high - low)`.
///
/// # Errors
/// When the range is empty or the shape overflows.
#[track_caller]
pub fn randint(shape: impl Into<Shape>, low: i64, high: i64, r: &Philox) -> Result<Array> {
    if low >= high {
        return Err(Error::argument(
            "randint",
            "low < high",
            format!("{low} and {high}"),
        ));
    }
    let width = high.wrapping_sub(low) as u64;
    Array::try_build(shape, |out: &mut [i64]| {
        let n = out.len();
        team::split_mut(out, n, 2.0 * WORD_COST, |range, out| {
            for (i, o) in range.zip(out) {
                *o = low.wrapping_add(r.below(i as u64, width) as i64);
            }
        });
        Ok(())
    })
}

/// What dropout multiplies by: element `i` is `1 / keep` if `uniform(i) < keep` on the stream
/// `(seed, stream)`, else 0.
///
/// # Errors
/// When `keep` is not in 0..=1, `dtype` is not a float or the shape overflows.
#[track_caller]
pub fn dropout_mask(
    shape: impl Into<Shape>,
    dtype: DType,
    keep: f64,
    seed: u64,
    stream: u64,
) -> Result<Array> {
    check("dropout", dtype)?;
    if !(0.0..=1.0).contains(&keep) {
        return Err(Error::argument("dropout", "a probability in 0..=1", keep));
    }
    let r = Philox::new(seed, stream);
    let value = (1.0 / keep) as f32;
    let limit = drawn_below(keep);
    let draw = |range, tile: &mut [f32]| {
        uniform_f32(&r, range, tile);
        for v in tile {
            *v = if *v < limit { value } else { 0.0 };
        }
    };
    match dtype {
        DType::F64 => {
            let wide = 1.0 / keep;
            through_f32::<f64>(shape.into(), WORD_COST, draw, |tile, out| {
                for (o, &v) in out.iter_mut().zip(&*tile) {
                    *o = if v != 0.0 { wide } else { 0.0 };
                }
            })
        }
        DType::F16 => through_f32::<f16>(shape.into(), WORD_COST, draw, |tile, out| {
            cast::convert(tile, out)
        }),
        DType::BF16 => through_f32::<bf16>(shape.into(), WORD_COST, draw, |tile, out| {
            cast::convert(tile, out)
        }),
        _ => through_f32::<f32>(shape.into(), WORD_COST, draw, |tile, out| {
            out.copy_from_slice(tile)
        }),
    }
}

/// What dropout multiplies elements `range` by: part of [`dropout_mask`] (in f64 the factor is not
/// rounded to f32).
pub(crate) fn dropout_factors<T: Element>(
    r: &Philox,
    keep: f64,
    range: Range<usize>,
    out: &mut [T],
) {
    let value = if T::DTYPE == DType::F64 {
        1.0 / keep
    } else {
        (1.0 / keep) as f32 as f64
    };
    let (value, none, limit) = (T::from_f64(value), T::from_f64(0.0), drawn_below(keep));
    let mut tile = [0.0f32; TILE];
    let mut start = range.start;
    for out in out.chunks_mut(TILE) {
        let tile = &mut tile[..out.len()];
        uniform_f32(r, start..start + out.len(), tile);
        for (out, &v) in out.iter_mut().zip(&*tile) {
            *out = if v < limit { value } else { none };
        }
        start += out.len();
    }
}

/// The limit below which draws are kept. Draws are multiples of 2^-24, so comparing with this f32
/// is comparing with `keep`.
fn drawn_below(keep: f64) -> f32 {
    ((keep * (1u64 << 24) as f64).ceil() / (1u64 << 24) as f64) as f32
}

/// The permutation of `0..n` that the stream names, as i64.
///
/// # Errors
/// When `n` overflows memory.
#[track_caller]
pub fn permutation(n: usize, r: &Philox) -> Result<Array> {
    Shape::from(n).checked_numel()?;
    let values: Vec<i64> = r.permutation(n).into_iter().map(|i| i as i64).collect();
    Array::from_vec(values, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::same_at_any_thread_count;

    const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

    #[test]
    fn elements_are_the_generators_numbers() {
        let r = Philox::new(42, 3);
        for n in [0, 1, 2, 3, 4, 5, 1023, 5000] {
            let x = uniform([n], DType::F32, &r).unwrap();
            let want: Vec<f32> = (0..n as u64).map(|i| r.uniform(i)).collect();
            assert_eq!(x.to_vec::<f32>().unwrap(), want);
            let x = uniform([n], DType::F64, &r)
                .unwrap()
                .to_vec::<f64>()
                .unwrap();
            assert!(
                x.iter()
                    .enumerate()
                    .all(|(i, &v)| v == r.uniform64(i as u64))
            );
            let x = normal([n], DType::F32, &r)
                .unwrap()
                .to_vec::<f32>()
                .unwrap();
            for (i, &v) in x.iter().enumerate() {
                let want = r.normal(i as u64);
                assert!(
                    (v as f64 - want).abs() <= 1e-7 * want.abs().max(1e-3),
                    "{v} {want}"
                );
            }
            let x = normal([n], DType::F64, &r)
                .unwrap()
                .to_vec::<f64>()
                .unwrap();
            assert!(x.iter().enumerate().all(|(i, &v)| v == r.normal(i as u64)));
            let x = randint([n], -3, 4, &r).unwrap().to_vec::<i64>().unwrap();
            assert!(x.iter().all(|v| (-3..4).contains(v)));
            let mask = dropout_mask([n], DType::F32, 0.7, 42, 3).unwrap();
            for (i, v) in mask.to_vec::<f32>().unwrap().into_iter().enumerate() {
                let kept = (r.uniform(i as u64) as f64) < 0.7;
                assert_eq!(v, if kept { (1.0 / 0.7) as f32 } else { 0.0 });
            }
        }
    }

    #[test]
    fn sixteen_bit_uniforms_never_reach_one() {
        let r = Philox::new(1, 1);
        for dtype in FLOATS {
            let x = uniform([200_000], dtype, &r).unwrap().to_f64_vec();
            assert!(x.iter().all(|&v| (0.0..1.0).contains(&v)), "{dtype}");
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            assert!((mean - 0.5).abs() < 5e-3, "{dtype} {mean}");
        }
    }

    #[test]
    fn threads_never_change_a_bit() {
        let r = Philox::new(9, 9);
        for dtype in FLOATS {
            same_at_any_thread_count(|| uniform([123_457], dtype, &r).unwrap());
            same_at_any_thread_count(|| normal([123_457], dtype, &r).unwrap());
            same_at_any_thread_count(|| dropout_mask([123_457], dtype, 0.5, 1, 2).unwrap());
        }
        same_at_any_thread_count(|| randint([123_457], 0, i64::MAX, &r).unwrap());
    }

    #[test]
    fn edges() {
        for dtype in FLOATS {
            let none = dropout_mask([100], dtype, 0.0, 1, 2).unwrap().to_f64_vec();
            assert!(none.iter().all(|&v| v == 0.0));
            let all = dropout_mask([100], dtype, 1.0, 1, 2).unwrap().to_f64_vec();
            assert!(all.iter().all(|&v| v == 1.0));
        }
        let r = Philox::new(0, 0);
        assert!(randint([1], 3, 3, &r).is_err());
        assert!(uniform([1], DType::I64, &r).is_err());
        assert!(normal([1], DType::Bool, &r).is_err());
        assert!(dropout_mask([1], DType::F32, 1.5, 0, 0).is_err());
        assert!(dropout_mask([1], DType::F32, f64::NAN, 0, 0).is_err());
        assert!(permutation(usize::MAX, &r).is_err());
        let mut p = permutation(100, &r).unwrap().to_vec::<i64>().unwrap();
        p.sort_unstable();
        assert!(p.into_iter().eq(0..100));
    }
}
