//! Layers at the sizes of small models: what they add around their operations.

use entrenar_base::{DType, Result};
use entrenar_core::Tensor;
use entrenar_core::autograd::no_grad;
use entrenar_nn::optim::{AdamW, Optimizer, Sgd};
use entrenar_nn::{
    BatchNorm2d, Conv2d, ConvLayerOptions, ConvPadding, Ctx, Dropout, Embedding, FeedForward,
    GroupNorm, Init, LayerNorm, Linear, MaxPool2d, Module, MultiHeadAttention,
    MultiHeadAttentionOptions, Parameters, RMSNorm, Sequential, TransformerBlock,
    TransformerBlockOptions,
};

use super::Subject;
use crate::workloads::classes;

type Build = fn(&mut Init) -> Result<Box<dyn Module>>;

/// Name, shape of the input, the layer. Tokens instead of floats for embeddings.
const LAYERS: &[(&str, &[usize], Build)] = &[
    ("Linear 8x8", &[8, 8], |i| {
        Ok(Box::new(Linear::new(8, 8, i)?))
    }),
    ("Linear 256x256", &[128, 256], |i| {
        Ok(Box::new(Linear::new(256, 256, i)?))
    }),
    ("Embedding 1024x128", &[16, 32], |i| {
        Ok(Box::new(Embedding::new(1024, 128, i)?))
    }),
    ("LayerNorm 128", &[512, 128], |i| {
        Ok(Box::new(LayerNorm::new([128], i)?))
    }),
    ("RMSNorm 128", &[512, 128], |i| {
        Ok(Box::new(RMSNorm::new([128], 1e-5, i)?))
    }),
    ("GroupNorm 32", &[8, 32, 16, 16], |i| {
        Ok(Box::new(GroupNorm::new(8, 32, i)?))
    }),
    ("BatchNorm2d 32", &[8, 32, 16, 16], |i| {
        Ok(Box::new(BatchNorm2d::new(32, i)?))
    }),
    ("Dropout", &[512, 128], |_| Ok(Box::new(Dropout::new(0.1)?))),
    ("MaxPool2d", &[8, 32, 16, 16], |_| {
        Ok(Box::new(MaxPool2d::new([2, 2])))
    }),
    ("Conv2d 16 to 32", &[8, 16, 16, 16], |i| {
        Ok(Box::new(Conv2d::new(16, 32, [3, 3], same(), i)?))
    }),
    ("FeedForward 128", &[256, 128], |i| {
        Ok(Box::new(FeedForward::new(128, Default::default(), i)?))
    }),
    ("MultiHeadAttention 128x4", &[4, 64, 128], |i| {
        let options = MultiHeadAttentionOptions {
            causal: true,
            ..Default::default()
        };
        Ok(Box::new(MultiHeadAttention::new(128, 4, options, i)?))
    }),
    ("TransformerBlock 128x4", &[4, 64, 128], |i| {
        let options = TransformerBlockOptions {
            causal: true,
            ..Default::default()
        };
        Ok(Box::new(TransformerBlock::new(128, 4, options, i)?))
    }),
    ("Sequential of 4 Linear 16x16", &[16, 16], |i| {
        let mut stack = Sequential::new();
        for _ in 0..4 {
            stack = stack.add(Linear::new(16, 16, i)?);
        }
        Ok(Box::new(stack))
    }),
];

fn same() -> ConvLayerOptions {
    ConvLayerOptions {
        padding: ConvPadding::Both(1),
        ..Default::default()
    }
}

pub fn subjects(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Subject>> {
    let mut all = Vec::new();
    for (name, dims, build) in LAYERS {
        let name = format!("layer/{name}");
        if wanted(&name) {
            all.push(layer(name, dims, *build)?);
        }
    }
    for (name, adam) in [
        ("optimizer/AdamW 64 of 32x32", true),
        ("optimizer/SGD 64 of 32x32", false),
    ] {
        if wanted(name) {
            all.push(optimizer(name, adam)?);
        }
    }
    Ok(all)
}

/// A layer forward without a graph, and in training with the gradients of input and parameters.
fn layer(name: String, dims: &[usize], build: Build) -> Result<Subject> {
    let model = std::sync::Arc::new(build(&mut Init::new(0))?);
    let tokens = name.contains("Embedding");
    let input = if tokens {
        classes(dims.iter().product(), 1024, 3)?.reshape(dims.to_vec())?
    } else {
        Tensor::randn(dims.to_vec(), DType::F32, 3)?
    };
    let leaf = if tokens {
        input.clone()
    } else {
        input.requires_grad()?
    };
    let cotangent = no_grad(|| model.forward(&input, &mut Ctx::train(0, 0)))?.ones_like();
    let twin = model.clone();
    let forward = move || {
        std::hint::black_box(no_grad(|| model.forward(&input, &mut Ctx::eval()))?);
        Ok(())
    };
    let step = move || {
        twin.forward(&leaf, &mut Ctx::train(0, 0))?
            .backward_with(&cotangent)?;
        leaf.zero_grad();
        twin.named_parameters()
            .iter()
            .for_each(|(_, p)| p.zero_grad());
        Ok(())
    };
    Ok(Subject {
        name,
        forward: Box::new(forward),
        step: Some(Box::new(step)),
    })
}

/// A step of an optimizer over 64 matrices whose gradients stay.
fn optimizer(name: &str, adam: bool) -> Result<Subject> {
    let mut stack = Sequential::new();
    for _ in 0..64 {
        stack = stack.add(Linear::without_bias(32, 32, &mut Init::new(0))?);
    }
    let x = Tensor::randn([4, 32], DType::F32, 1)?;
    stack
        .forward(&x, &mut Ctx::train(0, 0))?
        .sum()?
        .backward()?;
    let optimizer: Box<dyn Optimizer> = match adam {
        true => Box::new(AdamW::new(&stack, 1e-6)?),
        false => Box::new(Sgd::new(&stack, 1e-6)?),
    };
    let optimizer = std::cell::RefCell::new(optimizer);
    Ok(Subject {
        name: name.to_string(),
        forward: Box::new(move || optimizer.borrow_mut().step()),
        step: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_runs() {
        let all = subjects(&|_| true).unwrap();
        assert_eq!(all.len(), LAYERS.len() + 2);
        for subject in all {
            (subject.forward)().unwrap_or_else(|e| panic!("{}: {e}", subject.name));
            let step = subject.step.map_or(Ok(()), |s| s());
            step.unwrap_or_else(|e| panic!("{}: {e}", subject.name));
        }
    }
}
