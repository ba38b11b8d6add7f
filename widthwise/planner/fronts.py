"""The best choice by dynamic programming over fronts of what is limited and what is asked for.

Groups are eliminated one after the other. What is known of the eliminated part is a relation: one row for each choice
worth keeping, with the options of the groups that still have neighbours, its limited amounts and its energy. Rows of
equal options compete: of those of nearly equal objective only those stay that no other one undercuts in all that is
limited. Rows that message passing proves out of reach go. Equal blocks, whose permutations a branch-and-bound search
tries one by one, cost nothing here: they add up to the same rows.

Source: bucket elimination (Dechter, 1999) over Pareto sets, with rounding of bounded error (Warburton, 1987); bounding
the rows by a reparametrised dual is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from widthwise.planner.bounds import Ascent, Mask
from widthwise.planner.graph import Floats, Ints
from widthwise.planner.incomparable import incomparable

__all__ = ["Front", "TooWide", "eliminate"]

_MAX_ROWS = 4_000_000
_MAX_PAIRS = 100_000_000
_MAX_PAIRS_OF_SEVERAL = 10_000_000
"""With several limits, where telling which rows stay takes ten times as long."""
_CHUNK = 1_000_000
_CELLS = 2**20
_FEW = 20_000
_MAX_KEYS = 2**62
_SAME = 1e-12
_LARGEST = float(np.finfo(np.float64).max)


class TooWide(Exception):
    """The rows would outgrow memory: these groups hang together too closely for this method."""


@dataclass(frozen=True)
class Front:
    """What dynamic programming found.

    Args:
        choice: the option of every node, shape ``(nodes,)``, or None where no choice is within reach.
        least: no choice within reach has a lower objective (inf without any).
    """

    choice: Ints | None
    least: float


@dataclass(frozen=True)
class _Relation:
    """Rows: options of the nodes in scope, limited amounts, energy above the least, and the rows they were joined from.

    ``options`` has the shape ``(rows, nodes)``, ``amounts`` ``(limits, rows)``.
    """

    scope: tuple[int, ...]
    options: Ints
    amounts: Floats
    energy: Floats
    parents: tuple[tuple[_Relation, Ints], ...] = ()

    def take(self, rows: Ints | Mask) -> _Relation:
        parents = tuple((parent, pointer[rows]) for parent, pointer in self.parents)
        return _Relation(self.scope, self.options[rows], self.amounts[:, rows], self.energy[rows], parents)

    def columns(self, nodes: Sequence[int]) -> Ints:
        return self.options[:, [self.scope.index(node) for node in nodes]]

    def over(self, scope: tuple[int, ...]) -> _Relation:
        """The same rows without the options of other nodes."""
        return _Relation(scope, self.columns(scope), self.amounts, self.energy, self.parents)


@dataclass(frozen=True)
class _Rest:
    """What the relations not joined yet add at least: amounts ``(limits, n)``, energy ``(n,)``; n is 1 or rows."""

    amounts: Floats
    energy: Floats


def eliminate(
    ascent: Ascent,
    options: Sequence[Mask],
    pairs: Sequence[Mask],
    *,
    limits: Mapping[int, float],
    energy: float,
    loss: float,
    late: Callable[[], bool] = lambda: False,
) -> Front:
    """The best choice within the limits among those of at most ``energy``, to within ``loss``.

    The objective is the energy less what the limited amounts add to it.

    Args:
        ascent: the graph; what its messages leave in nodes and tables bounds the rows.
        options, pairs: which to consider, as :meth:`widthwise.planner.bounds.Reach.within` gives them.
        limits: amount → how much of it there may be, the graph's constant included.
        energy: choices above it are of no interest.
        loss: of the objective that rounding may lose; :attr:`Front.least` allows for what it lost.
        late: whether to give up.

    Raises:
        TooWide: it would take too much memory, or it is late.
    """
    return _Elimination(ascent, options, pairs, limits, energy, loss, late).run()


class _Elimination:
    def __init__(
        self,
        ascent: Ascent,
        options: Sequence[Mask],
        pairs: Sequence[Mask],
        limits: Mapping[int, float],
        energy: float,
        loss: float,
        late: Callable[[], bool],
    ) -> None:
        self.late = late
        limited = list(limits)
        self.prices, constants = ascent.prices[limited], ascent.graph.constants[limited]
        self.most = np.array(list(limits.values())) - constants
        least = ascent.constant + float(ascent.low.sum() + ascent.node_low.sum())
        self.zero = least - float(self.prices @ constants)
        # What stays in place of a rounded row may have that much more energy.
        self.slack = min(energy - least + loss, _LARGEST)
        self.sizes = [len(mask) for mask in options]
        self.open = _given(ascent, options, pairs, limited)
        self.unit = _SAME * _largest(self.open, np.abs(self.most))
        self.step = loss / (len(self.open) + len(options) + 1)
        self.rounded = 0

    def run(self) -> Front:
        for node in _order([relation.scope for relation in self.open], self.sizes):
            touching = sorted((r for r in self.open if node in r.scope), key=lambda r: (len(r.scope), len(r.energy)))
            self.open = [r for r in self.open if node not in r.scope]
            self.open.append(self._merge(touching, drop=node))
        last = self._merge(self.open, drop=None)
        last = last.take((last.amounts <= self.most[:, None]).all(axis=0) & (last.energy <= self.slack))
        if not len(last.energy):
            return Front(None, np.inf)
        gains = self.prices @ last.amounts - last.energy
        best = int(gains.argmax())
        choice = np.zeros(len(self.sizes), dtype=np.int64)
        _trace(last, best, choice)
        return Front(choice, self.zero - float(gains[best]) - self.rounded * self.step)

    def _merge(self, relations: Sequence[_Relation], *, drop: int | None) -> _Relation:
        """Join them all; the node to drop leaves the scope with the last join."""
        outside = [r for r in self.open if not any(r is other for other in relations)]
        rest = _Rest(
            sum((r.amounts.min(axis=1, initial=np.inf, keepdims=True) for r in outside), np.zeros((len(self.most), 1))),
            sum((r.energy.min(initial=np.inf, keepdims=True) for r in outside), np.zeros(1)),
        )
        joined = relations[0]
        if len(relations) == 1 and drop is not None:
            scope = tuple(node for node in joined.scope if node != drop)
            parents = joined.parents or ((joined, np.arange(len(joined.energy))),)
            return self._thin(_Relation(scope, joined.columns(scope), joined.amounts, joined.energy, parents))
        for i, relation in enumerate(relations[1:], start=2):
            later = relations[i:]
            joined = self._join(joined, relation, self._after(joined, later, drop, rest), None if later else drop)
        return joined

    def _after(self, joined: _Relation, later: Sequence[_Relation], node: int | None, rest: _Rest) -> _Rest:
        """What at least is added to each row: by the relations to join later, given the row's option, and the rest."""
        scope = [] if node is None else [node]
        mine = self._keys(joined, scope)
        amounts, energy = np.repeat(rest.amounts, len(mine), axis=1), np.repeat(rest.energy, len(mine))
        for relation in later:
            keys = self._keys(relation, scope)
            for total, values in (*zip(amounts, relation.amounts, strict=True), (energy, relation.energy)):
                least = np.full(1 if node is None else self.sizes[node], np.inf)
                np.minimum.at(least, keys, values)
                total += least[mine]
        return _Rest(amounts, energy)

    def _join(self, one: _Relation, two: _Relation, after: _Rest, drop: int | None) -> _Relation:
        """The rows of both together that can still be within reach, thinned; a part at a time, to bound the memory."""
        shared = [node for node in one.scope if node in two.scope]
        added = [node for node in two.scope if node not in one.scope]
        scope = tuple(node for node in (*one.scope, *added) if node != drop)
        wanted = self._keys(one, shared)
        order, starts, counts = _within(
            wanted, self.slack - one.energy - after.energy, self._keys(two, shared), two.energy
        )
        most = self.most[:, None] - one.amounts - after.amounts
        if counts.sum() > (_MAX_PAIRS if len(self.most) == 1 else _MAX_PAIRS_OF_SEVERAL):
            raise TooWide
        parts: list[_Relation] = []
        dropped = False
        for first, last in _chunks(counts):
            if self.late():
                raise TooWide
            many = counts[first:last]
            left = np.repeat(np.arange(first, last), many)
            right = order[starts[left] + np.arange(len(left)) - np.repeat(np.cumsum(many) - many, many)]
            alive = np.logical_and.reduce([a[right] <= m[left] for a, m in zip(two.amounts, most, strict=True)])
            left, right = left[alive], right[alive]
            rows = _Relation(
                (*one.scope, *added),
                np.concatenate([one.options[left], two.columns(added)[right]], axis=1),
                one.amounts[:, left] + two.amounts[:, right],
                one.energy[left] + two.energy[right],
                ((one, left), (two, right)),
            )
            parts.append(self._best(rows.over(scope)))
            dropped |= len(parts[-1].energy) < len(left)
            if last == len(counts) or sum(len(part.energy) for part in parts) > _MAX_ROWS:
                rows = _concatenated(parts)
                parts = [self._best(rows)]
                dropped |= len(parts[0].energy) < len(rows.energy)
                if len(parts[0].energy) > _MAX_ROWS:
                    raise TooWide
        # All of it rounds the same numbers, so what stays in place of a row falls short by one step, however often.
        self.rounded += dropped
        return parts[0]

    def _thin(self, relation: _Relation) -> _Relation:
        best = self._best(relation)
        self.rounded += len(best.energy) < len(relation.energy)
        return best

    def _best(self, relation: _Relation) -> _Relation:
        """Of rows with the same options: each has to be better, by a step, than all that take no more of anything."""
        if len(relation.energy) < 2:
            return relation
        gains = np.floor((self.prices @ relation.amounts - relation.energy) / self.step)
        keys = self._keys(relation, relation.scope)
        if len(self.most) != 1:
            return relation.take(incomparable(keys, relation.amounts / self.unit, gains))
        ms = relation.amounts[0]
        near = _near(keys, ms, gains, math.prod(self.sizes[node] for node in relation.scope))
        keys, ms, gains = keys[near], ms[near], gains[near]
        order = np.lexsort((-gains, ms, keys))
        keys, ranks = keys[order], np.unique(gains[order], return_inverse=True)[1]
        group = np.cumsum(np.concatenate([[0], keys[1:] != keys[:-1]]))
        level = group * (int(ranks.max()) + 1) + ranks
        best = np.maximum.accumulate(level)
        return relation.take(near[order[np.concatenate([[True], level[1:] > best[:-1]])]])

    def _keys(self, relation: _Relation, nodes: Sequence[int]) -> Ints:
        """One number for each combination of options."""
        if np.prod([float(self.sizes[node]) for node in nodes]) > _MAX_KEYS:
            raise TooWide
        keys = np.zeros(len(relation.energy), dtype=np.int64)
        for node, column in zip(nodes, relation.columns(nodes).T, strict=True):
            keys = keys * self.sizes[node] + column
        return keys


