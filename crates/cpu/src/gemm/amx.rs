//! bf16 products on Intel's tile registers (AMX): the engine [`Tiles`], its kernels, and the
//! permission that Linux asks for.
//!
//! A tile is 16 rows of 64 bytes. `tdpbf16ps` multiplies a tile of 16 rows × 32 bf16 by one of 16
//! pairs × 16 columns and adds 16 × 16 sums in f32. Operands are packed as `pack_tiles` says; the kernels
//! hold 2 × 2 tiles of sums, so that four products follow four loads.
//!
//! Sums are those of the instruction (Intel's manual, volume 2): of 32 steps, the even and the odd
//! ones are summed apart, each from zero in ascending order with fused multiply-adds, and both are
//! added to each other and then to the sum so far. Subnormal inputs and results count as zero. Sums
//! run on from block to block.
//!
//! Intrinsics for these instructions are not stable in Rust, so kernels are written in assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::Kind;
use super::engine::Engine;
use super::pack::{self, Packer, Side};
use super::tile::{Call, Kernel, Kernels};

/// bf16 on tile registers: only where [`can_tile`].
#[derive(Clone, Copy)]
pub(crate) struct Tiles;

/// Rows of a tile, and pairs of a row.
pub(super) const SIDE: usize = 16;
/// Steps of the inner dimension that one instruction takes.
pub(super) const STEPS: usize = 2 * SIDE;
/// Units of a tile of packed values.
pub(super) const TILE: usize = SIDE * SIDE;

impl Engine for Tiles {
    type P = i32;
    type S = f32;
    const GROUP: usize = 2;
    const CARRIES: bool = true;
    const DEPTH: usize = STEPS;
    const ROWS: usize = SIDE;
    // A slice of the right operand that stays in L1 while the tiles of the left one pass.
    const BLOCK: usize = 512;
    // These processors have 2 MiB of L2 per core.
    const LEFT: usize = 1 << 20;
    const LEFT_ROWS: usize = 1024;
    const RATE: f64 = 250.0;

