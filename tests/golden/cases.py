#!/usr/bin/env python3
"""The checkpoints and tasks of the cases that this project adds; then run regenerate.py.

    pip install torch transformers safetensors numpy
    python3 cases.py [CASE..]

Each is a tiny model with random weights of an architecture that differs in something: one key/value
head for all queries and heads wider than hidden / heads, with biases everywhere (llama-mqa; positions turn fast, or float32 could not tell the gradient of the biases of K from 0); biases
on Q, K and V and an output head that is the embedding (qwen2-tied); a sliding window, and weights in
two files (mistral-sharded).
"""
import json
import pathlib
import random
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

CASES = {
    "llama-mqa": dict(
        model_type="llama", vocab_size=19, hidden_size=12, intermediate_size=10, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, head_dim=6, max_position_embeddings=24, rms_norm_eps=1e-6,
        attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 20.0}),
    "qwen2-tied": dict(
        model_type="qwen2", vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=24, rms_norm_eps=1e-6,
        tie_word_embeddings=True),
    "mistral-sharded": dict(
        model_type="mistral", vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=6, max_position_embeddings=24, sliding_window=16,
        rms_norm_eps=1e-5),
}


def weights(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * (0.1 if p.ndim == 1 else 0.3))
    return model


def tasks(folder, vocabulary, seed):
    """Samples of 5 to 9 tokens; the second of each task has a prompt that does not count."""
    draw = random.Random(seed)
    for name, count, low in (("alpha", 4, 0), ("beta_two", 3, vocabulary // 3)):
        lines = []
        for i in range(count):
            tokens = [draw.randrange(low, low + 2 * vocabulary // 3) for _ in range(draw.randrange(5, 10))]
            row = {"id": f"{name[0]}{i}", "input_ids": tokens}
            if i == 1:
                row["labels"] = [-100] * 3 + tokens[3:]
            lines.append(json.dumps(row))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def shard(folder):
    """Two files, by turns, and their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::2]}
        save_file(part, folder / file, {"format": "pt"})
        places |= {name: file for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1) + "\n")


for seed, (name, kwargs) in enumerate(CASES.items()):
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    folder = pathlib.Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    kwargs = dict(kwargs)
    config = AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    weights(config, 100 + seed).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    tasks(folder, config.vocab_size, 200 + seed)
    if name.endswith("sharded"):
        shard(folder)
