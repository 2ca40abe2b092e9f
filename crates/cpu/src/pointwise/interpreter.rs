//! Runs a compiled program over arrays.
//!
//! The row-major elements are cut into tiles of [`TILE`]. For each tile, inputs that are not
//! already slices of the compute type are converted or gathered into tiles of scratch memory,
//! every step is one vector loop, and the last writes into the output (or into a tile that is
//! converted). Each element's value is a function of its inputs alone, so threads, tiles and
//! layouts never change a bit.

use entrenar_base::{Array, DType, Element, Error, Result, dispatch};
use smallvec::SmallVec;
use std::ops::Range;

use super::program::{Kernel, Operand};
use super::{Binary, Compiled, Lane, Unary};
use crate::alloc::Scratch;
use crate::cast;
use crate::team;
use crate::walk::Walk;

/// Elements per tile: 4 KiB of f32, so that several tiles stay in L1.
const TILE: usize = 1024;
/// Estimated nanoseconds per element and stream read or written.
const STREAM_COST: f64 = 0.1;

/// The type a program computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// For f16, bf16 and f32.
    F32,
    /// For f64.
    F64,
    /// For integers and bool.
    I64,
}

impl Compute {
    /// The compute type for values of `dtype`.
    pub fn of(dtype: DType) -> Compute {
        match dtype.accumulator() {
            DType::F32 => Compute::F32,
            DType::F64 => Compute::F64,
            _ => Compute::I64,
        }
    }
}

/// Applies a program to arrays of one shape: `out[i] = p(inputs[0][i], inputs[1][i], …)`.
///
/// Inputs may have any layout and dtype; each is converted to the compute type (`as` semantics,
/// see [`crate::cast`]), and the result to `out`. A program without inputs gives a scalar.
///
/// # Errors
/// When the number of inputs differs from the program's or shapes differ.
///
/// ```
/// use entrenar_base::{Array, DType};
/// use entrenar_cpu::pointwise::{Binary, Compute, Program, run};
/// let x = Array::from_vec(vec![1.0f32, 2.0, 3.0], [3])?;
/// let less = Program::binary(Binary::Lt).compile();
/// let y = run(&less, Compute::F32, &[&x, &x.flip(0)], DType::Bool)?;
/// assert_eq!(y.to_vec::<bool>()?, [true, false, false]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[track_caller]
pub fn run(p: &Compiled, compute: Compute, inputs: &[&Array], out: DType) -> Result<Array> {
    if inputs.len() != p.inputs {
        return Err(Error::argument(
            "pointwise",
            format!("{} inputs", p.inputs),
            inputs.len(),
        ));
    }
    if let Some((first, rest)) = inputs.split_first()
        && let Some(other) = rest.iter().find(|a| a.shape() != first.shape())
    {
        return Err(Error::shape(
            "pointwise",
            format!("inputs of one shape, {}", first.shape()),
            other.shape(),
        ));
    }
    match compute {
        Compute::F32 => run_lane::<f32>(p, inputs, out),
        Compute::F64 => run_lane::<f64>(p, inputs, out),
        Compute::I64 => run_lane::<i64>(p, inputs, out),
    }
}

/// One unary operation; the result has dtype `out`. Errors as [`run`].
#[track_caller]
pub fn unary(op: Unary, compute: Compute, x: &Array, out: DType) -> Result<Array> {
    run(&super::Program::unary(op).compile(), compute, &[x], out)
}

/// One binary operation on arrays of one shape; the result has dtype `out`. Errors as [`run`].
#[track_caller]
pub fn binary(op: Binary, compute: Compute, x: &Array, y: &Array, out: DType) -> Result<Array> {
    run(&super::Program::binary(op).compile(), compute, &[x, y], out)
}

fn run_lane<T: Lane>(p: &Compiled, inputs: &[&Array], out: DType) -> Result<Array> {
    if out == T::DTYPE {
        if let Some(y) = direct::<T>(p, inputs) {
            return y;
        }
        return tiled::<T, T>(p, inputs);
    }
    dispatch!(out, D => tiled::<T, D>(p, inputs))
}

