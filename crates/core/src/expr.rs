//! Elementwise ops as expressions: one description gives the kernel, the gradient and its gradient.
//!
//! An [`Expr`] is a scalar DAG over the inputs (and, in derivatives, the output). [`Expr::diff`] is
//! closed: the derivative is again an `Expr`, so cotangent × partial is itself one [`Pointwise`] op
//! and every order follows. What a partial reads, its free variables, is exactly what is saved.
//!
//! Conventions at kinks (facts every framework must choose): abs'(0) = 0, relu'(0) = 0, ties of
//! maximum and minimum share the gradient equally, clamp's gradient is 0 at its bounds.

use std::collections::{HashMap, HashSet};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use entrenar_base::{Array, DType, Error, Result};
use entrenar_cpu::pointwise::{self, Binary, Compiled, Compute, Program, Source, Step, Unary};
use smallvec::SmallVec;

use crate::Tensor;
use crate::apply::{apply1, one};
use crate::op::{Aval, Bits, Few, Op, OpRef, Reads, Rule};

/// A node of an expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// Input number `i`.
    Input(u8),
    /// The value of the whole expression; only in derivatives.
    Output,
    /// A constant.
    Constant(Bits),
    /// A function of one value.
    Unary(Unary, Expr),
    /// A function of two values.
    Binary(Binary, Expr, Expr),
    /// `if condition != 0 { a } else { b }`, elementwise.
    Select(Expr, Expr, Expr),
}

/// A shared scalar expression.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Expr(Arc<Node>);

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Node::Input(i) => write!(f, "x{i}"),
            Node::Output => write!(f, "y"),
            Node::Constant(c) => write!(f, "{}", c.0),
            Node::Unary(u, a) => write!(f, "{}({a:?})", u.name()),
            Node::Binary(b, x, y) => write!(f, "{}({x:?}, {y:?})", b.name()),
            Node::Select(c, a, b) => write!(f, "select({c:?}, {a:?}, {b:?})"),
        }
    }
}

/// Builds `input(i)`.
pub fn x(i: u8) -> Expr {
    Expr(Arc::new(Node::Input(i)))
}

/// Builds a constant.
pub fn c(value: f64) -> Expr {
    Expr(Arc::new(Node::Constant(Bits(value))))
}

impl Expr {
    fn output() -> Expr {
        Expr(Arc::new(Node::Output))
    }

    /// The node at the root.
    pub fn node(&self) -> &Node {
        &self.0
    }

    fn constant(&self) -> Option<f64> {
        match *self.0 {
            Node::Constant(Bits(v)) => Some(v),
            _ => None,
        }
    }

    fn is(&self, value: f64) -> bool {
        self.constant() == Some(value)
    }

    /// `u(self)`, folded when constant.
    pub fn unary(&self, u: Unary) -> Expr {
        match &*self.0 {
            Node::Constant(Bits(v)) => c(pointwise::scalar_f64(u, *v)),
            Node::Unary(Unary::Neg, inner) if u == Unary::Neg => inner.clone(),
            _ => Expr(Arc::new(Node::Unary(u, self.clone()))),
        }
    }

    /// `b(self, other)`, with constants folded and neutral elements removed.
    pub fn binary(&self, b: Binary, other: &Expr) -> Expr {
        if let (Some(p), Some(q)) = (self.constant(), other.constant()) {
            return c(pointwise::scalar_f64_2(b, p, q));
        }
        match b {
            Binary::Add if self.is(0.0) => return other.clone(),
            Binary::Add | Binary::Sub if other.is(0.0) => return self.clone(),
            Binary::Sub if self.is(0.0) => return other.unary(Unary::Neg),
            Binary::Mul if self.is(0.0) || other.is(0.0) => return c(0.0),
            Binary::Mul if self.is(1.0) => return other.clone(),
            Binary::Mul | Binary::Div if other.is(1.0) => return self.clone(),
            Binary::Div if self.is(0.0) => return c(0.0),
            _ => {}
        }
        Expr(Arc::new(Node::Binary(b, self.clone(), other.clone())))
    }

