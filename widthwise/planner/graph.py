"""An allocation problem as a graph of one-hot choices: nodes that carry vectors, pairs of nodes that carry tables.

Costs over the same widths are merged; a concatenation becomes a node of its own, whose options are totals, tied to
its two parts by a table that knows which pair of options gives which total. Sums of more parts are trees of such
nodes, and sums that grow out of each other (dense blocks) share them. Tying totals through tables of pairs instead
of the single equation "total = sum of widths" is what keeps the linear relaxation tight.

Source of the polytope: local consistency as in MDP (CVPR 2025); the trees over totals are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widthwise.luts.errors import InvalidProblem
from widthwise.planner.problem import Cost, Problem, SumOver

__all__ = ["Graph", "Node", "Sum", "Table", "Term", "merge"]

_MAX_ENTRIES = 20_000_000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Members = tuple[tuple[int, int], ...]
"""(group, how often) of a concatenation."""


@dataclass(frozen=True)
class Sum:
    """A concatenation's axis: members, constant channels, and the total each row stands for."""

    members: Members
    plus: int
    totals: Ints


@dataclass(frozen=True)
class Term:
    """Merged costs: ``ms`` over ``axes``, each a group's index or a :class:`Sum` (which then comes first)."""

    axes: tuple[int | Sum, ...]
    ms: Floats


def merge(problem: Problem) -> list[Term]:
    """The costs, those over the same widths added up; sums of one group and repeated groups rewritten as plain axes."""
    index = {name: i for i, name in enumerate(problem.groups)}
    counts = Counter(
        index[name] for cost in problem.costs for a in cost.over if isinstance(a, SumOver) for name in a.members
    )
    merged: dict[object, Term] = {}
    for cost in problem.costs:
        axes, ms = _plain(cost, problem, index, counts)
        key = tuple(a if isinstance(a, int) else (a.members, a.plus, a.totals.tobytes()) for a in axes)
        merged[key] = Term(axes, merged[key].ms + ms if key in merged else ms)
    return list(merged.values())


def _plain(
    cost: Cost, problem: Problem, index: Mapping[str, int], counts: Mapping[int, int]
) -> tuple[tuple[int | Sum, ...], Floats]:
    axes: list[int | Sum] = []
    ms = cost.ms
    for d, axis in enumerate(cost.over):
        if isinstance(axis, str):
            axes.append(index[axis])
        elif len(axis.members) == 1:
            ((name, times),) = axis.members.items()
            ms = ms.take([cost.rows_of_sums[axis.plus + times * w] for w in problem.groups[name].widths], axis=d)
            axes.append(index[name])
        else:
            # Members of most sums first: sums that grow out of each other then begin alike, however they are listed
            members = sorted(((index[n], t) for n, t in axis.members.items()), key=lambda m: (-counts[m[0]], m[0]))
            axes.append(Sum(tuple(members), axis.plus, np.array(cost.sums)))
    if len(axes) == 2 and axes[0] == axes[1]:
        return (axes[0],), ms.diagonal()
    if len(axes) == 2 and (isinstance(axes[1], Sum) or (isinstance(axes[0], int) and axes[0] > axes[1])):
        return (axes[1], axes[0]), ms.T
    return tuple(axes), ms


@dataclass(frozen=True)
class Node:
    """A one-hot choice.

    Args:
        channels: what each option stands for, shape ``(options,)``.
        importance: of each option less that of the group's best, at most 0 (zeros for a total), shape ``(options,)``.
        ms: latency of each option alone, shape ``(options,)``.
        at: where the node stands in a sweep over the network; parts come before their total.
    """

    channels: Ints
    importance: Floats
    ms: Floats
    at: float


@dataclass(frozen=True)
class Table:
    """Latency of two nodes' options together, and, for a concatenation, the total they make.

    Args:
        left, right: indices of the nodes.
        ms: shape ``(left options, right options)``; its row and column minima were moved into the nodes.
        total: index of the node of totals, or None.
        option: which of the total's options each pair makes, the shape of ``ms``, or None.
    """

    left: int
    right: int
    ms: Floats
    total: int | None = None
    option: Ints | None = None

    @property
    def scope(self) -> tuple[int, ...]:
        """The nodes it ties."""
        return (self.left, self.right) if self.total is None else (self.left, self.right, self.total)


