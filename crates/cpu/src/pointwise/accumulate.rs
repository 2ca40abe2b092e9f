//! Gradient accumulation in place, and the search for NaN and infinities.

use entrenar_base::{Array, DType, Element, Error, Result, bf16, dispatch, f16};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Binary, Compute, Lane, interpreter};
use crate::alloc::Scratch;
use crate::cast::{self, convert, round_bf16, same, same_mut};
use crate::kit;
use crate::simd::multiversion;
use crate::team;
use crate::walk::Walk;

/// `target += x`, in place when `target` is the only owner of a contiguous storage; otherwise the
/// sum replaces it. The dtype stays; 16-bit sums are computed in f32 and rounded once.
///
/// # Errors
/// When shapes differ.
///
/// ```
/// use entrenar_base::Array;
/// let mut sum = Array::from_vec(vec![1.0f32, 2.0], [2])?;
/// entrenar_cpu::pointwise::add_assign(&mut sum, &Array::full([2], 0.5f32))?;
/// assert_eq!(sum.to_vec::<f32>()?, [1.5, 2.5]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn add_assign(target: &mut Array, x: &Array) -> Result<()> {
    if target.shape() != x.shape() {
        return Err(Error::shape("add_", target.shape(), x.shape()));
    }
    let dtype = target.dtype();
    if !target.is_exclusive() {
        *target = interpreter::binary(Binary::Add, Compute::of(dtype), target, x, dtype)?;
        return Ok(());
    }
    match Compute::of(dtype) {
        Compute::F32 => add_in::<f32>(target, x),
        Compute::F64 => add_in::<f64>(target, x),
        Compute::I64 => add_in::<i64>(target, x),
    }
}

multiversion! {
    fn add_to_bf16(out: &mut [bf16], x: &[bf16]) {
        let x = &x[..out.len()];
        for i in 0..out.len() {
            let a = f32::from_bits(u32::from(out[i].to_bits()) << 16);
            let b = f32::from_bits(u32::from(x[i].to_bits()) << 16);
            out[i] = round_bf16(a + b);
        }
    }
}

/// `out += x` element by element where both have one of the usual dtypes; false elsewhere.
fn add_alike<D: Element, S: Element>(out: &mut [D], x: &[S]) -> bool {
    if let (Some(x), Some(out)) = (same::<S, f32>(x), same_mut::<D, f32>(out)) {
        kit::add_slices(out, x);
    } else if let (Some(x), Some(out)) = (same::<S, f64>(x), same_mut::<D, f64>(out)) {
        kit::add_slices(out, x);
    } else if let (Some(x), Some(out)) = (same::<S, bf16>(x), same_mut::<D, bf16>(out)) {
        add_to_bf16(out, x);
    } else {
        return false;
    }
    true
}

/// Elements handled at once through scratch memory.
const TILE: usize = 1024;

fn add_in<T: Lane>(target: &mut Array, x: &Array) -> Result<()> {
    let x = &crate::copy::straighten(x)?;
    let walk = Walk::new(x.layout());
    dispatch!(target.dtype(), D => {
        let out = target.make_mut::<D>()?;
        let n = out.len();
        team::split_mut(out, n, 0.3, |range, out| {
            let alike = dispatch!(x.dtype(), S => match x.as_slice::<S>() {
                Ok(x) => add_alike(out, &x[range.clone()]),
                Err(_) => false, // a view with gaps
            });
            if alike {
                return;
            }
            let mut tiles = Scratch::<T>::new(3 * TILE.min(out.len()));
            let width = tiles.len() / 3;
            let (a, rest) = tiles.split_at_mut(width);
            let (b, sum) = rest.split_at_mut(width);
            let mut start = range.start;
            for out in out.chunks_mut(TILE) {
                let len = out.len();
                convert(out, &mut a[..len]);
                dispatch!(x.dtype(), S => {
                    let view = x.view::<S>().expect("dispatched on its dtype");
                    cast::load(view.data(), &walk, start..start + len, &mut b[..len]);
                });
                T::binary(Binary::Add, &a[..len], &b[..len], &mut sum[..len]);
                convert(&sum[..len], out);
                start += len;
            }
        });
    });
    Ok(())
}

