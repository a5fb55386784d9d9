#!/usr/bin/env python3
"""Tiny checkpoints of every family and what transformers says of them in true float64: families/{case}/

    pip install torch transformers peft safetensors numpy
    python3 families.py [--prove] [CASE..]      # every case where none is named

Each case is a model with random weights, none at a special value, saved by transformers, with two tasks as JSON lines (id,
input_ids, optional labels; or a label for a classifier). Written are

    expected.safetensors   `{task}/mean|m2/{parameter}` of g*g/T over samples; g is the gradient of the token-sum loss in
                           float64, stored as float32; named, shaped and tied as in model.safetensors
    expected.json          {task: {ids, tokens, loss_sum}}, and `zero`: the parameters whose gradient is 0 by construction
                           (the bias of K without rotary positions), where float64 leaves nothing but rounding

`--prove` prints for each case: operations that are not float64 (none), the largest relative error of the gradient next to
central differences of the loss, and that of plain float32 transformers' means (relative to each tensor's largest).
"""
import copy
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers.utils import logging
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from float64 import Watch, patched

HERE = pathlib.Path(__file__).parent / "families"
TASKS = ("alpha", "beta")
IGNORE = -100
SMALL = dict(vocab_size=23, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=32)


def rope(kind, theta=100.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | more}


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


NO_PAD = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
BASE = SMALL | rope("default") | NO_PAD
WIDE = BASE | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
HALF = BASE | {"num_attention_heads": 2, "num_key_value_heads": 2}
LLAMA = WIDE | {"model_type": "llama"}
ORIGINAL = {"original_max_position_embeddings": 8}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
GEMMA2 = WIDE | {"model_type": "gemma2", "query_pre_attn_scalar": 12, "sliding_window": 4, "attn_logit_softcapping": 3.0,
                 "final_logit_softcapping": 4.0}
GEMMA3 = without(WIDE, "rope_parameters") | {
    "model_type": "gemma3_text", "num_hidden_layers": 3, "query_pre_attn_scalar": 12, "sliding_window": 4, "layer_types": SLIDING}
PHI = HALF | rope("default", partial_rotary_factor=0.5) | {"model_type": "phi"}
PHI3 = BASE | {"model_type": "phi3", "tie_word_embeddings": False}
LONG = dict(short_factor=[1.0, 1.5, 2.0, 3.0], long_factor=[1.0, 3.0, 8.0, 16.0])
PHI3_LONG = PHI3 | {"num_attention_heads": 2, "num_key_value_heads": 1} | rope("longrope", **LONG)
NEOX = without(HALF, "num_key_value_heads") | {"model_type": "gpt_neox"}
STABLELM = HALF | rope("default", partial_rotary_factor=0.25) | {"model_type": "stablelm"}
OPT = without(SMALL, "intermediate_size", "num_key_value_heads") | NO_PAD | {"model_type": "opt", "ffn_dim": 12}
BLOOM = NO_PAD | {"model_type": "bloom", "vocab_size": 23, "hidden_size": 16, "n_layer": 2, "n_head": 4}
FALCON = without(BASE, "intermediate_size", "num_key_value_heads") | {"model_type": "falcon", "ffn_hidden_size": 12}
COHERE = BASE | {"model_type": "cohere", "logit_scale": 0.7}

