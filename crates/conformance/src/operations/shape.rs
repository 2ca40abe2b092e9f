//! Views, permutations, joining, padding and repetition.

use entrenar_base::{Error, Result};
use entrenar_core::Tensor;
use entrenar_core::ops::pad::Padding;

use super::{Operation, many, one};
use crate::call::Call;
use crate::suite::Value;

pub(super) const OPERATIONS: &[Operation] = &[
    one!("reshape", "shape", |c| c.input()?.view(&c.dims("shape")?)),
    one!("view", "size", |c| c.input()?.view(&c.dims("size")?)),
    one!("flatten", "start_dim end_dim", |c| c
        .input()?
        .flatten(c.int_or("start_dim", 0)?, c.int_or("end_dim", -1)?)),
    one!("squeeze", "dim", |c| squeeze(c)),
    one!("unsqueeze", "dim", |c| c.input()?.unsqueeze(c.dim("dim")?)),
    one!("expand", "size", |c| c.input()?.expand(&c.dims("size")?)),
    one!("broadcast_to", "size", |c| c
        .input()?
        .expand(&c.dims("size")?)),
    one!("permute", "dims", |c| c.input()?.permute(&c.dims("dims")?)),
    one!("transpose", "dim0 dim1", |c| c
        .input()?
        .transpose(c.dim("dim0")?, c.dim("dim1")?)),
    one!("t", "", |c| c.input()?.t()),
    one!("mT", "", |c| c.input()?.transpose(-2, -1)),
    one!("movedim", "source destination", |c| movedim(c)),
    one!("narrow", "dim start length", |c| narrow(c)),
    one!("select", "dim index", |c| {
        let (x, dim) = (c.input()?, c.dim("dim")?);
        x.select(dim, from_end(x, dim, c.dim("index")?)?)
    }),
    one!("cat", "dim", |c| Tensor::concat(
        &c.tensors("input")?,
        c.int_or("dim", 0)?
    )),
    one!("stack", "dim", |c| Tensor::stack(
        &c.tensors("input")?,
        c.int_or("dim", 0)?
    )),
    many!("split", "split_size_or_sections dim", |c| split(c)),
    many!("split_with_sizes", "split_sizes dim", |c| c
        .input()?
        .split(&c.counts("split_sizes")?, c.int_or("dim", 0)?)),
    many!("chunk", "chunks dim", |c| c
        .input()?
        .chunk(c.count("chunks")?, c.int_or("dim", 0)?)),
    many!("unbind", "dim", |c| {
        let (x, dim) = (c.input()?, c.int_or("dim", 0)?);
        (0..x.size(dim)?).map(|i| x.select(dim, i)).collect()
    }),
    one!("flip", "dims", |c| c.input()?.flip(&c.dims("dims")?)),
    one!("roll", "shifts dims", |c| roll(c)),
    one!("repeat", "repeats", |c| c
        .input()?
        .repeat(&c.counts("repeats")?)),
    one!(
        "repeat_interleave",
        "repeats dim",
        |c| match c.int("dim")? {
            Some(dim) => c.input()?.repeat_interleave(c.count("repeats")?, dim),
            None => c
                .input()?
                .flatten(0, -1)?
                .repeat_interleave(c.count("repeats")?, 0),
        }
    ),
    one!("tile", "dims", |c| c.input()?.tile(&c.counts("dims")?)),
    one!("unfold", "dimension size step", |c| c.input()?.unfold(
        c.dim("dimension")?,
        c.count("size")?,
        c.count("step")?
    )),
    one!("diagonal", "offset dim1 dim2", |c| c.input()?.diagonal(
        c.int_or("offset", 0)?,
        c.int_or("dim1", 0)?,
        c.int_or("dim2", 1)?
    )),
    one!("diag_embed", "offset dim1 dim2", |c| c.input()?.diag_embed(
        c.int_or("offset", 0)?,
        c.int_or("dim1", -2)?,
        c.int_or("dim2", -1)?
    )),
    one!("tril", "diagonal", |c| c
        .input()?
        .tril(c.int_or("diagonal", 0)? as i64)),
    one!("triu", "diagonal", |c| c
        .input()?
        .triu(c.int_or("diagonal", 0)? as i64)),
    one!("nn.functional.pixel_shuffle", "upscale_factor", |c| c
        .input()?
        .pixel_shuffle(c.count("upscale_factor")?)),
    one!("nn.functional.pixel_unshuffle", "downscale_factor", |c| c
        .input()?
        .pixel_unshuffle(c.count("downscale_factor")?)),
    one!("nn.functional.pad", "pad mode value", |c| pad(c)),
];

