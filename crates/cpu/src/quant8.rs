//! Blocks of numbers in 8 bits: bitsandbytes' dynamic maps, for the scales of 4-bit blocks and for
//! the moments of 8-bit optimizers.
//!
//! A block is divided by its largest magnitude; each quotient becomes the index of a near entry of a
//! map of 256 values in [-1, 1] whose steps are fine near 0 and coarse near 1 (Dettmers et al.,
//! "8-bit Optimizers via Block-wise Quantization", 2021). The bits are those of bitsandbytes 0.50
//! on a CPU: it rounds the quotient to one of 65,536 equally spaced points and takes the entry
//! nearest to the point, the lower one in a tie.

use std::sync::{Arc, OnceLock};

use crate::team::{self, Shared};

/// Points that quotients are rounded to.
const POINTS: usize = 1 << 16;

/// A map of 256 values, ascending.
pub type Map = [f32; 256];

/// A map and the entry nearest to each point.
pub struct Codebook {
    values: Arc<Map>,
    nearest: Vec<u8>,
}

impl Codebook {
    /// The codebook of a map.
    fn new(values: Map) -> Codebook {
        let nearest = (0..POINTS)
            .map(|i| -1.0 + 2.0 * i as f32 / (POINTS - 1) as f32)
            .map(|x| nearest(&values, x))
            .collect();
        Codebook {
            values: Arc::new(values),
            nearest,
        }
    }

    /// The map of numbers of both signs.
    pub fn signed() -> &'static Codebook {
        static MAP: OnceLock<Codebook> = OnceLock::new();
        MAP.get_or_init(|| Codebook::new(dynamic_map(true)))
    }

    /// The map of numbers that are not negative, twice as fine.
    pub fn unsigned() -> &'static Codebook {
        static MAP: OnceLock<Codebook> = OnceLock::new();
        MAP.get_or_init(|| Codebook::new(dynamic_map(false)))
    }

    /// The values.
    pub fn values(&self) -> &Arc<Map> {
        &self.values
    }

    /// Quantizes one block; the largest magnitude, which values are relative to. A block of zeros
    /// gets codes 0, which mean 0 with that scale.
    ///
    /// # Panics
    /// When `codes` is not as long as `x`.
    pub fn quantize(&self, x: &[f32], codes: &mut [u8]) -> f32 {
        assert_eq!(x.len(), codes.len(), "one code per number");
        let scale = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        if scale == 0.0 {
            codes.fill(0);
            return scale;
        }
        let inverse = 1.0 / scale;
        for (code, x) in codes.iter_mut().zip(x) {
            let place = (x * inverse + 1.0) * ((POINTS - 1) as f32 / 2.0) + 0.5;
            // The cast saturates, so whatever x is, the place exists.
            *code = self.nearest[(place as usize).min(POINTS - 1)];
        }
        scale
    }

    /// Quantizes `x` in blocks of `block` numbers, the last perhaps shorter: codes and one scale per
    /// block.
    ///
    /// # Panics
    /// When `block` is 0.
    ///
    /// ```
    /// use entrenar_cpu::quant8::{Codebook, dequantize};
    /// let map = Codebook::signed();
    /// let (codes, scales) = map.quantize_all(&[0.0, -2.0, 0.5, 3.0], 2);
    /// assert_eq!(scales, [2.0, 3.0]);
    /// let mut back = [0.0; 4];
    /// dequantize(map.values(), &codes, &scales, 2, &mut back);
    /// assert_eq!(back[3], 3.0);
    /// assert!((back[1] + 2.0).abs() < 0.02); // the map has no -1
    /// ```
    pub fn quantize_all(&self, x: &[f32], block: usize) -> (Vec<u8>, Vec<f32>) {
        let blocks = x.len().div_ceil(block);
        let (mut codes, mut scales) = (vec![0u8; x.len()], vec![0.0f32; blocks]);
        let (to, tops) = (Shared::new(&mut codes), Shared::new(&mut scales));
        team::split(blocks, block as f64, |range| {
            for b in range {
                let here = b * block..x.len().min((b + 1) * block);
                // SAFETY: blocks are disjoint.
                let (to, top) = unsafe { (to.slice(here.clone()), tops.slice(b..b + 1)) };
                top[0] = self.quantize(&x[here], to);
            }
        });
        (codes, scales)
    }
}

