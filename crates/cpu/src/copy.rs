//! Copies: straightening strided views, concatenating, padding, embedding.
//!
//! A transposed copy moves 2-D tiles that fit in L1, so that both sides use whole cache lines.

use entrenar_base::{Array, Element, Error, Layout, Result, Shape, dispatch};
use smallvec::SmallVec;

use crate::team::{self, Shared};
use crate::walk::Walk;

/// Nanoseconds per byte moved, on one core.
const COST_PER_BYTE: f64 = 0.05;
/// Side of a transposed tile, in elements: 32 rows of 32 × 8 bytes stay in L1 on both sides.
const SIDE: usize = 32;

/// `x` with elements row-major without gaps; shared if it already is.
///
/// # Errors
/// None today; the signature is that of every entry point.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1, 2, 3, 4i64], [2, 2])?.transpose(0, 1)?;
/// let y = entrenar_cpu::copy::contiguous(&x)?;
/// assert_eq!(y.as_slice::<i64>()?, [1, 3, 2, 4]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub fn contiguous(x: &Array) -> Result<Array> {
    if x.is_contiguous() {
        return Ok(x.clone());
    }
    dispatch!(x.dtype(), T => Array::try_build(x.shape(), |out: &mut [T]| {
        copy_to_slice(x.view::<T>()?.data(), x.layout(), out);
        Ok(())
    }))
}

/// `x` itself unless its innermost stride makes row-major reading slow; then a contiguous copy.
pub(crate) fn straighten(x: &Array) -> Result<Array> {
    if is_slow(&Walk::new(x.layout()), x.numel()) {
        contiguous(x)
    } else {
        Ok(x.clone())
    }
}

/// Whether reading `numel` elements row-major jumps through memory.
pub(crate) fn is_slow(walk: &Walk, numel: usize) -> bool {
    !matches!(walk.inner_stride(), 0 | 1) && numel >= 4096
}

/// Copies the elements of a layout, row-major, into `out`.
pub(crate) fn copy_to_slice<T: Element>(data: &[T], layout: &Layout, out: &mut [T]) {
    let walk = Walk::new(layout);
    let n = out.len();
    if n == 0 {
        return;
    }
    match transposed_pair(&walk) {
        Some(d) if n >= 256 => transpose_copy(data, &walk, d, out),
        _ => {
            let cost = COST_PER_BYTE * size_of::<T>() as f64 * 2.0;
            team::split_mut(out, n, cost, |range, out| {
                crate::cast::load(data, &walk, range, out);
            });
        }
    }
}

/// The dimension with stride 1 to exchange with the innermost one, when that pays.
fn transposed_pair(walk: &Walk) -> Option<usize> {
    let rank = walk.dims().len();
    if rank < 2 || matches!(walk.inner_stride(), 0 | 1) || walk.dims()[rank - 1] < 4 {
        return None;
    }
    (0..rank - 1).find(|&d| walk.strides()[d] == 1 && walk.dims()[d] >= 4)
}

/// `block[r][c] = data[at + c * stride + r]`.
///
/// Plain code on purpose: the vectoriser would make scatters of it, ten times slower.
fn read_tile<T: Element>(
    data: &[T],
    at: usize,
    stride: isize,
    block: &mut [[T; SIDE]; SIDE],
    rows: usize,
    columns: usize,
) {
    let line = |c: usize| {
        let start = (at as isize + c as isize * stride) as usize;
        &data[start..start + rows]
    };
    #[cfg(target_arch = "x86_64")]
    if size_of::<T>() == 4 && rows == SIDE && columns == SIDE {
        for c in (0..SIDE).step_by(4) {
            let lines: [&[T]; 4] = std::array::from_fn(|i| line(c + i));
            for r in (0..SIDE).step_by(4) {
                transpose_4x4(lines.map(|l| &l[r..r + 4]), block, r, c);
            }
        }
        return;
    }
    for c in 0..columns {
        for (out, &value) in block.iter_mut().zip(line(c)) {
            out[c] = value;
        }
    }
}

/// Four lines of four 32-bit elements into four rows of the block, in registers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_4x4<T: Element>(lines: [&[T]; 4], block: &mut [[T; SIDE]; SIDE], r: usize, c: usize) {
    use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
    assert!(size_of::<T>() == 4 && lines.iter().all(|l| l.len() == 4));
    assert!(r + 4 <= SIDE && c + 4 <= SIDE);
    // SAFETY: each line holds four elements of four bytes and each of the four rows has room for
    // four from column c on (asserted above); SSE is part of x86-64, and its loads, shuffles and
    // stores keep the bits of any 32-bit type.
    unsafe {
        let [mut a, mut b, mut d, mut e] = lines.map(|l| _mm_loadu_ps(l.as_ptr().cast()));
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut d, &mut e);
        for (i, v) in [a, b, d, e].into_iter().enumerate() {
            _mm_storeu_ps(block[r + i].as_mut_ptr().add(c).cast(), v);
        }
    }
}

