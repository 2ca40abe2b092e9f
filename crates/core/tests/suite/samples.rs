//! What the samples of the registry reach, and of which operations every entry consists.
//!
//! The checks over the registry are as good as its samples: a generator that lost a sign or a
//! dimension would leave them green. `tests/data/samples.txt` says for each entry what 60 cases
//! draw (inputs with their ranks, numbers of elements and bounds, results with their size) and
//! which operations run forward and backward, by name. Samples follow from their seed alone, so
//! the table is the same on every machine, and so is a case whose number a failure reports. It
//! says what is drawn, not what is right: that is for the checks of `registry.rs` and the values
//! of PyTorch.
//!
//! After a deliberate change: `ENTRENAR_BLESS=1 cargo test -p entrenar-core samples`, then read
//! the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use entrenar_core::autograd::{CheckpointPolicy, checkpoint_with, vjp};
use entrenar_core::registry::{Entry, Gen, Sample, operations};
use entrenar_core::{Result, Tensor};

const CASES: u64 = 60;

/// The samples of entry number `k`.
fn samples(k: usize, entry: &Entry) -> Vec<Sample> {
    (0..CASES)
        .map(|case| {
            let mut g = Gen::new(case, k as u64);
            (entry.sample)(&mut g).unwrap_or_else(|e| panic!("{} case {case}: {e}", entry.name))
        })
        .collect()
}

fn refs(t: &[Tensor]) -> Vec<&Tensor> {
    t.iter().collect()
}

/// What tensors of one place have in common over all cases.
struct Seen {
    tensors: usize,
    dtypes: BTreeSet<&'static str>,
    ranks: (usize, usize),
    elements: usize,
    empty: usize,
    rearranged: usize,
    bounds: (f64, f64),
    size: f64,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            tensors: 0,
            dtypes: BTreeSet::new(),
            ranks: (usize::MAX, 0),
            elements: 0,
            empty: 0,
            rearranged: 0,
            bounds: (f64::INFINITY, f64::NEG_INFINITY),
            size: 0.0,
        }
    }
}

impl Seen {
    fn add(&mut self, t: &Tensor) {
        self.tensors += 1;
        self.dtypes.insert(t.dtype().name());
        self.ranks = (self.ranks.0.min(t.rank()), self.ranks.1.max(t.rank()));
        self.elements += t.numel();
        self.empty += usize::from(t.numel() == 0);
        self.rearranged += usize::from(!t.array().layout().is_contiguous());
        for v in t.array().to_f64_vec() {
            self.bounds = (self.bounds.0.min(v), self.bounds.1.max(v));
            self.size += v.abs();
        }
    }

    fn dtypes(&self) -> String {
        self.dtypes.iter().copied().collect::<Vec<_>>().join(" or ")
    }

    fn input(&self) -> String {
        format!(
            "{} x {}, rank {} to {}, {} elements in [{:.1}, {:.1}], {} empty, {} rearranged",
            self.tensors,
            self.dtypes(),
            self.ranks.0,
            self.ranks.1,
            self.elements,
            self.bounds.0,
            self.bounds.1,
            self.empty,
            self.rearranged
        )
    }

    /// Three digits: summation in another order must not show.
    fn output(&self) -> String {
        format!(
            "{} x {}, rank {} to {}, {} elements, mean size {:.2e}",
            self.tensors,
            self.dtypes(),
            self.ranks.0,
            self.ranks.1,
            self.elements,
            self.size / self.elements.max(1) as f64
        )
    }
}

/// The names of all operations that `f` runs on `inputs`, sorted: a checkpoint's policy hears of
/// each one, also of those that a gradient taken inside runs.
fn names(
    f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    inputs: &[&Tensor],
) -> BTreeSet<String> {
    let heard: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let notes = heard.clone();
    let policy: CheckpointPolicy = Arc::new(move |name, _| {
        notes.lock().unwrap().insert(name.to_string());
        false
    });
    checkpoint_with(f, inputs, Some(policy)).unwrap();
    let heard = heard.lock().unwrap();
    heard.clone()
}

/// Names of the operations of a sample: forward, and those that its gradients add.
fn operations_of(sample: Sample) -> (BTreeSet<String>, BTreeSet<String>) {
    let Sample {
        inputs,
        function,
        order,
        ..
    } = sample;
    let function = Arc::new(function);
    let count = inputs.len();
    let f = function.clone();
    let forward = names(move |t| f(t), &refs(&inputs));
    if order == 0 {
        return (forward, BTreeSet::new());
    }
    // Cotangents come in as inputs too: an operation on plain values is heard of by nobody.
    let mut all = inputs.clone();
    all.extend(function(&inputs).unwrap().iter().map(Tensor::ones_like));
    let both = names(
        move |t| {
            let (_, pullback) = vjp(|t| function(t), &refs(&t[..count]))?;
            pullback.call(&refs(&t[count..]))
        },
        &refs(&all),
    );
    let backward = both.difference(&forward).cloned().collect();
    (forward, backward)
}