# Positions, biases and windows of LLaMA's relatives.
CASES = {
    "llama-rope-llama3": LLAMA | rope("llama3", factor=8.0, low_freq_factor=0.25, high_freq_factor=1.25, **ORIGINAL),
    "llama-rope-linear": LLAMA | rope("linear", factor=4.0),
    "llama-rope-dynamic": LLAMA | rope("dynamic", factor=4.0),
    # Longer than max_position_embeddings: each sample turns by its own length.
    "llama-rope-dynamic-beyond": LLAMA | rope("dynamic", factor=4.0) | {"max_position_embeddings": 6},
    "llama-rope-yarn": LLAMA | rope("yarn", factor=4.0, beta_fast=2.0, beta_slow=0.25, **ORIGINAL),
    "llama-rope-yarn-attention": LLAMA | rope("yarn", factor=4.0, attention_factor=0.7, truncate=False, beta_fast=2.0,
                                              beta_slow=0.25, **ORIGINAL),
    "llama-rope-yarn-mscale": LLAMA | rope("yarn", factor=4.0, mscale=0.8, mscale_all_dim=0.5, **ORIGINAL),
    "llama-bias": LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
    "llama-lora": LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},  # the base of adapters.py
    "mistral-default-heads": without(WIDE, "num_key_value_heads") | {
        "model_type": "mistral", "num_attention_heads": 8, "head_dim": 4, "sliding_window": None,
        "absent": ["num_key_value_heads"]},
    "mistral-sliding": BASE | {"model_type": "mistral", "sliding_window": 4},
    "qwen2-sliding": BASE | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "num_hidden_layers": 3,
                             "max_window_layers": 1, "layer_types": SLIDING[::-1]},
    "qwen3": LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2} | {"model_type": "qwen3", "tie_word_embeddings": True},
}

# Other families of decoders.
CASES |= {
    "gemma": WIDE | {"model_type": "gemma"},
    "gemma2": GEMMA2,
    "gemma3": GEMMA3 | {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
                                            "full_attention": {"rope_type": "default", "rope_theta": 400.0}}},
    "gemma3-linear": GEMMA3 | {"final_logit_softcapping": 4.0, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 400.0, "factor": 4.0}}},
    "phi": PHI,
    "phi-norm": PHI | {"num_key_value_heads": 1, "qk_layernorm": True},
    "phi3": PHI3,
    "phi3-partial": PHI3 | rope("default", partial_rotary_factor=0.5) | {"num_attention_heads": 2, "sliding_window": 4},
    "phi3-longrope-short": PHI3_LONG | {"original_max_position_embeddings": 16},
    # Samples of at most 6 tokens turn by the short factors, the others by the long ones.
    "phi3-longrope-long": PHI3_LONG | {"original_max_position_embeddings": 6},
    "gpt_neox": NEOX | rope("default", partial_rotary_factor=0.25),
    "gpt_neox-sequential": NEOX | rope("default", partial_rotary_factor=0.5) | {"use_parallel_residual": False},
    "olmo": BASE | {"model_type": "olmo", "clip_qkv": 0.8},
    "olmo2": BASE | {"model_type": "olmo2"},
    "olmo3": BASE | {
        "model_type": "olmo3", "num_hidden_layers": 3, "sliding_window": 4, "layer_types": SLIDING, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.25} | ORIGINAL}},
    "smollm3": BASE | {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "granite": BASE | {"model_type": "granite", "embedding_multiplier": 3.0, "logits_scaling": 2.0,
                       "residual_multiplier": 0.4, "attention_multiplier": 0.3},
    "stablelm": STABLELM,
    "stablelm-parallel": STABLELM | {"num_key_value_heads": 1, "use_qkv_bias": True, "qk_layernorm": True,
                                     "use_parallel_residual": True},
    "starcoder2": BASE | {"model_type": "starcoder2", "sliding_window": 4},
    "gptj": NO_PAD | {"model_type": "gptj", "vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 12,
                      "n_positions": 32, "rotary_dim": 4},
    "opt": OPT,
    "opt-after": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 12},
    "bloom": BLOOM,
    "bloom-residual": BLOOM | {"apply_residual_connection_post_layernorm": True},
    "falcon-multi-query": FALCON,
    "falcon-new": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-new-one-norm": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-alibi": FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "cohere": COHERE,
    "cohere-norm": COHERE | {"use_qk_norm": True},
    "cohere2": COHERE | {"model_type": "cohere2", "num_hidden_layers": 3, "sliding_window": 4, "layer_types": SLIDING},
}

