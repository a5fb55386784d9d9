"""transformers' own models in true float64, and the proof that they are.

transformers computes norms, rotary positions, softmax and some constants in float32 whatever the model's type. These islands
alone move squared gradients by 1e-6 to 1e-5. `patched()` turns them into float64; `watched()` fails where one is left.
"""
import contextlib
import sys
import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Double(types.ModuleType):
    """`torch`, whose float32 is float64."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


DOUBLE = Double("torch")
PLACES = (".modeling_", "modeling_rope", "activations", "masking_utils")


def _replace(old, new):
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and any(place in name for place in PLACES):
            if getattr(module, "torch", None) is old:
                module.torch = new


@contextlib.contextmanager
def patched():
    """Models that are built and run here know no float32; their modules must have been imported before."""
    plain, default = torch.Tensor.float, torch.get_default_dtype()
    _replace(torch, DOUBLE)
    torch.Tensor.float = lambda self, *args, **kwargs: self.double()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.float = plain
        _replace(DOUBLE, torch)


class Watch(TorchDispatchMode):
    """Every operation, of the backward pass too, whose result is a float of less than 64 bits."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                self.found.add(f"{function}: {value.dtype} {tuple(value.shape)}")
        return out
