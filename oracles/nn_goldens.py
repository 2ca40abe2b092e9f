"""Expected values of crates/nn and crates/zoo, made with PyTorch in f64.

    python oracles/nn_goldens.py

writes crates/nn/tests/data/*.json. Inputs and weights are small closed formulas (`fill`), which
the tests repeat, so that only results are stored. Neighbours: crates/nn/tests/suite/.
"""

import json
import math
import pathlib

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
DATA = pathlib.Path(__file__).parent.parent / "crates/nn/tests/data"


def fill(shape, seed):
    """Fixed numbers in (-1, 1): sin(0.7 i + 1.3 seed) at row-major place i."""
    n = math.prod(shape)
    values = [math.sin(0.7 * i + 1.3 * seed) for i in range(n)]
    return torch.tensor(values).reshape(shape)


def numbers(t):
    return [float(f"{x:.15g}") for x in t.detach().double().flatten().tolist()]


def write(name, value):
    DATA.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
    (DATA / f"{name}.json").write_text("{\n" + lines + "\n}\n")


def assign(named):
    """Sets parameters, in our order, to fill(shape, 20 + position) / 2."""
    for k, (_, p) in enumerate(named):
        p.data = fill(p.shape, 20 + k) / 2


def observe(forward, named, x):
    """Output and all gradients of sum(output * fill(output, 90))."""
    tracked = x.is_floating_point()
    x = x.clone().requires_grad_(tracked)
    y = forward(x)
    (y * fill(y.shape, 90)).sum().backward()
    result = {"shape": list(y.shape), "output": numbers(y)}
    if tracked:
        result["input_gradient"] = numbers(x.grad)
    result["gradients"] = {name: numbers(p.grad) for name, p in named}
    return result


class Attention(nn.Module):
    """The parameters of our MultiHeadAttention in PyTorch's own."""

    def __init__(self, width, heads, causal=False):
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)
        self.causal = causal

    def named(self, prefix=""):
        m = self.inner
        return [
            (prefix + "qkv.weight", m.in_proj_weight),
            (prefix + "qkv.bias", m.in_proj_bias),
            (prefix + "proj.weight", m.out_proj.weight),
            (prefix + "proj.bias", m.out_proj.bias),
        ]

    def forward(self, x, mask=None):
        t = x.shape[1]
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool).triu(1)
        return self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=True)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def named(self):
        return (
            [("ln1.weight", self.ln1.weight), ("ln1.bias", self.ln1.bias)]
            + self.attn.named("attn.")
            + [("ln2.weight", self.ln2.weight), ("ln2.bias", self.ln2.bias)]
            + [("mlp.fc.weight", self.fc.weight), ("mlp.fc.bias", self.fc.bias)]
            + [("mlp.proj.weight", self.proj.weight), ("mlp.proj.bias", self.proj.bias)]
        )

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.proj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


def layers():
    """One forward and backward pass of each layer in training mode."""
    plain = {
        "linear": (nn.Linear(3, 4), [2, 5, 3]),
        "linear_without_bias": (nn.Linear(3, 4, bias=False), [3]),
        "conv1d": (nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), [2, 2, 9]),
        "conv2d": (nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=1), [2, 2, 5, 6]),
        "conv2d_groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), [1, 4, 4, 5]),
        "conv2d_same": (nn.Conv2d(1, 2, (2, 3), padding="same", dilation=2), [2, 1, 5, 4]),
        "max_pool1d": (nn.MaxPool1d(3), [2, 2, 7]),
        "max_pool2d": (nn.MaxPool2d(3, stride=2, padding=1), [1, 2, 6, 5]),
        "avg_pool1d": (nn.AvgPool1d(2), [2, 3, 6]),
        "avg_pool2d": (nn.AvgPool2d((2, 3), stride=2, padding=1), [1, 2, 5, 6]),
        "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((2, 3)), [1, 2, 5, 7]),
        "batch_norm1d": (nn.BatchNorm1d(3), [4, 3]),
        "batch_norm1d_length": (nn.BatchNorm1d(3), [2, 3, 4]),
        "batch_norm2d": (nn.BatchNorm2d(2), [2, 2, 3, 2]),
        "layer_norm": (nn.LayerNorm([2, 3]), [4, 2, 3]),
        "layer_norm_without_bias": (nn.LayerNorm(5, eps=1e-3, bias=False), [3, 5]),
        "rms_norm": (nn.RMSNorm(5, eps=1e-6), [3, 5]),
        "group_norm": (nn.GroupNorm(2, 4), [2, 4, 3]),
        "flatten": (nn.Flatten(), [2, 3, 2]),
    }
    activations = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(),
        "elu": nn.ELU(),
        "selu": nn.SELU(),
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "silu": nn.SiLU(),
        "mish": nn.Mish(),
        "softplus": nn.Softplus(),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "softmax": nn.Softmax(-1),
    }
    plain |= {f"activation_{k}": (m, [3, 4]) for k, m in activations.items()}
    result = {}
    for name, (module, shape) in plain.items():
        named = list(module.named_parameters())
        assign(named)
        result[name] = observe(module, named, 2 * fill(shape, 3))

    embedding = nn.Embedding(4, 3)
    named = list(embedding.named_parameters())
    assign(named)
    result["embedding"] = observe(embedding, named, torch.tensor([[1, 3, 1], [0, 1, 3]]))

    for name, causal in [("attention", False), ("attention_causal", True)]:
        module = Attention(6, 2, causal)
        assign(module.named())
        result[name] = observe(module, module.named(), fill([2, 4, 6], 3))
    module = Attention(6, 3)
    assign(module.named())
    mask = fill([4, 4], 7)
    result["attention_masked"] = observe(
        lambda x: module(x, mask), module.named(), fill([2, 4, 6], 3)
    )
    block = Block(4, 2)
    assign(block.named())
    result["transformer_block"] = observe(block, block.named(), fill([2, 3, 4], 3))
    write("layers", result)


