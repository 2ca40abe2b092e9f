//! Reading and writing at indices: gather, scatter, index_select, index_add, one-hot, and the
//! gradient of an embedding table.
//!
//! Every index is checked against its range before anything is written; an error names the
//! position and the value. Writes to the same place happen in row-major order of the index, so
//! results are the same for any number of threads. Index arrays are i64, i32, i8 or u8.

use entrenar_base::{Array, DType, Element, Error, Result, Shape, dispatch};

use crate::kit::{self, Real, check_dim, contiguous, integers, same_dtype};
use crate::team::{self, Shared};

/// Estimated nanoseconds to move one element.
const COPY_NS: f64 = 0.5;

/// The multi-index of row-major position `at`.
fn unravel(dims: &[usize], mut at: usize) -> Vec<usize> {
    let mut out = vec![0; dims.len()];
    for (o, &d) in out.iter_mut().zip(dims).rev() {
        *o = at % d;
        at /= d;
    }
    out
}

/// Checks integers against `0..limit`.
#[track_caller]
fn check_range(op: &str, index: &[i64], dims: &[usize], limit: usize) -> Result<()> {
    // One pass without branches finds that nothing is wrong; only then the culprit is sought.
    let wrong = index
        .iter()
        .fold(false, |w, &i| w | (i as u64 >= limit as u64));
    if !wrong {
        return Ok(());
    }
    let at = index.iter().position(|&i| i as u64 >= limit as u64);
    let at = at.expect("one was found above");
    Err(Error::index(
        op,
        format!("indices in 0..{limit}"),
        format!("{} at position {:?}", index[at], unravel(dims, at)),
    ))
}

/// Checks that every element of an integer array lies in `0..limit`.
///
/// # Errors
/// When one does not (its position and value are named) or the dtype is no integer.
///
/// ```
/// use entrenar_base::Array;
/// let index = Array::from_vec(vec![0i64, 7], [2])?;
/// let error = entrenar_cpu::index::bounds(&index, 5, "embedding").unwrap_err();
/// assert_eq!(error.to_string(), "[embedding] expected indices in 0..5, got 7 at position [1]");
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn bounds(index: &Array, limit: usize, op: &str) -> Result<()> {
    check_range(op, &integers(op, index)?, index.dims(), limit)
}

/// Checks ranks and sizes for gather and scatter: `index` fits inside `other` except along `dim`.
#[track_caller]
fn check_inside(
    op: &str,
    index: &Array,
    other: &Array,
    except: Option<usize>,
    what: &str,
) -> Result<()> {
    let fits = index.rank() == other.rank()
        && (0..index.rank()).all(|d| Some(d) == except || index.dims()[d] <= other.dims()[d]);
    if fits {
        return Ok(());
    }
    let except = except.map_or(String::new(), |d| format!(" except in dimension {d}"));
    Err(Error::shape(
        op,
        format!(
            "an index of the rank of {what} {} and no larger{except}",
            other.shape()
        ),
        index.shape(),
    ))
}

/// Calls `visit(position in index, offset in the other array)` for every row of `index`'s last
/// dimension: `strides` are the other array's, with that of the indexed dimension set to 0.
fn rows(dims: &[usize], strides: &[isize], offset: usize, mut visit: impl FnMut(usize, isize)) {
    let Some((&last, outer)) = dims.split_last() else {
        return visit(0, offset as isize);
    };
    let count: usize = outer.iter().product();
    if last == 0 {
        return;
    }
    let mut counter = vec![0usize; outer.len()];
    let mut base = offset as isize;
    for row in 0..count {
        visit(row * last, base);
        for d in (0..outer.len()).rev() {
            counter[d] += 1;
            base += strides[d];
            if counter[d] < outer[d] {
                break;
            }
            base -= strides[d] * counter[d] as isize;
            counter[d] = 0;
        }
    }
}

