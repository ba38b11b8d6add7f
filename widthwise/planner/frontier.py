"""The frontier: what can be kept at every latency, each point proved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from widthwise.luts.errors import BadInput
from widthwise.planner.allocation import RELATIVE_GAP, build_problem
from widthwise.planner.importance import Importance
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.solver import solve

__all__ = ["FrontierPoint", "frontier"]


@dataclass(frozen=True)
class FrontierPoint:
    """The best there is within a budget.

    Args:
        budget_ms: the budget.
        latency_ms: predicted, at most the budget.
        importance: what is retained, 1 for the dense network.
        gap: how far from the optimum it may be, relative.
        widths: group → channels.
    """

    budget_ms: float
    latency_ms: float
    importance: float
    gap: float
    widths: Mapping[str, int]


def frontier(
    predictor: LatencyPredictor,
    importance: Importance,
    options: Mapping[str, Sequence[int]],
    *,
    points: int = 20,
    time_limit_s: float = 60.0,
    on_progress: Callable[[float], None] | None = None,
) -> list[FrontierPoint]:
    """Points from the least latency any widths reach to the dense one, by ascending budget.

    The problem is built once; of budgets between which the answer doesn't change, one point is left.

    Args:
        options: group → widths to choose from, see :func:`widthwise.network.granularity.options_from`.
        points: budgets, evenly spaced; at least 2.
        time_limit_s: for all of them together; a point that isn't proved in time has its true gap.

    Raises:
        BadInput: fewer than 2 points.

    Example:
        >>> curve = frontier(predictor, score(model, network), options_from(lut, network))  # doctest: +SKIP
        >>> [(round(point.latency_ms, 1), round(point.importance, 2)) for point in curve]  # doctest: +SKIP
        [(5.9, 0.21), (7.7, 0.52), ..., (20.3, 1.0)]
    """
    if points < 2:
        raise BadInput(f"a frontier needs at least 2 points, got {points}")
    dense_ms = predictor.predict(predictor.network.dense).latency_ms
    counting = predictor.around(dense_ms)
    problem = build_problem(counting, importance, dense_ms, options)
    fastest = solve(problem.model_copy(update={"budget_ms": -math.inf}), time_limit_s=time_limit_s)
    least_ms = counting.predicted_ms(fastest.minimum_ms)
    found: list[FrontierPoint] = []
    for done, budget_ms in enumerate(np.linspace(max(least_ms, dense_ms), least_ms, points), 1):
        # What is best within more time and fits into this one is best within this one.
        if found and found[-1].latency_ms <= budget_ms:
            found[-1] = replace(found[-1], budget_ms=float(budget_ms))
        else:
            within = problem.model_copy(update={"budget_ms": counting.counted_ms(float(budget_ms)) * (1 + 1e-12)})
            answer = solve(within, time_limit_s=time_limit_s / points, relative_gap=RELATIVE_GAP)
            if answer.status != "infeasible":
                kept, latency_ms = importance.retained(answer.widths), counting.predicted_ms(answer.latency_ms)
                found.append(FrontierPoint(float(budget_ms), latency_ms, kept, answer.gap or 0.0, dict(answer.widths)))
        if on_progress is not None:
            on_progress(done / points)
    return found[::-1]
