"""The best choice by dynamic programming over latency-importance fronts.

Groups are eliminated one after the other. What is known of the eliminated part is a relation: one row for each choice
worth keeping, with the options of the groups that still have neighbours, its latency and its energy. Rows of equal
options compete: of those of nearly equal importance only the fastest stays. Rows that message passing proves out of
reach go. Equal blocks, whose permutations a branch-and-bound search tries one by one, cost nothing here: they add up
to the same rows.

Source: bucket elimination (Dechter, 1999) over Pareto sets, with rounding of bounded error (Warburton, 1987); bounding
the rows by a reparametrised dual is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from widthwise.planner.bounds import Ascent, Mask
from widthwise.planner.graph import Floats, Ints

__all__ = ["Front", "TooWide", "eliminate"]

_MAX_ROWS = 4_000_000
_MAX_KEYS = 2**62


class TooWide(Exception):
    """The rows would outgrow memory: these groups hang together too closely for this method."""


@dataclass(frozen=True)
class Front:
    """What dynamic programming found.

    Args:
        choice: the option of every node, shape ``(nodes,)``, or None where no choice is within reach.
        importance: no choice within reach has a higher one (-inf without any).
    """

    choice: Ints | None
    importance: float


@dataclass(frozen=True)
class _Relation:
    """Rows: options of the nodes in scope, latency, energy above the least, and the rows they were joined from."""

    scope: tuple[int, ...]
    options: Ints
    ms: Floats
    energy: Floats
    parents: tuple[tuple[_Relation, Ints], ...] = ()

    def take(self, rows: Ints | Mask) -> _Relation:
        parents = tuple((parent, pointer[rows]) for parent, pointer in self.parents)
        return _Relation(self.scope, self.options[rows], self.ms[rows], self.energy[rows], parents)

    def columns(self, nodes: Sequence[int]) -> Ints:
        return self.options[:, [self.scope.index(node) for node in nodes]]


def eliminate(
    ascent: Ascent, options: Sequence[Mask], pairs: Sequence[Mask], *, budget_ms: float, energy: float, loss: float
) -> Front:
    """The best choice of at most ``budget_ms`` among those of at most ``energy``, to within ``loss``.

    Args:
        ascent: the graph; what its messages leave in nodes and tables bounds the rows.
        options, pairs: which to consider, as :meth:`widthwise.planner.bounds.Reach.within` gives them.
        budget_ms: limit of the latency, without the graph's constant.
        energy: choices above it (price times latency less importance) are of no interest.
        loss: importance that rounding may lose; :attr:`Front.importance` allows for what it lost.

    Raises:
        TooWide: it would take too much memory.
    """
    return _Elimination(ascent, options, pairs, budget_ms, energy, loss).run()


class _Elimination:
    def __init__(
        self,
        ascent: Ascent,
        options: Sequence[Mask],
        pairs: Sequence[Mask],
        budget_ms: float,
        energy: float,
        loss: float,
    ) -> None:
        self.price, self.budget_ms = ascent.price, budget_ms
        least = ascent.constant + float(ascent.low.sum() + ascent.node_low.sum())
        self.zero = ascent.price * ascent.graph.constant_ms - least
        # What stays in place of a rounded row may have that much more energy.
        self.slack = energy - least + loss
        self.sizes = [len(mask) for mask in options]
        self.open = _given(ascent, options, pairs)
        self.step = loss / (len(self.open) + len(options) + 1)
        self.rounded = 0

    def run(self) -> Front:
        for node in _order([relation.scope for relation in self.open], self.sizes):
            touching = sorted((r for r in self.open if node in r.scope), key=lambda r: (len(r.scope), len(r.ms)))
            self.open = [r for r in self.open if node not in r.scope]
            self.open.append(self._merge(touching, drop=node))
        last = self._merge(self.open, drop=None)
        last = last.take((last.ms <= self.budget_ms) & (last.energy <= self.slack))
        if not len(last.ms):
            return Front(None, -np.inf)
        gains = self.price * last.ms - last.energy
        best = int(gains.argmax())
        choice = np.zeros(len(self.sizes), dtype=np.int64)
        _trace(last, best, choice)
        return Front(choice, float(gains[best]) + self.zero + self.rounded * self.step)

    def _merge(self, relations: Sequence[_Relation], *, drop: int | None) -> _Relation:
        """Join them all; the node to drop leaves the scope with the last join."""
        rest_ms = sum(float(r.ms.min(initial=np.inf)) for r in self.open if not any(r is other for other in relations))
        joined = relations[0]
        for i, relation in enumerate(relations[1:], start=2):
            later_ms = rest_ms + sum(float(r.ms.min(initial=np.inf)) for r in relations[i:])
            joined = self._join(joined, relation, self.budget_ms - later_ms)
            if i < len(relations):
                joined = self._thin(joined)
        if drop is not None:
            scope = tuple(node for node in joined.scope if node != drop)
            parents = joined.parents or ((joined, np.arange(len(joined.ms))),)
            joined = _Relation(scope, joined.columns(scope), joined.ms, joined.energy, parents)
        return self._thin(joined)

    def _join(self, one: _Relation, two: _Relation, most_ms: float) -> _Relation:
        shared = [node for node in one.scope if node in two.scope]
        added = [node for node in two.scope if node not in one.scope]
        keys, wanted = self._keys(two, shared), self._keys(one, shared)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], wanted, side="left")
        counts = np.searchsorted(keys[order], wanted, side="right") - starts
        total = int(counts.sum())
        if total > _MAX_ROWS:
            raise TooWide
        left = np.repeat(np.arange(len(wanted)), counts)
        right = order[np.arange(total) - np.repeat(np.cumsum(counts) - counts - starts, counts)]
        ms, energy = one.ms[left] + two.ms[right], one.energy[left] + two.energy[right]
        alive = (energy <= self.slack) & (ms <= most_ms)
        left, right = left[alive], right[alive]
        options = np.concatenate([one.options[left], two.columns(added)[right]], axis=1)
        return _Relation((*one.scope, *added), options, ms[alive], energy[alive], ((one, left), (two, right)))

    def _thin(self, relation: _Relation) -> _Relation:
        """Of rows with the same options: each has to be more important, by a step, than all that are as fast."""
        if len(relation.ms) < 2:
            return relation
        gains = np.floor((self.price * relation.ms - relation.energy) / self.step)
        order = np.lexsort((-gains, relation.ms, keys := self._keys(relation, relation.scope)))
        keys, ranks = keys[order], np.unique(gains[order], return_inverse=True)[1]
        group = np.cumsum(np.concatenate([[0], keys[1:] != keys[:-1]]))
        level = group * (int(ranks.max()) + 1) + ranks
        best = np.maximum.accumulate(level)
        alive = np.concatenate([[True], level[1:] > best[:-1]])
        self.rounded += not alive.all()
        return relation.take(order[alive])

    def _keys(self, relation: _Relation, nodes: Sequence[int]) -> Ints:
        """One number for each combination of options."""
        if np.prod([float(self.sizes[node]) for node in nodes]) > _MAX_KEYS:
            raise TooWide
        keys = np.zeros(len(relation.ms), dtype=np.int64)
        for node, column in zip(nodes, relation.columns(nodes).T, strict=True):
            keys = keys * self.sizes[node] + column
        return keys


def _given(ascent: Ascent, options: Sequence[Mask], pairs: Sequence[Mask]) -> list[_Relation]:
    """The nodes and the tables as relations."""
    given = []
    for n, (node, mask) in enumerate(zip(ascent.graph.nodes, options, strict=True)):
        kept = np.flatnonzero(mask)
        given.append(_Relation((n,), kept[:, None], node.ms[kept], ascent.theta[n][kept] - ascent.node_low[n]))
    for t, (table, mask) in enumerate(zip(ascent.graph.tables, pairs, strict=True)):
        left, right = np.nonzero(mask)
        columns = [left, right] if table.option is None else [left, right, table.option[left, right]]
        energy = ascent.tables[t][left, right] - ascent.low[t]
        given.append(_Relation(table.scope, np.stack(columns, axis=1), table.ms[left, right], energy))
    return given


def _order(scopes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> list[int]:
    """The nodes, each time the one whose elimination ties the fewest combinations of options together."""
    near = {node: {node} for node in range(len(sizes))}
    for scope in scopes:
        for node in scope:
            near[node] |= set(scope)
    order = []
    while near:
        node = min(near, key=lambda n: (float(np.prod([float(sizes[m]) for m in near[n]])), n))
        tied = near.pop(node) - {node}
        for other in tied:
            near[other] = (near[other] | tied) - {node}
        order.append(node)
    return order


def _trace(relation: _Relation, row: int, choice: Ints) -> None:
    """Write the options that a row stands for into ``choice``."""
    for parent, pointer in relation.parents:
        _trace(parent, int(pointer[row]), choice)
    if not relation.parents:
        choice[list(relation.scope)] = relation.options[row]
