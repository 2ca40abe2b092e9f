//! [`Mlp`]: linear layers with an activation, and dropout after each hidden one.

use entrenar_core::{Error, Result, Tensor};
use entrenar_nn::{Activation, Ctx, Dropout, Init, Linear, Module};
use serde::{Deserialize, Serialize};

/// Sizes of an [`Mlp`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MlpConfig {
    /// Inputs, hidden sizes, outputs.
    pub sizes: Vec<usize>,
    /// Name of the function between layers.
    pub activation: String,
    /// Dropout after each hidden layer.
    pub dropout: f64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        MlpConfig {
            sizes: vec![],
            activation: "relu".into(),
            dropout: 0.0,
        }
    }
}

/// A perceptron: `[batch, …]` in (everything after the batch is flattened), `[batch, out]` out.
#[derive(Module)]
pub struct Mlp {
    /// One layer per step between sizes.
    pub layers: Vec<Linear>,
    activation: Activation,
    dropout: Dropout,
    #[module(skip)]
    config: MlpConfig,
}

impl Mlp {
    /// A perceptron with PyTorch's default initialisation.
    ///
    /// # Errors
    /// When there are fewer than two sizes, a size is 0, or the activation is not known.
    #[track_caller]
    pub fn new(config: MlpConfig, init: &mut Init) -> Result<Mlp> {
        if config.sizes.len() < 2 || config.sizes.contains(&0) {
            return Err(Error::argument(
                "mlp",
                "at least two sizes, none of them 0",
                format!("{:?}", config.sizes),
            ));
        }
        Ok(Mlp {
            layers: config
                .sizes
                .windows(2)
                .map(|w| Linear::new(w[0], w[1], init))
                .collect::<Result<_>>()?,
            activation: config.activation.parse()?,
            dropout: Dropout::new(config.dropout)?,
            config,
        })
    }

    /// The sizes it was built with.
    pub fn config(&self) -> &MlpConfig {
        &self.config
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let mut x = if x.rank() == 2 {
            x.clone()
        } else {
            x.flatten(1, -1)?
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let hidden = i + 1 < self.layers.len();
            let activation = match hidden {
                true => &self.activation,
                false => &Activation::Identity,
            };
            x = cx.scope("layers", |cx| {
                cx.scope(&i.to_string(), |_| layer.activated(&x, activation))
            })?;
            if hidden {
                x = cx.call("dropout", &self.dropout, &x)?;
            }
        }
        Ok(x)
    }
}
