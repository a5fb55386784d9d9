#!/usr/bin/env python3
"""What transformers takes where a config.json leaves a field out, and config.json as transformers 4 wrote it.

    pip install transformers && python3 defaults.py

families/defaults.json   {model_type: {field: value}} of the fields that change a forward pass. A field that follows from others
                         has null and its rule in `derived`; found by building the class with other sizes, not by reading it.
families/older.json      {case: config.json} in the older form (rope_theta, rope_scaling, torch_dtype, ..); each was loaded by
                         transformers and gives the config of the case.
"""
import json

from transformers import AutoConfig

from families import CASES, HERE

TYPES = sorted({case["model_type"] for case in CASES.values()} | {"gpt2"})
NOISE = ("token_id", "dropout", "pdrop", "drop_", "init", "summary_", "use_cache", "output_", "return_dict", "dtype", "architectures",
         "transformers_version", "id2label", "label2id", "problem_type", "chunk_size", "_name_or_path", "router_aux", "jitter",
         "is_encoder_decoder", "layerdrop", "model_type")
SIZES = {"hidden_size": 96, "n_embd": 96, "dim": 96, "num_attention_heads": 6, "n_head": 6, "n_heads": 6,
         "num_hidden_layers": 8, "n_layer": 8, "max_position_embeddings": 64}


def fields(model_type, **given):
    config = AutoConfig.for_model(model_type, **given).to_dict()
    return {k: v for k, v in config.items() if not any(word in k for word in NOISE)}


def defaults(model_type):
    plain = fields(model_type)
    given = {k: v for k, v in SIZES.items() if k in plain}
    moved = fields(model_type, **given)
    derived = sorted(k for k in plain if k not in given and plain[k] != moved[k])
    shown = {k: None if k in derived else v for k, v in sorted(plain.items())}
    return shown | ({"derived": {k: {"plain": plain[k], "given": given, "is": moved[k]} for k in derived}} if derived else {})


def older(config):
    """The form of transformers 4, or none where it had no way to say it."""
    config = {k: v for k, v in config.items() if k not in ("dtype", "transformers_version")} | {"torch_dtype": "float32"}
    rope = config.pop("rope_parameters", None)
    if not rope:
        return None
    kind = config["model_type"]
    if "full_attention" in rope:
        if kind != "gemma3_text":
            return None
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    rope = dict(rope)
    neox = kind == "gpt_neox"
    config["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["rotary_pct" if neox else "partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return config


def same(a, b):
    drop = ("dtype", "transformers_version", "partial_rotary_factor", "rope_local_base_freq", "rope_theta", "rotary_pct", "rotary_emb_base")
    clean = lambda c: {k: v for k, v in c.to_dict().items() if k not in drop}
    return clean(a) == clean(b)


def main():
    table = {model_type: defaults(model_type) for model_type in TYPES}
    (HERE / "defaults.json").write_text(json.dumps(table, indent=1) + "\n")
    forms = {}
    for case in CASES:
        config = json.loads((HERE / case / "config.json").read_text())
        old = older(config)
        if old:
            ours, theirs = (AutoConfig.for_model(**json.loads(json.dumps(c))) for c in (config, old))
            assert same(ours, theirs), (case, ours, theirs)
            forms[case] = old
    (HERE / "older.json").write_text(json.dumps(forms, indent=1) + "\n")
    for model_type, row in table.items():
        print(model_type, {k: (v["plain"], v["is"]) if not isinstance(v["plain"], list) else (v["plain"][:7], v["is"]) for k, v in row.get("derived", {}).items()})
    print(len(forms), "older forms")


if __name__ == "__main__":
    main()
