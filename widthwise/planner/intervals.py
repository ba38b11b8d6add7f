"""Conformal intervals: as wide as the errors on whole networks that weren't known when they were predicted.

Networks measured by one process are told by what the other processes measured (cross-conformal prediction: Vovk,
Annals of Mathematics and Artificial Intelligence 74, 2015; CV+: Barber et al., Annals of Statistics 49, 2021), so the
errors hold what differs between processes, and every network counts: an interval from the few that nothing was ever
fitted on is that of its largest error, twice as wide in one table as in the next. Scores are absolute logarithms of
measured over predicted. Networks at the widths plans choose from and networks at any widths err differently, so each
kind has scores of its own (Mondrian).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import BadInput
from widthwise.luts.records import NetworkRecord, Role

__all__ = ["CONFIDENCE", "LEAST_CALIBRATION", "LEAST_PROCESSES", "Intervals", "conformal_radius", "folds"]

CONFIDENCE = 0.9
LEAST_CALIBRATION = 9
"""Fewest networks for which a 90 % conformal quantile exists."""

LEAST_PROCESSES = 3
"""With fewer, predicting one's networks without it would leave half of what is known, or nothing."""

_FOLDS = 5

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Log errors on networks that weren't known when they were predicted.

    Args:
        on_grid: of networks at widths worth considering.
        between: of networks with widths between those.

    Example:
        >>> Intervals(np.array([0.01, -0.02, 0.015]), np.array([0.1])).radius(between=True)
        0.1
    """

    on_grid: _Array
    between: _Array

    def radius(self, *, between: bool = False) -> float:
        """Half-width of the 90 % interval in natural logarithms; never less between the steps than on them."""
        least = conformal_radius(np.abs(self.on_grid), CONFIDENCE)
        return max(least, conformal_radius(np.abs(self.between), CONFIDENCE)) if between else least

    def radius_at(self, confidence: float, name: str) -> float:
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
        return conformal_radius(np.abs(self.on_grid), confidence)


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
