//! [`Conv1d`] and [`Conv2d`].

use entrenar_core::ops::conv::ConvOptions;
use entrenar_core::{Error, Result, Tensor};

use crate::{Ctx, Init, Module, Parameter};

/// What is put around the input of a convolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConvPadding {
    /// Nothing.
    #[default]
    Valid,
    /// As many zeros as keep the size; stride 1 only.
    Same,
    /// This many zeros on both sides of every dimension.
    Both(usize),
    /// Zeros before and after, one pair per dimension.
    Explicit(Vec<(usize, usize)>),
}

/// Settings of a convolution beyond channels and kernel. Lists have one entry per dimension, or
/// one for all; empty means 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvLayerOptions {
    /// Steps between outputs.
    pub stride: Vec<usize>,
    /// What surrounds the input.
    pub padding: ConvPadding,
    /// Steps between the elements of the kernel.
    pub dilation: Vec<usize>,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Default for ConvLayerOptions {
    fn default() -> Self {
        ConvLayerOptions {
            stride: vec![],
            padding: ConvPadding::Valid,
            dilation: vec![],
            groups: 1,
            bias: true,
        }
    }
}

impl ConvLayerOptions {
    /// The options of the operation for a kernel of this size.
    #[track_caller]
    fn resolve(&self, layer: &str, kernel: &[usize]) -> Result<ConvOptions> {
        let dilation = match self.dilation.as_slice() {
            [] => vec![1; kernel.len()],
            [one] => vec![*one; kernel.len()],
            all => all.to_vec(),
        };
        let padding = match &self.padding {
            ConvPadding::Valid => vec![],
            ConvPadding::Same => {
                if self.stride.iter().any(|&s| s != 1) {
                    return Err(Error::argument(
                        layer,
                        "stride 1 with padding that keeps the size",
                        format!("stride {:?}", self.stride),
                    ));
                }
                ConvOptions::same_padding(kernel, &dilation)
            }
            ConvPadding::Both(n) => vec![(*n, *n); kernel.len()],
            ConvPadding::Explicit(pairs) => pairs.clone(),
        };
        Ok(ConvOptions {
            stride: self.stride.clone(),
            padding,
            dilation,
            groups: self.groups,
        })
    }
}

macro_rules! conv {
    ($(#[$doc:meta])* $name:ident, $dims:literal, $ranks:expr, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Module)]
        pub struct $name {
            /// `[out, in / groups, kernel…]`.
            pub weight: Parameter,
            /// `[out]`.
            pub bias: Option<Parameter>,
            #[module(skip)]
            options: ConvOptions,
        }

        impl $name {
            /// From `inputs` to `outputs` channels with this kernel.
            ///
            /// # Errors
            /// When a setting is impossible or the size overflows.
            #[track_caller]
            pub fn new(
                inputs: usize,
                outputs: usize,
                kernel: [usize; $dims],
                options: ConvLayerOptions,
                init: &mut Init,
            ) -> Result<Self> {
                let name = stringify!($name);
                let groups = options.groups;
                if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups)
                {
                    return Err(Error::argument(
                        name,
                        format!("groups that divide {inputs} and {outputs} channels"),
                        groups,
                    ));
                }
                let mut shape = vec![outputs, inputs / groups];
                shape.extend(kernel);
                let weight = init.default_weight(shape)?;
                let bias = if options.bias {
                    Some(Parameter::new(init.default_bias(&weight)?)?)
                } else {
                    None
                };
                Ok(Self {
                    weight: Parameter::new(weight)?,
                    bias,
                    options: options.resolve(name, &kernel)?,
                })
            }
        }

        impl Module for $name {
            fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
                super::of_rank(stringify!($name), x, &$ranks, $form)?;
                let bias = self.bias.as_ref().map(Parameter::tensor);
                x.conv(&self.weight.tensor(), bias.as_ref(), &self.options)
            }
        }
    };
}

conv!(
    /// Convolution of `[N, C, L]` (`torch.nn.Conv1d`). Weight and bias start uniform in
    /// ±1/√(in / groups · kernel).
    Conv1d,
    1,
    [2, 3],
    "[N, C, L] or [C, L]"
);

conv!(
    /// Convolution of images `[N, C, H, W]` (`torch.nn.Conv2d`). Weight and bias start uniform in
    /// ±1/√(in / groups · kernel).
    ///
    /// ```
    /// use entrenar_nn::{Conv2d, ConvLayerOptions, ConvPadding, Ctx, Init, Module};
    /// use entrenar_core::{DType, Tensor};
    /// let options = ConvLayerOptions { padding: ConvPadding::Same, ..Default::default() };
    /// let layer = Conv2d::new(1, 8, [3, 3], options, &mut Init::new(0))?;
    /// let y = layer.forward(&Tensor::zeros([2, 1, 28, 28], DType::F32), &mut Ctx::eval())?;
    /// assert_eq!(y.dims(), [2, 8, 28, 28]);
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    Conv2d,
    2,
    [3, 4],
    "[N, C, H, W] or [C, H, W]"
);

/// The name of [`Conv2d`] in Keras.
pub type Conv2D = Conv2d;
