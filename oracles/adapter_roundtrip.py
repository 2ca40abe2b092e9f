"""Whether PEFT and transformers see what entrenar made: an adapter on its base, and the merged model.

    python oracles/adapter_roundtrip.py BASE ADAPTER MERGED TEXT

Prints the mean loss of the text's tokens under each, in windows of the context, and the greatest difference
of logits between adapter and merged model; fails when it is above 1e-3. `entrenar eval --json` on the same
files prints the loss to compare with. Needs torch, transformers and peft.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, merged, text = sys.argv[1:5]
ids = AutoTokenizer.from_pretrained(base)(open(text).read(), return_tensors="pt").input_ids


def load(place):
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


@torch.no_grad()
def loss(model, window):
    targets, total = ids.shape[1] - 1, 0.0
    for start in range(0, targets, window):
        end = min(start + window, targets)
        logits = model(ids[:, start:end]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, ids[0, start + 1 : end + 1], reduction="sum").item()
    return total / targets


plain = load(base)
window = min(2048, plain.config.max_position_embeddings)
print(f"base    {loss(plain, window):.6f}")
adapted = PeftModel.from_pretrained(plain, adapter).eval()
whole = load(merged)
print(f"adapter {loss(adapted, window):.6f}")
print(f"merged  {loss(whole, window):.6f}")
with torch.no_grad():
    head = ids[:, :window]
    off = (adapted(head).logits - whole(head).logits).abs().max().item()
print(f"greatest difference of logits: {off:.2e}")
sys.exit(off > 1e-3)
