"""Prints the reference values of crates/cpu/src/optim.rs: five steps of torch.optim in f64."""

import torch


def run(make):
    p = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = make([p])
    for t in range(1, 6):
        p.grad = torch.tensor([0.1 * t, -0.3, 0.2 / t], dtype=torch.float64)
        optimizer.step()
    return [repr(x) for x in p.tolist()]


common = dict(lr=0.05, weight_decay=0.1)
adam = dict(common, betas=(0.9, 0.98), eps=1e-6)
print("ADAM", run(lambda p: torch.optim.Adam(p, **adam)))
print("ADAMW", run(lambda p: torch.optim.AdamW(p, **adam)))
print("SGD", run(lambda p: torch.optim.SGD(p, **common)))
print("NESTEROV", run(lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, **common)))
