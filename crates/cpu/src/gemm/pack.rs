//! Packing: a strided block becomes slivers that the microkernel reads front to back.
//!
//! A sliver is `height` majors (rows of a left operand, columns of a right one) of `depth` steps of
//! the inner dimension: for each unit of steps, `height` values side by side. Values are converted
//! on the way, so a product of mixed dtypes needs no pass of its own.
//!
//! Here: the functions that run everywhere, and the choice among them, `super::pack256` and
//! `super::pack512`.

use entrenar_base::{bf16, f16};

use super::Kind;
#[cfg(target_arch = "x86_64")]
use super::{pack256, pack512};
use crate::cast::round_bf16;
use crate::simd::multiversion;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Values that a packing function may write past the end of its sliver.
pub(super) const SLACK: usize = 16;

/// Slivers that are filled together where majors lie side by side: longer runs of memory are read.
#[cfg(target_arch = "x86_64")]
pub(super) const TOGETHER: usize = 4;
/// Steps that are asked for before they are needed: the hardware does not foresee long strides.
#[cfg(target_arch = "x86_64")]
pub(super) const AHEAD: usize = 6;

/// Which operand is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A block to pack: majors in slivers of `height`, one sliver after the other.
#[derive(Debug)]
pub(crate) struct Block<P> {
    pub from: *const u8,
    /// Bytes between majors and between steps.
    pub major: isize,
    pub step: isize,
    pub majors: usize,
    pub depth: usize,
    pub height: usize,
    /// The last sliver is as high as its majors, rounded up to a multiple of this.
    pub align: usize,
    pub to: *mut P,
    /// Values from sliver to sliver.
    pub next: usize,
}

impl<P> Block<P> {
    /// (majors that exist, height) of the sliver that begins with a major.
    #[inline(always)]
    pub fn sliver(&self, first: usize) -> (usize, usize) {
        let here = self.height.min(self.majors - first);
        (here, here.next_multiple_of(self.align))
    }

    /// Element (major, step), if there is one.
    #[inline(always)]
    pub fn at(&self, major: usize, step: usize) -> *const u8 {
        self.from
            .wrapping_offset(major as isize * self.major + step as isize * self.step)
    }

    /// The beginning of the sliver of a first major.
    #[inline(always)]
    pub fn sliver_at(&self, first: usize) -> *mut P {
        self.to.wrapping_add(first / self.height * self.next)
    }
}

/// Packs a block. Majors beyond those that exist get any value; where units hold several steps, those
/// beyond `depth` get zeros.
///
/// # Safety
/// The elements are readable; `to` has room for the slivers and [`SLACK`] more values. The processor
/// has the instructions of the level in use.
pub(crate) type Packer<P> = unsafe fn(&Block<P>);

/// One element of a source, as the packed form has it.
pub(super) trait Read {
    type P: Copy + Default;
    const BYTES: usize;
    /// # Safety
    /// An element lies at the pointer.
    unsafe fn read(at: *const u8) -> Self::P;
}

macro_rules! read {
    ($name:ident, $T:ty, $P:ty, $convert:expr) => {
        pub(super) struct $name;
        impl Read for $name {
            type P = $P;
            const BYTES: usize = size_of::<$T>();
            #[inline(always)]
            unsafe fn read(at: *const u8) -> $P {
                // SAFETY: the caller's promise.
                let x = unsafe { at.cast::<$T>().read_unaligned() };
                $convert(x)
            }
        }
    };
}

/// bf16 to f32: bits moved up.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}
read!(F64, f64, f64, |x| x);
read!(F32, f32, f32, |x| x);
read!(Bf16, bf16, f32, widen);
read!(F16, f16, f32, f16::to_f32);
read!(F32Rounded, f32, f32, |x| widen(round_bf16(x)));
read!(F16Rounded, f16, f32, |x: f16| widen(round_bf16(x.to_f32())));

/// Steps that are turned together where the steps lie side by side, so that both sides stay in
/// cache lines.
const TURN: usize = 8;

