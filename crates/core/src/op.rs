//! The operation contract: what an op states about itself so that everything else can be derived.
//!
//! An op gives a name, a shape rule ([`Op::infer`]), a kernel call ([`Op::eval`]) and one of six
//! derivative kinds ([`Rule`]). Reverse mode, forward mode, any order and any nesting follow from
//! the kind, because rules are written with [`Tensor`] functions and so are differentiable
//! themselves. `crate::apply` is the only caller of ops.

use smallvec::SmallVec;
use std::any::Any;
use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use entrenar_base::{Array, DType, Error, Result, Shape};

use crate::Tensor;
use crate::autograd::graph::{Operand, Slot};
use crate::expr::Pointwise;

/// An abstract value: everything known about a tensor except its numbers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Aval {
    /// Sizes of the dimensions.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl Aval {
    /// An abstract value of this shape and dtype.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        Aval {
            shape: shape.into(),
            dtype,
        }
    }

    /// That of an array.
    pub fn of(array: &Array) -> Self {
        Aval {
            shape: array.shape().clone(),
            dtype: array.dtype(),
        }
    }
}

impl Debug for Aval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

/// A few values, the first inline: most ops have one output, and what is moved from call to call is short.
pub type Few<T> = SmallVec<[T; 1]>;

/// A shared handle on an op, held by graph nodes.
#[derive(Clone)]
pub struct OpRef(Held);

#[derive(Clone)]
enum Held {
    /// Nobody counts who holds an op that lives as long as the program.
    Always(&'static dyn Op),
    Shared(Arc<dyn Op>),
}

impl OpRef {
    /// A handle on an op that is never dropped: for those that a `static` keeps.
    pub(crate) fn always<O: Op>(op: Arc<O>) -> OpRef {
        let op: &'static Arc<O> = Box::leak(Box::new(op));
        OpRef(Held::Always(&**op))
    }
}

impl<O: Op> From<Arc<O>> for OpRef {
    fn from(op: Arc<O>) -> OpRef {
        OpRef(Held::Shared(op))
    }
}

impl Deref for OpRef {
    type Target = dyn Op;
    #[inline]
    fn deref(&self) -> &(dyn Op + 'static) {
        match &self.0 {
            Held::Always(op) => *op,
            Held::Shared(op) => &**op,
        }
    }
}

impl Debug for OpRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Equality and hashing of ops behind a handle; implemented for every `Eq + Hash` type.
pub trait OpKey: Any {
    /// The op as [`Any`], for comparisons.
    fn as_any(&self) -> &dyn Any;
    /// True when `other` is the same op with the same parameters.
    fn same(&self, other: &dyn Op) -> bool;
    /// Hash of type and parameters.
    fn key(&self, state: &mut dyn Hasher);
}

impl<T: Any + Eq + Hash> OpKey for T {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn same(&self, other: &dyn Op) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }
    fn key(&self, mut state: &mut dyn Hasher) {
        std::any::TypeId::of::<T>().hash(&mut state);
        self.hash(&mut state);
    }
}

/// One operation with its static parameters.
///
/// Inputs reach [`Op::infer`] and [`Op::eval`] after broadcasting and promotion: binary ops see
/// equal shapes and dtypes. Floats among the parameters are compared by bits ([`Bits`]).
pub trait Op: OpKey + Debug + Send + Sync {
    /// Stable name, as in error messages, profiles and the documentation table.
    fn name(&self) -> &'static str;

    /// Shape and dtype of the outputs, without data.
    ///
    /// # Errors
    /// When the inputs do not fit; the message names the op, the expectation and both shapes.
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>>;

    /// Runs the kernel. `outputs` is what [`Op::infer`] said for these inputs.
    ///
    /// # Errors
    /// When data is impossible (an index out of range, a matrix that is not positive definite).
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>>;

