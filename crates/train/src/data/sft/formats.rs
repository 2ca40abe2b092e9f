//! What a row asks and answers, in each of the formats in use.
//!
//! Every format becomes a document, a pair of texts or a conversation. Neighbours: `rows` reads,
//! `encode` makes tokens of what comes from here.

use entrenar_base::Result;
use serde_json::{Map, Value, json};

use super::config::{Fields, SftFormat};
use super::rows::{Place, kind};
use crate::data::report::{nearest, shown};

/// What is learned of a row.
#[derive(Debug, PartialEq)]
pub(super) enum Example {
    /// All of it.
    Document(String),
    /// The second text, given the first.
    Pair(String, String),
    /// What some roles say, from message `first` on.
    Chat {
        messages: Vec<Value>,
        tools: Option<Value>,
        first: usize,
    },
}

type Row = Map<String, Value>;

/// Column names of one format.
struct Names<'a>(&'a Fields);

macro_rules! names {
    ($($field:ident = $default:literal),*) => {
        impl Names<'_> {
            $(fn $field(&self) -> &str { self.0.$field.as_deref().unwrap_or($default) })*
        }
    };
}
names!(
    text = "text",
    prompt = "prompt",
    completion = "completion",
    instruction = "instruction",
    input = "input",
    output = "output",
    system = "system",
    tools = "tools"
);

/// The format that the names of a row's columns show.
pub(super) fn detect(row: &Row, fields: &Fields, place: &Place) -> Result<SftFormat> {
    let names = Names(fields);
    let has = |name: &str| row.contains_key(name);
    if let Some(messages) = &fields.messages
        && has(messages)
    {
        return Ok(match messages.as_str() {
            "conversations" if fields.role.is_none() => SftFormat::ShareGpt,
            _ => SftFormat::Messages,
        });
    }
    let found = if has("messages") {
        SftFormat::Messages
    } else if has("conversations") {
        SftFormat::ShareGpt
    } else if has(names.instruction()) && has(names.output()) {
        SftFormat::Alpaca
    } else if has(names.prompt()) && has(names.completion()) {
        SftFormat::PromptCompletion
    } else if has(names.text()) {
        SftFormat::Text
    } else {
        return Err(place.fault(format!(
            "expected `messages`, `conversations`, `{}` and `{}`, `{}` and `{}`, or `{}`; {}",
            names.instruction(),
            names.output(),
            names.prompt(),
            names.completion(),
            names.text(),
            columns(row),
        )));
    };
    Ok(found)
}

/// Reads a row of a known format.
pub(super) fn understand(
    row: &Row,
    format: SftFormat,
    fields: &Fields,
    place: &Place,
) -> Result<Example> {
    let names = Names(fields);
    match format {
        SftFormat::Auto => understand(row, detect(row, fields, place)?, fields, place),
        SftFormat::Text => Ok(Example::Document(text(row, names.text(), place)?)),
        SftFormat::PromptCompletion => pair(row, &names, place),
        SftFormat::Alpaca => {
            let instruction = text(row, names.instruction(), place)?;
            let input = match row.get(names.input()) {
                None | Some(Value::Null) => String::new(),
                Some(_) => text(row, names.input(), place)?,
            };
            let output = text(row, names.output(), place)?;
            Ok(Example::Pair(alpaca(&instruction, &input), output))
        }
        SftFormat::Messages => chat(row, &names, ("messages", "role", "content"), place),
        SftFormat::ShareGpt => chat(row, &names, ("conversations", "from", "value"), place),
    }
}

/// The prompt of Stanford's Alpaca (Taori et al. 2023).
fn alpaca(instruction: &str, input: &str) -> String {
    const TASK: &str = "Below is an instruction that describes a task";
    const WRITE: &str = "Write a response that appropriately completes the request.";
    if input.is_empty() {
        format!("{TASK}. {WRITE}\n\n### Instruction:\n{instruction}\n\n### Response:")
    } else {
        format!(
            "{TASK}, paired with an input that provides further context. {WRITE}\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        )
    }
}

fn columns(row: &Row) -> String {
    let names: Vec<String> = row.keys().take(10).map(|k| format!("`{k}`")).collect();
    match names.as_slice() {
        [] => "the row is empty".to_string(),
        names => format!("the row has {}", names.join(", ")),
    }
}

fn field<'a>(row: &'a Row, name: &str, place: &Place) -> Result<&'a Value> {
    row.get(name).ok_or_else(|| {
        let hint = nearest(name, row.keys().map(String::as_str));
        let hint = hint.map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
        place.fault(format!("`{name}` is missing{hint}; {}", columns(row)))
    })
}

fn text(row: &Row, name: &str, place: &Place) -> Result<String> {
    match field(row, name, place)? {
        Value::String(text) => Ok(text.clone()),
        other => Err(place.fault(format!("`{name}`: expected a text, got {}", kind(other)))),
    }
}

