"""Which channels ResRep lets go, and when: the plan's widths approached step by step, or the paper's greedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from widthwise.network.network import Network

__all__ = ["ToMacs", "ToWidths", "least"]


@dataclass(frozen=True)
class ToWidths:
    """The channels of least norm in each group, ever more of them until the plan's widths are reached.

    Args:
        removed: group → channels to remove in the end.
        start: step of the first choice; before it only the lasso acts.
        end: step from which all are chosen.
        every: steps between choices.
    """

    removed: Mapping[str, int]
    start: int
    end: int
    every: int

    def due(self, step: int) -> bool:
        """Whether to choose anew before this step."""
        return step >= self.start and (step - self.start) % self.every == 0

    def masked(self, norms: Mapping[str, Tensor], masked: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Group → whether each channel forgets, chosen from scratch.

        Args:
            norms: group → norm of each channel's rows.
            masked: what forgets now.
        """
        share = min(1.0, (step - self.start + self.every) / max(self.every, self.end - self.start))
        return {group: least(norms[group], round(share * count)) for group, count in self.removed.items()}


@dataclass(frozen=True)
class ToMacs:
    """The paper's choice: rows of all layers in ascending order of norm, until the network's cost is reached.

    Args:
        network: prices the widths that would remain.
        share: of the dense multiply-accumulates to reach; the paper takes 0.455 for ResNet-50, 0.471 for ResNet-56.
        start: steps before the first choice; the paper waits 5 epochs.
        every: steps between choices.
        more: channels by which each choice may grow.
        least: channels every group keeps.
    """

    network: Network
    share: float
    start: int
    every: int = 200
    more: int = 4
    least: int = 1

    def due(self, step: int) -> bool:
        """Whether to choose anew before this step."""
        return step >= self.start and (step - self.start) % self.every == 0

    def masked(self, norms: Mapping[str, Tensor], masked: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """See :meth:`ToWidths.masked`."""
        target = self.share * self.network.macs(self.network.dense)
        most = sum(int(mask.sum()) for mask in masked.values()) + self.more
        widths = {group: len(values) for group, values in norms.items()}
        chosen = {group: torch.zeros(len(values), dtype=torch.bool) for group, values in norms.items()}
        order = sorted(
            ((float(norm), group, channel) for group, values in norms.items() for channel, norm in enumerate(values))
        )
        count = 0
        for _, group, channel in order:
            if count >= most or self.network.macs(self.network.dense | widths) <= target:
                break
            if widths[group] > self.least:
                widths[group] -= 1
                chosen[group][channel] = True
                count += 1
        return chosen


def least(norms: Tensor, count: int) -> Tensor:
    """Marks so many of the least; among equals the last, as the plan keeps the first."""
    marked = torch.zeros(len(norms), dtype=torch.bool)
    marked[torch.argsort(-norms, stable=True)[len(norms) - count :]] = True
    return marked
