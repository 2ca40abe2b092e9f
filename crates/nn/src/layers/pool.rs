//! Pooling layers: the largest or the mean value of each window.

use entrenar_core::ops::pool::PoolOptions;
use entrenar_core::{Result, Tensor};

use crate::{Ctx, Module};

macro_rules! pool {
    ($(#[$doc:meta])* $name:ident, $dims:literal, $ranks:expr, $form:literal,
     |$x:ident, $options:ident| $call:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Module)]
        pub struct $name {
            #[module(skip)]
            options: PoolOptions,
        }

        impl $name {
            /// Windows of this size, side by side.
            pub fn new(kernel: [usize; $dims]) -> Self {
                Self::with_options(PoolOptions::new(&kernel))
            }

            /// Windows with their own stride, padding and so on.
            pub fn with_options(options: PoolOptions) -> Self {
                Self { options }
            }
        }

        impl Module for $name {
            fn forward(&self, $x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
                super::of_rank(stringify!($name), $x, &$ranks, $form)?;
                let $options = &self.options;
                $call
            }
        }
    };
}

pool!(
    /// The largest value of each window of `[N, C, L]` (`torch.nn.MaxPool1d`).
    MaxPool1d, 1, [2, 3], "[N, C, L] or [C, L]",
    |x, options| Ok(x.max_pool(options)?.0)
);
pool!(
    /// The largest value of each window of `[N, C, H, W]` (`torch.nn.MaxPool2d`).
    ///
    /// ```
    /// use entrenar_nn::{Ctx, MaxPool2d, Module};
    /// use entrenar_core::{DType, Tensor};
    /// let x = Tensor::arange(0.0, 16.0, 1.0, DType::F32)?.reshape([1, 1, 4, 4])?;
    /// let y = MaxPool2d::new([2, 2]).forward(&x, &mut Ctx::eval())?;
    /// assert_eq!(y.to_vec::<f32>()?, [5.0, 7.0, 13.0, 15.0]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    MaxPool2d, 2, [3, 4], "[N, C, H, W] or [C, H, W]",
    |x, options| Ok(x.max_pool(options)?.0)
);
pool!(
    /// The mean of each window of `[N, C, L]`, padding counted (`torch.nn.AvgPool1d`).
    AvgPool1d, 1, [2, 3], "[N, C, L] or [C, L]",
    |x, options| x.avg_pool(options, true, None)
);
pool!(
    /// The mean of each window of `[N, C, H, W]`, padding counted (`torch.nn.AvgPool2d`).
    AvgPool2d, 2, [3, 4], "[N, C, H, W] or [C, H, W]",
    |x, options| x.avg_pool(options, true, None)
);

/// Means of windows that divide any image into `[H, W]` parts (`torch.nn.AdaptiveAvgPool2d`).
///
/// ```
/// use entrenar_nn::{AdaptiveAvgPool2d, Ctx, Module};
/// use entrenar_core::{DType, Tensor};
/// let y = AdaptiveAvgPool2d::new([1, 1])
///     .forward(&Tensor::ones([2, 3, 5, 7], DType::F32), &mut Ctx::eval())?;
/// assert_eq!(y.dims(), [2, 3, 1, 1]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone, Debug, Module)]
pub struct AdaptiveAvgPool2d {
    output: [usize; 2],
}

impl AdaptiveAvgPool2d {
    /// With this output size.
    pub fn new(output: [usize; 2]) -> Self {
        Self { output }
    }
}

impl Module for AdaptiveAvgPool2d {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        super::of_rank("AdaptiveAvgPool2d", x, &[3, 4], "[N, C, H, W] or [C, H, W]")?;
        x.adaptive_avg_pool(&self.output)
    }
}
