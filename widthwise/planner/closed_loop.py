"""The closed loop: plan, measure, correct, plan again, until the measured latency is within the budget.

The allocator looks for what the predictor underrates, so a first plan tends to be a little slow (the winner's curse).
Its measurement says by how much, layer by layer: the table then holds the very layers it chose, and what their sum
still misses of the whole goes into the next plan's target. The next plan stays near to a measured one: its latency is
then a measured one and a small predicted difference, where a plan free to go elsewhere would look for what else the
predictor underrates. NetAdapt (Yang et al., ECCV 2018) measures every step of its search; here the table does nearly
all of it and the device has the last word.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from widthwise.luts.errors import BadInput, InfeasibleBudget
from widthwise.luts.store import Lut
from widthwise.network.granularity import options_from
from widthwise.network.narrowing import narrow
from widthwise.network.network import Network
from widthwise.network.weights import weights_fingerprint
from widthwise.planner.allocation import RELATIVE_GAP, allocate
from widthwise.planner.demands import Demands
from widthwise.planner.importance import Importance, score
from widthwise.planner.plan import Budget, Plan
from widthwise.planner.predictor import LatencyPredictor
from widthwise.planner.verification import Verdict, Verification, verify

__all__ = ["Attempt", "best_of", "close_loop"]

_Options = Mapping[str, Sequence[int]]

_AIM = 0.98
"""Share of the budget that new plans aim at: what is aimed at the budget itself misses it half of the time."""

_NEAR = (1, 2, 4)
"""How many of its options a group's width may go up or down from a measured plan's; tried in turn until a plan comes
within :data:`_REACHED` of the target and gives up no more than :data:`_GIVEN_UP`, then widths are free."""

_REACHED = 0.99

_GIVEN_UP = 0.02
"""Share of its importance that a plan may give up to stay near a measured one; a table that has learned more than this
makes plans worth going elsewhere for."""

_DOUBTED_SHARE = 0.3
"""How much of a predicted difference between two networks is in doubt. A measured plan tells by how much predictions
miss at the budget as surely as its own interval and this share of its distance from it let it."""

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
    """A plan from what the table knows now, near the measured one that came nearest to the budget, its target scaled by
    what predictions of measured ones miss; None where no widths reach it, or none that weren't measured."""
    last, budget_ms = attempts[-1], attempts[0].plan.budget_ms
    with Lut.open(path, readonly=True) as lut:
        predictor = LatencyPredictor.fit(lut, network).at(last.plan.statistic)
        missed = _missed(attempts, predictor)
        target = Budget(_AIM * budget_ms / missed, relative=False)
        planned = partial(allocate, predictor, importance, target, lut, weights=weights, demands=Demands.of(last.plan))
        every = options_from(lut, network)
        try:
            made = _nearest(planned, every, min(attempts, key=_from_aim).plan, target.value)
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


def _nearest(planned: Callable[..., Plan], every: _Options, anchor: Plan, target_ms: float) -> Plan:
    """The plan that comes near the target with widths nearest to those of a measured one; its proof is about all
    widths.

    Raises:
        InfeasibleBudget: no widths reach the target.
    """
    free = planned(options=every)
    for steps in _NEAR:
        with suppress(InfeasibleBudget):
            near = planned(options=_near(anchor, every, steps))
            reached = near.predicted_ms >= _REACHED * min(target_ms, free.predicted_ms)
            if reached and near.importance >= (1 - _GIVEN_UP) * free.importance:
                return _among_all(near, free)
    return free


def _near(plan: Plan, options: _Options, steps: int) -> dict[str, list[int]]:
    """A plan's widths and so many options next to each, either way."""
    found = {}
    for group, widths in options.items():
        own = plan.widths[group]
        below, above = bisect_left(widths, own), bisect_right(widths, own)
        found[group] = sorted({own, *widths[max(0, below - steps) : above + steps]})
    return found


def _among_all(near: Plan, free: Plan) -> Plan:
    """A plan that is the best of few widths, with what it gives up of the best of all."""
    own, seconds = near.certificate, free.certificate.seconds
    bound = max(own.objective, free.certificate.bound)
    gap = (bound - own.objective) / max(abs(bound), 1e-12)
    status: Literal["optimal", "feasible"] = "optimal" if gap <= RELATIVE_GAP else "feasible"
    proof = {"status": status, "bound": bound, "gap": gap, "seconds": own.seconds + seconds}
    return near.model_copy(update={"certificate": own.model_copy(update=proof), "minimum_ms": free.minimum_ms})


def _missed(attempts: Sequence[Attempt], predictor: LatencyPredictor) -> float:
    """What measured plans take over what is predicted of them: their weighted geometric mean at what is aimed at."""
    misses, weights = [], []
    for attempt in attempts:
        found = attempt.verification
        misses.append(math.log(found.measured_ms / predictor.predict(attempt.plan.widths).latency_ms))
        low, high = found.measured_interval_ms
        doubt = math.log(high / low) / 2
        weights.append(1 / max(1e-9, doubt**2 + (_DOUBTED_SHARE * _from_aim(attempt)) ** 2))
    return math.exp(float(np.average(misses, weights=weights)))


def _from_aim(attempt: Attempt) -> float:
    """How far a measured plan is from what is aimed at, as a log-ratio."""
    return abs(math.log(attempt.share / _AIM))