/// Strides for walking beside `index`: that of `dim` removed, returned apart.
fn split_strides(strides: &[isize], dim: usize) -> (Vec<isize>, isize) {
    let mut walk = strides.to_vec();
    let step = match walk.get_mut(dim) {
        Some(s) => std::mem::replace(s, 0),
        None => 0, // a scalar: its only index is 0
    };
    (walk, step)
}

/// `out[i][j][k] = x[i][index[i][j][k]][k]` (here for `dim` = 1): `torch.gather`.
///
/// `x` and `index` have one rank; `index.size(d) <= x.size(d)` for every `d` other than `dim`.
///
/// # Errors
/// When shapes do not fit or an index is outside `0..x.size(dim)`.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// let index = Array::from_vec(vec![1i64, 0], [2, 1])?;
/// let picked = entrenar_cpu::index::gather(&x, 1, &index)?;
/// assert_eq!(picked.to_vec::<f32>()?, [2.0, 3.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn gather(x: &Array, dim: usize, index: &Array) -> Result<Array> {
    const OP: &str = "gather";
    check_dim(OP, x, dim)?;
    check_inside(OP, index, x, Some(dim), "the input")?;
    let ids = integers(OP, index)?;
    check_range(
        OP,
        &ids,
        index.dims(),
        x.dims().get(dim).copied().unwrap_or(1),
    )?;
    let (walk, step) = split_strides(x.layout().strides(), dim);
    let last = index.dims().last().copied().unwrap_or(1);
    let inner = walk.last().copied().unwrap_or(0);
    dispatch!(x.dtype(), T => {
        let data = x.view::<T>()?.data();
        Ok(Array::build(index.shape(), |out: &mut [T]| {
            rows(index.dims(), &walk, x.layout().offset(), |at, base| {
                let (ids, out) = (&ids[at..at + last], &mut out[at..at + last]);
                for (j, (o, &i)) in out.iter_mut().zip(ids).enumerate() {
                    *o = data[(base + j as isize * inner + i as isize * step) as usize];
                }
            });
        }))
    })
}

/// Shared body of the two scatters.
#[track_caller]
fn scatter_with<T: Element>(
    op: &str,
    base: &Array,
    dim: usize,
    index: &Array,
    src: &Array,
    write: impl Fn(&mut T, T),
) -> Result<Array> {
    let ids = integers(op, index)?;
    check_range(
        op,
        &ids,
        index.dims(),
        base.dims().get(dim).copied().unwrap_or(1),
    )?;
    let mut out = base.deep_copy();
    let (walk, step) = split_strides(out.layout().strides(), dim);
    let last = index.dims().last().copied().unwrap_or(1);
    let inner = walk.last().copied().unwrap_or(0);
    // The part of src beside the index, in the index's order.
    let mut part = src.clone();
    for (d, &size) in index.dims().iter().enumerate() {
        part = part.slice(d, 0, size, 1)?;
    }
    let part = contiguous(&part)?;
    let values = part.as_slice::<T>()?;
    let target = out.make_mut::<T>()?;
    rows(index.dims(), &walk, 0, |at, base| {
        for (j, (&i, &v)) in ids[at..at + last]
            .iter()
            .zip(&values[at..at + last])
            .enumerate()
        {
            write(
                &mut target[(base + j as isize * inner + i as isize * step) as usize],
                v,
            );
        }
    });
    Ok(out)
}

#[track_caller]
fn check_scatter(op: &str, base: &Array, dim: usize, index: &Array, src: &Array) -> Result<()> {
    check_dim(op, base, dim)?;
    same_dtype(op, base, src)?;
    check_inside(op, index, base, Some(dim), "the base")?;
    check_inside(op, index, src, None, "the source")
}

/// A copy of `base` with `out[i][index[i][j][k]][k] = src[i][j][k]` (here for `dim` = 1):
/// `torch.scatter`. When several entries meet in one place the last in row-major order stays.
///
/// # Errors
/// When shapes or dtypes do not fit or an index is outside `0..base.size(dim)`.
#[track_caller]
pub fn scatter(base: &Array, dim: usize, index: &Array, src: &Array) -> Result<Array> {
    check_scatter("scatter", base, dim, index, src)?;
    dispatch!(base.dtype(), T => {
        scatter_with::<T>("scatter", base, dim, index, src, |o, v| *o = v)
    })
}

