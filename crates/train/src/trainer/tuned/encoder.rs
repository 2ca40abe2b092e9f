//! [`Encoder`]: the run of a whole encoder, whatever its head is for.

use entrenar_base::Result;
use entrenar_nn::Parameters;
use entrenar_zoo::{Bert, Tokenizer};

use crate::config::Loaded;
use crate::data::{Order, Parts};
use crate::run::RunDirectory;
use crate::trainer::fit::Ended;
use crate::trainer::from_config::{
    Job, RunOptions, RunOutcome, check_same_run, train, write_config,
};
use crate::trainer::objective::Objective;
use crate::trainer::recipe;
use crate::trainer::trained::replace_directory;

/// An encoder that will be trained.
pub(super) struct Encoder {
    pub model: Bert,
    pub tokenizer: Tokenizer,
    /// What to tell before the first step.
    pub notes: Vec<String>,
}

impl Encoder {
    /// All of `model` will be trained; `about` its data is told, and which weights of it, `fresh`, come
    /// from no file.
    pub fn new(model: Bert, tokenizer: Tokenizer, about: String, fresh: &[String]) -> Self {
        let count = model.parameter_count();
        let mut notes = vec![format!("trainable parameters: {count} of {count}"), about];
        if !fresh.is_empty() {
            notes.push(format!("begin afresh: {}", fresh.join(", ")));
        }
        Self {
            model,
            tokenizer,
            notes,
        }
    }

    /// Trains it and leaves a model directory.
    ///
    /// # Errors
    ///
    /// What is wrong with the run directory, and what training reports.
    pub fn train(
        self,
        loaded: &Loaded,
        parts: &Parts,
        objective: Box<dyn Objective<Bert>>,
        options: RunOptions<'_>,
    ) -> Result<RunOutcome> {
        let config = &loaded.config;
        let run = RunDirectory::open(&options.place, options.resume)?;
        if options.resume {
            check_same_run(&run, config)?;
        }
        write_config(&run, config)?;
        let order = if config.data.shuffle {
            Order::Shuffled
        } else {
            Order::Sequential
        };
        let job = Job {
            model: &self.model,
            objective,
            optimizer: recipe::optimizer(&config.optimizer, &self.model)?,
            files: Vec::new(),
            sample: None,
            notes: self.notes,
        };
        let training = train(config, (parts, order), job, &run, &options)?;
        let mut outcome = RunOutcome {
            directory: run.path().to_path_buf(),
            training,
            model: None,
            sample: None,
        };
        if !matches!(outcome.training.ended, Ended::Interrupted(_)) {
            replace_directory(&run.model(), |new| {
                self.model.save_with(new, &self.tokenizer)
            })?;
            outcome.model = Some(run.model());
        }
        Ok(outcome)
    }
}
