"""Options that no best answer needs, found before any solving.

An option may go when another one of its group is no worse in any amount that counts (importance, latency, whatever
else is limited) whatever the other groups do: replacing it never hurts. Over each cost the worst case is taken
separately (Goldstein's criterion for dead-end elimination, 1994), which is safe and finds more than comparing rows
entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from widthwise.planner.graph import IMPORTANCE, LATENCY, Floats, Ints, Sum, Term
from widthwise.planner.problem import Problem

__all__ = ["undominated"]

_MAX_WORK = 50_000_000
_MAX_PASSES = 6


def undominated(problem: Problem, terms: Sequence[Term], counting: Sequence[int]) -> list[Ints]:
    """Indices of the options worth considering, ascending, for each group in the problem's order.

    Args:
        problem: the problem; only options that its bounds allow are considered.
        terms: its merged costs.
        counting: which of the graph's amounts an option must not have more of to replace another.
    """
    groups = list(problem.groups.values())
    widths = [np.array(group.widths) for group in groups]
    kept = [np.array(problem.allowed[name]) for name in problem.groups]
    costs = [amount - LATENCY for amount in counting if amount != IMPORTANCE]
    scores = [np.array(group.importance) if IMPORTANCE in counting else np.zeros(len(group.widths)) for group in groups]
    of_group: list[list[Term]] = [[] for _ in groups]
    for term in terms:
        for group in _groups(term):
            of_group[group].append(term)
    stale = set(range(len(groups)))
    for _ in range(_MAX_PASSES):
        shrunk = set()
        for group in sorted(stale):
            left = _survivors(group, of_group[group], costs, kept, widths, scores[group])
            if len(left) < len(kept[group]):
                kept[group] = left
                shrunk.add(group)
        stale = {other for group in shrunk for term in of_group[group] for other in _groups(term)}
    return kept


def _groups(term: Term) -> set[int]:
    return {g for axis in term.axes for g in ([m for m, _ in axis.members] if isinstance(axis, Sum) else [axis])}


def _survivors(
    group: int,
    terms: Sequence[Term],
    costs: Sequence[int],
    kept: Sequence[Ints],
    widths: Sequence[Ints],
    score: Floats,
) -> Ints:
    own = kept[group]
    if len(own) < 2:
        return own
    replaces = score[own][None, :] >= score[own][:, None]
    for cost in costs:
        gain = np.zeros((len(own), len(own)))  # [k, k']: at least this much less of it with k' in place of k
        clean = np.ones_like(gain, dtype=bool)  # no table holds more with k': holds without trusting rounded sums
        scale = 0.0
        for term in terms:
            table = _contexts(group, term, cost, kept, widths)
            if table is None or len(own) ** 2 * table.shape[1] > _MAX_WORK:
                return own
            scale += float(table.max(initial=0.0))
            worst = np.stack([(table - table[k]).min(axis=1) for k in range(len(own))], axis=1)
            gain += worst
            clean &= worst >= 0
        replaces &= clean | (gain > 1e-12 * scale)
    np.fill_diagonal(replaces, False)
    alive = np.ones(len(own), dtype=bool)
    for k in range(len(own)):
        alive[k] = not (replaces[k] & alive).any()
    return own[alive]


def _contexts(group: int, term: Term, cost: int, kept: Sequence[Ints], widths: Sequence[Ints]) -> Floats | None:
    """One of the term's tables, a row for each kept option of the group, a column for each thing the rest may do.

    None where that is too large to look at.
    """
    own, amounts = kept[group], term.amounts[cost]
    head = term.axes[0]
    other = term.axes[1] if len(term.axes) == 2 else None
    if not isinstance(head, Sum):
        if other is None:
            return np.asarray(amounts[own, None])
        assert isinstance(other, int)
        pairs = amounts[np.ix_(kept[head], kept[other])]
        return np.asarray(pairs if group == head else pairs.T)
    times = dict(head.members).get(group, 0)
    if not times:
        return np.asarray(amounts[:, own].T)
    shifts = times * widths[group][own]
    rests = head.totals - shifts[0]
    for shift in shifts[1:]:
        rests = np.intersect1d(rests, head.totals - shift, assume_unique=True)
    rows = np.searchsorted(head.totals, shifts[:, None] + rests)
    if other is None:
        return np.asarray(amounts[rows])
    if other == group:
        return np.asarray(amounts[rows, own[:, None]])
    assert isinstance(other, int)
    if rows.size * len(kept[other]) * len(own) > _MAX_WORK:
        return None
    return np.asarray(amounts[:, kept[other]][rows]).reshape(len(own), -1)