/// Copies with dimension `d` (stride 1 in the source) and the innermost one in tiles.
fn transpose_copy<T: Element>(data: &[T], walk: &Walk, d: usize, out: &mut [T]) {
    let (dims, strides) = (walk.dims(), walk.strides());
    let last = dims.len() - 1;
    let (rows, columns) = (dims[d], dims[last]);
    // Distance in `out` between neighbours along d.
    let out_row: usize = dims[d + 1..].iter().product();
    // The other dimensions, outermost first: (size, source stride, out stride).
    let others: SmallVec<[(usize, isize, usize); 6]> = (0..last)
        .filter(|&k| k != d)
        .map(|k| (dims[k], strides[k], dims[k + 1..].iter().product()))
        .collect();
    let planes: usize = others.iter().map(|o| o.0).product();
    let bands = rows.div_ceil(SIDE);
    let shared = Shared::new(out);
    let cost = COST_PER_BYTE * 2.0 * (size_of::<T>() * columns * rows.min(SIDE)) as f64;
    let squares = Squares::of(data, strides[last], out_row, shared.len());
    team::split(planes * bands, cost, |range| {
        // Through a buffer: reads run along the source's lines, writes along ours.
        let mut block = [[T::default(); SIDE]; SIDE];
        for item in range {
            let (mut plane, band) = (item / bands, item % bands);
            let (mut at, mut to) = (walk.offset(), 0usize);
            for &(size, stride, out_stride) in others.iter().rev() {
                let i = plane % size;
                plane /= size;
                at += i as isize * stride;
                to += i * out_stride;
            }
            let row = band * SIDE;
            let height = SIDE.min(rows - row);
            for column in (0..columns).step_by(SIDE) {
                let width = SIDE.min(columns - column);
                let from = at + row as isize + column as isize * strides[last];
                let begin = to + row * out_row + column;
                if height == SIDE
                    && width == SIDE
                    && let Some(squares) = &squares
                {
                    // SAFETY: each tile is made once, and tiles are disjoint pieces of rows; the
                    // layout was checked when its array was made.
                    unsafe { squares.tile(data, from as usize, &shared, begin) };
                    continue;
                }
                read_tile(
                    data,
                    from as usize,
                    strides[last],
                    &mut block,
                    height,
                    width,
                );
                for (r, line) in block[..height].iter().enumerate() {
                    let begin = to + (row + r) * out_row + column;
                    // SAFETY: each tile is made once, and tiles are disjoint pieces of rows.
                    let out = unsafe { shared.slice(begin..begin + width) };
                    match <&mut [T; SIDE]>::try_from(&mut *out) {
                        // Of known length: a few stores instead of a call.
                        Ok(whole) => *whole = *line,
                        Err(_) => out.copy_from_slice(&line[..width]),
                    }
                }
            }
        }
        if let Some(squares) = &squares {
            squares.end();
        }
    });
}

/// Bytes of a result that no cache would keep: written past them, its lines are never read first.
const PAST_CACHES: usize = 8 << 20;

/// Transposes of whole tiles of 32-bit elements in registers.
struct Squares {
    stride: usize,
    out_row: usize,
    past: bool,
    /// Whether registers hold sixteen words, not eight.
    wide: bool,
}

impl Squares {
    /// When the processor and the layout allow them.
    fn of<T: Element>(data: &[T], stride: isize, out_row: usize, len: usize) -> Option<Squares> {
        let fits = cfg!(target_arch = "x86_64") && size_of::<T>() == 4;
        let fits = fits && crate::simd::level() >= crate::simd::Level::Avx2 && !data.is_empty();
        let stride = usize::try_from(stride).ok().filter(|_| fits)?;
        let past = len * size_of::<T>() >= PAST_CACHES && out_row.is_multiple_of(16);
        Some(Squares {
            stride,
            out_row,
            past,
            wide: crate::simd::level() == crate::simd::Level::Avx512,
        })
    }

