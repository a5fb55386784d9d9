#!/usr/bin/env python3
"""Float64 reference numbers for the golden tests.

    pip install torch transformers safetensors numpy scipy
    python3 regenerate.py                  # every case beside this file

Each case is a tiny Hugging Face checkpoint (config.json, model.safetensors) with two tasks as
JSON lines (id, input_ids, optional labels). From them this writes

    expected.safetensors   gradients `{task}/gradient/{id}/{parameter}` of the token-sum loss,
                           `{task}/mean|m2/{parameter}` of g*g/T over samples, and
                           `{task}/group_mean|group_m2/{label}/{parameter}` of the default groups;
                           `scaled/{power}/{damping}/{parameter}`: alpha's first gradient by its F;
                           `merged/{parameter}`: with a second model, every weight 0.01 further
                           from zero, by F of alpha and beta_two;
                           `interference/{settings}/{block}` [alpha, beta_two, layers, heads], the
                           settings `default` or `key=value,..`
    expected.json          per task: ids, tokens, loss_sum; importance (total, top = [key, index,
                           F, share], per_key_share), masks ({scope}@{sparsity} -> key -> bits,
                           1 = keep), obd_unstructured@0.5 (matrices; kept, predicted_increase);
                           overlap of the two tasks' masks; ewc by parameter (lambda 1, away
                           by the second model). A key is `{parameter}|{label}`.
                           health.{block}.{layer}.{head} of the default settings

in the checkpoint's own orientation: Linear [out, in], GPT-2's Conv1D [in, out]. Head and channel
slices are cut here with plain indexing, independent of the library's plans. What may be said of
these numbers, and other kinds of them, is written by oracles/ to expected-{topic}.json, of two cases
(scipy is needed too).
"""
import importlib
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

TASKS = ["alpha", "beta_two"]
IGNORE = -100


def samples(path):
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield row["id"], row["input_ids"], row.get("labels", row["input_ids"])


def gradient(model, tokens, labels):
    """Gradients, loss and active tokens of one sample; label t+1 belongs to logits t."""
    logits = model(torch.tensor([tokens])).logits[0, :-1].double()
    target = torch.tensor(labels[1:])
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    model.zero_grad()
    loss.backward()
    grads = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    return grads, loss.item(), int((target != IGNORE).sum())


def head_slices(config, name):
    """Block -> list of (axis, start, stop), one per head; empty for other parameters."""
    leaf = name.split(".")[-2]
    if not name.endswith(".weight") or ".attn." not in name and ".self_attn." not in name:
        return {}
    if config.model_type == "gpt2":
        h, d = config.n_head, config.n_embd // config.n_head
        run = lambda offset: [(1, (offset + i) * d, (offset + i + 1) * d) for i in range(h)]
        if leaf == "c_attn":
            return {"Q": run(0), "K": run(h), "V": run(2 * h)}
        return {"O": [(0, i * d, (i + 1) * d) for i in range(h)]}
    h, kv = config.num_attention_heads, config.num_key_value_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // h
    block = {"q_proj": "Q", "k_proj": "K", "v_proj": "V", "o_proj": "O"}[leaf]
    axis, count = (1, h) if block == "O" else (0, h if block == "Q" else kv)
    return {block: [(axis, i * d, (i + 1) * d) for i in range(count)]}


def groups(config, name, c):
    heads = head_slices(config, name)
    if heads:
        cut = lambda axis, start, stop: np.take(c, range(start, stop), axis)
        return {f"head.{b}": np.array([cut(*s).mean() for s in slices]) for b, slices in heads.items()}
    if c.ndim == 1:
        return {"element": c}
    if any(word in name for word in ("embed_tokens", "wte", "wpe")):
        return {"row": c.mean(1)}
    conv1d = config.model_type == "gpt2" and "lm_head" not in name
    return {"channel": c.mean(0 if conv1d else 1)}


def moments(values):
    stack = np.stack(values)
    return stack.mean(0), ((stack - stack.mean(0)) ** 2).sum(0)


def order(scores):
    """(score, key, index) from first to last rank: falling score, then key, then index."""
    flat = [(-v, key, i) for key, values in scores.items() for i, v in enumerate(values.tolist())]
    return sorted(flat)


def importance(scores, sizes):
    """Shares are of sums over elements: of what a group's elements have together."""
    sums = {key: values * sizes[key] for key, values in scores.items()}
    total = sum(values.sum() for values in sums.values())
    top = [[key, i, -v, sums[key][i] / total] for v, key, i in order(scores)[:20]]
    return {"total": total, "top": top, "per_key_share": {k: v.sum() / total for k, v in sums.items()}}