/// The numbers that codes mean: map value times scale.
///
/// # Panics
/// When the slices do not belong together.
pub fn dequantize(map: &Map, codes: &[u8], scales: &[f32], block: usize, out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "one number per code");
    for ((out, codes), scale) in out.chunks_mut(block).zip(codes.chunks(block)).zip(scales) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = map[usize::from(code)] * scale;
        }
    }
}

/// The index of the value nearest to `x`, the lower one in a tie.
fn nearest(values: &Map, x: f32) -> u8 {
    let above = values.partition_point(|v| *v < x).clamp(1, 255);
    let lower = (x - values[above - 1]).abs() <= (values[above] - x).abs();
    (above - usize::from(lower)) as u8
}

/// Seven decades of midpoints between equally spaced borders in [0.1, 1], 2ⁱ of them in decade i
/// (twice as many without signs), then 0 and 1.
fn dynamic_map(signed: bool) -> Map {
    let mut all = vec![0.0f32, 1.0];
    for i in 0..7i32 {
        let count = 1usize << (i + i32::from(!signed));
        let border = |j: usize| {
            // Each half of the row is computed from its own end, as PyTorch does, with one rounding.
            let step = f64::from((1.0f32 - 0.1) / count as f32);
            if j < count.div_ceil(2) {
                (f64::from(0.1f32) + step * j as f64) as f32
            } else {
                (1.0 - step * (count - j) as f64) as f32
            }
        };
        let decade = 10f64.powi(i - 6) as f32;
        for j in 0..count {
            let middle = decade * ((border(j) + border(j + 1)) / 2.0);
            all.push(middle);
            if signed {
                all.push(-middle);
            }
        }
    }
    all.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&all);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn maps_have_256_different_values() {
        for book in [Codebook::signed(), Codebook::unsigned()] {
            assert!(book.values.windows(2).all(|w| w[0] < w[1]));
            assert_eq!(book.values[255], 1.0);
            assert!(book.values.contains(&0.0));
        }
        assert_eq!(Codebook::unsigned().values[0], 0.0);
        assert_eq!(Codebook::signed().values[0], -0.992_968_74);
    }

    proptest! {
        /// What comes back is a neighbour in the map: at most the step of the point grid further
        /// away than the nearest entry.
        #[test]
        fn what_comes_back_is_near(
            x in prop::collection::vec(-1e3f32..1e3, 1..700), signed in any::<bool>(),
        ) {
            let book = if signed { Codebook::signed() } else { Codebook::unsigned() };
            let x: Vec<f32> = x.iter().map(|v| if signed { *v } else { v.abs() }).collect();
            let (codes, scales) = book.quantize_all(&x, 256);
            let mut back = vec![0.0; x.len()];
            dequantize(book.values(), &codes, &scales, 256, &mut back);
            for (i, (x, back)) in x.iter().zip(&back).enumerate() {
                let scale = scales[i / 256];
                let best = book.values.iter().fold(f32::MAX, |m, v| m.min((v * scale - x).abs()));
                prop_assert!((x - back).abs() <= best + scale * 4e-5, "{x} {back}");
            }
        }
    }

    #[test]
    fn odd_numbers_do_not_break_it() {
        let book = Codebook::signed();
        let (codes, scales) = book.quantize_all(&[0.0; 5], 4);
        assert_eq!((codes, scales), (vec![0; 5], vec![0.0; 2]));
        let (codes, _) = book.quantize_all(&[f32::NAN, f32::INFINITY, -1.0], 4);
        assert_eq!(codes.len(), 3);
        assert!(book.quantize_all(&[], 4).0.is_empty());
    }
}
