"""The timing schedule: interleaved blocks, every latency a ratio to reference kernels run around it.

On a shared machine everything drifts by 10 % within seconds. A block runs the references, one candidate, and the
references again, with glances at the references between its runs (:mod:`widthwise.profiling.visit`); a network's runs
with layers on record follow its others. The candidate counts as a ratio to what the references took at its moment, so a
drift that slows both cancels. Candidates take turns in shuffled order, so what is left of it hits all alike (random
interleaving as in Google Benchmark; duet benchmarking, ICPE 2020).

The ratio corrects a slowdown only as far as reference and candidate slow down alike. So the reference counts by as much
as the blocks of a run tell (:mod:`widthwise.profiling.elasticity`), and a block is dropped, and taken again, when the
machine was far from its quiet pace, when the compute-bound and the memory-bound reference disagree, or when the system
says that the core was taken away; while the references run far above their quiet latency the schedule waits, as nvbench
does on a throttled clock. All that is bounded by a share of the time spent measuring, which is the less the longer it
has not been quiet: on a machine that has become slower for good there is nothing to wait for.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from scipy.stats import trim_mean

from widthwise.luts.measurement import Block, Conditions, Measurement
from widthwise.profiling.conditions import is_contaminated
from widthwise.profiling.elasticity import counted, counting
from widthwise.profiling.gauge import Gauge, Reading
from widthwise.profiling.runtimes.base import NetworkSession, References, Runtime, Session
from widthwise.profiling.visit import Stretch

__all__ = ["Pace", "Schedule", "Timing"]

_PAUSE_S = 0.25
_MOST_PATIENCE_S = 10.0
_PATIENCE = 0.3
"""Seconds of waiting granted for each second of measuring while the machine is quiet. Granted at any time, a machine
that had become a fifth slower took 14 of a process's 52 seconds."""

_PATIENCE_SHARE = 0.1
"""Of the time until the deadline: no more may be waited before measuring has earned it."""

_DISAGREEMENT = 0.3
"""A block is dropped when one reference was slowed down by so much more than the other."""

_LONG_RUN_S = 0.25
"""A run this long settles by itself: it needs no runs before it that don't count."""

_TRIMMED = 0.25
"""Share of a visit's runs left out at either end when those of a layer are averaged."""

TAIL = 0.9
_RUNS_FOR_TAIL = 10
"""Fewer runs say nothing of their 90 % quantile."""

_LATE_BLOCKS = 3
"""So many are taken of every candidate where there is no time for more. With all four, minutes ended half a second late
for networks of 130 ms."""

_LEAST_MS = 1e-6
"""Stands for a layer the runtime spent no time on, such as a concatenation it did in place."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure.

    Args:
        blocks: taken of every candidate.
        half_width: relative half-width of the 95 % interval that counts as settled.
        cap_s: a candidate that hasn't settled gets further blocks until its runs have taken so many seconds, or these
            and what it takes to record them twice as many.
        most_blocks: and in no case more.
        visit_s: a visit repeats runs shorter than this until they fill it, after half as long a warm-up: what ran
            before has left its data in the caches and its sizes in the allocator.
        most_runs: but not more often.
    """

    blocks: int = 4
    half_width: float = 0.01
    cap_s: float = 1.2
    most_blocks: int = 30
    visit_s: float = 0.1
    most_runs: int = 20