# Experts, at least one of which no token of a task reaches.
EXPERTS = BASE | {"seed": 0, "moe_intermediate_size": 6, "num_experts_per_tok": 2}
CASES |= {
    "mixtral": BASE | {"seed": 0, "model_type": "mixtral", "intermediate_size": 6, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": EXPERTS | {"model_type": "qwen2_moe", "num_experts": 6, "shared_expert_intermediate_size": 8},
    "qwen3_moe": EXPERTS | {"model_type": "qwen3_moe", "num_experts": 6, "norm_topk_prob": True, "mlp_only_layers": [0]},
}

# Encoders with a head that tells three classes apart.
ENCODER = without(BASE, "num_key_value_heads", "rope_parameters") | {"classes": 3}
CASES |= {
    "bert": ENCODER | {"model_type": "bert", "pad_token_id": 0},
    "roberta": ENCODER | {"model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": {"model_type": "distilbert", "vocab_size": 23, "dim": 16, "hidden_dim": 12, "n_layers": 2, "n_heads": 4,
                   "max_position_embeddings": 32, "pad_token_id": 0, "classes": 3},
    "electra": ENCODER | {"model_type": "electra", "pad_token_id": 0, "embedding_size": 8},
}

# transformers' eager attention of Falcon adds the biases of positions twice, its default does not.
ATTENTION = {"falcon-alibi": "sdpa"}


def auto(config):
    return AutoModelForSequenceClassification if config.architectures and "Sequence" in config.architectures[0] else AutoModelForCausalLM


def build(folder, model_type, seed, classes=0, absent=(), **fields):
    """Random weights, none of them at a special value, and two tasks."""
    config = AutoConfig.for_model(model_type, **copy.deepcopy(fields) | ({"num_labels": classes} if classes else {}))
    torch.manual_seed(seed)
    model = (AutoModelForSequenceClassification if classes else AutoModelForCausalLM).from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(p + 0.1 * noise if p.ndim == 1 or "norm" in name else 0.25 * noise)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in write.items() if k not in absent}, indent=1) + "\n")
    tasks(folder, config.get_text_config().vocab_size, seed, classes)


def tasks(folder, vocabulary, seed, classes):
    draw = np.random.default_rng(seed)
    for task in TASKS:
        # Not the first three: transformers gives the row of the padding token no gradient.
        low, high = (3, vocabulary * 2 // 3) if task == "alpha" else (vocabulary // 3, vocabulary)
        lines = []
        # One sample of each length class at least: shorter and longer than windows and original positions.
        for i, length in enumerate((12, int(draw.integers(5, 8)), 4, int(draw.integers(9, 12)))):
            ids = [int(t) for t in draw.integers(low, high, length)]
            row = {"id": f"{task[0]}{i}", "input_ids": ids}
            if classes:
                row["label"] = int(draw.integers(classes))
            elif i % 3 == 1:
                row["labels"] = [IGNORE] * 2 + ids[2:]
            lines.append(json.dumps(row) + "\n")
        (folder / f"{task}.jsonl").write_text("".join(lines))


def rows(folder, task):
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def loss_of(model, row):
    """Summed over active tokens, and their number; label t+1 belongs to logits t. A classifier's sample is one token."""
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
    if "label" in row:
        return torch.nn.functional.cross_entropy(logits, torch.tensor(row["label"])), 1
    target = torch.tensor(row.get("labels", row["input_ids"])[1:])
    loss = torch.nn.functional.cross_entropy(logits[:-1], target, ignore_index=IGNORE, reduction="sum")
    return loss, int((target != IGNORE).sum())


def gradient(model, row):
    # A copy, because some rotary embeddings remember the longest sequence they have seen.
    model = copy.deepcopy(model)
    loss, tokens = loss_of(model, row)
    loss.backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters() if p.requires_grad}
    return grads, loss.item(), tokens


def load(folder, dtype):
    config = AutoConfig.from_pretrained(folder)
    attention = ATTENTION.get(folder.name, "eager")
    return auto(config).from_pretrained(folder, dtype=dtype, attn_implementation=attention, experts_implementation="eager").eval()


