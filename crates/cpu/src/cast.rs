//! Conversion between dtypes.
//!
//! The meaning is [`Array::cast`]'s: floats to integers truncate and saturate, integers to
//! narrower integers wrap, anything to bool is `!= 0`, floats round to nearest even once.

use entrenar_base::{Array, DType, Element, Result, bf16, dispatch, f16};
use half::slice::HalfFloatSliceExt;

use crate::simd::multiversion;
use crate::team;
use crate::walk::Walk;

/// `x` converted to `dtype`, contiguous. A contiguous `x` of that dtype is shared, not copied.
///
/// # Errors
/// None today; the signature is that of every entry point.
///
/// ```
/// use entrenar_base::{Array, DType};
/// let x = Array::from_vec(vec![1.9f32, -1.9], [2])?;
/// assert_eq!(entrenar_cpu::cast::cast(&x, DType::I64)?.to_vec::<i64>()?, [1, -1]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub fn cast(x: &Array, dtype: DType) -> Result<Array> {
    if x.dtype() == dtype {
        return crate::copy::contiguous(x);
    }
    // Transposed operands are straightened first: the blocked copy is much faster than gathering.
    let x = crate::copy::straighten(x)?;
    let walk = Walk::new(x.layout());
    dispatch!(x.dtype(), S => {
        let data = x.view::<S>()?.data();
        dispatch!(dtype, D => Array::try_build(x.shape(), |out: &mut [D]| {
            let n = out.len();
            team::split_mut(out, n, 0.3, |range, out| load(data, &walk, range, out));
            Ok(())
        }))
    })
}

/// The slice as elements of `D`, if that is what they are.
#[inline(always)]
pub(crate) fn same<S: Element, D: Element>(x: &[S]) -> Option<&[D]> {
    // SAFETY: equal tags mean the same type (the trait is sealed, one tag per type).
    (S::DTYPE == D::DTYPE)
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) })
}

#[inline(always)]
pub(crate) fn same_mut<S: Element, D: Element>(x: &mut [S]) -> Option<&mut [D]> {
    (S::DTYPE == D::DTYPE)
        // SAFETY: as in `same`.
        .then(|| unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) })
}

/// The elements in another type: where they lie if it is theirs, else at the start of `room`.
pub(crate) fn widened<'a, S: Element, C: Element>(x: &'a [S], room: &'a mut [C]) -> &'a [C] {
    match same::<S, C>(x) {
        Some(x) => x,
        None => {
            let room = &mut room[..x.len()];
            convert(x, room);
            room
        }
    }
}

/// Lets `fill` write the elements in another type: where they lie if it is theirs, else at the
/// start of `room`, from where they are rounded once.
pub(crate) fn written<S: Element, C: Element>(
    out: &mut [S],
    room: &mut [C],
    fill: impl FnOnce(&mut [C]),
) {
    match same_mut::<S, C>(out) {
        Some(out) => fill(out),
        None => {
            let room = &mut room[..out.len()];
            fill(room);
            convert(room, out);
        }
    }
}

/// As [`written`], where `change` finds the elements as they are.
pub(crate) fn changed<S: Element, C: Element>(
    out: &mut [S],
    room: &mut [C],
    change: impl FnOnce(&mut [C]),
) {
    widened(out, room);
    written(out, room, change);
}

/// One element.
#[inline(always)]
pub(crate) fn convert_one<S: Element, D: Element>(x: S) -> D {
    if S::DTYPE.is_float() {
        D::from_f64(x.to_f64())
    } else {
        D::from_i64(x.to_i64())
    }
}

multiversion! {
    fn generic<S: Element, D: Element>(x: &[S], out: &mut [D]) {
        let n = out.len();
        let x = &x[..n];
        for i in 0..n {
            out[i] = convert_one(x[i]);
        }
    }
}

multiversion! {
    fn widen_bf16(x: &[bf16], out: &mut [f32]) {
        let n = out.len();
        let x = &x[..n];
        for i in 0..n {
            out[i] = f32::from_bits((x[i].to_bits() as u32) << 16);
        }
    }
}

