"""Expected values of crates/zoo's models, made with PyTorch in f64.

    python oracles/zoo_goldens.py

writes crates/zoo/tests/data/models.json: loss and gradients of tiny models whose weights are
closed formulas (see nn_goldens.py, whose helpers this uses). Neighbour: crates/zoo/tests/goldens.rs.
"""

import json
import pathlib

import torch
import torch.nn as nn
import torch.nn.functional as F

from nn_goldens import assign, fill, numbers

FILE = pathlib.Path(__file__).parent.parent / "crates/zoo/tests/data/models.json"
VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH = 7, 6, 2, 2, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def named(self, prefix):
        parts = [
            ("ln1", self.ln1),
            ("attn.qkv", self.qkv),
            ("attn.proj", self.proj),
            ("ln2", self.ln2),
            ("mlp.fc", self.fc),
            ("mlp.proj", self.out),
        ]
        return [
            (f"{prefix}.{name}.{kind}", getattr(part, kind))
            for name, part in parts
            for kind in ("weight", "bias")
        ]

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(c, 2)
        q, k, v = (z.view(b, t, HEADS, c // HEADS).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.out(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


def gpt(tied):
    wte, wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
    blocks, ln = [Block() for _ in range(LAYERS)], nn.LayerNorm(WIDTH)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    named = [("wte.weight", wte.weight), ("wpe.weight", wpe.weight)]
    for i, block in enumerate(blocks):
        named += block.named(f"blocks.{i}")
    named += [("ln.weight", ln.weight), ("ln.bias", ln.bias)]
    if not tied:
        named.append(("head.weight", head.weight))
    assign(named)
    tokens = torch.tensor([[1, 4, 0, 6, 2], [3, 3, 5, 1, 0]])
    targets = torch.tensor([[4, 0, 6, 2, 5], [3, 5, 1, 0, 2]])
    x = wte(tokens) + wpe(torch.arange(5))
    for block in blocks:
        x = block(x)
    logits = F.linear(ln(x), wte.weight if tied else head.weight)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    return {
        "loss": numbers(loss),
        "gradients": {name: numbers(p.grad) for name, p in named},
    }


def cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3 * 2 * 1, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    places = {
        0: "stages.0.conv",
        1: "stages.0.norm",
        4: "stages.1.conv",
        5: "stages.1.norm",
        9: "layers.0",
        11: "layers.1",
    }
    named = [
        (f"{place}.{kind}", getattr(model[i], kind))
        for i, place in places.items()
        for kind in ("weight", "bias")
    ]
    assign(named)
    logits = model(3 * fill([3, 1, 8, 5], 3))
    loss = F.cross_entropy(logits, torch.tensor([2, 0, 1]))
    loss.backward()
    return {
        "loss": numbers(loss),
        "gradients": {name: numbers(p.grad) for name, p in named},
    }


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    result = {"gpt": gpt(True), "gpt_untied": gpt(False), "cnn": cnn()}
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in result.items())
    FILE.write_text("{\n" + lines + "\n}\n")
