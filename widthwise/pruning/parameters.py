"""Which parameters decay: weights do; norms, biases and whatever else has one dimension don't."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["by_decay"]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def by_decay(model: nn.Module, without: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: the weights, and what has no weight decay.

    Args:
        without: parameters that stand in groups of their own.

    Example:
        >>> [len(group["params"]) for group in by_decay(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)))]
        [1, 3]
    """
    seen = {id(parameter) for parameter in without}
    normal = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    plain = [p for p in rest if p.ndim <= 1 or id(p) in normal]
    decayed = [p for p in rest if p.ndim > 1 and id(p) not in normal]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
