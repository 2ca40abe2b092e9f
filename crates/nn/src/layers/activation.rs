//! [`Activation`]: elementwise functions as layers, one's own included.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use entrenar_core::{Error, Result, Tensor};

use crate::{Ctx, Module, Parameters, Visitor};

/// The function of [`Activation::Custom`].
type Function = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// An elementwise function (`torch.nn.ReLU` and its kin).
///
/// ```
/// use entrenar_nn::{Activation, Ctx, Module};
/// use entrenar_core::Tensor;
/// let x = Tensor::from_vec(vec![-1.0f32, 2.0], [2])?;
/// let relu: Activation = "relu".parse()?;
/// assert_eq!(relu.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?, [0.0, 2.0]);
/// let cube = Activation::custom(|x| x.mul(x)?.mul(x));
/// assert_eq!(cube.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?, [-1.0, 8.0]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum Activation {
    /// x.
    Identity,
    /// max(0, x).
    Relu,
    /// x where positive, slope · x elsewhere.
    LeakyRelu(f64),
    /// x where positive, α (eˣ − 1) elsewhere.
    Elu(f64),
    /// ELU with the constants that keep mean 0 and variance 1.
    Selu,
    /// x Φ(x), exact.
    Gelu,
    /// GELU through tanh, as GPT-2 has it.
    GeluTanh,
    /// x sigmoid(x).
    Silu,
    /// x tanh(softplus(x)).
    Mish,
    /// ln(1 + eˣ).
    Softplus,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// Softmax over the last dimension.
    Softmax,
    /// Any function.
    Custom(CustomActivation),
}

/// A function as an activation; see [`Activation::custom`].
#[derive(Clone)]
pub struct CustomActivation(Function);

/// Names for `FromStr` and `Display`; those with a number take PyTorch's default.
const NAMES: &[(&str, Activation)] = &[
    ("identity", Activation::Identity),
    ("relu", Activation::Relu),
    ("leaky_relu", Activation::LeakyRelu(0.01)),
    ("elu", Activation::Elu(1.0)),
    ("selu", Activation::Selu),
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("silu", Activation::Silu),
    ("mish", Activation::Mish),
    ("softplus", Activation::Softplus),
    ("tanh", Activation::Tanh),
    ("sigmoid", Activation::Sigmoid),
    ("softmax", Activation::Softmax),
];

impl Activation {
    /// One's own function; it must be pure, as a checkpoint may run it twice.
    pub fn custom(function: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Activation::Custom(CustomActivation(Arc::new(function)))
    }

    /// The function's value.
    ///
    /// # Errors
    /// What the function returns; the built-in ones take every float tensor.
    #[track_caller]
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Identity => Ok(x.clone()),
            Activation::Relu => x.relu(),
            Activation::LeakyRelu(slope) => x.leaky_relu(*slope),
            Activation::Elu(alpha) => x.elu(*alpha),
            Activation::Selu => x.selu(),
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Silu => x.silu(),
            Activation::Mish => x.mish(),
            Activation::Softplus => x.softplus(1.0, 20.0),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Softmax => x.softmax(-1),
            Activation::Custom(function) => (function.0)(x),
        }
    }

    fn name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(_, a)| std::mem::discriminant(a) == std::mem::discriminant(self))
            .map_or("custom", |(name, _)| name)
    }
}

impl Parameters for Activation {
    fn visit(&self, _: &mut Visitor<'_>) {}
}

impl Module for Activation {
    fn forward(&self, x: &Tensor, _: &mut Ctx) -> Result<Tensor> {
        self.apply(x)
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::LeakyRelu(number) | Activation::Elu(number) => {
                write!(f, "{}({number})", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Activation> {
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, activation)| activation.clone())
            .ok_or_else(|| {
                let known: Vec<&str> = NAMES.iter().map(|(n, _)| *n).collect();
                Error::argument("Activation", format!("one of {}", known.join(", ")), name)
            })
    }
}
