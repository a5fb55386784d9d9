#!/usr/bin/env python3
"""The cases of the bench `overhead` in PyTorch: a step, and moments of the squares of each sample's gradient.

    python3 cases.py < request.json       # what `cargo bench --bench overhead -- --against python` does
    python3 cases.py --check              # every way against one backward pass a sample, on small shapes in float64

Ways are `plain` (forward and backward), `mean` (the mean over samples of every element's g²) and `elementwise` (its variance as
well). They are made by hooks written here, by Opacus' and by BackPACK's gradients of each sample, where those are installed. A
request is JSON on standard input: `threads` and `device`, and with `cases` also `rounds` and `seed`. The first line that is
printed says what PyTorch this is; then comes a line of JSON for each figure or remark.

Samples are squared whole: g = Σ_t δ_t x_tᵀ is a sum over the sample's positions, and g² is not the sum of squares.
"""
import copy
import gc
import json
import platform
import statistics
import sys
import time

try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable} cannot import torch ({error}): install PyTorch 2, or name another Python by --python")
from torch import nn
from torch.nn import functional as F


# Models, layer by layer as Burn has them.

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.project = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(x.transpose(1, 2).reshape(n, length, width))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, heads)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.attention(self.norm_2(x))
        return x + self.outer(F.gelu(self.inner(self.norm_1(x))))


class TiedHead(nn.Module):
    """A matrix that is an embedding's table. In a list, so that it is nobody's parameter twice."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = [embedding]

    def forward(self, x):
        return F.linear(x, self.embedding[0].weight)


class Transformer(nn.Module):
    def __init__(self, case):
        super().__init__()
        width, vocabulary = case["width"], case["vocabulary"]
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(case["length"], width)
        self.layers = nn.Sequential(*(Layer(width, case["heads"]) for _ in range(case["layers"])))
        self.norm = nn.LayerNorm(width)
        self.head = TiedHead(self.token) if case["tied"] else nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.head(self.norm(self.layers(self.token(tokens) + self.position(positions))))


def perceptron(case):
    width = case["width"]
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def convolutions(case):
    a, b, c = case["channels"]
    conv = lambda i, o: nn.Conv2d(i, o, 3, padding=1)
    head = nn.Linear(c * (case["side"] // 4) ** 2, 10)
    layers = conv(3, a), nn.ReLU(), nn.MaxPool2d(2), conv(a, b), nn.ReLU(), nn.MaxPool2d(2), conv(b, c), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), head)


class Residual(nn.Module):
    def __init__(self, case):
        super().__init__()
        a, b = case["channels"]

        def normed(i, o, size, stride):
            conv = nn.Conv2d(i, o, size, stride=stride, padding=size // 2, bias=False)
            return nn.Sequential(conv, nn.GroupNorm(case["groups"], o))

        self.stem = normed(3, a, 3, 1)
        self.first = nn.Sequential(normed(a, a, 3, 1), nn.ReLU(), normed(a, a, 3, 1))
        self.second = nn.Sequential(normed(a, b, 3, 2), nn.ReLU(), normed(b, b, 3, 1))
        self.around = normed(a, b, 1, 2)
        self.head = nn.Linear(b, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.first(x) + x)
        x = F.relu(self.second(x) + self.around(x))
        return self.head(x.mean((2, 3)))


def digits(_):
    block = lambda i, o: (nn.Conv2d(i, o, 3), nn.BatchNorm2d(o), nn.GELU())
    blocks = *block(1, 8), *block(8, 16), *block(16, 24)
    hidden = nn.Linear(24 * 22 * 22, 32, bias=False)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.3), hidden, nn.GELU(), nn.Linear(32, 10, bias=False))


MODELS = {
    "transformer": Transformer, "perceptron": perceptron, "convolutions": convolutions, "residual": Residual, "digits": digits,
}


def make(case, device):
    """A case's model, inputs and labels."""
    n, model = case["samples"], MODELS[case["kind"]](case)
    if case["kind"] == "transformer":
        tokens = torch.randint(case["vocabulary"], (n, case["length"] + 1))
        x, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    else:
        side = case.get("side")
        shape = {"perceptron": (n, 784), "digits": (n, 1, 28, 28)}.get(case["kind"], (n, 3, side, side))
        x, labels = torch.rand(shape), torch.arange(n) % 10
    return model.to(device), x.to(device), labels.to(device)


