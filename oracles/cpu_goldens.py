"""Writes crates/cpu/tests/data/torch.json: what PyTorch computes for cases where conventions differ
between libraries (convolution geometry, pooling borders, label smoothing, attention masks); and
int_mm.txt beside it: products of signed bytes.

Inputs are not stored: both sides make them with `numbers`. All in float64, rounded to 7 digits.
Run: python oracles/cpu_goldens.py   (needs torch)
"""

import json
import pathlib

import torch
import torch.nn.functional as F

OUT = pathlib.Path(__file__).parent.parent / "crates/cpu/tests/data/torch.json"


def numbers(shape, seed):
    n = 1
    for d in shape:
        n *= d
    values = [((i * 7919 + seed * 104729) % 1009) / 504.5 - 1.0 for i in range(n)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def listed(t):
    return [round(float(v), 7) for v in t.detach().reshape(-1)]


def summed(t):
    """Two weighted sums stand for a gradient: whole ones are checked by differences elsewhere."""
    return [round(float((t * numbers(t.shape, seed)).sum()), 7) for seed in (50, 51)]


def gradients(out, inputs):
    return torch.autograd.grad(out, inputs, numbers(out.shape, 99))


def leaf(shape, seed):
    return numbers(shape, seed).requires_grad_()


def conv_cases():
    table = [
        ([2, 4, 7], [6, 2, 3], [2], [1], [2], 2),
        ([1, 2, 5, 6], [3, 2, 3, 2], [1, 2], [1, 0], [1, 2], 1),
        ([2, 3, 5, 5], [3, 1, 2, 2], [2, 2], [1, 1], [1, 1], 3),
        ([1, 2, 3, 4, 3], [2, 2, 2, 2, 2], [1, 2, 1], [1, 0, 1], [1, 1, 1], 1),
    ]
    for x_shape, w_shape, stride, padding, dilation, groups in table:
        x, w = leaf(x_shape, 1), leaf(w_shape, 2)
        f = [F.conv1d, F.conv2d, F.conv3d][len(stride) - 1]
        y = f(x, w, None, stride, padding, dilation, groups)
        dx, dw = gradients(y, (x, w))
        yield {
            "op": "conv", "x": x_shape, "w": w_shape, "stride": stride, "padding": padding,
            "dilation": dilation, "groups": groups, "shape": list(y.shape),
            "y": listed(y), "dx": summed(dx), "dw": summed(dw),
        }
    # A transposed convolution with output padding: the input gradient for that output shape.
    for x_shape, w_shape, stride, padding, extra in [
        ([1, 3, 4, 3], [3, 2, 3, 3], [2, 3], [1, 1], [1, 2]),
        ([1, 2, 3, 3], [2, 2, 2, 3], [1, 2], [0, 1], [0, 1]),
    ]:
        x, w = numbers(x_shape, 1), numbers(w_shape, 2)
        y = F.conv_transpose2d(x, w, None, stride, padding, extra)
        yield {
            "op": "conv_transpose", "x": x_shape, "w": w_shape, "stride": stride,
            "padding": padding, "shape": list(y.shape), "y": listed(y),
        }


def pool_cases():
    table = [
        ([1, 2, 7], [3], [2], [1], [1]),
        ([1, 1, 8], [2], [3], [1], [2]),
        ([1, 1, 7, 6], [3, 2], [2, 2], [1, 1], [1, 1]),
        ([1, 1, 5, 5], [2, 2], [2, 2], [0, 0], [1, 1]),
        ([1, 1, 5, 4, 5], [2, 3, 3], [2, 2, 3], [1, 0, 1], [1, 1, 1]),
    ]
    for x_shape, kernel, stride, padding, dilation in table:
        for ceil_mode in (False, True):
            x = leaf(x_shape, 3)
            n = len(kernel) - 1
            f = [F.max_pool1d, F.max_pool2d, F.max_pool3d][n]
            y, index = f(x, kernel, stride, padding, dilation, ceil_mode, True)
            case = {
                "op": "pool", "x": x_shape, "kernel": kernel, "stride": stride,
                "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode,
                "shape": list(y.shape), "max": listed(y), "index": index.reshape(-1).tolist(),
                "max_dx": summed(gradients(y, x)[0]),
            }
            if set(dilation) == {1}:
                f = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][n]
                for name, include in (("avg_padded", True), ("avg_inside", False)):
                    y = f(x, kernel, stride, padding, ceil_mode, include)
                    case[name] = listed(y)
                    case[name + "_dx"] = summed(gradients(y, x)[0])
            yield case
    for x_shape, out in [([1, 2, 7], [3]), ([1, 1, 5, 4], [3, 6]), ([1, 1, 3, 5, 4], [2, 2, 3])]:
        x = numbers(x_shape, 3)
        n = len(out) - 1
        average = [F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d][n]
        largest = [F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d][n]
        y, index = largest(x, out, True)
        yield {
            "op": "adaptive_pool", "x": x_shape, "out": out, "avg": listed(average(x, out)),
            "max": listed(y), "index": index.reshape(-1).tolist(),
        }


