"""The timing schedule: interleaved blocks, every latency a ratio to a reference kernel run around it.

On a shared machine everything drifts by 10 % within seconds. A block runs the reference kernel, one
candidate, and the reference again; the candidate counts as a ratio to the two references' mean, so a drift
that slows both cancels. Candidates take turns in shuffled order, so what is left of it hits all alike
(random interleaving as in Google Benchmark; duet benchmarking, ICPE 2020).
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from widthwise.luts.measurement import Block, Measurement
from widthwise.profiling.runtimes.base import NetworkSession, Session

__all__ = ["Pace", "Schedule", "Timing"]

_REFERENCE_RUNS = 2
_WARM_UP_ROUNDS = 40
_FLAT_WINDOW = 8
_FLAT = 0.03
"""The reference counts as flat when the medians of two successive windows differ by less."""

_JUMP = 0.10
"""A block is taken again when its two references differ by more: the machine changed under it."""

_QUIET_QUANTILE = 0.2
_LONG_RUN_S = 0.1
"""A run this long warms its own caches: it needs no run before it that doesn't count."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure.

    Args:
        blocks: taken of every candidate.
        most_blocks: taken of candidates that haven't settled.
        half_width: relative half-width of the 95 % interval that counts as settled.
        visit_s: a visit repeats runs shorter than this until they fill it.
        most_runs: but not more often.
    """

    blocks: int = 4
    most_blocks: int = 8
    half_width: float = 0.02
    visit_s: float = 0.03
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
        seed: of the order in which candidates take turns.
    """

    def __init__(self, reference: Session, *, seed: int = 0) -> None:
        self._reference = reference
        self._random = random.Random(seed)
        self._references_ms: list[float] = []

    def warm_up(self) -> float:
        """Runs the reference until it is flat; its quiet latency in ms (a low quantile of what was seen)."""
        gc.collect()  # once: a collection takes a fifth of a second with torch loaded
        with _no_garbage_collection():
            seen: list[float] = []
            for _ in range(_WARM_UP_ROUNDS):
                seen.append(self._run_reference())
                if len(seen) >= 2 * _FLAT_WINDOW:
                    before, after = (np.median(seen[-k * _FLAT_WINDOW :][:_FLAT_WINDOW]) for k in (2, 1))
                    if abs(after / before - 1) < _FLAT:
                        break
        return float(np.quantile(seen, _QUIET_QUANTILE))

    @property
    def references_ms(self) -> tuple[float, ...]:
        """Every reference latency so far: the machine's weather."""
        return tuple(self._references_ms)

    def measure(self, sessions: Sequence[Session], pace: Pace | None = None) -> list[Timing]:
        """Times these sessions against each other, in one interleaved run."""
        pace = pace or Pace()
        timings = [Timing() for _ in sessions]
        with _no_garbage_collection():
            expected_s = [self._first_run(session) for session in sessions]
            pending = list(range(len(sessions)))
            for _ in range(2 * pace.most_blocks):  # retaken blocks must end too
                self._random.shuffle(pending)
                for index in pending:
                    self._block(sessions[index], timings[index], expected_s[index], pace)
                pending = [index for index in pending if _wants_more(timings[index], pace)]
                if not pending:
                    break
        return timings

    def _first_run(self, session: Session) -> float:
        session.run()
        if isinstance(session, NetworkSession):
            session.run_layers()
        return session.run()

    def _block(self, session: Session, timing: Timing, expected_s: float, pace: Pace) -> None:
        runs = max(1, min(pace.most_runs, round(pace.visit_s / max(expected_s, 1e-9))))
        before = self._run_reference()
        if expected_s < _LONG_RUN_S:
            session.run()
        whole, layers = [], []
        for _ in range(runs):
            whole.append(session.run())
            if isinstance(session, NetworkSession):
                layers.append(session.run_layers())
        after = self._run_reference()
        changed = abs(after / before - 1) > _JUMP
        if changed and len(timing.blocks) < pace.blocks and self._random.random() < 0.5:
            return  # taken again in a later round; by chance, so that a restless machine still gets its blocks
        reference_ms = (before + after) / 2
        timing.blocks.append(Block(float(np.median(whole)) * 1e3, reference_ms))
        if layers:
            medians = np.median(np.array(layers), axis=0) * 1e3
            timing.layers = timing.layers or [[] for _ in medians]
            for blocks, latency_ms in zip(timing.layers, medians, strict=True):
                blocks.append(Block(max(float(latency_ms), 1e-6), reference_ms))

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
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
