"""Bounds from message passing: what any answer, and any answer with a given option, can reach at best.

With a price on everything that is limited the problem splits into nodes and tables, and moving amounts between them
(which changes no answer's total) until their separate optima add up to as little as they can bounds all answers at
once. That is the dual of the linear relaxation, climbed in milliseconds where an LP solver needs seconds; options
whose bound is out of reach never enter the integer program.

Source: sequential reweighted message passing (TRW-S, Kolmogorov 2006; SRMP, 2015) on the local polytope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widthwise.planner.graph import Floats, Graph, Ints

__all__ = ["Ascent", "Mask", "Reach"]

Mask = NDArray[np.bool_]

_LEFT, _RIGHT, _TOTAL = range(3)


@dataclass(frozen=True)
class _Link:
    """A table as one of its nodes sees it, with the order in which a sweep meets its scope."""

    table: int
    role: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Reach:
    """Bounds below the energy of every choice with a given option, or with a given pair of options.

    Args:
        options: one array a node, shape ``(options,)``.
        pairs: one array a table, of its shape.
    """

    options: tuple[Floats, ...]
    pairs: tuple[Floats, ...]

    def within(self, energy: float) -> tuple[list[Mask], list[Mask]]:
        """The options and the pairs that a choice of at most this energy may hold."""
        return [low <= energy for low in self.options], [low <= energy for low in self.pairs]

    def nearest(self, count: int) -> float:
        """The energy within which about ``count`` pairs lie."""
        lows = np.concatenate([low.ravel() for low in self.pairs] or [np.zeros(0)])
        return float(np.partition(lows, count)[count]) if len(lows) > count else np.inf


class Ascent:
    """Least energy ``prices · amounts`` over all choices, bounded from below.

    Attributes:
        prices: one for each of the graph's amounts, at least 0, shape ``(amounts,)``.
        bound: no choice has a lower energy; climbs with each sweep.
        energy: for each node, no choice with that option has a lower energy, shape ``(options,)`` each.
        choice: the option each node would take, decoded in the last forward sweep; a choice of groups and the totals
            that follow from it, so its latency is real.
    """

    def __init__(self, graph: Graph, prices: Floats) -> None:
        self.graph, self.prices = graph, prices
        self.theta = [_priced(prices, node.amounts) for node in graph.nodes]
        self.tables = [_priced(prices, table.amounts) for table in graph.tables]
        self.order = sorted(range(len(graph.nodes)), key=lambda n: graph.nodes[n].at)
        self.links = _links(graph, self.order)
        self.totals = [_Groups(t.option) if t.option is not None else None for t in graph.tables]
        self.low = np.array([float(table.min()) for table in self.tables])
        self.node_low = np.array([float(theta.min()) for theta in self.theta])
        self.choice = np.zeros(len(graph.nodes), dtype=np.int64)
        self.forget()

    @property
    def constant(self) -> float:
        """Energy that no choice changes."""
        return float(self.prices @ self.graph.constants)

    def forget(self) -> None:
        """Start the bounds anew, as a change of price must."""
        self.bound = -np.inf
        self.energy = [np.full(len(theta), -np.inf) for theta in self.theta]

    def reprice(self, prices: Floats) -> None:
        """Change the prices, keeping the messages."""
        change = prices - self.prices
        for n, node in enumerate(self.graph.nodes):
            self.theta[n] = self.theta[n] + _priced(change, node.amounts)
            self.node_low[n] = self.theta[n].min()
        for t, table in enumerate(self.graph.tables):
            self.tables[t] += _priced(change, table.amounts)
            self.low[t] = self.tables[t].min()
        self.prices = prices
        self.forget()

    def sweep(self, times: int) -> None:
        """Forward and back through the network, ``times`` times."""
        for _ in range(times):
            for n in self.order:
                self._gather(n)
                self._decode(n)
                self._scatter(n, [link for link in self.links[n] if not link.last])
            for n in reversed(self.order):
                self._gather(n)
                self._scatter(n, [link for link in self.links[n] if not link.first])
        self.bound = max(self.bound, *(float(energy.min()) for energy in self.energy))

    def reach(self) -> Reach:
        """What is proven so far, of options and of pairs."""
        sums = self.constant + float(self.low.sum() + self.node_low.sum())
        pairs = []
        for table, energy, low in zip(self.graph.tables, self.tables, self.low, strict=True):
            energy = np.maximum(energy + (sums - low), self.energy[table.left][:, None])
            np.maximum(energy, self.energy[table.right], out=energy)
            if table.total is not None:
                np.maximum(energy, self.energy[table.total][table.option], out=energy)
            pairs.append(energy)
        return Reach(tuple(self.energy), tuple(pairs))

    def _gather(self, n: int) -> None:
        """Move all that the tables know about a node into it."""
        theta = self.theta[n]
        for link in self.links[n]:
            message = self._least(link)
            self._shift(link, -message)
            theta = theta + message
            self.low[link.table] = 0.0
        self.theta[n] = theta
        self.node_low[n] = theta.min()
        rest = self.constant + float(self.low.sum() + self.node_low.sum()) - self.node_low[n]
        np.maximum(self.energy[n], rest + theta, out=self.energy[n])

    def _scatter(self, n: int, links: Sequence[_Link]) -> None:
        """Spread a node's amounts over the tables that the sweep still meets, evenly."""
        if not links:
            return
        every = self.links[n]
        share = 1.0 / max(len(links), sum(not link.last for link in every), sum(not link.first for link in every))
        part = share * self.theta[n]
        for link in links:
            self._shift(link, part)
            self.low[link.table] = part.min()
        self.theta[n] = self.theta[n] - len(links) * part
        self.node_low[n] = self.theta[n].min()

    def _least(self, link: _Link) -> Floats:
        table = self.tables[link.table]
        if link.role == _TOTAL:
            groups = self.totals[link.table]
            assert groups is not None
            return groups.least(table)
        return np.asarray(table.min(axis=1 - link.role))

    def _shift(self, link: _Link, by: Floats) -> None:
        table = self.tables[link.table]
        if link.role == _LEFT:
            table += by[:, None]
        elif link.role == _RIGHT:
            table += by
        else:
            table += by[self.graph.tables[link.table].option]

    def _decode(self, n: int) -> None:
        """Take the best option given those that the sweep has already taken."""
        energy = self.theta[n]
        for link in self.links[n]:
            table = self.graph.tables[link.table]
            if link.role == _TOTAL and table.option is not None:
                self.choice[n] = table.option[self.choice[table.left], self.choice[table.right]]
                return
            other = table.right if link.role == _LEFT else table.left
            if self.graph.nodes[other].at < self.graph.nodes[n].at:
                rows = self.tables[link.table]
                energy = energy + (rows[:, self.choice[other]] if link.role == _LEFT else rows[self.choice[other]])
        self.choice[n] = int(energy.argmin())


def _priced(prices: Floats, amounts: Floats) -> Floats:
    """Their sum over the first axis, those without a price passed over."""
    total = np.zeros(amounts.shape[1:])
    for price, amount in zip(prices, amounts, strict=True):
        if price:
            total += price * amount
    return total


class _Groups:
    """Minima over the pairs that make the same total."""

    def __init__(self, option: Ints) -> None:
        self.order = np.argsort(option, axis=None, kind="stable")
        self.starts = np.searchsorted(option.ravel()[self.order], np.arange(int(option.max()) + 1))

    def least(self, table: Floats) -> Floats:
        return np.minimum.reduceat(table.ravel()[self.order], self.starts)


def _links(graph: Graph, order: Sequence[int]) -> list[list[_Link]]:
    position = {n: i for i, n in enumerate(order)}
    links: list[list[_Link]] = [[] for _ in graph.nodes]
    for index, table in enumerate(graph.tables):
        places = [position[n] for n in table.scope]
        for role, n in enumerate(table.scope):
            links[n].append(_Link(index, role, position[n] == min(places), position[n] == max(places)))
    return links
