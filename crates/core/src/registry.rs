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