def moments(model, folder):
    """Mean and M2 of g*g/T by task and parameter of the model, and what is said of the samples."""
    found, report = {}, {}
    for task in TASKS:
        results = [gradient(model, row) for row in rows(folder, task)]
        report[task] = {"ids": [row["id"] for row in rows(folder, task)], "tokens": [t for _, _, t in results],
                        "loss_sum": [loss for _, loss, _ in results]}
        for name in results[0][0]:
            stack = torch.stack([g[name] ** 2 / t for g, _, t in results])
            found[task, "mean", name] = stack.mean(0)
            found[task, "m2", name] = ((stack - stack.mean(0)) ** 2).sum(0)
    return found, report


def saved_names(model, values):
    """The values by the names and shapes that the model's parameters have in a saved file."""
    holder = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in holder.named_parameters():
            p.copy_(values[name])
    with tempfile.TemporaryDirectory() as folder:
        holder.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors")


def write(folder):
    load(folder, torch.float32)  # imports the modules that are patched
    with patched():
        model = load(folder, torch.float64)
        found, report = moments(model, folder)
    tensors, largest = {}, {}
    for task in TASKS:
        for kind in ("mean", "m2"):
            named = saved_names(model, {n: v for (t, k, n), v in found.items() if (t, k) == (task, kind)})
            for name, value in named.items():
                tensors[f"{task}/{kind}/{name}"] = value
                if kind == "mean":
                    largest[name] = max(largest.get(name, 0.0), float(value.max()))
    stored = load_file(folder / "model.safetensors")
    assert set(largest) == set(stored), (folder.name, set(largest) ^ set(stored))
    assert all(tensors[f"alpha/mean/{n}"].shape == v.shape for n, v in stored.items())
    report["zero"] = sorted(n for n, v in largest.items() if v < 1e-24 * max(largest.values()))
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in sorted(tensors.items())}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(report, indent=1) + "\n")
    return len(stored)


def prove(folder):
    plain, _ = moments(load(folder, torch.float32), folder)
    with patched():
        model = load(folder, torch.float64)
        exact, report = moments(model, folder)
        return verdict(folder.name, folder, model, folder, plain, exact, report)


def verdict(case, folder, model, samples, plain, exact, report):
    """Operations that are not float64, and the errors next to central differences and of float32: a line of the table."""
    watch = Watch()
    with watch:
        gradient(model, rows(samples, "alpha")[0])
    worst, draw, row = 0.0, np.random.default_rng(0), rows(samples, "beta")[1]
    grads, _, _ = gradient(model, row)
    largest = max(float(g.abs().max()) for g in grads.values())
    names = [n for n, g in grads.items() if float(g.abs().max()) > 1e-9 * largest]
    for name in draw.permutation(names)[:8]:
        flat = grads[name].flatten()
        index = int(draw.choice(torch.nonzero(flat.abs() >= flat.abs().max() / 3).flatten().numpy()))
        sides = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                dict(moved.named_parameters())[name].view(-1)[index] += step
                sides.append(loss_of(moved, row)[0].item())
        worst = max(worst, abs((sides[0] - sides[1]) / 2e-5 / flat[index].item() - 1))
    errors = [float((plain[key].double() - value).abs().max() / value.max()) for key, value in exact.items()
              if key[1] == "mean" and float(value.max()) > 1e-24 * largest**2]
    per_token = sum(report["alpha"]["loss_sum"]) / sum(report["alpha"]["tokens"])
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    line = f"| {case} | {len(watch.found)} | {worst:.1e} | {max(errors):.1e} | {per_token:.2f} | {size // 1024} |"
    return line, *sorted(watch.found)


def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    named = [a for a in sys.argv[1:] if not a.startswith("-")]
    print("| case | float32 operations | finite differences | float32 means | loss per token | KiB |\n|---|---|---|---|---|---|")
    for case, fields in CASES.items():
        if named and case not in named:
            continue
        folder = HERE / case
        folder.mkdir(parents=True, exist_ok=True)
        for file in filter(pathlib.Path.is_file, folder.iterdir()):
            file.unlink()
        build(folder, **{"seed": sum(map(ord, case))} | fields)
        write(folder)
        if "--prove" in sys.argv:
            print(*prove(folder), flush=True)


if __name__ == "__main__":
    main()