def loss_of(model, x, labels):
    """Summed over tokens and samples: what comes back to a sample is its own loss's gradient."""
    return F.cross_entropy(model(x).flatten(0, -2), labels.flatten(), reduction="sum")


# Moments of squares.

class Moments:
    """Mean and sum of squared deviations of g² over samples, batch by batch (Chan et al. 1983)."""

    def __init__(self, parameter, variance):
        self.n, self.mean = 0, torch.zeros_like(parameter, requires_grad=False)
        self.m2 = torch.zeros_like(self.mean) if variance else None

    def gradients(self, g):
        """Of each sample, `[n, ..]`; written over."""
        n, squares = len(g), g.view(len(g), *self.mean.shape).square_()
        mean = squares.mean(0)
        self.batch(n, mean, None if self.m2 is None else squares.sub_(mean).square_().sum(0))

    def sums(self, n, squares, fourths):
        """Of g² and g⁴ over n samples."""
        mean = squares / n
        self.batch(n, mean, None if self.m2 is None else fourths.addcmul_(mean, mean, value=-n).clamp_(min=0))

    def batch(self, n, mean, m2):
        off, total = mean.view_as(self.mean) - self.mean, self.n + n
        if self.m2 is not None:
            self.m2.add_(m2.view_as(self.mean)).addcmul_(off, off, value=self.n * n / total)
        self.mean.add_(off, alpha=n / total)
        self.n = total


class Hooks:
    """Gradients of each sample from what goes into a layer and what comes back to it. Takes no gradients of the batch."""

    def __init__(self, model, variance):
        self.model, self.variance, self.tied = model.eval().requires_grad_(False), variance, {}
        self.moments = {p: Moments(p, variance) for p in model.parameters()}
        for module in model.modules():
            if type(module) in self.RULES:
                module.register_forward_hook(self.listen)
            elif next(module.parameters(recurse=False), None) is not None:
                raise NotImplementedError(f"no rule for {type(module).__name__}")

    def __call__(self, x, labels):
        loss_of(self.model, x, labels).backward()

    def listen(self, module, inputs, output):
        # A leaf where nothing before it has a gradient.
        output.requires_grad_(True).register_hook(
            lambda delta: self.RULES[type(module)](self, module, inputs[0].detach(), delta)
        )

    def linear(self, module, x, delta):
        weight, bias = self.moments[module.weight], self.moments.get(module.bias)
        if x.dim() == 2:
            # One position: the squares of a product are the product of squares.
            n, x, delta = len(x), x.square(), delta.square()
            weight.sums(n, delta.T @ x, delta.square().T @ x.square() if self.variance else None)
            if bias is not None:
                bias.sums(n, delta.sum(0), delta.square().sum(0))
            return
        weight.gradients(torch.einsum("nlo,nli->noi", delta, x))
        if bias is not None:
            bias.gradients(delta.sum(1))

    def tied_head(self, module, x, delta):
        self.tied[module.embedding[0].weight] = torch.einsum("nlo,nli->noi", delta, x)

    def embedding(self, module, tokens, delta):
        moments, (vocabulary, width) = self.moments[module.weight], module.weight.shape
        n, rows = len(tokens), delta.flatten(0, 1)
        keys = (tokens + vocabulary * torch.arange(n, device=tokens.device)[:, None]).flatten()
        if (g := self.tied.pop(module.weight, None)) is not None:
            g.view(-1, width).index_add_(0, keys, rows)
            return moments.gradients(g)
        # Rows of a table that occur, each token of a sample once.
        keys, place = keys.unique(return_inverse=True)
        squares = rows.new_zeros(len(keys), width).index_add_(0, place, rows).square_()
        over_samples = lambda rows: torch.zeros_like(moments.mean).index_add_(0, keys % vocabulary, rows)
        moments.sums(n, over_samples(squares), over_samples(squares.square()) if self.variance else None)

    def convolution(self, module, x, delta):
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        delta = delta.flatten(2)
        self.moments[module.weight].gradients(torch.einsum("nol,npl->nop", delta, patches))
        if module.bias is not None:
            self.moments[module.bias].gradients(delta.sum(2))

    def norm(self, module, delta, unit, positions):
        self.moments[module.weight].gradients((delta * unit).sum(positions))
        self.moments[module.bias].gradients(delta.sum(positions))

    def layer_norm(self, module, x, delta):
        self.norm(module, delta, F.layer_norm(x, module.normalized_shape, eps=module.eps), 1)

    def group_norm(self, module, x, delta):
        self.norm(module, delta, F.group_norm(x, module.num_groups, eps=module.eps), (2, 3))

    def batch_norm(self, module, x, delta):
        self.norm(module, delta, F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps), (2, 3))

    RULES = {
        nn.Linear: linear, TiedHead: tied_head, nn.Embedding: embedding, nn.Conv2d: convolution,
        nn.LayerNorm: layer_norm, nn.GroupNorm: group_norm, nn.BatchNorm2d: batch_norm,
    }


