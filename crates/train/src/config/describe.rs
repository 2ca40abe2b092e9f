//! The vocabulary in which the config describes itself.
//!
//! One static [`Section`] tree (root: `sections/mod.rs`) names every key once: kind, default, range or allowed values,
//! one line of documentation and when the key applies. Everything else is derived from it: parsing and messages
//! (`check.rs`), the JSON Schema (`schema.rs`) and commented starter files (`starter.rs`). The typed structs beside
//! each description are what the trainer reads; a test holds the two together.

use std::fmt;

/// A mapping with a known set of keys.
#[derive(Debug)]
pub struct Section {
    /// One line: what the section decides.
    pub doc: &'static str,
    /// The keys, in the order in which they are written. A key that others depend on ([`When`]) comes before them.
    pub fields: &'static [Field],
    /// Relations between keys.
    pub rules: &'static [Rule],
    /// Key names that are known but not available, with the reason.
    pub reserved: &'static [Reserved],
}

/// One key of a section.
#[derive(Debug)]
pub struct Field {
    /// The key as written.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// What happens when the key is absent.
    pub absent: Absent,
    /// One line of documentation.
    pub doc: &'static str,
    /// Conditions that must all hold for the key to apply.
    pub when: &'static [When],
    /// Names from other tools that mean this key; they only improve the "did you mean" of an unknown key.
    pub hints: &'static [&'static str],
    /// Values that are known but not available, with the reason.
    pub reserved: &'static [Reserved],
    /// True where a starter file shows an optional key switched on.
    pub starter: bool,
}

/// A condition on another key: `key` is `task` (at the top of the file) or an earlier sibling.
#[derive(Debug, Clone, Copy)]
pub struct When {
    /// The key looked at.
    pub key: &'static str,
    /// The condition holds when the key has one of these values.
    pub values: &'static [&'static str],
}

/// A known name that this version cannot serve.
#[derive(Debug, Clone, Copy)]
pub struct Reserved {
    /// The key or value.
    pub name: &'static str,
    /// Why not, as the end of a sentence: "`bf16` …".
    pub why: &'static str,
}

/// YAML text that may depend on another key.
#[derive(Debug, Clone, Copy)]
pub enum Yaml {
    /// The same text always.
    Always(&'static str),
    /// `cases` lists (value of `key`, text); `None` otherwise.
    By {
        /// `task` or an earlier sibling.
        key: &'static str,
        /// Value of that key, and the text for it.
        cases: &'static [(&'static str, &'static str)],
        /// The text for every other value.
        otherwise: Option<&'static str>,
    },
}

impl Yaml {
    /// The text, where `lookup` gives the value of a key.
    pub fn text(&self, lookup: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
        match *self {
            Yaml::Always(text) => Some(text),
            Yaml::By {
                key,
                cases,
                otherwise,
            } => {
                let value = lookup(key);
                let case = cases
                    .iter()
                    .find(|(name, _)| value.as_deref() == Some(*name));
                case.map(|&(_, text)| text).or(otherwise)
            }
        }
    }
}

/// What an absent key means.
#[derive(Debug, Clone, Copy)]
pub enum Absent {
    /// An error; the text is the example of starter files and messages.
    Required(Yaml),
    /// The key takes this value; where the text depends on another key and has no case for it, the key is required.
    Default(Yaml),
    /// The key stays unset; the text is the example of starter files.
    Unset(Yaml),
}

/// A relation between the keys of one section.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Exactly one of the keys is set.
    ExactlyOne(&'static [&'static str]),
    /// Not more than one of the keys is set.
    AtMostOne(&'static [&'static str]),
}

/// An allowed word.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The word.
    pub name: &'static str,
    /// One line of documentation.
    pub doc: &'static str,
    /// Tasks it is for; empty means every task.
    pub tasks: &'static [&'static str],
}

