"""What the networks of a batch are off by for the doubt about the dense network beside them.

A batch counts in terms of the dense network that it begins with (:mod:`widthwise.luts.peers`), and what that one's few
blocks are off is in all that were timed beside it. With a MobileNetV2 on a loud machine the mean errors of batches of
four lay 5.4 % apart, their networks' 5.8. That is no error of predictions: whoever verifies a plan times the dense
network longer. How much of a batch's mean is of that kind follows from the doubt about its dense network and from how
far the batch's networks scatter (the best linear predictor of a random effect whose variance is known: Searle, Casella
and McCulloch, Variance Components, 1992).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

__all__ = ["SharedErrors"]


class SharedErrors:
    """What the errors of each batch's networks share.

    Args:
        errors: narrowed network (id) → logarithm of measured over predicted, told without its process.
        batches: network (id) → the dense one (id) beside it.
        doubts: dense network (id) → standard deviation of the logarithm of its latency.

    Example:
        >>> errors = {2: 0.10, 3: 0.11, 4: 0.09, 6: -0.10, 7: -0.11, 8: -0.09}
        >>> batches = {2: 1, 3: 1, 4: 1, 6: 5, 7: 5, 8: 5}
        >>> known, doubtful = (SharedErrors(errors, batches, dict.fromkeys((1, 5), doubt)) for doubt in (1e-4, 0.1))
        >>> round(known.without(2), 3), round(doubtful.without(2), 3)
        (0.0, 0.1)
    """

    def __init__(self, errors: Mapping[int, float], batches: Mapping[int, int], doubts: Mapping[int, float]) -> None:
        self._batches, self._doubts = batches, doubts
        self._usual = fmean(errors.values()) if errors else 0.0
        self._members: dict[int, dict[int, float]] = defaultdict(dict)
        for network, error in errors.items():
            if network in batches:
                self._members[batches[network]][network] = error
        self._within = _within([list(members.values()) for members in self._members.values()])

    def without(self, network: int) -> float:
        """What the others of its batch tell of it; 0 where it belongs to none."""
        dense = self._batches.get(network)
        if dense is None:
            return 0.0
        others = [error for other, error in self._members[dense].items() if other != network]
        known = self._doubts.get(dense, 0.0) ** 2
        if not others or not known:
            return 0.0
        return (fmean(others) - self._usual) * known / (known + self._within / len(others))


def _within(groups: list[list[float]]) -> float:
    """Variance within groups."""
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.inf
    return math.fsum((error - fmean(group)) ** 2 for group in groups for error in group) / freedom
