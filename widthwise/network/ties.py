"""Ties: which channels of a network must be kept or removed together, and which must stay.

Every channel that a filter produces is an *atom*. What a network does with channels says which atoms are tied (both
sides of an addition, the input and output of a depthwise convolution) and which are fixed (the network's output).
The classes of tied atoms are the connected components of that graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["CONSTANT", "Atoms", "Ties"]

Atoms = npt.NDArray[np.int64]
"""One atom per channel."""

CONSTANT = 0
"""The atom of all channels that no filter produces, such as an image's; it is fixed and ties nothing."""


class Ties:
    """Atoms, what ties them and what fixes them.

    Example:
        >>> ties = Ties()
        >>> a, b = ties.fresh(3), ties.fresh(3)
        >>> ties.tie(a, b, "added")
        >>> ties.fix(b[:1], "the output")
        >>> classes, reasons = ties.classes()
        >>> bool((classes[a] == classes[b]).all()), reasons[int(classes[a[0]])]
        (True, 'the output')
    """

    def __init__(self) -> None:
        self._count = 1
        self._left: list[Atoms] = []
        self._right: list[Atoms] = []
        self._fixed: list[tuple[Atoms, str]] = []

    def fresh(self, count: int) -> Atoms:
        """New atoms."""
        self._count += count
        return np.arange(self._count - count, self._count, dtype=np.int64)

    def tie(self, a: Atoms, b: Atoms, reason: str) -> None:
        """Ties atoms one by one, after broadcasting; what is tied to a constant is fixed for this reason."""
        left, right = (side.ravel() for side in np.broadcast_arrays(a, b))
        self.fix(left[right == CONSTANT], reason)
        self.fix(right[left == CONSTANT], reason)
        both = (left != CONSTANT) & (right != CONSTANT) & (left != right)
        self._left.append(left[both])
        self._right.append(right[both])

    def fix(self, atoms: Atoms, reason: str) -> None:
        """These must stay; the first reason of a class is remembered."""
        atoms = np.unique(atoms[atoms != CONSTANT])
        if len(atoms):
            self._fixed.append((atoms, reason))

    def classes(self) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
        """The class of every atom, and why the fixed ones are fixed."""
        left = np.concatenate([*self._left, np.zeros(0, dtype=np.int64)])
        right = np.concatenate([*self._right, np.zeros(0, dtype=np.int64)])
        shape = (self._count, self._count)
        graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=shape)
        _, found = connected_components(graph, directed=False)
        classes = found.astype(np.int64)
        reasons = {int(classes[CONSTANT]): "no filter makes them"}
        for atoms, reason in self._fixed:
            for each in np.unique(classes[atoms]):
                reasons.setdefault(int(each), reason)
        return classes, reasons
