//! No unfinished code: nothing that panics because it was never written, no
//! left-over debugging, no test that is switched off, no dead code silenced
//! without a reason that the compiler watches.
//!
//! A test that is slow runs under an environment switch instead of `#[ignore]`,
//! so that it says on every run that it was skipped.

use super::Finding;
use crate::project::Project;
use crate::tokens::{Token, spells, tokens};

const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Reports the macros, `ignore` attributes and silenced lints of this page.
pub fn check(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in project.files.iter().filter(|file| file.is_rust()) {
        let Ok(list) = tokens(&file.text) else {
            continue;
        };
        for at in 0..list.len() {
            if let Some(message) = unfinished(&list, at) {
                findings.push(Finding::new(&file.path, list[at].line, message));
            }
        }
    }
    findings
}

fn unfinished(list: &[Token], at: usize) -> Option<String> {
    for name in MACROS {
        if spells(list, at, &[name, "!"]) && !spells(list, at + 2, &["="]) {
            return Some(format!("`{name}!` stands for code that is not there"));
        }
    }
    if spells(list, at, &["#", "["]) || spells(list, at, &["#", "!", "["]) {
        let attribute: Vec<&str> = list[at + 2..]
            .iter()
            .map(|token| token.text.as_str())
            .take_while(|text| *text != "]")
            .filter(|text| *text != "[")
            .collect();
        let first = attribute.first().copied().unwrap_or("");
        if first == "ignore" || (first == "cfg_attr" && attribute.contains(&"ignore")) {
            return Some("a test that is switched off: use the slow-test switch".into());
        }
        // A field held for its drop or its alignment: `expect` cannot outlive its reason.
        let explained = attribute.contains(&"expect") && attribute.contains(&"reason");
        let silenced = ["allow", "warn", "expect"]
            .iter()
            .any(|level| attribute.contains(level));
        if attribute.contains(&"dead_code") && silenced && !explained {
            return Some("dead code is removed, not silenced".into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::lines;

    #[test]
    fn unfinished_code_is_found() {
        let bad = [
            "fn f() { todo!() }",
            "fn f() { std::unimplemented!(\"later\") }",
            "fn f() { dbg!(1); }",
            "#[ignore] fn f() {}",
            "#[ignore = \"slow\"] fn f() {}",
            "#[cfg_attr(miri, ignore)] fn f() {}",
            "#[allow(dead_code)] fn f() {}",
            "#![allow(unused, dead_code)]",
            "#[expect(dead_code)] fn f() {}",
            "#[allow(dead_code, reason = \"later\")] fn f() {}",
        ];
        for source in bad {
            assert_eq!(
                lines(check, "a.rs", &format!("//! A.\n{source}\n")),
                [2],
                "{source}"
            );
        }
    }

    #[test]
    fn words_alone_are_fine() {
        let good = "//! todo!() and dbg!\nfn todo() { let ignore = \"unimplemented!()\"; if todo != ignore {} }\n\
                    #[test] fn ignore() {}\n#[cfg_attr(test, inline)] fn a() {}\n#[keep(ignore)] fn b() {}\n#![deny(dead_code)]\n\
                    struct Held(#[expect(dead_code, reason = \"held\")] u8);\n";
        assert!(lines(check, "a.rs", good).is_empty());
    }
}
