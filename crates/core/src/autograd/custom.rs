//! Operations from outside the library: the [`CustomOp`] trait and [`Tensor::apply_custom`].
//!
//! A custom op takes part in every transform like a built-in one. It states its shape rule and its
//! function, and as many derivative rules as it likes: `backward` for reverse mode, `jvp` for
//! forward mode, or `expand`, its plain definition in library functions, from which a missing rule
//! is derived. A mode without a rule is an error that names the op, never a silent zero. Rules are
//! written in [`Tensor`] functions, so second and higher orders follow from them. Its engine side
//! is an explicit rule like those of [`crate::ops`].

use smallvec::smallvec;
use std::fmt::{self, Debug};
use std::sync::Arc;

use entrenar_base::{Array, Error, Result};

use super::functional::{jvp, vjp};
use super::hooks::ByIdentity;
use crate::apply::{apply, handle};
use crate::op::{Aval, Explicit, Few, JvpCx, Op, Reads, Rule, Sink, VjpCx};
use crate::tensor::Tensor;

/// An operation defined outside the library.
///
/// Inputs of `forward` are plain values without history; those of the rules carry whatever
/// transforms are running, so use [`Tensor`] functions on them and never their raw numbers.
///
/// A `backward` that differs from the true derivative on purpose (straight-through estimators,
/// gradient scaling) is allowed. Forward mode then needs its own `jvp` with the same intent.
///
/// ```
/// use entrenar_core::autograd::{BackwardCx, CustomOp};
/// use entrenar_core::{Result, Tensor};
///
/// /// Rounds, and lets the gradient through as if it did not.
/// #[derive(Debug)]
/// struct StraightThroughRound;
///
/// impl CustomOp for StraightThroughRound {
///     fn name(&self) -> &'static str {
///         "straight_through_round"
///     }
///     fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
///         Ok(vec![inputs[0].round()?])
///     }
///     fn backward(
///         &self,
///         _: &BackwardCx<'_>,
///         cotangents: &[Option<&Tensor>],
///     ) -> Result<Vec<Option<Tensor>>> {
///         Ok(vec![cotangents[0].cloned()])
///     }
/// }
///
/// let x = Tensor::from_vec(vec![0.4f32, 1.6], [2])?.requires_grad()?;
/// let y = Tensor::apply_custom(StraightThroughRound, &[&x])?.remove(0);
/// assert_eq!(y.to_vec::<f32>()?, [0.0, 2.0]);
/// y.sum()?.backward()?;
/// assert_eq!(x.grad().unwrap().to_vec::<f32>()?, [1.0, 1.0]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub trait CustomOp: Debug + Send + Sync + 'static {
    /// The name in error messages and profiles.
    fn name(&self) -> &'static str;

    /// Shapes and dtypes of the outputs; without data, because transforms may ask before there is
    /// any. As written here: one output like the first input.
    ///
    /// # Errors
    /// When the inputs do not fit.
    fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
        match inputs.first() {
            Some(first) => Ok(vec![(*first).clone()]),
            None => Err(Error::argument(self.name(), "at least one input", "none")),
        }
    }

    /// The function.
    ///
    /// # Errors
    /// Whatever the op finds wrong.
    fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>>;

    /// Which inputs and outputs [`CustomOp::backward`] reads; others are not kept in memory. As
    /// written here: all.
    fn reads(&self) -> Reads {
        Reads {
            inputs: u32::MAX,
            outputs: u32::MAX,
        }
    }

    /// Reverse mode: one gradient per input from one cotangent per output, `None` for "nothing
    /// flows". As written here: derived from [`CustomOp::expand`].
    ///
    /// # Errors
    /// When there is neither this rule nor an expansion, or whatever the rule returns.
    fn backward(
        &self,
        cx: &BackwardCx<'_>,
        cotangents: &[Option<&Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        backward_of_expansion(self.name(), &|inputs| self.expand(inputs), cx, cotangents)
    }

    /// Forward mode: one tangent per output from one per input, `None` for zero. As written here:
    /// derived from [`CustomOp::expand`].
    ///
    /// # Errors
    /// When there is neither this rule nor an expansion, or whatever the rule returns.
    fn jvp(
        &self,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
        tangents: &[Option<&Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        let _ = outputs;
        jvp_of_expansion(self.name(), &|inputs| self.expand(inputs), inputs, tangents)
    }

    /// The same function in differentiable library functions, from which missing rules are
    /// derived. `None`: there is none.
    fn expand(&self, inputs: &[&Tensor]) -> Option<Result<Vec<Tensor>>> {
        let _ = inputs;
        None
    }
}

/// What [`CustomOp::backward`] may read.
pub struct BackwardCx<'a> {
    cx: &'a VjpCx<'a>,
    needs: &'a [bool],
}

