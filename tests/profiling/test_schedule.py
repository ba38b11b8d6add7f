from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest

from widthwise.luts.spec import Geometry, LayerSpec
from widthwise.profiling.runtimes.base import Session
from widthwise.profiling.runtimes.fake import FakeRuntime, World, staircase_ms
from widthwise.profiling.schedule import Pace, Schedule
from widthwise.profiling.target import Target

CONV = Geometry("conv2d", ((1, 0, 14, 14),), ((1, 0, 14, 14),), (("groups", 1), ("kernel", (3, 3))))
SQUARE = ((1, 0, 28, 28),)
REFERENCE_MS = staircase_ms(
    LayerSpec(Geometry("conv2d", SQUARE, SQUARE, (("groups", 1), ("kernel", (3, 3)))), (32, 32))
)
SPECS = [LayerSpec(CONV, (c, 2 * c)) for c in (16, 40, 88, 136)]


def errors(world: World, *, corrected: bool) -> list[float]:
    """Relative errors of the recovered latencies against the known truth."""
    runtime = FakeRuntime(Target.parse("fake:cpu"), world)
    schedule = Schedule(runtime.reference(), pause=runtime.pause)
    schedule.warm_up()
    timings = schedule.measure([runtime.layer(spec) for spec in SPECS], Pace(blocks=12, most_blocks=12))
    found = []
    for spec, timing in zip(SPECS, timings, strict=True):
        measurement = timing.measurement(REFERENCE_MS)
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
    runtime = FakeRuntime(Target.parse("fake:cpu"), World(noise=0.5, seed=1))
    schedule = Schedule(runtime.reference())
    timing = schedule.measure([runtime.layer(SPECS[3])], Pace(blocks=4, most_blocks=6, visit_s=0.0))[0]
    assert len(timing.blocks) == 6
    assert timing.measurement(1.0).status == "unstable"


def test_a_settled_candidate_stops_early() -> None:
    runtime = FakeRuntime(Target.parse("fake:cpu"), World(drift=0, noise=0.0001, burst_rate=0))
    timing = Schedule(runtime.reference()).measure([runtime.layer(SPECS[0])], Pace(blocks=4, most_blocks=50))[0]
    assert len(timing.blocks) == 4


def test_the_quiet_reference_is_a_low_quantile() -> None:
    runtime = FakeRuntime(Target.parse("fake:cpu"), World(drift=0.0, noise=0.02, burst_rate=0.2, burst=2.0))
    quiet_ms = Schedule(runtime.reference()).warm_up()
    assert 0.95 < quiet_ms / REFERENCE_MS < 1.02


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
        Schedule(_Watching()).measure([session])
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

    Schedule(Named("reference")).measure([Named("a"), Named("b")], Pace(blocks=6, most_blocks=6))
    visits = [name for name, before in zip(order[4:], order[3:], strict=False) if name != before]
    assert {"a", "b", "reference"} == set(visits)
    pairs = list(pairwise(visits))
    assert all("reference" in pair for pair in pairs), "every candidate is run between two references"
    assert np.unique([name for name in visits if name != "reference"]).tolist() == ["a", "b"]


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
    reference = _Weather(range(30, 60))
    schedule = Schedule(reference, pause=pauses.append)
    timing = schedule.measure([_Watching()], Pace(blocks=30, most_blocks=30))[0]
    assert pauses and schedule.waited_s >= sum(pauses)
    assert {block.reference_ms for block in timing.blocks} == {10.0}


def test_patience_ends_on_a_machine_that_stays_disturbed() -> None:
    pauses: list[float] = []
    schedule = Schedule(_Weather(range(10, 10**9)), quiet_ms=10.0, pause=pauses.append)
    timing = schedule.measure([_Watching()], Pace(blocks=5, most_blocks=5))[0]
    assert len(timing.blocks) == 5
    assert 5 < sum(pauses) < 15


def test_a_known_quiet_reference_is_not_forgotten() -> None:
    schedule = Schedule(_Weather(range(1, 10**9)), quiet_ms=10.0)
    assert schedule.warm_up() == 10.0