    /// [`Op::infer`], then [`Op::eval`]: what `crate::apply` calls. An op whose kernel checks the
    /// same things again may do both at once; results and errors stay those of the two.
    ///
    /// # Errors
    /// Those of both.
    fn run(&self, inputs: &[&Array]) -> Result<Few<Array>> {
        self.infer_and_eval(inputs)
    }

    /// The plain meaning of [`Op::run`].
    ///
    /// # Errors
    /// Those of both.
    fn infer_and_eval(&self, inputs: &[&Array]) -> Result<Few<Array>> {
        // One and two inputs are nearly all calls: keep their shapes off the general path.
        let expected = match inputs {
            [a] => self.infer(&[&Aval::of(a)])?,
            [a, b] => self.infer(&[&Aval::of(a), &Aval::of(b)])?,
            all => {
                let avals: Vec<Aval> = all.iter().map(|a| Aval::of(a)).collect();
                let refs: Vec<&Aval> = avals.iter().collect();
                self.infer(&refs)?
            }
        };
        self.eval(inputs, &expected)
    }

    /// Its derivative kind.
    fn rule(&self) -> Rule<'_>;
}

/// The six ways in which an op has derivatives. Closed on purpose.
pub enum Rule<'a> {
    /// Nothing flows through: comparisons, rounding, integer results.
    Zero,
    /// Jointly linear in some inputs; the others (indices, masks) are constants.
    Linear(&'a dyn Linear),
    /// Linear in each input separately: products and convolutions.
    Multilinear(&'a dyn Multilinear),
    /// Elementwise; derivatives come from the expression itself.
    Pointwise(&'a Pointwise),
    /// Fused: defined by simpler ops, optionally with a hand-written backward kernel.
    Expand(&'a dyn Expand),
    /// Both rules by hand.
    Explicit(&'a dyn Explicit),
}

impl Rule<'_> {
    /// The kind's name, for the documentation table.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::Zero => "zero",
            Rule::Linear(_) => "linear",
            Rule::Multilinear(_) => "multilinear",
            Rule::Pointwise(_) => "pointwise",
            Rule::Expand(_) => "expand",
            Rule::Explicit(_) => "explicit",
        }
    }
}

/// Derivative of an op that is jointly linear in some of its inputs.
pub trait Linear {
    /// Whether input `i` is one of the linear ones. Others keep their value in derivatives.
    fn linear_in(&self, _input: usize) -> bool {
        true
    }

    /// Sends `cx.cotangent(j)` back to each input that `sink.needs`.
    ///
    /// Only non-linear inputs may be read with `cx.input(i)`; shapes come from `cx.aval(i)`.
    ///
    /// # Errors
    /// Whatever the ops it calls return.
    fn transpose(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()>;
}

/// Derivative of an op with one output that is linear in each input separately.
pub trait Multilinear {
    /// The transpose with respect to input `i`: reads the *other* inputs through `cx`.
    ///
    /// # Errors
    /// Whatever the ops it calls return.
    fn transpose(&self, i: usize, cotangent: &Tensor, cx: &VjpCx<'_>) -> Result<Tensor>;
}

/// Derivative of a fused op: its plain definition, and perhaps a faster backward kernel.
pub trait Expand {
    /// The same function in simpler ops; returns the visible outputs only.
    ///
    /// # Errors
    /// Whatever the ops it calls return.
    fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>>;

    /// How many outputs users see; the rest are caches for the backward kernel and carry no
    /// gradient.
    fn visible(&self) -> usize {
        1
    }

    /// The hand-written backward kernel, if there is one.
    fn backward(&self) -> Option<&dyn BackwardKernel> {
        None
    }
}

/// A fused backward pass on concrete arrays. Its own derivatives are those of the expansion.
pub trait BackwardKernel {
    /// Which outputs (caches included) the kernel reads; others are not saved.
    fn reads_output(&self, _output: usize) -> bool {
        true
    }

    /// Gradients of the inputs for which `needs` is true, `None` elsewhere.
    ///
    /// All inputs are present; `outputs[j]` is present where [`BackwardKernel::reads_output`];
    /// `cotangents` holds one entry per visible output, `None` where nothing flowed.
    ///
    /// # Errors
    /// Whatever the kernel returns.
    fn eval_backward(
        &self,
        inputs: &[&Array],
        outputs: &[Option<&Array>],
        cotangents: &[Option<&Array>],
        needs: &[bool],
    ) -> Result<Few<Option<Array>>>;
}

/// Which values an explicit rule reads in its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Bit `i`: input `i`.
    pub inputs: u32,
    /// Bit `j`: output `j`.
    pub outputs: u32,
}

impl Reads {
    /// Reads nothing.
    pub const NOTHING: Reads = Reads {
        inputs: 0,
        outputs: 0,
    };

    /// Reads these inputs and outputs.
    pub fn new(inputs: &[usize], outputs: &[usize]) -> Reads {
        let mask = |list: &[usize]| list.iter().fold(0, |m, &i| m | 1 << i);
        Reads {
            inputs: mask(inputs),
            outputs: mask(outputs),
        }
    }
}

/// Both derivative rules by hand, written in [`Tensor`] functions so that orders compose.
pub trait Explicit {
    /// What [`Explicit::vjp`] reads when the gradients in `needs` are wanted.
    fn reads(&self, needs: &[bool]) -> Reads;

    /// Sends cotangents back.
    ///
    /// # Errors
    /// Whatever the ops it calls return.
    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()>;

    /// Pushes tangents forward; one entry per output, `None` for no tangent.
    ///
    /// # Errors
    /// Whatever the ops it calls return.
    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>>;
}

/// What a backward rule may read.
pub struct VjpCx<'a> {
    pub(crate) op: &'static str,
    /// Opened, as those of the outputs: no slot waits for a replay.
    pub(crate) inputs: &'a [Option<Slot>],
    pub(crate) outputs: &'a [Option<Slot>],
    pub(crate) operands: &'a [Operand],
    pub(crate) cotangents: &'a [Option<Tensor>],
}

impl VjpCx<'_> {
    /// The value of input `i`.
    ///
    /// # Errors
    /// When the rule did not declare that it reads it.
    pub fn input(&self, i: usize) -> Result<&Tensor> {
        let slot = self.inputs.get(i);
        slot.and_then(saved_value).ok_or_else(|| {
            Error::autodiff(
                self.op,
                format!("backward reads input {i}, which its rule does not declare"),
            )
        })
    }

    /// The value of output `j`.
    ///
    /// # Errors
    /// When the rule did not declare that it reads it.
    pub fn output(&self, j: usize) -> Result<&Tensor> {
        self.read_output(j).ok_or_else(|| {
            Error::autodiff(
                self.op,
                format!("backward reads output {j}, which its rule does not declare"),
            )
        })
    }

    /// The value of output `j`, where the rule declared that it reads it.
    pub(crate) fn read_output(&self, j: usize) -> Option<&Tensor> {
        self.outputs.get(j).and_then(saved_value)
    }

    /// Number of outputs, those that nobody sees included.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Shape and dtype of input `i`; always known.
    pub fn aval(&self, i: usize) -> &Aval {
        &self.operands[i].aval
    }

    /// Number of inputs.
    pub fn arity(&self) -> usize {
        self.operands.len()
    }

    /// The gradient that flowed into output `j`, if any did.
    pub fn cotangent(&self, j: usize) -> Option<&Tensor> {
        self.cotangents.get(j).and_then(Option::as_ref)
    }
}

