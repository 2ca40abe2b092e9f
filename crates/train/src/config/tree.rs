//! YAML text to a tree that knows the line and column of every key and value.
//!
//! Built from the event stream of `saphyr-parser`, not from its ready-made values, because messages need the position
//! of keys, duplicate keys have to be seen, and hostile input (alias bombs, deep nesting) has to be bounded while it
//! is read. Scalars follow the YAML 1.2 core schema: `yes` and `off` are text, `1e-4` is a number.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::HashMap;

/// Largest config file in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most keys and values in a file, those repeated through aliases counted each time.
const MAX_NODES: usize = 50_000;
/// Deepest nesting; real configs have four levels.
const MAX_DEPTH: usize = 32;

/// Where a key or value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the file; line and column count from 1, columns in characters.
    File {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// In the n-th `--set`.
    Set(usize),
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// A YAML value.
#[derive(Debug, Clone)]
pub enum Value {
    /// Nothing: `~`, `null` or an empty place.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number that fits 64 bits.
    Integer(i64),
    /// Any other number, with the text it was written as.
    Float(f64, String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in file order, keys unique.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_place: Place,
    /// Its value.
    pub value: Node,
}

/// What is wrong with the text itself; the message is a full clause.
#[derive(Debug, Clone)]
pub struct SyntaxProblem {
    /// Where.
    pub place: Place,
    /// Dotted path of the mapping concerned, where there is one.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Value {
    /// "the text `abc`": the phrase after "got" in messages.
    pub fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".to_owned(),
            Value::Boolean(b) => format!("{b}"),
            Value::Integer(i) => format!("{i}"),
            Value::Float(_, text) => shorten(text),
            Value::Text(text) => format!("the text `{}`", shorten(text)),
            Value::List(items) if items.is_empty() => "an empty list".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The value of a scalar as a word, by which conditions on other keys compare.
    pub fn word(&self) -> Option<String> {
        match self {
            Value::Boolean(b) => Some(b.to_string()),
            Value::Integer(i) => Some(i.to_string()),
            Value::Text(text) | Value::Float(_, text) => Some(text.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// One line of at most 40 characters, control characters escaped: user text inside messages.
pub(crate) fn shorten(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == 40 {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_debug());
        } else {
            out.push(c);
        }
    }
    out
}

/// Reads a config file's bytes. `Ok(None)` is an empty document.
pub fn read_bytes(bytes: &[u8]) -> Result<Option<Node>, Vec<SyntaxProblem>> {
    let whole_file = |message: String| {
        vec![SyntaxProblem {
            place: Place::File { line: 1, column: 1 },
            path: String::new(),
            message,
        }]
    };
    if bytes.len() > MAX_BYTES {
        return Err(whole_file(format!(
            "expected a config of at most {MAX_BYTES} bytes, got {} bytes",
            bytes.len()
        )));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(whole_file(
            "expected UTF-8 text, got UTF-16: save the file as UTF-8".to_owned(),
        ));
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => read(text, None),
        Err(error) => {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            // The prefix is valid UTF-8 by the contract of `valid_up_to`.
            let good = String::from_utf8_lossy(good);
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            let message = format!(
                "expected UTF-8 text, got the byte 0x{:02x}",
                bad.first().copied().unwrap_or(0)
            );
            Err(vec![SyntaxProblem {
                place: Place::File { line, column },
                path: String::new(),
                message,
            }])
        }
    }
}

/// Reads YAML text. With `set`, every place is that `--set` argument. `Ok(None)` is an empty document.
///
/// Duplicate keys are all collected; anything else ends the reading, since what follows cannot be trusted.
pub fn read(text: &str, set: Option<usize>) -> Result<Option<Node>, Vec<SyntaxProblem>> {
    let mut builder = Builder {
        set,
        nodes: 0,
        anchors: HashMap::new(),
        stack: Vec::new(),
        root: None,
        problems: Vec::new(),
    };
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(pair) => pair,
            Err(error) => {
                let mark = error.marker();
                let place = builder.place_at(mark.line(), mark.col());
                let message = syntax_message(text, mark.line(), error.info());
                builder.fail(place, message);
                break;
            }
        };
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                builder.fail(
                    builder.place(span),
                    "expected one YAML document, a second one begins here".to_owned(),
                );
                break;
            }
        }
        if builder.take(event, span).is_none() {
            break;
        }
    }
    if builder.problems.is_empty() {
        Ok(builder.root)
    } else {
        Err(builder.problems)
    }
}

/// The parser's own words, or better ones where tabs are the cause.
fn syntax_message(text: &str, line: usize, info: &str) -> String {
    let indented_by_tab = |line: &str| {
        line.chars()
            .take_while(|c| c.is_whitespace())
            .any(|c| c == '\t')
    };
    let near = text.lines().skip(line.saturating_sub(2)).take(2);
    if info.ends_with("unknown anchor") {
        "`*` at the start of a value means a YAML alias, and there is none of this name: \
         put a glob such as '*.txt' in quotes"
            .to_owned()
    } else if near.clone().any(indented_by_tab) {
        "a tab is used for indentation: YAML indents with spaces".to_owned()
    } else {
        format!("not valid YAML: {info}")
    }
}

