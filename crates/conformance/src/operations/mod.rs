//! The table: PyTorch's operations and their arguments in terms of the library's methods.
//!
//! One file per family, one entry per operation: its name, the names of its arguments after
//! `input` in PyTorch's order, and the call. An argument that is not named in an entry makes the
//! case not supported; an argument that is named must be honoured.

mod activation;
mod convolution;
mod elementwise;
mod index;
mod interpolate;
mod linear;
mod loss;
mod normalization;
mod pooling;
mod reduction;
mod shape;
mod sorting;

use entrenar_base::Result;
use entrenar_core::Tensor;

use crate::call::Call;

/// One operation of the table.
pub struct Operation {
    /// PyTorch's name.
    pub name: &'static str,
    /// Names of the arguments after `input`, in PyTorch's order, separated by spaces.
    pub arguments: &'static str,
    /// Runs the operation.
    pub run: fn(&Call<'_>) -> Result<Vec<Tensor>>,
}

/// All operations, family by family.
pub const FAMILIES: &[&[Operation]] = &[
    activation::OPERATIONS,
    convolution::OPERATIONS,
    elementwise::OPERATIONS,
    index::OPERATIONS,
    interpolate::OPERATIONS,
    linear::OPERATIONS,
    loss::OPERATIONS,
    normalization::OPERATIONS,
    pooling::OPERATIONS,
    reduction::OPERATIONS,
    shape::OPERATIONS,
    sorting::OPERATIONS,
];

/// The entry of an operation.
pub fn find(name: &str) -> Option<&'static Operation> {
    FAMILIES
        .iter()
        .flat_map(|f| f.iter())
        .find(|o| o.name == name)
}

/// An entry with one output: `one!("name", "arguments", |c| call)`.
macro_rules! one {
    ($name:literal, $arguments:literal, |$c:ident| $call:expr) => {
        crate::operations::Operation {
            name: $name,
            arguments: $arguments,
            run: |$c| Ok(vec![$call?]),
        }
    };
}

/// An entry with several outputs: `many!("name", "arguments", |c| call)`.
macro_rules! many {
    ($name:literal, $arguments:literal, |$c:ident| $call:expr) => {
        crate::operations::Operation {
            name: $name,
            arguments: $arguments,
            run: |$c| $call,
        }
    };
}

pub(crate) use {many, one};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_operation_or_argument_is_listed_twice() {
        let mut names = HashSet::new();
        for operation in FAMILIES.iter().flat_map(|f| f.iter()) {
            assert!(names.insert(operation.name), "{}", operation.name);
            let mut arguments = HashSet::from(["input"]);
            for argument in operation.arguments.split_whitespace() {
                assert!(arguments.insert(argument), "{}", operation.name);
            }
        }
    }
}
