//! Which bytes of a rendered conversation are learned.
//!
//! Where the template marks what the assistant says, the marks decide. Elsewhere a message's bytes
//! are found by rendering the conversation up to it and through it, which works as long as what is
//! rendered of a beginning is the beginning of the whole; a template that breaks this is an error.
//! What a template writes before and after a message's content is found by rendering another
//! content in its place. Neighbours: `encode` turns bytes into tokens.

use std::ops::Range;

use entrenar_base::{Error, ErrorKind, Result};
use entrenar_zoo::ChatTemplate;
use serde_json::{Value, json};

use super::config::{SftConfig, TrainOnEos};

/// A conversation as text.
#[derive(Debug, PartialEq)]
pub(super) struct Conversation {
    pub text: String,
    /// Bytes of the text that are learned, in order.
    pub learned: Vec<Range<usize>>,
}

/// What one message became.
#[derive(Clone, Debug, PartialEq)]
struct Turn {
    /// What is said.
    body: Range<usize>,
    /// What ends it, such as `<|im_end|>`; empty where the template writes nothing.
    end: Range<usize>,
}

/// No template writes this, and no data should: it stands for a message's content.
const PLACEHOLDER: &str = "\u{f8f2}";

struct Rendering<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Value],
    tools: Option<&'a Value>,
    text: String,
}

/// The text of `messages` and what of it is learned; nothing of the messages before `first`.
pub(super) fn render(
    template: &ChatTemplate,
    messages: &[Value],
    tools: Option<&Value>,
    first: usize,
    config: &SftConfig,
) -> Result<Conversation> {
    let whole = template.render(&Value::from(messages), tools, false)?;
    let rendering = Rendering {
        template,
        messages,
        tools,
        text: whole.text,
    };
    if config.train_on_inputs && first == 0 {
        let learned = rendering.all_but_ends(config.train_on_eos)?;
        return Ok(Conversation {
            text: rendering.text,
            learned,
        });
    }
    let learns = |i: usize| {
        let role = messages[i]["role"].as_str().unwrap_or("");
        i >= first && (config.train_on_inputs || config.roles_to_train.iter().any(|r| r == role))
    };
    // Marks speak of the assistant alone, and of all that it says.
    let by_marks = config.roles_to_train == ["assistant"]
        && !config.train_on_inputs
        && first == 0
        && matches!(config.train_on_eos, TrainOnEos::Turn);
    if let (true, Some(spans)) = (by_marks, &whole.assistant) {
        let learned = spans.iter().map(|&(start, end)| start..end).collect();
        return Ok(Conversation {
            text: rendering.text,
            learned,
        });
    }
    let last = (0..messages.len()).rev().find(|&i| learns(i));
    let mut learned = Vec::new();
    for i in 0..messages.len() {
        let ends = match config.train_on_eos {
            TrainOnEos::All => true,
            TrainOnEos::Turn => learns(i),
            TrainOnEos::Last => Some(i) == last,
            TrainOnEos::None => false,
        };
        if !(learns(i) || ends) {
            continue;
        }
        let turn = rendering.turn(i)?;
        if learns(i) {
            learned.push(turn.body);
        }
        if ends {
            learned.push(turn.end);
        }
    }
    Ok(Conversation {
        text: rendering.text,
        learned,
    })
}

impl Rendering<'_> {
    /// The whole text without the ends of turns that are not to be learned.
    fn all_but_ends(&self, eos: TrainOnEos) -> Result<Vec<Range<usize>>> {
        let (mut learned, mut start) = (Vec::new(), 0);
        let kept = match eos {
            TrainOnEos::All | TrainOnEos::Turn => 0,
            TrainOnEos::Last => self.messages.len().saturating_sub(1),
            TrainOnEos::None => self.messages.len(),
        };
        for i in 0..kept {
            let end = self.turn(i)?.end;
            learned.push(start..end.start);
            start = end.end;
        }
        learned.push(start..self.text.len());
        Ok(learned)
    }

    /// The text of other messages.
    fn text_of(&self, messages: &[Value], prompt: bool) -> Result<String> {
        let messages = Value::from(messages);
        Ok(self.template.render(&messages, self.tools, prompt)?.text)
    }

    /// Where the first `count` messages end in the whole text.
    fn end_of(&self, count: usize) -> Result<usize> {
        if count == 0 {
            return Ok(0);
        }
        if count == self.messages.len() {
            return Ok(self.text.len());
        }
        let part = self.text_of(&self.messages[..count], false).map_err(|e| {
            unmarked(format!(
                "it does not render the first {count} messages alone: {e}"
            ))
        })?;
        if !self.text.starts_with(&part) {
            return Err(unmarked(format!(
                "what it makes of the first {count} messages alone does not begin the whole"
            )));
        }
        Ok(part.len())
    }

    fn turn(&self, i: usize) -> Result<Turn> {
        let (before, after) = (self.end_of(i)?, self.end_of(i + 1)?);
        if before > after {
            return Err(unmarked(format!(
                "message {} makes the text shorter",
                i + 1
            )));
        }
        let span = &self.text[before..after];
        let (head, tail) = self.around(i, before)?;
        let mut start = match head {
            Some(head) if span.starts_with(&head) => before + head.len(),
            _ => before,
        };
        // What begins an answer is given to the model: it is learned no more than a question is.
        if self.messages[i]["role"] == "assistant"
            && let Ok(begun) = self.text_of(&self.messages[..i], true)
            && begun.len() > before
            && begun.len() <= after
            && self.text.starts_with(&begun)
        {
            start = begun.len();
        }
        let said = match tail {
            Some(tail) if self.text[start..after].ends_with(&tail) => after - tail.len(),
            _ => start + self.text[start..after].trim_end().len(),
        };
        let end = said + self.text[said..after].trim_end().len();
        Ok(Turn {
            body: start..said,
            end: said..end,
        })
    }

    /// What the template writes before and after the content of message `i`.
    fn around(&self, i: usize, before: usize) -> Result<(Option<String>, Option<String>)> {
        let mut messages = self.messages[..=i].to_vec();
        match messages[i].get_mut("content") {
            Some(content @ Value::String(_)) => *content = PLACEHOLDER.into(),
            _ => {
                let role = messages[i]["role"].clone();
                messages[i] = json!({"role": role, "content": PLACEHOLDER});
            }
        }
        Ok(cut(&self.text_of(&messages, false)?, before))
    }
}

/// What of `text` from `before` on stands before and after [`PLACEHOLDER`].
fn cut(text: &str, before: usize) -> (Option<String>, Option<String>) {
    let Some((head, tail)) = text.get(before..).and_then(|t| t.split_once(PLACEHOLDER)) else {
        return (None, None);
    };
    (Some(head.to_string()), Some(tail.to_string()))
}

fn unmarked(reason: String) -> Error {
    Error::new(
        ErrorKind::Argument,
        format!(
            "which part of the conversation's text each message is cannot be told from the chat \
             template: {reason}; mark what the assistant says in the template ({{% generation %}}), \
             or set another chat template (`chatml`, `llama3`)"
        ),
    )
}