/// A copy of `base` with `out[i][index[i][j][k]][k] += src[i][j][k]` (here for `dim` = 1):
/// `torch.scatter_add`. The gradient of [`gather`] with a `base` of zeros.
///
/// Integers wrap; 16-bit floats accumulate in f32.
///
/// # Errors
/// When shapes or dtypes do not fit or an index is outside `0..base.size(dim)`.
#[track_caller]
pub fn scatter_add(base: &Array, dim: usize, index: &Array, src: &Array) -> Result<Array> {
    const OP: &str = "scatter_add";
    check_scatter(OP, base, dim, index, src)?;
    match base.dtype() {
        DType::F32 => scatter_with::<f32>(OP, base, dim, index, src, |o, v| *o += v),
        DType::F64 => scatter_with::<f64>(OP, base, dim, index, src, |o, v| *o += v),
        DType::I64 => scatter_with::<i64>(OP, base, dim, index, src, |o, v| {
            *o = o.wrapping_add(v);
        }),
        DType::I32 => scatter_with::<i32>(OP, base, dim, index, src, |o, v| {
            *o = o.wrapping_add(v);
        }),
        DType::U8 => scatter_with::<u8>(OP, base, dim, index, src, |o, v| {
            *o = o.wrapping_add(v);
        }),
        DType::I8 => scatter_with::<i8>(OP, base, dim, index, src, |o, v| {
            *o = o.wrapping_add(v);
        }),
        DType::Bool => Err(Error::dtype(OP, "a dtype with addition", "bool")),
        half @ (DType::F16 | DType::BF16) => {
            let (base, src) = (kit::cast(base, DType::F32)?, kit::cast(src, DType::F32)?);
            let sum = scatter_with::<f32>(OP, &base, dim, index, &src, |o, v| *o += v)?;
            kit::cast(&sum, half)
        }
    }
}

/// Checks a rank-1 (or scalar) index and returns it.
#[track_caller]
fn line<'a>(op: &str, index: &'a Array, limit: usize) -> Result<std::borrow::Cow<'a, [i64]>> {
    if index.rank() > 1 {
        return Err(Error::shape(op, "an index of rank 1", index.shape()));
    }
    let ids = integers(op, index)?;
    check_range(op, &ids, index.dims(), limit)?;
    Ok(ids)
}

/// The slices of `x` along `dim` named by `index` (rank 1): `torch.index_select`, and the forward
/// pass of an embedding with `dim` = 0.
///
/// # Errors
/// When `dim` does not exist, `index` has another rank or leaves `0..x.size(dim)`.
///
/// ```
/// use entrenar_base::Array;
/// let table = Array::from_vec(vec![0.0f32, 0.5, 1.0, 1.5, 2.0, 2.5], [3, 2])?;
/// let index = Array::from_vec(vec![2i64, 0, 2], [3])?;
/// let rows = entrenar_cpu::index::index_select(&table, 0, &index)?;
/// assert_eq!(rows.to_vec::<f32>()?, [2.0, 2.5, 0.0, 0.5, 2.0, 2.5]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn index_select(x: &Array, dim: usize, index: &Array) -> Result<Array> {
    const OP: &str = "index_select";
    check_dim(OP, x, dim)?;
    let (_, size, inner) = kit::around(x.dims(), dim);
    let ids = line(OP, index, size)?;
    let mut shape = x.shape().clone();
    if x.rank() > 0 {
        shape.dims_mut()[dim] = ids.len();
    } else if ids.len() != 1 {
        return Err(Error::shape(OP, "one index into a scalar", index.shape()));
    }
    let x = contiguous(x)?;
    dispatch!(x.dtype(), T => {
        let data = x.as_slice::<T>()?;
        Ok(Array::build(&shape, |out: &mut [T]| {
            if inner == 0 || ids.is_empty() {
                return;
            }
            let items = out.len() / inner;
            team::split_mut(out, items, inner as f64 * COPY_NS, |range, out| {
                let row_of = |item: usize| item / ids.len() * size + ids[item % ids.len()] as usize;
                if inner == 1 {
                    for (item, out) in range.zip(out) {
                        *out = data[row_of(item)];
                    }
                    return;
                }
                for (item, out) in range.zip(out.chunks_exact_mut(inner)) {
                    let row = row_of(item);
                    out.copy_from_slice(&data[row * inner..(row + 1) * inner]);
                }
            });
        }))
    })
}

