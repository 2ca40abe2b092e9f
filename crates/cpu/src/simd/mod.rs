//! Choosing an instruction set at run time.
//!
//! Kernels are written once as plain loops; `multiversion!` compiles each for AVX-512, AVX2 with
//! FMA and the baseline, and picks by [`level`]. Rust never contracts `a * b + c`, and our code
//! says `mul_add` where it means it, so elementwise results are the same bits at every level.
//! `ENTRENAR_SIMD=baseline|avx2|avx512` lowers the level, for tests.
//!
//! The one liberty that levels take is `fused`: where the baseline has no fused multiply-add, sums
//! of products round twice there. [`set_strict`] takes it away.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub mod math;
#[cfg(target_arch = "x86_64")]
pub(crate) mod turn;

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What the target triple guarantees (SSE2, NEON, …).
    Baseline = 1,
    /// AVX2, FMA and F16C.
    Avx2 = 2,
    /// AVX-512 F, BW, CD, DQ, VL.
    Avx512 = 3,
}

static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in use: detected once.
#[inline(always)]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        3 => Level::Avx512,
        2 => Level::Avx2,
        1 => Level::Baseline,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Level {
    let mut level = available();
    match std::env::var("ENTRENAR_SIMD").as_deref() {
        Ok("baseline") => level = Level::Baseline,
        Ok("avx2") => level = level.min(Level::Avx2),
        _ => {}
    }
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// The best level of this machine.
pub fn available() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2")
            && has!("fma")
            && has!("f16c")
            && has!("bmi1")
            && has!("bmi2")
            && has!("lzcnt")
            && has!("popcnt");
        if avx2
            && has!("avx512f")
            && has!("avx512bw")
            && has!("avx512cd")
            && has!("avx512dq")
            && has!("avx512vl")
        {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

static STRICT: AtomicBool = AtomicBool::new(false);

/// Whether numbers may not depend on the processor's instruction set.
pub fn strict() -> bool {
    STRICT.load(Ordering::Relaxed)
}

/// Makes every level compute the same bits, for the whole process. In f32 this costs nothing on
/// processors with fused multiply-add (x86-64 since 2013, every aarch64). Others call a function for
/// each of them, which makes matrix products many times slower. Products of bf16 take the time of f32
/// ones, several times longer where the processor has instructions for them.
///
/// ```
/// use entrenar_cpu::simd::{set_strict, strict};
///
/// set_strict(true);
/// assert!(strict());
/// # set_strict(false);
/// ```
pub fn set_strict(on: bool) {
    STRICT.store(on, Ordering::Relaxed);
}

/// Whether sums of products round once a step. A kernel that rounds differently at some level asks
/// this, and follows.
pub(crate) fn fused() -> bool {
    level() > Level::Baseline || cfg!(target_arch = "aarch64") || strict()
}

/// Defines a function whose body is compiled for every [`Level`] and chosen at run time.
///
/// The body may call `#[inline(always)]` functions; anything else it calls keeps its own, baseline
/// instruction set. Generic parameters take one bound each: `<F: Map>`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($g:ident : $bound:path),+>)?
        ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                fn avx512 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body $(::<$($g),+>)? ($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                fn avx2 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body $(::<$($g),+>)? ($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: this level is chosen only when the processor has these features.
                    $crate::simd::Level::Avx512 => return unsafe { avx512 $(::<$($g),+>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2 $(::<$($g),+>)? ($($arg),*) },
                    $crate::simd::Level::Baseline => {}
                }
            }
            body $(::<$($g),+>)? ($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    multiversion! {
        fn dot<T: entrenar_base::Element>(a: &[T], b: &[T]) -> f64 {
            a.iter().zip(b).map(|(x, y)| x.to_f64() * y.to_f64()).sum()
        }
    }

    #[test]
    fn dispatch_reaches_the_body() {
        assert!(level() >= Level::Baseline && level() <= available());
        assert_eq!(dot(&[1.0f32, 2.0], &[3.0, 4.0]), 11.0);
    }
}
