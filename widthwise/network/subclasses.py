"""Subclasses of narrowable modules with a forward of their own: do they still compute each channel by itself?

A convolution that standardises its weights over the inputs gives other values once inputs are gone. So such a module
is tried: a copy with random weights, cut to half, must give what the whole one gives with the removed inputs at zero.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from widthwise.network.modules import CONVOLUTIONS, NARROWABLE, Indices, cut, dimensions, is_depthwise

__all__ = ["Subclasses"]

_TOLERANCE = 1e-3
_SIZE = 16
"""Of the images a module is tried on; kernels larger than that don't occur."""


class Subclasses:
    """What was found out about each class."""

    def __init__(self) -> None:
        self._objections: dict[object, str | None] = {}

    def objection(self, module: nn.Module) -> str | None:
        """Why a module can't be narrowed; None where it can."""
        kind = type(module)
        if kind.__module__.startswith("torch.nn"):
            return None
        base = next(each for each in kind.__mro__ if each in NARROWABLE)
        own = any(getattr(kind, name, None) is not getattr(base, name, None) for name in ("forward", "_conv_forward"))
        if not own:
            return None
        key = (kind, getattr(module, "groups", None) == 1, getattr(module, "bias", None) is None)
        if key not in self._objections:
            self._objections[key] = _tried(module)
        return self._objections[key]


def _tried(module: nn.Module) -> str | None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            whole = _materialised(module).eval()
            small = copy.deepcopy(whole)
            kept_in, kept_out = _halves(module)
            cut(small, kept_in, kept_out)
            inputs = dimensions(module)[0]
            x = torch.randn(_shape(module, inputs))
            axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
            removed = torch.from_numpy(np.setdiff1d(np.arange(inputs), kept_in))
            expected = whole(x.index_fill(axis, removed, 0.0)).index_select(axis, torch.from_numpy(kept_out))
            got = small(x.index_select(axis, torch.from_numpy(kept_in)))
        except Exception:  # the class does what it likes
            return "which doesn't run on fewer channels"
    scale = float(expected.abs().max()) or 1.0
    if got.shape == expected.shape and float((got - expected).abs().max()) <= _TOLERANCE * scale:
        return None
    return "whose channels depend on each other"


def _halves(module: nn.Module) -> tuple[Indices, Indices]:
    """Every other channel of each dimension, alike in each convolution group; every other norm group."""
    inputs, outputs = dimensions(module)
    if isinstance(module, _ConvNd) and is_depthwise(module):
        kept, multiplier = np.arange(0, inputs, 2), outputs // inputs
        return kept, (kept[:, None] * multiplier + np.arange(multiplier)).ravel()
    if isinstance(module, nn.GroupNorm):
        rows = np.arange(inputs).reshape(module.num_groups, -1)[::2].ravel()
        return rows, rows
    groups = module.groups if isinstance(module, _ConvNd) else 1
    halves = [np.arange(size).reshape(groups, -1)[:, ::2].ravel() for size in (inputs, outputs)]
    return halves[0], halves[1]


def _materialised(module: nn.Module) -> nn.Module:
    memo: dict[int, object] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape) + 0.5
            values *= torch.randint(0, 2, tensor.shape) * 2 - 1 if isinstance(module, (*CONVOLUTIONS, nn.Linear)) else 1
        else:
            values = torch.zeros(tensor.shape, dtype=tensor.dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(values, requires_grad=tensor.requires_grad) if is_parameter else values
    return copy.deepcopy(module, memo)


def _shape(module: nn.Module, channels: int) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (2, channels)
    if isinstance(module, _ConvNd):
        return (2, channels, *[_SIZE] * len(module.kernel_size))
    ranks = {"1": 1, "3": 3}
    rank = next((ranks[kind.__name__[-2]] for kind in type(module).__mro__ if kind.__name__[-2:] in ("1d", "3d")), 2)
    return (2, channels, *[_SIZE] * rank)
