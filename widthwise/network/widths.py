"""The affine algebra of widths: every channel count of a pruned network, computed and not run.

A channel dimension of a network keeps ``constant + Σ coefficient·width`` channels, where the sum runs over
the channel groups that feed it. Residual adds and depthwise convolutions share one group, a concatenation
sums several, a flatten multiplies by the spatial size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Affine", "AffineMap", "Widths", "grid"]

Widths = Mapping[str, int]
"""Channels kept by each group, by group name."""


@dataclass(frozen=True, slots=True)
class Affine:
    """``constant + Σ coefficient·width``: the size of one channel dimension.

    Example:
        >>> (Affine((("a", 2),), 3) + Affine((("b", 1),)))({"a": 5, "b": 7})
        20
    """

    terms: tuple[tuple[str, int], ...] = ()
    constant: int = 0

    def __call__(self, widths: Widths) -> int:
        """The size at these widths.

        Raises:
            KeyError: a group of :attr:`groups` has no width.
        """
        return self.constant + sum(coefficient * widths[group] for group, coefficient in self.terms)

    def __add__(self, other: Affine) -> Affine:
        total = dict(self.terms)
        for group, coefficient in other.terms:
            total[group] = total.get(group, 0) + coefficient
        return Affine(tuple(sorted(total.items())), self.constant + other.constant)

    @property
    def joins(self) -> bool:
        """Whether it adds up several parts, as a concatenation does; one of them may be constant."""
        return len(self.terms) + bool(self.constant) > 1

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups it depends on, sorted."""
        return tuple(group for group, _ in self.terms)


class AffineMap:
    """Many sizes in one matrix product: all channel dimensions of a network, for many width vectors at once.

    Args:
        forms: the sizes, in the order in which they come back.
        groups: all that they depend on.

    Example:
        >>> sizes = AffineMap([Affine((("a", 2),), 3), Affine((("b", 1),))], ["a", "b"])
        >>> sizes([{"a": 5, "b": 7}, {"a": 1, "b": 2}]).tolist()
        [[13, 7], [5, 2]]
    """

    def __init__(self, forms: Sequence[Affine], groups: Iterable[str]) -> None:
        self._places = {group: place for place, group in enumerate(groups)}
        self._coefficients = np.zeros((len(self._places), len(forms)))  # floats multiply faster, and exactly to 2⁵³
        self._constants = np.array([form.constant for form in forms], dtype=float)
        for column, form in enumerate(forms):
            for group, coefficient in form.terms:
                self._coefficients[self._places[group], column] += coefficient

    def __call__(self, widths: Sequence[Widths]) -> npt.NDArray[np.int64]:
        """The sizes at ``n`` width vectors, shape ``(n, forms)``.

        Raises:
            KeyError: a group has no width.
        """
        rows = np.array([[chosen[group] for group in self._places] for chosen in widths], dtype=float)
        sizes = rows.reshape(len(widths), len(self._places)) @ self._coefficients + self._constants
        return np.asarray(sizes.astype(np.int64))


def grid(size: int, step: int, *, minimum: int, most: int) -> tuple[int, ...]:
    """Widths worth considering for a group of ``size`` channels, ascending, the dense width last.

    Multiples of ``step`` (of a multiple of it where there would be more than ``most``), none below
    ``minimum``; the dense width always belongs to them.

    Example:
        >>> grid(64, 8, minimum=8, most=4)
        (16, 32, 48, 64)
        >>> grid(10, 8, minimum=1, most=16)
        (8, 10)
    """
    stride = step
    while -(-size // stride) > most:
        stride += step
    return (*(width for width in range(stride, size, stride) if width >= minimum), size)