/// The kind of value a key takes.
#[derive(Debug)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A whole number from the first to the second bound, both included.
    Integer(i64, i64),
    /// A number within a range.
    Number(Range),
    /// Any text.
    Text,
    /// One of some words.
    Choice(&'static [Choice]),
    /// A path or glob, or a list of them; always a list once resolved.
    Paths,
    /// A directory, or an id `name/model` on the hub where there is no such directory.
    ModelPath,
    /// A list whose length lies between the bounds.
    List {
        /// What the elements are.
        item: &'static Kind,
        /// Fewest elements.
        fewest: usize,
        /// Most elements.
        most: usize,
    },
    /// A list as above, or one bare element; always a list once resolved.
    OneOrMore(&'static Kind),
    /// A mapping from free names to one kind.
    Table(&'static Kind),
    /// The first kind of the list whose shape (number, text, list, mapping) fits the value.
    Either(&'static [Kind]),
    /// A mapping with known keys.
    Section(&'static Section),
}

/// Bounds of a number.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Lower bound.
    pub low: Bound,
    /// Upper bound.
    pub high: Bound,
}

/// One end of a [`Range`].
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// Anything finite.
    Open,
    /// The number itself belongs to the range.
    Included(f64),
    /// The number itself does not belong to the range.
    Excluded(f64),
}

/// Any finite number.
pub const ANY: Range = Range {
    low: Bound::Open,
    high: Bound::Open,
};
/// Zero or more.
pub const NOT_NEGATIVE: Range = Range {
    low: Bound::Included(0.0),
    high: Bound::Open,
};
/// More than zero.
pub const POSITIVE: Range = Range {
    low: Bound::Excluded(0.0),
    high: Bound::Open,
};
/// From 0 up to but not including 1: probabilities and moving averages.
pub const BELOW_ONE: Range = Range {
    low: Bound::Included(0.0),
    high: Bound::Excluded(1.0),
};
/// Strictly between 0 and 1.
pub const FRACTION: Range = Range {
    low: Bound::Excluded(0.0),
    high: Bound::Excluded(1.0),
};
/// More than 0, up to and including 1.
pub const SHARE: Range = Range {
    low: Bound::Excluded(0.0),
    high: Bound::Included(1.0),
};

impl Range {
    /// Whether `x` lies in the range; NaN and infinities never do.
    pub fn contains(&self, x: f64) -> bool {
        let low = match self.low {
            Bound::Open => true,
            Bound::Included(low) => x >= low,
            Bound::Excluded(low) => x > low,
        };
        let high = match self.high {
            Bound::Open => true,
            Bound::Included(high) => x <= high,
            Bound::Excluded(high) => x < high,
        };
        x.is_finite() && low && high
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low {
            Bound::Open => {}
            Bound::Included(low) => write!(f, " of at least {low}")?,
            Bound::Excluded(low) => write!(f, " above {low}")?,
        }
        if !matches!(self.low, Bound::Open) && !matches!(self.high, Bound::Open) {
            f.write_str(" and")?;
        }
        match self.high {
            Bound::Open => Ok(()),
            Bound::Included(high) => write!(f, " at most {high}"),
            Bound::Excluded(high) => write!(f, " below {high}"),
        }
    }
}

/// "a whole number from 1 to 64": the phrase after "expected" in messages.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Boolean => f.write_str("true or false"),
            Kind::Integer(low, i64::MAX) => write!(f, "a whole number of at least {low}"),
            Kind::Integer(low, high) => write!(f, "a whole number from {low} to {high}"),
            Kind::Number(range) => write!(f, "a number{range}"),
            Kind::Text => f.write_str("text"),
            Kind::Choice(_) => f.write_str("a word"),
            Kind::Paths => f.write_str("a path or a list of paths"),
            Kind::ModelPath => f.write_str("a directory or a hub id"),
            Kind::List { item, fewest, most } if fewest == most => {
                write!(f, "a list of {fewest} elements, each {item}")
            }
            Kind::List {
                item, fewest: 0, ..
            } => write!(f, "a list, each element {item}"),
            Kind::List {
                item,
                fewest,
                most: usize::MAX,
            } => {
                write!(f, "a list of at least {fewest}, each element {item}")
            }
            Kind::List { item, fewest, most } => {
                write!(f, "a list of {fewest} to {most} elements, each {item}")
            }
            Kind::OneOrMore(item) => write!(f, "{item}, or a list of such"),
            Kind::Table(item) => write!(f, "a mapping from names to values, each {item}"),
            Kind::Either(kinds) => {
                for (i, kind) in kinds.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", or ")?;
                    }
                    match kind {
                        // "a word" or "a section" says little among alternatives: name the words and keys.
                        Kind::Choice(choices) => {
                            let words: Vec<String> =
                                choices.iter().map(|c| format!("`{}`", c.name)).collect();
                            f.write_str(&words.join(" or "))?;
                        }
                        Kind::Section(section) => {
                            let keys: Vec<String> = section
                                .fields
                                .iter()
                                .map(|field| format!("`{}`", field.name))
                                .collect();
                            write!(f, "a section with {}", keys.join(" and "))?;
                        }
                        other => write!(f, "{other}")?,
                    }
                }
                Ok(())
            }
            Kind::Section(_) => f.write_str("a section (indented `key: value` lines)"),
        }
    }
}

