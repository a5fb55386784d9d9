#!/usr/bin/env python3
"""The signs of the mean scores of golden cases, in float64.

    pip install numpy scipy safetensors
    python3 interference.py                # llama-gqa and gpt2-fused beside this folder

From expected.safetensors this writes expected-interference.json: by variant and `{block}.{layer}.{unit}`
(a head, or a shared key/value head) the mean over all pairs, its standard error, t, skewness, degrees of
freedom, p_low, p_high, q (Benjamini-Hochberg over all cells), the interval at `level` and the verdict at
q <= 0.05. The full variant's errors are those of its scores without one row or column after the other; the
signed variant's, of scores that are made again, with F of what is left, from the gradients.

Nothing here is the library's formula: samples are left out one after the other, and the correction
for skewness is taken back by bisection.
"""
import json
import pathlib

import numpy as np
from safetensors.numpy import load_file
from scipy.optimize import brentq
from scipy.stats import t as student

ALPHA = 0.05
EPSILON, RIDGE, RIDGE_REL = 1e-12, 1e-12, 1e-6


def test(value, without_a, without_b):
    """Of a statistic's value, and what it is without each sample of either task."""
    variance, third, mean = 0.0, 0.0, value
    for without in map(np.array, (without_a, without_b)):
        n = len(without)
        mean += (n - 1) * (value - without.mean())
        moved = (n - 1) / n * (without.mean() - without)
        variance += n / (n - 1) * (moved**2).sum()
        third += n**2 / ((n - 1) * (n - 2)) * (moved**3).sum() if n > 2 else 0.0
    error = np.sqrt(variance)
    g, t, df = third / error**3, mean / error, min(len(without_a), len(without_b)) - 1
    hall = lambda t: t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6
    return {
        "mean": mean, "standard_error": error, "t": t, "skewness": g, "degrees": df,
        "p_low": max(student.cdf(t, df), student.cdf(hall(t), df)),
        "p_high": max(student.sf(t, df), student.sf(hall(t), df)),
    }, hall


def block_test(block):
    n, m = block.shape
    return test(block.mean(), [np.delete(block, i, 0).mean() for i in range(n)],
                [np.delete(block, j, 1).mean() for j in range(m)])


def signed_test(a, t_a, b, t_b):
    """Of the mean of sum_k a_ik b_jk / D(F_A)_k over elements and pairs."""
    damping = max(RIDGE, RIDGE_REL * np.median((a**2 / t_a[:, None]).mean(0)))

    def value(a, t_a, b):
        scale = np.maximum((a**2 / t_a[:, None]).mean(0), EPSILON) + damping
        return (a / scale @ b.T).mean() / a.shape[1]

    return test(value(a, t_a, b), [value(np.delete(a, i, 0), np.delete(t_a, i), b) for i in range(len(a))],
                [value(a, t_a, np.delete(b, j, 0)) for j in range(len(b))])


def cut(config, gradient, block, layer, unit, units):
    """The elements of a head of a block, Linear as [out, in] and Conv1D as [in, out]."""
    if "n_head" in config:
        h, at = f"transformer.h.{layer}.attn", config["n_embd"] // config["n_head"]
        own = slice(unit * at, (unit + 1) * at)
        if block == "O":
            return gradient(f"{h}.c_proj.weight")[own].ravel()
        wide = "QKV".index(block) * config["n_embd"]
        return gradient(f"{h}.c_attn.weight")[:, wide + unit * at : wide + (unit + 1) * at].ravel()
    whole = gradient(f"model.layers.{layer}.self_attn.{block.lower()}_proj.weight")
    whole = whole.T if block == "O" else whole
    return whole.reshape(units, -1, whole.shape[1])[unit].ravel()


def interval(cell, hall, level):
    q = student.ppf(0.5 + level / 2, cell["degrees"])
    far = 1e9 * (1 + q)
    up, down = (brentq(lambda t: hall(t) - q, -far, far, xtol=1e-13, rtol=1e-13) for q in (q, -q))
    return [cell["mean"] - cell["standard_error"] * max(q, up), cell["mean"] - cell["standard_error"] * min(-q, down)]


def signs(tensors, config, tasks, variant):
    heads = config.get("num_attention_heads") or config["n_head"]
    kv = config.get("num_key_value_heads") or heads
    cells = {}
    for block in "QKVO":
        grid = tensors[f"interference/variant={variant}/{block}"]
        units = kv if block in "KV" else heads
        for layer in range(grid.shape[2]):
            for unit in range(units):
                scores = grid[:, :, layer, unit * heads // units]
                if variant == "signed":
                    rows = [np.stack([cut(config, lambda name: tensors[f"{task}/gradient/{sample}/{name}"], block,
                                          layer, unit, units) for sample in of["ids"]]) for task, of in tasks.items()]
                    tokens = [np.array(of["tokens"], float) for of in tasks.values()]
                    cell = signed_test(rows[0], tokens[0], rows[1], tokens[1])
                else:
                    cell = block_test(scores)
                cells[f"{block}.{layer}.{unit}"] = cell
    p = {key: min(1, 2 * min(cell["p_low"], cell["p_high"])) for key, (cell, _) in cells.items()}
    rank = lambda value: sum(other <= value for other in p.values())
    q = {key: min([1] + [len(p) * o / rank(o) for o in p.values() if o >= own]) for key, own in p.items()}
    selected = sum(value <= ALPHA for value in q.values())
    level = 1 - ALPHA * max(selected, 1) / len(p)
    found = {}
    for key, (cell, hall) in cells.items():
        sign = "conflict" if cell["mean"] < 0 else "synergy"
        found[key] = cell | {"p": p[key], "q": q[key], "level": level, "interval": interval(cell, hall, level),
                             "verdict": sign if q[key] <= ALPHA else "unresolved"}
    return found


def write(folder):
    tensors = load_file(folder / "expected.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tasks = json.loads((folder / "expected.json").read_text())["tasks"]
    found = {variant: signs(tensors, config, tasks, variant) for variant in ("signed", "full")}
    (folder / "expected-interference.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    for case in ("llama-gqa", "gpt2-fused"):
        write(pathlib.Path(__file__).parent.parent / case)