fn saved_value(slot: &Option<Slot>) -> Option<&Tensor> {
    slot.as_ref().and_then(Slot::value)
}

/// What a forward rule may read: everything.
pub struct JvpCx<'a> {
    /// Input values.
    pub inputs: &'a [&'a Tensor],
    /// Output values.
    pub outputs: &'a [Tensor],
    /// Input tangents; `None` means zero.
    pub tangents: &'a [Option<Tensor>],
}

/// Where backward rules put gradients.
pub struct Sink<'a> {
    pub(crate) needs: &'a [bool],
    pub(crate) gradients: &'a mut [Option<Gradient>],
}

/// A contribution on its way to an operand.
pub(crate) enum Gradient {
    /// All of it.
    Whole(Tensor),
    /// Zero except for a part: added in place where the operand already has a gradient.
    Part(Tensor, Box<dyn Place>),
}

/// Where a partial contribution lies in the gradient of its operand.
pub(crate) trait Place {
    /// The whole gradient.
    ///
    /// # Errors
    /// Whatever the ops it calls return.
    fn embed(&self, part: &Tensor) -> Result<Tensor>;

    /// Adds `part` to `target` without building the zeros around it; false when there is no way for
    /// its dtype. Many parts of one tensor thus cost their own size each, and not the size of the
    /// whole every time.
    ///
    /// # Errors
    /// When the part does not fit.
    fn add_in_place(&self, target: &mut Array, part: &Array) -> Result<bool>;
}