def prune(scores, sparsity, scope):
    """Key -> array of 0 and 1; exactly floor(sparsity * N) zeros in each unit of the scope."""
    keep = {key: np.ones(len(values), int) for key, values in scores.items()}
    units = [scores] if scope == "global" else [{key: values} for key, values in scores.items()]
    for unit in units:
        ranking = order(unit)
        for _, key, i in ranking[len(ranking) - int(sparsity * len(ranking)) :]:
            keep[key][i] = 0
    return keep


def compare(a, b):
    n, both = len(a), int((a * b).sum())
    only_a, only_b = int(a.sum()) - both, int(b.sum()) - both
    ka, kb, union = both + only_a, both + only_b, both + only_a + only_b
    chance = (ka * kb + (n - ka) * (n - kb)) / n**2
    agree = (n - only_a - only_b) / n
    return {
        "n": n, "both": both, "only_a": only_a, "only_b": only_b,
        "jaccard": both / union if union else None,
        "intersection_over_n": both / n,
        "overlap_coefficient": both / min(ka, kb) if min(ka, kb) else None,
        "expected_intersection": ka * kb / n,
        "kappa": (agree - chance) / (1 - chance) if chance < 1 else None,
    }


EPSILON, RIDGE, RIDGE_REL = 1e-12, 1e-12, 1e-6


def ridge(f, least=RIDGE, relative=RIDGE_REL):
    return max(least, relative * np.median(f))


def damped(f, **kwargs):
    return np.maximum(f, EPSILON) + ridge(f, **kwargs)


SETTINGS = [
    {}, {"aggregate": "sum"}, {"variant": "signed"}, {"variant": "symmetric", "pool": "pooled"},
    {"variant": "natural"}, {"pool": "B"}, {"pool": "pooled"}, {"estimate": "leave_one_out"},
    {"normalize": "per_token_mean"}, {"normalize": "per_token_sum"}, {"ridge": 0.0, "ridge_rel": 0.01},
    {"variant": "signed", "pool": "pooled", "estimate": "leave_one_out", "aggregate": "sum"},
    {"variant": "full"}, {"variant": "full", "pool": "B", "ridge_rel": 0.01},
    {"variant": "full", "pool": "pooled", "estimate": "leave_one_out", "ridge_rel": 0.01},
    {"variant": "full", "estimate": "leave_one_out", "ridge_rel": 0.01},
]


def scores(a, t_a, b, t_b, variant="unsigned", pool="A", estimate="all", aggregate="mean", normalize="none",
           ridge=RIDGE, ridge_rel=RIDGE_REL):
    """[n_a, n_b] of one slice; a and b are [samples, elements]."""
    lam = {"least": ridge, "relative": ridge_rel}
    c_a, c_b = a**2 / t_a[:, None], b**2 / t_b[:, None]
    weight = {"none": np.ones(len(b)), "per_token_mean": 1 / t_b, "per_token_sum": np.ones(len(b)) / t_b.sum()}[normalize]
    out = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        left = np.arange(len(a)) != i if estimate == "leave_one_out" else np.ones(len(a), bool)
        pools = {"A": [(a[left], t_a[left])], "B": [(b, t_b)], "pooled": [(a[left], t_a[left]), (b, t_b)]}[pool]
        f = np.mean([(g**2 / t[:, None]).mean(0) for g, t in pools], axis=0)
        if variant == "full":
            full = np.mean([(g / t[:, None]).T @ g / len(g) for g, t in pools], axis=0)
            # Relative to the mean of the eigenvalues that the samples make.
            count = sum(len(g) for g, _ in pools)
            full += max(ridge, ridge_rel * np.trace(full) / count) * np.eye(len(f))
            out[i] = b @ np.linalg.solve(full, a[i]) * weight
        else:
            d = damped(f, **lam)
            out[i] = {
                "unsigned": lambda: abs(b) @ (c_a[i] / d) * weight,
                "signed": lambda: b @ (a[i] / d) * weight,
                "symmetric": lambda: np.sqrt(c_b) @ (np.sqrt(c_a[i]) / d),
                "natural": lambda: abs(b) @ (c_a[i] / d**1.5) * weight,
            }[variant]()
    return out / (a.shape[1] if aggregate == "mean" else 1)


def slices(config, gradients, block, layer):
    """[samples, elements] of the block's every head slice, shared ones once."""
    found = []
    for name in gradients[0]:
        cut = head_slices(config, name).get(block)
        if cut and f".{layer}." in name:
            for axis, start, stop in cut:
                found.append(np.stack([np.take(g[name], range(start, stop), axis).ravel() for g in gradients]))
    return found


