"""What came out of timing something: raw ratios first, statistics derived.

A measurement keeps every block's raw sample; the latency is recomputed from them and never stored alone.
Source of the estimator: interleaved ratios to a reference kernel, median over blocks, bootstrap over
blocks (duet benchmarking, ICPE 2020; Kalibera & Jones, ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Self

import numpy as np

from widthwise.luts.errors import InvalidSpec

__all__ = [
    "SETTLED_HALF_WIDTH",
    "Block",
    "Conditions",
    "Estimator",
    "Measurement",
    "Status",
    "Summary",
    "summarise",
]

SETTLED_HALF_WIDTH = 0.05
"""A measurement whose 95 % interval is wider than ± this share of its median is called unstable."""

_MIN_BLOCKS = 3
_RESAMPLES = 200


class Estimator(StrEnum):
    """How a latency was obtained."""

    IN_PLACE = "in_place"
    """Timed while the layer ran inside a network."""
    SINGLE = "single"
    """Timed alone, in a loop of its own."""
    WHOLE = "whole"
    """The whole network."""
    IMPORTED = "imported"
    """Measured by others, see the table's ``source``."""


class Status(StrEnum):
    """Whether a measurement may be relied on."""

    STABLE = "stable"
    UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the machine did while a block was taken; None where the system doesn't tell.

    Attributes:
        cpu_share: CPU time of the timed thread over wall time; below 1 it was kept waiting.
        switches: times it was taken off its core against its will.
        page_faults: pages of memory it had to be given; see :mod:`widthwise.profiling.memory`.
        steal_share: of all cores' time, taken by the hypervisor for others.
        load: runnable processes, averaged over the last minute.
        clock_mhz: of the core, or of the GPU's multiprocessors.
        clock_share: of the GPU's highest clock.
        slowed_by: bits of NVML's reasons for the GPU's clock.
        gpu_others: other processes that compute on the GPU.
        disagreement: by how much the memory-bound reference was slowed down more than the compute-bound one.
        spoilt: 1 where the block was kept although the machine was disturbed, for want of patience.
        tail: 90 % quantile of all runs of the measurement so far, each over its block's median.
        read_ms: what the reference took, where it doesn't count as that; see :class:`Block`.

    Example:
        >>> Conditions(cpu_share=0.97, switches=2).as_dict()
        {'cpu_share': 0.97, 'switches': 2}
    """

    cpu_share: float | None = None
    switches: int | None = None
    page_faults: int | None = None
    steal_share: float | None = None
    load: float | None = None
    clock_mhz: float | None = None
    clock_share: float | None = None
    slowed_by: int | None = None
    gpu_others: int | None = None
    disagreement: float | None = None
    spoilt: int | None = None
    tail: float | None = None
    read_ms: float | None = None

    def as_dict(self) -> dict[str, float]:
        """What is known, rounded to what such readings are worth."""
        fields = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: round(value, 4) for name, value in fields if value is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """The conditions :meth:`as_dict` wrote; names of later versions are passed over.

        Raises:
            InvalidSpec: a value that is no finite number.
        """
        known = {name: value for name, value in fields.items() if name in cls.__slots__}
        for name, value in known.items():
            if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value)):
                raise InvalidSpec(f"{name} must be a finite number, got {value!r}")
        return cls(**known)  # type: ignore[arg-type]  # checked above


@dataclass(frozen=True, slots=True)
class Block:
    """One interleaved sample: a latency and the reference kernel's latency at that moment, both in ms.

    Attributes:
        reference_ms: as it counts for what was timed: drawn towards what it took in the run as a whole where what was
            timed slows down by less than the kernel does (:mod:`widthwise.profiling.elasticity`).
        conditions: what was observed meanwhile, where it was; also what the kernel really took.
    """

    latency_ms: float
    reference_ms: float
    conditions: Conditions | None = None

    def __post_init__(self) -> None:
        for name, value in (("latency_ms", self.latency_ms), ("reference_ms", self.reference_ms)):
            if not (math.isfinite(value) and value > 0):
                raise InvalidSpec(f"{name} must be a positive number of milliseconds, got {value}")

    @property
    def read_ms(self) -> float:
        """What the reference kernel really took."""
        return (self.conditions and self.conditions.read_ms) or self.reference_ms


@dataclass(frozen=True)
class Measurement:
    """Blocks of one thing timed, on the scale of the table's quiet reference.

    Args:
        blocks: the raw samples, at least one.
        quiet_reference_ms: latency of the reference kernel on the undisturbed device; ratios times this are ms.

    Example:
        >>> m = Measurement((Block(2.0, 1.0), Block(4.4, 2.2), Block(2.2, 1.0)), quiet_reference_ms=1.5)
        >>> m.latency_ms
        3.0
    """

    blocks: tuple[Block, ...]
    quiet_reference_ms: float

    def __post_init__(self) -> None:
        if not self.blocks:
            raise InvalidSpec("a measurement needs at least one block")
        if not (math.isfinite(self.quiet_reference_ms) and self.quiet_reference_ms > 0):
            raise InvalidSpec(f"quiet_reference_ms must be positive, got {self.quiet_reference_ms}")

    @cached_property
    def ratios(self) -> np.ndarray:
        """Latency over reference, one per block."""
        return np.array([b.latency_ms / b.reference_ms for b in self.blocks])

    @property
    def latency_ms(self) -> float:
        """Median over blocks, drift-corrected."""
        return float(np.median(self.ratios)) * self.quiet_reference_ms

    @property
    def tail(self) -> float | None:
        """The 90 % quantile of single runs over their median; None where too few runs are on record to say."""
        known = [block.conditions.tail for block in self.blocks if block.conditions and block.conditions.tail]
        return known[-1] if known else None

    @property
    def raw_ms(self) -> float:
        """Median of the uncorrected latencies: what a stopwatch would have said at that moment."""
        return float(np.median([b.latency_ms for b in self.blocks]))

    @cached_property
    def interval_ms(self) -> tuple[float, float]:
        """95 % bootstrap interval of the median, resampling blocks.

        Seeded, and independent of the blocks' order, so it is a function of the data. With fewer than three
        blocks it is their range.
        """
        summary = summarise([self])[0]
        return summary.low_ms, summary.high_ms

    @property
    def half_width(self) -> float:
        """Half the interval over the median: the relative doubt."""
        low, high = self.interval_ms
        return (high - low) / 2 / self.latency_ms

    @property
    def status(self) -> Status:
        """``unstable`` where the doubt exceeds ``SETTLED_HALF_WIDTH``, there are too few blocks to know, or half of
        them were taken on a disturbed machine."""
        return _status(len(self.blocks), self.half_width, self.spoilt)

    @property
    def spoilt(self) -> int:
        """How many blocks were taken on a disturbed machine, for want of patience."""
        return sum(bool(block.conditions and block.conditions.spoilt) for block in self.blocks)

    @property
    def disturbed(self) -> bool:
        """Whether half of the blocks were, or more."""
        return _disturbed(len(self.blocks), self.spoilt)


@dataclass(frozen=True, slots=True)
class Summary:
    """The statistics derived from one measurement, times in ms."""

    latency_ms: float
    low_ms: float
    high_ms: float
    status: Status
    blocks: int


def summarise(measurements: Sequence[Measurement]) -> list[Summary]:
    """The statistics of each measurement, in the order given: what its own properties say, at a tenth of the cost.

    Measurements with the same number of blocks are resampled together.

    Example:
        >>> m = Measurement((Block(2.0, 1.0), Block(6.0, 2.0)), quiet_reference_ms=1.0)
        >>> summarise([m])
        [Summary(latency_ms=2.5, low_ms=2.0, high_ms=3.0, status=<Status.UNSTABLE: 'unstable'>, blocks=2)]
    """
    members: dict[int, list[int]] = {}
    for index, measurement in enumerate(measurements):
        members.setdefault(len(measurement.blocks), []).append(index)
    summaries: dict[int, Summary] = {}
    for count, indices in members.items():
        ordered = np.sort(np.stack([measurements[i].ratios for i in indices]), axis=1)
        middle = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
        low, high = _interval(ordered)
        scale = np.array([measurements[i].quiet_reference_ms for i in indices])
        columns = np.stack([middle, low, high], axis=1) * scale[:, None]
        for index, (at, bottom, top) in zip(indices, columns.tolist(), strict=True):
            status = _status(count, (top - bottom) / 2 / at, measurements[index].spoilt)
            summaries[index] = Summary(at, bottom, top, status, count)
    return [summaries[index] for index in range(len(measurements))]


def _interval(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the median of each row; rows are sorted."""
    count = ordered.shape[1]
    if count < _MIN_BLOCKS:
        return ordered[:, 0], ordered[:, -1]
    left, right = _median_ranks(count)
    medians = (ordered[:, left] + ordered[:, right]) / 2
    low, high = np.quantile(medians, [0.025, 0.975], axis=1)
    return low, high


@lru_cache(maxsize=64)
def _median_ranks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the one or two middle values of each resample of ``count`` blocks.

    Sorting commutes with resampling by rank, so the draws are sorted once and serve every measurement.
    """
    draws = np.sort(np.random.default_rng(0).integers(0, count, size=(_RESAMPLES, count)), axis=1)
    return draws[:, (count - 1) // 2], draws[:, count // 2]


def _status(count: int, half_width: float, spoilt: int) -> Status:
    settled = count >= _MIN_BLOCKS and half_width <= SETTLED_HALF_WIDTH and not _disturbed(count, spoilt)
    return Status.STABLE if settled else Status.UNSTABLE


def _disturbed(count: int, spoilt: int) -> bool:
    return 2 * spoilt >= count