    /// One tile: `out[begin + r · out_row + c] = data[from + c · stride + r]`.
    ///
    /// # Safety
    /// Nobody else reads or writes this tile of `out`.
    #[allow(unused_variables, reason = "of other processors")]
    unsafe fn tile<T: Element>(&self, data: &[T], from: usize, out: &Shared<'_, T>, begin: usize) {
        let last = SIDE - 1;
        assert!(from + last * self.stride + SIDE <= data.len());
        assert!(begin + last * self.out_row + SIDE <= out.len());
        #[cfg(target_arch = "x86_64")]
        for r in (0..SIDE).step_by(16) {
            for c in (0..SIDE).step_by(16) {
                let at = begin + r * self.out_row + c;
                // SAFETY: both squares lie inside the tile, which lies inside the slices as
                // asserted and is ours; words are moved, whatever they mean. Where it counts,
                // arrays begin at multiples of 64 bytes, and so do all rows of a square.
                unsafe {
                    use crate::simd::turn;
                    let from = data.as_ptr().add(from + c * self.stride + r).cast();
                    let to: *mut i32 = out.as_mut_ptr().add(at).cast();
                    let turn = match (self.wide, self.past && to.addr().is_multiple_of(64)) {
                        (true, true) => turn::sixteen::<true>,
                        (true, false) => turn::sixteen::<false>,
                        (false, true) => turn::sixteen_in_eights::<true>,
                        (false, false) => turn::sixteen_in_eights::<false>,
                    };
                    turn(from, self.stride, to, self.out_row);
                }
            }
        }
    }

    /// After the last tile of a thread.
    fn end(&self) {
        #[cfg(target_arch = "x86_64")]
        if self.past {
            crate::simd::turn::fence();
        }
    }
}

/// Joins arrays of one dtype along `dim`.
///
/// # Errors
/// When there is no array, dtypes or ranks differ, or sizes other than `dim`'s differ.
///
/// ```
/// use entrenar_base::Array;
/// let a = Array::from_vec(vec![1i64, 2], [1, 2])?;
/// let b = Array::from_vec(vec![3i64, 4, 5, 6], [2, 2])?;
/// let c = entrenar_cpu::copy::concat(&[&a, &b], 0)?;
/// assert_eq!(c.to_vec::<i64>()?, [1, 2, 3, 4, 5, 6]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn concat(arrays: &[&Array], dim: usize) -> Result<Array> {
    let Some(first) = arrays.first() else {
        return Err(Error::argument("cat", "at least one array", "none"));
    };
    let mut shape = first.shape().clone();
    if dim >= shape.rank() {
        return Err(Error::index("cat", format!("a dimension of {shape}"), dim));
    }
    shape.dims_mut()[dim] = 0;
    for a in arrays {
        let fits = a.rank() == shape.rank()
            && (0..shape.rank()).all(|d| d == dim || a.dims()[d] == shape[d]);
        if !fits {
            return Err(Error::shape(
                "cat",
                format!(
                    "shapes equal to {} except in dimension {dim}",
                    first.shape()
                ),
                a.shape(),
            ));
        }
        if a.dtype() != first.dtype() {
            return Err(Error::dtype("cat", first.dtype(), a.dtype()));
        }
        shape.dims_mut()[dim] += a.dims()[dim];
    }
    let starts = arrays.iter().scan(0, |at, a| {
        let start = *at;
        *at += a.dims()[dim];
        Some(start)
    });
    let whole = Layout::contiguous(shape.clone());
    let places: Vec<Layout> = arrays
        .iter()
        .zip(starts)
        .map(|(a, start)| whole.slice(dim, start, start + a.dims()[dim], 1))
        .collect::<Result<_>>()?;
    dispatch!(first.dtype(), T => Array::try_build(shape, |out: &mut [T]| {
        for (a, place) in arrays.iter().zip(&places) {
            write_into(a, place, out)?;
        }
        Ok(())
    }))
}

/// Surrounds `x` with `value`: `widths[d]` elements before and after in dimension `d`.
///
/// # Errors
/// When the number of pairs is not the rank or the new size overflows.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1i64, 2], [2])?;
/// let y = entrenar_cpu::copy::pad(&x, &[(1, 2)], 9.0)?;
/// assert_eq!(y.to_vec::<i64>()?, [9, 1, 2, 9, 9]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn pad(x: &Array, widths: &[(usize, usize)], value: f64) -> Result<Array> {
    if widths.len() != x.rank() {
        return Err(Error::argument(
            "pad",
            format!("{} pairs for shape {}", x.rank(), x.shape()),
            format!("{} pairs", widths.len()),
        ));
    }
    let grown: Option<Shape> = x
        .dims()
        .iter()
        .zip(widths)
        .map(|(&d, &(before, after))| d.checked_add(before)?.checked_add(after))
        .collect();
    let shape = grown.ok_or_else(|| Error::argument("pad", "widths that fit in memory", "more"))?;
    let starts: SmallVec<[usize; 6]> = widths.iter().map(|w| w.0).collect();
    let steps: SmallVec<[usize; 6]> = SmallVec::from_elem(1, x.rank());
    place(x, shape, &starts, &steps, value, "pad")
}

