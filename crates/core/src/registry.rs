//! The list of operations, from which tests, tables and documentation follow.
//!
//! Each entry can draw random samples of itself: inputs with varied shapes, layouts and special
//! values, and the function to run on them. Nothing else needs to know an op in order to check
//! its derivatives of every order and mode, to replay it in another dtype or on more threads, or
//! to print it in the table of `cargo xtask ops`.

use entrenar_base::{Array, DType, Philox, Result, Shape};

use crate::Tensor;

/// What a sample runs.
pub type Function = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync>;

/// One random case of an operation.
pub struct Sample {
    /// f64 inputs (differentiated) and others (constants).
    pub inputs: Vec<Tensor>,
    /// The operation with its parameters fixed.
    pub function: Function,
    /// Highest derivative order that exists at these inputs (kinks and ties lower it).
    pub order: u8,
    /// Relative tolerance of derivatives in f64; 1e-6 unless the mathematics needs more.
    pub tolerance: f64,
}

impl Sample {
    /// A case with derivatives up to order 3 and the standard tolerance.
    pub fn new(
        inputs: Vec<Tensor>,
        function: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Sample {
        Sample {
            inputs,
            function: Box::new(function),
            order: 3,
            tolerance: 1e-6,
        }
    }

    /// A case with one output.
    pub fn one(
        inputs: Vec<Tensor>,
        function: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Sample {
        Self::new(inputs, move |t| Ok(vec![function(t)?]))
    }

    /// Limits the derivative order; 0 for ops without derivatives and for samples at ties.
    #[must_use]
    pub fn order(mut self, order: u8) -> Sample {
        self.order = order;
        self
    }

    /// States a wider tolerance.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Sample {
        self.tolerance = tolerance;
        self
    }
}

/// One operation of the library.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its public name.
    pub name: &'static str,
    /// The derivative kind: zero, linear, multilinear, pointwise, expand, explicit; `composed` for
    /// methods that consist of other ops.
    pub kind: &'static str,
    /// Draws a random case.
    pub sample: fn(&mut Gen) -> Result<Sample>,
}

/// All operations, in the order of the files in `ops/`.
pub fn operations() -> Vec<Entry> {
    crate::ops::ENTRIES
        .iter()
        .flat_map(|list| list.iter().copied())
        .collect()
}

/// A stream of random choices for samples.
pub struct Gen {
    rng: Philox,
    next: u64,
}