/// A copy of `base` with the slices of `src` along `dim` added at `index` (rank 1):
/// `torch.index_add`. Integers wrap; 16-bit floats accumulate in f32.
///
/// # Errors
/// When shapes or dtypes do not fit or an index leaves `0..base.size(dim)`.
#[track_caller]
pub fn index_add(base: &Array, dim: usize, index: &Array, src: &Array) -> Result<Array> {
    const OP: &str = "index_add";
    check_dim(OP, base, dim)?;
    same_dtype(OP, base, src)?;
    let (_, size, _) = kit::around(base.dims(), dim);
    let ids = line(OP, index, size)?;
    let mut expected = base.shape().clone();
    if base.rank() > 0 {
        expected.dims_mut()[dim] = ids.len();
    }
    if src.shape() != &expected || base.rank() == 0 && ids.len() != 1 {
        return Err(Error::shape(
            OP,
            format!("a source of shape {expected} for base {}", base.shape()),
            src.shape(),
        ));
    }
    // The index stretched over src's shape turns this into scatter_add.
    let lined = Array::from_slice(&ids, [ids.len()])?;
    let full = if base.rank() == 0 {
        lined.reshape(())?
    } else {
        let mut column = Shape::from(vec![1; base.rank()]);
        column.dims_mut()[dim] = ids.len();
        lined.reshape(column)?.broadcast_to(src.shape())?
    };
    scatter_add(base, dim, &full, src).map_err(|e| e.context(OP))
}

/// Positions of an index grouped by the row they name, in order inside each group. Costs what the
/// index is long, however many rows there are.
struct Groups {
    /// (row, position), sorted.
    named: Vec<(usize, usize)>,
    /// Where each row begins in `named`, and its end.
    starts: Vec<usize>,
}

impl Groups {
    /// Those of checked indices.
    fn of(ids: &[i64]) -> Groups {
        let mut named: Vec<(usize, usize)> = ids
            .iter()
            .enumerate()
            .map(|(at, &row)| (row as usize, at))
            .collect();
        named.sort_unstable();
        let mut starts: Vec<usize> = (0..named.len())
            .filter(|&i| i == 0 || named[i].0 != named[i - 1].0)
            .collect();
        starts.push(named.len());
        Groups { named, starts }
    }

    /// Adds rows of `g` (`width` elements each) to the rows of `out` they name.
    fn add_rows<T: Real>(&self, g: &[T], out: &mut [T], width: usize) {
        let groups = self.starts.len() - 1;
        let each = self.named.len() as f64 / groups.max(1) as f64;
        let out = Shared::new(out);
        team::split(groups, each * width as f64 * COPY_NS, |range| {
            for group in range {
                let named = &self.named[self.starts[group]..self.starts[group + 1]];
                let row = named[0].0;
                // SAFETY: groups are those of different rows.
                let out = unsafe { out.slice(row * width..(row + 1) * width) };
                for &(_, at) in named {
                    kit::add_into(out, &g[at * width..(at + 1) * width]);
                }
            }
        });
    }
}

/// The row width of an embedding's gradient `[N.., D]` for an index `[N..]`.
#[track_caller]
fn embedding_width(op: &str, grad: &Array, index: &Array) -> Result<usize> {
    match grad.dims().split_last() {
        Some((&width, lead)) if lead == index.dims() => Ok(width),
        _ => Err(Error::shape(
            op,
            format!("a gradient of shape {} plus one dimension", index.shape()),
            grad.shape(),
        )),
    }
}

