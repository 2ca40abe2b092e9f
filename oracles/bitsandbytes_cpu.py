"""Expected codes and scales of crates/cpu (quant4, quant8) and updates of nn's AdamW8bit, made with
bitsandbytes' CPU kernels.

    python oracles/bitsandbytes_cpu.py      (needs torch and bitsandbytes 0.50)

writes crates/cpu/tests/data/bitsandbytes.json and crates/nn/tests/data/adamw8bit.json. Inputs come
from a linear congruential generator that the tests repeat, so that only results are stored; long
results are stored as 64-bit FNV-1a hashes of their bytes. 4-bit quantization runs in the library's
default kernel (there is no other on a CPU), and so does 4-bit dequantization: the C++ one of 0.50.2
takes wrong scales on AVX-512 where a row is no whole number of blocks. 8-bit quantization and
dequantization run in the C++ library.
Neighbours: crates/cpu/tests/kernels/quant.rs, crates/nn/tests/suite/adamw8bit.rs.
"""

import json
import pathlib

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

ROOT = pathlib.Path(__file__).parent.parent


def values(n, seed):
    """Multiples of 2^-12 in -8..8, thinned towards 0 by a product of two of them."""
    state = seed * 2 + 1
    out = []
    for _ in range(n):
        pair = []
        for _ in range(2):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            pair.append((state >> 40) % 65536 / 4096 - 8)
        out.append(pair[0] * pair[1] / 64)
    return torch.tensor(out, dtype=torch.float32)


def fnv(t):
    h = 0xCBF29CE484222325
    for b in t.contiguous().reshape(-1).view(torch.uint8).tolist():
        h = ((h ^ b) * 0x100000001B3) % 2**64
    return f"{h:016x}"


def hexed(t):
    return bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist()).hex()


def four_bit():
    cases = []
    for kind, block, shape, dtype, nested in [
        ("nf4", 64, [37, 50], "float32", False),
        ("fp4", 64, [37, 50], "float32", False),
        ("nf4", 32, [5, 7], "float32", False),
        ("fp4", 4096, [3, 2048], "float32", False),
        ("nf4", 128, [16, 48], "bfloat16", False),
        ("nf4", 64, [24, 96], "float16", True),
        ("nf4", 64, [256, 160], "float32", True),
        ("fp4", 32, [100, 205], "float32", True),
        ("nf4", 64, [8, 64], "float32", True),
    ]:
        w = values(shape[0] * shape[1], len(cases) + 1).reshape(shape)
        w[1] = 0  # a block of zeros, or a part of one
        w = w.to(getattr(torch, dtype))
        codes, state = F.quantize_4bit(w, blocksize=block, quant_type=kind, compress_statistics=nested)
        scales = F.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
        back = _dequantize_4bit_compute(codes.reshape(-1), scales, state.code, block, shape, w.dtype)
        back = back.float() + 0.0  # one zero: their kernels disagree on its sign
        case = dict(kind=kind, block=block, shape=shape, dtype=dtype, nested=nested, seed=len(cases) + 1)
        case["codes"] = fnv(codes)
        case["first_codes"] = hexed(codes)[:64]
        case["absmax"] = fnv(state.absmax)
        case["dequantized"] = fnv(back)
        if nested:
            case["absmax_codes"] = hexed(state.absmax)
            case["offset"] = hexed(state.offset)
            case["nested_absmax"] = hexed(state.state2.absmax)
        cases.append(case)
    return cases


def eight_bit():
    out = {}
    for name, signed in [("signed", True), ("unsigned", False)]:
        code = F.create_dynamic_map(signed)
        x = values(100_000, 77)
        x = x if signed else x.abs()
        q, state = F.quantize_blockwise(x, code=code.clone(), blocksize=256)
        out[name] = dict(map=hexed(code), codes=fnv(q), absmax=fnv(state.absmax))
    return out


def adamw():
    torch.manual_seed(0)
    shapes = [[40, 130], [6, 5]]  # the second stays in 32 bits
    parameters = [torch.nn.Parameter(values(a * b, 9 + i).reshape(a, b)) for i, (a, b) in enumerate(shapes)]
    settings = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    optimizer = bnb.optim.AdamW8bit(parameters, **settings)
    steps = []
    for step in range(6):
        for i, p in enumerate(parameters):
            p.grad = values(p.numel(), 100 + 10 * step + i).reshape(p.shape) * 0.1 ** step
        optimizer.step()
        record = {}
        for i, p in enumerate(parameters):
            record[f"value{i}"] = [float(x) for x in p.detach().flatten()[:: 1 if i else 101]]
        state = optimizer.state[parameters[0]]
        record["state1"] = fnv(state["state1"])
        record["state2"] = fnv(state["state2"])
        record["codes1"] = hexed(state["state1"])[:200]
        record["codes2"] = hexed(state["state2"])[:200]
        record["absmax1"] = [float(x) for x in state["absmax1"]]
        record["absmax2"] = [float(x) for x in state["absmax2"]]
        steps.append(record)
    assert optimizer.state[parameters[1]]["state1"].dtype == torch.float32
    return dict(shapes=shapes, settings={**settings, "betas": list(settings["betas"])}, steps=steps)


def write(path, value):
    path = ROOT / path
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    write("crates/cpu/tests/data/bitsandbytes.json", dict(version=bnb.__version__, four_bit=four_bit(), eight_bit=eight_bit()))
    write("crates/nn/tests/data/adamw8bit.json", adamw())
