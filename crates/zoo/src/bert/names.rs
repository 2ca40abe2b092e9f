//! Names of tensors in older files of BERT.

use entrenar_core::Array;

use super::BertHead;

/// Brings the names of older files to ours: `gamma` and `beta` of norms; the encoder alone without
/// its prefix; the tied decoder and the unused parts are dropped.
pub(crate) fn modern_names(arrays: Vec<(String, Array)>, head: BertHead) -> Vec<(String, Array)> {
    let dropped = |name: &str| {
        let pooled = name.starts_with("bert.pooler.") && head == BertHead::MaskedLm;
        let words = name.starts_with("cls.") && head != BertHead::MaskedLm;
        pooled
            || words
            || name.starts_with("cls.seq_relationship.")
            || name.starts_with("cls.predictions.decoder.")
            || name.ends_with("embeddings.position_ids")
    };
    let renamed = |name: String| {
        let name = match name.strip_suffix(".gamma") {
            Some(stem) => format!("{stem}.weight"),
            None => name,
        };
        let name = match name.strip_suffix(".beta") {
            Some(stem) => format!("{stem}.bias"),
            None => name,
        };
        let bare = ["embeddings.", "encoder.", "pooler."];
        if bare.iter().any(|b| name.starts_with(b)) {
            format!("bert.{name}")
        } else {
            name
        }
    };
    arrays
        .into_iter()
        .map(|(name, array)| (renamed(name), array))
        .filter(|(name, _)| !dropped(name))
        .collect()
}