/// Nearest bf16, ties to even; NaN keeps its upper bits and becomes quiet.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    bf16::from_bits(if is_nan { nan } else { rounded } as u16)
}

multiversion! {
    fn narrow_bf16(x: &[f32], out: &mut [bf16]) {
        let n = out.len();
        let x = &x[..n];
        for i in 0..n {
            out[i] = round_bf16(x[i]);
        }
    }
}

/// Converts `x` into `out`; equal lengths.
pub(crate) fn convert<S: Element, D: Element>(x: &[S], out: &mut [D]) {
    assert_eq!(x.len(), out.len());
    if let Some(x) = same::<S, D>(x) {
        out.copy_from_slice(x);
    } else if let (Some(x), Some(out)) = (same::<S, bf16>(x), same_mut::<D, f32>(out)) {
        widen_bf16(x, out);
    } else if let (Some(x), Some(out)) = (same::<S, f32>(x), same_mut::<D, bf16>(out)) {
        narrow_bf16(x, out);
    } else if let (Some(x), Some(out)) = (same::<S, f16>(x), same_mut::<D, f32>(out)) {
        x.convert_to_f32_slice(out);
    } else if let (Some(x), Some(out)) = (same::<S, f32>(x), same_mut::<D, f16>(out)) {
        out.convert_from_f32_slice(x);
    } else {
        generic(x, out);
    }
}

/// Converts the elements `range` of a strided layout into `out`.
pub(crate) fn load<S: Element, D: Element>(
    data: &[S],
    walk: &Walk,
    range: std::ops::Range<usize>,
    out: &mut [D],
) {
    let mut done = 0;
    walk.runs(range, |at, stride, len| {
        let out = &mut out[done..done + len];
        done += len;
        match stride {
            1 => convert(&data[at..at + len], out),
            0 => out.fill(convert_one(data[at])),
            _ => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = convert_one(data[(at as isize + i as isize * stride) as usize]);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::strided;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cast_agrees_with_the_plain_definition(a in strided()) {
            for from in DType::ALL {
                let a = a.cast(from);
                for to in DType::ALL {
                    let got = cast(&a, to).unwrap();
                    prop_assert_eq!(got.dtype(), to);
                    prop_assert!(got.is_contiguous());
                    prop_assert_eq!(got.to_f64_vec(), a.cast(to).to_f64_vec());
                }
            }
            let direct = cast(&a, DType::F64).unwrap();
            prop_assert_eq!(direct.to_f64_vec(), a.to_f64_vec());
        }
    }

    #[test]
    fn sixteen_bit_rounding_matches_half_everywhere() {
        let mut x: Vec<f32> = (0..u32::MAX / 9973)
            .map(|i| f32::from_bits(i * 9973))
            .collect();
        x.extend([f32::NAN, f32::INFINITY, -0.0, 65_520.0, 65_519.0, 1e-8]);
        let mut b = vec![bf16::ZERO; x.len()];
        convert(&x, &mut b);
        let mut h = vec![f16::ZERO; x.len()];
        convert(&x, &mut h);
        for i in 0..x.len() {
            assert_eq!(b[i].to_bits(), bf16::from_f32(x[i]).to_bits(), "{:e}", x[i]);
            if x[i].is_nan() {
                assert!(h[i].is_nan());
            } else {
                assert_eq!(
                    h[i].to_bits(),
                    f16::from_f64(x[i] as f64).to_bits(),
                    "{:e}",
                    x[i]
                );
            }
        }
    }

    #[test]
    fn saturation_and_wrapping() {
        let x = Array::from_vec(vec![300.7f32, -5.0, f32::NAN, 1e30], [4]).unwrap();
        assert_eq!(
            cast(&x, DType::U8).unwrap().to_vec::<u8>().unwrap(),
            [255, 0, 0, 255]
        );
        let x = Array::from_vec(vec![300i64, -1], [2]).unwrap();
        assert_eq!(
            cast(&x, DType::U8).unwrap().to_vec::<u8>().unwrap(),
            [44, 255]
        );
    }
}
