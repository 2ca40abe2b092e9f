"""Expected values of crates/nn and crates/zoo, made with PyTorch in f64.

    python oracles/nn_goldens.py

writes crates/nn/tests/data/*.json. Inputs and weights are small closed formulas (`fill`), which
the tests repeat, so that only results are stored. Neighbours: crates/nn/tests/suite/.
"""

import json
import math
import pathlib

import torch

torch.set_default_dtype(torch.float64)
DATA = pathlib.Path(__file__).parent.parent / "crates/nn/tests/data"


def fill(shape, seed):
    """Fixed numbers in (-1, 1): sin(0.7 i + 1.3 seed) at row-major place i."""
    n = math.prod(shape)
    values = [math.sin(0.7 * i + 1.3 * seed) for i in range(n)]
    return torch.tensor(values).reshape(shape)


def numbers(t):
    return t.detach().flatten().tolist()


def write(name, value):
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / f"{name}.json").write_text(json.dumps(value, indent=0) + "\n")


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
