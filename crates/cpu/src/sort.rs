//! Sorting along a dimension and the k largest or smallest elements.
//!
//! Sorts are stable in both directions and put NaN last when ascending, first when descending:
//! NaN counts as larger than every number, as in PyTorch. Each slice is sorted by one thread.

use std::cmp::Ordering;

use entrenar_base::{Array, DType, Element, Error, Result, dispatch};

use crate::kit;
use crate::team::{self, Shared};

/// Estimated nanoseconds per element of a sort.
const ELEMENT_NS: f64 = 30.0;

/// The total order of elements: NaN is equal to itself and larger than everything else.
#[inline(always)]
#[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
fn compare<T: Element>(a: T, b: T) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| (a != a).cmp(&(b != b)))
}

/// Reorders every slice along `dim`: `pick(slice, order)` leaves in `order` (which comes as
/// 0, 1, …, n - 1) the places of the elements to keep, in their new order.
fn reorder<T: Element>(
    x: &Array,
    dim: usize,
    keep: usize,
    pick: impl Fn(&[T], &mut Vec<usize>) + Sync,
) -> Result<(Array, Array)> {
    let (outer, n, inner) = kit::around(x.dims(), dim);
    let mut shape = x.shape().clone();
    if x.rank() > 0 {
        shape.dims_mut()[dim] = keep;
    }
    let x = kit::contiguous(x)?;
    let values = x.as_slice::<T>()?;
    let mut index = Array::zeros(&shape, DType::I64);
    let indices = Shared::new(index.make_mut::<i64>()?);
    let out = Array::build(&shape, |out: &mut [T]| {
        let out = Shared::new(out);
        team::split(outer * inner, n as f64 * ELEMENT_NS, |range| {
            let mut slice = Vec::with_capacity(n);
            let mut order = Vec::with_capacity(n);
            for item in range {
                let (o, i) = (item / inner, item % inner);
                slice.clear();
                slice.extend((0..n).map(|j| values[(o * n + j) * inner + i]));
                order.clear();
                order.extend(0..n);
                pick(&slice, &mut order);
                for (j, &from) in order.iter().take(keep).enumerate() {
                    let at = (o * keep + j) * inner + i;
                    // SAFETY: slices share no element.
                    unsafe {
                        out.slice(at..at + 1)[0] = slice[from];
                        indices.slice(at..at + 1)[0] = from as i64;
                    }
                }
            }
        });
    });
    Ok((out, index))
}

/// Compares places by their values, equal ones by place: a stable order without a stable sort.
#[inline(always)]
fn by_value<T: Element>(slice: &[T], a: usize, b: usize, descending: bool) -> Ordering {
    let order = compare(slice[a], slice[b]);
    let order = if descending { order.reverse() } else { order };
    order.then(a.cmp(&b))
}

/// The elements along `dim` in order, and where each came from (i64). Always stable.
///
/// # Errors
/// When `dim` does not exist.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![2.0f32, f32::NAN, 1.0, 2.0], [4])?;
/// let (_, index) = entrenar_cpu::sort::sort(&x, 0, false)?;
/// assert_eq!(index.to_vec::<i64>()?, [2, 0, 3, 1]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn sort(x: &Array, dim: usize, descending: bool) -> Result<(Array, Array)> {
    kit::check_dim("sort", x, dim)?;
    let (_, n, _) = kit::around(x.dims(), dim);
    dispatch!(x.dtype(), T => reorder::<T>(x, dim, n, |slice, order| {
        order.sort_unstable_by(|&a, &b| by_value(slice, a, b, descending));
    }))
}

/// The `k` largest (or smallest) elements along `dim` and their places (i64).
///
/// Among equals the first ones count. `sorted` or not, they come in order.
///
/// # Errors
/// When `dim` does not exist or `k` exceeds its size.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1i64, 5, 3, 4], [4])?;
/// let (values, index) = entrenar_cpu::sort::topk(&x, 2, 0, true, true)?;
/// assert_eq!(values.to_vec::<i64>()?, [5, 4]);
/// assert_eq!(index.to_vec::<i64>()?, [1, 3]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn topk(
    x: &Array,
    k: usize,
    dim: usize,
    largest: bool,
    sorted: bool,
) -> Result<(Array, Array)> {
    let _ = sorted; // an ordered result is a valid unordered one
    kit::check_dim("topk", x, dim)?;
    let (_, n, _) = kit::around(x.dims(), dim);
    if k > n {
        return Err(Error::argument(
            "topk",
            format!(
                "k of at most {n}, the size of dimension {dim} of {}",
                x.shape()
            ),
            k,
        ));
    }
    if x.rank() == 0 && k == 0 {
        return Err(Error::argument("topk", "k = 1 for a scalar", k));
    }
    dispatch!(x.dtype(), T => reorder::<T>(x, dim, k, |slice, order| {
        let order_of = |a: &usize, b: &usize| by_value(slice, *a, *b, largest);
        if 0 < k && k < n {
            order.select_nth_unstable_by(k - 1, order_of);
        }
        order.truncate(k);
        order.sort_unstable_by(order_of);
    }))
}

/// The different elements of `x` in ascending order `[K]`, for each element of `x` which one it is
/// (i64, the shape of `x`), and how often each one is met (i64 `[K]`). NaN counts as one value.
///
/// # Errors
/// When there is no memory for the result.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![3i64, 1, 3], [3])?;
/// let (values, place, count) = entrenar_cpu::sort::unique(&x)?;
/// assert_eq!(values.to_vec::<i64>()?, [1, 3]);
/// assert_eq!(place.to_vec::<i64>()?, [1, 0, 1]);
/// assert_eq!(count.to_vec::<i64>()?, [1, 2]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn unique(x: &Array) -> Result<(Array, Array, Array)> {
    let x = kit::contiguous(x)?;
    dispatch!(x.dtype(), T => {
        let source = x.as_slice::<T>()?;
        let mut order: Vec<usize> = (0..source.len()).collect();
        order.sort_unstable_by(|&a, &b| by_value(source, a, b, false));
        let (mut values, mut counts) = (Vec::<T>::new(), Vec::<i64>::new());
        let mut places = vec![0i64; source.len()];
        for at in order {
            if values.last().is_none_or(|&last| compare(last, source[at]) != Ordering::Equal) {
                values.push(source[at]);
                counts.push(0);
            }
            places[at] = values.len() as i64 - 1;
            if let Some(count) = counts.last_mut() {
                *count += 1;
            }
        }
        let k = values.len();
        Ok((
            Array::from_vec(values, [k])?,
            Array::from_vec(places, x.shape())?,
            Array::from_vec(counts, [k])?,
        ))
    })
}
