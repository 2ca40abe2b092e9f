//! Published data, where it is at hand.

use std::path::PathBuf;
use std::sync::Arc;

use entrenar_train::data::{
    Dataset, ImageData, Loader, LoaderConfig, Scaling, Splits, TextData, TextUnit,
};

/// The data directory, or a printed reason to skip.
fn data(name: &str) -> Option<PathBuf> {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(name);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {} is not here", path.display());
    None
}

#[test]
fn mnist() {
    let Some(directory) = data("mnist") else {
        return;
    };
    let data = ImageData::open(
        &directory,
        &Splits::validation(1.0 / 12.0),
        &Scaling::Standard,
        1,
    )
    .unwrap();
    assert_eq!(
        data.parts().training.len() + data.parts().validation.unwrap().len(),
        60_000
    );
    assert_eq!(data.parts().test.unwrap().len(), 10_000);
    let learnt = data.preprocessing();
    assert_eq!((learnt.size, learnt.labels.len()), ([28, 28], 10));
    // The constants that everyone uses: 0.1307 and 0.3081.
    assert!(
        (learnt.mean - 0.1307).abs() < 5e-4 && (learnt.std - 0.3081).abs() < 5e-4,
        "{learnt:?}"
    );
    // The first test labels, as in every tutorial.
    let first = data.parts().test.unwrap().batch(&[0, 1, 2, 3, 4]).unwrap();
    assert_eq!(first.targets.to_vec::<i64>().unwrap(), [7, 2, 1, 0, 4]);
    let mut counts = [0usize; 10];
    let mut loader =
        Loader::new(data.parts().test.unwrap(), LoaderConfig::evaluation(256)).unwrap();
    for batch in loader.epoch() {
        for label in batch.unwrap().targets.to_vec::<i64>().unwrap() {
            counts[label as usize] += 1;
        }
    }
    assert_eq!(
        counts,
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    );
}

#[test]
fn tiny_shakespeare() {
    let Some(directory) = data("tinyshakespeare") else {
        return;
    };
    let data = TextData::open(
        &directory,
        &["input.txt"],
        TextUnit::Char,
        &Splits::validation(0.1),
        64,
    )
    .unwrap();
    // What nanoGPT's prepare.py prints.
    assert_eq!(data.tokenizer().vocabulary_size(), 65);
    assert_eq!(data.token_counts(), [1_003_854, 111_540, 0]);
    let first = data
        .parts()
        .training
        .batch(&[0])
        .unwrap()
        .inputs
        .to_vec::<i64>()
        .unwrap();
    let ids: Vec<u32> = first.iter().map(|&id| id as u32).collect();
    assert!(
        data.tokenizer()
            .decode(&ids)
            .unwrap()
            .starts_with("First Citizen:\nBefore we proceed")
    );
    let validation: Arc<dyn Dataset> = data.parts().validation.unwrap();
    let mut loader = Loader::new(validation, LoaderConfig::evaluation(12)).unwrap();
    let total: usize = loader
        .epoch()
        .map(|batch| batch.unwrap().target_count())
        .sum();
    assert_eq!(total, 111_539);
}
