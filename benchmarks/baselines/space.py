"""An allocation problem as arrays: many width vectors priced at once, and one group's share of the latency."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from widthwise.planner.problem import Cost, Problem, SumOver

__all__ = ["Floats", "Ints", "Space"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-12
"""Sums over arrays may differ from the exact ones by this share; a choice that near the budget counts as over it."""


@dataclass(frozen=True)
class _Axis:
    """One side of a cost: the option of a group, or the row of a total."""

    group: int | None
    members: tuple[tuple[int, int], ...] = ()
    plus: int = 0
    totals: Ints | None = None


@dataclass(frozen=True)
class _Priced:
    """A cost with its axes as numbers of groups."""

    axes: tuple[_Axis, ...]
    ms: Floats

    @property
    def owners(self) -> tuple[int, ...]:
        """The groups whose channels it belongs to: its last axis, a layer's output where it has an input too."""
        last = self.axes[-1]
        return (last.group,) if last.group is not None else tuple(group for group, _ in last.members)


class Space:
    """All choices of a problem. A choice is one option for each group, shape ``(groups,)``; options ascend in width.

    Args:
        problem: in costs over two widths the last is the layer's output. Only the linear model of HALP
            (:meth:`changes_ms`) asks which is which.

    Attributes:
        widths, importance: one array a group, shape ``(options,)``.
        calls: width vectors priced so far.

    Example:
        >>> problem = Problem(budget_ms=3.0, groups={"a": {"widths": [4, 8], "importance": [1.0, 2.0]}},
        ...                   costs=[{"over": ["a"], "ms": [0.5, 2.0]}])
        >>> Space(problem).latency_ms(np.array([[0], [1]]))
        array([0.5, 2. ])
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0
        self.names = list(problem.groups)
        self.widths = [np.array(group.widths) for group in problem.groups.values()]
        self.importance = [np.array(group.importance) for group in problem.groups.values()]
        self.sizes = np.array([len(widths) for widths in self.widths], dtype=np.int64)
        index = {name: i for i, name in enumerate(self.names)}
        self._costs = [_priced(cost, index) for cost in problem.costs]
        self._owned: list[list[_Priced]] = [[] for _ in self.names]
        for cost in self._costs:
            for group in cost.owners:
                self._owned[group].append(cost)

    @property
    def dense(self) -> Ints:
        """The widest option of each group."""
        return self.sizes - 1

    @property
    def most_ms(self) -> float:
        """The budget, less what rounding may add."""
        return self.problem.budget_ms - _ROUNDING * abs(self.problem.budget_ms)

    def latency_ms(self, choices: Ints) -> Floats:
        """Latencies of many choices, shape ``(n, groups)`` → ``(n,)``."""
        self.calls += len(choices)
        total = np.full(len(choices), self.problem.fixed_ms)
        for cost in self._costs:
            total += cost.ms[tuple(self._rows(axis, choices) for axis in cost.axes)]
        return total

    def importance_of(self, choices: Ints) -> Floats:
        """What many choices keep, shape ``(n, groups)`` → ``(n,)``."""
        total = np.zeros(len(choices))
        for group, importance in enumerate(self.importance):
            total += importance[choices[:, group]]
        return total

    def meets(self, choice: Ints) -> bool:
        """Whether a choice is within the budget."""
        return bool(self.latency_ms(choice[None])[0] <= self.most_ms)

    def named(self, choice: Ints) -> dict[str, int]:
        """Group → width of a choice."""
        return {name: int(widths[option]) for name, widths, option in zip(self.names, self.widths, choice, strict=True)}

    def first(self, candidates: list[Ints]) -> dict[str, int] | None:
        """The first of these choices that is within the budget; None without any."""
        return next((self.named(choice) for choice in candidates if self.meets(choice)), None)

    def narrowings(self, choice: Ints, group: int) -> Ints:
        """The choices that differ from this one by a narrower option of one group, the narrowest first."""
        options = np.arange(choice[group])
        changed = np.repeat(choice[None], len(options), axis=0)
        changed[:, group] = options
        return changed

    def changes_ms(self, choice: Ints, group: int) -> Floats:
        """How the latency of the costs that a group owns changes with its option, all else equal; shape ``(options,)``.

        A layer's input stays as it is, also where it is the same group.
        """
        options = np.arange(self.sizes[group])
        changed = np.repeat(choice[None], len(options), axis=0)
        changed[:, group] = options
        total = np.zeros(len(options))
        for cost in self._owned[group]:
            before = [self._rows(axis, choice[None]) for axis in cost.axes]
            after = [np.repeat(rows, len(options)) for rows in before[:-1]] + [self._rows(cost.axes[-1], changed)]
            total += cost.ms[tuple(after)] - cost.ms[tuple(before)]
        return total

    def _rows(self, axis: _Axis, choices: Ints) -> Ints:
        if axis.group is not None:
            return choices[:, axis.group]
        totals = np.full(len(choices), axis.plus)
        for group, times in axis.members:
            totals += times * self.widths[group][choices[:, group]]
        assert axis.totals is not None
        return np.searchsorted(axis.totals, totals)


def _priced(cost: Cost, index: dict[str, int]) -> _Priced:
    axes = []
    for axis in cost.over:
        if isinstance(axis, SumOver):
            members = tuple((index[name], times) for name, times in axis.members.items())
            axes.append(_Axis(None, members, axis.plus, np.array(cost.sums)))
        else:
            axes.append(_Axis(index[axis]))
    return _Priced(tuple(axes), cost.ms)


Allocator = Callable[[Problem], dict[str, int] | None]
"""A problem → widths within its budget, or None where none were found."""


def geometric(start: float, end: float, steps: int) -> list[float]:
    """``steps`` numbers from after ``start`` to ``end``, each the same share of the one before.

    Example:
        >>> [round(x, 6) for x in geometric(8.0, 1.0, 3)]
        [4.0, 2.0, 1.0]
    """
    return [math.exp((1 - t / steps) * math.log(start) + t / steps * math.log(end)) for t in range(1, steps + 1)]
