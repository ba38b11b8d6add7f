"""Removed channels that were not zero: what they would still have added is folded into the layers that read them.

A channel whose scale is zero still emits a constant: ``act(beta)`` behind its norm. Cutting it away shifts what the
next layer computes. The shift is exact where the constant reaches every position alike (1×1 convolutions, linear
layers, any convolution without padding); beside a padded border it isn't, and there ``recalibrate`` is the better
remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from widthwise.network.groups import Labels
from widthwise.network.members import norm_after
from widthwise.network.narrowing import Kept
from widthwise.network.network import Network
from widthwise.pruning.evaluation import in_eval_mode

__all__ = ["Folded", "fold_constants"]

_TOLERANCE = 1e-5
"""How far a channel's values may lie apart, relative to the layer's largest, to count as one constant."""


@dataclass(frozen=True)
class Folded:
    """What became of the constants of removed channels.

    Args:
        exact: paths of layers that compute what they did, but for rounding.
        interior: of layers that do away from their padded borders.
        left: of layers whose removed inputs weren't constant, or that have nowhere to put the shift; recalibrate.
    """

    exact: tuple[str, ...] = ()
    interior: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def fold_constants(
    dense: nn.Module, small: nn.Module, network: Network, kept: Kept, example: Sequence[Tensor]
) -> Folded:
    """Adds to the narrow model what its layers lost with constant channels; in place.

    Args:
        dense: the model before surgery, its removed channels already constant (scales or filters at zero).
        small: the same, narrowed to ``kept``.
        example: inputs; values are read off a run in eval mode.

    Source: the complaint of Network Slimming's users (network-slimming #53, nni #2130) that plain removal drops
    ``act(beta)``.

    Example:
        >>> folded = fold_constants(dense, small, network, plan.kept, [images])  # doctest: +SKIP
    """
    removed = _removed_inputs(network, kept)
    seen = _inputs_of(dense, list(removed), example)
    norms = norm_after(dense, network)
    outcome: dict[str, list[str]] = {"exact": [], "interior": [], "left": []}
    with torch.no_grad():
        for path, positions in removed.items():
            if path not in seen:
                continue
            values, constant = _constants(seen[path], positions)
            if constant and not float(values.abs().max()) > 0:
                continue  # plain zeros: nothing was lost
            module = dense.get_submodule(path)
            shift = _shift(module, positions, values)
            if not constant or shift is None or not _absorb(small, path, norms.get(path), shift, network, kept):
                outcome["left"].append(path)
            else:
                outcome["interior" if _padded(module) else "exact"].append(path)
    return Folded(**{name: tuple(paths) for name, paths in outcome.items()})


def _removed_inputs(network: Network, kept: Kept) -> dict[str, Tensor]:
    """For each convolution and linear layer that mixes channels, the input positions it loses."""
    removed = {}
    for path, labels in network.coupling.inputs.items():
        if labels is network.coupling.outputs[path]:
            continue  # depthwise: its output channel goes with the input channel
        gone = _gone(network, network.coupling.free(labels), kept)
        if len(gone):
            removed[path] = torch.from_numpy(gone)
    return removed


def _gone(network: Network, labels: Labels, kept: Kept) -> npt.NDArray[np.int64]:
    gone = np.zeros(len(labels), dtype=bool)
    for owner in network.coupling.owners(labels):
        group = network.groups[owner]
        if group.name in kept:
            mine = labels >> 32 == owner
            gone[mine] = ~np.isin(network.coupling.channel(labels[mine]), list(kept[group.name]))
    return np.flatnonzero(gone)


def _inputs_of(model: nn.Module, paths: Sequence[str], example: Sequence[Tensor]) -> dict[str, Tensor]:
    """What each of these modules reads in eval mode; modules called more than once are left out."""
    seen: dict[str, Tensor] = {}
    twice: set[str] = set()

    def keep(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if path in seen:
                twice.add(path)
            seen[path] = inputs[0].detach()

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(keep(path)) for path in paths]
    try:
        with in_eval_mode(model), torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: tensor for path, tensor in seen.items() if path not in twice}


def _constants(inputs: Tensor, positions: Tensor) -> tuple[Tensor, bool]:
    """The median of each removed channel, and whether it is all there is."""
    axis = 1 if inputs.ndim > 2 else inputs.ndim - 1
    flat = inputs.movedim(axis, 0).flatten(1)
    scale = float(flat.abs().max())
    gone = flat[positions.to(flat.device)]
    values = gone.median(1).values
    apart = float((gone - values[:, None]).abs().max())
    return values, apart <= _TOLERANCE * max(scale, 1e-30)


def _shift(module: nn.Module, positions: Tensor, values: Tensor) -> Tensor | None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    if getattr(module, "groups", 1) > 1 or getattr(module, "transposed", False):
        return None
    taps = weight.detach().flatten(2).sum(2) if weight.ndim > 2 else weight.detach()
    return taps[:, positions.to(taps.device)] @ values.to(taps)


def _absorb(small: nn.Module, path: str, norm: str | None, shift: Tensor, network: Network, kept: Kept) -> bool:
    """Puts a shift of a layer's output into its bias or the norm behind it."""
    gone = _gone(network, network.coupling.free(network.coupling.outputs[path]), kept)
    stays = np.setdiff1d(np.arange(len(shift)), gone)
    shift = shift[torch.from_numpy(stays).to(shift.device)]
    module = small.get_submodule(path)
    if isinstance(module.bias, Tensor):
        module.bias += shift
        return True
    if norm is None:
        return False
    mean = small.get_submodule(norm).running_mean
    assert isinstance(mean, Tensor)
    mean -= shift
    return True


def _padded(module: nn.Module) -> bool:
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, tuple) else bool(padding)
