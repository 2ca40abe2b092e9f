//! What follows a product while its tile is in cache: bias, activation, residual, the casts.
//!
//! The formulas are those of the pointwise operations of the same names, operation by operation in
//! f32, so that a fused product has the bits of its parts in f32. Loops run over indices: iterator
//! adaptors that the compiler leaves as calls would be compiled for the baseline.

use entrenar_base::{bf16, f16};
use half::slice::HalfFloatSliceExt;

use super::Kind;
use super::ahead::{ask_to_read, ask_to_write};
use super::panel::{Finish, Place};
use crate::cast::round_bf16;
use crate::product::Activation;
use crate::simd::{math, multiversion};

/// `output = activation(sum + bias) + residual`; rows of all three are `width` apart.
pub(crate) struct Epilogue<'a> {
    pub width: usize,
    /// One value per column, and any values up to whole tiles.
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
    pub residual: Option<Rows>,
    pub preactivation: Option<Rows>,
    pub output: Rows,
}

/// Rows of a dtype, from element (0, 0) on.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub data: *mut u8,
    pub kind: Kind,
}

// SAFETY: `Rows` are read and written by unsafe functions whose callers own the places.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

/// The kinds that rows may have, as a type: loops over the usual ones are free of calls, so that
/// values stay in registers from end to end.
trait Kinds {
    /// Whether f16, whose conversions are calls, is among them.
    const F16: bool;
}
/// f32 and bf16.
struct Usual;
impl Kinds for Usual {
    const F16: bool = false;
}
/// f16 too.
struct Every;
impl Kinds for Every {
    const F16: bool = true;
}

/// Whether there may be more than the activation, as a type: without, a row is few instructions.
trait Extras {
    const ANY: bool;
}
struct Bare;
impl Extras for Bare {
    const ANY: bool = false;
}
struct Extended;
impl Extras for Extended {
    const ANY: bool = true;
}

impl Rows {
    /// Where an element lies, if there is one.
    pub fn at(&self, index: usize) -> *mut u8 {
        self.data.wrapping_add(index * self.kind.bytes())
    }

    fn is_f16(&self) -> bool {
        self.kind == Kind::F16
    }

    /// Elements as f32.
    ///
    /// # Safety
    /// The rows hold `index + N` elements; nobody writes them meanwhile.
    #[inline(always)]
    unsafe fn load<K: Kinds, const N: usize>(&self, index: usize) -> [f32; N] {
        // SAFETY: the caller's promise; rows of a tile are aligned as their elements.
        unsafe {
            if K::F16 && self.is_f16() {
                let mut to = [0.0; N];
                std::slice::from_raw_parts(self.data.cast::<f16>().add(index), N)
                    .convert_to_f32_slice(&mut to);
                to
            } else if self.kind == Kind::Bf16 {
                let from = self.data.cast::<u16>().add(index).cast::<[u16; N]>().read();
                let mut to = [0.0; N];
                for i in 0..N {
                    to[i] = f32::from_bits(u32::from(from[i]) << 16);
                }
                to
            } else {
                self.data.cast::<f32>().add(index).cast::<[f32; N]>().read()
            }
        }
    }

    /// The reverse of `load`.
    ///
    /// # Safety
    /// The rows hold `index + N` elements, which are exclusively ours.
    #[inline(always)]
    unsafe fn store<K: Kinds, const N: usize>(&self, index: usize, from: [f32; N]) {
        // SAFETY: as in `load`.
        unsafe {
            if K::F16 && self.is_f16() {
                std::slice::from_raw_parts_mut(self.data.cast::<f16>().add(index), N)
                    .convert_from_f32_slice(&from);
            } else if self.kind == Kind::Bf16 {
                let mut to = [bf16::ZERO; N];
                for i in 0..N {
                    to[i] = round_bf16(from[i]);
                }
                let at = self.data.cast::<bf16>().add(index);
                at.cast::<[bf16; N]>().write(to);
            } else {
                let at = self.data.cast::<f32>().add(index);
                at.cast::<[f32; N]>().write(from);
            }
        }
    }
}

/// A function of one number as a type, so that each gets loops of its own.
trait Function {
    fn of(x: f32) -> f32;
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident |$x:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn of($x: f32) -> f32 {
                $body
            }
        }
    )*};
}

functions! {
    /// x.
    Identity |x| x;
    /// max(x, 0); NaN is kept.
    Relu |x| if x <= 0.0 { 0.0 } else { x };
    /// x·Φ(x).
    Gelu |x| (0.5 * x) * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
    /// As `math::gelu_tanh`.
    GeluTanh |x| math::gelu_tanh(x);
    /// x·sigmoid(x).
    Silu |x| x * math::sigmoid(x);
}

