"""Tokens of texts, completions and chats as transformers makes them, for small tokenizers made here.

Writes golden/tokens/{name}/ with tokenizer.json, tokenizer_config.json and chat_template.jinja as
save_pretrained leaves them, and expected.json:

    texts        text -> ids
    completions  prompt, completion -> ids, labels: where only the completion counts
    chats        messages -> text, ids, labels: where only what the assistant says counts

Labels are found here by characters, and those of chats by what the templates are known to write, not by
rendering beginnings. Needs transformers, tokenizers and jinja2: python3 tests/golden/tokens.py
"""

import collections
import json
import math
import pathlib

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent / "tokens"

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "a prompt ends here; the answer begins there",
    "what is two and two? two and two is four.",
    "Über Straßen und Brücken: naïve café, coöperation",
    "system user assistant INST you are a helpful thing",
    "one two three four five six seven eight nine ten",
] * 4

TEXTS = [
    "the cat sat on the mat",
    " a space before and behind ",
    "two  spaces,\ttabs\nand lines\n",
    "naïve café \U0001f980 日本",
    "<s> and </s> written out",
    "x",
    "",
]

COMPLETIONS = [
    ("the cat", " sat on the mat"),
    ("the cat ", "sat on the mat"),
    ("the c", "at sat"),
    ("", "the cat sat"),
    ("what is two?\n", "four"),
    ("Br", "ücken \U0001f980"),
    ("\U0001f980", "\U0001f980"),
    ("two  ", "  spaces"),
    ("<s>", "the dog"),
    ("the dog", ""),
]

