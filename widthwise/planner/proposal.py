"""Networks as a planner would choose them, to be measured while profiling.

A predictor fitted on random networks is optimistic about planned ones: the allocator looks for what the predictor
underrates (the winner's curse), and its networks are unlike random ones. So part of the profiling time goes to
networks planned, with what the table knows so far, for random budgets and randomly weighted groups. They are fitted
and held out like the random ones, so the interval is calibrated where plans will look.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from torch import nn

from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.allocation import build_problem
from widthwise.planner.importance import Importance, score
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.solver import solve

__all__ = ["Proposer"]

_BUDGETS = (0.3, 0.9)
_WEIGHT_SPREAD = 0.5
"""Standard deviation of the logarithm of the random group weights."""

_GAP = 0.02
_TIME_LIMIT_S = 2.0
"""These plans needn't be proved: good ones in little time are as instructive."""


class Proposer:
    """Draws planned width vectors.

    Args:
        model: whose channels are scored.
        network: of the model.
    """

    def __init__(self, model: nn.Module, network: Network, *, seed: int = 0) -> None:
        self._network = network
        self._importance = score(model, network)
        self._seed = seed

    def __call__(self, lut: Lut, indices: Sequence[int]) -> list[dict[str, int]]:
        """One width vector for each index; fits a predictor on what the table holds."""
        if not self._network.free:
            return [{} for _ in indices]
        predictor = LatencyPredictor.fit(lut, self._network)
        options = self._network.options()
        widths = []
        for index in indices:
            rng = random.Random(f"{self._seed}:proposal:{index}")
            budget_ms = rng.uniform(*_BUDGETS) * predictor.dense_ms
            problem = build_problem(predictor, self._weighted(rng), budget_ms, options)
            widths.append(dict(solve(problem, relative_gap=_GAP, time_limit_s=_TIME_LIMIT_S).widths))
        return widths

    def _weighted(self, rng: random.Random) -> Importance:
        """The importance of the model, as another training run might have left it."""
        known = self._importance
        scores = {
            group: values * np.exp([rng.gauss(0, _WEIGHT_SPREAD) for _ in values])
            for group, values in known.scores.items()
        }
        weights = {
            group: weight * float(np.exp(rng.gauss(0, _WEIGHT_SPREAD))) for group, weight in known.weights.items()
        }
        return Importance(known.criterion, scores, weights)