impl BackwardCx<'_> {
    /// The value of input `i`.
    ///
    /// # Errors
    /// When [`CustomOp::reads`] leaves it out.
    pub fn input(&self, i: usize) -> Result<&Tensor> {
        self.cx.input(i)
    }

    /// The value of output `j`.
    ///
    /// # Errors
    /// When [`CustomOp::reads`] leaves it out.
    pub fn output(&self, j: usize) -> Result<&Tensor> {
        self.cx.output(j)
    }

    /// Number of inputs.
    pub fn arity(&self) -> usize {
        self.cx.arity()
    }

    /// Shape and dtype of input `i`; always known.
    pub fn aval(&self, i: usize) -> &Aval {
        self.cx.aval(i)
    }

    /// Whether the gradient of input `i` is wanted.
    pub fn needs(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }
}

type Expansion<'a> = dyn Fn(&[&Tensor]) -> Option<Result<Vec<Tensor>>> + 'a;

fn missing(name: &str, mode: &str, method: &str) -> Error {
    Error::autodiff(
        name,
        format!(
            "this custom op has no {mode} rule: implement CustomOp::{method} or CustomOp::expand"
        ),
    )
}

fn run_expansion(
    expand: &Expansion<'_>,
    inputs: &[Tensor],
    otherwise: impl FnOnce() -> Error,
) -> Result<Vec<Tensor>> {
    let refs: Vec<&Tensor> = inputs.iter().collect();
    expand(&refs).unwrap_or_else(|| Err(otherwise()))
}

fn backward_of_expansion(
    name: &'static str,
    expand: &Expansion<'_>,
    cx: &BackwardCx<'_>,
    cotangents: &[Option<&Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    let inputs: Vec<&Tensor> = (0..cx.arity())
        .map(|i| cx.input(i))
        .collect::<Result<_>>()?;
    let (outputs, pullback) = vjp(
        |t| run_expansion(expand, t, || missing(name, "reverse-mode", "backward")),
        &inputs,
    )?;
    check_count(name, "outputs from expand", cotangents.len(), outputs.len())?;
    let cotangents: Vec<Tensor> = outputs
        .iter()
        .zip(cotangents)
        .map(|(out, cot)| cot.map_or_else(|| out.detach().zeros_like(), Clone::clone))
        .collect();
    let gradients = pullback.call(&cotangents.iter().collect::<Vec<_>>())?;
    Ok(gradients
        .into_iter()
        .enumerate()
        .map(|(i, g)| cx.needs(i).then_some(g))
        .collect())
}

fn jvp_of_expansion(
    name: &'static str,
    expand: &Expansion<'_>,
    inputs: &[&Tensor],
    tangents: &[Option<&Tensor>],
) -> Result<Vec<Option<Tensor>>> {
    // Only inputs with a tangent take part: integers cannot.
    let moving: Vec<usize> = (0..inputs.len())
        .filter(|&i| tangents[i].is_some())
        .collect();
    let values: Vec<&Tensor> = moving.iter().map(|&i| inputs[i]).collect();
    let directions: Vec<&Tensor> = moving.iter().filter_map(|&i| tangents[i]).collect();
    let of_moving = |t: &[Tensor]| {
        let mut all: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
        for (&i, t) in moving.iter().zip(t) {
            all[i] = t.clone();
        }
        run_expansion(expand, &all, || missing(name, "forward-mode", "jvp"))
    };
    let (_, pushed) = jvp(of_moving, &values, &directions)?;
    Ok(pushed.into_iter().map(Some).collect())
}

fn check_count(name: &str, what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::argument(name, format!("{expected} {what}"), got))
}

