#!/usr/bin/env python3
"""LoRA adapters, saved by peft, on families/llama-lora, and their Fisher in float64: families/llama-lora/adapters/{case}/

    pip install torch transformers peft safetensors numpy
    python3 families.py llama-lora && python3 adapters.py [--prove]

Beside adapter_config.json and adapter_model.safetensors are written

    expected.safetensors   `{task}/mean|m2/{parameter}` of g*g/T, of A and B alone, named as in adapter_model.safetensors, and
                           `merged/{task}/mean|m2/{parameter}` of all weights of the merged model, named as in the base;
                           of two of them, `weight/{parameter}` of the merged model too
    expected.json          {task: {ids, tokens, loss_sum}}, the same for both
"""
import json
import shutil
import sys

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers.utils import logging

import families
from float64 import Watch, patched

BASE = families.HERE / "llama-lora"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "query-value": dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"]),
    "rslora": dict(r=4, lora_alpha=6, target_modules=LINEAR, use_rslora=True,
                   rank_pattern={"down_proj": 2, "layers.1.self_attn.v_proj": 3}, alpha_pattern={"q_proj": 10}),
}


def build(folder, seed, **fields):
    torch.manual_seed(seed)
    model = get_peft_model(families.load(BASE, torch.float32), LoraConfig(task_type="CAUSAL_LM", bias="none", **fields))
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(0.25 * torch.randn(p.shape))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "../.."}
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1) + "\n")


def adapted(folder, dtype):
    return PeftModel.from_pretrained(families.load(BASE, dtype), folder, is_trainable=True).to(dtype).eval()


def saved(name):
    return name.replace(".default.", ".")


def write(folder):
    with patched():
        model = adapted(folder, torch.float64)
        own, report = families.moments(model, BASE)
        merged = model.merge_and_unload().requires_grad_(True)
        whole, same = families.moments(merged, BASE)
        weights = {n: p.detach().numpy() for n, p in merged.named_parameters()}
    assert np.allclose(report["beta"]["loss_sum"], same["beta"]["loss_sum"], rtol=1e-12)
    tensors = {f"{task}/{kind}/{saved(name)}": v.numpy() for (task, kind, name), v in own.items()}
    assert {key.split("/")[2] for key in tensors} == set(load_file(folder / "adapter_model.safetensors"))
    assert {name for _, _, name in whole} == set(load_file(BASE / "model.safetensors"))
    tensors |= {f"merged/{task}/{kind}/{name}": v.numpy() for (task, kind, name), v in whole.items()}
    tensors |= {f"weight/{n}": weights[n] for n in weights if "layers.1.self_attn.v" in n or "layers.0.mlp.down" in n}
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in sorted(tensors.items())}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(report, indent=1) + "\n")


def prove(folder):
    plain, _ = families.moments(adapted(folder, torch.float32), BASE)
    with patched():
        model = adapted(folder, torch.float64)
        exact, report = families.moments(model, BASE)
        return families.verdict(f"lora-{folder.name}", folder, model, BASE, plain, exact, report)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for seed, (case, fields) in enumerate(CASES.items()):
        folder = BASE / "adapters" / case
        shutil.rmtree(folder, ignore_errors=True)
        build(folder, seed, **fields)
        write(folder)
        if "--prove" in sys.argv:
            print(*prove(folder))
