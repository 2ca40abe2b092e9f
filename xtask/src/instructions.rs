//! Instruction counts of small workloads, against `bench/instructions.json`.
//!
//! `bench count NAME` runs under callgrind on one thread, pinned to AVX2 (the emulator knows no
//! AVX-512), once with one call of the workload's step and once with two; the difference is the
//! cost of a warm call. Counts hardly depend on the machine and not on what else it does, so that
//! a rise over the margin is a change of the program. `--record` writes the file anew.
//!
//! Where there is no x86-64 with AVX2 the task says so and checks nothing.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::project::root;

/// Where the counts are kept, from the root.
const BASELINE: &str = "bench/instructions.json";
/// Names that `bench count` knows.
const WORKLOADS: [&str; 5] = ["tinyop", "xor", "mlp", "cnn", "gpt"];
/// Percent by which a count may rise.
const MARGIN: f64 = 10.0;

/// The task.
pub fn run(arguments: &[String]) -> Result<Outcome, String> {
    let record = match arguments {
        [] => false,
        [word] if word == "--record" => true,
        _ => return Err("instructions takes nothing or --record".into()),
    };
    if !has_avx2() {
        println!("instructions: not counted, the counts are for x86-64 with AVX2");
        return Ok(Outcome::Clean);
    }
    check_valgrind()?;
    let binary = build()?;
    let mut counts = Vec::new();
    for name in WORKLOADS {
        let [one, two] = [count(&binary, name, 1)?, count(&binary, name, 2)?];
        counts.push((name, two.saturating_sub(one)));
    }
    let path = root().join(BASELINE);
    if record {
        let text = format!("{:#}\n", file(&counts));
        std::fs::write(&path, text).map_err(|e| format!("{BASELINE}: {e}"))?;
        for (name, now) in counts {
            println!("{name:<8} {now:>12} instructions a call");
        }
        return Ok(Outcome::Clean);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{BASELINE}: {e}"))?;
    let verdicts = compare(&text, &counts)?;
    for verdict in &verdicts {
        println!("{}", verdict.line);
    }
    Ok(match verdicts.iter().any(|v| v.failed) {
        true => Outcome::Failed,
        false => Outcome::Clean,
    })
}

/// Whether this machine can run what the file was recorded with.
fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

fn check_valgrind() -> Result<(), String> {
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("valgrind is missing: install the package `valgrind`".into()),
    }
}

/// Builds the bench binary for release and gives its path.
fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "-p", "entrenar-bench"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root())
        // The counts belong to the profile of the workspace.
        .env_remove("CARGO_PROFILE_RELEASE_LTO")
        .env_remove("CARGO_PROFILE_RELEASE_CODEGEN_UNITS")
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        return Err("the bench binary does not build".into());
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| "cargo named no executable `bench`".to_string())
}

/// The executable that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    let objects = messages
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut bench = objects.filter(|o| o["target"]["name"] == "bench");
    bench.find_map(|o| o["executable"].as_str().map(PathBuf::from))
}

/// Instructions of a whole run with so many calls.
fn count(binary: &Path, name: &str, calls: u32) -> Result<u64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args(["count", name, "--calls", &calls.to_string()])
        .env("ENTRENAR_THREADS", "1")
        .env("ENTRENAR_SIMD", "avx2")
        .output()
        .map_err(|e| format!("cannot run valgrind: {e}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b));
    if !output.status.success() {
        return Err(format!("{name} under callgrind: {}", err.trim()));
    }
    if !out.contains("\"simd\":\"avx2\"") {
        return Err(format!(
            "{name} did not run at the AVX2 level: {}",
            out.trim()
        ));
    }
    collected(&err).ok_or_else(|| format!("{name}: callgrind printed no count: {}", err.trim()))
}

/// The number behind `Collected :`.
fn collected(text: &str) -> Option<u64> {
    let (_, after) = text.split_once("Collected :")?;
    after.split_whitespace().next()?.parse().ok()
}

/// What the file holds.
fn file(counts: &[(&str, u64)]) -> Value {
    let per_call: serde_json::Map<String, Value> = counts
        .iter()
        .map(|(name, n)| (name.to_string(), json!(n)))
        .collect();
    json!({
        "about": "instructions of one warm call on one thread at the AVX2 level, as callgrind counts them; renew with `cargo xtask instructions --record`",
        "instructions": per_call,
    })
}

/// The outcome for one workload.
#[derive(Debug)]
struct Verdict {
    failed: bool,
    line: String,
}

fn compare(text: &str, counts: &[(&str, u64)]) -> Result<Vec<Verdict>, String> {
    let file: Value = serde_json::from_str(text).map_err(|e| format!("{BASELINE}: {e}"))?;
    let verdict = |&(name, now): &(&str, u64)| {
        let before = file["instructions"][name].as_u64().filter(|n| *n > 0);
        let before = before.ok_or_else(|| {
            format!("{BASELINE} has no count of {name}: run cargo xtask instructions --record")
        })?;
        let change = 100.0 * (now as f64 / before as f64 - 1.0);
        let failed = now as f64 > before as f64 * (1.0 + MARGIN / 100.0);
        let word = match () {
            () if failed => format!("  TOO MANY: at most {MARGIN} % more are allowed"),
            () if change < -MARGIN => "  fewer: record anew, so that the gain is kept".into(),
            () => String::new(),
        };
        let line = format!("{name:<8} {now:>12} instructions a call, {change:+.1} %{word}");
        Ok(Verdict { failed, line })
    };
    counts.iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_over_the_margin_fails_and_a_fall_asks_for_a_new_record() {
        let before = file(&[("a", 1000), ("b", 1000), ("c", 1000)]).to_string();
        let now = [("a", 1100), ("b", 1101), ("c", 800)];
        let verdicts = compare(&before, &now).unwrap();
        let failed: Vec<bool> = verdicts.iter().map(|v| v.failed).collect();
        assert_eq!(failed, [false, true, false]);
        assert!(
            verdicts[1].line.contains("+10.1 %  TOO MANY"),
            "{}",
            verdicts[1].line
        );
        assert!(
            verdicts[2].line.contains("-20.0 %  fewer"),
            "{}",
            verdicts[2].line
        );
    }

    #[test]
    fn a_workload_without_a_count_is_an_error() {
        let before = file(&[("a", 0)]).to_string();
        assert!(
            compare(&before, &[("a", 5)])
                .unwrap_err()
                .contains("--record")
        );
        assert!(compare(&before, &[("b", 5)]).is_err());
        assert!(compare("no JSON", &[]).unwrap_err().contains(BASELINE));
    }

    #[test]
    fn the_count_is_read_from_callgrinds_words() {
        let text = "==12== Events    : Ir\n==12== Collected : 137884528\n==12==\n";
        assert_eq!(collected(text), Some(137_884_528));
        assert_eq!(collected("nothing"), None);
    }

    #[test]
    fn the_executable_is_the_one_named_bench() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"bench"},"executable":"/t/bench"}"#,
            "\nnot JSON\n",
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/bench")));
        assert_eq!(executable(""), None);
    }
}