/// Zeros of shape `into_shape` with `x` written at `starts[d] + steps[d] * i`: the transpose of a
/// strided slice.
///
/// # Errors
/// When ranks differ, a step is 0 or an element would fall outside.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1.0f32, 2.0], [2])?;
/// let y = entrenar_cpu::copy::embed(&x, &[5], &[1], &[2])?;
/// assert_eq!(y.to_vec::<f32>()?, [0.0, 1.0, 0.0, 2.0, 0.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn embed(x: &Array, into_shape: &[usize], starts: &[usize], steps: &[usize]) -> Result<Array> {
    place(x, Shape::from(into_shape), starts, steps, 0.0, "embed")
}

#[track_caller]
fn place(
    x: &Array,
    shape: Shape,
    starts: &[usize],
    steps: &[usize],
    value: f64,
    op: &str,
) -> Result<Array> {
    let rank = x.rank();
    let fits = shape.rank() == rank
        && starts.len() == rank
        && steps.len() == rank
        && (0..rank).all(|d| {
            steps[d] > 0
                && match x.dims()[d] {
                    0 => true,
                    n => (n - 1)
                        .checked_mul(steps[d])
                        .and_then(|reach| reach.checked_add(starts[d]))
                        .is_some_and(|last| last < shape[d]),
                }
        });
    if !fits {
        return Err(Error::shape(
            op,
            format!("starts and steps that place {} inside {shape}", x.shape()),
            format!("starts {starts:?}, steps {steps:?}"),
        ));
    }
    let whole = Layout::contiguous(shape.clone());
    let n = shape.checked_numel()?;
    let mut offset = 0;
    let mut strides: SmallVec<[isize; 6]> = SmallVec::new();
    for d in 0..rank {
        if x.numel() > 0 {
            offset += starts[d] * whole.strides()[d] as usize;
        }
        strides.push(whole.strides()[d].saturating_mul(steps[d] as isize));
    }
    let target = Layout::strided(x.shape().clone(), &strides, offset, n)?;
    dispatch!(x.dtype(), T => Array::try_build(shape, |out: &mut [T]| {
        // Where x covers everything the fill would be a wasted pass.
        if x.numel() < n {
            let fill = T::from_f64(value);
            team::split_mut(out, n, COST_PER_BYTE * size_of::<T>() as f64, |_, out| out.fill(fill));
        }
        write_into(x, &target, out)
    }))
}