impl Sink<'_> {
    /// Whether anybody wants the gradient of input `i`.
    pub fn needs(&self, i: usize) -> bool {
        self.needs[i]
    }

    /// Adds `gradient` to what input `i` has received.
    ///
    /// # Errors
    /// When shapes of two contributions differ.
    #[inline]
    pub fn add(&mut self, i: usize, gradient: Tensor) -> Result<()> {
        if self.needs[i] {
            self.merge(i, Gradient::Whole(gradient))?;
        }
        Ok(())
    }

    /// Adds a gradient that is zero outside one part of input `i`.
    pub(crate) fn add_part(
        &mut self,
        i: usize,
        gradient: Tensor,
        at: impl Place + 'static,
    ) -> Result<()> {
        if self.needs[i] {
            self.merge(i, Gradient::Part(gradient, Box::new(at)))?;
        }
        Ok(())
    }

    #[inline]
    fn merge(&mut self, i: usize, gradient: Gradient) -> Result<()> {
        match self.gradients[i].take() {
            None => self.gradients[i] = Some(gradient),
            Some(earlier) => {
                let mut sum = None;
                crate::autograd::accumulate_gradient(&mut sum, earlier)?;
                crate::autograd::accumulate_gradient(&mut sum, gradient)?;
                self.gradients[i] = sum.map(Gradient::Whole);
            }
        }
        Ok(())
    }
}

/// An f64 parameter compared and hashed by its bits, so that ops are `Eq`.
#[derive(Clone, Copy)]
pub struct Bits(pub f64);

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Bits {}
impl Hash for Bits {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
impl Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::handle;