/// Inputs and outputs a rule can name: the bits of [`Reads`].
const MOST: usize = 32;

/// A custom op as the engine sees it; compared by identity.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Custom {
    op: ByIdentity<dyn CustomOp>,
}

impl Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.op.0.fmt(f)
    }
}

impl Op for Custom {
    fn name(&self) -> &'static str {
        self.op.0.name()
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Few<Aval>> {
        let outputs = self.op.0.infer(inputs)?;
        if outputs.is_empty() || outputs.len() > MOST {
            let count = outputs.len();
            return Err(Error::argument(
                self.name(),
                format!("1 to {MOST} outputs"),
                count,
            ));
        }
        Ok(outputs.into())
    }
    fn eval(&self, inputs: &[&Array], outputs: &[Aval]) -> Result<Few<Array>> {
        let inputs: Vec<Tensor> = inputs.iter().map(|a| Tensor::from((*a).clone())).collect();
        let refs: Vec<&Tensor> = inputs.iter().collect();
        let found = self.op.0.forward(&refs)?;
        let fits =
            found.len() == outputs.len() && found.iter().zip(outputs).all(|(t, a)| t.aval() == *a);
        if !fits {
            let found: Vec<Aval> = found.iter().map(Tensor::aval).collect();
            return Err(Error::shape(
                self.name(),
                format!("outputs {outputs:?}, as its shape rule (CustomOp::infer) says"),
                format!("{found:?}"),
            ));
        }
        Ok(found.iter().map(|t| t.array().clone()).collect())
    }
    fn rule(&self) -> Rule<'_> {
        Rule::Explicit(self)
    }
}

/// Checks what a rule returned for the value described by `aval`.
fn check_like(name: &str, what: &str, aval: &Aval, found: &Option<Tensor>) -> Result<()> {
    match found {
        Some(t) if t.aval() != *aval => Err(Error::shape(
            name,
            format!("{what} like {aval:?}"),
            format!("{:?}", t.aval()),
        )),
        _ => Ok(()),
    }
}

impl Explicit for Custom {
    fn reads(&self, _: &[bool]) -> Reads {
        self.op.0.reads()
    }

    fn vjp(&self, cx: &VjpCx<'_>, sink: &mut Sink<'_>) -> Result<()> {
        let name = self.name();
        let needs: Vec<bool> = (0..cx.arity()).map(|i| sink.needs(i)).collect();
        let cotangents: Vec<Option<&Tensor>> = cx.cotangents.iter().map(Option::as_ref).collect();
        let cx = BackwardCx { cx, needs: &needs };
        let found = self.op.0.backward(&cx, &cotangents)?;
        check_count(name, "gradients, one per input", needs.len(), found.len())?;
        for (i, gradient) in found.into_iter().enumerate().filter(|(i, _)| needs[*i]) {
            check_like(
                name,
                &format!("a gradient of input {i}"),
                cx.aval(i),
                &gradient,
            )?;
            if let Some(g) = gradient {
                sink.add(i, g)?;
            }
        }
        Ok(())
    }

    fn jvp(&self, cx: &JvpCx<'_>) -> Result<Few<Option<Tensor>>> {
        let name = self.name();
        if cx.tangents.iter().all(Option::is_none) {
            return Ok(smallvec![None; cx.outputs.len()]);
        }
        let outputs: Vec<&Tensor> = cx.outputs.iter().collect();
        let tangents: Vec<Option<&Tensor>> = cx.tangents.iter().map(Option::as_ref).collect();
        let found = self.op.0.jvp(cx.inputs, &outputs, &tangents)?;
        check_count(name, "tangents, one per output", outputs.len(), found.len())?;
        for (j, (tangent, out)) in found.iter().zip(&outputs).enumerate() {
            check_like(
                name,
                &format!("a tangent of output {j}"),
                &out.aval(),
                tangent,
            )?;
        }
        Ok(found.into())
    }
}