CHATS = [
    [("user", "what is two and two?"), ("assistant", "four")],
    [
        ("system", "you are a helpful thing"),
        ("user", "the cat"),
        ("assistant", "sat on the mat"),
        ("user", "and the dog?"),
        ("assistant", "café \U0001f980 on the log"),
    ],
]

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message['role'] == 'assistant' %}
    {% generation %}{{ message['content'].strip() }}<|im_end|>{% endgeneration %}
    {%- else %}{{ message.content | trim + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}
{%- for message in loop_messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}
{%- if loop.index0 == 0 and system is not false %}{% set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}
{%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

TOOLS = """{{ bos_token }}{% if tools %}{{ tools | tojson }}|{{ tools | tojson(indent=2) }}
{% endif %}{% set ns = namespace(users=0) %}{% for message in messages %}{% if message.role == 'user' %}{% set ns.users = ns.users + 1 %}[{{ ns.users }}] {{ message.content }}
{% elif message.role == 'assistant' %}{% if message.tool_calls is defined %}{% for call in message.tool_calls %}<{{ call.function.name }} {{ call.function.arguments | tojson }}>{% endfor %}{% else %}{{ message['content'].split('</think>')[-1].lstrip() }}{% endif %}{{ eos_token }}
{% endif %}{% endfor %}"""


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["</s>", "<s>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def metaspace(scheme, model):
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    if model == "unigram":
        # Not trained: the trainer breaks ties another way each time.
        counts = collections.Counter()
        for word in " ".join(CORPUS).split():
            word = "▁" + word
            counts.update(word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1))
        kept = {piece: n for piece, n in counts.items() if len(piece) == 1 or n > 8}
        pieces = [(piece, math.log(n * len(piece) / 1000)) for piece, n in sorted(kept.items())]
        tokenizer = Tokenizer(models.Unigram([(s, 0.0) for s in special] + pieces, unk_id=0))
        tokenizer.add_special_tokens(special)
        trainer = None
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    if scheme == "prepended":
        # As older LLaMAs have it.
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if model == "bpe":
        tokenizer.train_from_iterator(CORPUS, trainer)
        # The bytes are no special tokens: texts must not be cut at them.
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


def template(tokenizer, text):
    special = [(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=special)
    return tokenizer


def cases():
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    plain = byte_level()
    yield "bytes", plain, {}, special, CHATML
    yield "bytes-eos", template(byte_level(), "$A </s>"), {}, special, None
    yield "bytes-config", byte_level(), {"add_bos_token": True, "add_eos_token": True}, special, None
    yield "unigram-first", template(metaspace("first", "unigram"), "<s> $A"), {}, special, LLAMA2
    yield "bpe-always", template(metaspace("always", "bpe"), "<s> $A </s>"), {}, special, TOOLS
    yield "bpe-prepended", template(metaspace("prepended", "bpe"), "<s> $A"), {}, special, LLAMA2


def encode(tokenizer, text, special):
    out = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    return out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], tokenizer


def added(ids, offsets, tokenizer):
    """How many tokens the template put before and behind: those that come without it are inside."""
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    full = tokenizer("x", add_special_tokens=True)["input_ids"]
    at = next(i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return at, len(full) - len(bare) - at


def completion(tokenizer, prompt, text):
    ids, offsets, _, _ = encode(tokenizer, prompt + text, True)
    before, behind = added(ids, offsets, tokenizer)
    labels = []
    for at, (token, (_, end)) in enumerate(zip(ids, offsets)):
        if at < before:
            counts = prompt == ""
        elif at >= len(ids) - behind:
            counts = True
        else:
            counts = prompt == "" or end > len(prompt)
        labels.append(token if counts else -100)
    return {"prompt": prompt, "completion": text, "ids": ids, "labels": labels}


def answers(name, messages):
    """What the assistant says, as the templates write it."""
    for message in messages:
        if message["role"] == "assistant":
            content = message.get("content", "")
            if "tool_calls" in message:
                calls = [c["function"] for c in message["tool_calls"]]
                yield "".join(f"<{c['name']} {json.dumps(c['arguments'])}>" for c in calls) + "</s>"
            elif name == "bytes":
                yield content.strip() + "<|im_end|>"
            elif name == "bpe-always":
                yield content.split("</think>")[-1].lstrip() + "</s>"
            else:
                yield " " + content.strip() + " </s>"


def chat(name, tokenizer, messages, tools=None):
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    ids = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False)
    again, offsets, _, _ = encode(tokenizer, text, False)
    assert ids == again
    labels, place = [-100] * len(ids), 0
    for answer in answers(name, messages):
        start = text.index(answer, place)
        place = start + len(answer)
        for at, (from_, to) in enumerate(offsets):
            if to > start and from_ < place:
                labels[at] = ids[at]
    line = {"messages": messages} | ({"tools": tools} if tools else {})
    return {"line": line, "text": text, "ids": ids, "labels": labels}


def lines(expected):
    """JSON with a line for each text."""
    parts = []
    for key, rows in expected.items():
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        parts.append(f"{json.dumps(key)}: [\n{rows}\n]" if rows else f"{json.dumps(key)}: []")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(name, tokenizer, settings, special, chats):
    folder = HERE / name
    made = tokenizer.to_str(pretty=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    if chats:
        fast.chat_template = chats
    fast.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(made)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings, indent=2) + "\n")
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = {"texts": [{"text": t, "ids": fast(t)["input_ids"]} for t in TEXTS]}
    expected["completions"] = [completion(fast, *both) for both in COMPLETIONS]
    expected["chats"] = []
    if chats:
        for turns in CHATS:
            messages = [{"role": role, "content": content} for role, content in turns]
            expected["chats"].append(chat(name, fast, messages))
    if name == "bpe-always":
        tools = [{"type": "function", "function": {"name": "add", "about": "a < b & 'ü'", "b": [], "a": {}}}]
        call = {"type": "function", "function": {"name": "add", "arguments": {"y": 2, "x": 1.5, "last": None}}}
        messages = [
            {"role": "user", "content": "two and two?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "user", "content": "what is it?"},
            {"role": "assistant", "content": "<think>two</think> four"},
        ]
        expected["chats"].append(chat(name, fast, messages, tools))
    (folder / "expected.json").write_text(lines(expected))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {len(fast)} tokens, {size / 1000:.0f} kB, {sorted(p.name for p in folder.iterdir())}")


if __name__ == "__main__":
    for case in cases():
        write(*case)
