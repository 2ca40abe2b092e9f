"""Sentence vectors of small random encoders, by sentence-transformers.

    python oracles/sentences.py

writes crates/zoo/tests/data/sentences/: two directories as sentence-transformers saves them (mean
with length 1; first token), each with the vectors of some texts; and one with the encoder's keys
prefixed, in PyTorch's file format, with the old form of the pooling config.
Needs torch, transformers and sentence-transformers; neighbour: crates/zoo/tests/sentences.rs.
"""

import json
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).parent.parent / "crates/zoo/tests/data/sentences"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "food", "very", "not", "##ly", "##s", "."]
TEXTS = ["good film", "Bad foods. very very badly", "unknown", "", "not good " * 12]


def tokenizer():
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]",
                                   cls_token="[CLS]", sep_token="[SEP]", model_max_length=16)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for seed, (name, mode, more) in enumerate([("mean", "mean", [Normalize()]), ("first", "cls", [])]):
        torch.manual_seed(seed)
        model = BertModel(BertConfig(vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=12, max_position_embeddings=16), add_pooling_layer=name == "mean")
        for key, p in model.named_parameters():
            std = 0.3 if p.dim() > 1 else 0.1
            p.data = (p.data if "LayerNorm" in key else 0) + std * torch.randn_like(p)
        plain = OUT / "plain"
        model.save_pretrained(plain)
        tokenizer().save_pretrained(plain)
        whole = SentenceTransformer(modules=[Transformer(str(plain), max_seq_length=16), Pooling(8, mode), *more], device="cpu")
        folder = OUT / name
        whole.save(str(folder), create_model_card=False)
        vectors = whole.encode(TEXTS, convert_to_tensor=True)
        golden = {"texts": TEXTS, "vectors": vectors.double().tolist()}
        (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
        shutil.rmtree(plain)
        print(name, sorted(p.name for p in folder.rglob("*")), (folder / "1_Pooling/config.json").read_text())
        if name == "mean":
            old = OUT / "old"
            shutil.copytree(folder, old)
            (old / "model.safetensors").unlink()
            prefixed = {f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
                        for k, v in model.state_dict().items()}
            torch.save(prefixed, old / "pytorch_model.bin")
            flags = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
                     "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
            (old / "1_Pooling/config.json").write_text(json.dumps(flags, indent=2) + "\n")


if __name__ == "__main__":
    main()
