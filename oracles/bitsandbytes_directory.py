"""Writes crates/train/tests/data/bitsandbytes/<name>/: tiny random language models whose linear layers transformers
and bitsandbytes keep in 4 bits, as save_pretrained writes them, with a tokenizer, and golden.safetensors with their
logits, their loss on tokens and on a text, and what they make of a prompt.

Run: python oracles/bitsandbytes_directory.py   (needs torch, transformers, accelerate, bitsandbytes 0.50, tokenizers)
     python oracles/bitsandbytes_directory.py --check DIR   loads a directory that we wrote and prints the largest
     difference of its logits from DIR/logits.safetensors; fails when it is above 1e-4. The test below writes such
     directories where ENTRENAR_KEEP says.
Neighbour: crates/train/tests/quantized_bases.rs.
"""

import pathlib
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).parent.parent / "crates/train/tests/data/bitsandbytes"
TEXT = "the quick brown fox jumps over the lazy dog."
LETTERS = "</s> abcdefghijklmnopqrstuvwxyz.,"

CASES = {
    # Rows are whole blocks of 64, so that the kernels of the CPU read the right scales.
    "llama-nf4": (lambda: LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0)), "nf4", True),
    "gpt2-fp4": (lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=32, n_positions=64, n_embd=64, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=0)), "fp4", False),
}


def tokenizer():
    words = ["</s>", *LETTERS.removeprefix("</s>")]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def main():
    for seed, (name, (build, kind, double)) in enumerate(CASES.items()):
        torch.manual_seed(300 + seed)
        model = build().float()
        for key, p in model.named_parameters():
            # Of a size that makes different codes tell in the logits.
            p.data = (1 if "norm" in key or "ln_" in key else 0) + 0.2 * torch.randn_like(p)
        model.tie_weights()
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.float32)
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory() as plain:
            model.save_pretrained(plain)
            whole = logits_of(model, tokens())
            model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        # What the file says, not what was in memory.
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
        logits = logits_of(again, tokens())
        assert torch.equal(logits, logits_of(model, tokens()))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
        words = tokenizer()
        text = words(TEXT, return_tensors="pt").input_ids
        text_logits = logits_of(again, text)
        text_loss = torch.nn.functional.cross_entropy(text_logits[0, :-1], text[0, 1:])
        prompt = words("the quick", return_tensors="pt")
        greedy = words.decode(again.generate(**prompt, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True)
        save_file({"tokens": tokens(), "logits": logits, "loss": loss.reshape(1), "text_loss": text_loss.reshape(1),
                   "greedy": torch.tensor(list(greedy.encode()), dtype=torch.uint8)}, folder / "golden.safetensors")
        print(repr(greedy), text_loss.item())
        print(name, "loss", loss.item(), "of", logits.abs().max().item(), "moved by", (logits - whole).abs().max().item())


def tokens():
    return torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits_of(model, ids):
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # Some processors have a kernel that rounds activations and scales to bf16; weights are what is compared here.
            layer.support_avx512bf16_for_cpu = False
    return model.eval()(ids).logits.float().contiguous()


def check(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
    kinds = {type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}
    ours = load_file(pathlib.Path(folder) / "logits.safetensors")
    logits = logits_of(model, ours["tokens"])
    off = (logits - ours["logits"]).abs().max().item()
    print(folder, "layers", kinds, "largest difference", off, "of", logits.abs().max().item())
    sys.exit(off > 1e-4 or "Linear4bit" not in kinds)


if __name__ == "__main__":
    if "--check" in sys.argv:
        check(sys.argv[2])
    else:
        main()