/// A collection that is being read.
struct Open {
    node: Node,
    anchor: usize,
    /// In a mapping: the key that waits for its value.
    key: Option<(String, Place)>,
}

struct Builder {
    set: Option<usize>,
    nodes: usize,
    anchors: HashMap<usize, (Node, usize)>,
    stack: Vec<Open>,
    root: Option<Node>,
    problems: Vec<SyntaxProblem>,
}

impl Builder {
    fn place_at(&self, line: usize, column_from_0: usize) -> Place {
        match self.set {
            Some(index) => Place::Set(index),
            None => Place::File {
                line,
                column: column_from_0 + 1,
            },
        }
    }

    fn place(&self, span: Span) -> Place {
        self.place_at(span.start.line(), span.start.col())
    }

    /// Dotted path of the value that comes next.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.stack {
            match (&open.node.value, &open.key) {
                (Value::List(items), _) => path.push_str(&format!("[{}]", items.len())),
                (_, Some((key, _))) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&shorten(key));
                }
                _ => {}
            }
        }
        path
    }

    fn fail(&mut self, place: Place, message: String) {
        let path = self.path();
        self.problems.push(SyntaxProblem {
            place,
            path,
            message,
        });
    }

    /// Takes one event; `None` ends the reading.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let place = self.place(span);
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.fail(
                place,
                format!("expected at most {MAX_NODES} keys and values"),
            );
            return None;
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let as_text = match &tag {
                    None => style != ScalarStyle::Plain,
                    Some(tag) if tag.is_yaml_core_schema() => {
                        style != ScalarStyle::Plain || tag.suffix == "str"
                    }
                    // A lone `!` is YAML's way to say "text, whatever it looks like".
                    Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => true,
                    Some(tag) => {
                        self.fail(
                            place,
                            format!("the YAML tag `{tag}` is not supported: write the plain value"),
                        );
                        return None;
                    }
                };
                let value = if as_text {
                    Value::Text(text.into_owned())
                } else {
                    resolve_plain(&text)
                };
                // A key keeps its text as written: `1:` and `true:` are names here.
                if let Some(open) = self.stack.last_mut()
                    && let (Value::Map(_), None) = (&open.node.value, &open.key)
                {
                    let key = match &value {
                        Value::Null => String::new(),
                        other => other.word().unwrap_or_default(),
                    };
                    return self.key(key, place);
                }
                let node = Node { place, value };
                self.remember(anchor, &node);
                self.attach(node)
            }
            Event::SequenceStart(anchor, _) => self.open(place, Value::List(Vec::new()), anchor),
            Event::MappingStart(anchor, _) => self.open(place, Value::Map(Vec::new()), anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.stack.pop()?;
                self.remember(open.anchor, &open.node);
                self.attach(open.node)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some((node, size)) => {
                    // Counted before the copy is attached, so a bomb stops at the limit and not at the end of memory.
                    self.nodes += size;
                    if self.nodes > MAX_NODES {
                        self.fail(
                            place,
                            format!("aliases repeat more than {MAX_NODES} keys and values"),
                        );
                        return None;
                    }
                    self.attach(node)
                }
                None => {
                    self.fail(
                        place,
                        "this alias stands inside the value it names".to_owned(),
                    );
                    None
                }
            },
            _ => Some(()),
        }
    }

    fn open(&mut self, place: Place, value: Value, anchor: usize) -> Option<()> {
        if self.stack.len() == MAX_DEPTH {
            // The path would be as long as the nesting is deep.
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            self.problems.push(SyntaxProblem {
                place,
                path: String::new(),
                message,
            });
            return None;
        }
        if let Some(open) = self.stack.last()
            && let (Value::Map(_), None) = (&open.node.value, &open.key)
        {
            self.fail(
                place,
                "expected a name as key, got a list or mapping".to_owned(),
            );
            return None;
        }
        self.stack.push(Open {
            node: Node { place, value },
            anchor,
            key: None,
        });
        Some(())
    }

    fn key(&mut self, key: String, place: Place) -> Option<()> {
        let open = self.stack.last_mut()?;
        let Value::Map(entries) = &open.node.value else {
            return Some(());
        };
        let first = entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.key_place);
        open.key = Some((key, place));
        if let Some(first) = first {
            let first = match first {
                Place::File { line, column } => format!("line {line}, column {column}"),
                Place::Set(_) => "the same argument".to_owned(),
            };
            self.fail(place, format!("this key was already given in {first}"));
        }
        Some(())
    }

    fn remember(&mut self, anchor: usize, node: &Node) {
        // Anchor 0 means "no anchor".
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), weight(node)));
        }
    }

    fn attach(&mut self, node: Node) -> Option<()> {
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                Some((key, key_place)) => entries.push(Entry {
                    key,
                    key_place,
                    value: node,
                }),
                None => {
                    let place = node.place;
                    self.fail(place, "expected a name as key, got an alias".to_owned());
                    return None;
                }
            },
            _ => {}
        }
        Some(())
    }
}

