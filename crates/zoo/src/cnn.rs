//! [`Cnn`]: stages of convolution, batch norm, ReLU and pooling, then linear layers.

use entrenar_core::{Error, Result, Tensor};
use entrenar_nn::{
    Activation, BatchNorm2d, Conv2d, ConvLayerOptions, ConvPadding, Ctx, Dropout, Init, Linear,
    MaxPool2d, Module,
};
use serde::{Deserialize, Serialize};

/// Sizes of a [`Cnn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CnnConfig {
    /// Channels of the image, then of each stage.
    pub channels: Vec<usize>,
    /// Height and width of the image.
    pub size: [usize; 2],
    /// Side of the square kernels, odd; padded so that the size stays.
    pub kernel: usize,
    /// Whether each stage normalises its batch.
    pub batch_norm: bool,
    /// Sizes of the linear layers before the output.
    pub hidden: Vec<usize>,
    /// Number of outputs.
    pub classes: usize,
    /// Dropout before the output layer.
    pub dropout: f64,
}

impl Default for CnnConfig {
    fn default() -> Self {
        CnnConfig {
            channels: vec![1, 32, 64],
            size: [28, 28],
            kernel: 3,
            batch_norm: true,
            hidden: vec![128],
            classes: 10,
            dropout: 0.0,
        }
    }
}

/// Convolution (size kept), optional batch norm, ReLU, 2 × 2 maximum.
#[derive(Module)]
pub struct Stage {
    /// The convolution.
    pub conv: Conv2d,
    /// The norm.
    pub norm: Option<BatchNorm2d>,
    pool: MaxPool2d,
}

impl Module for Stage {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let x = cx.call("conv", &self.conv, x)?;
        let x = match &self.norm {
            Some(norm) => cx.scope("norm", |cx| norm.forward_relu(&x, cx))?,
            None => x.relu()?,
        };
        cx.call("pool", &self.pool, &x)
    }
}

/// An image classifier: `[batch, channels, height, width]` in, `[batch, classes]` out.
#[derive(Module)]
pub struct Cnn {
    /// The convolutional stages.
    pub stages: Vec<Stage>,
    /// The hidden linear layers and the output layer.
    pub layers: Vec<Linear>,
    dropout: Dropout,
    #[module(skip)]
    config: CnnConfig,
}

impl Cnn {
    /// A classifier with PyTorch's default initialisation.
    ///
    /// # Errors
    /// When a size is 0, the kernel is even, or the image is too small for the stages.
    #[track_caller]
    pub fn new(config: CnnConfig, init: &mut Init) -> Result<Cnn> {
        let c = &config;
        let stages = c.channels.len().saturating_sub(1);
        let fits = c.size.iter().all(|&s| s >> stages >= 1);
        let zero = c.channels.contains(&0) || c.hidden.contains(&0) || c.classes == 0;
        if stages == 0 || !fits || zero || c.kernel.is_multiple_of(2) {
            return Err(Error::argument(
                "cnn",
                "an odd kernel, at least one stage, no size 0, and an image of at least 2^stages pixels a side",
                format!("{c:?}"),
            ));
        }
        let options = ConvLayerOptions {
            padding: ConvPadding::Both(c.kernel / 2),
            ..Default::default()
        };
        let mut built = Vec::with_capacity(stages);
        for w in c.channels.windows(2) {
            built.push(Stage {
                conv: Conv2d::new(w[0], w[1], [c.kernel; 2], options.clone(), init)?,
                norm: if c.batch_norm {
                    Some(BatchNorm2d::new(w[1], init)?)
                } else {
                    None
                },
                pool: MaxPool2d::new([2, 2]),
            });
        }
        let area = (c.size[0] >> stages) * (c.size[1] >> stages);
        let mut sizes = vec![c.channels[stages] * area];
        sizes.extend(&c.hidden);
        sizes.push(c.classes);
        Ok(Cnn {
            stages: built,
            layers: sizes
                .windows(2)
                .map(|w| Linear::new(w[0], w[1], init))
                .collect::<Result<_>>()?,
            dropout: Dropout::new(c.dropout)?,
            config,
        })
    }

    /// The sizes it was built with.
    pub fn config(&self) -> &CnnConfig {
        &self.config
    }
}

impl Module for Cnn {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, stage) in self.stages.iter().enumerate() {
            x = cx.scope("stages", |cx| cx.call(&i.to_string(), stage, &x))?;
        }
        x = x.flatten(1, -1)?;
        for (i, layer) in self.layers.iter().enumerate() {
            if i + 1 == self.layers.len() {
                x = cx.call("dropout", &self.dropout, &x)?;
            }
            let activation = match i + 1 < self.layers.len() {
                true => Activation::Relu,
                false => Activation::Identity,
            };
            x = cx.scope("layers", |cx| {
                cx.scope(&i.to_string(), |_| layer.activated(&x, &activation))
            })?;
        }
        Ok(x)
    }
}
