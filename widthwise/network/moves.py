"""Operations that move channels: where each channel is afterwards, and what must be tied so that narrow code agrees.

A model's code runs unchanged on narrow tensors. So a chunk in two stays a chunk in two, which is right if both halves
keep as many channels; a slice up to 5 stays a slice up to 5, which is right if the first 5 channels stay. The rules
here tie or fix atoms accordingly. A tensor has one channel axis; along all others it is homogeneous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from widthwise.network.ties import CONSTANT, Atoms, Ties

__all__ = ["Channels", "Shape", "chunked", "constant", "padded", "reshaped", "sliced"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Channels:
    """Where a tensor's channels are, and which: atoms while they are followed, labels afterwards."""

    axis: int
    labels: Atoms


def constant(shape: Shape) -> Channels:
    """A tensor whose channels nothing changes."""
    return Channels(1, np.full(shape[1] if len(shape) >= 2 else 0, CONSTANT, dtype=np.int64))


def chunked(ties: Ties, channels: Channels, parts: int) -> list[Channels]:
    """Equal parts along the channel axis; all keep the same places."""
    size = len(channels.labels)
    if size % parts:
        ties.fix(channels.labels, f"its {size} channels are cut into {parts} unequal parts")
        bounds = np.array_split(channels.labels, np.arange(-(-size // parts), size, -(-size // parts)))
        return [Channels(channels.axis, part) for part in bounds]
    rows = channels.labels.reshape(parts, size // parts)
    ties.tie(rows, rows[:1], "is tied to channels that can't change by a split into equal parts")
    return [Channels(channels.axis, row) for row in rows]


def sliced(ties: Ties, channels: Channels, start: int | None, stop: int | None, step: int | None) -> Channels:
    """``[start:stop:step]`` along the channel axis, with numbers written in the code."""
    atoms, reason = channels.labels, "is sliced at places written in the code"
    if step not in (None, 1):
        ties.fix(atoms, reason)
    whole = stop is not None and stop >= len(atoms)  # also of fewer channels
    for bound in (start, None if whole else stop):
        if bound is not None and bound >= 0:
            ties.fix(atoms[:bound], reason)
        elif bound is not None:
            ties.fix(atoms[bound:], reason)
    return Channels(channels.axis, atoms[start:stop:step])


def padded(ties: Ties, channels: Channels, before: int, after: int, *, constant_values: bool) -> Channels:
    """Channels appended on both sides."""
    if (before or after) and (min(before, after) < 0 or not constant_values):
        ties.fix(channels.labels, "is padded along the channels by other channels")
        before, after = max(before, 0), max(after, 0)
    return Channels(channels.axis, np.pad(channels.labels, (before, after), constant_values=CONSTANT))


def reshaped(ties: Ties, channels: Channels, before: Shape, after: Shape, literal: Sequence[bool]) -> Channels | None:
    """A row-major reshape; None where the channels can't be followed (the atoms are fixed then).

    Args:
        literal: for each axis of ``after``, whether its size is a number written in the code.
    """
    size, axis = len(channels.labels), channels.axis
    if size <= 1:
        ties.fix(channels.labels, "it is a single channel")
        return None
    block = _block(before, after, axis)
    if block is None:
        ties.fix(channels.labels, f"is reshaped from {before} to {after}, which isn't followed")
        return None
    olds, news = block
    if len(news) == 1:  # axes merge
        if literal[news[0]]:
            ties.fix(channels.labels, f"is reshaped to {after[news[0]]} channels, a number written in the code")
        spread = channels.labels.reshape([size if old == axis else 1 for old in olds])
        return Channels(news[0], np.broadcast_to(spread, [before[old] for old in olds]).ravel())
    if len(olds) > 1:
        ties.fix(channels.labels, f"is reshaped from {before} to {after}, which isn't followed")
        return None
    varying = [new for new in news if not literal[new]]
    if len(varying) != 1:
        ties.fix(channels.labels, f"is reshaped to {after}, numbers written in the code")
        varying = [max(news, key=lambda new: after[new])]
    place = news.index(varying[0])
    rows = np.moveaxis(channels.labels.reshape([after[new] for new in news]), place, 0).reshape(after[varying[0]], -1)
    ties.tie(rows, rows[:, :1], "is tied to channels that can't change by a reshape into equal parts")
    return Channels(varying[0], rows[:, 0])


def _block(before: Shape, after: Shape, axis: int) -> tuple[list[int], list[int]] | None:
    """The least runs of axes of both shapes that hold the same elements and contain ``axis``; axes of size 1 don't
    count."""
    olds = [index for index, size in enumerate(before) if size != 1]
    news = [index for index, size in enumerate(after) if size != 1]
    while olds and news:
        left, right = [olds.pop(0)], [news.pop(0)]
        while (a := math.prod(before[i] for i in left)) != (b := math.prod(after[i] for i in right)):
            if a < b and olds:
                left.append(olds.pop(0))
            elif b < a and news:
                right.append(news.pop(0))
            else:
                return None
        if axis in left:
            return left, right
    return None