    /// `if self != 0 { a } else { b }`.
    pub fn select(&self, a: &Expr, b: &Expr) -> Expr {
        if a == b {
            return a.clone();
        }
        match self.constant() {
            Some(v) if v != 0.0 => a.clone(),
            Some(_) => b.clone(),
            None => Expr(Arc::new(Node::Select(self.clone(), a.clone(), b.clone()))),
        }
    }

    /// Comparison helper: `self < other` as 0 or 1.
    pub fn lt(&self, other: &Expr) -> Expr {
        self.binary(Binary::Lt, other)
    }

    /// `self <= other` as 0 or 1.
    pub fn le(&self, other: &Expr) -> Expr {
        self.binary(Binary::Le, other)
    }

    /// `self == other` as 0 or 1.
    pub fn equals(&self, other: &Expr) -> Expr {
        self.binary(Binary::Eq, other)
    }

    /// `self` to the power `other`.
    pub fn pow(&self, other: &Expr) -> Expr {
        self.binary(Binary::Pow, other)
    }

    /// The partial derivative with respect to input `i`, not yet written in terms of the output.
    fn derivative(&self, i: u8) -> Expr {
        match &*self.0 {
            Node::Input(j) => c(if *j == i { 1.0 } else { 0.0 }),
            Node::Output | Node::Constant(_) => c(0.0),
            Node::Select(cond, a, b) => cond.select(&a.derivative(i), &b.derivative(i)),
            Node::Unary(u, a) => {
                let inner = a.derivative(i);
                if inner.is(0.0) {
                    inner
                } else {
                    &unary_slope(*u, a, self) * &inner
                }
            }
            Node::Binary(op, a, b) => {
                let (da, db) = (a.derivative(i), b.derivative(i));
                let term = |d: Expr, slope: &dyn Fn() -> Expr| {
                    if d.is(0.0) { d } else { &slope() * &d }
                };
                let left = term(da, &|| binary_slope(*op, a, b, self, true));
                let right = term(db, &|| binary_slope(*op, a, b, self, false));
                &left + &right
            }
        }
    }

    /// The partial derivative with respect to input `i`. Subexpressions equal to the expression
    /// itself become [`Node::Output`], so that `exp` saves its output and not its input.
    pub fn diff(&self, i: u8) -> Expr {
        let d = self.derivative(i);
        match &*self.0 {
            Node::Input(_) | Node::Constant(_) => d,
            _ => d.replace(&mut HashMap::new(), &|e| (e == self).then(Expr::output)),
        }
    }

    /// Rebuilds the DAG top-down, replacing nodes for which `f` answers.
    fn replace(
        &self,
        done: &mut HashMap<*const Node, Expr>,
        f: &dyn Fn(&Expr) -> Option<Expr>,
    ) -> Expr {
        let at = Arc::as_ptr(&self.0);
        if let Some(e) = done.get(&at) {
            return e.clone();
        }
        let new = f(self).unwrap_or_else(|| match &*self.0 {
            Node::Unary(u, a) => a.replace(done, f).unary(*u),
            Node::Binary(b, p, q) => {
                let (p, q) = (p.replace(done, f), q.replace(done, f));
                p.binary(*b, &q)
            }
            Node::Select(cond, a, b) => {
                let (cond, a, b) = (
                    cond.replace(done, f),
                    a.replace(done, f),
                    b.replace(done, f),
                );
                cond.select(&a, &b)
            }
            _ => self.clone(),
        });
        done.insert(at, new.clone());
        new
    }

    /// Inputs and output that the expression reads, in order of first use.
    fn free(&self, seen: &mut HashSet<*const Node>, out: &mut Vec<Variable>) {
        if !seen.insert(Arc::as_ptr(&self.0)) {
            return;
        }
        let mut note = |v| {
            if !out.contains(&v) {
                out.push(v);
            }
        };
        match &*self.0 {
            Node::Input(i) => note(Variable::Input(*i as usize)),
            Node::Output => note(Variable::Output),
            Node::Constant(_) => {}
            Node::Unary(_, a) => a.free(seen, out),
            Node::Binary(_, a, b) => {
                a.free(seen, out);
                b.free(seen, out);
            }
            Node::Select(cond, a, b) => {
                cond.free(seen, out);
                a.free(seen, out);
                b.free(seen, out);
            }
        }
    }

