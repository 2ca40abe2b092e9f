"""Writes crates/tune/tests/data/quantized/: linear layers as bitsandbytes stores them, with inputs,
outputs and input gradients, and what PEFT's PiSSA makes of fixed weights.

Run: python oracles/quantized.py        (needs torch, bitsandbytes 0.50, peft, safetensors)
Neighbour: crates/tune/tests/quantized.rs.
"""

import pathlib

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent.parent / "crates/tune/tests/data/quantized"


def linear(name, kind, double, dtype, seed):
    torch.manual_seed(seed)
    full = torch.nn.Linear(128, 40).to(dtype)
    layer = bnb.nn.Linear4bit(128, 40, compute_dtype=torch.float32, compress_statistics=double, quant_type=kind)
    layer.load_state_dict(full.state_dict())
    layer = layer.to(dtype)
    layer.bias.data = full.bias.data.float()
    layer = layer.to("cpu")
    assert layer.weight.dtype == torch.uint8
    x = torch.randn(5, 128, requires_grad=True)
    # The gradient would otherwise be taken with weights rounded to their old dtype, the output not.
    state = layer.weight.quant_state
    state.dtype = torch.float32
    y = layer(x)
    # Rows are whole blocks, so the C++ kernel reads the right scales.
    values = bnb.functional.dequantize_4bit(layer.weight.data, state)
    assert torch.allclose(y, x @ values.T + layer.bias, atol=1e-5), (y - x @ values.T - layer.bias).abs().max()
    g = torch.randn_like(y)
    (y * g).sum().backward()
    state.dtype = dtype
    out = {f"layer.{k}": v for k, v in layer.state_dict().items()}
    out |= {"full": full.weight.detach(), "x": x.detach(), "y": y.detach(), "g": g, "dx": x.grad}
    save_file({k: v.contiguous() for k, v in out.items()}, OUT / f"{name}.safetensors")
    print(name, {k: (tuple(v.shape), v.dtype) for k, v in out.items()})


class Net(torch.nn.Module):
    def __init__(self, w):
        super().__init__()
        self.layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
        self.layer.weight.data = w.clone()


def pissa():
    out = {}
    for name, shape, init, seed in [("wide", (24, 40), "pissa", 1), ("tall", (40, 24), "pissa", 2), ("search", (36, 36), "pissa_niter_16", 3)]:
        torch.manual_seed(seed)
        # Singular values fall, so that the search converges and the f32 decomposition is exact enough.
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        w = u @ torch.diag(0.7 ** torch.arange(float(min(shape)))) @ v
        model = get_peft_model(Net(w), LoraConfig(r=4, lora_alpha=6, target_modules=["layer"], init_lora_weights=init))
        layer = model.base_model.model.layer
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        out |= {f"{name}.weight": w, f"{name}.product": product.detach(), f"{name}.base": layer.base_layer.weight.detach()}
    save_file({k: v.contiguous() for k, v in out.items()}, OUT / "pissa.safetensors")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    linear("nf4-double", "nf4", True, torch.bfloat16, 10)
    linear("fp4", "fp4", False, torch.float32, 11)
    pissa()
