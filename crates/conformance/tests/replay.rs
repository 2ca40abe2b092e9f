//! The binary on small suites made here, and on the recorded suite where it is present.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use entrenar_base::Array;
use entrenar_io::safetensors::write_safetensors;
use serde_json::{Value, json};

fn tensor(key: &str) -> Value {
    json!({"tensor": key, "bool": false})
}

/// y = x² at x = (1, −2, 3): cotangent (1, 10, 100), v (1, 1, 2), tangent (1, 0, 1).
fn square_case(op: &str, vjp: &str) -> Value {
    json!({
        "op": op, "variant": "", "sample": 0,
        "input": tensor("x"), "args": [], "kwargs": {},
        "outputs": [tensor("y")],
        "cotangents": [{"output": 0, "tensor": "cot", "bool": false}],
        "vjp": [{"of": "x", "grad": tensor(vjp)}],
        "second": {
            "v": [{"of": "x", "tensor": "v", "bool": false}],
            "grad": [{"of": "x", "grad": tensor("second")}],
        },
        "jvp": {
            "tangents": [{"of": "x", "tensor": "tan", "bool": false}],
            "out": [{"output": 0, "tensor": "jvp", "bool": false}],
        },
    })
}

fn numbers() -> BTreeMap<&'static str, [f64; 3]> {
    BTreeMap::from([
        ("x", [1.0, -2.0, 3.0]),
        ("y", [1.0, 4.0, 9.0]),
        ("cot", [1.0, 10.0, 100.0]),
        ("vjp", [2.0, -40.0, 600.0]),
        ("wrong", [2.0, -40.0, 600.001]),
        ("v", [1.0, 1.0, 2.0]),
        ("second", [2.0, 20.0, 400.0]),
        ("tan", [1.0, 0.0, 1.0]),
        ("jvp", [2.0, 0.0, 6.0]),
    ])
}

fn suite(directory: &Path, cases: &[Value]) {
    let arrays: Vec<(&str, Array)> = numbers()
        .into_iter()
        .map(|(k, v)| (k, Array::from_slice(&v, [3]).unwrap()))
        .collect();
    let path = directory.join("tensors.safetensors");
    write_safetensors(&path, &arrays, &Default::default()).unwrap();
    let text = json!({"torch": "none", "dtype": "float64", "cases": cases}).to_string();
    std::fs::write(directory.join("cases.json"), text).unwrap();
}

fn run(arguments: &[&str], directory: &Path) -> (String, Output) {
    let output = Command::new(env!("CARGO_BIN_EXE_conformance"))
        .arg("opinfo")
        .arg(directory)
        .args(arguments)
        .output()
        .unwrap();
    (String::from_utf8(output.stdout.clone()).unwrap(), output)
}

fn replay(cases: &[Value]) -> (String, i32) {
    let directory = tempfile::tempdir().unwrap();
    suite(directory.path(), cases);
    let (text, output) = run(&[], directory.path());
    (text, output.status.code().unwrap())
}

#[test]
fn right_numbers_pass_in_all_four_kinds() {
    let (text, status) = replay(&[square_case("square", "vjp")]);
    assert_eq!(status, 0, "{text}");
    assert!(
        text.ends_with("\n1 passed, 0 failed, 0 skipped\n"),
        "{text}"
    );
    let row = text.lines().find(|l| l.starts_with("square")).unwrap();
    assert_eq!(row.matches("1/0/0").count(), 4, "{row}");
}

#[test]
fn a_wrong_number_in_any_kind_fails_with_its_place() {
    let (text, status) = replay(&[square_case("square", "wrong")]);
    assert_eq!(status, 1, "{text}");
    assert!(
        text.ends_with("\n0 passed, 1 failed, 0 skipped\n"),
        "{text}"
    );
    let place = "square sample 0 vjp: gradient of tensor 0: element 2 of [3]: 6e2 instead of";
    assert!(text.contains(place), "{text}");

    for key in [
        "/outputs/0/tensor",
        "/jvp/out/0/tensor",
        "/second/grad/0/grad/tensor",
    ] {
        let mut case = square_case("square", "vjp");
        *case.pointer_mut(key).unwrap() = json!("wrong");
        let (text, status) = replay(&[case]);
        assert_eq!(status, 1, "{key}: {text}");
        assert!(
            text.ends_with("\n0 passed, 1 failed, 0 skipped\n"),
            "{text}"
        );
    }
}

/// A gradient that the suite says does not exist must be zero.
#[test]
fn an_absent_gradient_is_zero() {
    let mut case = square_case("square", "vjp");
    case["vjp"][0]["grad"] = Value::Null;
    assert_eq!(replay(&[case]).1, 1);
    let mut case = square_case("floor", "vjp");
    case["vjp"][0]["grad"] = Value::Null;
    case["outputs"] = json!([tensor("x")]);
    case.as_object_mut().unwrap().remove("second");
    case.as_object_mut().unwrap().remove("jvp");
    assert_eq!(replay(&[case]).1, 0);
}

