//! Rotary position embedding: pairs of channels turned by angles that grow with the position.
//!
//! (y₁, y₂) = (x₁·cos - x₂·sin, x₂·cos + x₁·sin) for the channel pairs (i, i + D/2), or
//! (2i, 2i + 1) when interleaved. The inverse turns back (sin → -sin), which is also the gradient.
//! (Su, Lu, Pan, Murtadha, Wen, Liu, "RoFormer", 2021.)

use entrenar_base::{Array, Error, Result};

use crate::alloc::Scratch;
use crate::cast::{widened, written};
use crate::kit::{self, Real, multiversion, with_float};
use crate::team;

/// Estimated nanoseconds per element.
const ELEMENT_NS: f64 = 0.4;

multiversion! {
    /// One position: `x` and `y` hold 2·h channels, `cos` and `sin` h angles; `sign` is ±1.
    fn turn<T: Real>(x: &[T], y: &mut [T], cos: &[T], sin: &[T], interleaved: bool, sign: T) {
        let half = cos.len();
        if interleaved {
            let (x, y) = (&x.as_chunks::<2>().0[..half], &mut y.as_chunks_mut::<2>().0[..half]);
            for i in 0..half {
                let (x, c, s) = (x[i], cos[i], sin[i] * sign);
                y[i] = [x[0] * c - x[1] * s, x[1] * c + x[0] * s];
            }
        } else {
            let (first, second) = x.split_at(half);
            let (to_first, to_second) = y.split_at_mut(half);
            for i in 0..half {
                let s = sin[i] * sign;
                to_first[i] = first[i] * cos[i] - second[i] * s;
                to_second[i] = second[i] * cos[i] + first[i] * s;
            }
        }
    }
}

/// Turns the channels of `x` `[.., T, D]` by the angles whose `cos` and `sin` are `[T, D / 2]`.
///
/// `interleaved` pairs neighbours (2i, 2i + 1), otherwise halves (i, i + D/2). `inverse` turns the
/// other way, which is the gradient with respect to `x`. Only `x`'s last dimension needs to be
/// free of gaps; other layouts are read in place.
///
/// # Errors
/// When shapes do not fit, D is odd or a dtype is no float.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_cpu::rotary::rotary;
/// let x = Array::from_vec(vec![1.0f32, 2.0], [1, 2])?;
/// let (cos, sin) = (Array::full([1, 1], 0.0f32), Array::full([1, 1], 1.0f32)); // 90 degrees
/// assert_eq!(rotary(&x, &cos, &sin, false, false)?.to_vec::<f32>()?, [-2.0, 1.0]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn rotary(
    x: &Array,
    cos: &Array,
    sin: &Array,
    interleaved: bool,
    inverse: bool,
) -> Result<Array> {
    const OP: &str = "rotary";
    let compute = kit::compute_dtype(OP, x.dtype())?;
    let (time, width) = match *x.dims() {
        [.., time, width] if width % 2 == 0 => (time, width),
        _ => {
            return Err(Error::shape(
                OP,
                "an input [.., T, D] with even D",
                x.shape(),
            ));
        }
    };
    let half = width / 2;
    for table in [cos, sin] {
        kit::compute_dtype(OP, table.dtype())?;
        if table.dims() != [time, half] {
            return Err(Error::shape(
                OP,
                format!("cos and sin of shape [{time}, {half}]"),
                table.shape(),
            ));
        }
    }
    let (cos, sin) = (kit::dense(cos, compute)?, kit::dense(sin, compute)?);
    let last = x.rank() - 1;
    let source = if width <= 1 || x.layout().strides()[last] == 1 {
        x.clone()
    } else {
        kit::contiguous(x)?
    };
    with_float!(x.dtype(), S, T => {
        let (cos, sin) = (cos.as_slice::<T>()?, sin.as_slice::<T>()?);
        let sign: T = if inverse { -1.0 } else { 1.0 };
        let view = source.view::<S>()?;
        let (data, dims, strides) = (view.data(), &view.dims()[..last], &view.strides()[..last]);
        Ok(Array::build(x.shape(), |y: &mut [S]| {
            if y.is_empty() {
                return;
            }
            let rows = y.len() / width;
            team::split_mut(y, rows, width as f64 * ELEMENT_NS, |range, y| {
                // 16-bit rows are widened and rounded one at a time.
                let mut room = Scratch::<T>::new(2 * width);
                let (wide, turned) = room.split_at_mut(width);
                for (i, row) in range.enumerate() {
                    let (mut at, mut rest) = (view.offset() as isize, row);
                    for (&d, &s) in dims.iter().zip(strides).rev() {
                        at += (rest % d) as isize * s;
                        rest /= d;
                    }
                    let position = row % time * half..(row % time + 1) * half;
                    let (cos, sin) = (&cos[position.clone()], &sin[position]);
                    let x = &data[at as usize..at as usize + width];
                    let y = &mut y[i * width..(i + 1) * width];
                    written(y, turned, |y| {
                        turn(widened(x, wide), y, cos, sin, interleaved, sign);
                    });
                }
            });
        }))
    })
}
