"""The reference kernels as a gauge of the machine's pace.

Two kernels are read together: one bound by arithmetic, one by shared caches and memory. Their weighted geometric mean
is the reference every latency is a ratio to. Where the two part, a neighbour slows one kind of work more than the
other; no single ratio corrects that, so what was timed meanwhile is not to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from widthwise.profiling.runtimes.base import References

__all__ = ["REFERENCE", "Gauge", "Reading"]

_COMPUTE_WEIGHT = 0.8
"""Networks slow down much more as the compute-bound kernel does: beside a busy neighbour, ratios to
compute^0.8·memory^0.2 scatter by 1.1 % for ResNet-18 and 1.4 % for MobileNetV2, those to the sum of the two by 2.4 %
and 1.5 %."""

REFERENCE = f"compute^{_COMPUTE_WEIGHT:g} memory^{1 - _COMPUTE_WEIGHT:.2g}"
"""What the reference is; part of a table's fingerprint, because its latencies are ratios to it."""

_RUNS = 3
_WARM_UP_ROUNDS = 40
_FLAT_WINDOW = 8
_FLAT = 0.03
"""The reference counts as flat when the medians of two successive windows differ by less."""

_BUSY = 1.2
"""The machine counts as disturbed while the reference takes this many times its quiet latency. Once the reference
counts by its elasticity, blocks between 1.12 and 1.2 lie to no side and scatter up to 3.5 times as far as quiet ones
(about twice in most tables); above, DenseNet-121's by four times."""

_QUIET_QUANTILE = 0.1
_LATELY = 40
"""Readings, two for each block."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Latencies of both kernels at one moment, in ms."""

    compute_ms: float
    memory_ms: float

    @property
    def latency_ms(self) -> float:
        """Of the reference as a whole."""
        return float(self.compute_ms**_COMPUTE_WEIGHT * self.memory_ms ** (1 - _COMPUTE_WEIGHT))

    @property
    def total_ms(self) -> float:
        """How long reading both once takes."""
        return self.compute_ms + self.memory_ms

    @property
    def balance(self) -> float:
        """Memory-bound over compute-bound."""
        return self.memory_ms / self.compute_ms


class Gauge:
    """Reads the references, and knows what is usual for them.

    Args:
        quiet_ms: what the reference takes on the undisturbed device, where that is known.

    Attributes:
        spent_s: seconds the kernels have run.

    Example:
        >>> from widthwise.profiling.runtimes.fake import FakeRuntime, World
        >>> from widthwise.profiling.target import Target
        >>> gauge = Gauge(FakeRuntime(Target.parse("fake:cpu"), World(drift=0, noise=0, burst_rate=0)).references())
        >>> _ = gauge.read()
        >>> gauge.disagreement(gauge.read())
        0.0
    """

    def __init__(self, references: References, *, quiet_ms: float | None = None) -> None:
        self._references = references
        self._known_quiet_ms = quiet_ms if quiet_ms is not None else math.inf
        self._seen: list[Reading] = []
        self.spent_s = 0.0

    @property
    def quiet_ms(self) -> float:
        """Latency of the reference on the undisturbed device: a low quantile of what was seen, or what was known."""
        seen = [reading.latency_ms for reading in self._seen]
        return min(self._known_quiet_ms, float(np.quantile(seen, _QUIET_QUANTILE)) if seen else math.inf)

    def warm_up(self, other_work: Callable[[], object] = lambda: None) -> float:
        """Reads until the reference is flat; gives :attr:`quiet_ms`.

        Args:
            other_work: done before each reading, as will be when it matters.
        """
        seen: list[float] = []
        for _ in range(_WARM_UP_ROUNDS):
            other_work()
            seen.append(self.read().latency_ms)
            if len(seen) >= 2 * _FLAT_WINDOW:
                before, after = (np.median(seen[-k * _FLAT_WINDOW :][:_FLAT_WINDOW]) for k in (2, 1))
                if abs(after / before - 1) < _FLAT:
                    break
        return self.quiet_ms

    def read(self) -> Reading:
        """The median of several runs of both kernels in turns."""
        reading = self._read(_RUNS)
        self._seen.append(reading)
        return reading

    def glance(self) -> Reading:
        """One run of both kernels; rougher than :meth:`read`, and quick enough to go between the runs of a visit."""
        return self._read(1)

    def _read(self, runs: int) -> Reading:
        kernels = (self._references.compute, self._references.memory)
        taken = [[kernel.run() for kernel in kernels] for _ in range(self._references.settling_runs + runs)]
        self._references.let_go()
        self.spent_s += sum(map(sum, taken))
        compute_s, memory_s = np.median(taken[-runs:], axis=0)
        return Reading(float(compute_s) * 1e3, float(memory_s) * 1e3)

    def is_disturbed(self, reading: Reading) -> bool:
        """Whether the machine is far from its quiet pace."""
        return reading.latency_ms > _BUSY * self.quiet_ms

    @property
    def calm_share(self) -> float:
        """How many of the latest readings were taken at the machine's quiet pace."""
        lately, limit_ms = self._seen[-_LATELY:], _BUSY * self.quiet_ms
        return sum(reading.latency_ms <= limit_ms for reading in lately) / max(len(lately), 1)

    def disagreement(self, reading: Reading) -> float:
        """By how much memory-bound work is slowed down more than compute-bound work, compared with what is usual."""
        usual = float(np.median([seen.balance for seen in self._seen]))
        return reading.balance / usual - 1
