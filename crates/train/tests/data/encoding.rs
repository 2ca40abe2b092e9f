//! Encoded values against plain definitions.

use std::collections::BTreeMap;

use entrenar_train::data::{
    Batch, ColumnKind, Dataset, Feature, Holdout, ImageData, Missing, Preprocessing, Scaling,
    Splits, TableData, TableSpec, TargetEncoding, TargetKind, TextData, TextPreprocessing,
    TextUnit, find_files,
};
use proptest::prelude::*;

use super::{Place, gzip, idx};

fn inputs(batch: &Batch) -> Vec<f32> {
    batch.inputs.to_vec::<f32>().unwrap()
}

fn all(dataset: &dyn Dataset) -> Batch {
    dataset
        .batch(&(0..dataset.len()).collect::<Vec<_>>())
        .unwrap()
}

#[test]
fn a_table_of_every_kind_of_column() {
    let place = Place::new();
    // A byte order mark, quotes, spaces, an unused column and Windows line ends.
    place.write(
        "t.csv",
        "\u{feff}id,size,colour,big,\"the kind\"\r\n7,1, red ,yes,10\r\n8,3,blue,NO,9\r\n\r\n9,,red,T,10\r\n9,2,\"red\",0,9\r\n",
    );
    let spec = TableSpec {
        features: Some(["big", "colour", "size"].map(String::from).to_vec()),
        kinds: BTreeMap::from([
            ("big".to_string(), ColumnKind::Boolean),
            ("colour".to_string(), ColumnKind::Categorical),
        ]),
        missing: Missing::Mean,
        ..TableSpec::new("the kind", TargetKind::Class)
    };
    let data = TableData::open(place.path(), &["t.csv"], &spec, &Splits::none(), 0).unwrap();
    let preprocessing = data.preprocessing();
    // Labels that are integers are ordered as numbers.
    assert_eq!(preprocessing.labels(), ["9", "10"]);
    // 1, 3 and 2 without the missing cell: mean 2, variance 2/3.
    let deviation = (2.0f64 / 3.0).sqrt();
    assert_eq!(
        preprocessing.features,
        [
            Feature::Boolean { name: "big".into() },
            Feature::Categorical {
                name: "colour".into(),
                categories: vec!["blue".into(), "red".into()]
            },
            Feature::Numeric {
                name: "size".into(),
                mean: 2.0,
                std: deviation,
                fill: Some(2.0)
            },
        ]
    );
    let batch = all(&*data.parts().training);
    let z = (1.0 / deviation) as f32;
    assert_eq!(batch.inputs.shape().dims(), [4, 4]);
    #[rustfmt::skip]
    assert_eq!(inputs(&batch), [
        1.0, 0.0, 1.0, -z,
        0.0, 1.0, 0.0, z,
        1.0, 0.0, 1.0, 0.0,
        0.0, 0.0, 1.0, 0.0,
    ]);
    assert_eq!(batch.targets.to_vec::<i64>().unwrap(), [1, 0, 1, 0]);
}

#[test]
fn statistics_come_from_the_training_rows_alone() {
    let place = Place::new();
    let rows: String = (0..40)
        .map(|row| format!("{},{}\n", row * row, row))
        .collect();
    place.write("t.csv", format!("x,y\n{rows}"));
    let spec = TableSpec {
        standardize_target: true,
        ..TableSpec::new("y", TargetKind::Number)
    };
    let data = TableData::open(
        place.path(),
        &["t.csv"],
        &spec,
        &Splits::validation(0.25),
        5,
    )
    .unwrap();
    let (training, validation) = (
        all(&*data.parts().training),
        all(&*data.parts().validation.unwrap()),
    );
    assert_eq!((training.rows, validation.rows), (30, 10));
    // Standardised training inputs have mean 0 and deviation 1; those of all rows would not.
    let values = inputs(&training);
    let mean = values.iter().sum::<f32>() / 30.0;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 30.0;
    assert!(
        mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5,
        "{mean} {variance}"
    );
    // Targets turn back into the column.
    let mut original: Vec<f64> = [&training, &validation]
        .iter()
        .flat_map(|batch| batch.targets.to_vec::<f32>().unwrap())
        .map(|y| data.preprocessing().original_target(f64::from(y)).round())
        .collect();
    original.sort_by(f64::total_cmp);
    assert!(original.into_iter().eq((0..40).map(f64::from)));
    let TargetEncoding::Number { mean, .. } = data.preprocessing().target else {
        panic!("a numeric target")
    };
    let other = TableData::open(
        place.path(),
        &["t.csv"],
        &spec,
        &Splits::validation(0.25),
        6,
    )
    .unwrap();
    assert_ne!(
        other.preprocessing().target,
        data.preprocessing().target,
        "mean {mean}"
    );
}

