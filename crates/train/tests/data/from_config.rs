//! From configs to batches.

use entrenar_train::config;
use entrenar_train::data::{OpenedData, Order, Preprocessing, open_data};

use super::{Place, idx};

/// Opens the data of a config that stands beside its files.
fn open(place: &Place, yaml: &str) -> OpenedData {
    let file = place.write("config.yaml", yaml);
    let loaded = config::load(&file, &[]).unwrap();
    open_data(&loaded.config).unwrap()
}

#[test]
fn text() {
    let place = Place::new();
    place.write("books/a.txt", "abcdefghij".repeat(10));
    let yaml = |shuffle: bool| {
        format!(
            "task: language-model\nmodel: {{architecture: gpt, context: 8}}\n\
             data: {{path: 'books/*.txt', validation: 0.1, test: 0.2, shuffle: {shuffle}}}\ntrain: {{max_steps: 1}}\n"
        )
    };
    let opened = open(&place, &yaml(true));
    assert_eq!(opened.order, Order::Random);
    assert_eq!(
        (
            opened.preprocessing.outputs(),
            opened.preprocessing.sample_shape()
        ),
        (10, vec![8])
    );
    // 70, 10 and 20 tokens.
    let tests = [
        opened.parts.validation.unwrap().len(),
        opened.parts.test.unwrap().len(),
    ];
    assert_eq!((opened.parts.training.len(), tests), (62, [2, 3]));
    let opened = open(&place, &yaml(false));
    assert_eq!(
        (opened.order, opened.parts.training.len()),
        (Order::Sequential, 9)
    );
}

#[test]
fn tables() {
    let place = Place::new();
    place.write("a.csv", "id,size,colour,kind\n1,2,red,x\n2,4,blue,y\n");
    place.write("b.csv", "kind,colour,size\nx,green,3\nz,red,3\n");
    place.write("val.csv", "size,colour,kind\n9,green,z\n");
    let opened = open(
        &place,
        "task: classification\nmodel: {architecture: mlp}\ntrain: {epochs: 1}\n\
         data: {path: [a.csv, b.csv], format: csv, validation: val.csv, normalize: {mean: 3, std: 2}, \
         columns: {features: [size, colour], target: kind, types: {colour: category}}}\n",
    );
    assert_eq!(opened.order, Order::Shuffled);
    assert_eq!(opened.preprocessing.labels(), ["x", "y", "z"]);
    let all = opened.parts.training.batch(&[0, 1, 2, 3]).unwrap();
    #[rustfmt::skip]
    assert_eq!(all.inputs.to_vec::<f32>().unwrap(), [
        -0.5, 0.0, 0.0, 1.0,
        0.5, 1.0, 0.0, 0.0,
        0.0, 0.0, 1.0, 0.0,
        0.0, 0.0, 0.0, 1.0,
    ]);
    assert_eq!(all.targets.to_vec::<i64>().unwrap(), [0, 1, 0, 2]);
    let validation = opened.parts.validation.unwrap().batch(&[0]).unwrap();
    assert_eq!(
        validation.inputs.to_vec::<f32>().unwrap(),
        [3.0, 0.0, 1.0, 0.0]
    );
    // Evaluation later, from the stored preprocessing alone.
    opened.preprocessing.save(place.path()).unwrap();
    let stored = Preprocessing::load(place.path()).unwrap();
    let again = stored
        .read(place.path(), &["val.csv"], true)
        .unwrap()
        .batch(&[0])
        .unwrap();
    assert_eq!(again.inputs.to_vec::<f32>().unwrap(), [3.0, 0.0, 1.0, 0.0]);
    assert_eq!(again.targets.to_vec::<i64>().unwrap(), [2]);
}

#[test]
fn regression() {
    let place = Place::new();
    place.write("a.csv", "x,on,y\n1,yes,10\n,no,20\n3,no,30\n,yes,40\n");
    let opened = open(
        &place,
        "task: regression\nmodel: {architecture: mlp}\ntrain: {epochs: 1}\n\
         data: {path: a.csv, columns: {target: y, types: {on: boolean}, missing: mean}, normalize: standard}\n",
    );
    assert_eq!(opened.preprocessing.outputs(), 1);
    let all = opened.parts.training.batch(&[0, 3]).unwrap();
    let deviation = 1.0; // of 1 and 3
    assert_eq!(
        all.inputs.to_vec::<f32>().unwrap(),
        [-deviation, 1.0, 0.0, 1.0]
    );
    assert_eq!(all.targets.to_vec::<f32>().unwrap(), [10.0, 40.0]);
}

#[test]
fn images() {
    let place = Place::new();
    place.write(
        "m/train-images-idx3-ubyte",
        idx(&[4, 1, 2], &[0, 255, 51, 102, 0, 0, 255, 255]),
    );
    place.write("m/train-labels-idx1-ubyte", idx(&[4], &[0, 1, 2, 0]));
    let opened = open(
        &place,
        "task: classification\nmodel: {architecture: mlp}\ntrain: {epochs: 1}\n\
         data: {path: m, format: idx, validation: 0.25, normalize: {mean: 0.2, std: 0.5}}\n",
    );
    assert_eq!(
        (
            opened.preprocessing.outputs(),
            opened.preprocessing.sample_shape()
        ),
        (3, vec![1, 1, 2])
    );
    assert_eq!(
        (
            opened.parts.training.len(),
            opened.parts.validation.unwrap().len()
        ),
        (3, 1)
    );
}

/// The data that ships with the examples is what their configs say.
#[test]
fn examples_open() {
    let examples = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"));
    let open =
        |name: &str| open_data(&config::load(&examples.join(name), &[]).unwrap().config).unwrap();
    let iris = open("iris.yaml");
    assert_eq!(
        iris.preprocessing.labels(),
        ["setosa", "versicolor", "virginica"]
    );
    let sizes = [
        iris.parts.training.len(),
        iris.parts.validation.unwrap().len(),
        iris.parts.test.unwrap().len(),
    ];
    assert_eq!(sizes, [90, 30, 30]);
    let digits = open("digits.yaml");
    assert_eq!(
        (
            digits.preprocessing.sample_shape(),
            digits.preprocessing.outputs()
        ),
        (vec![64], 10)
    );
    let gpt = open("gpt.yaml");
    assert!(gpt.parts.training.len() > 100_000 && gpt.parts.validation.is_some());
}
