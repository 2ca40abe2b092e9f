"""What transformers' collator for masked language modelling does to many tokens.

    python oracles/masked_lm.py

writes crates/train/tests/fixtures/masked_lm.json: how many tokens were chosen, and what became of
them, of 3,000 rows of 40 tokens and two special tokens, at its default of 15 %.
Needs torch and transformers; neighbour: crates/train/tests/masked_text.rs.
"""

import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).parent.parent / "crates/train/tests/fixtures/masked_lm.json"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(95)]
ROWS, LENGTH = 3000, 40


def main():
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]")
    # The same rows as in the test: word (7 r + 13 i) mod 95 of row r at place i.
    texts = [" ".join(f"w{(7 * r + 13 * i) % 95}" for i in range(LENGTH)) for r in range(ROWS)]
    rows = [tokenizer(text) for text in texts]
    torch.manual_seed(0)
    batch = DataCollatorForLanguageModeling(tokenizer)(rows)
    before = torch.tensor([row["input_ids"] for row in rows])
    after, labels = batch["input_ids"], batch["labels"]
    chosen = labels != -100
    special = before < 5
    assert not (chosen & special).any() and (after[~chosen] == before[~chosen]).all()
    masked = chosen & (after == 4)
    kept = chosen & (after == before)
    counts = {
        "tokens": int((~special).sum()),
        "chosen": int(chosen.sum()),
        "masked": int(masked.sum()),
        "kept": int(kept.sum()),
        "random": int((chosen & ~masked & ~kept).sum()),
        "random_special": int((chosen & ~masked & ~kept & (after < 5)).sum()),
    }
    OUT.write_text(json.dumps(counts, indent=1) + "\n")
    print(counts)


main()
