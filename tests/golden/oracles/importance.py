#!/usr/bin/env python3
"""What may be said of F: effective samples, intervals, shares, ratios, in float64.

    pip install numpy scipy safetensors
    python3 importance.py ../llama-gqa ../gpt2-fused

Reads a case's gradients from expected.safetensors and writes expected-importance.json:

    {task}.{layers|heads}.{name}   mean, standard_error, effective, skewness; log and hall: 95 %
                                   intervals whatever the effective number is; elements, share,
                                   share_interval
    {task}.attention               the share of all heads
    {task}.ratios.{a}.{b}          log ratio of two layers and its standard error
    {task}.groups.{key}            the share of a group's elements, key `{parameter}|{label}`
    {task}.clustered.{layer}       mean, standard_error, effective, skewness where the first and the
                                   last two samples are a cluster each
    series                         the same numbers of a skewed series that a formula gives, and its share
                                   beside another

Heads are cut by plain indexing; shared key/value heads count in equal parts.
"""
import json
import pathlib
import re
import sys

import numpy as np
from safetensors.numpy import load_file
from scipy import stats

TASKS = ["alpha", "beta_two"]


def layer(path):
    numbered = re.match(r"(.*?\.\d+)\.", path)
    return numbered.group(1) if numbered else path.rsplit(".", 1)[0]


def heads(config, path, c):
    """(attention, head) -> the sum of what it has of this parameter."""
    leaf = path.split(".")[-2]
    if not path.endswith(".weight") or (".attn." not in path and ".self_attn." not in path):
        return {}
    attention = path.rsplit(".", 2)[0]
    if config["model_type"] == "gpt2":
        h = config["n_head"]
        d = config["n_embd"] // h
        if leaf == "c_proj":
            return {(attention, i): c[i * d : (i + 1) * d].sum() for i in range(h)}
        part = lambda b, i: c[:, (b * h + i) * d : (b * h + i + 1) * d].sum()
        return {(attention, i): sum(part(b, i) for b in range(3)) for i in range(h)}
    h, kv = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or config["hidden_size"] // h
    if leaf == "o_proj":
        return {(attention, i): c[:, i * d : (i + 1) * d].sum() for i in range(h)}
    if leaf == "q_proj":
        return {(attention, i): c[i * d : (i + 1) * d].sum() for i in range(h)}
    shared = h // kv
    return {(attention, i): c[i // shared * d : (i // shared + 1) * d].sum() / shared for i in range(h)}


def interval(mean, error, effective, g, n):
    t = stats.t.ppf(0.975, max(1, effective - 1))
    log = [mean * np.exp(-t * error / mean), mean * np.exp(t * error / mean)]
    r = np.sqrt(n)
    turned = lambda z: 3 * r / g * (np.cbrt(1 + g / r * (z - g / (6 * r))) - 1)
    hall = [max(0, mean - error * turned(t)), max(0, mean - error * turned(-t))]
    return {"log": log, "hall": hall}


def moments(x):
    n, mean = len(x), x.mean()
    s = x.std(ddof=1)
    error, effective = s / np.sqrt(n), x.sum() ** 2 / (x**2).sum()
    g = ((x - mean) ** 3).mean() / s**3
    return {"mean": mean, "standard_error": error, "effective": effective, "skewness": g} | interval(
        mean, error, effective, g, n
    )


def clustered(x, clusters):
    n, names = len(x), sorted(set(clusters))
    total = np.array([sum(x[i] for i in range(n) if clusters[i] == c) for c in names])
    size = np.array([clusters.count(c) for c in names])
    g, r = len(names), total - size * x.mean()
    return {
        "mean": x.mean(),
        "standard_error": np.sqrt(g / (g - 1) * (r**2).sum()) / n,
        "effective": total.sum() ** 2 / (total**2).sum(),
        "skewness": (r**3).mean() / ((r**2).sum() / (g - 1)) ** 1.5,
    }


def share(x, whole, effective):
    n, s = len(x), x.sum() / whole.sum()
    r = x - s * whole
    error = np.sqrt((r**2).sum() * n / (n - 1)) / (n * whole.mean())
    t = stats.t.ppf(0.975, max(1, effective - 1))
    odds = np.log(s / (1 - s)) + np.array([-1, 1]) * t * error / (s * (1 - s))
    return {"share": s, "share_interval": (1 / (1 + np.exp(-odds))).tolist()}


def write(folder):
    folder = pathlib.Path(folder)
    tensors = load_file(folder / "expected.safetensors")
    report = json.loads((folder / "expected.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    out = {}
    for task in TASKS:
        about = report["tasks"][task]
        layers, parts, sizes, groups = {}, {}, {}, {}
        for i, (sample, tokens) in enumerate(zip(about["ids"], about["tokens"])):
            prefix = f"{task}/gradient/{sample}/"
            for name in (n for n in tensors if n.startswith(prefix)):
                path, c = name[len(prefix) :], tensors[name] ** 2 / tokens
                layers.setdefault(layer(path), np.zeros(len(about["ids"])))[i] += c.sum()
                for (attention, head), value in heads(config, path, c).items():
                    key = f"{attention} head {head}"
                    parts.setdefault(key, np.zeros(len(about["ids"])))[i] += value
                if i == 0:
                    sizes[layer(path)] = sizes.get(layer(path), 0) + c.size
                    for (attention, head), value in heads(config, path, np.ones_like(c)).items():
                        key = f"{attention} head {head}"
                        sizes[key] = sizes.get(key, 0) + value
        whole = sum(layers.values())
        of = lambda all: {
            name: moments(x) | {"elements": sizes[name]} | share(x, whole, moments(x)["effective"])
            for name, x in all.items()
        }
        u = {name: x / x.mean() - 1 for name, x in layers.items()}
        n = len(whole)
        ratio = lambda a, b: [
            np.log(layers[a].mean() / layers[b].mean()),
            np.sqrt(n / (n - 1) * ((u[a] - u[b]) ** 2).sum()) / n,
        ]
        names = sorted(layers)
        # Sums over a parameter's groups: over all its elements, blocks of a fused one apart.
        for name in (k for k in tensors if k.startswith(f"{task}/group_mean/")):
            label, path = name[len(f"{task}/group_mean/") :].split("/", 1)
            elements = tensors[f"{task}/mean/{path}"].size
            labels = [k for k in tensors if k.startswith(f"{task}/group_mean/") and k.endswith(f"/{path}")]
            each = elements / sum(tensors[k].size for k in labels)
            groups[f"{path}|{label}"] = tensors[name].sum() * each
        total = sum(groups.values())
        first_and_last = [0, 0] + list(range(1, n - 3)) + [n - 3] * 2
        out[task] = {
            "layers": of(layers),
            "heads": of(parts),
            "attention": sum(parts.values()).sum() / whole.sum(),
            "ratios": {a: {b: ratio(a, b) for b in names if a != b} for a in names},
            "groups": {key: value / total for key, value in groups.items()},
            "clustered": {name: clustered(x, first_and_last) for name, x in layers.items()},
        }
    series = np.exp(2 * np.sin(np.arange(64.0) ** 2))
    rest = 1 + np.cos(np.arange(64.0)) + series / 2
    of_series = moments(series)
    out["series"] = of_series | share(series, series + rest, of_series["effective"])
    (folder / "expected-importance.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        write(folder)
