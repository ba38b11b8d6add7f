"""HALP: a latency that is linear in channels, and a knapsack over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.baselines.space import Floats, Ints, Space, geometric
from widthwise.planner.problem import Problem

__all__ = ["by_items", "exactly", "halp", "halp_exact"]

_UNITS = 10_000
"""Of latency in the budget; the authors' code counts microseconds."""
_REPAIRS = 20

Knapsack = Callable[[Sequence[Ints], Sequence[Floats], int], Ints]
"""For each group the units and the value of each option, and the units there are → one option for each group.

Where nothing fits, the options that take least, or the narrowest.
"""


def halp(problem: Problem, steps: int = 30) -> dict[str, int] | None:
    """Channels as items of a knapsack, their latency what the layer they belong to takes less without them.

    Source: Shen et al., Structural Pruning via Latency-Saliency Knapsack, NeurIPS 2022 (2110.10811), and its
    code. Faithful: a layer's latency counts for its output channels alone, at the input width that the last
    step left; the budget falls by the same share in every step; pruned channels stay pruned; the dynamic programme
    adds one item after the other and an item only where the one before it was added (:func:`by_items`).

    Adapted: an item is the step from one of the group's widths to the next, its value the importance gained; the
    narrowest width stays. Latencies are counted in ten-thousandths of the budget, rounded up. Costs of anything but
    convolutions belong to the group (or each group of a concatenation) they run over. HALP doesn't look at the latency
    that comes out; here, where it is over the budget, the last step is repeated with so much less, up to 20
    times.

    Args:
        steps: 1 is one shot; the paper takes 30.
    """
    return _run(problem, steps, by_items)


def halp_exact(problem: Problem, steps: int = 30) -> dict[str, int] | None:
    """:func:`halp` with an exact knapsack: what is then lost is lost by the linear latency alone."""
    return _run(problem, steps, exactly)


def _run(problem: Problem, steps: int, knapsack: Knapsack) -> dict[str, int] | None:
    space = Space(problem)
    choice = space.dense
    if space.meets(choice):
        return space.named(choice)
    dense_ms = float(space.latency_ms(choice[None])[0])
    step = partial(_step, space, knapsack=knapsack)
    targets = geometric(dense_ms, problem.budget_ms, steps)
    for target_ms in targets[:-1]:
        choice = step(choice, target_ms)
    target_ms = problem.budget_ms
    for _ in range(_REPAIRS):
        last = step(choice, target_ms)
        if space.meets(last):
            return space.named(last)
        target_ms -= 1.01 * (float(space.latency_ms(last[None])[0]) - space.most_ms)
    return None


def _step(space: Space, choice: Ints, target_ms: float, *, knapsack: Knapsack) -> Ints:
    """The best options at most as wide as these by the linear model around them."""
    unit_ms = space.problem.budget_ms / _UNITS
    units, values = [], []
    left_ms = target_ms - float(space.latency_ms(choice[None])[0])
    for group, widest in enumerate(choice):
        changes_ms = space.changes_ms(choice, group)[: widest + 1]
        left_ms -= float(changes_ms[0])
        units.append(np.ceil((changes_ms - changes_ms[0]) / unit_ms - 1e-9).astype(np.int64))
        values.append(space.importance[group][: widest + 1])
    return knapsack(units, values, int(np.floor(left_ms / unit_ms + 1e-9)))


def by_items(units: Sequence[Ints], values: Sequence[Floats], capacity: int) -> Ints:
    """HALP's dynamic programme: items in turn, group by group, each for every capacity.

    An item is added where that is worth more than leaving it, and where the item before it in its group was added at
    the capacity that is then left. Nothing looks ahead from a dear item to cheap ones behind it, nor to the room
    that items of negative latency make, so the result is not the best where latencies are staircases.

    Example:
        >>> by_items([np.array([0, 2, 3]), np.array([0, 2])], [np.array([0.0, 1.0, 4.0]), np.array([0.0, 2.0])], 3)
        array([2, 0])
    """
    choice = np.zeros(len(units), dtype=np.int64)
    if capacity < 0:
        return choice
    items = [(g, k) for g, options in enumerate(units) for k in range(1, len(options))]
    weights = [int(units[g][k] - units[g][k - 1]) for g, k in items]
    slots = capacity + 1 + sum(-weight for weight in weights if weight < 0)
    best, kept = np.zeros(slots), np.zeros((len(items) + 1, slots), dtype=bool)
    for i, ((group, option), weight) in enumerate(zip(items, weights, strict=True)):
        value = float(values[group][option] - values[group][option - 1])
        to, of = slice(max(weight, 0), slots + min(weight, 0)), slice(max(-weight, 0), slots - max(weight, 0))
        if to.start >= slots or of.start >= slots:
            continue
        added = value + best[of]
        better = (added > best[to]) | ((added == best[to]) & (weight == 0))
        if option > 1:
            better &= kept[i, of]
        kept[i + 1, to] = better
        best = best.copy()
        best[to] = np.where(better, added, best[to])
    left = capacity
    for i in range(len(items), 0, -1):
        group, option = items[i - 1]
        if kept[i, left]:
            choice[group] = max(choice[group], option)
            left -= weights[i - 1]
    return choice


def exactly(units: Sequence[Ints], values: Sequence[Floats], capacity: int) -> Ints:
    """The best options within the capacity: dynamic programming over capacities, all options of a group at once.

    Source: the multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11).
    """
    least = [int(options.min()) for options in units]
    capacity -= sum(least)
    if capacity < 0:
        return np.array([int(options.argmin()) for options in units])
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(units), capacity + 1), dtype=np.int64)
    for group, (options, worth) in enumerate(zip(units, values, strict=True)):
        extended = np.full(capacity + 1, -np.inf)
        for option, weight in enumerate(options - least[group]):
            if weight <= capacity:
                total = np.full(capacity + 1, -np.inf)
                total[weight:] = best[: capacity + 1 - weight] + worth[option]
                better = total > extended
                extended[better], taken[group, better] = total[better], option
        best = extended
    choice = np.zeros(len(units), dtype=np.int64)
    for group in reversed(range(len(units))):
        choice[group] = taken[group, capacity]
        capacity -= int(units[group][choice[group]]) - least[group]
    return choice
