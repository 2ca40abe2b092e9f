//! What a run leaves. Neighbour: `mod.rs` runs the binary.

use std::path::Path;

use serde_json::Value;

/// The lines of `metrics.jsonl` without what depends on the clock.
pub fn metrics(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            let fields = value.as_object_mut().unwrap();
            for clock in ["seconds", "tokens_per_second", "samples_per_second"] {
                fields.shift_remove(clock);
            }
            value.to_string()
        })
        .collect()
}