/// Writes `x`, row-major, at the positions of `target` (same shape, no element twice) in `out`.
fn write_into<T: Element>(x: &Array, target: &Layout, out: &mut [T]) -> Result<()> {
    let n = x.numel();
    if n == 0 {
        return Ok(());
    }
    let x = straighten(x)?;
    let data = x.view::<T>()?.data();
    let from = Walk::new(x.layout());
    let to = Walk::new(target);
    let row = to.dims()[to.dims().len() - 1];
    let shared = Shared::new(out);
    let cost = COST_PER_BYTE * 2.0 * (size_of::<T>() * row) as f64;
    team::split(n / row, cost, |rows| {
        let mut done = rows.start * row;
        to.runs(rows.start * row..rows.end * row, |at, stride, len| {
            if stride == 1 {
                // SAFETY: `target` meets no element twice, so rows are disjoint.
                let out = unsafe { shared.slice(at..at + len) };
                crate::cast::load(data, &from, done..done + len, out);
                done += len;
                return;
            }
            let mut place = at as isize;
            from.runs(done..done + len, |source, step, count| {
                for i in 0..count as isize {
                    let value = data[(source as isize + i * step) as usize];
                    // SAFETY: as above, one element at a time.
                    unsafe { shared.slice(place as usize..place as usize + 1)[0] = value };
                    place += stride;
                }
            });
            done += len;
        });
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, same_at_any_thread_count, scattered, strided};
    use entrenar_base::DType;
    use proptest::prelude::*;

    #[test]
    fn large_transposes_move_every_element() {
        // Whole tiles past the caches, and sizes that leave parts of tiles.
        for (rows, columns) in [(1504, 1536), (1501, 1507), (64, 96)] {
            let x = Array::from_vec(
                (0..rows * columns).collect::<Vec<i32>>(),
                [rows as usize, columns as usize],
            );
            let x = x.unwrap();
            let y = contiguous(&x.transpose(0, 1).unwrap()).unwrap();
            let y = y.as_slice::<i32>().unwrap();
            let (rows, columns) = (rows as usize, columns as usize);
            let right = (0..rows * columns).all(|e| {
                let (c, r) = (e / rows, e % rows);
                y[e] as usize == r * columns + c
            });
            assert!(right, "{rows} × {columns}");
        }
    }

    proptest! {
        #[test]
        fn contiguous_keeps_the_elements(a in strided(), seed in any::<u16>()) {
            for x in [a.clone(), scattered(&a, seed)] {
                let y = contiguous(&x).unwrap();
                prop_assert!(y.is_contiguous());
                prop_assert_eq!(y.to_vec::<f32>().unwrap(), a.to_vec::<f32>().unwrap());
            }
        }

        /// Slicing what was placed gives it back; the rest is the fill value.
        #[test]
        fn embed_and_pad_are_undone_by_slices(a in strided(), offsets in prop::collection::vec((0usize..3, 0usize..3, 1usize..4), 4)) {
            let rank = a.rank();
            let starts: Vec<usize> = offsets[..rank].iter().map(|o| o.0).collect();
            let steps: Vec<usize> = offsets[..rank].iter().map(|o| o.2).collect();
            let shape: Vec<usize> = (0..rank)
                .map(|d| starts[d] + steps[d] * a.dims()[d] + offsets[d].1)
                .collect();
            let y = embed(&a, &shape, &starts, &steps).unwrap();
            let mut back = y.clone();
            for d in 0..rank {
                let n = a.dims()[d];
                back = back.slice(d, starts[d], starts[d] + n * steps[d], steps[d]).unwrap();
            }
            prop_assert_eq!(back.to_f64_vec(), a.to_f64_vec());
            let sum = |x: &Array| x.to_f64_vec().iter().map(|v| v.abs()).sum::<f64>();
            prop_assert_eq!(sum(&y), sum(&a));

            let widths: Vec<(usize, usize)> = offsets[..rank].iter().map(|o| (o.0, o.1)).collect();
            let y = pad(&a, &widths, -2.5).unwrap();
            let mut back = y.clone();
            for (d, w) in widths.iter().enumerate() {
                back = back.slice(d, w.0, w.0 + a.dims()[d], 1).unwrap();
            }
            prop_assert_eq!(back.to_f64_vec(), a.to_f64_vec());
            let filled = y.to_f64_vec().iter().filter(|&&v| v == -2.5).count();
            prop_assert!(filled >= y.numel() - a.numel());
        }

        #[test]
        fn concat_is_undone_by_slices(a in strided(), dim in 0usize..4, cut in 0usize..7) {
            if a.rank() > 0 {
                let dim = dim % a.rank();
                let n = a.dims()[dim];
                let cut = cut.min(n);
                let parts = [a.slice(dim, 0, cut, 1).unwrap(), a.slice(dim, cut, n, 1).unwrap()];
                let y = concat(&[&parts[0], &parts[1]], dim).unwrap();
                prop_assert_eq!(y.shape(), a.shape());
                prop_assert_eq!(y.to_f64_vec(), a.to_f64_vec());
            }
        }
    }

    #[test]
    fn large_transposes_of_every_size_of_element() {
        for dtype in [DType::U8, DType::BF16, DType::F32, DType::F64] {
            let a = array(&[3, 70, 5, 133], dtype, 7);
            for axes in [[0, 3, 2, 1], [3, 0, 1, 2], [1, 3, 0, 2], [3, 2, 1, 0]] {
                let t = a.permute(&axes).unwrap();
                let y = contiguous(&t).unwrap();
                assert_eq!(y.to_f64_vec(), t.to_f64_vec(), "{dtype} {axes:?}");
                same_at_any_thread_count(|| contiguous(&t).unwrap());
            }
        }
    }

    #[test]
    fn misfits_are_errors() {
        let a = array(&[2, 3], DType::F32, 1);
        let b = array(&[3, 2], DType::F32, 1);
        assert!(concat(&[], 0).is_err());
        assert!(concat(&[&a, &b], 0).is_err());
        assert!(concat(&[&a], 2).is_err());
        assert!(concat(&[&a, &a.cast(DType::F64)], 0).is_err());
        assert!(pad(&a, &[(1, 1)], 0.0).is_err());
        assert!(pad(&a, &[(usize::MAX, 1), (0, 0)], 0.0).is_err());
        assert!(embed(&a, &[2, 3], &[0, 1], &[1, 1]).is_err());
        assert!(embed(&a, &[9, 9], &[0, 0], &[0, 1]).is_err());
        assert!(embed(&a, &[9], &[0], &[1]).is_err());
    }
}
