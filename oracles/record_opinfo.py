# Records a suite for the conformance crate from PyTorch's own operator tests (OpInfo).
#
#   python oracles/record_opinfo.py DIRECTORY [--op NAME ...] [--like CASES.json] [--limit N]
#
# writes DIRECTORY/cases.json and DIRECTORY/tensors.safetensors with outputs, vector-Jacobian,
# Jacobian-vector and second-order products in float64. `--like` records every sample of the
# operations and variants that another suite names. Needs torch, safetensors and expecttest.
# Reader: crates/conformance/src/suite.rs.

import argparse
import json
import math
from pathlib import Path

import torch
import torch.autograd.forward_ad as forward_ad
from safetensors.torch import save_file
from torch.testing._internal.common_methods_invocations import op_db

TOO_LARGE = 20_000


class Unrecordable(Exception):
    """The suite's form has no place for this value."""


class Recorder:
    def __init__(self):
        self.tensors = {}
        self.cases = []
        self.left_out = {}

    def store(self, key, tensor):
        tensor = tensor.detach()
        if tensor.is_complex() or tensor.layout != torch.strided:
            raise Unrecordable("a complex or sparse tensor")
        if tensor.numel() > TOO_LARGE:
            raise Unrecordable("a large tensor")
        is_bool = tensor.dtype == torch.bool
        self.pending[key] = (tensor.to(torch.uint8) if is_bool else tensor).clone().contiguous()
        return {"tensor": key, "bool": is_bool}

    def value(self, key, value, inputs):
        if isinstance(value, torch.Tensor):
            inputs[key] = value
            return self.store(key, value)
        if isinstance(value, (list, tuple)):
            return {"list": [self.value(f"{key}.{i}", v, inputs) for i, v in enumerate(value)]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"value": value}
        raise Unrecordable(type(value).__name__)

    def record(self, op, number, sample):
        name = f"{op.name}{'.' if op.variant_test_name else ''}{op.variant_test_name}/{number}"
        self.pending, inputs = {}, {}
        case = {"op": op.name, "variant": op.variant_test_name, "sample": number}
        case["input"] = self.value(f"{name}/in", sample.input, inputs)
        case["args"] = [self.value(f"{name}/a{i}", a, inputs) for i, a in enumerate(sample.args)]
        case["kwargs"] = {
            k: self.value(f"{name}/k.{k}", v, inputs) for k, v in sample.kwargs.items()
        }

        def call(replaced):
            def swap(value, key):
                if isinstance(value, torch.Tensor):
                    return replaced.get(key, value)
                if isinstance(value, (list, tuple)):
                    return type(value)(swap(v, f"{key}.{i}") for i, v in enumerate(value))
                return value

            out = op(
                swap(sample.input, f"{name}/in"),
                *(swap(a, f"{name}/a{i}") for i, a in enumerate(sample.args)),
                **{k: swap(v, f"{name}/k.{k}") for k, v in sample.kwargs.items()},
            )
            out = [out] if isinstance(out, torch.Tensor) else list(out)
            if not all(isinstance(t, torch.Tensor) for t in out):
                raise Unrecordable("an output that is no tensor")
            return out

        leaves = {
            k: t.detach().clone().requires_grad_()
            for k, t in inputs.items()
            if t.requires_grad and t.dtype == torch.float64
        }
        outputs = call(leaves)
        case["outputs"] = [self.store(f"{name}/out{i}", t) for i, t in enumerate(outputs)]
        follow = [i for i, t in enumerate(outputs) if t.requires_grad]
        if leaves and follow:
            self.derivatives(name, case, call, leaves, outputs, follow)
        self.cases.append(case)
        self.tensors.update(self.pending)

    def derivatives(self, name, case, call, leaves, outputs, follow):
        def like(tensor):
            return torch.randn(tensor.shape, dtype=tensor.dtype)

        def gradients(kind, grads):
            return [
                {"of": k, "grad": None if g is None else self.store(f"{name}/{kind}:{k}", g)}
                for k, g in zip(leaves, grads)
            ]

        cotangents = [like(outputs[i]) for i in follow]
        case["cotangents"] = [
            {"output": i, **self.store(f"{name}/cot{i}", t)} for i, t in zip(follow, cotangents)
        ]
        grads = torch.autograd.grad(
            [outputs[i] for i in follow],
            list(leaves.values()),
            cotangents,
            create_graph=True,
            allow_unused=True,
        )
        case["vjp"] = gradients("vjp", grads)
        second = [(k, g) for k, g in zip(leaves, grads) if g is not None and g.requires_grad]
        if second:
            directions = [like(g) for _, g in second]
            total = sum((v * g).sum() for v, (_, g) in zip(directions, second))
            try:
                again = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            except RuntimeError:
                again = None  # no second derivative in PyTorch
            if again is not None:
                case["second"] = {
                    "v": [
                        {"of": k, **self.store(f"{name}/v:{k}", v)}
                        for v, (k, _) in zip(directions, second)
                    ],
                    "grad": gradients("second", again),
                }
        tangents = {k: like(t) for k, t in leaves.items()}
        try:
            with forward_ad.dual_level():
                duals = {k: forward_ad.make_dual(t.detach(), tangents[k]) for k, t in leaves.items()}
                pushed = [forward_ad.unpack_dual(t).tangent for t in call(duals)]
        except (RuntimeError, NotImplementedError):
            return  # no forward derivative in PyTorch
        case["jvp"] = {
            "tangents": [{"of": k, **self.store(f"{name}/tan:{k}", t)} for k, t in tangents.items()],
            "out": [
                {"output": i, **self.store(f"{name}/jvp{i}", t)}
                for i, t in enumerate(pushed)
                if t is not None and i in follow
            ],
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--op", action="append", default=[])
    parser.add_argument("--like", type=Path)
    parser.add_argument("--limit", type=int, default=10**9)
    arguments = parser.parse_args()
    wanted = None
    if arguments.like:
        cases = json.loads(arguments.like.read_text())["cases"]
        wanted = {(c["op"], c["variant"]) for c in cases}
    recorder = Recorder()
    torch.manual_seed(0)
    for op in op_db:
        if wanted is not None and (op.name, op.variant_test_name) not in wanted:
            continue
        if arguments.op and op.name not in arguments.op:
            continue
        if torch.float64 not in op.dtypes:
            continue
        try:
            samples = list(op.sample_inputs("cpu", torch.float64, requires_grad=op.supports_autograd))
        except Exception as error:
            print(f"{op.name} {op.variant_test_name}: no samples: {error}")
            continue
        for number, sample in enumerate(samples[: arguments.limit]):
            try:
                recorder.record(op, number, sample)
            except Exception as error:
                print(f"{op.name} {op.variant_test_name} {number}: left out: {error}")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    save_file(recorder.tensors, arguments.directory / "tensors.safetensors")
    text = json.dumps({"torch": torch.__version__, "dtype": "float64", "cases": recorder.cases})
    (arguments.directory / "cases.json").write_text(text)
    print(f"{len(recorder.cases)} cases, {len(recorder.tensors)} tensors")


if __name__ == "__main__":
    main()
