"""Uniform width, FastNAS's threshold and NetAdapt's greedy steps."""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.space import Floats, Ints, Space
from widthwise.planner.problem import Problem

__all__ = ["fastnas", "netadapt", "uniform"]

_FIRST_STEP, _DECAY = 0.025, 0.98
_LEAST_STEP = 1e-3


def uniform(problem: Problem) -> dict[str, int] | None:
    """One share of the dense width for all groups, the largest that meets the budget.

    Source: the width multiplier of MobileNets (Howard et al., 2017, 1704.04861).

    Adapted: a group takes its widest option within the share, or its narrowest where that is wider; every share at
    which some width changes is tried.

    Example:
        >>> problem = Problem(budget_ms=3.0, costs=[{"over": ["a"], "ms": [0.5, 2.0, 4.0]}],
        ...                   groups={"a": {"widths": [4, 8, 12], "importance": [1.0, 2.0, 3.0]}})
        >>> uniform(problem)
        {'a': 8}
    """
    space = Space(problem)
    shares = np.unique(np.concatenate([widths / widths[-1] for widths in space.widths]))[::-1]
    return space.first([_at_share(space, share) for share in shares])


def _at_share(space: Space, share: float) -> Ints:
    below = [np.searchsorted(widths / widths[-1], share, side="right") - 1 for widths in space.widths]
    return np.maximum(np.array(below, dtype=np.int64), 0)


def fastnas(problem: Problem) -> dict[str, int] | None:
    """The least threshold on what any single group loses: each takes its narrowest width that loses no more.

    Source: FastNAS of NVIDIA's Model Optimizer, from its documentation and code: a score for every width of every layer
    alone, made monotone, and bisection on the threshold.

    Adapted: what a width loses is importance, not validation accuracy; every threshold at which some width changes is
    tried, from the least, which finds at least what bisection does.
    """
    space = Space(problem)
    losses = [_losses(importance) for importance in space.importance]
    thresholds = np.unique(np.concatenate(losses))
    return space.first([np.array([int(np.argmax(lost <= threshold)) for lost in losses]) for threshold in thresholds])


def _losses(importance: Floats) -> Floats:
    """What each width loses against the widest; never less where it is narrower."""
    return np.maximum.accumulate((importance[-1] - importance)[::-1])[::-1].clip(min=0.0)


def netadapt(problem: Problem) -> dict[str, int] | None:
    """Step by step: each group alone is narrowed until the step's latency is saved; the change that loses least stays.

    Source: Yang et al., NetAdapt, ECCV 2018 (1804.03230), and the authors' code, whose first step is 2.5 % of the
    dense latency. Latency is the whole network's at each proposal's widths, as theirs.

    Adapted: importance stands for the accuracy after short fine-tuning. Steps shrink by 2 % each: with the code's 4 %
    they add up to less than two thirds of the latency. Where no group can save a step alone, where the published
    method ends, the step is halved, in the end to nothing; the last step is the rest that is missing.
    """
    space = Space(problem)
    choice = space.dense
    dense_ms = now_ms = float(space.latency_ms(choice[None])[0])
    step_ms = _FIRST_STEP * dense_ms
    while now_ms > space.most_ms:
        if not choice.any():
            return None
        moved = _step(space, choice, max(now_ms - step_ms, space.most_ms))
        if moved is not None:
            choice, step_ms = moved, step_ms * _DECAY
            now_ms = float(space.latency_ms(choice[None])[0])
        elif step_ms > _LEAST_STEP * _FIRST_STEP * dense_ms:
            step_ms /= 2
        else:
            choice = _cheapest(space, choice)
            now_ms, step_ms = float(space.latency_ms(choice[None])[0]), _FIRST_STEP * dense_ms
    return space.named(choice)


def _step(space: Space, choice: Ints, target_ms: float) -> Ints | None:
    """Of the widest change of each group alone that reaches the target, the one that keeps most."""
    proposals: list[Ints] = []
    for group in range(len(choice)):
        changed = space.narrowings(choice, group)
        reached = changed[space.latency_ms(changed) <= target_ms] if len(changed) else changed
        if len(reached):
            proposals.append(reached[-1])
    if not proposals:
        return None
    return proposals[int(space.importance_of(np.array(proposals)).argmax())]


def _cheapest(space: Space, choice: Ints) -> Ints:
    """One option narrower where that loses least."""
    proposals: list[Ints] = [choice - (np.arange(len(choice)) == group) for group in np.flatnonzero(choice)]
    return proposals[int(space.importance_of(np.array(proposals)).argmax())]
