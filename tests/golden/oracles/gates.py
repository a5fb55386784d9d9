#!/usr/bin/env python3
"""Gates of the golden cases, in float64.

    python3 oracles/gates.py [folder ..]      # llama-gqa and gpt2-fused beside this folder when none is given

From the gradients `{task}/gradient/{id}/{parameter}` of a case's expected.safetensors and the weights of its
model.safetensors this writes

    expected-gates.json   {task}.{kind}.{name}: first_order, fisher and predicted, one a gate,

kind being layer, head (slices of O), kv_head (slices of V, with their bias) and channel (outputs with their bias), name
what the gates lie in. With u_i the sum of gradient times weight over a gate's elements, first_order is mean u_i / T_i, fisher
mean u_i^2 / T_i and predicted -first_order + fisher / 2. Slices are cut here with plain indexing.
"""
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file


def layer_of(name):
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: at + 1])
    return ".".join(parts[:-1])


def attention_of(name):
    return name.rsplit(".", 2)[0]


def gates(config, weights):
    """(kind, name) -> list of gates, each a list of (parameter, boolean mask)."""
    found, gpt2 = {}, config["model_type"] == "gpt2"
    mask = lambda name: np.zeros(weights[name].shape, bool)

    def slices(name, axis, runs):
        out = []
        for start, stop in runs:
            m = mask(name)
            m[(slice(None),) * axis + (slice(start, stop),)] = True
            out.append([(name, m)])
        return out

    for name in weights:
        found.setdefault(("layer", layer_of(name)), [[]])[0].append((name, ~mask(name)))
    attention = [n for n in weights if n.endswith(".weight") and (".attn." in n or ".self_attn." in n)]
    for name in attention:
        leaf = name.split(".")[-2]
        if gpt2 and leaf == "c_proj":
            h = config["n_head"]
            d = weights[name].shape[0] // h
            found["head", attention_of(name)] = slices(name, 0, [(i * d, (i + 1) * d) for i in range(h)])
        if leaf == "o_proj":
            h = config["num_attention_heads"]
            d = weights[name].shape[1] // h
            found["head", attention_of(name)] = slices(name, 1, [(i * d, (i + 1) * d) for i in range(h)])
        if leaf == "v_proj" and config["num_key_value_heads"] < config["num_attention_heads"]:
            h = config["num_key_value_heads"]
            d = weights[name].shape[0] // h
            found["kv_head", attention_of(name)] = slices(name, 0, [(i * d, (i + 1) * d) for i in range(h)])
    for name, w in weights.items():
        table = any(word in name for word in ("embed_tokens", "wte", "wpe"))
        if w.ndim < 2 or table or name in attention:
            continue
        axis = 1 if gpt2 and "lm_head" not in name else 0
        of = slices(name, axis, [(j, j + 1) for j in range(w.shape[axis])])
        bias = name.removesuffix("weight") + "bias"
        for j, gate in enumerate(of):
            if bias in weights:
                m = mask(bias)
                m[j] = True
                gate.append((bias, m))
        found["channel", name] = of
    return found


def write(folder):
    expected = load_file(folder / "expected.safetensors")
    tasks = json.loads((folder / "expected.json").read_text())["tasks"]
    config = json.loads((folder / "config.json").read_text())
    names = sorted({key.split("/", 2)[2] for key in expected if key.startswith("alpha/mean/")})
    stored = load_file(folder / "model.safetensors")
    weights = {name: stored[name].astype(float) for name in names}
    out = {}
    for task, about in tasks.items():
        of_task = out.setdefault(task, {})
        tokens = np.array(about["tokens"], float)
        products = [{name: expected[f"{task}/gradient/{i}/{name}"] * weights[name] for name in names} for i in about["ids"]]
        for (kind, name), of in gates(config, weights).items():
            u = np.array([[sum(p[n][m].sum() for n, m in gate) for gate in of] for p in products])
            m, f = (u / tokens[:, None]).mean(0), (u**2 / tokens[:, None]).mean(0)
            of_task.setdefault(kind, {})[name] = {
                "first_order": m.tolist(), "fisher": f.tolist(), "predicted": (f / 2 - m).tolist()}
    (folder / "expected-gates.json").write_text(json.dumps(out, indent=None) + "\n")


if __name__ == "__main__":
    golden = pathlib.Path(__file__).parent.parent
    for folder in map(pathlib.Path, sys.argv[1:] or [golden / "llama-gqa", golden / "gpt2-fused"]):
        write(folder)
