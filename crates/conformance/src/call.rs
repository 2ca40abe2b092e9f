//! Binding a recorded call to an operation's argument names.
//!
//! An operation states the names of its arguments in PyTorch's order, after the input, which is
//! always called `input`. Positional values take the names in turn, keyword values by name. A
//! name the operation does not state is [`Unbound`]: the case is then not supported, decided
//! before anything has run.

use entrenar_base::{DType, Error, Result};
use entrenar_core::Tensor;

use crate::suite::{Case, Value};

/// Why a call cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unbound(pub String);

/// The arguments of one call, by name. Tensors are looked up in a list that the caller may have
/// wrapped for differentiation.
pub struct Call<'a> {
    bound: &'a [(&'a str, &'a Value)],
    tensors: &'a [Tensor],
}

/// Names of arguments with their values.
pub type Bound<'a> = Vec<(&'a str, &'a Value)>;

/// Gives each value of `case` one of the names in `arguments` (separated by spaces).
///
/// # Errors
/// [`Unbound`] when there are more values than names, a keyword is unknown or given twice.
pub fn bind<'a>(case: &'a Case, arguments: &'a str) -> Result<Bound<'a>, Unbound> {
    let names: Vec<&str> = arguments.split_whitespace().collect();
    let mut bound = vec![("input", &case.input)];
    for (i, value) in case.args.iter().enumerate() {
        let name = names
            .get(i)
            .ok_or_else(|| Unbound(format!("positional argument {}", i + 1)))?;
        bound.push((name, value));
    }
    for (name, value) in &case.kwargs {
        if !names.contains(&name.as_str()) {
            return Err(Unbound(format!("argument `{name}`")));
        }
        if bound.iter().any(|(n, _)| n == name) {
            return Err(Unbound(format!("argument `{name}`, given twice")));
        }
        bound.push((name, value));
    }
    Ok(bound)
}

