"""A stay at one candidate: its runs back to back, between readings of the references.

A network runs as users run it: again and again, with nothing else between. Its runs with layers on record come after
those. Both runtimes that deploy on CPUs record in a second copy of the network; in turns with that, the first finds its
weights and activations no longer in the caches. The dense MobileNetV2 took no longer, one of a quarter of its latency
6 % (ONNX Runtime) and 24 % (OpenVINO); EfficientNet-B0 at half of it 1 to 2 and 4 to 6 %; ResNet-18, and everything
in eager PyTorch, 2 % at most. ``python -m benchmarks.back_to_back`` has both ways side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from widthwise.profiling.gauge import Gauge, Reading

__all__ = ["Stretch"]

_GLANCE_EVERY_S = 0.04
"""Neighbours come and go in tens of milliseconds; readings further apart miss them. Blocks of ResNet-18 scatter by 1.3
% (standard deviation) with a glance every 25 ms, by 4.7 % with readings at the edges alone."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Runs back to back.

    Attributes:
        seconds: of each.
        meanwhile: what the references took.
        after: and what they took when it was over.
        spent_s: inside the runs, those to warm up included.
    """

    seconds: list[float]
    meanwhile: Reading
    after: Reading
    spent_s: float

    @classmethod
    def of(cls, run: Callable[[], float], runs: int, gauge: Gauge, before: Reading, *, warm_up: int = 0) -> Self:
        """Runs that often, after some that don't count.

        Args:
            run: once; gives the seconds it took.
            before: the last reading.

        Example:
            >>> from widthwise.profiling.runtimes.fake import FakeRuntime, World
            >>> from widthwise.profiling.target import Target
            >>> gauge = Gauge(FakeRuntime(Target.parse("fake:cpu"), World(drift=0, noise=0, burst_rate=0)).references())
            >>> Stretch.of(lambda: 0.01, 3, gauge, gauge.read(), warm_up=1).spent_s
            0.04
        """
        warm_up_s = sum(run() for _ in range(warm_up))
        seconds: list[float] = []
        glances: list[Reading] = []
        since_s = 0.0
        for _ in range(runs):
            seconds.append(run())
            since_s += seconds[-1]
            if since_s >= _GLANCE_EVERY_S and len(seconds) < runs:
                glances.append(gauge.glance())
                since_s = 0.0
        after, timed_s = gauge.read(), sum(seconds)
        meanwhile = _median([*glances, before, after]) if glances else _between(before, warm_up_s, timed_s, after)
        return cls(seconds, meanwhile, after, warm_up_s + timed_s)


def _median(readings: list[Reading]) -> Reading:
    compute_ms, memory_ms = np.median([(reading.compute_ms, reading.memory_ms) for reading in readings], axis=0)
    return Reading(float(compute_ms), float(memory_ms))


def _between(before: Reading, warm_up_s: float, timed_s: float, after: Reading) -> Reading:
    """In the middle of the timed runs on a line between the readings around them."""
    until_s = before.total_ms * 1e-3 + warm_up_s + timed_s / 2
    since_s = timed_s / 2 + after.total_ms * 1e-3
    share = until_s / (until_s + since_s)
    return Reading(
        (1 - share) * before.compute_ms + share * after.compute_ms,
        (1 - share) * before.memory_ms + share * after.memory_ms,
    )
