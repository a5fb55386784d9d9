#!/usr/bin/env python3
"""Agreement of masks beyond chance within each tensor, and of halves of tasks, in float64.

    pip install numpy safetensors
    python3 overlap.py                     # llama-gqa and gpt2-fused beside this folder

From the masks of expected.json and the gradients of expected.safetensors this writes
expected-overlap.json:

    stratified    by {scope}@{sparsity}: kappa of both tasks' masks of groups, chance within each tensor
    halves        by scope, of masks of single elements at sparsity 0.5, every task's samples cut after
                  the first floor(n/2): kappa within [alpha, beta_two], across, relative, and the
                  Jaccard index of the same

Kappa is counted element by element, and chance by every pair of a kept and a dropped share.
"""
import json
import pathlib

import numpy as np
from safetensors.numpy import load_file

TASKS = ("alpha", "beta_two")


def agreement(a, b):
    """Stratified kappa and Jaccard index of two {tensor: 0/1 array}."""
    total = sum(len(mask) for mask in a.values())
    same = sum(np.equal(a[key], b[key]).sum() for key in a) / total
    chance = 0.0
    for key in a:
        for side in (0, 1):
            chance += len(a[key]) / total * np.mean(a[key] == side) * np.mean(b[key] == side)
    both = sum(np.logical_and(a[key], b[key]).sum() for key in a)
    either = sum(np.logical_or(a[key], b[key]).sum() for key in a)
    return (same - chance) / (1 - chance) if chance < 1 else None, both / either if either else None


def lowest_out(scores, sparsity, scope):
    keep = {key: np.ones(len(values), int) for key, values in scores.items()}
    for unit in [list(scores)] if scope == "global" else [[key] for key in scores]:
        # The lowest first; of equals the later path and element first.
        order = sorted((scores[key][i], -at, -i) for at, key in enumerate(sorted(unit)) for i in range(len(scores[key])))
        for _, at, i in order[: int(sparsity * len(order) + 1e-9)]:
            keep[sorted(unit)[-at]][-i] = 0
    return keep


def halves(tensors, tasks):
    sides = []
    for task in TASKS:
        ids, tokens = tasks[task]["ids"], tasks[task]["tokens"]
        names = [key.removeprefix(f"{task}/mean/") for key in tensors if key.startswith(f"{task}/mean/")]
        middle = len(ids) // 2
        for which in (range(middle), range(middle, len(ids))):
            gradient = lambda i, name: tensors[f"{task}/gradient/{ids[i]}/{name}"].ravel()
            sides.append({name: np.mean([gradient(i, name) ** 2 / tokens[i] for i in which], 0) for name in names})
    found = {}
    for scope in ("global", "tensor"):
        a, a2, b, b2 = (lowest_out(scores, 0.5, scope) for scores in sides)
        of_a, of_b = agreement(a, a2), agreement(b, b2)
        across = np.mean([agreement(x, y) for x in (a, a2) for y in (b, b2)], 0)
        found[scope] = {"within": [of_a[0], of_b[0]], "jaccard_within": [of_a[1], of_b[1]], "across": across[0],
                        "jaccard_across": across[1], "relative": across[0] / np.sqrt(of_a[0] * of_b[0])}
    return found


def write(folder):
    tasks = json.loads((folder / "expected.json").read_text())["tasks"]
    masks = [{at: {key: np.array(list(map(int, bits))) for key, bits in mask.items()}
              for at, mask in tasks[task]["masks"].items()} for task in TASKS]
    stratified = {at: agreement(masks[0][at], masks[1][at])[0] for at in masks[0]}
    found = {"stratified": stratified, "halves": halves(load_file(folder / "expected.safetensors"), tasks)}
    (folder / "expected-overlap.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    for case in ("llama-gqa", "gpt2-fused"):
        write(pathlib.Path(__file__).parent.parent / case)
