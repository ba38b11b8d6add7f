"""Concatenations in blocked layouts: whether widths that are concatenated must fill whole blocks, read off a table.

Runtimes on CPUs keep activations in blocks of channels, of 16 with AVX-512. A concatenation stays in that layout where
every part fills its blocks; otherwise all that it holds is copied into the plain layout and back, and norms behind it
become kernels of their own. On ONNX Runtime one of DenseNet-121's 58 growths at 24 channels instead of 32 makes the
network 2 % *slower*; with all of them at 24 it takes 0.97 of the dense time, with half at 16 and half at 32, which
is as many channels, 0.82 (OpenVINO: 0.93 and 0.81). No layer's own channel counts tell.

So a network with concatenations is measured at two width vectors of as many channels, in whole blocks and not, before
anything else; where the first is much faster, plans choose whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from statistics import median

from widthwise.luts.records import NetworkRecord
from widthwise.network.network import Network

__all__ = ["BLOCK", "block_probes", "block_steps", "joined_groups"]

BLOCK = 16
"""Channels in a block of the widest layout that is looked for; on machines with narrower ones nothing is found, and
multiples of 8 fill theirs."""

_DEARER = 0.05
"""Logarithm of latencies from which on blocks count: 0.09 to 0.17 where they do, beside noise of 0.03."""


def joined_groups(network: Network) -> tuple[str, ...]:
    """Free groups of at least two blocks, and of whole ones, of which some layer's channels are a part.

    Example:
        >>> from torch import nn, ones, cat
        >>> class Fork(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.left, self.right, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 48, 1), nn.Conv2d(80, 5, 1)
        ...     def forward(self, x):
        ...         return self.last(cat([self.left(x), self.right(x)], 1)).mean((2, 3))
        >>> joined_groups(Network.trace(Fork(), ones(1, 3, 8, 8), name="fork"))
        ('left', 'right')
    """
    parts = {
        group
        for layer in network.layers
        for size in layer.axes
        if len(size.terms) + bool(size.constant) > 1
        for group in size.groups
    }
    return tuple(
        group.name
        for group in network.free
        if group.name in parts and group.size >= 2 * BLOCK and group.size % BLOCK == 0
    )


def block_probes(network: Network) -> tuple[dict[str, int], ...]:
    """Two width vectors of as many channels: joined groups half a block below their dense widths, and every other one,
    among those of a size, a whole block below. None where fewer than two groups are joined."""
    joined = joined_groups(network)
    if len(joined) < 2:
        return ()
    dense = network.dense
    by_size = sorted(joined, key=lambda group: dense[group])
    apart = {group: dense[group] - BLOCK // 2 for group in joined}
    whole = {group: dense[group] - BLOCK * (place % 2) for place, group in enumerate(by_size)}
    return dense | apart, dense | whole


def block_steps(network: Network, records: Iterable[NetworkRecord]) -> dict[str, int] | None:
    """What widths of joined groups must be multiples of: nothing where it makes no difference, None where that wasn't
    measured."""
    probes = block_probes(network)
    if not probes:
        return {}
    found = list(records)
    apart, whole = ([record for record in found if dict(record.widths) == probe] for probe in probes)
    dearer = [math.log(a.latency_ms / b.latency_ms) for a, b in product(apart, whole) if a.run == b.run]
    if not dearer:
        return None
    return dict.fromkeys(joined_groups(network), BLOCK) if median(dearer) > _DEARER else {}
