//! Losses.

use entrenar_base::Result;
use entrenar_core::ops::cross_entropy::CrossEntropy;
use entrenar_core::ops::loss::Reduction;

use super::{Operation, one};
use crate::call::Call;

pub(super) const OPERATIONS: &[Operation] = &[
    one!(
        "nn.functional.cross_entropy",
        "target weight size_average ignore_index reduce reduction label_smoothing",
        |c| c.input()?.cross_entropy(
            c.tensor("target")?,
            &CrossEntropy {
                weight: c.optional("weight")?.cloned(),
                ignore_index: ignore_index(c)?,
                label_smoothing: c.real_or("label_smoothing", 0.0)?,
                reduction: reduction(c)?,
            }
        )
    ),
    one!(
        "nn.functional.nll_loss",
        "target weight size_average ignore_index reduce reduction",
        |c| c.input()?.nll_loss(
            c.tensor("target")?,
            c.optional("weight")?,
            ignore_index(c)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.linear_cross_entropy",
        "linear_weight target reduction ignore_index",
        |c| c.input()?.linear_cross_entropy(
            c.tensor("linear_weight")?,
            c.tensor("target")?,
            ignore_index(c)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.mse_loss",
        "target size_average reduce reduction",
        |c| c.input()?.mse_loss(c.tensor("target")?, reduction(c)?)
    ),
    one!(
        "nn.functional.l1_loss",
        "target size_average reduce reduction",
        |c| c.input()?.l1_loss(c.tensor("target")?, reduction(c)?)
    ),
    one!(
        "nn.functional.smooth_l1_loss",
        "target size_average reduce reduction beta",
        |c| c
            .input()?
            .smooth_l1_loss(c.tensor("target")?, c.real_or("beta", 1.0)?, reduction(c)?)
    ),
    one!("nn.functional.huber_loss", "target reduction delta", |c| c
        .input()?
        .huber_loss(
            c.tensor("target")?,
            c.real_or("delta", 1.0)?,
            reduction(c)?
        )),
    one!(
        "nn.functional.binary_cross_entropy",
        "target weight size_average reduce reduction",
        |c| c.input()?.binary_cross_entropy(
            c.tensor("target")?,
            c.optional("weight")?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.binary_cross_entropy_with_logits",
        "target weight size_average reduce reduction pos_weight",
        |c| c.input()?.binary_cross_entropy_with_logits(
            c.tensor("target")?,
            c.optional("weight")?,
            c.optional("pos_weight")?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.kl_div",
        "target size_average reduce reduction log_target",
        |c| c
            .input()?
            .kl_div(c.tensor("target")?, c.flag("log_target")?, reduction(c)?)
    ),
    one!(
        "nn.functional.poisson_nll_loss",
        "target log_input full size_average eps reduce reduction",
        |c| c.input()?.poisson_nll_loss(
            c.tensor("target")?,
            c.flag_or("log_input", true)?,
            c.flag("full")?,
            c.real_or("eps", 1e-8)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.gaussian_nll_loss",
        "target var full eps reduction",
        |c| c.input()?.gaussian_nll_loss(
            c.tensor("target")?,
            c.tensor("var")?,
            c.flag("full")?,
            c.real_or("eps", 1e-6)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.hinge_embedding_loss",
        "target margin size_average reduce reduction",
        |c| c.input()?.hinge_embedding_loss(
            c.tensor("target")?,
            c.real_or("margin", 1.0)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.cosine_embedding_loss",
        "input2 target margin size_average reduce reduction",
        |c| c.input()?.cosine_embedding_loss(
            c.tensor("input2")?,
            c.tensor("target")?,
            c.real_or("margin", 0.0)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.margin_ranking_loss",
        "input2 target margin size_average reduce reduction",
        |c| c.input()?.margin_ranking_loss(
            c.tensor("input2")?,
            c.tensor("target")?,
            c.real_or("margin", 0.0)?,
            reduction(c)?
        )
    ),
    one!(
        "nn.functional.triplet_margin_loss",
        "positive negative margin p eps swap size_average reduce reduction",
        |c| c.input()?.triplet_margin_loss(
            c.tensor("positive")?,
            c.tensor("negative")?,
            c.real_or("margin", 1.0)?,
            c.real_or("p", 2.0)?,
            c.real_or("eps", 1e-6)?,
            c.flag("swap")?,
            reduction(c)?
        )
    ),
    one!("nn.functional.cosine_similarity", "x2 dim eps", |c| c
        .input()?
        .cosine_similarity(
            c.tensor("x2")?,
            c.int_or("dim", 1)?,
            c.real_or("eps", 1e-8)?
        )),
];

/// `reduction`, or the two switches it replaced.
fn reduction(c: &Call<'_>) -> Result<Reduction> {
    if c.value("size_average").is_some() || c.value("reduce").is_some() {
        let average = c.flag_or("size_average", true)?;
        return Ok(match c.flag_or("reduce", true)? {
            false => Reduction::None,
            true if average => Reduction::Mean,
            true => Reduction::Sum,
        });
    }
    match c.text("reduction")?.unwrap_or("mean") {
        "none" => Ok(Reduction::None),
        "mean" => Ok(Reduction::Mean),
        "sum" => Ok(Reduction::Sum),
        "batchmean" => Ok(Reduction::BatchMean),
        _ => Err(c.unknown("reduction", "none, mean, sum or batchmean")),
    }
}

fn ignore_index(c: &Call<'_>) -> Result<i64> {
    Ok(c.int_or("ignore_index", -100)? as i64)
}
