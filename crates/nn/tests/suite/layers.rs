//! Every layer's output and gradients against PyTorch's, in f64 and f32.

use std::collections::BTreeMap;

use entrenar_core::ops::pool::PoolOptions;
use entrenar_core::{DType, Result, Tensor};
use entrenar_nn::*;
use serde::Deserialize;

use crate::golden::{close, fill};

#[derive(Deserialize)]
struct Golden {
    shape: Vec<usize>,
    output: Vec<f64>,
    input_gradient: Option<Vec<f64>>,
    gradients: BTreeMap<String, Vec<f64>>,
}

fn conv(
    stride: &[usize],
    padding: ConvPadding,
    dilation: usize,
    groups: usize,
    bias: bool,
) -> ConvLayerOptions {
    ConvLayerOptions {
        stride: stride.to_vec(),
        padding,
        dilation: vec![dilation],
        groups,
        bias,
    }
}

fn attention(width: usize, heads: usize, causal: bool, i: &mut Init) -> Result<MultiHeadAttention> {
    let options = MultiHeadAttentionOptions {
        causal,
        ..Default::default()
    };
    MultiHeadAttention::new(width, heads, options, i)
}

/// Attention with the mask of its golden.
#[derive(Module)]
struct Masked(MultiHeadAttention);

impl Module for Masked {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> Result<Tensor> {
        let mask = fill([4, 4], 7).to_dtype(x.dtype())?;
        self.0.forward_masked(x, Some(&mask), cx)
    }
}

/// The layer of a golden and the shape of its input.
fn make(name: &str, i: &mut Init) -> Result<(Box<dyn Module>, Vec<usize>)> {
    use ConvPadding::{Both, Same, Valid};
    if let Some(activation) = name.strip_prefix("activation_") {
        return Ok((Box::new(activation.parse::<Activation>()?), vec![3, 4]));
    }
    let wide = LayerNormOptions {
        eps: 1e-3,
        bias: false,
        ..Default::default()
    };
    let overlapping = PoolOptions {
        stride: vec![2],
        padding: vec![1],
        ..PoolOptions::new(&[3, 3])
    };
    let uneven = PoolOptions {
        stride: vec![2],
        padding: vec![1],
        ..PoolOptions::new(&[2, 3])
    };
    let block = TransformerBlockOptions {
        causal: true,
        ..Default::default()
    };
    let (layer, shape): (Box<dyn Module>, &[usize]) = match name {
        "linear" => (Box::new(Linear::new(3, 4, i)?), &[2, 5, 3]),
        "linear_without_bias" => (Box::new(Linear::without_bias(3, 4, i)?), &[3]),
        "conv1d" => {
            let options = conv(&[2], Both(2), 2, 1, true);
            (Box::new(Conv1d::new(2, 4, [3], options, i)?), &[2, 2, 9])
        }
        "conv2d" => {
            let options = conv(&[1, 2], Both(1), 1, 1, true);
            (
                Box::new(Conv2d::new(2, 3, [2, 3], options, i)?),
                &[2, 2, 5, 6],
            )
        }
        "conv2d_groups" => {
            let options = conv(&[], Valid, 1, 2, false);
            (
                Box::new(Conv2d::new(4, 6, [3, 3], options, i)?),
                &[1, 4, 4, 5],
            )
        }
        "conv2d_same" => {
            let options = conv(&[], Same, 2, 1, true);
            (
                Box::new(Conv2d::new(1, 2, [2, 3], options, i)?),
                &[2, 1, 5, 4],
            )
        }
        "max_pool1d" => (Box::new(MaxPool1d::new([3])), &[2, 2, 7]),
        "max_pool2d" => (
            Box::new(MaxPool2d::with_options(overlapping)),
            &[1, 2, 6, 5],
        ),
        "avg_pool1d" => (Box::new(AvgPool1d::new([2])), &[2, 3, 6]),
        "avg_pool2d" => (Box::new(AvgPool2d::with_options(uneven)), &[1, 2, 5, 6]),
        "adaptive_avg_pool2d" => (Box::new(AdaptiveAvgPool2d::new([2, 3])), &[1, 2, 5, 7]),
        "batch_norm1d" => (Box::new(BatchNorm1d::new(3, i)?), &[4, 3]),
        "batch_norm1d_length" => (Box::new(BatchNorm1d::new(3, i)?), &[2, 3, 4]),
        "batch_norm2d" => (Box::new(BatchNorm2d::new(2, i)?), &[2, 2, 3, 2]),
        "layer_norm" => (Box::new(LayerNorm::new([2, 3], i)?), &[4, 2, 3]),
        "layer_norm_without_bias" => (Box::new(LayerNorm::with_options([5], wide, i)?), &[3, 5]),
        "rms_norm" => (Box::new(RMSNorm::new([5], 1e-6, i)?), &[3, 5]),
        "group_norm" => (Box::new(GroupNorm::new(2, 4, i)?), &[2, 4, 3]),
        "flatten" => (Box::new(Flatten), &[2, 3, 2]),
        "embedding" => (Box::new(Embedding::new(4, 3, i)?), &[2, 3]),
        "attention" => (Box::new(attention(6, 2, false, i)?), &[2, 4, 6]),
        "attention_causal" => (Box::new(attention(6, 2, true, i)?), &[2, 4, 6]),
        "attention_masked" => (Box::new(Masked(attention(6, 3, false, i)?)), &[2, 4, 6]),
        "transformer_block" => (Box::new(TransformerBlock::new(4, 2, block, i)?), &[2, 3, 4]),
        other => panic!("no layer for the golden {other}"),
    };
    Ok((layer, shape.to_vec()))
}