/// What a copy of the node costs: one per key or value, and more for long text, so that aliases of one huge scalar
/// are bounded too.
fn weight(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Value::Map(entries) => {
            1 + entries
                .iter()
                .map(|entry| 1 + entry.key.len() / 64 + weight(&entry.value))
                .sum::<usize>()
        }
        Value::Text(text) | Value::Float(_, text) => 1 + text.len() / 64,
        _ => 1,
    }
}

/// The value of an unquoted scalar by the YAML 1.2 core schema (section 10.3.2).
fn resolve_plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Boolean(true),
        "false" | "False" | "FALSE" => return Value::Boolean(false),
        _ => {}
    }
    if let Some(value) = resolve_number(text) {
        value
    } else {
        Value::Text(text.to_owned())
    }
}

fn resolve_number(text: &str) -> Option<Value> {
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return i64::from_str_radix(digits, radix)
                .ok()
                .filter(|_| !digits.starts_with(['+', '-']))
                .map(Value::Integer);
        }
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        let value = if text.starts_with('-') {
            f64::NEG_INFINITY
        } else {
            f64::INFINITY
        };
        return Some(Value::Float(value, text.to_owned()));
    }
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Value::Float(f64::NAN, text.to_owned()));
    }
    // Rust's own parser also takes `inf` and `nan`, which YAML calls text: look at the first character.
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit())
        && let Ok(value) = text.parse()
    {
        return Some(Value::Integer(value));
    }
    text.parse()
        .ok()
        .map(|value| Value::Float(value, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> Value {
        read(text, None).unwrap().unwrap().value
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        assert!(matches!(scalar("12"), Value::Integer(12)));
        assert!(matches!(scalar("+12"), Value::Integer(12)));
        assert!(matches!(scalar("0x1F"), Value::Integer(31)));
        assert!(matches!(scalar("0o17"), Value::Integer(15)));
        assert!(matches!(scalar("1e-4"), Value::Float(x, _) if x == 1e-4));
        assert!(matches!(scalar(".5"), Value::Float(x, _) if x == 0.5));
        assert!(matches!(scalar("-.inf"), Value::Float(x, _) if x == f64::NEG_INFINITY));
        assert!(matches!(scalar("99999999999999999999"), Value::Float(..)));
        assert!(matches!(scalar("true"), Value::Boolean(true)));
        assert!(matches!(scalar("~"), Value::Null));
        for text in [
            "yes", "off", "inf", "nan", "1_000", "12a", "0x-1", "e5", ".",
        ] {
            assert!(
                matches!(scalar(text), Value::Text(t) if t == text),
                "{text}"
            );
        }
        assert!(matches!(scalar("'12'"), Value::Text(t) if t == "12"));
        assert!(matches!(scalar("!!str 12"), Value::Text(t) if t == "12"));
    }

    #[test]
    fn keys_and_values_know_their_place() {
        let root = read("a:\n  béta: {c: 1, d: [2, 3]}\n", None)
            .unwrap()
            .unwrap();
        let Value::Map(top) = &root.value else {
            panic!()
        };
        let Value::Map(inner) = &top[0].value.value else {
            panic!()
        };
        assert_eq!(inner[0].key_place, Place::File { line: 2, column: 3 });
        let Value::Map(flow) = &inner[0].value.value else {
            panic!()
        };
        assert_eq!(
            flow[0].value.place,
            Place::File {
                line: 2,
                column: 13
            }
        );
        let Value::List(items) = &flow[1].value.value else {
            panic!()
        };
        assert_eq!(
            items[1].place,
            Place::File {
                line: 2,
                column: 23
            }
        );
    }

    #[test]
    fn aliases_copy_and_bombs_are_refused() {
        let root = read("a: &x [1, 2]\nb: *x\n", None).unwrap().unwrap();
        let Value::Map(entries) = &root.value else {
            panic!()
        };
        assert!(matches!(&entries[1].value.value, Value::List(items) if items.len() == 2));

        let mut bomb = String::from("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
        for i in 1..30 {
            let previous = format!("*a{}", i - 1);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![previous; 9].join(", ")));
        }
        let problems = read(&bomb, None).unwrap_err();
        assert!(
            problems[0].message.contains("aliases repeat more than"),
            "{problems:?}"
        );
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        assert!(read(&"[".repeat(100_000), None).is_err());
        let problems = read(&"[".repeat(100), None).unwrap_err();
        assert!(
            problems[0].message.contains("nested deeper than"),
            "{problems:?}"
        );
        let block: String = (0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        assert!(
            read(&block, None).unwrap_err()[0]
                .message
                .contains("nested deeper than")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = read(&text, None);
        }

        #[test]
        fn no_yaml_like_text_panics(text in "[a-c:\\-\\[\\]{}&*!|>'\"#,?% \t\n0-9.]{0,120}") {
            let _ = read(&text, None);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = read_bytes(&bytes);
        }
    }
}