def _given(ascent: Ascent, options: Sequence[Mask], pairs: Sequence[Mask], limited: Sequence[int]) -> list[_Relation]:
    """The nodes and the tables as relations."""
    given = []
    for n, (node, mask) in enumerate(zip(ascent.graph.nodes, options, strict=True)):
        kept = np.flatnonzero(mask)
        amounts = node.amounts[limited][:, kept]
        given.append(_Relation((n,), kept[:, None], amounts, ascent.theta[n][kept] - ascent.node_low[n]))
    for t, (table, mask) in enumerate(zip(ascent.graph.tables, pairs, strict=True)):
        left, right = np.nonzero(mask)
        columns = [left, right] if table.option is None else [left, right, table.option[left, right]]
        energy = ascent.tables[t][left, right] - ascent.low[t]
        amounts = table.amounts[limited][:, left, right]
        given.append(_Relation(table.scope, np.stack(columns, axis=1), amounts, energy))
    return given


def _largest(relations: Sequence[_Relation], most: Floats) -> Floats:
    """The largest number that sums of each amount are made of, shape ``(limits, 1)``; 1 where all are zero.

    Amounts that differ by a tiny part of it count as equal where several are compared: sums in another order do.
    """
    found = np.max([most, *(np.abs(r.amounts).max(axis=1, initial=0.0) for r in relations)], axis=0)
    return np.where(found > 0, found, 1.0)[:, None]


