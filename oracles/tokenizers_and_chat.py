"""Writes crates/zoo/tests/data/tokenizers.json and chat.json.

tokenizers.json: what the `tokenizers` and `transformers` packages make of some texts with the
tokenizers under ../shared/data. chat.json: conversations rendered by transformers through several
templates, with the spans of text that the assistant says where a template marks them.
Run: python oracles/tokenizers_and_chat.py   (needs transformers, tokenizers)
Neighbours: crates/zoo/tests/tokenizers.rs, crates/zoo/src/chat.rs.
"""

import json
import pathlib

from tokenizers import Tokenizer
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"
OUT = ROOT / "crates/zoo/tests/data"

TEXTS = ["", " ", "Hello, world!", "Once upon a time, there was a little girl.", "  two  spaces\n\nand lines\t\ttabs ",
         "naïve café — 东京 🙂 e\u0301", "x=1234567890; y = 3.14e-10", "don't we'll I'M", "<s>not special?</s>",
         "<|endoftext|>after", "a" * 50, "\u0000\u0007", "ﬁ ligature ½"]


def tokenizers():
    out = {}
    for name in ["stories260k", "tok-gpt-neox-20b"]:
        t = Tokenizer.from_file(str(SHARED / name / "tokenizer.json"))
        out[name] = [{"text": x, "ids": t.encode(x).ids, "bare": t.encode(x, add_special_tokens=False).ids,
                      "decoded": t.decode(t.encode(x).ids)} for x in TEXTS]
    # This one's special tokens are named in tokenizer_config.json alone, which transformers reads.
    name = "tok-small-chat"
    t = PreTrainedTokenizerFast.from_pretrained(SHARED / name)
    out[name] = [{"text": x, "ids": t(x).input_ids, "bare": t(x, add_special_tokens=False).input_ids,
                  "decoded": t.decode(t(x).input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)} for x in TEXTS]
    folder = SHARED / "tok-gpt2"
    t = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    out["tok-gpt2"] = [{"text": x, "ids": t(x).input_ids, "bare": t(x, add_special_tokens=False).input_ids,
                        "decoded": t.decode(t(x).input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)} for x in TEXTS]
    (OUT / "tokenizers.json").write_text(json.dumps(out, ensure_ascii=True, indent=1) + "\n")


TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "marked": """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- generation %}
{{- message.content + '<|im_end|>' }}
{%- endgeneration %}
{{- '\n' }}
    {%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "marked-inline": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}{{ m['content'] | trim }}{{ eos_token }}{% endgeneration %}\n{% else %}Q: {{ m['content'].strip() }}\n{% endif %}{% endfor %}",
    "instructions": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "headers": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "system-first": """{% if messages[0]['role'] == 'system' %}
  {% set system = messages[0]['content'] %}
  {% set rest = messages[1:] %}
{% else %}
  {% set system = 'You are helpful.' %}
  {% set rest = messages %}
{% endif %}
System: {{ system.title() if system.startswith('you') else system }}
{% for m in rest -%}
  {%- set ns = namespace(tag=m.role.upper()) -%}
  {{ ns.tag }}: {{ m.content.split('\n')[0].rstrip() }}{{ ' ' if not loop.last else '' }}
{% endfor %}
{% for key, value in {'a': 1, 'b': [1, 2.5, none, true]}.items() %}{{ key }}={{ value | tojson }};{% endfor %}
""",
    "tools": """{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for t in tools or [] %}<{{ t.function.name }}>{{ t | tojson }}{% endfor %}{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% if not loop.last %}|{% endif %}{% endfor %}{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('y') }}""",
}

USER, SYSTEM = {"role": "user", "content": "What is 2 + 2?"}, {"role": "system", "content": "you are <b>terse</b> & \"kind\"."}
ANSWER = {"role": "assistant", "content": " 4, n'est-ce pas? 🙂 \nsecond line"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, "é<>&'"], "z": {}}}}]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d'oh <i>", "parameters": {"type": "object", "properties": {}, "required": []}}}
CHATS = [[USER], [USER, ANSWER], [SYSTEM, USER, ANSWER, {"role": "user", "content": "  Sure?  "}], [USER, ANSWER, USER, ANSWER],
         [USER, CALL], [ANSWER]]


def chat():
    cases = []
    for name, template in TEMPLATES.items():
        for i, messages in enumerate(CHATS):
            for prompt in (False, True):
                tools = [TOOL] if name == "tools" and i % 2 == 0 else None
                case = {"template": name, "messages": messages, "tools": tools, "prompt": prompt}
                marked = "generation %}" in template
                try:
                    rendered, spans = render_jinja_template(
                        conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=prompt,
                        return_assistant_tokens_mask=marked, bos_token="<s>", eos_token="</s>")
                    case["text"] = rendered[0]
                    if marked:
                        # Offsets of characters; bytes are what the Rust side counts in.
                        text = rendered[0]
                        case["assistant"] = [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans[0]]
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    (OUT / "chat.json").write_text(json.dumps({"templates": TEMPLATES, "cases": cases}, ensure_ascii=True, indent=1) + "\n")


tokenizers()
chat()
