//! Normalisation over batches and groups of channels: batch, group, instance and local response.
//!
//! batch_norm: y = (x - mean) / √(variance + eps)·w + b per channel, over the batch and all
//! positions, with the biased variance (Ioffe, Szegedy 2015); running statistics are the caller's
//! business; batch_norm_relu ends in max(y, 0), in the same pass. group_norm takes the statistics per image and group of channels (Wu, He 2018),
//! instance_norm per image and channel (Ulyanov et al. 2016). local_response_norm:
//! y = x / (k + alpha·average of x² over `size` neighbouring channels)^beta (Krizhevsky et al.
//! 2012). 16-bit floats are computed in f32. Kernels: `entrenar_cpu::norm`.

use smallvec::smallvec;

use entrenar_base::{Array, Error, Result};
use entrenar_cpu::norm as kernel;

use crate::Tensor;
use crate::apply::one;
use crate::op::{Aval, BackwardKernel, Bits, Expand, Few, Op, Rule};
use crate::ops::activation::as_float;
use crate::ops::expansion;
use crate::registry::{Entry, Gen, Sample};

/// Inputs: x `[N, C, *]`, then weight and bias `[C]` where present. Outputs: y, then mean and
/// 1/√(variance + eps) of each channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BatchNorm {
    eps: Bits,
    weight: bool,
    bias: bool,
    relu: bool,
}

impl BatchNorm {
    fn parameters<T: Copy>(&self, inputs: &[T]) -> (Option<T>, Option<T>) {
        (
            self.weight.then(|| inputs[1]),
            self.bias.then(|| inputs[1 + usize::from(self.weight)]),
        )
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        if self.relu {
            "batch_norm_relu"
        } else {
            "batch_norm"
        }
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let x = inputs[0];
        if x.shape.rank() < 2 {
            return Err(Error::shape(self.name(), "an input [N, C, *]", &x.shape));
        }
        let channels = x.shape[1];
        if let Some(p) = inputs[1..].iter().find(|p| p.shape[..] != [channels]) {
            return Err(Error::shape(
                self.name(),
                format!("weight and bias of shape [{channels}]"),
                &p.shape,
            ));
        }
        let statistics = Aval::new([channels], x.dtype.accumulator());
        Ok(smallvec![x.clone(), statistics.clone(), statistics])
    }
    fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
        let (w, b) = self.parameters(inputs);
        let (y, mean, rstd) = kernel::batch_norm(inputs[0], w, b, self.eps.0, self.relu)?;
        Ok(smallvec![y, mean, rstd])
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Expand(self)
    }
}

/// All dimensions but the channels'.
fn all_but_channels(rank: usize) -> Vec<isize> {
    (0..rank as isize).filter(|&d| d != 1).collect()
}

/// `[C]` as `[1, C, 1, …]` in the dtype of `x`.
fn per_channel(p: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[if x.rank() > 1 { 1 } else { 0 }] = p.numel();
    p.to_dtype(x.dtype())?.reshape(shape)
}

/// y·w + b per channel.
fn scaled(y: Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = match weight {
        Some(w) => y.mul(&per_channel(w, &y)?)?,
        None => y,
    };
    match bias {
        Some(b) => y.add(&per_channel(b, &y)?),
        None => Ok(y),
    }
}

/// Mean and biased variance of each channel, kept as `[1, C, 1, …]`, and x minus the mean.
fn statistics(x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let dims = all_but_channels(x.rank());
    let mean = x.mean_dim(&dims, true)?;
    let centered = x.sub(&mean)?;
    let variance = centered.square()?.mean_dim(&dims, true)?;
    Ok((mean, variance, centered))
}

impl Expand for BatchNorm {
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
        let dtype = inputs[0].dtype();
        let x = inputs[0].to_dtype(dtype.accumulator())?;
        let (_, variance, centered) = statistics(&x)?;
        let y = centered.mul(&variance.add_scalar(self.eps.0)?.rsqrt()?)?;
        let (w, b) = self.parameters(inputs);
        let mut y = scaled(y, w, b)?;
        if self.relu {
            y = y.relu()?;
        }
        Ok(one(y.to_dtype(dtype)?))
    }
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        Some(self)
    }
}

