//! Every operation of the registry at the size of its samples, in f32: what a call costs. A new
//! operation is timed from the day it is registered.

use entrenar_base::{DType, Error, Result};
use entrenar_core::registry::{Entry, Gen, Sample, operations};

use super::Subject;

/// Samples drawn per operation; the largest that can be differentiated is timed.
const DRAWN: u64 = 24;

pub fn subjects(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Subject>> {
    let mut all = Vec::new();
    for entry in operations() {
        let name = format!("small/{}", entry.name);
        if wanted(&name) {
            all.push(subject(name, &entry)?);
        }
    }
    Ok(all)
}

fn subject(name: String, entry: &Entry) -> Result<Subject> {
    let mut best: Option<(usize, Sample)> = None;
    for stream in 0..DRAWN {
        let sample = (entry.sample)(&mut Gen::new(0, stream))?;
        // Those without derivatives only where no other was drawn.
        let size: usize = sample.inputs.iter().map(|t| t.numel()).sum();
        let rank = if sample.order > 0 { 1 + size } else { 0 };
        if best.as_ref().is_none_or(|(r, _)| rank > *r) {
            best = Some((rank, sample));
        }
    }
    let (_, sample) = best.ok_or_else(|| Error::argument(entry.name, "a sample", "none"))?;
    let inputs = Gen::cast_inputs(&sample, DType::F32);
    Subject::of_function(name, inputs, sample.function, sample.order > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_runs_once_in_both_ways() {
        let all = subjects(&|_| true).unwrap();
        assert_eq!(all.len(), operations().len());
        for subject in &all {
            let context = |e| panic!("{}: {e}", subject.name);
            (subject.forward)().unwrap_or_else(context);
            subject
                .step
                .as_ref()
                .map_or(Ok(()), |s| s())
                .unwrap_or_else(context);
        }
        let steps = all.iter().filter(|s| s.step.is_some()).count();
        assert!(
            steps * 10 > all.len() * 8,
            "{steps} of {} have a step",
            all.len()
        );
    }
}
