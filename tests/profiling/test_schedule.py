from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from widthwise.luts.measurement import Conditions, Status
from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.profiling.runtimes.base import PromptSession, References, Session
from widthwise.profiling.runtimes.fake import FakeRuntime, World, staircase_ms
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

CONV = Geometry("conv2d", ((1, 0, 14, 14),), ((1, 0, 14, 14),), (("groups", 1), ("kernel", (3, 3))))
SPECS = [LayerSpec(CONV, (c, 2 * c)) for c in (16, 40, 88, 136)]


def fake(world: World | None = None) -> FakeRuntime:
    return FakeRuntime(Target.parse("fake:cpu"), world)


def errors(world: World, *, corrected: bool) -> list[float]:
    """Relative errors of the recovered latencies against the known truth."""
    runtime = fake(world)
    schedule = Schedule.on(runtime)
    schedule.warm_up()
    timings = schedule.measure([runtime.layer(spec) for spec in SPECS], Pace(blocks=12, most_blocks=12))
    found = []
    for spec, timing in zip(SPECS, timings, strict=True):
        measurement = timing.measurement(runtime.quiet_reference_ms)
        recovered = measurement.latency_ms if corrected else measurement.raw_ms
        found.append(abs(recovered / (staircase_ms(spec) * world.single_factor) - 1))
    return found


def test_drift_correction_recovers_the_truth() -> None:
    """10 % drift: within 1 % with the reference, beyond 3 % by the stopwatch."""
    world = World(drift=0.1, drift_period_s=4.0, noise=0.005, burst_rate=0.0, seed=5)
    assert max(errors(world, corrected=True)) < 0.01
    assert max(errors(world, corrected=False)) > 0.03


def test_bursts_do_not_move_the_median() -> None:
    assert max(errors(World(drift=0.0, noise=0.005, burst_rate=0.1, burst=3.0), corrected=True)) < 0.02


def test_noise_that_does_not_settle_is_called_unstable() -> None:
    runtime = fake(World(noise=0.5, seed=1))
    schedule = Schedule.on(runtime)
    timing = schedule.measure([runtime.layer(SPECS[3])], Pace(blocks=4, most_blocks=6, visit_s=0.0))[0]
    assert len(timing.blocks) == 6
    assert timing.measurement(1.0).status == "unstable"


def test_a_settled_candidate_stops_early() -> None:
    runtime = fake(World(drift=0, noise=0.0001, burst_rate=0))
    timing = Schedule.on(runtime).measure([runtime.layer(SPECS[0])], Pace(blocks=4, most_blocks=50))[0]
    assert len(timing.blocks) == 4


def test_runs_that_are_slow_to_record_count_by_what_recording_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's kernels take 10 ms to record where the call takes a third of one."""
    clock = [0.0]

    class Recorded(PromptSession):
        def run(self) -> float:
            clock[0] += 0.0003
            return 0.0003 * (1 + 0.5 * math.sin(1e5 * clock[0]))

        def report(self) -> list[float]:
            clock[0] += 0.01
            return [self.run()]

    monkeypatch.setattr("widthwise.profiling.schedule.time.perf_counter", lambda: clock[0])
    session = Recorded()
    pace = Pace(blocks=4, most_blocks=30, cap_s=1.2, half_width=1e-9)
    timing = Schedule(both(session)).measure([session], pace)[0]
    block_s = timing.elapsed_s / len(timing.blocks)
    assert 2.4 <= timing.elapsed_s < 2.4 + 2 * block_s
    assert len(timing.blocks) < 30 and timing.spent_s < 1.2


def test_after_the_deadline_nothing_is_measured_longer_than_it_must() -> None:
    runtime = fake(World(noise=0.5, seed=1))
    counts = []
    for deadline_s in (0.0, math.inf):
        schedule = Schedule.on(runtime)
        schedule.finish_by(deadline_s)
        timing = schedule.measure([runtime.layer(SPECS[3])], Pace(blocks=4, most_blocks=9, visit_s=0.0))[0]
        counts.append(len(timing.blocks))
    assert counts == [3, 9]


