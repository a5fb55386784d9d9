#!/usr/bin/env python3
"""The diagonal of the empirical Fisher, mean of g*g/T by parameter and task, in plain PyTorch and with Bergson: seconds and memory.

    pip install torch transformers safetensors bergson          # bergson for its way alone
    python3 docs/real_model.py .. && python3 docs/peers.py smollm2 smollm2-tasks [--samples 48] [--batch 4] [--threads 1] [WAY..]

loop     one backward pass a sample; every parameter
hooks    batches of samples; gradients of each sample from the inputs and output gradients of its layers; every parameter
bergson  Bergson keeps no diagonal of its own: its collector's gradients of each sample, squared and added, of the matrices
         between embedding and head (it sees no norm and no embedding, and takes the head's gradient of a tied one alone)

Each way runs in a process of its own. Seconds are those of the passes alone, without loading; peak is the process's resident
set. At the end the largest difference from the loop is told, relative to each parameter's largest value.
"""
import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

WAYS = ("loop", "hooks", "bergson")
IGNORE = -100


def batches(path, samples, size):
    """Padded ids and labels; right padding changes nothing before it in a causal model."""
    rows = [json.loads(line)["input_ids"] for line in path.read_text().splitlines()][:samples]
    for start in range(0, len(rows), size):
        part = rows[start:start + size]
        longest = max(map(len, part))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        labels = torch.tensor([row[1:] + [IGNORE] * (longest - len(row)) for row in part])
        yield ids, labels


def loss_of(model, ids, labels):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def by_loop(model, path, options):
    mean, n = {name: torch.zeros_like(p) for name, p in model.named_parameters()}, 0
    for ids, labels in batches(path, options.samples, 1):
        model.zero_grad()
        loss_of(model, ids, labels).backward()
        tokens, n = int((labels != IGNORE).sum()), n + 1
        for name, p in model.named_parameters():
            mean[name].addcmul_(p.grad, p.grad, value=1 / tokens)
    return {name: total.div_(n) for name, total in mean.items()}


def by_hooks(model, path, options):
    names = {module: name for name, module in model.named_modules()}
    mean, seen, n = {name: torch.zeros_like(p) for name, p in model.named_parameters()}, {}, 0
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head.weight is embedding.weight
    tokens = None

    def add(name, gradient, i):
        mean[name].addcmul_(gradient, gradient, value=1 / tokens[i])

    def linear(module, a, d):
        for i in range(len(a)):
            add(names[module] + ".weight", d[i].T @ a[i], i)

    def norm(module, a, d):
        unit = a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        for i, gradient in enumerate((d * unit).sum(1)):
            add(names[module] + ".weight", gradient, i)

    def tied(ids, d_embedding):
        a, d = seen[head]
        for i in range(len(ids)):
            add(names[embedding] + ".weight", (d[i].T @ a[i]).index_add_(0, ids[i], d_embedding[i]), i)

    def listen(module, inputs, output):
        a = inputs[0].detach()
        if module is embedding:
            output.requires_grad_(True).register_hook(lambda d: tied(a, d))
        elif module is head:
            output.register_hook(lambda d: seen.update({head: (a, d)}))
        else:
            output.register_hook(lambda d: (linear if isinstance(module, torch.nn.Linear) else norm)(module, a, d))

    for module in names:
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) or type(module).__name__.endswith("RMSNorm"):
            module.register_forward_hook(listen)
    for p in model.parameters():
        p.requires_grad_(False)
    for ids, labels in batches(path, options.samples, options.batch):
        tokens, n = (labels != IGNORE).sum(1).tolist(), n + len(ids)
        loss_of(model, ids, labels).backward()
    for module in names:
        module._forward_hooks.clear()
    return {name: total.div_(n) for name, total in mean.items()}


def by_bergson(model, path, options):
    from bergson.collector.collector import HookCollectorBase

    class Diagonal(HookCollectorBase):
        def setup(self):
            self.mean = {name: torch.zeros(shape) for name, (_, shape, _) in self.target_info.items()}

        def process_batch(self, indices, **_):
            pass

        def teardown(self):
            pass

        def backward_hook(self, module, g):
            gradients = self._materialize_gradient(self._module_gradient(module, g)).view(len(g), *self.mean[module._name].shape)
            self.mean[module._name].add_((gradients.square() / self.tokens[:, None, None]).sum(0))

    collector, n = Diagonal(model=model, filter_modules="lm_head"), 0
    for p in model.parameters():
        p.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)  # or no gradient would flow
    for ids, labels in batches(path, options.samples, options.batch):
        collector.tokens, n = (labels != IGNORE).sum(1), n + len(ids)
        with collector.with_batch(None):
            loss_of(model, ids, labels).backward()
        model.zero_grad()
    return {name + ".weight": total.div_(n) for name, total in collector.mean.items()}


def measure(way, options):
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    out, tokens = {}, 0
    clock, cpu = time.perf_counter(), time.process_time()
    for task in sorted(pathlib.Path(options.tasks).glob("*.jsonl")):
        tokens += sum(ids.numel() for ids, _ in batches(task, options.samples, 1))
        found = {"loop": by_loop, "hooks": by_hooks, "bergson": by_bergson}[way](model, task, options)
        out |= {f"{task.stem}/{name}": value for name, value in found.items()}
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{way}: {clock:.1f} s, {cpu:.1f} s of CPU, {tokens / clock:.0f} tokens/s, peak {peak:.2f} GiB", flush=True)
    save_file(out, options.write)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tasks")
    parser.add_argument("ways", nargs="*", default=WAYS)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return measure(options.ways[0], options)
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        for way in options.ways:
            file = f"{folder}/{way}.safetensors"
            common = [f"--{k}={getattr(options, k)}" for k in ("samples", "batch", "threads")]
            subprocess.run([sys.executable, __file__, options.model, options.tasks, way, "--write", file, *common], check=True)
            found = load_file(file)
            if reference is None:
                reference = found
            else:
                worst = max(float((value - reference[name]).abs().max() / reference[name].max()) for name, value in found.items())
                print(f"{way}: {len(found)} tensors, largest difference from {options.ways[0]} {worst:.1e}", flush=True)


if __name__ == "__main__":
    main()
