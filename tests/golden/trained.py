#!/usr/bin/env python3
"""A small LLaMA that has learnt something, for what random weights cannot show: plans of bits and ranks.

    pip install torch transformers
    python3 trained.py FOLDER [--steps 600]

Bytes of this repository's own files: prose (*.md) and code (*.rs). Every fifth chunk of 4 kB is not trained on.
FOLDER gets config.json and model.safetensors, `{task}.jsonl` (96 samples of 64 bytes to measure on, from chunks that were not
trained on), and `{task}-held.jsonl` (96 samples of other such chunks, to look how well a plan does). Seeded; not the same to the bit
on every machine. Nothing of it is committed.
"""
import argparse
import json
import pathlib
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH, CHUNK = 64, 4096
TASKS = {"prose": "*.md", "code": "*.rs"}


def chunks(root, pattern):
    files = sorted(p for p in root.rglob(pattern) if "target" not in p.parts)
    data = b"".join(p.read_bytes() for p in files)
    return [data[i:i + CHUNK] for i in range(0, len(data) - CHUNK, CHUNK)]


def pieces(parts, count, draw):
    """Samples of chunks, as many from each."""
    parts = list(parts)
    for i in range(count):
        part = parts[i % len(parts)]
        start = draw.randrange(len(part) - LENGTH)
        yield list(part[start:start + LENGTH])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    root = pathlib.Path(__file__).resolve().parents[2]
    torch.manual_seed(0)
    draw = random.Random(0)
    train = []
    for task, pattern in TASKS.items():
        parts = chunks(root, pattern)
        train.append([part for i, part in enumerate(parts) if i % 5 != 4])
        aside = parts[4::5]
        for name, some in ((task, aside[::2]), (f"{task}-held", aside[1::2])):
            rows = pieces(some, 96, draw)
            lines = (json.dumps({"id": f"{name}-{i}", "input_ids": row}) for i, row in enumerate(rows))
            (options.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = LlamaConfig(
        vocab_size=256, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=None)
    model = LlamaForCausalLM(config)
    steps = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(steps, 4e-3, total_steps=options.steps)
    for step in range(options.steps):
        rows = [row for parts in train for row in pieces(draw.sample(parts, 8), 8, draw)]
        ids = torch.tensor(rows)
        loss = model(input_ids=ids, labels=ids).loss
        steps.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(step, round(loss.item(), 3), flush=True)
    model.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
