"""What came out of timing something: raw ratios first, statistics derived.

A measurement keeps every block's raw sample; the latency is recomputed from them and never stored alone.
Source of the estimator: interleaved ratios to a reference kernel, median over blocks, bootstrap over
blocks (duet benchmarking, ICPE 2020; Kalibera & Jones, ISMM 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from widthwise.luts.errors import InvalidSpec

__all__ = ["Block", "Estimator", "Measurement", "Status"]

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
class Block:
    """One interleaved sample: a latency and the reference kernel's latency around it, both in ms."""

    latency_ms: float
    reference_ms: float

    def __post_init__(self) -> None:
        for name, value in (("latency_ms", self.latency_ms), ("reference_ms", self.reference_ms)):
            if not (np.isfinite(value) and value > 0):
                raise InvalidSpec(f"{name} must be a positive number of milliseconds, got {value}")


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
        if not (np.isfinite(self.quiet_reference_ms) and self.quiet_reference_ms > 0):
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
    def raw_ms(self) -> float:
        """Median of the uncorrected latencies: what a stopwatch would have said at that moment."""
        return float(np.median([b.latency_ms for b in self.blocks]))

    @cached_property
    def interval_ms(self) -> tuple[float, float]:
        """95 % bootstrap interval of the median, resampling blocks (seeded, so it is a function of the data)."""
        if len(self.blocks) < _MIN_BLOCKS:
            return float(self.ratios.min()) * self.quiet_reference_ms, float(self.ratios.max()) * self.quiet_reference_ms
        rng = np.random.default_rng(0)
        draws = rng.integers(0, len(self.ratios), size=(_RESAMPLES, len(self.ratios)))
        medians = np.median(self.ratios[draws], axis=1)
        low, high = np.quantile(medians, [0.025, 0.975]) * self.quiet_reference_ms
        return float(low), float(high)

    @property
    def half_width(self) -> float:
        """Half the interval over the median: the relative doubt."""
        low, high = self.interval_ms
        return (high - low) / 2 / self.latency_ms

    @property
    def status(self) -> Status:
        """``unstable`` where the doubt exceeds ``SETTLED_HALF_WIDTH`` or there are too few blocks to know."""
        settled = len(self.blocks) >= _MIN_BLOCKS and self.half_width <= SETTLED_HALF_WIDTH
        return Status.STABLE if settled else Status.UNSTABLE
