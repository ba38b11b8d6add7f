"""An exponential moving average of a model's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["Average"]


class Average:
    """The average after step t is ``decay`` · itself + (1 − ``decay``) · the weights; after step 1 the weights.

    Running statistics are averaged as weights are; counters are copied, as a mean of them counts nothing.

    Attributes:
        model: a copy of the model with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Takes in the weights after a step."""
        self._averaged.update_parameters(model)
        with torch.no_grad():
            for mean, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
                if not buffer.is_floating_point():
                    mean.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        weights: dict[str, Tensor] = self.model.state_dict()
        return {"model": weights, "steps": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._averaged.n_averaged.fill_(state["steps"])