#[test]
fn preprocessing_read_back_encodes_the_same_inputs() {
    let place = Place::new();
    let file = place.write(
        "t.csv",
        "a,b,c\n0.1,x,1\n0.7,y,2\n-3.3333333333333335,x,3\n",
    );
    let spec = TableSpec {
        features: Some(vec!["a".into(), "b".into()]),
        kinds: BTreeMap::from([("b".to_string(), ColumnKind::Categorical)]),
        input_shape: vec![1, 3],
        standardize_target: true,
        ..TableSpec::new("c", TargetKind::Number)
    };
    let data = TableData::open(place.path(), &["t.csv"], &spec, &Splits::none(), 0).unwrap();
    let stored = Preprocessing::Table(data.preprocessing().clone());
    stored.save(place.path()).unwrap();
    let loaded = Preprocessing::load(place.path()).unwrap();
    assert_eq!(loaded, stored);
    let Preprocessing::Table(table) = loaded else {
        panic!("a table")
    };
    let (before, after) = (
        all(&*data.parts().training),
        all(&table.read(&[file], true).unwrap()),
    );
    assert_eq!(before.inputs.shape().dims(), [3, 1, 3]);
    assert_eq!(inputs(&before), inputs(&after));
    assert_eq!(
        before.targets.to_vec::<f32>().unwrap(),
        after.targets.to_vec::<f32>().unwrap()
    );
}

#[test]
fn a_constant_column_is_not_blown_up() {
    let place = Place::new();
    place.write("t.csv", "a,b\n0.1,1\n0.1,2\n0.1,3\n");
    let spec = TableSpec::new("b", TargetKind::Number);
    let data = TableData::open(place.path(), &["t.csv"], &spec, &Splits::none(), 0).unwrap();
    assert!(
        inputs(&all(&*data.parts().training))
            .iter()
            .all(|x| x.abs() < 1e-6)
    );
}

/// Four images of 1 × 2 pixels with labels 0, 1, 2, 0.
fn write_images(place: &Place, directory: &str, prefix: &str, dot: bool, zip: bool) {
    let name = |part: &str, rank: u8| {
        let separator = if dot { '.' } else { '-' };
        let ending = if zip { ".gz" } else { "" };
        format!("{directory}/{prefix}-{part}{separator}idx{rank}-ubyte{ending}")
    };
    let pack = |bytes: Vec<u8>| if zip { gzip(&bytes) } else { bytes };
    place.write(
        &name("images", 3),
        pack(idx(&[4, 1, 2], &[0, 255, 51, 102, 0, 0, 255, 255])),
    );
    place.write(&name("labels", 1), pack(idx(&[4], &[0, 1, 2, 0])));
}

