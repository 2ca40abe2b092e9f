//! Convolutions and their transposes in one, two and three dimensions.

use entrenar_base::Result;
use entrenar_core::Tensor;
use entrenar_core::ops::conv::ConvOptions;

use super::{Operation, one};
use crate::call::Call;

pub(super) const OPERATIONS: &[Operation] = &[
    one!(
        "nn.functional.conv1d",
        "weight bias stride padding dilation groups",
        |c| conv(c, 1)
    ),
    one!(
        "nn.functional.conv2d",
        "weight bias stride padding dilation groups",
        |c| conv(c, 2)
    ),
    one!(
        "nn.functional.conv3d",
        "weight bias stride padding dilation groups",
        |c| conv(c, 3)
    ),
    one!(
        "nn.functional.conv_transpose1d",
        "weight bias stride padding output_padding groups dilation",
        |c| conv_transpose(c, 1)
    ),
    one!(
        "nn.functional.conv_transpose2d",
        "weight bias stride padding output_padding groups dilation",
        |c| conv_transpose(c, 2)
    ),
    one!(
        "nn.functional.conv_transpose3d",
        "weight bias stride padding output_padding groups dilation",
        |c| conv_transpose(c, 3)
    ),
];

fn options(c: &Call<'_>, rank: usize) -> Result<ConvOptions> {
    let ones = vec![1; rank];
    let dilation = c.spatial("dilation", rank, &ones)?;
    let padding = match c.text("padding") {
        Ok(Some("same")) => {
            let kernel = c.tensor("weight")?.dims().get(2..).unwrap_or_default();
            ConvOptions::same_padding(kernel, &dilation)
        }
        Ok(Some("valid")) => vec![(0, 0); rank],
        Ok(Some(_)) => return Err(c.unknown("padding", "same, valid or numbers")),
        _ => {
            let sizes = c.spatial("padding", rank, &vec![0; rank])?;
            sizes.into_iter().map(|p| (p, p)).collect()
        }
    };
    Ok(ConvOptions {
        stride: c.spatial("stride", rank, &ones)?,
        padding,
        dilation,
        groups: match c.value("groups") {
            None => 1,
            Some(_) => c.count("groups")?,
        },
    })
}

fn conv(c: &Call<'_>, rank: usize) -> Result<Tensor> {
    let options = options(c, rank)?;
    c.input()?
        .conv(c.tensor("weight")?, c.optional("bias")?, &options)
}

fn conv_transpose(c: &Call<'_>, rank: usize) -> Result<Tensor> {
    let options = options(c, rank)?;
    let extra = c.spatial("output_padding", rank, &vec![0; rank])?;
    c.input()?
        .conv_transpose(c.tensor("weight")?, c.optional("bias")?, &options, &extra)
}
