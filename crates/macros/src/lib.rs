//! `#[derive(Module)]`: writes the `Parameters` half of a module, so that names come from field paths.
//!
//! The generated code calls `Visitor::field(name, &self.field)` for every field, in order. A field
//! whose type is not `Parameters` does not compile: skipping is never silent. Neighbours:
//! `entrenar-nn`'s `module.rs` (the traits) and `tests/derive.rs` there (what the derive promises).

mod home;
mod module;

use proc_macro::TokenStream;

/// Implements `Parameters` for a struct or enum: every field is visited under its own name.
///
/// - Field `weight: Parameter` is named `weight`; field `attn: Attention` gives `attn.…`; `Vec`,
///   arrays and `Option` are looked into (`blocks.0.…`); numbers, strings and flags hold nothing.
/// - A tuple struct of one field is transparent (no name of its own); other tuple fields are
///   `0`, `1`, …; enum variants work like structs.
/// - `#[module(skip)]` on a field leaves it out, `#[module(rename = "…")]` names it otherwise.
/// - `#[module(crate = "path")]` on the type says where `Parameters` lives, for crates that
///   rename their dependencies.
#[proc_macro_derive(Module, attributes(module))]
pub fn derive_module(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    module::expand(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