/// True when no element is NaN or infinite. Integers are always finite.
pub fn all_finite(x: &Array) -> bool {
    first_non_finite(x).is_none()
}

/// The row-major index of the first NaN or infinity.
///
/// ```
/// use entrenar_base::Array;
/// let x = Array::from_vec(vec![1.0f32, f32::NAN, f32::INFINITY], [3])?;
/// assert_eq!(entrenar_cpu::pointwise::first_non_finite(&x), Some(1));
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub fn first_non_finite(x: &Array) -> Option<usize> {
    match x.dtype() {
        DType::F32 => search::<f32>(x, |v| v.is_finite()),
        DType::F64 => search::<f64>(x, |v| v.is_finite()),
        DType::F16 => search::<f16>(x, |v| v.is_finite()),
        DType::BF16 => search::<bf16>(x, |v| v.is_finite()),
        _ => None,
    }
}

fn search<T: Element>(x: &Array, finite: impl Fn(T) -> bool + Sync + Copy) -> Option<usize> {
    // A view of the right dtype always copies.
    let x = crate::copy::contiguous(x).ok()?;
    let data = x.as_slice::<T>().ok()?;
    let first = AtomicUsize::new(usize::MAX);
    team::split(data.len(), 0.1, |range| {
        let mut start = range.start;
        for block in data[range].chunks(TILE) {
            if start >= first.load(Ordering::Relaxed) {
                return;
            }
            // Without an early exit the loop over a block vectorises.
            if !block.iter().fold(true, |all, &v| all & finite(v)) {
                let at = block.iter().position(|&v| !finite(v));
                first.fetch_min(at.map_or(usize::MAX, |i| start + i), Ordering::Relaxed);
                return;
            }
            start += block.len();
        }
    });
    Some(first.into_inner()).filter(|&i| i != usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{array, scattered, strided};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_agree_in_place_and_not(a in strided(), seed in any::<u16>()) {
            let b = scattered(&a, seed);
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64, DType::U8] {
                let want: Vec<f64> = {
                    let a = a.cast(dtype);
                    let pairs = a.to_f64_vec().into_iter().zip(b.cast(dtype).to_f64_vec());
                    pairs.map(|(x, y)| if dtype == DType::U8 { (x + y) % 256.0 } else { x + y }).collect()
                };
                let mut own = a.cast(dtype).deep_copy();
                let at = own.as_bytes().map(<[u8]>::as_ptr);
                prop_assert!(own.is_exclusive());
                add_assign(&mut own, &b.cast(dtype)).unwrap();
                prop_assert_eq!(own.to_f64_vec(), want.clone());
                if own.numel() > 0 {
                    prop_assert_eq!(own.as_bytes().map(<[u8]>::as_ptr), at, "in place");
                }
                let original = a.cast(dtype).deep_copy();
                let mut shared = original.clone();
                add_assign(&mut shared, &b.cast(dtype)).unwrap();
                prop_assert_eq!(shared.to_f64_vec(), want);
                prop_assert_eq!(original.to_f64_vec(), a.cast(dtype).to_f64_vec());
            }
        }
    }

    #[test]
    fn finds_the_first_of_many() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let mut x = array(&[200_000], DType::F64, 1);
            assert!(all_finite(&x.cast(dtype)));
            for i in [199_999, 150_000, 12_345] {
                x.make_mut::<f64>().unwrap()[i] = if i % 2 == 0 { f64::NAN } else { f64::INFINITY };
                assert_eq!(first_non_finite(&x.cast(dtype)), Some(i));
            }
            assert_eq!(first_non_finite(&x.cast(dtype).flip(0)), Some(0));
        }
        assert!(all_finite(&array(&[3], DType::I64, 1)));
        assert!(all_finite(&Array::zeros([0], DType::F32)));
    }

    #[test]
    fn shapes_must_agree() {
        let mut a = Array::zeros([2], DType::F32);
        assert!(add_assign(&mut a, &Array::zeros([1], DType::F32)).is_err());
    }
}
