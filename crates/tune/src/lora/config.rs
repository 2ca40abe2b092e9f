//! [`LoraConfig`]: which layers get adapters, and of what kind; PEFT's `adapter_config.json`.

use std::collections::BTreeSet;

use entrenar_core::{Error, Result};
use regex::Regex;
use serde_json::{Map, Value, json};

/// Which layers get adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the output layer.
    AllLinear,
    /// Layers, and embeddings, whose path is an entry or ends with `.` and an entry; the entry
    /// `all-linear` means every linear layer but the output layer.
    Names(Vec<String>),
    /// Layers and embeddings whose whole path the expression matches.
    Pattern(String),
}

/// How A and B begin; B begins at 0 unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// Uniform in ±1/√in.
    #[default]
    Kaiming,
    /// N(0, 1/r²).
    Gaussian,
    /// s·B·A is the best approximation of rank r of the weight, which loses it (Meng et al., "PiSSA",
    /// 2024). Such an adapter belongs to the weight it was made from.
    Pissa {
        /// Rounds of a randomized search for the leading singular vectors; none: exact.
        iterations: Option<usize>,
    },
}

impl LoraInit {
    /// The value of `init_lora_weights` with this meaning.
    fn to_json(self) -> Value {
        match self {
            LoraInit::Kaiming => json!(true),
            LoraInit::Gaussian => json!("gaussian"),
            LoraInit::Pissa { iterations: None } => json!("pissa"),
            LoraInit::Pissa {
                iterations: Some(n),
            } => json!(format!("pissa_niter_{n}")),
        }
    }

    /// The meaning of `init_lora_weights`, if it is one of ours.
    fn from_json(value: &Value) -> Option<LoraInit> {
        match value {
            Value::Null | Value::Bool(true) => Some(LoraInit::Kaiming),
            Value::String(name) => match name.as_str() {
                "gaussian" => Some(LoraInit::Gaussian),
                "pissa" => Some(LoraInit::Pissa { iterations: None }),
                other => {
                    let rounds = other.strip_prefix("pissa_niter_")?.parse().ok();
                    rounds.map(|n| LoraInit::Pissa {
                        iterations: Some(n),
                    })
                }
            },
            _ => None,
        }
    }
}

/// Settings of adapters, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the product.
    pub r: usize,
    /// The product is multiplied by this over r (or √r).
    pub lora_alpha: f64,
    /// Share of the input that the adapter does not see while training.
    pub lora_dropout: f64,
    /// Which layers.
    pub targets: Targets,
    /// Ranks of layers whose path a key matches (its end, or as an expression).
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// α / √r instead of α / r.
    pub use_rslora: bool,
    /// Learn the length of each row too.
    pub use_dora: bool,
    /// How A and B begin.
    pub init: LoraInit,
    /// Modules that are trained in full and stored with the adapter: a path or the end of one.
    pub modules_to_save: Vec<String>,
    /// `base_model_name_or_path` of the file.
    pub base_model: Option<String>,
    /// Every key of the file, for those who write it again.
    pub raw: Map<String, Value>,
}

/// What one layer gets.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSettings {
    /// Rank of the product.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// Share of the input that the adapter does not see while training.
    pub dropout: f64,
    /// α / √r instead of α / r.
    pub rslora: bool,
    /// Learn the length of each row too.
    pub dora: bool,
    /// How A begins.
    pub init: LoraInit,
}

impl LayerSettings {
    /// What the product is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            targets: Targets::AllLinear,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            use_dora: false,
            init: LoraInit::Kaiming,
            modules_to_save: Vec::new(),
            base_model: None,
            raw: Map::new(),
        }
    }
}

/// The expression that must match a whole path.
fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|e| Error::config(format!("lora: {e}")))
}

/// Whether a key of `rank_pattern` or `alpha_pattern` means this layer: the whole path, or its end
/// after a dot, or an expression for either.
fn means(key: &str, path: &str) -> Result<bool> {
    Ok(Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
        .map_err(|e| Error::config(format!("lora: `{key}`: {e}")))?
        .is_match(path))
}

