//! Asking for memory before it is needed: what the next block, group or slice will read is brought
//! to L2 while the kernels work on the present one. Nothing here touches a number.

use super::Source;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Runs of memory that are asked for bit by bit, a few lines at a time.
pub(super) struct Runs {
    at: *const u8,
    /// Bytes of a run, and from run to run.
    run: usize,
    stride: isize,
    left: usize,
    /// Bytes of the present run that were asked for.
    done: usize,
    /// Lines per call of [`Runs::ask`].
    lines: usize,
}

impl Runs {
    /// Nothing.
    pub fn none() -> Runs {
        Runs {
            at: std::ptr::null(),
            run: 0,
            stride: 0,
            left: 0,
            done: 0,
            lines: 0,
        }
    }

    /// `rows × columns` of a source, in `calls` calls.
    pub fn of(source: &Source, rows: usize, columns: usize, calls: usize) -> Runs {
        let size = source.kind.bytes();
        let (run, stride, left) = match (source.row, source.column) {
            (_, 1) => (columns * size, source.row_bytes(), rows),
            (1, _) => (rows * size, source.column_bytes(), columns),
            // Scattered elements have no runs.
            _ => return Runs::none(),
        };
        let lines = left * (run.div_ceil(LINE) + 1);
        Runs {
            at: source.data,
            run,
            stride,
            left,
            done: 0,
            lines: lines.div_ceil(calls.max(1)).min(MOST),
        }
    }

    /// Asks for the next few lines.
    #[inline(always)]
    pub fn ask(&mut self) {
        for _ in 0..self.lines {
            if self.left == 0 {
                return;
            }
            prefetch(self.at.wrapping_add(self.done));
            self.done += LINE;
            if self.done >= self.run {
                self.at = self.at.wrapping_offset(self.stride);
                self.done = 0;
                self.left -= 1;
            }
        }
    }
}

/// Asks for the lines of a rectangle that is about to be written: `rows` of them, `stride` bytes apart,
/// `bytes` long each. A kernel's time hides what its stores would wait for.
#[inline(always)]
pub(crate) fn ask_to_write(at: *mut u8, rows: usize, stride: usize, bytes: usize) {
    for row in 0..rows {
        let row = at.wrapping_add(row * stride);
        for line in (0..bytes).step_by(LINE) {
            prefetch_to_write(row.wrapping_add(line));
        }
    }
}

/// Asks for bytes that are about to be read.
#[inline(always)]
pub(crate) fn ask_to_read(at: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(LINE) {
        prefetch(at.wrapping_add(line));
    }
}

/// A hint: harmless wherever it points.
#[inline(always)]
fn prefetch_to_write(at: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: the instruction changes nothing that the program sees and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Lines asked for between two kernels, at most: the processor tracks few misses at a time.
const MOST: usize = 16;

/// A hint: harmless wherever it points.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the instruction reads nothing that the program sees and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
