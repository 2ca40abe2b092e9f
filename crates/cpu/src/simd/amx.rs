//! Intel's tile registers (AMX): 16 rows of 64 bytes each.
//!
//! `tdpbf16ps` multiplies a tile of 16 rows × 32 bf16 by one of 16 pairs × 16 columns and adds 16 × 16
//! sums in f32. [`multiply`] holds up to 2 × 2 tiles of sums, so that four products follow four loads.
//!
//! Sums are those of the instruction (Intel's manual, volume 2): of 32 steps, the even and the odd
//! ones are summed apart, each from zero in ascending order with fused multiply-adds, and both are
//! added to each other and then to the sum so far. Subnormal inputs and results count as zero.
//!
//! Intrinsics for these instructions are not stable in Rust, hence the assembly. Linux asks for
//! permission, see [`available`].

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::mem::offset_of;
use std::sync::OnceLock;

/// Rows of a tile, pairs of a row of bf16, and columns of a row of sums.
pub(crate) const SIDE: usize = 16;
/// Steps of the inner dimension that one instruction takes.
pub(crate) const STEPS: usize = 2 * SIDE;

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

/// While it lives, the tile registers of this thread are whole: what [`multiply`] needs.
pub(crate) struct Session(());

impl Session {
    /// # Panics
    /// Where there are no tiles: a mistake of the caller.
    pub fn new() -> Session {
        assert!(available());
        configure();
        Session(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the processor has tiles, or there would be no session.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Makes the tile registers of this thread whole.
fn configure() {
    // SAFETY: the processor has tiles and the system lets us use them, or there would be no session.
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

/// What [`multiply`] reads and writes; strides in bytes.
#[repr(C)]
pub(crate) struct Work {
    /// Sums so far, or null.
    pub carry: *const f32,
    pub carry_row: usize,
    /// Where sums go.
    pub to: *mut f32,
    pub to_row: usize,
    /// Memory that is needed later: two addresses are asked for per step.
    pub ahead: *const u8,
    pub ahead_step: isize,
    /// Rows of 32 bf16.
    pub a: *const u8,
    pub a_row: isize,
    pub a_step: isize,
    /// Rows of 16 or 32 pairs.
    pub b: *const u8,
    pub b_row: isize,
    pub b_step: isize,
    /// Number of steps, of 32 bf16 each.
    pub steps: usize,
}

/// A kernel. Registers: `a1` addresses the second tile of rows; `x` and `y` address sums before and
/// after the loop, and in it the memory to ask for.
///
/// Sums are `$zero`ed or `$carry` what there is. `$first` loads what a step begins with; `$early`
/// multiplies it, and `$late` loads what the next one begins with once `a`, `a1` and `b` have moved:
/// a load waits for the last product that reads the register, so products stand between. `$last` only
/// multiplies; `$store` writes the sums.
macro_rules! tiles {
    ($work:ident, zero [$($zero:literal)*] carry [$($carry:literal)*] first [$($first:literal)*]
     early [$($early:literal)*] late [$($late:literal)*] last [$($last:literal)*]
     store [$($store:literal)*]) => {
        asm!(
            "mov {x}, [{work} + {carry}]",
            "mov {y}, [{work} + {carry_row}]",
            "test {x}, {x}",
            "jnz 2f",
            $($zero,)*
            "jmp 3f",
            "2:",
            $($carry,)*
            "3:",
            "mov {x}, [{work} + {ahead}]",
            "mov {y}, [{work} + {ahead_step}]",
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
            "mov {x}, [{work} + {to}]",
            "mov {y}, [{work} + {to_row}]",
            $($store,)*
            carry = const offset_of!(Work, carry),
            carry_row = const offset_of!(Work, carry_row),
            to = const offset_of!(Work, to),
            to_row = const offset_of!(Work, to_row),
            ahead = const offset_of!(Work, ahead),
            ahead_step = const offset_of!(Work, ahead_step),
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

/// The sums of `MT × NT` tiles: `to = carry + a·b`.
///
/// # Safety
/// There is a [`Session`] on this thread. All tiles lie inside memory that is readable (`a`, `b`,
/// `carry`) or exclusively ours (`to`).
#[inline(always)]
pub(crate) unsafe fn multiply<const MT: usize, const NT: usize>(work: &Work) {
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
                 "shl {y}, 4"
                 "add {x}, {y}"
                 "shr {y}, 4"
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
                 "shl {y}, 4"
                 "add {x}, {y}"
                 "shr {y}, 4"
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
pub(crate) fn available() -> bool {
    static STATE: OnceLock<bool> = OnceLock::new();
    *STATE.get_or_init(|| {
        super::available() == super::Level::Avx512
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
