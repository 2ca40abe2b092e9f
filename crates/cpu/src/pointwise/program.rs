//! Small straight-line programs of scalar operations, and their compiled form.
//!
//! A [`Program`] is what the layers above write down; [`Program::compile`] drops what the result
//! does not need, gathers constants and assigns each intermediate a tile that is reused as soon as
//! its last reader has run. [`super::run()`](super::run) interprets the result tile by tile.

use super::{Binary, Unary};

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The i-th input.
    Input(u8),
    /// The result of the i-th step.
    Temp(u8),
    /// The bits of an f64.
    Const(u64),
}

impl Source {
    /// A constant.
    pub fn constant(value: f64) -> Source {
        Source::Const(value.to_bits())
    }
}

/// One operation; step number i writes `Temp(i)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// An operation on one operand.
    Unary(Unary, Source),
    /// An operation on two.
    Binary(Binary, Source, Source),
    /// The second operand where the first is not 0, else the third.
    Select(Source, Source, Source),
}

impl Step {
    fn sources(&self) -> ([Source; 3], usize) {
        let none = Source::Const(0);
        match *self {
            Step::Unary(_, a) => ([a, none, none], 1),
            Step::Binary(_, a, b) => ([a, b, none], 2),
            Step::Select(c, a, b) => ([c, a, b], 3),
        }
    }
}

/// A function of `inputs` numbers, applied at every element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Number of inputs.
    pub inputs: usize,
    /// Operations in order; each may use the steps before it.
    pub steps: Vec<Step>,
    /// The value of the function.
    pub result: Source,
}

impl Program {
    /// The program of one unary operation.
    pub fn unary(op: Unary) -> Program {
        Program {
            inputs: 1,
            steps: vec![Step::Unary(op, Source::Input(0))],
            result: Source::Temp(0),
        }
    }

    /// The program of one binary operation.
    pub fn binary(op: Binary) -> Program {
        Program {
            inputs: 2,
            steps: vec![Step::Binary(op, Source::Input(0), Source::Input(1))],
            result: Source::Temp(0),
        }
    }

    /// The value for one set of arguments in f64: the plain definition.
    ///
    /// # Panics
    /// When the program is malformed or `arguments` are too few.
    pub fn eval_f64(&self, arguments: &[f64]) -> f64 {
        let mut temps: Vec<f64> = Vec::with_capacity(self.steps.len());
        let value = |s: Source, temps: &[f64]| match s {
            Source::Input(i) => arguments[i as usize],
            Source::Temp(i) => temps[i as usize],
            Source::Const(bits) => f64::from_bits(bits),
        };
        for step in &self.steps {
            let y = match *step {
                Step::Unary(u, a) => super::scalar_f64(u, value(a, &temps)),
                Step::Binary(b, x, y) => super::scalar_f64_2(b, value(x, &temps), value(y, &temps)),
                Step::Select(c, a, b) => {
                    if value(c, &temps) != 0.0 {
                        value(a, &temps)
                    } else {
                        value(b, &temps)
                    }
                }
            };
            temps.push(y);
        }
        value(self.result, &temps)
    }