@dataclass
class Timing:
    """Blocks of one candidate, and of each of its layers if it is a network."""

    blocks: list[Block] = field(default_factory=list)
    layers: list[list[Block]] = field(default_factory=list)
    spent_s: float = 0.0
    elapsed_s: float = 0.0
    recorded: int = 0
    _visits: list[tuple[slice, float, bool]] = field(default_factory=list)
    _runs: list[float] = field(default_factory=list)

    def add(self, whole: Stretch, conditions: Conditions) -> None:
        """A block of the median of runs; how far these lie apart is kept with its conditions."""
        self.spent_s += whole.spent_s
        median_s = float(np.median(whole.seconds))
        self._runs += [run_s / median_s for run_s in whole.seconds]
        if len(self._runs) >= _RUNS_FOR_TAIL:
            conditions = replace(conditions, tail=float(np.quantile(self._runs, TAIL)))
        self.blocks.append(Block(median_s * 1e3, whole.meanwhile.latency_ms, conditions))

    def add_recorded(self, recorded: Stretch, *, spoilt: bool) -> None:
        """The latest runs with layers on record belong to a block, too."""
        self.spent_s += recorded.spent_s
        runs = slice(self.recorded - len(recorded.seconds), self.recorded)
        self._visits.append((runs, recorded.meanwhile.latency_ms, spoilt))

    def settle(self, reports: Sequence[Sequence[float]], counts_ms: Callable[[float], float]) -> None:
        """Blocks of the layers, from the report of every recorded run; conditions stay with the whole, but layers know
        if they are spoilt.

        The middle half of the runs is averaged: like the median it forgets the odd slow run, and it does not step
        where a runtime counts whole microseconds.

        Args:
            counts_ms: what a reading of the reference counts as.
        """
        for runs, read_ms, spoilt in self._visits:
            latencies_ms = trim_mean(np.array(reports[runs]), _TRIMMED, axis=0) * 1e3
            self.layers = self.layers or [[] for _ in latencies_ms]
            conditions = Conditions(spoilt=1) if spoilt else None
            for blocks, latency_ms in zip(self.layers, latencies_ms, strict=True):
                blocks.append(Block(max(float(latency_ms), _LEAST_MS), counts_ms(read_ms), conditions))
        self._visits.clear()

    def measurement(self, quiet_reference_ms: float) -> Measurement:
        """Of the candidate as a whole."""
        return Measurement(tuple(self.blocks), quiet_reference_ms)

    def layer_measurements(self, quiet_reference_ms: float) -> list[Measurement]:
        """Of its layers, in order."""
        return [Measurement(tuple(blocks), quiet_reference_ms) for blocks in self.layers]


