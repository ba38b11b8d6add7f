"""Conformal intervals: as wide as the errors on whole networks that weren't known when they were predicted.

Networks measured by one process are told by what the other processes measured (cross-conformal prediction: Vovk,
Annals of Mathematics and Artificial Intelligence 74, 2015; CV+: Barber et al., Annals of Statistics 49, 2021), so the
errors hold what differs between processes, and every network counts: an interval from the few that nothing was ever
fitted on is that of its largest error, twice as wide in one table as in the next. Scores are absolute logarithms of
measured over predicted, divided by how far networks of a size err (normalised: Papadopoulos et al., AIA 2008; Lei et
al., JASA 113, 2018), lest a few small networks make all intervals wide. Networks at the widths plans choose from and
networks at any widths err differently, so each kind has scores of its own (Mondrian).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import BadInput
from widthwise.luts.records import NetworkRecord, Role

__all__ = ["CONFIDENCE", "LEAST_CALIBRATION", "LEAST_PROCESSES", "Intervals", "conformal_radius", "folds", "spread"]

CONFIDENCE = 0.9
LEAST_CALIBRATION = 9
"""Fewest networks for which a 90 % conformal quantile exists."""

LEAST_PROCESSES = 3
"""With fewer, predicting one's networks without it would leave half of what is known, or nothing."""

_FOLDS = 5

_LEAST_SHARE = 0.1
"""Of the dense latency; smaller networks count as so small."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Log errors on networks that weren't known when they were predicted, each divided by its :func:`spread`.

    Args:
        on_grid: of networks at widths worth considering.
        between: of networks with widths between those.

    Example:
        >>> known = Intervals(np.array([0.01, -0.02, 0.015]), np.array([0.1]))
        >>> known.radius(1.0), known.radius(0.25), known.radius(1.0, between=True)
        (0.02, 0.04, 0.1)
    """

    on_grid: _Array
    between: _Array

    def radius(self, share: float, *, between: bool = False) -> float:
        """Half-width of the 90 % interval in natural logarithms, for a network that takes this share of the dense
        latency; never less between the steps than on them."""
        radius = conformal_radius(np.abs(self.on_grid), CONFIDENCE)
        if between:
            radius = max(radius, conformal_radius(np.abs(self.between), CONFIDENCE))
        return radius * float(spread(share))

    def radius_at(self, confidence: float, share: float, name: str) -> float:
        """As :meth:`radius` on the grid, at another level; above 0 and below 1.

        Raises:
            BadInput: too few networks were measured for that level.
        """
        needed = math.ceil(confidence / (1 - confidence) - 1e-9)
        if len(self.on_grid) < needed:
            raise BadInput(
                f"an interval of {confidence:.6g} confidence needs {needed} measured networks of {name}, and the table "
                f"has {len(self.on_grid)}: profile longer with `widthwise profile --time`, or ask for less"
            )
        return conformal_radius(np.abs(self.on_grid), confidence) * float(spread(share))


def spread(share: float | _Array) -> _Array:
    """How far a network of this share of the dense latency errs, the dense one being 1: one over its square root.

    On nine tables networks below a fifth of the dense latency erred 2.3 times as far as those above three fifths, when
    told without their process, and held-out ones 2.4 times; such small networks run from the caches, and what the hour
    adds to each layer weighs more.

    Example:
        >>> spread(np.array([1.0, 0.25, 0.01])).round(2).tolist()
        [1.0, 2.0, 3.16]
    """
    return np.asarray(np.clip(share, _LEAST_SHARE, 1.0) ** -0.5)


def folds(records: Sequence[NetworkRecord]) -> list[list[NetworkRecord]]:
    """Networks that are predicted without each other: those of one process, or every fifth narrowed one where there are
    fewer than three processes (five parts at most)."""
    runs = sorted({record.run for record in records})
    if len(runs) < LEAST_PROCESSES:
        narrowed = [record for record in records if record.role is not Role.DENSE]
        return [narrowed[first::_FOLDS] for first in range(_FOLDS)]
    part = {run: index % _FOLDS for index, run in enumerate(runs)}
    return [[record for record in records if part[record.run] == fold] for fold in range(min(_FOLDS, len(runs)))]


def conformal_radius(scores: _Array, confidence: float) -> float:
    """The ⌈(n+1)·confidence⌉-th smallest score; the largest where there are too few for that.

    Example:
        >>> conformal_radius(np.arange(1.0, 20.0), 0.9)
        18.0
    """
    if not len(scores):
        return 0.1
    rank = math.ceil((len(scores) + 1) * confidence)
    return float(np.sort(scores)[min(rank, len(scores)) - 1])