/// How an operand of a single step lies.
#[derive(Clone, Copy)]
enum Operands<'a, T> {
    /// Element by element.
    Slice(&'a [T]),
    /// One row for all rows (a bias).
    Row(&'a [T]),
    /// One value for all.
    Value(T),
}

impl<'a, T: Lane> Operands<'a, T> {
    fn of(o: Operand, p: &Compiled, inputs: &[&'a Array]) -> Option<Self> {
        let x = match o {
            Operand::Input(i) => inputs[i as usize],
            Operand::Constant(i) => {
                return Some(Operands::Value(T::constant(p.constants[i as usize])));
            }
            _ => return None,
        };
        if x.dtype() != T::DTYPE {
            return None;
        }
        let view = x.view::<T>().ok()?;
        if let Some(s) = view.as_slice() {
            return Some(Operands::Slice(s));
        }
        let at = x.layout().offset();
        if is_splat(x) {
            return Some(Operands::Value(*view.data().get(at)?));
        }
        let walk = Walk::new(x.layout());
        match (walk.dims(), walk.strides()) {
            ([_, n], [0, 1]) => Some(Operands::Row(view.data().get(at..at + n)?)),
            _ => None,
        }
    }

    /// Length of a row, if that limits how far a loop can run.
    fn row(&self) -> Option<usize> {
        match self {
            Operands::Row(r) => Some(r.len()),
            _ => None,
        }
    }

    /// The operand for the elements `range`, which do not leave a row; values are found in `fill`.
    #[inline(always)]
    fn part<'b>(&'b self, range: Range<usize>, fill: &'b [T]) -> &'b [T] {
        match self {
            Operands::Slice(s) => &s[range],
            Operands::Row(r) => {
                let start = range.start % r.len();
                &r[start..start + range.len()]
            }
            Operands::Value(_) => &fill[..range.len()],
        }
    }
}

/// Elements of a constant operand that are spread at once on the stack.
const FILL: usize = 256;

/// One step on operands of the compute type that lie simply: no tiles.
#[inline]
fn direct<T: Lane>(p: &Compiled, inputs: &[&Array]) -> Option<Result<Array>> {
    let [step] = p.steps[..] else { return None };
    let cost = p.cost + STREAM_COST * 2.0;
    let model = inputs.first()?;
    match step.kernel {
        Kernel::Unary(op) => {
            let Operands::Slice(x) = Operands::of(step.operands[0], p, inputs)? else {
                return None;
            };
            Some(Array::try_build_like(model, |out: &mut [T]| {
                team::split_mut(out, x.len(), cost, |r, out| T::unary(op, &x[r], out));
                Ok(())
            }))
        }
        Kernel::Binary(op) => {
            let x = Operands::of(step.operands[0], p, inputs)?;
            let y = Operands::of(step.operands[1], p, inputs)?;
            let rows_differ = x.row().zip(y.row()).is_some_and(|(a, b)| a != b);
            if rows_differ || matches!((x, y), (Operands::Value(_), Operands::Value(_))) {
                return None;
            }
            Some(Array::try_build_like(model, |out: &mut [T]| {
                let n = out.len();
                team::split_mut(out, n, cost, |r, out| direct_binary(op, &x, &y, r, out));
                Ok(())
            }))
        }
        Kernel::Select => None,
    }
}

fn direct_binary<T: Lane>(
    op: Binary,
    x: &Operands<'_, T>,
    y: &Operands<'_, T>,
    range: Range<usize>,
    out: &mut [T],
) {
    if let (Operands::Slice(x), Operands::Slice(y)) = (x, y) {
        return T::binary(op, &x[range.clone()], &y[range], out);
    }
    let mut fill = [T::default(); FILL];
    let mut limit = usize::MAX;
    if let (Operands::Value(v), _) | (_, Operands::Value(v)) = (x, y) {
        fill[..FILL.min(out.len())].fill(*v);
        limit = FILL;
    }
    let row = x.row().or(y.row()).unwrap_or(usize::MAX);
    let mut start = range.start;
    let mut out = out;
    while !out.is_empty() {
        let len = out.len().min(limit).min(row - start % row);
        let (now, later) = out.split_at_mut(len);
        let part = start..start + len;
        T::binary(op, x.part(part.clone(), &fill), y.part(part, &fill), now);
        start += len;
        out = later;
    }
}

/// How an input reaches its operands.
enum Feed<'a, T> {
    /// Read in place.
    Slice(&'a [T]),
    /// One value everywhere, spread over a tile once.
    Splat(T),
    /// Gathered or converted for every tile.
    Gather(&'a Array, Box<Walk>),
    /// The same on a straightened copy.
    Copied(Array, Box<Walk>),
}

/// Whether all elements are one and the same.
#[inline]
fn is_splat(a: &Array) -> bool {
    let (dims, strides) = (a.dims(), a.layout().strides());
    a.numel() > 0 && dims.iter().zip(strides).all(|(&n, &s)| n == 1 || s == 0)
}

fn feed<'a, T: Lane>(a: &'a Array) -> Result<Feed<'a, T>> {
    if a.dtype() == T::DTYPE
        && let Some(s) = a.view::<T>()?.as_slice()
    {
        return Ok(Feed::Slice(s));
    }
    if is_splat(a) {
        let at = a.layout().offset();
        let value = dispatch!(a.dtype(), S => cast::convert_one(a.view::<S>()?.data()[at]));
        return Ok(Feed::Splat(value));
    }
    let walk = Box::new(Walk::new(a.layout()));
    if !crate::copy::is_slow(&walk, a.numel()) {
        return Ok(Feed::Gather(a, walk));
    }
    let straight = crate::copy::contiguous(a)?;
    let walk = Box::new(Walk::new(straight.layout()));
    Ok(Feed::Copied(straight, walk))
}

/// The general case; `D` is the dtype of the result.
fn tiled<T: Lane, D: Element>(p: &Compiled, inputs: &[&Array]) -> Result<Array> {
    let mut feeds: SmallVec<[Feed<'_, T>; 4]> = SmallVec::new();
    for a in inputs {
        feeds.push(feed(a)?);
    }
    let n = inputs.first().map_or(1, |a| a.numel());
    let cost = p.cost + STREAM_COST * (inputs.len() + 1) as f64;
    let fill = |out: &mut [D]| {
        if n == 0 {
            return Ok(());
        }
        let tiles = n.div_ceil(TILE);
        let shared = team::Shared::new(out);
        team::split(tiles, cost * TILE.min(n) as f64, |range| {
            let elements = range.start * TILE..(range.end * TILE).min(n);
            // SAFETY: ranges of tiles are disjoint.
            let out = unsafe { shared.slice(elements.clone()) };
            Tiles::new(p, &feeds, n.min(TILE)).run(elements, out);
        });
        Ok(())
    };
    match inputs.first() {
        Some(model) => Array::try_build_like(model, fill),
        None => Array::try_build((), fill),
    }
}

/// Scratch tiles of one thread, in this order: slots, constants, inputs, result.
struct Tiles<'a, T: Lane> {
    p: &'a Compiled,
    feeds: &'a [Feed<'a, T>],
    memory: Scratch<T>,
    width: usize,
}