def interference(config, a, t_a, b, t_b):
    layers = config.num_hidden_layers
    heads = config.num_attention_heads
    tensors, health = {}, {}
    for block in "QKVO":
        cut = [(slices(config, a, block, layer), slices(config, b, block, layer)) for layer in range(layers)]
        for settings in SETTINGS:
            name = ",".join(f"{k}={v}" for k, v in settings.items()) or "default"
            grid = np.zeros((len(a), len(b), layers, heads))
            for layer, (of_a, of_b) in enumerate(cut):
                for h in range(heads):
                    unit = h * len(of_a) // heads
                    grid[:, :, layer, h] = scores(of_a[unit], t_a, of_b[unit], t_b, **settings)
            tensors[f"interference/{name}/{block}"] = grid
        for layer, (of_a, of_b) in enumerate(cut):
            for h in range(heads):
                f = (of_a[h * len(of_a) // heads] ** 2 / t_a[:, None]).mean(0)
                health[f"{block}.{layer}.{h}"] = {
                    "min": f.min(), "median": np.median(f), "max": f.max(),
                    "fraction_below_epsilon": (f < EPSILON).mean(), "ridge_lambda_applied": ridge(f)}
    return tensors, health


def bits(mask):
    return {key: "".join(map(str, values)) for key, values in mask.items()}


def regenerate(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tensors, report, masks, raw = {}, {}, {}, {}
    for task in TASKS:
        ids, grads, losses, tokens = [], [], [], []
        for sample, inputs, labels in samples(folder / f"{task}.jsonl"):
            g, loss, count = gradient(model, inputs, labels)
            ids, grads = ids + [sample], grads + [g]
            losses, tokens = losses + [loss], tokens + [count]
        report[task] = {"ids": ids, "tokens": tokens, "loss_sum": losses}
        raw[task] = (grads, np.array(tokens, float))
        scores, sizes = {}, {}
        for name in grads[0]:
            for sample, g in zip(ids, grads):
                tensors[f"{task}/gradient/{sample}/{name}"] = g[name]
            contributions = [g[name] ** 2 / t for g, t in zip(grads, tokens)]
            tensors[f"{task}/mean/{name}"], tensors[f"{task}/m2/{name}"] = moments(contributions)
            per_sample = [groups(model.config, name, c) for c in contributions]
            for label in per_sample[0]:
                mean, m2 = moments([g[label] for g in per_sample])
                tensors[f"{task}/group_mean/{label}/{name}"] = mean
                tensors[f"{task}/group_m2/{label}/{name}"] = m2
                scores[f"{name}|{label}"] = mean
                # Groups of a parameter, blocks of a fused one too, are of one size.
                sizes[f"{name}|{label}"] = grads[0][name].size / (len(mean) * len(per_sample[0]))
        grid = [(scope, s) for scope in ("global", "tensor") for s in (0.5, 0.7, 0.9)]
        masks[task] = {f"{scope}@{s}": prune(scores, s, scope) for scope, s in grid}
        brain = {name: (0.5 * tensors[f"{task}/mean/{name}"] * w**2).ravel()
                 for name, w in weights.items() if w.ndim == 2}
        kept = prune(brain, 0.5, "global")
        report[task]["importance"] = importance(scores, sizes)
        report[task]["masks"] = {key: bits(mask) for key, mask in masks[task].items()}
        report[task]["obd_unstructured@0.5"] = {
            "kept": {name: int(mask.sum()) for name, mask in kept.items()},
            "predicted_increase": sum(brain[name][mask == 0].sum() for name, mask in kept.items())}
    overlap = {}
    for key, a in masks["alpha"].items():
        b = masks["beta_two"][key]
        join = lambda mask: np.concatenate([mask[k] for k in sorted(mask)])
        overlap[key] = {"all": compare(join(a), join(b)), **{k: compare(a[k], b[k]) for k in a}}
    ewc = {}
    for name, w in weights.items():
        f_a, f_b = (tensors[f"{task}/mean/{name}"] for task in TASKS)
        first = tensors[f"alpha/gradient/{report['alpha']['ids'][0]}/{name}"]
        for power, damping in ((1.0, 1e-3), (0.5, 1e-6)):
            tensors[f"scaled/{power}/{damping}/{name}"] = first / (f_a + damping) ** power
        other = w + 0.01 * np.sign(w)
        p, q = f_a + 1e-12, f_b + 1e-12
        tensors[f"merged/{name}"] = (p * w + q * other) / (p + q)
        ewc[name] = (f_a * (other - w) ** 2).sum() / 2
    (a, t_a), (b, t_b) = (raw[task] for task in TASKS)
    grids, health = interference(model.config, a, t_a, b, t_b)
    tensors |= grids
    report = {"tasks": report, "overlap": overlap, "ewc": ewc, "health": health}
    arrays = {k: np.ascontiguousarray(v, np.float64) for k, v in sorted(tensors.items())}
    save_file(arrays, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{folder.name}: {len(tensors)} tensors")


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    for config in sorted(here.glob("*/config.json")):
        regenerate(config.parent)
    sys.path.insert(0, str(here / "oracles"))
    for oracle in ("importance", "conflicts", "interference", "overlap", "gates", "kinds"):
        for case in ("llama-gqa", "gpt2-fused"):
            importlib.import_module(oracle).write(here / case)
