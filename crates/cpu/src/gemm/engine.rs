//! What multiplies what: the packed form of operands, the kernels for it, and how values get there.

use std::ops::{Add, Mul};

use entrenar_base::{Element, Float};

use super::pack::{self, Packer, Side};
use super::panel::WIDEST;
use super::tile::{self, Kernels};
use super::{KC, Kind, Source};
#[cfg(target_arch = "x86_64")]
use crate::simd::amx;
use crate::simd::{Level, level, strict};

/// A way to multiply matrices.
pub(crate) trait Engine: Copy + Send + Sync + 'static {
    /// The unit of packed operands.
    type P: Element;
    /// The type of sums.
    type S: Element;
    /// Elements of the inner dimension in one unit.
    const GROUP: usize;
    /// Steps of the inner dimension that are summed in registers at once. A multiple of
    /// [`Self::GROUP`] that divides the stretches of the panel.
    const BLOCK: usize = KC;
    /// Parts of one product for each thread: several where products are so short that a thread which
    /// was held up would keep the others waiting.
    const PARTS: usize = 1;
    /// Whether kernels go on with the sums of the block before, instead of adding to them.
    const CARRIES: bool = false;
    /// Bytes of a left block that leave room in L2, and its rows at most.
    const LEFT: usize = 384 << 10;
    const LEFT_ROWS: usize = 240;
    /// Packed operands are filled with zeros to a multiple of this many steps.
    const DEPTH: usize = Self::GROUP;
    /// Tiles are a multiple of this many rows high, but for the last; packed ones are filled up.
    const ROWS: usize = 1;
    /// Whether sums begin with what [`Engine::base`] says.
    const BASED: bool = false;
    /// Multiplications per nanosecond expected of one core: decides about threads only.
    const RATE: f64;

    fn kernels() -> &'static Kernels<Self::P, Self::S>;

    /// The function that packs slivers of a source seen as (major, step): majors lie side by side
    /// in the packed form. `round` asks for values rounded to bf16.
    fn packer(side: Side, kind: Kind, major: isize, step: isize, round: bool) -> Packer<Self::P>;

    /// What must live while a thread runs kernels.
    type Session;
    fn enter() -> Self::Session;

    /// True when the values in memory are what the packed form holds.
    fn as_it_lies(kind: Kind, round: bool) -> bool;

    /// What the sums of a sliver's columns begin with, where [`Engine::BASED`]: of `depth` units of
    /// `vectors` vectors, `step` bytes apart.
    ///
    /// # Safety
    /// The units are readable, on a processor that has the kernels' instructions.
    unsafe fn base(
        _b: *const Self::P,
        _step: isize,
        _depth: usize,
        _vectors: usize,
        _to: &mut [Self::S; WIDEST],
    ) {
    }
}

/// f32 with fused multiply-add. Also multiplies bf16 and f16, which it widens, and values that it
/// rounds to bf16 first.
#[derive(Clone, Copy)]
pub(crate) struct Single;

impl Engine for Single {
    type Session = ();
    fn enter() {}
    type P = f32;
    type S = f32;
    const GROUP: usize = 1;
    const RATE: f64 = 60.0;

    fn kernels() -> &'static Kernels<f32, f32> {
        tile::f32_kernels()
    }
    fn packer(_: Side, kind: Kind, major: isize, step: isize, round: bool) -> Packer<f32> {
        pack::to_f32(kind, major, step, round)
    }
    fn as_it_lies(kind: Kind, round: bool) -> bool {
        kind == Kind::F32 && !round
    }
}

/// f64 with fused multiply-add.
#[derive(Clone, Copy)]
pub(crate) struct Double;

impl Engine for Double {
    type Session = ();
    fn enter() {}
    type P = f64;
    type S = f64;
    const GROUP: usize = 1;
    const RATE: f64 = 30.0;

    fn kernels() -> &'static Kernels<f64, f64> {
        tile::f64_kernels()
    }
    fn packer(_: Side, kind: Kind, _: isize, _: isize, _: bool) -> Packer<f64> {
        debug_assert!(kind == Kind::F64);
        pack::to_f64()
    }
    fn as_it_lies(kind: Kind, _: bool) -> bool {
        kind == Kind::F64
    }
}

/// bf16 in pairs with AVX-512's dot product: only where [`can_dot`].
///
/// `vdpbf16ps` adds, per lane, the product of the odd elements and then that of the even ones,
/// rounding each sum once (to nearest, ties to even), and treats subnormal inputs and results as
/// zero. The products themselves are exact.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Dot;