impl Tensor {
    /// Runs a custom op; it is differentiated by its own rules. Pass an `Arc` to use one op many
    /// times.
    ///
    /// # Errors
    /// Whatever the op returns, and when its outputs are not what its shape rule says.
    #[track_caller]
    pub fn apply_custom(op: impl CustomOp, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        if inputs.len() > MOST {
            let count = inputs.len();
            return Err(Error::argument(
                op.name(),
                format!("at most {MOST} inputs"),
                count,
            ));
        }
        let op: Arc<dyn CustomOp> = Arc::new(op);
        let op = Custom { op: ByIdentity(op) };
        Ok(apply(&handle(op), inputs)?.into_vec())
    }
}

impl<T: CustomOp + ?Sized> CustomOp for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
        (**self).infer(inputs)
    }
    fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        (**self).forward(inputs)
    }
    fn reads(&self) -> Reads {
        (**self).reads()
    }
    fn backward(
        &self,
        cx: &BackwardCx<'_>,
        cotangents: &[Option<&Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        (**self).backward(cx, cotangents)
    }
    fn jvp(
        &self,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
        tangents: &[Option<&Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        (**self).jvp(inputs, outputs, tangents)
    }
    fn expand(&self, inputs: &[&Tensor]) -> Option<Result<Vec<Tensor>>> {
        (**self).expand(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{GradCheck, check_gradient, checkpoint, value_and_grad};
    use entrenar_base::DType;

    /// x·y and x + y; `rules` says which are written by hand.
    #[derive(Debug)]
    struct ProductAndSum {
        backward: bool,
        jvp: bool,
        expand: bool,
    }

    impl CustomOp for ProductAndSum {
        fn name(&self) -> &'static str {
            "product_and_sum"
        }
        fn infer(&self, inputs: &[&Aval]) -> Result<Vec<Aval>> {
            Ok(vec![inputs[0].clone(); 2])
        }
        fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            assert!(inputs.iter().all(|t| !t.is_tracked()));
            Ok(vec![inputs[0].mul(inputs[1])?, inputs[0].add(inputs[1])?])
        }
        fn reads(&self) -> Reads {
            Reads::new(&[0, 1], &[])
        }
        fn backward(
            &self,
            cx: &BackwardCx<'_>,
            cotangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            if !self.backward {
                return backward_of_expansion(self.name(), &|t| self.expand(t), cx, cotangents);
            }
            let mut gradients = vec![None, None];
            for (i, gradient) in gradients.iter_mut().enumerate() {
                let mut sum = None;
                if let Some(g) = cotangents[0] {
                    crate::autograd::accumulate(&mut sum, g.mul(cx.input(1 - i)?)?)?;
                }
                if let Some(g) = cotangents[1] {
                    crate::autograd::accumulate(&mut sum, g.clone())?;
                }
                *gradient = sum;
            }
            Ok(gradients)
        }
        fn jvp(
            &self,
            inputs: &[&Tensor],
            outputs: &[&Tensor],
            tangents: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            if !self.jvp {
                return jvp_of_expansion(self.name(), &|t| self.expand(t), inputs, tangents);
            }
            let zero = outputs[0].zeros_like();
            let t = |i: usize| tangents[i].unwrap_or(&zero);
            let product = t(0).mul(inputs[1])?.add(&t(1).mul(inputs[0])?)?;
            Ok(vec![Some(product), Some(t(0).add(t(1))?)])
        }
        fn expand(&self, inputs: &[&Tensor]) -> Option<Result<Vec<Tensor>>> {
            self.expand
                .then(|| Ok(vec![inputs[0].mul(inputs[1])?, inputs[0].add(inputs[1])?]))
        }
    }

    fn pair() -> [Tensor; 2] {
        [
            Tensor::from_vec(vec![0.3f64, -1.2, 2.0], [3]).unwrap(),
            Tensor::from_vec(vec![1.5f64, 0.4, -0.7], [3]).unwrap(),
        ]
    }

    /// Every way to provide rules gives exact derivatives of order 3 in all mode mixes.
    #[test]
    fn rules_by_hand_and_from_the_expansion_agree_with_differences() {
        let [x, y] = pair();
        for (backward, jvp, expand) in [
            (true, true, false),
            (true, false, true),
            (false, true, true),
            (false, false, true),
        ] {
            let f = |t: &[Tensor]| {
                let op = ProductAndSum {
                    backward,
                    jvp,
                    expand,
                };
                let out = Tensor::apply_custom(op, &[&t[0].sin()?, &t[1]])?;
                Ok(vec![out[0].exp()?, out[1].clone()])
            };
            let settings = GradCheck {
                order: 3,
                ..Default::default()
            };
            check_gradient(f, &[&x, &y], &settings).unwrap();
        }
    }

    #[test]
    fn a_mode_without_a_rule_is_an_error_naming_the_op() {
        let [x, y] = pair();
        let op = Arc::new(ProductAndSum {
            backward: false,
            jvp: false,
            expand: false,
        });
        let run = |t: &[Tensor]| Tensor::apply_custom(op.clone(), &[&t[0], &t[1]]);
        let e = value_and_grad(|t| run(t)?[0].sum(), &[&x, &y]).unwrap_err();
        let wanted = "[product_and_sum] this custom op has no reverse-mode rule: implement \
                      CustomOp::backward or CustomOp::expand";
        assert!(e.to_string().contains(wanted), "{e}");
        let e = crate::autograd::jvp(run, &[&x, &y], &[&y, &x]).unwrap_err();
        assert!(e.to_string().contains("no forward-mode rule"), "{e}");
        // Without a transform none is needed.
        assert_eq!(run(&pair()).unwrap().len(), 2);
    }

    #[test]
    fn checkpoints_replay_custom_ops() {
        let [x, y] = pair();
        let run = |t: &[Tensor]| {
            let op = ProductAndSum {
                backward: true,
                jvp: false,
                expand: false,
            };
            Tensor::apply_custom(op, &[&t[0].exp()?, &t[1]])
        };
        let plain = value_and_grad(|t| run(t)?[0].sum(), &[&x, &y]).unwrap().1;
        let replayed = value_and_grad(|t| checkpoint(run, &[&t[0], &t[1]])?[0].sum(), &[&x, &y])
            .unwrap()
            .1;
        for (a, b) in plain.iter().zip(&replayed) {
            assert_eq!(a.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap());
        }
    }

    /// Rules that return nonsense.
    #[derive(Debug)]
    struct Wrong(u8);

    impl CustomOp for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }
        fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            match self.0 {
                0 => inputs[0].sum().map(|t| vec![t]),
                _ => Ok(vec![inputs[0].clone()]),
            }
        }
        fn reads(&self) -> Reads {
            Reads::NOTHING
        }
        fn backward(
            &self,
            cx: &BackwardCx<'_>,
            _: &[Option<&Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            match self.0 {
                1 => Ok(vec![]),
                2 => Ok(vec![Some(Tensor::zeros([1], DType::F64))]),
                _ => Ok(vec![Some(cx.input(0)?.clone())]),
            }
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_clear_message() {
        let [x, _] = pair();
        let say = |kind| {
            value_and_grad(
                |t| Tensor::apply_custom(Wrong(kind), &[&t[0]])?[0].sum(),
                &[&x],
            )
            .unwrap_err()
            .to_string()
        };
        assert!(say(0).contains("as its shape rule"), "{}", say(0));
        assert!(say(1).contains("1 gradients, one per input"), "{}", say(1));
        assert!(
            say(2).contains("a gradient of input 0 like f64[3]"),
            "{}",
            say(2)
        );
        assert!(say(3).contains("does not declare"), "{}", say(3));
        assert!(Tensor::apply_custom(Wrong(4), &[]).is_err());
    }
}
