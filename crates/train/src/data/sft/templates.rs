//! Chat templates by name, for models that have none of their own.
//!
//! The layouts are those of ChatML and of Llama 3's model card; what the assistant says is marked.

use entrenar_base::{Error, Result};
use entrenar_zoo::text_model::special_tokens;
use entrenar_zoo::{ChatTemplate, Tokenizer};

use super::config::SftConfig;
use crate::data::report::shown;

const CHATML: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ message.content or '' }}{{ '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}
{{ message.content or '' }}{{ '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";

const LLAMA3: &str = "\
{{- bos_token or '' -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ (message.content or '') | trim }}{{ '<|eot_id|>' }}{%- endgeneration -%}
{%- else -%}
{{ (message.content or '') | trim }}{{ '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}";

/// The Jinja text of a template known by name.
pub(super) fn named(name: &str) -> Option<&'static str> {
    match name {
        "chatml" => Some(CHATML),
        "llama3" => Some(LLAMA3),
        _ => None,
    }
}

/// The Jinja text that a config's `chat_template` means: that of a name, or itself.
///
/// # Errors
///
/// A name that is not known.
pub(crate) fn jinja(template: &str) -> Result<&str> {
    if template.contains(['{', '\n']) {
        return Ok(template);
    }
    named(template).ok_or_else(|| {
        Error::config(format!(
            "chat template: expected chatml, llama3 or a Jinja text, got {}",
            shown(template)
        ))
    })
}

/// The template of the config, else of the tokenizer; `None` when neither has one.
pub(super) fn compiled(config: &SftConfig, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let source = match &config.chat_template {
        Some(template) => Some(jinja(template)?),
        None => tokenizer.chat_template(),
    };
    let mut variables = special_tokens(tokenizer);
    if let Some(eos) = &config.eos_token {
        variables.insert("eos_token".into(), eos.as_str().into());
    }
    source
        .map(|source| ChatTemplate::new(source, variables))
        .transpose()
}
