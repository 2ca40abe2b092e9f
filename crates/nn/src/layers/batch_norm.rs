//! [`BatchNorm1d`] and [`BatchNorm2d`]: normalise each channel over the batch.

use entrenar_core::{DType, Error, Result, Tensor};

use crate::{Buffer, Ctx, Init, Module, Parameter};

/// Settings of batch norm beyond the number of channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Added to the variance.
    pub eps: f64,
    /// Weight of the new batch in the running statistics; `None` averages all batches equally.
    pub momentum: Option<f64>,
    /// Whether there are a weight and a bias.
    pub affine: bool,
    /// Whether running statistics are kept; without them evaluation also uses the batch's.
    pub track_running_stats: bool,
}

impl Default for BatchNormOptions {
    fn default() -> Self {
        BatchNormOptions {
            eps: 1e-5,
            momentum: Some(0.1),
            affine: true,
            track_running_stats: true,
        }
    }
}

/// What the two layers share; its fields are theirs.
#[derive(Clone, Debug, Module)]
struct BatchNorm {
    weight: Option<Parameter>,
    bias: Option<Parameter>,
    running_mean: Option<Buffer>,
    running_var: Option<Buffer>,
    num_batches_tracked: Option<Buffer>,
    channels: usize,
    #[module(skip)]
    options: BatchNormOptions,
}

impl BatchNorm {
    #[track_caller]
    fn new(channels: usize, options: BatchNormOptions, init: &Init) -> Result<BatchNorm> {
        let (zeros, ones) = (init.zeros([channels])?, init.ones([channels])?);
        let affine = |t: &Tensor| {
            options
                .affine
                .then(|| Parameter::new(t.clone()))
                .transpose()
        };
        let track = |t: &Tensor| options.track_running_stats.then(|| Buffer::new(t));
        Ok(BatchNorm {
            weight: affine(&ones)?,
            bias: affine(&zeros)?,
            running_mean: track(&zeros),
            running_var: track(&ones),
            num_batches_tracked: track(&Tensor::scalar(0i64)),
            channels,
            options,
        })
    }

    #[track_caller]
    fn forward(&self, name: &str, x: &Tensor, relu: bool, cx: &mut Ctx) -> Result<Tensor> {
        if x.rank() < 2 || x.dims()[1] != self.channels {
            return Err(Error::shape(
                name,
                format!("an input [N, {}, …]", self.channels),
                x.shape(),
            ));
        }
        let weight = self.weight.as_ref().map(Parameter::tensor);
        let bias = self.bias.as_ref().map(Parameter::tensor);
        let (weight, bias, eps) = (weight.as_ref(), bias.as_ref(), self.options.eps);
        let batch = |x: &Tensor| match relu {
            true => x.batch_norm_relu(weight, bias, eps),
            false => x.batch_norm(weight, bias, eps),
        };
        let (Some(mean), Some(var), Some(batches)) = (
            &self.running_mean,
            &self.running_var,
            &self.num_batches_tracked,
        ) else {
            return Ok(batch(x)?.0);
        };
        if !cx.is_training() {
            let (mean, var) = (cx.buffer(mean), cx.buffer(var));
            let y = x.batch_norm_eval(&mean, &var, weight, bias, eps)?;
            return if relu { y.relu() } else { Ok(y) };
        }
        let (y, batch_mean, batch_var) = batch(x)?;
        let count = cx.buffer(batches).add_scalar(1.0)?.to_dtype(DType::I64)?;
        let share = match self.options.momentum {
            Some(momentum) => momentum,
            None => 1.0 / count.item::<i64>()? as f64,
        };
        for (buffer, batch) in [(mean, batch_mean), (var, batch_var)] {
            let old = cx.buffer(buffer);
            let new = batch.detach().to_dtype(old.dtype())?;
            cx.update(
                buffer,
                &old.mul_scalar(1.0 - share)?.add(&new.mul_scalar(share)?)?,
            );
        }
        cx.update(batches, &count);
        Ok(y)
    }
}

macro_rules! batch_norm {
    ($(#[$doc:meta])* $name:ident, $ranks:expr, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Module)]
        pub struct $name(BatchNorm);

        impl $name {
            /// For this many channels, with PyTorch's defaults.
            ///
            /// # Errors
            /// When the size overflows.
            #[track_caller]
            pub fn new(channels: usize, init: &Init) -> Result<Self> {
                Self::with_options(channels, BatchNormOptions::default(), init)
            }

            /// With other settings.
            ///
            /// # Errors
            /// When the size overflows.
            #[track_caller]
            pub fn with_options(
                channels: usize,
                options: BatchNormOptions,
                init: &Init,
            ) -> Result<Self> {
                Ok(Self(BatchNorm::new(channels, options, init)?))
            }

            /// The mean of past batches, `[C]`.
            pub fn running_mean(&self) -> Option<&Buffer> {
                self.0.running_mean.as_ref()
            }

            /// The unbiased variance of past batches, `[C]`.
            pub fn running_var(&self) -> Option<&Buffer> {
                self.0.running_var.as_ref()
            }
        }

        impl Module for $name {
            fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
                super::of_rank(stringify!($name), x, &$ranks, $form)?;
                self.0.forward(stringify!($name), x, false, cx)
            }
        }

        impl $name {
            /// max(forward(x), 0), in one pass while training.
            ///
            /// # Errors
            /// As `forward`.
            #[track_caller]
            pub fn forward_relu(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
                super::of_rank(stringify!($name), x, &$ranks, $form)?;
                self.0.forward(stringify!($name), x, true, cx)
            }
        }
    };
}

batch_norm!(
    /// Batch norm of `[N, C]` or `[N, C, L]` (`torch.nn.BatchNorm1d`; Ioffe, Szegedy 2015).
    ///
    /// Training uses the batch's statistics and updates the running ones through the context;
    /// evaluation uses the running ones.
    ///
    /// ```
    /// use entrenar_nn::{BatchNorm1d, Ctx, Init, Module};
    /// use entrenar_core::Tensor;
    /// let norm = BatchNorm1d::new(1, &Init::new(0))?;
    /// let x = Tensor::from_vec(vec![0.0f32, 2.0], [2, 1])?;
    /// let mut cx = Ctx::train(0, 0);
    /// norm.forward(&x, &mut cx)?;
    /// cx.commit()?;
    /// // 0.9 · 0 + 0.1 · 1
    /// assert_eq!(norm.running_mean().unwrap().value().to_vec::<f32>()?, [0.1]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    BatchNorm1d,
    [2, 3],
    "[N, C] or [N, C, L]"
);

batch_norm!(
    /// Batch norm of images `[N, C, H, W]` (`torch.nn.BatchNorm2d`; Ioffe, Szegedy 2015). Training
    /// and evaluation as in [`BatchNorm1d`].
    BatchNorm2d,
    [4],
    "[N, C, H, W]"
);