def _near(keys: Ints, ms: Floats, gains: Floats, count: int) -> Ints:
    """The rows less most of those that a faster row of the same key beats: sorting millions takes ten times longer."""
    slices, low, span = _CELLS // count, ms.min(), np.ptp(ms)
    if len(ms) < _FEW or slices < 2 or span == 0:
        return np.arange(len(ms))
    cell = keys * slices + np.minimum((ms - low) * (slices / span), slices - 1).astype(np.int64)
    best = np.full((count, slices), -np.inf)
    np.maximum.at(best.reshape(-1), cell, gains)
    faster = np.full((count, slices), -np.inf)
    np.maximum.accumulate(best[:, :-1], axis=1, out=faster[:, 1:])
    return np.flatnonzero(gains > faster.reshape(-1)[cell])


def _within(wanted: Ints, most: Floats, keys: Ints, energy: Floats) -> tuple[Ints, Ints, Ints]:
    """The rows by key and energy, and for each wanted key where its rows start and how many have at most ``most``."""
    order = np.lexsort((energy, keys))
    starts = np.searchsorted(keys[order], wanted, side="left")
    # The limits sorted in among the rows: those ahead of a limit, less those of smaller keys, are within it.
    behind = np.concatenate([np.zeros(len(keys), dtype=np.int64), np.ones(len(wanted), dtype=np.int64)])
    both = np.lexsort((behind, np.concatenate([energy, most]), np.concatenate([keys, wanted])))
    ahead = np.empty(len(both), dtype=np.int64)
    ahead[both] = np.cumsum(behind[both] == 0)
    return order, starts, ahead[len(keys) :] - starts


