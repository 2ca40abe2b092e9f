//! `interpolate`: resampling of one to three spatial dimensions, as `torch.nn.functional.interpolate`.
//!
//! Output position o reads the input at s·(o + ½) - ½ (or at (in - 1)/(out - 1)·o with aligned
//! corners), where s = in/out, or 1/scale where a scale was given. Nearest takes ⌊s·o⌋, linear the
//! two neighbours by distance (the source position cut at 0), cubic four by the cubic convolution
//! with a = -0.75 (Keys 1981), borders repeated. Separable: one weighted sum of selections per
//! dimension, hence linear in x and differentiable to any order.

use entrenar_base::{Error, Result};

use crate::Tensor;
use crate::ops::conv::{batched, spread};
use crate::registry::{Entry, Sample};

/// How values between positions are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interpolation {
    /// The position at or before, ⌊s·o⌋ (PyTorch's `nearest`).
    Nearest,
    /// The position whose centre is nearest, ⌊s·(o + ½)⌋ (PyTorch's `nearest-exact`).
    NearestExact,
    /// Two neighbours per dimension (PyTorch's `linear`, `bilinear`, `trilinear`).
    Linear {
        /// Whether first and last positions of input and output coincide.
        align_corners: bool,
    },
    /// Four neighbours per dimension (PyTorch's `bicubic`).
    Cubic {
        /// Whether first and last positions of input and output coincide.
        align_corners: bool,
    },
}

/// For each of a few neighbours: which input each output reads, and how much it counts.
type Taps = Vec<(Vec<i64>, Vec<f64>)>;

fn taps(mode: Interpolation, input: usize, output: usize, scale: Option<f64>) -> Taps {
    let last = input as i64 - 1;
    let ratio = scale.map_or(input as f64 / output as f64, |s| 1.0 / s);
    // PyTorch computes nearest positions in f32; so do we, to read the same ones.
    let nearest = |shift: f32| {
        let at = |o| ((o as f32 + shift) * ratio as f32).floor() as i64;
        let index = (0..output).map(|o| at(o).clamp(0, last)).collect();
        vec![(index, vec![])]
    };
    let source = |o: usize, align_corners: bool| {
        if align_corners {
            let steps = (output.max(2) - 1) as f64;
            let ratio = if output > 1 { last as f64 / steps } else { 0.0 };
            ratio * o as f64
        } else {
            ratio * (o as f64 + 0.5) - 0.5
        }
    };
    let weighted = |reach: std::ops::Range<i64>, parts: &dyn Fn(usize) -> (i64, Vec<f64>)| {
        let all: Vec<(i64, Vec<f64>)> = (0..output).map(parts).collect();
        reach
            .enumerate()
            .map(|(k, offset)| {
                let index = all.iter().map(|(at, _)| (at + offset).clamp(0, last));
                let weight = all.iter().map(|(_, w)| w[k]);
                (index.collect(), weight.collect())
            })
            .collect()
    };
    match mode {
        Interpolation::Nearest => nearest(0.0),
        Interpolation::NearestExact => nearest(0.5),
        Interpolation::Linear { align_corners } => weighted(0..2, &|o| {
            let at = source(o, align_corners).max(0.0);
            let t = at - at.floor();
            (at.floor() as i64, vec![1.0 - t, t])
        }),
        Interpolation::Cubic { align_corners } => weighted(-1..3, &|o| {
            const A: f64 = -0.75;
            let inner = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
            let outer = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
            let at = source(o, align_corners);
            let t = at - at.floor();
            let weights = vec![outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
            (at.floor() as i64, weights)
        }),
    }
}

/// One dimension of `x` resampled.
fn along(x: &Tensor, dim: usize, taps: Taps) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (index, weight) in taps {
        let n = index.len();
        let mut part = x.index_select(dim as isize, &Tensor::from_vec(index, [n])?)?;
        if !weight.is_empty() {
            let mut shape = vec![1; x.rank()];
            shape[dim] = n;
            part = part.mul(&Tensor::from_vec(weight, shape)?.to_dtype(x.dtype())?)?;
        }
        sum = Some(match sum {
            Some(s) => s.add(&part)?,
            None => part,
        });
    }
    Ok(sum.unwrap_or_else(|| x.clone()))
}

#[track_caller]
fn resample(
    x: &Tensor,
    size: &[usize],
    scale: Option<&[f64]>,
    mode: Interpolation,
) -> Result<Tensor> {
    const OP: &str = "interpolate";
    if !(1..=3).contains(&size.len()) || size.contains(&0) {
        return Err(Error::argument(
            OP,
            "1 to 3 output sizes of at least 1",
            format!("{size:?}"),
        ));
    }
    let outputs = batched(OP, x, size.len(), |x| {
        if x.dims()[2..].contains(&0) {
            return Err(Error::shape(OP, "an input that is not empty", x.shape()));
        }
        let mut y = x.to_dtype(x.dtype().accumulator())?;
        for (d, &n) in size.iter().enumerate() {
            let factor = scale.map(|s| s[d]);
            y = along(&y, 2 + d, taps(mode, x.dims()[2 + d], n, factor))?;
        }
        Ok(vec![y.to_dtype(x.dtype())?])
    })?;
    Ok(outputs[0].clone())
}

