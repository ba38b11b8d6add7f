"""Sensitivity: what narrowing one group alone does to the loss; the only importance in units of the loss.

Every other criterion guesses from weights or gradients what a width is worth. Here it is measured: one group at a time
is narrowed to a few widths, and the loss taken. Groups are then comparable by what matters; that their losses add up is
the assumption that is left. The channels kept are still those a criterion ranks highest.

Source: Li et al., ICLR 2017 (1608.08710), section 3.2, look at curves of this kind per layer; NetAdapt (Yang et al.,
ECCV 2018) asks the same of every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from widthwise.luts.errors import BadInput
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.planner.importance import Criterion, Importance, score

__all__ = ["Sensitivity", "sensitivity"]


@dataclass(frozen=True)
class Sensitivity(Importance):
    """An importance whose curves are losses.

    ``retained`` is then ``exp(-Σ Δloss)``: by a cross-entropy, what is kept of the right answer's probability.

    Args:
        rise: group → width → how much the loss rose when only this group was narrowed to it; not below zero.

    Example:
        >>> rise = {"a": {1: 0.5, 3: 0.1}}
        >>> found = Sensitivity("sensitivity", {"a": np.arange(4.0)}, {"a": 1}, rise)
        >>> [round(value, 2) for value in found.curve("a", [1, 2, 3, 4])]
        [0.5, 0.7, 0.9, 1.0]
    """

    rise: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def curve(self, group: str, widths: Sequence[int]) -> list[float]:
        """What each width is worth; the dense widths of all groups add up to 1. Between measured widths by line; below
        the least, in proportion to its logarithm."""
        dense = len(self.scores[group])
        known = {**self.rise[group], dense: 0.0}
        measured = np.array(sorted(known))
        rises = np.interp(widths, measured, [known[width] for width in measured])
        least, worst = int(measured[0]), known[int(measured[0])]
        for index, width in enumerate(widths):
            if width < least:
                rises[index] = worst * (1 + math.log(least / width))
        share = self.weights[group] / sum(self.weights.values())
        return [float(share - rise) for rise in rises]


def sensitivity(
    model: nn.Module,
    network: Network,
    options: Mapping[str, Sequence[int]],
    loss_of: Callable[[nn.Module], float],
    *,
    criterion: Criterion = "magnitude",
    most: int = 4,
    on_progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Measures the loss with each group narrowed alone.

    Args:
        options: group → widths worth considering; ``most`` of them are measured, evenly over them.
        loss_of: the loss of a narrow model on images that weren't trained on; it should recalibrate batch norms first.
        criterion: ranks the channels that are kept.
        on_progress: called with the share done.

    Raises:
        BadInput: a loss that isn't finite, of the dense model or of too narrow a one.

    Example:
        >>> found = sensitivity(model, network, network.options(), loss_of)  # doctest: +SKIP
    """
    ranked = score(model, network, criterion)
    base = _finite(loss_of(model), "the dense model")
    points = [
        (group, width)
        for group in network.dense
        for width in _spread([width for width in options[group] if width < network.dense[group]], most)
    ]
    rise: dict[str, dict[int, float]] = {group: {} for group in network.dense}
    for done, (group, width) in enumerate(points, 1):
        small = narrow(model, network, {group: ranked.kept(group, width)})
        found = _finite(loss_of(small), f"group {group!r} at {width} channels")
        rise[group][width] = max(0.0, found - base)
        if on_progress is not None:
            on_progress(done / len(points))
    return Sensitivity("sensitivity", ranked.scores, ranked.weights, rise)


def _spread(widths: Sequence[int], most: int) -> list[int]:
    if len(widths) <= most:
        return list(widths)
    return [widths[index] for index in np.unique(np.linspace(0, len(widths) - 1, most).round().astype(int))]


def _finite(loss: float, what: str) -> float:
    if not math.isfinite(loss):
        raise BadInput(f"the loss of {what} is {loss}; sensitivity needs finite ones: check the model and the data")
    return loss
