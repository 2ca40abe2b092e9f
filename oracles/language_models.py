"""Writes crates/zoo/tests/data/language_models/<name>/: tiny random language models as transformers
saves them (config.json, model.safetensors), and golden.safetensors with what it computes for them:
logits, loss, gradients, and parameters after three steps of AdamW.

Run: python oracles/language_models.py   (needs torch, transformers, safetensors)
Neighbour: crates/zoo/tests/language_models.rs.
"""

import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (BertConfig, BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

OUT = pathlib.Path(__file__).parent.parent / "crates/zoo/tests/data/language_models"
SIZES = dict(vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama3-tied": lambda: LlamaForCausalLM(LlamaConfig(
        **SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True)),
    "llama-linear": lambda: LlamaForCausalLM(LlamaConfig(
        **SIZES, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=6)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=29, n_positions=32, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
}


BERT = dict(vocab_size=29, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
            max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager")


def encoders():
    """BERT with both heads: logits with padding and token types, loss, gradients, a sentence's vector."""
    for seed, (name, build) in enumerate({"bert-words": lambda: BertForMaskedLM(BertConfig(**BERT)),
                                          "bert-classes": lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=3))}.items()):
        torch.manual_seed(100 + seed)
        model = build().float().train()
        for parameter_name, parameter in model.named_parameters():
            std = 0.3 if parameter.dim() > 1 else 0.1
            parameter.data = (parameter.data if "LayerNorm" in parameter_name else 0) + std * torch.randn_like(parameter)
        model.tie_weights()
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokens = torch.randint(0, 29, (2, 9))
        types = torch.randint(0, 2, (2, 9))
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[1, 6:] = 0
        words = name == "bert-words"
        labels = torch.randint(0, 29, (2, 9)) if words else torch.tensor([2, 0])
        if words:
            labels[0, ::2] = -100
        logits = model(tokens, token_type_ids=types, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2) if words else logits, labels.flatten(), ignore_index=-100)
        loss.backward()
        hidden = model.bert(tokens, token_type_ids=types, attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].float()
        mean = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1))
        golden = {"tokens": tokens, "types": types, "mask": mask, "targets": labels, "logits": logits.detach(),
                  "loss": loss.detach().reshape(1), "sentence": mean.detach()}
        for n, p in model.named_parameters():
            golden[f"gradient.{n}"] = p.grad.clone()
        save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
        print(name, loss.item())


def old_form(path):
    """Rewrites a config as transformers 4 wrote it."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def main():
    for seed, (name, build) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = build().float().train()
        # Large enough that an error in any part shows in the logits.
        for parameter_name, parameter in model.named_parameters():
            std = 0.3 if parameter.dim() > 1 else 0.1
            parameter.data = (parameter.data if "norm" in parameter_name or "ln_" in parameter_name else 0) + std * torch.randn_like(parameter)
        model.tie_weights()
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name == "llama3-tied":
            old_form(folder / "config.json")
        tokens = torch.randint(0, 29, (2, 11))
        labels = torch.randint(0, 29, (2, 11))
        labels[0, :3] = -100
        golden = {"tokens": tokens, "targets": labels}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            logits = model(tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
            loss.backward()
            losses.append(loss.item())
            if step == 0:
                golden["logits"] = logits.detach()
                for n, p in model.named_parameters():
                    golden[f"gradient.{n}"] = p.grad.clone()
            optimizer.step()
        golden["losses"] = torch.tensor(losses)
        for n, p in model.named_parameters():
            golden[f"after.{n}"] = p.detach().clone()
        save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
        print(name, losses, "transformers", transformers.__version__)


if __name__ == "__main__":
    main()
    encoders()