#[test]
fn images_under_all_their_names() {
    let place = Place::new();
    for (number, (dot, zip)) in [(false, false), (false, true), (true, false), (true, true)]
        .into_iter()
        .enumerate()
    {
        let directory = number.to_string();
        write_images(&place, &directory, "train", dot, zip);
        write_images(&place, &directory, "t10k", dot, zip);
        let data = ImageData::open(
            &place.path().join(&directory),
            &Splits::none(),
            &Scaling::Fixed {
                mean: vec![0.2],
                std: vec![0.5],
            },
            0,
        )
        .unwrap();
        let batch = data.parts().training.batch(&[1, 0]).unwrap();
        assert_eq!(batch.inputs.shape().dims(), [2, 1, 1, 2]);
        assert_eq!(inputs(&batch), [0.0, 0.4, -0.4, 1.6]);
        assert_eq!(batch.targets.to_vec::<i64>().unwrap(), [1, 0]);
        assert_eq!(data.parts().test.unwrap().len(), 4);
    }
}

#[test]
fn image_statistics_and_splits() {
    let place = Place::new();
    write_images(&place, "m", "train", false, true);
    let directory = place.path().join("m");
    let data = ImageData::open(&directory, &Splits::none(), &Scaling::Standard, 0).unwrap();
    // Pixels 0, 1, 0.2, 0.4, 0, 0, 1, 1.
    let pixels = [0.0f64, 1.0, 0.2, 0.4, 0.0, 0.0, 1.0, 1.0];
    let mean = pixels.iter().sum::<f64>() / 8.0;
    let std = (pixels.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 8.0).sqrt();
    let learnt = data.preprocessing();
    assert!((learnt.mean - mean).abs() < 1e-12 && (learnt.std - std).abs() < 1e-12);
    assert_eq!(learnt.labels, ["0", "1", "2"]);
    assert!(data.parts().validation.is_none() && data.parts().test.is_none());
    let split =
        ImageData::open(&directory, &Splits::validation(0.25), &Scaling::Standard, 0).unwrap();
    assert_eq!(
        (
            split.parts().training.len(),
            split.parts().validation.unwrap().len()
        ),
        (3, 1)
    );
    assert_ne!(split.preprocessing().mean, learnt.mean);
    // One file alone: images without targets.
    let bare = learnt
        .read(&directory.join("train-images-idx3-ubyte.gz"), false)
        .unwrap();
    assert_eq!((bare.len(), all(&*bare).target_count()), (4, 0));
}