@pytest.mark.parametrize(("deadline_s", "blocks"), [(0.5, 3), (1.1, 4), (1.3, 5), (99.0, 20)])
def test_a_round_that_would_end_late_is_not_begun(
    deadline_s: float, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run takes 0.1 s: two before the first round, and two (one to warm up) in each."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    schedule = Schedule(both(_Paced(lambda run: 1e-3)))
    schedule.finish_by(deadline_s)
    timing = schedule.measure([_Ticking(now)], Pace(blocks=20, most_blocks=20, visit_s=0.0))[0]
    assert len(timing.blocks) == blocks


class _Ticking(Session):
    """Moves a clock on."""

    def __init__(self, now: list[float]) -> None:
        self.now = now

    def run(self) -> float:
        self.now[0] += 0.1
        return 0.1


def test_the_quiet_reference_is_a_low_quantile() -> None:
    runtime = fake(World(drift=0.0, noise=0.02, burst_rate=0.2, burst=2.0))
    assert 0.95 < Schedule.on(runtime).warm_up() / runtime.quiet_reference_ms < 1.02


def both(session: Session) -> References:
    """One session as either reference."""
    return References(session, session)


class _Watching(Session):
    def __init__(self) -> None:
        self.collecting: list[bool] = []

    def run(self) -> float:
        self.collecting.append(gc.isenabled())
        return 0.001


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_collection_while_timing(enabled: bool) -> None:
    session = _Watching()
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        Schedule(both(_Watching())).measure([session])
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert not any(session.collecting)


def test_runs_of_candidates_are_interleaved() -> None:
    order: list[str] = []

    class Named(Session):
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self) -> float:
            order.append(self.name)
            return 0.2  # long: one run a visit

    Schedule(both(Named("reference"))).measure([Named("a"), Named("b")], Pace(blocks=6, most_blocks=6))
    visits = [name for name, before in zip(order[7:], order[6:], strict=False) if name != before]
    assert {"a", "b", "reference"} == set(visits)
    pairs = list(pairwise(visits))
    assert all("reference" in pair for pair in pairs), "every candidate is run between two references"
    assert np.unique([name for name in visits if name != "reference"]).tolist() == ["a", "b"]


class _TwoCopies(PromptSession):
    """A runtime that records layers in a second copy of the network: either takes 10 % longer right after the other."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.ran = 0

    def run(self) -> float:
        return self._took(copy=1)

    def report(self) -> list[float]:
        taken_s = self._took(copy=2)
        return [0.75 * taken_s, 0.25 * taken_s]

    def _took(self, copy: int) -> float:
        evicted, self.ran = self.ran != copy, copy
        return self.seconds * (1.1 if evicted else 1.0)


def test_networks_and_their_layers_are_timed_as_users_run_them() -> None:
    """Again and again, with the weights still in the caches."""
    timing = Schedule(both(_Paced(lambda run: 1e-3))).measure([_TwoCopies(5e-3)])[0]
    assert timing.measurement(1.0).latency_ms == pytest.approx(5.0)
    assert [layer.latency_ms for layer in timing.layer_measurements(1.0)] == pytest.approx([3.75, 1.25])


def test_layers_count_by_what_the_references_took_while_they_were_on_record() -> None:
    """Everything becomes slower by a half between the runs of the whole and those with layers on record."""
    pace = 1.0

    class Slowing(PromptSession):
        def run(self) -> float:
            nonlocal pace
            pace = 1.0
            return 0.01

        def report(self) -> list[float]:
            nonlocal pace
            pace = 1.5
            return [0.015]

    schedule = Schedule(both(_Paced(lambda run: 1e-3 * pace)), quiet_ms=2.0)
    schedule._patience_s = 0.0
    timing = schedule.measure([Slowing()])[0]
    [layer] = timing.layer_measurements(1.0)
    assert timing.measurement(1.0).latency_ms == pytest.approx(10.0)
    assert layer.latency_ms == pytest.approx(10.0)


class _Weather(Session):
    """A reference that takes three times as long while the machine is disturbed."""

    def __init__(self, disturbed_runs: range) -> None:
        self.runs = 0
        self.disturbed = disturbed_runs

    def run(self) -> float:
        self.runs += 1
        return 0.03 if self.runs in self.disturbed else 0.01


def test_the_schedule_waits_for_quiet() -> None:
    pauses: list[float] = []
    reference = _Weather(range(80, 160))
    schedule = Schedule(both(reference), pause=pauses.append)
    timing = schedule.measure([_Watching()], Pace(blocks=30, most_blocks=30))[0]
    assert pauses and schedule.waited_s >= sum(pauses)
    assert [block.reference_ms for block in timing.blocks] == pytest.approx([10.0] * 30)


def test_patience_ends_on_a_machine_that_stays_disturbed() -> None:
    pauses: list[float] = []
    schedule = Schedule(both(_Weather(range(20, 10**9))), quiet_ms=10.0, pause=pauses.append)
    timing = schedule.measure([_Watching()], Pace(blocks=5, most_blocks=5))[0]
    assert len(timing.blocks) == 5
    assert 5 < sum(pauses) < 15
    measurement = timing.measurement(10.0)
    assert measurement.spoilt >= 3
    assert measurement.status is Status.UNSTABLE, "however well it settled: the machine wasn't fit"


def test_a_machine_that_has_become_slower_for_good_is_not_waited_for() -> None:
    """At 0.3 s for each of 90 measured it would be 27."""
    pauses: list[float] = []
    schedule = Schedule(both(_Weather(range(200, 10**9))), quiet_ms=10.0, pause=pauses.append)
    schedule.measure([_Paced(lambda run: 0.3)], Pace(blocks=300, most_blocks=300))
    assert 5 < sum(pauses) < 15


def test_little_is_waited_for_where_time_is_short() -> None:
    pauses: list[float] = []
    schedule = Schedule(both(_Weather(range(20, 10**9))), quiet_ms=10.0, pause=pauses.append)
    schedule.finish_by(time.perf_counter() + 30.0)
    schedule.measure([_Watching()], Pace(blocks=5, most_blocks=5))
    assert 1 < sum(pauses) < 5


def test_past_the_deadline_nothing_is_waited_for() -> None:
    schedule = Schedule(both(_Weather(range(20, 10**9))), quiet_ms=10.0, pause=lambda seconds: pytest.fail("it waited"))
    schedule.finish_by(0.0)
    timing = schedule.measure([_Watching()], Pace(blocks=5, most_blocks=5))[0]
    assert schedule.waited_s == 0 and timing.measurement(10.0).status is Status.UNSTABLE


def test_a_known_quiet_reference_is_not_forgotten() -> None:
    schedule = Schedule(both(_Weather(range(1, 10**9))), quiet_ms=10.0)
    assert schedule.warm_up() == 10.0


class _Paced(Session):
    """Takes what a function of the runs so far says."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.runs = 0
        self.seconds = seconds

    def run(self) -> float:
        self.runs += 1
        return self.seconds(self.runs)


