"""Split conformal intervals: as wide as the errors on whole networks that nothing was fitted on.

Scores are absolute logarithms of measured over predicted (Vovk et al., Algorithmic Learning in a Random World, 2005).
Networks at the widths plans choose from and networks at any widths err differently, so each kind has scores of its own
(Mondrian).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from widthwise.luts.errors import BadInput

__all__ = ["CONFIDENCE", "LEAST_CALIBRATION", "Intervals", "conformal_radius"]

CONFIDENCE = 0.9
LEAST_CALIBRATION = 9
"""Fewest held-out networks for which a 90 % conformal quantile exists."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Log errors on held-out networks.

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
            BadInput: too few networks were held out for that level.
        """
        needed = math.ceil(confidence / (1 - confidence) - 1e-9)
        if len(self.on_grid) < needed:
            raise BadInput(
                f"an interval of {confidence:.6g} confidence needs {needed} held-out networks of {name}, and the table "
                f"has {len(self.on_grid)}: profile longer with `widthwise profile --time`, or ask for less"
            )
        return conformal_radius(np.abs(self.on_grid), confidence)


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