    /// Adds one, under a rule of every kind.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Probe {
        kind: u8,
        amount: Bits,
    }

    impl Op for Probe {
        fn name(&self) -> &'static str {
            "probe"
        }
        fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
            Ok(crate::apply::one(inputs[0].clone()))
        }
        fn eval(&self, inputs: &[&Array], _: &[Aval]) -> Result<Few<Array>> {
            Ok(crate::apply::one(inputs[0].clone()))
        }
        fn rule(&self) -> Rule<'_> {
            match self.kind {
                0 => Rule::Zero,
                1 => Rule::Linear(self),
                2 => Rule::Multilinear(self),
                3 => Rule::Expand(self),
                _ => Rule::Explicit(self),
            }
        }
    }

    impl Linear for Probe {
        fn transpose(&self, cx: &VjpCx<'_>, _: &mut Sink<'_>) -> Result<()> {
            // Reads what the rule did not declare.
            cx.input(0).map(drop)
        }
    }
    impl Multilinear for Probe {
        fn transpose(&self, _: usize, _: &Tensor, cx: &VjpCx<'_>) -> Result<Tensor> {
            cx.output(0).cloned()
        }
    }
    impl Expand for Probe {
        fn expand(&self, inputs: &[&Tensor]) -> Result<Few<Tensor>> {
            Ok(crate::apply::one(inputs[0].clone()))
        }
    }
    impl Explicit for Probe {
        fn reads(&self, _: &[bool]) -> Reads {
            Reads::NOTHING
        }
        fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
            // Two contributions to one input add up.
            for _ in 0..2 {
                if let Some(g) = cx.cotangent(0) {
                    sink.add(0, g.clone())?;
                }
            }
            Ok(())
        }
        fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
            Ok(crate::apply::one(cx.tangents[0].clone()))
        }
    }

    fn probe(kind: u8) -> Probe {
        Probe {
            kind,
            amount: Bits(1.0),
        }
    }

    #[test]
    fn rules_have_names() {
        let names: Vec<&str> = (0..5).map(|kind| probe(kind).rule().name()).collect();
        assert_eq!(
            names,
            ["zero", "linear", "multilinear", "expand", "explicit"]
        );
        let exp = crate::expr::x(0).unary(entrenar_cpu::pointwise::Unary::Exp);
        let op = Pointwise::new("exp", 1, crate::expr::OutputType::Like(0), exp);
        assert_eq!(op.rule().name(), "pointwise");
    }

    #[test]
    fn defaults_of_the_contract() {
        let probe = probe(1);
        assert!(probe.linear_in(0) && probe.linear_in(7));
        assert_eq!(probe.visible(), 1);
        assert!(probe.backward().is_none());
    }

    /// Ops behind handles are equal when type and parameters are, and equal ops have equal keys.
    #[test]
    fn handles_compare_types_and_parameters() {
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        struct Other(Probe);
        impl Op for Other {
            fn name(&self) -> &'static str {
                "other"
            }
            fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
                self.0.infer(inputs)
            }
            fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
                self.0.eval(inputs, outputs)
            }
            fn rule(&self) -> Rule<'_> {
                self.0.rule()
            }
        }
        let key = |op: &dyn Op| {
            let mut state = std::collections::hash_map::DefaultHasher::new();
            op.key(&mut state);
            state.finish()
        };
        let a = handle(probe(0));
        let same = handle(probe(0));
        let changed = handle(Probe {
            amount: Bits(2.0),
            ..probe(0)
        });
        let foreign = handle(Other(probe(0)));
        assert!(a.same(&*a) && a.same(&*same));
        assert!(!a.same(&*changed) && !a.same(&*foreign) && !foreign.same(&*a));
        assert_eq!(key(&*a), key(&*same));
        assert_ne!(key(&*a), key(&*changed));
        assert_ne!(key(&*a), key(&*foreign));
    }

    #[test]
    fn parameters_compare_by_bits() {
        assert_eq!(Bits(f64::NAN), Bits(f64::NAN));
        assert_ne!(Bits(0.0), Bits(-0.0));
        assert_eq!(format!("{:?}", Bits(1.5)), "1.5");
        assert_eq!(
            Reads::new(&[0, 2], &[1]),
            Reads {
                inputs: 5,
                outputs: 2
            }
        );
    }

    #[test]
    fn rules_that_read_what_they_did_not_declare_are_named() {
        let x = Tensor::from_vec(vec![1.0f64], [1])
            .unwrap()
            .requires_grad()
            .unwrap();
        let backward = |kind| {
            let y = crate::apply::apply1(&crate::apply::handle(probe(kind)), &[&x]).unwrap();
            y.backward()
        };
        let e = backward(1).unwrap_err().to_string();
        assert!(
            e.contains("[probe] backward reads input 0, which its rule"),
            "{e}"
        );
        assert!(
            e.contains("in the backward pass of `probe` recorded at"),
            "{e}"
        );
        let e = backward(2).unwrap_err().to_string();
        assert!(
            e.contains("[probe] backward reads output 0, which its rule"),
            "{e}"
        );
        backward(4).unwrap();
        assert_eq!(x.grad().unwrap().to_vec::<f64>().unwrap(), [2.0]);
        assert_eq!(format!("{:?}", x.aval()), "f64[1]");
    }
}
