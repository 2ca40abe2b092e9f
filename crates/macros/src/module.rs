//! The expansion of `#[derive(Module)]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Fields, LitStr, Result};

use crate::home;

/// What `#[module(…)]` says about a field.
#[derive(Default)]
struct FieldOptions {
    skip: bool,
    rename: Option<LitStr>,
}

fn field_options(attributes: &[Attribute]) -> Result<FieldOptions> {
    let mut options = FieldOptions::default();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("module")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("skip") {
                options.skip = true;
                Ok(())
            } else if meta.path.is_ident("rename") {
                let name: LitStr = meta.value()?.parse()?;
                let text = name.value();
                if text.is_empty() || text.split('.').any(str::is_empty) {
                    return Err(Error::new(
                        name.span(),
                        "expected a name, got an empty part",
                    ));
                }
                options.rename = Some(name);
                Ok(())
            } else {
                Err(meta.error("expected `skip` or `rename = \"…\"`"))
            }
        })?;
    }
    Ok(options)
}

fn type_options(attributes: &[Attribute]) -> Result<TokenStream> {
    let mut home = None;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("module")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("crate") {
                let path: LitStr = meta.value()?.parse()?;
                home = Some(path.parse::<syn::Path>()?);
                Ok(())
            } else {
                Err(meta.error("expected `crate = \"…\"`"))
            }
        })?;
    }
    Ok(home.map_or_else(home::path, |path| quote!(#path)))
}

/// Binds the fields of one struct or variant and visits them: (pattern, statements).
fn visit(fields: &Fields, home: &TokenStream) -> Result<(TokenStream, TokenStream)> {
    let mut names = Vec::new();
    let mut statements = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let options = field_options(&field.attrs)?;
        let binding = format_ident!("field_{i}");
        let key = match &field.ident {
            Some(ident) => quote!(#ident),
            None => {
                let index = syn::Index::from(i);
                quote!(#index)
            }
        };
        if options.skip {
            names.push(quote!(#key: _));
            continue;
        }
        names.push(quote!(#key: #binding));
        let name = match (&options.rename, &field.ident) {
            (Some(name), _) => Some(name.value()),
            (None, Some(ident)) => Some(ident.to_string().trim_start_matches("r#").to_string()),
            (None, None) if fields.len() > 1 => Some(i.to_string()),
            (None, None) => None,
        };
        // The field's span: a type that is not `Parameters` is reported at its declaration.
        let at = field.ty.span();
        statements.push(match name {
            Some(name) => quote_spanned!(at=> #home::Visitor::field(visitor, #name, #binding);),
            None => quote_spanned!(at=> #home::Parameters::visit(#binding, visitor);),
        });
    }
    Ok((quote!({ #(#names),* }), quote!(#(#statements)*)))
}

/// `impl Parameters for …`.
pub fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let home = type_options(&input.attrs)?;
    let arms = match &input.data {
        Data::Struct(data) => {
            let (pattern, statements) = visit(&data.fields, &home)?;
            vec![quote!(Self #pattern => { #statements })]
        }
        Data::Enum(data) => data
            .variants
            .iter()
            .map(|variant| {
                let (pattern, statements) = visit(&variant.fields, &home)?;
                let name = &variant.ident;
                Ok(quote!(Self::#name #pattern => { #statements }))
            })
            .collect::<Result<_>>()?,
        Data::Union(_) => {
            return Err(Error::new_spanned(input, "a union cannot be a module"));
        }
    };
    let name = &input.ident;
    let (generics, arguments, conditions) = input.generics.split_for_impl();
    // An enum without variants has no value to look into.
    let body = if arms.is_empty() {
        quote!(match *self {})
    } else {
        quote!(match self { #(#arms)* })
    };
    Ok(quote! {
        #[automatically_derived]
        impl #generics #home::Parameters for #name #arguments #conditions {
            fn visit(&self, visitor: &mut #home::Visitor<'_>) {
                // A module without parameters does not use its visitor.
                let _ = &visitor;
                #body
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    fn message(input: DeriveInput) -> String {
        expand(&input).unwrap_err().to_string()
    }

    #[test]
    fn wrong_attributes_are_refused() {
        assert_eq!(
            message(parse_quote!(
                struct A {
                    #[module(skipp)]
                    x: u8,
                }
            )),
            "expected `skip` or `rename = \"…\"`"
        );
        assert_eq!(
            message(parse_quote!(
                struct A {
                    #[module(rename = "")]
                    x: u8,
                }
            )),
            "expected a name, got an empty part"
        );
        assert_eq!(
            message(parse_quote!(
                #[module(skip)]
                struct A;
            )),
            "expected `crate = \"…\"`"
        );
        assert_eq!(
            message(parse_quote!(union A { x: u8 })),
            "a union cannot be a module"
        );
    }

    #[test]
    fn fields_are_visited_by_name_and_in_order() {
        let text = expand(&parse_quote!(
            #[module(crate = "home")]
            struct A {
                b: u8,
                #[module(skip)]
                c: u8,
                r#type: u8,
                #[module(rename = "x.y")]
                d: u8,
            }
        ))
        .unwrap()
        .to_string();
        let find = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in {text}"))
        };
        assert!(find("\"b\"") < find("\"type\"") && find("\"type\"") < find("\"x.y\""));
        assert!(!text.contains("\"c\"") && text.contains("c : _"));
        assert!(text.contains("home :: Parameters for A"));
    }
}
