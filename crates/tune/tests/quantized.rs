//! Quantized layers: bitsandbytes' and PEFT's numbers (`oracles/quantized.py`), adapters on a
//! quantized base against adapters on the same values in floats, and damaged files.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use entrenar_core::autograd::{GradCheck, check_gradient};
use entrenar_core::ops::loss::Reduction;
use entrenar_core::{Array, DType, Result, Tensor};
use entrenar_cpu::product::Compute;
use entrenar_cpu::quant4::Quantized;
use entrenar_io::SafeTensors;
use entrenar_nn::optim::{AdamW, Optimizer};
use entrenar_nn::{
    Ctx, Init, Linear, Module, Parameters, Projection, Projections, TransposedLinear, Visitor,
};
use entrenar_tune::lora::{self, LoraConfig, LoraInit, LoraLinear, Targets};
use entrenar_tune::quant::{self, Code, QuantConfig, QuantizedLinear};
use entrenar_zoo::{LanguageModel, LmInput};
use support::{distance, model};

/// A model of one layer.
struct Net(Projection);

impl Parameters for Net {
    fn visit(&self, visitor: &mut Visitor<'_>) {
        visitor.field("layer", &self.0);
    }
}

impl Projections for Net {
    fn visit_projections(
        &mut self,
        visit: &mut dyn FnMut(&str, &mut Projection) -> Result<()>,
    ) -> Result<()> {
        visit("layer", &mut self.0)
    }
}

impl Net {
    fn new(weight: Tensor, bias: Option<Tensor>) -> Net {
        Net(Linear::from_tensors(weight, bias).unwrap().into())
    }

    fn run(&self, x: &Tensor) -> Tensor {
        self.0.forward(x, &mut Ctx::eval()).unwrap()
    }
}

fn data(name: &str) -> SafeTensors {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/quantized");
    SafeTensors::open(folder.join(name)).unwrap()
}

#[test]
fn layers_of_bitsandbytes_compute_the_same_and_are_written_the_same() {
    for (name, code, double) in [("nf4-double", Code::Nf4, true), ("fp4", Code::Fp4, false)] {
        let file = data(&format!("{name}.safetensors"));
        let get = |key: &str| file.tensor(key).unwrap();
        let mut given: BTreeMap<String, Array> = file.tensors().unwrap().into_iter().collect();
        let full = Tensor::from(get("full"));
        let mut net = Net::new(full.clone(), Some(get("layer.bias").into()));
        let report = quant::load_quantized(&mut net, &mut given, Compute::F32).unwrap();
        assert_eq!(report.layers, ["layer"]);
        assert_eq!(report.numbers, 128 * 40);
        // What was read is taken; the rest is for others.
        let left: Vec<&str> = given.keys().map(String::as_str).collect();
        assert_eq!(left, ["dx", "full", "g", "layer.bias", "x", "y"]);

        let x = Tensor::from(get("x")).requires_grad().unwrap();
        let y = net.run(&x);
        assert!(distance(y.array(), &get("y")) < 2e-6, "{name}");
        y.mul(&get("g").into())
            .unwrap()
            .sum()
            .unwrap()
            .backward()
            .unwrap();
        assert!(
            distance(x.grad().unwrap().array(), &get("dx")) < 2e-6,
            "{name}"
        );

        // Written again, and quantized here from the floats: every tensor is theirs.
        let mut ours = Net::new(full, Some(get("layer.bias").into()));
        let config = QuantConfig {
            kind: code,
            double,
            ..QuantConfig::default()
        };
        quant::quantize(&mut ours, &config, &[]).unwrap();
        for net in [&mut net, &mut ours] {
            let state = quant::quantized_state(net).unwrap();
            let theirs = file.names().filter(|n| n.starts_with("layer."));
            assert_eq!(state.len(), theirs.count());
            for (key, array) in &state {
                let want = get(key);
                if key.contains("quant_state") {
                    let read = |a: &Array| -> serde_json::Value {
                        serde_json::from_slice(&a.to_vec::<u8>().unwrap()).unwrap()
                    };
                    let (mut a, mut b) = (read(array), read(&want));
                    if double {
                        let offset = |v: &mut serde_json::Value| v["nested_offset"].take().as_f64();
                        let (a, b) = (offset(&mut a).unwrap(), offset(&mut b).unwrap());
                        assert!((a - b).abs() < 2e-7 * b.abs());
                    }
                    assert_eq!(a, b);
                    continue;
                }
                assert_eq!(array.shape(), want.shape(), "{key}");
                assert_eq!(array.dtype(), want.dtype(), "{key}");
                assert!(distance(array, &want) < 1e-6, "{name}: {key}");
            }
        }
    }
}

