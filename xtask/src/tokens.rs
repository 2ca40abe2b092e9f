//! Rust source as a flat list of tokens with line numbers.
//!
//! Checks that look for words in code go through here, so that comments and
//! strings never count: proc-macro2 does the reading. Doc comments become
//! `#[doc = "…"]`, whose text is a literal. Neighbours: the checks in
//! `checks/` that use [`tokens`].

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::str::FromStr;

/// One token. Brackets of any kind come as an opening and a closing token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The word, punctuation character or bracket; a literal is an empty text.
    pub text: String,
    /// 1-based line.
    pub line: usize,
    /// Inside the braces of an `impl Trait for Type` block, at its top level.
    pub in_trait_impl: bool,
}

/// Source that is not Rust: a bracket or a literal is left open.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// 1-based line.
    pub line: usize,
}

/// The tokens of a file.
pub fn tokens(source: &str) -> Result<Vec<Token>, Unreadable> {
    let stream = TokenStream::from_str(source).map_err(|error| Unreadable {
        line: error.span().start().line,
    })?;
    let mut out = Vec::new();
    flatten(stream, false, &mut out);
    Ok(out)
}

fn flatten(stream: TokenStream, in_trait_impl: bool, out: &mut Vec<Token>) {
    // Words since the last item ended: enough to tell what a brace belongs to.
    let mut has_impl = false;
    let mut has_for = false;
    for tree in stream {
        let line = tree.span().start().line;
        let mut push = |text: String, line| {
            out.push(Token {
                text,
                line,
                in_trait_impl,
            })
        };
        match tree {
            TokenTree::Ident(word) => {
                let word = word.to_string();
                has_impl |= word == "impl";
                has_for |= word == "for";
                push(word, line);
            }
            TokenTree::Punct(mark) => {
                if mark.as_char() == ';' {
                    (has_impl, has_for) = (false, false);
                }
                push(mark.as_char().to_string(), line);
            }
            TokenTree::Literal(_) => push(String::new(), line),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::None => ("", ""),
                };
                let braces = group.delimiter() == Delimiter::Brace;
                push(open.into(), line);
                flatten(group.stream(), braces && has_impl && has_for, out);
                out.push(Token {
                    text: close.into(),
                    line: group.span_close().start().line,
                    in_trait_impl,
                });
                if braces {
                    (has_impl, has_for) = (false, false);
                }
            }
        }
    }
}

/// Whether the tokens from `at` on spell `words`.
pub fn spells(tokens: &[Token], at: usize, words: &[&str]) -> bool {
    tokens.get(at..at + words.len()).is_some_and(|window| {
        window
            .iter()
            .zip(words)
            .all(|(token, word)| token.text == *word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        tokens(source)
            .unwrap()
            .into_iter()
            .map(|token| token.text)
            .collect()
    }

    #[test]
    fn comments_and_strings_leave_no_words() {
        let source = "// unsafe\n/// unsafe\nfn f() { \"unsafe\"; r#\"unsafe\"#; /* unsafe */ }";
        assert!(!words(source).contains(&"unsafe".to_string()));
    }

    #[test]
    fn lines_are_counted_from_one() {
        let list = tokens("fn f(\n) {\n}\n").unwrap();
        let lines: Vec<_> = list
            .iter()
            .map(|token| (token.text.as_str(), token.line))
            .collect();
        assert_eq!(
            lines,
            [("fn", 1), ("f", 1), ("(", 1), (")", 2), ("{", 2), ("}", 3)]
        );
    }

    #[test]
    fn trait_implementations_are_known() {
        let source = "impl A { fn own() {} } impl B for A { fn theirs() { deeper } } fn free() {}";
        let list = tokens(source).unwrap();
        let inside = |word: &str| {
            list.iter()
                .find(|token| token.text == word)
                .unwrap()
                .in_trait_impl
        };
        assert!(inside("theirs"));
        assert!(!inside("own"));
        assert!(!inside("deeper"));
        assert!(!inside("free"));
    }

    #[test]
    fn loops_and_finished_items_are_no_implementations() {
        let inside = |source: &str| {
            let list = tokens(source).unwrap();
            list.iter()
                .find(|token| token.text == "body")
                .unwrap()
                .in_trait_impl
        };
        assert!(!inside("for x in y { body }"));
        assert!(!inside("type A = impl B; for x in y { body }"));
        assert!(inside("impl B for A where [u8; 4]: C { body }"));
    }

    #[test]
    fn spells_stops_at_the_end() {
        let list = tokens("a :: b").unwrap();
        assert!(spells(&list, 0, &["a", ":", ":", "b"]));
        assert!(!spells(&list, 1, &["a"]));
        assert!(!spells(&list, 3, &["b", "c"]));
    }

    #[test]
    fn unreadable_source_names_the_line() {
        assert_eq!(tokens("fn f() {\n\n  )\n"), Err(Unreadable { line: 3 }));
    }
}