impl Field {
    const fn new(name: &'static str, kind: Kind, absent: Absent, doc: &'static str) -> Field {
        Field {
            name,
            kind,
            absent,
            doc,
            when: &[],
            hints: &[],
            reserved: &[],
            starter: false,
        }
    }

    /// A key that must be given.
    pub const fn required(
        name: &'static str,
        kind: Kind,
        example: Yaml,
        doc: &'static str,
    ) -> Field {
        Field::new(name, kind, Absent::Required(example), doc)
    }

    /// A key with a default.
    pub const fn with_default(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        doc: &'static str,
    ) -> Field {
        Field::new(name, kind, Absent::Default(Yaml::Always(default)), doc)
    }

    /// A key whose default depends on another key.
    pub const fn with_default_by(
        name: &'static str,
        kind: Kind,
        default: Yaml,
        doc: &'static str,
    ) -> Field {
        Field::new(name, kind, Absent::Default(default), doc)
    }

    /// A key that may stay unset.
    pub const fn optional(
        name: &'static str,
        kind: Kind,
        example: &'static str,
        doc: &'static str,
    ) -> Field {
        Field::new(name, kind, Absent::Unset(Yaml::Always(example)), doc)
    }

    /// A section whose absence means all its defaults (and an error where it has required keys).
    pub const fn section(name: &'static str, section: &'static Section) -> Field {
        Field::new(
            name,
            Kind::Section(section),
            Absent::Default(Yaml::Always("{}")),
            section.doc,
        )
    }

    /// A section whose absence switches the thing off.
    pub const fn optional_section(name: &'static str, section: &'static Section) -> Field {
        Field::new(
            name,
            Kind::Section(section),
            Absent::Unset(Yaml::Always("{}")),
            section.doc,
        )
    }

    /// The same key, applying only under conditions.
    pub const fn when(mut self, when: &'static [When]) -> Field {
        self.when = when;
        self
    }

    /// The same key, with names that other tools use for it.
    pub const fn also_known_as(mut self, hints: &'static [&'static str]) -> Field {
        self.hints = hints;
        self
    }

    /// The same key, with values that exist but cannot be served.
    pub const fn reserved(mut self, reserved: &'static [Reserved]) -> Field {
        self.reserved = reserved;
        self
    }

    /// The same key, switched on in starter files.
    pub const fn in_starter(mut self) -> Field {
        self.starter = true;
        self
    }
}

impl Choice {
    /// A word for every task.
    pub const fn new(name: &'static str, doc: &'static str) -> Choice {
        Choice {
            name,
            doc,
            tasks: &[],
        }
    }

    /// A word for some tasks.
    pub const fn for_tasks(
        name: &'static str,
        tasks: &'static [&'static str],
        doc: &'static str,
    ) -> Choice {
        Choice { name, doc, tasks }
    }

    /// Whether the word may be used with this task (an unknown task allows everything).
    pub fn fits(&self, task: Option<&str>) -> bool {
        self.tasks.is_empty() || task.is_none_or(|task| self.tasks.contains(&task))
    }
}

impl When {
    /// Whether the condition holds, where `lookup` gives the value of a key. An unknown value holds, so that one
    /// mistake in `task` does not set off a message on every key that depends on it.
    pub fn holds(&self, lookup: &dyn Fn(&str) -> Option<String>) -> bool {
        lookup(self.key).is_none_or(|value| self.values.contains(&value.as_str()))
    }
}