impl Tensor {
    /// Resamples the spatial dimensions of self `[N, C, *]` (or `[C, *]`) to `size`.
    ///
    /// # Errors
    /// When there are not as many spatial dimensions, or a size is 0.
    ///
    /// ```
    /// # use entrenar_core::{Tensor, ops::interpolate::Interpolation};
    /// let x = Tensor::from_vec(vec![0.0f32, 2.0], [1, 1, 2])?;
    /// let y = x.interpolate(&[4], Interpolation::Nearest)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 0.0, 2.0, 2.0]);
    /// let y = x.interpolate(&[3], Interpolation::Linear { align_corners: true })?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 1.0, 2.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn interpolate(&self, size: &[usize], mode: Interpolation) -> Result<Tensor> {
        resample(self, size, None, mode)
    }

    /// Resamples each spatial dimension to ⌊size·scale⌋, reading positions with exactly that
    /// scale (PyTorch's `scale_factor`; with `recompute_scale_factor=True` it is
    /// [`Tensor::interpolate`] to that size). One scale, or one per dimension.
    ///
    /// # Errors
    /// When a scale is not positive and finite or a size comes out as 0.
    #[track_caller]
    pub fn interpolate_scaled(&self, scale: &[f64], mode: Interpolation) -> Result<Tensor> {
        const OP: &str = "interpolate";
        let dims = if scale.len() == 1 {
            self.rank().saturating_sub(2).max(1)
        } else {
            scale.len()
        };
        let scale = spread(OP, "scales", scale, 1.0, dims)?;
        let spatial = self.dims().get(self.rank().saturating_sub(dims)..);
        let spatial = spatial.unwrap_or(&[]);
        let size: Vec<usize> = spatial
            .iter()
            .zip(&scale)
            .map(|(&n, &s)| (n as f64 * s).floor() as usize)
            .collect();
        let bad = |s: &f64| !(s.is_finite() && *s > 0.0);
        if size.len() != dims || scale.iter().any(bad) || size.iter().any(|&n| n > 1 << 31) {
            return Err(Error::argument(
                OP,
                "positive scales, one per spatial dimension",
                format!("{scale:?} for {}", self.shape()),
            ));
        }
        resample(self, &size, Some(&scale), mode)
    }
}

pub(crate) const ENTRIES: &[Entry] = &[Entry {
    name: "interpolate",
    kind: "composed",
    sample: |g| {
        let dims = g.pick(&[1, 1, 2, 2, 3]);
        let mut shape = vec![g.range(1, 3), g.range(1, 3)];
        let mut size = vec![];
        for _ in 0..dims {
            shape.push(g.range(1, 4));
            size.push(g.range(1, 5));
        }
        let align_corners = g.once_in(2);
        let mode = g.pick(&[
            Interpolation::Nearest,
            Interpolation::NearestExact,
            Interpolation::Linear { align_corners },
            Interpolation::Linear { align_corners },
            Interpolation::Cubic { align_corners },
        ]);
        let scale = g.once_in(3).then(|| g.uniform(1.0, 2.0));
        Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
            let x = t[0].square()?;
            match scale {
                Some(s) => x.interpolate_scaled(&[s], mode),
                None => x.interpolate(&size, mode),
            }
        }))
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use entrenar_base::DType;

    #[test]
    fn weights_add_up_to_one() {
        for mode in [
            Interpolation::Linear {
                align_corners: false,
            },
            Interpolation::Linear {
                align_corners: true,
            },
            Interpolation::Cubic {
                align_corners: false,
            },
            Interpolation::Cubic {
                align_corners: true,
            },
        ] {
            for (input, output) in [(1, 1), (1, 4), (4, 1), (5, 3), (3, 7)] {
                let taps = taps(mode, input, output, None);
                for o in 0..output {
                    let sum: f64 = taps.iter().map(|(_, w)| w[o]).sum();
                    assert!((sum - 1.0).abs() < 1e-12, "{mode:?} {input} {output}");
                }
            }
        }
    }

    #[test]
    fn misfits_are_errors() {
        let x = Tensor::zeros([1, 1, 4], DType::F32);
        assert!(x.interpolate(&[], Interpolation::Nearest).is_err());
        assert!(x.interpolate(&[0], Interpolation::Nearest).is_err());
        assert!(x.interpolate(&[2, 2, 2], Interpolation::Nearest).is_err());
        assert!(
            x.interpolate_scaled(&[0.1], Interpolation::Nearest)
                .is_err()
        );
        assert!(
            x.interpolate_scaled(&[-1.0], Interpolation::Nearest)
                .is_err()
        );
        assert!(
            x.interpolate_scaled(&[f64::INFINITY], Interpolation::Nearest)
                .is_err()
        );
        let empty = Tensor::zeros([1, 1, 0], DType::F32);
        assert!(empty.interpolate(&[2], Interpolation::Nearest).is_err());
    }
}
