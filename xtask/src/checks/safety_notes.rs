//! Every unsafe block, function and implementation says why it is right.
//!
//! A block or `unsafe impl` carries `// SAFETY:` on its line or in the comment
//! above its statement; an `unsafe fn` or `unsafe trait` may say its duty in a
//! `# Safety` doc section instead. Methods of `impl Trait for Type` inherit the
//! duty that the trait wrote down. clippy checks blocks of the target at hand;
//! this check also reads code for other targets and inside macros.

use super::{Finding, unsafe_places};
use crate::project::Project;
use crate::tokens::{Token, spells, tokens};

/// Reports unsafe code without its note, in the crates that may have any.
pub fn check(project: &Project) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in project
        .files
        .iter()
        .filter(|file| file.is_rust() && unsafe_places::allows(file))
    {
        let Ok(list) = tokens(&file.text) else {
            continue;
        };
        let lines: Vec<&str> = file.text.lines().collect();
        for at in 0..list.len() {
            let Some(site) = site(&list, at) else {
                continue;
            };
            if !has_note(&lines, list[at].line, site.notes()) {
                let message = format!("{} without {}", site.words(), site.notes().join(" or "));
                findings.push(Finding::new(&file.path, list[at].line, message));
            }
        }
    }
    findings
}

/// A use of `unsafe` that owes a note.
#[derive(Clone, Copy)]
enum Site {
    Block,
    Implementation,
    Declaration,
}

impl Site {
    fn words(self) -> &'static str {
        match self {
            Site::Block => "an unsafe block",
            Site::Implementation => "an unsafe impl",
            Site::Declaration => "an unsafe fn or trait",
        }
    }

    fn notes(self) -> &'static [&'static str] {
        match self {
            Site::Block | Site::Implementation => &["// SAFETY:"],
            Site::Declaration => &["# Safety", "// SAFETY:"],
        }
    }
}

/// What the token at `at` begins, if it owes a note.
fn site(list: &[Token], at: usize) -> Option<Site> {
    if list[at].text != "unsafe" {
        return None;
    }
    // `unsafe extern "C" fn f` and `unsafe extern "C" { … }`: skip to what follows.
    let mut next = at + 1;
    if spells(list, next, &["extern"]) {
        next += 1;
        if spells(list, next, &[""]) {
            next += 1;
        }
    }
    match list.get(next)?.text.as_str() {
        "impl" => Some(Site::Implementation),
        "trait" => Some(Site::Declaration),
        // `unsafe fn(…)` is a type; a method of a trait has its duty in the trait.
        "fn" if spells(list, next + 1, &["("]) || list[at].in_trait_impl => None,
        "fn" => Some(Site::Declaration),
        // Blocks, and attributes such as `#[unsafe(no_mangle)]`.
        _ => Some(Site::Block),
    }
}

/// Whether one of `notes` stands on the line or above it: in comments and
/// attributes, and past lines that are the beginning of the same statement.
fn has_note(lines: &[&str], line: usize, notes: &[&str]) -> bool {
    let noted = |text: &str| notes.iter().any(|note| text.contains(note));
    if noted(lines[line - 1]) {
        return true;
    }
    for text in lines[..line - 1].iter().rev() {
        let text = text.trim();
        let comment = text.starts_with("//");
        if comment && noted(text) {
            return true;
        }
        let ends_before = text.is_empty() || text.ends_with([';', '{', '}', ',']);
        if !comment && !text.starts_with('#') && ends_before {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str) -> Vec<usize> {
        crate::checks::lines(check, "crates/cpu/src/a.rs", source)
    }

    #[test]
    fn sites_without_a_note_are_found() {
        let bad = [
            "fn f() { unsafe { g() } }",
            "unsafe impl Send for A {}",
            "unsafe fn f() {}",
            "/// Adds.\nunsafe fn f() {}",
            "pub unsafe trait Kernel {}",
            "unsafe extern \"C\" fn f() {}",
            "unsafe extern \"C\" { fn f(); }",
            "#[unsafe(no_mangle)]\nfn f() {}",
            "macro_rules! m { () => { unsafe { g() } } }",
            "#[cfg(target_arch = \"aarch64\")]\nunsafe fn f() {}",
            "// SAFETY: of another statement.\nlet a = 1;\nlet b = unsafe { g() };",
            "// SAFETY: too far.\n\nunsafe impl Send for A {}",
            "impl A { unsafe fn f() {} }",
        ];
        for source in bad {
            let found = lines(&format!("//! A.\n{source}\n"));
            assert_eq!(found.len(), 1, "{source}: {found:?}");
        }
    }

    #[test]
    fn notes_are_seen_where_people_write_them() {
        let good = [
            "fn f() {\n    // SAFETY: g has no duty.\n    unsafe { g() }\n}",
            "fn f() { /* one line */ unsafe { g() } // SAFETY: g has no duty.\n}",
            "// SAFETY: a statement over\n// several lines.\nlet a =\n    unsafe { g() };",
            "// SAFETY: A holds no pointer.\nunsafe impl Send for A {}",
            "/// Adds.\n///\n/// # Safety\n/// The CPU has AVX2.\n#[inline]\n#[target_feature(enable = \"avx2\")]\npub unsafe fn f() {}",
            "// SAFETY: called with AVX2 only.\nunsafe fn f() {}",
            "// SAFETY: one note.\nlet (a, b) = (unsafe { g() }, unsafe { h() });",
            "/// # Safety\n/// A counts.\npub unsafe trait Count {}",
            "/// # Safety\n/// The pointer is live.\nunsafe extern \"C\" fn f() {}",
            "/// # Safety\n/// The pointer is live.\nunsafe extern fn f() {}",
            "type F = unsafe fn(u8);",
            "impl Kernel for A { unsafe fn f() {} }",
        ];
        for source in good {
            let found = lines(&format!("//! A.\n{source}\n"));
            assert!(found.is_empty(), "{source}: {found:?}");
        }
    }

    #[test]
    fn the_message_names_the_kind_of_site() {
        for (source, words) in [
            ("unsafe { g() }", "an unsafe block without // SAFETY:"),
            (
                "unsafe impl Send for A {}",
                "an unsafe impl without // SAFETY:",
            ),
            (
                "unsafe fn f() {}",
                "an unsafe fn or trait without # Safety or // SAFETY:",
            ),
        ] {
            let findings = check(&Project::of(&[("crates/base/src/a.rs", source)]));
            assert_eq!(findings[0].message, words);
        }
    }

    #[test]
    fn other_crates_are_left_to_the_check_of_places() {
        let project = Project::of(&[
            ("crates/core/src/a.rs", "unsafe fn f() {}"),
            ("crates/cpu/notes.md", "unsafe fn f() {}"),
        ]);
        assert_eq!(check(&project), []);
    }

    #[test]
    fn a_note_on_a_doc_section_does_not_cover_a_block() {
        assert_eq!(
            lines("//! A.\n/// # Safety\nfn f() { unsafe { g() } }\n"),
            [3]
        );
    }
}