def test_the_reference_is_interpolated_to_the_moment_of_the_timed_runs() -> None:
    """Everything slows down steadily with time; the mean of both readings would be that of an earlier moment."""
    now_s = 0.0

    class Slowing(Session):
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def run(self) -> float:
            nonlocal now_s
            taken = self.seconds * (1 + 0.1 * now_s)
            now_s += taken
            return taken

    schedule = Schedule(both(Slowing(0.001)), quiet_ms=1.0)
    schedule._patience_s = 0.0  # nothing is dropped
    timing = schedule.measure([Slowing(0.04)], Pace(blocks=5, most_blocks=5, visit_s=0.6))[0]
    assert timing.measurement(1.0).latency_ms == pytest.approx(40.0, rel=0.004)


def test_blocks_are_dropped_where_the_references_disagree() -> None:
    """A neighbour that slows memory alone: no ratio corrects that, so such blocks must go."""
    world = World(drift=0, noise=0.003, burst_rate=0, memory_drift=1.2, memory_period_s=6.0, seed=2)
    runtime = fake(world)
    schedule = Schedule.on(runtime)
    schedule.warm_up()
    timings = schedule.measure([runtime.layer(spec) for spec in SPECS], Pace(blocks=12, most_blocks=12))
    kept = [block.conditions for timing in timings for block in timing.blocks]
    assert schedule.dropped["references disagree"] + schedule.dropped["disturbed"] > 5
    assert all(conditions and abs(conditions.disagreement or 0) <= 0.3 for conditions in kept)


def test_blocks_that_were_kept_waiting_are_dropped_and_taken_again() -> None:
    runtime = fake(World(drift=0, noise=0.003, burst_rate=0.08, burst=3.0, seed=4))
    schedule = Schedule.on(runtime)
    timing = schedule.measure([runtime.layer(SPECS[3])], Pace(blocks=30, most_blocks=30, visit_s=0.0))[0]
    assert schedule.dropped["kept waiting"] > 0
    assert len(timing.blocks) == 30
    assert all(block.conditions and (block.conditions.cpu_share or 1) >= 0.95 for block in timing.blocks)


def test_a_machine_that_is_never_fit_still_gives_a_table() -> None:
    """Every block is spoilt; patience ends, and what was seen is kept with its conditions."""
    watch = lambda: lambda: Conditions(cpu_share=0.5)  # noqa: E731
    schedule = Schedule(both(_Paced(lambda run: 0.01)), watch=watch)
    timing = schedule.measure([_Paced(lambda run: 0.3)], Pace(blocks=4, most_blocks=4))[0]
    assert [block.conditions and block.conditions.cpu_share for block in timing.blocks] == [0.5] * 4
    assert schedule.waited_s > 9


def test_intervals_hold_the_truth() -> None:
    """Blocks are independent draws here, so a 95 % interval must hold the truth about that often."""
    runtime = fake(World(drift=0.1, noise=0.03, burst_rate=0.02, seed=11))
    schedule = Schedule.on(runtime)
    schedule.warm_up()
    specs = [LayerSpec(CONV, (8 * i, 8 * j)) for i in range(4, 12) for j in range(4, 12)]
    timings = schedule.measure([runtime.layer(spec) for spec in specs], Pace(blocks=12, most_blocks=12))
    held = 0
    for spec, timing in zip(specs, timings, strict=True):
        low, high = timing.measurement(runtime.quiet_reference_ms).interval_ms
        held += low <= staircase_ms(spec) * runtime.world.single_factor <= high
    assert held >= 0.85 * len(specs)
