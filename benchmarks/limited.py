"""Allocation problems with further limits, the other objective and bounds on widths, for ``benchmarks.allocation``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.instances import NETWORKS, random_problem
from widthwise.planner.problem import Amount, Limit, Problem, SumOver

__all__ = ["exhaustive", "network", "random_limited"]


def random_limited(rng: np.random.Generator) -> Problem:
    """A small problem of any form with up to three further limits, of either objective; some of them infeasible."""
    base = random_problem(rng)
    others = [random_problem(rng) for _ in range(int(rng.integers(1, 4)))]
    groups = base.groups
    bounds = {
        name: {"min": int(rng.integers(1, width + 1)), "max": 11}
        for name in groups
        if rng.random() < 0.2 and (width := int(rng.choice(groups[name].widths)))
    }
    widths = {
        name: int(rng.choice([w for w in group.widths if w >= bounds.get(name, {"min": 1})["min"]]))
        for name, group in groups.items()
    }
    limits = []
    for place, other in enumerate(others):
        fitting = (_fitted(cost.model_dump(), groups, rng) for cost in other.costs)
        costs = tuple(fitted for fitted in fitting if fitted is not None)
        limit = Limit(name=f"limit{place}", most=0.0, costs=costs, fixed=other.fixed_ms)
        reached = Problem(groups=groups, costs=(), limits=(limit,)).amounts(widths)[limit.name]
        limits.append(limit.model_copy(update={"most": reached * float(rng.choice([0.8, 1.0, 1.0, 1.1, 1.5]))}))
    data: dict[str, Any] = {"groups": groups, "costs": base.costs, "fixed_ms": base.fixed_ms, "limits": limits}
    data["bounds"] = bounds
    if rng.random() < 0.5:
        keep = base.importance(widths) + float(rng.choice([-0.5, 0.0, 0.0, 0.4]))
        return Problem(objective="latency", keep=keep, **data)
    if rng.random() < 0.1:
        return Problem(**data)
    budget_ms = max(base.latency_ms(widths) * float(rng.choice([0.8, 1.0, 1.1, 1.5])), 0.01)
    return Problem(budget_ms=budget_ms, **data)


def _fitted(cost: dict[str, Any], groups: Any, rng: np.random.Generator) -> Amount | None:
    """A cost over the same axes with amounts that fit these groups, or None where a group is missing."""
    over: list[Any] = [axis["sum"] if isinstance(axis, dict) else axis for axis in cost["over"]]
    if not {name for axis in over for name in ([axis] if isinstance(axis, str) else axis)} <= set(groups):
        return None
    lengths: list[int] = []
    sums: tuple[int, ...] | None = None
    for place, axis in enumerate(over):
        if isinstance(axis, str):
            lengths.append(len(groups[axis].widths))
        else:
            totals = np.zeros(1, dtype=int)
            for name in axis:
                own = np.array(groups[name].widths) * axis.count(name)
                totals = np.unique(np.add.outer(totals, own)) if name not in axis[: axis.index(name)] else totals
            members = sorted(set(axis))
            choices = itertools.product(*(groups[name].widths for name in members))
            found = {sum(axis.count(n) * w for n, w in zip(members, c, strict=True)) for c in choices}
            sums = tuple(sorted(found))
            over[place] = SumOver(sum=tuple(axis))
            lengths.append(len(sums))
    return Amount(over=tuple(over), amount=np.round(rng.uniform(0, 2, lengths), 1), sums=sums)


def every(problem: Problem) -> Iterator[dict[str, int]]:
    """All widths that the bounds allow."""
    options = [[group.widths[i] for i in problem.allowed[name]] for name, group in problem.groups.items()]
    for choice in itertools.product(*options):
        yield dict(zip(problem.groups, choice, strict=True))


def exhaustive(problem: Problem) -> float:
    """The highest importance, or the least latency, within all limits, by trying all widths; NaN where none are."""
    best = math.nan
    for widths in every(problem):
        latency_ms, importance = problem.latency_ms(widths), problem.importance(widths)
        amounts = problem.amounts(widths)
        if any(amounts[limit.name] > limit.most for limit in problem.limits):
            continue
        if problem.objective == "importance" and latency_ms <= problem.budget_ms:
            best = max(importance, best) if best == best else importance
        if problem.objective == "latency" and problem.keep is not None and importance >= problem.keep:
            best = min(latency_ms, best) if best == best else latency_ms
    return best


def network(name: str, *, limits: dict[str, float], keep: float | None = None, **options: Any) -> Problem:
    """One of the networks of :mod:`benchmarks.instances` with limits on parameters and MACs, as shares of the dense.

    Both are products of the widths of what the network's costs over two groups tie; MACs count each layer with a
    weight of its own, as layers run on maps of different sizes.

    Args:
        keep: share of the importance to keep at the least latency, instead of the budget.
    """
    problem = NETWORKS[name](**options)
    rng = np.random.default_rng(1)
    dense = {group: own.widths[-1] for group, own in problem.groups.items()}
    weights = {"parameters": [1] * len(problem.costs), "macs": list(4 ** rng.integers(1, 5, len(problem.costs)))}
    made = []
    for limit, share in limits.items():
        costs = tuple(
            Amount(over=cost.over, amount=_product(cost, problem) * weight, sums=cost.sums)
            for cost, weight in zip(problem.costs, weights[limit], strict=True)
            if len(cost.over) == 2
        )
        whole = Limit(name=limit, most=1.0, costs=costs)
        total = Problem(groups=problem.groups, costs=(), limits=(whole,)).amounts(dense)[limit]
        made.append(whole.model_copy(update={"most": share * total}))
    if keep is None:
        return problem.model_copy(update={"limits": tuple(made)})
    most = problem.importance(dense)
    data: dict[str, Any] = {"groups": problem.groups, "costs": problem.costs, "fixed_ms": problem.fixed_ms}
    return Problem(objective="latency", keep=keep * most, limits=tuple(made), **data)


def _product(cost: Any, problem: Problem) -> npt.NDArray[np.float64]:
    sides = [cost.sums if isinstance(axis, SumOver) else problem.groups[axis].widths for axis in cost.over]
    return np.array(sides[0], dtype=float)[:, None] * np.array(sides[1], dtype=float)