fn pair(row: &Row, names: &Names<'_>, place: &Place) -> Result<Example> {
    let (prompt, completion) = (names.prompt(), names.completion());
    match (field(row, prompt, place)?, field(row, completion, place)?) {
        (Value::Array(asked), Value::Array(answered)) => {
            let keys = keys(names, ("role", "content"));
            let mut messages = turns(asked, prompt, keys, false, place)?;
            let first = messages.len();
            messages.extend(turns(answered, completion, keys, false, place)?);
            Ok(Example::Chat {
                messages,
                tools: tools(row, names, place)?,
                first,
            })
        }
        _ => Ok(Example::Pair(
            text(row, prompt, place)?,
            text(row, completion, place)?,
        )),
    }
}

fn keys<'a>(names: &'a Names<'_>, usual: (&'a str, &'a str)) -> (&'a str, &'a str) {
    (
        names.0.role.as_deref().unwrap_or(usual.0),
        names.0.content.as_deref().unwrap_or(usual.1),
    )
}

fn chat(
    row: &Row,
    names: &Names<'_>,
    (list, role, content): (&str, &str, &str),
    place: &Place,
) -> Result<Example> {
    let name = names.0.messages.as_deref().unwrap_or(list);
    let given = match field(row, name, place)? {
        Value::Array(given) => given,
        other => {
            let got = kind(other);
            return Err(place.fault(format!("`{name}`: expected a list of messages, got {got}")));
        }
    };
    let mut messages = turns(
        given,
        name,
        keys(names, (role, content)),
        list == "conversations",
        place,
    )?;
    match row.get(names.system()) {
        None | Some(Value::Null) => {}
        Some(Value::String(system)) if system.is_empty() => {}
        Some(_) => {
            let system = text(row, names.system(), place)?;
            messages.insert(0, json!({"role": "system", "content": system}));
        }
    }
    Ok(Example::Chat {
        messages,
        tools: tools(row, names, place)?,
        first: 0,
    })
}

/// A list of tool descriptions, or the same written as JSON in a text.
fn tools(row: &Row, names: &Names<'_>, place: &Place) -> Result<Option<Value>> {
    let name = names.tools();
    let wrong = |value: &Value| {
        place.fault(format!(
            "`{name}`: expected a list of tools, got {}",
            kind(value)
        ))
    };
    match row.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(list @ Value::Array(_)) => Ok(Some(list.clone())),
        Some(Value::String(written)) if written.is_empty() => Ok(None),
        Some(value @ Value::String(written)) => match serde_json::from_str(written) {
            Ok(list @ Value::Array(_)) => Ok(Some(list)),
            _ => Err(wrong(value)),
        },
        Some(other) => Err(wrong(other)),
    }
}

/// Messages as `role` and `content`, whatever they were called; other keys are kept for the
/// template. `strict`: only the roles of ShareGPT.
fn turns(
    given: &[Value],
    list: &str,
    (role_key, content_key): (&str, &str),
    strict: bool,
    place: &Place,
) -> Result<Vec<Value>> {
    if given.is_empty() {
        return Err(place.fault(format!("`{list}`: expected messages, got an empty list")));
    }
    let one = |(i, value): (usize, &Value)| {
        let at = format!("`{list}[{i}]");
        let Value::Object(message) = value else {
            let got = kind(value);
            return Err(place.fault(format!("{at}`: expected a message object, got {got}")));
        };
        let mut message = message.clone();
        let role = match message.remove(role_key) {
            Some(Value::String(role)) => role,
            Some(other) => {
                let got = kind(&other);
                return Err(place.fault(format!("{at}.{role_key}`: expected a text, got {got}")));
            }
            None => {
                let has = columns(&message).replace("the row", "the message");
                return Err(place.fault(format!("{at}.{role_key}` is missing; {has}")));
            }
        };
        let role = match (role.as_str(), strict) {
            ("human" | "user", _) => "user",
            ("gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model", _) => "assistant",
            ("system", _) => "system",
            ("tool" | "observation", true) => "tool",
            (other, false) => other,
            (other, true) => {
                return Err(place.fault(format!(
                    "{at}.{role_key}`: expected human, gpt, system or tool, got {}",
                    shown(other)
                )));
            }
        };
        let content = match message.remove(content_key) {
            Some(Value::String(content)) => Value::String(content),
            None | Some(Value::Null) if message.contains_key("tool_calls") => Value::Null,
            Some(Value::Array(parts)) => {
                let texts: Option<String> = parts.iter().map(part_text).collect();
                let wrong =
                    || place.fault(format!("{at}.{content_key}`: expected parts of type text"));
                Value::String(texts.ok_or_else(wrong)?)
            }
            Some(other) => {
                let got = kind(&other);
                return Err(place.fault(format!("{at}.{content_key}`: expected a text, got {got}")));
            }
            None => {
                let has = columns(&message).replace("the row", "the message");
                return Err(place.fault(format!("{at}.{content_key}` is missing; {has}")));
            }
        };
        let mut out = Row::new();
        out.insert("role".into(), role.into());
        out.insert("content".into(), content);
        // Columns of a table are there for every message: what is null was not said.
        out.extend(message.into_iter().filter(|(_, value)| !value.is_null()));
        Ok(Value::Object(out))
    };
    given.iter().enumerate().map(one).collect()
}

/// The text of `{"type": "text", "text": …}`.
fn part_text(part: &Value) -> Option<&str> {
    if part.get("type")? != "text" {
        return None;
    }
    part.get("text")?.as_str()
}