impl BackwardKernel for BatchNorm {
    fn reads_output(&self, output: usize) -> bool {
        output > 0
    }
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>> {
        let (Some(g), Some(mean), Some(rstd)) = (cotangents[0], outputs[1], outputs[2]) else {
            return Err(Error::autodiff(
                self.name(),
                "backward without a cotangent or its statistics",
            ));
        };
        let (w, b) = self.parameters(inputs);
        let at_bias = 1 + usize::from(self.weight);
        let wanted = [
            needs[0],
            self.weight && needs[1],
            self.bias && needs[at_bias],
        ];
        let x = inputs[0];
        let (dx, dw, db) = kernel::batch_norm_backward(g, x, mean, rstd, w, b, self.relu, wanted)?;
        let mut gradients = smallvec![dx];
        for (gradient, like) in [(dw, w), (db, b)] {
            if let Some(like) = like {
                gradients.push(gradient.map(|a| a.cast(like.dtype())));
            }
        }
        Ok(gradients)
    }
}

impl Tensor {
    /// Batch normalisation of self `[N, C, *]` with the statistics of this batch; `weight` and
    /// `bias` are `[C]`. Returns the result, and the mean and the *unbiased* variance of each
    /// channel, `[C]`, without gradients, for running averages. (PyTorch's default for `eps` is
    /// 1e-5.)
    ///
    /// # Errors
    /// When the rank is below 2, a parameter has another size, or a channel has fewer than two
    /// values (its variance is undefined).
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f64, 3.0], [2, 1])?;
    /// let (y, mean, variance) = x.batch_norm(None, None, 0.0)?;
    /// assert_eq!(y.to_vec::<f64>()?, [-1.0, 1.0]);
    /// assert_eq!((mean.to_vec::<f64>()?, variance.to_vec::<f64>()?), (vec![2.0], vec![2.0]));
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn batch_norm(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        self.normalise_batch(weight, bias, eps, false)
    }

    /// [`Tensor::batch_norm`] with max(·, 0) of the result, forward and backward in the same passes.
    ///
    /// # Errors
    /// As [`Tensor::batch_norm`].
    #[track_caller]
    pub fn batch_norm_relu(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        self.normalise_batch(weight, bias, eps, true)
    }

    #[track_caller]
    fn normalise_batch(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
        relu: bool,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        const OP: &str = "batch_norm";
        let x = as_float(self)?;
        let op = BatchNorm {
            eps: Bits(eps),
            weight: weight.is_some(),
            bias: bias.is_some(),
            relu,
        };
        let per_channel = if x.rank() < 2 {
            2 // the op reports the rank
        } else {
            x.dims()[0] * x.dims()[2..].iter().product::<usize>()
        };
        if per_channel < 2 {
            return Err(Error::shape(
                OP,
                "at least 2 values per channel in training",
                x.shape(),
            ));
        }
        let inputs: Vec<&Tensor> = [Some(&x), weight, bias].into_iter().flatten().collect();
        let outputs = expansion::checked(op, &inputs)?;
        let unbiased = per_channel as f64 / (per_channel - 1) as f64;
        let channels = x.dims()[1];
        let (mean, variance) = match &outputs[1..] {
            [mean, rstd] => {
                let (mean, rstd) = (mean.detach(), rstd.detach());
                let variance = rstd.square()?.reciprocal()?.sub_scalar(eps)?;
                // Rounding may leave a constant channel slightly below 0.
                (mean, variance.maximum_scalar(0.0)?)
            }
            // A transform that runs the expansion keeps no statistics.
            _ => {
                let fixed = x.detach();
                let (mean, variance, _) = statistics(&fixed.to_dtype(x.dtype().accumulator())?)?;
                (mean.reshape([channels])?, variance.reshape([channels])?)
            }
        };
        let y = outputs[0].clone();
        Ok((y, mean, variance.mul_scalar(unbiased)?))
    }

    /// Batch normalisation of self `[N, C, *]` with given statistics `[C]`:
    /// (x - mean) / √(variance + eps)·weight + bias.
    ///
    /// # Errors
    /// When a parameter has another size.
    #[track_caller]
    pub fn batch_norm_eval(
        &self,
        mean: &Tensor,
        variance: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        const OP: &str = "batch_norm";
        let input = as_float(self)?;
        let x = input.to_dtype(input.dtype().accumulator())?;
        let channels = x.dims().get(1).or(x.dims().first()).copied();
        for p in [Some(mean), Some(variance), weight, bias]
            .into_iter()
            .flatten()
        {
            if p.rank() != 1 || Some(p.numel()) != channels {
                return Err(Error::shape(
                    OP,
                    format!("statistics and parameters [C] for an input {}", x.shape()),
                    p.shape(),
                ));
            }
        }
        // One multiplication and one addition per element.
        let mut scale = variance.to_dtype(x.dtype())?.add_scalar(eps)?.rsqrt()?;
        if let Some(w) = weight {
            scale = scale.mul(&w.to_dtype(x.dtype())?)?;
        }
        let mut shift = mean.to_dtype(x.dtype())?.mul(&scale)?.neg()?;
        if let Some(b) = bias {
            shift = shift.add(&b.to_dtype(x.dtype())?)?;
        }
        scaled(x, Some(&scale), Some(&shift))?.to_dtype(input.dtype())
    }

    /// Normalises each image's channels of self `[N, C, *]` in `groups` groups to mean 0 and
    /// variance 1, then scales and shifts by `weight` and `bias` `[C]`.
    ///
    /// # Errors
    /// When C is no multiple of `groups` or a parameter has another size.
    ///
    /// ```
    /// # use entrenar_core::Tensor;
    /// let x = Tensor::from_vec(vec![1.0f64, 3.0, 10.0, 30.0], [1, 4])?;
    /// let y = x.group_norm(2, None, None, 0.0)?;
    /// assert_eq!(y.to_vec::<f64>()?, [-1.0, 1.0, -1.0, 1.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    #[track_caller]
    pub fn group_norm(
        &self,
        groups: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        const OP: &str = "group_norm";
        let input = as_float(self)?;
        let channels = input.dims().get(1).copied().unwrap_or(0);
        if input.rank() < 2 || groups == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::shape(
                OP,
                format!("an input [N, C, *] with C a multiple of {groups} groups"),
                input.shape(),
            ));
        }
        for p in [weight, bias].into_iter().flatten() {
            if p.dims() != [channels] {
                return Err(Error::shape(
                    OP,
                    format!("weight and bias of shape [{channels}]"),
                    p.shape(),
                ));
            }
        }
        let x = input.to_dtype(input.dtype().accumulator())?;
        let row = channels / groups * x.dims()[2..].iter().product::<usize>();
        let y = x
            .reshape([x.dims()[0], groups, row])?
            .layer_norm(1, None, None, eps)?
            .reshape(x.shape())?;
        scaled(y, weight, bias)?.to_dtype(input.dtype())
    }

    /// Normalises each channel of each image of self `[N, C, *]` by itself; `weight` and `bias`
    /// are `[C]`.
    ///
    /// # Errors
    /// When the rank is below 3, a parameter has another size, or a channel has one value only.
    #[track_caller]
    pub fn instance_norm(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let positions = self.dims().get(2..).map(|d| d.iter().product::<usize>());
        if self.rank() < 3 || positions == Some(1) {
            return Err(Error::shape(
                "instance_norm",
                "an input [N, C, *] with more than one position",
                self.shape(),
            ));
        }
        if self.dims()[1] == 0 {
            return as_float(self);
        }
        self.group_norm(self.dims()[1], weight, bias, eps)
    }

    /// x / (k + alpha·average of x² over `size` neighbouring channels)^beta of self `[N, C, *]`;
    /// channels outside count as 0. (PyTorch's defaults: alpha 1e-4, beta 0.75, k 1.)
    ///
    /// # Errors
    /// When the rank is below 3 or `size` is 0.
    #[track_caller]
    pub fn local_response_norm(
        &self,
        size: usize,
        alpha: f64,
        beta: f64,
        k: f64,
    ) -> Result<Tensor> {
        if self.rank() < 3 || size == 0 {
            return Err(Error::shape(
                "local_response_norm",
                "an input [N, C, *] and a size of at least 1",
                format!("{} and {size}", self.shape()),
            ));
        }
        let input = as_float(self)?;
        let x = input.to_dtype(input.dtype().accumulator())?;
        let channels = x.dims()[1];
        let zeros = |n: usize| {
            let mut shape = x.shape().clone();
            shape.dims_mut()[1] = n;
            Tensor::zeros(shape, x.dtype())
        };
        let (before, after) = (zeros(size / 2), zeros((size - 1) / 2));
        let padded = Tensor::concat(&[&before, &x.square()?, &after], 1)?;
        let mut sum = padded.narrow(1, 0, channels)?;
        for i in 1..size {
            sum = sum.add(&padded.narrow(1, i, channels)?)?;
        }
        let divisor = sum
            .mul_scalar(alpha / size as f64)?
            .add_scalar(k)?
            .pow_scalar(beta)?;
        x.div(&divisor)?.to_dtype(input.dtype())
    }
}