impl<'a> Call<'a> {
    /// A call with `tensors` in place of the recorded ones.
    pub fn new(bound: &'a [(&'a str, &'a Value)], tensors: &'a [Tensor]) -> Call<'a> {
        Call { bound, tensors }
    }

    /// The value of `name`; absent and `None` are the same.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.bound
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| *v)
            .filter(|v| **v != Value::None)
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        let got = match self.value(name) {
            Some(value) => format!("{value:?}"),
            None => "none".to_string(),
        };
        Error::argument(name, expected, got)
    }

    fn required<T>(&self, name: &str, expected: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.wrong(name, expected))
    }

    /// The input tensor.
    ///
    /// # Errors
    /// When the input is not a tensor.
    pub fn input(&self) -> Result<&'a Tensor> {
        self.tensor("input")
    }

    /// A tensor that must be there.
    ///
    /// # Errors
    /// When it is absent or no tensor.
    pub fn tensor(&self, name: &str) -> Result<&'a Tensor> {
        let found = self.optional(name)?;
        self.required(name, "a tensor", found)
    }

    /// A tensor that may be absent.
    ///
    /// # Errors
    /// When it is there and no tensor.
    pub fn optional(&self, name: &str) -> Result<Option<&'a Tensor>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Tensor(i)) => Ok(self.tensors.get(*i)),
            Some(_) => Err(self.wrong(name, "a tensor")),
        }
    }

    /// A list of tensors.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn tensors(&self, name: &str) -> Result<Vec<&'a Tensor>> {
        let Some(Value::List(list)) = self.value(name) else {
            return Err(self.wrong(name, "a list of tensors"));
        };
        list.iter()
            .map(|v| match v {
                Value::Tensor(i) => self.required(name, "a tensor", self.tensors.get(*i)),
                _ => Err(self.wrong(name, "a list of tensors")),
            })
            .collect()
    }

    /// A tensor, or a number as a rank-0 tensor of the input's dtype.
    ///
    /// # Errors
    /// When it is absent or neither.
    pub fn operand(&self, name: &str) -> Result<Tensor> {
        if let Some(Value::Tensor(_)) = self.value(name) {
            return self.tensor(name).cloned();
        }
        let number = self.required(name, "a tensor or a number", self.real(name)?)?;
        Ok(Tensor::full([], number, self.input()?.dtype()))
    }

    /// A real number that may be absent.
    ///
    /// # Errors
    /// When it is there and no number.
    pub fn real(&self, name: &str) -> Result<Option<f64>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Int(i)) => Ok(Some(*i as f64)),
            Some(Value::Float(f)) => Ok(Some(*f)),
            Some(Value::Bool(b)) => Ok(Some(f64::from(u8::from(*b)))),
            Some(_) => Err(self.wrong(name, "a number")),
        }
    }

    /// A real number with its default.
    ///
    /// # Errors
    /// When it is there and no number.
    pub fn real_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.real(name)?.unwrap_or(default))
    }

    /// A whole number that may be absent; PyTorch also takes an integer tensor with one element.
    ///
    /// # Errors
    /// When it is there and no whole number.
    pub fn int(&self, name: &str) -> Result<Option<isize>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Int(i)) => Ok(Some(*i as isize)),
            Some(Value::Tensor(_)) if self.tensor(name)?.dtype().is_int() => {
                let number = self.tensor(name)?.to_dtype(DType::I64)?.item::<i64>()?;
                Ok(Some(number as isize))
            }
            Some(_) => Err(self.wrong(name, "a whole number")),
        }
    }

    /// A whole number with its default.
    ///
    /// # Errors
    /// When it is there and no whole number.
    pub fn int_or(&self, name: &str, default: isize) -> Result<isize> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A whole number that must be there.
    ///
    /// # Errors
    /// When it is absent or no whole number.
    pub fn dim(&self, name: &str) -> Result<isize> {
        let found = self.int(name)?;
        self.required(name, "a whole number", found)
    }

    /// A count: a whole number that is not negative.
    ///
    /// # Errors
    /// When it is absent, negative or no whole number.
    pub fn count(&self, name: &str) -> Result<usize> {
        let found = usize::try_from(self.dim(name)?).ok();
        self.required(name, "a number that is not negative", found)
    }

    /// Whole numbers; one number is a list of one.
    ///
    /// # Errors
    /// When it is there and anything else.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<isize>>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Int(i)) => Ok(Some(vec![*i as isize])),
            Some(Value::List(list)) => list
                .iter()
                .map(|v| match v {
                    Value::Int(i) => Ok(*i as isize),
                    _ => Err(self.wrong(name, "whole numbers")),
                })
                .collect::<Result<Vec<_>>>()
                .map(Some),
            Some(_) => Err(self.wrong(name, "whole numbers")),
        }
    }

    /// Dimensions to reduce; absent means all.
    ///
    /// # Errors
    /// When it is there and not whole numbers.
    pub fn dims(&self, name: &str) -> Result<Vec<isize>> {
        Ok(self.ints(name)?.unwrap_or_default())
    }

    /// Counts; one number is a list of one.
    ///
    /// # Errors
    /// When it is absent or anything else.
    pub fn counts(&self, name: &str) -> Result<Vec<usize>> {
        let list = self.ints(name)?;
        let list = self.required(name, "numbers", list)?;
        list.iter()
            .map(|&i| usize::try_from(i).ok())
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong(name, "numbers that are not negative"))
    }

    /// One count per spatial dimension: a single number stands for all, absent or an empty list
    /// for `default`.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn spatial(&self, name: &str, rank: usize, default: &[usize]) -> Result<Vec<usize>> {
        if self.value(name).is_none() {
            return Ok(default.to_vec());
        }
        let list = self.counts(name)?;
        match list.len() {
            0 => Ok(default.to_vec()),
            1 => Ok(vec![list[0]; rank]),
            n if n == rank => Ok(list),
            _ => Err(self.wrong(name, &format!("{rank} numbers"))),
        }
    }

    /// A switch with its default.
    ///
    /// # Errors
    /// When it is there and no boolean.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(name, "True or False")),
        }
    }

    /// A switch, off when absent.
    ///
    /// # Errors
    /// When it is there and no boolean.
    pub fn flag(&self, name: &str) -> Result<bool> {
        self.flag_or(name, false)
    }

    /// A string that may be absent.
    ///
    /// # Errors
    /// When it is there and no string.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Text(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// An error that says which values of `name` exist.
    pub fn unknown(&self, name: &str, expected: &str) -> Error {
        self.wrong(name, expected)
    }
}
