//! [`Parameters`] and [`Module`]: what a model consists of, and what it computes.
//!
//! `Parameters` walks a value and reports each parameter and buffer under the path of its fields;
//! `#[derive(Module)]` writes it. Everything else (names, state, freezing, counting) is written
//! once here over that walk. A parameter reached by two paths (tied weights) counts once, under
//! the first path; the others are its aliases.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;

use entrenar_base::{Array, Error, Result};
use entrenar_core::Tensor;

use crate::state::{self, LoadOptions, LoadReport};
use crate::{Buffer, Ctx, Parameter};

/// Parameters by name, in field order.
pub type NamedParameters = Vec<(String, Parameter)>;

/// Arrays by name: what files of weights and optimizer states hold.
pub type NamedArrays = Vec<(String, Array)>;

/// A module's computation. Its fields are walked by [`Parameters`], which `#[derive(Module)]`
/// writes; `forward` is written by hand.
///
/// ```
/// use entrenar_nn::{Ctx, Init, Linear, Module, Parameters};
/// use entrenar_core::{DType, Result, Tensor};
///
/// #[derive(Module)]
/// struct Net {
///     hidden: Linear,
///     output: Linear,
/// }
///
/// impl Module for Net {
///     fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
///         let h = cx.call("hidden", &self.hidden, x)?.tanh()?;
///         cx.call("output", &self.output, &h)
///     }
/// }
///
/// let init = &mut Init::new(0);
/// let net = Net { hidden: Linear::new(2, 8, init)?, output: Linear::new(8, 1, init)? };
/// let names: Vec<String> = net.named_parameters().into_iter().map(|(n, _)| n).collect();
/// assert_eq!(names, ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]);
/// let y = net.forward(&Tensor::ones([4, 2], DType::F32), &mut Ctx::eval())?;
/// assert_eq!(y.dims(), [4, 1]);
/// # Ok::<(), entrenar_core::Error>(())
/// ```
pub trait Module: Parameters + Send + Sync {
    /// The output for `x`. Training or evaluation, random keys and buffer updates are in `cx`.
    ///
    /// # Errors
    /// When `x` does not fit; the message names the operation and both shapes.
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor>;
}

/// A parameter or a buffer met on the walk.
#[derive(Clone, Copy)]
pub enum Item<'a> {
    /// Trained.
    Parameter(&'a Parameter),
    /// Remembered.
    Buffer(&'a Buffer),
}

/// The walk: knows the path so far and whom to tell.
pub struct Visitor<'a> {
    path: String,
    tell: &'a mut dyn FnMut(&str, Item<'_>),
}

impl<'a> Visitor<'a> {
    /// A walk that starts with an empty path.
    pub fn new(tell: &'a mut dyn FnMut(&str, Item<'_>)) -> Visitor<'a> {
        Visitor {
            path: String::new(),
            tell,
        }
    }

    /// Walks `child` under the name `name`.
    pub fn field(&mut self, name: &str, child: &(impl Parameters + ?Sized)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        child.visit(self);
        self.path.truncate(length);
    }

    /// Reports a parameter or buffer at the present path.
    pub fn item(&mut self, item: Item<'_>) {
        (self.tell)(&self.path, item);
    }
}

