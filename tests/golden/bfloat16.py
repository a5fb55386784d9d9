#!/usr/bin/env python3
"""How far the Fisher moves when PyTorch computes in bfloat16: what tests of `--dtype bfloat16` are held against.

    python3 bfloat16.py [CASE..]        # folders of families/; needs torch and transformers

The weights are cut to bfloat16 first, in both computations, so that only the arithmetic differs. Printed is the distance of
F of all elements between bfloat16 and float32, as a part of the norm of the latter, over the samples of alpha.jsonl.
"""
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

FAMILIES = pathlib.Path(__file__).parent / "families"
CASES = ["llama-rope-llama3", "gemma2", "gpt_neox", "bloom", "olmo2", "phi3"]


def fisher(case, dtype):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES / case, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p.view(torch.int32) & -65536).view(torch.float32))
    model = model.to(dtype)
    rows = [json.loads(line) for line in open(FAMILIES / case / "alpha.jsonl")]
    total = 0
    for row in rows:
        labels = torch.tensor(row.get("labels") or row["input_ids"])[1:]
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1].float()
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").backward()
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters()])
        total = total + gradient * gradient / (labels != -100).sum()
    return total / len(rows)


for case in sys.argv[1:] or CASES:
    single, half = fisher(case, torch.float32), fisher(case, torch.bfloat16)
    print(f"{case}: {float((single - half).norm() / single.norm()):.4f}")