/// The gradient of an embedding table: `out[r] = Σ grad[i] over all i with index[i] = r`.
///
/// Shapes: `grad` `[N.., D]`, `index` `[N..]`, result `[rows, D]`. Rows add up in the order of
/// the index; 16-bit floats accumulate in f32 and are rounded once.
///
/// # Errors
/// When shapes do not fit or an index leaves `0..rows`.
#[track_caller]
pub fn embedding_backward(grad: &Array, index: &Array, rows: usize) -> Result<Array> {
    const OP: &str = "embedding_backward";
    let compute = kit::compute_dtype(OP, grad.dtype())?;
    let width = embedding_width(OP, grad, index)?;
    let ids = integers(OP, index)?;
    check_range(OP, &ids, index.dims(), rows)?;
    let shape = Shape::from([rows, width]);
    shape.checked_numel()?;
    let groups = Groups::of(&ids);
    let dense = kit::dense(grad, compute)?;
    let out = kit::with_real!(compute, T => {
        let g = dense.as_slice::<T>()?;
        Array::build(&shape, |out: &mut [T]| {
            team::split_mut(out, rows, width as f64 * COPY_NS, |_, out| out.fill(0.0));
            groups.add_rows(g, out, width);
        })
    });
    kit::cast(&out, grad.dtype())
}

/// `target += embedding_backward(grad, index, rows)` for a `target` `[rows, D]`, touching only the
/// rows that occur (in place when `target` is the only owner of its storage). The sums of f16 and
/// bf16 are formed in f32 and rounded once.
///
/// # Errors
/// As [`embedding_backward`], and when the shape or dtype of `target` is another.
#[track_caller]
pub fn embedding_accumulate(target: &mut Array, grad: &Array, index: &Array) -> Result<()> {
    const OP: &str = "embedding_accumulate";
    kit::same_dtype(OP, grad, target)?;
    let compute = kit::compute_dtype(OP, grad.dtype())?;
    let width = embedding_width(OP, grad, index)?;
    let rows = match *target.dims() {
        [rows, columns] if columns == width => rows,
        _ => {
            return Err(Error::shape(
                OP,
                format!("a target of shape [rows, {width}]"),
                target.shape(),
            ));
        }
    };
    let ids = integers(OP, index)?;
    check_range(OP, &ids, index.dims(), rows)?;
    let groups = Groups::of(&ids);
    let dense = kit::dense(grad, compute)?;
    kit::with_real!(compute, T => {
        let g = dense.as_slice::<T>()?;
        if target.dtype() == compute {
            groups.add_rows(g, target.make_mut::<T>()?, width);
        } else {
            let mut wide = kit::dense(target, compute)?;
            groups.add_rows(g, wide.make_mut::<T>()?, width);
            *target = kit::cast(&wide, grad.dtype())?;
        }
    });
    Ok(())
}

/// Ones at `index` along a new last dimension of `classes` entries, zeros elsewhere.
///
/// # Errors
/// When an index leaves `0..classes`.
///
/// ```
/// use entrenar_base::{Array, DType};
/// let index = Array::from_vec(vec![1i64, 0], [2])?;
/// let hot = entrenar_cpu::index::one_hot(&index, 3, DType::I64)?;
/// assert_eq!(hot.to_vec::<i64>()?, [0, 1, 0, 1, 0, 0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn one_hot(index: &Array, classes: usize, dtype: DType) -> Result<Array> {
    let ids = integers("one_hot", index)?;
    check_range("one_hot", &ids, index.dims(), classes)?;
    let mut shape = index.shape().clone();
    shape.push(classes);
    dispatch!(dtype, T => {
        Array::try_build(shape, |out: &mut [T]| {
            out.fill(T::from_i64(0));
            for (row, &i) in ids.iter().enumerate() {
                out[row * classes + i as usize] = T::from_i64(1);
            }
            Ok(())
        })
    })
}
