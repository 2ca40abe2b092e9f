"""Files of `torch.save` that crates/io must read, and two that it must refuse.

    python oracles/pytorch_files.py

writes crates/io/tests/fixtures/pytorch/: the same tensors in both file forms, by two pickle
protocols and in shards, with a safetensors twin that holds the expected values; a checkpoint with
an optimizer; and pickles that would run something, were they run (they are written, never loaded).
Needs torch and safetensors; neighbour: crates/io/tests/pytorch.rs.
"""

import json
import os
import pathlib
import zipfile
from collections import OrderedDict

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent.parent / "crates/io/tests/fixtures/pytorch"


def state():
    ramp = torch.arange(6).reshape(2, 3)
    shared = torch.arange(12, dtype=torch.float32).reshape(3, 4) * 0.5
    return OrderedDict(
        [
            ("f64", ramp.double() / 7),
            ("f32", ramp.float() * 0.5 - 1),
            ("f16", (ramp.float() * 0.25 - 0.5).half()),
            ("bf16", (ramp.float() * 3 - 7).bfloat16()),
            ("i64", ramp.long() * -(2**40)),
            ("i32", ramp.int() * -70000),
            ("i16", (ramp * -6000).to(torch.int16)),
            ("i8", (ramp * 20 - 60).to(torch.int8)),
            ("u8", (ramp * 50).to(torch.uint8)),
            ("bool", ramp % 2 == 1),
            ("scalar", torch.tensor(2.5)),
            ("empty", torch.zeros(0, 4)),
            ("parameter", torch.nn.Parameter(torch.tensor([1.5, -2.0]))),
            # Views of one storage: transposed, every other column from the second row on, itself.
            ("transposed", shared.t()),
            ("strided", shared[1:, 1::2]),
            ("shared", shared),
        ]
    )


def twin(tensors):
    """The values as a safetensors file can hold them for arrays of ours."""
    wide = {torch.int8: torch.int32, torch.int16: torch.int32}
    return {
        name: t.detach().to(wide.get(t.dtype, t.dtype)).contiguous().clone()
        for name, t in tensors.items()
    }


class Runs:
    """Becomes a call of os.system when it is unpickled."""

    def __reduce__(self):
        return os.system, ("exit 3",)


def fingerprint(tensor):
    """FNV-1a of the elements' bytes, 64 bits."""
    state = 0xCBF29CE484222325
    for byte in tensor.contiguous().flatten().view(torch.uint8).tolist():
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def published():
    """Fingerprints of a published file that has no safetensors twin of the same training."""
    file = pathlib.Path(__file__).parent.parent.parent / "shared/data/mnist-cnn/mnist.pt"
    if not file.exists():
        print(f"{file} is absent: its fingerprints stay as they are")
        return
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    prints = {
        name: [str(t.dtype).removeprefix("torch."), list(t.shape), fingerprint(t.reshape(-1))]
        for name, t in tensors.items()
    }
    (FOLDER / "mnist.json").write_text(json.dumps(prints, indent=1) + "\n")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    tensors = state()
    save_file(twin(tensors), FOLDER / "twin.safetensors")
    torch.save(tensors, FOLDER / "zip.pt")
    torch.save(tensors, FOLDER / "protocol4.pt", pickle_protocol=4)
    torch.save(tensors, FOLDER / "legacy.th", _use_new_zipfile_serialization=False)
    small = {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).t(), "b": torch.tensor([True])}
    torch.save(small, FOLDER / "small.pt")
    torch.save(small, FOLDER / "small.th", _use_new_zipfile_serialization=False)

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "best": 0.5,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "notes": ["a", None, (1, 2)],
    }
    torch.save(checkpoint, FOLDER / "checkpoint.pt")
    torch.save([torch.tensor([1.0]), {"a": torch.tensor([2.0])}], FOLDER / "list.pt")
    torch.save(torch.tensor([3.0]), FOLDER / "alone.pt")

    shards = FOLDER / "sharded"
    shards.mkdir(exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for n, part in enumerate([names[:10], names[10:]], 1):
        file = f"pytorch_model-{n:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, shards / file)
        weight_map.update({name: file for name in part})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")

    torch.save({"w": small["w"], "evil": Runs()}, FOLDER / "system.pt")
    torch.save(
        {"w": small["w"], "evil": Runs()},
        FOLDER / "system.th",
        _use_new_zipfile_serialization=False,
    )
    torch.save(model, FOLDER / "module.pt")
    torch.save({"wide": torch.zeros(1).expand(4, 1000)}, FOLDER / "expanded.pt")
    with zipfile.ZipFile(FOLDER / "small.pt") as stored:
        with zipfile.ZipFile(FOLDER / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as out:
            for name in stored.namelist():
                out.writestr(name, stored.read(name))

    # What PyTorch itself makes of the files that are to be read.
    for name in ["zip.pt", "protocol4.pt", "legacy.th"]:
        # PyTorch's own restricted machine reads protocol 2 alone; these files are ours.
        back = torch.load(FOLDER / name, weights_only=name != "protocol4.pt")
        assert all(torch.equal(back[n], t) for n, t in tensors.items()), name
    published()
    print(sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()