    /// Flattens into the CPU's step list; equal subexpressions become one step.
    fn program(&self, inputs: usize) -> Program {
        fn emit(e: &Expr, steps: &mut Vec<Step>, done: &mut HashMap<Expr, Source>) -> Source {
            if let Some(s) = done.get(e) {
                return *s;
            }
            let step = match &*e.0 {
                Node::Input(i) => return Source::Input(*i),
                Node::Constant(Bits(v)) => return Source::Const(v.to_bits()),
                Node::Output => unreachable!("outputs were renamed to inputs before compiling"),
                Node::Unary(u, a) => Step::Unary(*u, emit(a, steps, done)),
                Node::Binary(b, p, q) => {
                    let (p, q) = (emit(p, steps, done), emit(q, steps, done));
                    Step::Binary(*b, p, q)
                }
                Node::Select(cond, a, b) => {
                    let cond = emit(cond, steps, done);
                    let (a, b) = (emit(a, steps, done), emit(b, steps, done));
                    Step::Select(cond, a, b)
                }
            };
            steps.push(step);
            let at = Source::Temp((steps.len() - 1) as u8);
            done.insert(e.clone(), at);
            at
        }
        let mut steps = Vec::new();
        let result = emit(self, &mut steps, &mut HashMap::new());
        Program {
            inputs,
            steps,
            result,
        }
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:ident) => {
        impl std::ops::$trait for &Expr {
            type Output = Expr;
            fn $method(self, other: &Expr) -> Expr {
                self.binary(Binary::$op, other)
            }
        }
    };
}
operator!(Add, add, Add);
operator!(Sub, sub, Sub);
operator!(Mul, mul, Mul);
operator!(Div, div, Div);

impl std::ops::Neg for &Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        self.unary(Unary::Neg)
    }
}

/// d u(a) / d a, where `y` is `u(a)`.
fn unary_slope(u: Unary, a: &Expr, y: &Expr) -> Expr {
    use Unary::*;
    let one = c(1.0);
    match u {
        Neg => c(-1.0),
        Abs => a.unary(Sign),
        Exp => y.clone(),
        Exp2 => y * &c(std::f64::consts::LN_2),
        Expm1 => y + &one,
        Log => a.unary(Recip),
        Log2 => (a * &c(std::f64::consts::LN_2)).unary(Recip),
        Log10 => (a * &c(std::f64::consts::LN_10)).unary(Recip),
        Log1p => (a + &one).unary(Recip),
        Sqrt => &c(0.5) / y,
        Rsqrt => &c(-0.5) * &(&(y * y) * y),
        Recip => -&(y * y),
        Square => &c(2.0) * a,
        Sin => a.unary(Cos),
        Cos => -&a.unary(Sin),
        Tan => &one + &(y * y),
        Asin => (&one - &(a * a)).unary(Rsqrt),
        Acos => -&(&one - &(a * a)).unary(Rsqrt),
        Atan => (&one + &(a * a)).unary(Recip),
        Sinh => a.unary(Cosh),
        Cosh => a.unary(Sinh),
        Tanh => &one - &(y * y),
        Asinh => (&(a * a) + &one).unary(Rsqrt),
        // (a - 1)(a + 1), not a² - 1: no cancellation next to 1.
        Acosh => (&(a - &one) * &(a + &one)).unary(Rsqrt),
        Atanh => (&one - &(a * a)).unary(Recip),
        Sigmoid => y * &(&one - y),
        Softplus => a.unary(Sigmoid),
        Relu => y.le(&c(0.0)).select(&c(0.0), &one),
        GeluTanh => {
            // s + x·s·(1 - s)·2u' with s = sigmoid(2u).
            let root = 2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            let square = a * a;
            let twice = a * &(&c(root) + &(&c(root * 0.044_715) * &square));
            let slope = &c(root) + &(&c(3.0 * root * 0.044_715) * &square);
            let s = twice.unary(Sigmoid);
            &s + &(&(a * &slope) * &(&s * &(&one - &s)))
        }
        Erf => &c(std::f64::consts::FRAC_2_SQRT_PI) * &(-&(a * a)).unary(Exp),
        Erfc => &c(-std::f64::consts::FRAC_2_SQRT_PI) * &(-&(a * a)).unary(Exp),
        Sign | Floor | Ceil | Round | Trunc | IsNan | IsInf | IsFinite | Not => c(0.0),
    }
}