/// Elements that are carried from the sum to the output at once: a vector. Whole rows of wide tiles
/// are two.
const STEP: usize = 16;
const WIDE: usize = 2 * STEP;

/// `N` elements of a row, from `column` on, all the way. Of known number and by value, so that they
/// stay in registers.
///
/// # Safety
/// Bias, residual and outputs have these elements, the outputs exclusively ours.
#[inline(always)]
unsafe fn finish_step<F: Function, K: Kinds, X: Extras, const N: usize>(
    e: &Epilogue<'_>,
    row: usize,
    column: usize,
    mut values: [f32; N],
) {
    let at = row * e.width + column;
    // SAFETY: the caller's promise.
    unsafe {
        if X::ANY
            && let Some(bias) = e.bias
        {
            let bias = &bias[column..column + N];
            for i in 0..N {
                values[i] += bias[i];
            }
        }
        if X::ANY
            && let Some(rows) = e.preactivation
        {
            rows.store::<K, N>(at, values);
        }
        for i in 0..N {
            values[i] = F::of(values[i]);
        }
        if X::ANY
            && let Some(rows) = e.residual
        {
            let old = rows.load::<K, N>(at);
            for i in 0..N {
                values[i] += old[i];
            }
        }
        e.output.store::<K, N>(at, values);
    }
}

multiversion! {
    fn finish_tile<F: Function, K: Kinds, X: Extras>(
        e: &Epilogue<'_>,
        at: Place,
        tile: &mut [f32],
        width: usize,
    ) {
        for r in 0..at.high {
            let row = &tile[r * width..r * width + at.wide];
            if let [whole] = row.as_chunks::<WIDE>().0 && at.wide == WIDE {
                // SAFETY: the rectangle lies inside outputs, bias and residual and is ours, by
                // `Finish`.
                unsafe { finish_step::<F, K, X, WIDE>(e, at.row + r, at.column, *whole) };
                continue;
            }
            let (many, few) = row.as_chunks::<STEP>();
            let (row, count) = (at.row + r, many.len());
            for c in 0..count {
                // SAFETY: as above.
                unsafe { finish_step::<F, K, X, STEP>(e, row, at.column + c * STEP, many[c]) };
            }
            for c in 0..few.len() {
                // SAFETY: as above.
                unsafe {
                    finish_step::<F, K, X, 1>(e, row, at.column + count * STEP + c, [few[c]]);
                };
            }
        }
    }
}

impl Epilogue<'_> {
    fn finish_as<F: Function>(&self, at: Place, tile: &mut [f32], width: usize) {
        let rows = [Some(self.output), self.residual, self.preactivation];
        let bare = self.bias.is_none() && self.residual.is_none() && self.preactivation.is_none();
        if rows.iter().flatten().any(Rows::is_f16) {
            finish_tile::<F, Every, Extended>(self, at, tile, width);
        } else if bare {
            finish_tile::<F, Usual, Bare>(self, at, tile, width);
        } else {
            finish_tile::<F, Usual, Extended>(self, at, tile, width);
        }
    }
}

impl Finish<f32> for Epilogue<'_> {
    fn ask(&self, at: Place) {
        let start = at.row * self.width + at.column;
        for rows in [Some(self.output), self.preactivation]
            .into_iter()
            .flatten()
        {
            let size = rows.kind.bytes();
            ask_to_write(rows.at(start), at.high, self.width * size, at.wide * size);
        }
        if let Some(rows) = self.residual {
            for r in 0..at.high {
                ask_to_read(rows.at(start + r * self.width), at.wide * rows.kind.bytes());
            }
        }
    }

    unsafe fn begin(&self, at: Place, tile: *mut f32, width: usize) {
        for r in 0..at.high {
            let start = (at.row + r) * self.width + at.column;
            for c in 0..at.wide {
                // SAFETY: the caller's promise.
                unsafe { *tile.add(r * width + c) = self.output.load::<Every, 1>(start + c)[0] };
            }
        }
    }

    unsafe fn finish(&self, at: Place, tile: *mut f32, width: usize) {
        // SAFETY: the caller's promise: whole rows of the tile are ours.
        let tile = unsafe { std::slice::from_raw_parts_mut(tile, at.high * width) };
        match self.activation {
            Activation::None => self.finish_as::<Identity>(at, tile, width),
            Activation::Relu => self.finish_as::<Relu>(at, tile, width),
            Activation::Gelu => self.finish_as::<Gelu>(at, tile, width),
            Activation::GeluTanh => self.finish_as::<GeluTanh>(at, tile, width),
            Activation::Silu => self.finish_as::<Silu>(at, tile, width),
        }
    }
}
