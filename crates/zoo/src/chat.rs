//! [`ChatTemplate`]: a conversation as the text that a model was trained on.
//!
//! Templates are Jinja, rendered by `minijinja` with what transformers adds to the language:
//! `raise_exception`, `strftime_now`, `tojson` without HTML escapes, Python's methods of strings
//! and mappings, and the `generation` block whose text is what the assistant says.

use entrenar_core::{Error, ErrorKind, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value as Jinja};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value};

/// Marks in rendered text around what the assistant says; no template writes private-use
/// characters of its own.
const OPEN: char = '\u{f8f0}';
const CLOSE: char = '\u{f8f1}';

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    marked: bool,
    variables: Map<String, Value>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes `start..end` of the text that the assistant says; `None` when the template does not
    /// mark them.
    pub assistant: Option<Vec<(usize, usize)>>,
}

fn fault(e: &minijinja::Error) -> Error {
    // Templates speak to their users through `raise_exception`: keep its words.
    let detail = e.detail().map_or_else(|| e.to_string(), str::to_string);
    let line = e.line().map_or(String::new(), |l| format!(" (line {l})"));
    Error::new(
        ErrorKind::Argument,
        format!("[chat template] {detail}{line}"),
    )
}

impl ChatTemplate {
    /// Compiles a template. `variables` are what it may use besides the conversation, such as
    /// `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// When the template is not valid Jinja.
    pub fn new(template: &str, variables: Map<String, Value>) -> Result<ChatTemplate> {
        let (source, marked) = mark(template);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| fault(&e))?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(python_method);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Jinja, _> {
                Err(minijinja::Error::new(
                    minijinja::ErrorKind::InvalidOperation,
                    message,
                ))
            },
        );
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned("chat", source)
            .map_err(|e| fault(&e))?;
        Ok(ChatTemplate {
            environment,
            marked,
            variables,
        })
    }

    /// The text of a conversation: `messages` is a list of objects with `role` and `content`.
    /// `prompt` adds what begins the assistant's answer.
    ///
    /// # Errors
    /// When the template refuses the conversation or uses something that is not there.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        prompt: bool,
    ) -> Result<Rendered> {
        let mut variables = self.variables.clone();
        variables.insert("messages".into(), messages.clone());
        variables.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        variables.insert("add_generation_prompt".into(), prompt.into());
        let template = self
            .environment
            .get_template("chat")
            .map_err(|e| fault(&e))?;
        let text = template
            .render(Jinja::from(Serde(&variables)))
            .map_err(|e| fault(&e))?;
        Ok(if self.marked {
            unmark(&text)
        } else {
            Rendered {
                text,
                assistant: None,
            }
        })
    }
}

/// Python's methods of strings, lists and mappings.
fn python_method(
    state: &mut minijinja::State<'_, '_>,
    value: &Jinja,
    method: &str,
    arguments: &[Jinja],
) -> std::result::Result<Jinja, minijinja::Error> {
    match (method, value.as_str(), arguments) {
        // The library's own begins words at spaces only.
        ("title", Some(text), []) => Ok(Jinja::from(title(text))),
        _ => unknown_method_callback(state, value, method, arguments),
    }
}

/// Every run of letters begins with a capital and goes on in small ones, as in Python.
fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by marks.
fn mark(template: &str) -> (String, bool) {
    let mut out = String::with_capacity(template.len());
    let (mut rest, mut marked) = (template, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = tag[2..end].trim_matches(['-', '+', ' ', '\t', '\n']);
        let sign = match inner {
            "generation" => Some(OPEN),
            "endgeneration" => Some(CLOSE),
            _ => None,
        };
        match sign {
            // A variable tag with the block's own whitespace control. A block swallows the line
            // break after it, which a variable does not: `-` does so.
            Some(sign) => {
                marked = true;
                let left = if tag[2..].starts_with('-') { "-" } else { "" };
                let right = if tag[..end].ends_with('-') || tag[end + 2..].starts_with('\n') {
                    "-"
                } else {
                    ""
                };
                out.push_str(&format!("{{{{{left} '{sign}' {right}}}}}"));
            }
            None => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    (out, marked)
}

fn unmark(text: &str) -> Rendered {
    let (mut out, mut spans, mut open) = (String::with_capacity(text.len()), Vec::new(), None);
    for c in text.chars() {
        match c {
            OPEN => open = Some(out.len()),
            CLOSE => spans.extend(open.take().map(|start| (start, out.len()))),
            c => out.push(c),
        }
    }
    Rendered {
        text: out,
        assistant: Some(spans),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which transformers uses: `", "` and `": "`
/// between items, no HTML escapes.
fn to_json(
    value: Jinja,
    options: minijinja::value::Kwargs,
) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // transformers accepts these too; their defaults are what is written here.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(|e| {
        minijinja::Error::new(minijinja::ErrorKind::BadSerialization, e.to_string())
    })?;
    let mut out = String::new();
    write_json(&value, indent, 0, &mut out);
    Ok(out)
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |depth: usize, out: &mut String| {
        if let Some(n) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(n * depth));
        }
    };
    let comma = |first: bool, out: &mut String| {
        if !first {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                comma(i == 0, out);
                line(depth + 1, out);
                write_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                comma(i == 0, out);
                line(depth + 1, out);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}
