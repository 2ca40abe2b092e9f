"""Writes crates/tune/tests/data/<name>/: adapters as PEFT saves them for the tiny models of
language_models.py, and golden.safetensors with the adapted model's logits and gradients.

Run: python oracles/lora.py [NAME...]    (needs torch, transformers, peft, safetensors)
     python oracles/lora.py --check DIR MODEL   loads an adapter directory that we wrote with PEFT and
     prints the largest difference of its logits from DIR/logits.safetensors; fails when it is above 1e-4 of
     them. The test below writes such directories where ENTRENAR_KEEP says.
Neighbour: crates/tune/tests/peft.rs.
"""

import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).parent.parent
MODELS = ROOT / "crates/zoo/tests/data/language_models"
OUT = ROOT / "crates/tune/tests/data"

CASES = {
    "plain": ("llama", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    "patterns": ("qwen3", dict(r=4, lora_alpha=6, use_rslora=True, target_modules=r".*\.(q_proj|down_proj|o_proj)",
                               rank_pattern={"o_proj": 2, r"layers\.1\.mlp\.down_proj": 3}, alpha_pattern={"q_proj": 5})),
    "dora": ("llama3-tied", dict(r=3, lora_alpha=4, use_dora=True, target_modules=["q_proj", "k_proj", "up_proj"])),
    "conv1d": ("gpt2", dict(r=2, lora_alpha=16, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    "conv1d-dora": ("gpt2", dict(r=2, lora_alpha=3, use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)),
    "all": ("mistral", dict(r=2, lora_alpha=2, target_modules="all-linear")),
    "saved": ("llama", dict(r=2, lora_alpha=2, target_modules=["v_proj"], modules_to_save=["lm_head", "layers.0.input_layernorm"])),
    "embedding": ("llama", dict(r=3, lora_alpha=4, use_rslora=True, target_modules=["embed_tokens", "q_proj"], rank_pattern={"embed_tokens": 2})),
    "embedding-tied": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["embed_tokens", "v_proj"])),
    "embedding-dora": ("gpt2", dict(r=2, lora_alpha=3, use_dora=True, target_modules=["wte", "wpe", "c_attn"], fan_in_fan_out=True)),
}


def main():
    for seed, (name, (base, options)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(200 + seed)
        model = AutoModelForCausalLM.from_pretrained(MODELS / base, attn_implementation="eager").float()
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        for n, p in model.named_parameters():
            if "lora_B" in n or "lora_embedding_A" in n:
                p.data = 0.2 * torch.randn_like(p)
            if "modules_to_save" in n:
                p.data = p.data + 0.1 * torch.randn_like(p)
            if "magnitude" in n:
                p.data = p.data * (1 + 0.2 * torch.randn_like(p))
        golden = load_file(MODELS / base / "golden.safetensors")
        tokens, targets = golden["tokens"], golden["targets"]
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        out = {"tokens": tokens, "targets": targets, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
        for n, p in model.named_parameters():
            if p.requires_grad:
                # As in the file: without the adapter's name.
                key = n.replace(".default", "").replace(".modules_to_save", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
                out[f"gradient.{key}"] = p.grad.clone()
        trainable, total = model.get_nb_trainable_parameters()
        with torch.no_grad():
            merged = model.eval().merge_and_unload()
            if name.startswith("embedding"):
                # A tied output layer changes with the embedding, and then these are not the adapter's logits.
                out["merged_logits"] = merged(tokens).logits
                tables = ("embed_tokens", "wte", "wpe")
                out |= {f"merged.{n}": p.clone() for n, p in merged.named_parameters() if n.split(".")[-2] in tables}
                print("merged logits differ by", (out["merged_logits"] - logits).abs().max().item())
        save_file({k: v.contiguous() for k, v in out.items()}, folder / "golden.safetensors")
        print(name, base, loss.item(), trainable, total)


def check(folder, base):
    model = AutoModelForCausalLM.from_pretrained(MODELS / base, attn_implementation="eager").float()
    model = PeftModel.from_pretrained(model, folder).eval()
    ours = load_file(pathlib.Path(folder) / "logits.safetensors")
    logits = model(ours["tokens"]).logits
    off, size = (logits - ours["logits"]).abs().max().item(), logits.abs().max().item()
    print(folder, base, "largest difference", off, "of", size)
    sys.exit(off > 1e-4 * size)


if __name__ == "__main__":
    if "--check" in sys.argv:
        check(*sys.argv[2:])
    else:
        main()
