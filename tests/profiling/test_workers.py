"""Profiling in processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from widthwise.luts.checks import check
from widthwise.luts.errors import InfeasibleBudget, InvalidModel, TableMismatch
from widthwise.luts.store import Lut
from widthwise.network.network import Network
from widthwise.planner.proposal import Proposer
from widthwise.profiling.profiler import open_table
from widthwise.profiling.runtimes import open_runtime
from widthwise.profiling.target import Target
from widthwise.profiling.workers import Job, WorkerDied, profile_in_workers

FACTORY = """
from torch import nn
def small():
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.Flatten(), nn.Linear(16 * 49, 5))
"""
FAKE = Target.parse("fake:cpu")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "nets.py").write_text(FACTORY)
    model = f"{tmp_path / 'nets.py'}:small"
    return Job(model, None, (torch.zeros(1, 3, 11, 11),), FAKE, tmp_path / "t.lut", advise=Proposer)


def test_workers_continue_each_others_table(job: Job) -> None:
    shares: list[float] = []
    report = profile_in_workers(job, time_s=0.0, workers=2, on_progress=lambda share, text: shares.append(share))
    with Lut.open(job.path, readonly=True) as lut:
        runs, networks = lut.runs(), lut.networks()
    assert len(runs) == 2
    assert report.networks == len(networks) >= 3
    assert [record.role.value for record in networks].count("dense") == 1
    assert report.seconds > 0 and report.dense_ms == pytest.approx(networks[0].latency_ms, rel=0.1)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_bad_input_is_known_before_a_process_starts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    open_table(job.path, open_runtime(Target.parse("fake:cpu", threads=2))).close()
    monkeypatch.setattr("widthwise.profiling.workers._in_a_process", None)
    with pytest.raises(TableMismatch, match="threads"):
        profile_in_workers(job, time_s=1.0, workers=2)


def failing(model: nn.Module, network: Network) -> Callable[..., list[dict[str, int]]]:
    raise InvalidModel("no proposals for this one")


def dying(model: nn.Module, network: Network) -> Callable[..., list[dict[str, int]]]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def endless(model: nn.Module, network: Network) -> Callable[..., list[dict[str, int]]]:
    time.sleep(600)
    raise AssertionError


def test_what_a_worker_raises_arrives(job: Job) -> None:
    with pytest.raises(InvalidModel, match="no proposals for this one"):
        profile_in_workers(Job(job.model, None, job.example, FAKE, job.path, failing), time_s=1.0, workers=2)


def test_a_worker_killed_while_it_measures_loses_nothing(job: Job) -> None:
    """Killed from outside at some moment after a commit: all that was reported is there, and a run goes on from it."""
    reported: list[str] = []

    def kill(share: float, text: str) -> None:
        reported.append(text)
        if len(reported) == 2:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerDied, match=r"exit code -9"):
        profile_in_workers(job, time_s=60.0, workers=1, on_progress=kill)
    told = max(int(text.split()[0]) for text in reported)
    with Lut.open(job.path, readonly=True) as lut:
        kept = [record.id for record in lut.networks()]
        assert check(lut) == []
    assert len(kept) >= told >= 6
    profile_in_workers(job, time_s=0.0, workers=1)
    with Lut.open(job.path, readonly=True) as lut:
        assert [record.id for record in lut.networks()][: len(kept)] == kept
        assert len(lut.runs()) == 2


def test_a_killed_worker_is_named(job: Job) -> None:
    with pytest.raises(WorkerDied, match=r"exit code -9.*run the same command again"):
        profile_in_workers(Job(job.model, None, job.example, FAKE, job.path, dying), time_s=1.0, workers=2)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Background jobs of a shell ignore interrupts, and a test run may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_worker_too(job: Job) -> None:
    def interrupt() -> None:
        while not multiprocessing.active_children():  # before that it would hit the tracing, in the middle of torch
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        profile_in_workers(Job(job.model, None, job.example, FAKE, job.path, endless), time_s=1.0, workers=1)
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    "error", [TableMismatch("differs", {"cpu": ("a", "b")}), InfeasibleBudget("too little", 3.5)], ids=str
)
def test_errors_survive_the_way_between_processes(error: Exception) -> None:
    theirs, ours = multiprocessing.Pipe()
    theirs.send(error)
    again = ours.recv()
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
