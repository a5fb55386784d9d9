#!/usr/bin/env python3
"""Whether ranks that `fisher plan --rank` chose train better than one rank for all, on the model of trained.py and a language it has not seen.

    pip install torch transformers peft
    python3 trained_lora.py FOLDER data                        # FOLDER/python.jsonl, to measure on; python-{train,held}.jsonl
    fisher measure --model FOLDER --task python=FOLDER/python.jsonl --out RUN
    fisher plan --run RUN --rank 2 --params 'layers' --out plan.json
    python3 trained_lora.py FOLDER train plan.json [PLAN.json..]   # held-out loss of each plan less that of the uniform one

Plans are trained from the same seeds, on the same batches, with the learning rate that was best for the uniform one.
"""
import json
import pathlib
import random
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from trained import chunks, pieces

SEEDS, STEPS, BATCH = 5, 120, 16
RATES = (3e-3, 1e-2, 3e-2)


def data(folder):
    parts = chunks(pathlib.Path(__file__).resolve().parents[2], "*.py")
    draw = random.Random(1)
    for name, some, count in (("python", parts[0::3], 96), ("python-train", parts[1::3], 1024), ("python-held", parts[2::3], 96)):
        rows = pieces(some, count, draw)
        lines = (json.dumps({"id": f"{name}-{i}", "input_ids": row}) for i, row in enumerate(rows))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def read(folder, name):
    return torch.tensor([json.loads(line)["input_ids"] for line in (folder / f"{name}.jsonl").read_text().splitlines()])


def losses(model, ids):
    """Mean loss of each sample."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


def trained(folder, train, held, ranks, rank, rate, seed):
    """Held-out losses after a few steps."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(ranks), rank_pattern=ranks, alpha_pattern=ranks, bias="none")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        ids = train[torch.randint(len(train), (BATCH,), generator=order)]
        loss = model(input_ids=ids, labels=ids).loss
        steps.zero_grad()
        loss.backward()
        steps.step()
    return losses(model, held), sum(p.numel() for p in parameters)


def main():
    folder, what, *plans = sys.argv[1:]
    folder = pathlib.Path(folder)
    if what == "data":
        return data(folder)
    train, held = read(folder, "python-train"), read(folder, "python-held")
    plans = {path: json.loads(pathlib.Path(path).read_text()) for path in plans}
    first = next(iter(plans.values()))
    rank = int(first["budget"])
    uniform = {name: rank for name in first["peft"]["rank_pattern"]}
    run = lambda ranks, rate, seed: trained(folder, train, held, ranks, rank, rate, seed)
    rates = {rate: run(uniform, rate, 100)[0].mean().item() for rate in RATES}
    rate = min(rates, key=rates.get)
    print("learning rates of the uniform one, a seed apart:", rates)
    base = losses(LlamaForCausalLM.from_pretrained(folder), held).mean().item()
    same = [run(uniform, rate, seed) for seed in range(SEEDS)]
    mean = torch.stack([loss for loss, _ in same]).mean().item()
    print(f"before {base:.4f}, uniform rank {rank} ({same[0][1]} parameters) {mean:.4f} nats a token")
    for path, plan in plans.items():
        ranks = plan["peft"]["rank_pattern"]
        own = [run(ranks, rate, seed) for seed in range(SEEDS)]
        less = torch.stack([a - b for (a, _), (b, _) in zip(own, same)])
        seeds = less.mean(1)
        # Seeds are the replicates of training.
        error = (seeds.std() / SEEDS ** 0.5).item()
        print(f"{path} ({own[0][1]} parameters): {less.mean().item():+.4f} +- {2.776 * error:.4f} (95 %, {SEEDS} seeds), each",
              [round(x, 4) for x in seeds.tolist()])


if __name__ == "__main__":
    main()