#[test]
fn patterns_give_every_file_once_in_order() {
    let place = Place::new();
    for name in [
        "b.txt",
        "a.txt",
        "sub/c.txt",
        "sub/.hidden.txt",
        "d.md",
        "odd[1].txt",
    ] {
        place.write(name, name);
    }
    let names = |patterns: &[&str]| -> Vec<String> {
        let files = find_files(place.path(), patterns).unwrap();
        files
            .iter()
            .map(|file| {
                file.strip_prefix(place.path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect()
    };
    assert_eq!(names(&["*.txt"]), ["a.txt", "b.txt", "odd[1].txt"]);
    assert_eq!(
        names(&["**/*.txt"]),
        ["a.txt", "b.txt", "odd[1].txt", "sub/c.txt"]
    );
    assert_eq!(
        names(&["d.md", "b.txt", "*.txt"]),
        ["d.md", "b.txt", "a.txt", "odd[1].txt"]
    );
    assert_eq!(names(&["odd[1].txt"]), ["odd[1].txt"]);
    // A directory that looks like a pattern is none.
    let odd = Place(tempfile::Builder::new().prefix("x[a]*").tempdir().unwrap());
    odd.write("a.txt", "a");
    assert_eq!(
        find_files(odd.path(), &["*.txt"]).unwrap(),
        [odd.path().join("a.txt")]
    );
}

#[test]
fn text_is_joined_split_and_numbered() {
    let place = Place::new();
    place.write("1.txt", "abca");
    place.write("2.txt", "bdé\n");
    let open = |validation: &Splits| {
        TextData::open(place.path(), &["*.txt"], TextUnit::Char, validation, 2).unwrap()
    };
    let data = open(&Splits::validation(0.25));
    assert_eq!(data.token_counts(), [6, 2, 0]);
    // \n a b c d é
    let last = data
        .parts()
        .training
        .batch(&[data.parts().training.len() - 1])
        .unwrap();
    assert_eq!(last.inputs.to_vec::<i64>().unwrap(), [1, 2]);
    assert_eq!(last.targets.to_vec::<i64>().unwrap(), [2, 4]);
    let validation = data.parts().validation.unwrap();
    let batch = all(&*validation);
    assert_eq!(
        (
            batch.inputs.to_vec::<i64>().unwrap(),
            batch.targets.to_vec::<i64>().unwrap()
        ),
        (vec![5], vec![0])
    );
    // A validation file of its own, whose characters join the vocabulary.
    place.write("other", "xyz");
    let data = open(&Splits {
        validation: Holdout::Paths(vec!["other".into()]),
        test: Holdout::None,
    });
    assert_eq!(data.token_counts(), [8, 3, 0]);
    assert_eq!(data.tokenizer().vocabulary_size(), 9);
    let stored = Preprocessing::Text(TextPreprocessing {
        tokenizer: data.tokenizer().clone(),
        context_length: 2,
    });
    stored.save(place.path()).unwrap();
    assert_eq!(Preprocessing::load(place.path()).unwrap(), stored);
}

#[test]
fn bytes_need_no_vocabulary() {
    let place = Place::new();
    place.write("raw.bin", [0xff, 0x00, 0x80]);
    let data = TextData::open(
        place.path(),
        &["raw.bin"],
        TextUnit::Byte,
        &Splits::none(),
        2,
    )
    .unwrap();
    let batch = data.parts().training.batch(&[0]).unwrap();
    assert_eq!(batch.inputs.to_vec::<i64>().unwrap(), [0xff, 0]);
    assert_eq!(batch.targets.to_vec::<i64>().unwrap(), [0, 0x80]);
}

proptest! {
    #[test]
    fn no_bytes_make_any_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let place = Place::new();
        place.write("t", &bytes);
        place.write("train-images-idx3-ubyte", &bytes);
        place.write("train-labels-idx1-ubyte", idx(&[1], &[1]));
        // Only that they return matters here.
        let _ = TableData::open(place.path(), &["t"], &TableSpec::new("y", TargetKind::Class), &Splits::none(), 0);
        let _ = TextData::open(place.path(), &["t"], TextUnit::Char, &Splits::validation(0.2), 3);
        let _ = TextData::open(place.path(), &["t"], TextUnit::Byte, &Splits::validation(0.2), 3);
        let _ = ImageData::open(place.path(), &Splits::none(), &Scaling::None, 0);
        let _ = Preprocessing::from_json(&String::from_utf8_lossy(&bytes), place.path());
    }

    #[test]
    fn no_table_like_text_panics(text in "(y|x|\"|,|\n|\r|1|é|;| ){0,40}") {
        let place = Place::new();
        place.write("t", format!("x,y\n{text}"));
        for kind in [TargetKind::Class, TargetKind::Number] {
            let spec = TableSpec { missing: Missing::Mean, ..TableSpec::new("y", kind) };
            if let Err(error) = TableData::open(place.path(), &["t"], &spec, &Splits::validation(0.5), 0) {
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
        }
    }

    #[test]
    fn numbers_survive_a_table(values in proptest::collection::vec(-1e30f64..1e30, 2..20)) {
        let place = Place::new();
        let rows: String = values.iter().map(|value| format!("{value},{value}\n")).collect();
        place.write("t", format!("x,y\n{rows}"));
        let spec = TableSpec { scaling: Scaling::None, ..TableSpec::new("y", TargetKind::Number) };
        let data = TableData::open(place.path(), &["t"], &spec, &Splits::none(), 0).unwrap();
        let batch = all(&*data.parts().training);
        let expected: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        prop_assert_eq!(inputs(&batch), expected.clone());
        prop_assert_eq!(batch.targets.to_vec::<f32>().unwrap(), expected);
    }
}
