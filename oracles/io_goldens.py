"""Golden files for crates/io: one written here, one of ours checked here.

    python oracles/io_goldens.py

writes crates/io/tests/fixtures/python.safetensors with PyTorch's own writer, and reads
crates/io/tests/fixtures/entrenar.safetensors (from `cargo run -p entrenar-io --example
make_fixtures`) with PyTorch's own reader. Both hold the tensors of `expected()`.
Needs torch and safetensors; neighbours: crates/io/tests/goldens.rs.
"""

import json
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).parent.parent / "crates/io/tests/fixtures"


def expected():
    ramp = torch.arange(6).reshape(2, 3)
    return {
        "layer.f32": ramp.float() * 0.5 - 1,
        "layer.f64": ramp.double() / 7,
        "layer.f16": (ramp.float() * 0.25 - 0.5).half(),
        "layer.bf16": (ramp.float() * 3 - 7).bfloat16(),
        "layer.i64": ramp.long() * -(2**40),
        "layer.i32": ramp.int() * -70000,
        "layer.u8": (ramp * 50).to(torch.uint8),
        "layer.bool": ramp % 2 == 1,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "naïve \"name\"\n": torch.tensor([1.0]),
    }


METADATA = {"format": "pt", "note": "line one\nline two ü"}


def main():
    foreign = {"codes.i8": torch.tensor([-3, 4], dtype=torch.int8)}
    save_file({**expected(), **foreign}, FIXTURES / "python.safetensors", metadata=METADATA)

    ours = FIXTURES / "entrenar.safetensors"
    if not ours.exists():
        print(f"{ours} is missing: run the example make_fixtures, then this again")
        return
    with safe_open(ours, framework="pt") as file:
        assert file.metadata() == METADATA, file.metadata()
        assert set(file.keys()) == set(expected()), file.keys()
        for name, want in expected().items():
            got = file.get_tensor(name)
            assert got.dtype == want.dtype and got.shape == want.shape, name
            assert torch.equal(got, want), (name, got, want)
    # With one metadata key at most our bytes are those of the reference writer.
    same = FIXTURES / "entrenar-one-key.safetensors"
    twin = FIXTURES / "twin.safetensors"
    save_file(expected(), twin, metadata={"format": "pt"})
    assert same.read_bytes() == twin.read_bytes(), "bytes differ from the reference writer's"
    twin.unlink()
    print("ok:", json.dumps(sorted(expected())))


if __name__ == "__main__":
    main()
