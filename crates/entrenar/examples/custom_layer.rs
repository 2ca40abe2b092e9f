//! A layer of one's own: a struct of parameters and layers, and one function.
//!
//!     cargo run --release -p entrenar --example custom_layer
//!
//! `#[derive(Module)]` names the parameters after the fields, so that saving, loading, freezing and
//! counting work at once. The layer here is a highway layer: y = g · h(x) + (1 − g) · x with a
//! learned gate g (Srivastava et al. 2015).

use entrenar::prelude::*;

#[derive(Module)]
struct Highway {
    transform: Linear,
    gate: Linear,
}

impl Highway {
    fn new(width: usize, init: &mut Init) -> entrenar::Result<Highway> {
        let gate = Linear::new(width, width, init)?;
        // Begins almost as the identity.
        let bias = Tensor::full([width], -2.0, DType::F32);
        gate.parameter("bias")?.set(&bias)?;
        Ok(Highway {
            transform: Linear::new(width, width, init)?,
            gate,
        })
    }
}

impl Module for Highway {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> entrenar::Result<Tensor> {
        let g = cx.call("gate", &self.gate, x)?.sigmoid()?;
        let h = cx.call("transform", &self.transform, x)?.tanh()?;
        // x + g (h − x)
        x.add(&h.sub(x)?.mul(&g)?)
    }
}

#[derive(Module)]
struct Net {
    input: Linear,
    layers: Vec<Highway>,
    output: Linear,
}

impl Net {
    fn new(seed: u64) -> entrenar::Result<Net> {
        let init = &mut Init::new(seed);
        Ok(Net {
            input: Linear::new(1, 16, init)?,
            layers: (0..3)
                .map(|_| Highway::new(16, init))
                .collect::<entrenar::Result<_>>()?,
            output: Linear::new(16, 1, init)?,
        })
    }
}

impl Module for Net {
    fn forward(&self, x: &Tensor, cx: &mut Ctx) -> entrenar::Result<Tensor> {
        let mut h = cx.call("input", &self.input, x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            h = cx.call(&format!("layers.{i}"), layer, &h)?;
        }
        cx.call("output", &self.output, &h)
    }
}

/// Learns sin(3x); the mean squared error in the end.
fn train(net: &Net) -> entrenar::Result<f32> {
    let x = Tensor::from_vec((0..128).map(|i| i as f32 / 64.0 - 1.0).collect(), [128, 1])?;
    let y = x.mul_scalar(3.0)?.sin()?;
    let mut optimizer = Adam::new(net, 0.01)?;
    let mut last = f32::NAN;
    for step in 0..300 {
        let loss = net
            .forward(&x, &mut Ctx::train(0, step))?
            .sub(&y)?
            .square()?
            .mean()?;
        loss.backward()?;
        optimizer.step()?;
        optimizer.zero_grad();
        last = loss.item::<f32>()?;
    }
    Ok(last)
}

fn main() -> entrenar::Result<()> {
    let net = Net::new(0)?;
    for (name, parameter) in net.named_parameters() {
        println!("{name:26} {}", parameter.shape());
    }
    println!(
        "{} parameters, error {:.5}",
        net.parameter_count(),
        train(&net)?
    );
    Ok(())
}

#[test]
fn it_learns_and_its_state_has_the_names_of_its_fields() {
    let net = Net::new(0).unwrap();
    assert!(train(&net).unwrap() < 1e-3);
    let state = net.state();
    assert_eq!(state[2].0, "layers.0.transform.weight");
    let copy = Net::new(1).unwrap();
    copy.load_state(&state).unwrap();
    let x = Tensor::ones([1, 1], DType::F32);
    let [a, b] = [&net, &copy].map(|n| n.forward(&x, &mut Ctx::eval()).unwrap());
    assert_eq!(a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
}

#[test]
fn frozen_layers_stay() {
    let net = Net::new(0).unwrap();
    net.input.freeze();
    let before = net.input.weight.value().to_vec::<f32>().unwrap();
    train(&net).unwrap();
    assert_eq!(net.input.weight.value().to_vec::<f32>().unwrap(), before);
}
