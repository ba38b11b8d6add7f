"""Torch-Pruning's own pruners, in the use its documentation shows, on the same epochs and the same recipe."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from widthwise.pruning.data import Data
from widthwise.pruning.methods import Effort
from widthwise.pruning.training import train

__all__ = ["PEERS", "prune_with"]

PEERS = ("tp-magnitude", "tp-bnscale", "tp-groupnorm")


def prune_with(
    peer: str, model: nn.Module, keeps: float, data: Data, effort: Effort, example: torch.Tensor
) -> nn.Module:
    """One-shot and retraining for magnitudes; half of the epochs with the pruner's regularizer for the others."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    common: dict[str, Any] = {
        "pruning_ratio": 1 - keeps,
        "ignored_layers": [module for module in model.modules() if isinstance(module, nn.Linear)],
    }
    if peer == "tp-magnitude":
        pruner = tp.pruner.MagnitudePruner(model, example, tp.importance.GroupMagnitudeImportance(p=2), **common)
        first = 0
    elif peer == "tp-bnscale":
        pruner = tp.pruner.BNScalePruner(model, example, tp.importance.BNScaleImportance(), reg=1e-4, **common)
        first = effort.epochs // 2
    else:
        pruner = tp.pruner.GroupNormPruner(model, example, tp.importance.GroupMagnitudeImportance(p=2), **common)
        first = effort.epochs // 2
    if first:
        regularize = lambda _: pruner.regularize(model)  # noqa: E731
        train(model, data, epochs=first, recipe=effort.recipe, before_step=regularize)
    pruner.step()
    train(model, data, epochs=effort.epochs - first, recipe=effort.recipe)
    return model
