"""Which parameters decay: weights do; norms, biases and whatever else has one dimension don't."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from widthwise.luts.errors import InvalidModel
from widthwise.pruning.recipe import InvalidRecipe

__all__ = ["by_decay", "groups_of"]

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


def groups_of(model: nn.Module, given: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: the caller's, and the remaining parameters with and without weight decay.

    Raises:
        InvalidRecipe: a parameter in two groups, or one that is not the model's.
        InvalidModel: nothing to train.
    """
    groups = [{**group, "params": list(group["params"])} for group in given or ()]
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    if len(seen) != len(set(seen)):
        raise InvalidRecipe("parameter_groups names a parameter twice; put each into one group")
    if not set(seen) <= {id(parameter) for parameter in model.parameters()}:
        raise InvalidRecipe("parameter_groups holds a parameter that is not the model's; pass the model it belongs to")
    groups += by_decay(model, without=[parameter for group in groups for parameter in group["params"]])
    groups = [group for group in groups if group["params"]]
    if not any(p.requires_grad for group in groups for p in group["params"]):
        raise InvalidModel("the model has no parameter to train; call requires_grad_(True) on those that should be")
    return groups