/// d op(a, b) / d a (`left`) or d b, where `y` is `op(a, b)`.
fn binary_slope(op: Binary, a: &Expr, b: &Expr, y: &Expr, left: bool) -> Expr {
    use Binary::*;
    let (zero, one) = (c(0.0), c(1.0));
    match (op, left) {
        (Add, _) | (Sub | Fmod | Remainder, true) => one,
        (Sub, false) => c(-1.0),
        (Mul, true) => b.clone(),
        (Mul, false) => a.clone(),
        (Div, true) => b.unary(Unary::Recip),
        (Div, false) => -&(y / b),
        // b·a^(b-1) would be 0·inf at a = 0, b = 0.
        (Pow, true) => b.equals(&zero).select(&zero, &(b * &a.pow(&(b - &one)))),
        // 0^b does not depend on b where b >= 0.
        (Pow, false) => {
            let flat = a.equals(&zero).binary(And, &zero.le(b));
            flat.select(&zero, &(y * &a.unary(Unary::Log)))
        }
        (Max, true) | (Min, false) => a.equals(b).select(&c(0.5), &a.lt(b).select(&zero, &one)),
        (Max, false) | (Min, true) => a.equals(b).select(&c(0.5), &b.lt(a).select(&zero, &one)),
        (Atan2, true) => b / &(&(a * a) + &(b * b)),
        (Atan2, false) => -&(a / &(&(a * a) + &(b * b))),
        (Fmod, false) => -&(a / b).unary(Unary::Trunc),
        (Remainder, false) => -&(a / b).unary(Unary::Floor),
        (Copysign, true) => &a.unary(Unary::Sign) * &one.binary(Copysign, b),
        (Copysign, false) => zero,
        (Eq | Ne | Lt | Le | Gt | Ge | And | Or | Xor, _) => zero,
    }
}

/// Something a partial derivative reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// Input `i` of the op.
    Input(usize),
    /// Its output.
    Output,
}

/// One partial derivative as an op over (cotangent, variables…).
pub struct Partial {
    /// cotangent × ∂y/∂xᵢ; `None` where that is the cotangent itself.
    pub op: Option<OpRef>,
    /// What to pass after the cotangent.
    pub reads: Vec<Variable>,
    /// The same as a mask.
    pub mask: Reads,
}

impl Partial {
    /// `factor` × the derivative, whose variables `read` finds.
    pub(crate) fn times<'t>(
        &self,
        factor: &'t Tensor,
        read: impl Fn(Variable) -> Result<&'t Tensor>,
    ) -> Result<Tensor> {
        let Some(op) = &self.op else {
            return Ok(factor.clone());
        };
        match self.reads[..] {
            [] => apply1(op, &[factor]),
            [a] => apply1(op, &[factor, read(a)?]),
            _ => {
                let mut operands: SmallVec<[&Tensor; 5]> = SmallVec::new();
                operands.push(factor);
                for &variable in &self.reads {
                    operands.push(read(variable)?);
                }
                apply1(op, &operands)
            }
        }
    }
}

/// The dtype of a pointwise op's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputType {
    /// That of input `i`.
    Like(u8),
    /// bool, for comparisons and tests.
    Bool,
}

