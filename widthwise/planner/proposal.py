"""Networks as a planner would choose them, to be measured while profiling.

A predictor fitted on random networks is optimistic about planned ones: the allocator looks for what the predictor
underrates (the winner's curse), and its networks are unlike random ones. So part of the profiling time goes to
networks planned, with what the table knows so far, for random budgets and randomly weighted groups. They are fitted
and held out like the random ones, so the interval is calibrated where plans will look. The last of the time goes to
single layers where a plan's latency would be least certain.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from torch import nn

from widthwise.luts.spec import LayerSpec
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.allocation import build_problem
from widthwise.planner.importance import Importance, score
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.solver import solve
from widthwise.profiling.sampler import grid_points

__all__ = ["Proposer"]

_BUDGETS = (0.3, 0.9)
_WEIGHT_SPREAD = 0.5
"""Standard deviation of the logarithm of the random group weights."""

_TOLD_ABOUT = 0.4
"""A measured point tells about those of its surface nearer than this, in logarithms of channel counts."""

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
        self._model = model
        self._network = network
        self._seed = seed

    @cached_property
    def _importance(self) -> Importance:
        """When it is first asked for: a VGG-16's takes 2 s, and its profiles end before."""
        return score(self._model, self._network)

    def networks(self, lut: Lut, indices: Sequence[int], options: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
        """One width vector for each index; fits a predictor on what the table holds."""
        predictor = LatencyPredictor.fit(lut, self._network)
        widths = []
        for index in indices:
            rng = random.Random(f"{self._seed}:proposal:{index}")
            budget_ms = rng.uniform(*_BUDGETS) * predictor.dense_ms
            problem = build_problem(predictor, self._weighted(rng), budget_ms, options)
            widths.append(dict(solve(problem, relative_gap=_GAP, time_limit_s=_TIME_LIMIT_S).widths))
        return widths

    def layers(self, lut: Lut, options: Mapping[str, Sequence[int]], *, most: int) -> list[LayerSpec]:
        """The layers a plan may choose whose latency is least certain in milliseconds, the worst first.

        After each, points of its surface that it would tell about count as certain.
        """
        predictor = LatencyPredictor.fit(lut, self._network)
        doubts: list[tuple[float, LayerSpec]] = []
        for geometry, points in grid_points(predictor.network, options).items():
            channels = np.array(sorted(points), dtype=np.int64)
            doubt_ms = predictor.doubt_ms(geometry, channels)
            logs = np.log(channels)
            while doubt_ms.max() > 0:
                worst = int(doubt_ms.argmax())
                doubts.append((float(doubt_ms[worst]), LayerSpec(geometry, tuple(map(int, channels[worst])))))
                doubt_ms[np.linalg.norm(logs - logs[worst], axis=1) < _TOLD_ABOUT] = 0.0
        return [spec for _, spec in sorted(doubts, key=lambda found: -found[0])[:most]]

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
