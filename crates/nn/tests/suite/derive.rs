//! What `#[derive(Module)]` promises: names from field paths, nothing skipped silently.

use std::collections::BTreeMap;
use std::sync::Arc;

use entrenar_core::{DType, Result, Tensor};
use entrenar_nn::{Buffer, Init, Linear, Module, Parameter, Parameters};

fn one(n: usize) -> Parameter {
    Parameter::new(Tensor::zeros([n], DType::F32)).unwrap()
}

fn names(m: &impl Parameters) -> Vec<String> {
    m.named_parameters().into_iter().map(|(n, _)| n).collect()
}

#[derive(Module)]
struct Attention {
    qkv: Linear,
    heads: usize,
}

#[derive(Module)]
struct Block {
    attn: Attention,
    scale: Option<Parameter>,
}

#[derive(Module)]
struct Pair(Parameter, Parameter);

/// One field: no name of its own.
#[derive(Module)]
struct Wrapper(Pair);

#[derive(Module)]
enum Head {
    Plain(Parameter),
    Wide { left: Parameter, right: Parameter },
    None,
}

struct Foreign;

#[derive(Module)]
struct Model<M: Parameters> {
    blocks: Vec<Block>,
    r#type: Parameter,
    wrapped: Wrapper,
    #[module(rename = "classifier")]
    head: Head,
    #[module(skip)]
    foreign: Foreign,
    table: BTreeMap<String, Parameter>,
    fixed: [Parameter; 2],
    shared: Arc<Pair>,
    inner: M,
    running: Buffer,
    title: String,
}

#[test]
fn names_are_field_paths() -> Result<()> {
    let init = &mut Init::new(0);
    let block = |init: &mut Init, scale| {
        Ok(Block {
            attn: Attention {
                qkv: Linear::new(2, 6, init)?,
                heads: 2,
            },
            scale,
        })
    };
    let model = Model {
        blocks: vec![block(init, None)?, block(init, Some(one(1)))?],
        r#type: one(1),
        wrapped: Wrapper(Pair(one(1), one(1))),
        head: Head::Plain(one(1)),
        foreign: Foreign,
        table: BTreeMap::from([("b".into(), one(1)), ("a".into(), one(1))]),
        fixed: [one(1), one(1)],
        shared: Arc::new(Pair(one(1), one(1))),
        inner: one(5),
        running: Buffer::new(&Tensor::zeros([1], DType::F32)),
        title: "x".into(),
    };
    let Foreign = model.foreign;
    assert_eq!(model.blocks[0].attn.heads, 2);
    assert_eq!(model.title, "x");
    assert_eq!(
        names(&model),
        [
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.qkv.bias",
            "blocks.1.attn.qkv.weight",
            "blocks.1.attn.qkv.bias",
            "blocks.1.scale",
            "type",
            "wrapped.0",
            "wrapped.1",
            "classifier",
            "table.a",
            "table.b",
            "fixed.0",
            "fixed.1",
            "shared.0",
            "shared.1",
            "inner",
        ]
    );
    assert_eq!(model.named_buffers()[0].0, "running");
    assert_eq!(model.parameter_count(), 2 * 18 + 10 + 5 + 1);
    // Buffers stand in the state at their place.
    assert_eq!(model.state().last().unwrap().0, "running");
    let error = model.parameter("blocks.2").unwrap_err().to_string();
    assert!(
        error.contains("blocks.1.scale") && !error.contains("running"),
        "{error}"
    );
    assert_eq!(model.parameter("blocks.1.scale")?.numel(), 1);
    Ok(())
}

#[test]
fn enum_variants_work_like_structs() {
    let wide = Head::Wide {
        left: one(1),
        right: one(2),
    };
    assert_eq!(names(&wide), ["left", "right"]);
    assert_eq!(names(&Head::None), [""; 0]);
}

#[test]
fn trait_objects_are_walked() -> Result<()> {
    let layers: Vec<Box<dyn Module>> = vec![Box::new(Linear::new(1, 1, &mut Init::new(0))?)];
    assert_eq!(names(&layers), ["0.weight", "0.bias"]);
    Ok(())
}

#[test]
fn freezing_and_counting() -> Result<()> {
    let model = Pair(one(3), one(4));
    model.freeze();
    assert!(model.trainable_parameters().is_empty());
    assert_eq!(model.parameter_count(), 7);
    model.1.set_trainable(true);
    assert_eq!(model.trainable_parameters()[0].0, "1");
    model.unfreeze();
    assert_eq!(model.trainable_parameters().len(), 2);
    Ok(())
}