class Opacus:
    """Gradients of each sample by Opacus' hooks."""

    def __init__(self, model, variance):
        from opacus.grad_sample import GradSampleModule
        whole(model)
        # It looks at models in training alone. What batches change there it refuses.
        self.model = GradSampleModule(model.train(), loss_reduction="sum")
        self.moments = {p: Moments(p, variance) for p in model.parameters()}

    def __call__(self, x, labels):
        loss_of(self.model, x, labels).backward()
        for p, moments in self.moments.items():
            moments.gradients(p.grad_sample)
            p.grad_sample = p.grad = None


class BackPACK:
    """Σ g² over samples by BackPACK, and gradients of each sample where variances are asked for."""

    def __init__(self, model, variance):
        from backpack import backpack, extend, extensions
        whole(model)
        self.model, self.variance = extend(model.eval()), variance
        self.watch = lambda: backpack(extensions.BatchGrad() if variance else extensions.SumGradSquared())
        self.moments = {p: Moments(p, variance) for p in model.parameters()}
        self.layers = {p: type(module).__name__ for module in model.modules() for p in module.parameters(recurse=False)}

    def __call__(self, x, labels):
        with self.watch():
            loss_of(self.model, x, labels).backward()
        saved = "grad_batch" if self.variance else "sum_grad_squared"
        if missed := {layer for p, layer in self.layers.items() if not hasattr(p, saved)}:
            raise NotImplementedError(f"passes over {', '.join(sorted(missed))}")
        for p, moments in self.moments.items():
            if self.variance:
                moments.gradients(p.grad_batch)
            else:
                moments.sums(len(x), p.sum_grad_squared, None)
            delattr(p, saved)
            p.grad = None


def whole(model):
    """Both libraries look at one layer at a time: of a tied table they would square the parts."""
    if any(isinstance(module, TiedHead) for module in model.modules()):
        raise NotImplementedError("no gradients of each sample of a table that is a head as well")


class Plain:
    """Forward and backward, with dropout and batch statistics where there are any."""

    def __init__(self, model):
        self.model = model.train()

    def __call__(self, x, labels):
        loss_of(self.model, x, labels).backward()
        self.model.zero_grad()


LIBRARIES = {"torch": ("PyTorch", None, Hooks), "opacus": ("Opacus", "opacus", Opacus), "backpack": ("BackPACK", "backpack", BackPACK)}


def installed(say):
    """The libraries that can be imported; `say` is told of the others."""
    found = {}
    for library, (title, module, way) in LIBRARIES.items():
        try:
            if module:
                __import__(module)
            found[library] = title, way
        except Exception as error:
            say(f"{title} is not there: {told(error)}")
    return found


