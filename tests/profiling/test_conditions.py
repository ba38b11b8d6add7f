"""What the host says while something is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from widthwise.luts.measurement import Conditions
from widthwise.profiling import conditions, pinning
from widthwise.profiling.conditions import is_contaminated, watch_host
from widthwise.profiling.pinning import choose_cores, pinned


def test_a_thread_that_slept_was_kept_waiting() -> None:
    finish = watch_host(1)
    time.sleep(0.05)
    seen = finish()
    assert seen.cpu_share is not None and seen.cpu_share < 0.5
    assert is_contaminated(seen, runs=20)


def test_the_median_of_many_runs_bears_a_few_that_waited() -> None:
    seen = Conditions(cpu_share=0.85)
    assert is_contaminated(seen, runs=1)
    assert not is_contaminated(seen, runs=20)


def test_a_share_of_almost_no_time_is_not_given() -> None:
    assert watch_host(1)().cpu_share is None


def test_workers_of_a_pool_may_wait() -> None:
    finish = watch_host(2)
    time.sleep(0.03)
    assert finish().cpu_share is None


def test_stolen_time_is_a_share_of_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(conditions, "_STAT", stat)
    stat.write_text("cpu  100 0 10 890 0 0 0 5 77 0\ncpu0 1 2 3\n")
    finish = watch_host(1)
    stat.write_text("cpu  150 0 10 930 0 0 0 15 99 0\ncpu0 1 2 3\n")
    seen = finish()
    assert seen.steal_share == pytest.approx(10 / 100)
    assert is_contaminated(seen, runs=20)


@pytest.mark.parametrize("text", ["", "cpu\n", "cpu a b c d e f g h\n", "cpu 1 2 3\n"])
def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(conditions, "_STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text(text)
    assert watch_host(1)().steal_share is None
    assert not is_contaminated(Conditions(), runs=1)


@pytest.mark.parametrize(
    ("count", "idle", "siblings", "expected"),
    [
        (1, {0: 0.1, 1: 0.9}, {}, (1,)),
        (1, {0: 0.97, 1: 1.0}, {}, (0,)),  # as idle as makes no difference: the same core every time
        (2, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}, (0, 2)),
        (3, {0: 1.0, 1: 0.5, 2: 1.0, 3: 1.0}, {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}, (0, 2, 3)),
        (2, {}, {}, (0, 1)),
    ],
)
def test_cores_are_idle_and_apart(
    count: int, idle: dict[int, float], siblings: dict[int, set[int]], expected: tuple[int, ...]
) -> None:
    assert choose_cores(count, set(idle) or {0, 1, 2}, idle, siblings) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system can't pin threads")
def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_pinning_more_threads_than_cores_changes_nothing() -> None:
    with pinned(10_000):
        pass


def test_systems_without_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pinning.os, "sched_setaffinity", raising=False)
    with pinned(1) as cores:
        assert cores == ()