#[test]
fn adapters_on_a_quantized_base_can_be_merged_and_taken_out_again() {
    for use_dora in [false, true] {
        let mut model = model("llama");
        let tokens = Tensor::from_vec(vec![1i64, 5, 9, 2], [1, 4]).unwrap();
        let logits = |model: &LanguageModel| {
            let cx = &mut Ctx::eval();
            let x = model
                .as_causal()
                .features(&tokens, LmInput::default(), cx)
                .unwrap();
            model.as_causal().logits(&x, cx).unwrap().array().clone()
        };
        quant::quantize(&mut model, &QuantConfig::default(), &[]).unwrap();
        let config = LoraConfig {
            r: 2,
            use_dora,
            use_rslora: true,
            ..Default::default()
        };
        lora::attach(&mut model, &config, &mut Init::new(1)).unwrap();
        for (name, p) in model.trainable_parameters() {
            if name.contains("lora_B") {
                p.set(&Tensor::randn(p.shape(), DType::F32, 7).unwrap())
                    .unwrap();
            }
        }
        let before = logits(&model);
        let held = |model: &mut LanguageModel| {
            let state = quant::quantized_state(model).unwrap();
            let state = state.into_iter().chain(model.state());
            state
                .map(|(name, a)| (name, a.to_f64_vec()))
                .collect::<Vec<_>>()
        };
        let state = held(&mut model);
        let merged = lora::merge_keeping(&mut model).unwrap();
        assert_eq!(quant::report(&mut model).unwrap().layers.len(), 0);
        let off = distance(&logits(&model), &before);
        assert!(off < 1e-5, "merged logits differ by {off}");
        lora::unmerge(&mut model, merged).unwrap();
        assert!(held(&mut model) == state, "dora: {use_dora}");
        assert_eq!(logits(&model).to_f64_vec(), before.to_f64_vec());
    }
}

#[test]
fn pissa_is_that_of_peft() {
    let file = data("pissa.safetensors");
    for (name, iterations) in [("wide", None), ("tall", None), ("search", Some(16))] {
        let get = |key: &str| file.tensor(&format!("{name}.{key}")).unwrap();
        let weight = Tensor::from(get("weight"));
        let config = LoraConfig {
            r: 4,
            lora_alpha: 6.0,
            init: LoraInit::Pissa { iterations },
            ..Default::default()
        };
        let x = Tensor::randn([3, weight.dims()[1]], DType::F32, 4).unwrap();
        for transposed in [false, true] {
            let mut net = if transposed {
                let turned = weight.t().unwrap().contiguous().unwrap();
                Net(Projection::Transposed(TransposedLinear {
                    weight: entrenar_nn::Parameter::new(turned).unwrap(),
                    bias: None,
                }))
            } else {
                Net::new(weight.clone(), None)
            };
            let before = net.run(&x);
            lora::attach(&mut net, &config, &mut Init::new(1)).unwrap();
            let after = net.run(&x);
            assert!(distance(after.array(), before.array()) < 2e-6, "{name}");
            lora::each(&mut net, &mut |_, layer: &mut LoraLinear| {
                let product = layer.lora_b.value().matmul(&layer.lora_a.value())?;
                assert!(distance(product.array(), &get("product")) < 1e-5, "{name}");
                let (base, _) = layer.base().matrix()?.unwrap();
                assert!(distance(base.array(), &get("base")) < 1e-5, "{name}");
                Ok(())
            })
            .unwrap();
            // The residual can be quantized under the adapter.
            quant::quantize(&mut net, &QuantConfig::default(), &[]).unwrap();
            let off = distance(net.run(&x).array(), before.array());
            assert!(off > 0.0 && off < 0.2, "{off}");
            let again = lora::attach(&mut net, &config, &mut Init::new(1)).unwrap_err();
            assert!(again.to_string().contains("without an adapter"));
        }
        let mut net = Net::new(weight.clone(), None);
        let wide = LoraConfig {
            r: 25,
            ..config.clone()
        };
        if name != "search" {
            assert!(lora::attach(&mut net, &wide, &mut Init::new(1)).is_err());
        }
        let mut net = Net::new(weight.clone(), None);
        quant::quantize(&mut net, &QuantConfig::default(), &[]).unwrap();
        assert!(lora::attach(&mut net, &config, &mut Init::new(1)).is_err());
    }
}

