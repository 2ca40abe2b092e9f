//! The memory of adapters is counted in a process of its own: other tests would be counted too.

use std::process::Command;

#[test]
fn a_plan_is_what_is_counted_and_saves_what_is_promised() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg("memory-qlora")
        .output()
        .unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b));
    // Status 1 where a plan is off by more than 2 % or a saving is missed.
    assert!(output.status.success(), "{err}");
    let counted = out.lines().filter(|line| line.ends_with("counted"));
    assert_eq!(counted.count(), 2, "{out}");
    assert!(out.lines().any(|line| line.ends_with("planned")), "{out}");
}
