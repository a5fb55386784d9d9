"""Fishers of other kinds than the empirical one, in float64, written apart from the library.

For each task and kind `expected-kinds.json` holds, by parameter in the checkpoint's orientation, the trace
sum_k F_k and the probe sum_k F_k (1 + cos k) / 2 over elements k in their order, so that no element may be in
another's place:

    exact         mean_i sum_t sum_y p_ty g_ty^2 / T_i over the classes y at every active position t
    monte_carlo   mean_i (1/K) sum_k g_ik^2 / T_i over the `draws` given: labels of every sample and draw
    token_level   mean_t g_t^2 over the active tokens of all samples
    centred       mean_i (u_i - u)^2, u_i = g_i / sqrt(T_i)
    centred_raw   mean_i (g_i - g)^2

    python3 -m oracles.kinds                # every case, from tests/golden
"""
import json
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM

TASKS, IGNORE, DRAWS = ["alpha", "beta_two"], -100, 3


def samples(path):
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield str(row["id"]), row["input_ids"], row.get("labels", row["input_ids"])


def gradients(model, output):
    found = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
    return [g.detach().numpy() for g in found]


def numbers(names, fisher):
    def both(f):
        flat = f.ravel()
        return [flat.sum(), flat @ (1 + np.cos(np.arange(len(flat)))) / 2]
    return {name: both(f) for name, f in zip(names, fisher)}


def mean(rows):
    return [np.mean(of, axis=0) for of in zip(*rows)]


def task(model, path, rng):
    names = [name for name, _ in model.named_parameters()]
    exact, drawn, tokens, means, sums, draws = [], [], [], [], [], {}
    for sample, inputs, labels in samples(path):
        log_p = torch.log_softmax(model(torch.tensor([inputs])).logits[0, :-1].double(), 1)
        active = [(t, y) for t, y in enumerate(labels[1:]) if y != IGNORE]
        count = len(active)
        of_sample = [np.zeros(tuple(p.shape)) for p in model.parameters()]
        for t, _ in active:
            p = log_p[t].detach().exp().numpy()
            for y in range(len(p)):
                for total, g in zip(of_sample, gradients(model, -log_p[t, y])):
                    total += p[y] * g**2 / count
        exact.append(of_sample)
        rows = []
        draws[sample] = []
        for _ in range(DRAWS):
            p = {t: log_p[t].detach().exp().numpy() for t, _ in active}
            labelled = {t: int(rng.choice(len(p[t]), p=p[t])) for t, _ in active}
            draws[sample].append([labels[0]] + [labelled.get(t, IGNORE) for t in range(len(labels) - 1)])
            rows.append([g**2 / count for g in gradients(model, -sum(log_p[t, y] for t, y in labelled.items()))])
        drawn.append(mean(rows))
        tokens += [[g**2 for g in gradients(model, -log_p[t, y])] for t, y in active]
        g = gradients(model, -sum(log_p[t, y] for t, y in active))
        sums.append(g)
        means.append([of / np.sqrt(count) for of in g])
    variance = lambda rows: [np.var(np.stack(of), axis=0) for of in zip(*rows)]
    fishers = {"exact": mean(exact), "monte_carlo": mean(drawn), "token_level": mean(tokens),
               "centred": variance(means), "centred_raw": variance(sums)}
    return {"draws": draws, "tokens": len(tokens)} | {kind: numbers(names, f) for kind, f in fishers.items()}


def write(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    rng = np.random.default_rng(8)
    report = {name: task(model, folder / f"{name}.jsonl", rng) for name in TASKS}
    (folder / "expected-kinds.json").write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    for case in ("llama-gqa", "gpt2-fused"):
        write(pathlib.Path(__file__).resolve().parents[1] / case)
