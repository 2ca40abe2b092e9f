"""Writes crates/train/tests/fixtures/sft.json.

Token numbers and learned tokens of fine-tuning rows, made by transformers with the tokenizer
../shared/data/tok-small-chat: conversations through templates that mark what the assistant says
(`return_assistant_tokens_mask`), the same through templates without marks (by the lengths of
rendered beginnings, as TRL does for prompts), and Alpaca rows (prompt and whole encoded as one text,
EOS appended, targets by offsets).
Run: python oracles/sft.py   (needs transformers)
Neighbours: crates/train/tests/sft.rs, crates/train/src/data/sft/.
"""

import json
import pathlib

from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT.parent / "shared/data/tok-small-chat"
OUT = ROOT / "crates/train/tests/fixtures/sft.json"

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
UNMARKED = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CHATS = [
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}],
    [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Say naïve café 🙂 twice."},
        {"role": "assistant", "content": "naïve café 🙂, naïve café."},
        {"role": "user", "content": "  And\n\nnow?  "},
        {"role": "assistant", "content": "Now I stop.\n\tReally."},
    ],
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "assistant"}, {"role": "assistant", "content": "user"}],
]

ALPACA = [
    {"instruction": "Name a prime number.", "input": "", "output": "Seven."},
    {"instruction": "Add the numbers.", "input": "3, 4", "output": " 7\n"},
    {"instruction": "Répondez: été?", "output": "naïve 🙂"},
]


def alpaca_prompt(row):
    write = "Write a response that appropriately completes the request.\n\n"
    if row.get("input"):
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            + write
            + f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:"
        )
    return "Below is an instruction that describes a task. " + write + f"### Instruction:\n{row['instruction']}\n\n### Response:"


def marked(tokenizer, messages, template):
    out = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = out.get("assistant_masks", out.get("assistant_mask"))
    return {"messages": messages, "ids": list(out["input_ids"]), "learned": [int(m) for m in mask]}


def by_beginnings(tokenizer, messages, template, end):
    """Learned: what follows the generation prompt, up to and with the end of turn."""

    def text(part, prompt):
        return tokenizer.apply_chat_template(part, chat_template=template, tokenize=False, add_generation_prompt=prompt)

    whole = text(messages, False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(text(messages[:i], True)) if i else len(whole[: whole.index(message["content"])])
            stop = len(text(messages[: i + 1], False))
            stop = whole.rindex(end, start, stop) + len(end)
            spans.append((start, stop))
    out = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    learned = [int(any(a < stop and b > start for start, stop in spans)) for a, b in out["offset_mapping"]]
    return {"messages": messages, "ids": out["input_ids"], "learned": learned}


def alpaca(tokenizer, row):
    prompt = alpaca_prompt(row)
    whole = prompt + row["output"]
    out = tokenizer(whole, return_offsets_mapping=True)
    ids, offsets = out["input_ids"], out["offset_mapping"]
    learned = [int(b > len(prompt)) for _, b in offsets]
    return {"row": row, "text": whole, "ids": ids + [tokenizer.eos_token_id], "learned": learned + [1]}


def main():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    own = tokenizer.chat_template
    result = {
        "marked": {"template": MARKED, "rows": [marked(tokenizer, m, MARKED) for m in CHATS]},
        "unmarked": {"template": UNMARKED, "rows": [by_beginnings(tokenizer, m, UNMARKED, "<|im_end|>") for m in CHATS]},
        "own": {"template": own, "rows": [by_beginnings(tokenizer, m, own, tokenizer.eos_token) for m in CHATS]},
        "alpaca": [alpaca(tokenizer, row) for row in ALPACA],
    }
    OUT.write_text(json.dumps(result, indent=None, separators=(",", ":")).replace('{"messages"', '\n{"messages"').replace('{"row"', '\n{"row"') + "\n")


main()