/// Something with parameters: a module, a list of modules, a parameter itself.
///
/// Written by `#[derive(Module)]`. Numbers, strings and flags implement it too (they hold
/// nothing), so that only fields of foreign types need `#[module(skip)]`. Without it they do not
/// compile, so that no parameter is left untrained because a derive was forgotten:
///
/// ```compile_fail
/// struct Forgotten { weight: entrenar_nn::Parameter }
/// #[derive(entrenar_nn::Module)]
/// struct Net { part: Forgotten }
/// ```
///
/// ```
/// struct Foreign;
/// #[derive(entrenar_nn::Module)]
/// struct Net { weight: Option<entrenar_nn::Parameter>, #[module(skip)] foreign: Foreign }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not known to hold parameters",
    note = "derive `Module` for it, or mark the field with `#[module(skip)]` when it holds none"
)]
pub trait Parameters {
    /// Reports every parameter and buffer, in field order.
    fn visit(&self, visitor: &mut Visitor<'_>);

    /// All parameters, frozen ones too; a tied one once.
    fn named_parameters(&self) -> NamedParameters {
        state::entries(self)
            .into_iter()
            .filter_map(|e| Some((e.name, e.cell.parameter()?)))
            .collect()
    }

    /// All parameters without their names.
    fn parameters(&self) -> Vec<Parameter> {
        self.named_parameters().into_iter().map(|p| p.1).collect()
    }

    /// The parameters that are not frozen: what an optimizer gets.
    fn trainable_parameters(&self) -> NamedParameters {
        let mut all = self.named_parameters();
        all.retain(|(_, p)| p.trainable());
        all
    }

    /// All buffers; a shared one once.
    fn named_buffers(&self) -> Vec<(String, Buffer)> {
        state::entries(self)
            .into_iter()
            .filter_map(|e| Some((e.name, e.cell.buffer()?)))
            .collect()
    }

    /// Tied names: (alias, the name under which the parameter or buffer is listed).
    fn tied_names(&self) -> Vec<(String, String)> {
        state::entries(self)
            .into_iter()
            .flat_map(|e| e.aliases.into_iter().map(move |a| (a, e.name.clone())))
            .collect()
    }

    /// Number of trained numbers, frozen ones included; tied ones once.
    fn parameter_count(&self) -> usize {
        self.named_parameters().iter().map(|p| p.1.numel()).sum()
    }

    /// The values of all parameters and buffers, in field order: what is saved. Shares memory
    /// with the model until the model changes.
    fn state(&self) -> NamedArrays {
        state::entries(self)
            .into_iter()
            .map(|e| (e.name, e.cell.array()))
            .collect()
    }

    /// Loads values by name; every name must fit, or nothing is loaded.
    ///
    /// Floats are cast to the parameter's dtype. A tied weight may come under any of its names.
    ///
    /// # Errors
    /// One error that lists all missing, unexpected and mismatched names.
    ///
    /// ```
    /// # use entrenar_nn::{Init, Linear, Parameters};
    /// let a = Linear::new(2, 3, &mut Init::new(0))?;
    /// let b = Linear::new(2, 3, &mut Init::new(1))?;
    /// b.load_state(&a.state())?;
    /// assert_eq!(a.weight.value().to_vec::<f32>()?, b.weight.value().to_vec::<f32>()?);
    /// let error = b.load_state(&a.state()[..1]).unwrap_err();
    /// assert!(error.to_string().contains("missing: bias"), "{error}");
    /// # Ok::<(), entrenar_core::Error>(())
    /// ```
    fn load_state(&self, state: &[(String, Array)]) -> Result<()> {
        self.load_state_with(state, LoadOptions::default())
            .map(drop)
    }

    /// [`Parameters::load_state`] that may leave out names; says which.
    ///
    /// # Errors
    /// As [`Parameters::load_state`], for what `options` does not allow.
    fn load_state_with(
        &self,
        state: &[(String, Array)],
        options: LoadOptions,
    ) -> Result<LoadReport> {
        state::load(&state::entries(self), state, options)
    }

    /// Forgets all gradients.
    fn zero_grad(&self) {
        self.parameters().iter().for_each(Parameter::zero_grad);
    }

    /// Freezes every parameter: no gradient, no update.
    fn freeze(&self) {
        self.parameters()
            .iter()
            .for_each(|p| p.set_trainable(false));
    }

    /// Makes every parameter trainable.
    fn unfreeze(&self) {
        self.parameters().iter().for_each(|p| p.set_trainable(true));
    }

    /// The parameter of that name (or alias).
    ///
    /// # Errors
    /// When there is none; the message names those that exist.
    fn parameter(&self, name: &str) -> Result<Parameter> {
        let entries = state::entries(self);
        let found = entries
            .iter()
            .find(|e| e.name == name || e.aliases.iter().any(|a| a == name))
            .and_then(|e| e.cell.parameter());
        found.ok_or_else(|| {
            let names: Vec<&str> = entries
                .iter()
                .filter(|e| e.cell.parameter().is_some())
                .map(|e| e.name.as_str())
                .collect();
            Error::argument(
                "parameter",
                format!("one of {}", state::shorten(&names)),
                name,
            )
        })
    }
}

impl Parameters for Parameter {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        visitor.item(Item::Parameter(self));
    }
}

impl Parameters for Buffer {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        visitor.item(Item::Buffer(self));
    }
}

/// A list with names of its own, as [`Parameters::named_parameters`] returns it.
impl Parameters for [(String, Parameter)] {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        for (name, parameter) in self {
            visitor.field(name, parameter);
        }
    }
}

impl Parameters for NamedParameters {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        self.as_slice().visit(visitor);
    }
}

impl<T: Parameters> Parameters for Option<T> {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        if let Some(inner) = self {
            inner.visit(visitor);
        }
    }
}

impl<T: Parameters> Parameters for [T] {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        for (i, item) in self.iter().enumerate() {
            visitor.field(&i.to_string(), item);
        }
    }
}

impl<T: Parameters> Parameters for Vec<T> {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        self.as_slice().visit(visitor);
    }
}

impl<T: Parameters, const N: usize> Parameters for [T; N] {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        self.as_slice().visit(visitor);
    }
}

impl<T: Parameters> Parameters for BTreeMap<String, T> {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        for (name, item) in self {
            visitor.field(name, item);
        }
    }
}

macro_rules! transparent {
    ($($type:ty),*) => {$(
        impl<T: Parameters + ?Sized> Parameters for $type {
            fn visit(&self, visitor: &mut Visitor<'_>) {
                (**self).visit(visitor);
            }
        }
    )*};
}

transparent!(&T, Box<T>, Arc<T>);

impl<T: Module + ?Sized> Module for Box<T> {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        (**self).forward(x, cx)
    }
}

impl<T: Module + ?Sized> Module for Arc<T> {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        (**self).forward(x, cx)
    }
}

impl<T: Module + ?Sized> Module for &T {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        (**self).forward(x, cx)
    }
}

macro_rules! holds_nothing {
    ($($type:ty),*) => {$(
        impl Parameters for $type {
            fn visit(&self, _: &mut Visitor<'_>) {}
        }
    )*};
}

holds_nothing!(
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    usize,
    i8,
    i16,
    i32,
    i64,
    isize,
    f32,
    f64,
    str,
    String
);

impl<T: ?Sized> Parameters for PhantomData<T> {
    fn visit(&self, _: &mut Visitor<'_>) {}
}

/// Names by identity, for aliases.
pub(crate) type ById = HashMap<u64, usize>;