/// The lines of the table about one entry.
fn describe(k: usize, entry: &Entry) -> String {
    let mut inputs: BTreeMap<usize, Seen> = BTreeMap::new();
    let mut outputs: BTreeMap<usize, Seen> = BTreeMap::new();
    let mut orders: BTreeMap<u8, usize> = BTreeMap::new();
    let mut runs = BTreeSet::new();
    let mut back = BTreeSet::new();
    for (case, sample) in samples(k, entry).into_iter().enumerate() {
        for (i, t) in sample.inputs.iter().enumerate() {
            inputs.entry(i).or_default().add(t);
        }
        for (j, t) in (sample.function)(&sample.inputs)
            .unwrap_or_else(|e| panic!("{} case {case}: {e}", entry.name))
            .iter()
            .enumerate()
        {
            outputs.entry(j).or_default().add(t);
        }
        *orders.entry(sample.order).or_default() += 1;
        let (forward, backward) = operations_of(sample);
        runs.extend(forward);
        back.extend(backward);
    }
    let mut text = format!("{} ({})\n", entry.name, entry.kind);
    for (i, seen) in &inputs {
        writeln!(text, "  input {i}: {}", seen.input()).unwrap();
    }
    for (j, seen) in &outputs {
        writeln!(text, "  output {j}: {}", seen.output()).unwrap();
    }
    let orders: Vec<String> = orders.iter().map(|(o, n)| format!("{o} in {n}")).collect();
    writeln!(text, "  order: {}", orders.join(", ")).unwrap();
    let line = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(" ");
    writeln!(text, "  runs: {}", line(runs)).unwrap();
    if !back.is_empty() {
        writeln!(text, "  backward: {}", line(back)).unwrap();
    }
    text
}

#[test]
fn samples_reach_what_their_table_says() {
    let mut found = String::new();
    for (k, entry) in operations().iter().enumerate() {
        found += &describe(k, entry);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/samples.txt");
    if std::env::var_os("ENTRENAR_BLESS").is_some() {
        std::fs::write(path, &found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap();
    for (f, e) in found.lines().zip(expected.lines()) {
        assert_eq!(f, e, "samples changed; see the head of {}", file!());
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

/// What the table must show of every entry, whoever blesses it.
#[test]
fn samples_cover_empty_rearranged_and_several_sizes() {
    let mut failures = Vec::new();
    let (mut empty, mut rearranged) = (0, 0);
    for (k, entry) in operations().iter().enumerate() {
        let mut shapes = BTreeSet::new();
        let (mut rows, mut full) = (0, 0);
        for sample in samples(k, entry) {
            let outputs = (sample.function)(&sample.inputs).unwrap();
            assert!(!outputs.is_empty(), "{} returns nothing", entry.name);
            shapes.insert(format!(
                "{:?}",
                sample.inputs.iter().map(Tensor::aval).collect::<Vec<_>>()
            ));
            rows += usize::from(
                sample
                    .inputs
                    .iter()
                    .any(|t| !t.array().layout().is_contiguous()),
            );
            full += usize::from(outputs[0].numel() > 0);
            empty += usize::from(outputs[0].numel() == 0);
        }
        rearranged += usize::from(rows > 0);
        // Entries without inputs in random layouts take integers only.
        if shapes.len() < 5 || full * 3 < CASES as usize {
            failures.push(format!(
                "{}: {} shapes, {full} results with elements",
                entry.name,
                shapes.len()
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(empty > 100, "{empty} empty results");
    assert!(rearranged > 100, "{rearranged} entries with strided inputs");
}

/// An operation that runs has a name in the form that messages and tables use, and an entry that
/// is an operation of its own runs under the entry's name.
#[test]
fn operations_run_under_the_names_of_their_entries() {
    let mut heard = BTreeMap::new();
    for (k, entry) in operations().iter().enumerate() {
        let mut all = BTreeSet::new();
        for sample in samples(k, entry).into_iter().take(12) {
            let (forward, backward) = operations_of(sample);
            all.extend(forward);
            all.extend(backward);
        }
        heard.insert(entry.name, all);
    }
    let everywhere: BTreeSet<&String> = heard.values().flatten().collect();
    let well_formed = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    for name in &everywhere {
        assert!(well_formed(name), "an operation is named {name:?}");
    }
    let mut own = 0;
    for (entry, names) in &heard {
        assert!(well_formed(entry), "an entry is named {entry:?}");
        if everywhere.iter().any(|n| n == entry) {
            assert!(names.contains(*entry), "{entry} runs {names:?}");
            own += 1;
        }
    }
    assert!(own > 150, "only {own} entries name an operation");
}