/// `[N, C, *]` with at least 3 values per channel (two make the normalised values constant), and
/// up to two parameters `[C]`.
fn sample_channels(g: &mut Gen, channels: usize, least_rank: usize) -> Vec<Tensor> {
    let rank = g.range(least_rank, 5);
    let mut shape: Vec<usize> = (0..rank).map(|_| g.range(1, 4)).collect();
    shape[1] = channels;
    shape[if rank > 2 { 2 } else { 0 }] = g.range(3, 5);
    let mut inputs = vec![g.tensor(shape, -2.0, 2.0)];
    for _ in 0..g.range(0, 3) {
        inputs.push(g.tensor([channels], -2.0, 2.0));
    }
    inputs
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "batch_norm",
        kind: "expand",
        sample: |g| {
            let channels = g.range(1, 4);
            Ok(Sample::one(sample_channels(g, channels, 2), |t| {
                Ok(t[0].batch_norm(t.get(1), t.get(2), 0.1)?.0)
            }))
        },
    },
    Entry {
        name: "batch_norm_relu",
        kind: "expand",
        sample: |g| {
            let channels = g.range(1, 4);
            let x = sample_channels(g, channels, 2).swap_remove(0);
            // Small weights beside larger biases: no value comes near the kink at 0.
            let weight = g.tensor([channels], -0.05, 0.05);
            let signs = (0..channels).map(|_| if g.once_in(2) { 1.0 } else { -1.0 });
            let bias = Tensor::from_vec(signs.collect::<Vec<f64>>(), [channels])?;
            Ok(Sample::one(vec![x, weight, bias], |t| {
                Ok(t[0].batch_norm_relu(Some(&t[1]), Some(&t[2]), 0.1)?.0)
            }))
        },
    },
    Entry {
        name: "batch_norm_eval",
        kind: "composed",
        sample: |g| {
            let channels = g.range(1, 4);
            let mut inputs = vec![
                g.tensor([channels], -1.0, 1.0),
                g.tensor([channels], 0.5, 2.0),
            ];
            inputs.extend(sample_channels(g, channels, 2));
            Ok(Sample::one(inputs, |t| {
                t[2].batch_norm_eval(&t[0], &t[1], t.get(3), t.get(4), 0.1)
            }))
        },
    },
    Entry {
        name: "group_norm",
        kind: "composed",
        sample: |g| {
            let groups = g.range(1, 3);
            let channels = groups * g.range(1, 3);
            Ok(Sample::one(sample_channels(g, channels, 3), move |t| {
                t[0].group_norm(groups, t.get(1), t.get(2), 0.1)
            }))
        },
    },
    Entry {
        name: "instance_norm",
        kind: "composed",
        sample: |g| {
            let channels = g.range(1, 4);
            Ok(Sample::one(sample_channels(g, channels, 3), |t| {
                t[0].instance_norm(t.get(1), t.get(2), 0.1)
            }))
        },
    },
    Entry {
        name: "local_response_norm",
        kind: "composed",
        sample: |g| {
            let shape = g.shape(3..=4);
            let (size, beta) = (g.range(1, 5), g.pick(&[0.5, 0.75, 1.0]));
            Ok(Sample::one(vec![g.tensor(shape, -2.0, 2.0)], move |t| {
                t[0].local_response_norm(size, 0.5, beta, 1.0)
            }))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::jvp;
    use entrenar_base::DType;

    /// Forward mode runs the expansion, which has no statistics of its own.
    #[test]
    fn relu_in_the_same_pass_changes_nothing() {
        let leaf = |shape: &[usize], seed| {
            let t = Tensor::randn(shape, entrenar_base::DType::F32, seed).unwrap();
            t.requires_grad().unwrap()
        };
        let run = |fused: bool| {
            let (x, w, b) = (leaf(&[3, 4, 5, 7], 1), leaf(&[4], 2), leaf(&[4], 3));
            let (y, mean, variance) = if fused {
                x.batch_norm_relu(Some(&w), Some(&b), 1e-5).unwrap()
            } else {
                let (y, mean, variance) = x.batch_norm(Some(&w), Some(&b), 1e-5).unwrap();
                (y.relu().unwrap(), mean, variance)
            };
            y.square().unwrap().sum().unwrap().backward().unwrap();
            let grads = [&x, &w, &b].map(|t| t.grad().unwrap());
            let all = [y.detach(), mean, variance].into_iter().chain(grads);
            all.map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn statistics_are_the_same_in_every_mode() {
        let x = Tensor::randn([4, 2, 3], DType::F64, 5).unwrap();
        let (_, mean, variance) = x.batch_norm(None, None, 1e-5).unwrap();
        let (outputs, _) = jvp(
            |t| {
                let (_, mean, variance) = t[0].batch_norm(None, None, 1e-5)?;
                Ok(vec![mean, variance])
            },
            &[&x],
            &[&x],
        )
        .unwrap();
        for (a, b) in [(&mean, &outputs[0]), (&variance, &outputs[1])] {
            let pairs = a.to_vec::<f64>().unwrap().into_iter();
            for (a, b) in pairs.zip(b.to_vec::<f64>().unwrap()) {
                assert!((a - b).abs() < 1e-12, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_constant_channel_has_variance_0() {
        let x = Tensor::full([3, 1], 7.0, DType::F32);
        let (y, _, variance) = x.batch_norm(None, None, 1e-5).unwrap();
        assert!(variance.item::<f32>().unwrap() >= 0.0);
        assert!(variance.item::<f32>().unwrap() < 1e-10);
        assert_eq!(y.to_vec::<f32>().unwrap(), [0.0; 3]);
    }

    #[test]
    fn misfits_are_errors() {
        let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32);
        assert!(t(&[4]).batch_norm(None, None, 1e-5).is_err());
        assert!(t(&[1, 4]).batch_norm(None, None, 1e-5).is_err());
        assert!(t(&[3, 4]).batch_norm(Some(&t(&[3])), None, 1e-5).is_err());
        assert!(
            t(&[3, 4])
                .batch_norm_eval(&t(&[3]), &t(&[4]), None, None, 0.1)
                .is_err()
        );
        assert!(t(&[3, 4]).group_norm(3, None, None, 1e-5).is_err());
        assert!(t(&[3, 4]).group_norm(0, None, None, 1e-5).is_err());
        assert!(
            t(&[3, 4])
                .group_norm(2, None, Some(&t(&[1])), 1e-5)
                .is_err()
        );
        assert!(t(&[3, 4, 1]).instance_norm(None, None, 1e-5).is_err());
        assert!(t(&[3, 4]).local_response_norm(2, 1.0, 1.0, 1.0).is_err());
        assert!(t(&[3, 4, 1]).local_response_norm(0, 1.0, 1.0, 1.0).is_err());
    }
}