fn input(name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
    if name == "embedding" {
        return Tensor::from_slice(&[1i64, 3, 1, 0, 1, 3], shape.to_vec());
    }
    // Attention's goldens use the plain numbers.
    let scale = if name.starts_with("attention") || name == "transformer_block" {
        1.0
    } else {
        2.0
    };
    fill(shape.to_vec(), 3)
        .mul_scalar(scale)?
        .to_dtype(dtype)?
        .requires_grad()
}

fn check(name: &str, golden: &Golden, dtype: DType, tolerance: f64) -> Result<()> {
    let (layer, shape) = make(name, &mut Init::new(0).dtype(dtype))?;
    for (k, (_, p)) in layer.named_parameters().iter().enumerate() {
        p.set(&fill(p.shape(), 20 + k).mul_scalar(0.5)?.to_dtype(dtype)?)?;
    }
    let x = input(name, &shape, dtype)?;
    let y = layer.forward(&x, &mut Ctx::train(0, 0))?;
    let what = format!("{name} in {dtype}");
    assert_eq!(y.dims(), golden.shape, "{what}");
    close(&y, &golden.output, tolerance, &what);
    let weights = fill(golden.shape.clone(), 90).to_dtype(dtype)?;
    if y.is_tracked() {
        y.mul(&weights)?.sum()?.backward()?;
    }
    if let Some(want) = &golden.input_gradient {
        close(
            &x.grad().unwrap(),
            want,
            tolerance,
            &format!("{what}: input gradient"),
        );
    }
    let named = layer.named_parameters();
    let names: Vec<&str> = named.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names.len(), golden.gradients.len(), "{what}: {names:?}");
    for (n, p) in &named {
        let gradient = p
            .grad()
            .unwrap_or_else(|| panic!("{what}: no gradient of {n}"));
        close(
            &gradient,
            &golden.gradients[n],
            tolerance,
            &format!("{what}: gradient of {n}"),
        );
    }
    Ok(())
}

