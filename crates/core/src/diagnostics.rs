//! Watching a computation: anomaly mode (first NaN or infinity) and the memory profile.
//!
//! Neither changes a number. Both work by labels: the op, the layer path and the user's line.

use std::cell::Cell;
use std::panic::Location;

use entrenar_base::memory::{self, Recording, Snapshot};
use entrenar_base::{Array, Error, Result};

use crate::op::{Few, Op};

thread_local! {
    static ANOMALY: Cell<bool> = const { Cell::new(false) };
    static BACKWARD: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every result checked: the first NaN or infinity is an error that names the op,
/// the layer, the position and the line that asked for it.
///
/// # Errors
/// The anomaly, or whatever `f` returns.
///
/// ```
/// use entrenar_core::{Tensor, diagnostics::detect_anomaly};
/// let x = Tensor::from_vec(vec![1.0f32, -1.0], [2])?;
/// let e = detect_anomaly(|| x.log()).unwrap_err();
/// assert!(e.to_string().contains("[log] produced NaN at element 1"), "{e}");
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub fn detect_anomaly<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ANOMALY.set(self.0);
        }
    }
    let _restore = Restore(ANOMALY.replace(true));
    f()
}

/// Marks this thread as running a backward rule while the guard lives.
pub(crate) fn enter_backward() -> impl Drop {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            BACKWARD.set(self.0);
        }
    }
    Restore(BACKWARD.replace(true))
}

/// Runs an op's kernel under the labels and checks that are in force.
pub(crate) fn evaluate(
    op: &dyn Op,
    inputs: &[&Array],
    location: &'static Location<'static>,
) -> Result<Few<Array>> {
    let _op = memory::scope_op(op.name());
    // A result as it comes, not taken apart and put together again on its way out.
    let outputs = op.run(inputs);
    if ANOMALY.get() {
        for (j, out) in outputs.iter().flatten().enumerate() {
            check(op.name(), j, out, location)?;
        }
    }
    outputs
}

fn check(
    op: &str,
    output: usize,
    array: &Array,
    location: &'static Location<'static>,
) -> Result<()> {
    let Some(at) = entrenar_cpu::pointwise::first_non_finite(array) else {
        return Ok(());
    };
    let value = array.to_f64_vec()[at];
    let which = if output == 0 {
        String::new()
    } else {
        format!(" in output {output}")
    };
    let pass = if BACKWARD.get() {
        " in the backward pass"
    } else {
        ""
    };
    let layer = memory::current_layer()
        .map(|l| format!(", layer {l}"))
        .unwrap_or_default();
    Err(Error::non_finite(
        op,
        format!(
            "produced {value} at element {at}{which} of {}{pass}{layer}, at {location}",
            array.shape()
        ),
    )
    .at(location))
}

/// A memory profile: named passes, each with what was alive at its peak.
///
/// ```
/// use entrenar_core::{Tensor, DType, diagnostics::MemoryProfiler};
/// let mut profiler = MemoryProfiler::start().expect("no other profile is running");
/// let x = profiler.pass("small", || Tensor::zeros([10, 10], DType::F32));
/// let y = profiler.pass("large", || Tensor::zeros([100, 10], DType::F32));
/// assert_eq!(profiler.peak("small").unwrap().total(), 400);
/// assert_eq!(profiler.peak("large").unwrap().total(), 4400);
/// println!("{}", profiler.report("small", "large").unwrap());
/// # drop((x, y));
/// ```
pub struct MemoryProfiler {
    recording: Recording,
    passes: Vec<(String, Snapshot)>,
}

impl MemoryProfiler {
    /// Starts recording; `None` while another profile is running in this process.
    pub fn start() -> Option<MemoryProfiler> {
        Some(MemoryProfiler {
            recording: Recording::start()?,
            passes: Vec::new(),
        })
    }

    /// Runs `f` as the pass `name` and keeps its peak.
    pub fn pass<T>(&mut self, name: &str, f: impl FnOnce() -> T) -> T {
        self.recording.mark();
        let result = f();
        self.passes.push((name.to_string(), self.recording.peak()));
        result
    }

    /// What is alive now.
    pub fn snapshot(&self) -> Snapshot {
        self.recording.snapshot()
    }

    /// What was alive at the peak of a pass (the last one of that name).
    pub fn peak(&self, pass: &str) -> Option<&Snapshot> {
        self.passes
            .iter()
            .rev()
            .find(|(n, _)| n == pass)
            .map(|(_, s)| s)
    }

    /// How the peak of pass `to` differs from that of pass `from`, label by label.
    pub fn report(&self, from: &str, to: &str) -> Option<String> {
        let (a, b) = (self.peak(from)?, self.peak(to)?);
        let mut text = format!(
            "peak of `{from}`: {} bytes, of `{to}`: {} bytes\n{:>14}  {:<10} {:<20} layer\n",
            a.total(),
            b.total(),
            "difference",
            "tag",
            "operation"
        );
        let mut rows = b.difference(a);
        rows.sort_by_key(|(l, d)| (std::cmp::Reverse(d.abs()), l.clone()));
        for (label, bytes) in rows {
            text += &format!(
                "{bytes:>+14}  {:<10} {:<20} {}\n",
                label.tag.name(),
                label.op,
                label.layer
            );
        }
        Some(text)
    }
}