#[test]
fn the_product_has_exact_derivatives_of_every_order() {
    let w = Tensor::randn([7, 33], DType::F64, 5).unwrap();
    let w = Arc::new(Quantized::new(w.array(), Code::Nf4, 32, true).unwrap());
    let x = Tensor::randn([2, 3, 33], DType::F64, 6).unwrap();
    let f = |t: &[Tensor]| {
        Ok(vec![
            quant::product(&t[0].sin()?, &w, Compute::F32)?.square()?,
        ])
    };
    let settings = GradCheck {
        order: 3,
        ..GradCheck::default()
    };
    check_gradient(f, &[&x], &settings).unwrap();
    let short = Tensor::zeros([2, 32], DType::F32);
    assert!(quant::product(&short, &w, Compute::F32).is_err());
}

fn loss(model: &LanguageModel, tokens: &Tensor, step: u64) -> Tensor {
    let cx = &mut Ctx::train(0, step);
    let model = model.as_causal();
    model
        .loss(tokens, tokens, Reduction::Mean, LmInput::default(), cx)
        .unwrap()
}

#[test]
fn adapters_on_a_quantized_base_are_those_on_its_values() {
    let tokens = Tensor::from_vec(vec![1i64, 5, 9, 2, 7, 3], [1, 6]).unwrap();
    for (name, use_dora) in [
        ("llama", false),
        ("llama", true),
        ("gpt2", false),
        ("gpt2", true),
    ] {
        let config = LoraConfig {
            r: 2,
            use_dora,
            targets: Targets::AllLinear,
            init: LoraInit::Gaussian,
            ..Default::default()
        };
        let (mut quantized, mut plain) = (model(name), model(name));
        let count = plain.parameter_count();
        for m in [&mut quantized, &mut plain] {
            let report = quant::quantize(m, &QuantConfig::default(), &[]).unwrap();
            assert!(!report.layers.iter().any(|l| l.contains("lm_head")));
        }
        quant::dequantize(&mut plain).unwrap();
        assert_eq!(plain.parameter_count(), count);
        let unquantized = quantized.parameter_count();
        let mut reports = Vec::new();
        for m in [&mut quantized, &mut plain] {
            reports.push(lora::attach(m, &config, &mut Init::new(3)).unwrap());
            lora::each(m, &mut |_, layer| {
                let b = Tensor::randn(layer.lora_b.shape(), DType::F32, 8)?.mul_scalar(0.1)?;
                layer.lora_b.set(&b)
            })
            .unwrap();
        }
        assert_eq!(reports[0], reports[1]);
        assert_eq!(reports[0].total, count + reports[0].trainable);
        assert!(unquantized < count);
        let losses = [&quantized, &plain].map(|m| {
            let l = loss(m, &tokens, 0);
            l.backward().unwrap();
            l
        });
        assert!(
            distance(losses[0].array(), losses[1].array()) < 1e-6,
            "{name}"
        );
        let (a, b) = (
            quantized.trainable_parameters(),
            plain.trainable_parameters(),
        );
        assert_eq!(a.len(), b.len());
        for ((key, a), (_, b)) in a.iter().zip(&b) {
            let off = distance(a.grad().unwrap().array(), b.grad().unwrap().array());
            assert!(off < 2e-5, "{name} {use_dora}: {key} differs by {off}");
        }
        // Merged, both are ordinary and equal; taken off, the base is quantized as before.
        lora::detach(&mut quantized).unwrap();
        assert!(quant::report(&mut quantized).unwrap().layers.len() > 1);
        lora::attach(&mut quantized, &config, &mut Init::new(3)).unwrap();
        for m in [&mut quantized, &mut plain] {
            lora::each(m, &mut |_, layer| {
                let b = Tensor::randn(layer.lora_b.shape(), DType::F32, 8)?.mul_scalar(0.1)?;
                layer.lora_b.set(&b)
            })
            .unwrap();
            lora::merge(m).unwrap();
        }
        assert_eq!(quant::report(&mut quantized).unwrap().layers.len(), 0);
        assert_eq!(quantized.parameter_count(), count);
        let losses = [&quantized, &plain].map(|m| loss(m, &tokens, 0));
        assert!(
            distance(losses[0].array(), losses[1].array()) < 1e-5,
            "{name}"
        );
    }
}

