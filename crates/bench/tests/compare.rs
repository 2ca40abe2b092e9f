//! The comparison script `bench/compare.py` with a reference script made here and a stand-in for
//! PyTorch: which variants run, what is judged, what is said when something is missing.
//!
//! Skipped, with the reason printed, where there is no Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A script of the form of the PyTorch one: two variants of one workload. Each notes in the file
/// `ran` that its step ran.
const SCRIPT: &str = r#"
import json, os
import torch
W = {}
def w(f): W[f.__name__] = f; return f
def timeit(step, warm=3, reps=10, budget=40.0):
    return step(), 0.001, reps
def out(name, r, **fields):
    print(json.dumps(dict(workload=name, median_s=r[0], min_s=r[1], n=r[2], peak_mb=100, **fields)))
@w
def tinyop():
    for amp in (False, True):
        def step():
            with open(os.path.join(os.path.dirname(__file__), 'ran'), 'a') as f: f.write(f'{amp} ')
            return 1000.0 if amp else 2000.0
        out('tinyop_16_fwd_bwd', timeit(step), amp=amp)
"#;

fn python() -> Option<&'static str> {
    let found = ["python3", "python"].into_iter().find(|name| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|o| o.status.success())
    });
    if found.is_none() {
        println!("skipped: there is no Python");
    }
    found
}

struct Folder {
    folder: tempfile::TempDir,
    python: &'static str,
}

impl Folder {
    /// A folder with the script and a module `torch` of this text.
    fn new(torch: &str) -> Option<Folder> {
        let python = python()?;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("torch.py"), torch).unwrap();
        fs::write(folder.path().join("script.py"), SCRIPT).unwrap();
        Some(Folder { folder, python })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let script = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../bench/compare.py"
        ));
        Command::new(self.python)
            .arg(script)
            .args([
                "--entrenar",
                env!("CARGO_BIN_EXE_bench"),
                "--python",
                self.python,
            ])
            .arg("--reference")
            .arg(self.path("script.py"))
            .arg("--output")
            .arg(self.path("results"))
            .args(arguments)
            .env("PYTHONPATH", self.folder.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .unwrap()
    }

    /// The rows of a comparison of these measurements.
    fn judge(&self, measured: Value) -> (Vec<Value>, Output) {
        let file = json!({
            "machine": {"processor": "none", "cores": 1},
            "pytorch": {"torch": "none", "peak_mb": 60},
            "when": "today",
            "measured": measured,
        });
        let path = self.path("measured.json");
        fs::write(&path, file.to_string()).unwrap();
        let output = self.run(&["--from", path.to_str().unwrap()]);
        let text = fs::read_to_string(self.path("results/compare.json")).unwrap();
        let result: Value = serde_json::from_str(&text).unwrap();
        (result["rows"].as_array().unwrap().clone(), output)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_variant_runs_alone_and_the_best_is_compared() {
    let Some(folder) = Folder::new("__version__ = 'stand-in'\n") else {
        return;
    };
    let output = folder.run(&["tinyop", "--rounds", "2", "--reps", "1"]);
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(said.ends_with("1 of 1 goals met\n"), "{said}");
    assert!(
        said.contains("1e+03 s amp") || said.contains("1000 s amp"),
        "{said}"
    );
    let result = fs::read_to_string(folder.path("results/compare.json")).unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["pytorch"]["torch"], "stand-in");
    let row = result["rows"].as_array().unwrap().last().unwrap();
    assert_eq!(row["pytorch"]["median_s"], 1000.0);
    assert_eq!(row["met"], true);
    assert!(row["entrenar"]["peak_mb"].as_u64().unwrap() < 1000);
    // The list of variants runs none of them; then each ran once per round.
    let mut ran = fs::read_to_string(folder.path("ran")).unwrap();
    ran.pop();
    let mut ran: Vec<&str> = ran.split(' ').collect();
    ran.sort_unstable();
    assert_eq!(ran, ["False", "False", "True", "True"]);
    let picture = fs::read_to_string(folder.path("results/compare.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("tinyop_16_fwd_bwd"));
}

#[test]
fn what_is_missing_is_named() {
    let Some(folder) = Folder::new("raise ImportError('none here')\n") else {
        return;
    };
    let fails = |arguments: &[&str], part: &str| {
        let output = folder.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    };
    fails(&["tinyop"], "cannot load PyTorch");
    fails(&["tinyop"], "--python PATH");
    fails(&["nonsense"], "no workload `nonsense`; the groups are cnn");
    fails(
        &["tinyop", "--entrenar", "absent"],
        "cargo build --release -p entrenar-bench",
    );
    fails(&["--from", "absent.json"], "absent.json");
    // Without PyTorch our side can still be measured.
    let output = folder.run(&["tinyop", "--alone", "--rounds", "1", "--reps", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("0 of 0 goals met"));
}

fn record(side: &str, label: &str, f32: bool, seconds: f64, peak: u64) -> Value {
    json!({"side": side, "label": label, "f32": f32, "runs": [
        {"median_s": seconds, "min_s": seconds, "n": 1, "peak_mb": peak, "baseline_mb": 4},
        {"median_s": 1.5 * seconds, "min_s": 1.4 * seconds, "n": 1, "peak_mb": peak - 1, "baseline_mb": 4},
        {"median_s": 0.9 * seconds, "min_s": 0.8 * seconds, "n": 1, "peak_mb": peak, "baseline_mb": 4},
    ]})
}

#[test]
fn f32_and_best_are_judged_apart_with_their_memory() {
    let Some(folder) = Folder::new("") else {
        return;
    };
    let records = [
        record("entrenar", "f32", true, 0.800, 400),
        record("entrenar", "bf16", false, 0.390, 501),
        record("pytorch", "eager", true, 1.000, 1000),
        record("pytorch", "amp+compile", false, 0.511, 1000),
    ];
    let (rows, output) = folder.judge(json!({"gpt_6L384d_T256_B8": records}));
    let [plain, best] = rows.as_slice() else {
        panic!("{rows:?}");
    };
    // The median of the three rounds is the first, whatever the outliers are.
    assert_eq!(plain["entrenar"]["median_s"], 0.8);
    assert_eq!(plain["pytorch"]["label"], "eager");
    assert!((plain["goal"].as_f64().unwrap() - 700.0 / 869.0).abs() < 1e-12);
    assert_eq!(
        (&plain["met"], &plain["memory_met"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(best["entrenar"]["label"], "bf16");
    assert_eq!(best["pytorch"]["label"], "amp+compile");
    assert_eq!(
        (&best["met"], &best["memory_met"]),
        (&json!(true), &json!(false))
    );
    assert!((best["memory_ratio_net"].as_f64().unwrap() - 497.0 / 940.0).abs() < 1e-12);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("memory MISSED by 0 %") && said.ends_with("3 of 4 goals met\n"),
        "{said}"
    );
}

#[test]
fn a_strict_goal_is_missed_at_equal_times() {
    let Some(folder) = Folder::new("") else {
        return;
    };
    let both = |ours: f64| {
        let sides = [
            record("entrenar", "f32", true, ours, 40),
            record("pytorch", "eager", true, 1e-3, 90),
        ];
        folder.judge(json!({"ew_add": sides})).0[0]["met"].clone()
    };
    assert_eq!(both(1e-3), false);
    assert_eq!(both(0.999e-3), true);
}
