//! Timing of complete steps and the JSON lines that report them.
//!
//! The limits are the PyTorch script's: three runs to warm up, then the workload's number of runs
//! or 40 seconds. Beside time and peak memory a line has what the counted runs cost the operating
//! system: page faults and requests for memory, both 0 in a steady step.

use std::time::{Duration, Instant};

use entrenar_base::Result;
use serde_json::{Value, json};

use crate::cli::Limits;
use crate::workloads::Case;

/// What a measurement found.
struct Timing {
    /// Median seconds per step.
    median: f64,
    /// The smallest.
    min: f64,
    /// How many runs were counted.
    n: usize,
    /// Page faults while they ran.
    faults: Option<u64>,
    /// Requests for memory that reached the operating system while they ran.
    allocations: u64,
}

/// Measures `case` in this process; gives its line.
///
/// # Errors
/// Whatever the workload returns.
pub fn measure(case: &Case, limits: &Limits) -> Result<Value> {
    // What the process holds before any work: the twin of the interpreter's own memory.
    let baseline = memory_mb("VmRSS:");
    let mut work = (case.build)()?;
    let timing = time(case, limits, &mut work.step)?;
    let round = |s: f64| (s * 1e9).round() / 1e9;
    let mut line = json!({
        "workload": case.name,
        "median_s": round(timing.median),
        "min_s": round(timing.min),
        "n": timing.n,
        "peak_mb": memory_mb("VmHWM:"),
        "baseline_mb": baseline,
        "precision": case.precision,
        "page_faults": timing.faults,
        "system_allocations": timing.allocations,
    });
    if let Some(operations) = work.operations {
        line["gflops"] = json!((operations / timing.median / 1e8).round() / 10.0);
    }
    if let (Some(line), Value::Object(extra)) = (line.as_object_mut(), work.fields) {
        line.extend(extra);
    }
    Ok(line)
}

fn time(case: &Case, limits: &Limits, step: &mut dyn FnMut() -> Result<()>) -> Result<Timing> {
    for _ in 0..limits.warm.unwrap_or(3) {
        step()?;
    }
    let reps = limits.reps.unwrap_or(case.reps);
    let mut seconds = Vec::with_capacity(reps);
    page_faults(); // Its own first call may fault.
    let (faults, allocations) = (page_faults(), entrenar_cpu::alloc::system_allocations());
    let end = Instant::now() + Duration::from_secs_f64(limits.budget.unwrap_or(40.0));
    while seconds.len() < reps && (seconds.is_empty() || Instant::now() < end) {
        let start = Instant::now();
        step()?;
        seconds.push(start.elapsed().as_secs_f64() / case.inner as f64);
    }
    let faults = page_faults()
        .zip(faults)
        .map(|(after, before)| after - before);
    let allocations = entrenar_cpu::alloc::system_allocations() - allocations;
    let (median, min) = median_and_min(&mut seconds);
    Ok(Timing {
        median,
        min,
        n: seconds.len(),
        faults,
        allocations,
    })
}

/// Of at least one number.
pub fn median_and_min(seconds: &mut [f64]) -> (f64, f64) {
    seconds.sort_by(f64::total_cmp);
    let mid = seconds.len() / 2;
    let median = if seconds.len() % 2 == 1 {
        seconds[mid]
    } else {
        (seconds[mid - 1] + seconds[mid]) / 2.0
    };
    (median, seconds[0])
}

/// A number of `/proc/self/status` in MiB: `VmHWM:` is the peak of this process alone, `VmRSS:`
/// what it holds now; null where there is no such file.
fn memory_mb(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

/// Page faults of this process so far; `None` where the system does not tell.
fn page_faults() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before the last parenthesis may hold anything; minflt is the 8th number after it,
    // majflt the 10th.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(7);
    let minor: u64 = fields.next()?.parse().ok()?;
    let major: u64 = fields.nth(1)?.parse().ok()?;
    Some(minor + major)
}

/// The first line of a run: what was measured with what.
pub fn header() -> Value {
    json!({
        "entrenar": env!("CARGO_PKG_VERSION"),
        "threads": entrenar_cpu::team::threads(),
        "simd": format!("{:?}", entrenar_cpu::simd::level()).to_lowercase(),
        "debug_build": cfg!(debug_assertions),
    })
}

/// The line of a case that could not be measured.
pub fn failure(case: &Case, message: &str) -> Value {
    json!({"workload": case.name, "precision": case.precision, "error": message})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads::Work;

    fn quick(reps: usize) -> Limits {
        Limits {
            warm: Some(1),
            reps: Some(reps),
            budget: None,
        }
    }

    #[test]
    fn a_line_has_the_fields_of_the_twin() {
        let case = Case {
            name: "nothing".into(),
            precision: "f32",
            inner: 4,
            reps: 9,
            build: Box::new(|| {
                Ok(Work {
                    step: Box::new(|| {
                        std::thread::sleep(Duration::from_millis(4));
                        Ok(())
                    }),
                    operations: Some(1e6),
                    fields: json!({"tokens": 7}),
                })
            }),
        };
        let line = measure(&case, &quick(3)).unwrap();
        assert_eq!(line["workload"], "nothing");
        assert_eq!(line["n"], 3);
        assert_eq!(line["tokens"], 7);
        let median = line["median_s"].as_f64().unwrap();
        // 4 ms per call of 4 units: about 1 ms each.
        assert!((1e-3..0.1).contains(&median), "{median}");
        assert!(line["min_s"].as_f64().unwrap() <= median);
        let rate = line["gflops"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&rate), "{rate}");
        assert!(line["peak_mb"].as_u64().unwrap() >= line["baseline_mb"].as_u64().unwrap());
        assert!(line["page_faults"].is_u64());
    }

    #[test]
    fn the_budget_stops_but_one_run_is_made() {
        let count = std::cell::Cell::new(0);
        let case = Case {
            name: "slow".into(),
            precision: "f32",
            inner: 1,
            reps: 100,
            build: Box::new(|| unreachable!("the step is given")),
        };
        let limits = Limits {
            warm: Some(2),
            reps: None,
            budget: Some(1e-9),
        };
        let mut step = || {
            count.set(count.get() + 1);
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        };
        assert_eq!(time(&case, &limits, &mut step).unwrap().n, 1);
        assert_eq!(count.get(), 3);
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        assert_eq!(median_and_min(&mut [3.0, 1.0, 2.0]), (2.0, 1.0));
        assert_eq!(median_and_min(&mut [4.0, 1.0, 2.0, 3.0]), (2.5, 1.0));
    }
}