#[test]
fn what_is_not_supported_is_listed_and_skipped() {
    let mut keyword = square_case("square", "vjp");
    keyword["kwargs"] = json!({"unheard_of": {"value": 1}});
    let (text, status) = replay(&[
        square_case("no.such.operation", "vjp"),
        square_case("square", "vjp"),
        keyword,
    ]);
    assert_eq!(status, 0, "{text}");
    assert!(
        text.ends_with("\n1 passed, 0 failed, 2 skipped\n"),
        "{text}"
    );
    let unsupported = text.split("not supported:").nth(1).unwrap();
    for line in [
        "no.such.operation: no such operation in the table (1 case)",
        "square: argument `unheard_of` (1 case)",
    ] {
        assert!(unsupported.contains(line), "{text}");
    }
    let row = text.lines().find(|l| l.starts_with("no.such")).unwrap();
    assert_eq!(row.matches("0/0/1").count(), 4, "{row}");
}

/// An error of the library is a failure, not a reason to skip.
#[test]
fn an_error_while_running_fails() {
    let mut case = square_case("square", "vjp");
    case["op"] = json!("unsqueeze");
    case["args"] = json!([{"value": 7}]);
    let (text, status) = replay(&[case]);
    assert_eq!(status, 1, "{text}");
    assert!(
        text.contains("unsqueeze sample 0 forward: [unsqueeze] expected"),
        "{text}"
    );
}

#[test]
fn a_broken_suite_ends_with_two() {
    let directory = tempfile::tempdir().unwrap();
    let status = |text: &str| {
        suite(directory.path(), &[]);
        std::fs::write(directory.path().join("cases.json"), text).unwrap();
        let (_, output) = run(&[], directory.path());
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("cases.json"), "{message}");
        output.status.code().unwrap()
    };
    assert_eq!(status("{"), 2);
    assert_eq!(status(r#"{"cases": [{"op": "abs"}]}"#), 2);
    let mut unknown = square_case("square", "vjp");
    unknown["input"] = tensor("absent");
    assert_eq!(status(&json!({"cases": [unknown]}).to_string()), 2);
    let mut stranger = square_case("square", "vjp");
    stranger["vjp"][0]["of"] = json!("y");
    assert_eq!(status(&json!({"cases": [stranger]}).to_string()), 2);
    let mut far = square_case("square", "vjp");
    far["cotangents"][0]["output"] = json!(1);
    assert_eq!(status(&json!({"cases": [far]}).to_string()), 2);
    std::fs::remove_file(directory.path().join("cases.json")).unwrap();
    assert_eq!(run(&[], directory.path()).1.status.code(), Some(2));
}

/// A case with a dtype that arrays do not hold is skipped, not the whole suite.
#[test]
fn a_foreign_dtype_is_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let header = r#"{"x":{"dtype":"I16","shape":[1],"data_offsets":[0,2]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([7, 0]);
    std::fs::write(directory.path().join("tensors.safetensors"), bytes).unwrap();
    let case = json!({"op": "abs", "input": tensor("x"), "outputs": [tensor("x")]});
    let text = json!({"cases": [case]}).to_string();
    std::fs::write(directory.path().join("cases.json"), text).unwrap();
    let (text, output) = run(&[], directory.path());
    assert!(output.status.success(), "{text}");
    assert!(text.contains("abs: dtype I16 (1 case)"), "{text}");
    assert!(
        text.ends_with("\n0 passed, 0 failed, 1 skipped\n"),
        "{text}"
    );
}

/// In smaller types the arithmetic is compared with f64 at the rounded inputs.
#[test]
fn smaller_types_run_at_rounded_inputs() {
    let directory = tempfile::tempdir().unwrap();
    suite(directory.path(), &[square_case("square", "vjp")]);
    for dtype in ["f32", "bf16"] {
        let (text, output) = run(&["--dtype", dtype, "--errors"], directory.path());
        assert!(output.status.success(), "{text}");
        let errors = text.lines().find(|l| l.contains("largest error")).unwrap();
        // x² of these numbers is exact in bf16; 2·100·3 is not.
        assert!(errors.contains("0.0e0"), "{errors}");
        assert!(
            text.ends_with("\n1 passed, 0 failed, 0 skipped\n"),
            "{text}"
        );
    }
    let (_, output) = run(&["--dtype", "i64"], directory.path());
    assert_eq!(output.status.code(), Some(2));
}

/// Every recorded case in every type: nothing fails, and enough is supported.
#[test]
fn the_recorded_suite_has_no_failure() {
    let directory = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/conformance/opinfo"
    ));
    if !directory.exists() {
        println!("skipped: {} is absent", directory.display());
        return;
    }
    for dtype in ["f64", "f32", "bf16"] {
        let (text, output) = run(&["--dtype", dtype], directory);
        assert!(output.status.success(), "{dtype}: {text}");
        let closing = text.lines().last().unwrap();
        let counts: Vec<usize> = closing
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        let [passed, 0, skipped] = counts[..] else {
            panic!("{dtype}: {closing}");
        };
        assert_eq!(passed + skipped, 915, "{dtype}: {closing}");
        assert!(passed >= 900, "{dtype}: {closing}");
    }
}
