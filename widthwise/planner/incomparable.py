"""Which of many rows no other row replaces, where several amounts count at once.

A row is replaced by one of the same key that has no more of any amount and gains as much. With one amount that is a
sort and a running maximum; with two, divide and conquer over such sorts finds all of them (Kung, Luccio and
Preparata, 1975); with more, what is in a lower cell of a grid replaces, which finds most.
"""

from __future__ import annotations

import numpy as np

from widthwise.planner.graph import Floats, Ints

__all__ = ["incomparable"]

_CELLS = 2**18
_FEW = 2_000


def incomparable(keys: Ints, amounts: Floats, gains: Floats) -> Ints:
    """Indices of the rows that stay, among them, for each that goes, one that replaces it.

    Args:
        keys: rows of different keys aren't compared, shape ``(rows,)``.
        amounts: less is better; rounded to whole numbers before they are compared, shape ``(amounts, rows)``.
        gains: more is better, shape ``(rows,)``.

    Example:
        >>> incomparable(np.zeros(3, int), np.array([[1, 2, 3], [5, 5, 4]]), np.array([2, 1, 1])).tolist()
        [0, 2]
    """
    keys = np.unique(keys, return_inverse=True)[1]
    amounts = np.round(amounts)
    rows = np.arange(len(keys))
    if len(rows) > _FEW:
        rows = rows[~_below_in_grid(keys, amounts, gains)]
    rows = rows[np.lexsort((*amounts[:0:-1, rows], -gains[rows], *amounts[:1, rows], keys[rows]))]
    if len(amounts) == 2:
        return np.sort(rows[~_replaced(keys[rows], amounts[1, rows], gains[rows])])
    return np.sort(rows[~_repeats(keys[rows], amounts[:, rows], gains[rows])])


def _repeats(keys: Ints, amounts: Floats, gains: Floats) -> np.ndarray:
    """Rows that the one right before them replaces."""
    found = np.zeros(len(keys), dtype=bool)
    same = (keys[1:] == keys[:-1]) & (gains[1:] <= gains[:-1])
    found[1:] = same & (amounts[:, 1:] >= amounts[:, :-1]).all(axis=0)
    return found


def _replaced(keys: Ints, amount: Floats, gains: Floats) -> np.ndarray:
    """Rows sorted by key and the other amount: those that an earlier one of the key replaces in this amount and gain.

    Blocks of doubling size: the right half of each is held against its left half.
    """
    count = len(keys)
    ranks = np.unique(gains, return_inverse=True)[1] + 1
    places = np.arange(count)
    found = np.zeros(count, dtype=bool)
    order = np.lexsort((places, amount, keys))
    for level in range(max(count - 1, 0).bit_length()):
        # Rows by block, key and amount; of equal ones the earlier comes first, so left halves come before right ones.
        at = order[np.argsort(order >> (level + 1), kind="stable")]
        block, key, left = at >> (level + 1), keys[at], (at >> level) & 1 == 0
        segment = np.cumsum(np.concatenate([[0], (block[1:] != block[:-1]) | (key[1:] != key[:-1])]))
        offset = segment * (int(ranks.max()) + 1)
        best = np.maximum.accumulate(offset + np.where(left, ranks[at], 0))
        found[at] |= ~left & (best >= offset + ranks[at])
    return found


def _below_in_grid(keys: Ints, amounts: Floats, gains: Floats) -> np.ndarray:
    """Rows with one in a cell below in every amount that gains as much; cells hold about as many rows each."""
    count = int(keys.max()) + 1
    slices = int((_CELLS / count) ** (1 / len(amounts))) if count < _CELLS else 0
    if slices < 2:
        return np.zeros(len(keys), dtype=bool)
    sizes = np.bincount(keys)
    starts = np.cumsum(sizes) - sizes
    cells = []
    for amount in amounts:
        rank = np.empty(len(keys), dtype=np.int64)
        rank[np.lexsort((amount, keys))] = np.arange(len(keys))
        cells.append((rank - starts[keys]) * slices // sizes[keys])
    best = np.full((count, *[slices + 1] * len(amounts)), -np.inf)
    np.maximum.at(best, (keys, *(cell + 1 for cell in cells)), gains)
    for axis in range(1, best.ndim):
        np.maximum.accumulate(best, axis=axis, out=best)
    return np.asarray(best[(keys, *cells)] >= gains)
