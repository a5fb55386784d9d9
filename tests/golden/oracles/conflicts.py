"""Conflicts between the samples of two tasks, in float64, from the golden gradients.

    python3 conflicts.py ../llama-gqa ../gpt2-fused

writes expected-conflicts.json beside expected.json: for raw and for whitened gradients

    slices.{parameter}   what SliceConflicts holds of every parameter
    together             the mean gradients over all parameters
    lengths              Mann and Whitney's p of the active tokens

Everything is done the long way round: relabellings are listed, the jackknife leaves out one sample at a
time, the mirror counts at every threshold. Only distribution functions are scipy's.
"""
import itertools
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file
from scipy import stats

# So few samples can only be called at a level at which half may be false.
ALPHA, FLOOR, LEVEL = 0.5, 0.1, 0.95  # the level is that of inner products


def step_up(p):
    """q-values of Benjamini and Hochberg."""
    p = np.asarray(p)
    return [min([1.0] + [v * len(p) / (p <= v).sum() for v in p if v >= mine]) for mine in p]


def relabelled(cosine, n):
    """Cross mean less half the within means, and the share of all relabellings as low."""
    every = range(len(cosine))

    def statistic(a):
        b = [i for i in every if i not in a]
        mean = lambda x, y: np.mean([cosine[i, j] for i in x for j in y if i != j])
        return mean(a, b) - (mean(a, a) + mean(b, b)) / 2

    observed = statistic(list(range(n)))
    all_of_them = [statistic(list(a)) for a in itertools.combinations(every, n)]
    return observed, float(np.mean([t <= observed + 1e-12 for t in all_of_them]))


def sign(cross):
    """The two-sample jackknife t of the mean, with Hall's transformation beside it."""
    n_a, n_b = cross.shape
    rows, columns = cross.mean(1), cross.mean(0)
    mean = cross.mean()
    error = np.sqrt(rows.var(ddof=1) / n_a + columns.var(ddof=1) / n_b)
    third = lambda x: stats.skew(x, bias=True) * x.std() ** 3 * len(x) ** 2 / ((len(x) - 1) * (len(x) - 2)) if len(x) > 2 else 0.0
    skewness = (third(rows) / n_a**2 + third(columns) / n_b**2) / error**3
    t, degrees = mean / error, min(n_a, n_b) - 1
    hall = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
    inverse = lambda z: 3 / skewness * (np.cbrt(1 + skewness * (z - skewness / 6)) - 1)

    def interval(low, high):
        """Ends that are one-sided bounds of these levels."""
        z, y = stats.t.ppf(low, degrees), stats.t.ppf(high, degrees)
        return [mean - error * max(z, inverse(z)), mean - error * min(-y, inverse(-y))]

    found = {
        "mean": mean, "standard_error": error, "t": t, "skewness": skewness, "degrees": degrees,
        "p_low": max(stats.t.cdf(x, degrees) for x in (t, hall)),
        "p_high": max(stats.t.sf(x, degrees) for x in (t, hall)),
        "level": LEVEL, "interval": interval((1 + LEVEL) / 2, (1 + LEVEL) / 2),
    }
    return found, interval


def mirror(cross):
    """q of every pair, before the slices are compared, and the calls."""
    sizes = sorted({abs(c) for c in cross.ravel() if abs(c) >= FLOOR})
    rate = {t: (1 + (cross >= t).sum()) / max(1, (cross <= -t).sum()) for t in sizes}
    q = lambda c: min([1.0] + [rate[t] for t in sizes if t <= -c]) if c <= -FLOOR else 1.0
    return np.array([[q(c) for c in row] for row in cross])


def called(cross):
    """How many pairs the mirror calls: the largest set whose rate is at most alpha."""
    sizes = sorted({abs(c) for c in cross.ravel() if abs(c) >= FLOOR})
    fits = [t for t in sizes if (1 + (cross >= t).sum()) / max(1, (cross <= -t).sum()) <= ALPHA]
    return (cross <= -min(fits)).sum() if fits else 0


def flipped(cross):
    """The share of ways to choose the signs of one task's samples that call as many; the worse of both."""
    observed = called(cross)
    if observed == 0:
        return 1.0
    share = lambda m: np.mean([called(m * np.array(s)[:, None]) >= observed for s in itertools.product([1, -1], repeat=len(m))])
    return float(max(share(cross), share(cross.T)))