    /// Prepares the program for [`super::run()`](super::run).
    ///
    /// # Panics
    /// When a source names an input or a step that does not exist before it, or there are more
    /// than 256 inputs or steps. Programs are written by code, never by users.
    ///
    /// ```
    /// use entrenar_cpu::pointwise::{Binary, Program, Source, Step, Unary};
    /// // x · sigmoid(x)
    /// let silu = Program {
    ///     inputs: 1,
    ///     steps: vec![
    ///         Step::Unary(Unary::Sigmoid, Source::Input(0)),
    ///         Step::Binary(Binary::Mul, Source::Input(0), Source::Temp(0)),
    ///     ],
    ///     result: Source::Temp(1),
    /// };
    /// assert_eq!(silu.eval_f64(&[0.0]), 0.0);
    /// let compiled = silu.compile();
    /// assert_eq!(compiled.inputs(), 1);
    /// ```
    pub fn compile(self) -> Compiled {
        assert!(
            self.inputs <= 256 && self.steps.len() <= 256,
            "a program has at most 256 inputs and 256 steps"
        );
        let check = |s: Source, before: usize| match s {
            Source::Input(i) => assert!((i as usize) < self.inputs, "{s:?} does not exist"),
            Source::Temp(i) => assert!((i as usize) < before, "{s:?} is not computed yet"),
            Source::Const(_) => {}
        };
        for (i, step) in self.steps.iter().enumerate() {
            let (sources, n) = step.sources();
            sources[..n].iter().for_each(|&s| check(s, i));
        }
        check(self.result, self.steps.len());

        // The last step that reads each temp; the result is read at the end.
        let mut last_use: Vec<Option<usize>> = vec![None; self.steps.len()];
        if let Source::Temp(t) = self.result {
            last_use[t as usize] = Some(usize::MAX);
        }
        for i in (0..self.steps.len()).rev() {
            if last_use[i].is_some() {
                let (sources, n) = self.steps[i].sources();
                for s in &sources[..n] {
                    if let Source::Temp(t) = s {
                        last_use[*t as usize].get_or_insert(i);
                    }
                }
            }
        }

        let mut out = Compiled {
            inputs: self.inputs,
            steps: Vec::new(),
            result: Operand::Output,
            constants: Vec::new(),
            slots: 0,
            cost: 0.0,
        };
        let mut place = vec![Operand::Output; self.steps.len()];
        let mut free: Vec<u8> = Vec::new();
        for (i, step) in self.steps.iter().enumerate() {
            let Some(until) = last_use[i] else { continue };
            let (sources, n) = step.sources();
            let mut operands = [Operand::Output; 3];
            for (operand, &s) in operands.iter_mut().zip(&sources[..n]) {
                *operand = out.operand(s, &place);
            }
            // The output's tile is taken before the operands' are freed: a kernel never reads
            // and writes the same tile.
            let target = if until == usize::MAX {
                Operand::Output
            } else {
                Operand::Slot(free.pop().unwrap_or_else(|| {
                    out.slots += 1;
                    (out.slots - 1) as u8
                }))
            };
            place[i] = target;
            for (k, s) in sources[..n].iter().enumerate() {
                if let Source::Temp(t) = s
                    && last_use[*t as usize] == Some(i)
                    && let Operand::Slot(slot) = operands[k]
                    && !free.contains(&slot)
                {
                    free.push(slot);
                }
            }
            let kernel = match *step {
                Step::Unary(u, _) => Kernel::Unary(u),
                Step::Binary(b, ..) => Kernel::Binary(b),
                Step::Select(..) => Kernel::Select,
            };
            out.cost += match kernel {
                Kernel::Unary(u) => u.cost(),
                Kernel::Binary(b) => b.cost(),
                Kernel::Select => 0.1,
            };
            out.steps.push(Planned {
                kernel,
                operands,
                target,
            });
        }
        out.result = match self.result {
            Source::Temp(_) => Operand::Output,
            other => out.operand(other, &place),
        };
        out
    }
}

/// Where a step finds or puts a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Input(u8),
    Constant(u8),
    Slot(u8),
    /// The tile of the result; also the placeholder for absent operands.
    Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Unary(Unary),
    Binary(Binary),
    Select,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub kernel: Kernel,
    pub operands: [Operand; 3],
    pub target: Operand,
}

/// A program ready to run: dead steps removed, tiles assigned.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub(super) inputs: usize,
    /// If there are any, the last one writes the result.
    pub(super) steps: Vec<Planned>,
    /// `Output` if a step writes it, else what is copied.
    pub(super) result: Operand,
    pub(super) constants: Vec<f64>,
    pub(super) slots: usize,
    /// Estimated nanoseconds of arithmetic per element.
    pub(super) cost: f64,
}

impl Compiled {
    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Tiles for intermediates that are alive together.
    pub fn slots(&self) -> usize {
        self.slots
    }

    fn operand(&mut self, s: Source, place: &[Operand]) -> Operand {
        match s {
            Source::Input(i) => Operand::Input(i),
            Source::Temp(t) => place[t as usize],
            Source::Const(bits) => {
                let known = self.constants.iter().position(|c| c.to_bits() == bits);
                Operand::Constant(known.unwrap_or_else(|| {
                    self.constants.push(f64::from_bits(bits));
                    self.constants.len() - 1
                }) as u8)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Source::{Input, Temp};

    #[test]
    fn dead_steps_vanish_and_tiles_are_reused() {
        // A chain of ten squares needs two tiles; a dead branch none.
        let mut steps = vec![Step::Unary(Unary::Exp, Input(0))];
        for i in 0..10 {
            steps.push(Step::Unary(
                Unary::Square,
                if i == 0 { Input(0) } else { Temp(i) },
            ));
        }
        let c = Program {
            inputs: 1,
            steps,
            result: Temp(10),
        }
        .compile();
        assert_eq!((c.steps.len(), c.slots()), (10, 2));
        assert_eq!(c.steps.last().unwrap().target, Operand::Output);
    }

    #[test]
    fn equal_constants_are_shared() {
        let k = Source::constant(0.5);
        let c = Program {
            inputs: 1,
            steps: vec![
                Step::Binary(Binary::Mul, Input(0), k),
                Step::Binary(Binary::Add, Temp(0), k),
            ],
            result: Temp(1),
        }
        .compile();
        assert_eq!(c.constants, [0.5]);
    }

    #[test]
    #[should_panic(expected = "not computed yet")]
    fn forward_references_are_refused() {
        let _ = Program {
            inputs: 0,
            steps: vec![Step::Unary(Unary::Neg, Temp(0))],
            result: Temp(0),
        }
        .compile();
    }
}