def _chunks(counts: Ints) -> list[tuple[int, int]]:
    """Ranges of rows that make about ``_CHUNK`` pairs each; one empty range where there are no rows."""
    done = np.cumsum(counts)
    edges = np.unique(np.searchsorted(done, np.arange(_CHUNK, int(counts.sum()), _CHUNK)))
    bounds = [0, *(int(edge) for edge in edges if edge > 0), len(counts)]
    return list(pairwise(bounds))


def _concatenated(parts: Sequence[_Relation]) -> _Relation:
    """Parts of one join as one relation."""
    parents = tuple(
        (parent, np.concatenate([part.parents[i][1] for part in parts]))
        for i, (parent, _) in enumerate(parts[0].parents)
    )
    options, energy = (np.concatenate([getattr(part, name) for part in parts]) for name in ("options", "energy"))
    amounts = np.concatenate([part.amounts for part in parts], axis=1)
    return _Relation(parts[0].scope, options, amounts, energy, parents)


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
    """Write the options that a row stands for into ``choice``; joins of long chains are nested too deep to recurse."""
    ahead = [(relation, row)]
    while ahead:
        relation, row = ahead.pop()
        ahead += [(parent, int(pointer[row])) for parent, pointer in relation.parents]
        if not relation.parents:
            choice[list(relation.scope)] = relation.options[row]