/// An elementwise op on equal shapes.
pub struct Pointwise {
    name: &'static str,
    expr: Expr,
    arity: usize,
    output: OutputType,
    compiled: OnceLock<Compiled>,
    partials: Box<[OnceLock<Option<Partial>>]>,
}

impl PartialEq for Pointwise {
    fn eq(&self, other: &Self) -> bool {
        self.arity == other.arity && self.output == other.output && self.expr == other.expr
    }
}
impl Eq for Pointwise {}
impl Hash for Pointwise {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expr.hash(state);
        self.output.hash(state);
    }
}
impl fmt::Debug for Pointwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}", self.name, self.expr)
    }
}

impl Pointwise {
    /// An op of `arity` inputs computing `expr`.
    pub fn new(name: &'static str, arity: usize, output: OutputType, expr: Expr) -> Arc<Pointwise> {
        Arc::new(Pointwise {
            name,
            expr,
            arity,
            output,
            compiled: OnceLock::new(),
            partials: (0..arity).map(|_| OnceLock::new()).collect(),
        })
    }

    /// The op named `name` with these parameters, built once per process.
    pub fn cached(
        name: &'static str,
        parameters: &[f64],
        build: impl FnOnce() -> Arc<Pointwise>,
    ) -> OpRef {
        type Key = (&'static str, SmallVec<[Bits; 3]>);
        static KNOWN: LazyLock<Mutex<HashMap<Key, OpRef>>> = LazyLock::new(Mutex::default);
        let key = (
            name,
            parameters
                .iter()
                .map(|&p| Bits(p))
                .collect::<SmallVec<[Bits; 3]>>(),
        );
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        // Parameters that change every step must not fill memory.
        if known.len() > 4096 {
            known.clear();
        }
        known.entry(key).or_insert_with(|| build().into()).clone()
    }

    /// The expression.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// The partial derivative with respect to input `i`; `None` where it is zero everywhere.
    pub fn partial(&self, i: usize) -> Option<&Partial> {
        self.partials[i]
            .get_or_init(|| {
                let d = self.expr.diff(i as u8);
                if d.is(0.0) {
                    return None;
                }
                let mut reads = Vec::new();
                d.free(&mut HashSet::new(), &mut reads);
                let mut mask = Reads::NOTHING;
                for &variable in &reads {
                    match variable {
                        Variable::Input(k) => mask.inputs |= 1 << k,
                        Variable::Output => mask.outputs |= 1,
                    }
                }
                let place =
                    |v: Variable| reads.iter().position(|&r| r == v).map(|p| x(p as u8 + 1));
                let renamed = d.replace(&mut HashMap::new(), &|e| match e.node() {
                    Node::Input(j) => place(Variable::Input(*j as usize)),
                    Node::Output => place(Variable::Output),
                    _ => None,
                });
                let op: Option<OpRef> = (!renamed.is(1.0)).then(|| {
                    Pointwise::new(
                        backward_name(self.name),
                        reads.len() + 1,
                        OutputType::Like(0),
                        &x(0) * &renamed,
                    )
                    .into()
                });
                Some(Partial { op, reads, mask })
            })
            .as_ref()
    }

    fn compiled(&self) -> &Compiled {
        self.compiled
            .get_or_init(|| self.expr.program(self.arity).compile())
    }
}

/// `name_backward`, one leaked string per name and process.
fn backward_name(name: &'static str) -> &'static str {
    static NAMES: LazyLock<Mutex<HashMap<&'static str, &'static str>>> =
        LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.entry(name).or_insert_with(|| {
        if name.ends_with("_backward") {
            name
        } else {
            Box::leak(format!("{name}_backward").into_boxed_str())
        }
    })
}

impl Op for Pointwise {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        if inputs.len() != self.arity {
            return Err(Error::argument(
                self.name,
                format!("{} inputs", self.arity),
                inputs.len(),
            ));
        }
        if let Some(other) = inputs[1..].iter().find(|a| a.shape != inputs[0].shape) {
            return Err(Error::shape(
                self.name,
                "equal shapes",
                format!("{} and {}", inputs[0].shape, other.shape),
            ));
        }
        let dtype = match self.output {
            OutputType::Bool => DType::Bool,
            OutputType::Like(i) => inputs[i as usize].dtype,
        };
        Ok(one(Aval {
            shape: inputs[0].shape.clone(),
            dtype,
        }))
    }

    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let widest = inputs.iter().fold(DType::Bool, |d, a| d.promote(a.dtype()));
        let compute = match widest {
            DType::F64 => Compute::F64,
            DType::F32 | DType::F16 | DType::BF16 => Compute::F32,
            _ => Compute::I64,
        };
        let y = pointwise::run(self.compiled(), compute, inputs, outputs[0].dtype)?;
        Ok(one(y))
    }

