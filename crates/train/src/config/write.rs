//! Writes a config back as YAML that [`super::parse`] reads to the same value.

use super::Config;
use serde_json::Value as Json;
use std::fmt::Write;

impl Config {
    /// The config as YAML, every default spelled out and every path absolute: the `config.yaml` of a run directory.
    ///
    /// # Errors
    /// Where a number has no YAML form (NaN, infinity); [`super::load`] never returns such a config.
    pub fn to_yaml(&self) -> Result<String, serde_json::Error> {
        let value = serde_json::to_value(self)?;
        let mut out = String::new();
        map(&mut out, &value, 0);
        Ok(out)
    }
}

fn map(out: &mut String, value: &Json, indent: usize) {
    for (key, value) in value.as_object().into_iter().flatten() {
        // Writing to a String cannot fail.
        let _ = write!(out, "{:indent$}{}:", "", text(key));
        match value {
            Json::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                map(out, value, indent + 2);
            }
            Json::Array(items) if items.iter().any(Json::is_string) => {
                out.push('\n');
                for item in items {
                    let _ = writeln!(out, "{:indent$}  - {}", "", inline(item));
                }
            }
            other => {
                let _ = writeln!(out, " {}", inline(other));
            }
        }
    }
}

/// A value on one line.
pub(super) fn inline(value: &Json) -> String {
    match value {
        Json::String(s) => text(s),
        Json::Array(items) => format!(
            "[{}]",
            items.iter().map(inline).collect::<Vec<_>>().join(", ")
        ),
        Json::Object(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", text(key), inline(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        // Rust and YAML agree on numbers, `true` and `null`.
        other => other.to_string(),
    }
}

/// Text as a scalar: bare where no reader, YAML 1.1 ones included, could take it for something else.
pub(super) fn text(s: &str) -> String {
    let bare = s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_')
        && s.chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./*".contains(c))
        && !matches!(
            s.to_ascii_lowercase().as_str(),
            "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if bare {
        return s.to_owned();
    }
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // YAML's printable characters, without the line separators and the byte order mark.
            ' '..='~'
            | '\u{a0}'..='\u{2027}'
            | '\u{202a}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fefe}'
            | '\u{ff00}'..='\u{fffd}' => out.push(c),
            c if (c as u32) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (c as u32) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Value, read};
    use super::text;

    fn reads_back(s: &str) {
        let yaml = text(s);
        let node = read(&yaml, None).unwrap_or_else(|e| panic!("{s:?} as {yaml}: {e:?}"));
        assert!(
            matches!(&node.as_ref().unwrap().value, Value::Text(t) if t == s),
            "{s:?} as {yaml}: {node:?}"
        );
    }

    #[test]
    fn text_reads_back() {
        for s in [
            "",
            " ",
            "a",
            "yes",
            "12",
            "1e5",
            "~",
            "a: b",
            "- a",
            "#x",
            "\u{0}\u{85}\u{2028}\u{feff}",
            "\"\\\n\t",
            "é→🦀",
            "*.txt",
        ] {
            reads_back(s);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_reads_back(s in "\\PC{0,40}|[ -~\n\t]{0,40}") {
            reads_back(&s);
        }
    }
}