#[test]
fn outputs_and_gradients_equal_pytorchs() -> Result<()> {
    let goldens: BTreeMap<String, Golden> =
        serde_json::from_str(include_str!("../data/layers.json")).unwrap();
    assert!(goldens.len() > 30);
    let mut failures = Vec::new();
    for (name, golden) in &goldens {
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
            let run = || check(name, golden, dtype, tolerance).map_err(|e| e.to_string());
            match std::panic::catch_unwind(run) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => failures.push(format!("{name} in {dtype}: {e}")),
                Err(_) => failures.push(format!("{name} in {dtype}: see above")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[derive(Deserialize)]
struct Statistics {
    mean: Vec<f64>,
    var: Vec<f64>,
    count: i64,
    output: Vec<f64>,
}

#[test]
fn running_statistics_equal_pytorchs() -> Result<()> {
    let goldens: BTreeMap<String, Statistics> =
        serde_json::from_str(include_str!("../data/batch_norm.json")).unwrap();
    for (name, momentum) in [("momentum", Some(0.3)), ("cumulative", None)] {
        let golden = &goldens[name];
        let options = BatchNormOptions {
            momentum,
            ..Default::default()
        };
        let norm = BatchNorm2d::with_options(2, options, &Init::new(0).dtype(DType::F64))?;
        for (k, p) in norm.parameters().iter().enumerate() {
            p.set(&fill([2], 20 + k).mul_scalar(0.5)?)?;
        }
        for seed in [1, 2] {
            let mut cx = Ctx::train(0, seed as u64);
            let x = fill([2, 2, 2, 3], seed).mul_scalar(3.0)?.add_scalar(1.0)?;
            norm.forward(&x, &mut cx)?;
            // Without a commit nothing may change.
            let before = norm.running_mean().unwrap().value().to_vec::<f64>()?;
            norm.forward(&x, &mut Ctx::train(0, 9))?;
            assert_eq!(
                norm.running_mean().unwrap().value().to_vec::<f64>()?,
                before
            );
            cx.commit()?;
        }
        close(
            &norm.running_mean().unwrap().value(),
            &golden.mean,
            1e-13,
            name,
        );
        close(
            &norm.running_var().unwrap().value(),
            &golden.var,
            1e-13,
            name,
        );
        let buffers = norm.named_buffers();
        let names: Vec<&str> = buffers.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(
            names,
            ["running_mean", "running_var", "num_batches_tracked"]
        );
        assert_eq!(buffers[2].1.value().item::<i64>()?, golden.count);
        let y = norm.forward(&fill([1, 2, 2, 1], 4), &mut Ctx::eval())?;
        close(&y, &golden.output, 1e-13, name);
    }
    Ok(())
}

/// One layer used twice in a pass sees its own first update.
#[test]
fn batch_norm_used_twice_counts_twice() -> Result<()> {
    let norm = BatchNorm1d::new(1, &Init::new(0))?;
    let x = Tensor::from_vec(vec![0.0f32, 2.0], [2, 1])?;
    let mut cx = Ctx::train(0, 0);
    norm.forward(&x, &mut cx)?;
    norm.forward(&x, &mut cx)?;
    cx.commit()?;
    let mean = norm.running_mean().unwrap().value().item::<f32>()?;
    assert!((mean - 0.19).abs() < 1e-6, "{mean}");
    Ok(())
}

#[test]
fn without_running_statistics_evaluation_uses_the_batch() -> Result<()> {
    let options = BatchNormOptions {
        track_running_stats: false,
        affine: false,
        ..Default::default()
    };
    let norm = BatchNorm1d::with_options(1, options, &Init::new(0))?;
    assert!(norm.state().is_empty());
    let x = Tensor::from_vec(vec![0.0f32, 2.0], [2, 1])?;
    let y = norm.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?;
    assert!((y[1] - 1.0).abs() < 1e-4);
    Ok(())
}

#[test]
fn default_initial_values_are_pytorchs() -> Result<()> {
    let i = &mut Init::new(1);
    let range = |p: &Parameter| {
        let v = p.array().to_f64_vec();
        v.iter().fold(0.0f64, |m, x| m.max(x.abs()))
    };
    let conv = Conv2d::new(8, 64, [3, 3], ConvLayerOptions::default(), i)?;
    let bound = 1.0 / 72f64.sqrt();
    assert!(range(&conv.weight) <= bound && range(&conv.weight) > 0.99 * bound);
    let bias = range(conv.bias.as_ref().unwrap());
    assert!(bias <= bound && bias > 0.9 * bound);
    let grouped = conv_groups(i)?;
    assert!(range(&grouped.weight) > 0.98 / 12f64.sqrt());
    let table = Embedding::new(100, 50, i)?;
    let v = table.weight.array().to_f64_vec();
    let var = v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64;
    assert!((var - 1.0).abs() < 0.05);
    let norm = LayerNorm::new([3], i)?;
    assert_eq!(norm.weight.unwrap().array().to_f64_vec(), [1.0; 3]);
    assert_eq!(norm.bias.unwrap().array().to_f64_vec(), [0.0; 3]);
    Ok(())
}

fn conv_groups(i: &mut Init) -> Result<Conv1d> {
    // Fan in: 8 / 2 channels times 3.
    Conv1d::new(8, 64, [3], conv(&[], ConvPadding::Valid, 1, 2, true), i)
}

#[test]
fn dropout_drops_its_share_scales_the_rest_and_replays() -> Result<()> {
    let x = Tensor::ones([10_000], DType::F32);
    let dropout = Dropout::new(0.25)?;
    let draw = |step| dropout.forward(&x, &mut Ctx::train(3, step));
    let y = draw(0)?.to_vec::<f32>()?;
    let kept = y.iter().filter(|v| **v != 0.0).count();
    assert!((kept as f64 / 1e4 - 0.75).abs() < 0.02);
    assert!(y.iter().all(|v| *v == 0.0 || (*v - 4.0 / 3.0).abs() < 1e-6));
    assert_eq!(y, draw(0)?.to_vec::<f32>()?);
    assert_ne!(y, draw(1)?.to_vec::<f32>()?);
    let mut cx = Ctx::train(3, 0);
    let (a, b) = (dropout.forward(&x, &mut cx)?, dropout.forward(&x, &mut cx)?);
    assert_ne!(a.to_vec::<f32>()?, b.to_vec::<f32>()?);
    assert_eq!(
        dropout.forward(&x, &mut Ctx::eval())?.to_vec::<f32>()?,
        [1.0; 10_000]
    );
    for bad in [-0.1, 1.1, f64::NAN] {
        assert!(Dropout::new(bad).is_err());
    }
    Ok(())
}

/// Dropout in attention and outputs: same step, same numbers, also through a checkpoint.
#[test]
fn a_checkpointed_block_with_dropout_has_the_same_gradients() -> Result<()> {
    let options = TransformerBlockOptions {
        causal: true,
        dropout: 0.3,
        ..Default::default()
    };
    let block = TransformerBlock::new(8, 2, options, &mut Init::new(0).dtype(DType::F64))?;
    let x = fill([2, 5, 8], 1);
    let run = |keep: bool| -> Result<Vec<Vec<f64>>> {
        block.zero_grad();
        let mut cx = Ctx::train(1, 2);
        // A checkpoint draws its keys from one of its own, so the plain run nests likewise.
        let y = if keep {
            cx.checkpoint(&block, &x)?
        } else {
            let (seed, stream) = cx.key();
            block.forward(&x, &mut Ctx::train(seed, stream))?
        };
        y.square()?.sum()?.backward()?;
        let gradients = block.parameters();
        gradients
            .iter()
            .map(|p| p.grad().unwrap().to_vec())
            .collect()
    };
    assert_eq!(run(true)?, run(false)?);
    Ok(())
}

#[test]
fn a_causal_layer_does_not_see_the_future() -> Result<()> {
    let layer = attention(8, 2, true, &mut Init::new(5))?;
    let x = Tensor::randn([1, 6, 8], DType::F32, 1)?;
    let changed = Tensor::concat(
        &[
            &x.narrow(1, 0, 4)?,
            &Tensor::randn([1, 2, 8], DType::F32, 2)?,
        ],
        1,
    )?;
    let forward = |x: &Tensor| -> Result<Vec<f32>> {
        layer
            .forward(x, &mut Ctx::eval())?
            .narrow(1, 0, 4)?
            .to_vec()
    };
    let (a, b) = (forward(&x)?, forward(&changed)?);
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6));
    Ok(())
}

#[test]
fn wrong_inputs_are_refused_by_name() -> Result<()> {
    let i = &mut Init::new(0);
    let message = |layer: &dyn Module, shape: &[usize]| {
        layer
            .forward(
                &Tensor::zeros(shape.to_vec(), DType::F32),
                &mut Ctx::train(0, 0),
            )
            .unwrap_err()
            .to_string()
    };
    assert!(message(&Linear::new(3, 4, i)?, &[2, 5]).contains("[linear]"));
    assert_eq!(
        message(&LayerNorm::new([3], i)?, &[2, 4]),
        "[LayerNorm] expected an input whose last dimensions are [3], got [2, 4]"
    );
    assert_eq!(
        message(&BatchNorm2d::new(3, i)?, &[2, 3]),
        "[BatchNorm2d] expected an input [N, C, H, W], got [2, 3]"
    );
    assert_eq!(
        message(&BatchNorm1d::new(3, i)?, &[2, 4]),
        "[BatchNorm1d] expected an input [N, 3, …], got [2, 4]"
    );
    assert_eq!(
        message(&MaxPool2d::new([2, 2]), &[4]),
        "[MaxPool2d] expected an input [N, C, H, W] or [C, H, W], got [4]"
    );
    assert_eq!(
        message(&attention(4, 2, false, i)?, &[3, 4]),
        "[MultiHeadAttention] expected an input [batch, time, width], got [3, 4]"
    );
    let e = attention(5, 2, false, i).unwrap_err().to_string();
    assert_eq!(
        e,
        "[MultiHeadAttention] expected a number of heads that divides the width 5, got 2"
    );
    assert!(GroupNorm::new(3, 4, i).is_err() && GroupNorm::new(0, 4, i).is_err());
    let strided = conv(&[2], ConvPadding::Same, 1, 1, true);
    let e = Conv1d::new(1, 1, [3], strided, i).unwrap_err().to_string();
    assert_eq!(
        e,
        "[Conv1d] expected stride 1 with padding that keeps the size, got stride [2]"
    );
    assert!(Conv1d::new(3, 4, [3], conv(&[], ConvPadding::Valid, 1, 2, true), i).is_err());
    let e = "rellu".parse::<Activation>().unwrap_err().to_string();
    assert!(
        e.contains("relu, leaky_relu") && e.ends_with("got rellu"),
        "{e}"
    );
    Ok(())
}

#[test]
fn names_and_prints() -> Result<()> {
    for name in ["identity", "relu", "gelu_tanh", "softmax"] {
        assert_eq!(name.parse::<Activation>()?.to_string(), name);
    }
    assert_eq!(format!("{:?}", Activation::Elu(0.5)), "elu(0.5)");
    assert_eq!(Activation::custom(|x| x.sin()).to_string(), "custom");
    let i = &mut Init::new(0);
    let model = Sequential::new()
        .add_named("first", Linear::new(2, 2, i)?)
        .add(Flatten)
        .add(BatchNorm1d::new(2, i)?);
    assert_eq!((model.len(), model.is_empty()), (3, false));
    let names: Vec<String> = model.state().into_iter().map(|(n, _)| n).collect();
    assert_eq!(
        names,
        [
            "first.weight",
            "first.bias",
            "2.weight",
            "2.bias",
            "2.running_mean",
            "2.running_var",
            "2.num_batches_tracked"
        ]
    );
    // No layers: the identity.
    let x = Tensor::ones([2], DType::F32);
    assert_eq!(
        Sequential::new()
            .forward(&x, &mut Ctx::eval())?
            .to_vec::<f32>()?,
        [1.0, 1.0]
    );
    Ok(())
}