def mean_gradients(gram, n_a):
    """Inner product and unbiased cosine of mean gradients, with errors by leaving out one sample."""

    def cosine(a, b):
        norm = lambda x: np.mean([gram[i, j] for i in x for j in x if i != j]) if len(x) > 1 else np.nan
        inner, u, v = gram[np.ix_(a, b)].mean(), norm(a), norm(b)
        return inner / np.sqrt(u * v) if u > 0 and v > 0 else None

    a, b = list(range(n_a)), list(range(n_a, len(gram)))
    found = {"inner": sign(gram[:n_a, n_a:])[0], "cosine": None}
    if cosine(a, b) is not None:
        without = [[cosine([i for i in a if i != k], b) for k in a], [cosine(a, [i for i in b if i != k]) for k in b]]
        defined = all(x is not None for side in without for x in side)
        error = np.sqrt(sum((len(x) - 1) * np.var(x) for x in without)) if defined else None
        found["cosine"] = {"value": cosine(a, b), "standard_error": error}
    return found


def write(folder):
    folder = pathlib.Path(folder)
    tensors = load_file(folder / "expected.safetensors")
    tasks = json.loads((folder / "expected.json").read_text())["tasks"]
    parameters = [name.removeprefix("alpha/mean/") for name in tensors if name.startswith("alpha/mean/")]
    n_a = len(tasks["alpha"]["ids"])
    tokens = np.array(tasks["alpha"]["tokens"] + tasks["beta_two"]["tokens"], float)
    report = {"lengths": {"p": stats.mannwhitneyu(tokens[:n_a], tokens[n_a:], method="asymptotic").pvalue}}
    for space in ("raw", "fisher"):
        slices, intervals, together = {}, {}, 0
        for name in parameters:
            rows = np.stack([tensors[f"{task}/gradient/{i}/{name}"].ravel() for task in tasks for i in tasks[task]["ids"]])
            if space == "fisher":
                f = (rows**2 / tokens[:, None]).mean(0)
                rows = rows / np.sqrt(np.maximum(f, 1e-12) + max(1e-12, 1e-6 * np.median(f)))
            gram = rows @ rows.T
            together = together + gram
            norms = np.sqrt(np.diag(gram))
            cosine = gram / np.outer(norms, norms)
            cross = cosine[:n_a, n_a:]
            statistic, p = relabelled(cosine, n_a)
            of_sign, intervals[name] = sign(cross)
            slices[name] = {"mean_cosine": cross.mean(), "sign": of_sign, "exact": True,
                            "apart": {"statistic": statistic, "p": p}, "p_pairs": flipped(cross),
                            "gradients": mean_gradients(gram, n_a), "cosine": cross.tolist(), "mirror": mirror(cross)}
        for side, question in (("p_low", "opposed"), ("p_high", "aligned")):
            for of in slices.values():
                of[question] = {"statistic": of["sign"]["t"], "p": of["sign"][side]}
        for question in ("apart", "opposed", "aligned"):
            for of, q in zip(slices.values(), step_up([of[question]["p"] for of in slices.values()])):
                of[question]["q"] = q
        # The interval leaves 0 out on a side where q of that side's question is at most alpha.
        selected = {v: max(1, sum(of[v]["q"] <= ALPHA for of in slices.values())) for v in ("aligned", "opposed")}
        bounds = [1 - ALPHA * selected[v] / len(slices) for v in ("aligned", "opposed")]
        for name, of in slices.items():
            low, high = intervals[name](*bounds)
            assert (high < 0) == (of["opposed"]["q"] <= ALPHA) and (low > 0) == (of["aligned"]["q"] <= ALPHA), name
            of["sign"] |= {"level": sum(bounds) - 1, "interval": [low, high]}
        for of, q in zip(slices.values(), step_up([of["p_pairs"] for of in slices.values()])):
            pairs = np.maximum(of.pop("mirror"), q)
            conflicts = int(((pairs <= ALPHA) & (np.array(of["cosine"]) < 0)).sum())
            answers = {v: of[v]["q"] <= ALPHA for v in ("opposed", "aligned", "apart")}
            verdict = next((v for v, yes in answers.items() if yes), "unresolved")
            of |= {"q_pairs": q, "conflicts": conflicts, "verdict": verdict,
                   "pairs": {"cosine": of.pop("cosine"), "q": pairs.tolist()}}
        report[space] = {"slices": slices, "bounds": bounds, "together": mean_gradients(together, n_a)}
    text = json.dumps(report, indent=None, default=float)
    (folder / "expected-conflicts.json").write_text(text + "\n")


if __name__ == "__main__":
    for case in sys.argv[1:]:
        write(case)