def told(error):
    """The beginning of what an error says."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:100]}"


# Measuring.

def measure(request, device, libraries, say):
    def synchronize():
        if device.type == "cuda":
            torch.cuda.synchronize()

    for case in request["cases"]:
        if case["kind"] not in MODELS:
            say(f"{case['case']} is not made in PyTorch")
            continue
        torch.manual_seed(request["seed"])
        model, x, labels = make(case, device)
        ways = {("torch", "plain"): Plain(copy.deepcopy(model))}
        for library, (title, make_way) in libraries.items():
            try:
                for way in ("mean", "elementwise"):
                    run = make_way(copy.deepcopy(model), way == "elementwise")
                    # Once to warm up, and to see whether it can.
                    run(x, labels)
                    ways[library, way] = run
            except Exception as error:
                ways.pop((library, "mean"), None)
                say(f"{title} does not do {case['case']}: {told(error)}")
        ways["torch", "plain"](x, labels)
        seconds = {way: [] for way in ways}
        order = list(ways)
        for round in range(request["rounds"]):
            for turn in range(len(order)):
                way = order[(turn + round) % len(order)]
                synchronize()
                start = time.perf_counter()
                ways[way](x, labels)
                synchronize()
                seconds[way].append(time.perf_counter() - start)
        plain = seconds["torch", "plain"]
        for (library, way), taken in seconds.items():
            print(json.dumps({
                "library": library, "case": case["case"], "way": way, "seconds": statistics.median(taken),
                "ratio": statistics.median(a / b for a, b in zip(taken, plain)), "rounds": len(taken),
            }), flush=True)
        del ways, model
        gc.collect()


# Checking.

SMALL = [
    {"kind": "transformer", "layers": 2, "width": 16, "heads": 2, "vocabulary": 11, "tied": False, "samples": 4, "length": 9},
    {"kind": "transformer", "layers": 1, "width": 8, "heads": 2, "vocabulary": 7, "tied": True, "samples": 3, "length": 10},
    {"kind": "perceptron", "width": 12, "samples": 5},
    {"kind": "convolutions", "channels": [4, 6, 5], "side": 8, "samples": 4},
    {"kind": "residual", "channels": [4, 8], "groups": 2, "side": 8, "samples": 4},
    {"kind": "digits", "samples": 3},
]


def check(libraries, say):
    """Two batches by every way, against one backward pass a sample, in float64. Whether all agree."""
    good = True
    torch.set_default_dtype(torch.float64)
    for case in SMALL:
        torch.manual_seed(0)
        model, x, labels = make(case, torch.device("cpu"))
        model.eval()
        batches = [(x, labels), (x.flip(0)[:-1], labels[1:])]
        squares = []
        for x, labels in batches:
            for i in range(len(x)):
                model.zero_grad()
                loss_of(model, x[i:i + 1], labels[i:i + 1]).backward()
                squares.append([p.grad.square() for p in model.parameters()])
        model.zero_grad(set_to_none=True)
        want = [torch.stack(of) for of in zip(*squares)]
        want = [(of.mean(0), (of - of.mean(0)).square().sum(0)) for of in want]
        for title, make_way in libraries.values():
            for variance in (False, True):
                what = f"{title}, {case['kind']}, mean{' and variance' if variance else ''}"
                try:
                    run = make_way(copy.deepcopy(model), variance)
                    for x, labels in batches:
                        run(x, labels)
                except Exception as error:
                    say(f"{what}: {told(error)}")
                    # What is written here does all cases.
                    good &= make_way is not Hooks
                    continue
                off = 0.0
                for moments, (mean, m2) in zip(run.moments.values(), want, strict=True):
                    pairs = [(moments.mean, mean)] + [(moments.m2, m2)] * variance
                    off = max(off, *(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs))
                good &= off < 1e-9
                print(f"{what}: {off:.1e} of the largest value off the loop{'' if off < 1e-9 else ': WRONG'}")
    return good


def main():
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if check(installed(print), print) else "gradients of samples differ from the loop's")
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    # float32 everywhere, as it is written.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(request["device"])
    try:
        torch.zeros(1, device=device)
    except Exception as error:
        sys.exit(f"PyTorch has no device {device}: {error}")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"PyTorch {torch.__version__}, {where}, {torch.get_num_threads()} threads; Python {platform.python_version()}.", flush=True)
    if "cases" in request:
        say = lambda remark: print(json.dumps({"remark": remark}), flush=True)
        measure(request, device, installed(say), say)


if __name__ == "__main__":
    main()
