//! Timing of complete steps and the JSON line that reports them.

use std::time::{Duration, Instant};

use entrenar_base::Result;
use serde_json::{Value, json};

/// Seconds per step over several runs.
pub struct Timing {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// How many were counted.
    pub n: usize,
}

/// How long to measure: the same limits as the PyTorch twin.
pub struct Effort {
    /// Runs before counting.
    pub warm: usize,
    /// Counted runs at most.
    pub reps: usize,
    /// No new run starts after this many seconds.
    pub budget: f64,
}

impl Effort {
    /// Three warm-up runs, then `reps` within 40 seconds.
    pub const fn reps(reps: usize) -> Effort {
        Effort {
            warm: 3,
            reps,
            budget: 40.0,
        }
    }
}

/// Times `step`, which does `inner` units of work per call.
pub fn time(effort: Effort, inner: usize, mut step: impl FnMut() -> Result<()>) -> Result<Timing> {
    for _ in 0..effort.warm {
        step()?;
    }
    let end = Instant::now() + Duration::from_secs_f64(effort.budget);
    let mut seconds = Vec::with_capacity(effort.reps);
    while seconds.len() < effort.reps && (seconds.is_empty() || Instant::now() < end) {
        let start = Instant::now();
        step()?;
        seconds.push(start.elapsed().as_secs_f64() / inner as f64);
    }
    seconds.sort_by(f64::total_cmp);
    let mid = seconds.len() / 2;
    let median = if seconds.len() % 2 == 1 {
        seconds[mid]
    } else {
        (seconds[mid - 1] + seconds[mid]) / 2.0
    };
    Ok(Timing {
        median,
        min: seconds[0],
        n: seconds.len(),
    })
}

/// Peak resident memory of this process in MiB, as the kernel counts it; 0 where unknown.
pub fn peak_mb() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            let line = s.lines().find(|l| l.starts_with("VmHWM:"))?.to_string();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib / 1024)
}

/// Prints the line of one workload; `extra` is an object of further fields.
pub fn report(workload: &str, t: &Timing, extra: Value) {
    let round = |s: f64| (s * 1e9).round() / 1e9;
    let mut line = json!({
        "workload": workload,
        "median_s": round(t.median),
        "min_s": round(t.min),
        "n": t.n,
        "peak_mb": peak_mb(),
    });
    if let (Some(line), Value::Object(extra)) = (line.as_object_mut(), extra) {
        line.extend(extra);
    }
    println!("{line}");
}
