//! Broken data files, each with its exact message.

use entrenar_base::Error;
use entrenar_train::data::{
    ColumnKind, Holdout, ImageData, Loader, LoaderConfig, Missing, Preprocessing, Scaling, Splits,
    TableData, TableSpec, TargetKind, TextData, TextUnit, Tokenizer, read_tokens,
};
use insta::assert_snapshot;

use super::{Place, gzip, idx};

/// The message for a table of these bytes.
fn table_error(csv: impl AsRef<[u8]>, spec: &TableSpec) -> String {
    table_error_with(csv, spec, &Splits::none())
}

fn table_error_with(csv: impl AsRef<[u8]>, spec: &TableSpec, validation: &Splits) -> String {
    let place = Place::new();
    place.write("t.csv", csv);
    let error = TableData::open(place.path(), &["t.csv"], spec, validation, 0)
        .err()
        .expect("an error");
    place.told(error)
}

fn classes() -> TableSpec {
    TableSpec::new("kind", TargetKind::Class)
}

fn with_features(features: &[(&str, ColumnKind)]) -> TableSpec {
    TableSpec {
        features: Some(features.iter().map(|(name, _)| name.to_string()).collect()),
        kinds: features
            .iter()
            .map(|&(name, kind)| (name.to_string(), kind))
            .collect(),
        ..classes()
    }
}

fn text_error(
    files: &[(&str, &[u8])],
    patterns: &[&str],
    validation: &Splits,
    context: usize,
) -> String {
    let place = Place::new();
    for (name, bytes) in files {
        place.write(name, bytes);
    }
    let error = TextData::open(place.path(), patterns, TextUnit::Char, validation, context)
        .err()
        .expect("an error");
    place.told(error)
}

/// The message for a directory of these files.
fn image_error(files: &[(&str, Vec<u8>)]) -> String {
    let place = Place::new();
    for (name, bytes) in files {
        place.write(name, bytes);
    }
    let error: Error = ImageData::open(place.path(), &Splits::none(), &Scaling::None, 0)
        .err()
        .expect("an error");
    place.told(error)
}

const IMAGES: &str = "train-images-idx3-ubyte";
const LABELS: &str = "train-labels-idx1-ubyte";

fn images_error(bytes: Vec<u8>) -> String {
    image_error(&[(IMAGES, bytes), (LABELS, idx(&[2], &[0, 1]))])
}