#[test]
fn an_adapter_learns_on_a_quantized_base() {
    let tokens = Tensor::from_vec(vec![1i64, 5, 9, 2, 7, 3, 1, 5], [1, 8]).unwrap();
    let mut model = model("llama");
    quant::quantize(&mut model, &QuantConfig::default(), &["o_proj".to_string()]).unwrap();
    let config = LoraConfig {
        r: 4,
        ..Default::default()
    };
    lora::attach(&mut model, &config, &mut Init::new(1)).unwrap();
    let frozen = quant::frozen_bytes(&mut model).unwrap();
    let first = loss(&model, &tokens, 0).item::<f32>().unwrap();
    let groups = lora::lora_plus_groups(&model, 4.0);
    let mut optimizer = AdamW::new(groups, 1e-2).unwrap();
    for step in 0..60 {
        loss(&model, &tokens, step).backward().unwrap();
        optimizer.step().unwrap();
        optimizer.zero_grad();
    }
    let last = loss(&model, &tokens, 0).item::<f32>().unwrap();
    assert!(last < 0.7 * first, "{first} to {last}");
    assert_eq!(quant::frozen_bytes(&mut model).unwrap(), frozen);
}

#[test]
fn what_is_damaged_or_impossible_is_named() {
    let file = data("nf4-double.safetensors");
    let all: BTreeMap<String, Array> = file.tensors().unwrap().into_iter().collect();
    let state = "layer.weight.quant_state.bitsandbytes__nf4";
    let attempt = |change: &dyn Fn(&mut BTreeMap<String, Array>), shape: [usize; 2]| {
        let mut given = all.clone();
        change(&mut given);
        let mut net = Net::new(Tensor::zeros(shape, DType::F32), None);
        quant::load_quantized(&mut net, &mut given, Compute::F32)
            .unwrap_err()
            .to_string()
    };
    let text = |from: &'static str, to: &'static str| {
        move |given: &mut BTreeMap<String, Array>| {
            let old = String::from_utf8(given[state].to_vec::<u8>().unwrap()).unwrap();
            assert!(old.contains(from), "{old}");
            let new = old.replace(from, to).into_bytes();
            let n = new.len();
            given.insert(state.into(), Array::from_vec(new, [n]).unwrap());
        }
    };
    let cut = |given: &mut BTreeMap<String, Array>| {
        let short = given["layer.weight"].slice(0, 0, 100, 1).unwrap();
        given.insert("layer.weight".into(), short);
    };
    for (message, part) in [
        (attempt(&text("{", "["), [40, 128]), "no JSON object"),
        (
            attempt(&text("\"nf4\"", "\"nf5\""), [40, 128]),
            "`quant_type`",
        ),
        (attempt(&text("64", "65"), [40, 128]), "blocks of 32"),
        (
            attempt(&text("256", "128"), [40, 128]),
            "`nested_blocksize`",
        ),
        (attempt(&text("bfloat16", "int8"), [40, 128]), "`dtype`"),
        (attempt(&text("shape", "form"), [40, 128]), "`shape`"),
        (attempt(&|_| (), [40, 127]), "expected [40, 127]"),
        (attempt(&cut, [40, 128]), "2560 bytes of u8"),
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    for part in [
        "",
        ".absmax",
        ".quant_map",
        ".nested_absmax",
        ".nested_quant_map",
    ] {
        let name = format!("layer.weight{part}");
        let message = attempt(&|g| drop(g.remove(&name)), [40, 128]);
        assert!(message.contains(&format!("{name} is missing")), "{message}");
    }

    let mut net = Net::new(Tensor::ones([4, 64], DType::F32), None);
    let config = QuantConfig::default();
    let odd = QuantConfig {
        block: 48,
        ..config
    };
    assert!(quant::quantize(&mut net, &odd, &[]).is_err());
    assert!(quant::quantize(&mut net, &config, &["layer".into()]).is_err());
    quant::quantize(&mut net, &config, &[]).unwrap();
    let twice = quant::quantize(&mut net, &config, &[]).unwrap_err();
    assert!(twice.to_string().contains("quantized already"), "{twice}");
    let bad = Tensor::full([4, 64], f64::NAN, DType::F32);
    let error = quant::quantize(&mut Net::new(bad, None), &config, &[]).unwrap_err();
    assert!(error.to_string().contains("finite"), "{error}");
    assert!(QuantConfig::kind_of("int4").is_err());
    let layer = QuantizedLinear::new(
        &Net::new(Tensor::ones([4, 64], DType::F32), None).0,
        &config,
    );
    assert!(
        layer
            .unwrap()
            .product(&Tensor::ones([1, 63], DType::F32))
            .is_err()
    );
}
