"""An allocation problem as a graph of one-hot choices: nodes that carry vectors, pairs of nodes that carry tables.

What is added up along widths comes in *amounts*, always in the same order: importance given up, latency, and one for
each further limit. Costs over the same widths are merged; a concatenation becomes a node of its own, whose options are
totals, tied to its two parts by a table that knows which pair of options gives which total. Sums of more parts are
trees of such nodes, and sums that grow out of each other (dense blocks) share them. Tying totals through tables of
pairs instead of the single equation "total = sum of widths" is what keeps the linear relaxation tight.

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
from widthwise.planner.costs import SumOver, TableOver
from widthwise.planner.problem import Problem

__all__ = ["IMPORTANCE", "LATENCY", "Graph", "Node", "Sum", "Table", "Term", "merge"]

IMPORTANCE, LATENCY = 0, 1
"""Places among the amounts; limits follow in the problem's order. The first one is the importance with its sign
changed: of all amounts less is better."""

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
    """Merged costs over ``axes``, each a group's index or a :class:`Sum` (which then comes first).

    ``amounts`` has the shape ``(1 + limits, axis[, axis])``: latency, then the limits; no importance.
    """

    axes: tuple[int | Sum, ...]
    amounts: Floats


def merge(problem: Problem) -> list[Term]:
    """The costs, those over the same widths added up; sums of one group and repeated groups rewritten as plain axes."""
    index = {name: i for i, name in enumerate(problem.groups)}
    every: list[Sequence[TableOver]] = [problem.costs, *(limit.costs for limit in problem.limits)]
    counts = Counter(
        index[name] for costs in every for c in costs for a in c.over if isinstance(a, SumOver) for name in a.members
    )
    merged: dict[object, Term] = {}
    for place, costs in enumerate(every):
        for cost in costs:
            axes, table = _plain(cost, problem, index, counts)
            key = tuple(a if isinstance(a, int) else (a.members, a.plus, a.totals.tobytes()) for a in axes)
            if key not in merged:
                merged[key] = Term(axes, np.zeros((len(every), *table.shape)))
            merged[key].amounts[place] += table
    return list(merged.values())


def _plain(
    cost: TableOver, problem: Problem, index: Mapping[str, int], counts: Mapping[int, int]
) -> tuple[tuple[int | Sum, ...], Floats]:
    axes: list[int | Sum] = []
    ms = cost.table
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
        amounts: of each option alone, shape ``(amounts, options)``; the importance is what the group's best has more.
        at: where the node stands in a sweep over the network; parts come before their total.
    """

    channels: Ints
    amounts: Floats
    at: float


@dataclass(frozen=True)
class Table:
    """What two nodes' options cost together, and, for a concatenation, the total they make.

    Args:
        left, right: indices of the nodes.
        amounts: shape ``(amounts, left options, right options)``; row and column minima were moved into the nodes.
        total: index of the node of totals, or None.
        option: which of the total's options each pair makes, shape ``(left options, right options)``, or None.
    """

    left: int
    right: int
    amounts: Floats
    total: int | None = None
    option: Ints | None = None

    @property
    def scope(self) -> tuple[int, ...]:
        """The nodes it ties."""
        return (self.left, self.right) if self.total is None else (self.left, self.right, self.total)


@dataclass(frozen=True)
class Graph:
    """A problem's choices and what they add up to.

    Args:
        nodes: the groups in the problem's order, then the totals.
        tables: what pairs of nodes cost together, and which totals they make.
        constants: amounts that no choice changes, shape ``(amounts,)``.
    """

    nodes: tuple[Node, ...]
    tables: tuple[Table, ...]
    constants: Floats

    @classmethod
    def of(cls, problem: Problem, terms: Sequence[Term], kept: Sequence[Ints]) -> Graph:
        """The graph of a problem's merged costs, over the kept options (indices) of each group.

        Raises:
            InvalidProblem: concatenations so finely divided that their tables would not fit in memory.
        """
        builder = _Builder(problem, kept)
        for term in sorted(terms, key=lambda t: len(t.axes[0].members) if isinstance(t.axes[0], Sum) else 0):
            builder.add(term)
        return builder.graph()


class _Builder:
    def __init__(self, problem: Problem, kept: Sequence[Ints]) -> None:
        self.kept = kept
        self.channels = [np.array(g.widths)[k] for g, k in zip(problem.groups.values(), kept, strict=True)]
        scores = [np.array(g.importance)[k] for g, k in zip(problem.groups.values(), kept, strict=True)]
        best = math.fsum(score.max() for score in scores)
        self.constants = np.array([-best, problem.fixed_ms, *(limit.fixed for limit in problem.limits)])
        self.amounts = [np.zeros((len(self.constants), len(k))) for k in kept]
        for amounts, score in zip(self.amounts, scores, strict=True):
            amounts[IMPORTANCE] = score.max() - score
        self.at = [float(i) for i in range(len(kept))]
        self.pairs: dict[tuple[int, int], Floats] = {}
        self.joins: list[Table] = []
        self.totals: dict[Members, int] = {}
        self.entries = 0

    def add(self, term: Term) -> None:
        nodes, amounts = [], term.amounts
        for d, axis in enumerate(term.axes):
            if isinstance(axis, Sum):
                nodes.append(self.total(axis.members))
                rows = np.searchsorted(axis.totals, self.channels[nodes[-1]] + axis.plus)
            else:
                nodes.append(axis)
                rows = self.kept[axis]
            amounts = amounts.take(rows, axis=d + 1)
        if len(nodes) == 1:
            self.amounts[nodes[0]][LATENCY:] += amounts
        else:
            left, right = sorted(nodes)
            amounts = amounts if nodes[0] == left else amounts.swapaxes(1, 2)
            self.pairs[left, right] = self.pairs.get((left, right), 0.0) + amounts

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
        self.amounts.append(np.zeros((len(self.constants), len(channels))))
        self.at.append(np.nextafter(max(self.at[left], self.at[right]), np.inf))
        nothing = np.broadcast_to(0.0, (len(self.constants), *sums.shape))
        self.joins.append(Table(left, right, nothing, node, option.reshape(sums.shape)))
        return node

    def _part(self, members: Members) -> tuple[int, int]:
        return members[0] if len(members) == 1 else (self.total(members), 1)

    def graph(self) -> Graph:
        residuals = (self._residual(*pair, amounts) for pair, amounts in self.pairs.items())
        tables = [*self.joins, *(table for table in residuals if table is not None)]
        nodes = tuple(Node(*column) for column in zip(self.channels, self.amounts, self.at, strict=True))
        return Graph(nodes, tuple(tables), self.constants)

    def _residual(self, left: int, right: int, amounts: Floats) -> Table | None:
        """What is left of a table when its separable part moves into the nodes, or None."""
        scales = amounts.max(axis=(1, 2))
        rows = amounts.min(axis=2)
        amounts = amounts - rows[:, :, None]
        columns = amounts.min(axis=1)
        amounts = amounts - columns[:, None, :]
        self.amounts[left][LATENCY:] += rows
        self.amounts[right][LATENCY:] += columns
        if (amounts.max(axis=(1, 2)) <= 1e-13 * scales).all():
            return None
        return Table(left, right, np.concatenate([np.zeros_like(amounts[:1]), amounts]))