    fn kernels() -> &'static Kernels<i32, f32> {
        static KERNELS: Kernels<i32, f32> = Kernels {
            lanes: SIDE,
            table: &TABLE,
        };
        &KERNELS
    }
    fn packer(side: Side, kind: Kind, major: isize, step: isize, _: bool) -> Packer<i32> {
        match side {
            Side::Left => super::pack_tiles::left(kind, major, step),
            Side::Right => pack::to_pairs(kind, major, step),
        }
    }
    fn as_it_lies(kind: Kind, _: bool) -> bool {
        kind == Kind::Bf16
    }
    fn enter() {
        configure();
    }
    fn leave() {
        // SAFETY: the processor has tiles, or this engine would not run.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Kernels of up to 2 tiles of rows by their number of rows; they ask the call for the exact one.
static TABLE: [[[Kernel<i32, f32>; 2]; 2]; 2 * SIDE] = {
    let low = [
        [run::<1, 1, false> as Kernel<i32, f32>, run::<1, 1, true>],
        [run::<1, 2, false>, run::<1, 2, true>],
    ];
    let high = [
        [run::<2, 1, false> as Kernel<i32, f32>, run::<2, 1, true>],
        [run::<2, 2, false>, run::<2, 2, true>],
    ];
    let mut table = [low; 2 * SIDE];
    let mut rows = SIDE;
    while rows < 2 * SIDE {
        table[rows] = high;
        rows += 1;
    }
    table
};

/// The shapes of the eight tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All tiles whole.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Makes the tile registers of this thread whole.
fn configure() {
    // SAFETY: the processor has tiles and the kernel lets us use them, or this engine would not run.
    // Nothing else in the program uses the registers.
    unsafe {
        asm!(
            "ldtilecfg [{shapes}]",
            shapes = in(reg) &raw const SHAPES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// What a kernel reads and writes; strides in bytes.
#[repr(C)]
struct Work {
    /// Sums so far, in rows of 32, or null.
    carry: *const f32,
    to: *mut f32,
    to_row: usize,
    ahead: *const u8,
    ahead_step: isize,
    a: *const u8,
    a_row: isize,
    a_step: isize,
    b: *const u8,
    b_row: isize,
    b_step: isize,
    steps: usize,
}

/// A kernel. Registers: `x` and `y` address the second tile of rows where there is one, and sums.
///
/// Sums are `$zero`ed or `$carry` what there is. `$first` loads what a step begins with; `$early`
/// multiplies it, and `$late` loads what the next one begins with once `a`, `a1` and `b` have moved:
/// a load waits for the last product that reads the register, so products stand between. `$last` only multiplies; `$store`
/// writes the sums.
macro_rules! tiles {
    ($work:ident, zero [$($zero:literal)*] carry [$($carry:literal)*] first [$($first:literal)*]
     early [$($early:literal)*] late [$($late:literal)*] last [$($last:literal)*]
     store [$($store:literal)*]) => {
        asm!(
            "mov {x}, [{work}]",
            "mov {y}, 128",
            "test {x}, {x}",
            "jnz 2f",
            $($zero,)*
            "jmp 3f",
            "2:",
            $($carry,)*
            "3:",
            "mov {x}, [{work} + 24]",
            "mov {y}, [{work} + 32]",
            "test {n}, {n}",
            "jz 6f",
            $($first,)*
            "dec {n}",
            "jz 5f",
            "4:",
            $($early,)*
            "add {a}, {a_step}",
            "add {a1}, {a_step}",
            "add {b}, {b_step}",
            $($late,)*
            "prefetcht1 [{x}]",
            "prefetcht1 [{x} + {y}]",
            "lea {x}, [{x} + 2 * {y}]",
            "dec {n}",
            "jnz 4b",
            "5:",
            $($last,)*
            "6:",
            "mov {x}, [{work} + 8]",
            "mov {y}, [{work} + 16]",
            $($store,)*
            work = in(reg) $work,
            a = inout(reg) $work.a => _,
            a1 = inout(reg) $work.a.wrapping_offset(SIDE as isize * $work.a_row) => _,
            b = inout(reg) $work.b => _,
            n = inout(reg) $work.steps => _,
            a_row = in(reg) $work.a_row,
            a_step = in(reg) $work.a_step,
            b_row = in(reg) $work.b_row,
            b_step = in(reg) $work.b_step,
            x = out(reg) _,
            y = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Sums of one call, in rows of whole kernels.
#[repr(C, align(64))]
struct Buffer([MaybeUninit<f32>; 4 * TILE]);

/// # Safety
/// As [`Kernel`], on a processor with tiles, after [`configure`]. Operands are whole in steps, and
/// the left one in rows.
#[target_feature(enable = "avx512f")]
unsafe fn run<const MT: usize, const NT: usize, const PACKED: bool>(call: &Call<i32, f32>) {
    const WIDTH: usize = 2 * SIDE;
    let (a_row, a_step) = if PACKED {
        (64, (MT * TILE * 4) as isize)
    } else {
        (call.a_row, SIDE as isize * call.a_step)
    };
    let whole = call.roomy || (call.rows == MT * SIDE && call.columns == NT * SIDE);
    let as_they_are = whole && call.from.is_null() && call.alpha == 1.0;
    let mut buffer = MaybeUninit::<Buffer>::uninit();
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    let (to, width) = if as_they_are {
        (call.to, call.to_width)
    } else {
        (buffer, WIDTH)
    };
    let work = Work {
        carry: call.carry,
        to,
        to_row: 4 * width,
        ahead: call.ahead,
        ahead_step: (SIDE / 2) as isize * call.ahead_step,
        a: call.a.cast(),
        a_row,
        a_step,
        b: call.b.cast(),
        b_row: call.b_step,
        b_step: SIDE as isize * call.b_step,
        steps: call.depth / SIDE,
    };
    // SAFETY: the contract of `Kernel`; the buffer holds all sums.
    unsafe { sums::<MT, NT>(&work) };
    if as_they_are {
        return;
    }
    let mut masks = [0; NT];
    for (v, mask) in masks.iter_mut().enumerate() {
        let live = call.columns.saturating_sub(v * SIDE).min(SIDE);
        *mask = ((1u32 << live) - 1) as __mmask16;
    }
    let alpha = _mm512_set1_ps(call.alpha);
    for r in 0..call.rows {
        for (v, &mask) in masks.iter().enumerate() {
            let column = v * SIDE;
            // SAFETY: the buffer was filled; masked lanes are neither read nor written, the others
            // are the caller's.
            unsafe {
                let sum = _mm512_load_ps(buffer.add(r * WIDTH + column));
                let mut sum = _mm512_mul_ps(sum, alpha);
                if !call.from.is_null() {
                    let from = call.from.wrapping_add(r * call.from_width + column);
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, from), sum);
                }
                let to = call.to.wrapping_add(r * call.to_width + column);
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}

/// The sums of `MT × NT` tiles.
///
/// # Safety
/// As [`run`]; all tiles lie inside `to`, and inside `carry` if there is one.
#[inline(always)]
unsafe fn sums<const MT: usize, const NT: usize>(work: &Work) {
    // SAFETY: by the caller's promise. The second tile of columns begins 64 bytes further on.
    unsafe {
        match (MT, NT) {
            (1, 1) => tiles!(work,
                zero ["tilezero tmm0"]
                carry ["tileloadd tmm0, [{x} + {y}]"]
                first ["tileloadd tmm4, [{a} + {a_row}]" "tileloadd tmm6, [{b} + {b_row}]"]
                early ["tdpbf16ps tmm0, tmm4, tmm6"]
                late ["tileloadd tmm4, [{a} + {a_row}]" "tileloadd tmm6, [{b} + {b_row}]"]
                last ["tdpbf16ps tmm0, tmm4, tmm6"]
                store ["tilestored [{x} + {y}], tmm0"]),
            (1, _) => tiles!(work,
                zero ["tilezero tmm0" "tilezero tmm1"]
                carry ["tileloadd tmm0, [{x} + {y}]" "tileloadd tmm1, [{x} + {y} + 64]"]
                first ["tileloadd tmm4, [{a} + {a_row}]" "tileloadd tmm6, [{b} + {b_row}]"]
                early ["tileloadd tmm7, [{b} + {b_row} + 64]" "tdpbf16ps tmm0, tmm4, tmm6"]
                late ["tileloadd tmm6, [{b} + {b_row}]"
                 "tdpbf16ps tmm1, tmm4, tmm7"
                 "tileloadd tmm4, [{a} + {a_row}]"]
                last ["tileloadd tmm7, [{b} + {b_row} + 64]"
                 "tdpbf16ps tmm0, tmm4, tmm6"
                 "tdpbf16ps tmm1, tmm4, tmm7"]
                store ["tilestored [{x} + {y}], tmm0" "tilestored [{x} + {y} + 64], tmm1"]),
            (_, 1) => tiles!(work,
                zero ["tilezero tmm0" "tilezero tmm2"]
                carry ["tileloadd tmm0, [{x} + {y}]"
                 "add {x}, 2048"
                 "tileloadd tmm2, [{x} + {y}]"]
                first ["tileloadd tmm4, [{a} + {a_row}]" "tileloadd tmm6, [{b} + {b_row}]"]
                early ["tileloadd tmm5, [{a1} + {a_row}]" "tdpbf16ps tmm0, tmm4, tmm6"]
                late ["tileloadd tmm4, [{a} + {a_row}]"
                 "tdpbf16ps tmm2, tmm5, tmm6"
                 "tileloadd tmm6, [{b} + {b_row}]"]
                last ["tileloadd tmm5, [{a1} + {a_row}]"
                 "tdpbf16ps tmm0, tmm4, tmm6"
                 "tdpbf16ps tmm2, tmm5, tmm6"]
                store ["tilestored [{x} + {y}], tmm0"
                 "mov {a}, {y}"
                 "shl {a}, 4"
                 "add {x}, {a}"
                 "tilestored [{x} + {y}], tmm2"]),
            _ => tiles!(work,
                zero ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"]
                carry ["tileloadd tmm0, [{x} + {y}]"
                 "tileloadd tmm1, [{x} + {y} + 64]"
                 "add {x}, 2048"
                 "tileloadd tmm2, [{x} + {y}]"
                 "tileloadd tmm3, [{x} + {y} + 64]"]
                first ["tileloadd tmm6, [{b} + {b_row}]"
                 "tileloadd tmm4, [{a} + {a_row}]"
                 "tileloadd tmm5, [{a1} + {a_row}]"]
                early ["tdpbf16ps tmm0, tmm4, tmm6"
                 "tileloadd tmm7, [{b} + {b_row} + 64]"
                 "tdpbf16ps tmm2, tmm5, tmm6"]
                late ["tileloadd tmm6, [{b} + {b_row}]"
                 "tdpbf16ps tmm1, tmm4, tmm7"
                 "tileloadd tmm4, [{a} + {a_row}]"
                 "tdpbf16ps tmm3, tmm5, tmm7"
                 "tileloadd tmm5, [{a1} + {a_row}]"]
                last ["tdpbf16ps tmm0, tmm4, tmm6"
                 "tileloadd tmm7, [{b} + {b_row} + 64]"
                 "tdpbf16ps tmm2, tmm5, tmm6"
                 "tdpbf16ps tmm1, tmm4, tmm7"
                 "tdpbf16ps tmm3, tmm5, tmm7"]
                store ["tilestored [{x} + {y}], tmm0"
                 "tilestored [{x} + {y} + 64], tmm1"
                 "mov {a}, {y}"
                 "shl {a}, 4"
                 "add {x}, {a}"
                 "tilestored [{x} + {y}], tmm2"
                 "tilestored [{x} + {y} + 64], tmm3"]),
        }
    }
}

/// Whether the processor has bf16 tiles and the system lets this process use them, which is asked for
/// once.
pub(crate) fn can_tile() -> bool {
    static STATE: OnceLock<bool> = OnceLock::new();
    *STATE.get_or_init(|| {
        crate::simd::available() == crate::simd::Level::Avx512
            && is_x86_feature_detected!("avx512bf16")
            && has_instructions()
            && permitted()
    })
}

/// What the processor says of itself, and whether the system saves tiles when it changes threads.
fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: `OSXSAVE` says that the instruction exists.
    let saved = unsafe { xgetbv() };
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && saved & TILE_STATE == TILE_STATE
}

/// Which registers the system saves.
///
/// # Safety
/// The system has set `OSXSAVE`.
unsafe fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            options(nostack, nomem, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Asks Linux to make room for tiles in the saved state of this process's threads. It refuses where
/// an alternative signal stack of a thread is too small for them.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a system call without pointers; unknown requests are errors.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// Elsewhere it is not known how to ask.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