fn from_end(x: &Tensor, dim: isize, index: isize) -> Result<usize> {
    let size = x.size(dim)? as isize;
    usize::try_from(if index < 0 { index + size } else { index })
        .map_err(|_| Error::index("index", format!("-{size}..{size}"), index))
}

fn narrow(c: &Call<'_>) -> Result<Tensor> {
    let (x, dim) = (c.input()?, c.dim("dim")?);
    let start = from_end(x, dim, c.dim("start")?)?;
    x.narrow(dim, start, c.count("length")?)
}

/// Parts of one size (the last may be smaller), or of the sizes given.
fn split(c: &Call<'_>) -> Result<Vec<Tensor>> {
    const NAME: &str = "split_size_or_sections";
    let (x, dim) = (c.input()?, c.int_or("dim", 0)?);
    if !matches!(c.value(NAME), Some(Value::Int(_))) {
        return x.split(&c.counts(NAME)?, dim);
    }
    let (each, size) = (c.count(NAME)?.max(1), x.size(dim)?);
    let sizes: Vec<usize> = (0..size.max(1))
        .step_by(each)
        .map(|start| each.min(size - start))
        .collect();
    x.split(&sizes, dim)
}

/// All dimensions of size 1, one, or several.
fn squeeze(c: &Call<'_>) -> Result<Tensor> {
    let x = c.input()?;
    let Some(dims) = c.ints("dim")? else {
        return x.squeeze_all();
    };
    let mut dims: Vec<usize> = dims
        .iter()
        .map(|&d| x.shape().dim("squeeze", d))
        .collect::<Result<_>>()?;
    dims.sort_unstable();
    let mut from_last = dims.iter().rev();
    from_last.try_fold(x.clone(), |x, &d| x.squeeze(d as isize))
}

/// Several dimensions at once are one permutation.
fn movedim(c: &Call<'_>) -> Result<Tensor> {
    let x = c.input()?;
    let all = |name: &str| -> Result<Vec<usize>> {
        c.dims(name)?
            .iter()
            .map(|&d| x.shape().dim("movedim", d))
            .collect()
    };
    let (from, to) = (all("source")?, all("destination")?);
    if let ([from], [to]) = (&from[..], &to[..]) {
        return x.movedim(*from as isize, *to as isize);
    }
    let mut rest = (0..x.rank()).filter(|d| !from.contains(d));
    let axes: Vec<isize> = (0..x.rank())
        .filter_map(|at| match to.iter().position(|&t| t == at) {
            Some(k) => from.get(k).copied(),
            None => rest.next(),
        })
        .map(|d| d as isize)
        .collect();
    x.permute(&axes)
}

/// Without dimensions PyTorch rolls the flattened tensor.
fn roll(c: &Call<'_>) -> Result<Tensor> {
    let (x, shifts, dims) = (c.input()?, c.dims("shifts")?, c.dims("dims")?);
    if !dims.is_empty() {
        return x.roll(&shifts, &dims);
    }
    x.reshape([x.numel()])?
        .roll(&shifts, &[0])?
        .reshape(x.shape())
}

/// PyTorch lists pairs from the last dimension. Negative sizes cut: before the others grow, except
/// that reflection and replication see what is cut off.
fn pad(c: &Call<'_>) -> Result<Tensor> {
    let mut x = c.input()?.clone();
    let sizes = c.dims("pad")?;
    let rank = x.rank();
    let mode = match c.text("mode")?.unwrap_or("constant") {
        "constant" => Padding::Constant(c.real_or("value", 0.0)?),
        "reflect" => Padding::Reflect,
        "replicate" => Padding::Replicate,
        "circular" => Padding::Circular,
        _ => return Err(c.unknown("mode", "constant, reflect, replicate or circular")),
    };
    if sizes.len() % 2 != 0 || sizes.len() > 2 * rank {
        return Err(c.unknown("pad", "pairs, at most one per dimension"));
    }
    let pairs = |sign: isize| {
        let part = |size: isize| usize::try_from(sign * size).unwrap_or(0);
        let mut pairs: Vec<(usize, usize)> = sizes
            .chunks(2)
            .map(|pair| (part(pair[0]), part(pair[1])))
            .collect();
        pairs.resize(rank, (0, 0));
        pairs.reverse();
        pairs
    };
    let cut_last = matches!(mode, Padding::Reflect | Padding::Replicate);
    if cut_last {
        x = x.pad(&pairs(1), mode)?;
    }
    for (dim, (before, after)) in pairs(-1).into_iter().enumerate() {
        let left = x.dims()[dim].checked_sub(before + after);
        let left = left.ok_or_else(|| c.unknown("pad", "no more cut than there is"))?;
        x = x.narrow(dim as isize, before, left)?;
    }
    if cut_last {
        Ok(x)
    } else {
        x.pad(&pairs(1), mode)
    }
}