/// Whether the parameter at `path` is inside a module whose path is `entry` or ends with it.
pub(super) fn within(entry: &str, path: &str) -> bool {
    let modules = path.match_indices('.').map(|(dot, _)| &path[..dot]);
    modules.into_iter().any(|module| {
        module
            .strip_suffix(entry)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// The word for every linear layer but the output layer.
const ALL_LINEAR: &str = "all-linear";

impl Targets {
    /// The same with the ends of all names in place of an entry `all-linear`, which PEFT knows alone only.
    pub fn expanded(&self, linear: &[String]) -> Targets {
        match self {
            Targets::Names(entries) if entries.iter().any(|e| e == ALL_LINEAR) => {
                let ends = linear.iter().filter_map(|n| n.rsplit('.').next());
                let others = entries.iter().map(String::as_str);
                let all: BTreeSet<&str> = ends.chain(others).filter(|e| *e != ALL_LINEAR).collect();
                Targets::Names(all.into_iter().map(str::to_string).collect())
            }
            other => other.clone(),
        }
    }

    /// The layers that get adapters: linear layers `linear`, and `embeddings` that are named.
    ///
    /// # Errors
    /// When there are none, an entry matches none, or the expression is not valid.
    pub fn choose(&self, linear: &[String], embeddings: &[String]) -> Result<BTreeSet<String>> {
        let names: Vec<&String> = linear.iter().chain(embeddings).collect();
        let nothing = |what: &str| {
            let ends = |names: &[String]| {
                let ends: BTreeSet<&str> =
                    names.iter().filter_map(|n| n.rsplit('.').next()).collect();
                ends.into_iter().collect::<Vec<_>>().join(", ")
            };
            let more = match ends(embeddings) {
                none if none.is_empty() => none,
                some => format!(", its embeddings with {some}"),
            };
            Error::config(format!(
                "lora: target_modules: {what} matches no linear layer of this model; its layers end with {}{more}",
                ends(linear)
            ))
        };
        let targets = self.expanded(linear);
        let chosen: BTreeSet<String> = match &targets {
            Targets::AllLinear => linear.iter().cloned().collect(),
            Targets::Pattern(pattern) => {
                let whole = whole(pattern)?;
                names
                    .iter()
                    .filter(|n| whole.is_match(n))
                    .map(|n| n.to_string())
                    .collect()
            }
            Targets::Names(entries) => {
                let fits = |entry: &str, name: &str| {
                    name == entry
                        || name
                            .strip_suffix(entry)
                            .is_some_and(|rest| rest.ends_with('.'))
                };
                if let Some(lost) = entries.iter().find(|e| !names.iter().any(|n| fits(e, n))) {
                    return Err(nothing(&format!("`{lost}`")));
                }
                let chosen = |n: &&&String| entries.iter().any(|e| fits(e, n));
                names.iter().filter(chosen).map(|n| n.to_string()).collect()
            }
        };
        if chosen.is_empty() {
            return Err(nothing("it"));
        }
        Ok(chosen)
    }
}

impl LoraConfig {
    /// What the layer at `path` gets.
    ///
    /// # Errors
    /// When a pattern is not a valid expression.
    pub fn of(&self, path: &str) -> Result<LayerSettings> {
        let mut settings = LayerSettings {
            rank: self.r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            rslora: self.use_rslora,
            dora: self.use_dora,
            init: self.init,
        };
        for (key, rank) in &self.rank_pattern {
            if means(key, path)? {
                settings.rank = *rank;
                break;
            }
        }
        for (key, alpha) in &self.alpha_pattern {
            if means(key, path)? {
                settings.alpha = *alpha;
                break;
            }
        }
        Ok(settings)
    }

    /// Refuses keys of `rank_pattern` and `alpha_pattern` that mean none of the layers `names`.
    ///
    /// # Errors
    /// The first such key, or one that is not a valid expression.
    pub fn check_patterns(&self, names: &[String]) -> Result<()> {
        let ranks = self
            .rank_pattern
            .iter()
            .map(|(key, _)| ("rank_pattern", key));
        let alphas = self
            .alpha_pattern
            .iter()
            .map(|(key, _)| ("alpha_pattern", key));
        for (table, key) in ranks.chain(alphas) {
            let mut met = false;
            for name in names {
                met |= means(key, name)?;
            }
            if !met {
                return Err(Error::config(format!(
                    "lora: {table}: `{key}` matches no linear layer of this model"
                )));
            }
        }
        Ok(())
    }

    /// Whether PEFT would put an embedding's adapter on the output layer that is tied to it.
    pub(super) fn ensures_tying(&self) -> bool {
        self.raw.get("ensure_weight_tying") == Some(&Value::Bool(true))
    }

    /// Whether the parameter at `path` belongs to one of `modules_to_save`.
    pub fn saves(&self, path: &str) -> bool {
        self.modules_to_save.iter().any(|entry| within(entry, path))
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// When a rank is 0, α is not a number, or the dropout is no probability below 1.
    pub fn check(&self) -> Result<()> {
        let ranks = || self.rank_pattern.iter().map(|(_, r)| *r).chain([self.r]);
        if ranks().any(|r| r == 0) {
            return Err(Error::config("lora: r: expected at least 1, got 0"));
        }
        let alphas = || {
            self.alpha_pattern
                .iter()
                .map(|(_, a)| *a)
                .chain([self.lora_alpha])
        };
        if let Some(bad) = alphas().find(|a| !a.is_finite()) {
            return Err(Error::config(format!(
                "lora: lora_alpha: expected a number, got {bad}"
            )));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config(format!(
                "lora: lora_dropout: expected a probability below 1, got {}",
                self.lora_dropout
            )));
        }
        Ok(())
    }

    /// Reads the object of an `adapter_config.json`. Keys that PEFT may add later are kept and
    /// otherwise ignored; one that changes the numbers and is not built is an error.
    ///
    /// # Errors
    /// When the file is no LoRA, a value has the wrong type, or it asks for what is not built.
    pub fn from_json(map: &Map<String, Value>) -> Result<LoraConfig> {
        let wrong = |key: &str, what: &str| {
            let got = map.get(key).unwrap_or(&Value::Null);
            Error::config(format!(
                "adapter_config.json: `{key}`: expected {what}, got {got}"
            ))
        };
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        if get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(wrong("peft_type", "\"LORA\""));
        }
        let number = |key: &str, default: f64| match get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| wrong(key, "a number")),
        };
        let flag = |key: &str| match get(key) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| wrong(key, "true or false")),
        };
        for key in ["lora_bias", "use_qalora", "use_bdlora"] {
            if flag(key)? {
                return Err(wrong(key, "false (the other is not built)"));
            }
        }
        for key in [
            "layers_to_transform",
            "layer_replication",
            "trainable_token_indices",
            "target_parameters",
            "exclude_modules",
            "alora_invocation_tokens",
            "arrow_config",
        ] {
            let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
            if get(key).is_some_and(|v| !empty(v)) {
                return Err(wrong(key, "null (the other is not built)"));
            }
        }
        if get("bias").is_some_and(|v| v != "none") {
            return Err(wrong("bias", "\"none\" (the others are not built)"));
        }
        let targets = match get("target_modules") {
            Some(Value::String(s)) if s == ALL_LINEAR => Targets::AllLinear,
            Some(Value::String(s)) => Targets::Pattern(s.clone()),
            Some(Value::Array(list)) => {
                let names = list.iter().map(|v| v.as_str().map(str::to_string));
                let names: Option<Vec<String>> = names.collect();
                Targets::Names(names.ok_or_else(|| wrong("target_modules", "names"))?)
            }
            _ => return Err(wrong("target_modules", "a list of names or an expression")),
        };
        let modules_to_save = match get("modules_to_save") {
            None => Vec::new(),
            Some(value) => {
                let list = value.as_array().map(|l| l.iter().map(Value::as_str));
                let names: Option<Vec<&str>> = list.and_then(Iterator::collect);
                let names = names.ok_or_else(|| wrong("modules_to_save", "a list of names"))?;
                names.into_iter().map(str::to_string).collect()
            }
        };
        let pattern = |key: &str| -> Result<Vec<(String, f64)>> {
            let Some(v) = get(key) else {
                return Ok(Vec::new());
            };
            let fault = || wrong(key, "an object of numbers");
            let table = v.as_object().ok_or_else(fault)?;
            let entry = |(k, v): (&String, &Value)| Some((k.clone(), v.as_f64()?));
            table
                .iter()
                .map(entry)
                .collect::<Option<_>>()
                .ok_or_else(fault)
        };
        let init = LoraInit::from_json(get("init_lora_weights").unwrap_or(&Value::Null));
        let init = init.ok_or_else(|| {
            wrong(
                "init_lora_weights",
                "true, \"gaussian\", \"pissa\" or \"pissa_niter_N\" (the others are not built)",
            )
        })?;
        let rank = |r: f64| {
            if r >= 1.0 && r.fract() == 0.0 {
                Ok(r as usize)
            } else {
                Err(wrong("r", "a whole number of at least 1"))
            }
        };
        let config = LoraConfig {
            r: rank(number("r", 8.0)?)?,
            lora_alpha: number("lora_alpha", 8.0)?,
            lora_dropout: number("lora_dropout", 0.0)?,
            targets,
            rank_pattern: pattern("rank_pattern")?
                .into_iter()
                .map(|(k, r)| Ok((k, rank(r)?)))
                .collect::<Result<_>>()?,
            alpha_pattern: pattern("alpha_pattern")?,
            use_rslora: flag("use_rslora")?,
            use_dora: flag("use_dora")?,
            init,
            modules_to_save,
            base_model: get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(str::to_string),
            raw: map.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// The object of `adapter_config.json`.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.raw.clone();
        let table = |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect());
        // PEFT reads an integer where one is meant.
        let number = |x: f64| {
            if x.fract() == 0.0 {
                json!(x as i64)
            } else {
                json!(x)
            }
        };
        let ranks = self
            .rank_pattern
            .iter()
            .map(|(k, r)| (k.clone(), json!(r)))
            .collect();
        let alphas = self
            .alpha_pattern
            .iter()
            .map(|(k, a)| (k.clone(), number(*a)))
            .collect();
        let ours = json!({
            "peft_type": "LORA",
            "task_type": map.get("task_type").cloned().unwrap_or(json!("CAUSAL_LM")),
            "base_model_name_or_path": self.base_model,
            "r": self.r,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "target_modules": match &self.targets {
                Targets::AllLinear => json!(ALL_LINEAR),
                Targets::Names(names) => json!(names),
                Targets::Pattern(pattern) => json!(pattern),
            },
            "bias": "none",
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "modules_to_save": match self.modules_to_save.as_slice() {
                [] => Value::Null,
                names => json!(names),
            },
            "rank_pattern": table(ranks),
            "alpha_pattern": table(alphas),
            "init_lora_weights": self.init.to_json(),
            "inference_mode": true,
        });
        if let Value::Object(ours) = ours {
            map.extend(ours);
        }
        map
    }
}