impl<'a, T: Lane> Tiles<'a, T> {
    fn new(p: &'a Compiled, feeds: &'a [Feed<'a, T>], width: usize) -> Self {
        let count = p.slots + p.constants.len() + feeds.len() + 1;
        let mut memory = Scratch::<T>::new(count * width);
        for (tile, &c) in memory
            .chunks_exact_mut(width)
            .skip(p.slots)
            .zip(&p.constants)
        {
            tile.fill(T::constant(c));
        }
        let first = p.slots + p.constants.len();
        for (tile, feed) in memory.chunks_exact_mut(width).skip(first).zip(feeds) {
            if let Feed::Splat(value) = feed {
                tile.fill(*value);
            }
        }
        Tiles {
            p,
            feeds,
            memory,
            width,
        }
    }

    fn input_tile(&self, i: usize) -> usize {
        self.p.slots + self.p.constants.len() + i
    }

    /// Computes `elements`, which are those of `out`.
    fn run<D: Element>(mut self, elements: Range<usize>, out: &mut [D]) {
        let mut start = elements.start;
        for out in out.chunks_mut(TILE) {
            let range = start..start + out.len();
            start = range.end;
            self.gather(&range);
            self.tile(&range, out);
        }
    }

    fn gather(&mut self, range: &Range<usize>) {
        for (i, feed) in self.feeds.iter().enumerate() {
            let gathered = match feed {
                Feed::Gather(a, walk) => Some((*a, &**walk)),
                Feed::Copied(a, walk) => Some((a, &**walk)),
                _ => None,
            };
            if let Some((a, walk)) = gathered {
                let at = self.input_tile(i) * self.width;
                let tile = &mut self.memory[at..at + range.len()];
                dispatch!(a.dtype(), S => {
                    let view = a.view::<S>().expect("dispatched on its dtype");
                    cast::load(view.data(), walk, range.clone(), tile);
                });
            }
        }
    }

    fn tile<D: Element>(&mut self, range: &Range<usize>, out: &mut [D]) {
        let len = range.len();
        let (p, feeds, width) = (self.p, self.feeds, self.width);
        let result = self.input_tile(feeds.len());
        let (slots, inputs) = (p.slots, p.slots + p.constants.len());
        let base = self.memory.as_mut_ptr();
        // SAFETY: every index below is less than the number of tiles `new` made.
        let tile = |i: usize| unsafe { base.add(i * width) };
        // When the result needs no conversion the last step writes it in place.
        let in_place = D::DTYPE == T::DTYPE;
        let target: *mut T = if in_place {
            out.as_mut_ptr().cast()
        } else {
            tile(result)
        };
        let place = |o: Operand| -> *const T {
            match o {
                Operand::Slot(i) => tile(i as usize),
                Operand::Constant(i) => tile(slots + i as usize),
                Operand::Input(i) => match &feeds[i as usize] {
                    Feed::Slice(s) => s[range.clone()].as_ptr(),
                    _ => tile(inputs + i as usize),
                },
                Operand::Output => target,
            }
        };
        // SAFETY: each place holds `len` initialised elements of T.
        let read = |o: Operand| unsafe { std::slice::from_raw_parts(place(o), len) };
        for step in &p.steps {
            let write = match step.target {
                Operand::Slot(i) => tile(i as usize),
                _ => target,
            };
            // SAFETY: `len` elements, and no operand of this step is at the same place: the
            // compiler never gives a step's target a slot that the step reads, the result is
            // read by no step, and the output is fresh memory that no input shares.
            let write = unsafe { std::slice::from_raw_parts_mut(write, len) };
            let [a, b, c] = step.operands;
            match step.kernel {
                Kernel::Unary(op) => T::unary(op, read(a), write),
                Kernel::Binary(op) => T::binary(op, read(a), read(b), write),
                Kernel::Select => T::select(read(a), read(b), read(c), write),
            }
        }
        if p.result != Operand::Output {
            cast::convert(read(p.result), out);
        } else if !in_place {
            cast::convert(read(Operand::Output), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pointwise::{Program, Source, Step, scalar_f64, scalar_f64_2};
    use crate::testing::{array, same_at_any_thread_count, scattered, strided};
    use proptest::prelude::*;

    fn gelu_like() -> Program {
        use Source::{Input, Temp};
        // select(y > 0, x · sigmoid(1.702 x) + y, -y)
        Program {
            inputs: 2,
            steps: vec![
                Step::Binary(Binary::Mul, Input(0), Source::constant(1.702)),
                Step::Unary(Unary::Sigmoid, Temp(0)),
                Step::Binary(Binary::Mul, Input(0), Temp(1)),
                Step::Binary(Binary::Add, Temp(2), Input(1)),
                Step::Binary(Binary::Gt, Input(1), Source::constant(0.0)),
                Step::Unary(Unary::Neg, Input(1)),
                Step::Select(Temp(4), Temp(3), Temp(5)),
            ],
            result: Temp(6),
        }
    }

    fn close(got: &[f64], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!(
                g == w
                    || (g - w).abs() <= tolerance * w.abs().max(1.0)
                    || (g.is_nan() && w.is_nan()),
                "{g} {w}"
            );
        }
    }

    proptest! {
        #[test]
        fn programs_agree_with_their_definition(a in strided(), seed in any::<u16>()) {
            let b = scattered(&if a.rank() > 0 { a.flip(0) } else { a.clone() }, seed);
            let p = gelu_like();
            let want: Vec<f64> = a.to_f64_vec().iter().zip(b.to_f64_vec())
                .map(|(&x, y)| p.eval_f64(&[x, y])).collect();
            let c = p.compile();
            let y = run(&c, Compute::F32, &[&a, &b], DType::F32).unwrap();
            prop_assert_eq!(y.shape(), a.shape());
            close(&y.to_f64_vec(), &want, 1e-6);
            // Layout never changes a bit.
            let again = run(&c, Compute::F32, &[&a.deep_copy(), &b.deep_copy()], DType::F32).unwrap();
            prop_assert_eq!(again.as_bytes(), y.as_bytes());
            let y = run(&c, Compute::F64, &[&a, &b.cast(DType::BF16)], DType::F64).unwrap();
            close(&y.to_f64_vec(), &want, 1e-14);
            let y = run(&c, Compute::F32, &[&a.cast(DType::F16), &b], DType::BF16).unwrap();
            close(&y.to_f64_vec(), &want, 5e-3);
        }
    }

    #[test]
    fn single_operations_over_many_tiles() {
        let x = array(&[5, 1000], DType::F32, 3);
        let y = array(&[5, 1000], DType::F32, 4);
        for &op in Binary::ALL {
            let got = binary(op, Compute::F32, &x, &y, DType::F32).unwrap();
            let want: Vec<f64> = x
                .to_f64_vec()
                .iter()
                .zip(y.to_f64_vec())
                .map(|(&a, b)| scalar_f64_2(op, a, b))
                .collect();
            close(&got.to_f64_vec(), &want, 1e-6);
        }
        for &op in Unary::ALL {
            let got = unary(op, Compute::F64, &x, DType::F64).unwrap();
            let want: Vec<f64> = x.to_f64_vec().iter().map(|&a| scalar_f64(op, a)).collect();
            close(&got.to_f64_vec(), &want, 1e-14);
        }
    }

    #[test]
    fn splats_constants_and_conversions() {
        let row = array(&[1, 700], DType::F32, 5)
            .broadcast_to(&[9, 700].into())
            .unwrap();
        let one = Array::scalar(3i64).broadcast_to(&[9, 700].into()).unwrap();
        let y = binary(Binary::Mul, Compute::F32, &row, &one, DType::F32).unwrap();
        let want: Vec<f64> = row.to_f64_vec().iter().map(|v| v * 3.0).collect();
        assert_eq!(y.to_f64_vec(), want);
        // Results that no step computes.
        for (result, want) in [(Source::Input(0), 3.0), (Source::constant(2.5), 2.5)] {
            let p = Program {
                inputs: 1,
                steps: vec![],
                result,
            }
            .compile();
            let y = run(&p, Compute::F32, &[&one], DType::F64).unwrap();
            assert!(y.numel() == 6300 && y.to_f64_vec().iter().all(|&v| v == want));
        }
        let none = Program {
            inputs: 0,
            steps: vec![],
            result: Source::constant(4.0),
        }
        .compile();
        let y = run(&none, Compute::I64, &[], DType::I32).unwrap();
        assert_eq!((y.rank(), y.item::<i32>().unwrap()), (0, 4));
    }

    #[test]
    fn single_steps_on_rows_and_values() {
        let x = array(&[70, 300], DType::F32, 5);
        let row = array(&[300], DType::F32, 6)
            .broadcast_to(&[70, 300].into())
            .unwrap();
        let other = array(&[1, 300], DType::F32, 8)
            .broadcast_to(&[70, 300].into())
            .unwrap();
        let value = array(&[1, 1], DType::F32, 7)
            .broadcast_to(&[70, 300].into())
            .unwrap();
        let column = array(&[70, 1], DType::F32, 9)
            .broadcast_to(&[70, 300].into())
            .unwrap();
        let all = [&x, &row, &other, &value, &column];
        for a in all {
            for b in all {
                let got = binary(Binary::Sub, Compute::F32, a, b, DType::F32).unwrap();
                let pairs = a.to_f64_vec().into_iter().zip(b.to_f64_vec());
                assert_eq!(
                    got.to_f64_vec(),
                    pairs.map(|(a, b)| a - b).collect::<Vec<_>>()
                );
            }
            let half = Program {
                inputs: 1,
                steps: vec![Step::Binary(
                    Binary::Sub,
                    Source::constant(0.5),
                    Source::Input(0),
                )],
                result: Source::Temp(0),
            };
            let got = run(&half.compile(), Compute::F32, &[a], DType::F32).unwrap();
            let want: Vec<f64> = a.to_f64_vec().into_iter().map(|a| 0.5 - a).collect();
            assert_eq!(got.to_f64_vec(), want);
        }
        // Rows whose periods differ.
        let wide = array(&[2, 300], DType::F32, 4);
        let pair = wide
            .reshape([1, 600])
            .unwrap()
            .broadcast_to(&[35, 600].into())
            .unwrap();
        let single = row
            .slice(0, 0, 1, 1)
            .unwrap()
            .broadcast_to(&[70, 300].into())
            .unwrap();
        let pair = pair
            .as_strided([35, 2, 300].into(), &[0, 300, 1], 0)
            .unwrap();
        let single = single
            .as_strided([35, 2, 300].into(), &[0, 0, 1], 0)
            .unwrap();
        let got = binary(Binary::Sub, Compute::F32, &pair, &single, DType::F32).unwrap();
        let pairs = pair.to_f64_vec().into_iter().zip(single.to_f64_vec());
        assert_eq!(
            got.to_f64_vec(),
            pairs.map(|(a, b)| a - b).collect::<Vec<_>>()
        );
        let empty = array(&[0, 3], DType::F32, 1);
        let none = array(&[1, 3], DType::F32, 1)
            .broadcast_to(&[0, 3].into())
            .unwrap();
        let got = binary(Binary::Add, Compute::F32, &empty, &none, DType::F32).unwrap();
        assert_eq!(got.dims(), [0, 3]);
    }

    #[test]
    fn threads_never_change_a_bit() {
        let x = array(&[300, 1000], DType::F32, 6);
        let t = array(&[1000, 300], DType::BF16, 7).transpose(0, 1).unwrap();
        let c = gelu_like().compile();
        same_at_any_thread_count(|| run(&c, Compute::F32, &[&x, &t], DType::F32).unwrap());
        same_at_any_thread_count(|| run(&c, Compute::F32, &[&t, &x], DType::F16).unwrap());
        same_at_any_thread_count(|| unary(Unary::Exp, Compute::F32, &x, DType::F32).unwrap());
    }

    #[test]
    fn misfits_are_errors() {
        let a = array(&[2, 3], DType::F32, 1);
        let b = array(&[3, 2], DType::F32, 1);
        let c = Program::binary(Binary::Add).compile();
        assert!(run(&c, Compute::F32, &[&a], DType::F32).is_err());
        let e = run(&c, Compute::F32, &[&a, &b], DType::F32).unwrap_err();
        assert!(
            e.to_string().contains("[2, 3]") && e.to_string().contains("[3, 2]"),
            "{e}"
        );
    }
}