def batch_norm_statistics():
    """Running statistics after two batches, and the evaluation of a third."""
    result = {}
    for name, momentum in [("momentum", 0.3), ("cumulative", None)]:
        module = nn.BatchNorm2d(2, momentum=momentum)
        assign(list(module.named_parameters()))
        for seed in (1, 2):
            module(3 * fill([2, 2, 2, 3], seed) + 1)
        module.eval()
        y = module(fill([1, 2, 2, 1], 4))
        result[name] = {
            "mean": numbers(module.running_mean),
            "var": numbers(module.running_var),
            "count": int(module.num_batches_tracked),
            "output": numbers(y),
        }
    write("batch_norm", result)


def losses():
    logits, classes = 2 * fill([4, 3], 1), torch.tensor([2, 0, 1, 2])
    weight = torch.tensor([0.5, 1.0, 2.0])
    soft, binary = F.softmax(fill([4, 3], 2), -1), (fill([4, 3], 2) > 0).double()
    cases = {
        "cross_entropy": (nn.CrossEntropyLoss(), classes),
        "cross_entropy_smoothed": (
            nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1, ignore_index=1),
            classes,
        ),
        "cross_entropy_probabilities": (nn.CrossEntropyLoss(reduction="sum"), soft),
        "bce_with_logits": (nn.BCEWithLogitsLoss(), binary),
        "bce_with_logits_weighted": (
            nn.BCEWithLogitsLoss(weight=weight, pos_weight=torch.tensor([3.0, 1.0, 0.5])),
            binary,
        ),
        "mse": (nn.MSELoss(), soft),
        "mse_sum": (nn.MSELoss(reduction="sum"), soft),
        "l1": (nn.L1Loss(), soft),
        "huber": (nn.HuberLoss(delta=0.7), soft),
    }
    result = {}
    for name, (loss, target) in cases.items():
        x = logits.clone().requires_grad_()
        value = loss(x, target)
        value.backward()
        result[name] = {"value": numbers(value), "gradient": numbers(x.grad)}
    write("losses", result)


def schedules():
    """Twelve steps of each schedule from 0.1."""
    lr = torch.optim.lr_scheduler
    make = {
        "constant": lambda o: lr.ConstantLR(o, factor=1.0),
        "step": lambda o: lr.StepLR(o, step_size=3, gamma=0.5),
        "multi_step": lambda o: lr.MultiStepLR(o, milestones=[2, 5, 5], gamma=0.3),
        "cosine": lambda o: lr.CosineAnnealingLR(o, T_max=11, eta_min=0.01),
        "linear": lambda o: lr.LinearLR(o, 1.0, 0.2, total_iters=8),
        # A warm-up as ours: (s + 1) / 5 for four steps, then the cosine from its start.
        "warm_cosine": lambda o: lr.SequentialLR(
            o,
            [
                lr.LinearLR(o, 1 / 5, 1.0, total_iters=4),
                lr.CosineAnnealingLR(o, T_max=8, eta_min=0.01),
            ],
            milestones=[4],
        ),
    }
    result = {}
    for name, f in make.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = f(optimizer)
        rates = []
        for _ in range(12):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        result[name] = rates
    write("schedules", result)


def optimizers():
    """Five steps on two parameters with gradients g = p² + fill(step); losses are not needed."""
    cases = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "sgd_momentum": lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01
        ),
        "sgd_nesterov": lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
        ),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
        "adamw_groups": lambda p: torch.optim.AdamW(
            [
                {"params": [p[0]], "weight_decay": 0.5},
                {"params": [p[1]], "weight_decay": 0.0, "lr": 0.02},
            ],
            lr=0.01,
        ),
    }
    result = {}
    for name, make in cases.items():
        parameters = [torch.nn.Parameter(fill([3, 2], 1)), torch.nn.Parameter(fill([4], 2))]
        optimizer = make(parameters)
        trace = []
        for step in range(5):
            for k, p in enumerate(parameters):
                # The second parameter has no gradient at step 2: its state must stand still.
                p.grad = None
                if not (k == 1 and step == 2):
                    p.grad = p.detach() ** 2 + fill(list(p.shape), 10 + step)
            optimizer.step()
            trace.append([numbers(p) for p in parameters])
        result[name] = trace
    write("optimizers", result)


if __name__ == "__main__":
    optimizers()
    layers()
    batch_norm_statistics()
    losses()
    schedules()
