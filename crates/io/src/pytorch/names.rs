//! Names of tensors: the way to each through the saved dicts and lists.

use std::collections::HashSet;

use super::machine::{Id, Pickle, Value};
use crate::names::Printable;

/// How deep containers may lie in each other.
const DEEPEST: usize = 32;
/// The name of a tensor that was saved by itself.
const ALONE: &str = "tensor";

/// Names and indices of the tensors, in the order of the pickle.
///
/// Keys are joined by dots. A checkpoint that keeps its model beside other things, as in
/// `{"epoch": 3, "state_dict": {…}, "optimizer": {…}}`, is read as its model: when no tensor lies in
/// the outer dict and exactly one of its dicts holds tensors directly, names start there.
pub(super) fn named(pickle: &Pickle<'_>) -> Result<Vec<(String, usize)>, String> {
    let mut walk = Walk {
        pickle,
        found: Vec::new(),
        seen: HashSet::new(),
        // Names are made of the pickle's text. Only one built to explode needs more than this.
        budget: pickle.length.saturating_mul(4).saturating_add(1 << 16),
    };
    walk.visit(model(pickle), "", 0)?;
    Ok(walk.found)
}

/// Where the model's names start.
fn model(pickle: &Pickle<'_>) -> Id {
    let holds_tensors = |id: Id| match &pickle.values[id as usize] {
        Value::Dict(pairs) => pairs
            .iter()
            .any(|(_, v)| matches!(pickle.values[*v as usize], Value::Tensor(_))),
        _ => false,
    };
    let root = pickle.root;
    if let Value::Dict(pairs) = &pickle.values[root as usize]
        && !holds_tensors(root)
    {
        let children: HashSet<Id> = pairs.iter().map(|(_, v)| *v).collect();
        let mut models = children.into_iter().filter(|id| holds_tensors(*id));
        if let (Some(only), None) = (models.next(), models.next()) {
            return only;
        }
    }
    root
}

struct Walk<'p, 'a> {
    pickle: &'p Pickle<'a>,
    found: Vec<(String, usize)>,
    seen: HashSet<String>,
    budget: usize,
}

impl Walk<'_, '_> {
    fn visit(&mut self, id: Id, path: &str, depth: usize) -> Result<(), String> {
        let pickle = self.pickle;
        let value = |id: Id| &pickle.values[id as usize];
        match value(id) {
            Value::Tensor(tensor) => {
                let name = if path.is_empty() { ALONE } else { path };
                if !self.seen.insert(name.to_string()) {
                    return Err(format!("two tensors have the name `{}`", Printable(name)));
                }
                self.found.push((name.to_string(), *tensor));
            }
            Value::Dict(_) | Value::List(_) | Value::Tuple(_) if depth == DEEPEST => {
                return Err(format!(
                    "`{}` lies more than {DEEPEST} dicts and lists deep",
                    Printable(path)
                ));
            }
            Value::Dict(pairs) => {
                for (key, item) in pairs {
                    self.spend(1)?;
                    if is_plain(value(*item)) {
                        continue;
                    }
                    let name = match value(*key) {
                        Value::Text(text) => self.join(path, text)?,
                        Value::Int(n) => self.join(path, &n.to_string())?,
                        _ => {
                            let shown = Printable(path);
                            return Err(format!(
                                "the dict `{shown}` has a key that is neither text nor a number"
                            ));
                        }
                    };
                    self.visit(*item, &name, depth + 1)?;
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                for (n, item) in items.iter().enumerate() {
                    self.spend(1)?;
                    if !is_plain(value(*item)) {
                        let name = self.join(path, &n.to_string())?;
                        self.visit(*item, &name, depth + 1)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn join(&mut self, path: &str, key: &str) -> Result<String, String> {
        self.spend(path.len() + key.len() + 1)?;
        Ok(match path {
            "" => key.to_string(),
            path => format!("{path}.{key}"),
        })
    }

    fn spend(&mut self, cost: usize) -> Result<(), String> {
        self.budget = self.budget.checked_sub(cost).ok_or(
            "its containers share each other so often that their names would fill the memory",
        )?;
        Ok(())
    }
}

/// Whether there can be no tensor in it.
fn is_plain(value: &Value<'_>) -> bool {
    match value {
        Value::Dict(pairs) => pairs.is_empty(),
        Value::List(items) | Value::Tuple(items) => items.is_empty(),
        Value::Tensor(_) => false,
        _ => true,
    }
}
