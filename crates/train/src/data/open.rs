//! From a config to datasets: the one place where `config` and `data` meet.
//!
//! Neighbours: `crate::config` checked the values, the kinds of data do the
//! work, the training loop takes the result.

use std::collections::BTreeMap;
use std::path::Path;

use entrenar_base::{Error, Result};

use super::csv_file::{ColumnKind, Missing};
use super::dataset::{Holdout, Parts, Splits};
use super::image::ImageData;
use super::order::Order;
use super::preprocessing::{Preprocessing, TextPreprocessing};
use super::scaling::Scaling;
use super::table::{TableData, TableSpec, TargetKind};
use super::text::{TextData, TextUnit};
use crate::config::{
    self, ColumnType, Config, Format, Model, Normalize, NormalizeName, Task, TokenizerKind,
};

/// Data that is ready to train on.
pub struct OpenedData {
    /// The datasets.
    pub parts: Parts,
    /// What goes beside the model.
    pub preprocessing: Preprocessing,
    /// The order in which training samples should come.
    pub order: Order,
}

/// Reads the data of a config.
///
/// Text is trained on in random windows; with `shuffle: false`, window after window. Tables and
/// images are shuffled every epoch unless `shuffle: false`.
///
/// # Errors
///
/// What is wrong with the files, and what does not fit between files and config.
pub fn open_data(config: &Config) -> Result<OpenedData> {
    let data = &config.data;
    // The config made its paths absolute: what they are joined to does not matter.
    let here = Path::new("");
    let splits = splits(data);
    let order = if data.shuffle {
        Order::Shuffled
    } else {
        Order::Sequential
    };
    match data.format {
        Format::Text => {
            let Model::Gpt(model) = &config.model else {
                return Err(Error::config("text needs a model with a context: `gpt`"));
            };
            let unit = match data.tokenizer {
                Some(TokenizerKind::Byte) => TextUnit::Byte,
                Some(TokenizerKind::Char | TokenizerKind::Model) | None => TextUnit::Char,
            };
            let text = TextData::open(here, &data.path, unit, &splits, model.context)?;
            let mut parts = text.parts();
            if !data.shuffle {
                parts.training = text.covering_training();
            }
            Ok(OpenedData {
                parts,
                preprocessing: Preprocessing::Text(TextPreprocessing {
                    tokenizer: text.tokenizer().clone(),
                    context_length: model.context,
                }),
                order: if data.shuffle {
                    Order::Random
                } else {
                    Order::Sequential
                },
            })
        }
        Format::Csv => {
            let columns = data
                .columns
                .as_ref()
                .ok_or_else(|| Error::config("expected `data.columns` for a table"))?;
            let target_kind = match config.task {
                Task::Regression => TargetKind::Number,
                _ => TargetKind::Class,
            };
            let spec = TableSpec {
                features: columns.features.clone(),
                kinds: kinds(columns),
                scaling: scaling(data.normalize.as_ref()),
                missing: match columns.missing {
                    config::Missing::Error => Missing::Error,
                    config::Missing::Mean => Missing::Mean,
                },
                ..TableSpec::new(columns.target.clone(), target_kind)
            };
            let table = TableData::open(here, &data.path, &spec, &splits, config.seed)?;
            let preprocessing = Preprocessing::Table(table.preprocessing().clone());
            Ok(OpenedData {
                parts: table.parts(),
                preprocessing,
                order,
            })
        }
        Format::Auto
        | Format::Messages
        | Format::PromptCompletion
        | Format::Alpaca
        | Format::ShareGpt => Err(Error::config(
            "conversations need a published model: give `model.base`",
        )),
        Format::Idx => {
            let [directory] = data.path.as_slice() else {
                return Err(Error::config(format!(
                    "expected one directory of images, got {}",
                    data.path.len()
                )));
            };
            let scaling = scaling(data.normalize.as_ref());
            let images = ImageData::open(Path::new(directory), &splits, &scaling, config.seed)?;
            let preprocessing = Preprocessing::Image(images.preprocessing().clone());
            Ok(OpenedData {
                parts: images.parts(),
                preprocessing,
                order,
            })
        }
    }
}

/// What a config holds out.
pub(crate) fn splits(data: &config::Data) -> Splits {
    let holdout = |split: &Option<config::Split>| match split {
        None => Holdout::None,
        Some(config::Split::Fraction(fraction)) => Holdout::Fraction(*fraction),
        Some(config::Split::Paths(paths)) => Holdout::Paths(paths.clone()),
    };
    Splits {
        validation: holdout(&data.validation),
        test: holdout(&data.test),
    }
}

fn scaling(normalize: Option<&Normalize>) -> Scaling {
    match normalize {
        None | Some(Normalize::Named(NormalizeName::None)) => Scaling::None,
        Some(Normalize::Named(NormalizeName::Standard)) => Scaling::Standard,
        Some(Normalize::Fixed(fixed)) => Scaling::Fixed {
            mean: fixed.mean.clone(),
            std: fixed.std.clone(),
        },
    }
}

fn kinds(columns: &config::Columns) -> BTreeMap<String, ColumnKind> {
    let kind = |column_type: ColumnType| match column_type {
        ColumnType::Number => ColumnKind::Numeric,
        ColumnType::Category => ColumnKind::Categorical,
        ColumnType::Boolean => ColumnKind::Boolean,
    };
    columns
        .types
        .iter()
        .map(|(name, column_type)| (name.clone(), kind(*column_type)))
        .collect()
}
