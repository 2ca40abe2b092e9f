//! Layers, one file each. Names of layers, fields and default initial values are PyTorch's.
//!
//! A layer is a struct that derives `Module` and implements it; what it needs besides its input
//! (mode, random keys, buffer updates) comes from `Ctx`. Settings beyond the common ones are
//! structs with a `Default`, never rows of boolean arguments.

mod activation;
mod attention;
mod batch_norm;
mod conv;
mod dropout;
mod embedding;
mod feed_forward;
mod flatten;
mod group_norm;
mod layer_norm;
mod linear;
mod lookup;
mod pool;
mod projection;
mod rms_norm;
mod sequential;
mod transformer;

pub use activation::Activation;
pub use attention::{MultiHeadAttention, MultiHeadAttentionOptions};
pub use batch_norm::{BatchNorm1d, BatchNorm2d, BatchNormOptions};
pub use conv::{Conv1d, Conv2D, Conv2d, ConvLayerOptions, ConvPadding};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use feed_forward::{FeedForward, FeedForwardOptions};
pub use flatten::Flatten;
pub use group_norm::GroupNorm;
pub use layer_norm::{LayerNorm, LayerNormOptions};
pub use linear::{Dense, Linear};
pub use lookup::{Lookup, LookupAdapter};
pub use pool::{AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d};
pub use projection::{AdaptedLayer, Projection, Projections, TransposedLinear};
pub use rms_norm::RMSNorm;
pub use sequential::Sequential;
pub use transformer::{TransformerBlock, TransformerBlockOptions};

use entrenar_core::{Error, Result, Shape, Tensor};

/// Checks that the last dimensions of `x` are `shape`.
#[track_caller]
pub(crate) fn ends_with(layer: &str, x: &Tensor, shape: &Shape) -> Result<()> {
    if x.dims().ends_with(shape) {
        return Ok(());
    }
    Err(Error::shape(
        layer,
        format!("an input whose last dimensions are {shape}"),
        x.shape(),
    ))
}

/// Checks that `x` has one of these ranks.
#[track_caller]
pub(crate) fn of_rank(layer: &str, x: &Tensor, ranks: &[usize], form: &str) -> Result<()> {
    if ranks.contains(&x.rank()) {
        return Ok(());
    }
    Err(Error::shape(layer, format!("an input {form}"), x.shape()))
}