@dataclass(frozen=True)
class Graph:
    """A problem's choices and their latencies.

    Args:
        nodes: the groups in the problem's order, then the totals.
        tables: what pairs of nodes cost together, and which totals they make.
        constant_ms: latency that no choice changes.
        constant_importance: that of the best option of every group.
    """

    nodes: tuple[Node, ...]
    tables: tuple[Table, ...]
    constant_ms: float
    constant_importance: float

    @classmethod
    def of(cls, problem: Problem, terms: Sequence[Term], kept: Sequence[Ints]) -> Graph:
        """The graph of a problem's merged costs, over the kept options (indices) of each group.

        Raises:
            InvalidProblem: concatenations so finely divided that their tables would not fit in memory.
        """
        builder = _Builder(problem, kept)
        for term in sorted(terms, key=lambda t: len(t.axes[0].members) if isinstance(t.axes[0], Sum) else 0):
            builder.add(term)
        return builder.graph(problem.fixed_ms)


class _Builder:
    def __init__(self, problem: Problem, kept: Sequence[Ints]) -> None:
        self.kept = kept
        self.channels = [np.array(g.widths)[k] for g, k in zip(problem.groups.values(), kept, strict=True)]
        scores = [np.array(g.importance)[k] for g, k in zip(problem.groups.values(), kept, strict=True)]
        self.constant_importance = math.fsum(score.max() for score in scores)
        self.importance = [score - score.max() for score in scores]
        self.ms = [np.zeros(len(k)) for k in kept]
        self.at = [float(i) for i in range(len(kept))]
        self.pairs: dict[tuple[int, int], Floats] = {}
        self.joins: list[Table] = []
        self.totals: dict[Members, int] = {}
        self.entries = 0

    def add(self, term: Term) -> None:
        nodes, ms = [], term.ms
        for d, axis in enumerate(term.axes):
            if isinstance(axis, Sum):
                nodes.append(self.total(axis.members))
                rows = np.searchsorted(axis.totals, self.channels[nodes[-1]] + axis.plus)
            else:
                nodes.append(axis)
                rows = self.kept[axis]
            ms = ms.take(rows, axis=d)
        if len(nodes) == 1:
            self.ms[nodes[0]] = self.ms[nodes[0]] + ms
        else:
            left, right = sorted(nodes)
            ms = ms if nodes[0] == left else ms.T
            self.pairs[left, right] = self.pairs.get((left, right), 0.0) + ms

    def total(self, members: Members) -> int:
        """The node of a concatenation's totals; what another sum already adds up is not added up again."""
        if members not in self.totals:
            cut = next((n for n in range(len(members) - 1, 1, -1) if members[:n] in self.totals), len(members) // 2)
            self.totals[members] = self._join(self._part(members[:cut]), self._part(members[cut:]))
        return self.totals[members]

    def _join(self, one: tuple[int, int], two: tuple[int, int]) -> int:
        (left, a), (right, b) = one, two
        self.entries += len(self.channels[left]) * len(self.channels[right])
        if self.entries > _MAX_ENTRIES:
            raise InvalidProblem(
                f"needs concatenations of at most {_MAX_ENTRIES:,} pairs of totals; use coarser widths"
            )
        sums = np.add.outer(a * self.channels[left], b * self.channels[right])
        channels, option = np.unique(sums, return_inverse=True)
        node = len(self.channels)
        self.channels.append(channels)
        self.importance.append(np.zeros(len(channels)))
        self.ms.append(np.zeros(len(channels)))
        self.at.append(np.nextafter(max(self.at[left], self.at[right]), np.inf))
        self.joins.append(Table(left, right, np.zeros(sums.shape), node, option.reshape(sums.shape)))
        return node

    def _part(self, members: Members) -> tuple[int, int]:
        return members[0] if len(members) == 1 else (self.total(members), 1)

    def graph(self, constant_ms: float) -> Graph:
        tables = [*self.joins, *(t for (i, j), ms in self.pairs.items() if (t := self._residual(i, j, ms)) is not None)]
        columns = zip(self.channels, self.importance, self.ms, self.at, strict=True)
        nodes = tuple(Node(*column) for column in columns)
        return Graph(nodes, tuple(tables), constant_ms, self.constant_importance)

    def _residual(self, left: int, right: int, ms: Floats) -> Table | None:
        """What is left of a table when its separable part moves into the nodes, or None."""
        scale = ms.max()
        rows = ms.min(axis=1)
        ms = ms - rows[:, None]
        columns = ms.min(axis=0)
        ms = ms - columns
        self.ms[left] = self.ms[left] + rows
        self.ms[right] = self.ms[right] + columns
        return None if ms.max() <= 1e-13 * scale else Table(left, right, ms)