    /// Operands of f32, nearly all there are, go to the kernel as they come: it checks their
    /// shapes, and only errors are worded by `infer`.
    fn run(&self, inputs: &[&Array]) -> Result<Few<Array>> {
        if !inputs.is_empty() && inputs.iter().all(|a| a.dtype() == DType::F32) {
            let out = match self.output {
                OutputType::Bool => DType::Bool,
                OutputType::Like(_) => DType::F32,
            };
            if let Ok(y) = pointwise::run(self.compiled(), Compute::F32, inputs, out) {
                return Ok(one(y));
            }
        }
        self.infer_and_eval(inputs)
    }

    fn rule(&self) -> Rule<'_> {
        Rule::Pointwise(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_read_the_output_where_that_is_enough() {
        let exp = Pointwise::new("exp", 1, OutputType::Like(0), x(0).unary(Unary::Exp));
        assert_eq!(exp.partial(0).unwrap().reads, [Variable::Output]);
        let sin = Pointwise::new("sin", 1, OutputType::Like(0), x(0).unary(Unary::Sin));
        assert_eq!(sin.partial(0).unwrap().reads, [Variable::Input(0)]);
        let mul = Pointwise::new("mul", 2, OutputType::Like(0), &x(0) * &x(1));
        assert_eq!(mul.partial(0).unwrap().reads, [Variable::Input(1)]);
        let floor = Pointwise::new("floor", 1, OutputType::Like(0), x(0).unary(Unary::Floor));
        assert!(floor.partial(0).is_none());
    }

    #[test]
    fn every_slope_agrees_with_central_differences() {
        let points = [0.3, 0.7, -0.4, 1.7, -2.3];
        for &u in Unary::ALL {
            let e = x(0).unary(u);
            let d = e.derivative(0);
            for p in points {
                let f = |t: f64| pointwise::scalar_f64(u, t);
                let h = 1e-5;
                let numeric = (f(p + h) - f(p - h)) / (2.0 * h);
                if !numeric.is_finite() {
                    continue;
                }
                let exact = d
                    .replace(&mut HashMap::new(), &|e| {
                        matches!(e.node(), Node::Input(_)).then(|| c(p))
                    })
                    .constant()
                    .expect("all inputs are constants");
                assert!(
                    (exact - numeric).abs() < 1e-6 * (1.0 + exact.abs()),
                    "{u:?} at {p}: {exact} {numeric}"
                );
            }
        }
    }

    #[test]
    fn constants_fold_and_neutral_elements_vanish() {
        let (zero, one, two) = (c(0.0), c(1.0), c(2.0));
        let (a, b) = (x(0), x(1));
        for (expr, text) in [
            (&zero + &a, "x0"),
            (&a + &zero, "x0"),
            (&a + &one, "add(x0, 1)"),
            (&one + &a, "add(1, x0)"),
            (&a - &zero, "x0"),
            (&zero - &a, "neg(x0)"),
            (&one - &a, "sub(1, x0)"),
            (&a - &one, "sub(x0, 1)"),
            (&zero * &a, "0"),
            (&a * &zero, "0"),
            (&one * &a, "x0"),
            (&a * &one, "x0"),
            (&two * &a, "mul(2, x0)"),
            (&a * &two, "mul(x0, 2)"),
            (&a / &one, "x0"),
            (&zero / &a, "0"),
            (&a / &two, "div(x0, 2)"),
            (&one / &a, "div(1, x0)"),
            (&two / &c(4.0), "0.5"),
            (&a / &b, "div(x0, x1)"),
            (-&-&a, "x0"),
            (-&two, "-2"),
            ((-&a).unary(Unary::Exp), "exp(neg(x0))"),
            (a.unary(Unary::Neg), "neg(x0)"),
            (c(0.0).unary(Unary::Exp), "1"),
            (a.lt(&b), "lt(x0, x1)"),
            (a.le(&b), "le(x0, x1)"),
            (a.equals(&b), "eq(x0, x1)"),
            (a.pow(&two), "pow(x0, 2)"),
            (a.select(&b, &b), "x1"),
            (one.select(&a, &b), "x0"),
            (zero.select(&a, &b), "x1"),
            (c(-3.0).select(&a, &b), "x0"),
            (a.select(&b, &two), "select(x0, x1, 2)"),
            (Expr::output(), "y"),
        ] {
            assert_eq!(format!("{expr:?}"), text);
        }
        let op = Pointwise::new("name", 1, OutputType::Like(0), &a * &two);
        assert_eq!(format!("{op:?}"), "name = mul(x0, 2)");
        assert!(matches!(op.expr().node(), Node::Binary(Binary::Mul, ..)));
    }

    #[test]
    fn derivatives_are_as_short_as_by_hand() {
        let (a, b) = (x(0), x(1));
        for (expr, text) in [
            (a.clone(), "1"),
            (b.clone(), "0"),
            (c(3.0), "0"),
            (c(0.0), "0"),
            (&a + &b, "1"),
            (&b - &a, "-1"),
            (&a * &b, "x1"),
            (&a * &a, "add(x0, x0)"),
            (&a / &b, "reciprocal(x1)"),
            (&b / &a, "neg(div(y, x0))"),
            (a.unary(Unary::Exp), "y"),
            ((&a * &b).unary(Unary::Exp), "mul(y, x1)"),
            (a.unary(Unary::Floor), "0"),
            (a.lt(&b).select(&a, &b), "select(lt(x0, x1), 1, 0)"),
            (a.lt(&b).select(&b, &c(2.0)), "0"),
        ] {
            assert_eq!(format!("{:?}", expr.diff(0)), text, "{expr:?}");
        }
    }

    #[test]
    fn every_slope_of_two_values_agrees_with_central_differences() {
        let points = [(0.3, 0.8), (1.7, 0.6), (2.3, -1.4), (0.9, 2.2), (3.7, 1.1)];
        for &b in Binary::ALL {
            let e = x(0).binary(b, &x(1));
            for (p, q) in points {
                for i in 0..2u8 {
                    let f = |t: f64| {
                        let (p, q) = if i == 0 { (t, q) } else { (p, t) };
                        pointwise::scalar_f64_2(b, p, q)
                    };
                    let (at, h) = (if i == 0 { p } else { q }, 1e-5);
                    let numeric = (f(at + h) - f(at - h)) / (2.0 * h);
                    let exact = e
                        .derivative(i)
                        .replace(&mut HashMap::new(), &|e| match e.node() {
                            Node::Input(j) => Some(c(if *j == 0 { p } else { q })),
                            _ => None,
                        })
                        .constant()
                        .expect("all inputs are constants");
                    if numeric.is_finite() {
                        assert!(
                            (exact - numeric).abs() < 1e-5 * (1.0 + exact.abs()),
                            "{b:?} in {i} at {p}, {q}: {exact} {numeric}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn equal_subexpressions_are_one_step() {
        let sum = &x(0) + &x(1);
        let program = (&sum * &sum).program(2);
        assert_eq!(program.steps.len(), 2);
        assert_eq!(program.result, Source::Temp(1));
        let constant = c(2.0).program(1);
        assert!(constant.steps.is_empty());
        let op = Pointwise::new("square_of_sum", 2, OutputType::Like(0), &sum * &sum);
        let a = Array::from_vec(vec![1.0f64, 2.0], [2]).unwrap();
        let out = op.eval(&[&a, &a], &[Aval::of(&a)]).unwrap();
        assert_eq!(out[0].to_f64_vec(), [4.0, 16.0]);
    }

    #[test]
    fn pointwise_ops_check_count_and_shapes() {
        let op = Pointwise::new("sum", 2, OutputType::Like(1), &x(0) + &x(1));
        let a = Aval::new([2, 3], DType::F32);
        let wide = Aval::new([2, 3], DType::F64);
        let other = Aval::new([3, 2], DType::F32);
        assert_eq!(op.infer(&[&a, &wide]).unwrap()[0], wide);
        let say = |inputs: &[&Aval]| op.infer(inputs).unwrap_err().to_string();
        assert!(
            say(&[&a]).contains("[sum] expected 2 inputs, got 1"),
            "{}",
            say(&[&a])
        );
        assert!(say(&[&a, &a, &a]).contains("got 3"));
        assert!(say(&[&a, &other]).contains("equal shapes"));
        let test = Pointwise::new("test", 2, OutputType::Bool, x(0).lt(&x(1)));
        assert_eq!(
            test.infer(&[&a, &a]).unwrap()[0],
            Aval::new([2, 3], DType::Bool)
        );
    }

    #[test]
    fn pointwise_ops_are_equal_when_they_compute_the_same() {
        let hash = |op: &Pointwise| {
            let mut state = std::collections::hash_map::DefaultHasher::new();
            op.hash(&mut state);
            state.finish()
        };
        let like = OutputType::Like(0);
        let a = Pointwise::new("a", 2, like, &x(0) + &x(1));
        let renamed = Pointwise::new("b", 2, like, &x(0) + &x(1));
        assert!(*a == *renamed && hash(&a) == hash(&renamed));
        for other in [
            Pointwise::new("a", 3, like, &x(0) + &x(1)),
            Pointwise::new("a", 2, OutputType::Like(1), &x(0) + &x(1)),
            Pointwise::new("a", 2, like, &x(0) - &x(1)),
        ] {
            assert!(*a != *other, "{other:?}");
        }
        assert_ne!(hash(&a), hash(&Pointwise::new("a", 2, like, &x(0) - &x(1))));
        assert_ne!(
            hash(&a),
            hash(&Pointwise::new("a", 2, OutputType::Bool, &x(0) + &x(1)))
        );
    }

    #[test]
    fn cached_ops_are_built_once_per_parameters() {
        let build = |v: f64| {
            Pointwise::cached("cached_test", &[v], || {
                Pointwise::new("cached_test", 1, OutputType::Like(0), &x(0) * &c(v))
            })
        };
        assert!(std::ptr::addr_eq(&*build(2.0), &*build(2.0)));
        assert!(!std::ptr::addr_eq(&*build(2.0), &*build(3.0)));
        let once = build(2.0);
        let Rule::Pointwise(slope) = once.rule() else {
            panic!("it is pointwise")
        };
        let partial = slope.partial(0).unwrap();
        let name = partial.op.as_ref().map(|op| op.name());
        assert_eq!(name, Some("cached_test_backward"));
        // The derivative of a derivative keeps the name.
        let square = Pointwise::new("twice_test", 1, OutputType::Like(0), &x(0) * &x(0));
        let op = square.partial(0).unwrap().op.clone().unwrap();
        let Rule::Pointwise(slope) = op.rule() else {
            panic!("derivatives of pointwise ops are pointwise")
        };
        let again = slope.partial(0).unwrap().op.as_ref().unwrap();
        assert_eq!(
            (op.name(), again.name()),
            ("twice_test_backward", "twice_test_backward")
        );
        // What only passes its argument on has no op of its own.
        let add = Pointwise::new("add_test", 2, OutputType::Like(0), &x(0) + &x(1));
        let partial = add.partial(1).unwrap();
        assert!(partial.op.is_none() && partial.reads.is_empty());
    }
}