class Schedule:
    """Measures sessions against the reference kernels.

    Args:
        references: constant short work; run before and after every candidate.
        quiet_ms: what the references take on the undisturbed device, where that is known.
        pause: lets time pass; :func:`time.sleep` on real devices.
        watch: begins to observe the machine; the call it gives ends that, see :meth:`Runtime.watch`.
        seed: of the order in which candidates take turns.

    Attributes:
        waited_s: seconds spent on waiting for quiet, and on blocks that were dropped and taken again.
        dropped: how many blocks were dropped, by reason.
        timed_s: seconds inside timed calls, warm-up and references included.
    """

    def __init__(
        self,
        references: References,
        *,
        quiet_ms: float | None = None,
        pause: Callable[[float], None] = time.sleep,
        watch: Callable[[], Callable[[], Conditions]] = lambda: Conditions,
        seed: int = 0,
    ) -> None:
        self._gauge = Gauge(references, quiet_ms=quiet_ms)
        self._pause = pause
        self._watch = watch
        self._random = random.Random(seed)
        self._patience_s = _MOST_PATIENCE_S
        self._deadline_s = math.inf
        self.waited_s = 0.0
        self.dropped: Counter[str] = Counter()
        self._visits_s = 0.0

    @classmethod
    def on(cls, runtime: Runtime, *, quiet_ms: float | None = None, seed: int = 0) -> Self:
        """A schedule with the references, the clock and the senses of this runtime."""
        return cls(runtime.references(), quiet_ms=quiet_ms, pause=runtime.pause, watch=runtime.watch, seed=seed)

    @property
    def quiet_ms(self) -> float:
        """Latency of the references on the undisturbed device."""
        return self._gauge.quiet_ms

    @property
    def timed_s(self) -> float:
        return self._visits_s + self._gauge.spent_s

    def finish_by(self, deadline_s: float) -> None:
        """From then on (on the clock of :func:`time.perf_counter`) nothing is waited for or taken again, and no further
        round of blocks is begun once each candidate has three, nor one that would end later than that; where it is
        soon, little is waited at first."""
        self._deadline_s = deadline_s
        self._patience_s = min(self._patience_s, _PATIENCE_SHARE * (deadline_s - time.perf_counter()))

    def warm_up(self, session: Session | None = None) -> float:
        """Runs the references until they are flat; gives :attr:`quiet_ms`.

        Args:
            session: of what will be measured, run in turns with them: after other work references take longer than in
                a loop of their own (by 2 to 3 % after ONNX Runtime or OpenVINO), and what counts as quiet must be
                read as all later readings are.
        """
        gc.collect()  # once: a collection takes a fifth of a second with torch loaded
        with _no_garbage_collection():
            return self._gauge.warm_up(session.run if session else lambda: None)

    def measure(self, sessions: Sequence[Session], pace: Pace | None = None) -> list[Timing]:
        """Times these sessions against each other, in one interleaved run."""
        pace = pace or Pace()
        timings = [Timing() for _ in sessions]
        with _no_garbage_collection():
            expected_s = [self._first_run(session, timing) for session, timing in zip(sessions, timings, strict=True)]
            pending = list(range(len(sessions)))
            while pending:
                began_s = time.perf_counter()
                self._random.shuffle(pending)
                for index in pending:
                    self._block(sessions[index], timings[index], expected_s[index], pace)
                now_s = time.perf_counter()
                late = now_s + (now_s - began_s) >= self._deadline_s
                known = counted([timing.blocks for timing in timings])
                pending = [i for i in pending if _wants_more(timings[i], known[i], pace, late=late)]
        taken = [timing.blocks for timing in timings]
        for session, timing, blocks in zip(sessions, timings, counted(taken), strict=True):
            timing.blocks = blocks
            if isinstance(session, NetworkSession):
                timing.settle(session.read_layers(), counting(taken))
        return timings

    def _first_run(self, session: Session, timing: Timing) -> float:
        spent_s = session.run()
        if isinstance(session, NetworkSession):
            spent_s += session.run_layers()
            timing.recorded += 1
        expected_s = session.run()
        self._visits_s += spent_s + expected_s
        return expected_s

    def _block(self, session: Session, timing: Timing, expected_s: float, pace: Pace) -> None:
        runs = max(1, min(pace.most_runs, round(pace.visit_s / max(expected_s, 1e-9))))
        before = self._quiet_reading()
        began_s = time.perf_counter()
        finish = self._watch()
        warm_up = (runs + 1) // 2 if expected_s < _LONG_RUN_S else 0
        whole = Stretch.of(session.run, runs, self._gauge, before, warm_up=warm_up)
        stretches = [whole]
        if isinstance(session, NetworkSession):
            stretches.append(Stretch.of(session.run_layers, runs, self._gauge, whole.after))
            timing.recorded += runs
        conditions = finish()
        elapsed_s = time.perf_counter() - began_s
        visits_s = sum(stretch.spent_s for stretch in stretches)
        self._visits_s += visits_s
        conditions = replace(conditions, disagreement=self._gauge.disagreement(whole.meanwhile))
        spent_s = visits_s + (before.total_ms + sum(stretch.after.total_ms for stretch in stretches)) * 1e-3
        reason = self._spoilt(stretches, conditions, runs)
        if reason and self._is_patient:  # taken again in a later round
            self.dropped[reason] += 1
            self._wait(spent_s)
            return
        granted_s = _PATIENCE * self._gauge.calm_share * spent_s
        self._patience_s = max(self._patience_s, min(_MOST_PATIENCE_S, self._patience_s + granted_s))
        timing.elapsed_s += elapsed_s
        timing.add(whole, replace(conditions, spoilt=1 if reason else None))
        for recorded in stretches[1:]:
            timing.add_recorded(recorded, spoilt=bool(reason))

    def _spoilt(self, stretches: Sequence[Stretch], conditions: Conditions, runs: int) -> str | None:
        """Why a block isn't to be believed, if so."""
        readings = [reading for stretch in stretches for reading in (stretch.meanwhile, stretch.after)]
        if any(map(self._gauge.is_disturbed, readings)):
            return "disturbed"
        if is_contaminated(conditions, runs):
            return "kept waiting"
        if abs(conditions.disagreement or 0.0) > _DISAGREEMENT:
            return "references disagree"
        return None

    def _quiet_reading(self) -> Reading:
        """The references, once they are quiet or patience has run out."""
        reading = self._gauge.read()
        while self._gauge.is_disturbed(reading) and self._is_patient:
            self._pause(_PAUSE_S)
            self._wait(_PAUSE_S)
            reading = self._gauge.read()
        return reading

    @property
    def _is_patient(self) -> bool:
        return self._patience_s > 0 and time.perf_counter() < self._deadline_s

    def _wait(self, seconds: float) -> None:
        self._patience_s -= seconds
        self.waited_s += seconds


def _wants_more(timing: Timing, blocks: Sequence[Block], pace: Pace, *, late: bool) -> bool:
    if len(blocks) < (min(pace.blocks, _LATE_BLOCKS) if late else pace.blocks):
        return True
    spent = timing.spent_s >= pace.cap_s or timing.elapsed_s >= 2 * pace.cap_s
    if late or spent or len(blocks) >= pace.most_blocks:
        return False
    return Measurement(tuple(blocks), 1.0).half_width > pace.half_width


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
