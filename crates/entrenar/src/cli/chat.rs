//! `entrenar chat`: a conversation with a language model, on a terminal or line by line from a file.

use super::generate::SamplingArgs;
use super::{Failure, Output, print, text_model};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

/// Talk with a language model that has a chat template
///
/// Each line of standard input is a message. /reset begins again; /exit or the end of input ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a model directory as published on a hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Prints each answer as it comes. Standard output holds only the answers.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let model = text_model(&args.model, args.adapter.as_deref(), output)?;
    let template = model.chat_template()?;
    let begin = || -> Vec<Value> {
        let system = args.system.iter();
        system
            .map(|s| json!({"role": "system", "content": s}))
            .collect()
    };
    let mut messages = begin();
    let input = std::io::stdin();
    let talking = input.is_terminal() && !output.quiet;
    let mut lines = input.lock().lines();
    loop {
        if talking {
            // A prompt that cannot be shown is no reason to stop.
            let _ = write!(std::io::stderr(), "> ");
        }
        let Some(line) = lines.next() else { break };
        let line = line.map_err(|e| Failure::Run(format!("standard input: {e}")))?;
        match line.trim() {
            "" => continue,
            "/exit" => break,
            "/reset" => {
                messages = begin();
                continue;
            }
            message => messages.push(json!({"role": "user", "content": message})),
        }
        let tokens = model.encode_chat(&template, &Value::from(messages.clone()))?;
        let (mut answer, mut trouble) = (String::new(), None);
        model.continue_tokens(&tokens, &args.sampling.sampling(), |text| {
            answer.push_str(text);
            trouble = print(text).err();
            trouble.is_none()
        })?;
        if let Some(failure) = trouble {
            return Err(failure);
        }
        print("\n")?;
        messages.push(json!({"role": "assistant", "content": answer}));
    }
    Ok(())
}