#[cfg(target_arch = "x86_64")]
impl Engine for Dot {
    type Session = ();
    fn enter() {}
    type P = i32;
    type S = f32;
    const GROUP: usize = 2;
    const RATE: f64 = 110.0;

    fn kernels() -> &'static Kernels<i32, f32> {
        &tile::x86::AVX512_PAIRS
    }
    fn packer(_: Side, kind: Kind, major: isize, step: isize, _: bool) -> Packer<i32> {
        pack::to_pairs(kind, major, step)
    }
    fn as_it_lies(kind: Kind, _: bool) -> bool {
        kind == Kind::Bf16
    }
}

/// How products in a precision run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// [`Single`].
    Single,
    /// [`Dot`].
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// [`Tiles`].
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

/// Evaluates an expression with `$E` the engine whose sums are f32 of a [`Way`].
macro_rules! with_engine {
    ($way:expr, $E:ident => $body:expr) => {
        match $way {
            $crate::gemm::Way::Single => {
                type $E = $crate::gemm::Single;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::gemm::Way::Dot => {
                type $E = $crate::gemm::Dot;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::gemm::Way::Tiles => {
                type $E = $crate::gemm::Tiles;
                $body
            }
        }
    };
}
pub(crate) use with_engine;

/// How operands that are rounded to bf16 are multiplied, or f32 ones.
///
/// Tiles where there are any (Intel since 2023). `Dot` only where that is faster than widening to
/// f32: on AMD (Zen 4 and later: one 512-bit dot product per 512 bits of f32 multiply-add, hence twice
/// the rate); Intel's cores issue one per two cycles, half the rate of f32.
/// `ENTRENAR_BF16=tiles|dot|fma` decides otherwise, for tests, where the processor has them; strict
/// numbers use neither. Constant
/// over the life of a process and equal on equal machines, so that results repeat.
#[inline(always)]
pub(crate) fn way(round: bool) -> Way {
    if !round || level() < Level::Avx512 || strict() {
        return Way::Single;
    }
    #[cfg(target_arch = "x86_64")]
    {
        *BF16.get_or_init(choose)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Way::Single
    }
}

#[cfg(target_arch = "x86_64")]
static BF16: std::sync::OnceLock<Way> = std::sync::OnceLock::new();

/// Whether the processor multiplies pairs of bf16 in vectors.
#[cfg(target_arch = "x86_64")]
pub(crate) fn can_dot() -> bool {
    crate::simd::available() == Level::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(target_arch = "x86_64")]
#[cold]
fn choose() -> Way {
    let words = std::arch::x86_64::__cpuid(0);
    // "AuthenticAMD"
    let amd = [words.ebx, words.edx, words.ecx] == [0x6874_7541, 0x6974_6e65, 0x444d_4163];
    let wish = std::env::var("ENTRENAR_BF16");
    match wish.as_deref() {
        Ok("fma") => Way::Single,
        Ok("dot") if can_dot() => Way::Dot,
        Ok("dot") => Way::Single,
        _ if amx::available() => Way::Tiles,
        _ if amd && can_dot() => Way::Dot,
        _ => Way::Single,
    }
}

/// The two types of full products.
pub(crate) trait GemmFloat: Float + Add<Output = Self> + Mul<Output = Self> {
    /// What multiplies it.
    type Engine: Engine<P = Self, S = Self>;
    /// How it lies in memory.
    const KIND: Kind;

    /// `self · y + sum`, rounded once.
    fn fused(self, y: Self, sum: Self) -> Self;
}

impl GemmFloat for f32 {
    type Engine = Single;
    const KIND: Kind = Kind::F32;
    #[inline(always)]
    fn fused(self, y: f32, sum: f32) -> f32 {
        self.mul_add(y, sum)
    }
}

impl GemmFloat for f64 {
    type Engine = Double;
    const KIND: Kind = Kind::F64;
    #[inline(always)]
    fn fused(self, y: f64, sum: f64) -> f64 {
        self.mul_add(y, sum)
    }
}

/// Whether `m` rows of a source may be read in place, step by step: its pairs and tiles must be whole.
pub(super) fn readable<E: Engine>(a: &Source, k: usize, m: usize, round: bool) -> bool {
    E::as_it_lies(a.kind, round)
        && (E::GROUP == 1 || (a.column == 1 && k.is_multiple_of(E::DEPTH)))
        && m.is_multiple_of(E::ROWS)
}
