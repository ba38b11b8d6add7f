"""The closed loop: plan, measure, correct, plan again, until the measured latency is within the budget.

The allocator looks for what the predictor underrates, so a first plan tends to be a little slow (the winner's curse).
Its measurement says by how much, layer by layer: the table then holds the very layers it chose, and what their sum
still misses of the whole goes into the next plan's target. NetAdapt (Yang et al., ECCV 2018) measures every step of its
search; here the table does nearly all of it and the device has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from widthwise.luts.errors import BadInput, InfeasibleBudget
from widthwise.luts.store import Lut
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.network.weights import weights_fingerprint
from widthwise.planner.allocation import allocate
from widthwise.planner.demands import Demands
from widthwise.planner.importance import Importance, score
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.verification import Verdict, Verification, verify

__all__ = ["Attempt", "best_of", "close_loop"]

_AIM = 0.99
"""Share of the budget that new plans aim at: half of what is aimed at the budget itself would miss it."""

_MOST_LOWER = 0.03
"""A plan above its budget lowers what the next aims at by as much as it was above, this share at most: the table has
learned its layers, and the next plan looks for others that the predictor underrates."""

_SLACK = 0.03
"""A plan that leaves no more of the budget than this is good enough."""


@dataclass(frozen=True)
class Attempt:
    """A plan and what it measured."""

    plan: Plan
    verification: Verification

    @property
    def share(self) -> float:
        """Measured over budget."""
        return self.verification.measured_ms / self.plan.budget_ms

    @property
    def meets(self) -> bool:
        """Whether the measured median is within the budget."""
        return self.share <= 1


def close_loop(
    plan: Plan,
    dense: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    path: Path,
    importance: Importance | None = None,
    rounds: int = 2,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> list[Attempt]:
    """Measures a plan and, while that is above its budget or leaves much of it, measures better ones.

    Args:
        plan: the first; made for ``dense`` from the table at ``path``, which gains every measurement.
        importance: what the plan was made by; needed where it isn't made of weights alone.
        rounds: new plans at most; none of a plan of least latency, which has no budget to come nearer to.
        on_attempt: called with every one that was measured.

    Returns:
        All that were measured, the given one first; :func:`best_of` picks one.

    Raises:
        BadInput: new plans would have to hold on further tables, which a plan only names.
        InvalidTable, TableMismatch: see :func:`widthwise.planner.verification.verify`.
    """
    if plan.further and rounds:
        raise BadInput(
            "this plan holds on further tables too, of which only one can be measured here; plan anew instead"
        )
    rounds = 0 if plan.objective == "latency" else rounds
    network = Network.trace(dense, example, name=plan.model)
    importance = importance or score(dense, network, plan.criterion)
    attempts: list[Attempt] = []
    current: Plan | None = plan
    while current is not None:
        small = narrow(dense, network, current.kept)
        attempts.append(Attempt(current, verify(current, small, example, path=path, dense=dense)))
        if on_attempt is not None:
            on_attempt(attempts[-1])
        if len(attempts) > rounds or _is_settled(attempts[-1]):
            break
        current = _next(attempts, network, importance, weights_fingerprint(dense), path)
    return attempts


def best_of(attempts: Sequence[Attempt]) -> Attempt:
    """The one of most importance among those within the budget; where there is none, the one nearest to it."""
    within = [attempt for attempt in attempts if attempt.meets]
    if within:
        return max(within, key=lambda attempt: attempt.plan.importance)
    return min(attempts, key=lambda attempt: attempt.share)


def _is_settled(attempt: Attempt) -> bool:
    """Within the budget and near it, or as the dense network is."""
    if attempt.plan.certificate.status == "unchanged":
        return attempt.verification.verdict is not Verdict.MISSES
    return 1 - _SLACK <= attempt.share <= 1


def _next(
    attempts: Sequence[Attempt], network: Network, importance: Importance, weights: str, path: Path
) -> Plan | None:
    """A plan from what the table knows now, its target scaled by what the last prediction missed; None where no widths
    reach it, or none that weren't measured."""
    last, budget_ms = attempts[-1], attempts[0].plan.budget_ms
    lower = sum(min(_MOST_LOWER, max(0.0, attempt.share - 1)) for attempt in attempts)
    with Lut.open(path, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, network).at(last.plan.statistic)
        missed = last.verification.measured_ms / predictor.predict(last.plan.widths).latency_ms
        try:
            target = Budget((_AIM - lower) * budget_ms / missed, relative=False)
            demands = Demands.of(last.plan)
            made = allocate(predictor, importance, target, lut, weights=weights, demands=demands)
        except InfeasibleBudget:
            return None
    if any(made.widths == attempt.plan.widths for attempt in attempts):
        return None
    note = f"made after {len(attempts)} measured plans; the last took {last.share:.3f} of the budget"
    return made.model_copy(
        update={
            "budget_ms": budget_ms,
            "dense_ms": attempts[0].plan.dense_ms,
            "predicted_ms": made.predicted_ms * missed,
            "interval_ms": (made.interval_ms[0] * missed, made.interval_ms[1] * missed),
            "minimum_ms": made.minimum_ms * missed,
            "notes": [*made.notes, note],
        }
    )