#[test]
fn tables_that_are_no_tables() {
    assert_snapshot!(table_error("", &classes()), @"DIR/t.csv: the file is empty: expected a header line with column names");
    assert_snapshot!(table_error("\n\n", &classes()), @"DIR/t.csv: the file is empty: expected a header line with column names");
    assert_snapshot!(table_error("a,kind\n", &classes()), @"DIR/t.csv: the table has a header and no rows");
    assert_snapshot!(table_error("1,2\n3,4\n", &classes()), @r#"DIR/t.csv:1:1: expected a header line with column names, got only numbers ("1", "2")"#);
    assert_snapshot!(table_error(b"a,kin\xffd\n1,x\n", &classes()), @"DIR/t.csv:1:3: the column name is not UTF-8");
    assert_snapshot!(table_error("a,b,kind\n1,2,x\n\n3,y\n", &classes()), @"DIR/t.csv:4:1: expected 3 cells as in the header, got 2");
    assert_snapshot!(table_error("a,kind\n1,x,9\n", &classes()), @"DIR/t.csv:2:1: expected 2 cells as in the header, got 3");
}

#[test]
fn cells_that_are_no_values() {
    assert_snapshot!(table_error("a,b,kind\n1,2,x\n3,abc,y\n", &classes()), @r#"DIR/t.csv:3:3: column "b": expected a number, got "abc""#);
    assert_snapshot!(table_error("a,kind\n1,x\n,y\n", &classes()), @r#"DIR/t.csv:3:1: column "a": the number is missing (got ""); `missing: mean` would use the column's mean"#);
    assert_snapshot!(table_error("a,kind\n1,x\nNaN,y\n", &classes()), @r#"DIR/t.csv:3:1: column "a": the number is missing (got "NaN"); `missing: mean` would use the column's mean"#);
    assert_snapshot!(table_error("a,kind\n1e39,x\n2,y\n", &classes()), @r#"DIR/t.csv:2:1: column "a": expected a finite number that fits f32, got "1e39""#);
    assert_snapshot!(table_error("a,kind\ninf,x\n2,y\n", &classes()), @r#"DIR/t.csv:2:1: column "a": expected a finite number that fits f32, got "inf""#);
    assert_snapshot!(table_error(b"a,kind\n\xff,x\n", &classes()), @r#"DIR/t.csv:2:1: column "a": the cell \xff is not UTF-8"#);
    assert_snapshot!(
        table_error("a,b,kind\n\"multi\nline, é\",maybe,x\n", &with_features(&[("b", ColumnKind::Boolean)])), @r#"DIR/t.csv:3:10: column "b": expected true or false, got "maybe""#);
    assert_snapshot!(table_error("a,kind\n,x\n", &with_features(&[("a", ColumnKind::Categorical)])), @r#"DIR/t.csv:2:1: column "a": the category is missing (got "")"#);
    assert_snapshot!(table_error("a,kind\n1,x\n2,\n", &classes()), @r#"DIR/t.csv:3:3: column "kind": the label is missing (got "")"#);
    let mean = TableSpec {
        missing: Missing::Mean,
        ..classes()
    };
    assert_snapshot!(table_error("a,kind\n,x\nNA,y\n", &mean), @r#"DIR/t.csv: column "a" has no number in the training rows, so no mean"#);
    // The target is never filled in.
    let number = TableSpec {
        missing: Missing::Mean,
        ..TableSpec::new("y", TargetKind::Number)
    };
    assert_snapshot!(table_error("a,y\n1,2\n3,\n", &number), @r#"DIR/t.csv:3:3: column "y": the target is missing (got "")"#);
}

#[test]
fn columns_that_do_not_fit() {
    assert_snapshot!(table_error("a,Kind\n1,x\n", &classes()), @r#"DIR/t.csv: expected a column "kind", did you mean "Kind"? (the header has "a", "Kind")"#);
    assert_snapshot!(table_error("a,b,kind\n1,2,x\n", &with_features(&[("zzz", ColumnKind::Numeric)])), @r#"DIR/t.csv: expected a column "zzz" (the header has "a", "b", "kind")"#);
    assert_snapshot!(table_error("a,a,kind\n1,2,x\n", &with_features(&[("a", ColumnKind::Numeric)])), @r#"DIR/t.csv: column "a" occurs twice in the header, as numbers 1 and 2"#);
    assert_snapshot!(table_error("kind\nx\n", &classes()), @"DIR/t.csv: the table has no column to learn from besides the target");
    assert_snapshot!(table_error("a,kind\n1,x\n", &with_features(&[("kind", ColumnKind::Categorical)])), @r#"column "kind" is both a feature and the target"#);
    let shaped = TableSpec {
        input_shape: vec![2, 2],
        ..classes()
    };
    assert_snapshot!(table_error("a,b,kind\n1,2,x\n3,4,y\n", &shaped), @"an input shape of [2, 2] does not hold the 2 inputs of this table");
    assert_snapshot!(table_error("a,kind\n1,x\n2,x\n", &classes()), @r#"DIR/t.csv: column "kind" has only the label "x": there is nothing to tell apart"#);
}

#[test]
fn splits_that_leave_nothing() {
    let one_row = TableSpec {
        features: Some(vec!["a".into()]),
        ..TableSpec::new("y", TargetKind::Number)
    };
    assert_snapshot!(table_error_with("a,y\n1,2\n", &one_row, &Splits::validation(0.1)), @"a validation fraction of 0.1 of 1 row leaves nothing to train on");
    assert_snapshot!(table_error_with("a,y\n1,2\n3,4\n", &one_row, &Splits::validation(1.5)), @"expected a validation fraction between 0 and 1 (both excluded), got 1.5");
    assert_snapshot!(text_error(&[("a.txt", b"abc")], &["a.txt"], &Splits::validation(1e-20), 1), @"a validation fraction of 1e-20 of 3 tokens leaves nothing to validate on");
    assert_snapshot!(text_error(&[("a.txt", b"abcdefghij")], &["a.txt"], &Splits::validation(0.1), 4), @"expected at least 2 validation tokens, got 1");
    assert_snapshot!(text_error(&[("a.txt", b"abc")], &["a.txt"], &Splits::none(), 3), @"a context length of 3 needs at least 4 training tokens, got 3");
}

#[test]
fn later_files_with_names_that_training_did_not_know() {
    let place = Place::new();
    place.write("train.csv", "a,kind\nred,cat\nblue,dog\n");
    place.write("label.csv", "kind,a\ncat,red\ncats,red\n");
    place.write("category.csv", "kind,a\ncat,green\n");
    let spec = with_features(&[("a", ColumnKind::Categorical)]);
    let splits = Splits {
        validation: Holdout::Paths(vec!["label.csv".into()]),
        test: Holdout::None,
    };
    let error = TableData::open(place.path(), &["train.csv"], &spec, &splits, 0)
        .err()
        .unwrap();
    assert_snapshot!(place.told(error), @r#"DIR/label.csv:3:1: column "kind": unknown label "cats", did you mean "cat"? (training knew "cat", "dog")"#);
    let data = TableData::open(place.path(), &["train.csv"], &spec, &Splits::none(), 0).unwrap();
    let error = data
        .preprocessing()
        .read(&[place.path().join("category.csv")], true)
        .err()
        .unwrap();
    assert_snapshot!(place.told(error), @r#"DIR/category.csv:2:5: column "a": unknown category "green" (training knew "blue", "red")"#);
    place.write("bare.csv", "a\nred\n");
    let error = data
        .preprocessing()
        .read(&[place.path().join("bare.csv")], true)
        .err()
        .unwrap();
    assert_snapshot!(place.told(error), @r#"DIR/bare.csv: expected a column "kind" (the header has "a")"#);
    assert!(
        !data
            .preprocessing()
            .read(&[place.path().join("bare.csv")], false)
            .unwrap()
            .has_targets()
    );
}

#[test]
fn texts_that_cannot_be_read() {
    assert_snapshot!(text_error(&[], &["nothing.txt"], &Splits::none(), 4), @"DIR/nothing.txt: no such file");
    assert_snapshot!(text_error(&[("sub/a.md", b"x")], &["sub/*.txt"], &Splits::none(), 4), @"DIR/sub/*.txt: the pattern matches no file");
    assert_snapshot!(text_error(&[("sub/a.md", b"x")], &["sub"], &Splits::none(), 4), @r#"DIR/sub: expected a file or a pattern, got a directory; "sub/**/*.txt" would take the text files in it"#);
    assert_snapshot!(text_error(&[], &["a***b"], &Splits::none(), 4), @r#""a***b" is no file pattern: wildcards are either regular `*` or recursive `**` at position 3"#);
    assert_snapshot!(text_error(&[], &[], &Splits::none(), 4), @"no data path was given");
    assert_snapshot!(text_error(&[("a.txt", b"")], &["a.txt"], &Splits::none(), 4), @"DIR/a.txt: the text is empty");
    assert_snapshot!(text_error(&[("a.txt", b""), ("b.txt", b"")], &["*.txt"], &Splits::none(), 4), @"the text is empty: 2 files without a byte");
    assert_snapshot!(text_error(&[("a.txt", b"fine\nso \xc3\xa9 bad \xff")], &["a.txt"], &Splits::none(), 4), @"DIR/a.txt:2:10: the text is not UTF-8 at byte 15 (0xff); byte-level tokens would take it");
    assert_snapshot!(text_error(&[("a.txt", b"abc")], &["a.txt"], &Splits::none(), 0), @"expected a context length of at least 1, got 0");
    let place = Place::new();
    place.write("new.txt", "ab\nc€d");
    let error = read_tokens(
        place.path(),
        &["new.txt"],
        &Tokenizer::characters_of("abcd\n"),
    )
    .unwrap_err();
    assert_snapshot!(place.told(error), @"DIR/new.txt:2:2: character '€' (U+20AC) at byte 4 is not in the vocabulary of 5 characters");
}

#[cfg(unix)]
#[test]
fn devices_are_not_read() {
    let place = Place::new();
    std::os::unix::fs::symlink("/dev/zero", place.path().join("endless.csv")).unwrap();
    let error = TableData::open(
        place.path(),
        &["endless.csv"],
        &classes(),
        &Splits::none(),
        0,
    )
    .err()
    .unwrap();
    assert_snapshot!(place.told(error), @"DIR/endless.csv: expected a regular file");
}

#[test]
fn image_directories_that_are_none() {
    assert_snapshot!(image_error(&[]), @"DIR: no IDX images here: expected train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz)");
    assert_snapshot!(image_error(&[(IMAGES, idx(&[1, 1, 1], &[0]))]), @"DIR: the train images are here, but not the labels: expected train-labels-idx1-ubyte (or .gz)");
    let place = Place::new();
    let error = ImageData::open(&place.path().join("no"), &Splits::none(), &Scaling::None, 0)
        .err()
        .unwrap();
    assert_snapshot!(place.told(error), @"DIR/no: expected a directory of IDX files");
    assert_snapshot!(
        image_error(&[(IMAGES, idx(&[3, 1, 1], &[0, 1, 2])), (LABELS, idx(&[2], &[0, 1]))]), @"DIR/train-labels-idx1-ubyte: expected 3 labels, one for each image of DIR/train-images-idx3-ubyte, got 2");
    assert_snapshot!(image_error(&[(IMAGES, idx(&[2, 1, 1], &[0, 1])), (LABELS, idx(&[2], &[0, 0]))]), @"DIR/train-labels-idx1-ubyte: all labels are 0: there is nothing to tell apart");
}

#[test]
fn image_files_that_lie() {
    let good = idx(&[2, 1, 2], &[1, 2, 3, 4]);
    assert_snapshot!(images_error(Vec::new()), @"DIR/train-images-idx3-ubyte: expected an IDX header of 4 bytes, got 0");
    assert_snapshot!(images_error(b"PNG not IDX".to_vec()), @"DIR/train-images-idx3-ubyte: expected an IDX file beginning with two zero bytes, got 50 4e 47 20");
    assert_snapshot!(images_error([&[0, 0, 0x0d], &good[3..]].concat()), @"DIR/train-images-idx3-ubyte: expected elements of type 0x08 (unsigned byte), got type 0x0d (f32)");
    assert_snapshot!(images_error(idx(&[2, 2], &[1, 2, 3, 4])), @"DIR/train-images-idx3-ubyte: expected 3 dimensions, got 2");
    assert_snapshot!(images_error(good[..10].to_vec()), @"DIR/train-images-idx3-ubyte: the file ends within dimension 2 of 3");
    assert_snapshot!(images_error(good[..18].to_vec()), @"DIR/train-images-idx3-ubyte: the dimensions [2, 1, 2] declare 4 bytes, but 2 follow the header");
    assert_snapshot!(images_error([&good[..], &[9]].concat()), @"DIR/train-images-idx3-ubyte: the dimensions [2, 1, 2] declare 4 bytes, but 5 follow the header");
    assert_snapshot!(images_error(idx(&[2, 0, 2], &[])), @"DIR/train-images-idx3-ubyte: dimension 2 of [2, 0, 2] is zero");
    assert_snapshot!(images_error(idx(&[u32::MAX; 3], &[1])), @"DIR/train-images-idx3-ubyte: the dimensions [4294967295, 4294967295, 4294967295] declare more bytes than any file has");
    assert_snapshot!(images_error(idx(&[60_000, 1000, 1000], &[1])), @"DIR/train-images-idx3-ubyte: the dimensions [60000, 1000, 1000] declare 60000000000 bytes, but 1 follow the header");
}

#[test]
fn gzipped_image_files_that_lie() {
    let good = idx(&[2, 1, 2], &[1, 2, 3, 4]);
    let zipped = gzip(&good);
    assert_snapshot!(images_error(zipped[..20].to_vec()), @"DIR/train-images-idx3-ubyte: the gzip stream is cut short");
    assert_snapshot!(images_error(zipped[..zipped.len() - 3].to_vec()), @"DIR/train-images-idx3-ubyte: the gzip stream is cut short");
    let mut broken = zipped.clone();
    let checksum = broken.len() - 8;
    broken[checksum] ^= 1;
    assert_snapshot!(images_error(broken), @"DIR/train-images-idx3-ubyte: the gzip stream is damaged: corrupt gzip stream does not have a matching checksum");
    assert_snapshot!(images_error(gzip(&idx(&[60_000, 1000, 1000], &[1]))), @"DIR/train-images-idx3-ubyte: the dimensions [60000, 1000, 1000] declare 60000000000 bytes, but the compressed file holds at most 35088");
    assert_snapshot!(images_error(gzip(&good[..18])), @"DIR/train-images-idx3-ubyte: the dimensions [2, 1, 2] declare 4 bytes, but only 2 follow the header");
    assert_snapshot!(images_error(gzip(&[&good[..], &[0; 100]].concat())), @"DIR/train-images-idx3-ubyte: the dimensions [2, 1, 2] declare 4 bytes, but more follow");
}

#[test]
fn test_images_that_do_not_match_the_training_images() {
    let train = [
        (IMAGES, idx(&[2, 1, 2], &[1, 2, 3, 4])),
        (LABELS, idx(&[2], &[0, 1])),
    ];
    let with = |images: Vec<u8>, labels: Vec<u8>| {
        let mut files = train.to_vec();
        files.push(("t10k-images.idx3-ubyte", images));
        files.push(("t10k-labels.idx1-ubyte", labels));
        image_error(&files)
    };
    assert_snapshot!(with(idx(&[1, 2, 2], &[1, 2, 3, 4]), idx(&[1], &[0])), @"DIR/t10k-images.idx3-ubyte: expected images of 1 × 2 pixels as in training, got 2 × 2");
    assert_snapshot!(with(idx(&[2, 1, 2], &[1, 2, 3, 4]), idx(&[2], &[1, 2])), @"DIR/t10k-labels.idx1-ubyte: expected labels 0 to 1 as in training, got 2 for image 2");
}

#[test]
fn loaders_that_have_nothing_to_load() {
    let place = Place::new();
    place.write("t.csv", "a,kind\n1,x\n2,y\n3,x\n");
    let data = TableData::open(place.path(), &["t.csv"], &classes(), &Splits::none(), 0).unwrap();
    let error = |config| {
        Loader::new(data.parts().training, config)
            .err()
            .unwrap()
            .to_string()
    };
    assert_snapshot!(error(LoaderConfig::training(0, 1)), @"expected a batch size of at least 1, got 0");
    assert_snapshot!(error(LoaderConfig { drop_last: true, ..LoaderConfig::training(4, 1) }), @"3 samples make no full batch of 4");
}

#[test]
fn preprocessing_that_was_tampered_with() {
    let place = Place::new();
    let told = |json: &str| {
        place.write("preprocess.json", json);
        place.told(Preprocessing::load(place.path()).unwrap_err())
    };
    let missing = Preprocessing::load(&place.path().join("no")).err().unwrap();
    assert_snapshot!(place.told(missing), @"DIR/no/preprocess.json: no such file: the model does not say how its inputs are made");
    assert_snapshot!(told("{"), @"DIR/preprocess.json: EOF while parsing an object at line 1 column 1");
    assert_snapshot!(told(r#"{"format_version":2,"data":"text"}"#), @"DIR/preprocess.json: expected format version 1, got 2");
    assert_snapshot!(told(r#"{"format_version":1,"data":"sound"}"#), @"DIR/preprocess.json: unknown variant `sound`, expected one of `text`, `table`, `image` at line 1 column 34");
    assert_snapshot!(
        told(r#"{"format_version":1,"data":"text","context_length":0,"tokenizer":{"type":"byte"}}"#), @"DIR/preprocess.json: the context length is 0");
    assert_snapshot!(
        told(r#"{"format_version":1,"data":"text","context_length":4,"tokenizer":{"type":"char","characters":"ba"}}"#), @"DIR/preprocess.json: the characters of a tokenizer must be sorted and distinct, got 'b' before 'a'");
    assert_snapshot!(
        told(r#"{"format_version":1,"data":"image","size":[2,2],"mean":0.1,"std":0.0,"labels":["0"]}"#), @"DIR/preprocess.json: pixels: mean 0.1 and deviation 0 scale nothing");
}

#[test]
fn scales_that_do_not_fit() {
    let with = |mean: Vec<f64>, std: Vec<f64>| TableSpec {
        scaling: Scaling::Fixed { mean, std },
        ..classes()
    };
    let csv = "a,b,kind\n1,2,x\n3,4,y\n";
    assert_snapshot!(table_error(csv, &with(vec![0.0; 3], vec![1.0])), @"expected 1 or 2 numbers as mean for 2 numeric columns, got 3");
    assert_snapshot!(table_error(csv, &with(vec![0.0], vec![1.0, 0.0])), @"expected a finite mean and a positive std to scale by, got 0 as std");
    assert_snapshot!(table_error("a,kind\n1e38,x\n3,y\n", &with(vec![0.0], vec![1e-3])), @r#"DIR/t.csv: column "a", row 1: 1e38 is too far from the training rows (mean 0.0, deviation 0.001)"#);
}

#[test]
fn columns_that_are_something_else() {
    let ids: String = (0..1500).map(|row| format!("user-{row},{row}\n")).collect();
    let csv = format!("id,value\n{ids}");
    let identifier = TableSpec {
        target: "value".into(),
        target_kind: TargetKind::Number,
        ..with_features(&[("id", ColumnKind::Categorical)])
    };
    assert_snapshot!(table_error(&csv, &identifier), @r#"DIR/t.csv: column "id" has 1500 categories, more than 1000: an identifier is no input"#);
    let number = TableSpec {
        target: "value".into(),
        ..identifier
    };
    let number = TableSpec {
        features: Some(vec!["value".into()]),
        kinds: Default::default(),
        target: "id".into(),
        target_kind: TargetKind::Class,
        ..number
    };
    assert_snapshot!(table_error(&csv, &number), @r#"DIR/t.csv: column "id" has 1500 different labels in 1500 rows: a number is learnt by regression"#);
    let mut slip = with_features(&[("size", ColumnKind::Numeric)]);
    slip.kinds.insert("sizes".into(), ColumnKind::Categorical);
    assert_snapshot!(table_error("size,kind\n1,x\n", &slip), @r#"column "sizes" has a type, but is no feature, did you mean "size"? (features are "size")"#);
}

#[test]
fn the_second_of_two_files() {
    let place = Place::new();
    place.write("1.csv", "a,kind\n1,x\n2,y\n");
    let told = |second: &str, spec: &TableSpec| {
        place.write("2.csv", second);
        place.told(
            TableData::open(place.path(), &["*.csv"], spec, &Splits::none(), 0)
                .err()
                .unwrap(),
        )
    };
    assert_snapshot!(told("a\n1\n", &classes()), @r#"DIR/2.csv: expected a column "kind" (the header has "a")"#);
    assert_snapshot!(told("kind,a\nx,one\n", &classes()), @r#"DIR/2.csv:2:3: column "a": expected a number, got "one""#);
    place.write("2.csv", "kind,a\nz,1\n");
    let data = TableData::open(place.path(), &["1.csv"], &classes(), &Splits::none(), 0).unwrap();
    let files = ["1.csv", "2.csv"].map(|name| place.path().join(name));
    assert_snapshot!(place.told(data.preprocessing().read(&files, true).err().unwrap()), @r#"DIR/2.csv:2:1: column "kind": unknown label "z" (training knew "x", "y")"#);
}

#[test]
fn images_without_labels_cannot_be_evaluated() {
    let place = Place::new();
    let images = place.write(IMAGES, idx(&[2, 1, 1], &[0, 1]));
    place.write(LABELS, idx(&[2], &[0, 1]));
    let data = ImageData::open(place.path(), &Splits::none(), &Scaling::None, 0).unwrap();
    assert_snapshot!(place.told(data.preprocessing().read(&images, true).err().unwrap()), @"DIR/train-images-idx3-ubyte: expected a directory of IDX files with labels, got a single file");
    let two = Splits {
        validation: Holdout::Paths(vec!["a".into(), "b".into()]),
        test: Holdout::None,
    };
    assert_snapshot!(ImageData::open(place.path(), &two, &Scaling::None, 0).err().unwrap(), @"expected one directory of images, got 2");
}
