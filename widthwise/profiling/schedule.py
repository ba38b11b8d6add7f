"""The timing schedule: interleaved blocks, every latency a ratio to a reference kernel run around it.

On a shared machine everything drifts by 10 % within seconds. A block runs the reference kernel, one
candidate, and the reference again; the candidate counts as a ratio to the two references' mean, so a drift
that slows both cancels. Candidates take turns in shuffled order, so what is left of it hits all alike
(random interleaving as in Google Benchmark; duet benchmarking, ICPE 2020).

The ratio corrects a slowdown only as far as reference and candidate slow down alike, which they do to about 10 %
when neighbours fight for cache and memory. So while the reference runs far above its quiet latency the schedule
waits, as nvbench does on a throttled clock; how long is bounded by a share of the time spent measuring.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from widthwise.luts.measurement import Block, Measurement
from widthwise.profiling.runtimes.base import NetworkSession, Session

__all__ = ["Pace", "Schedule", "Timing", "cheap_collections"]

_REFERENCE_RUNS = 2
_WARM_UP_ROUNDS = 40
_FLAT_WINDOW = 8
_FLAT = 0.03
"""The reference counts as flat when the medians of two successive windows differ by less."""

_BUSY = 1.12
"""The machine counts as disturbed while the reference takes this many times its quiet latency."""

_PAUSE_S = 0.25
_FIRST_PATIENCE_S = 10.0
_PATIENCE = 0.5
"""Seconds of waiting granted for each second of measuring."""

_QUIET_QUANTILE = 0.1
_LONG_RUN_S = 0.25
"""A run this long settles by itself: it needs no runs before it that don't count."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure.

    Args:
        blocks: taken of every candidate.
        most_blocks: taken of candidates that haven't settled.
        half_width: relative half-width of the 95 % interval that counts as settled.
        visit_s: a visit repeats runs shorter than this until they fill it, after half as long a warm-up: what ran
            before has left its data in the caches and its sizes in the allocator.
        most_runs: but not more often.
    """

    blocks: int = 4
    most_blocks: int = 6
    half_width: float = 0.02
    visit_s: float = 0.1
    most_runs: int = 20


@dataclass
class Timing:
    """Blocks of one candidate, and of each of its layers if it is a network."""

    blocks: list[Block] = field(default_factory=list)
    layers: list[list[Block]] = field(default_factory=list)

    def measurement(self, quiet_reference_ms: float) -> Measurement:
        """Of the candidate as a whole."""
        return Measurement(tuple(self.blocks), quiet_reference_ms)

    def layer_measurements(self, quiet_reference_ms: float) -> list[Measurement]:
        """Of its layers, in order."""
        return [Measurement(tuple(blocks), quiet_reference_ms) for blocks in self.layers]


class Schedule:
    """Measures sessions against one reference kernel.

    Args:
        reference: constant short work; ran before and after every candidate.
        quiet_ms: what the reference takes on the undisturbed device, where that is known.
        pause: lets time pass; :func:`time.sleep` on real devices.
        seed: of the order in which candidates take turns.

    Attributes:
        waited_s: seconds spent on waiting for quiet, and on blocks that were disturbed and taken again.
    """

    def __init__(
        self,
        reference: Session,
        *,
        quiet_ms: float | None = None,
        pause: Callable[[float], None] = time.sleep,
        seed: int = 0,
    ) -> None:
        self._reference = reference
        self._known_quiet_ms = quiet_ms if quiet_ms is not None else math.inf
        self._pause = pause
        self._random = random.Random(seed)
        self._references_ms: list[float] = []
        self._patience_s = _FIRST_PATIENCE_S
        self.waited_s = 0.0

    @property
    def quiet_ms(self) -> float:
        """Latency of the reference on the undisturbed device: a low quantile of what was seen, or what was known."""
        seen = float(np.quantile(self._references_ms, _QUIET_QUANTILE)) if self._references_ms else math.inf
        return min(self._known_quiet_ms, seen)

    def warm_up(self) -> float:
        """Runs the reference until it is flat; gives :attr:`quiet_ms`."""
        gc.collect()  # once: a collection takes a fifth of a second with torch loaded
        with _no_garbage_collection():
            seen: list[float] = []
            for _ in range(_WARM_UP_ROUNDS):
                seen.append(self._run_reference())
                if len(seen) >= 2 * _FLAT_WINDOW:
                    before, after = (np.median(seen[-k * _FLAT_WINDOW :][:_FLAT_WINDOW]) for k in (2, 1))
                    if abs(after / before - 1) < _FLAT:
                        break
        return self.quiet_ms

    def measure(self, sessions: Sequence[Session], pace: Pace | None = None) -> list[Timing]:
        """Times these sessions against each other, in one interleaved run."""
        pace = pace or Pace()
        timings = [Timing() for _ in sessions]
        with _no_garbage_collection():
            expected_s = [self._first_run(session) for session in sessions]
            pending = list(range(len(sessions)))
            while pending:
                self._random.shuffle(pending)
                for index in pending:
                    self._block(sessions[index], timings[index], expected_s[index], pace)
                pending = [index for index in pending if _wants_more(timings[index], pace)]
        return timings

    def _first_run(self, session: Session) -> float:
        session.run()
        if isinstance(session, NetworkSession):
            session.run_layers()
        return session.run()

    def _block(self, session: Session, timing: Timing, expected_s: float, pace: Pace) -> None:
        runs = max(1, min(pace.most_runs, round(pace.visit_s / max(expected_s, 1e-9))))
        before = self._quiet_reference()
        for _ in range((runs + 1) // 2 if expected_s < _LONG_RUN_S else 0):
            session.run()
        whole, layers = [], []
        for _ in range(runs):
            whole.append(session.run())
            if isinstance(session, NetworkSession):
                layers.append(session.run_layers())
        after = self._run_reference()
        spent_s = sum(whole) + (before + after) * 1e-3
        if after > _BUSY * self.quiet_ms and self._patience_s > 0:
            self._wait(spent_s)  # disturbed: taken again in a later round
            return
        self._patience_s += _PATIENCE * spent_s
        reference_ms = (before + after) / 2
        timing.blocks.append(Block(float(np.median(whole)) * 1e3, reference_ms))
        if layers:
            medians = np.median(np.array(layers), axis=0) * 1e3
            timing.layers = timing.layers or [[] for _ in medians]
            for blocks, latency_ms in zip(timing.layers, medians, strict=True):
                blocks.append(Block(max(float(latency_ms), 1e-6), reference_ms))

    def _quiet_reference(self) -> float:
        """The reference's latency, once it is quiet or patience has run out."""
        latency_ms = self._run_reference()
        while latency_ms > _BUSY * self.quiet_ms and self._patience_s > 0:
            self._pause(_PAUSE_S)
            self._wait(_PAUSE_S)
            latency_ms = self._run_reference()
        return latency_ms

    def _wait(self, seconds: float) -> None:
        self._patience_s -= seconds
        self.waited_s += seconds

    def _run_reference(self) -> float:
        self._reference.run()
        reference_ms = float(np.median([self._reference.run() for _ in range(_REFERENCE_RUNS)])) * 1e3
        self._references_ms.append(reference_ms)
        return reference_ms


def _wants_more(timing: Timing, pace: Pace) -> bool:
    if len(timing.blocks) < pace.blocks:
        return True
    return len(timing.blocks) < pace.most_blocks and timing.measurement(1.0).half_width > pace.half_width


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Takes what lives now out of the collector's sight, so that a collection costs milliseconds and not a fifth of
    a second with torch loaded.

    Traced graphs refer to themselves; without a collection after each batch the weights of networks long timed pile
    up (VGG-16 grew by 2 GB in a minute).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
