"""Prices: what a unit of each limited amount is worth, found where the bound of message passing is the highest.

At any prices the least energy, less what the limits allow at these prices, bounds the objective of every choice within
the limits. One price is bracketed and halved. Several are moved together by cutting planes: each choice seen so far
says how high the bound can be at any prices at most, and the highest point of that, taken half-way, is tried next.

Source: Lagrangian duality (Everett, 1963); Kelley's cutting planes (1960) with in-out steps (Ben-Ameur and Neto, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.optimize import linprog

from widthwise.planner.bounds import Ascent
from widthwise.planner.graph import IMPORTANCE, Floats, Graph, Ints

__all__ = ["priced"]

_PRICES, _SWEEPS, _LAST_SWEEPS = 20, 5, 20
_ROUNDING = 1e-12
_PRICE_RATIO = 1.001
_PRICE_SPAN = 100.0
"""Messages at a price this many times higher have rounded too much away to be kept."""
_CUTS = 40
_CUT_GAP = 1e-4
_BOX, _LARGEST_BOX = 4.0, 4.0**8
_NOTHING = 1e-3
"""A price below this share of the highest one is taken for none: its limit doesn't bind."""

Offer = Callable[[Ints], Floats]
"""Takes a choice of options and gives all its amounts."""


def priced(graph: Graph, goal: int, limits: Mapping[int, float], offer: Offer, late: Callable[[], bool]) -> Ascent:
    """Message passing at (nearly) the best prices of the limited amounts; the goal's is 1.

    Args:
        graph: the choices.
        goal: the amount of which there should be little.
        limits: amount → how much of it there may be, the graph's constants included; at least one.
        offer: called with every choice met on the way.
        late: whether to stop.
    """
    if len(limits) == 1:
        return _bracketed(graph, goal, limits, offer, late)
    return _balanced(graph, goal, limits, offer, late)


def _spread(graph: Graph, goal: int) -> Floats:
    """For each amount, about how far apart choices can be in it; infinite where they can't be, but for the goal's."""
    parts = [np.ptp(node.amounts, axis=1) for node in graph.nodes]
    parts += [table.amounts.max(axis=(1, 2)) for table in graph.tables]
    apart = np.sum(parts, axis=0)
    least = _ROUNDING * (apart.max() + np.abs(graph.constants))
    nothing = np.where(np.arange(len(apart)) == goal, 1.0, math.inf)
    return np.asarray(np.where(apart > least, apart, nothing))


def _bracketed(graph: Graph, goal: int, limits: Mapping[int, float], offer: Offer, late: Callable[[], bool]) -> Ascent:
    ((limited, most),) = limits.items()
    apart = _spread(graph, goal)
    room = most if limited != IMPORTANCE and most > 0 else apart[limited]
    prices = np.zeros(len(apart))
    prices[goal], prices[limited] = 1.0, apart[goal] / room

    def at(price: float) -> Floats:
        changed = prices.copy()
        changed[limited] = price
        return changed

    ascent, price = Ascent(graph, prices), float(prices[limited])
    low, high, highest, best = 0.0, math.inf, 0.0, (math.inf, price)
    for _ in range(_PRICES):
        ascent.sweep(_SWEEPS)
        highest = max(highest, price)
        best = min(best, (price * most - ascent.bound, price))
        if offer(ascent.choice)[limited] > most:
            low = price
        else:
            high = price
        if high < low * _PRICE_RATIO or late():
            break
        bracketed = low > 0 and high < math.inf
        price = math.sqrt(low * high) if bracketed else low * 4 or high / 4
        ascent.reprice(at(price))
    if highest > _PRICE_SPAN * best[1]:
        ascent = Ascent(graph, at(best[1]))
    else:
        ascent.reprice(at(best[1]))
    ascent.sweep(_LAST_SWEEPS)
    return ascent


def _balanced(graph: Graph, goal: int, limits: Mapping[int, float], offer: Offer, late: Callable[[], bool]) -> Ascent:
    limited, most = list(limits), np.array(list(limits.values()))
    apart = _spread(graph, goal)
    unit = apart[goal] / apart[limited]  # prices are counted in these: all about 1

    def at(shares: Floats) -> Floats:
        prices = np.zeros(len(apart))
        prices[goal], prices[limited] = 1.0, shares * unit
        return prices

    shares = np.full(len(limited), 1.0 / len(limited))
    ascent, box = Ascent(graph, at(shares)), _BOX
    best, top = (-math.inf, shares), math.inf
    cuts: list[Floats] = []
    for _ in range(_CUTS):
        ascent.sweep(_SWEEPS)
        bound = (ascent.bound - float(ascent.prices[limited] @ most)) / apart[goal]
        if bound > best[0]:
            best = (bound, shares)
        amounts = offer(ascent.choice)
        cuts.append(np.array([*(most - amounts[limited]) * unit, apart[goal], amounts[goal]]) / apart[goal])
        if late():
            break
        rows = np.array(cuts)
        found = linprog(
            [*np.zeros(len(limited)), -1.0],
            A_ub=rows[:, :-1],
            b_ub=rows[:, -1],
            bounds=[(0, box)] * len(limited) + [(None, None)],
        )
        if found.x is None:
            break
        furthest, top = found.x[:-1], -found.fun
        if furthest.max() >= box and box < _LARGEST_BOX:
            box *= _BOX
        elif top - best[0] <= _CUT_GAP * max(1e-3, abs(top - rows[:, -1].min())):
            break
        shares = (best[1] + furthest) / 2
        ascent.reprice(at(shares))
    shares = np.where(best[1] < _NOTHING * best[1].max(), 0.0, best[1])
    ascent = Ascent(graph, at(shares))
    ascent.sweep(_LAST_SWEEPS)
    return ascent
