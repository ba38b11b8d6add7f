"""Networks on the scale of the dense network that was timed beside them.

Ratios to the reference kernels keep what differs between the kernels and a network. In one table of ResNet-18 the
kernels took 1.42 ms all through the first process and 1.13 to 1.28 ms in the three others, while the dense network took
15.0 to 16.4 ms by the stopwatch in all four: its ratios lay 22 % apart. So every batch of networks begins with the
dense one, and a batch counts in terms of it, as :mod:`widthwise.planner.verification` counts plans (duet
benchmarking, Bulej et al., ICPE 2020).

What the dense network takes on the quiet device is the median over processes, in each of which the kernels count by
half of what they are slower: much of what slows them down for a whole process is not the machine's pace.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from widthwise.luts.measurement import Block
from widthwise.luts.records import BESIDE_DENSE, NetworkRecord, Role
from widthwise.luts.store import Lut

__all__ = ["PACE_COUNTS", "batches", "on_scale", "paces", "quiet_reading_ms", "scale_variances"]

_QUIET_QUANTILE = 0.1

_BETWEEN = 0.5
"""By so many per cent the dense network is slower in a process in which the kernels are slower by one. On ten tables of
four processes each what they told of the dense network lay 1.2 % apart (standard deviation); 1.7 % with 1, 3.1 % with
0, and 2.9 % with the quietest reading of each process for a reference."""

_USUALLY_APART = 0.012
_USUALLY_COUNTS = 2
"""What processes tell of the dense network usually lies so far apart (standard deviation, on ten tables), which counts
as much as that many of a table's own."""

PACE_COUNTS = 0.5
"""By so much the logarithm of a dense network's pace counts in a profile. On ten tables (ResNet-18 to DenseNet-121,
three runtimes) errors on held-out networks were 2.29 % where it counted in full, 2.17 % by half and 2.18 % where not at
all, those of planned ones 1.53, 1.40 and 1.47 %. Five tables gained 0.05 to 0.65 points by half,
three lost 0.06 to 0.17."""

_IN_DOUBT = 0.1
"""Up to such a logarithm; what is beyond counts in full, as in a process with slow kernels, the 22 % above."""

_Batch = tuple[NetworkRecord, list[NetworkRecord]]
"""A dense network and what was timed beside it, itself included."""


def paces(lut: Lut) -> dict[int, float]:
    """Per network (id): by how much slower it was than on the quiet device, told by the dense network beside it.

    A profile's few blocks of that one are as much in doubt as the kernels are, and narrow networks follow either by
    half; so what it lies off its usual pace counts by half, and in full beyond what both doubts explain. A verification
    times it longer, and gives its verdict in terms of it: there it counts in full. Networks that had none beside them
    aren't named.

    Example:
        >>> with Lut.open("device.lut", readonly=True) as lut:  # doctest: +SKIP
        ...     slowest = max(paces(lut).values())
    """
    found: dict[int, float] = {}
    for dense, found_batches in _by_network(lut):
        dense_ms = float(np.median(_told_ms(lut, dense)))
        usual_ms = float(np.median([record.latency_ms for record in dense]))
        for peer, networks in found_batches:
            ms = peer.latency_ms if peer.role is Role.VERIFY else usual_ms * _counted(peer.latency_ms / usual_ms)
            found |= {record.id: ms / dense_ms for record in networks}
    return found


def _counted(pace: float) -> float:
    """Of a pace that is 1 as a rule."""
    change = math.log(pace)
    return math.exp(change - math.copysign((1 - PACE_COUNTS) * min(abs(change), _IN_DOUBT), change))


def scale_variances(lut: Lut) -> dict[int, float]:
    """Per network (id): variance of the logarithm of what its dense network takes on the quiet device.

    The mean of several processes is as much in doubt as they lie apart, which is drawn towards what is usual: few of
    them tell little of that. Networks that had no dense one beside them aren't named.
    """
    found: dict[int, float] = {}
    for dense, found_batches in _by_network(lut):
        told = np.log(_told_ms(lut, dense))
        squares = _USUALLY_COUNTS * _USUALLY_APART**2 + float(np.var(told)) * len(told)
        variance = squares / (_USUALLY_COUNTS + len(told) - 1) / len(told)
        found |= {record.id: variance for _, networks in found_batches for record in networks}
    return found


def batches(lut: Lut) -> dict[int, int]:
    """Per network (id): the dense one that was timed beside it, itself included.

    Networks that had none beside them aren't named.
    """
    return {record.id: peer.id for _, found in _by_network(lut) for peer, networks in found for record in networks}


def on_scale(record: NetworkRecord, pace: Mapping[int, float]) -> NetworkRecord:
    """The record with its latency divided by its pace, where it has one."""
    by = pace.get(record.id, 1.0)
    return replace(record, latency_ms=record.latency_ms / by, low_ms=record.low_ms / by, high_ms=record.high_ms / by)


def quiet_reading_ms(blocks: Sequence[Block]) -> float:
    """What the reference kernels take in one process while nothing disturbs them: a low quantile of their readings."""
    return float(np.quantile([block.reference_ms for block in blocks], _QUIET_QUANTILE))


def _told_ms(lut: Lut, dense: list[NetworkRecord]) -> list[float]:
    """What the dense network takes on the quiet device, as each process tells."""
    quiet_ms = lut.quiet_reference_ms or 1.0
    told = []
    for run in sorted({record.run for record in dense}):
        blocks = [block for record in dense if record.run == run for block in lut.samples(record).blocks]
        told.append(float(np.median([b.latency_ms * (quiet_ms / b.read_ms) ** _BETWEEN for b in blocks])))
    return told


def _by_network(lut: Lut) -> Iterator[tuple[list[NetworkRecord], list[_Batch]]]:
    """Of each network that was timed in batches, its dense records and its batches."""
    beside = {run.id for run in lut.runs() if run.info.get(BESIDE_DENSE)}
    by_signature: dict[str, list[NetworkRecord]] = defaultdict(list)
    for record in lut.networks():
        if record.run in beside:
            by_signature[record.signature].append(record)
    for records in by_signature.values():
        if dense := [record for record in records if record.role is Role.DENSE]:
            yield dense, _batches(records, dense[0].widths)


def _batches(records: list[NetworkRecord], dense: Mapping[str, int]) -> list[_Batch]:
    """Each dense network with what was timed beside it: all that follows it in its run, until the next."""
    found: list[_Batch] = []
    for record in sorted(records, key=lambda record: (record.run, record.id)):
        if record.widths == dense:
            found.append((record, [record]))
        elif found and found[-1][0].run == record.run:
            found[-1][1].append(record)
    return found