def loss_cases():
    targets = [2, 0, -100, 4, 4, 1]
    for weighted in (False, True):
        for smoothing in (0.0, 0.2):
            x = leaf([6, 5], 4)
            w = numbers([5], 5) + 1.5 if weighted else None
            t = torch.tensor(targets)
            y = F.cross_entropy(x, t, w, reduction="none", label_smoothing=smoothing)
            yield {
                "op": "cross_entropy", "targets": targets, "weighted": weighted,
                "smoothing": smoothing, "loss": listed(y), "dx": summed(gradients(y, x)[0]),
            }


def attention_cases():
    b, h, g, t, s, d, e = 2, 2, 1, 3, 5, 2, 2
    keep = numbers([b, 1, t, s], 9) > -0.4
    keep[0, 0, 1] = False  # one query sees nothing
    masks = {
        "none": None,
        "bool": keep,
        "float": numbers([t, s], 10) * 3,
        "infinite": torch.where(keep, 0.5, -torch.inf).double(),
    }
    for name, mask in masks.items():
        for causal in (False, True) if mask is None else (False,):
            q, k, v = leaf([b, h, t, d], 6), leaf([b, g, s, d], 7), leaf([b, g, s, e], 8)
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=0.7, enable_gqa=True
            )
            dq, dk, dv = gradients(y, (q, k, v))
            yield {
                "op": "attention", "mask": name, "causal": causal,
                "keep": keep.reshape(-1).tolist() if name in ("bool", "infinite") else [],
                "y": listed(y), "dq": summed(dq), "dk": summed(dk), "dv": summed(dv),
            }


cases = [*conv_cases(), *pool_cases(), *loss_cases(), *attention_cases()]
OUT.parent.mkdir(exist_ok=True)
OUT.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
print(len(cases), "cases,", OUT.stat().st_size, "bytes")

# Products of signed bytes: sizes m k n, then the sum, the sum weighted by place modulo 97, the first
# element and the last.
SIZES = [(17, 33, 24), (32, 64, 16), (19, 7, 40), (64, 1000, 72), (100, 129, 8), (18, 2000, 64)]


def codes(rows, columns, seed):
    values = [(i * 7919 + seed * 104729) % 1009 % 256 - 128 for i in range(rows * columns)]
    return torch.tensor(values, dtype=torch.int8).reshape(rows, columns)


lines = ["# m k n: sum, weighted sum, first, last of torch._int_mm (oracles/cpu_goldens.py)"]
for m, k, n in SIZES:
    c = torch._int_mm(codes(m, k, 1), codes(k, n, 2)).reshape(-1).to(torch.int64)
    weights = torch.arange(m * n) % 97
    parts = [c.sum(), (c * weights).sum(), c[0], c[-1]]
    lines.append(f"{m} {k} {n}: " + " ".join(str(int(v)) for v in parts))
(OUT.parent / "int_mm.txt").write_text("\n".join(lines) + "\n")
