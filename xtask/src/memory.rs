//! The kernels' tests under a memory checker: `cargo xtask memory address|valgrind`.
//!
//! `address` builds the crates that hold `unsafe` with the compiler's address sanitizer and runs
//! their tests at every instruction set of this machine. The sanitizer's runtime comes with the
//! stable toolchain but its flag is not stable, hence `RUSTC_BOOTSTRAP`. `valgrind` runs a part of
//! the same tests, those of kernels with `unsafe` code, at the AVX2 level: it needs no flag, sees
//! uninitialised values too, knows no AVX-512 and takes 50 times as long.
//!
//! Both set `--cfg memory_check`, under which arrays come from the system allocator, each exactly
//! as long as asked for: the cache's blocks have room at their end where an overrun goes unseen.
//! The tests of the cache itself are left out for that reason. Neither sees what assembly reads and
//! writes: the kernels of tile registers are checked by their results alone.

use std::path::PathBuf;
use std::process::Command;

use crate::Outcome;
use crate::project::root;

/// Crates with unsafe code.
const PACKAGES: [&str; 2] = ["entrenar-base", "entrenar-cpu"];
/// Tests of what the configuration replaces, and of timing.
const WITHOUT: [&str; 2] = ["alloc::", "workers_wake_after_sleeping"];
/// What valgrind runs: names of modules whose kernels hold unsafe code.
const UNDER_VALGRIND: [&str; 9] = [
    "array::",
    "storage::",
    "mapped::",
    "copy::",
    "cast::",
    "gemm::",
    "matmul::",
    "product::",
    "optim::",
];

/// The task.
pub fn run(arguments: &[String]) -> Result<Outcome, String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["address"] => address(),
        ["valgrind"] => valgrind(),
        _ => Err("memory takes one word: address or valgrind".into()),
    }
}

fn address() -> Result<Outcome, String> {
    let triple = host_triple()?;
    for level in ["avx512", "avx2", "baseline"] {
        println!("memory: address sanitizer at {level} or the best below");
        let mut command = tests("address");
        command
            .args(["--target", &triple])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "--cfg memory_check -Zsanitizer=address")
            // What lives as long as the process is no leak; tests ask for more memory than there is.
            .env("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
            .env("ENTRENAR_SIMD", level)
            .env("PROPTEST_CASES", "64");
        if !passes(command.arg("--").args(skipped()))? {
            return Ok(Outcome::Failed);
        }
    }
    Ok(Outcome::Clean)
}

fn valgrind() -> Result<Outcome, String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Err("valgrind is missing: install the package `valgrind`".into());
    }
    let triple = host_triple()?;
    let runner = format!(
        "CARGO_TARGET_{}_RUNNER",
        triple.to_uppercase().replace('-', "_")
    );
    let mut command = tests("memory");
    command
        .args(["--target", &triple])
        .env("RUSTFLAGS", "--cfg memory_check")
        // Threads take turns under valgrind: without fair ones a spinning worker starves the rest.
        .env(
            runner,
            "valgrind --quiet --error-exitcode=9 --fair-sched=yes",
        )
        .env("ENTRENAR_SIMD", "avx2")
        .env("ENTRENAR_THREADS", "2")
        .env("PROPTEST_CASES", "4");
    let passed = passes(command.arg("--").args(UNDER_VALGRIND).args(skipped()))?;
    Ok(if passed {
        Outcome::Clean
    } else {
        Outcome::Failed
    })
}

/// `cargo test` of the packages in a target folder of its own: the flags differ.
fn tests(folder: &str) -> Command {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root())
        .args(["test", "--quiet", "--tests"]);
    command.arg("--target-dir").arg(target.join(folder));
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    command
}

fn skipped() -> impl Iterator<Item = &'static str> {
    WITHOUT.into_iter().flat_map(|name| ["--skip", name])
}

fn passes(command: &mut Command) -> Result<bool, String> {
    let status = command
        .status()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    Ok(status.success())
}

/// The triple that this machine's toolchain builds for.
fn host_triple() -> Result<String, String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .map_err(|e| format!("cannot run rustc: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_string)
        .ok_or_else(|| "rustc -vV names no host".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_words_is_needed() {
        for words in [
            vec![],
            vec!["leaks".to_string()],
            vec!["address".into(), "now".into()],
        ] {
            assert!(run(&words).unwrap_err().contains("address or valgrind"));
        }
    }

    #[test]
    fn the_toolchain_names_its_host() {
        assert!(host_triple().unwrap().split('-').count() >= 3);
    }

    /// A filter that matches nothing would check nothing.
    #[test]
    fn the_modules_under_valgrind_exist() {
        for name in UNDER_VALGRIND {
            let module = name.trim_end_matches(':');
            let found = ["base", "cpu"].iter().any(|home| {
                let src = root().join("crates").join(home).join("src");
                src.join(format!("{module}.rs")).exists()
                    || src.join(module).join("mod.rs").exists()
            });
            assert!(found, "{name}");
        }
    }
}