impl Gen {
    /// The stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Gen {
        Gen {
            rng: Philox::new(seed, stream),
            next: 0,
        }
    }

    /// A number in `low..high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        self.next += 1;
        low + self.rng.below(self.next, (high - low).max(1) as u64) as usize
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.range(0, n) == 0
    }

    /// One of the choices.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.range(0, choices.len())]
    }

    /// A number in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.next += 1;
        low + (high - low) * self.rng.uniform64(self.next)
    }

    /// A shape with a rank in `ranks`; sizes 1 to 4, now and then 0.
    pub fn shape(&mut self, ranks: std::ops::RangeInclusive<usize>) -> Shape {
        let rank = self.range(*ranks.start(), *ranks.end() + 1);
        let empty = self.once_in(25);
        let mut dims: Vec<usize> = (0..rank).map(|_| self.range(1, 5)).collect();
        if empty && rank > 0 {
            let at = self.range(0, rank);
            dims[at] = 0;
        }
        Shape::from(dims)
    }

    /// A pair of shapes that broadcast together.
    pub fn broadcast_pair(&mut self) -> (Shape, Shape) {
        let full = self.shape(0..=4);
        let shrink = |g: &mut Gen| {
            let skip = if full.rank() > 0 && g.once_in(4) {
                g.range(0, full.rank() + 1)
            } else {
                0
            };
            full[skip..]
                .iter()
                .map(|&d| if g.once_in(4) { 1 } else { d })
                .collect::<Shape>()
        };
        let a = shrink(self);
        let b = shrink(self);
        (a, b)
    }

    /// f64 values in [low, high), in a random layout: contiguous, offset, strided, transposed or
    /// flipped.
    pub fn tensor(&mut self, shape: impl Into<Shape>, low: f64, high: f64) -> Tensor {
        let shape = shape.into();
        self.laid_out(&shape, |g| g.uniform(low, high))
    }

    /// Values in [low, high) that keep `margin` away from each of `points` (kinks, poles).
    pub fn tensor_avoiding(
        &mut self,
        shape: impl Into<Shape>,
        low: f64,
        high: f64,
        points: &[f64],
        margin: f64,
    ) -> Tensor {
        let shape = shape.into();
        self.laid_out(&shape, |g| {
            loop {
                let v = g.uniform(low, high);
                if points.iter().all(|p| (v - p).abs() > margin) {
                    return v;
                }
            }
        })
    }

    /// Distinct values, at least 0.05 apart: no ties for sorting and maxima. All lie in the lower
    /// halves of cells of the grid of multiples of 0.1.
    pub fn tensor_distinct(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        self.next += 1;
        let order = self.rng.fork(self.next).permutation(shape.numel());
        let mut at = 0;
        self.laid_out(&shape, |g| {
            let k = order.get(at).copied().unwrap_or(0);
            at += 1;
            k as f64 * 0.1 - (order.len() / 2) as f64 * 0.1 + g.uniform(0.0, 0.05)
        })
    }

    /// i64 values in `0..limit`.
    pub fn indices(&mut self, shape: impl Into<Shape>, limit: usize) -> Tensor {
        let shape = shape.into();
        let values = (0..shape.numel())
            .map(|_| self.range(0, limit) as i64)
            .collect();
        Tensor::from(Array::from_vec::<i64>(values, shape).expect("counted"))
    }

    /// bool values.
    pub fn mask(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let values = (0..shape.numel()).map(|_| self.once_in(2)).collect();
        Tensor::from(Array::from_vec::<bool>(values, shape).expect("counted"))
    }

    fn laid_out(&mut self, shape: &Shape, mut value: impl FnMut(&mut Gen) -> f64) -> Tensor {
        let n = shape.numel();
        let values: Vec<f64> = (0..n).map(|_| value(self)).collect();
        let plain = Array::from_vec(values, shape.clone()).expect("counted");
        let rank = shape.rank();
        let style = self.range(0, 5);
        let array = match style {
            // Transposed storage.
            1 if rank >= 2 => {
                let (a, b) = (0isize, rank as isize - 1);
                plain
                    .transpose(a, b)
                    .and_then(|t| t.deep_copy().transpose(a, b))
                    .expect("valid")
            }
            // Every second element of a larger buffer, from an offset.
            2 if rank >= 1 && n > 0 => {
                let last = shape[rank - 1];
                let mut wide = shape.clone();
                wide.dims_mut()[rank - 1] = 2 * last + 1;
                let mut padded = Array::full(wide.clone(), f64::NAN);
                let source = plain.to_vec::<f64>().expect("f64");
                let slots = padded.make_mut::<f64>().expect("f64");
                for (i, v) in source.into_iter().enumerate() {
                    slots[i / last * (2 * last + 1) + 1 + 2 * (i % last)] = v;
                }
                padded.slice(rank - 1, 1, 2 * last + 1, 2).expect("inside")
            }
            // Walked backwards.
            3 if rank >= 1 => plain.flip(rank - 1).deep_copy().flip(rank - 1),
            _ => plain,
        };
        Tensor::from(array)
    }

    /// Casts the f64 inputs of a sample to `dtype`.
    pub fn cast_inputs(sample: &Sample, dtype: DType) -> Vec<Tensor> {
        sample
            .inputs
            .iter()
            .map(|t| {
                if t.dtype() == DType::F64 {
                    Tensor::from(t.array().cast(dtype))
                } else {
                    t.clone()
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::autograd::graph::Edge;
    use crate::tensor::Level;

    fn gens() -> impl Iterator<Item = Gen> {
        (0..400).map(|case| Gen::new(7, case))
    }

    #[test]
    fn ranges_reach_all_their_numbers_and_no_other() {
        let mut g = Gen::new(1, 2);
        let seen: BTreeSet<usize> = (0..200).map(|_| g.range(3, 7)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_eq!((g.range(3, 4), g.range(3, 3)), (3, 3));
        let picked: BTreeSet<i32> = (0..100).map(|_| g.pick(&[-1, 5, 9])).collect();
        assert_eq!(picked.into_iter().collect::<Vec<_>>(), [-1, 5, 9]);
        let hits = (0..1000).filter(|_| g.once_in(5)).count();
        assert!((150..250).contains(&hits), "{hits} of 1000 at one in five");
        let values: Vec<f64> = (0..1000).map(|_| g.uniform(-1.0, 3.0)).collect();
        assert!(values.iter().all(|v| (-1.0..3.0).contains(v)));
        let mean = values.iter().sum::<f64>() / 1000.0;
        assert!((mean - 1.0).abs() < 0.2, "{mean}");
        for part in 0..8 {
            let low = -1.0 + part as f64 * 0.5;
            let n = values
                .iter()
                .filter(|v| (low..low + 0.5).contains(*v))
                .count();
            assert!((80..180).contains(&n), "{n} of 1000 in an eighth");
        }
    }

    /// The number of a case names the same case in every run.
    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, stream| {
            let mut g = Gen::new(seed, stream);
            (0..20).map(|_| g.range(0, 1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
        let once = draw(1, 2);
        assert!(once.windows(2).any(|w| w[0] != w[1]));
    }

    #[test]
    fn shapes_have_every_rank_and_size() {
        let (mut ranks, mut sizes, mut empty) = (BTreeSet::new(), BTreeSet::new(), 0);
        for mut g in gens() {
            let shape = g.shape(1..=3);
            ranks.insert(shape.rank());
            sizes.extend(shape.iter().copied());
            let zeros = shape.iter().filter(|n| **n == 0).count();
            assert!(zeros <= 1, "{shape}");
            empty += zeros;
        }
        assert_eq!(ranks.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!((6..40).contains(&empty), "{empty} of 400 are empty");
        assert!(gens().all(|mut g| g.shape(0..=0).rank() == 0));
        let mut scalars = 0;
        for mut g in gens() {
            scalars += usize::from(g.shape(0..=4).rank() == 0);
        }
        assert!((50..120).contains(&scalars), "{scalars} of 400 are scalars");
    }

    #[test]
    fn pairs_broadcast_and_stretch_in_both_directions() {
        let (mut left, mut right, mut shorter, mut equal) = (0, 0, 0, 0);
        for mut g in gens() {
            let (a, b) = g.broadcast_pair();
            let joined = a.broadcast(&b, "pair").expect("a pair broadcasts");
            left += usize::from(a != joined);
            right += usize::from(b != joined);
            shorter += usize::from(a.rank() != b.rank());
            equal += usize::from(a == b);
            assert!(joined.rank() <= 4);
        }
        for n in [left, right, shorter, equal] {
            assert!(n > 60, "{left} {right} {shorter} {equal} of 400");
        }
    }

    /// Five layouts of the numbers that the stream gives in order.
    #[test]
    fn layouts_hold_the_drawn_numbers_in_order() {
        let (mut plain, mut offset, mut stepped, mut backward, mut turned) = (0, 0, 0, 0, 0);
        for (mut g, mut again) in gens().zip(gens()) {
            let t = g.tensor([2, 3, 4], -2.0, 2.0);
            let expected: Vec<f64> = (0..24).map(|_| again.uniform(-2.0, 2.0)).collect();
            assert_eq!(t.to_vec::<f64>().unwrap(), expected);
            let layout = t.array().layout();
            match layout.strides() {
                [12, 4, 1] if layout.offset() == 0 => plain += 1,
                [27, 9, 2] => {
                    stepped += 1;
                    offset += usize::from(layout.offset() == 1);
                }
                [12, 4, -1] => backward += 1,
                [1, 2, 6] => turned += 1,
                other => panic!("an unexpected layout {other:?}"),
            }
        }
        for n in [plain, stepped, backward, turned] {
            assert!(n > 40, "{plain} {stepped} {backward} {turned} of 400");
        }
        assert_eq!(offset, stepped);
        // Layouts of vectors, scalars and empty tensors exist too.
        for mut g in gens() {
            assert_eq!(g.tensor([3], 0.0, 1.0).numel(), 3);
            assert_eq!(g.tensor(Shape::scalar(), 0.0, 1.0).numel(), 1);
            assert_eq!(g.tensor([2, 0, 3], 0.0, 1.0).dims(), [2, 0, 3]);
            assert_eq!(g.tensor([2, 0], 0.0, 1.0).dims(), [2, 0]);
        }
        let strided = |shape: &[usize]| {
            gens()
                .map(|mut g| {
                    g.tensor(shape, 0.0, 1.0)
                        .array()
                        .layout()
                        .strides()
                        .to_vec()
                })
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(strided(&[3]), BTreeSet::from([vec![1], vec![2], vec![-1]]));
        assert_eq!(
            strided(&[2, 3]),
            BTreeSet::from([vec![3, 1], vec![7, 2], vec![3, -1], vec![1, 2]])
        );
    }

    #[test]
    fn avoided_points_keep_their_margin() {
        let mut near = false;
        for mut g in gens() {
            for v in g
                .tensor_avoiding([10], -1.0, 1.0, &[-0.5, 0.5], 0.2)
                .to_vec::<f64>()
                .unwrap()
            {
                let distance = (v - 0.5).abs().min((v + 0.5).abs());
                assert!(distance > 0.2 && (-1.0..1.0).contains(&v), "{v}");
                near |= distance < 0.25;
            }
        }
        assert!(near, "values come close to the margin");
    }

    #[test]
    fn distinct_values_are_apart_and_in_lower_halves_of_cells() {
        for mut g in gens().take(100) {
            let mut values = g.tensor_distinct([3, 4]).to_vec::<f64>().unwrap();
            let drawn = values.clone();
            values.sort_by(f64::total_cmp);
            assert_ne!(values, drawn, "in no order");
            for (k, v) in values.iter().enumerate() {
                let start = (k as f64 - 6.0) * 0.1;
                assert!((start - 1e-12..start + 0.05).contains(v), "{k}: {v}");
            }
        }
        assert_eq!(Gen::new(1, 1).tensor_distinct([0, 2]).numel(), 0);
    }

    #[test]
    fn integers_and_masks_reach_all_values() {
        let mut g = Gen::new(3, 3);
        let index = g.indices([50], 4);
        let seen: BTreeSet<i64> = index.to_vec().unwrap().into_iter().collect();
        assert_eq!(seen.into_iter().collect::<Vec<i64>>(), [0, 1, 2, 3]);
        let set = g.mask([100]).to_vec::<bool>().unwrap();
        let set = set.iter().filter(|b| **b).count();
        assert!((25..75).contains(&set), "{set} of 100");
    }

    #[test]
    fn casts_touch_f64_inputs_only() {
        let mut g = Gen::new(3, 4);
        let inputs = vec![g.tensor([2], 0.0, 1.0), g.indices([2], 3), g.mask([2])];
        let sample = Sample::one(inputs, |t| Ok(t[0].clone()));
        assert_eq!((sample.order, sample.tolerance), (3, 1e-6));
        let dtypes = |t: &[Tensor]| t.iter().map(Tensor::dtype).collect::<Vec<_>>();
        assert_eq!(
            dtypes(&Gen::cast_inputs(&sample, DType::F16)),
            [DType::F16, DType::I64, DType::Bool]
        );
        assert_eq!(
            dtypes(&Gen::cast_inputs(&sample, DType::F64)),
            [DType::F64, DType::I64, DType::Bool]
        );
        let sample = sample.order(1).tolerance(1e-3);
        assert_eq!((sample.order, sample.tolerance), (1, 1e-3));
    }

    /// The kind in an entry is that of the rule of its operation.
    #[test]
    fn kinds_are_those_of_the_rules() {
        let mut checked = BTreeSet::new();
        for (k, entry) in operations().iter().enumerate() {
            for case in 0..20 {
                let sample = (entry.sample)(&mut Gen::new(case, k as u64)).unwrap();
                let inputs: Vec<Tensor> = sample
                    .inputs
                    .iter()
                    .map(|t| t.requires_grad().unwrap_or_else(|_| t.clone()))
                    .collect();
                for (name, rule) in graph_of(&(sample.function)(&inputs).unwrap()) {
                    if name == entry.name && entry.kind != "composed" {
                        assert_eq!(rule, entry.kind, "{name}");
                        checked.insert(name);
                    }
                }
            }
        }
        // Operations without derivative leave no node, and some entries are composed.
        assert!(
            checked.len() > 120,
            "only {} entries were met",
            checked.len()
        );
        for entry in operations().iter().filter(|e| e.kind == "expand") {
            assert!(checked.contains(entry.name), "{} has no kernel", entry.name);
        }
        let kinds: BTreeSet<&str> = operations().iter().map(|e| e.kind).collect();
        let known = [
            "composed",
            "expand",
            "explicit",
            "linear",
            "multilinear",
            "pointwise",
            "zero",
        ];
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), known);
    }

    /// Names and rules of all nodes behind the outputs.
    fn graph_of(outputs: &[Tensor]) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        let mut waiting: Vec<Edge> = outputs
            .iter()
            .filter_map(|t| t.edge(Level::AMBIENT).cloned())
            .collect();
        while let Some(edge) = waiting.pop() {
            if let Edge::Node { node, .. } = edge {
                found.push((node.op.name(), node.op.rule().name()));
                waiting.extend(node.edges().cloned());
            }
        }
        found
    }
}
