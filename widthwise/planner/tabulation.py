"""From layers to cost tables: anything that depends on one or two channel counts, at every width to choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from widthwise.network.widths import Affine
from widthwise.planner.costs import SumOver

__all__ = ["Tabulated", "Tabulation"]

_Array = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tabulated:
    """A table over the widths of groups, as :class:`widthwise.planner.costs.TableOver` takes it."""

    over: tuple[str | SumOver, ...]
    sums: tuple[int, ...] | None
    table: _Array


@dataclass(frozen=True, slots=True)
class _Axis:
    """One side of a cost table: a group, or a sum of groups; ``entries`` are the widths or totals it runs over."""

    groups: tuple[str, ...]
    plus: int
    entries: tuple[int, ...]

    @property
    def key(self) -> tuple[tuple[str, ...], int]:
        return self.groups, self.plus

    @property
    def over(self) -> str | SumOver:
        return self.groups[0] if len(self.groups) == 1 else SumOver(sum=self.groups, plus=self.plus)


class Tabulation:
    """Cost tables, those over the same widths added up.

    Args:
        options: group → widths to choose from, ascending.

    Attributes:
        fixed: what no width changes.

    Example:
        >>> tables = Tabulation({"a": [2, 3]})
        >>> tables.add([Affine((("a", 1),)), Affine((), 5)], lambda channels: channels.prod(axis=1))
        >>> [(table.over, table.table.tolist()) for table in tables.tables()]
        [(('a',), [10.0, 15.0])]
    """

    def __init__(self, options: Mapping[str, Sequence[int]]) -> None:
        self.fixed = 0.0
        self._options = options
        self._sums: dict[tuple[object, ...], tuple[tuple[_Axis, ...], _Array]] = {}

    def add(self, sizes: Sequence[Affine], values: Callable[[_Ints], npt.ArrayLike]) -> None:
        """Counts what ``values`` says of the channel counts ``(n, sizes)``, shape ``(n,)``, where they say it."""
        found = [self._axis(size) for size in sizes]
        varying = {axis.key: axis for axis in found if axis is not None}
        axes = tuple(sorted(varying.values(), key=lambda axis: (len(axis.groups) == 1, axis.key)))
        shape = tuple(len(axis.entries) for axis in axes)
        columns = []
        for affine, axis in zip(sizes, found, strict=True):
            if axis is None:
                columns.append(np.full(shape, affine.constant, dtype=np.int64))
            else:
                place = [1] * len(axes)
                position = [other.key for other in axes].index(axis.key)
                place[position] = -1
                own = _sizes(affine, axis)
                columns.append(np.broadcast_to(own.reshape(place), shape))
        count = math.prod(shape)
        channels = np.stack([column.reshape(count) for column in columns], axis=1) if columns else np.zeros((1, 0), int)
        table = np.broadcast_to(np.asarray(values(channels), dtype=np.float64), count).reshape(shape)
        if not axes:
            self.fixed += float(table)
            return
        key = tuple(axis.key for axis in axes)
        known = self._sums.get(key)
        self._sums[key] = (axes, table if known is None else known[1] + table)

    def tables(self) -> Iterator[Tabulated]:
        """All that was counted but for :attr:`fixed`."""
        for axes, table in self._sums.values():
            sums = next((axis.entries for axis in axes if len(axis.groups) > 1), None)
            yield Tabulated(tuple(axis.over for axis in axes), sums, table)

    def _axis(self, affine: Affine) -> _Axis | None:
        """None where nothing varies. Single groups are told apart by name alone, whatever multiplies them."""
        if not affine.terms:
            return None
        if len(affine.terms) == 1:
            group = affine.groups[0]
            return _Axis((group,), 0, tuple(self._options[group]))
        repeated = tuple(group for group, coefficient in affine.terms for _ in range(coefficient))
        totals = {affine.constant}
        for group, coefficient in affine.terms:
            totals = {total + coefficient * width for total in totals for width in self._options[group]}
        return _Axis(repeated, affine.constant, tuple(sorted(totals)))


def _sizes(affine: Affine, axis: _Axis) -> _Ints:
    entries = np.array(axis.entries, dtype=np.int64)
    if len(affine.terms) > 1:
        return entries
    return entries * affine.terms[0][1] + affine.constant