multiversion! {
    fn each<R: Read>(b: &Block<R::P>) {
        for first in (0..b.majors).step_by(b.height) {
            let (here, height) = b.sliver(first);
            let to = b.sliver_at(first);
            // SAFETY: the contract of `Packer`.
            unsafe {
                if b.major == R::BYTES as isize {
                    for p in 0..b.depth {
                        let row = b.at(first, p);
                        let out = std::slice::from_raw_parts_mut(to.add(p * height), height);
                        for (r, out) in out[..here].iter_mut().enumerate() {
                            *out = R::read(row.add(r * R::BYTES));
                        }
                        out[here..].fill(R::P::default());
                    }
                    continue;
                }
                for p in (0..b.depth).step_by(TURN) {
                    for r in 0..height {
                        for s in p..b.depth.min(p + TURN) {
                            *to.add(s * height + r) = R::read(b.at(first + r.min(here - 1), s));
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`Packer`].
unsafe fn any<R: Read>(b: &Block<R::P>) {
    each::<R>(b);
}

/// Two steps of a major, rounded to bf16; those that do not exist are zeros, and so are subnormals.
///
/// # Safety
/// The major exists.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn pair_at<R: Read<P = f32>>(b: &Block<i32>, major: usize, step: usize) -> i32 {
    let mut bits = [0; 2];
    for (s, bits) in bits.iter_mut().enumerate() {
        if step + s < b.depth {
            // SAFETY: the element exists.
            let x = unsafe { R::read(b.at(major, step + s)) };
            // As the instruction that rounds does, which takes subnormal numbers for zeros.
            let x = if x.is_subnormal() {
                0.0_f32.copysign(x)
            } else {
                x
            };
            *bits = round_bf16(x).to_bits();
        }
    }
    (u32::from(bits[1]) << 16 | u32::from(bits[0])).cast_signed()
}

/// Pairs of bf16 from anywhere.
///
/// # Safety
/// As [`Packer`].
#[cfg(target_arch = "x86_64")]
unsafe fn any_pairs<R: Read<P = f32>>(b: &Block<i32>) {
    for first in (0..b.majors).step_by(b.height) {
        let (here, height) = b.sliver(first);
        let to = b.sliver_at(first);
        for unit in 0..b.depth.div_ceil(2) {
            for r in 0..height {
                let major = first + r.min(here - 1);
                // SAFETY: the contract of `Packer`.
                unsafe { *to.add(unit * height + r) = pair_at::<R>(b, major, 2 * unit) };
            }
        }
    }
}

/// The packing function of f32 slivers; strides in elements.
pub(super) fn to_f32(kind: Kind, major: isize, step: isize, round: bool) -> Packer<f32> {
    #[cfg(target_arch = "x86_64")]
    {
        let fast = match level() {
            Level::Avx512 => pack512::to_f32,
            Level::Avx2 => pack256::to_f32,
            Level::Baseline => |_, _, _, _| None,
        };
        if let Some(fast) = fast(kind, major, step, round) {
            return fast;
        }
    }
    let _ = (major, step);
    plain_f32(kind, round)
}

/// The packing function of f32 slivers for any strides.
pub(super) fn plain_f32(kind: Kind, round: bool) -> Packer<f32> {
    match (kind, round) {
        (Kind::F32, false) => any::<F32>,
        (Kind::F32, true) => any::<F32Rounded>,
        (Kind::Bf16, _) => any::<Bf16>,
        (Kind::F16, false) => any::<F16>,
        (Kind::F16, true) => any::<F16Rounded>,
        (Kind::F64 | Kind::I8, _) => unreachable!("{kind:?} has an engine of its own"),
    }
}

/// The packing function of f64 slivers.
pub(super) fn to_f64() -> Packer<f64> {
    any::<F64>
}

/// The packing function of bf16 pairs; strides in elements.
#[cfg(target_arch = "x86_64")]
pub(super) fn to_pairs(kind: Kind, major: isize, step: isize) -> Packer<i32> {
    if let Some(fast) = pack512::to_pairs(kind, major, step) {
        return fast;
    }
    match kind {
        Kind::F32 => any_pairs::<F32>,
        Kind::Bf16 => any_pairs::<Bf16>,
        Kind::F16 => any_pairs::<F16>,
        Kind::F64 | Kind::I8 => unreachable!("{kind:?} has an engine of its own"),
    }
}
