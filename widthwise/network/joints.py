"""Concatenations in blocked layouts: whether widths that are concatenated must fill whole blocks, read off a table.

Runtimes on CPUs keep activations in blocks of channels, of 16 with AVX-512. A concatenation stays in that layout where
every part fills its blocks; otherwise all that it holds is copied into the plain layout and back, and norms behind it
become kernels of their own. At about half of its widths DenseNet-121 takes 0.50 of the dense time on ONNX Runtime with
growths of 24 channels, 0.39 where half of them have 16 and half 32, which is as many (OpenVINO: 0.47 and 0.39). One of
its 58 growths at 24 for 32 makes the network no faster at all. No layer's own channel counts tell any of this.

So a network with concatenations is measured at two width vectors of as many channels before anything else, half a block
off and in whole blocks; where the second is faster, plans choose whole blocks. ``benchmarks/blocks.py`` has more
networks.
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

_DEARER = 0.04
"""Logarithm of latencies from which on blocks count: 0.05 to 0.26 on ONNX Runtime and OpenVINO, 0.01 to 0.02 in eager
PyTorch (DenseNet-121: 0.10), beside noise of 0.03. As many channels in whole blocks were never slower."""


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
    parts = {group for layer in network.layers for size in layer.axes if size.joins for group in size.groups}
    return tuple(
        group.name
        for group in network.free
        if group.name in parts and group.size >= 2 * BLOCK and group.size % BLOCK == 0
    )


def block_probes(network: Network) -> tuple[dict[str, int], ...]:
    """Two width vectors of about half the dense widths and as many channels: joined groups half a block above a whole
    number of them, and alternately, among those of a size, at that number and the next. None where fewer than two
    groups are joined."""
    joined = joined_groups(network)
    if len(joined) < 2:
        return ()
    dense = network.dense
    half = {group: BLOCK * max(1, size // (2 * BLOCK)) if size >= BLOCK else size for group, size in dense.items()}
    by_size = sorted(joined, key=lambda group: dense[group])
    apart = {group: half[group] + BLOCK // 2 for group in joined}
    whole = {group: half[group] + BLOCK * (place % 2) for place, group in enumerate(by_size)}
    return half | apart, half | whole


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
